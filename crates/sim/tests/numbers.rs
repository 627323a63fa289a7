// SPDX-License-Identifier: Apache-2.0
//! The numbers that people are shown of a shard and its volumes: each is what a story of a few steps makes it, by hand.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

use varve_sim::node;

use node::{Node, finish, name};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use varve_engine::{BlockDevice, Stage, StageTimes, VolumeCounts};
use varve_env::Env;
use varve_sim::SimOptions;

const BLOCK: u64 = 4096;
/// Long enough for a quiet volume to clean and to make its checkpoints.
const SETTLED: Duration = Duration::from_secs(120);

fn start(journal: u64) -> Node {
    let node = Node::new(SimOptions::seed(1), journal);
    node.create().unwrap().unwrap();
    node.create_volume("v", 64 << 20);
    node
}

fn write(node: &Node, blocks: std::ops::Range<u64>, fill: u8) {
    let device = node.device("v");
    let data = vec![fill; ((blocks.end - blocks.start) * BLOCK) as usize];
    node.write(&device, blocks.start * BLOCK, data, false).unwrap().unwrap();
    node.flush(&device).unwrap().unwrap();
}

fn merge(node: &Node) {
    let volume = node.volume("v");
    node.must("checkpoint", async move {
        volume.seal().await?;
        volume.checkpoint().await
    });
}

fn counts(node: &Node) -> VolumeCounts {
    node.volume("v").counts()
}

fn stage(node: &Node, wanted: Stage) -> StageTimes {
    node.shard().stages().find(|(stage, _)| *stage == wanted).unwrap().1
}

#[test]
fn what_only_a_snapshot_keeps_is_told_apart() {
    let node = start(16 << 20);
    node.shard().pause_cleaning(true);
    write(&node, 0..64, 1);
    merge(&node);
    let volume = node.volume("v");
    node.must("snapshot", async move { volume.snapshot(name("s")).await });
    write(&node, 0..16, 2);
    merge(&node);
    assert_eq!((counts(&node).kept_blocks, counts(&node).table.live_blocks), (16, 80));
    // What the snapshot has not seen is kept by nobody.
    write(&node, 8..16, 3);
    merge(&node);
    assert_eq!((counts(&node).kept_blocks, counts(&node).table.live_blocks), (16, 80));
    assert_eq!(counts(&node).hidden_timelines, 0);
    let volume = node.volume("v");
    node.must("delete", async move { volume.delete_snapshot(&name("s")).await });
    merge(&node);
    assert_eq!((counts(&node).kept_blocks, counts(&node).table.live_blocks), (0, 64));
}

#[test]
fn a_history_that_a_rollback_hid_is_told_of_while_it_is_there() {
    let mut node = Node::new(SimOptions::seed(1), 16 << 20);
    node.pool.undelete_window_ms = Some(10_000);
    node.create().unwrap().unwrap();
    node.create_volume("v", 64 << 20);
    write(&node, 0..8, 1);
    let volume = node.volume("v");
    node.must("snapshot", async move { volume.snapshot(name("s")).await });
    write(&node, 0..8, 2);
    let volume = node.volume("v");
    node.must("rollback", async move { volume.rollback(&name("s")).await });
    assert_eq!(counts(&node).hidden_timelines, 1);
    let volume = node.volume("v");
    node.must("delete", async move { volume.delete_snapshot(&name("s")).await });
    // The new history is a clone of the old one: once nothing of that is needed any more, it goes.
    let shard = node.shard();
    node.must("flatten", async move { shard.flatten(&name("v"), |_, _| {}).await });
    node.world.run_for(Duration::from_secs(600)).unwrap();
    assert_eq!(counts(&node).hidden_timelines, 0);
}

#[test]
fn the_debt_of_cleaning_is_what_it_then_gives_back() {
    let node = start(16 << 20);
    node.shard().pause_cleaning(true);
    write(&node, 0..256, 1);
    assert_eq!(counts(&node).clean_debt_bytes, 0);
    // Every other block of most segments dies.
    (0..100).for_each(|at| write(&node, 2 * at..2 * at + 1, 2));
    merge(&node);
    let table = counts(&node).table;
    assert_eq!((table.blocks, table.live_blocks), (356, 256));
    // At 80 of a hundred, 256 live blocks may have 320 stored ones.
    assert_eq!(counts(&node).clean_debt_bytes, 36 * BLOCK);
    node.shard().pause_cleaning(false);
    node.world.run_for(SETTLED).unwrap();
    assert!(counts(&node).table.blocks <= 320, "{:?}", counts(&node).table);
    assert_eq!(counts(&node).clean_debt_bytes, 0);
}

#[test]
fn stages_are_timed_and_end() {
    let node = start(16 << 20);
    write(&node, 0..64, 1);
    (0..32).for_each(|at| write(&node, 2 * at..2 * at + 1, 2));
    merge(&node);
    node.world.run_for(SETTLED).unwrap();
    let idle = [Stage::Room, Stage::Mirror];
    for wanted in Stage::ALL.into_iter().filter(|stage| !idle.contains(stage)) {
        let times = stage(&node, wanted);
        assert!(times.took.count() > 0 && times.under_way == 0, "{}: {times:?}", wanted.name());
    }
    assert_eq!(stage(&node, Stage::Room).took.count(), 0, "there was room all the time");
    assert_eq!(stage(&node, Stage::Mirror).took.count(), 0, "there is no mirror");
    assert!(stage(&node, Stage::JournalSync).took.sum() > Duration::ZERO, "a sync takes its time");
    let (puts, seals) = (stage(&node, Stage::SegmentPut).took.count(), stage(&node, Stage::Seal).took.count());
    assert_eq!(puts, seals, "what is sealed is put");
}

#[test]
fn writes_that_wait_for_room_are_counted_while_they_do() {
    const WRITES: u64 = 400;
    const LEN: u64 = 15 * BLOCK;
    const AWAY: Duration = Duration::from_secs(600);
    let node = start(16 << 20);
    node.server.away_for(AWAY);
    let (device, answered) = (node.device("v"), Rc::new(Cell::new(0)));
    for n in 0..WRITES {
        let (device, answered) = (Rc::clone(&device), Rc::clone(&answered));
        node.env.spawn(Box::pin(async move {
            finish(&device, device.write(n * LEN, vec![1; LEN as usize].into(), false)).await.expect("a write");
            answered.set(answered.get() + 1);
        }));
    }
    node.world.run_for(AWAY / 2).unwrap();
    let waiting = WRITES - answered.get();
    assert!(waiting > 0, "the journal holds all of them: that is another test");
    assert_eq!(stage(&node, Stage::Room).under_way, waiting);
    node.world.run_for(2 * AWAY).unwrap();
    let room = stage(&node, Stage::Room);
    assert_eq!((answered.get(), room.under_way), (WRITES, 0));
    assert!(room.took.count() >= waiting && room.took.sum() >= AWAY / 2 * waiting as u32, "{room:?}");
}
