// SPDX-License-Identifier: Apache-2.0
//! More than one journal: volumes are shared out among them, a start finds what each has, one that fails or is full concerns its own volumes, and one that
//! is to be given up loses nothing.

use varve_sim::node;

use node::Node;
use std::rc::Rc;
use std::time::Duration;
use varve_engine::{Device, JournalRole};
use varve_sim::{CrashMode, DiskMedium, InFlight, SimOptions};

const MIB: u64 = 1 << 20;
const HOUR: Duration = Duration::from_secs(3600);

fn pattern(seed: u64, len: u64) -> Vec<u8> {
    (0..len).map(|i| ((i / 512 + 1) * (2 * seed + 3) % 251 + 1) as u8).collect()
}

/// A node with two journals of so many bytes, not started.
fn two_journals(journal: u64) -> Node {
    let mut node = Node::new(SimOptions { most_steps: 50_000_000, ..SimOptions::seed(17) }, journal);
    let disk = DiskMedium::new(&node.world, "second journal", journal);
    node.more.push((disk, JournalRole::Used));
    node
}

/// Starts it, with volumes `a` and `b` of 4 MiB.
fn started(node: &Node) {
    node.create().expect("the world runs").expect("the shard starts");
    node.create_volume("a", 4 * MIB);
    node.create_volume("b", 4 * MIB);
}

/// Writes half a MiB to each of the two and flushes.
fn write_both(node: &Node, seed: u64) {
    for (n, volume) in ["a", "b"].into_iter().enumerate() {
        let device = node.device(volume);
        let data = pattern(seed + n as u64, MIB / 2);
        node.write(&device, 0, data, false).expect("alive").expect("a write");
        node.flush(&device).expect("alive").expect("a flush");
    }
}

fn prove_both(node: &Node, seed: u64, what: &str) {
    for (n, volume) in ["a", "b"].into_iter().enumerate() {
        let device = node.device(volume);
        let bytes = node.read(&device, 0, (MIB / 2) as u32).expect("alive").expect("a read");
        assert!(bytes == pattern(seed + n as u64, MIB / 2), "{what}: {volume}");
    }
}

fn used(node: &Node) -> Vec<bool> {
    node.shard().journals().iter().map(|journal| !journal.empty).collect()
}

#[test]
fn each_volume_has_its_journal_and_a_start_finds_both() {
    for mode in CrashMode::ALL {
        let mut node = two_journals(16 * MIB);
        started(&node);
        node.server.away_for(HOUR);
        write_both(&node, 1);
        assert_eq!(used(&node), [true, true], "one volume each");
        node.crash(mode, InFlight::Lost);
        node.server.away_for(Duration::ZERO);
        node.reopen();
        prove_both(&node, 1, &format!("{mode:?}"));
        node.server.away_for(HOUR);
        write_both(&node, 5);
        node.crash(mode, InFlight::Lost);
        node.server.away_for(Duration::ZERO);
        // They are known by what they hold, not by their order.
        let first = std::mem::replace(&mut node.disk, node.more[0].0.clone());
        node.more[0].0 = first;
        node.reopen();
        prove_both(&node, 5, &format!("{mode:?}, swapped"));
    }
}

#[test]
fn a_journal_that_fails_concerns_its_own_volumes() {
    let mut node = two_journals(16 * MIB);
    started(&node);
    write_both(&node, 1);
    node.more[0].0.fail_sync(0);
    // One of the two flushes meets it, and is answered by the store.
    write_both(&node, 3);
    let failed: Vec<bool> = node.shard().journals().iter().map(|journal| journal.failed).collect();
    assert_eq!(failed, [false, true]);
    node.server.away_for(HOUR);
    let other: Vec<&str> = ["a", "b"].into_iter().filter(|volume| flushes(&node, volume)).collect();
    assert_eq!(other, ["a"], "flushes of the other volume are answered by its journal");
    node.server.away_for(Duration::ZERO);
    node.world.run_for(Duration::from_secs(60)).expect("the world runs");
    node.crash(CrashMode::Lost, InFlight::Landed);
    node.reopen();
    for volume in ["a", "b"] {
        let device = node.device(volume);
        let bytes = node.read(&device, MIB, 4096).expect("alive").expect("a read");
        assert!(bytes == pattern(9, 4096), "{volume}: what was flushed is there");
    }
}

/// Whether a write and a flush are answered within a minute.
fn flushes(node: &Node, volume: &str) -> bool {
    let device: Rc<Device> = node.device(volume);
    let done = Rc::new(std::cell::Cell::new(false));
    let told = Rc::clone(&done);
    varve_env::Env::spawn(
        &*node.env,
        Box::pin(async move {
            let write = varve_engine::BlockDevice::write(&*device, MIB, pattern(9, 4096).into(), false);
            node::finish(&device, write).await.expect("a write");
            node::wait(varve_engine::BlockDevice::flush(&*device)).await.expect("a flush");
            told.set(true);
        }),
    );
    node.world.run_for(Duration::from_secs(60)).expect("the world runs");
    done.get()
}

#[test]
fn a_journal_that_is_given_up_is_copied_before_anything_is_served() {
    for mode in CrashMode::ALL {
        let mut node = two_journals(16 * MIB);
        started(&node);
        node.server.away_for(HOUR);
        write_both(&node, 1);
        node.crash(mode, InFlight::Lost);
        node.more[0].1 = JournalRole::Leaving;
        node.server.away_for(Duration::ZERO);
        // The puts are refused: what the journal has stays nowhere else.
        let puts = varve_sim::StoreFault::Error(varve_env::StoreErrorKind::Unavailable);
        (0..1000).for_each(|nth| node.server.fail(varve_sim::StoreOp::Put, "/seg/", nth, puts));
        node.reopen();
        let counts = node.shard().journals();
        assert!(counts[1].leaving && counts[1].empty && !counts[0].empty, "{counts:?}");
        prove_both(&node, 1, &format!("{mode:?}, given up"));
        // It is not there any more.
        node.crash(CrashMode::Lost, InFlight::Lost);
        node.more.clear();
        node.reopen();
        prove_both(&node, 1, &format!("{mode:?}, without it"));
        node.server.forget_faults();
    }
}

#[test]
fn a_crash_at_every_io_while_a_journal_is_given_up_loses_nothing() {
    let deaths = varve_sim::at_every_io(600, |number| {
        let mut node = two_journals(9 * MIB);
        started(&node);
        node.server.away_for(HOUR);
        write_both(&node, 1);
        node.crash(CrashMode::Lost, InFlight::Lost);
        node.server.away_for(Duration::ZERO);
        node.more[0].1 = JournalRole::Leaving;
        node.env.points().at(number);
        let died = node.open().is_err();
        node.crash(CrashMode::ALL[number as usize % CrashMode::ALL.len()], InFlight::Lost);
        // Both are there until one is known to be empty.
        node.reopen();
        prove_both(&node, 1, &format!("I/O {number}"));
        died
    });
    assert!(deaths > 20, "only {deaths} deaths");
}

#[test]
fn a_volume_whose_journal_has_no_room_for_what_another_has_is_opened_later() {
    let mut node = two_journals(9 * MIB);
    started(&node);
    node.server.away_for(HOUR);
    // Some five MiB need each of the two journals: together they are more than one takes.
    for volume in ["a", "b"] {
        let device = node.device(volume);
        for n in 0..24u64 {
            node.write(&device, n * 131_072 % (4 * MIB), pattern(n, 131_072), false).expect("alive").expect("a write");
        }
        node.flush(&device).expect("alive").expect("a flush");
    }
    node.crash(CrashMode::Lost, InFlight::Lost);
    node.more[0].1 = JournalRole::Leaving;
    node.server.away_for(Duration::ZERO);
    let puts = varve_sim::StoreFault::Error(varve_env::StoreErrorKind::Unavailable);
    (0..1000).for_each(|nth| node.server.fail(varve_sim::StoreOp::Put, "/seg/", nth, puts));
    let failed = node.open().expect("the world runs").expect("the shard opens");
    let [(name, error)] = &failed[..] else { panic!("one has no room: {failed:?}") };
    assert_eq!(error.kind(), varve_types::ErrorKind::Busy, "{name}: {error}");
    assert!(!node.shard().journals()[1].empty, "what it has is still needed");
    node.server.forget_faults();
    let (shard, coord) = (node.shard(), std::sync::Arc::clone(&node.coord));
    node.world.run_for(Duration::from_secs(60)).expect("the world runs");
    let wanted = name.clone();
    node.must("open", async move {
        let records =
            varve_coord::Records::new(&*coord).list_volumes().await.map_err(varve_engine::EngineError::from)?;
        let (record, _) = records.into_iter().find(|(record, _)| record.name == wanted).expect("it is recorded");
        shard.open_volume(record.id).await.map(drop)
    });
    assert!(node.shard().journals()[1].empty);
    for volume in ["a", "b"] {
        let device = node.device(volume);
        for n in 0..24u64 {
            let bytes = node.read(&device, n * 131_072 % (4 * MIB), 131_072).expect("alive").expect("a read");
            assert!(bytes == pattern(n, 131_072), "{volume}: write {n}");
        }
    }
}
