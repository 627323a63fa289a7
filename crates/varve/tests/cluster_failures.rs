// SPDX-License-Identifier: Apache-2.0
//! What becomes of a cluster when a node is killed or stopped, or etcd is away: who serves goes on, and who was overtaken lets go.

#![allow(clippy::unwrap_used)]

mod fleet;
mod raw_edge;
mod real;

use fleet::Fleet;
use raw_edge::{RawEdge, again, attach};
use real::{DEADLINE, Run};
use std::process::Stdio;
use varve_lab::nbd::{Client, Command};
use varve_lab::process::{Signal, free_port, wait_until};
use varve_types::{ErrorKind, Sequence};
use varve_wire::transmission::{Ask, Told};

#[test]
fn the_volumes_of_a_node_that_was_killed_can_be_taken() {
    let fleet = Fleet::new();
    let mut one = fleet.start("n1", &["--volume", "a:64M"]);
    let two = fleet.start("n2", &[]);
    one.node.qemu_io("a", &["write -P 7 0 1M"]);
    one.until_put("a");
    // What only its journal has.
    let mut edge = RawEdge::unix(&one.node);
    edge.attach(&attach("a", 9)).unwrap();
    assert_eq!(edge.ask(Ask::Write, 2 << 20, 4096, &[6; 4096]).0.told, Told::Done);
    assert_eq!(edge.ask(Ask::Flush, 0, 0, &[]).0.told, Told::Done);
    one.node.kill();
    two.until_alive("n1", false);
    let cluster = two.json(&["cluster", "status"]);
    assert_eq!(cluster["volumes"]["orphaned"], 1);
    assert!(two.run(&["volume", "list"]).ok().contains("n1 (dead)"));
    let refused = RawEdge::unix(&two.node).attach(&attach("a", 1)).unwrap_err();
    assert_eq!((refused.kind, refused.elsewhere), (ErrorKind::Unavailable, None));
    assert!(refused.message.contains("varve volume take a"), "{}", refused.message);
    // It is said what may be lost, and asked.
    let told = two.run(&["volume", "take", "a"]).fails(2);
    assert!(told.contains("everything that node n1 acknowledged") && told.contains("really dead"), "{told}");
    assert!(told.contains("the last 1m (its seal-age)") && told.contains("host-9"), "{told}");
    assert_eq!(two.json(&["volume", "show", "a"])["owner"]["name"], "n1", "nothing was done");
    two.run(&["volume", "take", "a", "--yes"]).ok();
    two.run(&["volume", "detach", "a", "--yes"]).ok();
    two.node.qemu_io("a", &["read -P 7 0 1M", "read -P 0 2M 4k", "write -P 8 0 1M"]);
    two.run(&["volume", "take", "a"]).ok();
    two.run(&["volume", "take", "none", "--yes"]).fails(3);
    // The old owner does not open what it lost, and knows whom to ask.
    one.node.up();
    let shown = one.json(&["volume", "show", "a"]);
    assert_eq!((&shown["state"], &shown["owner"]["name"]), (&"elsewhere".into(), &"n2".into()));
    assert!(one.json(&["status"])["volumes"].as_array().unwrap().is_empty());
    let refused = RawEdge::unix(&one.node).attach(&attach("a", 1)).unwrap_err();
    assert_eq!(refused.elsewhere, Some(format!("127.0.0.1:{}", two.edge)));
    // It can have it back.
    let told = one.run(&["volume", "take", "a"]).fails(2);
    assert!(told.contains("ALIVE"), "{told}");
    two.until_put("a");
    one.run(&["volume", "take", "a", "--yes"]).ok();
    // With it nothing comes back of what was lost, though its journal may still have it.
    one.node.qemu_io("a", &["read -P 8 0 1M", "read -P 0 2M 4k"]);
    two.node.until_status("it to let go", |status| status["volumes"].as_array().unwrap().is_empty());
}

#[test]
fn who_was_stopped_and_overtaken_acknowledges_nothing_and_lets_go() {
    let fleet = Fleet::new();
    let mut one = fleet.start("n1", &["--volume", "a:64M"]);
    let two = fleet.start("n2", &[]);
    one.run(&["volume", "set", "a", "seal-age=1s"]).ok();
    let mut edge = RawEdge::unix(&one.node);
    let start = edge.attach(&attach("a", 1)).unwrap();
    assert_eq!(edge.ask(Ask::Write, 0, 4096, &[1; 4096]).0.told, Told::Done);
    edge.ask(Ask::Flush, 0, 0, &[]);
    one.until_put("a");
    let old = one.node.process().id();
    one.node.process().signal(Signal::STOP).unwrap();
    two.until_alive("n1", false);
    two.run(&["volume", "take", "a", "--yes"]).ok();
    let mut moved = RawEdge::unix(&two.node);
    let seen = moved.attach(&again("a", 1, 2, &start, Sequence(1))).unwrap();
    assert!(seen.epoch > start.epoch && seen.timeline == start.timeline);
    assert_eq!(moved.ask(Ask::Read, 0, 4096, &[]).1, [1; 4096]);
    assert_eq!(moved.ask(Ask::Write, 0, 4096, &[2; 4096]).0.told, Told::Done);
    // It goes on where it was, and soon knows.
    one.node.process().signal(Signal::CONT).unwrap();
    assert_eq!(one.node.process().id(), old);
    wait_until(DEADLINE, "it to let go of its edge", || {
        let asked = edge.send(Ask::Flush, 0, 0, &[]).and_then(|_| edge.reply());
        Ok(asked.is_err())
    })
    .unwrap();
    one.node.until_status("it to forget the volume", |status| status["volumes"].as_array().unwrap().is_empty());
    let refused = RawEdge::unix(&one.node).attach(&again("a", 1, 3, &seen, Sequence(0))).unwrap_err();
    assert_eq!(refused.elsewhere, Some(format!("127.0.0.1:{}", two.edge)), "{}", refused.message);
    let nbd = real::nbdsh_command(&one.node.uri("a"), "print(h.get_size())").output().unwrap();
    assert!(!nbd.status.success(), "{nbd:?}");
    assert!(one.node.log().contains("this node lets go of it"));
    one.until_alive("n1", true);
    assert_eq!(moved.ask(Ask::Flush, 0, 0, &[]).0.told, Told::Done);
    assert_eq!(moved.ask(Ask::Read, 0, 4096, &[]).1, [2; 4096]);
}

#[test]
fn a_plain_client_of_an_owner_that_was_overtaken_reads_nothing_old() {
    let fleet = Fleet::new();
    let [mut one, two] = ["n1", "n2"].map(|name| {
        let listen = format!("127.0.0.1:{}", free_port().unwrap());
        fleet.start(name, &["--mirror-listen", &listen])
    });
    one.run(&["volume", "create", "a", "--size", "64M"]).ok();
    one.run(&["volume", "set", "a", "mirror=sync"]).ok();
    let in_sync = || Ok(one.json(&["volume", "show", "a"])["mirror"]["state"] == "in-sync");
    wait_until(DEADLINE, "a mirror in sync", in_sync).unwrap();
    let mut plain = Client::unix(&one.node.data().join("nbd.sock"), "a").unwrap();
    plain.run(Command::Write { fua: false }, 0, 4096, &[1; 4096]).unwrap();
    assert_eq!(plain.read(0, 4096).unwrap(), [1; 4096]);
    one.node.process().signal(Signal::STOP).unwrap();
    let mut edge = None;
    wait_until(DEADLINE, "the mirror to take over", || {
        let mut next = RawEdge::unix(&two.node);
        edge = next.attach(&attach("a", 1)).is_ok().then_some(next);
        Ok(edge.is_some())
    })
    .unwrap();
    let mut edge = edge.unwrap();
    assert_eq!(edge.ask(Ask::Read, 0, 4096, &[]).1, [1; 4096]);
    assert_eq!(edge.ask(Ask::Write, 0, 4096, &[2; 4096]).0.told, Told::Done);
    one.node.process().signal(Signal::CONT).unwrap();
    let read = plain.read(0, 4096);
    assert!(read.is_err(), "{:?}", read.map(|data| data[0]));
    assert_eq!(edge.ask(Ask::Read, 0, 4096, &[]).1, [2; 4096]);
}

#[test]
fn while_etcd_is_away_what_is_served_is_served_on() {
    let mut fleet = Fleet::new();
    let one = fleet.start("n1", &["--volume", "a:64M"]);
    let mut other = fleet.node("n2", &[]);
    let mut edge = RawEdge::unix(&one.node);
    edge.attach(&attach("a", 1)).unwrap();
    fleet.etcd.kill(0).unwrap();
    // It tries for a while, in which the other is looked at.
    let mut command = other.node.command(&other.node.data());
    command.args(["--node-name", "n2", "--store", &fleet.store()]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let refused = command.spawn().unwrap();
    for round in 1..=20_u8 {
        assert_eq!(edge.ask(Ask::Write, 0, 4096, &[round; 4096]).0.told, Told::Done);
        assert_eq!(edge.ask(Ask::Flush, 0, 0, &[]).0.told, Told::Done);
        assert_eq!(edge.ask(Ask::Read, 0, 4096, &[]).1, [round; 4096]);
    }
    let cluster = one.json(&["cluster", "status"]);
    assert_eq!(cluster["coordination"]["reachable"], false);
    one.node.until_status("it to be told", |status| {
        status["warnings"].to_string().contains("The cluster may take this node for dead")
    });
    one.run(&["volume", "resize", "none", "1G"]).fails(5);
    assert_eq!(edge.ask(Ask::Write, 4096, 4096, &[9; 4096]).0.told, Told::Done);
    let complaint = Run::from(refused.wait_with_output().unwrap()).fails(5);
    assert!(complaint.contains("etcd"), "{complaint}");
    fleet.etcd.start_again(0).unwrap();
    one.until_alive("n1", true);
    one.node.until_status("all to be well", |status| status["warnings"].as_array().unwrap().is_empty());
    one.run(&["snapshot", "create", "a", "s"]).ok();
    other.node.up();
    assert_eq!(other.nodes().len(), 2);
    assert_eq!(edge.ask(Ask::Read, 4096, 4096, &[]).1, [9; 4096]);
}
