// SPDX-License-Identifier: Apache-2.0
//! Holds off: a leaf that is written once more and says something else, is not told as replaced, or is when it can not move.

use super::*;
use varve_format::Lineage;
use varve_types::RootNumber;

const OWN: Lineage = Lineage(1);

#[derive(Default)]
struct Nodes(Vec<NodePointer>);

impl Kills for Nodes {
    fn blocks(&mut self, _: Pointer, _: u32, _: Ordinal) {
        panic!("no block is replaced");
    }
    fn node(&mut self, node: NodePointer) {
        self.0.push(node);
    }
    fn subtree(&mut self, _: NodePath, _: Ordinal) {
        panic!("nothing is detached");
    }
}

type Stored = Vec<(u8, u64, Vec<u8>)>;

fn write(tree: &mut Tree, root: u32) -> (Written, Stored) {
    let mut stored = Vec::new();
    let mut emit = |_, level, first: u64, bytes: &[u8]| stored.push((level, first, bytes.to_vec()));
    let written = tree.write_root(OWN, RootNumber(root), 0, &mut emit);
    tree.stored();
    (written, stored)
}

#[test]
fn a_leaf_moves_and_says_the_same() {
    let mut tree = Tree::empty();
    let data = |ordinal| Pointer::data(OWN, Ordinal(ordinal), 3);
    for (start_block, ordinal) in [(7, 1), (span(0) + 9, 2)] {
        let change = Change { start_block, blocks: 2, pointer: data(ordinal) };
        tree.apply(&[change], &mut Nodes::default()).expect("nothing of it is cold");
    }
    let (first, before) = write(&mut tree, 1);
    assert_eq!(first.nodes, 5);
    let places = tree.leaves_below(8).expect("it is in RAM");
    assert_eq!(places.iter().map(|(block, _)| *block).collect::<Vec<_>>(), [0, span(0)]);
    let mut nodes = Nodes::default();
    assert!(tree.rewrite_leaf(span(0) + 400, &mut nodes));
    assert!(!tree.rewrite_leaf(span(0), &mut nodes), "it is to be written already");
    assert!(!tree.rewrite_leaf(5 * span(0), &mut nodes), "there is none");
    assert_eq!(nodes.0.len(), 4, "the leaf, and what is above it");
    assert!(nodes.0.contains(&places[1].1) && !nodes.0.contains(&places[0].1));
    assert_eq!(tree.lookup(span(0) + 10), Lookup::Found(data(2).advance(1)));
    let (second, after) = write(&mut tree, 2);
    assert_eq!(second.nodes, 4);
    let leaf = |stored: &Stored| stored.iter().find(|(level, first, _)| (*level, *first) == (0, span(0))).cloned();
    assert_eq!(leaf(&after), leaf(&before));
    let mut cold = Tree::cold(second.root);
    assert!(!cold.rewrite_leaf(0, &mut nodes) && cold.leaves_below(0).is_err());
}
