// SPDX-License-Identifier: Apache-2.0
//! A disk that outlives its server: real nodes on a real etcd, a real `varve-edge`, and a load that proves what it reads, while the volume's owner is killed, stopped
//! and cut off from its mirror.

#![allow(clippy::unwrap_used)]

mod fleet;
mod real;
mod rig;

use real::DEADLINE;
use rig::Rig;
use std::time::{Duration, Instant};
use varve_lab::process::{Signal, wait_until};

/// A load goes on while something is done to the owner of its volume, and what it reads is what it wrote. Gives who that was.
fn disturbed(rig: &mut Rig, what: impl FnOnce(&mut Rig, usize)) -> usize {
    let mut load = rig.load(12);
    let begun = Instant::now();
    let busy =
        |rig: &Rig| rig.stats()["operations"]["write"]["requests"].as_u64().is_some_and(|requests| requests > 1000);
    wait_until(DEADLINE, "the load to write", || Ok(busy(rig))).unwrap();
    let owner = rig.owner();
    what(rig, owner);
    let status = load.wait(DEADLINE * 2).unwrap();
    assert_eq!(status.code(), Some(0), "{}", load.log_tail());
    assert!(begun.elapsed() > Duration::from_secs(10));
    owner
}

#[test]
fn a_load_does_not_notice_more_than_a_pause_when_its_owner_is_killed() {
    let mut rig = Rig::start(3);
    for round in 0..2 {
        let dead = disturbed(&mut rig, |rig, owner| rig.nodes[owner].node.kill());
        assert_ne!(rig.owner(), dead, "round {round}");
        rig.nodes[dead].node.up();
        rig.until_in_sync();
    }
    println!("longest without an owner: {} ms", rig.stats()["longest_stall_ms"]);
    metrics_tell_of_the_mirror(&rig);
    rig.edge.signal(Signal::TERM).unwrap();
    assert_eq!(rig.edge.wait(DEADLINE).unwrap().code(), Some(0), "{}", rig.edge.log_tail());
}

/// The owner says that it has one, and another node that it is one.
fn metrics_tell_of_the_mirror(rig: &Rig) {
    let owner = rig.owner();
    let told = rig.nodes[owner].node.metrics();
    let labels = "{volume=\"disk\",pool=\"default\"}";
    for line in [format!("varve_volume_mirror_wanted{labels} 1"), format!("varve_volume_mirror_in_sync{labels} 1")] {
        assert!(told.lines().any(|told| told == line), "{line} is not in {told}");
    }
    let sent = told.lines().find_map(|line| line.strip_prefix("varve_stage_seconds_count{stage=\"mirror\"} "));
    assert!(sent.is_some_and(|sent| sent != "0"), "{told}");
    let joined = format!("varve_volume_mirror_joined_total{labels} ");
    let joined = told.lines().find_map(|line| line.strip_prefix(&joined)).unwrap();
    assert!(joined.parse::<u64>().unwrap() > 0, "{joined}");
    let others = rig.nodes.iter().enumerate().filter(|(at, _)| *at != owner).map(|(_, node)| node.node.metrics());
    assert!(others.into_iter().any(|told| told.contains("\nvarve_mirror_copies 1\n")));
}

#[test]
fn an_owner_that_stalls_is_overtaken_and_lets_go() {
    let mut rig = Rig::start(2);
    let stalled = disturbed(&mut rig, |rig, owner| {
        rig.nodes[owner].node.process().signal(Signal::STOP).unwrap();
        let moved =
            || Ok(rig.nodes[1 - owner].volumes().iter().any(|(_, owner_is, _)| *owner_is == format!("n{}", 1 - owner)));
        wait_until(DEADLINE, "the volume to be taken over", moved).unwrap();
        rig.nodes[owner].node.process().signal(Signal::CONT).unwrap();
    });
    assert_eq!(rig.owner(), 1 - stalled);
    println!("longest without an owner: {} ms", rig.stats()["longest_stall_ms"]);
    let state = || Ok(rig.nodes[stalled].json(&["volume", "show", "disk"])["state"] == "elsewhere");
    wait_until(DEADLINE, "the old owner to let go", state).unwrap();
    rig.until_in_sync();
    drop(rig.fleet);
}

#[test]
fn an_owner_that_comes_back_finds_its_mirror_at_once() {
    let mut rig = Rig::start(2);
    let owner = rig.owner();
    // Nobody is left who would ask the mirror to take over.
    rig.edge.signal(Signal::TERM).unwrap();
    assert_eq!(rig.edge.wait(DEADLINE).unwrap().code(), Some(0), "{}", rig.edge.log_tail());
    rig.nodes[owner].node.kill();
    rig.nodes[owner].node.up();
    let back = &rig.nodes[owner];
    assert_eq!(back.json(&["volume", "show", "disk"])["state"], "ready");
    assert!(!back.node.log().contains("could not be opened"), "{}", back.node.log());
    rig.until_in_sync();
}

#[test]
fn an_owner_whose_mirror_is_gone_for_good_is_opened_when_a_person_says_so() {
    let mut rig = Rig::start(2);
    let owner = rig.owner();
    assert_eq!(disturbed(&mut rig, |_, _| {}), owner);
    let until_put = |rig: &Rig| rig.nodes[owner].until_put("disk");
    until_put(&rig);
    for node in [1 - owner, owner] {
        rig.nodes[node].node.kill();
    }
    rig.nodes[owner].node.up();
    let one = &rig.nodes[owner];
    assert!(one.json(&["volume", "show", "disk"])["state"] != "ready");
    let told = one.run(&["volume", "take", "disk"]).fails(2);
    assert!(told.contains("waits for its mirror") && told.contains("unless an edge still has it"), "{told}");
    one.run(&["volume", "take", "disk", "--yes"]).ok();
    assert_eq!(one.json(&["volume", "show", "disk"])["state"], "ready");
    // The edge comes back by itself, and all that it wrote is there.
    assert_eq!(disturbed(&mut rig, |_, _| {}), owner);
}
