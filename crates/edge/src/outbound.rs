// SPDX-License-Identifier: Apache-2.0
//! Requests on their way to a node: headers are gathered, payloads lie between them as they came, and all of it goes with one system call where the socket takes it.
//!
//! Bound: what the session has under way, since that is all that it sends.

use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;
use varve_wire::transmission::Request;

/// Most pieces of one system call.
const PIECES: usize = 128;
/// Room for headers that is made at once.
const HEADS: usize = 16 << 10;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Outbound {
    row: VecDeque<Bytes>,
    /// Headers behind the row.
    heads: BytesMut,
    /// The stream may hold some of what it took.
    is_unflushed: bool,
}

impl Outbound {
    pub(crate) fn push(&mut self, request: &Request, payload: Bytes) {
        if self.heads.capacity() - self.heads.len() < varve_wire::transmission::REQUEST_BYTES {
            self.heads.reserve(HEADS);
        }
        request.encode(&mut self.heads);
        if !payload.is_empty() {
            self.row.push_back(self.heads.split().freeze());
            self.row.push_back(payload);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.row.is_empty() && self.heads.is_empty() && !self.is_unflushed
    }

    /// Sends what is there; ready when all of it is with the kernel. Tells how many bytes went.
    pub(crate) fn poll_send<S>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        sent: &mut usize,
    ) -> Poll<io::Result<()>>
    where
        S: AsyncWrite + Unpin + ?Sized,
    {
        if !self.heads.is_empty() {
            self.row.push_back(self.heads.split().freeze());
        }
        while !self.row.is_empty() {
            let mut pieces = [IoSlice::new(&[]); PIECES];
            let count = self.row.len().min(PIECES);
            for (piece, bytes) in pieces.iter_mut().zip(&self.row) {
                *piece = IoSlice::new(bytes);
            }
            let mut went = ready!(Pin::new(&mut *stream).poll_write_vectored(cx, &pieces[..count]))?;
            if went == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *sent += went;
            self.is_unflushed = true;
            while let Some(first) = self.row.front_mut() {
                if went < first.len() {
                    first.advance(went);
                    break;
                }
                went -= first.len();
                self.row.pop_front();
            }
        }
        ready!(Pin::new(stream).poll_flush(cx))?;
        self.is_unflushed = false;
        Poll::Ready(Ok(()))
    }
}
