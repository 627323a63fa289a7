// SPDX-License-Identifier: Apache-2.0
//! Two nodes with one coordination and one store: neither writes what is the other's.

use std::time::Duration;
use varve_sim::SimOptions;
use varve_sim::node::{Node, name};
use varve_types::Overrides;

const SIZE: u64 = 1 << 20;

fn checkpoint(node: &Node, volume: &str) {
    let volume = node.volume(volume);
    node.must("checkpoint", async move {
        volume.seal().await?;
        volume.checkpoint().await
    });
}

#[test]
fn who_ends_a_clone_leaves_its_origin_to_its_owner() {
    let mut first = Node::new(SimOptions::seed(1), 9 << 20);
    first.pool = Overrides { undelete_window_ms: Some(60_000), ..first.pool };
    first.create().expect("the world runs").expect("the shard starts");
    let second = first.second("second");
    second.create().expect("the world runs").expect("the shard starts");
    second.create_volume("v", SIZE);
    let device = second.device("v");
    second.write(&device, 0, vec![7; 64 << 10], true).expect("alive").expect("a write");
    let shard = second.shard();
    second.must("clone and delete it", async move {
        shard.clone_volume(&name("v"), None, name("w"), Overrides::default()).await?;
        shard.delete_volume(&name("w")).await
    });
    // The window ends while the owner of both sleeps: the other one ends the clone.
    second.world.pause(&second.env);
    first.world.run_for(Duration::from_secs(180)).expect("the world runs");
    second.world.resume(&second.env);
    for round in 0..4 {
        second.write(&device, 0, vec![round; 64 << 10], true).expect("alive").expect("a write");
        checkpoint(&second, "v");
        second.world.run_for(Duration::from_secs(30)).expect("the world runs");
    }
    let volume = second.volume("v");
    let kept = second.must("list", async move { volume.snapshots().await });
    assert!(kept.is_empty(), "its owner lets go of what was kept for the clone: {kept:?}");
}
