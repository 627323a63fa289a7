// SPDX-License-Identifier: Apache-2.0
//! Which history of a volume an import shows, and under which name; and which of several volumes a name goes to.

use super::node::{Node, name};
use super::{SIZE, check, check_snapshot, clone, import_into, names, seal, snapshot, start, until_it_puts, write_some};
use std::collections::BTreeSet;
use varve_coord::{Fault, Memory};
use varve_engine::{Imported, NewVolume};
use varve_format::ObjectName;
use varve_format::manifest::Manifest;
use varve_sim::{CrashMode, InFlight, Rng};
use varve_types::{Compression, ErrorKind, Overrides, TimelineId, VolumeId};

/// The node is gone: what another cluster finds in the store.
fn found_by_another(node: &mut Node) -> (Node, Imported) {
    node.crash(CrashMode::Kill, InFlight::Lost);
    let mut other = node.stranger("other");
    let imported = import_into(&mut other, 2).unwrap();
    assert!(imported.failures.is_empty(), "{imported:?}");
    (other, imported)
}

fn undo(node: &Node, volume: &str) {
    let volume = node.volume(volume);
    node.must("undo", async move { volume.undo_rollback().await });
}

#[test]
fn a_rollback_that_was_undone_is_found_undone() {
    for undos in 1..=3 {
        let (mut node, mut rng) = (start(undos), Rng::new(undos));
        node.create_volume("v", SIZE as u64);
        let mut model = vec![0; SIZE];
        write_some(&node, "v", &mut model, &mut rng);
        snapshot(&node, "v", "then");
        let then = model.clone();
        write_some(&node, "v", &mut model, &mut rng);
        let volume = node.volume("v");
        node.must("rollback", async move { volume.rollback(&name("then")).await });
        // What it is called, and how it is kept, changes while the history that comes back is hidden.
        let settings = Overrides { compression: Some(Compression::None), ..Overrides::default() };
        let volume = node.volume("v");
        node.must("rename and set", async move {
            volume.rename(name("w")).await?;
            volume.set(settings).await
        });
        for _ in 0..undos {
            undo(&node, "w");
        }
        let (shown, hidden) = if undos % 2 == 1 { (&model, &then) } else { (&then, &model) };
        check(&node, &node.device("w"), shown, "before the import");
        let (other, imported) = found_by_another(&mut node);
        assert_eq!(names(&imported), ["w"], "{undos} undos");
        assert!(!imported.volumes[0].deleted, "{undos} undos: what is hidden was taken for what is shown");
        check(&other, &other.device("w"), shown, &format!("{undos} undos: what is shown"));
        assert_eq!(other.volume("w").record().settings, settings, "{undos} undos");
        check_snapshot(&other, "w", "then", &then);
        undo(&other, "w");
        check(&other, &other.device("w"), hidden, &format!("{undos} undos: what is hidden"));
        assert_eq!(other.volume("w").record().settings, settings, "{undos} undos");
    }
}

/// A creation whose request to coordination is lost: its first manifest stays in the store. Gives the id of what was not made.
fn fail_to_create(node: &Node, volume: &str) -> VolumeId {
    node.coord.inject(&[Fault::RequestLost]).unwrap();
    let new =
        NewVolume { name: name(volume), pool: name("default"), size: SIZE as u64, settings: Overrides::default() };
    let shard = node.shard();
    let refused = node.run(async move { shard.create_volume(new).await.map(drop) }).unwrap();
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unavailable);
    let left = node.server.names().into_iter().find(|object| object.contains("/man/")).unwrap();
    Manifest::decode(&node.server.object(&left).unwrap()).unwrap().volume
}

#[test]
fn a_name_goes_to_the_volume_that_was_used() {
    let mut orders = BTreeSet::new();
    for seed in 0..24 {
        let (mut node, mut rng) = (start(seed), Rng::new(seed));
        let left = fail_to_create(&node, "v");
        node.create_volume("v", SIZE as u64);
        let used = node.volume("v").id();
        let mut model = vec![0; SIZE];
        match seed % 3 {
            // Known by its segments alone.
            0 => {
                write_some(&node, "v", &mut model, &mut rng);
                seal(&node, "v");
            }
            // By its manifests.
            1 => {
                write_some(&node, "v", &mut model, &mut rng);
                let volume = node.volume("v");
                node.must("merge", async move {
                    volume.seal().await?;
                    volume.checkpoint().await
                });
            }
            // By its epoch.
            _ => {
                node.crash(CrashMode::Kill, InFlight::Lost);
                node.reopen();
            }
        }
        orders.insert((seed % 3, left < used));
        let (other, imported) = found_by_another(&mut node);
        assert_eq!(names(&imported), ["v", "v-imported"], "seed {seed}: {imported:?}");
        let was = |id| imported.volumes.iter().find(|volume| volume.id == id).unwrap().was.clone();
        assert_eq!((was(used), was(left)), (None, Some(name("v"))), "seed {seed}: {imported:?}");
        check(&other, &other.device("v"), &model, &format!("seed {seed}"));
    }
    assert_eq!(orders.len(), 6, "of the two volumes either was to have the lower id: {orders:?}");
}

/// Asks for a clone of `v` under the name `w`, in vain. Gives the timelines whose manifests are in the store for nothing.
fn fail_to_clone(node: &Node, fault: fn(&Memory)) -> Vec<TimelineId> {
    let timelines = |node: &Node| -> BTreeSet<TimelineId> {
        let names = node.server.names();
        names.iter().filter_map(|text| ObjectName::parse(text)).map(|object| object.timeline).collect()
    };
    let (shard, before) = (node.shard(), timelines(node));
    until_it_puts(node, fault, async move {
        shard.clone_volume(&name("v"), None, name("w"), Overrides::default()).await.map(drop)
    });
    timelines(node).difference(&before).copied().collect()
}

#[test]
fn a_clone_that_was_refused_leaves_nothing() {
    let (node, mut rng) = (start(1), Rng::new(1));
    node.create_volume("v", SIZE as u64);
    write_some(&node, "v", &mut vec![0; SIZE], &mut rng);
    seal(&node, "v");
    // The manifest is taken back as soon as the store is asked to; nothing else of the clone is there.
    assert_eq!(fail_to_clone(&node, |coord| coord.set_away(true)), []);
}

#[test]
fn a_name_goes_to_the_clone_that_was_used() {
    let mut orders = BTreeSet::new();
    for seed in 0..12 {
        let (mut node, mut rng) = (start(seed), Rng::new(seed));
        node.create_volume("v", SIZE as u64);
        let mut model = vec![0; SIZE];
        write_some(&node, "v", &mut model, &mut rng);
        seal(&node, "v");
        // Nobody knows whether it was recorded, so its manifest stays.
        let left = fail_to_clone(&node, |coord| coord.inject(&[Fault::RequestLost]).unwrap());
        assert_eq!(left.len(), 1, "seed {seed}");
        let unmade = node.server.names().into_iter().find(|object| object.starts_with(&left[0].to_string())).unwrap();
        let unmade = Manifest::decode(&node.server.object(&unmade).unwrap()).unwrap().volume;
        clone(&node, "v", None, "w");
        let used = node.volume("w").id();
        write_some(&node, "w", &mut model, &mut rng);
        let volume = node.volume("w");
        node.must("merge", async move {
            volume.seal().await?;
            volume.checkpoint().await
        });
        orders.insert(unmade < used);
        let (other, imported) = found_by_another(&mut node);
        let was = |id| imported.volumes.iter().find(|volume| volume.id == id).map(|volume| volume.was.clone());
        assert_eq!((was(used), was(unmade)), (Some(None), Some(Some(name("w")))), "seed {seed}: {imported:?}");
        check(&other, &other.device("w"), &model, &format!("seed {seed}"));
    }
    assert_eq!(orders.len(), 2, "of the two clones either was to have the lower id");
}
