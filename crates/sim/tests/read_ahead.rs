// SPDX-License-Identifier: Apache-2.0
//! Read-ahead: a stream waits for the store a few times and not for each request; who reads here and there fetches what he asked for and
//! no more.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

use varve_sim::node;

use node::Node;
use std::rc::Rc;
use std::time::Duration;
use varve_engine::Device;
use varve_sim::{Rng, SimOptions};
use varve_types::Compression;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 4096;
/// Blocks of a request of a stream.
const STEP: u64 = 16;
const AWAY: Duration = Duration::from_millis(50);

/// A node whose store is far away, with a volume that is full and in the store.
fn start(cache_ram: u64) -> (Node, Rc<Device>) {
    let mut node = Node::new(SimOptions { most_steps: 50_000_000, ..SimOptions::seed(6) }, 64 << 20);
    node.limits.cache_ram = cache_ram;
    node.limits.layer_ram = 64 << 20;
    node.pool.segment_size = Some(1024 * BLOCK);
    node.pool.compression = Some(Compression::None);
    node.create().unwrap().unwrap();
    node.create_volume("v", BLOCKS * BLOCK);
    let device = node.device("v");
    for first in (0..BLOCKS).step_by(64) {
        let bytes = (first..first + 64).flat_map(|block| [(block % 251) as u8 + 1; BLOCK as usize]).collect();
        node.write(&device, first * BLOCK, bytes, false).unwrap().unwrap();
    }
    let volume = node.volume("v");
    node.must("checkpoint", async move {
        volume.seal().await?;
        volume.checkpoint().await
    });
    node.server.set_latency(AWAY, AWAY);
    (node, device)
}

fn read(node: &Node, device: &Rc<Device>, first: u64, count: u64) {
    let bytes = node.read(device, first * BLOCK, (count * BLOCK) as u32).unwrap().unwrap();
    for (block, found) in (first..).zip(bytes.chunks(BLOCK as usize)) {
        assert!(found.iter().all(|found| *found == (block % 251) as u8 + 1), "block {block}");
    }
}

fn segment_gets(node: &Node) -> (u64, u64) {
    node.server.counts().kinds.get("seg").map_or((0, 0), |kind| (kind.gets, kind.got_bytes))
}

#[test]
fn a_stream_waits_for_the_store_a_few_times() {
    let (node, device) = start(256 << 20);
    let (begun, before) = (node.world.now(), segment_gets(&node));
    (0..BLOCKS).step_by(STEP as usize).for_each(|first| read(&node, &device, first, STEP));
    let (took, gets) = (node.world.now() - begun, segment_gets(&node));
    assert!(took < AWAY * 16, "{} requests of a stream took {took:?}", BLOCKS / STEP);
    let bytes = gets.1 - before.1;
    assert!(bytes < BLOCKS * (BLOCK + 16) * 101 / 100 + (1 << 20), "{bytes} bytes: each was fetched once");
    assert!(gets.0 - before.0 < 64, "{} gets", gets.0 - before.0);
}

#[test]
fn who_reads_here_and_there_fetches_what_he_asked_for() {
    let (node, device) = start(1 << 20);
    // So that the heads of the segments are known.
    (0..BLOCKS).step_by(1024).for_each(|first| read(&node, &device, first, 1));
    let (before, mut rng) = (segment_gets(&node), Rng::new(3));
    const READS: u64 = 500;
    (0..READS).for_each(|_| read(&node, &device, rng.below(BLOCKS), 1));
    let after = segment_gets(&node);
    let (gets, bytes) = (after.0 - before.0, after.1 - before.1);
    assert!(gets <= READS && bytes <= gets * (BLOCK + 16), "{gets} gets of {bytes} bytes for {READS} blocks");
    assert!(gets > READS * 3 / 4, "most were not in RAM: {gets}");
}
