// SPDX-License-Identifier: Apache-2.0
//! The way of a write: into the journal's batch and the open layer at once, answered after the batch is committed.
//!
//! - A change takes its sequence number, its record and its place in the layer in one step without waiting, so all
//!   three have one order.
//! - Parts of blocks are read, completed and written as whole blocks; meanwhile the block is *busy*, and every
//!   later change of it waits its turn.
//! - Where there is no room (journal, RAM, ordinals) a write waits; it is never failed for that.
//! - With a failed journal, changes go into the layer alone and are answered once their segment counts.

use crate::journal::Stamp;
use crate::layer::{Piece, Sums};
use crate::stages::Stage;
use crate::timeline::{Data, NUMBER_GAP, Timeline, blocks_of};
use crate::{EngineError, Result, Submit};
use bytes::{Bytes, BytesMut};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;
use varve_format::crc::crc;
use varve_format::journal::{Body, MAX_RECORD_BLOCKS, write_header_len};
use varve_format::mark::Mark;
use varve_types::branch::{Branch, reached, reached_if};
use varve_types::mutant::{Mutant, planted};
use varve_types::{Ack, BLOCK, ErrorKind, Sequence};

/// Bytes of a change that are made in one step.
const MAX_PIECE: usize = MAX_RECORD_BLOCKS as usize * BLOCK as usize;

/// Place of data that are in no journal: beyond all that will ever be flushed.
const NO_PLACE: u64 = u64::MAX >> 1;
/// A put that frees RAM is waited for so long before layers give up theirs.
const SPILL_AFTER: Duration = Duration::from_millis(200);

/// A change to be made: whole blocks.
pub(crate) enum Op {
    Write(Bytes),
    Hole,
}

/// Bytes that a change may need in the journal.
fn journal_need(op: &Op) -> u64 {
    match op {
        Op::Write(data) => {
            let records = (data.len() as u64).div_ceil(u64::from(MAX_RECORD_BLOCKS) * BLOCK);
            data.len() as u64 + records * write_header_len(MAX_RECORD_BLOCKS)
        }
        Op::Hole => BLOCK,
    }
}

impl Timeline {
    /// See [`crate::BlockDevice::write`].
    pub fn write(self: &Rc<Self>, offset: u64, data: Bytes, fua: bool) -> Submit<()> {
        let len = data.len() as u64;
        if let Err(error) = self.check_range(offset, len) {
            return Submit::Done(Err(error));
        }
        if len == 0 {
            return Submit::Done(Ok(()));
        }
        let (start, blocks) = (offset / BLOCK, blocks_of(offset + len) - offset / BLOCK);
        let aligned = offset.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK);
        let op = Op::Write(data);
        if aligned && !fua && self.free_to_go(start, blocks, &op) {
            return Submit::Done(self.make(start, blocks, op));
        }
        let Op::Write(data) = op else { return Submit::Done(Ok(())) };
        let this = Rc::clone(self);
        Submit::Later(Box::pin(async move { this.write_waiting(offset, data, fua).await }))
    }

    /// See [`crate::BlockDevice::discard`].
    pub fn discard(self: &Rc<Self>, offset: u64, len: u64, fua: bool) -> Submit<()> {
        if let Err(error) = self.check_range(offset, len) {
            return Submit::Done(Err(error));
        }
        if len == 0 {
            return Submit::Done(Ok(()));
        }
        let (start, blocks) = (offset / BLOCK, blocks_of(offset + len) - offset / BLOCK);
        let aligned =
            offset.is_multiple_of(BLOCK) && (len.is_multiple_of(BLOCK) || offset + len == self.data.borrow().size);
        if aligned && !fua && self.free_to_go(start, blocks, &Op::Hole) {
            return Submit::Done(self.make(start, blocks, Op::Hole));
        }
        let this = Rc::clone(self);
        Submit::Later(Box::pin(async move { this.discard_waiting(offset, len, fua).await }))
    }

    /// Whether a change can be made without waiting for anything.
    fn free_to_go(self: &Rc<Self>, start: u64, blocks: u64, op: &Op) -> bool {
        let data = self.data.borrow();
        if matches!(op, Op::Write(data) if data.len() > 4 * MAX_PIECE) {
            return false;
        }
        let free = !is_busy(&data, &(start..start + blocks));
        free && self.has_room(&data, op) && self.journal.failure().is_none()
    }

    fn has_room(&self, data: &Data, op: &Op) -> bool {
        has_ordinals(data)
            && !self.context.is_ram_full()
            && self.journal.has_room(journal_need(op))
            && self.mirror.has_room(journal_need(op))
    }

    /// Makes a change: sequence, record, layer. The caller has made sure of room.
    pub fn make(self: &Rc<Self>, start: u64, blocks: u64, op: Op) -> Result<()> {
        match op {
            Op::Hole => self.make_hole(start, blocks),
            Op::Write(data) => {
                let mut at = start;
                let mut rest = data;
                while !rest.is_empty() {
                    let part = rest.split_to(rest.len().min(MAX_PIECE));
                    let blocks = part.len() as u64 / BLOCK;
                    self.make_write(at, part)?;
                    at += blocks;
                }
                Ok(())
            }
        }?;
        self.seal_if_full();
        Ok(())
    }

    fn make_write(&self, start: u64, bytes: Bytes) -> Result<()> {
        let mut table = [0; MAX_RECORD_BLOCKS as usize];
        let blocks = bytes.len() / BLOCK as usize;
        let sums = &mut table[..blocks];
        for (sum, block) in sums.iter_mut().zip(bytes.chunks_exact(BLOCK as usize)) {
            *sum = crc(block);
        }
        let mut data = self.data.borrow_mut();
        let sequence = data.last.next();
        let (place, pin) = match self.journal.failure() {
            Some(_) => (NO_PLACE, None),
            None => {
                let stamp = self.stamp(&data, sequence);
                let appended = self.journal.append_write(stamp, start, bytes.clone(), sums)?;
                data.last_end = appended.end;
                (appended.place, Some(appended.position))
            }
        };
        self.mirror_note(&data, sequence, || (Body::Write { start, crcs: sums.to_vec() }, bytes.clone()));
        let piece = Piece::Data { data: bytes, sums: Sums::new(sums), place };
        self.enter(&mut data, sequence, pin, |layer, pin, now| {
            layer.insert(sequence, pin, now, start, blocks as u64, piece);
        });
        Ok(())
    }

    fn make_hole(&self, start: u64, blocks: u64) -> Result<()> {
        let mut data = self.data.borrow_mut();
        let sequence = data.last.next();
        let pin = self.append(&mut data, sequence, Body::Hole { start, blocks })?;
        self.mirror_note(&data, sequence, || (Body::Hole { start, blocks }, Bytes::new()));
        self.enter(&mut data, sequence, pin, |layer, pin, now| {
            layer.insert(sequence, pin, now, start, blocks, Piece::Hole);
        });
        Ok(())
    }

    /// Puts a mark into the stream; `mark` is given its sequence. The caller has made sure of room.
    pub fn make_mark(&self, mark: impl FnOnce(Sequence) -> Mark) -> Result<Mark> {
        let mut data = self.data.borrow_mut();
        let sequence = data.last.next();
        let mark = mark(sequence);
        let pin = self.append(&mut data, sequence, Body::Mark(mark.clone()))?;
        self.mirror_note(&data, sequence, || (Body::Mark(mark.clone()), Bytes::new()));
        let copy = mark.clone();
        self.enter(&mut data, sequence, pin, |layer, pin, now| layer.mark(copy, pin, now));
        Ok(mark)
    }

    fn stamp(&self, data: &Data, sequence: Sequence) -> Stamp {
        Stamp { timeline: self.id, epoch: self.epoch, sequence, flushed_through: data.flushed }
    }

    fn append(&self, data: &mut Data, sequence: Sequence, body: Body) -> Result<Option<u64>> {
        if self.journal.failure().is_some() {
            return Ok(None);
        }
        let appended = self.journal.append(self.stamp(data, sequence), body)?;
        data.last_end = appended.end;
        Ok(Some(appended.position))
    }

    /// Enters a change into the open layer.
    fn enter(
        &self,
        data: &mut Data,
        sequence: Sequence,
        pin: Option<u64>,
        insert: impl FnOnce(&mut crate::layer::Layer, Option<u64>, std::time::Duration),
    ) {
        let now = self.context.env.now();
        let (was_empty, before) = (data.open.is_empty(), data.open.ram());
        insert(&mut data.open, pin, now);
        if was_empty && let Some(pin) = pin {
            self.journal.pin(pin);
        }
        self.context.ram_changed(before, data.open.ram());
        data.last = sequence;
        data.touched = now;
    }

    /// The waiting way of a write: for its turn at busy blocks, for room, for the rest of partly written blocks, for stable media.
    pub async fn write_waiting(self: &Rc<Self>, offset: u64, data: Bytes, fua: bool) -> Result<()> {
        let (start, end) = (offset / BLOCK, blocks_of(offset + data.len() as u64));
        let busy = self.busy(start, end - start).await;
        self.check_range_again(offset, data.len() as u64)?;
        let whole = self.complete(offset, data).await?;
        self.change(start, end - start, Op::Write(whole)).await?;
        drop(busy);
        self.finish(fua).await
    }

    /// Checks a range behind a wait: the volume may have become smaller meanwhile.
    fn check_range_again(&self, offset: u64, len: u64) -> Result<()> {
        let done = self.check_range(offset, len);
        let is_cut = done.as_ref().is_err_and(|error| error.kind() == ErrorKind::Invalid);
        reached_if(is_cut, Branch::CutMeanwhile);
        done
    }

    /// Bytes made whole blocks by what stands around them.
    async fn complete(self: &Rc<Self>, offset: u64, data: Bytes) -> Result<Bytes> {
        let end = offset + data.len() as u64;
        let (front, back) = (offset % BLOCK, blocks_of(end) * BLOCK - end);
        if front == 0 && back == 0 {
            return Ok(data);
        }
        let mut whole = BytesMut::with_capacity(data.len() + 2 * BLOCK as usize);
        if planted(Mutant::PartialWithoutRead) {
            whole.resize(front as usize, 0);
        } else if front > 0 {
            whole.extend_from_slice(&self.read_waiting(offset - front, front).await?);
        }
        whole.extend_from_slice(&data);
        if back > 0 {
            // What lies beyond the end of the volume, in its last block, is zero for ever.
            let inside = back.min(self.data.borrow().size.saturating_sub(end));
            whole.extend_from_slice(&self.read_waiting(end, inside).await?);
            whole.resize(whole.len() + (back - inside) as usize, 0);
        }
        Ok(whole.freeze())
    }

    /// Makes the volume end at `size`, which is less than it has. What is cut reads as zeroes if it ever grows again.
    pub async fn cut(self: &Rc<Self>, size: u64) -> Result<()> {
        let end = blocks_of(self.data.borrow().size);
        let (block, front) = (size / BLOCK, size % BLOCK);
        // Until the new size is set nobody changes what is cut: whoever waits for it finds then that it lies beyond the end.
        let busy = self.busy(block, end - block).await;
        let mut first = block;
        if front > 0 {
            let keep = if planted(Mutant::ShrinkKeepsTail) { BLOCK } else { front };
            let mut whole = BytesMut::from(&self.read_waiting(block * BLOCK, keep).await?[..]);
            whole.resize(BLOCK as usize, 0);
            self.change(block, 1, Op::Write(whole.freeze())).await?;
            first += 1;
        }
        if first < end && !planted(Mutant::GrowShowsOldData) {
            self.change(first, end - first, Op::Hole).await?;
        }
        self.set_size(size).await?;
        drop(busy);
        Ok(())
    }

    /// Gives the volume a size. Answered once that is on stable media.
    pub async fn set_size(self: &Rc<Self>, size: u64) -> Result<()> {
        self.room_for_mark().await?;
        self.make_mark(|sequence| Mark::Size { sequence, size })?;
        self.data.borrow_mut().size = size;
        self.flush_waiting().await
    }

    /// Makes whole blocks a hole.
    pub async fn discard_now(self: &Rc<Self>, offset: u64, len: u64) -> Result<()> {
        let (start, blocks) = (offset / BLOCK, blocks_of(offset + len) - offset / BLOCK);
        if blocks == 0 {
            return Ok(());
        }
        let busy = self.busy(start, blocks).await;
        self.change(start, blocks, Op::Hole).await?;
        drop(busy);
        self.finish(false).await
    }

    async fn discard_waiting(self: &Rc<Self>, offset: u64, len: u64, fua: bool) -> Result<()> {
        let end = offset + len;
        let size = self.data.borrow().size;
        let first = if planted(Mutant::ZeroWholePartBlock) { offset / BLOCK } else { blocks_of(offset) };
        let last = if end == size { blocks_of(end) } else { end / BLOCK };
        let zeroes = |len: u64| Bytes::from(vec![0; len as usize]);
        if first >= last {
            // Nothing whole: at most a part of each of two blocks.
            return self.write_waiting(offset, zeroes(len), fua).await;
        }
        if first * BLOCK > offset {
            Box::pin(self.write_waiting(offset, zeroes(first * BLOCK - offset), false)).await?;
        }
        if last * BLOCK < end {
            Box::pin(self.write_waiting(last * BLOCK, zeroes(end - last * BLOCK), false)).await?;
        }
        let busy = self.busy(first, last - first).await;
        self.check_range_again(offset, len)?;
        if last * BLOCK > end && self.data.borrow().size > end {
            // It has grown meanwhile, and its last block may hold more than the end of the range.
            reached(Branch::GrownMeanwhile);
            drop(busy);
            return Box::pin(self.discard_waiting(offset, len, fua)).await;
        }
        self.change(first, last - first, Op::Hole).await?;
        drop(busy);
        self.finish(fua).await
    }

    /// Makes a change once there is room: piece by piece, so that no change needs more than there can ever be.
    async fn change(self: &Rc<Self>, start: u64, blocks: u64, op: Op) -> Result<()> {
        let Op::Write(mut rest) = op else {
            self.room(&Op::Hole).await?;
            return self.make(start, blocks, Op::Hole);
        };
        let mut at = start;
        while !rest.is_empty() {
            let piece = Op::Write(rest.split_to(rest.len().min(MAX_PIECE)));
            self.room(&piece).await?;
            let Op::Write(bytes) = &piece else { return Ok(()) };
            let blocks = bytes.len() as u64 / BLOCK;
            self.make(at, blocks, piece)?;
            at += blocks;
        }
        Ok(())
    }

    /// Waits until a mark can be made without waiting.
    pub async fn room_for_mark(self: &Rc<Self>) -> Result<()> {
        self.room(&Op::Hole).await
    }

    /// Waits until a change can be made without waiting.
    pub async fn room(self: &Rc<Self>, op: &Op) -> Result<()> {
        let mut timed = None;
        loop {
            self.data.borrow().check()?;
            if self.has_room(&self.data.borrow(), op) {
                return Ok(());
            }
            timed.get_or_insert_with(|| self.context.timed(Stage::Room));
            self.context.make_room();
            if !self.mirror.has_room(journal_need(op)) {
                self.mirror_send();
            }
            if self.context.is_ram_full() {
                reached(Branch::WaitForRam);
                self.ram().await;
            } else if !self.journal.has_room(journal_need(op)) {
                reached(Branch::WaitForJournal);
                let stopped = self.changed.until(|| self.is_stopped().then_some(()));
                race(self.journal.room(journal_need(op)), stopped).await;
            } else {
                // For what rings here, and for nothing else: journal and RAM are asked behind it, and waited for where they ring.
                let look = || {
                    let data = self.data.borrow();
                    let is_there = has_ordinals(&data) && self.mirror.has_room(journal_need(op));
                    (data.stopped.is_some() || is_there).then_some(())
                };
                self.changed.until(look).await;
            }
        }
    }

    /// Waits for RAM, or the end of the volume. A store that keeps up frees some with each put; what would be given up in RAM meanwhile
    /// would be read back from the journal at once. Only where no put ends for a while, layers give up what is on stable media.
    async fn ram(self: &Rc<Self>) {
        let context = &self.context;
        let below = || (!context.is_ram_full()).then_some(());
        let stopped = || self.changed.until(|| self.is_stopped().then_some(()));
        race(race(context.relieved.until(below), stopped()), context.env.sleep(SPILL_AFTER)).await;
        if !context.is_ram_full() || self.is_stopped() {
            return;
        }
        // The others are not waited for: one that hangs is no concern of this volume.
        context.journals.iter().for_each(|home| home.journal.start_sync());
        if self.journal.sync_all().await.is_ok() {
            context.spill();
        }
        race(context.relieved.until(below), stopped()).await;
    }

    /// Answers a change of the waiting way as the volume asks.
    pub async fn finish(self: &Rc<Self>, fua: bool) -> Result<()> {
        let (last, failed) = (self.data.borrow().last, self.journal.failure().is_some());
        if failed {
            reached(Branch::WriteByPut);
            self.mirror_send();
            self.seal_now();
            return self.until_counted(last).await;
        }
        if fua && !planted(Mutant::FuaWithoutSync) {
            return self.flush_waiting().await;
        }
        if planted(Mutant::AnswerWaitingBeforeCommit) {
            self.journal.commit_soon();
            return Ok(());
        }
        self.journal.commit()?;
        self.mirror_send();
        match self.mirror_wait(last, false) {
            Some(mirrored) => mirrored.await,
            None => Ok(()),
        }
    }

    /// See [`crate::BlockDevice::commit`]. With `ack = ram` the answers need not wait for it.
    pub fn commit(self: &Rc<Self>) -> Submit<()> {
        let done = if self.data.borrow().settings.ack == Ack::Ram || planted(Mutant::AnswerBeforeCommit) {
            self.journal.commit_soon();
            Ok(())
        } else {
            self.journal.commit()
        };
        self.mirror_send();
        match self.mirror_wait(self.data.borrow().last, false) {
            Some(mirrored) if done.is_ok() => Submit::Later(mirrored),
            _ => Submit::Done(done),
        }
    }

    /// See [`crate::BlockDevice::flush`].
    pub fn flush(self: &Rc<Self>) -> Submit<()> {
        let (last, flushed) = {
            let data = self.data.borrow();
            if let Err(error) = data.check() {
                return Submit::Done(Err(error));
            }
            (data.last, data.flushed)
        };
        self.mirror_send();
        if flushed == last {
            return self.mirror_wait(last, true).map_or(Submit::Done(Ok(())), Submit::Later);
        }
        let this = Rc::clone(self);
        Submit::Later(Box::pin(async move { this.flush_waiting().await }))
    }

    /// Waits until everything up to now is on stable media, here and as durably as the volume asks at its mirror.
    pub async fn flush_waiting(self: &Rc<Self>) -> Result<()> {
        let last = self.data.borrow().last;
        self.mirror_send();
        self.flush_here().await?;
        match self.mirror_wait(last, true) {
            Some(mirrored) => mirrored.await,
            None => Ok(()),
        }
    }

    /// Waits until everything up to now is on stable media here: in the journal or in segments that count.
    pub async fn flush_here(self: &Rc<Self>) -> Result<()> {
        let (last, end) = {
            let data = self.data.borrow();
            data.check()?;
            (data.last, data.last_end)
        };
        let journal = &self.journal;
        let synced = if planted(Mutant::FlushWithoutSync) { journal.commit() } else { journal.sync_to(end).await };
        if synced.is_err() && !planted(Mutant::FlushPastFailedJournal) {
            reached(Branch::FlushByPut);
            self.seal_now();
            self.until_counted(last).await?;
        }
        let mut data = self.data.borrow_mut();
        data.check()?;
        data.flushed = data.flushed.max(last);
        Ok(())
    }

    /// Takes blocks for a change that has to wait; whoever wants them later waits until they are given back.
    pub async fn busy(self: &Rc<Self>, start: u64, blocks: u64) -> Busy {
        // All of them, though only the first and the last can be written in part: what is read of a block in the middle by somebody else must not
        // stand behind this change and undo it.
        let range = start..start + blocks;
        self.changed
            .until(|| {
                let mut data = self.data.borrow_mut();
                let is_busy = is_busy(&data, &range);
                reached_if(is_busy, Branch::BlockBusy);
                (!is_busy).then(|| data.busy.push(range.clone()))
            })
            .await;
        Busy { timeline: Rc::clone(self), range }
    }
}

/// Whether there are ordinals for more segments, until a manifest is accepted.
fn has_ordinals(data: &Data) -> bool {
    data.next_ordinal.0 < data.manifest.boundary.0.max(data.manifest.first_ordinal.0) + NUMBER_GAP - 2
}

/// Whether any of these blocks is being changed. Those that are do not overlap.
fn is_busy(data: &Data, range: &Range<u64>) -> bool {
    let overlaps = |busy: &Range<u64>| busy.start < range.end && range.start < busy.end;
    data.busy.iter().any(overlaps) && !planted(Mutant::PartialsOverlap)
}

/// Blocks that are being changed; given back when dropped.
pub(crate) struct Busy {
    timeline: Rc<Timeline>,
    range: Range<u64>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut data = self.timeline.data.borrow_mut();
        data.busy.retain(|range| *range != self.range);
        drop(data);
        self.timeline.changed.ring();
    }
}

/// Waits for the first of two.
pub(crate) async fn race(a: impl Future<Output = ()>, b: impl Future<Output = ()>) {
    futures_util::future::select(std::pin::pin!(a), std::pin::pin!(b)).await;
}

/// The error of a write to what can not be written.
pub(crate) fn read_only(what: &str) -> EngineError {
    EngineError::new(ErrorKind::Conflict, format!("{what} is read-only"))
}
