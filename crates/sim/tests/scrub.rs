// SPDX-License-Identifier: Apache-2.0
//! Scrubbing: it finds whatever is damaged or gone, of volumes that are shown, hidden or deleted, and nothing else; and forgets what is mended.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

use varve_sim::node;

use node::{Node, name};
use std::sync::Arc;
use std::time::Duration;
use varve_coord::{Change, Coord, ManifestRef, Records, TimelineRecord};
use varve_engine::Finding;
use varve_format::{ObjectKind, ObjectName};
use varve_sim::{CrashMode, InFlight, Rng, SimOptions};
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

/// The node dies, and another process begins.
fn restart(node: &mut Node) {
    node.crash(CrashMode::Kill, InFlight::Lost);
    node.reopen();
}

/// The key under which it is kept how far the node has come.
fn place(node: &Node) -> String {
    let coord = Arc::clone(&node.coord);
    let listed = node.run(async move { coord.list("scrub/").await }).unwrap().unwrap();
    listed.entries[0].key.clone()
}

fn plant(node: &Node, key: String, value: Option<Vec<u8>>) {
    let change = value.map_or(Change::Delete(key.clone()), |value| Change::put(key, value));
    let coord = Arc::clone(&node.coord);
    node.run(async move { coord.transact(Vec::new(), vec![change]).await }).unwrap().unwrap();
}

/// A node in the middle of a slow pass, and the objects that it has proved.
fn half_way() -> (Node, u64) {
    let node = start(NEVER);
    node.shard().set_scrub_rate(8 << 10);
    node.shard().scrub_now();
    let all = objects(&node).len() as u64;
    for _ in 0..1000 {
        node.world.run_for(Duration::from_secs(10)).unwrap();
        let counts = node.shard().counts().scrub;
        assert!(counts.running, "{counts:?}");
        if counts.pass_objects > all / 2 {
            return (node, counts.pass_objects);
        }
    }
    panic!("the pass does not come half way: {:?}", node.shard().counts().scrub);
}

#[test]
fn a_pass_goes_on_where_it_was_after_a_restart() {
    let (mut node, done) = half_way();
    let (all, begun) = (objects(&node).len() as u64, node.shard().counts().scrub.pass_begun_ms);
    restart(&mut node);
    node.shard().set_scrub_rate(1 << 40);
    node.world.run_for(Duration::from_secs(60)).unwrap();
    let counts = node.shard().counts().scrub;
    assert!(!counts.running && counts.passes == 1 && counts.pass_begun_ms == 0, "{counts:?}");
    // What was proved in the last minute before, or belongs to the page that it was at, is proved again.
    assert!(counts.objects < all - done / 2, "{} of {all} objects, {done} were proved before", counts.objects);
    assert!(begun < counts.ended_ms, "{counts:?}");
    // And then it rests, over another restart too.
    restart(&mut node);
    node.world.run_for(Duration::from_secs(60)).unwrap();
    let rests = node.shard().counts().scrub;
    assert!(rests.objects == 0 && rests.ended_ms == counts.ended_ms, "{rests:?}");
    node.shard().scrub_now();
    node.world.run_for(Duration::from_secs(60)).unwrap();
    assert!(node.shard().counts().scrub.objects >= all);
}

#[test]
fn what_was_found_before_a_restart_is_known_behind_it() {
    let mut node = start(NEVER);
    let found_at = objects(&node)[0];
    let (text, bytes) = (found_at.to_string(), node.server.object(&found_at.to_string()).unwrap());
    node.server.remove(&text);
    assert_eq!(scrub(&node).len(), 1);
    let found = node.shard().findings();
    // The pass that goes on behind the restart has come by it already.
    node.shard().set_scrub_rate(8 << 10);
    node.shard().scrub_now();
    node.world.run_for(Duration::from_secs(400)).unwrap();
    assert!(node.shard().counts().scrub.running);
    restart(&mut node);
    node.shard().set_scrub_rate(1 << 40);
    node.world.run_for(Duration::from_secs(60)).unwrap();
    assert_eq!(node.shard().counts().scrub.passes, 1);
    assert_eq!(node.shard().findings(), found);
    node.server.plant(&text, bytes);
    assert_eq!(scrub(&node), []);
}

#[test]
fn a_place_that_is_lost_or_makes_no_sense_costs_only_the_way() {
    let newer = br#"{"version":7}"#.to_vec();
    for value in [None, Some(b"nonsense".to_vec()), Some(newer)] {
        let (mut node, _) = half_way();
        let all = objects(&node).len() as u64;
        let key = place(&node);
        node.crash(CrashMode::Kill, InFlight::Lost);
        plant(&node, key, value);
        node.reopen();
        node.shard().set_scrub_rate(1 << 40);
        node.world.run_for(Duration::from_secs(60)).unwrap();
        let counts = node.shard().counts().scrub;
        assert!(counts.passes == 1 && counts.objects >= all && counts.findings == 0, "{counts:?}");
    }
}

#[test]
fn it_is_written_once_a_minute_and_no_more() {
    let (node, _) = half_way();
    let revision = |node: &Node| {
        let (coord, key) = (Arc::clone(&node.coord), place(node));
        node.run(async move { coord.get(&key).await }).unwrap().unwrap().unwrap().revision
    };
    let before = revision(&node);
    node.world.run_for(Duration::from_secs(50)).unwrap();
    let written = revision(&node) - before;
    assert!(written <= 1, "{written} changes of coordination in 50 s");
}

#[test]
fn a_manifest_that_is_damaged_or_gone_is_a_finding() {
    let node = start(NEVER);
    assert_eq!(scrub(&node), []);
    let (coord, id) = (Arc::clone(&node.coord), node.volume("v").id());
    let (shown, _) = node.run(async move { Records::new(&*coord).load_volume(id).await }).unwrap().unwrap();
    let of = |timeline: &TimelineRecord| {
        let ManifestRef { number, epoch, writer } = timeline.manifest.unwrap();
        ObjectName { timeline: timeline.id, kind: ObjectKind::Manifest, number, part: 0, epoch, writer }
    };
    assert!(shown.timelines.len() > 1);
    for name in shown.timelines.iter().map(of) {
        let bytes = node.server.object(&name.to_string()).unwrap();
        node.server.flip_bit(&name.to_string(), bytes.len() as u64 / 2, 3);
        let objects: Vec<_> = scrub(&node).into_iter().map(|finding| finding.object).collect();
        assert_eq!(objects, [name], "damaged");
        node.server.remove(&name.to_string());
        let objects: Vec<_> = scrub(&node).into_iter().map(|finding| finding.object).collect();
        assert_eq!(objects, [name], "gone");
        node.server.plant(&name.to_string(), bytes);
        assert_eq!(scrub(&node), [], "mended");
    }
}
