// SPDX-License-Identifier: Apache-2.0
//! The nodes of a tree in RAM, and the count of what they take.
//!
//! A place in an interior node is absent, cold (only the pointer is in RAM) or loaded; a loaded node is dirty when it has no pointer. Absent
//! places take no memory: the others stand in a row, a bitmap tells which they are. So a sparse volume pays for the nodes that it has, and a
//! leaf that is a single run costs its place (32 bytes) and nothing else.
//!
//! [`Ledger`] is kept with every change, so that asking for the sums costs nothing. It counts allocations as the allocator rounds them.

use super::{Kills, NodePath};
use std::cell::Cell;
use varve_format::{FormatError, Leaf, NODE_ENTRIES, NodePointer, decode_interior};

/// What the nodes of a tree add up to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ledger {
    /// Bytes of all allocations.
    pub heap_bytes: usize,
    /// Nodes that are dirty.
    pub dirty_nodes: usize,
    /// Nodes that are in RAM, dirty ones included.
    pub loaded_nodes: usize,
}

/// Bytes that an allocation of `len` takes of a common allocator: its own word, and the rounding.
const fn allocation(len: usize) -> usize {
    if len == 0 { 0 } else { (len + 8).next_multiple_of(16) }
}

#[derive(Debug)]
pub(super) enum Node {
    Leaf(Leaf),
    Interior(Box<Interior>),
}

impl Node {
    /// The node without entries of a level.
    pub(super) fn empty(level: u8) -> Self {
        if level == 0 { Self::Leaf(Leaf::empty()) } else { Self::Interior(Box::default()) }
    }

    /// The node whose bytes were loaded for `path`; its children are cold.
    pub(super) fn load(path: &NodePath, bytes: &[u8]) -> Result<Self, FormatError> {
        let fail = |reason| Err(FormatError::new("map node", format!("{:?}: {reason}", path.pointer)));
        if path.level == 0 {
            let leaf = Leaf::from_bytes(bytes)?;
            return if leaf.is_empty() { fail("an empty leaf is never written") } else { Ok(Self::Leaf(leaf)) };
        }
        let mut children = [NodePointer::absent(); NODE_ENTRIES];
        decode_interior(bytes, path.level, &mut children)?;
        let mut interior = Interior::default();
        interior.slots.reserve_exact(children.iter().filter(|child| !child.is_absent()).count());
        for (at, child) in children.into_iter().enumerate().filter(|(_, child)| !child.is_absent()) {
            // Children are written before their parents, and never by a later root.
            if child.lineage() == path.pointer.lineage() && child >= path.pointer {
                return fail("a child is younger than its parent");
            }
            interior.present[at / 64] |= 1 << (at % 64);
            interior.slots.push(Slot::Cold(child));
        }
        Ok(Self::Interior(Box::new(interior)))
    }

    /// Bytes of this node's own allocations.
    fn own_bytes(&self) -> usize {
        match self {
            Self::Leaf(leaf) => allocation(leaf.heap_len()),
            Self::Interior(interior) => {
                allocation(size_of::<Interior>()) + allocation(interior.slots.capacity() * size_of::<Slot>())
            }
        }
    }
}

#[derive(Debug)]
pub(super) enum Slot {
    /// Only the pointer is in RAM.
    Cold(NodePointer),
    /// The node is in RAM. Without a pointer it is dirty, and so are all nodes above it.
    Loaded { pointer: NodePointer, node: Node },
}

impl Slot {
    /// A new dirty node without entries.
    pub(super) fn fresh(level: u8, ledger: &mut Ledger) -> Self {
        let node = Node::empty(level);
        ledger.dirty_nodes += 1;
        ledger.enter(&node);
        Self::Loaded { pointer: NodePointer::absent(), node }
    }

    /// The pointer of the node; absent when it is dirty.
    pub(super) fn pointer(&self) -> NodePointer {
        match self {
            Self::Cold(pointer) | Self::Loaded { pointer, .. } => *pointer,
        }
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.pointer().is_absent()
    }

    /// The node, which the caller knows to be in RAM, made dirty.
    pub(super) fn soil(&mut self, ledger: &mut Ledger, sink: &mut impl Kills) -> &mut Node {
        let Self::Loaded { pointer, node } = self else { panic!("a path is loaded before it is changed") };
        if !pointer.is_absent() {
            sink.node(*pointer);
            *pointer = NodePointer::absent();
            ledger.dirty_nodes += 1;
        }
        node
    }
}

impl Ledger {
    /// A node of which no child is in RAM came into RAM.
    pub(super) fn enter(&mut self, node: &Node) {
        self.loaded_nodes += 1;
        self.heap_bytes += node.own_bytes();
    }

    /// An empty dirty node goes.
    pub(super) fn leave_empty(&mut self, slot: &Slot) {
        if let Slot::Loaded { node, .. } = slot {
            self.dirty_nodes -= 1;
            self.loaded_nodes -= 1;
            self.heap_bytes -= node.own_bytes();
        }
    }

    /// A clean subtree is cut out.
    pub(super) fn leave_clean(&mut self, slot: &Slot) {
        if let Slot::Loaded { node, .. } = slot {
            self.leave_all(node);
        }
    }

    /// A clean subtree leaves RAM.
    pub(super) fn leave_all(&mut self, node: &Node) {
        self.loaded_nodes -= 1;
        self.heap_bytes -= node.own_bytes();
        if let Node::Interior(interior) = node {
            for slot in &interior.slots {
                if let Slot::Loaded { node, .. } = slot {
                    self.leave_all(node);
                }
            }
        }
    }

    /// A leaf changed its bytes.
    pub(super) fn replace_leaf(&mut self, old: &Leaf, new: &Leaf) {
        self.heap_bytes += allocation(new.heap_len());
        self.heap_bytes -= allocation(old.heap_len());
    }
}

/// An interior node: the places that are not absent, in order.
#[derive(Debug, Default)]
pub(super) struct Interior {
    present: [u64; NODE_ENTRIES / 64],
    /// Places that were looked at since the hand came by last: see [`super::evict`].
    used: [Cell<u64>; NODE_ENTRIES / 64],
    slots: Vec<Slot>,
}

impl Interior {
    /// Notes that a place is in use. Most calls find that noted, and write nothing.
    pub(super) fn note_use(&self, at: usize) {
        let (word, bit) = (&self.used[at / 64], 1 << (at % 64));
        if word.get() & bit == 0 {
            word.set(word.get() | bit);
        }
    }

    /// Whether a place was in use since the last call.
    pub(super) fn take_use(&self, at: usize) -> bool {
        let (word, bit) = (&self.used[at / 64], 1 << (at % 64));
        let was = word.get();
        word.set(was & !bit);
        was & bit != 0
    }

    /// The children that were not in use since the last call, or since [`Self::take_use`] of them.
    pub(super) fn unused_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        let (present, used) = (self.present, self.used.clone());
        self.used = Default::default();
        let places = (0..NODE_ENTRIES).filter(move |at| present[at / 64] >> (at % 64) & 1 != 0);
        places
            .zip(&mut self.slots)
            .filter_map(move |(at, slot)| (used[at / 64].get() >> (at % 64) & 1 == 0).then_some(slot))
    }

    /// The first place from `at` on whose child is in RAM.
    pub(super) fn next_loaded(&self, at: usize) -> Option<usize> {
        let is_loaded = |at: &usize| matches!(self.get(*at), Some(Slot::Loaded { .. }));
        (at..NODE_ENTRIES).find(is_loaded)
    }

    fn rank(&self, at: usize) -> usize {
        if self.slots.len() == NODE_ENTRIES {
            return at;
        }
        let full: u32 = self.present[..at / 64].iter().map(|word| word.count_ones()).sum();
        let part = self.present[at / 64] & ((1 << (at % 64)) - 1);
        (full + part.count_ones()) as usize
    }

    fn is_present(&self, at: usize) -> bool {
        self.present[at / 64] >> (at % 64) & 1 != 0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(super) fn get(&self, at: usize) -> Option<&Slot> {
        self.is_present(at).then(|| &self.slots[self.rank(at)])
    }

    pub(super) fn get_mut(&mut self, at: usize) -> Option<&mut Slot> {
        self.is_present(at).then(|| {
            let rank = self.rank(at);
            &mut self.slots[rank]
        })
    }

    /// The first place from `at` on that is not absent; 512 when there is none.
    pub(super) fn next_present(&self, at: usize) -> usize {
        let mut word = at / 64;
        let mut bits = self.present[word] & (u64::MAX << (at % 64));
        while bits == 0 {
            word += 1;
            match self.present.get(word) {
                Some(next) => bits = *next,
                None => return NODE_ENTRIES,
            }
        }
        word * 64 + bits.trailing_zeros() as usize
    }

    /// The places that are not absent, each with its number.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Slot)> {
        let places = (0..NODE_ENTRIES).filter(|at| self.is_present(*at));
        places.zip(&self.slots)
    }

    /// The same, to be changed.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut Slot)> {
        let present = self.present;
        let places = (0..NODE_ENTRIES).filter(move |at| present[at / 64] >> (at % 64) & 1 != 0);
        places.zip(&mut self.slots)
    }

    /// The pointers of the children, none of which is dirty.
    pub(super) fn children(&self) -> [NodePointer; NODE_ENTRIES] {
        let mut children = [NodePointer::absent(); NODE_ENTRIES];
        let mut slots = self.slots.iter();
        for (at, child) in children.iter_mut().enumerate().filter(|(at, _)| self.is_present(*at)) {
            *child = slots.next().expect("the bitmap has a bit for every slot").pointer();
            assert!(!child.is_absent(), "child {at} is written before its parent");
        }
        children
    }

    /// The slot at an absent place becomes a new dirty node of `level`.
    pub(super) fn insert(&mut self, at: usize, level: u8, ledger: &mut Ledger) -> &mut Slot {
        let slot = Slot::fresh(level, ledger);
        self.insert_slot(at, slot, ledger)
    }

    /// An absent place takes a slot, which the ledger counts already.
    pub(super) fn insert_slot(&mut self, at: usize, slot: Slot, ledger: &mut Ledger) -> &mut Slot {
        let rank = self.rank(at);
        let capacity = self.slots.capacity();
        if self.slots.len() == capacity {
            // An eighth more at a time: doubling would leave a quarter of a large map's memory unused.
            self.slots.reserve_exact((capacity / 8).max(4).min(NODE_ENTRIES - capacity));
        }
        self.resized(capacity, ledger);
        self.present[at / 64] |= 1 << (at % 64);
        self.slots.insert(rank, slot);
        &mut self.slots[rank]
    }

    /// The place becomes absent; the node there is dirty and empty.
    pub(super) fn remove(&mut self, at: usize, ledger: &mut Ledger) {
        let slot = self.take(at, ledger);
        ledger.leave_empty(&slot);
    }

    /// The place becomes absent; what stood there is the caller's to count.
    pub(super) fn take(&mut self, at: usize, ledger: &mut Ledger) -> Slot {
        let rank = self.rank(at);
        let slot = self.slots.remove(rank);
        self.present[at / 64] &= !(1 << (at % 64));
        let capacity = self.slots.capacity();
        if self.slots.len() < capacity / 4 {
            self.slots.shrink_to(capacity / 2);
        }
        self.resized(capacity, ledger);
        slot
    }

    fn resized(&self, before: usize, ledger: &mut Ledger) {
        ledger.heap_bytes += allocation(self.slots.capacity() * size_of::<Slot>());
        ledger.heap_bytes -= allocation(before * size_of::<Slot>());
    }

    #[cfg(test)]
    pub(super) fn slots(&self) -> &[Slot] {
        &self.slots
    }
}

#[cfg(test)]
impl Ledger {
    /// The sums counted anew, to check those that were kept.
    pub(super) fn recount(slot: Option<&Slot>) -> Self {
        let mut ledger = Self::default();
        let mut open: Vec<&Slot> = slot.into_iter().collect();
        while let Some(slot) = open.pop() {
            let Slot::Loaded { pointer, node } = slot else { continue };
            ledger.enter(node);
            ledger.dirty_nodes += usize::from(pointer.is_absent());
            if let Node::Interior(interior) = node {
                let dirty_below = interior.slots().iter().any(Slot::is_dirty);
                assert!(pointer.is_absent() || !dirty_below, "a clean node has no dirty ones below it");
                assert!(!interior.is_empty());
                open.extend(interior.slots());
            }
        }
        ledger
    }
}
