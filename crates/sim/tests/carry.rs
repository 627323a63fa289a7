// SPDX-License-Identifier: Apache-2.0
//! Old records of the journal are carried forward: a volume whose store is away, or that is idle, or that can not be opened, holds up nobody else.
//!
//! Two pools with a store each. What is stuck is written first and lies at the end of the ring; then the other volume writes round after round. In between the
//! process dies at every I/O, in each kind of crash in turn: nothing that was flushed is ever lost. In the usual run it dies at every seventh; with
//! `VARVE_ALL=1` at each.

use varve_sim::node;

use node::{Node, finish, name, wait};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use varve_engine::{BlockDevice, Device, EngineError, Limits};
use varve_env::Env;
use varve_format::journal::RING_START;
use varve_sim::{CrashMode, DiskTiming, InFlight, RunError, SimOptions, StoreServer};
use varve_types::branch::{Branch, take_counts};

const MIB: u64 = 1 << 20;
const HOUR: Duration = Duration::from_secs(3600);

#[allow(clippy::disallowed_methods, reason = "how much is tried is asked before any world begins")]
fn all() -> bool {
    std::env::var_os("VARVE_ALL").is_some()
}

/// What a volume must read as.
struct Model {
    volume: &'static str,
    bytes: Vec<u8>,
}

impl Model {
    fn write(&mut self, node: &Node, device: &Rc<Device>, offset: u64, len: u64, seed: u64) -> Duration {
        let data = pattern(seed, len);
        self.bytes[offset as usize..(offset + len) as usize].copy_from_slice(&data);
        let begun = node.world.now();
        node.write(device, offset, data, false).expect("alive").expect("a write");
        node.world.now() - begun
    }

    fn prove(&self, node: &Node, what: &str) {
        let device = node.device(self.volume);
        for (n, wanted) in self.bytes.chunks(MIB as usize).enumerate() {
            let bytes = node.read(&device, n as u64 * MIB, wanted.len() as u32).expect("alive").expect("a read");
            let at = bytes.iter().zip(wanted).position(|(found, wanted)| found != wanted);
            assert_eq!(at, None, "{what}: {}, MiB {n}", self.volume);
        }
    }
}

fn pattern(seed: u64, len: u64) -> Vec<u8> {
    (0..len).map(|i| ((i / 512 + 1) * (2 * seed + 3) % 251 + 1) as u8).collect()
}

/// A node with a journal of so many bytes and two volumes of 4 MiB, `busy` and `stuck`, of whose pool this is the store.
fn two_pools(journal: u64) -> (Node, StoreServer) {
    // Layers give up their bytes soon: what is carried is read from the journal, and found where it is now.
    two_pools_with(journal, 512 << 10)
}

fn two_pools_with(journal: u64, layer_ram: u64) -> (Node, StoreServer) {
    let mut node = Node::new(SimOptions { most_steps: 50_000_000, ..SimOptions::seed(5) }, journal);
    node.limits.layer_ram = layer_ram;
    let away = node.create_pool("away");
    node.create().expect("the world runs").expect("the shard starts");
    node.create_volume_in("away", "stuck", 4 * MIB);
    node.create_volume("busy", 4 * MIB);
    (node, away)
}

/// The store goes, and so many KiB are written to the volume that needs it; then flushed.
fn get_stuck(node: &Node, away: &StoreServer, kib: u64) -> Model {
    away.away_for(HOUR);
    let mut model = Model { volume: "stuck", bytes: vec![0; 4 << 20] };
    let device = node.device("stuck");
    for n in 0..kib / 64 {
        model.write(node, &device, n * 65_536, 65_536, n);
    }
    // Overwritten, discarded and resized: every kind of record.
    model.write(node, &device, 4096, 8192, 77);
    node.discard(&device, 16_384, 4096, false).expect("alive").expect("a discard");
    model.bytes[16_384..20_480].fill(0);
    let volume = node.volume("stuck");
    node.must("a snapshot", async move { volume.snapshot(name("mark")).await.map(drop) });
    model.write(node, &device, 32_768, 4096, 78);
    node.flush(&device).expect("alive").expect("a flush");
    model
}

/// Bytes that the other volume writes.
fn lap(node: &Node, model: &mut Model, bytes: u64, seed: u64) -> Duration {
    let device = node.device("busy");
    let piece = 128 << 10;
    let write = |n: u64| model.write(node, &device, n * piece % (4 * MIB), piece, seed + n);
    (0..bytes / piece).map(write).max().unwrap_or_default()
}

#[test]
fn a_volume_whose_store_is_away_holds_up_nobody_else() {
    let (mut node, away) = two_pools(32 * MIB);
    let stuck = get_stuck(&node, &away, 3 << 10);
    let mut busy = Model { volume: "busy", bytes: vec![0; 4 << 20] };
    for round in 0..10 {
        let slowest = lap(&node, &mut busy, 32 * MIB, 1000 * round);
        assert!(slowest < Duration::from_secs(2), "round {round}: a write took {slowest:?}");
        stuck.prove(&node, "while its store is away");
    }
    let reads = node.disk.counts().reads;
    stuck.prove(&node, "from the journal");
    assert!(node.disk.counts().reads > reads, "its layers were meant to have given up their bytes");
    away.away_for(Duration::ZERO);
    let volume = node.volume("stuck");
    node.must("seal", async move { volume.seal().await });
    stuck.prove(&node, "put");
    busy.prove(&node, "beside it");
    node.crash(CrashMode::Lost, InFlight::Lost);
    node.reopen();
    stuck.prove(&node, "after a power cut");
}

#[test]
fn what_was_carried_is_found_after_a_power_cut() {
    for mode in CrashMode::ALL {
        let (mut node, away) = two_pools(16 * MIB);
        let stuck = get_stuck(&node, &away, 1 << 10);
        let mut busy = Model { volume: "busy", bytes: vec![0; 4 << 20] };
        for round in 0..3 {
            lap(&node, &mut busy, 20 * MIB, 100 * round);
            let device = node.device("busy");
            node.flush(&device).expect("alive").expect("a flush");
            drop(device);
            node.crash(mode, InFlight::Lost);
            // Coordination and the manifest are there, so it opens; what it needs is in the journal alone.
            away.away_for(Duration::ZERO);
            node.reopen();
            away.away_for(HOUR);
            stuck.prove(&node, &format!("{mode:?}, round {round}"));
            busy.prove(&node, &format!("{mode:?}, round {round}"));
        }
        away.away_for(Duration::ZERO);
        let volume = node.volume("stuck");
        node.must("seal", async move { volume.seal().await });
        stuck.prove(&node, &format!("{mode:?}, put"));
    }
}

#[test]
fn a_volume_that_can_not_be_opened_is_carried() {
    let (mut node, away) = two_pools(16 * MIB);
    let stuck = get_stuck(&node, &away, 1 << 10);
    let mut busy = Model { volume: "busy", bytes: vec![0; 4 << 20] };
    for round in 0..3 {
        node.crash(CrashMode::Lost, InFlight::Lost);
        let failed = node.open().expect("the world runs").expect("the shard opens");
        assert_eq!(failed.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>(), ["stuck"]);
        busy.bytes = vec![0; 4 << 20];
        let device = node.device("busy");
        node.discard(&device, 0, 4 * MIB, false).expect("alive").expect("a discard");
        drop(device);
        let slowest = lap(&node, &mut busy, 40 * MIB, 100 * round);
        assert!(slowest < Duration::from_secs(2), "round {round}: a write took {slowest:?}");
    }
    away.away_for(Duration::ZERO);
    // In the process that has carried it, and in the next.
    let (shard, coord) = (node.shard(), std::sync::Arc::clone(&node.coord));
    node.must("open", async move {
        let records =
            varve_coord::Records::new(&*coord).list_volumes().await.map_err(varve_engine::EngineError::from)?;
        let (record, _) = records.into_iter().find(|(record, _)| record.name == name("stuck")).expect("it is recorded");
        shard.open_volume(record.id).await.map(drop)
    });
    stuck.prove(&node, "opened at last");
    busy.prove(&node, "beside it");
    node.crash(CrashMode::Lost, InFlight::Lost);
    node.reopen();
    stuck.prove(&node, "after a power cut");
}

#[test]
fn layers_that_are_gathered_while_their_places_move_are_put_whole() {
    let mut node = Node::new(SimOptions { most_steps: 50_000_000, ..SimOptions::seed(5) }, 16 * MIB);
    node.limits = Limits { layer_ram: 512 << 10, layer_runs: 4096, ..node.limits };
    node.pool.segment_size = Some(MIB);
    let away = node.create_pool("away");
    node.create().expect("the world runs").expect("the shard starts");
    node.create_volume_in("away", "stuck", 4 * MIB);
    node.create_volume("busy", 4 * MIB);
    away.away_for(HOUR);
    let mut stuck = Model { volume: "stuck", bytes: vec![0; 4 << 20] };
    let device = node.device("stuck");
    for n in 0..1000u64 {
        // Each a piece of its own.
        stuck.write(&node, &device, n * 37 % 1000 * 4096, 4096, n);
    }
    node.flush(&device).expect("alive").expect("a flush");
    // A layer takes longer to gather than the ring to come round.
    node.disk.set_timing(DiskTiming { read: Duration::from_millis(4), ..DiskTiming::default() });
    drop(take_counts());
    let mut busy = Model { volume: "busy", bytes: vec![0; 4 << 20] };
    lap(&node, &mut busy, 16 * MIB, 1);
    away.away_for(Duration::ZERO);
    lap(&node, &mut busy, 160 * MIB, 1000);
    let volume = node.volume("stuck");
    node.must("seal", async move { volume.seal().await });
    let moved = take_counts().into_iter().find(|(branch, _)| *branch == Branch::PlaceMoved);
    assert!(moved.is_none_or(|(_, count)| count > 0), "no place has moved while a layer was gathered");
    stuck.prove(&node, "put");
    busy.prove(&node, "beside it");
}

#[test]
fn an_idle_volume_holds_up_nobody() {
    let (node, _) = two_pools_with(16 * MIB, 64 * MIB);
    let device = node.device("stuck");
    let mut idle = Model { volume: "stuck", bytes: vec![0; 4 << 20] };
    idle.write(&node, &device, 0, 4096, 1);
    let mut busy = Model { volume: "busy", bytes: vec![0; 4 << 20] };
    lap(&node, &mut busy, 64 * MIB, 1);
    assert!(!node.volume("stuck").counts().is_sealed, "it was not sealed for others to have room");
    idle.prove(&node, "idle");
}

#[test]
fn while_all_of_the_journal_is_needed_nothing_is_carried() {
    let (node, away) = two_pools(16 * MIB);
    let stuck = get_stuck(&node, &away, 1 << 10);
    node.server.away_for(HOUR);
    let device = node.device("busy");
    let answered = Rc::new(Cell::new(0));
    for n in 0..256u64 {
        let (device, answered) = (Rc::clone(&device), Rc::clone(&answered));
        node.env.spawn(Box::pin(async move {
            let submit = device.write(n % 64 * 65_536, pattern(n, 65_536).into(), false);
            finish(&device, submit).await.expect("a write");
            answered.set(answered.get() + 1);
        }));
    }
    node.world.run_for(Duration::from_secs(1800)).expect("the world runs");
    let written = node.disk.counts().written;
    node.world.run_for(Duration::from_secs(600)).expect("the world runs");
    assert!(answered.get() < 256, "the journal was meant to be full: {}", answered.get());
    assert!(node.disk.counts().written - written < MIB, "the same records are copied round and round");
    node.server.away_for(Duration::ZERO);
    node.world.run_for(Duration::from_secs(600)).expect("the world runs");
    assert_eq!(answered.get(), 256);
    stuck.prove(&node, "beside it");
}

#[test]
fn a_sync_that_fails_while_records_are_carried_loses_nothing() {
    for nth in 2..14 {
        let (mut node, away) = two_pools(16 * MIB);
        let stuck = get_stuck(&node, &away, 1 << 10);
        let mut busy = Model { volume: "busy", bytes: vec![0; 4 << 20] };
        lap(&node, &mut busy, 6 * MIB, 1);
        node.disk.fail_sync(nth);
        lap(&node, &mut busy, 12 * MIB, 100);
        stuck.prove(&node, &format!("sync {nth} failed"));
        assert!(node.shard().counts().journal_failed, "sync {nth} was meant to fail");
        node.crash(CrashMode::Lost, InFlight::Lost);
        away.away_for(Duration::ZERO);
        node.reopen();
        stuck.prove(&node, &format!("sync {nth} failed, after a power cut"));
    }
}

/// One life that ends at the I/O of this number behind the moment when the ring has come round. False where it ended by itself.
fn life(number: u64, mode: CrashMode, fate: InFlight) -> bool {
    let what = format!("I/O {number}, {mode:?}, {fate:?}");
    let (mut node, away) = two_pools(9 * MIB);
    let stuck = get_stuck(&node, &away, 512);
    let mut busy = Model { volume: "busy", bytes: vec![0; 4 << 20] };
    lap(&node, &mut busy, 2 * MIB, 1);
    node.env.points().at(node.env.points().passed() + number);
    let device = node.device("busy");
    let done = node.run(async move {
        for n in 0..20u64 {
            let submit = device.write(n % 8 * 524_288, pattern(n, 524_288).into(), false);
            finish(&device, submit).await?;
            if n % 4 == 3 {
                wait(device.flush()).await?;
            }
        }
        Ok::<_, EngineError>(())
    });
    let died = match done {
        Ok(Ok(())) => false,
        Ok(Err(_)) if node.env.points().dead() => true,
        Ok(Err(error)) => panic!("{what}: {error}"),
        Err(RunError::Dead { .. }) => true,
        Err(error) => panic!("{what}: {error}"),
    };
    node.crash(mode, fate);
    away.away_for(Duration::ZERO);
    node.reopen();
    away.away_for(HOUR);
    stuck.prove(&node, &what);
    // It goes on, and the ring comes round once more.
    lap(&node, &mut Model { volume: "busy", bytes: vec![0; 4 << 20] }, 12 * MIB, 1000);
    stuck.prove(&node, &format!("{what}, gone on"));
    node.crash(CrashMode::Lost, InFlight::Lost);
    away.away_for(Duration::ZERO);
    node.reopen();
    stuck.prove(&node, &format!("{what}, after the second crash"));
    died
}

#[test]
fn a_crash_at_every_io_while_records_are_carried_loses_nothing() {
    let fates = [InFlight::Lost, InFlight::Landed, InFlight::Late(Duration::from_millis(700))];
    let (mut deaths, mut number) = (0, 0);
    let steps = if all() { 1 } else { 7 };
    loop {
        let mode = CrashMode::ALL[number as usize / steps % CrashMode::ALL.len()];
        if !life(number, mode, fates[number as usize % 3]) {
            break;
        }
        deaths += 1;
        number += steps as u64;
        assert!(number < 2000, "the life has more I/Os than it was meant to");
    }
    assert!(deaths > 100 / steps, "only {deaths} deaths: the life is shorter than it was meant to be");
}

/// Places of records in the file, by what they are of the volume that is stuck.
#[test]
fn a_spoilt_first_place_costs_nothing_once_the_copy_stands() {
    let (mut node, away) = two_pools(16 * MIB);
    let stuck = get_stuck(&node, &away, 256);
    let mut busy = Model { volume: "busy", bytes: vec![0; 4 << 20] };
    lap(&node, &mut busy, 24 * MIB, 1);
    node.crash(CrashMode::Kept, InFlight::Lost);
    // Where the first records of the journal were: the ring has come round, and whatever stands there now, it is not they.
    node.disk.flip_bit(RING_START + 64, 3);
    away.away_for(Duration::ZERO);
    node.reopen();
    stuck.prove(&node, "with the first place spoilt");
}
