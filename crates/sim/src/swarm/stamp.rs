// SPDX-License-Identifier: Apache-2.0
//! Bytes that say who wrote them, and where.
//!
//! Each write has a stamp, and each sector that it writes holds bytes that follow from the stamp and the sector's place on the volume alone. So a model
//! keeps eight bytes for a sector instead of 512, and a sector that is read tells whether it is whole, at its place, and of which write. Stamp 0 is a
//! sector of zeroes. Every second stamp gives bytes that compress well.

/// Bytes of a sector.
pub(super) const SECTOR: u64 = 512;
/// Bytes of a block.
pub(super) const BLOCK: u64 = 4096;
/// Sectors of a block.
pub(super) const SECTORS: usize = (BLOCK / SECTOR) as usize;

/// What a block holds: a stamp for each of its sectors.
pub(super) type Block = [u64; SECTORS];

const WORD: usize = 8;
const ODD: u64 = 0x9E37_79B9_7F4A_7C15;

/// The first word of a sector, which tells its stamp.
const fn first_word(stamp: u64, sector: u64) -> u64 {
    stamp << 24 | (sector.wrapping_mul(ODD) >> 40)
}

/// The bytes of a sector.
fn sector_of(stamp: u64, sector: u64) -> [u8; SECTOR as usize] {
    let mut bytes = [0; SECTOR as usize];
    if stamp == 0 {
        return bytes;
    }
    let step = if stamp.is_multiple_of(2) { 0 } else { ODD };
    let mut value = (stamp ^ sector.rotate_left(32)).wrapping_mul(ODD);
    for word in bytes.as_chunks_mut().0 {
        value = value.wrapping_add(step);
        *word = (value ^ (value >> 29)).to_le_bytes();
    }
    bytes[..WORD].copy_from_slice(&first_word(stamp, sector).to_le_bytes());
    bytes
}

/// The bytes of a write of `len` bytes at `offset`, both multiples of a sector.
pub(super) fn bytes_of(stamp: u64, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len as usize);
    for sector in offset / SECTOR..(offset + len) / SECTOR {
        bytes.extend_from_slice(&sector_of(stamp, sector));
    }
    bytes
}

/// The stamp of a sector's bytes, or `None` when they are no write's at this place, whole.
pub(super) fn stamp_of(bytes: &[u8], sector: u64) -> Option<u64> {
    let stamp = u64::from_le_bytes(bytes[..WORD].try_into().expect("eight bytes")) >> 24;
    (sector_of(stamp, sector) == bytes).then_some(stamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_tell_their_stamp_at_their_place_only() {
        for stamp in [0, 1, 2, 77, 1 << 38] {
            let bytes = bytes_of(stamp, 3 * SECTOR, 2 * SECTOR);
            assert_eq!(stamp_of(&bytes[..512], 3), Some(stamp));
            assert_eq!(stamp_of(&bytes[512..], 4), Some(stamp));
            assert_eq!(stamp_of(&bytes[512..], 5).is_some(), stamp == 0);
            let mut torn = bytes.clone();
            torn[511] ^= 1;
            assert_eq!(stamp_of(&torn[..512], 3), None);
        }
    }
}
