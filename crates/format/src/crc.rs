// SPDX-License-Identifier: Apache-2.0
//! Checksums: CRC-32C (Castagnoli; RFC 3720, appendix B.4), bound to what the bytes are.
//!
//! What is stored beside bytes is `crc(bytes) XOR crc(identity)`, where the identity is the tuple of numbers that
//! says which bytes should be there (timeline, ordinal, block; journal and position; root number and index). CRC is
//! linear, so this equals a CRC that was started from the identity; but the plain CRC of a block can be computed
//! once, when it arrives, and be bound anew wherever the block goes. Bytes that are whole but in the wrong place
//! fail like damaged ones.

use varve_types::TimelineId;
use varve_types::mutant::{Mutant, planted};

/// The plain CRC-32C of bytes.
#[must_use]
pub fn crc(bytes: &[u8]) -> u32 {
    // The checksum is computed in 64 bits by the library; CRC-32C uses the lower half.
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// Whether a header of 8 bytes of magic, version and checksum, and what follows, has this checksum as version `version`.
pub(crate) fn is_whole(header: &[u8], version: u32, sum: u32) -> bool {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    for part in [&header[..8], &version.to_le_bytes(), &[0; 4], &header[16..]] {
        digest.update(part);
    }
    digest.finalize() as u32 == sum
}

/// What bytes are, as 32 bits to bind their checksum with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity(u32);

/// The kinds of things that have an identity; they keep equal numbers of different things apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Domain {
    /// Block of a segment: timeline, ordinal, block.
    Block = 1,
    /// Compressed chunk of a segment: timeline, ordinal, first block.
    Chunk = 2,
    /// Record of a page object: timeline, number, part and index.
    Page = 3,
    /// Record of a journal: journal, position.
    Journal = 4,
    /// Compressed chunk of a share of a bundle: timeline, ordinal, first block.
    Share = 5,
}

impl Identity {
    /// The identity of a thing: its domain, its owner's id, two numbers.
    #[must_use]
    pub fn new(domain: Domain, owner: [u8; 16], a: u64, b: u64) -> Self {
        let mut bytes = [0u8; 33];
        bytes[0] = domain as u8;
        bytes[1..17].copy_from_slice(&owner);
        bytes[17..25].copy_from_slice(&a.to_le_bytes());
        bytes[25..].copy_from_slice(&b.to_le_bytes());
        Self(crc(&bytes))
    }
    /// The identity of a block of a segment.
    #[must_use]
    pub fn block(timeline: TimelineId, ordinal: u64, block: u32) -> Self {
        Self::new(Domain::Block, timeline.to_bytes(), ordinal, u64::from(block))
    }
    /// The bound form of a plain checksum; and, since it is its own inverse, the plain form of a bound one.
    #[must_use]
    pub fn bind(self, plain: u32) -> u32 {
        if planted(Mutant::UnboundChecksums) { plain } else { plain ^ self.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_crc_32c() {
        // RFC 3720, B.4: 32 bytes of zeroes, of ones, ascending.
        assert_eq!(crc(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc(&[0xff; 32]), 0x62a8_ab43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc(&ascending), 0x46dd_794e);
    }

    #[test]
    fn the_same_bytes_elsewhere_differ() {
        let owner = TimelineId::from_bytes([7; 16]);
        let plain = crc(b"block");
        let here = Identity::block(owner, 5, 6).bind(plain);
        assert_ne!(here, Identity::block(owner, 6, 5).bind(plain));
        assert_ne!(here, Identity::new(Domain::Chunk, owner.to_bytes(), 5, 6).bind(plain));
        assert_eq!(Identity::block(owner, 5, 6).bind(here), plain);
    }
}
