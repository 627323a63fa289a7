// SPDX-License-Identifier: Apache-2.0
//! What leaves RAM of a tree: clean nodes that were not looked at for a while.
//!
//! A hand goes over the nodes of level 1 that are in RAM, as in the clock algorithm: a leaf that was looked at since the hand came by last
//! stays for a round, every other one becomes cold; so does the node itself once nothing below it is in RAM. Lookups note what they pass with
//! one bit in the node above, so they cost the same as before, and no list is kept. Nodes of level 2 and above stay: of a volume of 64 TiB
//! these are 129 nodes, two MiB.
//!
//! Always holds: what leaves RAM can be loaded again. So a dirty node stays, and so does one that was written and that the store may not
//! have yet ([`Tree::stored`], [`Tree::stored_before`]); whoever evicts knows of every object that was put since, whether a manifest names it or
//! not. And whoever asks for a node gets on: a node of level 1 below which one is being loaded stays, so what comes finds its place, and stays until
//! the hand has passed it twice.

use super::interior::{Interior, Ledger, Node, Slot};
use super::{BLOCK_END, ROOT_LEVEL, Tree, entry_of, first_of, span};
use varve_format::{NODE_ENTRIES, NodePointer};
use varve_types::branch::{Branch, reached_if};
use varve_types::mutant::{Mutant, planted};

/// What a pass of the hand did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Bytes of RAM that it freed.
    pub freed_bytes: usize,
    /// Nodes that became cold.
    pub nodes: usize,
    /// Whether the hand came to the end of the tree, and begins anew.
    pub is_round: bool,
}

impl Tree {
    /// All roots that were written are in the store now, so their nodes may leave RAM. Must not be called while a root is being written.
    pub fn stored(&mut self) {
        assert!(self.written_to == 0, "a root is in the store when all of it is");
        self.unstored = None;
    }

    /// What was written before `node`, of the root that is being written, is in the store now.
    pub fn stored_before(&mut self, node: NodePointer) {
        if let Some(unstored) = &mut self.unstored {
            *unstored = node.max(*unstored);
        }
    }

    /// Moves the hand over the next node of level 1 that is in RAM, or over a node of level 2 below which there is none left. A node of level 1 that
    /// `is_needed`, by its first block, stays. It takes time by the places of three nodes.
    pub fn pass(&mut self, is_needed: impl Fn(u64) -> bool) -> Pass {
        let (before, nodes) = (self.ledger.heap_bytes, self.ledger.loaded_nodes);
        self.hand = match &mut self.root {
            Some(Slot::Loaded { node: Node::Interior(root), .. }) => {
                sweep_next(root, self.hand, self.unstored, &mut self.ledger, is_needed)
            }
            _ => BLOCK_END,
        };
        let is_round = self.hand >= BLOCK_END;
        if is_round {
            self.hand = 0;
        }
        let nodes = nodes - self.ledger.loaded_nodes;
        reached_if(nodes > 0, Branch::NodesEvicted);
        Pass { freed_bytes: before - self.ledger.heap_bytes, nodes, is_round }
    }

    /// Makes the clean nodes of the subtree cold whose top is of `level` and covers `block`, and tells how many bytes that freed.
    #[cfg(test)]
    pub(super) fn evict(&mut self, level: u8, block: u64) -> usize {
        let before = self.ledger.heap_bytes;
        if let Some(slot) = super::tree::slot_mut(&mut self.root, level, block) {
            cool_all(slot, self.unstored, &mut self.ledger);
        }
        before - self.ledger.heap_bytes
    }
}

/// Sweeps the next node of level 1 in the node of level 2 that covers `hand`, if there is one; gives the block to go on from.
fn sweep_next(
    root: &mut Interior,
    hand: u64,
    unstored: Option<NodePointer>,
    ledger: &mut Ledger,
    is_needed: impl Fn(u64) -> bool,
) -> u64 {
    let place = entry_of(ROOT_LEVEL, hand);
    if let Some(Slot::Loaded { node: Node::Interior(above), .. }) = root.get_mut(place)
        && let Some(at) = above.next_loaded(entry_of(2, hand))
    {
        let first = first_of(2, hand) + at as u64 * span(1);
        sweep(above, at, unstored, ledger, is_needed(first));
        return first + span(1);
    }
    root.next_loaded(place + 1).unwrap_or(NODE_ENTRIES) as u64 * span(2)
}

/// The hand passes the node of level 1 at a place of `above`.
fn sweep(above: &mut Interior, at: usize, unstored: Option<NodePointer>, ledger: &mut Ledger, is_needed: bool) {
    let was_used = above.take_use(at) || is_needed;
    let Some(slot) = above.get_mut(at) else { return };
    let Slot::Loaded { node: Node::Interior(interior), .. } = slot else { return };
    interior.unused_mut().for_each(|leaf| cool(leaf, unstored, ledger));
    if !was_used && interior.next_loaded(0).is_none() {
        cool(slot, unstored, ledger);
    }
}

/// Makes a node cold if it can be loaded again. What is below a node that is in the store is not younger, so it is there too.
fn cool(slot: &mut Slot, unstored: Option<NodePointer>, ledger: &mut Ledger) {
    let Slot::Loaded { pointer, node } = slot else { return };
    let stays = |from: NodePointer| pointer.lineage() == from.lineage() && *pointer >= from;
    let is_unstored = unstored.is_some_and(stays) && !planted(Mutant::EvictUnstored);
    reached_if(is_unstored, Branch::UnstoredStayed);
    if !pointer.is_absent() && !is_unstored {
        ledger.leave_all(node);
        *slot = Slot::Cold(*pointer);
    }
}

/// Makes the clean nodes of a subtree cold, its top first.
#[cfg(test)]
fn cool_all(slot: &mut Slot, unstored: Option<NodePointer>, ledger: &mut Ledger) {
    cool(slot, unstored, ledger);
    if let Slot::Loaded { node: Node::Interior(interior), .. } = slot {
        interior.iter_mut().for_each(|(_, slot)| cool_all(slot, unstored, ledger));
    }
}
