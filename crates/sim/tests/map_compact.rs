// SPDX-License-Identifier: Apache-2.0
//! Holds off: a map whose leaves are written one by one, and never changed, that keeps an object for each of them; and one that loses something when its leaves move.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

use varve_sim::node;

use node::{Node, name};
use std::time::Duration;
use varve_format::{ObjectKind, ObjectName};
use varve_sim::{CrashMode, InFlight, Rng, SimOptions};

const BLOCK: u64 = 4096;
/// Blocks that a leaf of the map covers.
const LEAF: u64 = 512;
/// Leaves of the volume.
const LEAVES: u64 = 160;

fn start(seed: u64) -> Node {
    let mut node = Node::new(SimOptions::seed(seed), 16 << 20);
    node.pool.rewind_window_ms = Some(0);
    node.create().unwrap().unwrap();
    node.create_volume("v", LEAVES * LEAF * BLOCK);
    node
}

fn block_of(stamp: u64) -> Vec<u8> {
    stamp.to_le_bytes().repeat(BLOCK as usize / 8)
}

/// Writes a block, and lets a checkpoint follow.
fn write(node: &Node, model: &mut [u64], leaf: u64, stamp: u64) {
    let device = node.device("v");
    node.write(&device, leaf * LEAF * BLOCK, block_of(stamp), false).unwrap().unwrap();
    model[leaf as usize] = stamp;
    let volume = node.volume("v");
    node.must("checkpoint", async move {
        volume.seal().await?;
        volume.checkpoint().await
    });
}

fn maps(node: &Node) -> usize {
    let names = node.server.names();
    names.iter().filter_map(|name| ObjectName::parse(name)).filter(|name| name.kind == ObjectKind::Map).count()
}

fn prove(node: &Node, model: &[u64], when: &str) {
    let device = node.device("v");
    for (leaf, stamp) in model.iter().enumerate().filter(|(_, stamp)| **stamp > 0) {
        let found = node.read(&device, leaf as u64 * LEAF * BLOCK, BLOCK as u32).unwrap().unwrap();
        assert!(found == block_of(*stamp), "{when}: leaf {leaf}");
    }
    let volume = node.volume("v");
    let report = node.must("check", async move { volume.check(&|_, _| {}).await });
    assert!(report.problems.is_empty(), "{when}: {:?}", report.problems);
}

#[test]
fn leaves_that_stay_do_not_keep_an_object_each() {
    let mut node = start(1);
    let mut model = vec![0; LEAVES as usize];
    for leaf in 0..LEAVES {
        write(&node, &mut model, leaf, leaf + 1);
        node.world.run_for(Duration::from_secs(12)).unwrap();
        if leaf % 40 == 39 {
            prove(&node, &model, &format!("leaf {leaf}"));
            node.crash(CrashMode::Lost, InFlight::Lost);
            node.reopen();
            prove(&node, &model, &format!("leaf {leaf}, started anew"));
        }
    }
    node.world.run_for(Duration::from_secs(60)).unwrap();
    assert!(maps(&node) < LEAVES as usize / 5, "{} map objects for {LEAVES} leaves", maps(&node));
    prove(&node, &model, "at the end");
}

#[test]
fn what_snapshots_and_clones_see_stays_where_it_is() {
    let mut node = start(2);
    let (mut model, mut rng) = (vec![0; LEAVES as usize], Rng::new(2));
    for leaf in 0..30 {
        write(&node, &mut model, leaf, leaf + 1);
    }
    let volume = node.volume("v");
    node.must("snapshot", async move { volume.snapshot(name("s")).await.map(drop) });
    let shard = node.shard();
    node.must("clone", async move {
        shard.clone_volume(&name("v"), Some(&name("s")), name("c"), varve_types::Overrides::default()).await.map(drop)
    });
    let seen = model.clone();
    for round in 0..60 {
        write(&node, &mut model, rng.below(60), 1000 + round);
        node.world.run_for(Duration::from_secs(12)).unwrap();
    }
    node.crash(CrashMode::Kept, InFlight::Landed);
    node.reopen();
    prove(&node, &model, "started anew");
    let clone = node.device("c");
    for leaf in 0..30u64 {
        let found = node.read(&clone, leaf * LEAF * BLOCK, BLOCK as u32).unwrap().unwrap();
        assert!(found == block_of(seen[leaf as usize]), "leaf {leaf} of the clone");
    }
    drop(clone);
    let volume = node.volume("v");
    node.must("forget", async move { volume.delete_snapshot(&name("s")).await });
    let shard = node.shard();
    node.must("delete", async move { shard.delete_volume(&name("c")).await });
    for round in 0..20 {
        write(&node, &mut model, rng.below(60), 2000 + round);
        node.world.run_for(Duration::from_secs(12)).unwrap();
    }
    prove(&node, &model, "at the end");
    assert!(maps(&node) < 20, "{} map objects for 60 leaves", maps(&node));
}
