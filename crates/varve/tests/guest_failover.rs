// SPDX-License-Identifier: Apache-2.0
//! A guest whose disk outlives its servers: Linux in QEMU keeps ext4 on a volume that an edge shows, while the volume's owner is killed and stopped, again and again.
//!
//! `VARVE_FAILOVERS` says how often (2 where nobody says it; 20 before a release). Between two the cluster becomes whole: the node is back, and a mirror in sync.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod ext4;
mod fleet;
mod real;
mod rig;

use ext4::SOON;
use real::DEADLINE;
use rig::Rig;
use varve_lab::guest::Guest;
use varve_lab::process::{Signal, wait_until};

/// Files that are written between two fail-overs.
const FILES: usize = 12;

/// The volume's owner dies, or stalls until another node has the volume.
fn lose_owner(rig: &mut Rig, round: u32) {
    let owner = rig.owner();
    if round.is_multiple_of(2) {
        rig.nodes[owner].node.kill();
        wait_until(DEADLINE, "another owner", || Ok(rig.volume().is_some())).unwrap();
        rig.nodes[owner].node.up();
    } else {
        rig.nodes[owner].node.process().signal(Signal::STOP).unwrap();
        let others: Vec<_> = (0..rig.nodes.len()).filter(|other| *other != owner).collect();
        let moved = |other: &usize| rig.nodes[*other].json(&["volume", "show", "disk"])["state"] == "ready";
        wait_until(DEADLINE, "another owner", || Ok(others.iter().any(moved))).unwrap();
        rig.nodes[owner].node.process().signal(Signal::CONT).unwrap();
    }
    let has_let_go = || Ok(rig.nodes[owner].json(&["volume", "show", "disk"])["state"] == "elsewhere");
    wait_until(DEADLINE, "the old owner to let go", has_let_go).unwrap();
}

#[test]
fn a_guest_on_ext4_works_on_while_owners_of_its_disk_are_lost() {
    let rounds = std::env::var("VARVE_FAILOVERS").map_or(2, |text| text.parse().expect("VARVE_FAILOVERS is a number"));
    let mut rig = Rig::start(2);
    let config = ext4::config(rig.dir.path(), &rig.socket(), "disk");
    let mut guest = Guest::boot(config).unwrap();
    ext4::begin(&mut guest);
    let mut count = 0;
    for round in 0..rounds {
        count = guest.reports().wait_for_count(count + FILES, SOON).unwrap().len();
        lose_owner(&mut rig, round);
        count = guest.reports().wait_for_count(count + FILES, SOON).unwrap().len();
        rig.until_in_sync();
        println!(
            "{}/{rounds}: {count} files, longest without an owner: {} ms",
            round + 1,
            rig.stats()["longest_stall_ms"]
        );
    }
    ext4::end(guest);
    assert_eq!(rig.stats()["operations"]["write"]["errors"], 0);
}
