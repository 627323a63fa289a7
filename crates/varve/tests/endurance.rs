// SPDX-License-Identifier: Apache-2.0
//! A node under stress: a full store, a store that is away, a thousand connections, a stop in the middle of things.

#![allow(clippy::unwrap_used)]

mod real;

use real::{DEADLINE, Node, nbdsh, nbdsh_command, noise, run};
use std::path::{Path, PathBuf};
use std::process::Command;
use varve_lab::process::{Process, Signal, wait_until};

/// A small file system in memory, mounted for as long as this lives. Wants root.
struct Small(PathBuf);

impl Small {
    fn mount(path: &Path, size: &str) -> Self {
        std::fs::create_dir(path).unwrap();
        run("mount", "mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "varve-test", path.to_str().unwrap()])
            .ok();
        Self(path.to_owned())
    }
    fn resize(&self, size: &str) {
        run("mount", "mount", &["-o", &format!("remount,size={size}"), self.0.to_str().unwrap()]).ok();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_store_is_told_and_heals() {
    let parent = tempfile::tempdir().unwrap();
    let small = Small::mount(&parent.path().join("small"), "16M");
    let store = format!("file://{}/store", small.0.display());
    let node = Node::start(&["--volume", "disk:256M", "--store", &store]);
    node.varve(&["volume", "set", "disk", "segment-size=4M", "compression=none"]).ok();
    let image = noise(40 << 20, 3);
    let file = node.path("image");
    std::fs::write(&file, &image).unwrap();
    // More than the store takes and less than the journal does: the writer sees nothing of it.
    run("nbdcopy", "libnbd-bin", &["--flush", file.to_str().unwrap(), &node.uri("disk")]).ok();
    node.until_status("the full store to be told", |status| {
        status["pools"][0]["state"] == "full" && status["volumes"][0]["state"] == "degraded"
    });
    let status = node.varve(&["status"]).ok();
    assert!(status.contains("full: ") && status.contains("warning: "), "{status}");
    nbdsh(&node.uri("disk"), "h.pwrite(b'y' * 4096, 200 * 1024 * 1024)\nh.flush()\n").ok();
    small.resize("256M");
    node.until_status("the store to heal", |status| {
        status["pools"][0]["state"] == "ok" && status["volumes"][0]["state"] == "ready"
    });
    let copy = node.path("copy");
    run("nbdcopy", "libnbd-bin", &[&node.uri("disk"), copy.to_str().unwrap()]).ok();
    let read = std::fs::read(&copy).unwrap();
    assert!(read[..image.len()] == image[..]);
    assert!(read[200 << 20..(200 << 20) + 4096] == [b'y'; 4096]);
    drop(node);
}

/// Everything of a node on one disk, which guests fill: what is deleted then makes room, though nothing fits any more, and writers go on.
#[test]
fn a_full_disk_can_be_emptied() {
    let mut node = Node::new(&[]);
    let small = Small::mount(&node.data(), "320M");
    node.up();
    node.varve(&[
        "pool",
        "set",
        "default",
        "segment-size=4M",
        "compression=none",
        "undelete-window=0s",
        "rewind-window=0s",
    ])
    .ok();
    for volume in ["keep", "junk", "more"] {
        node.varve(&["volume", "create", volume, "--size", "256M"]).ok();
    }
    node.qemu_io("keep", &["write -P 5 0 16M", "flush"]);
    node.qemu_io("junk", &["write -P 6 0 128M", "flush"]);
    node.varve(&["snapshot", "create", "junk", "s"]).ok();
    let image = noise(128 << 20, 7);
    let file = node.path("image");
    std::fs::write(&file, &image).unwrap();
    let export = node.uri("more");
    let copy = std::thread::spawn(move || run("nbdcopy", "libnbd-bin", &["--flush", file.to_str().unwrap(), &export]));
    node.until_status("the full disk to be told", |status| status["pools"][0]["state"] == "full");
    node.qemu_io("keep", &["read -P 5 0 16M"]);
    // Somebody else takes the rest, to the last byte.
    let filler = small.0.join("filler");
    run("dd", "coreutils", &["if=/dev/zero", &format!("of={}", filler.display()), "bs=4k", "status=none"]).fails(1);
    // Both have to put manifests, and coordination has to take them.
    node.varve(&["snapshot", "delete", "junk", "s"]).ok();
    node.varve(&["volume", "delete", "junk"]).ok();
    std::fs::remove_file(&filler).unwrap();
    copy.join().unwrap().ok();
    node.until_status("all to be stored", |status| {
        status["pools"][0]["state"] == "ok"
            && status["volumes"].as_array().unwrap().iter().all(|v| v["dirty_bytes"] == 0)
    });
    let back = node.path("back");
    run("nbdcopy", "libnbd-bin", &[&node.uri("more"), back.to_str().unwrap()]).ok();
    assert!(std::fs::read(&back).unwrap()[..image.len()] == image[..]);
    node.qemu_io("keep", &["read -P 5 0 16M"]);
    node.varve(&["check"]).ok();
    node.stop();
    drop(small);
}

#[test]
fn a_pool_whose_store_is_away_keeps_no_other_from_being_served() {
    let mut node = Node::start(&["--volume", "here:64M"]);
    let (there, hidden) = (node.path("there"), node.path("hidden"));
    node.varve(&["pool", "create", "far", "--store", &format!("file://{}/s", there.display())]).fails(2);
    std::fs::create_dir(&there).unwrap();
    node.varve(&["pool", "create", "far", "--store", &format!("file://{}/s", there.display())]).ok();
    node.varve(&["volume", "create", "away", "--size", "64M", "--pool", "far"]).ok();
    node.qemu_io("away", &["write -P 6 0 1M"]);
    node.qemu_io("here", &["write -P 7 0 1M"]);
    node.stop();
    std::fs::rename(&there, &hidden).unwrap();
    node.up();
    node.qemu_io("here", &["read -P 7 0 1M", "write -P 8 0 1M"]);
    let status = node.varve(&["status", "--json"]).json();
    assert_eq!((&status["pools"][1]["name"], &status["pools"][1]["state"]), (&"far".into(), &"unavailable".into()));
    assert_eq!((&status["volumes"][0]["name"], &status["volumes"][0]["state"]), (&"away".into(), &"recovering".into()));
    let error = node.varve(&["snapshot", "create", "away", "s"]).fails(5);
    assert!(error.contains("away is not served"), "{error}");
    std::fs::rename(&hidden, &there).unwrap();
    node.until_status("the pool to come back", |status| {
        status["pools"][1]["state"] == "ok" && status["volumes"][0]["state"] == "ready"
    });
    node.qemu_io("away", &["read -P 6 0 1M"]);
    // A directory that is there and empty, as an unmounted one is, is not taken for a new store.
    node.stop();
    std::fs::rename(&there, &hidden).unwrap();
    std::fs::create_dir(&there).unwrap();
    node.up();
    let status = node.varve(&["status"]).ok();
    assert!(status.contains("does not hold owner/1 any more"), "{status}");
}

#[test]
fn a_thousand_connections_are_served_at_once() {
    let node = Node::start(&["--volume", "disk:64M"]);
    let script = "import resource\n\
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n\
        all = []\n\
        for i in range(999):\n    c = nbd.NBD()\n    c.connect_uri(h.get_uri())\n    all.append(c)\n\
        for i, c in enumerate(all):\n    c.pwrite(bytes([i % 251]) * 512, i * 512)\n\
        h.flush()\n\
        print(sum(1 for i, c in enumerate(all) if all[-1 - i].pread(512, i * 512) == bytes([i % 251]) * 512))\n";
    assert_eq!(nbdsh(&node.uri("disk"), script).ok(), "999\n");
    node.until_status("all to have left", |status| status["volumes"][0]["attached"] == 0);
}

#[test]
fn a_stop_in_the_middle_of_things_loses_nothing_that_was_acknowledged() {
    let mut node = Node::start(&["--volume", "disk:256M"]);
    let script = "import sys\n\
        i = 0\n\
        try:\n    while True:\n        h.pwrite(bytes([i % 251 + 1]) * 4096, i % 60000 * 4096)\n        i += 1\n\
        \x20       if i == 1000: print('busy', flush=True)\n\
        except nbd.Error:\n    print('done', i, flush=True)\n";
    let mut client = Process::start("writer", nbdsh_command(&node.uri("disk"), script), node.dir.path()).unwrap();
    wait_until(DEADLINE, "the writer to be busy", || {
        client.check_running()?;
        Ok(client.log_tail().contains("busy"))
    })
    .unwrap();
    node.stop();
    client.wait(DEADLINE).unwrap();
    let log = client.log_tail();
    let count: u64 = log.lines().find_map(|line| line.strip_prefix("done ")).unwrap().parse().unwrap();
    assert!(count >= 1000, "{log}");
    node.up();
    let script = format!(
        "bad = [i for i in range(max(0, {count} - 50000), {count}) if h.pread(4096, i % 60000 * 4096) != bytes([i % 251 + 1]) * 4096]\nprint(bad)"
    );
    assert_eq!(nbdsh(&node.uri("disk"), &script).ok(), "[]\n");
}

#[test]
fn sigint_stops_it_as_well() {
    let mut node = Node::start(&["--volume", "disk:64M"]);
    node.process().signal(Signal::INT).unwrap();
    let status = node.process().wait(DEADLINE).unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(node.log().contains("everything that was acknowledged is durable"), "{}", node.log());
}
