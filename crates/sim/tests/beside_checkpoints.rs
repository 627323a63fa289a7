// SPDX-License-Identifier: Apache-2.0
//! A read that waits for a node of the map, and a check that walks trees, while checkpoints replace those nodes and give them back.
//!
//! Either is brought to a stop in the middle. Then checkpoints of the one leaf that the volume has write all of its map anew, again and again, until
//! nothing else keeps the nodes that are about to be loaded. Then it goes on.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

use varve_sim::node;

use node::{Node, finish, name, read};
use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;
use varve_engine::{BlockDevice, CheckReport, Device, EngineError, Volume};
use varve_env::Env;
use varve_format::manifest::{Manifest, TimelineState};
use varve_sim::{CrashMode, InFlight, Rng, SimEnv, SimOptions, StoreOp, StoreServer};
use varve_types::{Overrides, TimelineId};

/// What one leaf of the map covers.
const SIZE: usize = 2 << 20;
const BLOCK: usize = 4096;
/// After so many checkpoints nothing of the map before them is kept: the second asks again what the first has replaced.
const CHECKPOINTS: u64 = 4;

fn start(seed: u64) -> (Node, Rng) {
    let mut node = Node::new(SimOptions::seed(seed), 16 << 20);
    node.pool.undelete_window_ms = Some(60_000);
    node.create().unwrap().unwrap();
    node.create_volume("v", SIZE as u64);
    (node, Rng::new(seed))
}

/// Writes a part of the volume.
fn write(node: &Node, model: &mut [u8], rng: &mut Rng, blocks: std::ops::Range<usize>) {
    let device = node.device("v");
    let bytes = blocks.start * BLOCK..blocks.end * BLOCK;
    rng.fill(&mut model[bytes.clone()]);
    node.write(&device, bytes.start as u64, model[bytes].to_vec(), false).unwrap().unwrap();
    node.flush(&device).unwrap().unwrap();
}

/// Writes one block again and again, and the whole map with it each time.
async fn replace_the_map(volume: &Volume, device: &Device, offset: u64) -> Result<(), EngineError> {
    for round in 1..=CHECKPOINTS {
        finish(device, device.write(offset, vec![round as u8; BLOCK].into(), false)).await?;
        volume.seal().await?;
        volume.checkpoint().await?;
    }
    Ok(())
}

fn merge(node: &Node) {
    let volume = node.volume("v");
    node.must("merge", async move {
        volume.seal().await?;
        volume.checkpoint().await
    });
}

fn pass(node: &Node, seconds: u64) {
    node.world.run_for(Duration::from_secs(seconds)).unwrap();
}

#[test]
fn a_read_waits_for_a_node_that_is_replaced_meanwhile() {
    let (mut node, mut rng) = start(1);
    let mut model = vec![0; SIZE];
    write(&node, &mut model, &mut rng, 0..300);
    merge(&node);
    let is_map = |object: &String| object.contains("/map/");
    let old: Vec<String> = node.server.names().into_iter().filter(is_map).collect();
    // Cold, and nothing of it in the cache.
    node.crash(CrashMode::Kill, InFlight::Lost);
    node.reopen();
    node.server.away_for(Duration::from_secs(20));
    let (device, volume) = (node.device("v"), node.volume("v"));
    let found: Rc<RefCell<Option<_>>> = Rc::default();
    let (slot, reader) = (Rc::clone(&found), Rc::clone(&device));
    node.env.spawn(Box::pin(async move {
        let bytes = read(&reader, 0, 256 * BLOCK as u32).await;
        *slot.borrow_mut() = Some(bytes);
    }));
    pass(&node, 20);
    // The store is back, and the read's next try is some seconds off.
    node.must("checkpoints", async move { replace_the_map(&volume, &device, 299 * BLOCK as u64).await });
    node.world.run_for(Duration::from_millis(100)).unwrap();
    let names = node.server.names();
    assert!(!old.is_empty() && old.iter().all(|object| !names.contains(object)), "{old:?} of {names:?}");
    assert!(found.borrow().is_none(), "the read did not wait so long");
    pass(&node, 20);
    let bytes = found.borrow_mut().take().expect("the read has ended").expect("a read");
    assert!(bytes == model[..256 * BLOCK], "other bytes");
}

/// What a check has come to, and whether it may go on.
#[derive(Default)]
struct Gate {
    /// The map object of the shown timeline that its walk for a hidden one has asked for first.
    reached: Option<String>,
    open: bool,
}

/// The first map object of `shown` that was read since `since`, behind the manifest of `hidden`: only a check reads that one.
fn reached(server: &StoreServer, since: Duration, hidden: TimelineId, shown: TimelineId) -> Option<String> {
    let (manifest, map) = (format!("{hidden}/man/"), format!("{shown}/map/"));
    let log = server.log();
    let gets = log.iter().filter(|entry| entry.op == StoreOp::Get && entry.at >= since);
    let mut behind = gets.skip_while(|entry| !entry.name.starts_with(&manifest));
    behind.find(|entry| entry.name.starts_with(&map)).map(|entry| entry.name.clone())
}

/// Checks the volume; where the check has begun to walk the trees that lead to `hidden` it is held up, until the map is another. Gives what it found, and
/// the object that it was about to read more of, if that was still there.
fn check_beside_checkpoints(node: &Node, hidden: TimelineId) -> (CheckReport, Option<String>) {
    let (volume, device) = (node.volume("v"), node.device("v"));
    let (since, shown, server) = (node.world.now(), volume.record().shown, node.server.clone());
    let gate: Rc<RefCell<Gate>> = Rc::default();
    let (seen, store, checked) = (Rc::clone(&gate), server.clone(), Rc::clone(&volume));
    let mut check = Box::pin(async move { checked.check(&|_, _| {}).await });
    let held_up = poll_fn(move |context| {
        let mut gate = seen.borrow_mut();
        if gate.reached.is_none() {
            gate.reached = reached(&store, since, hidden, shown);
            if gate.reached.is_some() {
                context.waker().wake_by_ref();
            }
        }
        if gate.reached.is_some() && !gate.open {
            return Poll::Pending;
        }
        drop(gate);
        check.as_mut().poll(context)
    });
    let env = Rc::<SimEnv>::clone(&node.env);
    let beside = async move {
        let place = poll_fn(|_| match &gate.borrow().reached {
            Some(object) => Poll::Ready(object.clone()),
            None => Poll::Pending,
        });
        let object = place.await;
        replace_the_map(&volume, &device, (SIZE - BLOCK) as u64).await?;
        env.sleep(Duration::from_secs(1)).await;
        gate.borrow_mut().open = true;
        Ok::<_, EngineError>(server.object(&object).map(|_| object))
    };
    // In this order: the check is looked at again when the gate was opened.
    let (beside, report) = node.run(async move { futures_util::future::join(beside, held_up).await }).unwrap();
    (report.expect("a check"), beside.expect("checkpoints"))
}

fn newest(node: &Node, timeline: TimelineId) -> Manifest {
    let prefix = format!("{timeline}/man/");
    let manifests = node.server.names().into_iter().filter(|object| object.starts_with(&prefix));
    let decoded = manifests.map(|object| Manifest::decode(&node.server.object(&object).unwrap()).unwrap());
    decoded.max_by_key(|manifest| (manifest.epoch, manifest.number)).unwrap()
}

#[test]
fn a_check_walks_trees_that_are_replaced_meanwhile() {
    let (node, mut rng) = start(2);
    let mut model = vec![0; SIZE];
    write(&node, &mut model, &mut rng, 0..200);
    merge(&node);
    let volume = node.volume("v");
    node.must("snapshot", async move { volume.snapshot(name("s")).await.map(drop) });
    let hidden = node.volume("v").record().shown;
    let volume = node.volume("v");
    node.must("rollback", async move { volume.rollback(&name("s")).await });
    write(&node, &mut model, &mut rng, 0..40);
    merge(&node);
    let volume = node.volume("v");
    node.must("delete the snapshot", async move { volume.delete_snapshot(&name("s")).await });
    pass(&node, 900);
    assert_eq!(newest(&node, hidden).state, TimelineState::Held { swept: true }, "the history that the volume needs");
    let (report, kept) = check_beside_checkpoints(&node, hidden);
    assert_eq!(report.problems, []);
    let kept = kept.expect("what a check walks stays until it is done");
    merge(&node);
    merge(&node);
    pass(&node, 60);
    assert_eq!(node.server.object(&kept), None, "only the check needed it");
}

/// What a clone took over unmerged it shares with its origin in RAM; merged, each clone would have nodes of its own for all of it.
#[test]
fn a_clone_does_not_merge_what_it_took_over() {
    let (node, mut rng) = start(4);
    let (mut model, bound) = (vec![0; SIZE], node.limits.overlay_entries);
    // Every second block, so that each is an entry.
    for block in (0..bound - 8).map(|n| 2 * n) {
        write(&node, &mut model, &mut rng, block..block + 1);
    }
    let (shard, volume) = (node.shard(), node.volume("v"));
    node.must("seal", async move { volume.seal().await });
    node.must(
        "clone",
        async move { shard.clone_volume(&name("v"), None, name("c"), Overrides::default()).await.map(drop) },
    );
    let device = node.device("c");
    for block in (0..16).map(|n| 2 * n + 1) {
        node.write(&device, block * BLOCK as u64, vec![block as u8; BLOCK], false).unwrap().unwrap();
        model[block as usize * BLOCK..][..BLOCK].fill(block as u8);
    }
    let volume = node.volume("c");
    node.must("seal", async move { volume.seal().await });
    pass(&node, 5);
    let timeline = node.volume("c").record().shown;
    let map = |node: &Node| node.server.names().iter().any(|name| name.starts_with(&format!("{timeline}/map/")));
    assert!(!map(&node), "{bound} entries are together only with those of the origin");
    assert_eq!(node.read(&device, 0, SIZE as u32).unwrap().unwrap(), model);
    let volume = node.volume("c");
    node.must("checkpoint", async move { volume.checkpoint().await });
    assert!(map(&node), "asked for, it merges all of it");
    assert_eq!(node.read(&device, 0, SIZE as u32).unwrap().unwrap(), model);
}
