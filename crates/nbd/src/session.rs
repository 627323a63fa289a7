// SPDX-License-Identifier: Apache-2.0
//! Acts on requests and makes their replies: everything of a connection but its socket.
//!
//! On the write path this is where a batch becomes durable: writes are handed to the device one by one, and their cookies are kept;
//! [`Session::commit`] then commits once and answers them all, with success or with the error of the commit: at once, or when the commit completes, if
//! it has to wait. Nothing is awaited between a write and the call of its commit, so no other connection of the shard can commit, or lose, what is
//! of this one; a flush is asked for behind the commit of what was sent before it.
//!
//! Reads append their data to the output at once; a large one is cut into pieces where the client understands them, so that the output stays
//! bounded. What can not be done at once goes to the waiters, and its reply joins a later batch. Replies are in no order.

use crate::asked::{Answered, Asked};
use crate::check::{Refusal, Terms, check};
use crate::commits::Commits;
use crate::handshake::Negotiated;
use crate::later::{Outcome, Pieces, Waiters, Work};
use crate::option::BASE_ALLOCATION_ID;
use crate::output::Output;
use crate::stats::{Counts, Operation, Stats};
use crate::wire::{self, Command, Request};
use bytes::Bytes;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;
use tracing::warn;
use varve_block::{BlockDevice, BlockError, StatusExtent, Submit};
use varve_types::ErrorKind;

/// Bytes of a piece of a large read.
const PIECE: u32 = 1 << 20;
/// Most extents in one reply.
const MOST_EXTENTS: usize = 4096;

/// A large read of which not all pieces are asked for yet.
struct Large {
    asked: Asked,
    next: u64,
    end: u64,
    pieces: Pieces,
}

/// A connection without its socket.
pub(crate) struct Session {
    device: Rc<dyn BlockDevice>,
    negotiated: Negotiated,
    pub(crate) output: Output,
    waiters: Waiters,
    commits: Commits,
    pub(crate) counts: Counts,
    /// When the requests of this turn were taken; unset until the first of them is acted on.
    taken: Option<Instant>,
    /// Requests whose answers are in the output.
    answered: Answered,
    /// Writes that are applied and not yet committed; empty between two turns.
    uncommitted: Vec<Asked>,
    large: Option<Large>,
    /// Failures of the device that this connection saw.
    failures: u64,
}

impl Session {
    pub(crate) fn new(device: Rc<dyn BlockDevice>, negotiated: Negotiated) -> Self {
        Self {
            device,
            output: Output::new(negotiated.structured),
            negotiated,
            waiters: Waiters::default(),
            commits: Commits::default(),
            counts: Counts::default(),
            taken: None,
            answered: Answered::default(),
            uncommitted: Vec::new(),
            large: None,
            failures: 0,
        }
    }

    /// Whether no further request may be acted on now.
    #[inline]
    pub(crate) fn full(&self) -> bool {
        self.output.full() || self.waiters.full(self.commits.requests() + self.uncommitted.len())
    }

    /// Whether requests wait for the device.
    #[inline]
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiters.is_empty() || self.commits.requests() > 0
    }

    /// What requests are checked against, now.
    #[inline]
    pub(crate) fn terms(&self) -> Terms {
        Terms {
            size: self.device.size(),
            read_only: self.negotiated.export.read_only || self.device.read_only(),
            structured: self.negotiated.structured,
            block_status: self.negotiated.block_status,
        }
    }

    /// Whether `request` may be acted on.
    #[inline]
    pub(crate) fn check(&self, request: &Request) -> Result<(), Refusal> {
        check(request, self.terms())
    }

    /// Answers a request that may not be acted on.
    pub(crate) fn refuse(&mut self, request: &Request, refusal: Refusal) {
        self.counts.request(request.command, 0);
        self.counts.errors += 1;
        self.output.failed(request.cookie, refusal.error, refusal.text);
    }

    /// Acts on a request that was checked and is not a disconnect.
    #[inline]
    pub(crate) fn act(&mut self, request: &Request, payload: Bytes) {
        self.counts.request(request.command, request.length);
        let (offset, length) = (request.offset, request.length);
        let since = *self.taken.get_or_insert_with(Instant::now);
        let asked = Asked { cookie: request.cookie, operation: Operation::of(request.command), since };
        let fua = request.has(wire::CMD_FLAG_FUA);
        if length == 0 && request.command != Command::Flush {
            self.answered.note(&asked);
            return self.output.nothing(asked.cookie);
        }
        match request.command {
            Command::Read if self.negotiated.structured && length > PIECE && !request.has(wire::CMD_FLAG_DF) => {
                let pieces = Pieces::new(u64::from(length.div_ceil(PIECE)));
                self.large = Some(Large { asked, next: offset, end: offset + u64::from(length), pieces });
            }
            Command::Read => self.read(asked, offset, length, None),
            Command::Write => {
                let submit = self.device.write(offset, payload, fua);
                self.written(asked, u64::from(length), fua, submit);
            }
            Command::Trim => {
                let submit = self.device.discard(offset, u64::from(length), fua);
                self.written(asked, 0, fua, submit);
            }
            Command::WriteZeroes => {
                let submit = self.device.write_zeroes(offset, u64::from(length), fua);
                self.written(asked, 0, fua, submit);
            }
            Command::Flush => {
                self.commit();
                if !self.waiters.hold_flush(asked) {
                    self.flush(asked);
                }
            }
            Command::Cache => {
                let submit = self.device.prefetch(offset, u64::from(length));
                self.plain(asked, submit);
            }
            Command::BlockStatus => self.block_status(asked, request),
            Command::Disconnect | Command::Unknown(_) => debug_assert!(false, "{:?} is not acted on", request.command),
        }
    }

    /// Asks for the next piece of a large read; whether there was one.
    pub(crate) fn act_on_large(&mut self) -> bool {
        let Some(large) = &mut self.large else { return false };
        let (asked, offset, pieces) = (large.asked, large.next, large.pieces.clone());
        let length = u32::try_from(large.end - offset).map_or(PIECE, |left| left.min(PIECE));
        large.next += u64::from(length);
        if large.next == large.end {
            self.large = None;
        }
        self.read(asked, offset, length, Some(pieces));
        true
    }

    #[inline]
    fn read(&mut self, asked: Asked, offset: u64, length: u32, pieces: Option<Pieces>) {
        let last = pieces.as_ref().is_none_or(Pieces::is_last);
        let start = self.output.data(asked.cookie, offset, length, last);
        match self.device.read(offset, length, self.output.buffer()) {
            Submit::Done(Ok(_)) if self.output.has_data(start, length) => {
                if pieces.is_none_or(|pieces| pieces.answered()) {
                    self.answered.note(&asked);
                }
            }
            Submit::Done(result) => {
                self.output.take_back(start);
                let error = result.err().unwrap_or_else(wrong_length);
                self.read_failed(asked, offset, pieces.as_ref(), &error);
            }
            Submit::Later(future) => {
                self.output.take_back(start);
                self.waiters.push(asked, u64::from(length), Work::Read { future, offset, length, pieces });
            }
        }
    }

    fn read_failed(&mut self, asked: Asked, offset: u64, pieces: Option<&Pieces>, error: &BlockError) {
        match pieces {
            None => self.failed(asked, error),
            Some(pieces) => {
                self.note(error);
                let last = pieces.answered();
                self.output.failed_piece(asked.cookie, offset, last, error.kind().nbd(), &error.to_string());
                if last {
                    self.answered.note(&asked);
                }
            }
        }
    }

    /// Takes what a write, discard or write-zeroes came to; one that is done is answered by the commit.
    #[inline]
    fn written(&mut self, asked: Asked, bytes: u64, fua: bool, submit: Submit<()>) {
        match submit {
            Submit::Done(Ok(())) => self.uncommitted.push(asked),
            Submit::Done(Err(error)) => self.failed(asked, &error),
            Submit::Later(future) => self.waiters.push_write(asked, bytes, future, fua),
        }
    }

    fn plain(&mut self, asked: Asked, submit: Submit<()>) {
        match submit {
            Submit::Done(result) => self.plain_result(asked, &result),
            Submit::Later(future) => self.waiters.push(asked, 0, Work::Plain { future, serial: None }),
        }
    }

    fn plain_result(&mut self, asked: Asked, result: &Result<(), BlockError>) {
        match result {
            Ok(()) => self.done(asked),
            Err(error) => self.failed(asked, error),
        }
    }

    fn flush(&mut self, asked: Asked) {
        let submit = self.device.flush();
        self.plain(asked, submit);
    }

    fn block_status(&mut self, asked: Asked, request: &Request) {
        let one = request.has(wire::CMD_FLAG_REQ_ONE);
        let length = request.length;
        match self.device.block_status(request.offset, u64::from(length), if one { 1 } else { MOST_EXTENTS }) {
            Submit::Done(result) => self.status_result(asked, length, one, result),
            Submit::Later(future) => self.waiters.push(asked, 0, Work::Status { future, length, one }),
        }
    }

    fn status_result(&mut self, asked: Asked, length: u32, one: bool, result: Result<Vec<StatusExtent>, BlockError>) {
        let extents = result.map(|extents| merge(&extents, length, if one { 1 } else { MOST_EXTENTS }));
        match extents {
            Ok(extents) if extents.is_empty() => {
                let error = BlockError::new(ErrorKind::Internal, "the device told no extent");
                self.failed(asked, &error);
            }
            Ok(extents) => self.output.status(asked.cookie, BASE_ALLOCATION_ID, &extents),
            Err(error) => self.failed(asked, &error),
        }
    }

    /// Commits the writes of the batch, if there are any, and answers them, or has them answered when the commit completes.
    #[inline]
    pub(crate) fn commit(&mut self) {
        if self.uncommitted.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.uncommitted);
        match self.device.commit() {
            Submit::Done(result) => self.committed(batch, &result),
            Submit::Later(future) => self.commits.push(batch, future),
        }
    }

    /// Answers a batch whose commit is done. Its list serves the next one.
    #[inline]
    fn committed(&mut self, mut batch: Vec<Asked>, result: &Result<(), BlockError>) {
        debug_assert!(self.uncommitted.is_empty(), "a batch is answered between two turns or before the next write");
        for asked in batch.drain(..) {
            self.plain_result(asked, result);
        }
        if batch.capacity() > self.uncommitted.capacity() {
            self.uncommitted = batch;
        }
    }

    /// Ends a turn in which `acted` says whether requests were acted on: commits, and adds up what was done.
    pub(crate) fn end_turn(&mut self, acted: bool, stats: &Stats) {
        self.commit();
        self.taken = None;
        if acted {
            self.counts.batches += 1;
            stats.add(&mut self.counts);
        }
    }

    /// All of the output is with the kernel.
    #[inline]
    pub(crate) fn sent(&mut self, stats: &Stats) {
        self.answered.sent(stats);
    }

    /// Answers the requests and the batches that waited and are done now. Whether it stopped for want of room: then not all that wait were asked, and none
    /// of those wakes the task.
    pub(crate) fn collect(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            if self.output.full() {
                return self.is_waiting();
            }
            if let Poll::Ready((batch, result)) = self.commits.poll_next(cx) {
                self.committed(batch, &result);
                continue;
            }
            let Poll::Ready((asked, outcome)) = self.waiters.poll_next(cx) else { return false };
            match outcome {
                Outcome::Plain(result) => self.plain_result(asked, &result),
                Outcome::Status(length, one, result) => self.status_result(asked, length, one, result),
                Outcome::Read(offset, length, pieces, Ok(data)) if data.len() == length as usize => {
                    let last = pieces.as_ref().is_none_or(Pieces::answered);
                    self.output.data(asked.cookie, offset, length, last);
                    self.output.buffer().extend_from_slice(&data);
                    if last {
                        self.answered.note(&asked);
                    }
                }
                Outcome::Read(offset, _, pieces, result) => {
                    let error = result.err().unwrap_or_else(wrong_length);
                    self.read_failed(asked, offset, pieces.as_ref(), &error);
                }
            }
            while let Some(asked) = self.waiters.released_flush() {
                self.flush(asked);
            }
        }
    }

    fn done(&mut self, asked: Asked) {
        self.output.done(asked.cookie);
        self.answered.note(&asked);
    }

    fn failed(&mut self, asked: Asked, error: &BlockError) {
        self.note(error);
        self.answered.note(&asked);
        self.output.failed(asked.cookie, error.kind().nbd(), &error.to_string());
    }

    /// Counts a failure of the device, and logs the first, the second, the fourth and so on.
    fn note(&mut self, error: &BlockError) {
        self.counts.errors += 1;
        self.failures += 1;
        if self.failures.is_power_of_two() {
            let export = &self.negotiated.export.name;
            warn!(%export, kind = %error.kind(), %error, failures = self.failures, "an NBD request failed");
        }
    }
}

/// The device broke its word about how much it reads.
fn wrong_length() -> BlockError {
    BlockError::new(ErrorKind::Internal, "the device read another length than was asked")
}

/// Extents as the protocol wants them: none empty, neighbours different, no more than was asked.
fn merge(extents: &[StatusExtent], length: u32, most: usize) -> Vec<(u32, u32)> {
    let mut merged: Vec<(u32, u32)> = Vec::new();
    let mut left = length;
    for extent in extents {
        let now = u32::try_from(extent.len).map_or(left, |len| len.min(left));
        let state = if extent.hole { wire::STATE_HOLE | wire::STATE_ZERO } else { 0 };
        let room = merged.len() < most;
        match merged.last_mut() {
            Some((len, last)) if *last == state => *len += now,
            _ if now > 0 && room => merged.push((now, state)),
            _ => break,
        }
        left -= now;
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(len: u64, hole: bool) -> StatusExtent {
        StatusExtent { len, hole }
    }

    #[test]
    fn extents_are_merged_and_cut_to_what_was_asked() {
        let extents = [extent(512, true), extent(512, true), extent(1024, false), extent(1 << 40, true)];
        assert_eq!(merge(&extents, 8192, 10), [(1024, 3), (1024, 0), (6144, 3)]);
        assert_eq!(merge(&extents, 1536, 10), [(1024, 3), (512, 0)]);
        assert_eq!(merge(&extents, 8192, 1), [(1024, 3)]);
        assert_eq!(merge(&[extent(1 << 40, false)], u32::MAX - 511, 1), [(u32::MAX - 511, 0)]);
        assert_eq!(merge(&[extent(0, false)], 512, 1), []);
        assert_eq!(merge(&[], 512, 1), []);
    }
}
