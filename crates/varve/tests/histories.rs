// SPDX-License-Identifier: Apache-2.0
//! Snapshots, clones and rollbacks through the command line, while a real client reads and writes.

#![allow(clippy::unwrap_used)]

mod real;

use real::{Node, run};

#[test]
fn snapshots_stay_what_they_were_while_the_volume_goes_on() {
    let mut node = Node::start(&["--volume", "disk:256M"]);
    node.qemu_io("disk", &["write -P 1 0 8M", "write -P 2 100M 1M"]);
    node.varve(&["snapshot", "create", "disk", "one"]).ok();
    node.qemu_io("disk", &["write -P 3 0 4M", "discard 100M 1M"]);
    node.varve(&["snapshot", "create", "disk", "two"]).ok();
    node.qemu_io("disk", &["write -P 4 2M 4M"]);
    let check = |node: &Node| {
        node.qemu_io("disk@one", &["read -P 1 0 8M", "read -P 2 100M 1M"]);
        node.qemu_io("disk@two", &["read -P 3 0 4M", "read -P 1 4M 4M", "read -P 0 100M 1M"]);
        node.qemu_io("disk", &["read -P 3 0 2M", "read -P 4 2M 4M", "read -P 1 6M 2M"]);
    };
    check(&node);
    node.kill();
    node.up();
    check(&node);
    let list = run("nbdinfo", "libnbd-bin", &["--list", "--json", &node.uri("")]).json();
    let names: Vec<_> =
        list["exports"].as_array().unwrap().iter().map(|e| e["export-name"].as_str().unwrap()).collect();
    assert_eq!(names, ["disk", "disk@one", "disk@two"]);
    let info = run("nbdinfo", "libnbd-bin", &["--json", &node.uri("disk@one")]).json();
    assert_eq!(info["exports"][0]["is_read_only"], true);
    node.varve(&["snapshot", "delete", "disk", "one"]).ok();
    let gone = run("nbdinfo", "libnbd-bin", &[&node.uri("disk@one")]);
    assert!(gone.code != 0 && gone.err.contains("No such file or directory"), "{gone:?}");
    node.qemu_io("disk@two", &["read -P 3 0 4M"]);
}

#[test]
fn clones_go_their_own_way() {
    let mut node = Node::start(&["--volume", "golden:128M"]);
    node.qemu_io("golden", &["write -P 7 0 8M"]);
    node.varve(&["snapshot", "create", "golden", "base"]).ok();
    node.qemu_io("golden", &["write -P 8 0 1M"]);
    node.varve(&["clone", "golden@base", "a"]).ok();
    node.varve(&["clone", "golden", "b"]).ok();
    node.qemu_io("a", &["read -P 7 0 8M", "write -P 9 1M 1M"]);
    node.varve(&["clone", "a", "c"]).ok();
    let check = |node: &Node| {
        node.qemu_io("golden", &["read -P 8 0 1M", "read -P 7 1M 7M"]);
        node.qemu_io("a", &["read -P 7 0 1M", "read -P 9 1M 1M", "read -P 7 2M 6M"]);
        node.qemu_io("b", &["read -P 8 0 1M", "read -P 7 1M 7M"]);
        node.qemu_io("c", &["read -P 7 0 1M", "read -P 9 1M 1M", "read -P 7 2M 6M"]);
    };
    check(&node);
    let origin = |name: &str| node.varve(&["volume", "show", name, "--json"]).json()["origin"].clone();
    assert_eq!(origin("a"), serde_json::json!({ "volume": "golden", "snapshot": "base" }));
    assert_eq!(origin("b"), serde_json::json!({ "volume": "golden", "snapshot": null }));
    assert_eq!(origin("c"), serde_json::json!({ "volume": "a", "snapshot": null }));
    assert_eq!(origin("golden"), serde_json::Value::Null);
    node.kill();
    node.up();
    check(&node);
    // What others were born from can go; they stay whole.
    node.varve(&["volume", "delete", "golden"]).ok();
    node.qemu_io("a", &["read -P 7 0 1M", "read -P 9 1M 1M"]);
    node.varve(&["volume", "undelete", "golden"]).ok();
    check(&node);
    node.varve(&["volume", "template", "golden"]).ok();
    let info = run("nbdinfo", "libnbd-bin", &["--json", &node.uri("golden")]).json();
    assert_eq!(info["exports"][0]["is_read_only"], true);
}

#[test]
fn a_rollback_hides_what_came_later_and_can_be_undone() {
    let mut node = Node::start(&["--volume", "disk:64M"]);
    node.qemu_io("disk", &["write -P 1 0 1M"]);
    node.varve(&["snapshot", "create", "disk", "early"]).ok();
    node.qemu_io("disk", &["write -P 2 0 1M"]);
    node.varve(&["snapshot", "create", "disk", "late"]).ok();
    node.qemu_io("disk", &["write -P 3 0 1M"]);

    let done = node.varve(&["snapshot", "rollback", "disk", "early", "--yes", "--json"]).json();
    assert_eq!(done["hides"][0]["name"], "late", "{done}");
    assert!(done["undo_until_ms"].as_u64().is_some(), "{done}");
    node.qemu_io("disk", &["read -P 1 0 1M", "write -P 4 0 1M"]);
    let list = |node: &Node| {
        let list = node.varve(&["snapshot", "list", "disk", "--json"]).json();
        let row = |s: &serde_json::Value| (s["name"].as_str().unwrap().to_owned(), s["hidden"].as_bool().unwrap());
        list.as_array().unwrap().iter().map(row).collect::<Vec<_>>()
    };
    assert_eq!(list(&node), [("early".to_owned(), false), ("late".to_owned(), true)]);
    node.kill();
    node.up();
    node.qemu_io("disk", &["read -P 4 0 1M"]);
    node.qemu_io("disk@early", &["read -P 1 0 1M"]);
    node.varve(&["snapshot", "rollback", "disk", "--undo"]).ok();
    node.qemu_io("disk", &["read -P 3 0 1M"]);
    node.qemu_io("disk@late", &["read -P 2 0 1M"]);
    assert_eq!(list(&node), [("early".to_owned(), false), ("late".to_owned(), false)]);
    let nothing = node.varve(&["snapshot", "rollback", "disk", "none", "--yes"]).fails(3);
    assert!(nothing.contains("no snapshot none"), "{nothing}");
}

#[test]
fn a_volume_changes_while_it_runs() {
    let mut node = Node::start(&["--volume", "disk:64M"]);
    node.qemu_io("disk", &["write -P 5 0 1M"]);
    node.varve(&["volume", "resize", "disk", "128M"]).ok();
    node.qemu_io("disk", &["write -P 6 127M 1M", "read -P 0 64M 63M"]);
    let refused = node.varve(&["volume", "resize", "disk", "64M"]).fails(4);
    assert!(refused.contains("force"), "{refused}");
    node.varve(&["volume", "resize", "disk", "64M", "--force"]).ok();
    node.varve(&["volume", "rename", "disk", "root"]).ok();
    node.varve(&["volume", "set", "root", "ack=ram", "compression=zstd"]).ok();
    node.varve(&["pool", "set", "default", "seal-age=2m"]).ok();
    node.stop();
    node.up();
    // The configuration wants a volume `disk`, which is a new one.
    let root = node.varve(&["volume", "show", "root", "--json"]).json();
    assert_eq!(root["size_bytes"], 64 << 20);
    let setting = |key: &str| {
        let all = root["settings"].as_array().unwrap();
        let found = all.iter().find(|s| s["key"] == key).unwrap();
        (found["value"].as_str().unwrap().to_owned(), found["source"].as_str().unwrap().to_owned())
    };
    assert_eq!(setting("ack"), ("ram".to_owned(), "volume".to_owned()));
    assert_eq!(setting("compression"), ("zstd".to_owned(), "volume".to_owned()));
    assert_eq!(setting("seal-age"), ("2m".to_owned(), "pool".to_owned()));
    node.qemu_io("root", &["read -P 5 0 1M"]);
    node.qemu_io("disk", &["read -P 0 0 64M"]);
}
