// SPDX-License-Identifier: Apache-2.0
//! A pool is found again from its store alone: volumes, snapshots, clones, deleted ones; and whoever had it before stops.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

use varve_sim::node;

mod late;
mod names;

use node::{Node, name};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use varve_coord::{Fault, Memory, PoolRecord, Record, Records};
use varve_engine::{Device, EngineError, Imported, PoolImport, import_pool};
use varve_env::StoreErrorKind;
use varve_format::ObjectName;
use varve_format::owner::OwnerRecord;
use varve_sim::{CrashMode, InFlight, Rng, SimEnv, SimOptions, StoreFault, StoreOp};
use varve_types::{ClusterId, ErrorKind, Overrides};

const SIZE: usize = 1 << 20;

fn cluster(number: u8) -> ClusterId {
    ClusterId::from_bytes([number; 16])
}

fn start(seed: u64) -> Node {
    let mut node = Node::new(SimOptions::seed(seed), 16 << 20);
    node.pool.undelete_window_ms = Some(60_000);
    let owner = OwnerRecord { number: 1, cluster: cluster(1), created_ms: 0 };
    node.server.plant(&OwnerRecord::name(1), owner.encode());
    node.create().unwrap().unwrap();
    node
}

fn write_some(node: &Node, volume: &str, model: &mut [u8], rng: &mut Rng) {
    let device = node.device(volume);
    for _ in 0..6 {
        let at = rng.below(SIZE as u64 / 4096 - 8) as usize * 4096;
        let mut data = vec![0; 8 * 4096];
        rng.fill(&mut data);
        model[at..at + data.len()].copy_from_slice(&data);
        node.write(&device, at as u64, data, false).unwrap().unwrap();
    }
    node.discard(&device, 4096, 8192, false).unwrap().unwrap();
    model[4096..3 * 4096].fill(0);
    node.flush(&device).unwrap().unwrap();
}

fn seal(node: &Node, volume: &str) {
    let volume = node.volume(volume);
    node.must("seal", async move { volume.seal().await });
}

fn snapshot(node: &Node, volume: &str, snapshot: &str) {
    let (volume, snapshot) = (node.volume(volume), name(snapshot));
    node.must("snapshot", async move { volume.snapshot(snapshot).await });
}

fn clone(node: &Node, from: &str, snapshot: Option<&str>, to: &str) {
    let (shard, from, snapshot, to) = (node.shard(), name(from), snapshot.map(name), name(to));
    node.must("clone", async move {
        shard.clone_volume(&from, snapshot.as_ref(), to, Overrides::default()).await.map(drop)
    });
}

fn check(node: &Node, device: &Rc<Device>, model: &[u8], when: &str) {
    assert!(node.read(device, 0, SIZE as u32).unwrap().unwrap() == model, "{when}");
}

fn check_snapshot(node: &Node, volume: &str, snapshot: &str, model: &[u8]) {
    let (volume, wanted) = (node.volume(volume), name(snapshot));
    let device =
        node.must("view", async move { volume.snapshot_device(&wanted, "test".to_owned()).await.map(Rc::new) });
    check(node, &device, model, snapshot);
}

/// A shard of a stranger, on a fresh journal, that has imported the pool. Its volumes are open.
fn import_into(node: &mut Node, number: u8) -> Result<Imported, EngineError> {
    if node.owner == 0 {
        node.create().unwrap().unwrap();
    }
    let env: Rc<SimEnv> = Rc::clone(&node.env);
    let (coord, store, settings) = (Arc::clone(&node.coord), node.server.client(&node.env), node.pool);
    let imported = node
        .run(async move {
            let last = Cell::new((0, 0));
            let import = PoolImport {
                env: &*env,
                coord: &*coord,
                store,
                cluster: cluster(number),
                pool: name("default"),
                url: "sim:///pool".to_owned(),
                settings,
            };
            let imported = import_pool(import, |done, total| last.set((done, total))).await?;
            assert_eq!(last.get().0, last.get().1, "the progress ends at its end");
            Ok::<_, EngineError>(imported)
        })
        .unwrap()?;
    node.owner = imported.owner;
    node.add_pool();
    let shard = node.shard();
    let failed = node.must("open all", async move { shard.open_all().await });
    assert!(failed.is_empty(), "{failed:?}");
    Ok(imported)
}

fn names(imported: &Imported) -> Vec<String> {
    let mut all: Vec<_> = imported.volumes.iter().map(|volume| volume.name.to_string()).collect();
    all.sort();
    all
}

/// A node with a past: what its volumes and their snapshots hold, as plain bytes.
struct Past {
    node: Node,
    rng: Rng,
    v: Vec<u8>,
    at_a: Vec<u8>,
    at_b: Vec<u8>,
    w: Vec<u8>,
    x: Vec<u8>,
    r: Vec<u8>,
    then: Vec<u8>,
    d: Vec<u8>,
    later: Vec<u8>,
}

/// Volumes with snapshots and clones of clones, one that was rolled back, one that is deleted, one that is gone; all of it sealed.
fn make_past(seed: u64) -> Past {
    let mut rng = Rng::new(seed);
    let node = start(seed);
    let mut v = vec![0; SIZE];
    node.create_volume("v", SIZE as u64);
    write_some(&node, "v", &mut v, &mut rng);
    snapshot(&node, "v", "a");
    let at_a = v.clone();
    write_some(&node, "v", &mut v, &mut rng);
    if seed.is_multiple_of(2) {
        let volume = node.volume("v");
        node.must("merge", async move {
            volume.seal().await?;
            volume.checkpoint().await
        });
    }
    clone(&node, "v", None, "w");
    let mut w = v.clone();
    write_some(&node, "w", &mut w, &mut rng);
    clone(&node, "w", None, "x");
    let x = w.clone();
    write_some(&node, "v", &mut v, &mut rng);
    snapshot(&node, "v", "b");
    let at_b = v.clone();
    for volume in ["r", "d", "g"] {
        node.create_volume(volume, SIZE as u64);
    }
    let (mut r, mut d) = (vec![0; SIZE], vec![0; SIZE]);
    write_some(&node, "r", &mut r, &mut rng);
    snapshot(&node, "r", "then");
    let then = r.clone();
    write_some(&node, "r", &mut r, &mut rng);
    write_some(&node, "d", &mut d, &mut rng);
    let shard = node.shard();
    node.must("delete", async move { shard.delete_volume(&name("g")).await });
    node.world.run_for(Duration::from_secs(90)).unwrap();
    let volume = node.volume("r");
    node.must("rollback", async move { volume.rollback(&name("then")).await });
    let shard = node.shard();
    node.must("delete", async move { shard.delete_volume(&name("d")).await });
    for volume in ["v", "w", "x", "r"] {
        seal(&node, volume);
    }
    let later = v.clone();
    Past { node, rng, v, at_a, at_b, w, x, r, then, d, later }
}

/// Writes what is only in the journal, and loses the node; with `counted`, after a start whose manifests count on that journal.
fn lose(past: &mut Past, counted: bool) {
    let Past { node, rng, later, .. } = past;
    write_some(node, "v", later, rng);
    node.crash(CrashMode::Kill, InFlight::Lost);
    if counted {
        // No segment is put any more, so the cut of this start counts on what only the journal has.
        for _ in 0..40 {
            node.server.fail(StoreOp::Put, "/seg/", 0, StoreFault::Error(StoreErrorKind::Unavailable));
        }
        node.reopen();
        node.crash(CrashMode::Kill, InFlight::Lost);
    }
}

/// What an import found is what was sealed; of what was only in the journal, each block is old or new.
fn compare(past: &Past, other: &Node, counted: bool) {
    let Past { v, later, .. } = past;
    let found = other.read(&other.device("v"), 0, SIZE as u32).unwrap().unwrap();
    if counted {
        let block = |bytes: &[u8], at: usize| bytes[at..at + 4096].to_vec();
        let old_or_new = |at: usize| block(&found, at) == block(v, at) || block(&found, at) == block(later, at);
        assert!((0..SIZE).step_by(4096).all(old_or_new), "v is neither");
        assert!(found != *later, "nothing was lost, so nothing was tried");
    } else {
        assert!(found == *v, "v is not what was sealed");
    }
    check(other, &other.device("w"), &past.w, "w");
    check(other, &other.device("x"), &past.x, "x");
    check(other, &other.device("r"), &past.then, "r");
    check_snapshot(other, "v", "a", &past.at_a);
    check_snapshot(other, "v", "b", &past.at_b);
    check_snapshot(other, "r", "then", &past.then);
    let volume = other.volume("r");
    other.must("undo", async move { volume.undo_rollback().await });
    check(other, &other.device("r"), &past.r, "r before its rollback");
    let shard = other.shard();
    other.must("undelete", async move { shard.undelete_volume(&name("d")).await });
    check(other, &other.device("d"), &past.d, "d");
}

#[test]
fn everything_sealed_comes_back() {
    for seed in 0..4u64 {
        let counted = seed >= 2;
        let mut past = make_past(seed);
        lose(&mut past, counted);
        let mut other = past.node.stranger("other");
        let imported = import_into(&mut other, 2).unwrap();
        assert_eq!(names(&imported), ["d", "r", "v", "w", "x"], "seed {seed}: {imported:?}");
        assert!(imported.failures.is_empty() && imported.known.is_empty(), "{imported:?}");
        assert_eq!(imported.owner, 2);
        let told = |v: &varve_engine::ImportedVolume| v.deleted == (v.name.as_str() == "d") && v.newest_ms > 0;
        assert!(imported.volumes.iter().all(told), "{imported:?}");
        compare(&past, &other, counted);
        // It goes on: written, merged, killed, found.
        let mut model = past.w.clone();
        write_some(&other, "w", &mut model, &mut past.rng);
        other.world.run_for(Duration::from_secs(120)).unwrap();
        other.crash(CrashMode::Lost, InFlight::Lost);
        other.reopen();
        check(&other, &other.device("w"), &model, "w after a power cut");
        check_snapshot(&other, "v", "a", &past.at_a);
    }
}

#[test]
fn whoever_had_it_stops_before_the_next_delete() {
    let mut rng = Rng::new(9);
    let node = start(9);
    node.create_volume("v", SIZE as u64);
    let mut model = vec![0; SIZE];
    write_some(&node, "v", &mut model, &mut rng);
    let volume = node.volume("v");
    node.must("merge", async move {
        volume.seal().await?;
        volume.checkpoint().await
    });
    node.world.run_for(Duration::from_secs(5)).unwrap();
    let mut other = node.stranger("other");
    import_into(&mut other, 2).unwrap();
    let (since, old) = (node.world.now(), node.env.number());
    // The old one does not know yet: it goes on until it would delete.
    let mut ignored = model.clone();
    let device = node.device("v");
    for _ in 0..4 {
        let mut data = vec![0; 64 * 4096];
        rng.fill(&mut data);
        ignored[..data.len()].copy_from_slice(&data);
        if !matches!(node.write(&device, 0, data, false), Ok(Ok(()))) {
            break;
        }
        let volume = node.volume("v");
        let _fenced_sooner_or_later = node.run(async move { (volume.seal().await, volume.checkpoint().await) });
        node.world.run_for(Duration::from_secs(2)).unwrap();
    }
    let stopped = node.volume("v").stopped();
    assert!(stopped.as_ref().is_some_and(|error| error.kind() == ErrorKind::Fenced), "{stopped:?}");
    let log = node.server.log();
    let deletes = log.iter().filter(|entry| entry.process == old && entry.op == StoreOp::Delete && entry.at > since);
    assert_eq!(deletes.count(), 0);
    let volume = node.volume("v");
    let refused = node.run(async move { volume.device("test".to_owned()).await.map(drop) }).unwrap();
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Fenced);
    check(&other, &other.device("v"), &model, "the new owner sees what there was");
    write_some(&other, "v", &mut model, &mut rng);
    other.world.run_for(Duration::from_secs(120)).unwrap();
    other.crash(CrashMode::Lost, InFlight::Lost);
    other.reopen();
    check(&other, &other.device("v"), &model, "and what it wrote itself");
}

#[test]
fn a_second_import_finds_all_known_and_a_third_cluster_takes_it_over() {
    let mut rng = Rng::new(3);
    let mut node = start(3);
    node.create_volume("v", SIZE as u64);
    let mut model = vec![0; SIZE];
    write_some(&node, "v", &mut model, &mut rng);
    seal(&node, "v");
    node.crash(CrashMode::Kill, InFlight::Lost);
    let mut second = node.stranger("second");
    let first = import_into(&mut second, 2).unwrap();
    assert_eq!(names(&first), ["v"]);
    let again = import_into(&mut second, 2).unwrap();
    assert_eq!((again.owner, again.volumes.len(), again.known.clone()), (2, 0, vec![first.volumes[0].id]), "{again:?}");
    write_some(&second, "v", &mut model, &mut rng);
    seal(&second, "v");
    let mut third = node.stranger("third");
    let taken = import_into(&mut third, 3).unwrap();
    assert_eq!((taken.owner, names(&taken)), (3, vec!["v".to_owned()]));
    check(&third, &third.device("v"), &model, "the third has it");
    second.crash(CrashMode::Kill, InFlight::Lost);
    let failed = second.open().unwrap().unwrap();
    assert_eq!(failed.iter().map(|(_, error)| error.kind()).collect::<Vec<_>>(), [ErrorKind::Fenced]);
}

#[test]
fn damage_and_taken_names_are_told_and_harm_nobody_else() {
    let mut rng = Rng::new(4);
    let mut node = start(4);
    let mut models = Vec::new();
    for volume in ["good", "older", "lost"] {
        node.create_volume(volume, SIZE as u64);
        let mut model = vec![0; SIZE];
        for _ in 0..2 {
            write_some(&node, volume, &mut model, &mut rng);
            let volume = node.volume(volume);
            node.must("merge", async move {
                volume.seal().await?;
                volume.checkpoint().await
            });
        }
        models.push(model);
    }
    let manifests = |node: &Node, volume: &str| -> Vec<String> {
        let prefix = format!("{}/man/", node.volume(volume).record().shown);
        node.server.names().into_iter().filter(|object| object.starts_with(&prefix)).collect()
    };
    let newest = manifests(&node, "older").pop().unwrap();
    let lost = manifests(&node, "lost");
    node.crash(CrashMode::Kill, InFlight::Lost);
    assert!(node.server.flip_bit(&newest, 60, 3));
    for object in &lost {
        assert!(node.server.flip_bit(object, 40, 1));
    }
    node.server.plant("0f0f/odd", &b"no object of ours"[..]);
    let mut other = node.stranger("other");
    // The new cluster has a volume of that name, in another pool.
    let setup = Arc::clone(&other.coord);
    other.create().unwrap().unwrap();
    let elsewhere = node.stranger("elsewhere");
    let pool = PoolRecord {
        version: PoolRecord::VERSION,
        name: name("elsewhere"),
        store: "sim:///elsewhere".to_owned(),
        owner_number: 1,
        settings: Overrides::default(),
        created_ms: 0,
    };
    other.run(async move { Records::new(&*setup).create_pool(&pool).await.map(drop) }).unwrap().unwrap();
    let store = varve_sim::StoreServer::new(&elsewhere.world, "elsewhere").client(&other.env);
    other.shard().add_pool(name("elsewhere"), varve_engine::PoolStore::new(store, 1), other.pool);
    let (shard, new) = (
        other.shard(),
        varve_engine::NewVolume {
            name: name("good"),
            pool: name("elsewhere"),
            size: 4096,
            settings: Overrides::default(),
        },
    );
    other.must("a volume", async move { shard.create_volume(new).await });
    other.owner = u64::MAX;
    let imported = import_into(&mut other, 2).unwrap();
    assert_eq!(names(&imported), ["good-imported", "older"], "{imported:?}");
    assert_eq!(imported.volumes.iter().filter(|volume| volume.was == Some(name("good"))).count(), 1);
    let told: Vec<_> = imported.failures.iter().map(|failure| failure.what.clone()).collect();
    assert!(told.contains(&newest) && lost.iter().all(|object| told.contains(object)), "{told:?}");
    assert!(imported.failures.iter().all(|failure| failure.error.kind() == ErrorKind::Corrupt));
    check(&other, &other.device("good-imported"), &models[0], "good");
    check(&other, &other.device("older"), &models[1], "older");
}

/// A manifest that was put in vain, and lands when all of its volume is deleted for good.
#[test]
fn what_was_deleted_for_good_is_no_volume() {
    let mut rng = Rng::new(6);
    let node = start(6);
    node.create_volume("v", SIZE as u64);
    node.create_volume("w", SIZE as u64);
    let mut model = vec![0; SIZE];
    write_some(&node, "v", &mut model.clone(), &mut rng);
    write_some(&node, "w", &mut model, &mut rng);
    for volume in ["v", "w"] {
        let volume = node.volume(volume);
        node.must("merge", async move {
            volume.seal().await?;
            volume.checkpoint().await
        });
    }
    let prefix = format!("{}/man/", node.volume("v").record().shown);
    let newest = node.server.names().into_iter().rfind(|object| object.starts_with(&prefix)).unwrap();
    let manifest = node.server.object(&newest).unwrap();
    let shard = node.shard();
    node.must("delete", async move { shard.delete_volume(&name("v")).await });
    node.world.run_for(Duration::from_secs(200)).unwrap();
    let timeline = prefix.trim_end_matches("man/");
    assert!(node.server.names().iter().all(|object| !object.starts_with(timeline)), "nothing of it is left");
    node.server.plant(&newest, manifest);
    let mut other = node.stranger("other");
    let imported = import_into(&mut other, 2).unwrap();
    assert_eq!(names(&imported), ["w"]);
    let told: Vec<_> = imported.failures.iter().map(|failure| (&failure.what[..], failure.error.kind())).collect();
    assert_eq!(told, [(&format!("timeline {}", timeline.trim_end_matches('/'))[..], ErrorKind::NotFound)]);
    check(&other, &other.device("w"), &model, "the other one");
}

/// All that a lagging listing shows is deleted, and what followed it lies far ahead: puts that fail use numbers up.
#[test]
fn manifests_are_asked_for_far_behind_a_listing_that_lags() {
    let mut rng = Rng::new(7);
    let node = start(7);
    node.create_volume("v", SIZE as u64);
    let mut model = vec![0; SIZE];
    write_some(&node, "v", &mut model, &mut rng);
    seal(&node, "v");
    node.world.run_for(Duration::from_secs(100)).unwrap();
    node.server.set_list_lag(Duration::from_secs(3600));
    let prefix = format!("{}/man/", node.volume("v").record().shown);
    let manifests =
        || -> Vec<String> { node.server.names().into_iter().filter(|object| object.starts_with(&prefix)).collect() };
    let listed = manifests();
    let number = |object: &str| ObjectName::parse(object).unwrap().number;
    for nth in 0..12 {
        node.server.fail(StoreOp::Put, &prefix, nth, StoreFault::Error(StoreErrorKind::NoSpace));
    }
    for _ in 0..3 {
        write_some(&node, "v", &mut model, &mut rng);
        let volume = node.volume("v");
        node.must("merge", async move {
            volume.seal().await?;
            volume.checkpoint().await
        });
    }
    node.world.run_for(Duration::from_secs(60)).unwrap();
    let now = manifests();
    assert!(now.iter().all(|object| !listed.contains(object)), "what is listed is deleted");
    assert!(number(&now[0]) > number(listed.last().unwrap()) + 8, "{listed:?} {now:?}");
    let mut other = node.stranger("other");
    let imported = import_into(&mut other, 2).unwrap();
    assert_eq!((names(&imported), imported.failures.len()), (vec!["v".to_owned()], 0));
    check(&other, &other.device("v"), &model, "imported");
}

#[test]
fn what_was_never_accepted_does_not_hide_what_was() {
    for reopened in [false, true] {
        let mut rng = Rng::new(5);
        let mut node = start(5);
        node.create_volume("v", SIZE as u64);
        let mut model = vec![0; SIZE];
        write_some(&node, "v", &mut model, &mut rng);
        snapshot(&node, "v", "then");
        write_some(&node, "v", &mut model, &mut rng);
        // A clone and a rollback whose last steps are lost or refused, after their manifests were put.
        if reopened {
            let (shard, lost) = (node.shard(), |coord: &Memory| coord.inject(&[Fault::RequestLost]).unwrap());
            until_it_puts(&node, lost, async move {
                shard.clone_volume(&name("v"), None, name("never"), Overrides::default()).await.map(drop)
            });
        }
        let volume = node.volume("v");
        until_it_puts(&node, |coord| coord.set_away(true), async move { volume.rollback(&name("then")).await });
        if reopened {
            // The next opening lets go of what they were to begin with.
            node.crash(CrashMode::Kill, InFlight::Lost);
            node.reopen();
            node.world.run_for(Duration::from_secs(60)).unwrap();
        }
        write_some(&node, "v", &mut model, &mut rng);
        let volume = node.volume("v");
        node.must("merge", async move {
            volume.seal().await?;
            volume.checkpoint().await
        });
        node.crash(CrashMode::Kill, InFlight::Lost);
        let mut other = node.stranger("other");
        let imported = import_into(&mut other, 2).unwrap();
        assert_eq!(names(&imported), ["v"], "{imported:?}");
        assert_eq!(imported.failures.len(), if reopened { 2 } else { 0 }, "{imported:?}");
        assert!(imported.failures.iter().all(|failure| failure.error.kind() == ErrorKind::NotFound));
        check(&other, &other.device("v"), &model, "what was written after the steps that failed");
    }
}

/// Runs something that puts the first manifest of another timeline, and lets coordination fail as soon as it has.
fn until_it_puts(node: &Node, fault: fn(&Memory), step: impl Future<Output = Result<(), EngineError>> + 'static) {
    let firsts = |names: Vec<String>| {
        let timelines = names.iter().filter_map(|text| ObjectName::parse(text)).map(|object| object.timeline);
        timelines.collect::<std::collections::BTreeSet<_>>().len()
    };
    let (server, coord, before) = (node.server.clone(), Arc::clone(&node.coord), firsts(node.server.names()));
    let mut step = Box::pin(step);
    let refused = node.run(futures_util::future::poll_fn(move |context| {
        if firsts(server.names()) > before {
            fault(&coord);
        }
        step.as_mut().poll(context)
    }));
    node.coord.set_away(false);
    node.coord.forget_faults();
    assert_eq!(refused.unwrap().expect_err("it was refused").kind(), ErrorKind::Unavailable);
}

#[test]
fn nothing_is_made_in_a_pool_while_it_is_imported() {
    let node = start(9);
    node.create_volume("v", SIZE as u64);
    let shard = node.shard();
    let during = node.run(async move {
        let importing = shard.begin_import(&name("default")).await.expect("nobody else imports");
        let again = shard.begin_import(&name("default")).await.err().map(|error| error.kind());
        let clone = shard.clone_volume(&name("v"), None, name("w"), Overrides::default()).await.err();
        drop(importing);
        let after = shard.clone_volume(&name("v"), None, name("w"), Overrides::default()).await.is_ok();
        (again, clone.map(|error| error.kind()), after)
    });
    assert_eq!(during.unwrap(), (Some(ErrorKind::Busy), Some(ErrorKind::Busy), true));
    // One that was begun is waited for.
    node.server.set_latency(Duration::from_secs(1), Duration::from_secs(1));
    let ended = Rc::new(Cell::new(false));
    let (shard, done) = (node.shard(), Rc::clone(&ended));
    varve_env::Env::spawn(
        &*node.env,
        Box::pin(async move {
            let made = shard.clone_volume(&name("v"), None, name("x"), Overrides::default()).await;
            done.set(made.is_ok());
        }),
    );
    node.world.run_for(Duration::from_millis(500)).unwrap();
    assert!(!ended.get(), "it is slow");
    let shard = node.shard();
    let waited = node.run(async move { shard.begin_import(&name("default")).await.map(drop) });
    assert!(waited.unwrap().is_ok() && ended.get(), "the import began before the clone was made");
}
