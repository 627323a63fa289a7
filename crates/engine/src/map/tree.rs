// SPDX-License-Identifier: Apache-2.0
//! The tree: lookups, changes, and what comes into and goes out of RAM.
//!
//! Every change is made leaf by leaf: the path is found first, so a node that is missing stops the change before anything happened; then the
//! leaf's new bytes are made; then the path is made dirty from the root down, nodes that are missing are made and nodes that became empty
//! are taken out on the way back. A leaf whose pointers stay what they are is left alone, and so is all above it.

use super::interior::{Ledger, Node, Slot};
use super::{Applied, BLOCK_END, Change, Kills, Lookup, NodePath, ROOT_LEVEL, Removed, entry_of, first_of, span};
use std::ops::Range;
use varve_format::{FormatError, Leaf, Lineage, NODE_ENTRIES, NodePointer, Pointer, encode_interior};
use varve_types::Ordinal;
use varve_types::branch::{Branch, reached, reached_if};

/// The map of a volume, as far as it is in RAM.
#[derive(Debug, Default)]
pub struct Tree {
    pub(super) root: Option<Slot>,
    pub(super) ledger: Ledger,
    /// Blocks before this one are written of the root that is being written: they must stay as they are until that is done. 0 while none is.
    pub(super) written_to: u64,
    /// The block at which the hand stands that takes nodes out of RAM.
    pub(super) hand: u64,
    /// Nodes of this lineage from this one on were written, and may not be in the store yet: they can not be loaded again.
    pub(super) unstored: Option<NodePointer>,
}

/// Where the way down to a block ends.
enum Place<'a> {
    Leaf(&'a Leaf),
    /// Absent up to the block `end`.
    Absent {
        end: u64,
    },
    Cold(NodePath),
}

impl Tree {
    /// The tree of a volume that was never written.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// The tree of a root in the store, of which nothing is in RAM yet; an absent root is the empty tree.
    #[must_use]
    pub fn cold(root: NodePointer) -> Self {
        Self { root: (!root.is_absent()).then_some(Slot::Cold(root)), ..Self::default() }
    }

    /// Where the tree lies in the store, absent if it is empty; `None` while it has changes that are not written.
    #[must_use]
    pub fn root_pointer(&self) -> Option<NodePointer> {
        match &self.root {
            None => Some(NodePointer::absent()),
            Some(slot) if slot.is_dirty() => None,
            Some(slot) => Some(slot.pointer()),
        }
    }

    /// Bytes of RAM that the tree takes, kept with every change; with what the allocator adds, as far as that is known.
    #[must_use]
    pub fn bytes_in_ram(&self) -> usize {
        size_of::<Self>() + self.ledger.heap_bytes
    }

    /// Nodes that the next root will write. A root holds fewer than [`NodePointer::INDEX_END`] new nodes.
    #[must_use]
    pub fn dirty_nodes(&self) -> usize {
        self.ledger.dirty_nodes
    }

    /// Nodes that are in RAM.
    #[must_use]
    pub fn loaded_nodes(&self) -> usize {
        self.ledger.loaded_nodes
    }

    fn place(&self, block: u64) -> Place<'_> {
        assert!(block < BLOCK_END, "a volume has fewer blocks than a tree covers");
        let Some(mut slot) = self.root.as_ref() else { return Place::Absent { end: BLOCK_END } };
        let mut level = ROOT_LEVEL;
        loop {
            let node = match slot {
                Slot::Cold(pointer) => {
                    return Place::Cold(NodePath { level, first_block: first_of(level, block), pointer: *pointer });
                }
                Slot::Loaded { node, .. } => node,
            };
            let interior = match node {
                Node::Leaf(leaf) => return Place::Leaf(leaf),
                Node::Interior(interior) => interior,
            };
            let at = entry_of(level, block);
            let Some(child) = interior.get(at) else {
                let next = interior.next_present(at) as u64;
                return Place::Absent { end: first_of(level, block) + next * span(level - 1) };
            };
            interior.note_use(at);
            slot = child;
            level -= 1;
        }
    }

    /// What the map says of a block below [`BLOCK_END`].
    #[must_use]
    pub fn lookup(&self, block: u64) -> Lookup {
        self.lookup_run(block, BLOCK_END).0
    }

    /// What the map says of a block below [`BLOCK_END`], and for how many blocks from there on, at most `most` (at least 1), it is the same:
    /// consecutive pointers, absence, or the cold node. A run ends with its leaf, or with the subtree in which nothing is.
    #[must_use]
    pub fn lookup_run(&self, block: u64, most: u64) -> (Lookup, u64) {
        assert!(most > 0, "a run has a block");
        let (found, end) = match self.place(block) {
            Place::Absent { end } => (Lookup::Absent { blocks: end - block }, end),
            Place::Cold(path) => (Lookup::Cold(path), path.first_block + span(path.level)),
            Place::Leaf(leaf) => {
                let most = usize::try_from(most).unwrap_or(usize::MAX);
                let (pointer, len) = leaf.run_at(entry_of(0, block), most);
                let blocks = len as u64;
                let found = if pointer.is_absent() { Lookup::Absent { blocks } } else { Lookup::Found(pointer) };
                (found, block + blocks)
            }
        };
        (found, most.min(end - block))
    }

    /// A node that was asked for came: its bytes take the place of the cold pointer. Nothing happens when the pointer is no longer there,
    /// because the tree has changed, or when the node is in RAM already.
    ///
    /// # Errors
    /// When the bytes are not a node of that level, or not one that can have been written there.
    pub fn install(&mut self, path: NodePath, bytes: &[u8]) -> Result<(), FormatError> {
        let node = Node::load(&path, bytes)?;
        if let Some(slot) = slot_mut(&mut self.root, path.level, path.first_block)
            && matches!(slot, Slot::Cold(pointer) if *pointer == path.pointer)
        {
            self.ledger.enter(&node);
            *slot = Slot::Loaded { pointer: path.pointer, node };
        }
        Ok(())
    }

    /// The bytes of a node that stands there and is in RAM as it was written.
    #[must_use]
    pub fn node_bytes(&self, path: &NodePath) -> Option<Vec<u8>> {
        let mut slot = self.root.as_ref()?;
        for above in (path.level + 1..=ROOT_LEVEL).rev() {
            let Slot::Loaded { node: Node::Interior(interior), .. } = slot else { return None };
            slot = interior.get(entry_of(above, path.first_block))?;
        }
        match slot {
            Slot::Loaded { pointer, node } if *pointer == path.pointer => Some(match node {
                Node::Leaf(leaf) => leaf.as_bytes().to_vec(),
                Node::Interior(interior) => encode_interior(path.level, &interior.children()),
            }),
            Slot::Loaded { .. } | Slot::Cold(_) => None,
        }
    }

    /// Whether a node that was asked for is still what stands there, and not in RAM.
    pub fn wants(&mut self, path: &NodePath) -> bool {
        let slot = slot_mut(&mut self.root, path.level, path.first_block);
        matches!(slot, Some(Slot::Cold(pointer)) if *pointer == path.pointer)
    }

    /// Makes changes to the blocks of one leaf, in their order. What is replaced is told to `sink`; a pointer that is replaced by itself is
    /// not. Must not be called for what is written already of a root that is being written.
    ///
    /// # Errors
    /// The node that has to be loaded and installed first; nothing was changed then.
    pub fn apply(&mut self, changes: &[Change], sink: &mut impl Kills) -> Result<Applied, NodePath> {
        let Some(first) = changes.first() else { return Ok(Applied::default()) };
        let block = first.start_block;
        assert!(first_of(0, block) >= self.written_to, "what is written of a root stays as it is");
        let mut entries = [Pointer::ABSENT; NODE_ENTRIES];
        match self.place(block) {
            Place::Leaf(leaf) => leaf.decode_into(&mut entries),
            Place::Absent { .. } => {}
            Place::Cold(path) => return Err(path),
        }
        let mut changed_blocks = 0;
        for change in changes {
            let at = entry_of(0, change.start_block);
            let end = at + change.blocks as usize;
            let inside =
                first_of(0, change.start_block) == first_of(0, block) && change.blocks > 0 && end <= NODE_ENTRIES;
            assert!(inside, "the changes of a call have blocks, all of one leaf");
            changed_blocks += replace(&mut entries[at..end], change.pointer, sink);
        }
        if changed_blocks > 0 {
            self.put_leaf(block, Leaf::encode(&entries), sink);
        }
        Ok(Applied { changed_blocks })
    }

    /// The leaves below the node of level 1 that covers `block`, as far as they are as they were written: their first blocks, and where they lie.
    ///
    /// # Errors
    /// The node that has to be loaded and installed first.
    pub fn leaves_below(&self, block: u64) -> Result<Vec<(u64, NodePointer)>, NodePath> {
        let Some(mut slot) = self.root.as_ref() else { return Ok(Vec::new()) };
        for level in (1..=ROOT_LEVEL).rev() {
            let first_block = first_of(level, block);
            let interior = match slot {
                Slot::Cold(pointer) => return Err(NodePath { level, first_block, pointer: *pointer }),
                Slot::Loaded { node: Node::Interior(interior), .. } => interior,
                Slot::Loaded { node: Node::Leaf(_), .. } => break,
            };
            if level == 1 {
                let leaf = |(at, slot): (usize, &Slot)| (first_block + at as u64 * span(0), slot.pointer());
                return Ok(interior.iter().map(leaf).filter(|(_, place)| !place.is_absent()).collect());
            }
            match interior.get(entry_of(level, block)) {
                Some(child) => slot = child,
                None => break,
            }
        }
        Ok(Vec::new())
    }

    /// Lets the leaf that covers `block` be written once more though nothing of it changes, if it is in RAM as it was written. Tells whether it is. Must not be
    /// called for what is written already of a root that is being written.
    pub fn rewrite_leaf(&mut self, block: u64, sink: &mut impl Kills) -> bool {
        assert!(first_of(0, block) >= self.written_to, "what is written of a root stays as it is");
        let Place::Leaf(leaf) = self.place(block) else { return false };
        let leaf = leaf.clone();
        if slot_mut(&mut self.root, 0, block).is_none_or(|slot| slot.is_dirty()) {
            return false;
        }
        self.put_leaf(block, leaf, sink);
        true
    }

    /// Removes the blocks of a range; `death` is the ordinal of the segment that removed them. Looks at no more than
    /// `most_nodes` (at least 1) leaves, gaps and subtrees, so a large range takes several calls, each from where the last one stopped. Clean
    /// subtrees of `whole_level` and above that lie in the range whole are cut out unread; none is where that is above [`ROOT_LEVEL`]. Must not
    /// be called for what is written already of a root that is being written.
    pub fn remove_range(
        &mut self,
        range: Range<u64>,
        death: Ordinal,
        whole_level: u8,
        most_nodes: usize,
        sink: &mut impl Kills,
    ) -> Removed {
        let Range { start: start_block, end } = range;
        let end = end.min(BLOCK_END);
        let pointer = Pointer::hole(Lineage(0), death);
        assert!(first_of(0, start_block) >= self.written_to, "what is written of a root stays as it is");
        let mut next = start_block;
        for _ in 0..most_nodes.max(1) {
            if next >= end {
                break;
            }
            if let Some(behind) = self.detach(next, end, whole_level, death, sink) {
                next = behind;
                continue;
            }
            match self.place(next) {
                Place::Absent { end } => next = end,
                Place::Cold(path) => return Removed { next_block: next, cold: Some(path) },
                Place::Leaf(_) => {
                    let here = (first_of(0, next) + span(0)).min(end) - next;
                    let change = Change { start_block: next, blocks: here as u32, pointer };
                    if let Err(path) = self.apply(&[change], sink) {
                        return Removed { next_block: next, cold: Some(path) };
                    }
                    next += here;
                }
            }
        }
        Removed { next_block: next.min(end), cold: None }
    }

    /// Sets the leaf that covers `block`; an empty one is taken out. All nodes above it that exist are in RAM.
    fn put_leaf(&mut self, block: u64, leaf: Leaf, sink: &mut impl Kills) {
        let Self { root, ledger, .. } = self;
        let slot = root.get_or_insert_with(|| Slot::fresh(ROOT_LEVEL, ledger));
        if put(slot, ROOT_LEVEL, block, leaf, ledger, sink) {
            reached(Branch::TreeEmptied);
            ledger.leave_empty(slot);
            *root = None;
        }
    }
}

/// The place of the node of `level` that covers `block`, if all above it is in RAM. It is in use from now on.
pub(super) fn slot_mut(root: &mut Option<Slot>, level: u8, block: u64) -> Option<&mut Slot> {
    let mut slot = root.as_mut()?;
    for above in (level + 1..=ROOT_LEVEL).rev() {
        let Slot::Loaded { node: Node::Interior(interior), .. } = slot else { return None };
        let at = entry_of(above, block);
        interior.note_use(at);
        slot = interior.get_mut(at)?;
    }
    Some(slot)
}

/// Sets a leaf below or at `slot`, a node of `level`, and tells whether the node became empty.
fn put(slot: &mut Slot, level: u8, block: u64, leaf: Leaf, ledger: &mut Ledger, sink: &mut impl Kills) -> bool {
    match slot.soil(ledger, sink) {
        Node::Leaf(old) => {
            // The first byte of a leaf tells its form; an empty one has none.
            let is_other = !old.is_empty() && !leaf.is_empty() && old.as_bytes()[0] != leaf.as_bytes()[0];
            reached_if(is_other, Branch::LeafChangesForm);
            ledger.replace_leaf(old, &leaf);
            *old = leaf;
            old.is_empty()
        }
        Node::Interior(interior) => {
            let at = entry_of(level, block);
            let child = if interior.get(at).is_some() {
                interior.get_mut(at).expect("it is there, as was just seen")
            } else {
                interior.insert(at, level - 1, ledger)
            };
            if put(child, level - 1, block, leaf, ledger, sink) {
                interior.remove(at, ledger);
                reached_if(interior.is_empty(), Branch::NodeEmptied);
            }
            interior.is_empty()
        }
    }
}

/// Puts `pointer` and those that follow it, or absence for a hole, into `entries`, and tells how many are other ones now.
fn replace(entries: &mut [Pointer], pointer: Pointer, sink: &mut impl Kills) -> u32 {
    assert!(!pointer.is_absent(), "a change has an ordinal: removal is a hole");
    let death = pointer.ordinal();
    let mut changed = 0;
    // Consecutive blocks that were replaced, told when the row ends.
    let (mut first, mut last, mut row) = (Pointer::ABSENT, Pointer::ABSENT, 0);
    for (at, entry) in entries.iter_mut().enumerate() {
        let new = if pointer.is_hole() { Pointer::ABSENT } else { pointer.advance(at as u64) };
        let old = std::mem::replace(entry, new);
        if old == new {
            continue;
        }
        changed += 1;
        if !old.is_data() {
            continue;
        }
        if row > 0 && old.follows(last) {
            row += 1;
        } else {
            if row > 0 {
                sink.blocks(first, row, death);
            }
            (first, row) = (old, 1);
        }
        last = old;
    }
    if row > 0 {
        sink.blocks(first, row, death);
    }
    changed
}
