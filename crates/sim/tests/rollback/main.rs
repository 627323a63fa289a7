// SPDX-License-Identifier: Apache-2.0
//! A volume that was rolled back gives back its space: all of what it hid can come back until the window ends, and then only what is needed stays.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

use varve_sim::node;

mod links;
mod sweep;

use node::{Node, name};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use varve_coord::TimelineState as RecordState;
use varve_engine::{CheckReport, Device, Flattened};
use varve_env::{Env, StoreErrorKind};
use varve_format::manifest::{Manifest, TimelineState};
use varve_format::{ObjectKind, ObjectName};
use varve_sim::{CrashMode, InFlight, Rng, SimOptions, StoreFault, StoreOp};
use varve_types::{ErrorKind, Overrides, TimelineId};

const SIZE: usize = 2 << 20;
const BLOCK: usize = 4096;

fn start(seed: u64) -> (Node, Rng) {
    let mut node = Node::new(SimOptions::seed(seed), 16 << 20);
    node.pool.undelete_window_ms = Some(60_000);
    node.create().unwrap().unwrap();
    node.create_volume("v", SIZE as u64);
    (node, Rng::new(seed))
}

/// Writes some blocks of a part of a volume.
fn write(node: &Node, volume: &str, model: &mut [u8], rng: &mut Rng, blocks: std::ops::Range<usize>) {
    let device = node.device(volume);
    let mut data = vec![0; blocks.len() * BLOCK];
    rng.fill(&mut data);
    let at = blocks.start * BLOCK;
    model[at..at + data.len()].copy_from_slice(&data);
    node.write(&device, at as u64, data, false).unwrap().unwrap();
    node.flush(&device).unwrap().unwrap();
}

fn merge(node: &Node, volume: &str) {
    let volume = node.volume(volume);
    node.must("merge", async move {
        volume.seal().await?;
        volume.checkpoint().await
    });
}

fn snapshot(node: &Node, volume: &str, snapshot: &str) {
    let (volume, snapshot) = (node.volume(volume), name(snapshot));
    node.must("snapshot", async move { volume.snapshot(snapshot).await });
}

fn forget(node: &Node, volume: &str, snapshot: &str) {
    let (volume, snapshot) = (node.volume(volume), name(snapshot));
    node.must("delete a snapshot", async move { volume.delete_snapshot(&snapshot).await });
}

fn rollback(node: &Node, volume: &str, snapshot: &str) {
    let (volume, snapshot) = (node.volume(volume), name(snapshot));
    node.must("rollback", async move { volume.rollback(&snapshot).await });
}

fn undo(node: &Node, volume: &str) {
    let volume = node.volume(volume);
    node.must("undo", async move { volume.undo_rollback().await });
}

fn clone(node: &Node, from: &str, snapshot: Option<&str>, to: &str) {
    let (shard, from, snapshot, to) = (node.shard(), name(from), snapshot.map(name), name(to));
    node.must("clone", async move {
        shard.clone_volume(&from, snapshot.as_ref(), to, Overrides::default()).await.map(drop)
    });
}

fn flatten(node: &Node, volume: &str) -> Flattened {
    let (shard, volume) = (node.shard(), name(volume));
    node.must("flatten", async move { shard.flatten(&volume, |_, _| {}).await })
}

fn pass(node: &Node, seconds: u64) {
    node.world.run_for(Duration::from_secs(seconds)).unwrap();
}

fn shows(node: &Node, device: &Rc<Device>, model: &[u8], when: &str) {
    let found = node.read(device, 0, SIZE as u32).unwrap().unwrap();
    let differs = (0..SIZE / BLOCK).find(|b| found[b * BLOCK..(b + 1) * BLOCK] != model[b * BLOCK..(b + 1) * BLOCK]);
    assert_eq!(differs, None, "{when}: a block differs");
}

fn view(node: &Node, volume: &str, snapshot: &str) -> Rc<Device> {
    let (volume, snapshot) = (node.volume(volume), name(snapshot));
    node.must("view", async move { volume.snapshot_device(&snapshot, "test".to_owned()).await.map(Rc::new) })
}

fn listed(node: &Node, volume: &str) -> Vec<String> {
    let volume = node.volume(volume);
    let all = node.must("list", async move { volume.snapshots().await });
    all.iter().filter(|s| !s.hidden).map(|s| s.name.to_string()).collect()
}

/// The engine counts anew.
fn check(node: &Node, volume: &str) -> CheckReport {
    let open = node.volume(volume);
    let report = node.must("check", async move { open.check(&|_, _| {}).await });
    assert!(report.problems.is_empty(), "{volume}: {:?}", report.problems);
    report
}

fn objects(node: &Node) -> BTreeMap<TimelineId, BTreeSet<ObjectName>> {
    let mut all: BTreeMap<TimelineId, BTreeSet<ObjectName>> = BTreeMap::new();
    for object in node.server.names().iter().filter_map(|text| ObjectName::parse(text)) {
        all.entry(object.timeline).or_default().insert(object);
    }
    all
}

/// Bytes of data that a timeline has in the store, in segments and in what cleaning has made of them.
fn bytes_of(node: &Node, timeline: TimelineId) -> usize {
    let all = objects(node);
    let is_data = |object: &&ObjectName| matches!(object.kind, ObjectKind::Segment | ObjectKind::Bundle);
    let of = all.get(&timeline).into_iter().flatten().filter(is_data);
    of.map(|object| node.server.object(&object.to_string()).unwrap().len()).sum()
}

fn newest(node: &Node, timeline: TimelineId) -> Manifest {
    let all = objects(node);
    let newest = all[&timeline].iter().filter(|o| o.kind == ObjectKind::Manifest).max_by_key(|o| (o.epoch, o.number));
    Manifest::decode(&node.server.object(&newest.unwrap().to_string()).unwrap()).unwrap()
}

/// Every object in the store is of a timeline that coordination knows, and is named by its newest manifest; of manifests the newest two are there.
fn nothing_is_left_over(node: &Node, volumes: &[&str], when: &str) {
    pass(node, 30);
    let all = objects(node);
    let records: Vec<_> = volumes.iter().map(|volume| node.volume(volume).record()).collect();
    let known: BTreeSet<_> = records.iter().flat_map(|record| record.timelines.iter().map(|t| t.id)).collect();
    assert_eq!(
        all.keys().copied().collect::<BTreeSet<_>>(),
        known,
        "{when}: timelines in the store, and those that are known"
    );
    for (timeline, objects) in &all {
        let manifest = newest(node, *timeline);
        for object in objects {
            let named = match object.kind {
                ObjectKind::Manifest => object.number + 2 > manifest.number || object.epoch < manifest.epoch,
                ObjectKind::Map => manifest.maps.iter().any(|m| u64::from(m.root.0) == object.number),
                ObjectKind::Table => manifest.tables.iter().any(|t| t.number == object.number),
                // Counted by `check`.
                ObjectKind::Segment | ObjectKind::Bundle => true,
            };
            let states: Vec<_> = manifest.dead.iter().map(|d| (d.name.to_string(), d.since)).collect();
            assert!(named, "{when}: {object} is left over of {}, {:?}, {states:?}", manifest.number, manifest.state);
        }
        let manifests = objects.iter().filter(|o| o.kind == ObjectKind::Manifest).count();
        assert!(manifests <= 2, "{when}: {manifests} manifests of {timeline}");
    }
}

/// The timeline that a volume shows, and its closed ones with their states.
fn timelines(node: &Node, volume: &str) -> (TimelineId, Vec<(TimelineId, RecordState)>) {
    let record = node.volume(volume).record();
    (record.shown, record.timelines.iter().filter(|t| t.id != record.shown).map(|t| (t.id, t.state)).collect())
}

/// A volume with snapshot `a`, much written behind it, and rolled back to it. Gives what it shows, and what was hidden.
fn rolled_back(seed: u64) -> (Node, Rng, Vec<u8>, Vec<u8>) {
    let (node, mut rng) = start(seed);
    let mut model = vec![0; SIZE];
    write(&node, "v", &mut model, &mut rng, 0..40);
    write(&node, "v", &mut model, &mut rng, 30..60);
    merge(&node, "v");
    snapshot(&node, "v", "a");
    let at_a = model.clone();
    for round in 0..6 {
        write(&node, "v", &mut model, &mut rng, round * 40..round * 40 + 60);
        if round % 2 == 0 {
            merge(&node, "v");
        }
        if round == 3 {
            snapshot(&node, "v", "b");
        }
    }
    rollback(&node, "v", "a");
    (node, rng, at_a, model)
}

#[test]
fn behind_the_newest_snapshot_all_goes_when_the_window_ends() {
    for seed in 0..3 {
        let (mut node, mut rng, mut model, before) = rolled_back(seed);
        let (_, closed) = timelines(&node, "v");
        let old = closed[0].0;
        let whole = bytes_of(&node, old);
        let at_a = model.clone();
        write(&node, "v", &mut model, &mut rng, 10..20);
        pass(&node, 30);
        // But for what it had let go of itself: segments of marks alone.
        let within = bytes_of(&node, old);
        assert!(within + BLOCK > whole, "{within} bytes of {whole} are left within the window");
        undo(&node, "v");
        shows(&node, &node.device("v"), &before, "undone");
        assert_eq!(listed(&node, "v"), ["a", "b"]);
        undo(&node, "v");
        shows(&node, &node.device("v"), &model, "and done again");
        pass(&node, 120);
        assert_eq!(listed(&node, "v"), ["a"]);
        let (_, closed) = timelines(&node, "v");
        assert_eq!(closed, [(old, RecordState::Held)], "it can not be shown any more");
        assert_eq!(newest(&node, old).state, TimelineState::Held { swept: false });
        let kept = bytes_of(&node, old);
        assert!(kept < 80 * BLOCK && kept > 60 * BLOCK, "{kept} bytes are kept of {whole}");
        check(&node, "v");
        nothing_is_left_over(&node, &["v"], "after the window");
        let undone = node.volume("v");
        assert!(node.run(async move { undone.undo_rollback().await }).unwrap().is_err(), "it came back");
        node.crash(CrashMode::Kill, InFlight::Lost);
        node.reopen();
        pass(&node, 60);
        shows(&node, &node.device("v"), &model, "found again");
        shows(&node, &view(&node, "v", "a"), &at_a, "the snapshot");
        assert_eq!(check(&node, "v").unreferenced, 0);
    }
}

#[test]
fn a_clone_keeps_what_it_was_made_of() {
    let (node, mut rng, mut model, before) = rolled_back(5);
    let at_a = model.clone();
    let old = timelines(&node, "v").1[0].0;
    undo(&node, "v");
    clone(&node, "v", Some("b"), "w");
    clone(&node, "v", None, "x");
    let w = node.read(&node.device("w"), 0, SIZE as u32).unwrap().unwrap().to_vec();
    rollback(&node, "v", "a");
    clone(&node, "v", Some("a"), "y");
    write(&node, "v", &mut model, &mut rng, 0..60);
    merge(&node, "v");
    forget(&node, "v", "a");
    pass(&node, 900);
    let volumes = ["v", "w", "x", "y"];
    let prove = |when: &str| {
        for (volume, model) in volumes.iter().zip([&model, &w, &before, &at_a]) {
            if node.shard().find(&name(volume)).is_ok() {
                shows(&node, &node.device(volume), model, &format!("{when}: {volume}"));
                check(&node, volume);
            }
        }
    };
    prove("held by clones");
    nothing_is_left_over(&node, &volumes, "held by clones");
    for (gone, left) in [("x", &["v", "w", "y"][..]), ("w", &["v", "y"]), ("y", &["v"])] {
        let (shard, volume) = (node.shard(), name(gone));
        node.must("delete", async move { shard.delete_volume(&volume).await });
        pass(&node, 900);
        prove(&format!("without {gone}"));
        nothing_is_left_over(&node, left, &format!("without {gone}"));
    }
    assert_eq!(bytes_of(&node, old), 0, "nobody needs the old history");
}

#[test]
fn a_history_without_a_snapshot_ends() {
    let (mut node, mut rng, mut model, before) = rolled_back(6);
    let hidden = timelines(&node, "v").0;
    write(&node, "v", &mut model, &mut rng, 100..120);
    snapshot(&node, "v", "gone");
    undo(&node, "v");
    assert!(objects(&node).contains_key(&hidden));
    pass(&node, 120);
    assert!(!objects(&node).contains_key(&hidden), "{:?}", objects(&node)[&hidden]);
    assert_eq!(timelines(&node, "v").1, []);
    let shown = timelines(&node, "v").0;
    assert_eq!(newest(&node, shown).holds, [], "its hold is dropped");
    check(&node, "v");
    nothing_is_left_over(&node, &["v"], "ended");
    node.crash(CrashMode::Lost, InFlight::Lost);
    node.reopen();
    shows(&node, &node.device("v"), &before, "found again");
}

/// A node that has died when a hidden history had ended and the volume's record was not changed yet, and has started again; and what the volume shows.
fn ended_in_all_but_name() -> (Node, TimelineId, Vec<u8>) {
    let (mut node, _, _, before) = rolled_back(6);
    let hidden = timelines(&node, "v").0;
    undo(&node, "v");
    node.coord_latency = Duration::from_secs(2);
    node.crash(CrashMode::Kill, InFlight::Lost);
    node.reopen();
    let mut waited = 0;
    while objects(&node).contains_key(&hidden) {
        node.world.run_for(Duration::from_millis(100)).unwrap();
        waited += 1;
        assert!(waited < 2000, "the history does not end");
    }
    node.crash(CrashMode::Kill, InFlight::Lost);
    node.coord_latency = Duration::ZERO;
    node.reopen();
    assert_eq!(timelines(&node, "v").1.len(), 1, "the record names it still");
    (node, hidden, before)
}

/// A writer that was fenced long ago puts one more manifest of it.
#[test]
fn a_history_that_has_ended_is_forgotten_whatever_lands_late() {
    let (node, hidden, before) = ended_in_all_but_name();
    let stray = format!("{hidden}/man/0000000000000009.00-1-000000000000beef");
    node.server.plant(&stray, vec![7; 100]);
    check(&node, "v");
    pass(&node, 60);
    assert_eq!(timelines(&node, "v").1, [], "nothing of it is left, so it is forgotten");
    assert!(!objects(&node).contains_key(&hidden), "{:?}", objects(&node)[&hidden]);
    nothing_is_left_over(&node, &["v"], "ended");
    shows(&node, &node.device("v"), &before, "ended");
}

/// Whichever request the store refuses meanwhile.
#[test]
fn a_check_does_not_take_a_store_that_refuses_for_damage() {
    let (node, hidden, _) = ended_in_all_but_name();
    // So that no time passes, in which the history would be forgotten.
    node.server.set_latency(Duration::ZERO, Duration::ZERO);
    let mut refused = 0;
    for nth in 0..100 {
        for (op, part) in [(StoreOp::Get, "man/"), (StoreOp::List, "")] {
            let fault = StoreFault::Error(StoreErrorKind::Unavailable);
            node.server.fail(op, &format!("{hidden}/{part}"), nth, fault);
        }
        let volume = node.volume("v");
        match node.run(async move { volume.check(&|_, _| {}).await }).unwrap() {
            Ok(report) => assert!(report.problems.is_empty(), "{nth}: {:?}", report.problems),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{nth}: {error}");
                refused += 1;
            }
        }
        node.server.forget_faults();
    }
    assert_eq!(timelines(&node, "v").1.len(), 1, "the record names it still");
    assert!(refused > 0, "nothing was refused when it mattered");
}

#[test]
fn flattened_it_needs_no_history() {
    let (mut node, mut rng, mut model, _) = rolled_back(7);
    let old = timelines(&node, "v").1[0].0;
    write(&node, "v", &mut model, &mut rng, 5..9);
    let first = flatten(&node, "v");
    assert_eq!((first.independent, first.rolled_back, &first.snapshots[..]), (false, false, &[name("a")][..]));
    forget(&node, "v", "a");
    let second = flatten(&node, "v");
    assert!(second.independent, "{second:?}");
    assert!(objects(&node).contains_key(&old), "its window is not over");
    pass(&node, 120);
    assert!(!objects(&node).contains_key(&old));
    shows(&node, &node.device("v"), &model, "flattened");
    check(&node, "v");
    nothing_is_left_over(&node, &["v"], "flattened");
    // A clone that was rolled back needs its origin until its window ends.
    clone(&node, "v", None, "w");
    snapshot(&node, "w", "s");
    write(&node, "w", &mut model.clone(), &mut rng, 200..230);
    rollback(&node, "w", "s");
    forget(&node, "w", "s");
    let third = flatten(&node, "w");
    assert_eq!((third.independent, third.rolled_back), (false, true));
    pass(&node, 120);
    assert!(flatten(&node, "w").independent);
    let (shard, volume) = (node.shard(), name("v"));
    node.must("delete", async move { shard.delete_volume(&volume).await });
    pass(&node, 120);
    nothing_is_left_over(&node, &["w"], "the origin is gone");
    node.crash(CrashMode::Lost, InFlight::Lost);
    node.reopen();
    shows(&node, &node.device("w"), &model, "found again");
}

/// A clone lets go of the newest that is kept of a history, while a check is under way.
#[test]
fn a_check_knows_what_goes_whole() {
    for delay in (0..12_000).step_by(200) {
        let (node, mut rng) = start(12);
        let mut model = vec![0; SIZE];
        write(&node, "v", &mut model, &mut rng, 0..60);
        snapshot(&node, "v", "a");
        write(&node, "v", &mut model, &mut rng, 0..40);
        merge(&node, "v");
        snapshot(&node, "v", "b");
        clone(&node, "v", Some("b"), "w");
        merge(&node, "w");
        forget(&node, "v", "b");
        write(&node, "v", &mut model, &mut rng, 20..50);
        merge(&node, "v");
        rollback(&node, "v", "a");
        pass(&node, 120);
        write(&node, "v", &mut model, &mut rng, 0..5);
        node.server.set_latency(Duration::from_millis(100), Duration::from_millis(300));
        let shard = node.shard();
        let flattened = Rc::new(Cell::new(false));
        let done = Rc::clone(&flattened);
        node.env.spawn(Box::pin(async move {
            done.set(shard.flatten(&name("w"), |_, _| {}).await.is_ok_and(|flattened| flattened.independent));
        }));
        node.world.run_for(Duration::from_millis(delay)).unwrap();
        check(&node, "v");
        pass(&node, 120);
        assert!(flattened.get());
        check(&node, "v");
    }
}

#[test]
fn snapshots_need_no_store() {
    let (mut node, _, _, _) = rolled_back(8);
    for reopened in [false, true] {
        if reopened {
            node.crash(CrashMode::Kill, InFlight::Lost);
            node.reopen();
        }
        node.server.away_for(Duration::from_secs(60));
        let taken = format!("away{reopened}");
        let (volume, wanted) = (node.volume("v"), name(&taken));
        let listing = Rc::clone(&volume);
        node.must("snapshot while the store is away", async move { volume.snapshot(wanted).await });
        let all = node.must("list while the store is away", async move { listing.snapshots().await });
        assert_eq!(all.iter().filter(|s| s.name.as_str() == "a").count(), 1);
        pass(&node, 120);
        check(&node, "v");
    }
}

#[test]
fn older_histories_keep_what_their_listed_snapshots_see() {
    let (node, mut rng) = start(10);
    let mut model = vec![0; SIZE];
    write(&node, "v", &mut model, &mut rng, 0..60);
    snapshot(&node, "v", "a");
    write(&node, "v", &mut model, &mut rng, 0..20);
    snapshot(&node, "v", "b");
    let at_b = model.clone();
    write(&node, "v", &mut model, &mut rng, 10..30);
    rollback(&node, "v", "b");
    pass(&node, 120);
    check(&node, "v");
    // What `a` alone saw was killed before `b`: the kills are asked again.
    forget(&node, "v", "a");
    pass(&node, 60);
    check(&node, "v");
    let old = timelines(&node, "v").1[0].0;
    assert!(newest(&node, old).kills.is_empty(), "kills wait that nothing keeps");
    model.clone_from(&at_b);
    snapshot(&node, "v", "c");
    write(&node, "v", &mut model, &mut rng, 20..40);
    rollback(&node, "v", "c");
    model.clone_from(&at_b);
    pass(&node, 120);
    forget(&node, "v", "b");
    write(&node, "v", &mut model, &mut rng, 0..60);
    merge(&node, "v");
    pass(&node, 1400);
    assert_eq!(newest(&node, old).state, TimelineState::Held { swept: true });
    shows(&node, &view(&node, "v", "c"), &at_b, "a snapshot of the history between");
    shows(&node, &node.device("v"), &model, "the volume");
    check(&node, "v");
    nothing_is_left_over(&node, &["v"], "three histories");
}

/// Names and contents of snapshots.
type Snaps = Vec<(String, Vec<u8>)>;

#[test]
fn many_rollbacks_leave_nothing_behind() {
    for seed in 20..24 {
        let (mut node, mut rng) = start(seed);
        let (mut model, mut snaps): (_, Snaps) = (vec![0; SIZE], Vec::new());
        let mut hidden: Vec<(Vec<u8>, Snaps)> = Vec::new();
        for round in 0..40 {
            let at = rng.below(400) as usize;
            write(&node, "v", &mut model, &mut rng, at..at + 30);
            match rng.below(8) {
                0 | 1 => {
                    snapshot(&node, "v", &format!("s{round}"));
                    snaps.push((format!("s{round}"), model.clone()));
                }
                2 | 3 if !snaps.is_empty() => {
                    let to = rng.below(snaps.len() as u64) as usize;
                    hidden.push((model.clone(), snaps.clone()));
                    rollback(&node, "v", &snaps[to].0);
                    model.clone_from(&snaps[to].1);
                    snaps.truncate(to + 1);
                }
                4 if !hidden.is_empty() => {
                    undo(&node, "v");
                    let back = hidden.pop().unwrap();
                    hidden.push((std::mem::replace(&mut model, back.0), std::mem::replace(&mut snaps, back.1)));
                }
                5 if !snaps.is_empty() => {
                    let (gone, _) = snaps.remove(rng.below(snaps.len() as u64) as usize);
                    forget(&node, "v", &gone);
                    hidden.iter_mut().for_each(|(_, snaps)| snaps.retain(|(name, _)| *name != gone));
                }
                6 => {
                    merge(&node, "v");
                }
                _ => {
                    pass(&node, 100 + rng.below(800));
                    hidden.clear();
                    if rng.chance(300) {
                        node.crash(CrashMode::Lost, InFlight::Lost);
                        node.reopen();
                    }
                    check(&node, "v");
                }
            }
            shows(&node, &node.device("v"), &model, &format!("seed {seed}, round {round}"));
        }
        pass(&node, 2000);
        check(&node, "v");
        nothing_is_left_over(&node, &["v"], &format!("seed {seed}"));
        for (snap, model) in &snaps {
            shows(&node, &view(&node, "v", snap), model, &format!("seed {seed}, snapshot {snap}"));
        }
        node.crash(CrashMode::Lost, InFlight::Lost);
        node.reopen();
        pass(&node, 2000);
        let report = check(&node, "v");
        assert_eq!(report.unreferenced, 0, "seed {seed}");
        shows(&node, &node.device("v"), &model, &format!("seed {seed}, found again"));
    }
}

#[test]
fn a_hidden_history_goes_on_after_any_number_of_manifests_in_vain() {
    let (node, mut rng) = start(5);
    let mut model = vec![0; SIZE];
    write(&node, "v", &mut model, &mut rng, 0..64);
    snapshot(&node, "v", "s");
    let then = model.clone();
    write(&node, "v", &mut model, &mut rng, 0..64);
    merge(&node, "v");
    rollback(&node, "v", "s");
    // Coordination answers and accepts nothing, as a full disk makes it: what is due for the history is tried every ten seconds.
    for _ in 0..10 {
        node.coord.inject(&[varve_coord::Fault::Unavailable; 1000]).unwrap();
        pass(&node, 200);
        node.coord.forget_faults();
    }
    clone(&node, "v", Some("s"), "c");
    shows(&node, &node.device("c"), &then, "a clone of a snapshot that the history keeps");
    pass(&node, 120);
    let states: Vec<_> = node.volume("v").record().timelines.iter().map(|timeline| timeline.state).collect();
    let hidden = states.iter().any(|state| matches!(state, RecordState::Hidden { .. }));
    assert!(!hidden, "its window is long over: {states:?}");
}
