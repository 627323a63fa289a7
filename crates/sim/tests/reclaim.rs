// SPDX-License-Identifier: Apache-2.0
//! Large discards: the checkpoint that takes one does not look at what is below it, and what is below is freed afterwards, once, whatever dies on the way.
//!
//! Volumes of gibibytes with a block here and there, so that nearly every block has a leaf of the map to itself: a walk would load hundreds of nodes. All
//! counts are recounted by `check` at every turn.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

use varve_sim::node;

use node::{Node, name};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use varve_engine::Device;
use varve_sim::{CrashMode, InFlight, Rng, SimOptions};
use varve_types::Overrides;

const BLOCK: u64 = 4096;
const GIB: u64 = 1 << 30;
const SIZE: u64 = 6 * GIB;
/// What is discarded: whole GiB and a bit on both sides.
const HOLE: std::ops::Range<u64> = GIB - 7 * BLOCK..5 * GIB + 3 * BLOCK;
/// More turns than working off takes.
const MOST_TURNS: u32 = 200;

/// What is in the blocks that were written, by block.
type Model = BTreeMap<u64, u64>;

fn block_of(stamp: u64) -> Vec<u8> {
    stamp.to_le_bytes().repeat(BLOCK as usize / 8)
}

/// A volume `v` with blocks here and there.
fn scattered(seed: u64) -> (Node, Model, Rng) {
    let mut node = Node::new(SimOptions::seed(seed), 16 << 20);
    node.limits.reclaim_level = 1;
    node.limits.reclaim_nodes = 50;
    // Segments are counted.
    node.limits.occupancy = 0;
    node.pool.undelete_window_ms = Some(10_000);
    node.create().unwrap().unwrap();
    node.create_volume("v", SIZE);
    let (mut rng, mut model) = (Rng::new(seed), Model::new());
    scatter(&node, "v", &mut rng, &mut model, 0..SIZE, 400);
    // Segments that die whole.
    scatter(&node, "v", &mut rng, &mut model, HOLE.start + GIB..HOLE.end, 300);
    merge(&node, "v");
    (node, model, rng)
}

fn scatter(node: &Node, volume: &str, rng: &mut Rng, model: &mut Model, range: std::ops::Range<u64>, count: u64) {
    let device = node.device(volume);
    for _ in 0..count {
        let block = range.start / BLOCK + rng.below((range.end - range.start) / BLOCK);
        let stamp = rng.below(u64::MAX - 1) + 1;
        node.write(&device, block * BLOCK, block_of(stamp), false).unwrap().unwrap();
        model.insert(block, stamp);
    }
    node.flush(&device).unwrap().unwrap();
}

/// Puts what is in layers and makes a checkpoint.
fn merge(node: &Node, volume: &str) {
    let volume = node.volume(volume);
    node.must("checkpoint", async move {
        volume.seal().await?;
        volume.checkpoint().await
    });
}

/// Discards in pieces, as a front end with a bound does.
fn discard(node: &Node, volume: &str, range: std::ops::Range<u64>, model: &mut Model) {
    let device = node.device(volume);
    let mut at = range.start;
    while at < range.end {
        let len = (700 << 20).min(range.end - at);
        node.discard(&device, at, len, false).unwrap().unwrap();
        at += len;
    }
    node.flush(&device).unwrap().unwrap();
    model.retain(|block, _| !range.contains(&(block * BLOCK)));
}

/// Every block that was ever written reads as it should.
fn prove(node: &Node, device: &Rc<Device>, ever: &Model, model: &Model, when: &str) {
    for block in ever.keys().chain(model.keys()) {
        let bytes = node.read(device, block * BLOCK, BLOCK as u32).unwrap().unwrap();
        let wanted = block_of(model.get(block).copied().unwrap_or_default());
        assert!(bytes == wanted, "{when}: block {block}");
    }
}

fn check(node: &Node, volume: &str, when: &str) {
    let volume = node.volume(volume);
    let report = node.must("check", async move { volume.check(&|_, _| {}).await });
    assert!(report.problems.is_empty(), "{when}: {:?}", report.problems);
}

fn waiting(node: &Node, volume: &str) -> u64 {
    node.volume(volume).counts().reclaim_bytes
}

/// Lets time pass until nothing waits to be worked off, with a check at every turn.
fn work_off(node: &Node, volume: &str) {
    let mut before = waiting(node, volume);
    for _ in 0..MOST_TURNS {
        if before == 0 {
            return;
        }
        node.world.run_for(Duration::from_secs(1)).unwrap();
        let now = waiting(node, volume);
        assert!(now <= before, "{before} bytes became {now}");
        before = now;
        check(node, volume, "while it is worked off");
    }
    panic!("{before} bytes still wait");
}

/// Nothing but what is needed is in the store once all deletes are done.
fn nothing_is_left_over(node: &Node, volume: &str, live: u64) {
    node.world.run_for(Duration::from_secs(60)).unwrap();
    check(node, volume, "at the end");
    node.world.run_for(Duration::from_secs(60)).unwrap();
    let (id, counts) = (node.volume(volume).record().shown.to_string(), node.volume(volume).counts());
    assert_eq!(counts.table.live_blocks, live);
    let names = node.server.names();
    let segments = names.iter().filter(|object| object.starts_with(&format!("{id}/seg/"))).count();
    assert_eq!(segments as u64, counts.table.segments);
}

fn map_gets(node: &Node) -> u64 {
    node.server.counts().kinds.get("map").map_or(0, |counts| counts.gets)
}

#[test]
fn a_large_discard_costs_its_checkpoint_no_leaves() {
    let (mut node, mut model, _) = scattered(1);
    let ever = model.clone();
    let segments = node.volume("v").counts().table.segments;
    // Nothing of the map is in RAM then.
    node.crash(CrashMode::Kill, InFlight::Lost);
    node.reopen();
    discard(&node, "v", HOLE, &mut model);
    prove(&node, &node.device("v"), &ever, &model, "in the layer");
    node.crash(CrashMode::Kill, InFlight::Lost);
    node.reopen();
    let before = map_gets(&node);
    merge(&node, "v");
    let gets = map_gets(&node) - before;
    // The root, the node below it, and at each end one node of level 1 and one leaf. A get may need another one for the object's table.
    assert!(gets <= 2 * 6, "{gets} gets");
    assert_eq!(waiting(&node, "v"), 4 * GIB);
    prove(&node, &node.device("v"), &ever, &model, "cut out");
    check(&node, "v", "cut out");
    assert_eq!(waiting(&node, "v"), 4 * GIB, "a check works nothing off");
    let live = node.volume("v").counts().table.live_blocks;
    assert!(live > 600, "{live} blocks are live: what waits is counted");
    work_off(&node, "v");
    prove(&node, &node.device("v"), &ever, &model, "worked off");
    nothing_is_left_over(&node, "v", model.len() as u64);
    let now = node.volume("v").counts().table.segments;
    assert!(now + 10 < segments, "{segments} segments before, {now} after");
}

#[test]
fn what_is_cut_out_is_freed_once_whatever_dies_on_the_way() {
    for seed in 2..6 {
        let (mut node, mut model, mut rng) = scattered(seed);
        node.limits.reclaim_nodes = 8;
        node.limits.reclaim_level = (seed % 2) as u8;
        let mut ever = model.clone();
        discard(&node, "v", HOLE, &mut model);
        let (mut turns, mut deaths) = (0, 0);
        while turns == 0 || waiting(&node, "v") > 0 {
            turns += 1;
            assert!(turns < MOST_TURNS, "{} bytes still wait", waiting(&node, "v"));
            let polls = rng.below(250);
            node.env.points().after_polls(polls);
            let volume = node.volume("v");
            // It dies in the checkpoint that cuts out, or in one that works off, or not at all.
            let done = node.run(async move {
                volume.seal().await?;
                volume.checkpoint().await
            });
            if done.is_ok() {
                node.world.run_for(Duration::from_millis(1500)).unwrap();
            }
            deaths += u32::from(node.env.points().dead());
            let fate = if rng.chance(500) { InFlight::Lost } else { InFlight::Landed };
            node.crash(CrashMode::Kill, fate);
            node.reopen();
            check(&node, "v", "after a crash");
            if rng.chance(200) {
                // New data where the hole is, and a new hole there.
                scatter(&node, "v", &mut rng, &mut model, HOLE, 5);
                ever.extend(model.iter());
                let gib = rng.below(5) * GIB;
                discard(&node, "v", gib..gib + GIB, &mut model);
            }
            // A check has made a checkpoint, so some time has to be left to the work.
            node.world.run_for(Duration::from_millis(1200)).unwrap();
        }
        assert!(deaths > 3, "only {deaths} deaths in {turns} turns");
        prove(&node, &node.device("v"), &ever, &model, "worked off");
        work_off(&node, "v");
        nothing_is_left_over(&node, "v", model.len() as u64);
    }
}

fn snapshot(node: &Node, text: &'static str) {
    let volume = node.volume("v");
    node.must("snapshot", async move { volume.snapshot(name(text)).await });
}

fn clone(node: &Node, from: &'static str, to: &'static str) {
    let shard = node.shard();
    node.must("clone", async move {
        shard.clone_volume(&name("v"), Some(&name(from)), name(to), Overrides::default()).await.map(drop)
    });
}

fn view(node: &Node, text: &'static str) -> Rc<Device> {
    let volume = node.volume("v");
    node.must("view", async move { volume.snapshot_device(&name(text), "t".to_owned()).await.map(Rc::new) })
}

fn forget(node: &Node, text: &'static str) {
    let volume = node.volume("v");
    node.must("forget", async move { volume.delete_snapshot(&name(text)).await });
}

#[test]
fn snapshots_and_clones_keep_what_was_cut_out() {
    let (mut node, mut model, mut rng) = scattered(7);
    // One whose root is written by the very checkpoint that cuts out, one before, one behind.
    snapshot(&node, "early");
    let early = model.clone();
    merge(&node, "v");
    scatter(&node, "v", &mut rng, &mut model, HOLE, 60);
    snapshot(&node, "same");
    let same = model.clone();
    clone(&node, "early", "c");
    let ever = model.clone();
    discard(&node, "v", HOLE, &mut model);
    merge(&node, "v");
    snapshot(&node, "late");
    let late = model.clone();
    check(&node, "v", "cut out");
    node.world.run_for(Duration::from_secs(2)).unwrap();
    assert!(waiting(&node, "v") > 0, "some is worked off, and some not");
    forget(&node, "same");
    clone(&node, "late", "d");
    check(&node, "v", "a snapshot has gone");
    prove(&node, &view(&node, "early"), &ever, &early, "the early snapshot");
    assert_eq!(same.len(), ever.len());
    work_off(&node, "v");
    for (device, wanted) in [
        (node.device("v"), &model),
        (view(&node, "early"), &early),
        (view(&node, "late"), &late),
        (node.device("c"), &early),
    ] {
        prove(&node, &device, &ever, wanted, "worked off");
    }
    // In a clone there are inherited nodes below its own, and beside them: those are nothing to free.
    let mut cloned = early.clone();
    scatter(&node, "c", &mut rng, &mut cloned, GIB..2 * GIB, 40);
    merge(&node, "c");
    discard(&node, "c", HOLE, &mut cloned);
    merge(&node, "c");
    assert_eq!(waiting(&node, "c"), GIB);
    check(&node, "c", "cut out of the clone");
    work_off(&node, "c");
    prove(&node, &node.device("c"), &ever, &cloned, "the clone");
    prove(&node, &view(&node, "early"), &ever, &early, "beside the clone");
    node.crash(CrashMode::Lost, InFlight::Landed);
    node.reopen();
    for volume in ["c", "d"] {
        check(&node, volume, "before it goes");
        let shard = node.shard();
        node.must("delete", async move { shard.delete_volume(&name(volume)).await });
    }
    node.world.run_for(Duration::from_secs(40)).unwrap();
    forget(&node, "early");
    forget(&node, "late");
    nothing_is_left_over(&node, "v", model.len() as u64);
}

#[test]
fn a_queue_waits_in_a_history_that_is_hidden() {
    let (mut node, mut model, _) = scattered(8);
    node.pool.undelete_window_ms = Some(3_600_000);
    let volume = node.volume("v");
    node.must("snapshot", async move { volume.snapshot(name("s")).await });
    let before = model.clone();
    discard(&node, "v", HOLE, &mut model);
    merge(&node, "v");
    let cut_out = waiting(&node, "v");
    assert_eq!(cut_out, 4 * GIB);
    let volume = node.volume("v");
    node.must("rollback", async move { volume.rollback(&name("s")).await });
    assert_eq!(waiting(&node, "v"), 0);
    prove(&node, &node.device("v"), &before, &before, "rolled back");
    check(&node, "v", "rolled back");
    node.crash(CrashMode::Kill, InFlight::Lost);
    node.reopen();
    node.world.run_for(Duration::from_secs(5)).unwrap();
    check(&node, "v", "hidden for a while");
    let volume = node.volume("v");
    node.must("undo", async move { volume.undo_rollback().await });
    assert!(waiting(&node, "v") > 0, "it was not open");
    prove(&node, &node.device("v"), &before, &model, "shown again");
    work_off(&node, "v");
    prove(&node, &node.device("v"), &before, &model, "worked off");
}

#[test]
fn a_shrink_and_a_deletion_take_the_same_way() {
    let (node, mut model, _) = scattered(9);
    let ever = model.clone();
    let volume = node.volume("v");
    node.must("shrink", async move { volume.resize(GIB / 2, true).await });
    model.retain(|block, _| block * BLOCK < GIB / 2);
    merge(&node, "v");
    assert!(waiting(&node, "v") >= 5 * GIB);
    check(&node, "v", "shrunk");
    let volume = node.volume("v");
    node.must("grow", async move { volume.resize(SIZE, false).await });
    prove(&node, &node.device("v"), &ever, &model, "grown again");
    node.world.run_for(Duration::from_secs(2)).unwrap();
    let shard = node.shard();
    let id = node.volume("v").record().shown.to_string();
    assert!(waiting(&node, "v") > 0);
    node.must("delete", async move { shard.delete_volume(&name("v")).await });
    let shard = node.shard();
    node.must("undelete", async move { shard.undelete_volume(&name("v")).await.map(drop) });
    check(&node, "v", "brought back");
    work_off(&node, "v");
    prove(&node, &node.device("v"), &ever, &model, "worked off");
    let shard = node.shard();
    node.must("delete", async move { shard.delete_volume(&name("v")).await });
    node.world.run_for(Duration::from_secs(60)).unwrap();
    assert!(!node.server.names().iter().any(|object| object.starts_with(&id)));
}
