// SPDX-License-Identifier: Apache-2.0
//! Every command that asks a node: what it prints for people, what as JSON.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Node, run};
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

const MIB: u64 = 1 << 20;

#[test]
fn volumes_for_people() {
    let node = Node::start();
    assert_eq!(
        node.run(&["volume", "list"]).ok(),
        "there are no volumes; `varve volume create NAME --size SIZE` makes one\n"
    );
    let made =
        node.run(&["volume", "create", "disk1", "--size", "10G", "--segment-size", "8M", "--compression", "zstd"]);
    assert_eq!(made.ok(), "made disk1: 10 GiB\nattach it at nbd+unix:///disk1?socket=/data/nbd.sock\n");
    node.fake.add("busy", 1 << 20, &[1; 8192]);
    node.run(&["volume", "template", "disk1"]).ok();
    assert_eq!(
        node.run(&["volume", "list"]).ok(),
        "NAME     SIZE   USED  POOL     SNAPSHOTS  CLIENTS  STATE\n\
         busy    1 MiB  8 KiB  default          0        1  ready\n\
         disk1  10 GiB    0 B  default          0        0  ready, template\n"
    );
    let shown = node.run(&["volume", "show", "disk1"]).ok();
    for line in [
        "size                  10 GiB (10737418240 bytes)\n",
        "created               2026-01-02 03:04:05 UTC\n",
        "template              yes\n",
        "attach at             nbd+unix:///disk1?socket=/data/nbd.sock\n",
        "SETTING          VALUE    FROM\n",
        "compression      zstd     volume\n",
        "segment-size     8 MiB    volume\n",
        "seal-age         1m       default\n",
    ] {
        assert!(shown.contains(line), "{line}{shown}");
    }
    assert!(
        node.run(&["volume", "show", "busy"]).ok().contains("unix:4242, since 2026-01-02 03:04:05 UTC, 2 connections")
    );
    assert_eq!(node.run(&["volume", "resize", "disk1", "20G"]).ok(), "disk1 has 20 GiB now\n");
    assert_eq!(node.run(&["volume", "rename", "disk1", "disk2"]).ok(), "disk1 is disk2 now\n");
    let set = node.run(&["volume", "set", "disk2", "ack=ram", "compression=default"]).ok();
    assert!(set.contains("ack              ram    volume\n") && set.contains("lz4    default\n"), "{set}");
    assert_eq!(
        node.run(&["volume", "delete", "disk2"]).ok(),
        "deleted disk2; `varve volume undelete disk2` brings it back until 2026-01-02 04:04:05 UTC\n"
    );
    assert!(node.run(&["volume", "list"]).ok().contains("deleted"));
    assert!(node.run(&["volume", "undelete", "disk2"]).ok().starts_with("brought back disk2: 20 GiB\n"));
}

#[test]
fn volumes_as_json() {
    let node = Node::start();
    let made = node.run(&["volume", "create", "v", "--size", "1M", "--pool", "default", "--json"]).json();
    assert_eq!((&made["name"], &made["size_bytes"], &made["state"]), (&json!("v"), &json!(MIB), &json!("ready")));
    assert_eq!(node.run(&["--json", "volume", "show", "v"]).json(), made);
    assert_eq!(node.run(&["volume", "list", "--json"]).json(), json!([made]));
    assert_eq!(node.run(&["volume", "resize", "v", "512", "--json"]).json()["size_bytes"], 512);
    assert_eq!(node.run(&["volume", "set", "v", "seal-age=5s", "--json"]).json()["settings"][3]["value"], "5s");
    assert_eq!(node.run(&["volume", "rename", "v", "w", "--json"]).json()["name"], "w");
    assert_eq!(node.run(&["volume", "template", "w", "--json"]).json()["template"], true);
    assert_eq!(node.run(&["volume", "delete", "w", "--json"]).json()["state"], "deleted");
    assert_eq!(node.run(&["volume", "undelete", "w", "--json"]).json()["state"], "ready");
}

#[test]
fn pools() {
    let node = Node::start();
    assert_eq!(node.run(&["pool", "create", "p", "--store", "file:///p"]).ok(), "made pool p on file:///p\n");
    assert_eq!(
        node.run(&["pool", "list"]).ok(),
        "NAME     VOLUMES  STORE\ndefault        0  file:///data/store\np              0  file:///p\n"
    );
    assert!(node.run(&["pool", "set", "p", "undelete-window=2d"]).ok().contains("undelete-window  2d       pool\n"));
    assert!(node.run(&["pool", "show", "p"]).ok().contains("volumes  none\n"));
    node.run(&["volume", "create", "v", "--size", "1M", "--pool", "p"]).ok();
    assert_eq!(node.run(&["pool", "show", "p", "--json"]).json()["volumes"], json!(["v"]));
    assert!(node.run(&["pool", "delete", "p"]).fails(4).contains("has volumes"));
    node.run(&["pool", "create", "q", "--store", "file:///q", "--json"]).json();
    assert_eq!(node.run(&["pool", "delete", "q"]).ok(), "forgot pool q; its store file:///q is as it was\n");
    assert_eq!(
        node.run(&["pool", "import", "--store", "s3://bucket/p"]).ok(),
        "imported pool imported from s3://bucket/p: 1 volume\n  found\nnote: volume x was left out\n"
    );
    assert_eq!(node.run(&["pool", "list", "--json"]).json().as_array().unwrap().len(), 3);
}

#[test]
fn snapshots_and_clones() {
    let node = Node::start();
    node.fake.add("v", MIB, b"one");
    assert_eq!(node.run(&["snapshot", "list", "v"]).ok(), "v has no snapshots\n");
    assert_eq!(node.run(&["snapshot", "create", "v", "a"]).ok(), "took snapshot v@a\n");
    assert_eq!(node.run(&["snapshot", "create", "v", "b", "--json"]).json()["name"], "b");
    node.run(&["snapshot", "create", "v", "c"]).ok();
    assert_eq!(node.run(&["snapshot", "delete", "v", "c"]).ok(), "deleted snapshot v@c\n");

    let refused = node.run(&["snapshot", "rollback", "v", "a"]).fails(2);
    assert!(refused.contains("and these snapshots:\n  NAME") && refused.contains("\n  b "), "{refused}");
    assert!(refused.contains("--yes") && refused.contains("Nothing was done"), "{refused}");
    assert_eq!(node.run(&["snapshot", "list", "v", "--json"]).json()[1]["hidden"], false);

    let done = node.run(&["snapshot", "rollback", "v", "a", "--yes"]).ok();
    assert!(done.starts_with("v shows a now\nhidden:\n") && done.contains("--undo` undoes it until"), "{done}");
    assert_eq!(
        node.run(&["snapshot", "list", "v"]).ok(),
        "NAME  TAKEN                     SIZE  STATE\n\
         a     2026-01-02 03:04:05 UTC  1 MiB  shown\n\
         b     2026-01-02 03:04:06 UTC  1 MiB  hidden\n"
    );
    assert_eq!(
        node.run(&["snapshot", "rollback", "v", "--undo"]).ok(),
        "v shows again what it showed before the rollback\n"
    );
    assert!(node.run(&["snapshot", "rollback", "v", "--undo"]).fails(4).contains("no rollback to undo"));
    assert_eq!(node.run(&["snapshot", "rollback", "v", "b", "--yes", "--json"]).json()["done"], true);

    assert!(node.run(&["clone", "v@a", "k"]).ok().starts_with("cloned k: 1 MiB\n"));
    assert_eq!(node.run(&["clone", "v", "head", "--json"]).json()["origin"], json!({"volume": "v", "snapshot": null}));
    assert!(node.run(&["volume", "show", "k"]).ok().contains("cloned from           v@a\n"));
    assert_eq!(node.run(&["flatten", "k"]).ok(), "k needs its origin no more\n");
    assert!(node.run(&["flatten", "k"]).fails(4).contains("no clone"));
    assert_eq!(node.run(&["flatten", "head", "--json"]).json()["origin"], json!(null));
}

/// On a terminal the person is asked; `script` makes one.
#[test]
fn a_rollback_asks_on_a_terminal() {
    let node = Node::start();
    node.fake.add("v", MIB, b"one");
    node.run(&["snapshot", "create", "v", "a"]).ok();
    node.run(&["snapshot", "create", "v", "b"]).ok();
    let rollback = |answer: &str| {
        let line = format!("'{}' snapshot rollback v a", env!("CARGO_BIN_EXE_varve"));
        let mut child = Command::new("script")
            .args(["-q", "-e", "-c", &line, "/dev/null"])
            .env("VARVE_API", node.url())
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program `script` is installed (Debian: bsdutils)");
        // Kept open until the end: its end would be taken for the terminal's.
        let mut keyboard = child.stdin.take().unwrap();
        let mut screen = BufReader::new(child.stdout.take().unwrap());
        let mut text = Vec::new();
        screen.read_until(b']', &mut text).unwrap();
        assert!(String::from_utf8_lossy(&text).contains("Roll back? [y/N]"));
        keyboard.write_all(answer.as_bytes()).unwrap();
        std::io::Read::read_to_end(&mut screen, &mut text).unwrap();
        (child.wait().unwrap().code(), String::from_utf8(text).unwrap())
    };
    let (code, text) = rollback("n\n");
    assert!(code == Some(1) && text.contains("nothing was done"), "{code:?} {text}");
    let (code, text) = rollback("y\n");
    assert!(code == Some(0) && text.contains("v shows a now"), "{code:?} {text}");
}

#[test]
fn checks() {
    let node = Node::start();
    node.fake.add("good", MIB, &[1; 8192]);
    let report = node.run(&["check", "good"]).ok();
    assert_eq!(
        report,
        "VOLUME  BLOCKS   DATA  OBJECTS  COUNTS  ERRORS\n\
         good         2  8 KiB        0       3       0\n\
         1 volume checked in 0.0 s: no errors\n"
    );
    node.fake.add("rotten", MIB, &[1; 4096]);
    let found = node.run(&["check"]);
    assert_eq!(found.code, 1, "{found:?}");
    assert!(found.out.contains("rotten: 0000/segment/1: block 3: checksum is wrong\n"), "{found:?}");
    assert!(found.out.contains("2 volumes checked in 0.0 s: ERRORS\n"), "{found:?}");
    assert_eq!(found.err, "varve: the check found 1 error\n");
    let found = node.run(&["check", "rotten", "--json"]);
    let document: serde_json::Value = serde_json::from_str(&found.out).unwrap();
    assert_eq!((found.code, &document["volumes"][0]["errors_total"]), (1, &json!(1)));
    assert!(node.run(&["check", "none"]).fails(3).contains("no volume none"));
}

#[test]
fn the_status_once_and_watched() {
    let node = Node::start();
    node.fake.add("v", MIB, &[1; 4096]);
    let status = node.run(&["status"]).ok();
    for line in [
        "node     node-1, Varve 0.1.0, up 1 h 2 min\n",
        "journal  1 MiB of 2 GiB (0 %), /data/journal/0\n",
        "cache    128 MiB of 256 MiB (50 %), 99 % hits\n",
        "default        1         1   0.0 s  file:///data/store  ok\n",
        "v       default  1 MiB  4 KiB    0 B        0  ready\n",
        "\nwarning: The store of pool default was slow.\n",
    ] {
        assert!(status.contains(line), "{line}{status}");
    }
    assert_eq!(node.run(&["status", "--json"]).json()["volumes"][0]["live_bytes"], 4096);

    let mut child = node.varve().args(["status", "--watch", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let watched = (0..2).map(|_| serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap());
    let watched: Vec<serde_json::Value> = watched.collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(watched[1]["node"], "node-1");

    let mut child = node.varve().args(["status", "--watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let rates = lines.map(Result::unwrap).find(|line| line.ends_with("READ  WRITTEN"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(rates.is_some());
}

#[test]
fn the_program_tells_of_itself() {
    let version = format!("varve {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(run(&["version"]).ok(), version);
    assert_eq!(run(&["--version"]).ok(), version);
    assert_eq!(run(&["version", "--json"]).json(), json!({"name": "varve", "version": env!("CARGO_PKG_VERSION")}));
    let help = run(&["help"]).ok();
    for command in
        ["up", "volume", "pool", "snapshot", "clone", "flatten", "import", "export", "status", "check", "version"]
    {
        assert!(help.contains(&format!("\n  {command} ")), "{command}: {help}");
    }
    assert!(!help.contains("reference"));
    assert!(run(&["help", "volume", "create"]).ok().contains("--segment-size <SIZE>"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(&["completions", shell]).ok().contains("undelete"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    run(&["man", dir.path().join("man").to_str().unwrap()]).ok();
    let page = std::fs::read_to_string(dir.path().join("man/varve-volume-create.1")).unwrap();
    assert!(page.contains("compression"));
}

/// `xtask tidy` says the same, with more words.
#[test]
fn the_references_in_the_tree_are_current() {
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    for what in ["cli", "config", "metrics"] {
        let written = std::fs::read_to_string(docs.join(format!("{what}.md"))).unwrap();
        assert_eq!(run(&["reference", what]).ok(), written, "varve reference {what} > docs/{what}.md");
    }
}

#[test]
fn clusters_for_people() {
    let node = Node::start();
    assert_eq!(node.run(&["node", "list"]).ok(), "this node is a cluster by itself\n");
    node.fake.add_nodes();
    node.fake.add("ours", MIB, &[]);
    node.fake.add("theirs", MIB, &[]);
    assert_eq!(
        node.run(&["node", "list"]).ok(),
        "NODE           STATE                                VOLUMES  EDGES AT       RACK  SITE  VERSION\n\
         node-1 (this)  alive since 2026-01-02 03:04:05 UTC        1  10.0.0.1:7421  r1    -     0.1.0\n\
         node-2         dead                                       2  10.0.0.2:7421  -     -     -\n"
    );
    let list = node.run(&["volume", "list"]).ok();
    assert!(list.contains("STATE  NODE\n") && list.contains("ready  node-2 (dead)\n"), "{list}");
    assert!(node.run(&["volume", "show", "theirs"]).ok().contains("node                  node-2 (dead)\n"));
    let status = node.run(&["cluster", "status"]).ok();
    for part in ["etcd at http://127.0.0.1:2379, under /varve/", "2 with a live owner, 1 WITH A DEAD OWNER", "node-2"] {
        assert!(status.contains(part), "{part}: {status}");
    }
    assert_eq!(node.run(&["--json", "cluster", "status"]).json()["nodes"][1]["alive"], false);
    let shown = node.run(&["node", "show", "node-2"]).ok();
    assert!(shown.contains("state     dead\n") && shown.contains("edges at  10.0.0.2:7421\n"), "{shown}");
    // What may be lost is told before anything is done.
    let told = node.run(&["volume", "take", "theirs"]).fails(2);
    assert!(told.contains("what node-2 acknowledged may be lost") && told.contains("--yes"), "{told}");
    assert!(node.run(&["volume", "take", "theirs", "--yes"]).ok().starts_with("this node runs theirs: 1 MiB\n"));
    node.run(&["volume", "take", "ours"]).ok();
    node.run(&["volume", "take", "none", "--yes"]).fails(3);
    node.run(&["node", "remove", "node-1"]).fails(4);
    assert!(node.run(&["node", "remove", "02020202-0202-0202-0202-020202020202"]).ok().contains("removed node node-2"));
    node.run(&["node", "show", "node-2"]).fails(3);
    // A cluster is made in etcd, without a node.
    assert!(run(&["cluster", "init"]).fails(2).contains("--etcd"));
    assert!(run(&["cluster", "init", "--etcd", "ftp://a"]).fails(2).contains("ftp://a"));
}
