// SPDX-License-Identifier: Apache-2.0
//! Mirrors that keep copies on disk, of nodes that speak TLS with each other: real nodes on a real etcd, a real `varve-edge`, and a load that proves what it reads.

#![allow(clippy::unwrap_used)]

mod fleet;
mod real;
mod rig;

use real::DEADLINE;
use rig::Rig;
use std::path::PathBuf;
use varve_lab::certificates::Certificates;
use varve_lab::process::{Process, free_port, wait_until};

/// What nodes need for TLS with each other.
fn tls(authority: PathBuf, [certificate, key]: [PathBuf; 2]) -> String {
    let keys = [("cert", certificate), ("key", key), ("ca", authority)];
    keys.map(|(name, path)| format!("node-tls-{name} = '{}'", path.display())).join("\n")
}

fn until_written(rig: &Rig, more: u64) {
    let written = || rig.stats()["operations"]["write"]["requests"].as_u64().unwrap_or(0);
    let before = written();
    wait_until(DEADLINE, "the load to write", || Ok(written() > before + more)).unwrap();
}

fn until_done(mut load: Process) {
    let status = load.wait(DEADLINE * 2).unwrap();
    assert_eq!(status.code(), Some(0), "{}", load.log_tail());
}

#[test]
fn a_mirror_takes_over_with_what_its_dead_process_has_left_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let files = Certificates::make(dir.path()).unwrap();
    let settings = ["mirror=sync", "mirror-medium=disk", "seal-age=1h"];
    let mut rig = Rig::with(2, &settings, &tls(files.ca(), files.server()));
    let owner = rig.owner();
    assert_eq!(rig.volume().unwrap()["mirror"]["medium"], "disk");
    let shown = rig.nodes[owner].run(&["volume", "show", "disk"]).ok();
    assert!(shown.contains("in sync, on disk of node"), "{shown}");
    let load = rig.load(12);
    until_written(&rig, 2000);
    // Nobody lives who could record that there is no mirror any more.
    rig.nodes[owner].node.kill();
    rig.nodes[1 - owner].node.kill();
    rig.nodes[1 - owner].node.up();
    until_written(&rig, 2000);
    assert_eq!(rig.owner(), 1 - owner);
    until_done(load);
    // The other one comes back, and is the mirror now.
    rig.nodes[owner].node.up();
    rig.until_in_sync();
    let told = rig.nodes[owner].node.metrics();
    assert!(told.contains("\nvarve_mirror_copies_on_disk 1\n"), "{told}");
}

#[test]
fn the_owner_of_a_full_mirror_is_slowed_and_keeps_it() {
    // A quarter of a journal of 64 MiB: what is written here is many times more.
    let rig = Rig::with(2, &["mirror=sync", "mirror-medium=disk"], "");
    let load = rig.load(10);
    until_written(&rig, 1000);
    until_done(load);
    let owner = &rig.nodes[rig.owner()].node;
    let told = owner.metrics();
    let lost = "varve_volume_mirror_lost_total{volume=\"disk\",pool=\"default\"} ";
    let lost = told.lines().find_map(|line| line.strip_prefix(lost)).unwrap();
    assert_eq!(lost, "0", "{}", owner.log());
    rig.until_in_sync();
}

#[test]
fn a_node_that_nobody_vouches_for_is_no_mirror_and_the_log_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let files = Certificates::make(dir.path()).unwrap();
    let rig = Rig::with(2, &["mirror=sync"], &tls(files.ca(), files.server()));
    let strangers = [
        ("bare", String::new(), "does it want TLS"),
        ("stranger", tls(files.other_ca(), files.stranger()), "node-tls-ca names who does"),
    ];
    for (name, config, why) in strangers {
        let listen = format!("127.0.0.1:{}", free_port().unwrap());
        let mut stranger = rig.fleet.node(name, &["--mirror-listen", &listen]);
        stranger.configure(&config);
        stranger.node.up();
        // It would like to have a mirror, and asks both; one of them, or it, says what is wrong.
        stranger.run(&["volume", "create", name, "--size", "64M"]).ok();
        stranger.run(&["volume", "set", name, "mirror=sync"]).ok();
        let logs = || rig.nodes.iter().map(|node| node.node.log()).chain([stranger.node.log()]).collect::<String>();
        wait_until(DEADLINE, "somebody to say why", || Ok(logs().contains(why))).unwrap();
        let volume = stranger.json(&["volume", "show", name]);
        assert_ne!(volume["mirror"]["state"], "in-sync", "{volume}");
    }
    // The two that know each other go on.
    rig.until_in_sync();
}
