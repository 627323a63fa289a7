// SPDX-License-Identifier: Apache-2.0
//! What an opening that ended early left in the store is gone after the next ones, and nothing else is.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

use varve_sim::node;

use node::{Node, name};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;
use varve_engine::Device;
use varve_format::manifest::Manifest;
use varve_format::{ObjectKind, ObjectName};
use varve_sim::{CrashMode, InFlight, Rng, SimOptions, StoreFault, StoreOp};
use varve_types::{Epoch, WriterId};

const SIZE: usize = 1 << 20;

fn start(seed: u64) -> Node {
    let node = Node::new(SimOptions::seed(seed), 16 << 20);
    node.create().unwrap().unwrap();
    node.create_volume("v", SIZE as u64);
    node
}

fn write_some(node: &Node, model: &mut [u8], rng: &mut Rng) {
    let device = node.device("v");
    for _ in 0..8 {
        let at = rng.below(SIZE as u64 / 4096 - 8) as usize * 4096;
        let mut data = vec![0; 8 * 4096];
        rng.fill(&mut data);
        model[at..at + data.len()].copy_from_slice(&data);
        node.write(&device, at as u64, data, false).unwrap().unwrap();
    }
    node.flush(&device).unwrap().unwrap();
}

fn merge(node: &Node) {
    let volume = node.volume("v");
    node.must("merge", async move {
        volume.seal().await?;
        volume.checkpoint().await
    });
}

fn check(node: &Node, device: &Rc<Device>, model: &[u8], when: &str) {
    assert!(node.read(device, 0, SIZE as u32).unwrap().unwrap() == model, "{when}");
}

fn objects(node: &Node) -> BTreeSet<ObjectName> {
    node.server.names().iter().filter_map(|text| ObjectName::parse(text)).collect()
}

/// Two checkpoints, so that the sweep of this opening begins, and time for it.
fn let_sweep(node: &Node, model: &mut [u8], rng: &mut Rng) {
    for _ in 0..3 {
        write_some(node, model, rng);
        merge(node);
        node.world.run_for(Duration::from_secs(30)).unwrap();
    }
}

/// Every object of the store that the newest manifest does not account for.
fn strays(node: &Node) -> Vec<ObjectName> {
    let all = objects(node);
    let newest = all.iter().filter(|o| o.kind == ObjectKind::Manifest).max_by_key(|o| (o.epoch, o.number)).unwrap();
    let manifest = Manifest::decode(&node.server.object(&newest.to_string()).unwrap()).unwrap();
    let dead: BTreeSet<_> = manifest.dead.iter().map(|dead| dead.name).collect();
    let stray = |o: &&ObjectName| match o.kind {
        // The one before the newest is needed until the next.
        ObjectKind::Manifest => o.number + 1 < newest.number,
        ObjectKind::Map => !manifest
            .maps
            .iter()
            .any(|m| (u64::from(m.root.0), m.part, m.epoch, m.writer) == (o.number, o.part, o.epoch, o.writer)),
        ObjectKind::Table => {
            !manifest.tables.iter().any(|t| (t.number, t.epoch, t.writer) == (o.number, o.epoch, o.writer))
        }
        // Of segments and bundles only their number is compared, below.
        ObjectKind::Segment | ObjectKind::Bundle => false,
    };
    all.iter().filter(|o| !dead.contains(*o)).filter(stray).copied().collect()
}

#[test]
fn a_checkpoint_without_its_manifest_is_swept() {
    let mut node = start(1);
    let (mut model, mut rng) = (vec![0; SIZE], Rng::new(1));
    write_some(&node, &mut model, &mut rng);
    merge(&node);
    write_some(&node, &mut model, &mut rng);
    let before = objects(&node);
    // The next manifest is on its way for long, and lands only when nobody waits for it any more.
    node.server.fail(StoreOp::Put, "/man/", 0, StoreFault::Held);
    let volume = node.volume("v");
    varve_env::Env::spawn(
        &*node.env,
        Box::pin(async move {
            let _never_ends = (volume.seal().await, volume.checkpoint().await);
        }),
    );
    // Until the first try of the manifest: the second is 100 ms later.
    node.world.run_for(Duration::from_millis(80)).unwrap();
    let left: Vec<_> = objects(&node).difference(&before).filter(|o| o.kind != ObjectKind::Segment).copied().collect();
    assert!(
        left.iter().any(|o| o.kind == ObjectKind::Map) && left.iter().any(|o| o.kind == ObjectKind::Table),
        "{left:?}"
    );
    node.crash(CrashMode::Kill, InFlight::Lost);
    node.reopen();
    node.server.release_held();
    check(&node, &node.device("v"), &model, "after the death");
    let_sweep(&node, &mut model, &mut rng);
    let now = objects(&node);
    let still: Vec<_> = left.iter().filter(|o| now.contains(o)).collect();
    assert!(still.is_empty(), "{still:?}");
    assert_eq!(strays(&node), []);
    let quiet = objects(&node);
    node.world.run_for(Duration::from_secs(60)).unwrap();
    assert_eq!(objects(&node), quiet, "a quiet volume goes on writing");
    check(&node, &node.device("v"), &model, "swept");
    node.crash(CrashMode::Lost, InFlight::Lost);
    node.reopen();
    check(&node, &node.device("v"), &model, "found again");
}

#[test]
fn a_segment_that_lands_behind_the_cut_is_swept_by_the_opening_after() {
    let mut node = start(2);
    let (mut model, mut rng) = (vec![0; SIZE], Rng::new(2));
    write_some(&node, &mut model, &mut rng);
    merge(&node);
    node.server.fail(StoreOp::Put, "/seg/", 0, StoreFault::Held);
    write_some(&node, &mut model, &mut rng);
    let volume = node.volume("v");
    varve_env::Env::spawn(
        &*node.env,
        Box::pin(async move {
            let _dies = volume.seal().await;
        }),
    );
    node.world.run_for(Duration::from_millis(8)).unwrap();
    node.crash(CrashMode::Kill, InFlight::Lost);
    node.reopen();
    let before = objects(&node);
    node.server.release_held();
    let late: Vec<_> = objects(&node).difference(&before).copied().collect();
    assert_eq!((late.len(), late[0].kind), (1, ObjectKind::Segment), "{late:?}");
    check(&node, &node.device("v"), &model, "it landed late");
    node.crash(CrashMode::Kill, InFlight::Lost);
    node.reopen();
    let_sweep(&node, &mut model, &mut rng);
    assert!(!objects(&node).contains(&late[0]), "it is still there");
    check(&node, &node.device("v"), &model, "swept");
}

#[test]
fn what_it_does_not_know_it_leaves_alone() {
    let mut node = start(3);
    let (mut model, mut rng) = (vec![0; SIZE], Rng::new(3));
    write_some(&node, &mut model, &mut rng);
    merge(&node);
    node.crash(CrashMode::Kill, InFlight::Lost);
    node.reopen();
    let record = node.volume("v").record();
    let object = |kind, number, epoch| {
        ObjectName { timeline: record.shown, kind, number, part: 0, epoch: Epoch(epoch), writer: WriterId(77) }
            .to_string()
    };
    let newer = object(ObjectKind::Segment, 5, record.epoch.0 + 1);
    let same = object(ObjectKind::Map, 900, record.epoch.0);
    let older = object(ObjectKind::Segment, 70_000, record.epoch.0 - 1);
    let foreign = format!("{}/notes.txt", record.shown);
    for text in [&newer, &same, &older, &foreign] {
        node.server.plant(text, &b"x"[..]);
    }
    let_sweep(&node, &mut model, &mut rng);
    let names = node.server.names();
    let there = |text: &String| names.contains(text);
    assert_eq!((there(&newer), there(&same), there(&foreign), there(&older)), (true, true, true, false));
    // Once the pool is another cluster's, nothing is deleted any more.
    node.crash(CrashMode::Kill, InFlight::Lost);
    node.reopen();
    node.server.plant(&older, &b"x"[..]);
    node.server.plant("owner/2", &b"another cluster"[..]);
    let deleted = node.server.counts().requests.get(&StoreOp::Delete).copied();
    let volume = node.volume("v");
    let ended = node.run(async move { (volume.seal().await, volume.checkpoint().await, volume.checkpoint().await) });
    assert!(ended.unwrap().0.is_ok(), "sealing deletes nothing");
    node.world.run_for(Duration::from_secs(60)).unwrap();
    assert_eq!(node.server.counts().requests.get(&StoreOp::Delete).copied(), deleted);
    assert!(node.volume("v").stopped().is_some_and(|error| error.kind() == varve_types::ErrorKind::Fenced));
    let shard = node.shard();
    assert!(node.run(async move { shard.find(&name("v")).is_ok() }).unwrap());
}
