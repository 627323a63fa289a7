// SPDX-License-Identifier: Apache-2.0
//! A volume that is brought back at the very end of its window: it is back whole, or gone for ever, whoever of the two was first.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

use varve_sim::node;

use node::{Node, name};
use std::time::Duration;
use varve_env::{Env, StoreErrorKind};
use varve_sim::{SimOptions, StoreFault, StoreOp};
use varve_types::ErrorKind;

const SIZE: u64 = 1 << 20;
const WINDOW: Duration = Duration::from_secs(60);
/// Within so much time a shard has looked which windows are over.
const LOOK: Duration = Duration::from_secs(20);

/// A node whose volume `v` was written and deleted.
fn start() -> (Node, Vec<u8>) {
    let mut node = Node::new(SimOptions::seed(1), 16 << 20);
    node.pool.undelete_window_ms = Some(WINDOW.as_millis() as u64);
    node.create().unwrap().unwrap();
    node.create_volume("v", SIZE);
    let data: Vec<u8> = (0..8 * 4096u32).map(|i| (i / 7) as u8).collect();
    let device = node.device("v");
    node.write(&device, 0, data.clone(), false).unwrap().unwrap();
    drop(device);
    node.world.run_for(Duration::from_millis(10)).unwrap();
    let shard = node.shard();
    node.must("delete", async move { shard.delete_volume(&name("v")).await });
    (node, data)
}

fn undelete(node: &Node) -> Result<(), ErrorKind> {
    let shard = node.shard();
    let done = node.run(async move { shard.undelete_volume(&name("v")).await.map(drop) }).unwrap();
    done.map_err(|error| error.kind())
}

#[test]
fn what_is_brought_back_while_its_window_ends_stays() {
    let (node, data) = start();
    node.world.run_for(WINDOW - Duration::from_millis(500)).unwrap();
    // To open it takes so long that its window is found to be over meanwhile.
    node.server.set_latency(LOOK / 4, LOOK / 4);
    undelete(&node).unwrap();
    node.server.set_latency(Duration::from_millis(1), Duration::from_millis(5));
    node.world.run_for(LOOK * 2).unwrap();
    let device = node.device("v");
    assert!(node.read(&device, 0, data.len() as u32).unwrap().unwrap() == data[..]);
}

/// Another node looks at windows too, and ends the volume while this one opens it.
#[test]
fn what_another_node_ends_meanwhile_is_refused_as_gone() {
    let (node, _) = start();
    let second = node.second("second");
    second.create().unwrap().unwrap();
    node.world.run_for(WINDOW - Duration::from_millis(500)).unwrap();
    node.server.set_latency(LOOK / 4, LOOK / 4);
    assert_eq!(undelete(&node), Err(ErrorKind::NotFound));
    node.server.set_latency(Duration::from_millis(1), Duration::from_millis(5));
    node.world.run_for(LOOK * 2).unwrap();
    let left: Vec<_> = node.server.names().into_iter().filter(|name| !name.starts_with("owner/")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_has_begun_to_go_is_not_brought_back() {
    let (node, _) = start();
    for _ in 0..100 {
        node.server.fail(StoreOp::List, "", 0, StoreFault::Error(StoreErrorKind::Unavailable));
    }
    node.world.run_for(WINDOW + LOOK).unwrap();
    node.world.jump_wall(-(WINDOW.as_millis() as i64));
    let before = node.env.wall_ms();
    assert_eq!(undelete(&node), Err(ErrorKind::NotFound));
    assert!(node.env.wall_ms() < before + WINDOW.as_millis() as u64, "by the clock its window has not ended");
    node.server.forget_faults();
    node.world.run_for(LOOK * 2).unwrap();
    let left: Vec<_> = node.server.names().into_iter().filter(|name| !name.starts_with("owner/")).collect();
    assert!(left.is_empty(), "{left:?}");
}
