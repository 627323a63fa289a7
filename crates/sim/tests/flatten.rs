// SPDX-License-Identifier: Apache-2.0
//! Flattening: a clone becomes independent of its origin under load, whatever dies on the way, and the origin can then go.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

use varve_sim::node;

use node::{Node, name};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use varve_engine::{Device, EngineError, Flattened};
use varve_sim::{CrashMode, InFlight, Rng, SimOptions};
use varve_types::Overrides;

const MIB: usize = 1 << 20;
const SIZE: usize = 2 * MIB;

fn noise(rng: &mut Rng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rng.fill(&mut bytes);
    bytes
}

/// A volume `v` with data here and there, a clone `w` of its snapshot `base`, and what `w` has to show. `v` went on since.
fn origin_and_clone(seed: u64, merged: bool) -> (Node, Vec<u8>, Rng) {
    let mut node = Node::new(SimOptions::seed(seed), 16 << 20);
    node.pool.undelete_window_ms = Some(10_000);
    node.create().unwrap().unwrap();
    let mut rng = Rng::new(seed);
    node.create_volume("v", SIZE as u64);
    let device = node.device("v");
    let mut model = vec![0; SIZE];
    for _ in 0..20 {
        let (at, len) = (rng.below((SIZE / 4096) as u64 - 40) as usize * 4096, (1 + rng.below(40) as usize) * 4096);
        let data = noise(&mut rng, len);
        model[at..at + len].copy_from_slice(&data);
        node.write(&device, at as u64, data, false).unwrap().unwrap();
    }
    let volume = node.volume("v");
    node.must("snapshot", async move { volume.snapshot(name("base")).await });
    if merged {
        let volume = node.volume("v");
        node.must("checkpoint", async move {
            volume.seal().await?;
            volume.checkpoint().await
        });
    }
    clone(&node, "v", Some("base"), "w");
    node.write(&device, 0, noise(&mut rng, 64 * 4096), false).unwrap().unwrap();
    (node, model, rng)
}

fn clone(node: &Node, from: &str, snapshot: Option<&str>, to: &str) {
    let (shard, from, snapshot, to) = (node.shard(), name(from), snapshot.map(name), name(to));
    node.must("clone", async move {
        shard.clone_volume(&from, snapshot.as_ref(), to, Overrides::default()).await.map(drop)
    });
}

fn flatten(node: &Node, volume: &str) -> Flattened {
    let (shard, volume) = (node.shard(), name(volume));
    node.must("flatten", async move { shard.flatten(&volume, |done, total| assert!(done <= total)).await })
}

fn check(node: &Node, device: &Rc<Device>, model: &[u8], when: &str) {
    for at in (0..model.len()).step_by(MIB) {
        let bytes = node.read(device, at as u64, MIB as u32).unwrap().unwrap();
        assert!(bytes == model[at..at + MIB], "{when}: MiB {}", at / MIB);
    }
}

/// Deletes a volume and lets its window end. Tells whether anything of its timelines is left in the store.
fn delete_for_good(node: &Node, volume: &str) -> bool {
    let timelines: Vec<_> = node.volume(volume).record().timelines.iter().map(|t| t.id.to_string()).collect();
    let (shard, volume) = (node.shard(), name(volume));
    node.must("delete", async move { shard.delete_volume(&volume).await });
    node.world.run_for(Duration::from_secs(40)).unwrap();
    node.server.names().iter().any(|object| timelines.iter().any(|timeline| object.starts_with(timeline)))
}

fn write_randomly(node: &Node, device: &Rc<Device>, model: &mut [u8], rng: &mut Rng) {
    let at = rng.below((SIZE / 512) as u64 - 300) as usize * 512;
    let len = (1 + rng.below(300) as usize) * 512;
    if rng.chance(250) {
        model[at..at + len].fill(0);
        node.discard(device, at as u64, len as u64, false).unwrap().unwrap();
    } else {
        let data = noise(rng, len);
        model[at..at + len].copy_from_slice(&data);
        node.write(device, at as u64, data, false).unwrap().unwrap();
    }
}

#[test]
fn what_is_written_meanwhile_is_never_overwritten() {
    for seed in 0..4 {
        let (mut node, mut model, mut rng) = origin_and_clone(seed, seed % 2 == 0);
        let device = node.device("w");
        let done: Rc<RefCell<Option<Result<Flattened, EngineError>>>> = Rc::default();
        let (slot, shard) = (Rc::clone(&done), node.shard());
        varve_env::Env::spawn(
            &*node.env,
            Box::pin(async move {
                let result = shard.flatten(&name("w"), |_, _| {}).await;
                *slot.borrow_mut() = Some(result);
            }),
        );
        let mut writes = 0;
        while done.borrow().is_none() {
            write_randomly(&node, &device, &mut model, &mut rng);
            writes += 1;
            assert!(writes < 20_000, "seed {seed}: it does not end");
        }
        let flattened = done.borrow_mut().take().unwrap().unwrap();
        assert!(flattened.independent && flattened.blocks > 100, "seed {seed}: {flattened:?} beside {writes} writes");
        assert!(writes > 20, "seed {seed}: only {writes} writes");
        check(&node, &device, &model, "flattened");
        drop(device);
        assert!(!delete_for_good(&node, "v"), "seed {seed}: the origin is still there");
        check(&node, &node.device("w"), &model, "the origin is gone");
        node.crash(CrashMode::Lost, InFlight::Lost);
        node.reopen();
        check(&node, &node.device("w"), &model, "after a power cut");
        let again = flatten(&node, "w");
        assert_eq!((again.independent, again.blocks), (true, 0));
    }
}

#[test]
fn without_it_the_origin_stays() {
    let (node, model, _) = origin_and_clone(1, true);
    assert!(delete_for_good(&node, "v"), "what the clone needs is gone");
    check(&node, &node.device("w"), &model, "the origin is deleted");
}

#[test]
fn a_snapshot_and_a_clone_keep_the_origin_until_they_go() {
    let (node, mut model, mut rng) = origin_and_clone(2, true);
    let snapshot = |text: &str| {
        let (volume, wanted) = (node.volume("w"), name(text));
        node.must("snapshot", async move { volume.snapshot(wanted).await });
    };
    // One with the origin's nodes, one with a node of its own that leads to the origin's blocks.
    snapshot("s");
    write_randomly(&node, &node.device("w"), &mut model, &mut rng);
    snapshot("t");
    write_randomly(&node, &node.device("w"), &mut model, &mut rng);
    let first = flatten(&node, "w");
    assert_eq!((first.independent, first.snapshots.clone()), (false, vec![name("s"), name("t")]), "{first:?}");
    assert!(first.blocks > 100 && first.clones.is_empty() && !first.rolled_back);
    let forget = |text: &str| {
        let (volume, wanted) = (node.volume("w"), name(text));
        node.must("delete a snapshot", async move { volume.delete_snapshot(&wanted).await });
    };
    forget("s");
    assert_eq!(flatten(&node, "w").snapshots, [name("t")]);
    let (volume, at_t) = (node.volume("w"), name("t"));
    let view = node.must("view", async move { volume.snapshot_device(&at_t, "test".to_owned()).await.map(Rc::new) });
    let model_at_t = node.read(&view, 0, SIZE as u32).unwrap().unwrap();
    drop(view);
    clone(&node, "w", Some("t"), "x");
    forget("t");
    let second = flatten(&node, "w");
    assert_eq!((second.independent, second.blocks, second.clones.len()), (false, 0, 1), "{second:?}");
    assert!(flatten(&node, "x").independent);
    let third = flatten(&node, "w");
    assert!(third.independent, "{third:?}");
    assert!(!delete_for_good(&node, "v"));
    assert!(!delete_for_good(&node, "w"));
    check(&node, &node.device("x"), &model_at_t, "all it came from is gone");
}

#[test]
fn a_clone_of_a_clone_that_nothing_has_merged_sees_all_of_it() {
    for seed in 5..8 {
        let (mut node, mut model, mut rng) = origin_and_clone(seed, false);
        let device = node.device("w");
        write_randomly(&node, &device, &mut model, &mut rng);
        drop(device);
        let volume = node.volume("w");
        let view = node.must("view", async move {
            volume.snapshot(name("now")).await?;
            volume.snapshot_device(&name("now"), "test".to_owned()).await.map(Rc::new)
        });
        check(&node, &view, &model, "a snapshot of the clone");
        clone(&node, "w", None, "x");
        clone(&node, "x", None, "y");
        check(&node, &node.device("y"), &model, "from RAM");
        node.crash(CrashMode::Lost, InFlight::Landed);
        node.reopen();
        for volume in ["w", "x", "y"] {
            check(&node, &node.device(volume), &model, "after a power cut");
        }
        assert!(flatten(&node, "y").independent);
        check(&node, &node.device("y"), &model, "flattened");
    }
}

#[test]
fn indexes_are_given_back() {
    let (node, model, _) = origin_and_clone(3, true);
    let mut last = "w".to_owned();
    for round in 0..260 {
        assert!(flatten(&node, &last).independent, "round {round}");
        let next = format!("w{round}");
        clone(&node, &last, None, &next);
        last = next;
    }
    assert!(flatten(&node, &last).independent);
    check(&node, &node.device(&last), &model, "after more clones than there are indexes");
}

#[test]
fn a_death_anywhere_is_made_good_by_the_next_one() {
    let (node, _, _) = origin_and_clone(4, true);
    let before = node.env.points().passed();
    assert!(flatten(&node, "w").independent);
    let length = node.env.points().passed() - before;
    let mut deaths = 0;
    for at in (0..length).step_by((length as usize / 20).max(1)).chain(length - 10..length) {
        let (mut node, model, _) = origin_and_clone(4, true);
        node.env.points().at(node.env.points().passed() + at);
        let shard = node.shard();
        let died = node.run(async move { shard.flatten(&name("w"), |_, _| {}).await }).is_err();
        deaths += u64::from(died);
        node.crash(
            [CrashMode::Kill, CrashMode::Lost][at as usize % 2],
            [InFlight::Lost, InFlight::Landed][at as usize / 2 % 2],
        );
        node.reopen();
        check(&node, &node.device("w"), &model, "after the death");
        assert!(flatten(&node, "w").independent, "I/O {at}");
        assert!(!delete_for_good(&node, "v"), "I/O {at}: the origin is still there");
        check(&node, &node.device("w"), &model, "the origin is gone");
    }
    assert!(deaths > 20, "only {deaths} deaths");
}
