// SPDX-License-Identifier: Apache-2.0
//! Replies on their way to the client: one buffer, sent with as few system calls as the socket allows.
//!
//! Reads append their data to the buffer themselves, behind the head that was put before it; if the data does not come, the head is taken back.
//! Once the buffer is [full](Output::full), nothing more is acted on until all of it is sent, so a client that does not read can make it
//! grow no further than [`FULL`] and one reply. A buffer that a large reply made large is given back when it is sent.

use crate::wire;
use bytes::BytesMut;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// Bytes at which no more replies are made.
const FULL: usize = 1 << 20;
/// Largest buffer that is kept when it is empty.
const KEEP: usize = 2 << 20;

/// The replies that are not yet sent.
pub(crate) struct Output {
    /// Replies; those up to `sent` are with the kernel.
    bytes: BytesMut,
    sent: usize,
    /// Whether the client understands chunks.
    structured: bool,
}

impl Output {
    pub(crate) fn new(structured: bool) -> Self {
        Self { bytes: BytesMut::new(), sent: 0, structured }
    }

    /// Whether what is there has to be sent before more is made.
    #[inline]
    pub(crate) fn full(&self) -> bool {
        self.bytes.len() >= FULL
    }

    /// Success without data.
    #[inline]
    pub(crate) fn done(&mut self, cookie: u64) {
        wire::put_simple_reply(&mut self.bytes, 0, cookie);
    }

    /// Success of a read of no bytes, which structured replies can not say with a chunk of data.
    pub(crate) fn nothing(&mut self, cookie: u64) {
        if self.structured {
            wire::put_chunk(&mut self.bytes, wire::REPLY_FLAG_DONE, wire::REPLY_TYPE_NONE, cookie, 0);
        } else {
            self.done(cookie);
        }
    }

    /// A failure.
    pub(crate) fn failed(&mut self, cookie: u64, error: u32, text: &str) {
        if self.structured {
            wire::put_error_chunk(&mut self.bytes, wire::REPLY_FLAG_DONE, cookie, error, text, None);
        } else {
            wire::put_simple_reply(&mut self.bytes, error, cookie);
        }
    }

    /// The failure of one piece of a read, at `offset`; `last` if no piece is left. Only where chunks were agreed.
    pub(crate) fn failed_piece(&mut self, cookie: u64, offset: u64, last: bool, error: u32, text: &str) {
        let flags = if last { wire::REPLY_FLAG_DONE } else { 0 };
        wire::put_error_chunk(&mut self.bytes, flags, cookie, error, text, Some(offset));
    }

    /// Puts the head of `length` bytes of data, behind which exactly those are to be appended to [`buffer`](Self::buffer). Gives where it
    /// began, for [`take_back`](Self::take_back). `last` if no chunk follows.
    #[inline]
    pub(crate) fn data(&mut self, cookie: u64, offset: u64, length: u32, last: bool) -> usize {
        let start = self.bytes.len();
        self.bytes.reserve(wire::CHUNK_BYTES + wire::DATA_OFFSET_BYTES + length as usize);
        if self.structured {
            let flags = if last { wire::REPLY_FLAG_DONE } else { 0 };
            wire::put_data_chunk(&mut self.bytes, flags, cookie, offset, length);
        } else {
            self.done(cookie);
        }
        start
    }

    /// Where data goes.
    #[inline]
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.bytes
    }

    /// Whether exactly `length` bytes of data stand behind the head at `start`.
    #[inline]
    pub(crate) fn has_data(&self, start: usize, length: u32) -> bool {
        let head = if self.structured { wire::CHUNK_BYTES + wire::DATA_OFFSET_BYTES } else { wire::SIMPLE_REPLY_BYTES };
        self.bytes.len() == start + head + length as usize
    }

    /// Forgets everything from `start` on, none of which is sent yet.
    pub(crate) fn take_back(&mut self, start: usize) {
        self.bytes.truncate(start);
    }

    /// The extents of a range.
    pub(crate) fn status(&mut self, cookie: u64, context: u32, extents: &[(u32, u32)]) {
        wire::put_status_chunk(&mut self.bytes, wire::REPLY_FLAG_DONE, cookie, context, extents);
    }

    /// Sends what is there; ready when all of it is with the kernel.
    pub(crate) fn poll_send<S>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        S: AsyncWrite + Unpin,
    {
        while self.sent < self.bytes.len() {
            match ready!(Pin::new(&mut *stream).poll_write(cx, &self.bytes[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.sent += sent,
            }
        }
        self.sent = 0;
        self.bytes.clear();
        if self.bytes.capacity() > KEEP {
            self.bytes = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}
