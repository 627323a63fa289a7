// SPDX-License-Identifier: Apache-2.0
//! Histories that have nothing of their own and lead from what is shown to snapshots of older ones.

use super::*;

/// Rolled back to `old`, then to a snapshot that is gone since: between the history that is shown and the one with `old` is one that has nothing but a manifest.
fn linked() -> (Node, Vec<u8>, TimelineId) {
    let (node, mut rng) = start(31);
    let mut model = vec![0; SIZE];
    write(&node, "v", &mut model, &mut rng, 0..40);
    snapshot(&node, "v", "old");
    let old = model.clone();
    write(&node, "v", &mut model, &mut rng, 0..40);
    rollback(&node, "v", "old");
    snapshot(&node, "v", "link");
    let link = node.volume("v").record().shown;
    rollback(&node, "v", "link");
    forget(&node, "v", "link");
    write(&node, "v", &mut model, &mut rng, 0..40);
    node.world.run_for(Duration::from_secs(200)).unwrap();
    let left: Vec<_> = node.server.names().into_iter().filter(|name| name.starts_with(&link.to_string())).collect();
    assert!(!left.is_empty() && left.iter().all(|name| name.contains("/man/")), "{left:?}");
    (node, old, link)
}

#[test]
fn one_whose_manifest_is_lost_has_not_ended_and_takes_nothing_with_it() {
    let (mut node, old, link) = linked();
    let lost: Vec<_> = node.server.names().into_iter().filter(|name| name.starts_with(&link.to_string())).collect();
    let lost: Vec<_> = lost.into_iter().map(|name| (node.server.object(&name).unwrap(), name)).collect();
    lost.iter().for_each(|(_, name)| assert!(node.server.remove(name)));
    node.crash(CrashMode::Kill, InFlight::Landed);
    node.reopen();
    node.world.run_for(Duration::from_secs(200)).unwrap();
    let volume = node.volume("v");
    let listed = node.run(async move { volume.snapshots().await }).unwrap();
    assert_eq!(listed.unwrap_err().kind(), ErrorKind::Corrupt, "what is not known is not left out");
    // Found again, all is as it was.
    lost.into_iter().for_each(|(bytes, name)| node.server.plant(&name, bytes));
    node.world.run_for(Duration::from_secs(200)).unwrap();
    shows(&node, &view(&node, "v", "old"), &old, "the manifest is there again");
}
