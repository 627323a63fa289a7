// SPDX-License-Identifier: Apache-2.0
//! NBD as a dialect of [`varve_serve`]: how its requests and replies look, as far as the client and this server have agreed.

use crate::check::{Terms, check};
use crate::handshake::Negotiated;
use crate::option::BASE_ALLOCATION_ID;
use crate::wire::{self, REQUEST_BYTES, Request};
use bytes::BytesMut;
use varve_block::{BlockDevice, Position};
use varve_serve::{Command, Dialect, Failed, Refusal};

/// See the module.
pub(crate) struct Nbd(pub(crate) Negotiated);

impl Nbd {
    /// Whether the client understands chunks.
    const fn structured(&self) -> bool {
        self.0.structured
    }
}

impl Dialect for Nbd {
    type Head = Request;
    const HEAD_BYTES: usize = REQUEST_BYTES;

    #[inline]
    fn decode(&self, bytes: &[u8]) -> Result<Option<Request>, String> {
        Request::decode(bytes).map_err(|bad| bad.to_string())
    }

    #[inline]
    fn payload(&self, head: &Request) -> u64 {
        if head.command == wire::Command::Write { head.length.into() } else { 0 }
    }

    #[inline]
    fn check(&self, head: &Request, device: &dyn BlockDevice) -> Result<(), Refusal> {
        let terms = Terms {
            size: device.size(),
            read_only: self.0.export.read_only || device.read_only(),
            structured: self.structured(),
            block_status: self.0.block_status,
        };
        check(head, terms)
    }

    fn prove(&self, _head: &Request, _payload: &[u8]) -> Result<(), String> {
        // The protocol has no checksums.
        Ok(())
    }

    #[inline]
    fn request(&self, head: &Request) -> varve_serve::Request {
        let command = match head.command {
            wire::Command::Read => Command::Read,
            wire::Command::Write => Command::Write,
            wire::Command::Disconnect => Command::Leave,
            wire::Command::Flush => Command::Flush,
            wire::Command::Trim => Command::Discard,
            wire::Command::Cache => Command::Prefetch,
            wire::Command::WriteZeroes => Command::WriteZeroes,
            // What is not known is refused, and counted with what has no count of its own.
            wire::Command::BlockStatus | wire::Command::Unknown(_) => Command::Status,
        };
        varve_serve::Request {
            command,
            cookie: head.cookie,
            offset: head.offset,
            length: head.length.into(),
            fua: head.has(wire::CMD_FLAG_FUA),
            one: head.has(if command == Command::Read { wire::CMD_FLAG_DF } else { wire::CMD_FLAG_REQ_ONE }),
        }
    }

    fn name(&self) -> &str {
        &self.0.export.name
    }

    #[inline]
    fn pieces(&self) -> bool {
        self.structured()
    }

    #[inline]
    fn put_done(&self, out: &mut BytesMut, cookie: u64, _at: Position) {
        wire::put_simple_reply(out, 0, cookie);
    }

    /// A read of no bytes can not be told by a chunk of data.
    fn put_nothing(&self, out: &mut BytesMut, cookie: u64, at: Position) {
        if self.structured() {
            wire::put_chunk(out, wire::REPLY_FLAG_DONE, wire::REPLY_TYPE_NONE, cookie, 0);
        } else {
            self.put_done(out, cookie, at);
        }
    }

    fn put_failed(&self, out: &mut BytesMut, cookie: u64, failed: Failed<'_>, _at: Position) {
        let error = failed.kind.nbd();
        if !self.structured() {
            return wire::put_simple_reply(out, error, cookie);
        }
        let last = failed.piece.is_none_or(|(_, last)| last);
        let flags = if last { wire::REPLY_FLAG_DONE } else { 0 };
        wire::put_error_chunk(out, flags, cookie, error, failed.text, failed.piece.map(|(offset, _)| offset));
    }

    #[inline]
    fn data_head_bytes(&self) -> usize {
        if self.structured() { wire::CHUNK_BYTES + wire::DATA_OFFSET_BYTES } else { wire::SIMPLE_REPLY_BYTES }
    }

    #[inline]
    fn put_data_head(&self, out: &mut BytesMut, cookie: u64, offset: u64, length: u32, last: bool, at: Position) {
        if self.structured() {
            let flags = if last { wire::REPLY_FLAG_DONE } else { 0 };
            wire::put_data_chunk(out, flags, cookie, offset, length);
        } else {
            self.put_done(out, cookie, at);
        }
    }

    fn put_status(&self, out: &mut BytesMut, cookie: u64, extents: &[(u64, bool)], _at: Position) {
        let state = |hole: bool| if hole { wire::STATE_HOLE | wire::STATE_ZERO } else { 0 };
        // A request of this protocol, and so an extent of its answer, is shorter than 2^32 bytes.
        let extents: Vec<(u32, u32)> = extents.iter().map(|(length, hole)| (*length as u32, state(*hole))).collect();
        wire::put_status_chunk(out, wire::REPLY_FLAG_DONE, cookie, BASE_ALLOCATION_ID, &extents);
    }
}
