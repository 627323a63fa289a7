// SPDX-License-Identifier: Apache-2.0
//! Mirrors over a network that brings things late, beside coordination and a store that are away: what comes from the past changes nothing of the present.
//!
//! - A question that a newer one has overtaken takes nothing from the copy that is there.
//! - Whoever was taken over, and has not heard of it, promises nothing, and ends nobody's session.
//! - A take-over that did not come about leaves a pair that can be one again.

use std::rc::Rc;
use std::time::Duration;
use varve_coord::Fault;
use varve_engine::{BlockDevice, Device, MirrorPhase, SessionRequest, Volume};
use varve_env::Env;
use varve_sim::CrashMode;
use varve_sim::pair::{JOINED, Member, pair};
use varve_types::{Epoch, ErrorKind, MirrorMedium, Sequence, SessionId};

fn pass(member: &Member, time: Duration) {
    member.node.world.run_for(time).expect("the world runs");
}

/// Writes some blocks, each of which is answered.
fn write(member: &Member, device: &Rc<Device>, blocks: std::ops::Range<u64>) {
    blocks.for_each(|block| member.write(device, block, block as u8 + 1).expect("a write"));
}

/// The mirror takes the volume over from an owner that stalls, and has all that was written.
fn prove_copy(first: &Member, second: &Member, volume: &Rc<Volume>, blocks: u64) {
    first.node.world.pause(&first.node.env);
    second.take_over(volume).expect("it has a copy");
    let device = second.node.device("v");
    (0..blocks).for_each(|block| assert_eq!(second.read(&device, block), block as u8 + 1, "block {block}"));
}

#[test]
fn a_begin_that_comes_late_leaves_the_copy_of_now() {
    for seed in 0..20 {
        let (first, second) = pair(seed, false, MirrorMedium::Ram);
        let (device, volume) = (first.node.device("v"), first.node.volume("v"));
        second.far.asks().cut(true);
        write(&first, &device, 0..2);
        // It tries to begin again and again, and all of that is on its way.
        pass(&first, Duration::from_secs(4));
        assert_ne!(first.phase(), MirrorPhase::InSync);
        second.far.asks().cut(false);
        for _ in 0..200 {
            pass(&first, Duration::from_millis(10));
            if first.phase() == MirrorPhase::InSync {
                break;
            }
        }
        assert_eq!(first.phase(), MirrorPhase::InSync, "seed {seed}");
        write(&first, &device, 2..6);
        // What was on its way has come by now.
        pass(&first, Duration::from_secs(4));
        if first.phase() == MirrorPhase::InSync {
            prove_copy(&first, &second, &volume, 6);
        }
    }
}

#[test]
fn a_mirror_is_not_named_before_the_store_has_what_it_was_not_sent() {
    let (first, mut second) = pair(1, false, MirrorMedium::Ram);
    let (device, volume) = (first.node.device("v"), first.node.volume("v"));
    second.crash(CrashMode::Kill);
    write(&first, &device, 0..3);
    first.node.server.away_for(Duration::from_secs(60));
    assert!(second.start().is_empty());
    pass(&first, JOINED);
    write(&first, &device, 3..5);
    assert_ne!(first.phase(), MirrorPhase::InSync, "the store has nothing of the first writes");
    assert!(second.take_over(&volume).is_err(), "it lacks them");
    first.node.server.away_for(Duration::ZERO);
    pass(&first, JOINED);
    prove_copy(&first, &second, &volume, 5);
}

#[test]
fn a_mirror_that_is_named_and_is_another_process_by_now_takes_nothing_over() {
    let (mut first, mut second) = pair(2, false, MirrorMedium::Ram);
    let (device, volume) = (first.node.device("v"), first.node.volume("v"));
    write(&first, &device, 0..4);
    drop(device);
    // It dies before it has heard that its mirror did, and so before it could tell coordination.
    first.crash(CrashMode::Kill);
    second.crash(CrashMode::Kill);
    assert!(second.start().is_empty());
    assert_eq!(second.take_over(&volume).map(drop).expect_err("it has nothing").kind(), ErrorKind::Conflict);
    assert!(first.start().is_empty());
    let device = first.node.device("v");
    (0..4).for_each(|block| assert_eq!(first.read(&device, block), block as u8 + 1, "its journal has all"));
}

#[test]
fn whose_take_over_failed_can_be_the_mirror_again() {
    let (first, second) = pair(3, false, MirrorMedium::Ram);
    let (device, volume) = (first.node.device("v"), first.node.volume("v"));
    write(&first, &device, 0..2);
    first.node.coord.inject(&[Fault::Unavailable]).expect("no fault waits");
    assert_eq!(second.take_over(&volume).map(drop).expect_err("it is refused").kind(), ErrorKind::Unavailable);
    // The copy was fenced: the owner parts with it, and goes on.
    write(&first, &device, 2..4);
    pass(&first, JOINED);
    write(&first, &device, 4..6);
    assert_eq!(first.phase(), MirrorPhase::InSync);
    prove_copy(&first, &second, &volume, 6);
}

/// An edge that has the volume for itself, or takes its session up again.
fn edge(number: u8, known: Option<(&Device, Epoch, Sequence)>, steal: bool) -> SessionRequest {
    SessionRequest {
        session: SessionId::from_bytes([number; 16]),
        edge: format!("edge {number}"),
        exclusive: true,
        steal,
        timeline: known.map(|(device, _, _)| device.volume().record().shown),
        promises: known.map(|(_, epoch, safe)| (epoch, safe)).into_iter().collect(),
    }
}

#[test]
fn what_an_owner_puts_that_was_taken_over_it_does_not_call_safe() {
    let (first, second) = pair(4, false, MirrorMedium::Ram);
    let volume = first.node.volume("v");
    let begin = Rc::clone(&volume);
    let device = first.node.must("attach", async move { begin.begin_session(edge(1, None, false)).await }).device;
    let device = Rc::new(device);
    write(&first, &device, 0..3);
    second.far.asks().cut(true);
    let taken = second.take_over(&volume).expect("it has a copy");
    let (late, sealed) = (Rc::clone(&device), Rc::clone(&volume));
    first.node.env.spawn(Box::pin(async move {
        drop(varve_sim::node::finish(&late, late.write(0, vec![99; 4096].into(), false)).await);
    }));
    first.node.env.spawn(Box::pin(async move { drop(sealed.seal().await) }));
    pass(&first, Duration::from_millis(500));
    let told = device.position().safe;
    // It goes on at the other node, which has to have what was told to be safe.
    let epoch = volume.record().epoch;
    let request = edge(1, Some((&device, epoch, told)), false);
    let start = second.node.must("attach", async move { taken.begin_session(request).await });
    assert!(start.cuts[0] >= told);
}

#[test]
fn a_node_that_has_not_heard_of_its_end_does_not_end_a_session_that_is_newer() {
    let (first, second) = pair(5, false, MirrorMedium::Ram);
    let (old, begin) = (first.node.volume("v"), first.node.volume("v"));
    drop(first.node.must("attach", async move { begin.begin_session(edge(1, None, false)).await }));
    let taken = second.take_over(&old).expect("it has a copy");
    let begin = Rc::clone(&taken);
    let stolen = second.node.must("steal", async move { begin.begin_session(edge(2, None, true)).await });
    let request = edge(2, Some((&stolen.device, taken.record().epoch, stolen.device.position().safe)), false);
    let asked = first.node.run(async move { old.begin_session(request).await.map(drop) }).expect("alive");
    assert_eq!(asked.expect_err("another node runs it").kind(), ErrorKind::Unavailable);
}
