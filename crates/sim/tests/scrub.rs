// SPDX-License-Identifier: Apache-2.0
//! Scrubbing: it finds whatever is damaged or gone, of volumes that are shown, hidden or deleted, and nothing else; and forgets what is mended.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

use varve_sim::node;

use node::{Node, name};
use std::time::Duration;
use varve_engine::Finding;
use varve_format::{ObjectKind, ObjectName};
use varve_sim::{Rng, SimOptions};
use varve_types::{Compression, Overrides};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 256;
/// Between two passes.
const NEVER: u64 = u64::MAX;

/// A node with a volume that has segments, bundles, map and table objects, a hidden history, and a clone.
fn start(interval_ms: u64) -> Node {
    let mut node = Node::new(SimOptions { most_steps: 20_000_000, ..SimOptions::seed(3) }, 16 << 20);
    node.pool.segment_size = Some(32 * BLOCK);
    node.pool.compression = Some(Compression::None);
    node.limits.scrub_rate = 1 << 40;
    node.limits.scrub_interval_ms = interval_ms;
    node.create().unwrap().unwrap();
    node.create_volume("v", BLOCKS * BLOCK);
    let mut rng = Rng::new(3);
    write(&node, &mut rng, 1000);
    let volume = node.volume("v");
    node.must("snapshot", async move { volume.snapshot(name("s")).await.map(drop) });
    write(&node, &mut rng, 300);
    let shard = node.shard();
    let clone = async move { shard.clone_volume(&name("v"), None, name("c"), Overrides::default()).await.map(drop) };
    node.must("clone", clone);
    let volume = node.volume("v");
    node.must("rollback", async move { volume.rollback(&name("s")).await.map(drop) });
    write(&node, &mut rng, 300);
    node.world.run_for(Duration::from_secs(120)).unwrap();
    node
}

fn write(node: &Node, rng: &mut Rng, times: u64) {
    let device = node.device("v");
    for _ in 0..times {
        node.write(&device, rng.below(BLOCKS) * BLOCK, vec![rng.below(255) as u8 + 1; BLOCK as usize], false)
            .unwrap()
            .unwrap();
    }
    node.flush(&device).unwrap().unwrap();
    let volume = node.volume("v");
    node.must("checkpoint", async move {
        volume.seal().await?;
        volume.checkpoint().await
    });
}

fn scrub(node: &Node) -> Vec<Finding> {
    let shard = node.shard();
    node.must("scrub", async move { shard.scrub().await });
    node.shard().findings()
}

/// Objects that a pass proves, by kind.
fn objects(node: &Node) -> Vec<ObjectName> {
    let names = node.server.names();
    let all = names.iter().filter_map(|name| ObjectName::parse(name));
    all.filter(|name| name.kind != ObjectKind::Manifest).collect()
}

#[test]
fn it_finds_whatever_is_damaged_or_gone_and_nothing_else() {
    let node = start(NEVER);
    assert_eq!(scrub(&node), []);
    let all = objects(&node);
    let kinds: std::collections::BTreeSet<ObjectKind> = all.iter().map(|name| name.kind).collect();
    assert_eq!(kinds.len(), 4, "{kinds:?}");
    for (at, object) in all.iter().enumerate() {
        let text = object.to_string();
        let bytes = node.server.object(&text).unwrap();
        if at % 2 == 0 {
            node.server.flip_bit(&text, (at as u64 * 977) % bytes.len() as u64, (at % 8) as u8);
        } else {
            node.server.remove(&text);
        }
        let found = scrub(&node);
        // A damaged table object hides what it leads to, and that is found with the next pass.
        assert!(found.iter().any(|finding| finding.object == *object), "{object}: {found:?}");
        node.server.remove(&text);
        node.server.plant(&text, bytes);
        assert_eq!(scrub(&node), [], "{object} is mended");
    }
}

#[test]
fn it_takes_nothing_for_lost_that_goes_while_it_looks() {
    let node = start(0);
    let mut rng = Rng::new(5);
    node.shard().set_scrub_rate(256 << 10);
    let before = node.shard().counts().scrub.passes;
    for _ in 0..30 {
        write(&node, &mut rng, 100);
        node.world.run_for(Duration::from_secs(5)).unwrap();
        assert_eq!(node.shard().findings(), []);
    }
    let passes = node.shard().counts().scrub.passes - before;
    assert!(passes > 3, "{passes} passes");
}

#[test]
fn passes_begin_by_themselves_and_rest() {
    let node = start(NEVER);
    let before = node.shard().counts().scrub;
    assert!(before.passes == 1 && before.objects > 0 && !before.running, "{before:?}");
    node.shard().scrub_now();
    node.world.run_for(Duration::from_secs(60)).unwrap();
    assert_eq!(node.shard().counts().scrub.passes, 2);
    // Turned off, it ends with the object that is under way.
    node.shard().set_scrub_rate(64 << 10);
    node.shard().scrub_now();
    node.world.run_for(Duration::from_secs(12)).unwrap();
    let under_way = node.shard().counts().scrub;
    assert!(under_way.running);
    node.shard().set_scrub_rate(0);
    node.world.run_for(Duration::from_secs(60)).unwrap();
    let off = node.shard().counts().scrub;
    assert!(!off.running && off.passes == 2 && off.objects <= under_way.objects + 1, "{under_way:?}, {off:?}");
}
