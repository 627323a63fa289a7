// SPDX-License-Identifier: Apache-2.0
//! Requests on their way from the client: one buffer, filled with as few system calls as there are bursts, cut into requests.
//!
//! A payload is a slice of the buffer: it is not copied here, and it keeps the buffer that it is in alive, [`LARGEST`] bytes at most for
//! a small payload. A payload that does not fit gets a buffer of its own size, into which the socket is read; only what had come with its
//! header is copied.
//!
//! The header of a write is checked before its payload is waited for. The payload of a refused write is skipped as it comes, so that the
//! next request is found, and the refusal is told behind it (clients take no answer to what they still send); a length beyond
//! [`MOST_SKIPPED`] is an attack and ends the connection. So the memory of a connection is bounded by one
//! buffer and one payload of at most 32 MiB, and only bytes that really came are touched.

use crate::buffers;
use crate::dialect::{Dialect, Refusal};
use crate::error::{Result, ServeError};
use bytes::{Buf, Bytes, BytesMut};
use std::future::Future;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Size of the buffer at first; it doubles when a burst fills it.
const SMALLEST: usize = 64 << 10;
/// Size of the buffer at most, but for a payload that needs more.
const LARGEST: usize = 256 << 10;
/// Room that is left at least before the socket is read.
const LEAST_ROOM: usize = 8 << 10;
/// Longest payload that is skipped.
const MOST_SKIPPED: u64 = 64 << 20;

/// What was received and not yet cut.
pub(crate) struct Input<D: Dialect> {
    bytes: BytesMut,
    /// Bytes of a refused payload that have yet to come, or lie at the beginning of `bytes`.
    skip: usize,
    /// The write that they are of.
    refused: Option<(D::Head, Refusal)>,
    /// Bytes that the request at the beginning of `bytes` lacks.
    lacks: usize,
    /// Size of the next buffer.
    size: usize,
    /// Bytes of the last request that needed a buffer of its own: the next one is likely to be like it. 0 if it was small.
    large: usize,
    /// Bytes of the buffer, those that were cut off included.
    allocated: usize,
}

/// What is at the beginning of the input.
pub(crate) enum Next<H> {
    /// A request that may be acted on, with its payload.
    Request(H, Bytes),
    /// A request that may not.
    Refused(H, Refusal),
    /// Nothing whole: more has to be received.
    More,
}

impl<D: Dialect> Input<D> {
    /// An input that begins with `leftover`.
    pub(crate) fn new(leftover: BytesMut) -> Self {
        const { assert!(D::HEAD_BYTES <= LEAST_ROOM, "what `next` relies on") };
        Self { bytes: leftover, skip: 0, refused: None, lacks: D::HEAD_BYTES, size: SMALLEST, large: 0, allocated: 0 }
    }

    /// Cuts the next request off, once it is whole. `check` may be asked about the same request several times.
    #[inline]
    pub(crate) fn next(
        &mut self,
        dialect: &D,
        check: impl FnOnce(&D::Head) -> Result<(), Refusal>,
    ) -> Result<Next<D::Head>> {
        if let Some((head, refusal)) = self.refused {
            return Ok(if self.skip_on() { Next::Refused(head, refusal) } else { Next::More });
        }
        let Some(head) = dialect.decode(&self.bytes).map_err(ServeError::Protocol)? else {
            self.lacks = D::HEAD_BYTES - self.bytes.len();
            return Ok(Next::More);
        };
        let payload = dialect.payload(&head);
        if payload > MOST_SKIPPED {
            return Err(ServeError::Protocol(format!("a write of {payload} bytes")));
        }
        let payload = payload as usize;
        if let Err(refusal) = check(&head) {
            self.bytes.advance(D::HEAD_BYTES);
            self.skip = payload;
            self.refused = Some((head, refusal));
            return Ok(if self.skip_on() { Next::Refused(head, refusal) } else { Next::More });
        }
        let whole = D::HEAD_BYTES + payload;
        if self.bytes.len() < whole {
            self.lacks = whole - self.bytes.len();
            return Ok(Next::More);
        }
        self.bytes.advance(D::HEAD_BYTES);
        if payload == 0 {
            return Ok(Next::Request(head, Bytes::new()));
        }
        self.large = if whole > LARGEST { whole } else { 0 };
        let payload = self.bytes.split_to(payload).freeze();
        dialect.prove(&head, &payload).map_err(ServeError::Protocol)?;
        Ok(Next::Request(head, payload))
    }

    /// Skips what is there of a refused payload; whether that was the rest of it.
    fn skip_on(&mut self) -> bool {
        let now = self.skip.min(self.bytes.len());
        self.bytes.advance(now);
        self.skip -= now;
        if self.skip == 0 {
            self.refused = None;
        }
        self.lacks = 1;
        self.skip == 0
    }

    /// Whether a request, or a refused payload, is there in part.
    pub(crate) fn is_within_request(&self) -> bool {
        self.refused.is_some() || !self.bytes.is_empty()
    }

    /// Receives what is there, as far as there is room. 0 bytes are the end.
    pub(crate) fn poll_receive<S>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<usize>>
    where
        S: AsyncRead + Unpin,
    {
        if self.bytes.capacity() - self.bytes.len() < self.lacks.max(LEAST_ROOM) {
            self.make_room();
        }
        let room = self.bytes.capacity() - self.bytes.len();
        let received = pin!(stream.read_buf(&mut self.bytes)).poll(cx);
        if matches!(received, Poll::Ready(Ok(count)) if count == room) {
            self.size = (self.size * 2).min(LARGEST);
        }
        received
    }

    /// Makes room for what the next request is expected to need: in the buffer at hand if no payload lies in it any more and it is about as
    /// large as wanted, else in a new one.
    fn make_room(&mut self) {
        let expected = if self.bytes.is_empty() { self.size.max(self.large) } else { self.size };
        let more = self.lacks.max(expected);
        if self.allocated <= 2 * (self.bytes.len() + more) && self.bytes.try_reclaim(more) {
            return;
        }
        let (allocated, mut buffer) = buffers::take(self.bytes.len() + more);
        buffer.extend_from_slice(&self.bytes);
        let mut spent = std::mem::replace(&mut self.bytes, buffer);
        spent.clear();
        buffers::give(std::mem::replace(&mut self.allocated, allocated), spent);
    }
}

#[cfg(test)]
#[path = "input_tests.rs"]
mod tests;
