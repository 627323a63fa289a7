// SPDX-License-Identifier: Apache-2.0
//! Cleaning through the command line: what it shows, how it is held back, and that a volume costs what it holds afterwards.

#![allow(clippy::unwrap_used)]

mod real;

use real::Node;
use serde_json::Value;
use std::time::Duration;
use varve_lab::process::wait_until;

/// Long enough for a volume to be taken for quiet, and for its checkpoints and deletes.
const DEADLINE: Duration = Duration::from_secs(120);

/// Asks how cleaning goes until that holds.
fn until(node: &Node, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let mut state = Value::Null;
    let found = wait_until(DEADLINE, what, || {
        state = node.varve(&["clean", "--json"]).json();
        Ok(holds(&state))
    });
    found.unwrap_or_else(|error| panic!("{error}: {state}"));
    state
}

fn bytes(state: &Value, key: &str) -> u64 {
    state[key].as_u64().unwrap()
}

#[test]
fn what_is_dead_goes_and_what_lives_stays() {
    let mut node = Node::start(&[]);
    node.varve(&["volume", "create", "disk", "--size", "64M", "--segment-size", "4M", "--compression", "none"]).ok();
    node.varve(&["volume", "set", "disk", "rewind-window=0s"]).ok();
    node.varve(&["clean", "--pause"]).ok();
    node.qemu_io("disk", &["write -P 1 0 32M", "flush"]);
    let discards: Vec<String> = (0..16).map(|part| format!("discard {}M 1472K", part * 2)).collect();
    node.qemu_io("disk", &discards.iter().map(String::as_str).collect::<Vec<_>>());
    let before = until(&node, "blocks die", |state| bytes(state, "dead_bytes") >= 20 << 20);
    assert_eq!((&before["paused"], bytes(&before, "jobs")), (&Value::Bool(true), 0));
    let text = node.varve(&["clean"]).ok();
    assert!(text.contains("paused") && text.contains("no bound"), "{text}");
    let bounded = node.varve(&["clean", "--resume", "--rate", "8M", "--json"]).json();
    assert_eq!((&bounded["paused"], bytes(&bounded, "rate_bytes")), (&Value::Bool(false), 8 << 20));
    let after = until(&node, "it is cleaned", |state| {
        let stored = bytes(state, "live_bytes") + bytes(state, "dead_bytes");
        bytes(state, "live_bytes") * 100 >= stored * 80 && state["running"] == false
    });
    assert!(bytes(&after, "jobs") > 0 && bytes(&after, "put_bytes") >= 8 << 20, "{after}");
    let metrics = node.varve(&["clean", "--rate", "0", "--json"]).json();
    assert_eq!(metrics["rate_bytes"], Value::Null);
    // The objects themselves are gone soon, and what lives is there before and after a death.
    let stored = || -> u64 {
        let files = walk(&node.data().join("store"));
        files.iter().filter(|(name, _)| name.contains("/seg/") || name.contains("/bun/")).map(|(_, len)| len).sum()
    };
    wait_until(DEADLINE, "the objects of before go", || Ok(stored() <= 16 << 20)).unwrap();
    let reads: Vec<String> = (0..16)
        .flat_map(|part| [format!("read -P 0 {}M 1472K", part * 2), format!("read -P 1 {}K 576K", part * 2048 + 1472)])
        .collect();
    let reads: Vec<&str> = reads.iter().map(String::as_str).collect();
    node.qemu_io("disk", &reads);
    node.kill();
    node.up();
    node.qemu_io("disk", &reads);
    node.varve(&["check"]).ok();
}

/// The files below a directory, with their lengths.
fn walk(directory: &std::path::Path) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(about) if about.is_dir() => found.extend(walk(&entry.path())),
            Ok(about) => found.push((entry.path().display().to_string(), about.len())),
            // It was deleted meanwhile.
            Err(_) => {}
        }
    }
    found
}
