// SPDX-License-Identifier: Apache-2.0
//! Replies on their way to the client: one buffer, sent with as few system calls as the socket allows.
//!
//! Reads append their data to the buffer themselves, behind the head that was put before it; if the data does not come, the head is taken back.
//! Once the buffer is [full](Output::full), nothing more is acted on until all of it is sent, so a client that does not read can make it
//! grow no further than [`FULL`] and one reply. A buffer that a large reply made large is given back when it is sent.

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
#[derive(Default)]
pub(crate) struct Output {
    /// Replies; those up to `sent` are with the kernel.
    bytes: BytesMut,
    sent: usize,
}

impl Output {
    /// Whether what is there has to be sent before more is made.
    #[inline]
    pub(crate) fn full(&self) -> bool {
        self.bytes.len() >= FULL
    }

    /// Where replies go.
    #[inline]
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.bytes
    }

    /// The reply that began at `start`, if it has exactly `length` bytes.
    #[inline]
    pub(crate) fn reply(&mut self, start: usize, length: usize) -> Option<&mut [u8]> {
        self.bytes.get_mut(start..).filter(|reply| reply.len() == length)
    }

    /// Forgets everything from `start` on, none of which is sent yet.
    pub(crate) fn take_back(&mut self, start: usize) {
        self.bytes.truncate(start);
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
        if !self.bytes.is_empty() {
            // Under TLS what was taken is not always with the kernel yet.
            ready!(Pin::new(&mut *stream).poll_flush(cx))?;
        }
        self.sent = 0;
        self.bytes.clear();
        if self.bytes.capacity() > KEEP {
            self.bytes = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}
