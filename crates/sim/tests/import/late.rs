// SPDX-License-Identifier: Apache-2.0
//! What an import makes of manifests that landed late, and of those that a listing does not show yet.

use super::{import_into, names, seal, start, write_some};
use crate::node::name;
use std::time::Duration;
use varve_env::StoreErrorKind;
use varve_format::ObjectName;
use varve_format::manifest::{Manifest, TimelineState};
use varve_sim::{Rng, StoreFault, StoreOp};
use varve_types::ErrorKind;

/// The last manifest of a history that ended is held for nothing and names nothing: it is told of, and no damage.
#[test]
fn the_last_manifest_of_a_history_is_no_loss() {
    let mut rng = Rng::new(9);
    let node = start(9);
    node.create_volume("v", super::SIZE as u64);
    node.create_volume("w", super::SIZE as u64);
    write_some(&node, "v", &mut vec![0; super::SIZE], &mut rng);
    seal(&node, "v");
    let timeline = node.volume("v").record().shown;
    let prefix = format!("{timeline}/man/");
    let newest = node.server.names().into_iter().rfind(|object| object.starts_with(&prefix)).unwrap();
    let last = Manifest::decode(&node.server.object(&newest).unwrap()).unwrap();
    let shard = node.shard();
    node.must("delete", async move { shard.delete_volume(&name("v")).await });
    node.world.run_for(Duration::from_secs(200)).unwrap();
    assert!(node.server.names().iter().all(|object| !object.starts_with(&prefix)), "nothing of it is left");

    let state = TimelineState::Held { swept: false };
    let (maps, tables, table, cuts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let last = Manifest { state, maps, tables, table, cuts, kills: Vec::new(), node_kills: Vec::new(), ..last };
    node.server.plant(&newest, last.encode());
    let mut other = node.stranger("other");
    let imported = import_into(&mut other, 2).unwrap();
    assert_eq!(names(&imported), ["w"]);
    let told: Vec<_> = imported.failures.iter().map(|failure| (&failure.what[..], failure.error.kind())).collect();
    assert_eq!(told, [(&format!("timeline {timeline}")[..], ErrorKind::NotFound)]);
}

/// Each manifest that is found behind a listing is asked for its successors again: puts that failed use numbers up.
#[test]
fn manifests_are_asked_for_behind_each_that_is_found() {
    let mut rng = Rng::new(10);
    let node = start(10);
    node.create_volume("v", super::SIZE as u64);
    write_some(&node, "v", &mut vec![0; super::SIZE], &mut rng);
    seal(&node, "v");
    node.world.run_for(Duration::from_secs(100)).unwrap();
    node.server.set_list_lag(Duration::from_secs(60));
    let prefix = format!("{}/man/", node.volume("v").record().shown);
    let newest = || {
        let listed = node.server.names().into_iter().rfind(|object| object.starts_with(&prefix)).unwrap();
        ObjectName::parse(&listed).unwrap().number
    };
    let listed = newest();
    (0..7).for_each(|nth| {
        node.server.fail(StoreOp::Put, &prefix, nth, StoreFault::Error(StoreErrorKind::NoSpace));
    });
    write_some(&node, "v", &mut vec![0; super::SIZE], &mut rng);
    let volume = node.volume("v");
    node.must("merge, and rename", async move {
        volume.seal().await?;
        volume.checkpoint().await?;
        volume.rename(name("renamed")).await
    });
    assert_eq!(newest(), listed + 9, "one at the end of what is asked for, and one behind it");
    let mut other = node.stranger("other");
    let imported = import_into(&mut other, 2).unwrap();
    assert_eq!((names(&imported), imported.failures.len()), (vec!["renamed".to_owned()], 0));
}
