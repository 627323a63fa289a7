// SPDX-License-Identifier: Apache-2.0
//! The map of a volume: block of the volume → [`Pointer`], a copy-on-write page table of fixed height.
//!
//! [`Tree`] holds what of the map is in RAM. It does no I/O: where a node that is not in RAM is needed, the call answers with its
//! [`NodePath`], the caller loads the node's bytes, gives them to [`Tree::install`], and calls again. Reads ask the tree last, behind the layer
//! and the overlay; checkpoints change it, in slices, and write a root after each boundary.
//!
//! Level 0 is the leaves (512 blocks each), levels 1 to 3 are interior (512 children each), so a tree covers 2^36 blocks. A subtree without
//! blocks does not exist: its place is absent. A node in the store is never changed; changing a clean node makes it and all nodes above it
//! dirty, and each such node, and each block that is replaced, is told once to the [`Kills`] of the caller. A clean subtree that a large hole
//! covers may be told as one, unread, by its topmost node. So between two roots
//!
//! - every node that the older root holds is held by the newer one too, or was told as a node kill or lies in a subtree that was told, and
//!   only one of these;
//! - every block of the older root is in the newer one at the same place, or was told as a kill or lies in a subtree that was told.
//!
//! Nothing here survives a crash, and nothing needs to: the tree is built again from the root that the manifest names, and the overlay from
//! the segments behind it.

mod detach;
mod evict;
#[cfg(test)]
mod evict_tests;
mod interior;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod rewrite_tests;
#[cfg(test)]
mod size_tests;
mod tree;
mod walk;
mod write;

pub use detach::{Content, look_into};
pub use evict::Pass;
pub use tree::Tree;
pub use walk::{Step, Walk};
pub use write::{WriteCursor, Written};

use varve_format::{NODE_ENTRIES, NodePointer, Pointer};
use varve_types::Ordinal;

/// Level of the root.
pub const ROOT_LEVEL: u8 = 3;
/// The first block that no tree covers.
pub const BLOCK_END: u64 = span(ROOT_LEVEL);

/// Blocks that a node of `level` covers.
#[must_use]
pub const fn span(level: u8) -> u64 {
    (NODE_ENTRIES as u64) << (9 * level as u32)
}

/// The first block of the node of `level` that covers `block`.
#[must_use]
pub const fn first_of(level: u8, block: u64) -> u64 {
    block & !(span(level) - 1)
}

/// Which entry of a node of `level` leads to `block`.
const fn entry_of(level: u8, block: u64) -> usize {
    (block >> (9 * level as u32)) as usize % NODE_ENTRIES
}

/// A node and its place in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodePath {
    /// 0 for a leaf, [`ROOT_LEVEL`] for the root.
    pub level: u8,
    /// The first block that the node covers, a multiple of [`span`] of its level.
    pub first_block: u64,
    /// Where the node lies; absent for one that is dirty and was not written yet.
    pub pointer: NodePointer,
}

/// What the map says of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// It lies there.
    Found(Pointer),
    /// Nothing is there: it reads as zeroes.
    Absent {
        /// So many blocks from here on, at least, are absent.
        blocks: u64,
    },
    /// This node has to be loaded and installed first.
    Cold(NodePath),
}

/// A run of blocks gets new pointers, or loses those that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The first block.
    pub start_block: u64,
    /// How many blocks; at least 1, and all in one leaf.
    pub blocks: u32,
    /// Data: the pointer of the first block, those of the others follow it. A hole: the blocks become absent. Never absence itself, as the
    /// ordinal is the death of what is replaced.
    pub pointer: Pointer,
}

/// What [`Tree::apply`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Blocks whose pointer is another one now; 0 when the tree was left as it is.
    pub changed_blocks: u32,
}

/// How far [`Tree::remove_range`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// All blocks of the range before this one are gone; the end of the range when it is done.
    pub next_block: u64,
    /// The node to load and install before going on from `next_block`, if that is why it stopped.
    pub cold: Option<NodePath>,
}

/// Takes what the tree needs no longer. Blocks and nodes of every lineage are told; only those of the timeline's own are kills, so it is the
/// taker who drops the others.
pub trait Kills {
    /// `blocks` consecutive blocks from `first` on were replaced by segment `death`, or by a hole that it brought.
    fn blocks(&mut self, first: Pointer, blocks: u32, death: Ordinal);
    /// The root that is written next does not hold this node.
    fn node(&mut self, node: NodePointer);
    /// The root that is written next does not hold this node nor anything below it; all blocks below it were removed by segment `death`. None of
    /// them, and none of the nodes, is told alone.
    fn subtree(&mut self, top: NodePath, death: Ordinal);
}
