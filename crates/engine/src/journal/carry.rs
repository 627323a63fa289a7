// SPDX-License-Identifier: Apache-2.0
//! Carrying: records that are old and still needed are written once more at the head, so that the trim can pass their first place.
//!
//! Without it the oldest record of one volume, idle or with a store that is away, would sooner or later hold up all the others. So the ring is cleaned
//! like a log, from its end: where the lowest pin holds up the trim, what is needed of the part behind it is read, proved and appended again. A carried
//! record says what the first one said (timeline, epoch, sequence, flushed-through, body); only its position is another, and the checksum with it.
//!
//! Always holds:
//! - Places and pins move in one step, and only when a sync has succeeded behind all copies. Until then the trim stays before the first records, and
//!   whoever starts after a crash finds these, or both; equal records are copies and one good copy is enough. If the sync fails nothing moves.
//! - What the trim passes is so either in the store or stands behind it, and is spoken for: the trim tells, in a write of its own, up to which change
//!   everything of a timeline was on stable media of which something was carried. One write that a disk loses can not take both.
//! - Copies have room of their own that no writer takes ([`Journal::reserve`]): at the wall one step is always possible. Copies and the trim behind them
//!   together take no more than it, so there is always room for what a trim has to tell.
//! - One step at a time, of [`Journal::step`] bytes at most; copies count as unsynced bytes like any others.
//! - A step is made only if going round once gives back enough: with little but needed records in the ring writers wait for the store, and by volume
//!   they have been slowed long before ([`crate::pressure`]).
//!
//! Who has looked up a place and reads it while it moves finds out by asking [`Journal::holds`] behind the read.

use super::replay::Reader;
use super::sync::{gain, lowest};
use super::{Journal, MAX_RECORD, PAGE, State};
use crate::signal::breathe;
use crate::{EngineError, Result};
use bytes::Bytes;
use std::rc::Rc;
use varve_format::journal::{Body, Record, WriteHeader, write_header_len};
use varve_types::branch::{Branch, reached, reached_if};
use varve_types::{BLOCK, Epoch, ErrorKind, Sequence, TimelineId};

/// Longest step.
const MAX_STEP: u64 = 64 << 20;
/// Bytes of copies that are handed over together.
const BATCH: u64 = 1 << 20;
/// Bytes read at a time: what is needed may lie far apart.
const AHEAD: u64 = 128 << 10;

/// A record that is needed: where it stands, and which it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needed {
    pub position: u64,
    pub timeline: TimelineId,
    pub epoch: Epoch,
    pub sequence: Sequence,
}

/// A record that was carried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moved {
    pub timeline: TimelineId,
    pub epoch: Epoch,
    pub sequence: Sequence,
    /// Position that it had.
    pub from: u64,
    /// Position that it has.
    pub to: u64,
    /// Its bytes.
    pub len: u64,
}

impl Journal {
    /// Bytes that are carried in one step, at most; any record fits.
    fn step(&self) -> u64 {
        (self.ring / 16).clamp(MAX_RECORD, MAX_STEP)
    }

    /// What writers leave free in the ring: for the copies of a step, for the pad at the end of a lap, and for the jumps of syncs.
    pub(super) fn reserve(&self) -> u64 {
        self.step() + MAX_RECORD + 4 * PAGE
    }

    /// What this node's own writers leave free: that, and what was promised to others.
    pub(super) fn kept_free(&self) -> u64 {
        self.reserve() + self.promised.get().unused
    }

    /// Carries, where the trim is held up and that gains something. Another step follows where one is not enough.
    pub(super) fn start_carry(self: &Rc<Self>) {
        {
            let mut state = self.state.borrow_mut();
            if self.keeper.get().is_none() || !self.is_held_up(&state) {
                return;
            }
            state.carrying = true;
        }
        let this = Rc::clone(self);
        self.env.spawn(Box::pin(async move {
            let done = this.carry().await;
            {
                let mut state = this.state.borrow_mut();
                state.carrying = false;
                state.carried |= matches!(done, Ok(true));
                if !matches!(done, Ok(true)) {
                    state.carry_from = state.head + this.ring / 64;
                }
            }
            if let Err(error) = done {
                // A failure of its own a journal has noted already; another one is of reading, and may be gone later.
                tracing::warn!(%error, "records of the journal could not be carried");
            }
            this.start_trim();
            this.start_carry();
        }));
    }

    /// Whether much of the ring is used, and the trim can do next to nothing about it.
    fn is_held_up(&self, state: &State) -> bool {
        let used = state.head - state.superblock.trim;
        let much = (self.ring / 8 * 5).min(self.ring.saturating_sub(self.kept_free() + 4 * MAX_RECORD));
        let is_free = !state.carrying && !state.trimming && state.failed.is_none();
        let low = lowest(state);
        is_free
            && used > much
            && gain(state) < self.ring / 16
            && low < state.synced
            && state.head >= state.carry_from
            && state.unreadable != Some(low)
    }

    /// Whether going round once gives back enough: half of what nobody needs, so that each byte is not copied many times; at the wall, more than a step.
    fn is_worth(&self, needed: u64) -> bool {
        let state = self.state.borrow();
        let garbage = (state.head - lowest(&state)).saturating_sub(needed);
        let is_wall = state.head + self.kept_free() + 4 * MAX_RECORD > state.superblock.trim + self.ring;
        let enough = (self.ring.saturating_sub(needed) / 2).max(self.ring / 8);
        garbage > if is_wall { self.step() } else { enough }
    }

    /// One step. Whether anything stands elsewhere now.
    async fn carry(self: &Rc<Self>) -> Result<bool> {
        let Some(keeper) = self.keeper.get() else { return Ok(false) };
        if !self.is_worth(keeper.needed_bytes()) {
            reached(Branch::CarryPutOff);
            return Ok(false);
        }
        let part = {
            let state = self.state.borrow();
            let from = lowest(&state);
            from..(from + self.step()).min(state.synced)
        };
        let moved = self.copy(&keeper.needed(part)).await?;
        let Some(last) = moved.last() else { return Ok(false) };
        let end = last.to + last.len;
        self.sync_to(end).await?;
        reached(Branch::RecordsCarried);
        keeper.moved(&moved);
        Ok(true)
    }

    /// Appends copies of records, as far as there is room for them.
    async fn copy(self: &Rc<Self>, needed: &[Needed]) -> Result<Vec<Moved>> {
        let mut reader = Reader::new(&*self.disk, self.id, self.ring, AHEAD);
        let mut moved = Vec::with_capacity(needed.len());
        let (mut copied, mut batch) = (0, 0);
        for it in needed {
            let found = self.read_needed(&mut reader, it).await?;
            if !self.holds(it.position) {
                // It counts meanwhile, and its place may be another's.
                continue;
            }
            let Some((record, data, len)) = found else {
                self.cannot_carry(it);
                break;
            };
            copied += len;
            if copied > self.step() || !self.room_for_copy(len).await {
                break;
            }
            moved.push(self.append_copy(it, record, data)?);
            self.commit_batch(&mut batch, len).await?;
        }
        Ok(moved)
    }

    /// Appends copies of records that stand in another journal, all of them and in this order, and makes them durable. `take` is told where they stand, and
    /// pins what it needs: until then nothing else would keep them.
    ///
    /// # Errors
    /// `Busy` when there is no room for them now; `Corrupt` when one can not be read any more; those of the journals.
    pub async fn take_over(
        self: &Rc<Self>,
        other: &Self,
        needed: &[Needed],
        take: impl FnOnce(&[Moved]),
    ) -> Result<()> {
        let head = self.state.borrow().head;
        self.pin(head);
        let done = self.copy_from(other, needed).await;
        let taken = done.map(|moved| take(&moved));
        self.unpin(head);
        taken
    }

    async fn copy_from(self: &Rc<Self>, other: &Self, needed: &[Needed]) -> Result<Vec<Moved>> {
        let mut reader = Reader::new(&*other.disk, other.id, other.ring, AHEAD);
        let mut moved: Vec<Moved> = Vec::with_capacity(needed.len());
        let mut batch = 0;
        for it in needed {
            let Some((record, data, len)) = other.read_needed(&mut reader, it).await? else {
                let (id, change, at) = (other.id, it.sequence, it.position);
                return Err(EngineError::corrupt(format!(
                    "journal {id}: change {change} at {at} can not be read any more"
                )));
            };
            if !self.fits_ring(&self.state.borrow(), len) {
                // For another try.
                self.start_trim();
                self.start_carry();
                let what = format!("journal {} has no room for what another has of timeline {}", self.id, it.timeline);
                return Err(EngineError::new(ErrorKind::Busy, what));
            }
            self.room(len).await;
            moved.push(self.append_copy(it, record, data)?);
            self.commit_batch(&mut batch, len).await?;
        }
        if let Some(last) = moved.last() {
            self.sync_to(last.to + last.len).await?;
        }
        Ok(moved)
    }

    /// A record as it stands, its data, and its bytes; `None` where another one stands there, or none.
    pub(super) async fn read_needed(
        &self,
        reader: &mut Reader<'_>,
        it: &Needed,
    ) -> Result<Option<(Record, Bytes, u64)>> {
        let head = self.state.borrow().head;
        let found = reader.record_at(it.position, head).await?;
        let Some((found, next)) = found.filter(|(found, _)| is_it(&found.record, it)) else { return Ok(None) };
        let data = reader.bytes(found.place, found.record.payload_len()).await?;
        // A copy, for what is read ahead is much more.
        Ok(Some((found.record, Bytes::copy_from_slice(&data), next - it.position)))
    }

    /// Hands copies over now and then.
    pub(super) async fn commit_batch(self: &Rc<Self>, batch: &mut u64, len: u64) -> Result<()> {
        *batch += len;
        if *batch >= BATCH {
            *batch = 0;
            self.commit()?;
            breathe().await;
        }
        Ok(())
    }

    /// A needed record can not be read: the place stays, and whoever needs it finds out what that means.
    fn cannot_carry(&self, it: &Needed) {
        tracing::warn!(
            position = it.position, timeline = %it.timeline, sequence = %it.sequence,
            "the journal: a record that is needed can not be read, so it is not carried"
        );
        self.state.borrow_mut().unreadable = Some(it.position);
    }

    /// Waits until a copy of so many bytes may be unsynced. Whether the ring has room for it, and for a trim behind it.
    async fn room_for_copy(self: &Rc<Self>, len: u64) -> bool {
        self.changed
            .until(|| {
                {
                    let state = self.state.borrow();
                    // Twice, for a pad before it.
                    if state.failed.is_some() || state.head + 2 * len + MAX_RECORD > state.superblock.trim + self.ring {
                        reached_if(state.failed.is_none(), Branch::CarryWithoutRoom);
                        return Some(false);
                    }
                    if state.head + len <= state.synced + self.max_unsynced {
                        return Some(true);
                    }
                }
                self.start_sync();
                None
            })
            .await
    }

    /// Appends a record as it is.
    fn append_copy(&self, it: &Needed, record: Record, data: Bytes) -> Result<Moved> {
        let mut state = self.state.borrow_mut();
        let Record { timeline, epoch, sequence, flushed_through, body, .. } = record;
        let to = if let Body::Write { start, crcs } = body {
            let header = write_header_len(crcs.len() as u32);
            let position = self.begin(&mut state, header + data.len() as u64)?;
            let header = WriteHeader { position, timeline, epoch, sequence, flushed_through, start, crcs: &crcs };
            self.push_write(&mut state, &header, data);
            position
        } else {
            let position = self.begin(&mut state, BLOCK)?;
            let record = Record { position, timeline, epoch, sequence, flushed_through, body };
            self.push_record(&mut state, &record);
            position
        };
        let len = state.head - to;
        Ok(Moved { timeline, epoch, sequence, from: it.position, to, len })
    }
}

/// Whether a record that was read is the one that was meant.
fn is_it(record: &Record, it: &Needed) -> bool {
    (record.timeline, record.epoch, record.sequence) == (it.timeline, it.epoch, it.sequence)
}
