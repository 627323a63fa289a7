// SPDX-License-Identifier: Apache-2.0
//! The laboratory's own proof for guests: that a guest comes up and answers, that a kill is a power cut which takes what
//! was not flushed and leaves what was, and that a guest whose NBD server dies under it goes on when the server is back.
//! A test of Varve that passes in such a guest says something only because these do.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use varve_lab::guest::{Disk, Guest, GuestConfig, Initramfs, Kernel, RawCache};
use varve_lab::process::{Process, find_program, wait_until};

/// Far more than anything here takes on a quiet machine.
const SOON: Duration = Duration::from_secs(120);

const DISK_BYTES: u64 = 256 << 20;

/// A guest with the tools for ext4, not yet booted.
fn guest_config(directory: &Path) -> GuestConfig {
    let kernel = Kernel::find().unwrap();
    let initramfs = Initramfs::builder().program("mkfs.ext4").program("e2fsck").build(&kernel, directory).unwrap();
    GuestConfig::new(kernel, initramfs, directory)
}

/// Writes a tree of 60 files below `/mnt/tree` and their checksums to `/mnt/sums`.
const WRITE_TREE: &str = "cd /mnt && for d in 1 2 3; do mkdir -p tree/$d; for f in $(seq 20); do
    head -c $((f * 5000)) /dev/urandom >tree/$d/$f || exit 1; done; done
    find tree -type f | xargs sha256sum >sums && wc -l <sums";

/// Writes one file after the other to `/mnt`, flushes each, then reports its number and checksum; ends at an error.
const LOAD: &str = "(i=0; while i=$((i + 1)); do
    head -c 20000 /dev/urandom >/mnt/$i && sync /mnt/$i || { echo failed >/dev/report; exit; }
    echo $i $(sha256sum </mnt/$i | cut -c -64) >/dev/report; done) >/dev/null 2>&1 &";

/// Every file that the load reported has its checksum.
fn check_load(guest: &mut Guest, reports: &[String]) {
    assert!(!reports.iter().any(|line| line == "failed"), "the load saw an error");
    let sums = reports.iter().filter_map(|line| line.split_once(' ').map(|(i, sum)| format!("{sum}  {i}\n")));
    let sums: String = sums.collect();
    let failed =
        guest.run(&format!("cd /mnt && echo '{}' | sha256sum -c | grep -v ': OK$'", sums.trim()), SOON).unwrap();
    assert_eq!((failed.status, failed.text().as_str()), (1, ""), "a file has not its checksum");
}

#[test]
fn a_synced_tree_outlives_a_power_cut() {
    let directory = TempDir::new().unwrap();
    let mut config = guest_config(directory.path());
    config.disks.push(Disk::create_raw(directory.path().join("disk.raw"), DISK_BYTES, RawCache::Direct).unwrap());

    let start = Instant::now();
    let mut guest = Guest::boot(config.clone()).unwrap();
    println!("the guest was up after {:?}", start.elapsed());
    guest.check("mkfs.ext4 -q /dev/vda && mount -t ext4 /dev/vda /mnt", SOON).unwrap();
    assert_eq!(guest.check(WRITE_TREE, SOON).unwrap(), "60");
    guest.check("sync", SOON).unwrap();
    guest.kill().unwrap();
    assert!(guest.run("true", SOON).is_err(), "a guest without power does not answer");

    let mut guest = Guest::boot(config).unwrap();
    guest.check("e2fsck -f -y /dev/vda; test $? -le 1", SOON).unwrap();
    guest.check("e2fsck -f -n /dev/vda && mount -t ext4 /dev/vda /mnt", SOON).unwrap();
    let failed = guest.run("cd /mnt && sha256sum -c sums | grep -v ': OK$'", SOON).unwrap();
    assert_eq!((failed.status, failed.text().as_str()), (1, ""), "every file has its checksum");
    guest.shutdown(SOON).unwrap();
}

#[test]
fn a_power_cut_takes_what_was_not_flushed() {
    let directory = TempDir::new().unwrap();
    let mut config = guest_config(directory.path());
    config.disks.push(Disk::create_raw(directory.path().join("disk.raw"), DISK_BYTES, RawCache::Writeback).unwrap());

    let mut guest = Guest::boot(config.clone()).unwrap();
    guest.keep_writes_in_memory().unwrap();
    // Both files are there with zeros before, so that only the contents, not the names, are at stake.
    let script = "mkfs.ext4 -q /dev/vda && mount -t ext4 -o commit=600 /dev/vda /mnt && cd /mnt
        for f in flushed forgotten; do head -c 1000000 /dev/zero >$f; done; sync
        for f in flushed forgotten; do head -c 1000000 /dev/urandom >/tmp/$f; dd if=/tmp/$f of=$f conv=notrunc; done
        sync flushed || exit 1
        echo new >unnamed; echo kept >/dev/report
        for f in flushed forgotten; do cmp /tmp/$f $f || exit 1; done
        sha256sum flushed forgotten | cut -c -64";
    let before = guest.check(script, SOON).unwrap();
    guest.reports().wait_for_line("kept", SOON).unwrap();
    guest.kill().unwrap();
    let before: Vec<&str> = before.lines().rev().take(2).collect();
    let [forgotten, flushed] = before[..] else { panic!("two checksums, not {before:?}") };

    let mut guest = Guest::boot(config).unwrap();
    guest.check("mount -t ext4 /dev/vda /mnt", SOON).unwrap();
    let after = guest.check("cd /mnt && sha256sum flushed forgotten | cut -c -64", SOON).unwrap();
    let after: Vec<&str> = after.lines().collect();
    assert_eq!(after[0], flushed, "what was flushed is there");
    assert_ne!(after[1], forgotten, "what was not flushed went with the page cache");
    let zeros = guest.check("head -c 1000000 /dev/zero | sha256sum | cut -c -64", SOON).unwrap();
    assert_eq!(after[1], zeros, "and the block holds what it held before");
    assert_ne!(guest.run("test -e /mnt/unnamed", SOON).unwrap().status, 0, "an unsynced name is gone too");
}

/// Writes `/mnt/file` with its `fsync`, on ext4 mounted with the option, cuts the power, and tells whether it is there.
fn is_there_after_power_cut(cache: RawCache, option: &str) -> bool {
    let directory = TempDir::new().unwrap();
    let mut config = guest_config(directory.path());
    config.disks.push(Disk::create_raw(directory.path().join("disk.raw"), DISK_BYTES, cache).unwrap());
    let mut guest = Guest::boot(config.clone()).unwrap();
    guest.keep_writes_in_memory().unwrap();
    let script = format!(
        "mkfs.ext4 -q /dev/vda && sync /dev/vda && mount -t ext4 -o commit=600,{option} /dev/vda /mnt
        echo promised >/mnt/file && sync /mnt/file && sync /mnt"
    );
    guest.check(&script, SOON).unwrap();
    guest.kill().unwrap();
    let mut guest = Guest::boot(config).unwrap();
    guest.check("mount -t ext4 /dev/vda /mnt", SOON).unwrap();
    guest.run("test -e /mnt/file && grep promised /mnt/file", SOON).unwrap().status == 0
}

#[test]
fn a_volatile_disk_keeps_what_was_flushed_to_it() {
    let directory = TempDir::new().unwrap();
    let mut config = guest_config(directory.path());
    config.disks.push(Disk::create_raw(directory.path().join("disk.raw"), DISK_BYTES, RawCache::Volatile).unwrap());
    let mut guest = Guest::boot(config.clone()).unwrap();
    guest.check("mkfs.ext4 -q /dev/vda && mount -t ext4 /dev/vda /mnt && sync", SOON).unwrap();
    guest.check(LOAD, SOON).unwrap();
    guest.reports().wait_for_count(40, SOON).unwrap();
    guest.kill().unwrap();
    let reports = guest.reports().lines();

    let mut guest = Guest::boot(config).unwrap();
    guest.check("mount -t ext4 /dev/vda /mnt", SOON).unwrap();
    check_load(&mut guest, &reports);
    guest.check("umount /mnt && e2fsck -f -n /dev/vda", SOON).unwrap();
}

#[test]
fn a_volatile_disk_loses_what_was_written_to_it_and_not_flushed() {
    // Without barriers ext4 writes on fsync and does not flush the disk: forgiven by a raw file, not by such a disk.
    assert!(is_there_after_power_cut(RawCache::Writeback, "barrier=0"));
    assert!(!is_there_after_power_cut(RawCache::Volatile, "barrier=0"));
}

/// Starts a server of `disk.raw` over NBD.
fn start_nbd_server(directory: &Path) -> Process {
    let (socket, ready) = (directory.join("nbd.sock"), directory.join("nbd.pid"));
    for left_behind in [&socket, &ready] {
        let _ = std::fs::remove_file(left_behind);
    }
    let mut command = Command::new(find_program("nbdkit", "nbdkit").unwrap());
    command.arg("--foreground").arg("--unix").arg(&socket).arg("--pidfile").arg(&ready);
    command.arg("file").arg(directory.join("disk.raw"));
    let mut server = Process::start("nbdkit", command, directory).unwrap();
    wait_until(SOON, "nbdkit to be ready", || {
        server.check_running()?;
        Ok(ready.exists())
    })
    .unwrap();
    server
}

#[test]
fn a_guest_outlives_its_nbd_server() {
    let directory = TempDir::new().unwrap();
    let mut config = guest_config(directory.path());
    Disk::create_raw(directory.path().join("disk.raw"), DISK_BYTES, RawCache::Writeback).unwrap();
    config.disks.push(Disk::nbd(directory.path().join("nbd.sock"), "vol"));

    let mut server = start_nbd_server(directory.path());
    let mut guest = Guest::boot(config).unwrap();
    guest.check("mkfs.ext4 -q /dev/vda && mount -t ext4 /dev/vda /mnt", SOON).unwrap();
    guest.check(LOAD, SOON).unwrap();
    let mut count = 0;
    for _ in 0..2 {
        count = guest.reports().wait_for_count(count + 10, SOON).unwrap().len();
        server.kill().unwrap();
        // Whatever was on its way has arrived when a command has been answered; then the load waits for its disk.
        guest.check("true", SOON).unwrap();
        let waiting = guest.reports().lines().len();
        let late = guest.reports().wait_for_count(waiting + 2, Duration::from_secs(2));
        assert!(late.is_err(), "without a server nothing is flushed: {late:?}");
        server = start_nbd_server(directory.path());
    }
    let lines = guest.reports().wait_for_count(count + 10, SOON).unwrap();
    let errors = guest.run("dmesg | grep -iE 'error|hung|remount'", SOON).unwrap();
    assert_eq!(errors.status, 1, "the kernel saw no error: {}", errors.text());
    guest.check("echo 3 >/proc/sys/vm/drop_caches", SOON).unwrap();
    check_load(&mut guest, &lines);
    guest.kill().unwrap();
}

#[test]
fn a_server_in_the_guest_is_reached_from_the_host() {
    let directory = TempDir::new().unwrap();
    let kernel = Kernel::find().unwrap();
    // This very program stands for a server: large, with debug information, linked to libraries.
    let program = std::env::current_exe().unwrap();
    let initramfs = Initramfs::builder().module("nbd").program(&program).setup("echo set up; test -b /dev/nbd0");
    let initramfs = initramfs.bytes("/etc/answer", 0o600, "42\n").build(&kernel, directory.path()).unwrap();
    let mut config = GuestConfig::new(kernel, initramfs, directory.path());
    config.forward_ports.push(1234);
    let mut guest = Guest::boot(config).unwrap();
    guest.wait_for_line("set up", SOON).unwrap();
    guest.check("nc -l -p 1234 -e cat /etc/answer >/dev/null 2>&1 &", SOON).unwrap();
    guest.check("until netstat -ltn | grep -q :1234; do usleep 10000; done", SOON).unwrap();
    let address = guest.forwarded(1234).unwrap();
    let mut stream = std::net::TcpStream::connect_timeout(&address, SOON).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
    assert_eq!(answer, "42\n");
    assert!(guest.forwarded(1).is_err());

    let name = program.file_name().unwrap().to_str().unwrap();
    let listing = guest.check(&format!("{name} --list"), SOON).unwrap();
    assert!(listing.contains("a_server_in_the_guest"), "{listing}");
    guest
        .check("(while read -r line; do echo got $line >/dev/console; done </dev/ttyS0) >/dev/null 2>&1 &", SOON)
        .unwrap();
    guest.send_line("a line").unwrap();
    guest.wait_for_line("got a line", SOON).unwrap();
    let output = guest.run("echo out; echo err >&2; exit 3", SOON).unwrap();
    assert_eq!((output.status, output.text().as_str()), (3, "out\nerr"));
    guest.pause().unwrap();
    guest.resume().unwrap();
    assert!(guest.qmp("no-such-command", serde_json::Value::Null).is_err());
    let error = guest.check("echo that is why; false", SOON).unwrap_err();
    assert!(format!("{error:#}").contains("that is why"), "{error:#}");
    let error = guest.run("sleep 1000", Duration::from_millis(300)).unwrap_err();
    assert!(format!("{error:#}").contains("no answer in time"), "{error:#}");
}
