// SPDX-License-Identifier: Apache-2.0
//! The frame of the messages with which a connection begins. Its layout never changes, so that two sides of any versions can tell each other why they can
//! not work together.
//!
//! ```text
//! magic 8 "VARVEWIR" | newest 2 | oldest 2 | kind 2 | 0 2 | length 4 | crc of body 4 | 0 4 | crc of the header before it 4 | body (length)
//! ```
//!
//! `newest` and `oldest` are the versions that the sender speaks; the connection uses the newest that both do.

use crate::{Result, WireError};
use bytes::Bytes;
use varve_format::crc::crc;

/// Newest version of the protocols that this build speaks.
pub const NEWEST: u16 = 1;
/// Oldest one.
pub const OLDEST: u16 = 1;
/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 32;
/// Most bytes of a body.
pub const MAX_BODY: u32 = 64 << 10;

const MAGIC: &[u8; 8] = b"VARVEWIR";
const WHAT: &str = "greeting";

/// What a greeting is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An edge asks for a volume: [`crate::attach::Attach`].
    Attach,
    /// It has it: [`crate::attach::Attached`].
    Attached,
    /// What was asked is refused: [`crate::attach::Refused`].
    Refused,
    /// A node asks another one to keep copies: [`crate::mirror::MirrorHello`].
    MirrorHello,
    /// It does: [`crate::mirror::MirrorWelcome`].
    MirrorWelcome,
}

impl Kind {
    const fn number(self) -> u16 {
        match self {
            Self::Attach => 1,
            Self::Attached => 2,
            Self::Refused => 3,
            Self::MirrorHello => 4,
            Self::MirrorWelcome => 5,
        }
    }

    const fn of(number: u16) -> Option<Self> {
        match number {
            1 => Some(Self::Attach),
            2 => Some(Self::Attached),
            3 => Some(Self::Refused),
            4 => Some(Self::MirrorHello),
            5 => Some(Self::MirrorWelcome),
            _ => None,
        }
    }
}

/// A header that was proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Newest version of the sender.
    pub newest: u16,
    /// Oldest one.
    pub oldest: u16,
    /// The number of its kind: a newer version may have others.
    kind: u16,
    /// Bytes of the body.
    pub length: u32,
    crc: u32,
}

impl Header {
    /// Reads one.
    ///
    /// # Errors
    /// `NotVarve` for anybody else's bytes, `Damaged`, `TooLong`.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self> {
        if &bytes[..8] != MAGIC {
            return Err(WireError::NotVarve { what: WHAT, found: four(bytes, 0) });
        }
        if u32::from_le_bytes(four(bytes, 28)) != crc(&bytes[..28]) {
            return Err(WireError::Damaged { what: WHAT });
        }
        let two = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let length = u32::from_le_bytes(four(bytes, 16));
        if length > MAX_BODY {
            return Err(WireError::TooLong { what: WHAT, length: length.into(), most: MAX_BODY.into() });
        }
        let this =
            Self { newest: two(8), oldest: two(10), kind: two(12), length, crc: u32::from_le_bytes(four(bytes, 20)) };
        if this.oldest > this.newest {
            return Err(WireError::senseless(
                WHAT,
                format!("its oldest version {} is above its newest {}", this.oldest, this.newest),
            ));
        }
        Ok(this)
    }

    /// The version that both sides use.
    ///
    /// # Errors
    /// `Version` when there is none.
    pub fn version(&self) -> Result<u16> {
        let common = self.newest.min(NEWEST);
        if common < self.oldest.max(OLDEST) {
            return Err(WireError::Version {
                oldest: self.oldest,
                newest: self.newest,
                ours_oldest: OLDEST,
                ours_newest: NEWEST,
            });
        }
        Ok(common)
    }

    /// What it is. To be asked after [`version`](Self::version).
    ///
    /// # Errors
    /// `Senseless` for a kind that is not known.
    pub fn kind(&self) -> Result<Kind> {
        Kind::of(self.kind).ok_or_else(|| WireError::senseless(WHAT, format!("{} is no kind of it", self.kind)))
    }

    /// Proves the body.
    ///
    /// # Errors
    /// `Damaged`.
    pub fn verify(&self, body: &[u8]) -> Result<()> {
        if body.len() != self.length as usize || crc(body) != self.crc {
            return Err(WireError::Damaged { what: "greeting's body" });
        }
        Ok(())
    }
}

/// A greeting, ready to be sent. `body` is cut nowhere: it has at most [`MAX_BODY`] bytes by the bounds of what is in it.
pub(crate) fn frame(kind: Kind, body: &[u8]) -> Bytes {
    debug_assert!(body.len() <= MAX_BODY as usize, "{} bytes", body.len());
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(MAGIC);
    for number in [NEWEST, OLDEST, kind.number(), 0] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    for number in [body.len() as u32, crc(body), 0] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    let own = crc(&bytes);
    bytes.extend_from_slice(&own.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes.into()
}

fn four(bytes: &[u8], at: usize) -> [u8; 4] {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    four
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(bytes: &[u8]) -> [u8; HEADER_BYTES] {
        bytes[..HEADER_BYTES].try_into().unwrap()
    }

    #[test]
    fn what_was_framed_is_read_back_and_every_flipped_bit_is_told() {
        let whole = frame(Kind::Refused, b"why not");
        let read = Header::decode(&header(&whole)).unwrap();
        assert_eq!((read.version().unwrap(), read.kind().unwrap(), read.length), (NEWEST, Kind::Refused, 7));
        read.verify(&whole[HEADER_BYTES..]).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let told = Header::decode(&header(&bytes)).and_then(|header| header.verify(&bytes[HEADER_BYTES..]));
            assert!(told.is_err(), "bit {bit}");
        }
    }

    #[test]
    fn other_versions_are_told_apart() {
        let with = |newest: u16, oldest: u16| {
            let mut bytes = header(&frame(Kind::Attach, b""));
            bytes[8..10].copy_from_slice(&newest.to_le_bytes());
            bytes[10..12].copy_from_slice(&oldest.to_le_bytes());
            let sum = crc(&bytes[..28]);
            bytes[28..].copy_from_slice(&sum.to_le_bytes());
            Header::decode(&bytes)
        };
        assert_eq!(with(NEWEST + 5, OLDEST).unwrap().version(), Ok(NEWEST));
        let newer = with(NEWEST + 5, NEWEST + 1).unwrap().version().unwrap_err();
        assert!(newer.to_string().contains("upgrade"), "{newer}");
        assert!(with(0, 0).unwrap().version().is_err());
        assert!(with(1, 2).is_err());
    }

    #[test]
    fn strangers_are_told_apart_from_damage() {
        let mut http = [b' '; HEADER_BYTES];
        http[..14].copy_from_slice(b"GET / HTTP/1.1");
        assert!(matches!(Header::decode(&http), Err(WireError::NotVarve { .. })));
    }
}
