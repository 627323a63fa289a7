// SPDX-License-Identifier: Apache-2.0
//! Requests of an edge and the replies of a volume's owner.
//!
//! ```text
//! request (40)  magic 4 "VREQ" | kind 1 | flags 1 | 0 2 | id 8 | offset 8 | length 8 | crc of payload 4 | crc of the header before it 4 | payload (WRITE: length)
//! reply (48)    magic 4 "VREP" | kind 1 | status 1 | 0 2 | id 8 | sequence 8 | safe 8 | length 4 | crc of payload 4 | 0 4 | crc of the header before it 4 | payload (length)
//! ```
//!
//! Replies come in any order. `sequence` is a change at or behind which the request's own stands, and `safe` the change up to which nothing can be lost, both
//! of the epoch of the connection: whoever was answered a write keeps it until `safe` has reached its `sequence`. A reply of status 0 carries what was
//! asked: the data of a read, the extents of a status. Any other status is the number of an error kind, and the payload says why.
//! A **notice** (id 0) is told without having been asked for.

use crate::{Result, WireError, kinds};
use bytes::BufMut;
use varve_format::crc::crc;
use varve_types::{ErrorKind, Sequence};

/// Bytes of a request without its payload.
pub const REQUEST_BYTES: usize = 40;
/// Bytes of a reply without its payload.
pub const REPLY_BYTES: usize = 48;
/// Most bytes of one read or write.
pub const MAX_DATA: u64 = 32 << 20;
/// Longest text of an error.
pub const MAX_TEXT: usize = 1024;
/// Most extents of one reply.
pub const MAX_EXTENTS: usize = 4096;
/// Bytes of an extent: `length 8 | state 4 | 0 4`.
pub const EXTENT_BYTES: usize = 16;
/// Offsets and lengths are multiples of this.
pub const UNIT: u64 = 512;
/// Flag of changes: answer when it is on stable media.
pub const FLAG_FUA: u8 = 1;
/// Flag of a status: one extent.
pub const FLAG_ONE: u8 = 2;

const REQUEST_MAGIC: u32 = u32::from_le_bytes(*b"VREQ");
const REPLY_MAGIC: u32 = u32::from_le_bytes(*b"VREP");
const REQUEST: &str = "request";
const REPLY: &str = "reply";

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Give bytes.
    Read,
    /// Take bytes.
    Write,
    /// Make what was answered stable.
    Flush,
    /// Free a range.
    Discard,
    /// Make a range zero.
    WriteZeroes,
    /// Tell what a range holds.
    Status,
    /// Bring a range into the cache.
    Prefetch,
    /// Say that you are there. Answered at once, whatever else waits.
    Ping,
    /// The edge gives the volume up. The last request; answered once nothing of the session is left.
    Detach,
}

const ASKS: [Ask; 9] = [
    Ask::Read,
    Ask::Write,
    Ask::Flush,
    Ask::Discard,
    Ask::WriteZeroes,
    Ask::Status,
    Ask::Prefetch,
    Ask::Ping,
    Ask::Detach,
];

impl Ask {
    fn number(self) -> u8 {
        ASKS.iter().position(|ask| *ask == self).map_or(0, |at| at as u8 + 1)
    }

    /// Whether it changes the volume.
    #[must_use]
    pub const fn is_change(self) -> bool {
        matches!(self, Self::Write | Self::Discard | Self::WriteZeroes)
    }
}

/// A request without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked.
    pub ask: Ask,
    /// `FLAG_…`.
    pub flags: u8,
    /// What the edge calls it: never 0, and of no other request under way.
    pub id: u64,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes.
    pub length: u64,
    /// Checksum of the payload.
    pub payload_crc: u32,
}

impl Request {
    /// Bytes of its payload.
    #[must_use]
    pub const fn payload(&self) -> usize {
        match self.ask {
            Ask::Write => self.length as usize,
            _ => 0,
        }
    }

    /// Appends it.
    pub fn encode(&self, out: &mut impl BufMut) {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_le_bytes());
        bytes[4] = self.ask.number();
        bytes[5] = self.flags;
        bytes[8..16].copy_from_slice(&self.id.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.length.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.payload_crc.to_le_bytes());
        let sum = crc(&bytes[..36]);
        bytes[36..].copy_from_slice(&sum.to_le_bytes());
        out.put_slice(&bytes);
    }

    /// Reads one from the beginning of `bytes`; none while there are too few.
    ///
    /// # Errors
    /// `NotVarve`, `Damaged`, `TooLong`, `Senseless`: the connection is of no more use.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>> {
        let Some(bytes) = bytes.first_chunk::<REQUEST_BYTES>() else { return Ok(None) };
        check_head(REQUEST, bytes, REQUEST_MAGIC)?;
        let known = usize::from(bytes[4]).checked_sub(1).and_then(|at| ASKS.get(at));
        let Some(ask) = known.copied() else {
            return Err(WireError::senseless(REQUEST, format!("{} is no kind of it", bytes[4])));
        };
        let this = Self {
            ask,
            flags: bytes[5],
            id: eight(bytes, 8),
            offset: eight(bytes, 16),
            length: eight(bytes, 24),
            payload_crc: four(bytes, 32),
        };
        if matches!(ask, Ask::Read | Ask::Write) && this.length > MAX_DATA {
            return Err(WireError::TooLong { what: REQUEST, length: this.length, most: MAX_DATA });
        }
        if this.id == 0 || this.offset.checked_add(this.length).is_none() {
            return Err(WireError::senseless(REQUEST, "its id is 0, or it ends beyond all volumes"));
        }
        Ok(Some(this))
    }

    /// Proves the payload.
    ///
    /// # Errors
    /// `Damaged`.
    pub fn verify(&self, payload: &[u8]) -> Result<()> {
        verify("request's payload", payload, self.payload_crc)
    }
}

/// What is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// A request was done.
    Done,
    /// A request has failed; the payload says why.
    Failed(ErrorKind),
    /// Notice: the volume has another size; the payload is eight bytes of it.
    Size,
    /// Notice: this node will serve the volume no longer; the payload is the address to ask instead, or nothing.
    Leave,
}

const KIND_REPLY: u8 = 1;
const KIND_SIZE: u8 = 2;
const KIND_LEAVE: u8 = 3;

/// A reply without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// What is told.
    pub told: Told,
    /// Of which request; 0 for a notice.
    pub id: u64,
    /// A change at or behind which that of the request stands.
    pub sequence: Sequence,
    /// Up to which change nothing can be lost.
    pub safe: Sequence,
    /// Bytes of the payload.
    pub length: u32,
    /// Checksum of the payload.
    pub payload_crc: u32,
}

impl Reply {
    /// The header's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; REPLY_BYTES] {
        let (kind, status) = match self.told {
            Told::Done => (KIND_REPLY, 0),
            Told::Failed(error) => (KIND_REPLY, kinds::number(error)),
            Told::Size => (KIND_SIZE, 0),
            Told::Leave => (KIND_LEAVE, 0),
        };
        let mut bytes = [0; REPLY_BYTES];
        bytes[..4].copy_from_slice(&REPLY_MAGIC.to_le_bytes());
        (bytes[4], bytes[5]) = (kind, status);
        bytes[8..16].copy_from_slice(&self.id.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.safe.0.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.length.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.payload_crc.to_le_bytes());
        let sum = crc(&bytes[..44]);
        bytes[44..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Gives a header, that was made for no payload, the length and the checksum of the payload that stands behind it now.
    pub fn finish(head: &mut [u8; REPLY_BYTES], payload: &[u8]) {
        head[32..36].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        head[36..40].copy_from_slice(&crc(payload).to_le_bytes());
        let sum = crc(&head[..44]);
        head[44..].copy_from_slice(&sum.to_le_bytes());
    }

    /// Reads one from the beginning of `bytes`; none while there are too few.
    ///
    /// # Errors
    /// `NotVarve`, `Damaged`, `TooLong`, `Senseless`: the connection is of no more use.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>> {
        let Some(bytes) = bytes.first_chunk::<REPLY_BYTES>() else { return Ok(None) };
        check_head(REPLY, bytes, REPLY_MAGIC)?;
        let told = match (bytes[4], bytes[5]) {
            (KIND_REPLY, 0) => Told::Done,
            (KIND_REPLY, status) => Told::Failed(kinds::kind(status)),
            (KIND_SIZE, _) => Told::Size,
            (KIND_LEAVE, _) => Told::Leave,
            (other, _) => return Err(WireError::senseless(REPLY, format!("{other} is no kind of it"))),
        };
        let this = Self {
            told,
            id: eight(bytes, 8),
            sequence: Sequence(eight(bytes, 16)),
            safe: Sequence(eight(bytes, 24)),
            length: four(bytes, 32),
            payload_crc: four(bytes, 36),
        };
        let most = match told {
            Told::Done => MAX_DATA,
            Told::Failed(_) | Told::Leave => MAX_TEXT as u64,
            Told::Size => 8,
        };
        if u64::from(this.length) > most {
            return Err(WireError::TooLong { what: REPLY, length: this.length.into(), most });
        }
        if matches!(told, Told::Done | Told::Failed(_)) == (this.id == 0) || this.safe > this.sequence {
            return Err(WireError::senseless(REPLY, "its numbers do not fit each other"));
        }
        Ok(Some(this))
    }

    /// Proves the payload.
    ///
    /// # Errors
    /// `Damaged`.
    pub fn verify(&self, payload: &[u8]) -> Result<()> {
        verify("reply's payload", payload, self.payload_crc)
    }
}

/// A run of bytes in the same state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes.
    pub length: u64,
    /// Whether nothing is stored there.
    pub hole: bool,
}

/// Appends extents, [`MAX_EXTENTS`] at most.
pub fn put_extents(extents: &[Extent], out: &mut impl BufMut) {
    for extent in &extents[..extents.len().min(MAX_EXTENTS)] {
        out.put_u64_le(extent.length);
        out.put_u64_le(u64::from(extent.hole));
    }
}

/// Reads the payload of a status' reply.
///
/// # Errors
/// `Senseless` for one that is none.
pub fn get_extents(payload: &[u8]) -> Result<Vec<Extent>> {
    let (extents, rest) = payload.as_chunks::<EXTENT_BYTES>();
    if extents.is_empty() || extents.len() > MAX_EXTENTS || !rest.is_empty() {
        return Err(WireError::senseless("row of extents", format!("it has {} bytes", payload.len())));
    }
    let get = |bytes: &[u8; EXTENT_BYTES]| Extent { length: eight(bytes, 0), hole: bytes[8] & 1 == 1 };
    Ok(extents.iter().map(get).collect())
}

/// The checksum of a payload.
#[must_use]
pub fn payload_crc(payload: &[u8]) -> u32 {
    crc(payload)
}

fn verify(what: &'static str, payload: &[u8], sum: u32) -> Result<()> {
    if crc(payload) == sum { Ok(()) } else { Err(WireError::Damaged { what }) }
}

/// Proves a header: its magic, and its checksum in its last four bytes.
fn check_head(what: &'static str, bytes: &[u8], magic: u32) -> Result<()> {
    let body = bytes.len() - 4;
    if four(bytes, body) == crc(&bytes[..body]) && four(bytes, 0) == magic {
        return Ok(());
    }
    if four(bytes, 0) == magic {
        return Err(WireError::Damaged { what });
    }
    Err(WireError::NotVarve { what, found: four(bytes, 0).to_le_bytes() })
}

fn four(bytes: &[u8], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(four)
}

fn eight(bytes: &[u8], at: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(eight)
}

#[cfg(test)]
#[path = "transmission_tests.rs"]
mod tests;
