// SPDX-License-Identifier: Apache-2.0
//! Rewinding through the command line: what can be had is listed, a moment comes back as a volume, also after a death, and what can not be had is said.

#![allow(clippy::unwrap_used)]

mod real;

use real::Node;
use serde_json::Value;
use std::time::{Duration, UNIX_EPOCH};
use varve_lab::process::wait_until;

const DEADLINE: Duration = Duration::from_secs(60);

/// The moments of the volume, once there are `count`: whoever lets go of a volume seals it.
fn moments(node: &Node, count: usize) -> Vec<u64> {
    let mut found = Value::Null;
    let done = wait_until(DEADLINE, "the segments are stored", || {
        found = node.varve(&["rewind", "disk", "--list", "--json"]).json();
        Ok(found["count"] == count)
    });
    done.unwrap_or_else(|error| panic!("{error}: {found}"));
    found["latest_ms"].as_array().unwrap().iter().map(|at| at.as_u64().unwrap()).collect()
}

/// Waits until the clock shows another second, so that a moment can be told from the next.
fn next_second(after_ms: u64) {
    let now = || UNIX_EPOCH.elapsed().unwrap().as_secs();
    wait_until(DEADLINE, "a second passes", || Ok(now() > after_ms / 1000)).unwrap();
}

/// Seconds as people write them.
fn text(ms: u64) -> String {
    let out =
        std::process::Command::new("date").args(["-u", "-d", &format!("@{}", ms / 1000), "+%F %T"]).output().unwrap();
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_moment_that_nobody_took_a_snapshot_of_comes_back() {
    let mut node = Node::start(&["--volume", "disk:64M"]);
    let none = node.varve(&["rewind", "disk", "--list"]).ok();
    assert!(none.contains("no moment to go back to yet"), "{none}");
    node.qemu_io("disk", &["write -P 1 0 8M"]);
    let first = moments(&node, 1)[0];
    next_second(first);
    node.qemu_io("disk", &["write -P 2 0 4M", "discard 6M 1M"]);
    let second = moments(&node, 2)[1];
    next_second(second);
    node.qemu_io("disk", &["write -P 3 0 8M"]);
    moments(&node, 3);
    let before = ["read -P 2 0 4M", "read -P 1 4M 2M", "read -P 0 6M 1M", "read -P 1 7M 1M", "read -P 0 8M 8M"];
    let said = node.varve(&["rewind", "disk", "then", "--to", &text(second)]).ok();
    assert!(said.starts_with("then is what disk was at ") && said.contains(&text(second)), "{said}");
    node.qemu_io("then", &before);
    let list = node.varve(&["rewind", "disk", "--list"]).ok();
    assert!(list.starts_with("3 moments of disk, from ") && list.contains(&text(first)), "{list}");
    node.kill();
    node.up();
    node.qemu_io("then", &before);
    let made = node.varve(&["rewind", "disk", "first", "--to", &text(first), "--json"]).json();
    assert_eq!((&made["at_ms"], &made["volume"]["origin"]["volume"]), (&first.into(), &"disk".into()));
    node.qemu_io("first", &["read -P 1 0 8M", "read -P 0 8M 8M", "write -P 9 0 1M"]);
    node.varve(&["rewind", "disk", "now", "--ago", "0s"]).ok();
    node.qemu_io("now", &["read -P 3 0 8M"]);
    node.qemu_io("disk", &["read -P 3 0 8M"]);
    node.varve(&["check"]).ok();
}

#[test]
fn what_can_not_be_had_is_said() {
    let node = Node::start(&["--volume", "disk:64M"]);
    node.qemu_io("disk", &["write -P 1 0 1M"]);
    moments(&node, 1);
    for (args, wanted) in [
        (&["disk", "new", "--to", "yesterday"][..], "2026-01-02 03:04:05"),
        (&["disk", "new", "--ago", "soon"], "5m"),
        (&["disk", "new"], "--to"),
        (&["disk"], "NEW"),
        (&["disk", "new", "--ago", "5m", "--to", "2026-01-02 03:04:05"], "cannot be used with"),
        (&["disk", "new", "--list"], "cannot be used with"),
    ] {
        let said = node.varve(&[&["rewind"], args].concat()).fails(2);
        assert!(said.contains(wanted), "{args:?}: {said}");
    }
    let early = node.varve(&["rewind", "disk", "new", "--ago", "1d"]).fails(3);
    assert!(early.contains("the oldest is of"), "{early}");
    assert!(node.varve(&["rewind", "none", "new", "--ago", "0s"]).fails(3).contains("none"));
    let taken = node.varve(&["rewind", "disk", "disk", "--ago", "0s"]).fails(4);
    assert!(taken.contains("there is a volume disk already"), "{taken}");
    node.varve(&["volume", "set", "disk", "rewind-window=0s"]).ok();
    let off = node.varve(&["rewind", "disk", "new", "--ago", "0s"]).fails(3);
    assert!(off.contains("rewind-window"), "{off}");
    assert!(node.varve(&["rewind", "disk", "--list"]).ok().contains("keeps nothing of its past"));
}
