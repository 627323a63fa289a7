// SPDX-License-Identifier: Apache-2.0
//! The read cache on devices: what it spares, what outlives a restart, and that nothing that goes wrong with a device is ever seen by
//! who reads.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

use varve_sim::node;

use node::{Node, name};
use std::rc::Rc;
use std::time::Duration;
use varve_engine::{Device, SsdCounts};
use varve_format::region::{HEAD, REGION};
use varve_sim::{CrashMode, DiskMedium, DiskTiming, InFlight, SimOptions, WriteFault};
use varve_types::{Compression, Overrides};

const BLOCK: u64 = 4096;
/// Blocks of the volume; the cache in RAM has 256.
const BLOCKS: u64 = 1024;
/// What is read at a time.
const STEP: u64 = 16;
const TICK: Duration = Duration::from_secs(11);

/// A node with a cache device, and a volume that is full and in the store.
fn start(regions: u64, frames: usize) -> (Node, Rc<Device>) {
    let mut node = Node::new(SimOptions { most_steps: 50_000_000, ..SimOptions::seed(5) }, 32 << 20);
    node.cache = Some(DiskMedium::new(&node.world, "cache", regions * REGION));
    node.limits.ssd_frames = frames;
    node.pool.segment_size = Some(64 * BLOCK);
    node.pool.compression = Some(Compression::None);
    node.create().unwrap().unwrap();
    node.create_volume("v", BLOCKS * BLOCK);
    let device = node.device("v");
    fill(&node, &device, 1);
    (node, device)
}

fn byte(block: u64, round: u8) -> u8 {
    (block % 251) as u8 ^ round
}

fn fill(node: &Node, device: &Rc<Device>, round: u8) {
    for first in (0..BLOCKS).step_by(STEP as usize) {
        let bytes = (first..first + STEP).flat_map(|block| [byte(block, round); BLOCK as usize]).collect();
        node.write(device, first * BLOCK, bytes, false).unwrap().unwrap();
    }
    node.flush(device).unwrap().unwrap();
    let volume = node.volume("v");
    node.must("checkpoint", async move {
        volume.seal().await?;
        volume.checkpoint().await
    });
}

/// Reads blocks, compares them, and gives how many ranged gets of segments that took.
fn gets(node: &Node, device: &Rc<Device>, blocks: std::ops::Range<u64>) -> u64 {
    let before = segment_gets(node);
    for first in blocks.clone().step_by(STEP as usize) {
        let count = STEP.min(blocks.end - first);
        let bytes = node.read(device, first * BLOCK, (count * BLOCK) as u32).unwrap().unwrap();
        for (block, found) in (first..).zip(bytes.chunks(BLOCK as usize)) {
            assert!(found.iter().all(|found| *found == byte(block, 1)), "block {block}");
        }
    }
    segment_gets(node) - before
}

fn segment_gets(node: &Node) -> u64 {
    node.server.counts().kinds.get("seg").map_or(0, |kind| kind.gets)
}

fn counts(node: &Node) -> SsdCounts {
    node.shard().counts().ssd
}

/// Lets what was taken in reach the device, with what leads to it.
fn settle(node: &Node) {
    node.world.run_for(TICK).unwrap();
}

fn crash(node: &mut Node, mode: CrashMode) -> Rc<Device> {
    node.crash(mode, InFlight::Landed);
    node.reopen();
    settle(node);
    node.device("v")
}

#[test]
fn what_was_read_once_is_not_fetched_again_by_clones_and_later_processes_either() {
    let (mut node, device) = start(8, 500);
    assert!(gets(&node, &device, 0..BLOCKS) >= 64, "the first time it comes from the store");
    assert_eq!(counts(&node).blocks, BLOCKS);
    assert_eq!(gets(&node, &device, 0..BLOCKS), 0, "what RAM does not hold, the device does");
    settle(&node);
    let shard = node.shard();
    let clone = async move { shard.clone_volume(&name("v"), None, name("c"), Overrides::default()).await.map(drop) };
    node.must("clone", clone);
    let clone = node.device("c");
    let before = node.server.counts().requests;
    assert_eq!(gets(&node, &clone, 0..BLOCKS), 0, "a clone shares what its origin has read");
    assert_eq!(
        node.server.counts().requests,
        before,
        "and asks the store for nothing else, for nodes of the map neither"
    );
    drop((device, clone));
    let device = crash(&mut node, CrashMode::Kill);
    assert_eq!(counts(&node).blocks, BLOCKS, "the next process finds it");
    assert_eq!(gets(&node, &device, 0..BLOCKS), 0);
    assert!(counts(&node).hits >= BLOCKS);
}

#[test]
fn a_clean_stop_leaves_everything_for_the_next_process() {
    let (mut node, device) = start(8, 500);
    gets(&node, &device, 0..BLOCKS);
    let shard = node.shard();
    node.must("stop", async move { shard.stop().await });
    drop(device);
    let device = crash(&mut node, CrashMode::Kill);
    assert_eq!(gets(&node, &device, 0..BLOCKS), 0);
}

#[test]
fn a_power_cut_may_take_any_of_it_and_nothing_wrong_is_read() {
    for mode in [CrashMode::Lost, CrashMode::Writes, CrashMode::Torn, CrashMode::Newest, CrashMode::Kept] {
        let (mut node, mut device) = start(4, 200);
        for _ in 0..3 {
            gets(&node, &device, 0..BLOCKS);
            drop(device);
            device = crash(&mut node, mode);
        }
        let fetched = gets(&node, &device, 0..BLOCKS);
        assert_ne!(fetched, 0, "{mode:?}: not everything fits");
    }
}

#[test]
fn what_rots_is_fetched_anew_and_counted() {
    let (mut node, device) = start(8, 500);
    gets(&node, &device, 0..BLOCKS);
    settle(&node);
    drop(device);
    let device = crash(&mut node, CrashMode::Kill);
    let cache = node.cache.clone().unwrap();
    for frame in 0..100 {
        cache.flip_bit(HEAD + frame * BLOCK + frame * 40, 3);
    }
    // Seven reads meet them, and the heads of two segments.
    assert_eq!(gets(&node, &device, 0..BLOCKS), 7 + 2);
    assert_eq!(counts(&node).damaged, 100);
    assert_eq!(gets(&node, &device, 0..BLOCKS), 0, "it was taken in again");
    // A head that rots is a region without blocks.
    settle(&node);
    cache.flip_bit(100, 1);
    drop(device);
    let device = crash(&mut node, CrashMode::Kill);
    assert!((BLOCKS - 500..BLOCKS).contains(&counts(&node).blocks), "{:?}", counts(&node));
    assert!(gets(&node, &device, 0..BLOCKS) > 0);
}

#[test]
fn a_device_that_fails_or_hangs_costs_time_and_nothing_else() {
    let (node, device) = start(8, 500);
    gets(&node, &device, 0..BLOCKS);
    settle(&node);
    let cache = node.cache.clone().unwrap();
    cache.fail_reads(0..8 * REGION);
    assert!(gets(&node, &device, 0..BLOCKS) >= 48, "all but what is in RAM");
    assert_eq!((counts(&node).errors, counts(&node).resting), (1, 1), "after the first error it is let be");
    cache.forget_faults();
    settle(&node);
    assert_eq!((gets(&node, &device, 0..BLOCKS), counts(&node).resting), (0, 0), "it is back, with what it had");
    // One that hangs.
    let begun = node.world.now();
    cache.set_timing(DiskTiming { read: Duration::from_secs(3600), ..DiskTiming::default() });
    assert!(gets(&node, &device, 0..BLOCKS) > 0);
    let took = node.world.now() - begun;
    assert!(took < Duration::from_secs(9), "one read waited, for a while: {took:?}");
    cache.set_timing(DiskTiming::default());
    settle(&node);
    assert_eq!(gets(&node, &device, 0..BLOCKS), 0);
}

#[test]
fn writes_that_fail_are_blocks_that_it_does_not_have() {
    let (node, device) = start(8, 500);
    let cache = node.cache.clone().unwrap();
    cache.fail_write(2, WriteFault::Error);
    gets(&node, &device, 0..BLOCKS);
    settle(&node);
    assert_eq!(counts(&node).errors, 1);
    assert!(gets(&node, &device, 0..BLOCKS) > 0);
    settle(&node);
    assert_eq!(gets(&node, &device, 0..BLOCKS), 0, "taken in when it was read again");
}

#[test]
fn a_scan_leaves_what_is_used_again() {
    // Room for half of the volume.
    let (node, device) = start(64, 8);
    let hot = 0..64;
    // What the cache in RAM answers, nobody asks a device for: so it is asked for with much else between.
    for _ in 0..4 {
        gets(&node, &device, hot.clone());
        gets(&node, &device, 512..800);
    }
    for _ in 0..3 {
        gets(&node, &device, 64..BLOCKS);
        let fetched = gets(&node, &device, hot.clone());
        assert!(fetched <= 2, "{fetched} gets for what is used all the time: {:?}", counts(&node));
    }
    assert!(counts(&node).blocks <= 512, "{:?}", counts(&node));
}

#[test]
fn volumes_use_it_as_their_settings_say() {
    let (node, device) = start(16, 500);
    let set = |pairs: &[(&str, &str)]| {
        let volume = node.volume("v");
        let mut settings = Overrides::default();
        for (key, value) in pairs {
            settings.set(key, value).unwrap();
        }
        node.must("set", async move { volume.set(settings).await.map(drop) });
    };
    set(&[("cache", "none")]);
    gets(&node, &device, 0..BLOCKS);
    assert_eq!((counts(&node).blocks, node.shard().counts().cache.blocks), (0, 0));
    set(&[("cache-quota", "1M")]);
    gets(&node, &device, 0..BLOCKS);
    assert_eq!(counts(&node).blocks, 256);
    set(&[("cache", "write")]);
    fill(&node, &device, 1);
    settle(&node);
    assert_eq!(counts(&node).blocks, 256 + BLOCKS, "what is written is there before it is read");
    assert_eq!(gets(&node, &device, 0..BLOCKS), 0);
}

#[test]
fn a_flatten_leaves_nothing_in_it() {
    let (node, device) = start(16, 500);
    let shard = node.shard();
    node.must("clone", async move {
        shard.clone_volume(&name("v"), None, name("c"), Overrides::default()).await?;
        shard.flatten(&name("c"), |_, _| ()).await.map(drop)
    });
    assert_eq!((counts(&node).blocks, node.shard().counts().cache.blocks), (0, 0));
    assert!(gets(&node, &device, 0..BLOCKS) > 0);
}

#[test]
fn who_wants_the_same_blocks_or_what_is_packed_with_them_fetches_them_once() {
    for compression in [Compression::None, Compression::Zstd] {
        let (node, device) = start(16, 500);
        node.shard().set_pool(&name("default"), Overrides { compression: Some(compression), ..node.pool });
        fill(&node, &device, 1);
        let before = segment_gets(&node);
        // Of a chunk of eight, each the whole of it, or, where chunks are, a block of it.
        let read = async move |device: Rc<Device>, block: u64| match compression {
            Compression::None => node::read(&device, 0, 8 * BLOCK as u32).await,
            _ => node::read(&device, block * BLOCK, BLOCK as u32).await,
        };
        let all = async move {
            let reads = futures_util::future::join_all((0..8).map(|block| read(Rc::clone(&device), block))).await;
            reads.into_iter().collect::<Result<Vec<_>, _>>()
        };
        for (block, bytes) in (0..8).zip(node.must("reads", all)) {
            let first = if compression == Compression::None { 0 } else { block };
            assert!(bytes[..BLOCK as usize].iter().all(|found| *found == byte(first, 1)), "block {block}");
        }
        assert_eq!(segment_gets(&node) - before, 1, "{compression:?}");
    }
}
