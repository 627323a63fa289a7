// SPDX-License-Identifier: Apache-2.0
//! The tree against a plain ordered map: lookups, kills, copy-on-write, and that each node is held or killed, once.

use super::interior::Ledger;
use super::{
    BLOCK_END, Change, Content, Kills, Lookup, NodePath, ROOT_LEVEL, Step, Tree, Walk, WriteCursor, first_of,
    look_into, span,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use varve_format::{Lineage, NodePointer, Pointer};
use varve_types::{Ordinal, RootNumber};

/// Leaves that the tests write to: neighbours, and some that share no node but the root.
const LEAVES: [u64; 10] =
    [0, 1, 2, 511, 512, 513, span(1) / 512, span(2) / 512, span(2) / 512 + 7, BLOCK_END / 512 - 1];

type Model = BTreeMap<u64, Pointer>;

#[derive(Default)]
struct Told {
    blocks: Vec<(Pointer, Ordinal)>,
    nodes: Vec<NodePointer>,
    /// Subtrees, each with the number of blocks that were told before.
    subtrees: Vec<(usize, NodePath, Ordinal)>,
}

impl Told {
    /// Tells everything in the subtrees one by one, as if they had been walked.
    fn expand(&mut self, store: &BTreeMap<NodePointer, Vec<u8>>) {
        for (at, top, death) in self.subtrees.drain(..).rev() {
            let mut blocks = Vec::new();
            let mut open = vec![top];
            while let Some(path) = open.pop() {
                self.nodes.push(path.pointer);
                match look_into(&path, &store[&path.pointer]).unwrap() {
                    Content::Children(children) => open.extend(children.into_iter().rev()),
                    Content::Runs(runs) => blocks.extend(
                        runs.into_iter()
                            .flat_map(|(first, len)| (0..u64::from(len)).map(move |i| (first.advance(i), death))),
                    ),
                }
            }
            self.blocks.splice(at..at, blocks);
        }
    }
}

impl Kills for Told {
    fn blocks(&mut self, first: Pointer, blocks: u32, death: Ordinal) {
        assert!(blocks > 0 && first.is_data());
        self.blocks.extend((0..u64::from(blocks)).map(|at| (first.advance(at), death)));
    }
    fn node(&mut self, node: NodePointer) {
        assert!(!node.is_absent());
        self.nodes.push(node);
    }
    fn subtree(&mut self, top: NodePath, death: Ordinal) {
        assert!(!top.pointer.is_absent() && first_of(top.level, top.first_block) == top.first_block);
        self.subtrees.push((self.blocks.len(), top, death));
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// (leaf, changes of it: start within the leaf, blocks, what).
    Apply(usize, Vec<(u64, u32, What)>),
    /// From this place in a leaf to that in another; subtrees from this level on whole; so many nodes at a time.
    Remove(usize, u64, usize, u64, u8, usize),
    /// Write a root in slices of so many nodes, with lookups between.
    Write(usize),
    /// What was written has come to the store.
    Stored,
    /// Evict a subtree.
    Evict(u8, usize),
    /// The hand passes so many nodes.
    Pass(usize),
    /// Write a root and go on with a tree that was just opened.
    Reload,
}

#[derive(Clone, Debug)]
enum What {
    /// New data from this block of the segment on.
    Data(u16),
    /// A hole.
    Hole,
    /// What is there already, block by block.
    Same,
}

fn any_op() -> impl Strategy<Value = Op> {
    let what = prop_oneof![5 => (0..60_000_u16).prop_map(What::Data), 2 => Just(What::Hole), 2 => Just(What::Same)];
    let len = prop_oneof![3 => Just(1_u32), 3 => 2..20_u32, 1 => 100..513_u32];
    let start = prop_oneof![0..512_u64, Just(0), 0..30_u64];
    let change = (start, len, what).prop_map(|(start, len, what)| (start, len.min((512 - start) as u32), what));
    let leaf = 0..LEAVES.len();
    prop_oneof![
        12 => (leaf.clone(), proptest::collection::vec(change, 1..6)).prop_map(|(leaf, changes)| Op::Apply(leaf, changes)),
        2 => (leaf.clone(), prop_oneof![0..512_u64, Just(0)], leaf.clone(), prop_oneof![0..513_u64, Just(512)], 0..6_u8, 1..5_usize)
            .prop_map(|(a, b, c, d, level, most)| Op::Remove(a, b, c, d, level, most)),
        4 => (1..6_usize).prop_map(Op::Write),
        2 => Just(Op::Stored),
        4 => (0..4_u8, leaf).prop_map(|(level, leaf)| Op::Evict(level, leaf)),
        3 => (1..12_usize).prop_map(Op::Pass),
        1 => Just(Op::Reload),
    ]
}

/// A tree, what it should be, and the store that its roots are written to.
#[derive(Default)]
struct World {
    tree: Tree,
    model: Model,
    ordinal: u64,
    store: BTreeMap<NodePointer, Vec<u8>>,
    killed: BTreeSet<NodePointer>,
    roots: Vec<(NodePointer, Model)>,
    /// Roots from this number on are not in the store.
    unstored: Option<RootNumber>,
}

impl World {
    fn install(&mut self, path: NodePath) {
        self.check_stored(path);
        self.tree.install(path, &self.store[&path.pointer]).unwrap();
    }

    fn check_stored(&self, path: NodePath) {
        assert!(self.unstored.is_none_or(|root| path.pointer.root() < root), "{path:?} can not be loaded");
    }

    fn take(&mut self, mut told: Told, expected: &[(Pointer, Ordinal)]) {
        told.expand(&self.store);
        assert_eq!(told.blocks, expected);
        for node in told.nodes {
            assert!(self.store.contains_key(&node), "only nodes that were written are killed");
            assert!(self.killed.insert(node), "{node:?} is killed once");
        }
    }

    fn apply(&mut self, leaf: usize, changes: &[(u64, u32, What)]) {
        self.ordinal += 1;
        let (mut list, mut expected) = (Vec::new(), Vec::new());
        let before = self.model.clone();
        for (start, blocks, what) in changes {
            let start_block = LEAVES[leaf] * 512 + start;
            let first = match what {
                What::Data(block) => Pointer::data(Lineage(2), Ordinal(self.ordinal), *block),
                What::Hole => Pointer::hole(Lineage(2), Ordinal(self.ordinal)),
                What::Same => {
                    for block in start_block..start_block + u64::from(*blocks) {
                        list.extend(self.model.get(&block).map(|old| Change {
                            start_block: block,
                            blocks: 1,
                            pointer: *old,
                        }));
                    }
                    continue;
                }
            };
            list.push(Change { start_block, blocks: *blocks, pointer: first });
            for at in 0..u64::from(*blocks) {
                let block = start_block + at;
                let new = first.is_data().then(|| first.advance(at));
                let old = if let Some(new) = new { self.model.insert(block, new) } else { self.model.remove(&block) };
                expected.extend(old.filter(|old| Some(*old) != new).map(|old| (old, first.ordinal())));
            }
        }
        let clean = self.tree.root_pointer();
        let mut told = Told::default();
        let applied = loop {
            match self.tree.apply(&list, &mut told) {
                Ok(applied) => break applied,
                Err(path) => self.install(path),
            }
        };
        if before == self.model && expected.is_empty() {
            assert_eq!(applied.changed_blocks, 0);
            assert!(told.nodes.is_empty());
            assert_eq!(self.tree.root_pointer(), clean, "what changes nothing makes nothing dirty");
        }
        self.take(told, &expected);
        for change in &list {
            self.check_block(change.start_block);
            self.check_block(change.start_block + u64::from(change.blocks) - 1);
        }
    }

    fn remove(&mut self, start: u64, end: u64, level: u8, most: usize) {
        self.ordinal += 1;
        let death = Ordinal(self.ordinal);
        let mut told = Told::default();
        let mut next = start;
        let mut calls = 0;
        while next < end {
            let removed = self.tree.remove_range(next..end, death, level, most, &mut told);
            calls += 1;
            assert!(removed.next_block > next || removed.cold.is_some());
            assert!(calls < 1000, "only what exists is walked");
            next = removed.next_block;
            if let Some(path) = removed.cold {
                self.install(path);
            }
        }
        assert_eq!(next, end);
        let gone: Vec<u64> = self.model.range(start..end).map(|(block, _)| *block).collect();
        let expected: Vec<_> = gone.iter().map(|block| (self.model.remove(block).unwrap(), death)).collect();
        self.take(told, &expected);
    }

    fn write(&mut self, most: usize) {
        let number = RootNumber(self.roots.len() as u32 + 1);
        let first_index = 70_000 * (number.0 % 2);
        let mut cursor = WriteCursor::new(Lineage(2), number, first_index);
        let mut nodes = Vec::new();
        let dirty = self.tree.dirty_nodes();
        if dirty > 0 {
            self.unstored.get_or_insert(number);
        }
        let written = loop {
            let before = nodes.len();
            let emit =
                &mut |index, level, first_block, bytes: &[u8]| nodes.push((index, level, first_block, bytes.to_vec()));
            let done = self.tree.write_some(&mut cursor, most, emit);
            assert!(nodes.len() - before <= most);
            if let Some(written) = done {
                break written;
            }
            assert_eq!(nodes.len() - before, most);
            assert_eq!(self.tree.root_pointer(), None);
            self.tree.evict(ROOT_LEVEL, 0);
            self.check_block(self.ordinal % 512);
        };
        assert_eq!((written.nodes as usize, nodes.len()), (dirty, dirty));
        assert_eq!(self.tree.root_pointer(), Some(written.root));
        for (at, (index, level, first_block, bytes)) in nodes.into_iter().enumerate() {
            assert_eq!(index, first_index + at as u32);
            assert_eq!(first_block, first_of(level, first_block));
            let pointer = NodePointer::new(Lineage(2), number, index);
            assert_eq!(self.store.insert(pointer, bytes), None);
        }
        self.roots.push((written.root, self.model.clone()));
        let mut held = self.read_root(written.root).0;
        assert!(held.is_disjoint(&self.killed));
        held.extend(&self.killed);
        assert!(held.iter().eq(self.store.keys()), "a node is held by the newest root or was killed");
    }

    /// The nodes and the blocks that a root in the store holds.
    fn read_root(&self, root: NodePointer) -> (BTreeSet<NodePointer>, Model) {
        read_tree(&Tree::cold(root), &self.store, 0)
    }

    fn check_block(&mut self, block: u64) {
        let found = loop {
            match self.tree.lookup_run(block, 700) {
                (Lookup::Cold(path), blocks) => {
                    assert!((path.first_block..path.first_block + span(path.level)).contains(&block));
                    assert_eq!(blocks, (path.first_block + span(path.level) - block).min(700));
                    self.install(path);
                }
                other => break other,
            }
        };
        assert_eq!(
            self.tree.lookup(block),
            match found.0 {
                Lookup::Absent { .. } | Lookup::Cold(_) => self.tree.lookup_run(block, u64::MAX).0,
                Lookup::Found(pointer) => Lookup::Found(pointer),
            }
        );
        let (there, blocks) = found;
        match (there, self.model.get(&block)) {
            (Lookup::Found(pointer), Some(expected)) => {
                assert_eq!(pointer, *expected);
                for at in 0..blocks {
                    assert_eq!(self.model[&(block + at)], pointer.advance(at));
                }
                let end = block + blocks;
                let same = self.model.get(&end).is_some_and(|next| next.follows(pointer.advance(blocks - 1)));
                assert!(!same || end.is_multiple_of(512), "a run is as long as it can be in its leaf");
            }
            (Lookup::Absent { blocks: all }, None) => {
                assert!(blocks == all.min(700) && blocks > 0 && block + all <= BLOCK_END);
                assert_eq!(self.model.range(block..block + all).next(), None);
            }
            (there, expected) => panic!("block {block}: {there:?}, and not {expected:?}"),
        }
    }

    fn stored(&mut self) {
        self.tree.stored();
        self.unstored = None;
    }

    fn check_all(&self) {
        let (_, blocks) = read_tree_with(&self.tree, 0, |path| {
            self.check_stored(path);
            &self.store[&path.pointer]
        });
        assert!(blocks == self.model);
        assert_eq!(self.tree.ledger, Ledger::recount(self.tree.root.as_ref()));
    }
}

/// Walks a tree from a block on, with nodes from the store: the nodes that have a pointer, and the blocks.
fn read_tree(tree: &Tree, store: &BTreeMap<NodePointer, Vec<u8>>, from: u64) -> (BTreeSet<NodePointer>, Model) {
    read_tree_with(tree, from, |path| &store[&path.pointer])
}

fn read_tree_with<'a>(
    tree: &Tree,
    from: u64,
    load: impl Fn(NodePath) -> &'a Vec<u8>,
) -> (BTreeSet<NodePointer>, Model) {
    let (mut nodes, mut model) = (BTreeSet::new(), Model::new());
    let mut walk = Walk::from(from);
    let mut end = from;
    loop {
        match walk.step(tree) {
            Step::Node(path) if path.pointer.is_absent() => {}
            Step::Node(path) => assert!(nodes.insert(path.pointer), "a node is entered once"),
            Step::Cold(path) => walk.supply(path, load(path)).unwrap(),
            Step::Run { block, blocks, pointer } => {
                assert!(block >= end && blocks > 0 && walk.position() == block + blocks);
                end = block + blocks;
                model.extend((0..blocks).map(|at| (block + at, pointer.advance(at))));
            }
            Step::End => return (nodes, model),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_tree_is_an_ordered_map_and_forgets_no_root(ops in proptest::collection::vec(any_op(), 1..60)) {
        let mut world = World::default();
        for op in ops {
            match op {
                Op::Apply(leaf, changes) => world.apply(leaf, &changes),
                Op::Remove(a, b, c, d, level, most) => {
                    let (one, other) = (LEAVES[a] * 512 + b, LEAVES[c] * 512 + d);
                    world.remove(one.min(other), one.max(other), level, most);
                }
                Op::Write(most) => world.write(most),
                Op::Stored => world.stored(),
                Op::Evict(level, leaf) => {
                    let before = world.tree.bytes_in_ram();
                    let freed = world.tree.evict(level, LEAVES[leaf] * 512);
                    assert_eq!(world.tree.bytes_in_ram() + freed, before);
                }
                Op::Pass(times) => {
                    for _ in 0..times {
                        let (bytes, nodes) = (world.tree.bytes_in_ram(), world.tree.loaded_nodes());
                        let pass = world.tree.pass(|_| false);
                        assert_eq!(world.tree.bytes_in_ram() + pass.freed_bytes, bytes);
                        assert_eq!(world.tree.loaded_nodes() + pass.nodes, nodes);
                    }
                }
                Op::Reload => {
                    world.write(7);
                    world.stored();
                    world.tree = Tree::cold(world.roots.last().unwrap().0);
                }
            }
            world.check_all();
        }
        for leaf in LEAVES {
            for block in [leaf * 512, leaf * 512 + 15, leaf * 512 + 511] {
                world.check_block(block);
            }
        }
        world.write(3);
        for (root, model) in &world.roots {
            prop_assert!(world.read_root(*root).1 == *model, "an old root is what it was");
        }
        world.remove(0, BLOCK_END, ROOT_LEVEL + 1, 3);
        prop_assert_eq!((world.tree.root_pointer(), world.tree.loaded_nodes(), world.tree.dirty_nodes()), (Some(NodePointer::absent()), 0, 0));
        prop_assert_eq!(world.tree.bytes_in_ram(), size_of::<Tree>());
        world.write(1);
        prop_assert_eq!(world.killed.len(), world.store.len());
    }
}

fn data(ordinal: u64, block: u16) -> Pointer {
    Pointer::data(Lineage(0), Ordinal(ordinal), block)
}

fn set(tree: &mut Tree, start_block: u64, blocks: u32, pointer: Pointer) -> Told {
    let mut told = Told::default();
    tree.apply(&[Change { start_block, blocks, pointer }], &mut told).unwrap();
    told
}

fn write(tree: &mut Tree, root: u32, store: &mut BTreeMap<NodePointer, Vec<u8>>) -> NodePointer {
    let number = RootNumber(root);
    let emit = &mut |index, _, _, bytes: &[u8]| {
        store.insert(NodePointer::new(Lineage(0), number, index), bytes.to_vec());
    };
    tree.write_root(Lineage(0), number, 0, emit).root
}

#[test]
fn a_path_is_written_from_the_leaf_to_the_root() {
    let mut tree = Tree::empty();
    assert_eq!(tree.root_pointer(), Some(NodePointer::absent()));
    assert_eq!(tree.lookup_run(77, 5), (Lookup::Absent { blocks: BLOCK_END - 77 }, 5));
    set(&mut tree, 513, 2, data(1, 4));
    assert_eq!((tree.root_pointer(), tree.dirty_nodes()), (None, 4));
    assert_eq!(tree.lookup(512), Lookup::Absent { blocks: 1 });
    assert_eq!(tree.lookup(0), Lookup::Absent { blocks: 512 });
    assert_eq!(tree.lookup(1024), Lookup::Absent { blocks: span(1) - 1024 });
    let mut seen = Vec::new();
    let written = tree.write_root(Lineage(0), RootNumber(1), 5, &mut |index, level, first, _: &[u8]| {
        seen.push((index, level, first))
    });
    assert_eq!(seen, [(5, 0, 512), (6, 1, 0), (7, 2, 0), (8, 3, 0)]);
    assert_eq!((written.root, written.nodes), (NodePointer::new(Lineage(0), RootNumber(1), 8), 4));
    let again = tree.write_root(Lineage(0), RootNumber(2), 0, &mut |_, _, _, _: &[u8]| panic!("nothing has changed"));
    assert_eq!((again.root, again.nodes), (written.root, 0));
}

#[test]
fn kills_are_told_in_rows_with_the_death_of_their_change() {
    let mut tree = Tree::empty();
    set(&mut tree, 0, 512, data(1, 100));
    let mut rows = Rows::default();
    let change = |start_block, blocks, pointer| Change { start_block, blocks, pointer };
    let hole = Pointer::hole(Lineage(0), Ordinal(9));
    tree.apply(&[change(10, 300, data(8, 0)), change(310, 5, hole), change(309, 1, data(8, 299))], &mut rows).unwrap();
    assert_eq!(rows.0, [(data(1, 110), 300, Ordinal(8)), (data(1, 410), 5, Ordinal(9))]);
}

#[derive(Default)]
struct Rows(Vec<(Pointer, u32, Ordinal)>);
impl Kills for Rows {
    fn blocks(&mut self, first: Pointer, blocks: u32, death: Ordinal) {
        self.0.push((first, blocks, death));
    }
    fn node(&mut self, node: NodePointer) {
        panic!("{node:?} was never written");
    }
    fn subtree(&mut self, top: NodePath, _: Ordinal) {
        panic!("{top:?} was never written");
    }
}

#[test]
fn loaded_bytes_are_checked_and_late_ones_ignored() {
    let mut store = BTreeMap::new();
    let mut tree = Tree::empty();
    set(&mut tree, 0, 1, data(1, 0));
    set(&mut tree, 512, 1, data(1, 1));
    let root = write(&mut tree, 1, &mut store);
    let mut cold = Tree::cold(root);
    let Lookup::Cold(top) = cold.lookup(0) else { panic!("nothing is in RAM") };
    let leaf = NodePath { level: 0, first_block: 0, pointer: NodePointer::new(Lineage(0), RootNumber(1), 0) };
    assert!(cold.install(top, &store[&leaf.pointer]).is_err(), "a leaf is no root");
    assert!(cold.install(top, &[]).is_err());
    assert!(cold.install(leaf, &[0]).is_err(), "an empty leaf is never written");
    let younger = NodePath { pointer: NodePointer::new(Lineage(0), RootNumber(1), 2), ..top };
    assert!(cold.install(younger, &store[&top.pointer]).is_err(), "a child is older than its parent");
    cold.install(leaf, &store[&leaf.pointer]).unwrap();
    assert_eq!((cold.lookup(0), cold.loaded_nodes()), (Lookup::Cold(top), 0), "its place is not known yet");
    for pointer in [4, 3, 2, 0].map(|index| NodePointer::new(Lineage(0), RootNumber(1), index)) {
        let Lookup::Cold(path) = cold.lookup(0) else { panic!("more is cold") };
        assert_eq!(path.pointer, pointer);
        cold.install(path, &store[&pointer]).unwrap();
    }
    assert_eq!(cold.lookup(0), Lookup::Found(data(1, 0)));
    let other = NodePath { pointer: NodePointer::new(Lineage(0), RootNumber(1), 1), ..leaf };
    assert!(cold.evict(0, 0) == 0 && cold.lookup(0) == Lookup::Cold(leaf), "a single run takes no allocation");
    cold.install(other, &store[&other.pointer]).unwrap();
    assert_eq!(cold.lookup(0), Lookup::Cold(leaf), "another node is not the one that lies there");
    cold.install(leaf, &store[&leaf.pointer]).unwrap();
    set(&mut cold, 0, 1, data(2, 0));
    cold.install(leaf, &store[&leaf.pointer]).unwrap();
    assert_eq!(cold.lookup(0), Lookup::Found(data(2, 0)), "an old node does not undo a change");
}

#[test]
fn nodes_stay_in_ram_until_they_are_in_the_store() {
    let (mut store, mut tree) = (BTreeMap::new(), Tree::empty());
    set(&mut tree, 0, 1, data(1, 0));
    set(&mut tree, span(1), 1, data(1, 1));
    write(&mut tree, 1, &mut store);
    tree.evict(ROOT_LEVEL, 0);
    assert_eq!(tree.loaded_nodes(), 6, "two leaves and what leads to them");
    tree.stored();
    set(&mut tree, 0, 1, data(2, 0));
    let root = write(&mut tree, 2, &mut store);
    tree.evict(ROOT_LEVEL, 0);
    assert_eq!(tree.loaded_nodes(), 4, "the second root's own");
    assert!(matches!(tree.lookup(span(1)), Lookup::Cold(path) if path.level == 1));
    tree.stored();
    tree.evict(ROOT_LEVEL, 0);
    assert_eq!((tree.loaded_nodes(), tree.root_pointer()), (0, Some(root)));
    assert_eq!(tree.bytes_in_ram(), size_of::<Tree>());
}

#[test]
fn a_large_hole_takes_subtrees_out_without_looking_into_them() {
    let (mut store, mut tree) = (BTreeMap::new(), Tree::empty());
    for leaf in (0..3 * 512).step_by(7) {
        set(&mut tree, leaf * 512, 2, data(leaf + 1, 0));
    }
    set(&mut tree, span(2) + 5, 1, data(9, 9));
    let root = write(&mut tree, 1, &mut store);
    // From the middle of one subtree to the end of the third.
    let (from, end) = (span(1) - 512, 3 * span(1));
    let mut cold = Tree::cold(root);
    let (mut told, mut next, mut loads) = (Told::default(), from, 0);
    while next < end {
        let removed = cold.remove_range(next..end, Ordinal(7), 1, 64, &mut told);
        next = removed.next_block;
        if let Some(path) = removed.cold {
            loads += 1;
            cold.install(path, &store[&path.pointer]).unwrap();
        }
    }
    assert_eq!(loads, 3 + 1, "the path, and the leaf in front");
    let tops: Vec<_> = told.subtrees.iter().map(|(_, top, death)| (top.level, top.first_block, *death)).collect();
    assert_eq!(tops, [(1, span(1), Ordinal(7)), (1, 2 * span(1), Ordinal(7))]);
    assert_eq!(cold.lookup(span(1)), Lookup::Absent { blocks: span(2) - span(1) });
    // What is told of it is what a walk of the subtree alone finds.
    let top = told.subtrees[0].1;
    let (nodes, model) = read_tree(&Tree::below(top), &store, 0);
    assert!(nodes.contains(&top.pointer) && nodes.len() == 1 + model.len() / 2);
    assert!(model.range(..span(1)).next().is_none() && model.range(2 * span(1)..).next().is_none());
    told.subtrees.truncate(1);
    (told.blocks, told.nodes) = (Vec::new(), Vec::new());
    told.subtrees[0].0 = 0;
    told.expand(&store);
    assert!(told.blocks.iter().map(|(pointer, _)| *pointer).eq(model.into_values()));
    assert!(told.nodes.into_iter().collect::<BTreeSet<_>>() == nodes);
}

#[test]
fn what_is_dirty_is_not_cut_out_but_walked() {
    let (mut store, mut tree) = (BTreeMap::new(), Tree::empty());
    for leaf in 0..4 {
        set(&mut tree, leaf * 512, 1, data(1, leaf as u16));
    }
    write(&mut tree, 1, &mut store);
    tree.stored();
    set(&mut tree, 512, 1, data(2, 0));
    let mut told = Told::default();
    let removed = tree.remove_range(0..BLOCK_END, Ordinal(3), 0, 64, &mut told);
    assert_eq!(removed.next_block, BLOCK_END);
    assert_eq!(told.subtrees.len(), 3, "three leaves are clean");
    assert_eq!(told.blocks, [(data(2, 0), Ordinal(3))]);
    assert_eq!(tree.root_pointer(), Some(NodePointer::absent()));
    assert_eq!(tree.bytes_in_ram(), size_of::<Tree>());
}

#[test]
fn a_walk_starts_anywhere_and_skips() {
    let mut store = BTreeMap::new();
    let mut tree = Tree::empty();
    let mut model = Model::new();
    for leaf in [0, 1, 600, span(2) / 512] {
        set(&mut tree, leaf * 512 + 3, 9, data(leaf + 1, 50));
        model.extend((0..9).map(|at| (leaf * 512 + 3 + at, data(leaf + 1, 50 + at as u16))));
    }
    let root = write(&mut tree, 1, &mut store);
    for from in [0, 3, 7, 511, 515, 600 * 512, span(2) + 4, BLOCK_END] {
        let (_, blocks) = read_tree(&Tree::cold(root), &store, from);
        assert!(blocks.iter().eq(model.range(from..)), "{from}");
    }
    let (cold, mut walk) = (Tree::cold(root), Walk::from(0));
    let mut entered = 0;
    loop {
        match walk.step(&cold) {
            Step::Node(path) if path.level == 1 => walk.skip(&path),
            Step::Node(_) => entered += 1,
            Step::Cold(path) => walk.supply(path, &store[&path.pointer]).unwrap(),
            Step::Run { .. } => panic!("all leaves were skipped"),
            Step::End => break,
        }
    }
    assert_eq!(entered, 3, "the root and its two children");
}

#[test]
#[should_panic(expected = "stays as it is")]
fn a_tree_is_not_changed_while_a_root_is_written() {
    let mut tree = Tree::empty();
    set(&mut tree, 0, 1, data(1, 0));
    let mut cursor = WriteCursor::new(Lineage(0), RootNumber(1), 0);
    assert_eq!(tree.write_some(&mut cursor, 1, &mut |_, _, _, _: &[u8]| {}), None);
    set(&mut tree, 0, 1, data(2, 0));
}
