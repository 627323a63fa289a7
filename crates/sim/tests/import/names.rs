// SPDX-License-Identifier: Apache-2.0
//! Which history of a volume an import shows, and under which name; and which of several volumes a name goes to.

use super::node::{Node, name};
use super::{SIZE, check, check_snapshot, import_into, names, seal, snapshot, start, write_some};
use std::collections::BTreeSet;
use varve_coord::Fault;
use varve_engine::{Imported, NewVolume};
use varve_format::manifest::Manifest;
use varve_sim::{CrashMode, InFlight, Rng};
use varve_types::{Compression, ErrorKind, Overrides, VolumeId};

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
