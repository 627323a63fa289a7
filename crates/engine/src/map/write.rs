// SPDX-License-Identifier: Apache-2.0
//! Writing a root: every dirty node gets its place in the store and its bytes are handed out.
//!
//! Nodes are written children first, in the order of their blocks, with indexes that grow; so a parent's bytes name its children's places,
//! and an equal tree with equal changes gives equal bytes. Dirty nodes are found from the root through dirty nodes alone. A written node is
//! clean at once, which is also the memory of how far a root has come: a slice goes down to the first dirty node again.
//!
//! Between the slices of a root the tree may be looked up, loaded into and evicted from, but not changed: a change would soil nodes that the
//! root has just been given. Whoever takes the bytes keeps them until they are in the store, and then says so ([`Tree::stored`]): until then
//! the nodes stay in RAM, as they could not be loaded. If putting them is given up, the tree is given up too.

use super::interior::{Node, Slot};
use super::{ROOT_LEVEL, Tree, span};
use varve_format::{Lineage, NodePointer, encode_interior};
use varve_types::RootNumber;

/// How far the writing of a root has come.
#[derive(Debug)]
pub struct WriteCursor {
    lineage: Lineage,
    root: RootNumber,
    first_index: u32,
    next_index: u32,
}

impl WriteCursor {
    /// Writes the next root as `root` of the timeline at `lineage`, its nodes from `first_index` on.
    #[must_use]
    pub fn new(lineage: Lineage, root: RootNumber, first_index: u32) -> Self {
        Self { lineage, root, first_index, next_index: first_index }
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
    /// Writes at most `most_nodes` (at least 1) of the dirty nodes, and tells when that was the last of them. `emit` takes a node's index,
    /// level, first block and bytes. The first call for a root needs room for all: first index + [`Tree::dirty_nodes`] is at most
    /// [`NodePointer::INDEX_END`].
    pub fn write_some(
        &mut self,
        cursor: &mut WriteCursor,
        most_nodes: usize,
        emit: &mut impl FnMut(u32, u8, u64, &[u8]),
    ) -> Option<Written> {
        let room = (NodePointer::INDEX_END - cursor.next_index) as usize;
        assert!(self.ledger.dirty_nodes <= room, "the bound of the overlay keeps a root below 2^22 new nodes");
        let first = || NodePointer::new(cursor.lineage, cursor.root, cursor.first_index);
        if self.ledger.dirty_nodes > 0 {
            self.unstored.get_or_insert_with(first);
        }
        let mut left = most_nodes.max(1);
        let before = cursor.next_index;
        let done = self.root.as_mut().is_none_or(|slot| write(slot, ROOT_LEVEL, 0, cursor, &mut left, emit));
        self.ledger.dirty_nodes -= (cursor.next_index - before) as usize;
        self.writing = !done;
        let root = self.root_pointer().filter(|_| done)?;
        assert_eq!(self.ledger.dirty_nodes, 0, "all dirty nodes are reached from the root through dirty nodes");
        Some(Written { root, nodes: cursor.next_index - cursor.first_index })
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

/// Writes the dirty nodes of a subtree and tells whether all of them are written.
fn write(
    slot: &mut Slot,
    level: u8,
    first_block: u64,
    cursor: &mut WriteCursor,
    left: &mut usize,
    emit: &mut impl FnMut(u32, u8, u64, &[u8]),
) -> bool {
    let Slot::Loaded { pointer, node } = slot else { return true };
    if !pointer.is_absent() {
        return true;
    }
    if let Node::Interior(interior) = node {
        for (at, child) in interior.iter_mut().filter(|(_, child)| child.is_dirty()) {
            if !write(child, level - 1, first_block + at as u64 * span(level - 1), cursor, left, emit) {
                return false;
            }
        }
    }
    if *left == 0 {
        return false;
    }
    *left -= 1;
    let index = cursor.next_index;
    match node {
        Node::Leaf(leaf) => emit(index, level, first_block, leaf.as_bytes()),
        Node::Interior(interior) => emit(index, level, first_block, &encode_interior(level, &interior.children())),
    }
    *pointer = NodePointer::new(cursor.lineage, cursor.root, index);
    cursor.next_index += 1;
    true
}
