// SPDX-License-Identifier: Apache-2.0
//! Requests of edges and their replies, as a dialect of [`varve_serve`].
//!
//! The bytes are those of [`varve_wire::transmission`]; here is only what may be asked of which device. Every reply tells where the volume stands, so that an edge
//! knows what it need not keep any more. A size that is not the one of the greeting is told unasked.
//!
//! Always holds: what is acted on lies in the volume, on sectors, and changes nothing that is read-only.

use bytes::{BufMut, BytesMut};
use varve_block::{BlockDevice, Position};
use varve_serve::{Command, Dialect, Failed, Refusal};
use varve_types::ErrorKind;
use varve_wire::transmission::{
    Ask, Extent, FLAG_FUA, FLAG_ONE, MAX_TEXT, REPLY_BYTES, REQUEST_BYTES, Reply, Request, Told, UNIT, payload_crc,
    put_extents,
};

/// Requests that an edge may have under way on a connection.
pub(crate) const WINDOW: u32 = 256;

/// See the module.
pub(crate) struct EdgeDialect {
    /// Who is served with what.
    pub name: String,
    /// The size that the greeting told.
    pub size: u64,
}

const fn refuse(kind: ErrorKind, text: &'static str) -> Result<(), Refusal> {
    Err(Refusal { kind, text })
}

fn reply(told: Told, id: u64, payload: &[u8], at: Position) -> Reply {
    let (length, payload_crc) = (payload.len() as u32, payload_crc(payload));
    Reply { told, id, sequence: at.sequence, safe: at.safe, length, payload_crc }
}

fn put(out: &mut BytesMut, told: Told, id: u64, payload: &[u8], at: Position) {
    out.put_slice(&reply(told, id, payload, at).to_bytes());
    out.put_slice(payload);
}

impl Dialect for EdgeDialect {
    type Head = Request;
    const HEAD_BYTES: usize = REQUEST_BYTES;

    #[inline]
    fn decode(&self, bytes: &[u8]) -> Result<Option<Request>, String> {
        Request::decode(bytes).map_err(|error| error.to_string())
    }

    #[inline]
    fn payload(&self, head: &Request) -> u64 {
        head.payload() as u64
    }

    #[inline]
    fn check(&self, head: &Request, device: &dyn BlockDevice) -> Result<(), Refusal> {
        if matches!(head.ask, Ask::Flush | Ask::Ping | Ask::Detach) {
            return Ok(());
        }
        if head.ask.is_change() && device.read_only() {
            return refuse(ErrorKind::Conflict, "the volume is read-only here");
        }
        if !head.offset.is_multiple_of(UNIT) || !head.length.is_multiple_of(UNIT) {
            return refuse(ErrorKind::Invalid, "offset and length have to be multiples of 512");
        }
        if head.offset + head.length > device.size() {
            return refuse(ErrorKind::Invalid, "beyond the end of the volume");
        }
        if head.ask == Ask::Status && head.length == 0 {
            return refuse(ErrorKind::Invalid, "the status of nothing");
        }
        Ok(())
    }

    #[inline]
    fn prove(&self, head: &Request, payload: &[u8]) -> Result<(), String> {
        head.verify(payload).map_err(|error| error.to_string())
    }

    #[inline]
    fn request(&self, head: &Request) -> varve_serve::Request {
        let command = match head.ask {
            Ask::Read => Command::Read,
            Ask::Write => Command::Write,
            Ask::Flush => Command::Flush,
            Ask::Discard => Command::Discard,
            Ask::WriteZeroes => Command::WriteZeroes,
            Ask::Status => Command::Status,
            Ask::Prefetch => Command::Prefetch,
            Ask::Ping => Command::Ping,
            Ask::Detach => Command::Leave,
        };
        varve_serve::Request {
            command,
            cookie: head.id,
            offset: head.offset,
            length: head.length,
            fua: head.flags & FLAG_FUA != 0,
            one: head.flags & FLAG_ONE != 0,
        }
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn told_size(&self, _: &dyn BlockDevice) -> u64 {
        self.size
    }

    fn pieces(&self) -> bool {
        false
    }

    #[inline]
    fn put_done(&self, out: &mut BytesMut, cookie: u64, at: Position) {
        put(out, Told::Done, cookie, &[], at);
    }

    fn put_failed(&self, out: &mut BytesMut, cookie: u64, failed: Failed<'_>, at: Position) {
        let text = &failed.text[..failed.text.floor_char_boundary(MAX_TEXT)];
        put(out, Told::Failed(failed.kind), cookie, text.as_bytes(), at);
    }

    #[inline]
    fn data_head_bytes(&self) -> usize {
        REPLY_BYTES
    }

    /// Its checksums are those of no data: they are known once the data stand there.
    #[inline]
    fn put_data_head(&self, out: &mut BytesMut, cookie: u64, _: u64, _: u32, _: bool, at: Position) {
        out.put_slice(&reply(Told::Done, cookie, &[], at).to_bytes());
    }

    #[inline]
    fn end_data(&self, whole: &mut [u8]) {
        let Some((head, data)) = whole.split_first_chunk_mut::<REPLY_BYTES>() else { return };
        Reply::finish(head, data);
    }

    fn put_status(&self, out: &mut BytesMut, cookie: u64, extents: &[(u64, bool)], at: Position) {
        let extents: Vec<Extent> =
            extents.iter().map(|(length, hole)| Extent { length: *length, hole: *hole }).collect();
        let mut payload = Vec::new();
        put_extents(&extents, &mut payload);
        put(out, Told::Done, cookie, &payload, at);
    }

    fn put_size(&self, out: &mut BytesMut, size: u64, at: Position) {
        put(out, Told::Size, 0, &size.to_le_bytes(), at);
    }
}

#[cfg(test)]
#[path = "dialect_tests.rs"]
mod tests;
