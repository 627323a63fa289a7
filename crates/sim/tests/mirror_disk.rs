// SPDX-License-Identifier: Apache-2.0
//! Copies on disk: they outlive the mirror's process, what was flushed outlives its power, and nobody takes for whole what may lack something.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use varve_engine::{BlockDevice, Device, MirrorPhase, Volume};
use varve_env::Env;
use varve_sim::node::finish;
use varve_sim::pair::{JOINED, Member, SIZE, pair};
use varve_sim::{Chaos, CrashMode};
use varve_types::{ErrorKind, MirrorMedium, Overrides};

fn disks(seed: u64) -> (Member, Member) {
    pair(seed, false, MirrorMedium::Disk)
}

/// The other node goes on with the volume without its copy, as a person says.
fn force(member: &Member, volume: &Rc<Volume>) -> Rc<Volume> {
    let (shard, id, epoch) = (member.node.shard(), volume.id(), volume.record().epoch);
    member.node.must("force", async move { shard.take_over(id, epoch).await })
}

fn blocks(member: &Member, device: &Rc<Device>, count: u64) -> Vec<u8> {
    (0..count).map(|block| member.read(device, block)).collect()
}

#[test]
fn a_copy_outlives_the_end_of_its_process() {
    for seed in 0..10 {
        let (mut first, mut second) = disks(seed);
        let device = first.node.device("v");
        for step in 0..40_u64 {
            first.write(&device, step % 16, step as u8 + 1).expect("a write");
            if step == seed * 4 {
                let volume = first.node.volume("v");
                first.node.must("seal", async move { volume.seal().await });
            }
        }
        let expected = blocks(&first, &device, 16);
        let volume = first.node.volume("v");
        first.crash(CrashMode::Lost);
        second.crash(CrashMode::Kill);
        let ended = second.node.env.now();
        assert!(second.start().is_empty());
        second.take_over(&volume).expect("its disk has all of it");
        // The process before may have given a lease at its very end.
        assert!(second.node.env.now() - ended >= Duration::from_millis(550), "seed {seed}");
        assert_eq!(blocks(&second, &second.node.device("v"), 16), expected, "seed {seed}");
        // What it has taken over is its own now, also when it starts anew.
        second.crash(CrashMode::Lost);
        assert!(second.start().is_empty());
        assert_eq!(blocks(&second, &second.node.device("v"), 16), expected, "seed {seed}, once more");
    }
}

#[test]
fn what_was_flushed_outlives_the_power_of_both() {
    for seed in 0..10 {
        let (mut first, mut second) = disks(seed);
        let device = first.node.device("v");
        (0..4).for_each(|block| first.write(&device, block, 1).expect("a write"));
        first.node.flush(&device).expect("alive").expect("a flush");
        first.write(&device, 0, 2).expect("a write");
        let volume = first.node.volume("v");
        first.crash(CrashMode::Lost);
        second.crash(CrashMode::Lost);
        assert!(second.start().is_empty());
        let refused = second.take_over(&volume).map(drop).expect_err("it may lack something");
        assert_eq!(refused.kind(), ErrorKind::Conflict);
        // The first never comes back.
        force(&second, &volume);
        assert_eq!(blocks(&second, &second.node.device("v"), 5), [1, 1, 1, 1, 0], "seed {seed}");
    }
}

#[test]
fn an_owner_that_lost_power_takes_what_is_left_at_a_mirror_that_did_too() {
    let (mut first, mut second) = disks(3);
    let device = first.node.device("v");
    (0..4).for_each(|block| first.write(&device, block, 1).expect("a write"));
    first.node.flush(&device).expect("alive").expect("a flush");
    first.write(&device, 0, 2).expect("a write");
    drop(device);
    first.crash(CrashMode::Lost);
    // Of its writes all had just come to the disk, which nobody can know.
    second.crash(CrashMode::Kept);
    assert!(second.start().is_empty());
    assert!(first.start().is_empty(), "what both have left is all that there is");
    assert_eq!(blocks(&first, &first.node.device("v"), 5), [2, 1, 1, 1, 0]);
}

#[test]
fn a_copy_that_joins_is_not_taken_for_one_that_counts_and_does_not_stand_in_the_way_of_force() {
    let (first, mut second) = disks(4);
    let device = first.node.device("v");
    second.crash(CrashMode::Kill);
    // It goes on alone, and nothing comes to the store.
    first.node.server.set_chaos(Chaos { error_per_mille: 1000, ..Chaos::default() });
    first.write(&device, 0, 1).expect("a write");
    first.node.flush(&device).expect("alive").expect("a flush");
    assert!(second.start().is_empty());
    first.node.world.run_for(JOINED).expect("the world runs");
    assert_eq!(first.phase(), MirrorPhase::Joining);
    first.write(&device, 1, 2).expect("a write");
    first.node.world.run_for(Duration::from_millis(100)).expect("the world runs");
    let volume = first.node.volume("v");
    first.node.world.pause(&first.node.env);
    first.node.server.set_chaos(Chaos::default());
    assert_eq!(second.take_over(&volume).map(drop).expect_err("it lacks the first").kind(), ErrorKind::Conflict);
    // Of the second change it has a record that tells of the first; that one is lost, as a person was told.
    force(&second, &volume);
    assert_eq!(blocks(&second, &second.node.device("v"), 2), [0, 0]);
}

#[test]
fn changes_that_a_mirror_has_are_kept_as_long_as_they_are_needed_and_no_longer() {
    let (first, second) = disks(5);
    let device = first.node.device("v");
    let kept = || second.far.copies().expect("it lives").counts();
    (0..8).for_each(|block| first.write(&device, block, 7).expect("a write"));
    assert!(kept().on_disk == 1 && kept().disk_bytes >= 8 * 4096, "{:?}", kept());
    // What the mirror opens of its own leaves it alone.
    second.node.create_volume("other", SIZE);
    let shard = second.node.shard();
    second.node.must("open", async move { shard.open_all().await });
    assert!(kept().disk_bytes >= 8 * 4096, "{:?}", kept());
    let volume = first.node.volume("v");
    first.node.must("seal", async move { volume.seal().await });
    first.node.world.run_for(Duration::from_secs(1)).expect("the world runs");
    assert_eq!((kept().on_disk, kept().disk_bytes), (1, 0), "the store has them");
    // Much more than the journal of either has room for.
    for round in 0..40_u64 {
        let bytes = vec![round as u8 + 1; 1 << 19];
        first.node.write(&device, (round % 2) << 19, bytes, false).expect("alive").expect("a write");
    }
    assert_eq!(first.phase(), MirrorPhase::InSync, "a full mirror slows its owner and is not lost");
    first.node.world.pause(&first.node.env);
    second.take_over(&first.node.volume("v")).expect("it takes over");
    let taken = second.node.device("v");
    assert_eq!((second.read(&taken, 0), second.read(&taken, 200)), (39, 40));
}

#[test]
fn a_mirror_whose_journal_fails_is_no_mirror_any_more() {
    let (first, mut second) = disks(6);
    let device = first.node.device("v");
    first.write(&device, 0, 1).expect("a write");
    second.node.disk.fail_sync(0);
    first.node.flush(&device).expect("alive").expect("it goes on alone");
    let volume = first.node.volume("v");
    assert!(volume.record().mirror.is_none());
    second.crash(CrashMode::Kill);
    assert!(second.start().is_empty());
    first.node.world.pause(&first.node.env);
    assert_eq!(second.take_over(&volume).map(drop).expect_err("its copy is spoiled").kind(), ErrorKind::Conflict);
}

#[test]
fn where_a_copy_is_can_be_changed_while_it_is_used() {
    let (first, second) = disks(7);
    let device = first.node.device("v");
    let volume = first.node.volume("v");
    for (step, medium) in [MirrorMedium::Ram, MirrorMedium::Disk].into_iter().enumerate() {
        first.write(&device, 0, step as u8 + 1).expect("a write");
        let (set, settings) = (Rc::clone(&volume), Overrides { mirror_medium: Some(medium), ..Overrides::default() });
        first.node.must("set", async move { set.set(settings).await });
        first.node.world.run_for(JOINED).expect("the world runs");
        assert_eq!((volume.mirror().phase, volume.mirror().medium), (MirrorPhase::InSync, medium));
        let counts = second.far.copies().expect("it lives").counts();
        assert_eq!((counts.copies, counts.on_disk), (1, u64::from(medium == MirrorMedium::Disk)));
    }
}

#[test]
fn what_a_node_had_of_a_volume_that_was_taken_from_it_keeps_no_room_of_its_journal() {
    let (first, second) = pair(9, false, MirrorMedium::Ram);
    let (device, volume) = (first.node.device("v"), first.node.volume("v"));
    first.write(&device, 0, 1).expect("a write");
    first.node.world.pause(&first.node.env);
    second.take_over(&volume).expect("it takes over");
    first.node.world.resume(&first.node.env);
    first.write(&device, 0, 2).expect_err("it is fenced");
    drop(device);
    first.node.shard().forget(volume.id());
    first.node.world.run_for(Duration::from_secs(1)).expect("the world runs");
    assert!(first.node.shard().journals().iter().all(|journal| journal.empty));
}

#[test]
fn writers_that_wait_for_the_mirror_and_then_for_the_journal_go_on() {
    for medium in [MirrorMedium::Ram, MirrorMedium::Disk] {
        let (first, _second) = pair(8, false, medium);
        let device = first.node.device("v");
        let done = Rc::new(Cell::new(0));
        for writer in 0..32_u64 {
            let (device, done) = (Rc::clone(&device), Rc::clone(&done));
            first.node.env.spawn(Box::pin(async move {
                for number in 0..40_u64 {
                    let bytes = vec![number as u8 + 1; 32 << 10];
                    let written = device.write((writer % 16) << 16, bytes.into(), false);
                    finish(&device, written).await.expect("a write");
                    done.set(done.get() + 1);
                }
            }));
        }
        first.node.world.run_for(Duration::from_secs(600)).expect("the world runs");
        assert_eq!((done.get(), first.phase()), (32 * 40, MirrorPhase::InSync), "{medium:?}");
    }
}
