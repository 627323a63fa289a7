// SPDX-License-Identifier: Apache-2.0
//! The read cache of a shard, in RAM: verified blocks under (timeline, ordinal, block), so clones share what they
//! inherit and nothing is ever invalidated.
//!
//! Fixed frames in slabs that are allocated as they are needed, replaced by the clock algorithm: a frame that was
//! used since the hand passed it stays for a round. Each frame keeps the plain checksum of its block, and a hit is
//! verified before it is given out.

use varve_format::crc::crc;
use varve_types::branch::{Branch, reached};
use varve_types::mutant::{Mutant, planted};
use varve_types::{BLOCK, Ordinal, TimelineId};

const BLOCK_LEN: usize = BLOCK as usize;
/// Frames of a slab: 1 MiB.
const SLAB_FRAMES: usize = 256;

/// The frame of each key.
#[allow(
    clippy::disallowed_types,
    reason = "it is looked up by key and never walked, so its random order shows nowhere"
)]
type Index = std::collections::HashMap<CacheKey, u32>;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CacheKey {
    pub timeline: TimelineId,
    pub ordinal: Ordinal,
    pub block: u16,
}

#[derive(Clone, Copy)]
struct Frame {
    key: CacheKey,
    sum: u32,
    used: bool,
}

/// Hits and misses since the start, and what is in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct CacheCounts {
    /// Blocks that were found.
    pub hits: u64,
    /// Blocks that were not.
    pub misses: u64,
    /// Blocks that failed verification, and were dropped.
    pub damaged: u64,
    /// Blocks held.
    pub blocks: u64,
}

/// See the module.
pub(crate) struct BlockCache {
    frames: Vec<Frame>,
    slabs: Vec<Box<[u8]>>,
    index: Index,
    most: usize,
    hand: usize,
    counts: CacheCounts,
}

impl BlockCache {
    /// A cache of at most so many bytes; at least one slab.
    pub fn new(bytes: u64) -> Self {
        let most = usize::try_from(bytes / BLOCK).unwrap_or(usize::MAX).max(SLAB_FRAMES);
        Self {
            frames: Vec::new(),
            slabs: Vec::new(),
            index: Index::new(),
            most,
            hand: 0,
            counts: CacheCounts::default(),
        }
    }

    fn bytes(&self, frame: usize) -> &[u8] {
        let at = frame % SLAB_FRAMES * BLOCK_LEN;
        &self.slabs[frame / SLAB_FRAMES][at..at + BLOCK_LEN]
    }

    /// Counts blocks that were looked for: each once, though a read may look again when it has waited.
    pub fn count(&mut self, hits: u64, misses: u64) {
        self.counts.hits += hits;
        self.counts.misses += misses;
    }

    /// The block and its checksum, if it is there and whole.
    pub fn get(&mut self, key: &CacheKey) -> Option<(&[u8], u32)> {
        let frame = *self.index.get(key)? as usize;
        let sum = self.frames[frame].sum;
        if crc(self.bytes(frame)) != sum && !planted(Mutant::TrustCachedBlocks) {
            reached(Branch::CacheDamaged);
            self.counts.damaged += 1;
            self.index.remove(key);
            return None;
        }
        self.frames[frame].used = true;
        Some((self.bytes(frame), sum))
    }

    /// Puts a verified block in.
    pub fn insert(&mut self, key: CacheKey, block: &[u8], sum: u32) {
        debug_assert_eq!(block.len(), BLOCK_LEN);
        if self.index.contains_key(&key) {
            return;
        }
        let frame = self.frame();
        self.index.insert(key, frame as u32);
        let new = Frame { key, sum, used: false };
        if frame == self.frames.len() {
            self.frames.push(new)
        } else {
            self.frames[frame] = new
        }
        let at = frame % SLAB_FRAMES * BLOCK_LEN;
        self.slabs[frame / SLAB_FRAMES][at..at + BLOCK_LEN].copy_from_slice(block);
    }

    /// Flips a bit of a block that is held, chosen by `place`; what failing RAM does. Tells whether there was one.
    #[cfg(feature = "generator")]
    pub fn spoil(&mut self, place: u64) -> bool {
        let held = (self.frames.len() * BLOCK_LEN) as u64;
        let Some(at) = place.checked_rem(held) else { return false };
        let (frame, byte) = (at as usize / BLOCK_LEN, at as usize % BLOCK_LEN);
        self.slabs[frame / SLAB_FRAMES][frame % SLAB_FRAMES * BLOCK_LEN + byte] ^= 1 << (place % 8);
        true
    }

    /// A frame to fill: a new one, or the first that was not used for a round.
    fn frame(&mut self) -> usize {
        if self.frames.len() < self.most {
            if self.frames.len() == self.slabs.len() * SLAB_FRAMES {
                self.slabs.push(vec![0; SLAB_FRAMES * BLOCK_LEN].into_boxed_slice());
            }
            return self.frames.len();
        }
        loop {
            let frame = self.hand;
            self.hand = (self.hand + 1) % self.frames.len();
            if !std::mem::take(&mut self.frames[frame].used) {
                reached(Branch::CacheEviction);
                let key = self.frames[frame].key;
                if self.index.get(&key) == Some(&(frame as u32)) {
                    self.index.remove(&key);
                }
                return frame;
            }
        }
    }

    /// Counts.
    pub fn counts(&self) -> CacheCounts {
        CacheCounts { blocks: self.index.len() as u64, ..self.counts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(block: u16) -> CacheKey {
        CacheKey { timeline: TimelineId::from_bytes([1; 16]), ordinal: Ordinal(1), block }
    }

    #[test]
    fn keeps_what_is_used_and_never_more_than_its_size() {
        let mut cache = BlockCache::new(1 << 20);
        for n in 0..300u16 {
            let block = vec![n as u8; BLOCK_LEN];
            cache.insert(key(n), &block, crc(&block));
            assert!(cache.get(&key(0)).is_some(), "a block in use stays ({n})");
        }
        assert_eq!((cache.frames.len(), cache.index.len()), (256, 256));
        assert_eq!(cache.get(&key(299)).unwrap().0, [43; BLOCK_LEN]);
    }

    #[test]
    fn a_damaged_frame_is_a_miss() {
        let mut cache = BlockCache::new(1 << 20);
        let block = vec![7; BLOCK_LEN];
        cache.insert(key(1), &block, crc(&block));
        cache.slabs[0][100] ^= 1;
        assert!(cache.get(&key(1)).is_none());
        assert_eq!(cache.counts().damaged, 1);
    }
}
