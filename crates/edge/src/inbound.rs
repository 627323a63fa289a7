// SPDX-License-Identifier: Apache-2.0
//! What a node says, taken apart: bytes in, messages out. No I/O but one read.
//!
//! First comes the greeting, which is small; then replies and notices, in any order. Whatever is wrong ends the connection, and is told as the error of the wire that it is.
//!
//! Data of reads are slices of the buffer that they were received in. Bound of that: what one read brings ([`ROOM`]), and one payload, for which room is made only once
//! its header was proved and the session said that it waits for it.

use bytes::{Buf, Bytes, BytesMut};
use std::future::Future;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt};
use varve_types::ErrorKind;
use varve_wire::WireError;
use varve_wire::attach::{Attached, Refused};
use varve_wire::greeting::{HEADER_BYTES, Header, Kind};
use varve_wire::transmission::{REPLY_BYTES, Reply};

/// Room that is made for one read.
const ROOM: usize = 128 << 10;
/// What is left of it when new room is made.
const LEAST_ROOM: usize = 16 << 10;

/// What a node said.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// The edge has the volume.
    Attached(Attached),
    /// It has not.
    Refused(Refused),
    /// A reply or a notice, with its payload, which was not proved yet.
    Reply(Reply, Bytes),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Inbound {
    bytes: BytesMut,
    is_greeted: bool,
    /// Bytes that are missing for the next message, as far as that is known.
    lacks: usize,
}

impl Inbound {
    /// Receives once.
    pub fn poll_receive<S>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<usize>>
    where
        S: AsyncRead + Unpin + ?Sized,
    {
        if self.bytes.capacity() - self.bytes.len() < self.lacks.max(LEAST_ROOM) {
            self.bytes.reserve(self.lacks.max(ROOM));
        }
        pin!(stream.read_buf(&mut self.bytes)).poll(cx)
    }

    /// Takes bytes as if they had been received.
    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next message, if all of it is there. `expects` says of a reply's header whether what follows it is waited for.
    ///
    /// # Errors
    /// What is wrong with it; the connection is then of no more use.
    pub fn next(&mut self, expects: impl FnOnce(&Reply) -> bool) -> Result<Option<Said>, WireError> {
        self.lacks = 0;
        if self.is_greeted { self.next_reply(expects) } else { self.next_greeting() }
    }

    fn next_greeting(&mut self) -> Result<Option<Said>, WireError> {
        let Some(head) = self.bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let header = Header::decode(head)?;
        header.version()?;
        let whole = HEADER_BYTES + header.length as usize;
        let Some(body) = self.bytes.get(HEADER_BYTES..whole) else {
            self.lacks = whole - self.bytes.len();
            return Ok(None);
        };
        header.verify(body)?;
        let said = match header.kind()? {
            Kind::Attached => Said::Attached(Attached::decode(body)?),
            Kind::Refused => Said::Refused(Refused::decode(body)?),
            Kind::Attach | Kind::MirrorHello | Kind::MirrorWelcome => {
                let message =
                    "what answers there speaks of other things than volumes: it is no node that an edge can ask";
                Said::Refused(Refused::new(ErrorKind::Invalid, message))
            }
        };
        self.bytes.advance(whole);
        self.is_greeted = true;
        Ok(Some(said))
    }

    fn next_reply(&mut self, expects: impl FnOnce(&Reply) -> bool) -> Result<Option<Said>, WireError> {
        let Some(reply) = Reply::decode(&self.bytes)? else { return Ok(None) };
        let whole = REPLY_BYTES + reply.length as usize;
        if self.bytes.len() < whole {
            if !expects(&reply) {
                let reason = "nobody waits for what it says will follow".to_owned();
                return Err(WireError::Senseless { what: "reply", reason });
            }
            self.lacks = whole - self.bytes.len();
            return Ok(None);
        }
        self.bytes.advance(REPLY_BYTES);
        let payload =
            if reply.length == 0 { Bytes::new() } else { self.bytes.split_to(reply.length as usize).freeze() };
        Ok(Some(Said::Reply(reply, payload)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use varve_types::Sequence;
    use varve_wire::transmission::{Told, payload_crc};

    fn reply(id: u64, payload: &[u8]) -> Vec<u8> {
        let reply = Reply {
            told: Told::Done,
            id,
            sequence: Sequence(1),
            safe: Sequence(1),
            length: payload.len() as u32,
            payload_crc: payload_crc(payload),
        };
        [&reply.to_bytes()[..], payload].concat()
    }

    #[test]
    fn messages_come_whole_wherever_they_are_cut() {
        let refused = Refused::new(ErrorKind::Busy, "later");
        let all = [&refused.encode()[..], &reply(7, &[5; 4096]), &reply(8, &[])].concat();
        for step in [1, 7, 48, 4096, all.len()] {
            let (mut inbound, mut said) = (Inbound::default(), Vec::new());
            for piece in all.chunks(step) {
                inbound.put(piece);
                while let Some(one) = inbound.next(|_| true).unwrap() {
                    said.push(one);
                }
            }
            assert_eq!(said.len(), 3, "{step}");
            assert_eq!(said[0], Said::Refused(refused.clone()));
            assert!(matches!(&said[1], Said::Reply(reply, data) if reply.id == 7 && data[..] == [5; 4096]));
        }
    }

    #[test]
    fn no_room_is_made_for_what_nobody_waits_for() {
        let mut inbound = Inbound { is_greeted: true, ..Inbound::default() };
        inbound.put(&reply(7, &[5; 4096])[..100]);
        assert!(matches!(inbound.next(|_| true), Ok(None)));
        assert_eq!(inbound.lacks, 48 + 4096 - 100);
        assert!(inbound.next(|_| false).is_err());
    }

    #[test]
    fn strangers_are_told_by_name() {
        let mut inbound = Inbound::default();
        inbound.put(b"HTTP/1.1 400 Bad Request\r\n\r\n padding padding");
        assert!(matches!(inbound.next(|_| true), Err(WireError::NotVarve { .. })));
    }
}
