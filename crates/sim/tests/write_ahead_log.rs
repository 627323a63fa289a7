// SPDX-License-Identifier: Apache-2.0
//! Crashes at every I/O of a small write-ahead log: a right one survives them all, and each wrong one is caught.
//!
//! The log takes numbered records, syncs, acknowledges, and puts every fourth state as a snapshot object. The promise:
//! after a crash every acknowledged record is there, and nothing is there that was never written. Four planted bugs show that the tool can
//! tell: no sync, no checksum, an acknowledgement before the sync, and taking a put without an answer for one that did not happen.

use bytes::Bytes;
use std::cell::Cell;
use std::io::IoSlice;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use varve_env::{Disk, ObjectStore, PutOutcome, StoreErrorKind};
use varve_sim::{
    CrashMode, DiskMedium, InFlight, RunError, SimDisk, SimOptions, SimStore, SimWorld, StoreFault, StoreOp,
    StoreServer, at_every_io,
};

const RECORD: u64 = 2048;
const RECORDS: u64 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    None,
    NoSync,
    NoChecksum,
    EarlyAck,
    PutTwice,
}

/// A record: its number in each of its words, and a checksum of them at the end.
fn record(number: u64) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..RECORD / 8 - 1).flat_map(|word| (number * 1000 + word).to_le_bytes()).collect();
    bytes.extend_from_slice(&checksum(&bytes).to_le_bytes());
    bytes
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(7, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// How many good records the log begins with.
async fn recover(disk: &SimDisk, bug: Bug) -> Result<u64, String> {
    let mut count = 0;
    while (count + 1) * RECORD <= disk.len() {
        let bytes = disk.read_at(count * RECORD, RECORD as usize).await.map_err(|error| error.to_string())?;
        let (body, sum) = bytes.split_at(RECORD as usize - 8);
        let good = if bug == Bug::NoChecksum { body[0] != 0 } else { checksum(body).to_le_bytes() == sum };
        if !good {
            break;
        }
        if bytes != record(count + 1) {
            return Err(format!("record {} holds what was never written", count + 1));
        }
        count += 1;
    }
    Ok(count)
}

/// Writes all records that are not there yet. `acknowledged` is what a client has been told.
async fn run(disk: SimDisk, store: Arc<SimStore>, bug: Bug, acknowledged: Rc<Cell<u64>>) -> Result<(), String> {
    let found = recover(&disk, bug).await?;
    if found < acknowledged.get() {
        return Err(format!("{} records were acknowledged and {found} are there", acknowledged.get()));
    }
    // What was found may be in the page cache only, and is served from now on: the same as acknowledged.
    disk.sync().await.map_err(|error| error.to_string())?;
    acknowledged.set(found);
    for number in found + 1..=RECORDS {
        let bytes = record(number);
        let (first, second) = bytes.split_at(100);
        let place = (number - 1) * RECORD;
        if disk.write_at(place, &[IoSlice::new(first), IoSlice::new(second)]).is_err() {
            return Err("a write failed".to_owned());
        }
        if bug == Bug::EarlyAck {
            acknowledged.set(number);
        }
        if bug != Bug::NoSync {
            disk.sync().await.map_err(|error| error.to_string())?;
        }
        acknowledged.set(number);
        if number.is_multiple_of(4) {
            put(&store, number, bug).await?;
        }
    }
    Ok(())
}

/// Puts the snapshot of a number; an answer that did not come is followed by a second put.
async fn put(store: &SimStore, number: u64, bug: Bug) -> Result<(), String> {
    let name = format!("log/snapshot/{number}");
    for attempt in 0..5 {
        let body = Bytes::from(number.to_le_bytes().to_vec());
        match store.put(&name, body.into()).await {
            Ok(PutOutcome::Created) => return Ok(()),
            Ok(PutOutcome::Exists) if bug == Bug::PutTwice => return Err(format!("{name} is not ours ({attempt})")),
            Ok(PutOutcome::Exists) => {
                let there = store.get_head(&name, 100).await.map_err(|error| error.to_string())?;
                let ours = there == number.to_le_bytes().to_vec();
                return if ours { Ok(()) } else { Err(format!("{name} is not ours")) };
            }
            Err(error) if error.kind == StoreErrorKind::Unavailable => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Err("the store stays away".to_owned())
}

/// One life that dies at I/O `number`, a crash, and a second life that must find all and finish. `Ok(false)`: the first did not die.
fn scenario(number: u64, mode: CrashMode, fate: InFlight, bug: Bug) -> Result<bool, String> {
    let world = SimWorld::new(SimOptions::seed(number));
    let medium = DiskMedium::new(&world, "log", RECORD * RECORDS);
    let server = StoreServer::new(&world, "pool");
    server.fail(StoreOp::Put, "", 0, StoreFault::LostAnswer);
    server.fail(StoreOp::Put, "", 2, StoreFault::Late(Duration::from_millis(3)));
    let acknowledged = Rc::new(Cell::new(0));

    let first = world.process("node");
    first.points().at(number);
    let life = run(medium.open(&first), server.client(&first), bug, Rc::clone(&acknowledged));
    let died = match world.block_on(&first, life) {
        Ok(result) => result.map(|()| false)?,
        Err(RunError::Dead { .. }) => true,
        Err(error) => return Err(error.to_string()),
    };
    world.kill(&first);
    medium.crash(mode);
    server.settle(&first, fate);

    let second = world.process("node");
    let life = run(medium.open(&second), server.client(&second), bug, Rc::clone(&acknowledged));
    world.block_on(&second, life).map_err(|error| error.to_string())??;
    world.run_until_idle().map_err(|error| error.to_string())?;
    if acknowledged.get() != RECORDS {
        return Err("it did not finish".to_owned());
    }
    for object in server.names() {
        let snapshot: u64 = object.rsplit('/').next().and_then(|last| last.parse().ok()).ok_or("odd name")?;
        if server.object(&object).ok_or("gone")? != snapshot.to_le_bytes().to_vec() {
            return Err(format!("{object} is wrong"));
        }
    }
    Ok(died)
}

/// Every I/O × every mode × every fate of puts. Gives the number of deaths, or the first failure.
fn everywhere(bug: Bug, modes: &[CrashMode]) -> Result<u64, String> {
    let mut deaths = 0;
    for &mode in modes {
        for fate in [InFlight::Lost, InFlight::Landed, InFlight::Late(Duration::from_millis(20))] {
            let mut failure = None;
            deaths += at_every_io(1000, |number| match scenario(number, mode, fate, bug) {
                Ok(died) => died,
                Err(error) => {
                    failure = Some(format!("{bug:?}, {mode:?}, {fate:?}, I/O {number}: {error}"));
                    false
                }
            });
            if let Some(failure) = failure {
                return Err(failure);
            }
        }
    }
    Ok(deaths)
}

#[test]
fn a_log_that_syncs_survives_a_crash_at_every_io() {
    let deaths = everywhere(Bug::None, &CrashMode::ALL).unwrap();
    assert!(deaths >= 18 * 3 * RECORDS, "only {deaths} deaths: the scenario is shorter than it was meant to be");
}

#[test]
fn a_log_without_its_sync_is_caught() {
    let failure = everywhere(Bug::NoSync, &CrashMode::ALL).unwrap_err();
    assert!(failure.contains("were acknowledged"), "{failure}");
    everywhere(Bug::NoSync, &[CrashMode::Kill]).expect("the death of the process alone cannot tell");
}

#[test]
fn an_acknowledgement_before_the_sync_is_caught() {
    let failure = everywhere(Bug::EarlyAck, &[CrashMode::Lost]).unwrap_err();
    assert!(failure.contains("were acknowledged"), "{failure}");
}

#[test]
fn a_log_without_checksums_is_caught_by_torn_writes() {
    let failure = everywhere(Bug::NoChecksum, &[CrashMode::Torn]).unwrap_err();
    assert!(failure.contains("never written"), "{failure}");
}

#[test]
fn a_lost_answer_taken_for_a_failure_is_caught() {
    let failure = everywhere(Bug::PutTwice, &[CrashMode::Kept]).unwrap_err();
    assert!(failure.contains("is not ours"), "{failure}");
}
