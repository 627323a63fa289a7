// SPDX-License-Identifier: Apache-2.0
//! Journals that are configured, as files: shared out, killed over, moved, given up, missing, foreign.

#![allow(clippy::unwrap_used)]

mod real;

use real::{Node, Run};
use serde_json::Value;
use std::path::PathBuf;

/// Writes the configuration anew, with these journals.
fn configure(node: &Node, journals: &[String]) {
    let list = if journals.is_empty() { String::new() } else { format!("journal = {journals:?}\n") };
    let text = format!("journal-size = '64M'\nlayer-ram = '64M'\napi-listen = 'none'\n{list}");
    std::fs::write(node.path("varve.toml"), text).unwrap();
}

fn at(path: &std::path::Path) -> String {
    path.display().to_string()
}

/// A node with two journals and two volumes, with flushed writes that are in the journals alone.
fn two_journals() -> (Node, PathBuf, PathBuf) {
    let mut node = Node::new(&["--volume", "a:64M", "--volume", "b:64M"]);
    let (one, two) = (node.path("one.journal"), node.path("two.journal"));
    configure(&node, &[format!("{}:64M", at(&one)), format!("{}:96M", at(&two))]);
    node.up();
    write(&node);
    (node, one, two)
}

/// Writes to both volumes and flushes, with a store that has gone: what is written is nowhere but in the journals.
fn write(node: &Node) {
    let store = node.data().join("store");
    std::fs::rename(&store, node.path("store.away")).unwrap();
    std::fs::write(&store, b"no directory").unwrap();
    for (volume, pattern) in [("a", 1), ("b", 2)] {
        node.qemu_io(volume, &[&format!("write -P {pattern} 0 8M"), "flush"]);
    }
}

/// Kills the node, and brings the store back.
fn kill(node: &mut Node) {
    node.kill();
    let store = node.data().join("store");
    std::fs::remove_file(&store).unwrap();
    std::fs::rename(node.path("store.away"), &store).unwrap();
}

fn prove(node: &Node) {
    for (volume, pattern) in [("a", 1), ("b", 2)] {
        node.qemu_io(volume, &[&format!("read -P {pattern} 0 8M")]);
    }
}

#[track_caller]
fn fails(node: &Node, code: i32) -> String {
    let run: Run = node.command(&node.data()).output().unwrap().into();
    run.fails(code)
}

fn journals(node: &Node) -> Vec<Value> {
    node.varve(&["status", "--json"]).json()["journals"].as_array().unwrap().clone()
}

#[test]
fn a_kill_finds_what_each_journal_has() {
    let (mut node, one, two) = two_journals();
    let told = journals(&node);
    assert_eq!((told.len(), &told[0]["path"], &told[1]["path"]), (2, &Value::from(at(&one)), &Value::from(at(&two))));
    assert!(told.iter().all(|journal| journal["fill"]["used_bytes"].as_u64().unwrap() > 8 << 20), "{told:?}");
    let metrics = node.metrics();
    for path in [&one, &two] {
        let line = format!("varve_journal_device_used_bytes{{journal=\"{}\"}}", at(path));
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
    assert!(!node.data().join("journal/0").exists(), "the one of the data directory is not made");
    assert_eq!(std::fs::read_to_string(node.data().join("format")).unwrap(), "varve 2\n");
    kill(&mut node);
    node.up();
    prove(&node);
    // A check beside no node takes the journals as they are.
    node.kill();
    let data = node.data();
    Run::from(real::varve().args(["check", "--data", &at(&data)]).output().unwrap()).ok();
    assert!(!node.data().join("journal/0").exists());
    // Elsewhere, and in another order.
    let moved = node.path("moved");
    std::fs::rename(&two, &moved).unwrap();
    configure(&node, &[at(&moved), at(&one)]);
    node.up();
    prove(&node);
    node.stop();
    node.up();
    prove(&node);
}

#[test]
fn a_journal_that_is_left_out_is_emptied_and_then_not_needed() {
    let (mut node, one, two) = two_journals();
    kill(&mut node);
    configure(&node, &[at(&one)]);
    node.up();
    prove(&node);
    node.kill();
    assert!(node.log().contains("nothing needs this journal any more"), "{}", node.log());
    std::fs::remove_file(&two).unwrap();
    node.up();
    prove(&node);
    assert_eq!(journals(&node).len(), 1);
    // Back to the one of the data directory.
    node.kill();
    configure(&node, &[]);
    node.up();
    prove(&node);
    node.kill();
    std::fs::remove_file(&one).unwrap();
    node.up();
    prove(&node);
    assert!(node.data().join("journal/0").exists());
}

#[test]
fn from_the_data_directory_to_a_device() {
    let mut node = Node::start(&["--volume", "a:64M", "--volume", "b:64M"]);
    write(&node);
    kill(&mut node);
    let ssd = node.path("ssd.journal");
    configure(&node, &[format!("{}:64M", at(&ssd))]);
    node.up();
    prove(&node);
    node.kill();
    std::fs::remove_file(node.data().join("journal/0")).unwrap();
    node.up();
    prove(&node);
}

#[test]
fn what_is_missing_or_foreign_is_refused_and_left_alone() {
    let (mut node, one, two) = two_journals();
    kill(&mut node);
    let away = node.path("away");
    std::fs::rename(&two, &away).unwrap();
    let error = fails(&node, 3);
    assert!(error.contains("two.journal") && error.contains("is missing") && error.contains("Put it back"), "{error}");
    // Nor is it forgotten when it is left out.
    configure(&node, &[at(&one)]);
    let error = fails(&node, 3);
    assert!(error.contains("two.journal") && error.contains("is missing"), "{error}");
    // Something else in its place; something else in a new place; another node's; a copy.
    let (precious, strange) = (node.path("precious"), node.path("strange"));
    std::fs::write(&precious, b"the only copy").unwrap();
    let mut other = Node::start(&[]);
    other.stop();
    std::fs::copy(other.data().join("journal/0"), &strange).unwrap();
    let copy = node.path("copy");
    std::fs::copy(&one, &copy).unwrap();
    for (place, part) in [(&precious, "no journal"), (&strange, "not one of this node"), (&copy, "a copy")] {
        let before = std::fs::read(place).unwrap();
        configure(&node, &[at(&one), at(&away), format!("{}:64M", at(place))]);
        let error = fails(&node, 4);
        assert!(error.contains(part) && error.contains(&at(place)), "{error}");
        assert!(std::fs::read(place).unwrap() == before, "{} is as it was", at(place));
    }
    configure(&node, &[at(&one), at(&away), at(&node.path("new"))]);
    let error = fails(&node, 2);
    assert!(error.contains("say how large"), "{error}");
    configure(&node, &[at(&one), at(&away)]);
    node.up();
    prove(&node);
}

#[test]
fn a_journal_that_was_being_made_is_made_anew() {
    let (mut node, one, two) = two_journals();
    kill(&mut node);
    let three = node.path("three.journal");
    let list = node.data().join("journals");
    let text = std::fs::read_to_string(&list).unwrap();
    std::fs::write(&list, format!("{text}making {}\n", at(&three))).unwrap();
    // What a crash may have left there.
    std::fs::copy(&one, &three).unwrap();
    let left_over = node.path("three.journal.making");
    std::fs::write(&left_over, b"half").unwrap();
    configure(&node, &[at(&one), at(&two), format!("{}:64M", at(&three))]);
    node.up();
    prove(&node);
    assert_eq!((journals(&node).len(), left_over.exists()), (3, false));
    let text = std::fs::read_to_string(&list).unwrap();
    assert_eq!((text.matches("used ").count(), text.matches("making").count()), (3, 0), "{text}");
}
