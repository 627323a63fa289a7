// SPDX-License-Identifier: Apache-2.0
//! A root that is written behind its changes, and what leaves RAM meanwhile, against the same root written at the end.

use super::{BLOCK_END, Change, Kills, Lookup, NodePath, Tree, WriteCursor, span};
use proptest::prelude::*;
use std::collections::BTreeMap;
use varve_format::{Lineage, NodePointer, Pointer};
use varve_types::{Ordinal, RootNumber};

const OWN: Lineage = Lineage(0);

/// Kills in the order in which they are told.
#[derive(Default, PartialEq, Eq, Debug)]
struct Told(Vec<(u64, u32)>);

impl Kills for Told {
    fn blocks(&mut self, first: Pointer, blocks: u32, _: Ordinal) {
        self.0.push((first.raw(), blocks));
    }
    fn node(&mut self, node: NodePointer) {
        self.0.push((node.raw(), 0));
    }
    fn subtree(&mut self, top: NodePath, _: Ordinal) {
        self.0.push((top.pointer.raw(), u32::MAX));
    }
}

type Store = BTreeMap<NodePointer, Vec<u8>>;

fn change(block: u64, ordinal: u64) -> Change {
    // Every block in a run of its own, so that a leaf takes RAM.
    Change { start_block: block, blocks: 1, pointer: Pointer::data(OWN, Ordinal(ordinal), (block % 60_000) as u16) }
}

fn apply(tree: &mut Tree, change: Change, told: &mut Told, store: &Store) {
    while let Err(path) = tree.apply(&[change], told) {
        tree.install(path, &store[&path.pointer]).unwrap();
    }
}

/// Writes a root; what is put is taken into the store.
fn write(tree: &mut Tree, number: u32, store: &mut Store) -> NodePointer {
    let number = RootNumber(number);
    let emit = &mut |index, _, _, bytes: &[u8]| {
        store.insert(NodePointer::new(OWN, number, index), bytes.to_vec());
    };
    let root = tree.write_root(OWN, number, 0, emit).root;
    tree.stored();
    root
}

/// The same changes and root, written behind them: every so many changes, in slices, of which a part is in the store at a time. The hand goes on
/// all the while.
fn write_behind(tree: &mut Tree, changes: &[Change], every: usize, told: &mut Told, store: &mut Store) -> NodePointer {
    let number = RootNumber(2);
    let mut cursor = WriteCursor::new(OWN, number, 0);
    let mut not_put = Store::new();
    for (at, change) in changes.iter().enumerate() {
        if at.is_multiple_of(every) {
            let before = change.start_block & !511;
            let emit = &mut |index, _, _, bytes: &[u8]| {
                not_put.insert(NodePointer::new(OWN, number, index), bytes.to_vec());
            };
            while !tree.write_behind(&mut cursor, before, 3, emit) {}
            if at.is_multiple_of(2 * every) {
                store.append(&mut not_put);
                tree.stored_before(cursor.next());
            }
        }
        tree.pass(|_| false);
        apply(tree, *change, told, store);
        tree.pass(|_| false);
    }
    let emit = &mut |index, _, _, bytes: &[u8]| {
        not_put.insert(NodePointer::new(OWN, number, index), bytes.to_vec());
    };
    let root = loop {
        tree.pass(|_| false);
        if let Some(written) = tree.write_some(&mut cursor, 3, emit) {
            break written.root;
        }
    };
    store.append(&mut not_put);
    tree.stored();
    root
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_root_written_behind_its_changes_is_the_same_root(
        old in proptest::collection::btree_set((0..3_u64, 0..40_u64, 0..4_u64), 1..120),
        new in proptest::collection::btree_set((0..3_u64, 0..40_u64, 0..4_u64), 1..120),
        every in 1..9_usize,
    ) {
        // Some leaves of some nodes of level 1, below two nodes of level 2.
        let block = |(far, leaf, at): (u64, u64, u64)| far * (span(2) / 2) + leaf * 512 * 100 + at * 3;
        let mut store = Store::new();
        let mut tree = Tree::empty();
        for at in &old {
            apply(&mut tree, change(block(*at), 1), &mut Told::default(), &store);
        }
        let first = write(&mut tree, 1, &mut store);
        let changes: Vec<Change> = new.iter().map(|at| change(block(*at), 2)).collect();

        let (mut at_end, mut behind) = (Tree::cold(first), Tree::cold(first));
        let (mut told, mut told_behind) = (Told::default(), Told::default());
        let (mut store_behind, mut store_at_end) = (store.clone(), store);
        changes.iter().for_each(|change| apply(&mut at_end, *change, &mut told, &store_at_end));
        let root = write(&mut at_end, 2, &mut store_at_end);
        prop_assert_eq!(write_behind(&mut behind, &changes, every, &mut told_behind, &mut store_behind), root);
        prop_assert_eq!(told, told_behind);
        prop_assert!(store_at_end == store_behind);
    }
}

/// A tree of so many leaves below one node of level 1, all in RAM and in the store.
fn leaves(count: u64) -> (Tree, Store) {
    let (mut tree, mut store) = (Tree::empty(), Store::new());
    for block in (0..count).flat_map(|leaf| [leaf * 512, leaf * 512 + 7]) {
        apply(&mut tree, change(block, 1), &mut Told::default(), &store);
    }
    write(&mut tree, 1, &mut store);
    (tree, store)
}

#[test]
fn what_is_looked_at_stays_and_the_rest_goes() {
    let (mut tree, store) = leaves(64);
    let all = tree.loaded_nodes();
    // A round for what building it has noted.
    while !tree.pass(|_| false).is_round {}
    assert_eq!(tree.loaded_nodes(), all);
    for _ in 0..3 {
        let hot = [3, 40].map(|leaf| leaf * 512);
        assert!(hot.iter().all(|block| matches!(tree.lookup(*block), Lookup::Found(_))));
        while !tree.pass(|_| false).is_round {}
        assert_eq!(tree.loaded_nodes(), all - 62, "two leaves are looked at each round");
    }
    for _ in 0..2 {
        while !tree.pass(|first| first == 0).is_round {}
        assert_eq!(tree.loaded_nodes(), 3, "what is needed stays");
    }
    while !tree.pass(|_| false).is_round {}
    assert_eq!(tree.loaded_nodes(), 2, "nodes of level 2 and above stay");
    let Lookup::Cold(path) = tree.lookup(512) else { panic!("it is cold") };
    assert_eq!(path.level, 1);
    tree.install(path, &store[&path.pointer]).unwrap();
    assert!(matches!(tree.lookup(512), Lookup::Cold(NodePath { level: 0, .. })), "who comes in stays for a round");
}

#[test]
fn a_node_that_the_store_may_not_have_stays() {
    let (mut tree, _) = leaves(8);
    let mut told = Told::default();
    tree.apply(&[change(5 * 512, 2)], &mut told).unwrap();
    tree.apply(&[change(BLOCK_END - 1, 2)], &mut told).unwrap();
    (0..4).for_each(|_| while !tree.pass(|_| false).is_round {});
    assert!(tree.dirty_nodes() == 7 && tree.loaded_nodes() == 7, "what is dirty stays, and all else goes");
    let mut cursor = WriteCursor::new(OWN, RootNumber(2), 0);
    assert!(tree.write_behind(&mut cursor, span(2), 9, &mut |_, _, _, _: &[u8]| {}));
    assert_eq!(cursor.nodes(), 3);
    (0..4).for_each(|_| while !tree.pass(|_| false).is_round {});
    assert_eq!(tree.loaded_nodes(), 7, "what is written and not put stays");
    tree.stored_before(cursor.next());
    (0..4).for_each(|_| while !tree.pass(|_| false).is_round {});
    assert_eq!(tree.loaded_nodes(), 5, "the leaf and the node above it have gone");
}
