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
use crate::commits::Commits;
use crate::dialect::{Command, Dialect, Failed, Refusal, Request};
use crate::later::{Outcome, Pieces, Waiters, Work};
use crate::output::Output;
use crate::stats::{Counts, Operation, Stats};
use bytes::Bytes;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;
use tracing::warn;
use varve_block::{BlockDevice, BlockError, StatusExtent, Submit};
use varve_types::ErrorKind;

/// Bytes of a piece of a large read.
const PIECE: u64 = 1 << 20;
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
pub(crate) struct Session<D> {
    device: Rc<dyn BlockDevice>,
    pub(crate) dialect: D,
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
    /// Size of the device that the client knows, in bytes.
    told_size: u64,
    /// Failures of the device that this connection saw.
    failures: u64,
}

impl<D: Dialect> Session<D> {
    pub(crate) fn new(device: Rc<dyn BlockDevice>, dialect: D) -> Self {
        Self {
            told_size: dialect.told_size(&*device),
            device,
            output: Output::default(),
            dialect,
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

    /// Whether the request may be acted on.
    #[inline]
    pub(crate) fn check(&self, head: &D::Head) -> Result<(), Refusal> {
        self.dialect.check(head, &*self.device)
    }

    /// Answers a request that may not be acted on.
    pub(crate) fn refuse(&mut self, head: &D::Head, refusal: Refusal) {
        let request = self.dialect.request(head);
        self.counts.request(request.command, 0);
        self.counts.errors += 1;
        let failed = Failed { kind: refusal.kind, text: refusal.text, piece: None };
        self.dialect.put_failed(self.output.buffer(), request.cookie, failed, self.device.position());
    }

    /// Acts on a request that was checked and is not that of a client who leaves.
    #[inline]
    pub(crate) fn act(&mut self, request: &Request, payload: Bytes) {
        self.counts.request(request.command, request.length);
        let (offset, length) = (request.offset, request.length);
        let since = *self.taken.get_or_insert_with(Instant::now);
        let asked = Asked { cookie: request.cookie, operation: Operation::of(request.command), since };
        let fua = request.fua;
        if length == 0 && !matches!(request.command, Command::Flush | Command::Ping) {
            self.answered.note(&asked);
            let at = self.device.position();
            return self.dialect.put_nothing(self.output.buffer(), asked.cookie, at);
        }
        match request.command {
            Command::Read if self.dialect.pieces() && length > PIECE && !request.one => {
                let pieces = Pieces::new(length.div_ceil(PIECE));
                self.large = Some(Large { asked, next: offset, end: offset + length, pieces });
            }
            Command::Read => self.read(asked, offset, length as u32, None),
            Command::Write => {
                let submit = self.device.write(offset, payload, fua);
                self.written(asked, length, fua, submit);
            }
            Command::Discard => {
                let submit = self.device.discard(offset, length, fua);
                self.written(asked, 0, fua, submit);
            }
            Command::WriteZeroes => {
                let submit = self.device.write_zeroes(offset, length, fua);
                self.written(asked, 0, fua, submit);
            }
            Command::Flush => {
                self.commit();
                if !self.waiters.hold_flush(asked) {
                    self.flush(asked);
                }
            }
            Command::Prefetch => {
                let submit = self.device.prefetch(offset, length);
                self.plain(asked, submit);
            }
            Command::Status => self.block_status(asked, request),
            Command::Ping => self.done(asked),
            Command::Leave => debug_assert!(false, "{:?} is not acted on", request.command),
        }
    }

    /// Asks for the next piece of a large read; whether there was one.
    pub(crate) fn act_on_large(&mut self) -> bool {
        let Some(large) = &mut self.large else { return false };
        let (asked, offset, pieces) = (large.asked, large.next, large.pieces.clone());
        let length = (large.end - offset).min(PIECE);
        large.next += length;
        if large.next == large.end {
            self.large = None;
        }
        self.read(asked, offset, length as u32, Some(pieces));
        true
    }

    #[inline]
    fn read(&mut self, asked: Asked, offset: u64, length: u32, pieces: Option<Pieces>) {
        let last = pieces.as_ref().is_none_or(Pieces::is_last);
        let start = self.begin_data(&asked, offset, length, last);
        match self.device.read(offset, length, self.output.buffer()) {
            Submit::Done(Ok(_)) if self.end_data(start, length) => {
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

    /// Puts the head of `length` bytes of data, behind which exactly those are to be appended; `last` if no piece follows. Gives where it began.
    #[inline]
    fn begin_data(&mut self, asked: &Asked, offset: u64, length: u32, last: bool) -> usize {
        let (at, out) = (self.device.position(), self.output.buffer());
        let start = out.len();
        out.reserve(self.dialect.data_head_bytes() + length as usize);
        self.dialect.put_data_head(out, asked.cookie, offset, length, last, at);
        start
    }

    /// Ends the reply that began at `start`; whether exactly `length` bytes of data stand behind its head.
    #[inline]
    fn end_data(&mut self, start: usize, length: u32) -> bool {
        let whole = self.dialect.data_head_bytes() + length as usize;
        let reply = self.output.reply(start, whole);
        reply.map(|reply| self.dialect.end_data(reply)).is_some()
    }

    fn read_failed(&mut self, asked: Asked, offset: u64, pieces: Option<&Pieces>, error: &BlockError) {
        let Some(pieces) = pieces else { return self.failed(asked, error) };
        self.note(error);
        let last = pieces.answered();
        let failed = Failed { kind: error.kind(), text: &error.to_string(), piece: Some((offset, last)) };
        self.dialect.put_failed(self.output.buffer(), asked.cookie, failed, self.device.position());
        if last {
            self.answered.note(&asked);
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
        let (one, length) = (request.one, request.length);
        match self.device.block_status(request.offset, length, if one { 1 } else { MOST_EXTENTS }) {
            Submit::Done(result) => self.status_result(asked, length, one, result),
            Submit::Later(future) => self.waiters.push(asked, 0, Work::Status { future, length, one }),
        }
    }

    fn status_result(&mut self, asked: Asked, length: u64, one: bool, result: Result<Vec<StatusExtent>, BlockError>) {
        let extents = result.map(|extents| merge(&extents, length, if one { 1 } else { MOST_EXTENTS }));
        match extents {
            Ok(extents) if extents.is_empty() => {
                let error = BlockError::new(ErrorKind::Internal, "the device told no extent");
                self.failed(asked, &error);
            }
            Ok(extents) => {
                let at = self.device.position();
                self.dialect.put_status(self.output.buffer(), asked.cookie, &extents, at);
            }
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

    /// Tells the client another size of the device, where its protocol can.
    fn tell_size(&mut self) {
        let size = self.device.size();
        if std::mem::replace(&mut self.told_size, size) != size {
            self.dialect.put_size(self.output.buffer(), size, self.device.position());
        }
    }

    /// Ends a turn in which `acted` says whether requests were acted on: commits, and adds up what was done.
    pub(crate) fn end_turn(&mut self, acted: bool, stats: &Stats) {
        self.commit();
        self.tell_size();
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
                    let start = self.begin_data(&asked, offset, length, last);
                    self.output.buffer().extend_from_slice(&data);
                    let is_whole = self.end_data(start, length);
                    debug_assert!(is_whole, "its length was looked at");
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
        self.dialect.put_done(self.output.buffer(), asked.cookie, self.device.position());
        self.answered.note(&asked);
    }

    fn failed(&mut self, asked: Asked, error: &BlockError) {
        self.note(error);
        self.answered.note(&asked);
        let failed = Failed { kind: error.kind(), text: &error.to_string(), piece: None };
        self.dialect.put_failed(self.output.buffer(), asked.cookie, failed, self.device.position());
    }

    /// Counts a failure of the device, and logs the first, the second, the fourth and so on.
    fn note(&mut self, error: &BlockError) {
        self.counts.errors += 1;
        self.failures += 1;
        if self.failures.is_power_of_two() {
            let name = self.dialect.name();
            warn!(%name, kind = %error.kind(), %error, failures = self.failures, "a request failed");
        }
    }
}

/// The device broke its word about how much it reads.
fn wrong_length() -> BlockError {
    BlockError::new(ErrorKind::Internal, "the device read another length than was asked")
}

/// Extents as protocols want them: none empty, neighbours different, no more than was asked.
fn merge(extents: &[StatusExtent], length: u64, most: usize) -> Vec<(u64, bool)> {
    let mut merged: Vec<(u64, bool)> = Vec::new();
    let mut left = length;
    for extent in extents {
        let now = extent.len.min(left);
        let room = merged.len() < most;
        match merged.last_mut() {
            Some((len, last)) if *last == extent.hole => *len += now,
            _ if now > 0 && room => merged.push((now, extent.hole)),
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
        assert_eq!(merge(&extents, 8192, 10), [(1024, true), (1024, false), (6144, true)]);
        assert_eq!(merge(&extents, 1536, 10), [(1024, true), (512, false)]);
        assert_eq!(merge(&extents, 8192, 1), [(1024, true)]);
        assert_eq!(merge(&[extent(1 << 40, false)], 1 << 36, 1), [(1 << 36, false)]);
        assert_eq!(merge(&[extent(0, false)], 512, 1), []);
        assert_eq!(merge(&[], 512, 1), []);
    }
}
