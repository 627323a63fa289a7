// SPDX-License-Identifier: Apache-2.0
//! The RAM of maps: a map that is larger than what it may take reads and writes right, and takes no more; a checkpoint over all of it neither; volumes
//! share what there is.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

use varve_sim::node;

use node::{Node, name};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use varve_engine::{Device, EngineError, MapCounts};
use varve_env::Env;
use varve_sim::{CrashMode, InFlight, Rng, SimOptions};
use varve_types::Overrides;

const BLOCK: u64 = 4096;
/// Blocks of a leaf.
const LEAF: u64 = 512;
/// Leaves that are written to: every third, so that no two lie side by side.
const LEAVES: u64 = 1500;
const STEP: u64 = 3;
const BUDGET: u64 = 48 << 10;
/// What dirty nodes, a node that comes in, and the nodes that stay may take beyond it.
const SLACK: usize = 40 << 10;

/// A node with little RAM for maps, and a volume of many leaves.
fn start(seed: u64) -> (Node, Rc<Device>) {
    let mut node = Node::new(SimOptions::seed(seed), 64 << 20);
    node.limits.map_ram = BUDGET;
    node.limits.map_dirty = 16;
    node.limits.map_object = 16 << 10;
    node.limits.overlay_entries = 100_000;
    node.limits.layer_ram = 32 << 20;
    node.limits.layer_runs = 4096;
    node.pool.segment_size = Some(1 << 20);
    node.create().unwrap().unwrap();
    node.create_volume("v", LEAVES * STEP * LEAF * BLOCK);
    let device = node.device("v");
    (node, device)
}

fn offset(leaf: u64, place: u64) -> u64 {
    (leaf * STEP * LEAF + place * 7) * BLOCK
}

fn bytes(stamp: u64) -> Vec<u8> {
    stamp.to_le_bytes().repeat(BLOCK as usize / 8)
}

/// Writes a block of each of these leaves.
fn write(node: &Node, device: &Rc<Device>, leaves: impl Iterator<Item = u64>, place: u64, stamp: u64) {
    for leaf in leaves {
        node.write(device, offset(leaf, place), bytes(stamp + leaf), false).unwrap().unwrap();
    }
}

fn prove(node: &Node, device: &Rc<Device>, leaf: u64, place: u64, stamp: u64) {
    let found = node.read(device, offset(leaf, place), BLOCK as u32).unwrap().unwrap();
    assert!(found == bytes(stamp + leaf), "leaf {leaf}, place {place}");
}

fn merge(node: &Node) {
    let volume = node.volume("v");
    node.must("checkpoint", async move {
        volume.seal().await?;
        volume.checkpoint().await
    });
}

fn counts(node: &Node) -> MapCounts {
    node.shard().counts().map
}

fn assert_fits(node: &Node, when: &str) {
    let counts = counts(node);
    assert!(counts.bytes() <= BUDGET as usize + SLACK, "{when}: {counts:?}");
}

/// The next process, with so much RAM for maps.
fn restart(node: &mut Node, map_ram: u64) -> Rc<Device> {
    node.crash(CrashMode::Kept, InFlight::Landed);
    node.limits.map_ram = map_ram;
    node.reopen();
    node.device("v")
}

/// Makes a checkpoint, and meanwhile looks what the maps take, and lets `reads` read; gives the most.
fn watched_merge(node: &Node, mut reads: impl FnMut()) -> usize {
    let (volume, done) = (node.volume("v"), Rc::<RefCell<Option<Result<(), EngineError>>>>::default());
    let end = Rc::clone(&done);
    node.env.spawn(Box::pin(async move {
        let merged = async {
            volume.seal().await?;
            volume.checkpoint().await
        };
        *end.borrow_mut() = Some(merged.await);
    }));
    let mut most = 0;
    while done.borrow().is_none() {
        node.world.run_for(Duration::from_micros(200)).unwrap();
        reads();
        most = most.max(counts(node).bytes());
    }
    done.take().unwrap().unwrap();
    most
}

#[test]
fn a_map_that_is_larger_than_its_ram_serves() {
    let (mut node, device) = start(1);
    for place in 0..4 {
        write(&node, &device, 0..LEAVES, place, 1000 * place);
    }
    merge(&node);
    assert_fits(&node, "filled");
    // Where there is room all of it stays, and takes many times as much.
    let device = restart(&mut node, 64 << 20);
    (0..LEAVES).for_each(|leaf| prove(&node, &device, leaf, leaf % 4, 1000 * (leaf % 4)));
    let whole = counts(&node);
    assert!(whole.node_bytes > 2 * BUDGET as usize && whole.evicted == 0, "{whole:?}");
    assert_eq!(whole.loaded, LEAVES + 11, "every node once: leaves, nine of level 1, one of 2, the root");

    let device = restart(&mut node, BUDGET);
    let mut rng = Rng::new(5);
    for round in 0..400 {
        let (leaf, place) = (rng.below(LEAVES), rng.below(4));
        prove(&node, &device, leaf, place, 1000 * place);
        assert_fits(&node, &format!("read {round}"));
    }
    assert!(counts(&node).evicted > 100);
    // One block of every leaf anew: a checkpoint makes all of the map dirty, and takes no more for it at any moment.
    write(&node, &device, 0..LEAVES, 2, 9000);
    let most = watched_merge(&node, || {
        let (leaf, place) = (rng.below(LEAVES), rng.below(4));
        prove(&node, &device, leaf, place, if place == 2 { 9000 } else { 1000 * place });
    });
    assert!(most <= BUDGET as usize + SLACK, "{most} bytes at most");
    for leaf in 0..LEAVES {
        for place in 0..4 {
            prove(&node, &device, leaf, place, if place == 2 { 9000 } else { 1000 * place });
        }
    }
    let volume = node.volume("v");
    let report = node.must("check", async move { volume.check(&|_, _| {}).await });
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

#[test]
fn what_is_read_again_and_again_stays_in_ram() {
    let (mut node, device) = start(2);
    (0..4).for_each(|place| write(&node, &device, 0..LEAVES, place, 0));
    merge(&node);
    let device = restart(&mut node, 2 * BUDGET);
    let (hot, mut rng, mut loads) = ([3, 700, 1400], Rng::new(7), 0);
    for round in 0..1500 {
        let before = counts(&node).loaded;
        hot.iter().for_each(|leaf| prove(&node, &device, *leaf, 0, 0));
        loads += if round == 0 { 0 } else { counts(&node).loaded - before };
        prove(&node, &device, rng.below(LEAVES), 0, 0);
    }
    assert!(counts(&node).evicted > 50, "{:?}", counts(&node));
    assert!(loads < 30, "of 4,500 looks at them {loads} had to load");
}

/// The volume, all of which is read once, in a pool that gives each so much RAM for its map; and what its map takes then.
fn read_all(node: &mut Node, map_ram: u64, own: Option<u64>) -> usize {
    node.pool.map_ram = own;
    let device = restart(node, map_ram);
    (0..LEAVES).for_each(|leaf| prove(node, &device, leaf, 0, 0));
    node.volume("v").counts().map_ram_bytes
}

#[test]
fn a_volume_keeps_to_its_own_share() {
    let (mut node, device) = start(3);
    (0..4).for_each(|place| write(&node, &device, 0..LEAVES, place, 0));
    merge(&node);
    let whole = read_all(&mut node, 64 << 20, None);
    let own = BUDGET as usize;
    assert!(whole > 2 * own, "{whole}");
    let bound = read_all(&mut node, 64 << 20, Some(BUDGET));
    assert!(bound <= own + SLACK && bound < whole / 2, "{bound} of {whole}");
}

#[test]
fn a_volume_that_rests_gives_way_to_one_that_is_read() {
    let (mut node, device) = start(4);
    write(&node, &device, 0..LEAVES, 0, 0);
    merge(&node);
    let shard = node.shard();
    node.must("clone", async move { shard.clone_volume(&name("v"), None, name("c"), Overrides::default()).await });
    let whole = read_all(&mut node, 64 << 20, None);
    read_all(&mut node, (whole + whole / 8) as u64, None);
    let other = node.device("c");
    for _ in 0..3 {
        (0..LEAVES).for_each(|leaf| prove(&node, &other, leaf, 0, 0));
    }
    let (resting, read) = (node.volume("v").counts().map_ram_bytes, node.volume("c").counts().map_ram_bytes);
    assert!(resting < read / 3, "{resting} bytes of who rests, {read} of who reads");
}
