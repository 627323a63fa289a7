// SPDX-License-Identifier: Apache-2.0
//! Pointers: the 8 bytes that say where a block lies, and the 8 bytes that say where a node of the map lies.
//!
//! Both are addresses that hold for ever: (lineage, ordinal, block) and (lineage, root number, index) never mean
//! two things, so a pointer is never rewritten when bytes move, and a cache that is keyed by one never goes stale.
//! The lineage is an index into the manifest's table of ancestor timelines. Raw 0 means "nothing there" for both.
//! The most significant field comes first, so the order of raw values is the order of (lineage, ordinal, block) and
//! of (lineage, root, index).
//!
//! Raw values from a disk or a network pass [`Pointer::from_raw`] and [`NodePointer::from_raw`], which refuse
//! unknown kinds; the constructors assert what the writer alone controls.

use crate::FormatError;
use std::fmt;
use varve_types::{Ordinal, RootNumber};

/// Index into the manifest's table of ancestor timelines.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lineage(pub u8);

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl fmt::Debug for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lineage({})", self.0)
    }
}

/// Where a block lies: `[lineage 8][ordinal 36][block 16][kind 4]`, most significant first. Raw 0 is [`Pointer::ABSENT`].
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pointer(u64);

const KIND_MASK: u64 = 0xF;
const KIND_DATA: u64 = 1;
const KIND_HOLE: u64 = 2;
const BLOCK_SHIFT: u32 = 4;
const ORDINAL_SHIFT: u32 = 20;
const LINEAGE_SHIFT: u32 = 56;

impl Pointer {
    /// Nothing was ever stored there, or what was is gone: it reads as zeroes.
    pub const ABSENT: Self = Self(0);
    /// The first ordinal that does not fit a pointer.
    pub const ORDINAL_END: u64 = 1 << 36;

    /// Block `block` of segment `ordinal` of the timeline at `lineage`. The ordinal is below [`Self::ORDINAL_END`].
    #[must_use]
    pub const fn data(lineage: Lineage, ordinal: Ordinal, block: u16) -> Self {
        Self::pack(lineage, ordinal, block, KIND_DATA)
    }

    /// A hole punched by segment `ordinal`: an entry of the overlay that hides older ones; a leaf never stores it.
    #[must_use]
    pub const fn hole(lineage: Lineage, ordinal: Ordinal) -> Self {
        Self::pack(lineage, ordinal, 0, KIND_HOLE)
    }

    const fn pack(lineage: Lineage, ordinal: Ordinal, block: u16, kind: u64) -> Self {
        assert!(ordinal.0 < Self::ORDINAL_END, "ordinals of segments are kept below 2^36");
        Self((lineage.0 as u64) << LINEAGE_SHIFT | ordinal.0 << ORDINAL_SHIFT | (block as u64) << BLOCK_SHIFT | kind)
    }

    /// The pointer whose stored form is `raw`.
    ///
    /// # Errors
    /// When the kind is unknown, or a field is set that the kind does not have.
    pub fn from_raw(raw: u64) -> Result<Self, FormatError> {
        let pointer = Self(raw);
        match raw & KIND_MASK {
            KIND_DATA => Ok(pointer),
            KIND_HOLE if pointer.block() == 0 => Ok(pointer),
            0 if raw == 0 => Ok(pointer),
            _ => Err(FormatError::new("pointer", format!("{raw:#018x} is of no known kind"))),
        }
    }

    /// The stored form.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }
    /// Whose segment it is.
    #[must_use]
    pub const fn lineage(self) -> Lineage {
        Lineage((self.0 >> LINEAGE_SHIFT) as u8)
    }
    /// The segment: the birth of the block.
    #[must_use]
    pub const fn ordinal(self) -> Ordinal {
        Ordinal(self.0 >> ORDINAL_SHIFT & (Self::ORDINAL_END - 1))
    }
    /// The block within the segment; 0 for a hole.
    #[must_use]
    pub const fn block(self) -> u16 {
        (self.0 >> BLOCK_SHIFT) as u16
    }
    /// Whether it is [`Self::ABSENT`].
    #[must_use]
    pub const fn is_absent(self) -> bool {
        self.0 == 0
    }
    /// Whether a block lies there.
    #[must_use]
    pub const fn is_data(self) -> bool {
        self.0 & KIND_MASK == KIND_DATA
    }
    /// Whether it is a hole that hides older entries.
    #[must_use]
    pub const fn is_hole(self) -> bool {
        self.0 & KIND_MASK == KIND_HOLE
    }

    /// The pointer of the block `blocks` further on: for data the block number grows, a hole or absence stays what it is.
    /// The caller guarantees that data stays in its segment: block + `blocks` < 65,536.
    #[must_use]
    pub const fn advance(self, blocks: u64) -> Self {
        if !self.is_data() {
            return self;
        }
        assert!(self.block() as u64 + blocks <= u16::MAX as u64, "a run stays within its segment");
        Self(self.0 + (blocks << BLOCK_SHIFT))
    }

    /// Whether both are data and this is the block right after `previous` in the same segment.
    #[must_use]
    pub const fn follows(self, previous: Self) -> bool {
        // Data has an odd raw value and absence 0, so the sum alone tells that both are data; block 0 would have come from another segment.
        (self.0 == previous.0.wrapping_add(1 << BLOCK_SHIFT)) & (self.block() != 0) & self.is_data()
    }

    /// The bit that only a hole's raw value has set, of data, holes and absence.
    pub(crate) const HOLE_BIT: u64 = KIND_HOLE;

    /// The pointer of a raw value that was checked before, or made here.
    pub(crate) const fn known(raw: u64) -> Self {
        Self(raw)
    }

    /// The raw value of the block `blocks` behind that of `raw`, which is data and whose run was checked to reach so far.
    pub(crate) const fn step(raw: u64, blocks: usize) -> u64 {
        raw + ((blocks as u64) << BLOCK_SHIFT)
    }
}

impl fmt::Debug for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (lineage, ordinal) = (self.lineage(), self.ordinal());
        if self.is_absent() {
            f.write_str("absent")
        } else if self.is_hole() {
            write!(f, "hole@{lineage}:{ordinal}")
        } else {
            write!(f, "{}@{lineage}:{ordinal}", self.block())
        }
    }
}

/// Where a node of the map lies: `[lineage 8][root number 32][index 22][kind 2]`, most significant first. Raw 0 is an absent subtree.
/// The index is `[part 6][record 16]`: which of the root's map segments, and which record of it.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodePointer(u64);

const NODE_KIND_MASK: u64 = 3;
const NODE_KIND_NODE: u64 = 1;
const INDEX_SHIFT: u32 = 2;
const ROOT_SHIFT: u32 = 24;
const RECORD_BITS: u32 = 16;

impl NodePointer {
    /// The first index that does not fit a node pointer: a root has at most so many nodes of its own.
    pub const INDEX_END: u32 = 1 << 22;

    /// The absent subtree.
    #[must_use]
    pub const fn absent() -> Self {
        Self(0)
    }

    /// Node `index` of those that root `root` of the timeline at `lineage` wrote. The index is below [`Self::INDEX_END`].
    #[must_use]
    pub const fn new(lineage: Lineage, root: RootNumber, index: u32) -> Self {
        assert!(index < Self::INDEX_END, "a root has fewer than 2^22 nodes of its own");
        Self(
            (lineage.0 as u64) << LINEAGE_SHIFT
                | (root.0 as u64) << ROOT_SHIFT
                | (index as u64) << INDEX_SHIFT
                | NODE_KIND_NODE,
        )
    }

    /// The node pointer whose stored form is `raw`.
    ///
    /// # Errors
    /// When the kind is unknown, or is absence and a field is set.
    pub fn from_raw(raw: u64) -> Result<Self, FormatError> {
        if raw == 0 || raw & NODE_KIND_MASK == NODE_KIND_NODE {
            Ok(Self(raw))
        } else {
            Err(FormatError::new("node pointer", format!("{raw:#018x} is of no known kind")))
        }
    }

    /// The stored form.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }
    /// Whether the subtree is absent.
    #[must_use]
    pub const fn is_absent(self) -> bool {
        self.0 == 0
    }
    /// Whose map it is.
    #[must_use]
    pub const fn lineage(self) -> Lineage {
        Lineage((self.0 >> LINEAGE_SHIFT) as u8)
    }
    /// The root that wrote the node: the node's birth.
    #[must_use]
    pub const fn root(self) -> RootNumber {
        RootNumber((self.0 >> ROOT_SHIFT) as u32)
    }
    /// Number of the node among those of its root.
    #[must_use]
    pub const fn index(self) -> u32 {
        (self.0 >> INDEX_SHIFT) as u32 & (Self::INDEX_END - 1)
    }
    /// Which of the root's map segments holds it.
    #[must_use]
    pub const fn part(self) -> u8 {
        (self.index() >> RECORD_BITS) as u8
    }
    /// Which record of that map segment it is.
    #[must_use]
    pub const fn record(self) -> u16 {
        self.index() as u16
    }
}

impl fmt::Debug for NodePointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_absent() {
            f.write_str("absent")
        } else {
            write!(f, "node {}@{}:r{}", self.index(), self.lineage(), self.root())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_of_a_pointer_is_fixed() {
        let pointer = Pointer::data(Lineage(0xAB), Ordinal(0x9_8765_4321), 0xCDEF);
        assert_eq!(pointer.raw(), 0xAB98_7654_321C_DEF1);
        assert_eq!(
            (pointer.lineage(), pointer.ordinal(), pointer.block()),
            (Lineage(0xAB), Ordinal(0x9_8765_4321), 0xCDEF)
        );
        assert!(pointer.is_data() && !pointer.is_hole() && !pointer.is_absent());
        assert_eq!(Pointer::from_raw(pointer.raw()), Ok(pointer));
        let hole = Pointer::hole(Lineage(1), Ordinal(2));
        assert_eq!(hole.raw(), 0x0100_0000_0020_0002);
        assert!(hole.is_hole() && !hole.is_data() && !hole.is_absent());
        assert_eq!((hole.advance(9), Pointer::ABSENT.advance(9)), (hole, Pointer::ABSENT));
        assert_eq!(pointer.advance(0x3210).block(), 0xFFFF);
        assert_eq!(pointer.advance(0x3210).ordinal(), pointer.ordinal());
    }

    #[test]
    fn unknown_pointers_are_refused() {
        for raw in [3, 0x10, 0xF, 0x0100_0000_0020_0000, 0x0100_0000_0020_0012, u64::MAX] {
            assert!(Pointer::from_raw(raw).is_err(), "{raw:#x}");
        }
        assert_eq!(Pointer::from_raw(0), Ok(Pointer::ABSENT));
    }

    #[test]
    #[should_panic(expected = "within its segment")]
    fn a_run_does_not_leave_its_segment() {
        let _ = Pointer::data(Lineage(0), Ordinal(1), 0xFFFF).advance(1);
    }

    #[test]
    fn layout_of_a_node_pointer_is_fixed() {
        let node = NodePointer::new(Lineage(0xAB), RootNumber(0x1234_5678), 0x2A_BCDE);
        assert_eq!(node.raw(), 0xAB12_3456_78AA_F379);
        assert_eq!((node.lineage(), node.root(), node.index()), (Lineage(0xAB), RootNumber(0x1234_5678), 0x2A_BCDE));
        assert_eq!((node.part(), node.record()), (0x2A, 0xBCDE));
        assert_eq!(NodePointer::from_raw(node.raw()), Ok(node));
        assert_eq!(NodePointer::from_raw(0), Ok(NodePointer::absent()));
        for raw in [2, 3, 4, u64::MAX, 1 << 40] {
            assert!(NodePointer::from_raw(raw).is_err(), "{raw:#x}");
        }
    }
}
