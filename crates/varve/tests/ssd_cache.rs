// SPDX-License-Identifier: Apache-2.0
//! The read cache on devices, with a real file: clones and restarts find what was read, and a node whose device is gone, foreign or
//! damaged serves all the same.

#![allow(clippy::unwrap_used)]

mod real;

use real::{Node, noise};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Blocks that are read; more than the cache in RAM has.
const MIB: u64 = 16;

/// A node whose caches are 1 MiB of RAM and a file of 64 MiB, with a volume that is in the store.
fn start() -> (Node, PathBuf) {
    let mut node = Node::new(&[]);
    let file = node.path("ssd");
    let mut config = std::fs::File::options().append(true).open(node.path("varve.toml")).unwrap();
    writeln!(config, "ram-cache = '1M'\ncache = ['{}:64M']", file.display()).unwrap();
    node.up();
    node.varve(&["volume", "create", "disk", "--size", "64M", "--segment-size", "4M", "--compression", "none"]).ok();
    std::fs::write(node.path("data.raw"), noise(MIB as usize * 1024 * 1024, 7)).unwrap();
    node.qemu_io("disk", &[&format!("write -s {} 0 {MIB}M", node.path("data.raw").display()), "flush"]);
    // A clone waits for all of it to be in the store.
    node.varve(&["clone", "disk", "warm"]).ok();
    (node, file)
}

/// Reads everything from a volume and compares it; gives how many bytes of stores that took.
fn read(node: &Node, volume: &str) -> u64 {
    let before = store_bytes(node);
    let (file, wanted) = (node.path("read.raw"), std::fs::read(node.path("data.raw")).unwrap());
    let script = format!(
        "with open('{}', 'wb') as f:\n  for i in range({MIB}):\n    f.write(h.pread(1 << 20, i << 20))",
        file.display()
    );
    real::nbdsh(&node.uri(volume), &script).ok();
    assert!(std::fs::read(file).unwrap() == wanted, "{volume} has what was written");
    store_bytes(node) - before
}

fn store_bytes(node: &Node) -> u64 {
    let metrics = node.metrics();
    let line = metrics.lines().find(|line| line.starts_with("varve_store_get_bytes_total")).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn clones_and_restarts_find_what_was_read() {
    let (mut node, file) = start();
    assert!(read(&node, "warm") > MIB << 20);
    assert_eq!(read(&node, "warm"), 0);
    node.varve(&["clone", "disk", "second"]).ok();
    assert!(read(&node, "second") < 64 << 10, "a clone fetches no data");
    let status = node.varve(&["status", "--json"]).json();
    assert!(status["ssd_cache"]["used_bytes"].as_u64().unwrap() >= MIB << 20, "{status}");
    assert!(node.varve(&["status"]).ok().contains("cache on SSD"));
    node.stop();
    node.up();
    node.until_status("the cache is read", |status| status["ssd_cache"]["used_bytes"].as_u64().unwrap() >= MIB << 20);
    assert!(read(&node, "second") < 256 << 10, "nor does the next process, but for maps");
    // What rots is fetched anew.
    node.stop();
    let device = std::fs::File::options().write(true).open(&file).unwrap();
    (0..1000).for_each(|at| device.write_all_at(&[0xa5; 64], (40 << 10) + at * 4096).unwrap());
    node.up();
    node.until_status("the cache is read", |status| status["ssd_cache"]["used_bytes"].as_u64().unwrap() >= MIB << 20);
    assert!(read(&node, "disk") >= 3 << 20);
    // Under noise nothing of it reads as a block.
    node.kill();
    device.write_all_at(&noise(64 << 20, 3), 0).unwrap();
    node.up();
    let warned = node.varve(&["status"]).ok();
    assert!(warned.contains("1 of 1 cache devices could not be opened"), "{warned}");
    assert!(node.log().contains("it holds something that is no cache"), "{}", node.log());
    assert!(read(&node, "disk") > MIB << 20, "without a cache the store serves");
}
