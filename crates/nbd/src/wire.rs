// SPDX-License-Identifier: Apache-2.0
//! Requests and replies of the transmission phase, byte by byte. Everything is big-endian.
//!
//! ```text
//! request (28)       magic 4 | flags 2 | command 2 | cookie 8 | offset 8 | length 4 | payload (WRITE: length)
//! simple reply (16)  magic 4 | error 4 | cookie 8 | data (READ without structured replies: length)
//! chunk (20)         magic 4 | flags 2 | type 2 | cookie 8 | length 4 | payload
//!   OFFSET_DATA        offset 8 | data
//!   BLOCK_STATUS       context 4 | (length 4 | state 4)…
//!   ERROR              error 4 | text length 2 | text
//!   ERROR_OFFSET       error 4 | text length 2 | text | offset 8
//! ```
//!
//! Decoding is a pure function of the bytes at hand and allocates nothing. Names are those of the specification without `NBD_`.

use bytes::{BufMut, BytesMut};

/// Begins every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Begins every simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Begins every chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Bytes of a request without its payload.
pub const REQUEST_BYTES: usize = 28;
/// Bytes of a simple reply without data.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes of the header of a chunk.
pub const CHUNK_BYTES: usize = 20;
/// Bytes between the header of a data chunk and its data.
pub const DATA_OFFSET_BYTES: usize = 8;
/// Longest text of an error that is sent; the specification allows 4,096 bytes.
pub const MAX_ERROR_TEXT: usize = 1024;

/// Smallest unit and alignment of a request.
pub const MIN_BLOCK: u32 = 512;
/// What clients should use at least.
pub const PREFERRED_BLOCK: u32 = 4096;
/// Most bytes of one read or write.
pub const MAX_BLOCK: u32 = 32 << 20;

/// Transmission flags: there are flags.
pub const FLAG_HAS_FLAGS: u16 = 1;
/// The export takes no writes.
pub const FLAG_READ_ONLY: u16 = 1 << 1;
/// FLUSH may be sent.
pub const FLAG_SEND_FLUSH: u16 = 1 << 2;
/// The flag FUA may be sent.
pub const FLAG_SEND_FUA: u16 = 1 << 3;
/// TRIM may be sent.
pub const FLAG_SEND_TRIM: u16 = 1 << 5;
/// `WRITE_ZEROES` may be sent.
pub const FLAG_SEND_WRITE_ZEROES: u16 = 1 << 6;
/// The flag DF may be sent.
pub const FLAG_SEND_DF: u16 = 1 << 7;
/// Several connections see the same device, flushes included.
pub const FLAG_CAN_MULTI_CONN: u16 = 1 << 8;
/// CACHE may be sent.
pub const FLAG_SEND_CACHE: u16 = 1 << 10;
/// The flag `FAST_ZERO` may be sent.
pub const FLAG_SEND_FAST_ZERO: u16 = 1 << 11;

/// Command flag: answer when it is on stable media.
pub const CMD_FLAG_FUA: u16 = 1;
/// Command flag of `WRITE_ZEROES`: keep the range allocated.
pub const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
/// Command flag of READ: one chunk of data at most.
pub const CMD_FLAG_DF: u16 = 1 << 2;
/// Command flag of `BLOCK_STATUS`: one extent.
pub const CMD_FLAG_REQ_ONE: u16 = 1 << 3;
/// Command flag of `WRITE_ZEROES`: fail if it is no faster than writing.
pub const CMD_FLAG_FAST_ZERO: u16 = 1 << 4;

/// Chunk flag: the last of its reply.
pub const REPLY_FLAG_DONE: u16 = 1;
/// Chunk without payload.
pub const REPLY_TYPE_NONE: u16 = 0;
/// Chunk of data.
pub const REPLY_TYPE_OFFSET_DATA: u16 = 1;
/// Chunk of extents.
pub const REPLY_TYPE_BLOCK_STATUS: u16 = 5;
/// Chunk that says that the request failed.
pub const REPLY_TYPE_ERROR: u16 = (1 << 15) + 1;
/// Chunk that says where the request failed.
pub const REPLY_TYPE_ERROR_OFFSET: u16 = (1 << 15) + 2;

/// Extent state: nothing is allocated there.
pub const STATE_HOLE: u32 = 1;
/// Extent state: it reads as zeroes.
pub const STATE_ZERO: u32 = 2;

/// Not permitted.
pub const EPERM: u32 = 1;
/// Input or output failed.
pub const EIO: u32 = 5;
/// The request is wrong.
pub const EINVAL: u32 = 22;
/// No room.
pub const ENOSPC: u32 = 28;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Give bytes.
    Read,
    /// Take bytes.
    Write,
    /// The client leaves.
    Disconnect,
    /// Make what was answered stable.
    Flush,
    /// Free a range.
    Trim,
    /// Bring a range into the cache.
    Cache,
    /// Make a range zero.
    WriteZeroes,
    /// Tell what a range holds.
    BlockStatus,
    /// A command that this server does not know.
    Unknown(u16),
}

impl Command {
    /// The command of a number.
    #[must_use]
    pub const fn from_number(number: u16) -> Self {
        match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            other => Self::Unknown(other),
        }
    }
    /// The number of the command.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::Cache => 5,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
            Self::Unknown(other) => other,
        }
    }
}

/// A request without its payload, as it was sent: nothing of it is checked but the magic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// `CMD_FLAG_…` bits.
    pub flags: u16,
    /// What is asked.
    pub command: Command,
    /// The client's name of the request, given back in the reply.
    pub cookie: u64,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes.
    pub length: u32,
}

/// A message that does not begin as the protocol says: what follows it can not be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a request begins with {found:#010x} and not with {REQUEST_MAGIC:#010x}")]
pub struct BadMagic {
    /// What stood there.
    pub found: u32,
}

impl Request {
    /// The request at the beginning of `bytes`, or none if there are less than [`REQUEST_BYTES`].
    ///
    /// # Errors
    /// When the magic is wrong, which the first four bytes tell.
    #[inline]
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, BadMagic> {
        let Some(magic) = bytes.first_chunk::<4>() else { return Ok(None) };
        let found = u32::from_be_bytes(*magic);
        if found != REQUEST_MAGIC {
            return Err(BadMagic { found });
        }
        let Some(header) = bytes.first_chunk::<REQUEST_BYTES>() else { return Ok(None) };
        let [_, _, _, _, f0, f1, c0, c1, cookie @ .., l0, l1, l2, l3] = *header;
        let mut words = [[0; 8]; 2];
        words[0].copy_from_slice(&cookie[..8]);
        words[1].copy_from_slice(&cookie[8..]);
        Ok(Some(Self {
            flags: u16::from_be_bytes([f0, f1]),
            command: Command::from_number(u16::from_be_bytes([c0, c1])),
            cookie: u64::from_be_bytes(words[0]),
            offset: u64::from_be_bytes(words[1]),
            length: u32::from_be_bytes([l0, l1, l2, l3]),
        }))
    }

    /// Appends the request as a client sends it.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u32(REQUEST_MAGIC);
        out.put_u16(self.flags);
        out.put_u16(self.command.number());
        out.put_u64(self.cookie);
        out.put_u64(self.offset);
        out.put_u32(self.length);
    }

    /// Whether a flag is set.
    #[must_use]
    pub const fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// Appends a simple reply without data; `error` is 0 for success.
#[inline]
pub fn put_simple_reply(out: &mut BytesMut, error: u32, cookie: u64) {
    let mut reply = [0; SIMPLE_REPLY_BYTES];
    reply[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    reply[4..8].copy_from_slice(&error.to_be_bytes());
    reply[8..].copy_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&reply);
}

/// Appends the header of a chunk whose payload is `length` bytes.
pub fn put_chunk(out: &mut BytesMut, flags: u16, kind: u16, cookie: u64, length: u32) {
    out.put_u32(STRUCTURED_REPLY_MAGIC);
    out.put_u16(flags);
    out.put_u16(kind);
    out.put_u64(cookie);
    out.put_u32(length);
}

/// Appends what stands before the `length` bytes of a data chunk. `length` is at most [`MAX_BLOCK`].
#[inline]
pub fn put_data_chunk(out: &mut BytesMut, flags: u16, cookie: u64, offset: u64, length: u32) {
    let mut head = [0; CHUNK_BYTES + DATA_OFFSET_BYTES];
    head[..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    head[4..6].copy_from_slice(&flags.to_be_bytes());
    head[6..8].copy_from_slice(&REPLY_TYPE_OFFSET_DATA.to_be_bytes());
    head[8..16].copy_from_slice(&cookie.to_be_bytes());
    head[16..20].copy_from_slice(&(length + DATA_OFFSET_BYTES as u32).to_be_bytes());
    head[20..].copy_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&head);
}

/// Appends a whole chunk that says that a request failed: at `offset`, if that is known. The text is cut to [`MAX_ERROR_TEXT`].
pub fn put_error_chunk(out: &mut BytesMut, flags: u16, cookie: u64, error: u32, text: &str, offset: Option<u64>) {
    let text = &text[..text.floor_char_boundary(MAX_ERROR_TEXT)];
    let kind = if offset.is_some() { REPLY_TYPE_ERROR_OFFSET } else { REPLY_TYPE_ERROR };
    let length = 6 + text.len() + if offset.is_some() { 8 } else { 0 };
    put_chunk(out, flags, kind, cookie, length as u32);
    out.put_u32(error);
    out.put_u16(text.len() as u16);
    out.put_slice(text.as_bytes());
    if let Some(offset) = offset {
        out.put_u64(offset);
    }
}

/// Appends a whole chunk of extents, each (length, state).
pub fn put_status_chunk(out: &mut BytesMut, flags: u16, cookie: u64, context: u32, extents: &[(u32, u32)]) {
    put_chunk(out, flags, REPLY_TYPE_BLOCK_STATUS, cookie, 4 + 8 * extents.len() as u32);
    out.put_u32(context);
    for (length, state) in extents {
        out.put_u32(*length);
        out.put_u32(*state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Request {
        let (cookie, offset) = (0x0102_0304_0506_0708, 0x1112_1314_1516_1718);
        Request { flags: CMD_FLAG_FUA, command: Command::Write, cookie, offset, length: 0x2122_2324 }
    }

    #[test]
    fn a_request_has_the_bytes_of_the_specification() {
        let mut bytes = BytesMut::new();
        sample().encode(&mut bytes);
        let expected = [
            0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18,
            0x21, 0x22, 0x23, 0x24,
        ];
        assert_eq!(bytes[..], expected);
        assert_eq!(Request::decode(&bytes).unwrap(), Some(sample()));
        bytes.put_u8(9);
        assert_eq!(Request::decode(&bytes).unwrap(), Some(sample()), "bytes behind it do not matter");
    }

    #[test]
    fn a_truncated_request_is_no_request_and_a_wrong_magic_is_seen_at_once() {
        let mut bytes = BytesMut::new();
        sample().encode(&mut bytes);
        for length in 0..REQUEST_BYTES {
            assert_eq!(Request::decode(&bytes[..length]).unwrap(), None, "{length} bytes");
        }
        bytes[0] ^= 1;
        for length in 4..=REQUEST_BYTES {
            assert_eq!(Request::decode(&bytes[..length]).unwrap_err().found, 0x2460_9513);
        }
    }

    #[test]
    fn every_command_keeps_its_number() {
        for number in 0..=u16::MAX {
            assert_eq!(Command::from_number(number).number(), number);
        }
        assert_eq!(Command::from_number(8), Command::Unknown(8));
    }

    #[test]
    fn replies_have_the_bytes_of_the_specification() {
        let mut out = BytesMut::new();
        put_simple_reply(&mut out, EINVAL, 0x0102);
        assert_eq!(out[..], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 22, 0, 0, 0, 0, 0, 0, 1, 2]);
        out.clear();
        put_data_chunk(&mut out, REPLY_FLAG_DONE, 7, 512, 1024);
        let head = [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 4, 8];
        assert_eq!(out[..20], head);
        assert_eq!(out[20..], 512u64.to_be_bytes());
        out.clear();
        put_status_chunk(&mut out, REPLY_FLAG_DONE, 7, 1, &[(512, 0), (1024, 3)]);
        assert_eq!(out[16..20], 20u32.to_be_bytes());
        assert_eq!(out[20..], [0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 3]);
    }

    #[test]
    fn the_text_of_an_error_is_cut_between_characters() {
        let mut out = BytesMut::new();
        put_error_chunk(&mut out, REPLY_FLAG_DONE, 7, EIO, "no", Some(9));
        assert_eq!(out[16..26], [0, 0, 0, 16, 0, 0, 0, 5, 0, 2]);
        assert_eq!(out[26..], [b'n', b'o', 0, 0, 0, 0, 0, 0, 0, 9]);
        out.clear();
        put_error_chunk(&mut out, REPLY_FLAG_DONE, 7, EIO, &"é".repeat(MAX_ERROR_TEXT), None);
        assert_eq!(out.len(), CHUNK_BYTES + 6 + MAX_ERROR_TEXT);
        out.clear();
        put_error_chunk(&mut out, REPLY_FLAG_DONE, 7, EIO, &format!("a{}", "é".repeat(MAX_ERROR_TEXT)), None);
        assert_eq!(out.len(), CHUNK_BYTES + 6 + MAX_ERROR_TEXT - 1);
        assert!(std::str::from_utf8(&out[26..]).is_ok());
    }
}
