// SPDX-License-Identifier: Apache-2.0
//! A volume's mirror: nothing that was answered is lost while one of the two nodes lives, and nobody takes over what he does not have.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use varve_engine::{BlockDevice, Device, EngineError, MirrorPhase, SessionRequest, Volume};
use varve_sim::node::name;
use varve_sim::pair::{JOINED, Member, SIZE, pair};
use varve_sim::{Chaos, CrashMode};
use varve_types::{ErrorKind, MirrorMedium, MirrorMode, Overrides, SessionId};

#[test]
fn what_was_answered_is_at_the_mirror() {
    for seed in 0..20 {
        let medium = if seed % 2 == 0 { MirrorMedium::Ram } else { MirrorMedium::Disk };
        let (first, second) = pair(seed, false, medium);
        let device = first.node.device("v");
        for step in 0..40_u64 {
            first.write(&device, step % 16, step as u8 + 1).expect("a write");
            if step == seed * 2 {
                let volume = first.node.volume("v");
                first.node.must("seal", async move { volume.seal().await });
            }
        }
        assert_eq!(device.position().safe, device.position().sequence, "all of it is safe");
        let volume = first.node.volume("v");
        first.node.world.pause(&first.node.env);
        second.take_over(&volume).expect("it takes over");
        let taken = second.node.device("v");
        for block in 0..16_u64 {
            let last = (0..40).rev().find(|step| step % 16 == block).expect("it was written");
            assert_eq!(second.read(&taken, block), last as u8 + 1, "seed {seed}, block {block}");
        }
        // Whoever was taken over answers nothing any more.
        first.node.world.resume(&first.node.env);
        let late = first.write(&device, 0, 99).expect_err("it is fenced");
        assert_eq!(late.kind(), ErrorKind::Fenced);
        assert_ne!(second.read(&taken, 0), 99);
    }
}

#[test]
fn a_mirror_that_is_lost_is_recorded_before_anything_is_answered_without_it() {
    let (first, mut second) = pair(3, false, MirrorMedium::Ram);
    let device = first.node.device("v");
    first.write(&device, 0, 1).expect("a write");
    second.crash(CrashMode::Kill);
    first.write(&device, 1, 2).expect("it goes on alone");
    let volume = first.node.volume("v");
    assert_eq!((first.phase(), named(&first, &volume)), (MirrorPhase::Alone, None));
    // The one that comes back empty takes nothing over, and joins again.
    assert!(second.start().is_empty());
    assert_eq!(second.take_over(&volume).map(drop).expect_err("it has nothing").kind(), ErrorKind::Conflict);
    first.node.world.run_for(JOINED).expect("the world runs");
    assert_eq!(first.phase(), MirrorPhase::InSync);
    first.write(&device, 2, 3).expect("a write");
    first.node.world.pause(&first.node.env);
    second.take_over(&volume).expect("it has all");
    let taken = second.node.device("v");
    assert_eq!([0, 1, 2].map(|block| second.read(&taken, block)), [1, 2, 3]);
}

/// The volume, for an edge that has it for itself.
fn attach(member: &Member) -> Rc<Device> {
    let volume = member.node.volume("v");
    let request = SessionRequest {
        session: SessionId::from_bytes([7; 16]),
        edge: "edge".to_owned(),
        exclusive: true,
        steal: false,
        timeline: None,
        promises: Vec::new(),
    };
    Rc::new(member.node.must("attach", async move { volume.begin_session(request).await }).device)
}

/// What coordination says of the mirror of a member's volume.
fn named(member: &Member, volume: &Rc<Volume>) -> Option<varve_coord::MirrorRecord> {
    let (coord, id) = (Rc::new(Arc(member.node.coord.clone())), volume.id());
    member.node.must("look", async move { coord.load(id).await }).mirror
}

#[test]
fn a_mirror_that_is_lost_while_it_is_being_named_is_named_no_more_when_it_is_done_without() {
    for step in 0..80 {
        let (first, mut second) = pair(3, false, MirrorMedium::Ram);
        let (device, volume) = (first.node.device("v"), first.node.volume("v"));
        second.crash(CrashMode::Kill);
        first.write(&device, 0, 1).expect("it goes on alone");
        assert!(second.start().is_empty());
        let tick = Duration::from_micros(100);
        for _ in 0..400_000 {
            if first.phase() == MirrorPhase::InSync {
                break;
            }
            first.node.world.run_for(tick).expect("the world runs");
        }
        // Coordination is being told.
        first.node.world.run_for(step * tick).expect("the world runs");
        second.crash(CrashMode::Kill);
        first.write(&device, 1, 2).expect("it goes on alone");
        assert_eq!((first.phase(), named(&first, &volume)), (MirrorPhase::Alone, None), "step {step}");
        first.node.world.run_for(Duration::from_millis(50)).expect("the world runs");
        assert_eq!(named(&first, &volume), None, "step {step}, later");
    }
}

#[test]
fn a_mirror_that_is_not_wanted_any_more_counts_until_it_is_named_no_more() {
    let (first, second) = pair(8, false, MirrorMedium::Ram);
    let (device, volume) = (first.node.device("v"), first.node.volume("v"));
    second.far.cut(true);
    let settings = Overrides { mirror: Some(MirrorMode::None), ..Overrides::default() };
    let set = Rc::clone(&volume);
    first.node.must("set", async move { set.set(settings).await });
    first.write(&device, 0, 1).expect("it goes on alone");
    assert_eq!(named(&first, &volume), None);
    first.node.flush(&device).expect("alive").expect("a flush");
}

#[test]
fn an_edge_is_not_told_that_is_safe_what_only_the_owner_has_while_a_mirror_may_take_over() {
    let (first, second) = pair(9, false, MirrorMedium::Ram);
    let (device, volume) = (attach(&first), first.node.volume("v"));
    let settings = Overrides { mirror: Some(MirrorMode::Async), ..Overrides::default() };
    let set = Rc::clone(&volume);
    first.node.must("set", async move { set.set(settings).await });
    second.far.cut(true);
    first.write(&device, 0, 1).expect("it does not wait for the mirror");
    let flushing = Rc::clone(&device);
    varve_env::Env::spawn(
        &*first.node.env,
        Box::pin(async move { drop(varve_sim::node::finish(&flushing, flushing.flush()).await) }),
    );
    // The journal has it on stable media, and the mirror is still named.
    first.node.world.run_for(Duration::from_millis(500)).expect("the world runs");
    assert!(named(&first, &volume).is_some());
    assert!(device.position().safe < device.position().sequence);
    first.node.world.run_for(Duration::from_secs(5)).expect("the world runs");
    assert_eq!((named(&first, &volume), first.phase()), (None, MirrorPhase::Alone));
    assert_eq!(device.position().safe, device.position().sequence);
}

#[test]
fn a_mirror_that_does_not_know_its_copy_any_more_is_not_taken_for_one_that_has_nothing() {
    let (mut first, second) = pair(10, false, MirrorMedium::Ram);
    let device = first.node.device("v");
    first.write(&device, 0, 1).expect("a write");
    let volume = first.node.volume("v");
    drop(device);
    first.crash(CrashMode::Lost);
    second.far.copies().expect("it lives").retain(|_, _, _| false);
    let failed = first.start();
    assert_eq!(failed.first().map(|(_, error)| error.kind()), Some(ErrorKind::Unavailable), "{failed:?}");
    assert_eq!(second.take_over(&volume).map(drop).expect_err("it has nothing").kind(), ErrorKind::Conflict);
}

#[test]
fn a_mirror_that_is_cut_off_may_not_be_taken_for_one() {
    let (first, second) = pair(4, false, MirrorMedium::Ram);
    let device = first.node.device("v");
    first.write(&device, 0, 1).expect("a write");
    second.far.cut(true);
    first.write(&device, 1, 2).expect("it goes on alone");
    let volume = first.node.volume("v");
    let refused = second.take_over(&volume).map(drop).expect_err("it lacks the second write");
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    first.write(&device, 2, 3).expect("the owner goes on");
}

#[test]
fn a_strict_volume_waits_for_its_mirror() {
    let (first, mut second) = pair(5, true, MirrorMedium::Ram);
    let device = first.node.device("v");
    second.crash(CrashMode::Kill);
    let waits = Rc::clone(&device);
    let answered = Rc::new(std::cell::Cell::new(false));
    let told = Rc::clone(&answered);
    varve_env::Env::spawn(
        &*first.node.env,
        Box::pin(async move {
            varve_sim::node::finish(&waits, waits.write(0, vec![7; 4096].into(), false)).await.expect("a write");
            told.set(true);
        }),
    );
    // Its segment is put when it is old enough, and in the store it is safe; until then it waits.
    first.node.world.run_for(Duration::from_secs(5)).expect("the world runs");
    assert!(!answered.get());
    assert!(second.start().is_empty());
    first.node.world.run_for(JOINED).expect("the world runs");
    assert!(answered.get() && first.phase() == MirrorPhase::InSync);
}

#[test]
fn an_owner_whose_power_failed_finds_at_its_mirror_what_it_has_lost() {
    for seed in 0..20 {
        let (mut first, second) = pair(seed, false, MirrorMedium::Ram);
        let device = first.node.device("v");
        for step in 0..12_u64 {
            first.write(&device, step, step as u8 + 1).expect("a write");
        }
        drop(device);
        first.crash(CrashMode::Lost);
        // Until it has asked it does not serve: the mirror may know more.
        second.far.cut(true);
        let failed = first.start();
        assert_eq!(failed.first().map(|(_, error)| error.kind()), Some(ErrorKind::Unavailable), "{failed:?}");
        second.far.cut(false);
        let shard = first.node.shard();
        let failed = first.node.must("open", async move { shard.open_all().await });
        assert!(failed.is_empty(), "{failed:?}");
        let device = first.node.device("v");
        for step in 0..12_u64 {
            assert_eq!(first.read(&device, step), step as u8 + 1, "seed {seed}");
        }
        drop(second);
    }
}

#[test]
fn both_lose_power_and_the_mirror_boots_first() {
    let (mut first, mut second) = pair(6, false, MirrorMedium::Ram);
    let device = first.node.device("v");
    first.write(&device, 0, 1).expect("a write");
    first.node.flush(&device).expect("alive").expect("a flush");
    let volume = first.node.volume("v");
    drop(device);
    first.crash(CrashMode::Lost);
    second.crash(CrashMode::Lost);
    assert!(second.start().is_empty());
    assert_eq!(second.take_over(&volume).map(drop).expect_err("it is empty").kind(), ErrorKind::Conflict);
    drop(volume);
    let failed = first.start();
    assert!(failed.is_empty(), "{failed:?}");
    let device = first.node.device("v");
    assert_eq!(first.read(&device, 0), 1, "what was flushed is in its journal");
}

#[test]
fn marks_holes_and_sizes_are_copied_too() {
    let (first, second) = pair(7, false, MirrorMedium::Ram);
    let device = first.node.device("v");
    // Nothing comes to the store: all that the other node will know is the copy.
    first.node.server.set_chaos(Chaos { error_per_mille: 1000, ..Chaos::default() });
    (0..8).for_each(|block| first.write(&device, block, block as u8 + 1).expect("a write"));
    first.node.discard(&device, 4096, 8192, false).expect("alive").expect("a discard");
    let volume = first.node.volume("v");
    first.node.must("resize", async move { volume.resize(2 * SIZE, false).await });
    let volume = first.node.volume("v");
    first.node.must("snapshot", async move { volume.snapshot(name("s")).await.map(drop) });
    first.write(&device, 0, 77).expect("a write");
    let volume = first.node.volume("v");
    first.node.world.pause(&first.node.env);
    first.node.server.set_chaos(Chaos::default());
    let taken = second.take_over(&volume).expect("it takes over");
    assert_eq!(taken.size(), 2 * SIZE);
    let found = second.node.device("v");
    assert_eq!([0, 1, 2, 3].map(|block| second.read(&found, block)), [77, 0, 0, 4]);
    let snapshots = second.node.must("list", async move { taken.snapshots().await });
    assert_eq!(snapshots.iter().map(|s| s.name.to_string()).collect::<Vec<_>>(), ["s"]);
}

/// Coordination, read from outside.
struct Arc(std::sync::Arc<varve_coord::Memory>);

impl Arc {
    async fn load(&self, id: varve_types::VolumeId) -> Result<varve_coord::VolumeRecord, EngineError> {
        Ok(varve_coord::Records::new(&*self.0).load_volume(id).await?.0)
    }
}

/// What a read of block 0 comes to within a time, if to anything.
fn reads_within(member: &Member, device: &Rc<Device>, time: Duration) -> Option<Result<u8, EngineError>> {
    let (found, device) = (Rc::new(RefCell::new(None)), Rc::clone(device));
    let tell = Rc::clone(&found);
    varve_env::Env::spawn(
        &*member.node.env,
        Box::pin(async move {
            let read = varve_sim::node::read(&device, 0, 4096).await;
            tell.replace(Some(read.map(|bytes| bytes[0])));
        }),
    );
    member.node.world.run_for(time).expect("the world runs");
    found.take()
}

/// Takes the volume over while its owner, which has just read for a plain client, is cut off. Gives when that began.
fn take_from(first: &Member, second: &Member, plain: &Rc<Device>) -> (Duration, Rc<Volume>) {
    assert_eq!(first.read(plain, 0), 1);
    second.far.cut(true);
    let since = varve_env::Env::now(&*first.node.env);
    (since, second.take_over(&first.node.volume("v")).expect("it has a copy"))
}

#[test]
fn a_plain_client_reads_nothing_old_at_an_owner_that_was_taken_over() {
    let (first, second) = pair(11, false, MirrorMedium::Ram);
    let plain = first.node.device("v");
    first.write(&plain, 0, 1).expect("a write");
    let (since, _taken) = take_from(&first, &second, &plain);
    // Whatever the mirror has promised it has kept.
    let waited = varve_env::Env::now(&*second.node.env) - since;
    assert!(waited >= Duration::from_millis(500) && waited < Duration::from_millis(700), "{waited:?}");
    let new = second.node.device("v");
    second.write(&new, 0, 2).expect("a write");
    let read = reads_within(&first, &plain, Duration::from_secs(5));
    assert!(matches!(read, Some(Err(_))), "{read:?}");
}

#[test]
fn a_plain_client_reads_as_long_as_its_owner_has_a_lease() {
    let (first, second) = pair(12, false, MirrorMedium::Ram);
    let plain = first.node.device("v");
    first.write(&plain, 0, 1).expect("a write");
    assert_eq!(first.read(&plain, 0), 1);
    second.far.cut(true);
    let at_once = reads_within(&first, &plain, Duration::from_micros(1));
    assert!(matches!(at_once, Some(Ok(1))), "{at_once:?}");
    first.node.world.run_for(Duration::from_millis(500)).expect("the world runs");
    // The lease is over, and nobody knows yet whether the mirror has taken the volume over.
    assert!(reads_within(&first, &plain, Duration::from_millis(100)).is_none());
    first.node.world.run_for(Duration::from_secs(3)).expect("the world runs");
    assert_eq!(named(&first, &first.node.volume("v")), None);
    let alone = reads_within(&first, &plain, Duration::from_micros(1));
    assert!(matches!(alone, Some(Ok(1))), "alone it needs none: {alone:?}");
}

#[test]
fn an_edge_needs_no_lease_and_nobody_waits_for_one() {
    let (first, second) = pair(13, false, MirrorMedium::Ram);
    let device = attach(&first);
    first.write(&device, 0, 1).expect("a write");
    let (since, _taken) = take_from(&first, &second, &device);
    assert!(varve_env::Env::now(&*second.node.env) - since < Duration::from_millis(100));
}
