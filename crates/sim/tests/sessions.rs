// SPDX-License-Identifier: Apache-2.0
//! Sessions of edges: what they are promised holds whatever dies, nobody gets a volume beside them, and one that was ended stays ended.

use std::rc::Rc;
use varve_engine::{BlockDevice, Device, EngineError, Position, SessionRequest, SessionStart};
use varve_sim::node::{Node, name};
use varve_sim::{CrashMode, InFlight, SimOptions};
use varve_types::{Epoch, ErrorKind, Sequence, SessionId, TimelineId};

const SIZE: u64 = 1 << 20;

fn node(seed: u64) -> Node {
    let node = Node::new(SimOptions::seed(seed), 9 << 20);
    node.create().expect("the world runs").expect("the shard starts");
    node.create_volume("v", SIZE);
    node
}

fn first(session: u8) -> SessionRequest {
    SessionRequest {
        session: SessionId::from_bytes([session; 16]),
        edge: format!("host-{session}"),
        exclusive: true,
        steal: false,
        timeline: None,
        promises: Vec::new(),
    }
}

fn again(session: u8, timeline: TimelineId, promises: &[(Epoch, Sequence)]) -> SessionRequest {
    SessionRequest { timeline: Some(timeline), promises: promises.to_vec(), ..first(session) }
}

fn begin(node: &Node, request: SessionRequest) -> Result<SessionStart, EngineError> {
    let volume = node.volume("v");
    node.run(async move { volume.begin_session(request).await }).expect("the world runs")
}

fn kind(result: Result<SessionStart, EngineError>) -> ErrorKind {
    result.map(drop).expect_err("it is refused").kind()
}

fn write(node: &Node, device: &Rc<Device>, block: u64, byte: u8) -> Position {
    node.write(device, block * 4096, vec![byte; 4096], false).expect("alive").expect("a write");
    device.position()
}

#[test]
fn what_was_told_to_be_safe_is_there_whatever_dies() {
    let mut replayed = 0;
    for seed in 0..40 {
        let mut node = node(seed);
        let start = begin(&node, first(1)).expect("a session");
        let (timeline, mut epoch, mut device) = (start.timeline, start.epoch, Rc::new(start.device));
        let mut expected = [0; 16];
        for life in 0..4_u8 {
            // What was acknowledged and not told to be safe: block, content, place.
            let mut kept: Vec<(u64, u8, Sequence)> = Vec::new();
            let mut safe = Sequence(0);
            for step in 0..(seed % 7) * 3 + 1 {
                let (block, byte) = ((seed + step * 5) % 16, life * 60 + step as u8 + 1);
                let at = write(&node, &device, block, byte);
                expected[block as usize] = byte;
                kept.push((block, byte, at.sequence));
                assert!(at.safe >= safe && at.safe <= at.sequence);
                safe = at.safe;
                if step % 5 == 4 {
                    node.flush(&device).expect("alive").expect("a flush");
                    safe = device.position().safe;
                    assert_eq!(safe, at.sequence, "a flush makes all before it safe");
                }
                kept.retain(|(_, _, sequence)| *sequence > safe);
            }
            drop(device);
            node.crash(CrashMode::ALL[1 + seed as usize % 5], InFlight::Lost);
            node.reopen();
            let start = begin(&node, again(1, timeline, &[(epoch, safe)])).expect("the session goes on");
            let [cut] = start.cuts[..] else { panic!("one epoch was named") };
            (epoch, device) = (start.epoch, Rc::new(start.device));
            for (block, byte, _) in kept.into_iter().filter(|(_, _, sequence)| *sequence > cut) {
                write(&node, &device, block, byte);
                replayed += 1;
            }
            for (block, byte) in expected.iter().enumerate() {
                let found = node.read(&device, block as u64 * 4096, 4096).expect("alive").expect("a read");
                assert!(found.iter().all(|b| b == byte), "seed {seed}, life {life}: block {block}");
            }
        }
    }
    assert!(replayed > 100, "the power takes what nobody has flushed: {replayed}");
}

#[test]
fn what_is_synced_for_others_becomes_safe_too() {
    let node = node(1);
    node.create_volume("w", SIZE);
    let device = Rc::new(begin(&node, first(1)).expect("a session").device);
    let at = write(&node, &device, 0, 1);
    assert!(at.safe < at.sequence);
    let other = node.device("w");
    node.write(&other, 0, vec![2; 4096], true).expect("alive").expect("a write of another volume");
    assert_eq!(device.position().safe, at.sequence);
}

#[test]
fn nobody_gets_a_volume_beside_its_holder() {
    let mut node = node(2);
    let start = begin(&node, first(1)).expect("a session");
    let refused = begin(&node, first(2)).map(drop).expect_err("held");
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert!(refused.to_string().contains("host-1"), "{refused}");
    assert_eq!(kind(begin(&node, SessionRequest { exclusive: false, ..first(3) })), ErrorKind::Conflict);
    drop(start);
    // Nor while its edge is not connected, nor behind a restart; and what it shows is not changed either.
    node.crash(CrashMode::Kill, InFlight::Lost);
    node.reopen();
    assert_eq!(kind(begin(&node, first(2))), ErrorKind::Conflict);
    let (shard, deleted) = (node.shard(), async |shard: Rc<varve_engine::Shard>| shard.delete_volume(&name("v")).await);
    let error = node.run(async move { deleted(shard).await }).expect("the world runs").expect_err("it is held");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let volume = node.volume("v");
    assert_eq!(volume.holder().expect("it has one").edge, "host-1");
    node.must("end it", async move { volume.end_session(SessionId::from_bytes([1; 16])).await });
    begin(&node, first(2)).expect("it is free");
}

#[test]
fn a_session_that_was_ended_stays_ended() {
    let node = node(3);
    let timeline = begin(&node, first(1)).expect("a session").timeline;
    begin(&node, SessionRequest { steal: true, ..first(2) }).expect("it is stolen");
    assert_eq!(kind(begin(&node, again(1, timeline, &[]))), ErrorKind::Fenced);
    let stealing = SessionRequest { steal: true, ..again(1, timeline, &[]) };
    assert_eq!(kind(begin(&node, stealing)), ErrorKind::Fenced, "a reconnect does not steal back");
    let volume = node.volume("v");
    let expelled = node.must("expel", async move { volume.expel().await });
    assert_eq!(expelled.expect("it had one").edge, "host-2");
    assert_eq!(kind(begin(&node, again(2, timeline, &[]))), ErrorKind::Fenced);
    begin(&node, first(1)).expect("a person attaches it anew");
}

#[test]
fn readers_share_and_do_not_write() {
    let node = node(4);
    let reader = |session| SessionRequest { exclusive: false, ..first(session) };
    let start = begin(&node, reader(1)).expect("a reader");
    let device = Rc::new(start.device);
    begin(&node, reader(2)).expect("another reader");
    assert!(device.read_only());
    let refused = node.write(&device, 0, vec![1; 4096], false).expect("alive");
    assert_eq!(refused.expect_err("it only reads").kind(), ErrorKind::Conflict);
    begin(&node, again_reading(1, start.timeline)).expect("it comes back");
}

fn again_reading(session: u8, timeline: TimelineId) -> SessionRequest {
    SessionRequest { exclusive: false, ..again(session, timeline, &[]) }
}

#[test]
fn a_broken_promise_is_told_and_so_is_another_history() {
    let node = node(5);
    let start = begin(&node, first(1)).expect("a session");
    let device = Rc::new(start.device);
    let last = write(&node, &device, 0, 1).sequence;
    let (timeline, epoch) = (start.timeline, start.epoch);
    begin(&node, again(1, timeline, &[(epoch, last)])).expect("all of it is there");
    assert_eq!(kind(begin(&node, again(1, timeline, &[(epoch, last.next())]))), ErrorKind::Corrupt);
    let newer = again(1, timeline, &[(Epoch(epoch.0 + 9), last)]);
    assert_eq!(kind(begin(&node, newer)), ErrorKind::Unavailable, "another node runs it by now");
    assert_eq!(kind(begin(&node, again(1, TimelineId::from_bytes([7; 16]), &[]))), ErrorKind::Fenced);
}

#[test]
fn epochs_that_passed_meanwhile_are_remembered() {
    let mut node = node(6);
    let start = begin(&node, first(1)).expect("a session");
    let device = Rc::new(start.device);
    let last = write(&node, &device, 0, 1).sequence;
    let (timeline, epoch) = (start.timeline, start.epoch);
    drop(device);
    for _ in 0..5 {
        node.crash(CrashMode::Kill, InFlight::Lost);
        node.reopen();
        let volume = node.volume("v");
        node.must("a checkpoint", async move {
            volume.seal().await?;
            volume.checkpoint().await
        });
    }
    let start = begin(&node, again(1, timeline, &[(epoch, Sequence(0))])).expect("it goes on");
    assert_eq!(start.cuts, [last], "the process died, the kernel has it");
}
