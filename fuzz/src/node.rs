// SPDX-License-Identifier: Apache-2.0
//! Map nodes and pointers.
//!
//! A leaf is looked up in place in three ways (one entry, a run, all): of every leaf that is accepted they must agree. Equal entries give equal
//! bytes, and no accepted node is shorter than the one that the encoder makes of its entries.

use crate::{bounded, choose, made_up, ordinal};
use arbitrary::Arbitrary;
use varve_format::{Leaf, Lineage, NODE_ENTRIES, NodePointer, Pointer, decode_interior, encode_interior};
use varve_types::RootNumber;

/// See the module.
pub fn check(data: &[u8]) {
    let Some((choice, rest)) = choose(data, 4) else { return };
    match choice {
        0 => leaf(rest),
        1 => interior(rest),
        2 => made_up_node(rest),
        _ => pointers(rest),
    }
}

fn leaf(bytes: &[u8]) {
    let Ok(leaf) = bounded(bytes.len(), || Leaf::from_bytes(bytes)) else { return };
    assert_eq!(leaf.as_bytes(), bytes);
    let entries = check_leaf(&leaf);
    let encoded = Leaf::encode(&entries);
    assert!(encoded.as_bytes().len() <= bytes.len(), "a shorter leaf than the encoder's was accepted");
    let again = Leaf::from_bytes(encoded.as_bytes()).expect("what was encoded decodes");
    assert_eq!(check_leaf(&again), entries);
    assert_eq!(Leaf::encode(&check_leaf(&again)).as_bytes(), encoded.as_bytes(), "equal entries give equal bytes");
}

/// The entries of a leaf, which all ways to look at it agree on.
fn check_leaf(leaf: &Leaf) -> [Pointer; NODE_ENTRIES] {
    let mut entries = [Pointer::ABSENT; NODE_ENTRIES];
    leaf.decode_into(&mut entries);
    for (at, entry) in entries.iter().enumerate() {
        assert!(entry.is_absent() || entry.is_data());
        assert_eq!(Pointer::from_raw(entry.raw()), Ok(*entry));
        assert_eq!(leaf.get(at), *entry, "entry {at}");
        let (pointer, len) = leaf.run_at(at, 7);
        assert!(pointer == *entry && (1..=7).contains(&len) && at + len <= NODE_ENTRIES);
        for (n, other) in entries[at..at + len].iter().enumerate() {
            assert_eq!(*other, pointer.advance(n as u64), "the run at {at}");
        }
    }
    let mut copy = [Pointer::ABSENT; NODE_ENTRIES];
    for (start, len, first) in leaf.runs() {
        for (n, entry) in copy[start..start + len].iter_mut().enumerate() {
            *entry = first.advance(n as u64);
        }
    }
    assert_eq!(copy, entries);
    assert_eq!(leaf.is_empty(), entries.iter().all(|entry| entry.is_absent()));
    entries
}

fn interior(bytes: &[u8]) {
    let level = bytes.first().map_or(0, |tag| tag >> 4);
    let mut children = [NodePointer::absent(); NODE_ENTRIES];
    if bounded(bytes.len(), || decode_interior(bytes, level, &mut children)).is_err() {
        return;
    }
    assert!((1..=3).contains(&level));
    let other = level % 3 + 1;
    assert!(decode_interior(bytes, other, &mut [NodePointer::absent(); NODE_ENTRIES]).is_err(), "another level");
    check_interior(level, &children, bytes.len());
}

fn check_interior(level: u8, children: &[NodePointer; NODE_ENTRIES], most: usize) {
    let encoded = encode_interior(level, children);
    assert!(encoded.len() <= most, "a shorter node than the encoder's was accepted");
    let mut again = [NodePointer::absent(); NODE_ENTRIES];
    decode_interior(&encoded, level, &mut again).expect("what was encoded decodes");
    assert_eq!(&again, children);
}

/// A stretch of entries.
#[derive(Arbitrary)]
struct Stretch {
    start: u16,
    len: u8,
    lineage: u8,
    /// Ordinal or root number.
    number: u64,
    /// Block or index.
    place: u32,
    /// What the place grows by from one entry to the next: 1 is a run.
    step: u8,
    /// Whether the entries are taken out instead.
    absent: bool,
}

/// Whatever entries there are, they come back.
fn made_up_node(bytes: &[u8]) {
    let Some((level, stretches)) = made_up::<(u8, Vec<Stretch>)>(bytes) else { return };
    let mut entries = [Pointer::ABSENT; NODE_ENTRIES];
    let mut children = [NodePointer::absent(); NODE_ENTRIES];
    for stretch in stretches.iter().take(600) {
        let start = usize::from(stretch.start) % NODE_ENTRIES;
        for n in 0..=u32::from(stretch.len).min((NODE_ENTRIES - start) as u32 - 1) {
            let place = stretch.place.wrapping_add(n * u32::from(stretch.step));
            let (lineage, at) = (Lineage(stretch.lineage), start + n as usize);
            if stretch.absent {
                (entries[at], children[at]) = (Pointer::ABSENT, NodePointer::absent());
            } else {
                entries[at] = Pointer::data(lineage, ordinal(stretch.number), place as u16);
                let index = place % NodePointer::INDEX_END;
                children[at] = NodePointer::new(lineage, RootNumber(stretch.number as u32), index);
            }
        }
    }
    let leaf = Leaf::encode(&entries);
    assert_eq!(check_leaf(&leaf), entries);
    assert_eq!(Leaf::from_bytes(leaf.as_bytes()).as_ref(), Ok(&leaf));
    if children.iter().any(|child| !child.is_absent()) {
        // The worst an interior node can take: its header and all bits of 512 pointers.
        check_interior(level % 3 + 1, &children, 12 + 8 * NODE_ENTRIES);
    }
}

fn pointers(bytes: &[u8]) {
    for raw in bytes.chunks_exact(8).map(|chunk| u64::from_le_bytes(crate::array(chunk, 0))) {
        if let Ok(pointer) = Pointer::from_raw(raw) {
            assert_eq!(pointer.raw(), raw);
            let made = match (pointer.is_data(), pointer.is_hole(), pointer.is_absent()) {
                (true, false, false) => Pointer::data(pointer.lineage(), pointer.ordinal(), pointer.block()),
                (false, true, false) => Pointer::hole(pointer.lineage(), pointer.ordinal()),
                (false, false, true) => Pointer::ABSENT,
                other => panic!("{raw:#x} is {other:?}"),
            };
            assert_eq!(made, pointer);
        }
        if let Ok(node) = NodePointer::from_raw(raw) {
            assert_eq!(node.raw(), raw);
            let made = NodePointer::new(node.lineage(), node.root(), node.index());
            assert!(node.is_absent() || made == node);
            assert_eq!(u32::from(node.part()) << 16 | u32::from(node.record()), node.index());
        }
    }
}
