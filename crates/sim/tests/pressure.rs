// SPDX-License-Identifier: Apache-2.0
//! The engine where something is short or broken: RAM, room in the journal, the journal itself, root numbers; and requests that overlap.

use varve_sim::node;

use node::{Node, finish, name, wait};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use varve_engine::{BlockDevice, Device};
use varve_env::{Env, StoreErrorKind};
use varve_format::journal::Superblock;
use varve_sim::{CrashMode, InFlight, SimOptions, StoreFault, StoreOp};

const MIB: u64 = 1 << 20;

fn node(journal: u64) -> Node {
    Node::new(SimOptions { most_steps: 20_000_000, ..SimOptions::seed(11) }, journal)
}

fn pattern(seed: u64, len: u64) -> Vec<u8> {
    (0..len).map(|i| ((i / 512 + 1) * (2 * seed + 3) % 251 + 1) as u8).collect()
}

fn write(node: &Node, device: &Rc<Device>, array: &mut [u8], offset: u64, len: u64, seed: u64) {
    let data = pattern(seed, len);
    array[offset as usize..(offset + len) as usize].copy_from_slice(&data);
    node.write(device, offset, data, false).expect("alive").expect("a write");
}

fn same(node: &Node, device: &Rc<Device>, array: &[u8], what: &str) {
    for (n, wanted) in array.chunks(MIB as usize).enumerate() {
        let bytes = node.read(device, n as u64 * MIB, wanted.len() as u32).expect("alive").expect("a read");
        let at = bytes.iter().zip(wanted).position(|(found, wanted)| found != wanted);
        assert_eq!(at, None, "{what}: MiB {n}");
    }
}

/// Starts a node, with a volume of 4 MiB and half a MiB flushed to it. Gives the volume and what it holds.
fn half_a_mib_flushed(node: &Node) -> (Rc<Device>, Vec<u8>) {
    node.create().expect("the world runs").expect("the shard starts");
    node.create_volume("v", 4 * MIB);
    let device = node.device("v");
    let mut array = vec![0; 4 << 20];
    write(node, &device, &mut array, 0, MIB / 2, 1);
    node.flush(&device).expect("alive").expect("a flush");
    (device, array)
}

#[test]
fn what_no_journal_has_is_not_given_up_in_ram() {
    let mut node = node(16 * MIB);
    node.limits.layer_ram = 256 << 10;
    let (device, mut array) = half_a_mib_flushed(&node);
    node.disk.fail_sync(0);
    write(&node, &device, &mut array, MIB, 4096, 2);
    // The journal fails on the way; the flush is answered by the store.
    node.flush(&device).expect("alive").expect("a flush");
    assert!(node.shard().counts().journal_failed);
    // Many at once, because each waits for the store.
    node.server.away_for(Duration::from_secs(60));
    let answered = Rc::new(Cell::new(0));
    for n in 0..48u64 {
        let (offset, data) = (MIB + n * 65_536, pattern(3 + n, 61_440));
        array[offset as usize..offset as usize + data.len()].copy_from_slice(&data);
        let (device, answered) = (Rc::clone(&device), Rc::clone(&answered));
        node.env.spawn(Box::pin(async move {
            finish(&device, device.write(offset, data.into(), false)).await.expect("a write");
            answered.set(answered.get() + 1);
        }));
    }
    node.world.run_for(Duration::from_secs(30)).expect("the world runs");
    assert_eq!(answered.get(), 0, "nothing is promised that is nowhere but in RAM");
    let ram = node.shard().counts().layer_ram_bytes;
    assert!((256 << 10..=384 << 10).contains(&ram), "{ram} bytes of layers in RAM");
    node.world.run_for(Duration::from_secs(120)).expect("the world runs");
    assert_eq!((answered.get(), node.volume("v").stopped().map(|why| why.to_string())), (48, None));
    same(&node, &device, &array, "with a failed journal");
    drop(device);
    node.crash(CrashMode::Lost, InFlight::Lost);
    node.reopen();
    let device = node.device("v");
    same(&node, &device, &array, "after a power cut");
}

/// A sync that failed leaves in memory what the disk does not hold and no later sync writes. The next process reads it, and promises it.
#[test]
fn what_a_failed_sync_left_in_memory_is_made_durable_before_it_is_promised() {
    let mut node = node(16 * MIB);
    let (device, mut array) = half_a_mib_flushed(&node);
    for nth in 0..1000 {
        node.server.fail(StoreOp::Put, "/seg/", nth, StoreFault::Error(StoreErrorKind::Unavailable));
    }
    write(&node, &device, &mut array, MIB, 8192, 2);
    node.disk.fail_sync(0);
    let flushed = Rc::clone(&device);
    node.env.spawn(Box::pin(async move {
        // Only the store could answer it now.
        drop(wait(flushed.flush()).await);
    }));
    node.world.run_for(Duration::from_secs(1)).expect("the world runs");
    assert!(node.shard().counts().journal_failed);
    drop(device);
    node.crash(CrashMode::Kill, InFlight::Lost);
    node.reopen();
    let device = node.device("v");
    same(&node, &device, &array, "killed");
    node.flush(&device).expect("alive").expect("a flush");
    drop(device);
    node.crash(CrashMode::Lost, InFlight::Lost);
    node.server.forget_faults();
    node.reopen();
    same(&node, &node.device("v"), &array, "after a power cut");
}

/// A volume of 16 MiB whose layers may have 512 KiB in RAM, and what it holds.
fn little_ram() -> (Node, Rc<Device>, Vec<u8>) {
    let mut node = node(64 * MIB);
    node.limits.layer_ram = 512 << 10;
    node.create().expect("the world runs").expect("the shard starts");
    node.create_volume("v", 16 * MIB);
    let device = node.device("v");
    (node, device, vec![0; 16 << 20])
}

#[test]
fn a_store_that_is_away_costs_journal_and_not_writes() {
    let (node, device, mut array) = little_ram();
    let away = node.world.now();
    node.server.away_for(Duration::from_secs(3600));
    for n in 0..16 {
        write(&node, &device, &mut array, n * MIB, MIB, n);
    }
    assert!(node.world.now() - away < Duration::from_secs(60), "writes wait for the store");
    same(&node, &device, &array, "while the store is away");
    node.server.away_for(Duration::ZERO);
    let volume = node.volume("v");
    node.must("seal", async move { volume.seal().await });
    same(&node, &device, &array, "put");
}

#[test]
fn a_store_that_keeps_up_is_waited_for() {
    let (node, device, mut array) = little_ram();
    let before = node.disk.counts().reads;
    for n in 0..64 {
        write(&node, &device, &mut array, n * MIB / 4, MIB / 4, n);
    }
    assert_eq!(node.disk.counts().reads, before, "what was given up in RAM had to be read back");
    same(&node, &device, &array, "written");
}

#[test]
fn a_request_larger_than_what_may_be_unsynced_passes() {
    let node = node(9 * MIB);
    node.create().expect("the world runs").expect("the shard starts");
    node.create_volume("v", 32 * MIB);
    let device = node.device("v");
    let mut array = vec![0; 32 << 20];
    write(&node, &device, &mut array, 0, 32 * MIB, 1);
    same(&node, &device, &array, "written");
}

/// A node whose newest superblock has a trim far ahead of the older one's, and most of what lies between is overwritten.
fn far_trims(array: &mut [u8]) -> Node {
    let node = node(32 * MIB);
    node.create().expect("the world runs").expect("the shard starts");
    node.create_volume("v", 28 * MIB);
    let device = node.device("v");
    // The first segment is refused again and again, so all that wait behind it count at once, and the trim jumps.
    for _ in 0..10 {
        let refused = StoreFault::Error(StoreErrorKind::Unavailable);
        node.server.fail(StoreOp::Put, "/seg/0000000000000000.", 0, refused);
    }
    for n in 0..26 {
        write(&node, &device, array, n * MIB, MIB, n);
    }
    node.world.run_for(Duration::from_secs(120)).expect("the world runs");
    let volume = node.volume("v");
    node.must("seal", async move { volume.seal().await });
    node.server.away_for(Duration::from_secs(3600));
    for n in 0..24 {
        write(&node, &device, array, n * MIB, MIB, 100 + n);
    }
    node.flush(&device).expect("alive").expect("a flush");
    node
}

#[test]
fn a_spoilt_superblock_loses_nothing() {
    for slot in 0..2 {
        let mut array = vec![0; 28 << 20];
        let mut node = far_trims(&mut array);
        let trim = |slot: u64| {
            let bytes = node.disk.contents(slot * 4096..(slot + 1) * 4096);
            Superblock::decode(&bytes).expect("it is whole").trim
        };
        assert!(trim(0).abs_diff(trim(1)) > 16 * MIB, "the trim was meant to jump: {} and {}", trim(0), trim(1));
        node.disk.flip_bit(slot * 4096 + 40, 3);
        node.crash(CrashMode::Lost, InFlight::Lost);
        node.server.away_for(Duration::ZERO);
        node.reopen();
        let device = node.device("v");
        same(&node, &device, &array, &format!("without superblock {slot}"));
        write(&node, &device, &mut array, 0, 8 * MIB, 7);
        same(&node, &device, &array, &format!("gone on without superblock {slot}"));
    }
}

#[test]
fn requests_that_overlap_lose_only_what_they_share() {
    let mut node = node(9 * MIB);
    node.create().expect("the world runs").expect("the shard starts");
    node.create_volume("v", MIB);
    let device = node.device("v");
    let mut array = vec![0; 1 << 20];
    write(&node, &device, &mut array, 0, MIB, 1);
    let volume = node.volume("v");
    node.must("seal", async move { volume.seal().await });
    drop(device);
    for round in 0..20u64 {
        // Cold, so that what is read of blocks takes its time.
        node.crash(CrashMode::Kill, InFlight::Lost);
        node.reopen();
        let device = node.device("v");
        let (first, second) = (pattern(50 + round, 3 * 4096 - 1024), pattern(90 + round, 512));
        let (a, b) = (first.clone(), second.clone());
        let both = Rc::clone(&device);
        node.must("both", async move {
            let one = both.write(512, a.into(), false);
            let other = both.write(4096 + 1024, b.into(), false);
            futures_util::future::try_join(finish(&both, one), finish(&both, other)).await?;
            wait(both.flush()).await
        });
        let mut wanted = array.clone();
        wanted[512..3 * 4096 - 512].copy_from_slice(&first);
        let found = node.read(&device, 0, MIB as u32).expect("alive").expect("a read");
        let shared = 4096 + 1024..4096 + 1536;
        let got = found[shared.clone()].to_vec();
        assert!(got == second || got == wanted[shared.clone()], "round {round}: the shared sector is neither");
        wanted[shared].copy_from_slice(&got);
        let at = found.iter().zip(&wanted).position(|(found, wanted)| found != wanted);
        assert_eq!(at, None, "round {round}: the other sectors");
        array.copy_from_slice(&wanted);
    }
}

#[test]
fn very_many_snapshots_between_two_checkpoints_are_no_end() {
    let mut node = node(16 * MIB);
    node.limits.overlay_entries = usize::MAX;
    node.create().expect("the world runs").expect("the shard starts");
    node.create_volume("v", MIB);
    let volume = node.volume("v");
    let writer = Rc::clone(&volume);
    node.must("snapshots", async move {
        let (device, _) = writer.device("test".to_owned()).await?;
        for n in 0..1500u64 {
            let submit = device.write(n % 200 * 4096, vec![(n % 250 + 1) as u8; 4096].into(), false);
            finish(&device, submit).await?;
            writer.snapshot(name(&format!("s{n}"))).await?;
        }
        writer.seal().await?;
        writer.checkpoint().await?;
        writer.checkpoint().await
    });
    assert!(volume.degraded().is_none(), "{:?}", volume.degraded());
    let report = node.must("check", async move { volume.check(&|_, _| {}).await });
    assert_eq!(report.problems, []);
    node.crash(CrashMode::Lost, InFlight::Lost);
    node.reopen();
}

/// Volumes of 48 MiB on a journal of 64 MiB, and a store that has gone.
fn without_a_store(volumes: &[&str]) -> (Node, Vec<Rc<Device>>) {
    let mut node = node(64 * MIB);
    node.limits.layer_ram = 256 * MIB;
    node.create().expect("the world runs").expect("the shard starts");
    for volume in volumes {
        node.create_volume(volume, 48 * MIB);
    }
    let devices = volumes.iter().map(|volume| node.device(volume)).collect();
    node.server.away_for(Duration::from_secs(3600));
    (node, devices)
}

/// How long a write takes.
fn takes(node: &Node, device: &Rc<Device>, at: u64, len: usize) -> Duration {
    let begun = node.world.now();
    node.write(device, at % (48 * MIB), vec![7; len], false).expect("alive").expect("a write");
    node.world.now() - begun
}

#[test]
fn writes_get_slower_long_before_the_journal_is_full() {
    let (node, devices) = without_a_store(&["v"]);
    let times: Vec<Duration> = (0..50 * 16).map(|n| takes(&node, &devices[0], n << 16, 64 << 10)).collect();
    let at = |mib: usize| times[mib * 16..mib * 16 + 16].iter().sum::<Duration>();
    assert!(at(20) < Duration::from_millis(20), "no haste, and nothing is slowed: {:?}", at(20));
    let steps: Vec<Duration> = [30, 36, 42, 48].into_iter().map(at).collect();
    assert!(steps.windows(2).all(|two| two[0] < two[1]), "slower and slower: {steps:?}");
    let longest = times.iter().max().expect("there are some");
    assert!(*longest < Duration::from_secs(3), "{longest:?}");
    assert!(times.iter().sum::<Duration>() > Duration::from_secs(30), "what is left is given out slowly");
    let slowed = node.volume("v").counts().slowed;
    assert!(slowed.waits.requests > 100 && slowed.waits.waited_us > 10_000_000 && slowed.rate > 0, "{slowed:?}");
    node.server.away_for(Duration::ZERO);
    node.world.run_for(Duration::from_secs(60)).expect("the world runs");
    assert!(takes(&node, &devices[0], 0, 64 << 10) < Duration::from_millis(20), "and it heals by itself");
    assert_eq!(node.volume("v").counts().slowed.rate, 0);
}

#[test]
fn a_volume_that_writes_little_is_not_slowed_by_one_that_writes_much() {
    let (node, devices) = without_a_store(&["loud", "quiet"]);
    let [loud, quiet] = &devices[..] else { panic!("there are two") };
    let env = Rc::clone(&node.env);
    let busy = Rc::clone(loud);
    let writes = async move {
        let mut at = 0;
        loop {
            finish(&busy, busy.write(at % (48 * MIB), vec![9; 64 << 10].into(), false)).await.expect("a write");
            at += 64 << 10;
        }
    };
    env.spawn(Box::pin(writes));
    for n in 0..200 {
        node.world.run_for(Duration::from_secs(10)).expect("the world runs");
        let took = takes(&node, quiet, (n % 8) << 16, 4096);
        assert!(took < Duration::from_millis(50), "write {n} took {took:?}");
    }
    let (loud, quiet) = (node.volume("loud").counts().slowed, node.volume("quiet").counts().slowed);
    assert!(loud.waits.waiting == 1 && quiet.waits.requests == 0, "{loud:?} {quiet:?}");
}
