// SPDX-License-Identifier: Apache-2.0
//! A region of a cache device: the head that says which blocks lie in it.
//!
//! A device is a row of regions of [`REGION`] bytes. Each begins with a head of [`HEAD`] bytes; behind it are [`FRAMES`] frames of
//! one block. Nothing of it is ever the only copy, so no order of writes and no sync is asked for: a head that is damaged, or of a
//! version that is not known, is a region without blocks, and a frame that does not have the checksum of its entry is no block.

use crate::FormatError;
use crate::codec::{Decoder, Encoder};
use crate::crc::{crc, is_whole};
use varve_types::{BLOCK, Ordinal, TimelineId};

/// Bytes of a region.
pub const REGION: u64 = 4 << 20;
/// Bytes of its head.
pub const HEAD: u64 = 36 << 10;
/// Frames of a region.
pub const FRAMES: usize = ((REGION - HEAD) / BLOCK) as usize;

const MAGIC: &[u8; 8] = b"VARVECCH";
const VERSION: u32 = 1;
/// Bytes in front of the entries, and of one of them.
const FRONT: usize = 64;
const ENTRY: usize = 32;
/// Highest ordinal, as in a pointer.
const MAX_ORDINAL: u64 = (1 << 36) - 1;

/// Which block a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Timeline of its segment.
    pub timeline: TimelineId,
    /// Ordinal of its segment.
    pub ordinal: Ordinal,
    /// Its number in the segment.
    pub block: u16,
    /// Its checksum, plain.
    pub sum: u32,
}

/// The head of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionHead {
    /// Which region of the device it is, from 0.
    pub number: u32,
    /// Of two that name the same block the one with the higher sequence is newer.
    pub sequence: u64,
    /// Whether its blocks were used again after they had come; else they have come for the first time.
    pub main: bool,
    /// The blocks in its frames, from the first on; at most [`FRAMES`]. `None`: no block any more.
    pub entries: Vec<Option<Entry>>,
}

impl RegionHead {
    /// Its [`HEAD`] bytes.
    ///
    /// # Panics
    /// When there are more entries than frames.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.entries.len() <= FRAMES, "a region has {FRAMES} frames");
        let mut e = Encoder::new();
        e.raw(MAGIC);
        e.u32(VERSION);
        e.u32(0);
        e.u32(self.number);
        e.u32(self.entries.len() as u32);
        e.u64(self.sequence);
        e.u32(u32::from(self.main));
        e.raw(&[0; FRONT - 36]);
        for entry in &self.entries {
            let Some(entry) = entry else {
                e.raw(&[0; ENTRY]);
                continue;
            };
            e.timeline(entry.timeline);
            e.u64(entry.ordinal.0);
            e.u32(u32::from(entry.block));
            e.u32(entry.sum);
        }
        let mut bytes = e.finish();
        bytes.resize(HEAD as usize, 0);
        let sum = crc(&bytes);
        bytes[12..16].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Whether bytes that were found in front of a device can be a cache's: its own, or zeroes of a new one.
    #[must_use]
    pub fn may_be_ours(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC) || bytes.iter().all(|byte| *byte == 0)
    }

    /// Reads the head of region `number`.
    ///
    /// # Errors
    /// When it is damaged, another's, or of a version that is not known.
    pub fn decode(bytes: &[u8], number: u32) -> Result<Self, FormatError> {
        let mut d = Decoder::new("head of a cache region", bytes);
        if bytes.len() as u64 != HEAD || &d.array::<8>()? != MAGIC {
            return Err(d.corrupt("it does not begin with VARVECCH"));
        }
        let (version, sum) = (d.u32()?, d.u32()?);
        let is_whole = is_whole(bytes, VERSION, sum);
        if version != VERSION {
            return Err(FormatError::version("a cache device", version, VERSION, is_whole));
        }
        if !is_whole {
            return Err(d.corrupt("its checksum does not match"));
        }
        let (found, count, sequence, main) = (d.u32()?, d.u32()? as usize, d.u64()?, d.u32()?);
        let rest = &bytes[FRONT.min(bytes.len())..];
        if found != number || count > FRAMES || main > 1 || d.array::<{ FRONT - 36 }>()? != [0; FRONT - 36] {
            return Err(d.corrupt("it is another's, or its front makes no sense"));
        }
        if rest[count * ENTRY..].iter().any(|byte| *byte != 0) {
            return Err(d.corrupt("there is something behind its entries"));
        }
        let mut entries = Vec::with_capacity(count);
        for entry in rest.chunks(ENTRY).take(count) {
            if entry.iter().all(|byte| *byte == 0) {
                d.raw(ENTRY)?;
                entries.push(None);
                continue;
            }
            let (timeline, ordinal, block, sum) = (TimelineId::from_bytes(d.array()?), d.u64()?, d.u32()?, d.u32()?);
            let block = u16::try_from(block).map_err(|_| d.corrupt("an entry's block is out of range"))?;
            if ordinal > MAX_ORDINAL {
                return Err(d.corrupt("an entry's ordinal is out of range"));
            }
            entries.push(Some(Entry { timeline, ordinal: Ordinal(ordinal), block, sum }));
        }
        Ok(Self { number, sequence, main: main == 1, entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(count: usize) -> RegionHead {
        let entry = |at: usize| {
            let (timeline, ordinal) = (TimelineId::from_bytes([at as u8; 16]), Ordinal(at as u64 * 3));
            (at % 7 != 3).then_some(Entry { timeline, ordinal, block: at as u16, sum: at as u32 * 7 + 1 })
        };
        RegionHead { number: 3, sequence: 9, main: true, entries: (0..count).map(entry).collect() }
    }

    #[test]
    fn comes_back_and_any_flipped_bit_is_seen() {
        assert!(FRONT + FRAMES * ENTRY <= HEAD as usize && HEAD + FRAMES as u64 * BLOCK <= REGION);
        for count in [0, 1, FRAMES] {
            let head = head(count);
            let bytes = head.encode();
            assert_eq!(bytes.len() as u64, HEAD);
            assert_eq!(RegionHead::decode(&bytes, 3).unwrap(), head);
            assert!(RegionHead::decode(&bytes, 4).is_err(), "a head in another region's place");
            assert!(RegionHead::may_be_ours(&bytes));
            for place in (0..1024).chain((1024..bytes.len() * 8).step_by(1009)) {
                let mut bad = bytes.clone();
                bad[place / 8] ^= 1 << (place % 8);
                assert!(RegionHead::decode(&bad, 3).is_err(), "bit {place}");
            }
        }
    }

    #[test]
    fn what_is_not_ours_is_told_apart() {
        assert!(RegionHead::may_be_ours(&[0; 4096]));
        assert!(!RegionHead::may_be_ours(b"\x7fELF, or a file system"));
        assert!(RegionHead::decode(&vec![0; HEAD as usize], 0).is_err());
        assert!(RegionHead::decode(&[], 0).is_err());
    }
}
