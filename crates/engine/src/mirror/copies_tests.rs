// SPDX-License-Identifier: Apache-2.0
//! Copies have no gaps, keep to their credits, and take nothing of an owner that was fenced.

use super::*;
use bytes::Bytes;
use futures_util::FutureExt;
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
    BeginCopy { volume, timeline: timeline(1), epoch: Epoch(epoch), base: Sequence(base), medium: MirrorMedium::Ram }
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

fn fetch(copies: &Copies, epoch: u64) -> Result<Fetched> {
    let fetching = copies.fetch(timeline(1), Epoch(epoch), copies.incarnation());
    fetching.now_or_never().expect("nothing is waited for in RAM")
}

fn has(copies: &Copies, epoch: u64) -> Vec<u64> {
    let fetched = fetch(copies, epoch).unwrap();
    assert!(fetched.is_whole);
    fetched.records.iter().map(|record| record.sequence.0).collect()
}

fn deliver(copies: &Copies, delivery: Delivery) -> Result<u64> {
    copies.deliver(delivery).now_or_never().expect("nothing is waited for in RAM")
}

fn release(copies: &Copies, epoch: u64, through: u64, back: u64) {
    copies.release(Release { timeline: timeline(1), epoch: Epoch(epoch), through: Sequence(through), back });
}

fn kind<T>(result: Result<T>) -> ErrorKind {
    result.err().expect("it is refused").kind()
}

#[test]
fn changes_follow_on_each_other_and_go_when_the_store_has_them() {
    let copies = copies(1 << 30);
    assert_eq!(kind(deliver(&copies, delivery(1, 10, &[11]))), ErrorKind::Conflict, "nothing was begun");
    copies.begin(begin(1, 10)).unwrap();
    deliver(&copies, delivery(1, 10, &[11, 12])).unwrap();
    deliver(&copies, delivery(1, 12, &[13])).unwrap();
    for gap in [delivery(1, 12, &[13]), delivery(1, 14, &[15]), delivery(1, 13, &[15]), delivery(1, 13, &[14, 16])] {
        assert_eq!(kind(deliver(&copies, gap)), ErrorKind::Conflict);
    }
    release(&copies, 1, 11, 0);
    release(&copies, 7, 13, 0);
    assert_eq!(has(&copies, 2), [12, 13]);
    release(&copies, 1, 13, 0);
    assert!(has(&copies, 2).is_empty(), "the store has everything");
    copies.retain(|_, epoch, _| epoch == Epoch(1));
    let counts = copies.counts();
    assert_eq!((counts.copies, counts.bytes), (1, 0));
    copies.retain(|_, _, _| false);
    let counts = copies.counts();
    assert_eq!((counts.copies, counts.bytes), (0, 0));
    assert_eq!(kind(fetch(&copies, 2)), ErrorKind::NotFound, "of that nothing is known");
}

#[test]
fn who_was_fenced_changes_nothing_any_more() {
    let copies = copies(1 << 30);
    copies.begin(begin(1, 0)).unwrap();
    deliver(&copies, delivery(1, 0, &[1])).unwrap();
    assert_eq!(has(&copies, 2), [1]);
    assert_eq!(kind(deliver(&copies, delivery(1, 1, &[2]))), ErrorKind::Fenced);
    assert_eq!(kind(copies.begin(begin(1, 1))), ErrorKind::Fenced);
    assert_eq!(kind(fetch(&copies, 1)), ErrorKind::Fenced);
    assert_eq!(has(&copies, 2), [1], "and it may be asked for again");
    copies.begin(begin(3, 1)).unwrap();
    assert_eq!(kind(copies.begin(begin(2, 1))), ErrorKind::Fenced);
    assert!(has(&copies, 3).is_empty());
}

#[test]
fn what_was_promised_there_is_room_for() {
    let copies = copies(64 << 20);
    let other = |number| BeginCopy { timeline: timeline(number), ..begin(1, 0) };
    let mut credits: Vec<u64> = Vec::new();
    while let Ok(begun) = copies.begin(other(credits.len() as u8 + 1)) {
        credits.push(begun.credits);
    }
    assert!(credits.len() >= 12 && credits[0] == 8 << 20 && credits.iter().min() == Some(&(2 << 20)), "{credits:?}");
    assert_eq!(kind(copies.begin(other(99))), ErrorKind::NoSpace);
    // All of them use all that they have, and nobody is refused.
    let mut sent = vec![0; credits.len()];
    for _ in 0..40 {
        for (at, credits) in credits.iter_mut().enumerate() {
            let (previous, cost) = (sent[at], (1 << 20) + 256);
            if (previous + 1) * cost > *credits {
                continue;
            }
            let records = vec![record(previous + 1, 1 << 20)];
            let large = Delivery { timeline: timeline(at as u8 + 1), records, ..delivery(1, previous, &[]) };
            *credits += deliver(&copies, large).unwrap();
            sent[at] += 1;
        }
    }
    let counts = copies.counts();
    assert_eq!(counts.credit_bytes, credits.iter().sum::<u64>());
    assert!(counts.bytes <= counts.credit_bytes && counts.credit_bytes <= 64 << 20, "{counts:?}");
    let large = Delivery { records: vec![record(sent[0] + 1, 60 << 20)], ..delivery(1, sent[0], &[]) };
    assert_eq!(kind(deliver(&copies, large)), ErrorKind::NoSpace, "beyond its credits");
    // What one gives back another one gets.
    release(&copies, 1, sent[0], credits[0] - (2 << 20));
    assert_eq!(copies.begin(other(99)).unwrap().credits, 2 << 20);
}

#[test]
fn who_has_much_gets_more() {
    let copies = copies(1 << 30);
    let mut credits = copies.begin(begin(1, 0)).unwrap().credits;
    for sequence in 0..200 {
        let large = Delivery { records: vec![record(sequence + 1, 1 << 20)], ..delivery(1, sequence, &[]) };
        credits += deliver(&copies, large).unwrap();
    }
    assert_eq!((credits, copies.counts().credit_bytes), (MOST_CREDITS, MOST_CREDITS));
    release(&copies, 1, 200, credits - (8 << 20));
    assert_eq!((copies.counts().credit_bytes, copies.counts().bytes), (8 << 20, 0));
    release(&copies, 1, 200, 1 << 40);
    assert_eq!(copies.counts().credit_bytes, 0, "whoever gives back more than he has has lost count");
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
    fetch(&copies, 2).unwrap();
    assert_eq!(kind(copies.lease(timeline(1), Epoch(1), at(10))), ErrorKind::Fenced);
    assert_eq!(copies.leased_for(timeline(1), at(10)), LEASE_WAIT, "what was promised holds");
    assert_eq!(copies.leased_for(timeline(1), at(11)), Duration::ZERO);
    assert_eq!(copies.leased_for(timeline(2), at(10)), Duration::ZERO);
}
