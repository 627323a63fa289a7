// SPDX-License-Identifier: Apache-2.0
//! Tests of the node encodings: what goes in comes out,
//! sizes, and any bytes at all.

use crate::node::{Leaf, NODE_ENTRIES, decode_interior, encode_interior};
use crate::{Lineage, NodePointer, Pointer};
use proptest::prelude::*;
use varve_types::{Ordinal, RootNumber};

type Entries = [Pointer; NODE_ENTRIES];

fn data(lineage: u8, ordinal: u64, block: u16) -> Pointer {
    Pointer::data(Lineage(lineage), Ordinal(ordinal), block)
}

/// Checks every way to read the leaf of `entries` against them, and gives it back.
fn check_leaf(entries: &Entries) -> Leaf {
    let leaf = Leaf::encode(entries);
    let again = Leaf::from_bytes(leaf.as_bytes()).unwrap();
    assert!(again == leaf && Leaf::encode(entries).as_bytes() == leaf.as_bytes());
    let mut decoded = [data(9, 9, 9); NODE_ENTRIES];
    again.decode_into(&mut decoded);
    assert!(decoded == *entries);
    let mut from_runs = [Pointer::ABSENT; NODE_ENTRIES];
    let mut end = 0;
    for (start, len, first) in again.runs() {
        assert!(start >= end && len > 0);
        assert!(start == 0 || !entries[start].follows(entries[start - 1]), "runs are as long as they can be");
        end = start + len;
        for at in 0..len {
            from_runs[start + at] = first.advance(at as u64);
        }
    }
    assert!(from_runs == *entries);
    for (at, entry) in entries.iter().enumerate() {
        assert_eq!(again.get(at), *entry, "entry {at}");
        let (pointer, len) = again.run_at(at, usize::MAX);
        assert_eq!(pointer, *entry);
        let expected = 1
            + (at + 1..NODE_ENTRIES)
                .take_while(|next| {
                    let (here, before) = (entries[*next], entries[*next - 1]);
                    if entry.is_absent() { here.is_absent() } else { here.follows(before) }
                })
                .count();
        assert_eq!(len, expected, "run at {at}");
        assert_eq!(again.run_at(at, 2).1, expected.min(2));
    }
    assert_eq!(leaf.is_empty(), entries.iter().all(|entry| entry.is_absent()));
    leaf
}

fn any_entry() -> impl Strategy<Value = Pointer> {
    prop_oneof![
        1 => Just(Pointer::ABSENT),
        2 => (0..3_u8, 0..20_u64, 0..300_u16).prop_map(|(l, o, b)| data(l, o, b)),
        1 => (any::<u8>(), 0..Pointer::ORDINAL_END, any::<u16>()).prop_map(|(l, o, b)| data(l, o, b)),
    ]
}

/// Leaves as they come about: pieces of runs and of single entries laid over each other.
fn any_entries() -> impl Strategy<Value = Box<Entries>> {
    let piece = (0..NODE_ENTRIES, 1..200_usize, any_entry(), any::<bool>(), any::<u64>());
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| {
        let mut entries = Box::new([Pointer::ABSENT; NODE_ENTRIES]);
        for (start, len, first, scattered, seed) in pieces {
            let end = (start + len).min(NODE_ENTRIES);
            for (at, entry) in entries[start..end].iter_mut().enumerate() {
                let mixed = (seed ^ at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                *entry = if first.is_absent() {
                    first
                } else if scattered {
                    data(first.lineage().0, first.ordinal().0, (mixed >> 48) as u16)
                } else {
                    first.advance((at as u64).min(u64::from(u16::MAX - first.block())))
                };
            }
        }
        entries
    })
}

fn any_children() -> impl Strategy<Value = Box<[NodePointer; NODE_ENTRIES]>> {
    let child = prop_oneof![(0..3_u8, 1..50_u32, 0..1000_u32), (any::<u8>(), any::<u32>(), 0..NodePointer::INDEX_END),];
    proptest::collection::vec((0..NODE_ENTRIES, child), 1..600).prop_map(|list| {
        let mut children = Box::new([NodePointer::absent(); NODE_ENTRIES]);
        for (at, (lineage, root, index)) in list {
            children[at] = NodePointer::new(Lineage(lineage), RootNumber(root), index);
        }
        children
    })
}

/// Reads the bytes in every way that there is; what can be read at all must be readable throughout.
fn read_anything(bytes: &[u8]) {
    if let Ok(leaf) = Leaf::from_bytes(bytes) {
        assert_eq!(leaf.as_bytes(), bytes);
        let mut entries = [Pointer::ABSENT; NODE_ENTRIES];
        leaf.decode_into(&mut entries);
        for (at, entry) in entries.iter().enumerate() {
            assert_eq!(leaf.get(at), *entry);
            assert_eq!(Pointer::from_raw(entry.raw()), Ok(*entry));
            assert!(!entry.is_hole());
        }
        let blocks: usize = leaf.runs().map(|(_, len, first)| (first.advance(len as u64 - 1), len).1).sum();
        assert_eq!(blocks, entries.iter().filter(|entry| entry.is_data()).count());
        check_leaf(&entries);
    }
    let mut children = [NodePointer::absent(); NODE_ENTRIES];
    for level in 0..16 {
        if decode_interior(bytes, level, &mut children).is_ok() {
            assert_eq!(bytes[0] >> 4, level);
            assert!((1..=3).contains(&level));
            let mut again = [NodePointer::absent(); NODE_ENTRIES];
            decode_interior(&encode_interior(level, &children), level, &mut again).unwrap();
            assert!(again == children);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn leaves_come_back(entries in any_entries()) {
        check_leaf(&entries);
    }

    #[test]
    fn interior_nodes_come_back(children in any_children(), level in 1..=3_u8) {
        let bytes = encode_interior(level, &children);
        let mut decoded = [NodePointer::absent(); NODE_ENTRIES];
        decode_interior(&bytes, level, &mut decoded).unwrap();
        prop_assert!(decoded == *children);
        prop_assert!(decode_interior(&bytes, level % 3 + 1, &mut decoded).is_err());
        prop_assert!(Leaf::from_bytes(&bytes).is_err());
    }

    #[test]
    fn flipped_and_cut_leaves_do_no_harm(entries in any_entries(), flips in proptest::collection::vec(any::<usize>(), 1..4), cut in any::<usize>()) {
        let mut bytes = Leaf::encode(&entries).as_bytes().to_vec();
        for flip in flips {
            let bit = flip % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        read_anything(&bytes);
        bytes.truncate(cut % (bytes.len() + 1));
        read_anything(&bytes);
    }

    #[test]
    fn flipped_heads_of_nodes_do_no_harm(children in any_children(), entries in any_entries(), byte in 0..16_usize, value in any::<u8>()) {
        for mut bytes in [encode_interior(2, &children), Leaf::encode(&entries).as_bytes().to_vec()] {
            if let Some(there) = bytes.get_mut(byte) {
                *there = value;
            }
            read_anything(&bytes);
        }
    }

    #[test]
    fn any_bits_behind_a_fitting_head_do_no_harm(
        level in 0..4_u8, full in any::<bool>(), widths in (0..9_u8, 0..37_u8, 0..23_u8), base in any::<u64>(),
        mut body in proptest::collection::vec(any::<u8>(), 64 + 512 * 9),
    ) {
        let count = if full { 512 } else { body[..64].iter().map(|byte| byte.count_ones() as usize).sum() };
        let bits = count * usize::from(widths.0 + widths.1 + widths.2);
        let start = if full { 0 } else { 64 };
        body.truncate(start + bits.div_ceil(8));
        if !bits.is_multiple_of(8) {
            *body.last_mut().unwrap() &= (1 << (bits % 8)) - 1;
        }
        let base = if level == 0 { base & !0xF | 1 } else { base & !3 | 1 };
        let form = if full { 2 } else { 3 };
        let mut bytes = vec![level << 4 | form, widths.0, widths.1, widths.2];
        bytes.extend(base.to_le_bytes());
        bytes.extend(&body);
        read_anything(&bytes);
        // With a base of 0 nothing can overflow, so the node must be taken if the widths are right for its level.
        bytes[5..12].fill(0);
        bytes[4] = 1;
        let mut children = [NodePointer::absent(); NODE_ENTRIES];
        if level == 0 {
            prop_assert_eq!(Leaf::from_bytes(&bytes).is_ok(), widths.2 <= 16);
        } else {
            prop_assert_eq!(decode_interior(&bytes, level, &mut children).is_ok(), widths.1 <= 32);
        }
        read_anything(&bytes);
    }

    #[test]
    fn any_bytes_do_no_harm(
        tag in 0..0x40_u8, widths in any::<[u8; 3]>(), modulo in 1..17_u8,
        mut rest in proptest::collection::vec(any::<u8>(), 0..3000),
    ) {
        rest.insert(0, tag);
        read_anything(&rest);
        for (there, width) in rest[1..].iter_mut().zip(widths) {
            *there = width % modulo;
        }
        if let Some(base) = rest.get_mut(4) {
            *base = *base & 0xF0 | 1;
        }
        read_anything(&rest);
    }
}

#[test]
fn a_cut_node_is_refused_at_every_length() {
    let mut entries = [Pointer::ABSENT; NODE_ENTRIES];
    for at in (0..NODE_ENTRIES).step_by(3) {
        entries[at] = data(1, 40 + at as u64 % 7, (at * 31) as u16);
    }
    let sparse = check_leaf(&entries).as_bytes().to_vec();
    assert_eq!(sparse[0], 3);
    entries.fill(Pointer::ABSENT);
    entries[7] = data(0, 1, 1);
    entries[300] = data(0, 1, 1);
    let runs = check_leaf(&entries).as_bytes().to_vec();
    assert_eq!((runs[0], runs.len()), (1, 25));
    let children = [NodePointer::new(Lineage(0), RootNumber(3), 4); NODE_ENTRIES];
    for bytes in [sparse, runs] {
        for len in 0..bytes.len() {
            // The runs form is a list, so it can be cut between two runs; the record's CRC tells that.
            let whole = bytes[0] == 1 && len == 13;
            assert_eq!(Leaf::from_bytes(&bytes[..len]).is_ok(), whole, "{len}");
        }
        assert!(Leaf::from_bytes(&[&bytes[..], &[0]].concat()).is_err());
    }
    let interior = encode_interior(1, &children);
    assert_eq!(interior.len(), 12, "512 equal entries need no bits");
    for len in 0..interior.len() {
        assert!(decode_interior(&interior[..len], 1, &mut [NodePointer::absent(); NODE_ENTRIES]).is_err());
    }
}

#[test]
fn bad_runs_are_refused() {
    let run = |start: u16, len: u16, first: u64| {
        [&start.to_le_bytes()[..], &len.to_le_bytes(), &first.to_le_bytes()].concat()
    };
    let list = |runs: &[Vec<u8>]| Leaf::from_bytes(&[&[1][..], &runs.concat()].concat());
    let good = data(0, 5, 100).raw();
    assert!(list(&[run(0, 512, good)]).is_ok());
    assert!(list(&[run(3, 4, good), run(7, 505, good)]).is_ok());
    assert!(list(&[run(0, 512, data(0, 5, 65_024).raw())]).is_ok());
    for bad in [
        list(&[]),
        list(&[run(0, 0, good)]),
        list(&[run(1, 512, good)]),
        list(&[run(512, 1, good)]),
        list(&[run(u16::MAX, u16::MAX, good)]),
        list(&[run(7, 1, good), run(3, 1, good)]),
        list(&[run(3, 5, good), run(7, 1, good)]),
        list(&[run(0, 512, data(0, 5, 65_025).raw())]),
        list(&[run(0, 1, Pointer::hole(Lineage(0), Ordinal(5)).raw())]),
        list(&[run(0, 1, 0)]),
        list(&[run(0, 1, good + 2)]),
    ] {
        assert!(bad.is_err());
    }
}

#[test]
fn the_smaller_form_is_taken_and_a_run_needs_no_allocation() {
    assert_eq!(std::mem::size_of::<Leaf>(), 24);
    let mut entries = [Pointer::ABSENT; NODE_ENTRIES];
    let empty = check_leaf(&entries);
    assert_eq!((empty.as_bytes(), empty.heap_len()), (&[0][..], 0));
    for (at, entry) in entries.iter_mut().enumerate() {
        *entry = data(3, 70_000, 1000 + at as u16);
    }
    let run = check_leaf(&entries);
    let mut expected = vec![1, 0, 0, 0, 2];
    expected.extend(data(3, 70_000, 1000).raw().to_le_bytes());
    assert_eq!((run.as_bytes(), run.heap_len()), (&expected[..], 0));
    // A run ends with its segment: the raw values of the two entries follow each other, the blocks do not.
    entries[..256].copy_from_slice(&std::array::from_fn::<_, 256, _>(|at| data(3, 70_000, 65_280 + at as u16)));
    entries[256..].copy_from_slice(&std::array::from_fn::<_, 256, _>(|at| data(3, 70_001, at as u16)));
    assert_eq!(check_leaf(&entries).runs().count(), 2);
}

#[test]
fn a_leaf_written_at_random_needs_about_30_bits_a_block() {
    // 1 TiB in segments of 64 MiB: 16,384 segments of 16,384 blocks.
    let mut state = 1_u64;
    let entries = std::array::from_fn(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        data(0, 500 + (state >> 33) % 16_384, ((state >> 20) % 16_384) as u16)
    });
    let leaf = check_leaf(&entries);
    assert_eq!(leaf.as_bytes().len(), 12 + 512 * 28 / 8);
}

#[test]
fn the_bytes_of_a_sparse_node_are_what_the_specification_says() {
    let mut entries = [Pointer::ABSENT; NODE_ENTRIES];
    let mut children = [NodePointer::absent(); NODE_ENTRIES];
    let mut bitmap = [0_u8; 64];
    let mut bits = 0_u64;
    for k in 0..9 {
        let at = k * 50;
        entries[at] = data(2, 100 + k as u64 % 8, 5000 + k as u16);
        children[at] = NodePointer::new(Lineage(2), RootNumber(100 + k as u32 % 8), 5000 + k as u32);
        bitmap[at / 8] |= 1 << (at % 8);
        bits |= ((k as u64 % 8) << 4 | k as u64) << (7 * k);
    }
    let node = |tag: u8, base: u64| [&[tag, 0, 3, 4][..], &base.to_le_bytes(), &bitmap, &bits.to_le_bytes()].concat();
    let leaf = node(0x03, 0x0200_0000_0641_3881);
    assert_eq!(check_leaf(&entries).as_bytes(), leaf);
    let interior = node(0x23, 0x0200_0000_6400_4E21);
    assert_eq!(encode_interior(2, &children), interior);

    let mut unused_bit = leaf.clone();
    *unused_bit.last_mut().unwrap() |= 0x80;
    assert!(Leaf::from_bytes(&unused_bit).is_err());
    for kind in [0, 2, 3, 5, 15] {
        let mut wrong = leaf.clone();
        wrong[4] = wrong[4] & 0xF0 | kind;
        assert!(Leaf::from_bytes(&wrong).is_err(), "kind {kind}");
    }
    let mut one_more = leaf;
    one_more[12] |= 2;
    assert!(Leaf::from_bytes(&one_more).is_err(), "10 entries of 7 bits need more bytes");
}

#[test]
fn packed_nodes_that_lie_of_themselves_are_refused() {
    // Nothing but zeroes behind the head, so every entry is the base, whatever the widths.
    let node = |tag: u8, widths: [u8; 3], bitmap: &[u8], count: usize| {
        let bits = count * widths.iter().map(|width| usize::from(*width)).sum::<usize>();
        let body = vec![0; bits.div_ceil(8)];
        [&[tag][..], &widths, &1_u64.to_le_bytes(), bitmap, &body].concat()
    };
    let mut children = [NodePointer::absent(); NODE_ENTRIES];
    for (at, leaf_bits, interior_bits) in [(0, 8, 8), (1, 36, 32), (2, 16, 22)] {
        for more in [0, 1, 200] {
            let mut widths = [0; 3];
            widths[at] = leaf_bits + more;
            assert_eq!(Leaf::from_bytes(&node(0x02, widths, &[], 512)).is_ok(), more == 0);
            widths[at] = interior_bits + more;
            assert_eq!(decode_interior(&node(0x12, widths, &[], 512), 1, &mut children).is_ok(), more == 0);
        }
    }
    assert!(Leaf::from_bytes(&node(0x03, [1, 1, 1], &[0xFF; 64], 512)).is_err(), "all there, and not full");
    assert!(Leaf::from_bytes(&node(0x03, [1, 1, 1], &[0; 64], 0)).is_err(), "none there");
    assert!(Leaf::from_bytes(&node(0x04, [1, 1, 1], &[], 512)).is_err(), "no such form");
    assert!(decode_interior(&node(0x42, [1, 1, 1], &[], 512), 4, &mut children).is_err(), "no such level");
    let runs = Leaf::from_bytes(&node(0x11, [0; 3], &[], 0));
    assert!(runs.is_err() && decode_interior(&[0x10], 1, &mut children).is_err(), "forms of leaves alone");
}
