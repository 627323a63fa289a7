// SPDX-License-Identifier: Apache-2.0
//! Writing a root: every dirty node gets its place in the store and its bytes are handed out.
//!
//! Nodes are written children first, in the order of their blocks, with indexes that grow; so a parent's bytes name its children's places,
//! and an equal tree with equal changes gives equal bytes. Dirty nodes are found from the root through dirty nodes alone. A written node is
//! clean at once, which is also the memory of how far a root has come: a slice goes down to the first dirty node again.
//!
//! A root may be written behind the changes that it comes from: up to a block before which nothing is changed any more, again and again
//! ([`Tree::write_behind`]), so that what is dirty at a time does not grow with the changes. The bytes are the same as if it were written at the end.
//!
//! Between the slices of a root the tree may be looked up, loaded into and evicted from; it may be changed only from the block on up to which
//! the root is written, since any other change would soil nodes that the root has just been given. Whoever takes the bytes keeps them until
//! they are in the store, and then says so ([`Tree::stored`], [`Tree::stored_before`]): until then
//! the nodes stay in RAM, as they could not be loaded. If putting them is given up, the tree is given up too.

use super::interior::{Node, Slot};
use super::{BLOCK_END, ROOT_LEVEL, Tree, first_of, span};
use varve_format::{Lineage, NodePointer, encode_interior};
use varve_types::RootNumber;

/// How far the writing of a root has come.
#[derive(Debug)]
pub struct WriteCursor {
    lineage: Lineage,
    root: RootNumber,
    next_index: u32,
    /// How many nodes are written.
    nodes: u32,
}

impl WriteCursor {
    /// Writes the next root as `root` of the timeline at `lineage`, its nodes from `first_index` on.
    #[must_use]
    pub fn new(lineage: Lineage, root: RootNumber, first_index: u32) -> Self {
        Self { lineage, root, next_index: first_index, nodes: 0 }
    }

    /// The place of the node that is written next.
    #[must_use]
    pub fn next(&self) -> NodePointer {
        NodePointer::new(self.lineage, self.root, self.next_index)
    }

    /// How many nodes are written.
    #[must_use]
    pub const fn nodes(&self) -> u32 {
        self.nodes
    }

    /// Goes on with a larger index.
    pub fn skip_to(&mut self, index: u32) {
        assert!(self.next_index <= index, "the indexes of a root grow");
        self.next_index = index;
    }
}

/// A root that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Where it lies: an older root when nothing had changed, absent when the tree is empty.
    pub root: NodePointer,
    /// How many nodes were written.
    pub nodes: u32,
}

impl Tree {
    /// Writes at most `most_nodes` (at least 1) of the dirty nodes that end at or before `before`, the first block of a leaf, and tells whether
    /// that was the last of them. Nothing before that block may be changed any more until all of the root is written. `emit` takes a node's
    /// index, level, first block and bytes.
    pub fn write_behind(
        &mut self,
        cursor: &mut WriteCursor,
        before: u64,
        most_nodes: usize,
        emit: &mut impl FnMut(u32, u8, u64, &[u8]),
    ) -> bool {
        assert!(first_of(0, before) == before && before >= self.written_to, "a root is written leaf by leaf, in order");
        let room = (NodePointer::INDEX_END - cursor.next_index) as usize;
        assert!(self.ledger.dirty_nodes <= room, "the bound of the overlay keeps a root below 2^22 new nodes");
        if self.ledger.dirty_nodes > 0 {
            self.unstored.get_or_insert_with(|| cursor.next());
        }
        self.written_to = before;
        let mut slice = Slice { cursor, before, left: most_nodes.max(1) };
        let nodes = slice.cursor.nodes;
        let done = self.root.as_mut().is_none_or(|slot| slice.write(slot, ROOT_LEVEL, 0, emit));
        self.ledger.dirty_nodes -= (cursor.nodes - nodes) as usize;
        done
    }

    /// Writes at most `most_nodes` (at least 1) of the dirty nodes, and tells when that was the last of them. The first call for a root needs
    /// room for all: next index + [`Tree::dirty_nodes`] is at most [`NodePointer::INDEX_END`].
    pub fn write_some(
        &mut self,
        cursor: &mut WriteCursor,
        most_nodes: usize,
        emit: &mut impl FnMut(u32, u8, u64, &[u8]),
    ) -> Option<Written> {
        if !self.write_behind(cursor, BLOCK_END, most_nodes, emit) {
            return None;
        }
        self.written_to = 0;
        assert_eq!(self.ledger.dirty_nodes, 0, "all dirty nodes are reached from the root through dirty nodes");
        let root = self.root_pointer().expect("a root without dirty nodes has its place");
        Some(Written { root, nodes: cursor.nodes })
    }

    /// Writes all dirty nodes in one go; see [`Tree::write_some`].
    pub fn write_root(
        &mut self,
        lineage: Lineage,
        root: RootNumber,
        first_index: u32,
        emit: &mut impl FnMut(u32, u8, u64, &[u8]),
    ) -> Written {
        let mut cursor = WriteCursor::new(lineage, root, first_index);
        self.write_some(&mut cursor, usize::MAX, emit).expect("a slice without bound writes everything")
    }
}

/// The part of a root that a call writes.
struct Slice<'a> {
    cursor: &'a mut WriteCursor,
    before: u64,
    left: usize,
}

impl Slice<'_> {
    /// Writes the dirty nodes of a subtree and tells whether all of them are written that end before the slice does.
    fn write(
        &mut self,
        slot: &mut Slot,
        level: u8,
        first_block: u64,
        emit: &mut impl FnMut(u32, u8, u64, &[u8]),
    ) -> bool {
        let Slot::Loaded { pointer, node } = slot else { return true };
        if !pointer.is_absent() || first_block >= self.before {
            return true;
        }
        if let Node::Interior(interior) = node {
            for (at, child) in interior.iter_mut().filter(|(_, child)| child.is_dirty()) {
                let first = first_block + at as u64 * span(level - 1);
                if first >= self.before {
                    break;
                }
                if !self.write(child, level - 1, first, emit) {
                    return false;
                }
            }
        }
        if first_block + span(level) > self.before {
            return true;
        }
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        let (index, place) = (self.cursor.next_index, self.cursor.next());
        match node {
            Node::Leaf(leaf) => emit(index, level, first_block, leaf.as_bytes()),
            Node::Interior(interior) => emit(index, level, first_block, &encode_interior(level, &interior.children())),
        }
        *pointer = place;
        self.cursor.next_index += 1;
        self.cursor.nodes += 1;
        true
    }
}
