// SPDX-License-Identifier: Apache-2.0
//! Who writes the manifests of a volume that several know: of two nodes its owner alone; of one node, one task at a time, also while it is deleted.

use std::rc::Rc;
use std::time::Duration;
use varve_env::Env;
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

/// A deleted volume is brought back while its clone lets go of it: one of both writes the next manifest, and then the other.
#[test]
fn a_volume_comes_back_while_its_clone_lets_go_of_it() {
    for delay in 0..60 {
        let node = Node::new(SimOptions::seed(delay), 9 << 20);
        node.create().expect("the world runs").expect("the shard starts");
        node.create_volume("v", SIZE);
        let device = node.device("v");
        node.write(&device, 0, vec![7; 64 << 10], true).expect("alive").expect("a write");
        drop(device);
        checkpoint(&node, "v");
        let shard = node.shard();
        node.must("clone, and delete the origin", async move {
            shard.clone_volume(&name("v"), None, name("w"), Overrides::default()).await?;
            shard.delete_volume(&name("v")).await
        });
        let (shard, env) = (node.shard(), Rc::clone(&node.env));
        node.must("flatten the clone, and bring the origin back", async move {
            let late = async {
                env.sleep(Duration::from_millis(delay)).await;
                shard.undelete_volume(&name("v")).await
            };
            let clone = name("w");
            let (flattened, back) = futures_util::join!(shard.flatten(&clone, |_, _| ()), late);
            back.and(flattened)
        });
        for round in 0..4 {
            let device = node.device("v");
            node.write(&device, 0, vec![round; 64 << 10], true).expect("alive").expect("a write");
            checkpoint(&node, "v");
        }
        node.world.run_for(Duration::from_secs(60)).expect("the world runs");
        let volume = node.volume("v");
        assert!(volume.degraded().is_none(), "after {delay} ms: {:?}", volume.degraded());
        let kept = node.must("list", async move { volume.snapshots().await });
        assert!(kept.is_empty(), "after {delay} ms something is still kept for the clone: {kept:?}");
    }
}
