// SPDX-License-Identifier: Apache-2.0
//! Cutting a subtree out of a tree whole, and looking into it afterwards without the tree.
//!
//! A hole over a large range would have to load every leaf below it to tell the kills. Instead the pointer to the subtree's topmost node is
//! taken out of its parent, which costs no more than the path to it, and the node is told to [`Kills::subtree`]. Nodes in the store never
//! change, so whoever took it can look into it at any later time, node by node ([`look_into`]).
//!
//! Only a clean subtree is cut out: all of it is in the store, or is put before the root that no longer holds it. Of a dirty node the children are
//! looked at, down to those that are clean; what is dirty itself has no place in the store that anybody would have to give up.
//!
//! On the way of a write this is the last step of a discard, within a checkpoint. A crash before the manifest leaves the older root, which holds
//! the subtree still.

use super::interior::{Ledger, Node, Slot};
use super::{Kills, NodePath, ROOT_LEVEL, Tree, entry_of, first_of, span};
use varve_format::{FormatError, Pointer};
use varve_types::Ordinal;
use varve_types::branch::{Branch, reached_if};
use varve_types::mutant::{Mutant, planted};

/// What a node in the store holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Of an interior node: its children, in order.
    Children(Vec<NodePath>),
    /// Of a leaf: runs of consecutive pointers, each by its first and its length, in order.
    Runs(Vec<(Pointer, u32)>),
}

/// Looks into the bytes that were loaded for a node, apart from any tree.
///
/// # Errors
/// When the bytes are not a node of that level, or not one that can have been written there.
pub fn look_into(path: &NodePath, bytes: &[u8]) -> Result<Content, FormatError> {
    match Node::load(path, bytes)? {
        Node::Leaf(leaf) => Ok(Content::Runs(leaf.runs().map(|(_, len, pointer)| (pointer, len as u32)).collect())),
        Node::Interior(mut interior) => {
            let level = path.level - 1;
            let first = |at: usize| path.first_block + at as u64 * span(level);
            let child =
                |(at, slot): (usize, &mut Slot)| NodePath { level, first_block: first(at), pointer: slot.pointer() };
            Ok(Content::Children(interior.iter_mut().map(child).collect()))
        }
    }
}

impl Tree {
    /// A tree that holds nothing but a subtree in the store, to be walked. The nodes above it are dirty and stand for themselves.
    #[must_use]
    pub fn below(top: NodePath) -> Self {
        let mut ledger = Ledger::default();
        let mut slot = Slot::Cold(top.pointer);
        for level in top.level + 1..=ROOT_LEVEL {
            let mut above = Slot::fresh(level, &mut ledger);
            if let Slot::Loaded { node: Node::Interior(interior), .. } = &mut above {
                interior.insert_slot(entry_of(level, top.first_block), slot, &mut ledger);
            }
            slot = above;
        }
        Self { root: Some(slot), ledger, ..Self::default() }
    }

    /// Cuts out the largest clean subtree, of `least` level or above, that begins at `block` and ends at or before `end`. Gives the block behind it.
    pub(super) fn detach(
        &mut self,
        block: u64,
        end: u64,
        least: u8,
        death: Ordinal,
        sink: &mut impl Kills,
    ) -> Option<u64> {
        let top = self.detachable(block, end, least)?;
        let Self { root, ledger, .. } = self;
        let slot = root.as_mut()?;
        if top.level == ROOT_LEVEL {
            ledger.leave_clean(slot);
            *root = None;
        } else if cut(slot, ROOT_LEVEL, &top, ledger, sink) {
            ledger.leave_empty(slot);
            *root = None;
        }
        reached_if(root.is_none(), Branch::TreeEmptied);
        sink.subtree(top, death);
        Some(block + span(top.level))
    }

    /// The largest such subtree. All nodes above it are in RAM.
    fn detachable(&self, block: u64, end: u64, least: u8) -> Option<NodePath> {
        let mut slot = self.root.as_ref()?;
        let mut level = ROOT_LEVEL;
        while level >= least {
            let begins_here = first_of(level, block) == block || planted(Mutant::DetachUnaligned);
            let ends_before = end - block >= span(level) || planted(Mutant::DetachHalfCovered);
            if !slot.is_dirty() && begins_here && ends_before {
                return Some(NodePath { level, first_block: block, pointer: slot.pointer() });
            }
            let Slot::Loaded { node: Node::Interior(interior), .. } = slot else { return None };
            slot = interior.get(entry_of(level, block))?;
            level -= 1;
        }
        None
    }
}

/// Takes `top` out from below `slot`, an interior node of `level` in RAM, and tells whether the node became empty.
fn cut(slot: &mut Slot, level: u8, top: &NodePath, ledger: &mut Ledger, sink: &mut impl Kills) -> bool {
    let Node::Interior(interior) = slot.soil(ledger, sink) else { panic!("a node above another is interior") };
    let at = entry_of(level, top.first_block);
    if level - 1 == top.level {
        let gone = interior.take(at, ledger);
        ledger.leave_clean(&gone);
    } else if let Some(child) = interior.get_mut(at)
        && cut(child, level - 1, top, ledger, sink)
    {
        interior.remove(at, ledger);
    }
    interior.is_empty()
}
