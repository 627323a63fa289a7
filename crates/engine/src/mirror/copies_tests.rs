// SPDX-License-Identifier: Apache-2.0
//! Copies have no gaps, keep to their credits, and take nothing of an owner that was fenced.

use super::*;
use bytes::Bytes;
use varve_format::journal::Body;
use varve_types::VolumeId;

fn copies(quota: u64) -> Copies {
    Copies::new(IncarnationId::from_bytes([1; 16]), quota)
}

fn timeline(number: u8) -> TimelineId {
    TimelineId::from_bytes([number; 16])
}

fn begin(epoch: u64, base: u64) -> BeginCopy {
    let volume = VolumeId::from_bytes([9; 16]);
    BeginCopy { volume, timeline: timeline(1), epoch: Epoch(epoch), base: Sequence(base) }
}

fn record(sequence: u64, bytes: usize) -> TailRecord {
    let body = Body::Hole { start: 0, blocks: 1 };
    let (epoch, flushed_through) = (Epoch(1), Sequence(0));
    TailRecord { epoch, sequence: Sequence(sequence), flushed_through, body, data: Bytes::from(vec![0; bytes]) }
}

fn delivery(epoch: u64, previous: u64, sequences: &[u64]) -> Delivery {
    let records = sequences.iter().map(|sequence| record(*sequence, 0)).collect();
    Delivery { timeline: timeline(1), epoch: Epoch(epoch), previous: Sequence(previous), records }
}

fn has(copies: &Copies, epoch: u64) -> Vec<u64> {
    let fetched = copies.fetch(timeline(1), Epoch(epoch)).unwrap();
    fetched.records.expect("there is a copy").iter().map(|record| record.sequence.0).collect()
}

fn kind<T>(result: Result<T>) -> ErrorKind {
    result.err().expect("it is refused").kind()
}

#[test]
fn changes_follow_on_each_other_and_go_when_the_store_has_them() {
    let copies = copies(1 << 30);
    assert_eq!(kind(copies.deliver(delivery(1, 10, &[11]))), ErrorKind::Conflict, "nothing was begun");
    copies.begin(begin(1, 10)).unwrap();
    copies.deliver(delivery(1, 10, &[11, 12])).unwrap();
    copies.deliver(delivery(1, 12, &[13])).unwrap();
    for gap in [delivery(1, 12, &[13]), delivery(1, 14, &[15]), delivery(1, 13, &[15]), delivery(1, 13, &[14, 16])] {
        assert_eq!(kind(copies.deliver(gap)), ErrorKind::Conflict);
    }
    copies.release(timeline(1), Epoch(1), Sequence(11));
    copies.release(timeline(1), Epoch(7), Sequence(13));
    assert_eq!(has(&copies, 2), [12, 13]);
    copies.release(timeline(1), Epoch(1), Sequence(13));
    assert!(has(&copies, 2).is_empty(), "the store has everything");
    copies.retain(|_, epoch| epoch == Epoch(1));
    let counts = copies.counts();
    assert_eq!((counts.copies, counts.bytes), (1, 0));
    copies.retain(|_, _| false);
    let counts = copies.counts();
    assert_eq!((counts.copies, counts.bytes), (0, 0));
    assert_eq!(copies.fetch(timeline(1), Epoch(2)).unwrap().records, None, "of that nothing is known");
}

#[test]
fn who_was_fenced_changes_nothing_any_more() {
    let copies = copies(1 << 30);
    copies.begin(begin(1, 0)).unwrap();
    copies.deliver(delivery(1, 0, &[1])).unwrap();
    assert_eq!(has(&copies, 2), [1]);
    assert_eq!(kind(copies.deliver(delivery(1, 1, &[2]))), ErrorKind::Fenced);
    assert_eq!(kind(copies.begin(begin(1, 1))), ErrorKind::Fenced);
    assert_eq!(kind(copies.fetch(timeline(1), Epoch(1))), ErrorKind::Fenced);
    assert_eq!(has(&copies, 2), [1], "and it may be asked for again");
    copies.begin(begin(3, 1)).unwrap();
    assert_eq!(kind(copies.begin(begin(2, 1))), ErrorKind::Fenced);
    assert!(has(&copies, 3).is_empty());
}

#[test]
fn nobody_sends_more_than_there_is_room_for() {
    let copies = copies(16 << 20);
    let other = |number| BeginCopy { timeline: timeline(number), ..begin(1, 0) };
    let given: Vec<u64> = (1..=16).map(|number| copies.begin(other(number)).unwrap().credits).collect();
    assert_eq!(given, [8 << 20; 16], "more than there is, for few use all of it");
    assert_eq!(kind(copies.begin(other(17))), ErrorKind::NoSpace);
    let large = |number, previous, bytes| Delivery {
        timeline: timeline(number),
        records: vec![record(previous + 1, bytes)],
        ..delivery(1, previous, &[])
    };
    copies.deliver(large(1, 0, 7 << 20)).unwrap();
    assert_eq!(kind(copies.deliver(large(1, 1, 7 << 20))), ErrorKind::NoSpace, "beyond its credits");
    copies.deliver(large(2, 0, 7 << 20)).unwrap();
    copies.deliver(large(3, 0, 1 << 20)).unwrap();
    assert_eq!(kind(copies.deliver(large(3, 1, 3 << 20))), ErrorKind::NoSpace, "beyond what there is");
    copies.release(timeline(1), Epoch(1), Sequence(1));
    copies.deliver(large(3, 1, 3 << 20)).unwrap();
    copies.deliver(large(1, 1, 5 << 20)).unwrap();
}

#[test]
fn a_lease_is_waited_out_and_none_is_given_to_who_was_fenced() {
    let (copies, at) = (copies(1 << 30), Duration::from_secs);
    assert_eq!(kind(copies.lease(timeline(1), Epoch(1), at(10))), ErrorKind::Conflict, "nothing was begun");
    copies.begin(begin(1, 10)).unwrap();
    assert_eq!(copies.leased_for(timeline(1), at(10)), Duration::ZERO);
    copies.lease(timeline(1), Epoch(1), at(10)).unwrap();
    assert_eq!(kind(copies.lease(timeline(1), Epoch(2), at(10))), ErrorKind::Conflict, "that is another copy's");
    assert_eq!(copies.leased_for(timeline(1), at(10)), LEASE_WAIT);
    copies.fetch(timeline(1), Epoch(2)).unwrap();
    assert_eq!(kind(copies.lease(timeline(1), Epoch(1), at(10))), ErrorKind::Fenced);
    assert_eq!(copies.leased_for(timeline(1), at(10)), LEASE_WAIT, "what was promised holds");
    assert_eq!(copies.leased_for(timeline(1), at(11)), Duration::ZERO);
    assert_eq!(copies.leased_for(timeline(2), at(10)), Duration::ZERO);
}
