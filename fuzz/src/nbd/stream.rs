// SPDX-License-Identifier: Apache-2.0
//! A connection in memory: what the client sends comes in pieces, what the server sends is kept.
//!
//! Now and then either side is not ready, and is at once woken to try again: nothing waits for anything outside, so a future that is pending
//! without having been woken would never end, which the fuzzer's time limit finds.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes that the server may send before the client hangs up.
const MOST_OUTPUT: usize = 24 << 20;

pub(super) struct Stream {
    input: Vec<u8>,
    at: usize,
    pieces: u8,
    turn: u32,
    full: bool,
    pub(super) output: Vec<u8>,
}

impl Stream {
    pub(super) fn new(input: Vec<u8>, pieces: u8) -> Self {
        Self { input, at: 0, pieces, turn: 0, full: false, output: Vec::new() }
    }

    /// What the client has yet to send.
    pub(super) fn rest(&self) -> &[u8] {
        &self.input[self.at..]
    }

    /// Whether the server was hung up on.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    /// Bytes that go through now; `None` is not ready.
    fn piece(&mut self, cx: &mut Context<'_>) -> Option<usize> {
        self.turn = self.turn.wrapping_add(1);
        let kind = self.pieces % 4;
        if kind > 0 && self.turn.is_multiple_of(u32::from(self.pieces % 3) + 2) {
            cx.waker().wake_by_ref();
            return None;
        }
        Some(match kind {
            0 => usize::MAX,
            1 => 1 + self.turn as usize * 7919 % 61,
            2 => 1 + self.turn as usize * 7919 % 4001,
            _ => 100_000,
        })
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(piece) = self.piece(cx) else { return Poll::Pending };
        let len = piece.min(out.remaining()).min(self.rest().len());
        out.put_slice(&self.rest()[..len]);
        self.at += len;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.output.len() >= MOST_OUTPUT {
            self.full = true;
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let Some(piece) = self.piece(cx) else { return Poll::Pending };
        // Replies may be long: small pieces of them would only cost time.
        let len = bytes.len().min(piece.saturating_mul(64));
        self.output.extend_from_slice(&bytes[..len]);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
