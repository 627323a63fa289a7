// SPDX-License-Identifier: Apache-2.0
//! Where listings show the state of some seconds ago, what has ended leaves nothing in the store all the same.
//!
//! An end is a manifest that says so, put just before everything is listed and deleted: that one, and the one that it replaces, may be too young to be
//! listed, and nobody looks a second time for what is of no volume any more.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

use varve_sim::node;

use node::{Node, name};
use std::collections::BTreeSet;
use std::time::Duration;
use varve_format::ObjectName;
use varve_sim::{Rng, SimOptions};
use varve_types::{Overrides, TimelineId};

const SIZE: usize = 1 << 20;
const LAG: Duration = Duration::from_secs(5);
const WINDOW: Duration = Duration::from_secs(60);

fn start(seed: u64) -> (Node, Rng) {
    let mut node = Node::new(SimOptions::seed(seed), 16 << 20);
    node.pool.undelete_window_ms = Some(WINDOW.as_millis() as u64);
    node.server.set_list_lag(LAG);
    node.create().unwrap().unwrap();
    node.create_volume("v", SIZE as u64);
    (node, Rng::new(seed))
}

/// Writes somewhere, and makes it durable as a map.
fn write_some(node: &Node, volume: &str, rng: &mut Rng) {
    let device = node.device(volume);
    for _ in 0..4 {
        let mut data = vec![0; 8 * 4096];
        rng.fill(&mut data);
        let at = rng.below(SIZE as u64 / 4096 - 8) * 4096;
        node.write(&device, at, data, false).unwrap().unwrap();
    }
    let volume = node.volume(volume);
    node.must("merge", async move {
        volume.seal().await?;
        volume.checkpoint().await
    });
}

fn snapshot(node: &Node, snapshot: &str) {
    let (volume, snapshot) = (node.volume("v"), name(snapshot));
    node.must("snapshot", async move { volume.snapshot(snapshot).await });
}

fn rollback(node: &Node) {
    let volume = node.volume("v");
    node.must("rollback", async move { volume.rollback(&name("s")).await });
}

fn undo(node: &Node) {
    let volume = node.volume("v");
    node.must("undo", async move { volume.undo_rollback().await });
}

fn clone(node: &Node, from: &str, to: &str) {
    let (shard, from, to) = (node.shard(), name(from), name(to));
    node.must("clone", async move { shard.clone_volume(&from, None, to, Overrides::default()).await.map(drop) });
}

fn delete(node: &Node, volume: &str) {
    let (shard, volume) = (node.shard(), name(volume));
    node.must("delete", async move { shard.delete_volume(&volume).await });
}

fn pass(node: &Node, time: Duration) {
    node.world.run_for(time).unwrap();
}

/// What is in the store.
fn objects(node: &Node) -> Vec<String> {
    node.server.names().into_iter().filter(|name| !name.starts_with("owner/")).collect()
}

/// Timelines that the volume knows.
fn known(node: &Node) -> BTreeSet<TimelineId> {
    node.volume("v").record().timelines.iter().map(|timeline| timeline.id).collect()
}

/// Timelines that the store has something of.
fn in_store(node: &Node) -> BTreeSet<TimelineId> {
    objects(node).iter().filter_map(|text| ObjectName::parse(text)).map(|object| object.timeline).collect()
}

#[test]
fn a_deleted_volume_leaves_nothing() {
    for seed in 0..4 {
        let (node, mut rng) = start(seed);
        write_some(&node, "v", &mut rng);
        snapshot(&node, "s");
        write_some(&node, "v", &mut rng);
        if seed % 2 == 1 {
            rollback(&node);
            write_some(&node, "v", &mut rng);
        }
        delete(&node, "v");
        pass(&node, WINDOW / 2);
        assert!(!objects(&node).is_empty(), "seed {seed}: its window is not over");
        pass(&node, WINDOW * 4);
        assert_eq!(objects(&node), [""; 0], "seed {seed}");
    }
}

/// An end that follows so soon that no listing shows anything yet: what the last manifest names goes by name.
#[test]
fn what_is_too_young_to_be_listed_goes_too() {
    for deleted in [true, false] {
        let (mut node, mut rng) = (Node::new(SimOptions::seed(1), 16 << 20), Rng::new(1));
        node.pool.undelete_window_ms = Some(1000);
        node.create().unwrap().unwrap();
        node.create_volume("v", SIZE as u64);
        node.server.set_list_lag(Duration::from_secs(3600));
        write_some(&node, "v", &mut rng);
        snapshot(&node, "s");
        write_some(&node, "v", &mut rng);
        let gone: BTreeSet<TimelineId> = if deleted {
            let gone = known(&node);
            delete(&node, "v");
            gone
        } else {
            rollback(&node);
            write_some(&node, "v", &mut rng);
            let hidden = node.volume("v").record().shown;
            undo(&node);
            [hidden].into()
        };
        assert!(gone.is_subset(&in_store(&node)), "deleted: {deleted}");
        pass(&node, WINDOW * 2);
        let left: Vec<_> =
            objects(&node).into_iter().filter(|name| gone.iter().any(|id| name.starts_with(&id.to_string()))).collect();
        assert_eq!(left, [""; 0], "deleted: {deleted}");
    }
}

#[test]
fn clones_and_their_origin_that_end_together_leave_nothing() {
    for seed in 0..8 {
        let (node, mut rng) = start(seed);
        write_some(&node, "v", &mut rng);
        clone(&node, "v", "w");
        write_some(&node, "w", &mut rng);
        clone(&node, "w", "x");
        for volume in ["v", "w", "x"] {
            delete(&node, volume);
        }
        pass(&node, WINDOW * 8);
        assert_eq!(objects(&node), [""; 0], "seed {seed}");
    }
    for seed in 0..60 {
        let (node, mut rng) = start(seed);
        write_some(&node, "v", &mut rng);
        for volume in ["w", "x", "y"] {
            clone(&node, "v", volume);
        }
        for volume in ["v", "w", "x", "y"] {
            delete(&node, volume);
        }
        pass(&node, WINDOW * 8);
        assert_eq!(objects(&node), [""; 0], "seed {seed}");
    }
}

#[test]
fn a_history_that_ends_leaves_nothing() {
    for seed in 0..4 {
        let (node, mut rng) = start(seed);
        write_some(&node, "v", &mut rng);
        snapshot(&node, "s");
        write_some(&node, "v", &mut rng);
        rollback(&node);
        write_some(&node, "v", &mut rng);
        rollback(&node);
        write_some(&node, "v", &mut rng);
        undo(&node);
        let before = known(&node);
        pass(&node, WINDOW * 20);
        let after = known(&node);
        assert!(after.len() < before.len(), "seed {seed}: none of {before:?} has ended");
        assert_eq!(in_store(&node), after, "seed {seed}: {:?}", objects(&node));
    }
}

#[test]
fn a_history_that_clones_held_leaves_nothing() {
    for (seed, clones) in (0..8).map(|seed| (seed, &["w"][..])).chain((0..60).map(|seed| (seed, &["w", "x"][..]))) {
        let (node, mut rng) = start(seed);
        write_some(&node, "v", &mut rng);
        snapshot(&node, "s");
        write_some(&node, "v", &mut rng);
        rollback(&node);
        write_some(&node, "v", &mut rng);
        clones.iter().for_each(|volume| clone(&node, "v", volume));
        undo(&node);
        pass(&node, WINDOW * 4);
        assert_eq!(known(&node).len(), 2, "seed {seed}: {clones:?} hold what is hidden");
        clones.iter().for_each(|volume| delete(&node, volume));
        pass(&node, WINDOW * 4);
        assert_eq!(known(&node).len(), 1, "seed {seed}: nothing holds it any more");
        assert_eq!(in_store(&node), known(&node), "seed {seed}: {:?}", objects(&node));
    }
}
