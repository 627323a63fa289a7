// SPDX-License-Identifier: Apache-2.0
//! One cache device: a ring of regions that are filled one after the other, and given up whole.
//!
//! A block that comes for the first time goes into a *probation* region; one that was asked for again until its region is given up moves on
//! into a *main* one, and so on with every round (S3-FIFO: Yang et al., SOSP 2023, by regions). So a scan runs through probation
//! and leaves what is used again where it is. While regions are free both kinds take of them; then probation has an eighth.
//!
//! Always holds:
//! - A frame that the index names has its block on the device, or in `unwritten`, or in an open region's `staged`; what comes off the
//!   device is a block only with the checksum of its frame, and only if the frame still holds the same block then.
//! - Nobody waits for a write. At most [`MAX_WRITES`] are under way; what comes beyond that is not taken.
//! - After an error, or a call that takes longer than [`PATIENCE`], the device rests for [`REST`]: everything misses, nothing is taken.
//!
//! A crash loses what is newer than the last head of its region, and no more.

mod room;

use super::index::{Frame, Index};
use super::{SsdCounts, within};
use crate::cache::CacheKey;
use crate::signal::Signal;
use bytes::{Bytes, BytesMut};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::time::Duration;
use varve_env::{CacheDevice, Env};
use varve_format::chunk::Block;
use varve_format::crc::crc;
use varve_format::region::{Entry, FRAMES, HEAD, REGION, RegionHead};
use varve_types::BLOCK;
use varve_types::branch::{Branch, reached};
use varve_types::mutant::{Mutant, planted};

/// Bytes that are written at once.
const WRITE_BYTES: usize = 64 * BLOCK as usize;
/// Writes under way; beyond that blocks are not taken.
const MAX_WRITES: usize = 16;
/// After so long a device does not count as answering.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// For how long it is let be then.
pub(super) const REST: Duration = Duration::from_secs(10);

/// A region that is being filled.
struct Open {
    region: u32,
    sequence: u64,
    /// Frames that were taken.
    filled: usize,
    /// The last of these that are not on their way to the device.
    staged: BytesMut,
    /// Frames that the head on the device names.
    told: usize,
}

impl Open {
    fn first_staged(&self) -> usize {
        self.filled - self.staged.len() / BLOCK as usize
    }
}

#[derive(Default)]
pub(super) struct State {
    index: Option<Index>,
    /// While it is read: sequence and kind of the regions that were found.
    found: Vec<Option<(u64, bool)>>,
    /// Whether all of it was read, so that blocks may be taken in.
    ready: bool,
    free: VecDeque<u32>,
    /// Full regions, oldest first: probation's and main's.
    full: [VecDeque<u32>; 2],
    open: [Option<Open>; 2],
    /// What is on its way, by its first frame.
    unwritten: BTreeMap<Frame, Bytes>,
    last_sequence: u64,
    writes: usize,
    /// Blocks that may stay of the regions that are given up next.
    may_keep: usize,
    making_room: bool,
    resting_until: Duration,
    counts: SsdCounts,
}

/// See the module.
pub(super) struct Ssd {
    pub env: Rc<dyn Env>,
    pub device: Rc<dyn CacheDevice>,
    /// Frames of a region that are used.
    frames: usize,
    pub state: RefCell<State>,
    /// Rings when a write has ended.
    written: Signal,
}

impl Ssd {
    pub fn new(env: Rc<dyn Env>, device: Rc<dyn CacheDevice>, frames: usize) -> Rc<Self> {
        let frames = frames.clamp(1, FRAMES);
        Rc::new(Self { env, device, frames, state: RefCell::default(), written: Signal::default() })
    }

    /// Where a frame begins on the device.
    fn offset_of(&self, frame: Frame) -> u64 {
        let (region, at) = (frame as usize / self.frames, frame as usize % self.frames);
        region as u64 * REGION + HEAD + at as u64 * BLOCK
    }

    fn frame_of(&self, region: u32, at: usize) -> Frame {
        region * self.frames as u32 + at as u32
    }

    /// Regions that fit; frame numbers are 32 bits.
    pub fn regions(&self) -> u32 {
        (self.device.len() / REGION).min(u64::from(u32::MAX) / FRAMES as u64) as u32
    }

    /// Begins to take over what is on the device: it gives what is known of it, and takes nothing yet.
    pub fn begin(&self) {
        let index = Index::new(self.regions() as usize * self.frames);
        let mut state = self.state.borrow_mut();
        state.index = Some(index);
        state.found = vec![None; self.regions() as usize];
    }

    /// Takes over a region that was found.
    pub fn found(&self, head: &RegionHead) {
        let mut state = self.state.borrow_mut();
        let State { index: Some(index), found, .. } = &mut *state else { return };
        found[head.number as usize] = Some((head.sequence, head.main));
        for (at, entry) in head.entries.iter().take(self.frames).enumerate() {
            let Some(entry) = entry else { continue };
            let key = CacheKey { timeline: entry.timeline, ordinal: entry.ordinal, block: entry.block };
            if let Some(other) = index.find(&key) {
                let newer = |(sequence, _): (u64, bool)| sequence > head.sequence;
                if found[other as usize / self.frames].is_some_and(newer) {
                    continue;
                }
                index.drop_frame(other);
            }
            index.put(self.frame_of(head.number, at), &key, entry.sum);
        }
    }

    /// All regions were looked at: from now on it takes blocks too.
    pub fn ready(&self) {
        let mut state = self.state.borrow_mut();
        let found = std::mem::take(&mut state.found);
        let mut full: Vec<(u64, u32, bool)> = Vec::new();
        for (number, found) in (0..).zip(found) {
            match found {
                Some((sequence, main)) => full.push((sequence, number, main)),
                None => state.free.push_back(number),
            }
        }
        full.sort_unstable();
        for (sequence, number, main) in full {
            state.last_sequence = sequence;
            state.full[usize::from(main)].push_back(number);
        }
        state.may_keep = self.most_kept();
        state.ready = true;
    }

    fn is_resting(&self) -> bool {
        self.env.now() < self.state.borrow().resting_until
    }

    /// Lets the device be for a while.
    pub fn rest(&self, what: &str, error: &io::Error) {
        reached(Branch::SsdRests);
        let mut state = self.state.borrow_mut();
        state.counts.errors += 1;
        let now = self.env.now();
        if now >= state.resting_until {
            tracing::warn!(%error, "a cache device: {what}; it is not used for {} s, and reads go to the store", REST.as_secs());
        }
        state.resting_until = now + REST;
        drop(state);
        self.written.ring();
    }

    pub fn counts(&self) -> SsdCounts {
        let (resting, state) = (self.is_resting(), self.state.borrow());
        let blocks = state.index.as_ref().map_or(0, Index::len) as u64;
        let bytes = u64::from(self.regions()) * self.frames as u64 * BLOCK;
        SsdCounts { blocks, bytes, devices: 1, resting: u64::from(resting), ..state.counts }
    }

    pub fn blocks_of(&self, timeline: varve_types::TimelineId) -> u64 {
        self.state.borrow().index.as_ref().map_or(0, |index| index.len_of(timeline))
    }

    /// Gives those of some blocks that it has, verified, in their places; the rest stays as it is.
    pub async fn get(&self, keys: &[CacheKey], found: &mut [Option<Block>]) {
        if self.is_resting() {
            return;
        }
        let groups = self.groups(keys, found);
        let reads = groups.into_iter().map(async |(at, frame, count)| {
            let bytes = self.bytes(frame, count).await;
            (at, frame, bytes)
        });
        for (at, frame, bytes) in futures_util::future::join_all(reads).await {
            let Some(bytes) = bytes else { continue };
            for (i, part) in bytes.chunks(BLOCK as usize).enumerate() {
                found[at + i] = self.verified(&keys[at + i], frame + i as u32, bytes.slice_ref(part));
            }
        }
    }

    /// Which blocks lie side by side: place of the first among the keys, its frame, how many.
    fn groups(&self, keys: &[CacheKey], found: &[Option<Block>]) -> Vec<(usize, Frame, usize)> {
        let mut state = self.state.borrow_mut();
        let State { index: Some(index), counts, .. } = &mut *state else { return Vec::new() };
        let mut groups: Vec<(usize, Frame, usize)> = Vec::new();
        for (at, key) in keys.iter().enumerate().filter(|(at, _)| found[*at].is_none()) {
            let Some(frame) = index.find(key) else {
                counts.misses += 1;
                continue;
            };
            index.mark_used(frame);
            counts.hits += 1;
            match groups.last_mut() {
                Some((first, start, count))
                    if *first + *count == at
                        && *start + *count as u32 == frame
                        && !(frame as usize).is_multiple_of(self.frames) =>
                {
                    *count += 1;
                }
                _ => groups.push((at, frame, 1)),
            }
        }
        groups
    }

    /// The bytes of frames of one region, from RAM where they are not all on the device yet.
    async fn bytes(&self, frame: Frame, count: usize) -> Option<Bytes> {
        if let Some(bytes) = self.bytes_in_ram(frame, count) {
            return bytes;
        }
        match within(&*self.env, self.device.read_at(self.offset_of(frame), count * BLOCK as usize)).await {
            Ok(bytes) if bytes.len() == count * BLOCK as usize => Some(bytes),
            Ok(bytes) => {
                let what = format!("{} bytes and not {}", bytes.len(), count * BLOCK as usize);
                self.rest("a read", &io::Error::new(io::ErrorKind::UnexpectedEof, what));
                None
            }
            Err(error) => {
                self.rest("a read", &error);
                None
            }
        }
    }

    /// `None` where all are on the device; `Some(None)` where they are in RAM and not side by side.
    fn bytes_in_ram(&self, frame: Frame, count: usize) -> Option<Option<Bytes>> {
        let state = self.state.borrow();
        let frames = u64::from(frame)..u64::from(frame) + count as u64;
        let runs = state.unwritten.iter().map(|(first, bytes)| (*first, &bytes[..]));
        let staged =
            state.open.iter().flatten().map(|open| (self.frame_of(open.region, open.first_staged()), &open.staged[..]));
        for (first, bytes) in runs.chain(staged) {
            let (first, end) = (u64::from(first), u64::from(first) + (bytes.len() as u64 / BLOCK));
            if first <= frames.start && frames.end <= end {
                let part = (frames.start - first) as usize * BLOCK as usize;
                return Some(Some(Bytes::copy_from_slice(&bytes[part..part + count * BLOCK as usize])));
            }
            if first < frames.end && frames.start < end {
                return Some(None);
            }
        }
        None
    }

    /// A block that was read from a frame, if that still holds it and it is whole.
    fn verified(&self, key: &CacheKey, frame: Frame, bytes: Bytes) -> Option<Block> {
        let mut state = self.state.borrow_mut();
        let State { index: Some(index), counts, .. } = &mut *state else { return None };
        // The region may have been given up, and be filled again.
        let (found, sum) = index.at(frame)?;
        if found != *key {
            return None;
        }
        if crc(&bytes) != sum && !planted(Mutant::TrustSsdBlocks) {
            reached(Branch::SsdDamaged);
            counts.damaged += 1;
            index.drop_frame(frame);
            return None;
        }
        reached(Branch::SsdHit);
        Some((bytes, sum))
    }

    /// Takes a verified block in, if there is room at this moment; `main`: it was used before.
    pub fn insert(self: &Rc<Self>, key: &CacheKey, block: &[u8], sum: u32, main: bool) -> bool {
        if self.is_resting() {
            return false;
        }
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let Some(index) = state.index.as_mut().filter(|_| state.ready) else { return false };
        if index.find(key).is_some() {
            return true;
        }
        let class = usize::from(main);
        if state.open[class].is_none() {
            // The last one is for what moves on, which makes room.
            let has_room = state.free.len() > usize::from(!main);
            let Some(region) = has_room.then(|| state.free.pop_front()).flatten() else {
                state.counts.refused += 1;
                self.make_room(state);
                return false;
            };
            state.last_sequence += 1;
            let sequence = state.last_sequence;
            state.open[class] = Some(Open { region, sequence, filled: 0, staged: BytesMut::new(), told: 0 });
            // What was there before is told of no more, as far as that reaches the device first.
            let head = RegionHead { number: region, sequence, main, entries: Vec::new() };
            self.write(state, None, u64::from(region) * REGION, head.encode().into());
            self.make_room(state);
        }
        let open = state.open[class].as_mut().expect("it was just opened");
        if open.staged.len() >= WRITE_BYTES && state.writes >= MAX_WRITES {
            state.counts.refused += 1;
            return false;
        }
        let frame = self.frame_of(open.region, open.filled);
        open.staged.extend_from_slice(block);
        open.filled += 1;
        let is_full = open.filled == self.frames;
        let is_due = is_full || open.staged.len() >= WRITE_BYTES;
        state.index.as_mut().expect("it was there a moment ago").put(frame, key, sum);
        state.counts.inserted += 1;
        if is_due && state.writes < MAX_WRITES || is_full {
            self.write_staged(state, class);
        }
        if is_full && let Some(open) = state.open[class].take() {
            self.write_head(state, &open, main);
            state.full[class].push_back(open.region);
        }
        true
    }

    /// Waits until it has room for a block, or is let be.
    pub async fn until_room(&self) {
        let has_room = || (self.state.borrow().writes < MAX_WRITES || self.is_resting()).then_some(());
        self.written.until(has_room).await;
    }

    /// Sends what is staged of an open region on its way.
    fn write_staged(self: &Rc<Self>, state: &mut State, class: usize) {
        let Some(open) = &mut state.open[class] else { return };
        if open.staged.is_empty() {
            return;
        }
        let first = self.frame_of(open.region, open.first_staged());
        let bytes = open.staged.split().freeze();
        state.unwritten.insert(first, bytes.clone());
        self.write(state, Some(first), self.offset_of(first), bytes);
    }

    /// Sends the head of a region on its way that names all of its frames.
    fn write_head(self: &Rc<Self>, state: &mut State, open: &Open, main: bool) {
        let Some(index) = &state.index else { return };
        let entry =
            |(key, sum): (CacheKey, u32)| Entry { timeline: key.timeline, ordinal: key.ordinal, block: key.block, sum };
        let entries = (0..open.filled).map(|at| index.at(self.frame_of(open.region, at)).map(entry)).collect();
        let head = RegionHead { number: open.region, sequence: open.sequence, main, entries };
        self.write(state, None, u64::from(open.region) * REGION, head.encode().into());
    }

    /// Writes beside everything else; `run` is the first frame of a run in `unwritten`.
    fn write(self: &Rc<Self>, state: &mut State, run: Option<Frame>, offset: u64, bytes: Bytes) {
        state.writes += 1;
        state.counts.written += bytes.len() as u64;
        let this = Rc::clone(self);
        let frames = bytes.len() / BLOCK as usize;
        let write = self.device.write_at(offset, bytes);
        self.env.spawn(Box::pin(async move {
            let mut done = Box::pin(write);
            let first = within(&*this.env, &mut done).await;
            if let Err(error) = &first {
                this.rest("a write", error);
            }
            // A write that is under way keeps its place, however long it takes.
            let done = match first {
                Err(error) if error.kind() == io::ErrorKind::TimedOut => done.await,
                done => done,
            };
            this.end_write(run, frames, done.is_ok());
        }));
    }

    fn end_write(&self, run: Option<Frame>, frames: usize, done: bool) {
        {
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            state.writes -= 1;
            if let Some(first) = run {
                state.unwritten.remove(&first);
                if let Some(index) = state.index.as_mut().filter(|_| !done) {
                    (first..first + frames as u32).for_each(|frame| index.drop_frame(frame));
                }
            }
        }
        self.written.ring();
    }

    /// Sends on its way what is staged, with heads that tell of it, so that the next process finds it.
    pub fn settle(self: &Rc<Self>) {
        if self.is_resting() {
            return;
        }
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        for class in 0..2 {
            if state.open[class].as_ref().is_some_and(|open| open.told < open.filled) {
                self.write_staged(state, class);
                if let Some(mut open) = state.open[class].take() {
                    self.write_head(state, &open, class == 1);
                    open.told = open.filled;
                    state.open[class] = Some(open);
                }
            }
        }
    }

    /// Waits until no write is under way, or for a while.
    pub async fn quiet(&self) {
        let idle = async {
            self.written.until(|| (self.state.borrow().writes == 0).then_some(())).await;
            Ok(())
        };
        if let Err(error) = within(&*self.env, idle).await {
            tracing::warn!(%error, "a cache device: not everything is written that it holds");
        }
    }
}
