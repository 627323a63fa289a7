// SPDX-License-Identifier: Apache-2.0
//! A walk over all nodes and blocks of a tree in order, for counting anew, for freeing what no root reaches, and for flattening.
//!
//! The walk keeps only a block number and, level by level, the nodes that were given to it: at most four, so walking a tree of any size takes
//! little RAM. A cold node is either given to the walk alone ([`Walk::supply`]) or installed in the tree. It may stop anywhere and go on
//! later. A tree that changes on the way is walked as it is at each step: blocks before the position are not looked at again.

use super::interior::{Node, Slot};
use super::{BLOCK_END, NodePath, ROOT_LEVEL, Tree, entry_of, first_of, span};
use varve_format::{FormatError, NODE_ENTRIES, Pointer};

/// What comes next on a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// This node is entered; parents come before their children. The pointer is absent when the node is dirty.
    Node(NodePath),
    /// These blocks lie there; a run ends with its leaf at the latest.
    Run {
        /// The first block.
        block: u64,
        /// How many.
        blocks: u64,
        /// Where the first lies; the others follow it.
        pointer: Pointer,
    },
    /// This node is needed to go on: it has to be supplied, or installed in the tree, or skipped.
    Cold(NodePath),
    /// There is nothing more.
    End,
}

/// A walk and where it stands.
#[derive(Debug)]
pub struct Walk {
    /// The next block to look at.
    next: u64,
    /// By level: the first block of the node that was entered last.
    entered: [Option<u64>; ROOT_LEVEL as usize + 1],
    /// By level: the node that was supplied last.
    supplied: [Option<(NodePath, Node)>; ROOT_LEVEL as usize + 1],
}

impl Walk {
    /// A walk from `block` on. The nodes above it are entered too.
    #[must_use]
    pub fn from(block: u64) -> Self {
        Self { next: block, entered: Default::default(), supplied: Default::default() }
    }

    /// The next block to look at: a walk from there on continues this one.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.next
    }

    /// Takes the bytes of a node that a step asked for, for this walk alone.
    ///
    /// # Errors
    /// When the bytes are not a node of that level, or not one that can have been written there.
    pub fn supply(&mut self, path: NodePath, bytes: &[u8]) -> Result<(), FormatError> {
        self.supplied[usize::from(path.level)] = Some((path, Node::load(&path, bytes)?));
        Ok(())
    }

    /// Goes on behind the node, without looking into it.
    pub fn skip(&mut self, path: &NodePath) {
        self.next = self.next.max(path.first_block + span(path.level));
    }

    /// Goes on to the next step. A cold node that was not supplied is asked for again.
    pub fn step(&mut self, tree: &Tree) -> Step {
        while self.next < BLOCK_END {
            match self.descend(tree) {
                Ok(step) => return step,
                Err(end) => self.next = end,
            }
        }
        Step::End
    }

    /// Goes down to the next block; the error is the block to go on from when nothing is here.
    fn descend(&mut self, tree: &Tree) -> Result<Step, u64> {
        let block = self.next;
        let mut slot = tree.root.as_ref().ok_or(BLOCK_END)?;
        let mut level = ROOT_LEVEL;
        loop {
            let path = NodePath { level, first_block: first_of(level, block), pointer: slot.pointer() };
            let entered = &mut self.entered[usize::from(level)];
            if *entered != Some(path.first_block) {
                *entered = Some(path.first_block);
                return Ok(Step::Node(path));
            }
            let node = match (slot, &self.supplied[usize::from(level)]) {
                (Slot::Loaded { node, .. }, _) => node,
                (Slot::Cold(_), Some((held, node))) if *held == path => node,
                (Slot::Cold(_), _) => return Ok(Step::Cold(path)),
            };
            match node {
                Node::Leaf(leaf) => {
                    let (pointer, len) = leaf.run_at(entry_of(0, block), NODE_ENTRIES);
                    let blocks = len as u64;
                    if pointer.is_absent() {
                        return Err(block + blocks);
                    }
                    self.next = block + blocks;
                    return Ok(Step::Run { block, blocks, pointer });
                }
                Node::Interior(interior) => {
                    let at = entry_of(level, block);
                    let next = interior.next_present(at) as u64;
                    slot = interior.get(at).ok_or(path.first_block + next * span(level - 1))?;
                    level -= 1;
                }
            }
        }
    }
}
