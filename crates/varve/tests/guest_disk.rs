// SPDX-License-Identifier: Apache-2.0
//! A volume as the disk of a real kernel: a Linux guest in QEMU keeps ext4 on it, over `nbd:`.
//!
//! Once everything dies, guest and server, and what was synced is there; once only the server dies, again and again,
//! under a guest that goes on and sees no more than a pause, since QEMU connects again and repeats what was in flight.

#![allow(clippy::unwrap_used)]

mod ext4;
mod real;

use ext4::SOON;
use real::Node;
use varve_lab::guest::{Guest, GuestConfig};

/// Writes a tree of 60 files below `/mnt/tree` and their checksums to `/mnt/sums`.
const WRITE_TREE: &str = "cd /mnt && for d in 1 2 3; do mkdir -p tree/$d; for f in $(seq 20); do
    head -c $((f * 5000)) /dev/urandom >tree/$d/$f || exit 1; done; done
    find tree -type f | xargs sha256sum >sums && wc -l <sums && sync && sha256sum sums >/dev/report";

/// A guest whose `/dev/vda` is the volume `v` of the node.
fn config(node: &Node) -> GuestConfig {
    ext4::config(node.dir.path(), &node.data().join("nbd.sock"), "v")
}

fn node() -> Node {
    let node = Node::start(&["--volume", "v:256M"]);
    node.varve(&["volume", "set", "v", "segment-size=4M", "seal-age=2s"]).ok();
    node
}

#[test]
fn a_synced_tree_outlives_guest_and_server() {
    let mut node = node();
    let config = config(&node);
    let mut guest = Guest::boot(config.clone()).unwrap();
    guest.check("mkfs.ext4 -q /dev/vda && mount -t ext4 /dev/vda /mnt", SOON).unwrap();
    assert_eq!(guest.check(WRITE_TREE, SOON).unwrap(), "60");
    // What comes after the sync may be lost, and may not harm.
    guest
        .check("(while :; do head -c 100000 /dev/urandom >/mnt/more$((i = i + 1)); done) >/dev/null 2>&1 &", SOON)
        .unwrap();
    guest.check("until [ -e /mnt/more5 ]; do usleep 1000; done", SOON).unwrap();
    guest.kill().unwrap();
    node.kill();
    let sums = guest.reports().lines()[0].clone();

    node.up();
    let mut guest = Guest::boot(config).unwrap();
    // The first run plays ext4's journal back, as a mount would.
    guest
        .check("e2fsck -f -p /dev/vda; test $? -le 1 && e2fsck -f -n /dev/vda && mount -t ext4 /dev/vda /mnt", SOON)
        .unwrap();
    assert_eq!(guest.check("cd /mnt && sha256sum sums", SOON).unwrap(), sums);
    let failed = guest.run("cd /mnt && sha256sum -c sums | grep -v ': OK$'", SOON).unwrap();
    assert_eq!((failed.status, failed.text().as_str()), (1, ""), "every file has its checksum");
    guest.shutdown(SOON).unwrap();
}

#[test]
fn a_guest_goes_on_while_its_server_is_killed() {
    let mut node = node();
    let mut guest = Guest::boot(config(&node)).unwrap();
    ext4::begin(&mut guest);
    let mut count = 0;
    for _ in 0..4 {
        count = guest.reports().wait_for_count(count + 12, SOON).unwrap().len();
        node.kill();
        node.up();
    }
    guest.reports().wait_for_count(count + 12, SOON).unwrap();
    ext4::end(guest);
}
