// SPDX-License-Identifier: Apache-2.0
//! A journal of a shard: a preallocated ring on a disk, shared by volumes of the shard, written in batches and
//! synced for all at once.
//!
//! Invariants:
//! - Positions only grow. Records stand in the order of their positions, each bound to its own by checksum; which is the order of changes but for
//!   those that were carried ([`carry`]).
//! - `durable_trim ≤ trim ≤ synced ≤ written ≤ head ≤ durable_trim + ring`: nothing at or behind the trim that a
//!   reader would begin with is overwritten.
//! - A page that a successful sync covered is not written again until the ring comes round: a sync is followed by a
//!   jump to the next page.
//! - `head − synced ≤ MAX_UNSYNCED`: how far after a power cut a reader has to look for records behind a damaged
//!   one.
//! - Whatever a trim passes is in the store, and the journal says so behind the trim: each timeline that has put segments which no manifest names
//!   yet has a record of how far they go. A segment that the store loses is so missed at the next opening. Or it stands once more behind the trim.
//! - A batch, which is written as one, lies within one lap.
//! - Writers leave a part of the ring to [`carry`], and what other nodes were promised for copies to these.
//! - After a failed write or sync nothing is appended any more. A second sync would prove nothing, so none is
//!   tried.
//!
//! A crash loses what `commit` has not handed to the kernel; a power cut may also lose, or tear, what lies behind
//! `synced`.

mod adopt;
mod carry;
mod replay;
mod sync;
#[cfg(test)]
mod tests;

pub(crate) use carry::{Moved, Needed};
pub(crate) use replay::{Replayed, replay};

use crate::signal::Signal;
use crate::stages::{Stage, Stages};
use crate::{EngineError, Result};
use bytes::Bytes;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::io::IoSlice;
use std::ops::Range;
use std::rc::Rc;
use varve_env::{Disk, Env};
use varve_format::journal::{
    Body, MAX_RECORD, RING_START, Record, SUPERBLOCK, Superblock, WriteHeader, encode_write_header, write_header_len,
};
use varve_types::branch::{Branch, reached, reached_if};
use varve_types::{BLOCK, Epoch, ErrorKind, JournalId, Sequence, TimelineId};

/// Most bytes that are written and not synced.
pub(crate) const MAX_UNSYNCED: u64 = 128 << 20;
/// Unsynced bytes at which a sync is begun though nobody asked.
const SYNC_AT: u64 = 24 << 20;
/// Written bytes at which the kernel is asked to begin writing.
const WRITEBACK_AT: u64 = 1 << 20;
/// Syncs never cover a part of a page that is written again.
const PAGE: u64 = 4096;
/// Commits between two syncs, at most, for a client that flushes after nearly every write.
const FEW_COMMITS: u32 = 2;
/// Smallest ring: some records of each size, and the bound of what is unsynced.
pub(crate) const MIN_RING: u64 = 8 << 20;

/// The facts of a change that its record carries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    pub timeline: TimelineId,
    pub epoch: Epoch,
    pub sequence: Sequence,
    pub flushed_through: Sequence,
}

/// Whose the records of a journal are. A journal of which nobody says so keeps what is pinned, and carries nothing.
pub(crate) trait Keeper {
    /// For each timeline that has put segments which no manifest names yet, or of which records were carried: up to which change all is in the
    /// store, or was on stable media.
    fn evidence(&self) -> Vec<Stamp>;
    /// Bytes of the records that are needed, at most.
    fn needed_bytes(&self) -> u64;
    /// The records in a part of the ring that are needed, by position.
    fn needed(&self, part: Range<u64>) -> Vec<Needed>;
    /// Records stand elsewhere now, on stable media: places and pins follow. They are in the order of their old positions; what is not needed any
    /// more is passed over.
    fn moved(&self, moved: &[Moved]);
}

/// What copies of other nodes' changes may take of a journal.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Promised {
    /// Bytes in all.
    pub all: u64,
    /// Those of them that are not used yet.
    pub unused: u64,
}

/// A record that was appended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Appended {
    /// Position of the record: what a layer pins.
    pub position: u64,
    /// Position of its data.
    pub place: u64,
    /// Position behind it: what a flush has to reach.
    pub end: u64,
}

enum Part {
    Headers(usize),
    Data(Bytes),
}

struct State {
    superblock: Superblock,
    /// Position behind the last appended record.
    head: u64,
    /// Position up to which the kernel has everything.
    written: u64,
    /// Position up to which everything is on stable media.
    synced: u64,
    /// Position up to which writing was hinted.
    hinted: u64,
    /// Positions that layers still need, with their number.
    pins: BTreeMap<u64, u32>,
    /// Commits since the last sync began.
    commits: u32,
    /// Whether flushes follow commits so closely that writing is best begun at each commit.
    eager: bool,
    committing: bool,
    syncing: bool,
    trimming: bool,
    carrying: bool,
    /// Whether something was carried since the last trim: the next is worth it however little it gains.
    carried: bool,
    /// Nothing could be gained by carrying, and will not before the head is here or a layer counts.
    carry_from: u64,
    /// A record that can not be read: where the trim has come to it, nothing is carried.
    unreadable: Option<u64>,
    /// Where the last trim told what is in the store.
    told: Range<u64>,
    failed: Option<EngineError>,
    /// What was appended since the last commit: headers, and what stands where, from position `batch_start`.
    headers: Vec<u8>,
    parts: Vec<Part>,
    batch_start: u64,
}

/// See the module.
pub(crate) struct Journal {
    disk: Rc<dyn Disk>,
    env: Rc<dyn Env>,
    id: JournalId,
    ring: u64,
    /// The most that may be unsynced: `MAX_UNSYNCED`, or less in a small ring.
    max_unsynced: u64,
    state: RefCell<State>,
    promised: Cell<Promised>,
    /// Times, of the shard's other stages too.
    stages: Rc<Stages>,
    keeper: OnceCell<Box<dyn Keeper>>,
    /// Rings when something was synced, trimmed or failed.
    changed: Signal,
}

impl Journal {
    /// Formats a disk as an empty journal.
    ///
    /// # Errors
    /// When the disk is too small or can not be written.
    pub async fn create(disk: Rc<dyn Disk>, env: Rc<dyn Env>, stages: Rc<Stages>) -> Result<Rc<Self>> {
        let ring = disk.len().saturating_sub(RING_START) / PAGE * PAGE;
        if ring < MIN_RING {
            return Err(EngineError::invalid(format!(
                "a journal of {} bytes is too small: 16 MiB at least",
                disk.len()
            )));
        }
        let mut id = [0; 16];
        env.random(&mut id);
        let superblock = Superblock { journal: JournalId::from_random(id), ring, generation: 0, trim: 0 };
        for generation in 0..2 {
            let block = Superblock { generation, ..superblock };
            write(&*disk, generation * SUPERBLOCK, &[IoSlice::new(&block.encode())])?;
        }
        disk.sync().await.map_err(|error| io_failed("sync", &error))?;
        Ok(Rc::new(Self::with(disk, env, stages, Superblock { generation: 1, ..superblock }, 0, 0)))
    }

    fn with(
        disk: Rc<dyn Disk>,
        env: Rc<dyn Env>,
        stages: Rc<Stages>,
        superblock: Superblock,
        head: u64,
        synced: u64,
    ) -> Self {
        let state = State {
            superblock,
            head,
            written: head,
            synced,
            hinted: head,
            pins: BTreeMap::new(),
            commits: 0,
            eager: false,
            committing: false,
            syncing: false,
            trimming: false,
            carrying: false,
            carried: false,
            carry_from: 0,
            unreadable: None,
            told: 0..0,
            failed: None,
            headers: Vec::new(),
            parts: Vec::new(),
            batch_start: head,
        };
        Self {
            disk,
            env,
            id: superblock.journal,
            ring: superblock.ring,
            max_unsynced: MAX_UNSYNCED.min(superblock.ring / 4),
            state: RefCell::new(state),
            promised: Cell::default(),
            stages,
            keeper: OnceCell::new(),
            changed: Signal::default(),
        }
    }

    /// Sets whose the records are. Once.
    pub fn set_keeper(&self, keeper: Box<dyn Keeper>) {
        assert!(self.keeper.set(keeper).is_ok(), "a shard sets it once, as it starts");
    }

    /// Its id.
    pub const fn id(&self) -> JournalId {
        self.id
    }

    /// Whether nobody needs anything of it.
    pub fn is_empty(&self) -> bool {
        self.state.borrow().pins.is_empty()
    }

    /// Whether it failed, and how.
    pub fn failure(&self) -> Option<EngineError> {
        self.state.borrow().failed.clone()
    }

    /// Bytes of the ring, and those of them that are in use.
    pub fn usage(&self) -> (u64, u64) {
        let state = self.state.borrow();
        (self.ring, state.head - state.superblock.trim)
    }

    /// Says what was promised for copies of other nodes' changes.
    pub fn promise(&self, promised: Promised) {
        // What is delivered takes what it was promised: only what is given back makes room for others.
        if promised.all < self.promised.replace(promised).all {
            self.changed.ring();
        }
    }

    /// Bytes of the ring that are promised for these.
    pub fn promised(&self) -> u64 {
        self.promised.get().all
    }

    /// Whether records of so many bytes fit now, in the ring and within what may be unsynced, beside what was promised.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.has_room_beside(bytes, self.promised.get().unused)
    }

    /// The same, for what was promised.
    pub fn has_foreign_room(&self, bytes: u64) -> bool {
        self.has_room_beside(bytes, 0)
    }

    fn has_room_beside(&self, bytes: u64, promised: u64) -> bool {
        let state = self.state.borrow();
        let is_synced_enough = state.head + bytes <= state.synced + self.max_unsynced;
        state.failed.is_some() || (is_synced_enough && self.fits_ring(&state, bytes + promised))
    }

    /// Whether records of so many bytes fit now into the ring.
    fn fits_ring(&self, state: &State, bytes: u64) -> bool {
        // Twice the longest record: for the pad at the end of the ring and for the jump to the next page.
        let end = state.head + bytes + 2 * MAX_RECORD;
        end + self.reserve() <= state.superblock.trim + self.ring
    }

    /// Waits until records of so many bytes fit, or the journal failed.
    pub async fn room(self: &Rc<Self>, bytes: u64) {
        self.until_room(|| self.has_room(bytes)).await;
    }

    /// The same, for what was promised.
    pub async fn foreign_room(self: &Rc<Self>, bytes: u64) {
        self.until_room(|| self.has_foreign_room(bytes)).await;
    }

    async fn until_room(self: &Rc<Self>, has_room: impl Fn() -> bool) {
        self.changed
            .until(|| {
                if has_room() {
                    return Some(());
                }
                self.start_sync();
                self.start_trim();
                self.start_carry();
                None
            })
            .await;
    }

    /// Appends a write; the caller made sure of room. It is handed to the kernel by the next commit.
    ///
    /// # Errors
    /// When the journal has failed.
    pub fn append_write(&self, stamp: Stamp, start: u64, data: Bytes, sums: &[u32]) -> Result<Appended> {
        let header = write_header_len(sums.len() as u32);
        let mut state = self.state.borrow_mut();
        let position = self.begin(&mut state, header + data.len() as u64)?;
        let header = WriteHeader {
            position,
            timeline: stamp.timeline,
            epoch: stamp.epoch,
            sequence: stamp.sequence,
            flushed_through: stamp.flushed_through,
            start,
            crcs: sums,
        };
        let place = self.push_write(&mut state, &header, data);
        Ok(Appended { position, place, end: state.head })
    }

    /// Adds a write to the batch, and gives the place of its data.
    fn push_write(&self, state: &mut State, header: &WriteHeader<'_>, data: Bytes) -> u64 {
        let State { headers, parts, .. } = &mut *state;
        let before = headers.len();
        encode_write_header(self.id, header, headers);
        let header_len = headers.len() - before;
        push_headers(parts, header_len);
        let place = header.position + header_len as u64;
        state.head = place + data.len() as u64;
        state.parts.push(Part::Data(data));
        place
    }

    /// Appends a record without data; the caller made sure of room.
    ///
    /// # Errors
    /// When the journal has failed.
    pub fn append(&self, stamp: Stamp, body: Body) -> Result<Appended> {
        let mut state = self.state.borrow_mut();
        let position = self.begin(&mut state, BLOCK)?;
        let Stamp { timeline, epoch, sequence, flushed_through } = stamp;
        let record = Record { position, timeline, epoch, sequence, flushed_through, body };
        self.push_record(&mut state, &record);
        Ok(Appended { position, place: state.head, end: state.head })
    }

    fn push_record(&self, state: &mut State, record: &Record) {
        let before = state.headers.len();
        record.encode(self.id, &mut state.headers);
        let len = state.headers.len() - before;
        push_headers(&mut state.parts, len);
        state.head = record.position + len as u64;
    }

    /// The position for a record of at most `len` bytes: here, or at the next lap behind a pad.
    fn begin(&self, state: &mut State, len: u64) -> Result<u64> {
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        assert!(state.head + len <= state.superblock.trim + self.ring, "the caller waited for room");
        let left = self.ring - state.head % self.ring;
        if left == self.ring && state.batch_start < state.head {
            // The last record has filled the ring to its very end: a batch is written as one, and does not go on beyond it.
            reached(Branch::JournalFullLap);
            self.hand_over(state)?;
        } else if left < len {
            reached_if(left < BLOCK, Branch::JournalTightLap);
            if left >= BLOCK {
                reached(Branch::JournalPad);
                let pad = Record {
                    position: state.head,
                    timeline: TimelineId::from_bytes([0; 16]),
                    epoch: Epoch(0),
                    sequence: Sequence(0),
                    flushed_through: Sequence(0),
                    body: Body::Pad,
                };
                self.push_record(state, &pad);
            }
            self.hand_over(state)?;
            state.head = state.head.next_multiple_of(self.ring);
            state.written = state.head;
            state.batch_start = state.head;
        }
        Ok(state.head)
    }

    /// Hands everything appended to the kernel.
    ///
    /// # Errors
    /// When the kernel refuses: the journal has then failed, and nothing appended since the last commit may be answered.
    pub fn commit(self: &Rc<Self>) -> Result<()> {
        let mut state = self.state.borrow_mut();
        if state.parts.is_empty() {
            return state.failed.clone().map_or(Ok(()), Err);
        }
        let from = state.batch_start;
        let done = self.hand_over(&mut state);
        let unsynced = state.written - state.synced;
        state.commits = state.commits.saturating_add(1);
        if state.eager && done.is_ok() {
            // The device is at work while the answer is on its way, and the flush that follows finds little left to do.
            self.disk.start_writeback(RING_START + from % self.ring, state.written - from);
        }
        drop(state);
        if done.is_err() {
            self.changed.ring();
        } else if unsynced > SYNC_AT.min(self.max_unsynced / 2) {
            self.start_sync();
        }
        done
    }

    /// Commits when the shard comes to it: for whoever has answered already. A failure is seen by the next flush.
    pub fn commit_soon(self: &Rc<Self>) {
        if std::mem::replace(&mut self.state.borrow_mut().committing, true) {
            return;
        }
        let this = Rc::clone(self);
        self.env.spawn(Box::pin(async move {
            this.state.borrow_mut().committing = false;
            if let Err(error) = this.commit() {
                tracing::error!(%error, "the journal failed");
            }
        }));
    }

    fn hand_over(&self, state: &mut State) -> Result<()> {
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        if state.parts.is_empty() {
            return Ok(());
        }
        // Zeroes up to the end of the page: the page is then written whole the first time, and need not be read.
        const ZEROES: [u8; PAGE as usize] = [0; PAGE as usize];
        let tail = (state.head.next_multiple_of(PAGE) - state.head) as usize;
        let mut slices = Vec::with_capacity(state.parts.len() + 1);
        let mut at = 0;
        for part in &state.parts {
            match part {
                Part::Headers(len) => {
                    slices.push(IoSlice::new(&state.headers[at..at + len]));
                    at += len;
                }
                Part::Data(data) => slices.push(IoSlice::new(data)),
            }
        }
        slices.push(IoSlice::new(&ZEROES[..tail]));
        let offset = RING_START + state.batch_start % self.ring;
        let timed = self.stages.begin(&*self.env, Stage::JournalWrite);
        let done = write(&*self.disk, offset, &slices);
        drop(timed);
        state.headers.clear();
        state.parts.clear();
        if let Err(error) = done {
            reached(Branch::JournalWriteFails);
            state.failed = Some(error.clone());
            return Err(error);
        }
        state.written = state.head;
        state.batch_start = state.head;
        if state.written - state.hinted >= WRITEBACK_AT {
            let from = state.hinted.max(state.written - state.written % self.ring);
            self.disk.start_writeback(RING_START + from % self.ring, state.written - from);
            state.hinted = state.written;
        }
        Ok(())
    }

    /// Reads data that was appended and committed, at a place that [`Appended`] told.
    ///
    /// # Errors
    /// When the disk can not be read.
    pub async fn read(&self, place: u64, len: usize) -> Result<Bytes> {
        let offset = RING_START + place % self.ring;
        let read = self.disk.read_at(offset, len);
        read.await.map_err(|error| io_failed("read", &error))
    }

    /// Whether what stood at a place when it was looked up stands there still. What was read is good if it is asked behind the read.
    pub fn holds(&self, place: u64) -> bool {
        place >= self.state.borrow().superblock.trim
    }

    /// Position up to which everything is on stable media.
    pub fn synced(&self) -> u64 {
        self.state.borrow().synced
    }
}

fn push_headers(parts: &mut Vec<Part>, len: usize) {
    if let Some(Part::Headers(before)) = parts.last_mut() {
        *before += len;
    } else {
        parts.push(Part::Headers(len));
    }
}

fn write(disk: &dyn Disk, offset: u64, parts: &[IoSlice<'_>]) -> Result<()> {
    disk.write_at(offset, parts).map_err(|error| io_failed("write", &error))
}

fn io_failed(what: &str, error: &std::io::Error) -> EngineError {
    let kind = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        _ => ErrorKind::Unavailable,
    };
    EngineError::new(kind, format!("journal: {what} failed: {error}"))
}
