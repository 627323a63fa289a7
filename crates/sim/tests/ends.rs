// SPDX-License-Identifier: Apache-2.0
//! The end of a volume with very many objects: it takes its time, keeps nobody waiting, goes on after a crash where it was, and people see it.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

use varve_sim::node;

use node::{Node, name};
use std::collections::BTreeMap;
use std::time::Duration;
use varve_engine::{EndCounts, Ending};
use varve_env::Env;
use varve_sim::{CrashMode, InFlight, LogOutcome, SimOptions, StoreOp};
use varve_types::ErrorKind;

const BLOCK: usize = 4096;
const WINDOW: Duration = Duration::from_secs(60);
/// Within so much time a shard has looked which windows are over.
const LOOK: Duration = Duration::from_secs(12);
/// Objects of the large volume, and of the small one.
const MANY: u64 = 2000;
const FEW: u64 = 3;
/// Objects for which one tombstone is written.
const PART: u64 = 128;

/// A node with a volume of very many segments, and one of few.
fn start() -> Node {
    let mut node = Node::new(SimOptions { most_steps: 20_000_000, ..SimOptions::seed(1) }, 64 << 20);
    node.pool.undelete_window_ms = Some(WINDOW.as_millis() as u64);
    node.limits.end_objects = PART as usize;
    node.limits.occupancy = 0;
    node.create().unwrap().unwrap();
    for (volume, segments) in [("large", MANY), ("small", FEW)] {
        node.create_volume(volume, segments * BLOCK as u64);
        write(&node, volume, segments);
    }
    node
}

/// Writes so many segments.
fn write(node: &Node, volume: &str, segments: u64) {
    let device = node.device(volume);
    for segment in 0..segments {
        let data = vec![(segment % 251) as u8; BLOCK];
        node.write(&device, segment * BLOCK as u64, data, false).unwrap().unwrap();
        let open = node.volume(volume);
        node.must("seal", async move { open.seal().await });
    }
    let open = node.volume(volume);
    node.must("checkpoint", async move { open.checkpoint().await });
}

fn delete(node: &Node, volume: &str) {
    let (shard, volume) = (node.shard(), name(volume));
    node.must("delete", async move { shard.delete_volume(&volume).await });
}

fn pass(node: &Node, time: Duration) {
    node.world.run_for(time).unwrap();
}

fn ending(node: &Node, volume: &str) -> Option<Ending> {
    node.shard().endings().into_iter().find(|ending| ending.name == name(volume))
}

/// Lets time pass until a volume has so many objects left at most.
fn until_left(node: &Node, volume: &str, most: u64) -> Ending {
    for _ in 0..10_000 {
        if let Some(ending) = ending(node, volume).filter(|ending| ending.deleted > 0 && ending.left <= most) {
            return ending;
        }
        pass(node, Duration::from_millis(100));
    }
    panic!("{volume} does not come to its end: {:?}", node.shard().endings());
}

/// What the store has of what has ended.
fn left(node: &Node, ended: &Ending) -> Vec<String> {
    let prefix = ended.timeline.to_string();
    node.server.names().into_iter().filter(|name| name.starts_with(&prefix)).collect()
}

/// How often each name was deleted at the store.
fn deletes(node: &Node) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for entry in node.server.log().into_iter().filter(|entry| entry.op == StoreOp::Delete) {
        *all.entry(entry.name).or_default() += u64::from(entry.outcome == LogOutcome::Done);
    }
    all
}

/// A crash in the middle of an end, and what the node comes to afterwards.
fn crash_half_way(list_lag: Duration) -> Node {
    let mut node = start();
    node.server.set_list_lag(list_lag);
    delete(&node, "large");
    pass(&node, WINDOW);
    node.server.set_latency(Duration::from_millis(100), Duration::from_millis(100));
    let before = until_left(&node, "large", MANY / 2);
    assert!(before.whole && before.waits.is_none() && before.deleted >= MANY / 2 - PART, "{before:?}");
    node.crash(CrashMode::Lost, InFlight::Lost);
    node.reopen();
    let after = until_left(&node, "large", MANY);
    assert!(after.left <= before.left + 2 * PART, "begun anew: {after:?} after {before:?}");
    pass(&node, Duration::from_secs(120));
    assert_eq!(node.shard().endings(), []);
    let counts = node.shard().counts().ends;
    assert_eq!(counts, EndCounts { deleted: counts.deleted, ..EndCounts::default() });
    assert_eq!(left(&node, &before), [""; 0]);
    node
}

#[test]
fn it_goes_on_after_a_crash_where_it_was() {
    let node = crash_half_way(Duration::ZERO);
    let twice = deletes(&node).values().filter(|times| **times > 1).count() as u64;
    assert!(twice <= 3 * PART, "{twice} objects were deleted twice");
}

/// What is young is in no listing: only names say what there is, and a crash forgets none.
#[test]
fn it_leaves_nothing_that_no_listing_shows() {
    crash_half_way(Duration::from_secs(3600));
}

#[test]
fn it_keeps_nobody_waiting() {
    let node = start();
    node.create_volume("back", BLOCK as u64);
    write(&node, "back", 1);
    delete(&node, "large");
    pass(&node, Duration::from_secs(1));
    delete(&node, "small");
    pass(&node, WINDOW / 2);
    delete(&node, "back");
    node.server.set_latency(Duration::from_secs(1), Duration::from_secs(1));
    pass(&node, WINDOW / 2 - LOOK);
    let at = until_left(&node, "large", MANY).since_ms;
    let (shard, begun) = (node.shard(), node.env.wall_ms());
    // Its window has not ended: it is another matter who brings it back.
    node.must("undelete", async move { shard.undelete_volume(&name("back")).await.map(drop) });
    let shard = node.shard();
    let import = async move { shard.begin_import(&name("default")).await.map(drop) };
    node.must("import", import);
    assert!(node.env.wall_ms() - begun < 20_000, "waited {} ms", node.env.wall_ms() - begun);
    pass(&node, LOOK * 2);
    assert!(ending(&node, "small").is_none(), "{:?}", node.shard().endings());
    let shard = node.shard();
    let gone = node.run(async move { shard.undelete_volume(&name("small")).await.map(drop) }).unwrap();
    assert_eq!(gone.unwrap_err().kind(), ErrorKind::NotFound);
    let large = ending(&node, "large").unwrap();
    assert!(large.since_ms == at && large.left > MANY / 4, "{large:?}");
    pass(&node, Duration::from_secs(200));
    assert_eq!(node.shard().endings(), []);
}

#[test]
fn a_store_that_refuses_is_told_and_waited_for() {
    let node = start();
    delete(&node, "large");
    pass(&node, WINDOW);
    node.server.set_latency(Duration::from_millis(50), Duration::from_millis(50));
    let begun = until_left(&node, "large", MANY * 3 / 4);
    node.server.away_for(Duration::from_secs(60));
    pass(&node, Duration::from_secs(30));
    let waits = ending(&node, "large").unwrap();
    assert!(waits.waits.is_some() && waits.deleted <= begun.deleted + 300, "{waits:?} after {begun:?}");
    // Most of the time nobody asks it for anything.
    let requests = node.server.counts().requests.values().sum::<u64>();
    pass(&node, Duration::from_secs(20));
    let more = node.server.counts().requests.values().sum::<u64>() - requests;
    assert!(more < 100, "{more} requests of a store that is away");
    pass(&node, Duration::from_secs(60));
    assert_eq!(node.shard().endings(), []);
}

#[test]
fn so_many_requests_are_under_way_and_no_more() {
    let node = start();
    delete(&node, "large");
    pass(&node, WINDOW);
    node.server.set_latency(Duration::from_secs(1), Duration::from_secs(1));
    until_left(&node, "large", MANY);
    let before = node.server.counts().requests[&StoreOp::Delete];
    pass(&node, Duration::from_secs(10));
    let sent = node.server.counts().requests[&StoreOp::Delete] - before;
    assert!((80..=176).contains(&sent), "{sent} deletes in ten seconds, each of which takes one");
}

#[test]
fn what_a_snapshot_kept_is_asked_for_part_by_part() {
    let mut node = Node::new(SimOptions { most_steps: 20_000_000, ..SimOptions::seed(1) }, 64 << 20);
    (node.limits.occupancy, node.limits.ask_kills) = (0, 64);
    node.create().unwrap().unwrap();
    node.create_volume("v", 512 * BLOCK as u64);
    write(&node, "v", 512);
    let volume = node.volume("v");
    node.must("snapshot", async move { volume.snapshot(name("s")).await.map(drop) });
    // Each of them overwrites 32 blocks that only the snapshot keeps, and a checkpoint tells it.
    let device = node.device("v");
    for part in 0..16 {
        node.write(&device, part * 32 * BLOCK as u64, vec![0xff; 32 * BLOCK], false).unwrap().unwrap();
        let volume = node.volume("v");
        node.must("checkpoint", async move {
            volume.seal().await?;
            volume.checkpoint().await
        });
    }
    let kept = |node: &Node| node.volume("v").counts().kept_blocks;
    assert_eq!(kept(&node), 512);
    let volume = node.volume("v");
    node.must("delete", async move { volume.delete_snapshot(&name("s")).await });
    let mut steps = vec![512];
    while kept(&node) > 0 {
        assert!(steps.len() < 20, "{steps:?}");
        let volume = node.volume("v");
        node.must("checkpoint", async move { volume.checkpoint().await });
        steps.push(kept(&node));
    }
    assert!(steps.windows(2).all(|two| two[1] < two[0] && two[0] - two[1] <= 64), "{steps:?}");
    let volume = node.volume("v");
    let report = node.must("check", async move { volume.check(&|_, _| {}).await });
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    assert_eq!(node.volume("v").counts().table.live_blocks, 512);
    // A check asks for all that is left, and a quiet volume comes to it by itself.
    let volume = node.volume("v");
    node.must("snapshot", async move { volume.snapshot(name("t")).await.map(drop) });
    for part in 0..16 {
        node.write(&device, part * 32 * BLOCK as u64, vec![0xee; 32 * BLOCK], false).unwrap().unwrap();
        let volume = node.volume("v");
        node.must("checkpoint", async move {
            volume.seal().await?;
            volume.checkpoint().await
        });
    }
    let volume = node.volume("v");
    node.must("delete", async move { volume.delete_snapshot(&name("t")).await });
    pass(&node, Duration::from_secs(120));
    assert_eq!((kept(&node), node.volume("v").counts().table.live_blocks), (0, 512));
}
