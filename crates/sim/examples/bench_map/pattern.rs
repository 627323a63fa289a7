// SPDX-License-Identifier: Apache-2.0
//! What generated segments hold: which blocks of the volume, and which bytes.
//!
//! All of it is a function of a few numbers, so that nothing has to be kept: the store makes the index of a
//! segment, and the bytes of each of its blocks, anew whenever
//! it is asked for them.

use std::ops::Range;
use varve_format::segment::{IndexExtent, SegmentIndex};
use varve_types::BLOCK;

/// Blocks of a generated segment: 64 MiB, the default of a layer.
pub const SEGMENT_BLOCKS: u64 = 16_384;

/// In which order a volume is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Every block once, from the first to the last.
    Sequence,
    /// Every block once, in an order without any order: the segments of one volume size make it full.
    Shuffle,
    /// Each block drawn from all of the volume, as if none had been drawn before.
    Uniform,
    /// So many segments scattered over the volume, each over a part of its own.
    Scatter(u64),
}

/// A segment: the `number`th of a volume of `blocks` blocks that is written in `order`.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    /// The order.
    pub order: Order,
    /// Blocks of the volume, a power of two and at least [`SEGMENT_BLOCKS`].
    pub blocks: u64,
    /// Number of the segment in that order.
    pub number: u64,
}

/// A number whose bits all depend on all bits of `x` (the finisher of SplitMix64, by Steele, Lea and Flood, OOPSLA
/// 2014).
pub const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A permutation of the numbers below `blocks`: every step can be undone.
fn shuffle(blocks: u64, mut x: u64) -> u64 {
    let (mask, half) = (blocks - 1, blocks.trailing_zeros() / 2);
    for odd in [0x9e37_79b9_7f4a_7c15_u64, 0xd6e8_feb8_6659_fd93, 0xa076_1d64_78bd_642f] {
        x = x.wrapping_mul(odd) & mask;
        x ^= x >> half;
    }
    x
}

impl Pattern {
    /// The index of the segment.
    pub fn index(self) -> SegmentIndex {
        let first = self.number * SEGMENT_BLOCKS;
        if self.order == Order::Sequence {
            let extent = IndexExtent { start: first % self.blocks, blocks: SEGMENT_BLOCKS, hole: false };
            return SegmentIndex { extents: vec![extent], ..SegmentIndex::default() };
        }
        let all = first..first + SEGMENT_BLOCKS;
        let mut blocks: Vec<u64> = match self.order {
            Order::Scatter(segments) => {
                let part = self.blocks / segments;
                let first = self.number % segments * part;
                all.map(|at| first + (mix(at + 1) & (part - 1))).collect()
            }
            Order::Uniform => all.map(|at| mix(at + 1) & (self.blocks - 1)).collect(),
            Order::Sequence | Order::Shuffle => all.map(|at| shuffle(self.blocks, at & (self.blocks - 1))).collect(),
        };
        blocks.sort_unstable();
        // A block that is overwritten within a layer is in its segment once.
        blocks.dedup();
        let extents = blocks.into_iter().map(|start| IndexExtent { start, blocks: 1, hole: false }).collect();
        SegmentIndex { extents, ..SegmentIndex::default() }
    }
}

/// The block of the volume that is block `at` of a segment.
pub fn block_at(index: &SegmentIndex, mut at: u64) -> Option<u64> {
    for extent in &index.extents {
        if at < extent.blocks {
            return Some(extent.start + at);
        }
        at -= extent.blocks;
    }
    None
}

/// Which block of the segment is a block of the volume.
pub fn find(index: &SegmentIndex, block: u64) -> Option<u64> {
    let behind = index.extents.partition_point(|extent| extent.start <= block);
    let at = behind.checked_sub(1)?;
    let extent = index.extents[at];
    let before = if extent.blocks == 1 { at as u64 } else { index.extents[..at].iter().map(|e| e.blocks).sum() };
    (block < extent.start + extent.blocks).then(|| before + block - extent.start)
}

/// The bytes of block `at` of segment `ordinal`, which lies at `block` of the volume.
pub fn bytes_of(ordinal: u64, at: u64, block: u64) -> Vec<u8> {
    let seed = mix((ordinal << 20) ^ at) ^ block;
    let words: Range<u64> = 0..BLOCK / 8;
    words.flat_map(|word| mix(seed.wrapping_add(word)).to_le_bytes()).collect()
}
