// SPDX-License-Identifier: Apache-2.0
//! Several nodes of a cluster: each runs the volumes that it owns and no others, and of two that want one at most one gets it.

use std::rc::Rc;
use std::time::Duration;
use varve_engine::{EngineError, SessionRequest, Volume};
use varve_sim::SimOptions;
use varve_sim::node::{Node, name};
use varve_types::{Epoch, ErrorKind, NodeId, SessionId};

const SIZE: u64 = 1 << 20;

fn id(number: u8) -> NodeId {
    NodeId::from_bytes([number; 16])
}

/// Two nodes, the first of which runs the volume `v`.
fn pair(seed: u64) -> (Node, Node) {
    let first = Node::new(SimOptions::seed(seed), 9 << 20);
    first.create().expect("the world runs").expect("the shard starts");
    first.shard().serve_as(id(1));
    first.create_volume("v", SIZE);
    let second = first.second("second");
    second.create().expect("the world runs").expect("the shard starts");
    second.shard().serve_as(id(2));
    (first, second)
}

fn take_over(node: &Node, volume: &Rc<Volume>, since: Epoch) -> Result<Rc<Volume>, EngineError> {
    let (shard, id) = (node.shard(), volume.id());
    node.run(async move { shard.take_over(id, since).await }).expect("the world runs")
}

#[test]
fn each_runs_its_own() {
    let (first, second) = pair(1);
    second.create_volume("w", SIZE);
    let opened = |node: &Node| {
        let shard = node.shard();
        let failed = node.must("open", async move { shard.open_all().await });
        assert!(failed.is_empty(), "{failed:?}");
        let mut names: Vec<_> = node.shard().volumes().iter().map(|volume| volume.name().to_string()).collect();
        names.sort();
        names
    };
    assert_eq!((opened(&first), opened(&second)), (vec!["v".to_owned()], vec!["w".to_owned()]));
    let (shard, other) = (second.shard(), first.volume("v").id());
    let refused = second.run(async move { shard.open_volume(other).await.map(drop) }).expect("the world runs");
    assert_eq!(refused.expect_err("it is the first one's").kind(), ErrorKind::Fenced);
}

#[test]
fn who_is_taken_over_acknowledges_nothing_that_needs_more_than_itself() {
    let (first, second) = pair(2);
    let device = first.device("v");
    first.write(&device, 0, vec![1; 4096], true).expect("alive").expect("a write");
    let volume = first.volume("v");
    first.must("put it", async move { volume.seal().await });
    let volume = first.volume("v");
    first.world.pause(&first.env);
    let taken = take_over(&second, &volume, volume.record().epoch).expect("it takes it over");
    assert_eq!(taken.record().owner, Some(id(2)));
    let new = second.device("v");
    let found = second.read(&new, 0, 4096).expect("alive").expect("a read");
    assert!(found.iter().all(|byte| *byte == 1), "what counted is there");
    second.write(&new, 0, vec![2; 4096], true).expect("alive").expect("a write");
    first.world.resume(&first.env);
    let fenced = first.run(async move {
        volume.seal().await?;
        volume.checkpoint().await
    });
    assert_eq!(fenced.expect("the world runs").expect_err("it is fenced").kind(), ErrorKind::Fenced);
    let late = first.write(&device, 0, vec![3; 4096], true).expect("alive");
    assert_eq!(late.expect_err("it has stopped").kind(), ErrorKind::Fenced);
    drop(device);
    first.shard().forget(taken.id());
    assert!(first.shard().find(&name("v")).is_err());
    second.world.run_for(Duration::from_secs(60)).expect("the world runs");
    let found = second.read(&new, 0, 4096).expect("alive").expect("a read");
    assert!(found.iter().all(|byte| *byte == 2));
}

#[test]
fn one_of_two_gets_it() {
    let (first, second) = pair(3);
    let third = first.second("third");
    third.create().expect("the world runs").expect("the shard starts");
    third.shard().serve_as(id(3));
    let volume = first.volume("v");
    let since = volume.record().epoch;
    first.world.pause(&first.env);
    take_over(&second, &volume, since).expect("the faster one");
    let late = take_over(&third, &volume, since).map(drop).expect_err("the slower one");
    assert_eq!(late.kind(), ErrorKind::Fenced);
}

#[test]
fn an_edge_brings_to_the_next_owner_what_the_last_one_has_lost() {
    let (first, second) = pair(4);
    let request = SessionRequest {
        session: SessionId::from_bytes([7; 16]),
        edge: "host".to_owned(),
        exclusive: true,
        steal: false,
        timeline: None,
        promises: Vec::new(),
    };
    let (volume, asked) = (first.volume("v"), request.clone());
    let start = first.must("attach", async move { volume.begin_session(asked).await });
    let device = Rc::new(start.device);
    let mut kept = Vec::new();
    for block in 0..8_u64 {
        first.write(&device, block * 4096, vec![block as u8 + 1; 4096], false).expect("alive").expect("a write");
        kept.push((block, varve_engine::BlockDevice::position(&*device).sequence));
    }
    let volume = first.volume("v");
    first.world.pause(&first.env);
    // Nobody has a copy of what the first one has not put: it is for a person to say that this be so.
    let taken = take_over(&second, &volume, start.epoch).expect("it is forced");
    let promises = vec![(start.epoch, varve_types::Sequence(0))];
    let again = SessionRequest { timeline: Some(start.timeline), promises, ..request };
    let start = second.must("attach again", async move { taken.begin_session(again).await });
    let device = Rc::new(start.device);
    for (block, _) in kept.iter().filter(|(_, sequence)| *sequence > start.cuts[0]) {
        second.write(&device, block * 4096, vec![*block as u8 + 1; 4096], false).expect("alive").expect("a write");
    }
    for block in 0..8_u64 {
        let found = second.read(&device, block * 4096, 4096).expect("alive").expect("a read");
        assert!(found.iter().all(|byte| *byte == block as u8 + 1), "block {block}");
    }
}
