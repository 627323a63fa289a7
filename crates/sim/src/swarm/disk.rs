// SPDX-License-Identifier: Apache-2.0
//! What a volume should hold, as stamps by block: small enough to copy for every snapshot.
//!
//! Blocks of zeroes are not kept, and nothing behind the size. A change is what a client asked for; it can be made to the whole disk or to one block alone,
//! which is how what a crash left is explained.

use super::stamp::{BLOCK, Block, SECTOR, SECTORS};
use std::collections::BTreeMap;
use std::ops::Range;

const ZEROES: Block = [0; SECTORS];

/// What a client asked for. Offsets and lengths are multiples of a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Write {
        offset: u64,
        len: u64,
        stamp: u64,
    },
    Zero {
        offset: u64,
        len: u64,
    },
    /// From one size to another.
    Resize {
        from: u64,
        to: u64,
    },
}

impl Change {
    /// The bytes that it changes.
    pub(super) fn range(&self) -> Range<u64> {
        match *self {
            Self::Write { offset, len, .. } | Self::Zero { offset, len } => offset..offset + len,
            Self::Resize { from, to } => to.min(from)..from.next_multiple_of(BLOCK).max(to.min(from)),
        }
    }

    /// Makes the change in one block.
    pub(super) fn apply_to(&self, number: u64, block: &mut Block) {
        let range = self.range();
        let value = match self {
            Self::Write { stamp, .. } => *stamp,
            Self::Zero { .. } | Self::Resize { .. } => 0,
        };
        for (at, sector) in block.iter_mut().enumerate() {
            if range.contains(&(number * BLOCK + at as u64 * SECTOR)) {
                *sector = value;
            }
        }
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) size: u64,
    blocks: BTreeMap<u64, Block>,
}

impl Disk {
    pub(super) fn new(size: u64) -> Self {
        Self { size, blocks: BTreeMap::new() }
    }

    pub(super) fn block(&self, number: u64) -> Block {
        self.blocks.get(&number).copied().unwrap_or(ZEROES)
    }

    pub(super) fn set(&mut self, number: u64, block: Block) {
        if block == ZEROES {
            self.blocks.remove(&number);
        } else {
            self.blocks.insert(number, block);
        }
    }

    /// Numbers of the blocks that are not zeroes.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u64> {
        self.blocks.keys().copied()
    }

    /// The blocks that a change touches in a way that could show: all of a write's, of others those that hold something.
    pub(super) fn touched(&self, change: &Change) -> Vec<u64> {
        let Range { start, end } = change.range();
        let blocks = start / BLOCK..end.div_ceil(BLOCK);
        match change {
            Change::Write { .. } => blocks.collect(),
            Change::Zero { .. } | Change::Resize { .. } if blocks.is_empty() => Vec::new(),
            Change::Zero { .. } | Change::Resize { .. } => {
                self.blocks.range(blocks).map(|(number, _)| *number).collect()
            }
        }
    }

    pub(super) fn apply(&mut self, change: &Change) {
        for number in self.touched(change) {
            let mut block = self.block(number);
            change.apply_to(number, &mut block);
            self.set(number, block);
        }
        if let Change::Resize { to, .. } = change {
            self.size = *to;
        }
    }

    /// The first block in which the two differ.
    pub(super) fn difference(&self, other: &Self) -> Option<u64> {
        let all = self.numbers().chain(other.numbers());
        all.filter(|number| self.block(*number) != other.block(*number)).min()
    }
}
