// SPDX-License-Identifier: Apache-2.0
//! What a map takes in RAM, written at random and in sequence.

use super::interior::{Ledger, Slot};
use super::{Change, Kills, NodePath, Tree};
use varve_format::{Lineage, NodePointer, Pointer};
use varve_types::Ordinal;

const MIB: usize = 1 << 20;
const TIB_BLOCKS: u64 = 1 << 28;
const SEGMENT_BLOCKS: u64 = 16_384;

struct Nothing;
impl Kills for Nothing {
    fn blocks(&mut self, _: Pointer, _: u32, _: Ordinal) {}
    fn node(&mut self, _: NodePointer) {}
    fn subtree(&mut self, _: NodePath, _: Ordinal) {}
}

fn report(what: &str, tree: &Tree, part: u64) -> usize {
    assert_eq!(tree.ledger, Ledger::recount(tree.root.as_ref()));
    let whole = tree.bytes_in_ram() * part as usize;
    println!(
        "{what}: {} nodes, {} MiB for 1/{part}, {} MiB for all",
        tree.loaded_nodes(),
        tree.bytes_in_ram() / MIB,
        whole / MIB
    );
    whole
}

#[test]
fn a_tebibyte_in_sequence_takes_20_mib() {
    assert_eq!(size_of::<Slot>(), 32);
    let part = 16;
    let mut tree = Tree::empty();
    for start_block in (0..TIB_BLOCKS / part).step_by(512) {
        let pointer =
            Pointer::data(Lineage(0), Ordinal(start_block / SEGMENT_BLOCKS), (start_block % SEGMENT_BLOCKS) as u16);
        tree.apply(&[Change { start_block, blocks: 512, pointer }], &mut Nothing).unwrap();
    }
    assert!(report("1 TiB in sequence", &tree, part) <= 20 * MIB);
}

#[test]
fn a_tebibyte_at_random_takes_less_than_two_gib() {
    let part = 16;
    let mut tree = Tree::empty();
    let mut state = 7_u64;
    let mut changes = Vec::new();
    for first in (0..TIB_BLOCKS / part).step_by(512) {
        changes.clear();
        changes.extend((first..first + 512).map(|start_block| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Three owners, so the ordinals have two gaps of 65,536; the segments of a TiB and as many that are half dead.
            let ordinal = (state >> 33) % 32_768 + (state >> 20) % 3 * 65_536;
            let pointer = Pointer::data(Lineage(0), Ordinal(ordinal), ((state >> 48) % SEGMENT_BLOCKS) as u16);
            Change { start_block, blocks: 1, pointer }
        }));
        tree.apply(&changes, &mut Nothing).unwrap();
    }
    let bytes = report("1 TiB at random", &tree, part);
    assert!(bytes <= 1300 * MIB, "{bytes}");
    assert_eq!(tree.lookup_run(5, 9).1, 1);
}
