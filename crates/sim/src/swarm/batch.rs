// SPDX-License-Identifier: Apache-2.0
//! A batch: requests that are under way together, what came back, and what the model makes of it.
//!
//! Changes of one batch touch no sector twice, so what each block may hold is known whatever their order; but for a resize, which ends all that lies behind
//! the new end, whenever it came (no change reaches over that end). Reads may cross changes: each block of a read is what it was before with any of them. A few operations on volumes and
//! snapshots are among them, mostly on different volumes; one that changes which history a volume shows has that volume for itself.

use super::admin::Admin;
use super::disk::{Change, Disk};
use super::line::Made;
use super::plan::Op;
use super::run::{Died, Run, patiently, write};
use super::stamp::{BLOCK, SECTOR, SECTORS, bytes_of, stamp_of};
use crate::Rng;
use crate::node::{finish, read, wait};
use bytes::Bytes;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;
use varve_engine::{BlockDevice, Device, EngineError, StatusExtent};
use varve_env::LocalFuture;
use varve_types::ErrorKind;

/// What was asked of a volume's data.
#[derive(Clone, Debug)]
pub(super) enum Data {
    Change { change: Change, fua: bool, zeroes: bool },
    Read { offset: u64, len: u64 },
    Status { offset: u64, len: u64 },
    Flush,
}

/// What came back.
#[derive(Debug)]
enum Answer {
    Done,
    Bytes(Bytes),
    Status(Vec<StatusExtent>),
}

/// Bytes of the largest requests.
const LARGEST: u64 = 512 << 10;
/// Blocks that are written behind the end that a resize makes.
const CUT_OFF: u32 = 6;

type Answers = Rc<RefCell<Vec<Option<Result<Answer, EngineError>>>>>;

/// See the module.
#[derive(Default)]
pub(super) struct Batch {
    requests: Vec<(usize, Data)>,
    /// Sectors that are changed, by volume.
    taken: BTreeMap<usize, Vec<Range<u64>>>,
    pub(super) admins: Vec<Admin>,
    /// Volumes that an operation has for itself.
    pub(super) alone: Vec<usize>,
    /// Whether the operations begin before the requests, which then wait for them, or come too late.
    admins_first: bool,
}

impl Batch {
    /// Whether a volume has requests in it.
    pub(super) fn uses(&self, vol: usize) -> bool {
        self.requests.iter().any(|(of, _)| *of == vol)
    }

    /// Whether a volume may be given this size beside what is asked of it: a change over the new end could be done in part, and then be refused.
    pub(super) fn takes_size(&self, vol: usize, size: u64) -> bool {
        let crosses = |data: &Data| matches!(data, Data::Change { change, .. } if is_within(size, &change.range()));
        !self.requests.iter().any(|(of, data)| *of == vol && crosses(data))
    }

    /// Sizes that the volume is given.
    fn resizes(&self, vol: usize) -> impl Iterator<Item = u64> {
        let resizes = self.admins.iter().filter_map(Admin::resize).filter(move |(of, ..)| *of == vol);
        resizes.filter_map(|(_, change, _)| if let Change::Resize { to, .. } = change { Some(to) } else { None })
    }

    /// Whether a request reaches behind the end that a resize beside it makes.
    fn is_cut(&self, vol: usize, data: &Data) -> bool {
        let end = match data {
            Data::Change { change, .. } => change.range().end,
            Data::Read { offset, len } | Data::Status { offset, len } => offset + len,
            Data::Flush => 0,
        };
        self.resizes(vol).any(|to| to < end)
    }

    fn is_free(&self, vol: usize, range: &Range<u64>) -> bool {
        let taken = self.taken.get(&vol).map_or(&[][..], Vec::as_slice);
        taken.iter().all(|other| other.end <= range.start || range.end <= other.start)
    }

    /// Adds a change unless it meets another one.
    fn change(&mut self, vol: usize, change: Change, fua: bool, zeroes: bool) {
        let range = change.range();
        let crosses = self.resizes(vol).any(|to| is_within(to, &range));
        if !range.is_empty() && self.is_free(vol, &range) && !crosses {
            self.taken.entry(vol).or_default().push(range);
            self.requests.push((vol, Data::Change { change, fua, zeroes }));
        }
    }
}

impl Run {
    /// Makes a batch, lets it run, and takes what came of it.
    pub(super) fn batch(&mut self, rng: &mut Rng) -> Result<(), Died> {
        let mut batch = Batch { admins_first: rng.chance(500), ..Batch::default() };
        for _ in 0..1 + rng.below(self.plan.width) {
            let op = self.plan.pick(rng);
            if matches!(op, Op::Wait | Op::WaitLong) {
                if batch.requests.is_empty() && batch.admins.is_empty() {
                    return self.pass_time(op, rng);
                }
                continue;
            }
            let vol = rng.below(self.vols.len() as u64) as usize;
            if !batch.alone.contains(&vol) {
                self.request(op, vol, &mut batch, rng);
            }
        }
        self.run_batch(batch)
    }

    fn pass_time(&mut self, op: Op, rng: &mut Rng) -> Result<(), Died> {
        let window = self.window_ms();
        let ms = match op {
            Op::WaitLong => window / 2 + rng.below(window),
            _ => rng.below(30_000),
        };
        self.cover.count("op: time passes");
        self.ops += 1;
        if let Err(error) = self.node.world.run_for(Duration::from_millis(ms)) {
            self.fail(&error.to_string());
        }
        if self.node.env.is_dead() { Err(Died) } else { Ok(()) }
    }

    /// A range of sectors in one of the volume's regions, `most` bytes long at most, or a little more now and then.
    fn range(&mut self, vol: usize, most: u64, rng: &mut Rng) -> Option<(u64, u64)> {
        let regions = &self.vols[vol].regions;
        let (start, len) = regions[rng.below(regions.len() as u64) as usize];
        let end = (start + len).min(self.vols[vol].line.now.size);
        if end <= start {
            return None;
        }
        let (mut from, mut unit) = (start + rng.below((end - start) / SECTOR) * SECTOR, SECTOR);
        if rng.chance(700) {
            from -= from % BLOCK;
            unit = BLOCK;
        }
        let most = match rng.below(100) {
            0 => most.max(LARGEST),
            1..6 => most * 8,
            _ => most,
        };
        let len = (1 + rng.below(most / unit)) * unit;
        Some((from, len.min(end - from)))
    }

    /// A sector of a volume: any, or one where it is used.
    fn anywhere(&mut self, vol: usize, rng: &mut Rng) -> u64 {
        let any = rng.below(self.vols[vol].line.now.size / SECTOR) * SECTOR;
        let used = self.range(vol, SECTOR, rng).filter(|_| rng.chance(500));
        used.map_or(any, |(offset, _)| offset)
    }

    fn request(&mut self, op: Op, vol: usize, batch: &mut Batch, rng: &mut Rng) {
        let fixed = self.vols[vol].template;
        match op {
            Op::Write if !fixed => self.write_somewhere(vol, 4 * BLOCK, batch, rng),
            Op::Burst if !fixed => (0..8).for_each(|_| self.write_somewhere(vol, BLOCK, batch, rng)),
            Op::Partials if !fixed => self.partials(vol, batch, rng),
            Op::Zero if !fixed => {
                if let Some((offset, len)) = self.range(vol, 16 * BLOCK, rng) {
                    batch.change(vol, Change::Zero { offset, len }, rng.chance(50), rng.chance(300));
                }
            }
            Op::ZeroAll if !fixed => {
                let (one, other) = (self.anywhere(vol, rng), self.anywhere(vol, rng));
                let (offset, len) = (one.min(other), one.abs_diff(other) + SECTOR);
                batch.change(vol, Change::Zero { offset, len }, false, rng.chance(300));
            }
            Op::Read => {
                if let Some((offset, len)) = self.range(vol, 8 * BLOCK, rng) {
                    batch.requests.push((vol, Data::Read { offset, len }));
                }
            }
            Op::Status => {
                if let Some((offset, len)) = self.range(vol, 32 * BLOCK, rng) {
                    batch.requests.push((vol, Data::Status { offset, len }));
                }
            }
            Op::Flush => batch.requests.push((vol, Data::Flush)),
            Op::Write | Op::Burst | Op::Partials | Op::Zero | Op::ZeroAll | Op::Wait | Op::WaitLong => {}
            _ => self.plan_admin(op, vol, batch, rng),
        }
    }

    pub(super) fn write_somewhere(&mut self, vol: usize, most: u64, batch: &mut Batch, rng: &mut Rng) {
        if let Some((offset, len)) = self.range(vol, most, rng) {
            self.stamps += 1;
            batch.change(vol, Change::Write { offset, len, stamp: self.stamps }, rng.chance(50), false);
        }
    }

    /// Several parts of one block, each by a request of its own.
    fn partials(&mut self, vol: usize, batch: &mut Batch, rng: &mut Rng) {
        let Some((offset, _)) = self.range(vol, BLOCK, rng) else { return };
        let start = offset / BLOCK * BLOCK;
        let end = (start + BLOCK).min(self.vols[vol].line.now.size);
        let mut at = start;
        while at < end {
            let len = ((1 + rng.below(6)) * SECTOR).min(end - at);
            self.stamps += 1;
            match rng.below(4) {
                0 => {}
                1 => batch.change(vol, Change::Zero { offset: at, len }, false, rng.chance(500)),
                _ => batch.change(vol, Change::Write { offset: at, len, stamp: self.stamps }, rng.chance(100), false),
            }
            at += len;
        }
    }

    /// Changes that wait for their turn while the volume becomes smaller, and they lie behind its end; or larger, and a discard up to the end is none any more.
    pub(super) fn beside_resize(&mut self, vol: usize, from: u64, to: u64, batch: &mut Batch, rng: &mut Rng) {
        for _ in 0..if to < from { CUT_OFF } else { 1 } {
            self.wait_beside_resize(vol, from, to, batch, rng);
        }
    }

    fn wait_beside_resize(&mut self, vol: usize, from: u64, to: u64, batch: &mut Batch, rng: &mut Rng) {
        let block = if to < from {
            let least = to.next_multiple_of(BLOCK);
            least + rng.below(from.saturating_sub(least) / BLOCK + 1) * BLOCK
        } else {
            (from / BLOCK).saturating_sub(1 + rng.below(4)) * BLOCK
        };
        let middle = block + (1 + rng.below(SECTORS as u64 - 1)) * SECTOR;
        if middle >= from {
            return;
        }
        self.stamps += 2;
        let one = Change::Write { offset: block, len: middle - block, stamp: self.stamps - 1 };
        let end = (block + BLOCK).min(from);
        let other = if to < from {
            Change::Write { offset: middle, len: end - middle, stamp: self.stamps }
        } else {
            Change::Zero { offset: middle, len: from - middle }
        };
        batch.change(vol, one, false, false);
        batch.change(vol, other, false, rng.chance(300));
    }

    pub(super) fn run_batch(&mut self, batch: Batch) -> Result<(), Died> {
        let mut futures: Vec<LocalFuture<()>> = Vec::new();
        let answers: Answers = Rc::default();
        let named: Vec<_> = batch.requests.iter().map(|(vol, _)| self.vols[*vol].name.clone()).collect();
        for (place, volume) in named.into_iter().enumerate() {
            let Ok(device) = self.device(&volume) else { return Err(Died) };
            let (vol, data) = batch.requests[place].clone();
            self.cover.count(name_of(&data));
            self.note(|| format!("{}: {data:x?}", self.vols[vol].name));
            futures.push(self.start(device, data, place, &answers));
        }
        answers.borrow_mut().resize_with(batch.requests.len(), || None);
        for admin in &batch.admins {
            self.note(|| format!("{}: {:?}", self.vols[admin.vol().unwrap_or(0)].name, admin.kind()));
            futures.push(self.start_admin(admin));
        }
        if batch.admins_first {
            futures.rotate_left(batch.requests.len());
        }
        self.ops += futures.len() as u64;
        let done = self.together(futures);
        self.take_answers(batch, &answers, done)
    }

    fn note(&self, text: impl FnOnce() -> String) {
        if self.node.world.is_logged() {
            self.node.world.note(&format!("step {}: {}", self.step, text()));
        }
    }

    /// The future of a request: it leaves its answer unless the process has died.
    fn start(&self, device: Rc<Device>, data: Data, place: usize, answers: &Answers) -> LocalFuture<()> {
        let (env, answers) = (Rc::clone(&self.node.env), Rc::clone(answers));
        Box::pin(async move {
            let answer = patiently(&*env, || act(Rc::clone(&device), data.clone())).await;
            if !env.is_dead() {
                answers.borrow_mut()[place] = Some(answer);
            }
        })
    }

    /// Brings the model up to date, and looks at what was read.
    fn take_answers(&mut self, batch: Batch, answers: &Answers, done: Result<(), Died>) -> Result<(), Died> {
        let mut made: BTreeMap<usize, Vec<Made>> = BTreeMap::new();
        let mut flushed = Vec::new();
        let mut answers = answers.take();
        for ((vol, data), answer) in batch.requests.iter().zip(&mut answers) {
            if matches!(&answer, Some(Err(error)) if error.kind() == ErrorKind::Invalid && batch.is_cut(*vol, data)) {
                self.cover.count("op: refused, as the volume was made smaller meanwhile");
                *answer = None;
            }
            if let Some(Err(error)) = answer {
                self.fail(&format!("{data:x?} on {}: {error} ({:?})", self.vols[*vol].name, error.kind()));
            }
            match data {
                Data::Change { change, fua, .. } => {
                    let answered = answer.is_some();
                    let stable = answered && *fua && !self.vols[*vol].line.frozen_base;
                    made.entry(*vol).or_default().push(Made { change: *change, answered, stable });
                }
                Data::Flush if answer.is_some() => flushed.push(*vol),
                Data::Flush | Data::Read { .. } | Data::Status { .. } => {}
            }
        }
        for (vol, change, answered) in batch.admins.iter().filter_map(Admin::resize) {
            // Behind the writes: whichever came first, what lies behind the new end is gone.
            made.entry(vol).or_default().push(Made { change, answered, stable: answered });
        }
        let before: BTreeMap<usize, Disk> = (0..self.vols.len())
            .filter(|vol| batch.uses(*vol) || batch.admins.iter().any(|admin| admin.vol() == Some(*vol)))
            .map(|vol| (vol, self.vols[vol].line.now.clone()))
            .collect();
        for ((vol, data), answer) in batch.requests.iter().zip(answers.iter_mut()) {
            let changes = made.get(vol).map_or(&[][..], Vec::as_slice);
            match (data, answer.take()) {
                (Data::Read { offset, .. }, Some(Ok(Answer::Bytes(bytes)))) => {
                    self.look_at(*vol, &before[vol], changes, *offset, &bytes);
                }
                (Data::Status { offset, len }, Some(Ok(Answer::Status(extents)))) => {
                    self.look_at_status(*vol, &before[vol], changes, *offset..*offset + *len, &extents);
                }
                _ => {}
            }
        }
        for (vol, changes) in &made {
            self.vols[*vol].line.add(changes.clone());
        }
        for vol in flushed {
            let keep = usize::from(made.contains_key(&vol));
            self.vols[vol].line.flushed(keep);
        }
        // A deletion last: it moves the places of other volumes.
        let (last, first): (Vec<_>, Vec<_>) = batch.admins.into_iter().partition(Admin::is_deletion);
        let done = first.into_iter().chain(last).fold(done, |done, admin| self.take_admin(admin, &before, &made, done));
        if done.is_ok() {
            self.remember_moments();
        }
        done
    }

    /// What volumes hold now can be brought back, where it is the end of a segment.
    fn remember_moments(&mut self) {
        for vol in &mut self.vols {
            let counts = self.node.volume(&vol.name).counts();
            if counts.is_sealed {
                vol.line.remember(counts.last_change);
            }
        }
    }

    /// Whether bytes that were read may be what they are: of each block what it was, with any of the changes that were under way.
    fn look_at(&self, vol: usize, before: &Disk, changes: &[Made], offset: u64, bytes: &[u8]) {
        for (at, sector) in bytes.chunks(SECTOR as usize).enumerate() {
            let place = offset + at as u64 * SECTOR;
            let (number, within) = (place / BLOCK, (place % BLOCK / SECTOR) as usize);
            let Some(stamp) = stamp_of(sector, place / SECTOR) else {
                self.fail(&format!("{}: a sector at {place} is nobody's: {:x?}", self.vols[vol].name, &sector[..16]));
            };
            let old = before.block(number)[within];
            let mut block = before.block(number);
            let fits = stamp == old
                || changes.iter().any(|made| {
                    made.change.apply_to(number, &mut block);
                    block[within] == stamp
                });
            if !fits {
                let text = format!("reads {stamp:x} at {place}, it was {old:x} with {changes:x?} under way");
                self.fail(&format!("{} {text}", self.vols[vol].name));
            }
        }
    }

    /// Whether what is told to be a hole may be one.
    fn look_at_status(&self, vol: usize, before: &Disk, changes: &[Made], range: Range<u64>, extents: &[StatusExtent]) {
        let mut at = range.start;
        for extent in extents {
            for place in (at..(at + extent.len).min(range.end)).step_by(SECTOR as usize).filter(|_| extent.hole) {
                let number = place / BLOCK;
                let within = (place % BLOCK / SECTOR) as usize;
                let touched = changes.iter().any(|made| made.change.range().contains(&place));
                if before.block(number)[within] != 0 && !touched {
                    self.fail(&format!("{}: {place} is told to be a hole, and is not", self.vols[vol].name));
                }
            }
            at += extent.len;
        }
        if extents.is_empty() {
            self.fail("a block status told nothing");
        }
    }
}

/// Whether a place lies inside a range, and not at its edges.
const fn is_within(place: u64, range: &Range<u64>) -> bool {
    range.start < place && place < range.end
}

/// Does a request.
async fn act(device: Rc<Device>, data: Data) -> Result<Answer, EngineError> {
    match data {
        Data::Change { change: Change::Write { offset, len, stamp }, fua, .. } => {
            write(device, offset, bytes_of(stamp, offset, len).into(), fua).await.map(|()| Answer::Done)
        }
        Data::Change { change: Change::Zero { offset, len }, fua, zeroes } => {
            let submit = if zeroes { device.write_zeroes(offset, len, fua) } else { device.discard(offset, len, fua) };
            finish(&device, submit).await.map(|()| Answer::Done)
        }
        Data::Change { change: Change::Resize { .. }, .. } | Data::Flush => {
            wait(device.flush()).await.map(|()| Answer::Done)
        }
        Data::Read { offset, len } => read(&device, offset, len as u32).await.map(Answer::Bytes),
        Data::Status { offset, len } => wait(device.block_status(offset, len, 64)).await.map(Answer::Status),
    }
}

const fn name_of(data: &Data) -> &'static str {
    match data {
        Data::Change { change: Change::Write { .. }, fua: false, .. } => "op: write",
        Data::Change { change: Change::Write { .. }, fua: true, .. } => "op: write with FUA",
        Data::Change { zeroes: true, .. } => "op: write zeroes",
        Data::Change { .. } => "op: discard",
        Data::Read { .. } => "op: read",
        Data::Status { .. } => "op: block status",
        Data::Flush => "op: flush",
    }
}
