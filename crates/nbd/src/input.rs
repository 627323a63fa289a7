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
use crate::check::Refusal;
use crate::error::{NbdError, Result};
use crate::wire::{self, Command, REQUEST_BYTES, Request};
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
const MOST_SKIPPED: u32 = 64 << 20;

/// What was received and not yet cut.
pub(crate) struct Input {
    bytes: BytesMut,
    /// Bytes of a refused payload that have yet to come, or lie at the beginning of `bytes`.
    skip: usize,
    /// The write that they are of.
    refused: Option<(Request, Refusal)>,
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
#[derive(Debug)]
pub(crate) enum Next {
    /// A request that may be acted on, with its payload.
    Request(Request, Bytes),
    /// A request that may not.
    Refused(Request, Refusal),
    /// Nothing whole: more has to be received.
    More,
}

impl Input {
    /// An input that begins with `leftover`.
    pub(crate) fn new(leftover: BytesMut) -> Self {
        Self { bytes: leftover, skip: 0, refused: None, lacks: REQUEST_BYTES, size: SMALLEST, large: 0, allocated: 0 }
    }

    /// Cuts the next request off, once it is whole. `check` may be asked about the same request several times.
    #[inline]
    pub(crate) fn next(&mut self, check: impl FnOnce(&Request) -> Result<(), Refusal>) -> Result<Next> {
        if let Some((request, refusal)) = self.refused {
            return Ok(if self.skip_on() { Next::Refused(request, refusal) } else { Next::More });
        }
        let request = Request::decode(&self.bytes).map_err(|bad| NbdError::Protocol(bad.to_string()))?;
        let Some(request) = request else {
            self.lacks = REQUEST_BYTES - self.bytes.len();
            return Ok(Next::More);
        };
        let payload = if request.command == Command::Write { request.length } else { 0 };
        if payload > MOST_SKIPPED {
            return Err(NbdError::Protocol(format!("a write of {payload} bytes")));
        }
        if let Err(refusal) = check(&request) {
            self.bytes.advance(REQUEST_BYTES);
            self.skip = payload as usize;
            self.refused = Some((request, refusal));
            return Ok(if self.skip_on() { Next::Refused(request, refusal) } else { Next::More });
        }
        let whole = REQUEST_BYTES + payload as usize;
        if self.bytes.len() < whole {
            self.lacks = whole - self.bytes.len();
            return Ok(Next::More);
        }
        self.bytes.advance(REQUEST_BYTES);
        if payload == 0 {
            return Ok(Next::Request(request, Bytes::new()));
        }
        self.large = if whole > LARGEST { whole } else { 0 };
        Ok(Next::Request(request, self.bytes.split_to(payload as usize).freeze()))
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

// The two bounds that `next` relies on.
const _: () = assert!(MOST_SKIPPED >= wire::MAX_BLOCK && LEAST_ROOM >= REQUEST_BYTES);

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    fn request(command: Command, length: u32) -> Vec<u8> {
        let mut bytes = BytesMut::new();
        Request { flags: 0, command, cookie: u64::from(length), offset: 0, length }.encode(&mut bytes);
        bytes.to_vec()
    }

    fn allow(_: &Request) -> Result<(), Refusal> {
        Ok(())
    }

    fn forbid_writes(request: &Request) -> Result<(), Refusal> {
        match request.command {
            Command::Write => Err(Refusal { error: wire::EPERM, text: "no" }),
            _ => Ok(()),
        }
    }

    #[test]
    fn requests_are_cut_wherever_the_bytes_are_split() {
        let mut stream = request(Command::Write, 5);
        stream.extend_from_slice(b"hello");
        stream.extend_from_slice(&request(Command::Flush, 0));
        for split in 0..stream.len() {
            let mut input = Input::new(BytesMut::from(&stream[..split]));
            let mut found = Vec::new();
            for rest in [&stream[split..], &[]] {
                while let Next::Request(request, payload) = input.next(allow).unwrap() {
                    found.push((request.command, payload.to_vec()));
                }
                input.bytes.extend_from_slice(rest);
            }
            assert_eq!(found, [(Command::Write, b"hello".to_vec()), (Command::Flush, Vec::new())], "split at {split}");
            assert!(!input.is_within_request());
        }
    }

    #[test]
    fn a_refused_payload_is_skipped_to_the_next_request() {
        let mut stream = request(Command::Write, 1000);
        stream.extend_from_slice(&[0x25; 1000]);
        stream.extend_from_slice(&request(Command::Read, 7));
        for split in 0..stream.len() {
            let mut input = Input::new(BytesMut::from(&stream[..split]));
            let mut found = Vec::new();
            for rest in [&stream[split..], &[]] {
                loop {
                    match input.next(forbid_writes).unwrap() {
                        Next::Request(request, _) => found.push((request.command, 0)),
                        Next::Refused(request, refusal) => found.push((request.command, refusal.error)),
                        Next::More => break,
                    }
                }
                input.bytes.extend_from_slice(rest);
            }
            assert_eq!(found, [(Command::Write, wire::EPERM), (Command::Read, 0)], "split at {split}");
            assert!(!input.is_within_request());
        }
    }

    #[test]
    fn a_length_that_can_not_be_meant_ends_it() {
        for (length, fine) in [(MOST_SKIPPED, true), (MOST_SKIPPED + 1, false), (u32::MAX, false)] {
            let mut input = Input::new(BytesMut::from(&request(Command::Write, length)[..]));
            assert_eq!(input.next(forbid_writes).is_ok(), fine, "{length}");
            let mut input = Input::new(BytesMut::from(&request(Command::Trim, length)[..]));
            assert!(matches!(input.next(allow), Ok(Next::Request(..))), "no payload, no bound");
        }
    }

    #[tokio::test]
    async fn a_large_payload_has_a_buffer_of_its_own_size() {
        let (mut here, mut there) = tokio::io::duplex(1 << 20);
        let length = 8 << 20;
        let sender = tokio::spawn(async move {
            for _ in 0..2 {
                there.write_all(&request(Command::Write, length)).await.unwrap();
                there.write_all(&vec![7; length as usize]).await.unwrap();
            }
        });
        let mut input = Input::new(BytesMut::new());
        for _ in 0..2 {
            let payload = loop {
                match input.next(allow).unwrap() {
                    Next::Request(_, payload) => break payload,
                    Next::Refused(..) => unreachable!(),
                    Next::More => {}
                }
                let received = std::future::poll_fn(|cx| input.poll_receive(&mut here, cx)).await.unwrap();
                assert!(received > 0);
                assert!(input.bytes.capacity() <= length as usize + 2 * LARGEST, "{}", input.bytes.capacity());
            };
            assert_eq!(payload.len(), length as usize);
            assert!(payload.iter().all(|byte| *byte == 7));
        }
        sender.await.unwrap();
    }
}
