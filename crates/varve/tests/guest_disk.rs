// SPDX-License-Identifier: Apache-2.0
//! A volume as the disk of a real kernel: a Linux guest in QEMU keeps ext4 on it, over `nbd:`.
//!
//! Once everything dies, guest and server, and what was synced is there; once only the server dies, again and again,
//! under a guest that goes on and sees no more than a pause, since QEMU connects again and repeats what was in flight.

#![allow(clippy::unwrap_used)]

mod real;

use real::Node;
use std::time::Duration;
use varve_lab::guest::{Disk, Guest, GuestConfig, Initramfs, Kernel};

/// Far more than anything here takes on a quiet machine.
const SOON: Duration = Duration::from_secs(120);

/// Writes a tree of 60 files below `/mnt/tree` and their checksums to `/mnt/sums`.
const WRITE_TREE: &str = "cd /mnt && for d in 1 2 3; do mkdir -p tree/$d; for f in $(seq 20); do
    head -c $((f * 5000)) /dev/urandom >tree/$d/$f || exit 1; done; done
    find tree -type f | xargs sha256sum >sums && wc -l <sums && sync && sha256sum sums >/dev/report";

/// Writes one file after the other and reports its number and checksum; syncs every fourth. Ends at an error.
const LOAD: &str = "(i=0; while i=$((i + 1)); do
    head -c $((i % 7 * 9000 + 5000)) /dev/urandom >/mnt/$i || { echo failed >/dev/report; exit; }
    if [ $((i % 4)) = 0 ]; then sync /mnt/$i || { echo failed >/dev/report; exit; }; fi
    echo $i $(sha256sum </mnt/$i | cut -c -64) >/dev/report; [ -e /tmp/stop ] && break; done; touch /tmp/stopped) >/dev/null 2>&1 &";

/// A guest whose `/dev/vda` is the volume `v` of the node.
fn config(node: &Node) -> GuestConfig {
    let kernel = Kernel::find().unwrap();
    let initramfs =
        Initramfs::builder().program("mkfs.ext4").program("e2fsck").build(&kernel, node.dir.path()).unwrap();
    let mut config = GuestConfig::new(kernel, initramfs, node.dir.path());
    config.disks.push(Disk::nbd(node.data().join("nbd.sock"), "v"));
    config
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
    guest.check("mkfs.ext4 -q /dev/vda && mount -t ext4 -o commit=1 /dev/vda /mnt", SOON).unwrap();
    guest.check(LOAD, SOON).unwrap();
    let mut count = 0;
    for _ in 0..4 {
        count = guest.reports().wait_for_count(count + 12, SOON).unwrap().len();
        node.kill();
        node.up();
    }
    guest.reports().wait_for_count(count + 12, SOON).unwrap();
    guest.check("touch /tmp/stop; until [ -e /tmp/stopped ]; do usleep 10000; done; sync", SOON).unwrap();
    let errors = guest.run("dmesg | grep -iE 'error|hung|remount'", SOON).unwrap();
    assert_eq!(errors.status, 1, "the kernel saw no error: {}", errors.text());
    let lines = guest.reports().lines();
    assert!(!lines.iter().any(|line| line == "failed"), "the load saw an error");

    // From the disk, not from the guest's memory; unsynced files count as well, since no write that was answered is lost.
    guest.check("umount /mnt && e2fsck -f -n /dev/vda && mount -t ext4 /dev/vda /mnt", SOON).unwrap();
    let sums: String =
        lines.iter().filter_map(|line| line.split_once(' ')).map(|(i, sum)| format!("{sum}  {i}\n")).collect();
    let script = format!("cd /mnt && echo '{}' | sha256sum -c | grep -v ': OK$'", sums.trim());
    let failed = guest.run(&script, SOON).unwrap();
    assert_eq!((failed.status, failed.text().as_str()), (1, ""), "a file has not its checksum");
    guest.shutdown(SOON).unwrap();
}
