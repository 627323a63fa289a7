// SPDX-License-Identifier: Apache-2.0
//! What the journal has of timelines that are not open: what a start has found there, each record of which is kept until its timeline has been opened; and copies of
//! other nodes' changes ([`crate::mirror`]).
//!
//! Always holds: the lowest record of each tail is pinned; of copies of one record the last is kept and the others are forgotten; a record stands
//! where the tail says, also after it was carried.
//!
//! A crash leaves the journal, and the next start finds the same, or copies of it.

use crate::journal::{Journal, Moved, Needed, Replayed, Stamp};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use varve_format::journal::Body;
use varve_types::branch::{Branch, reached, reached_if};
use varve_types::{Epoch, Sequence, TimelineId};

/// The records of a timeline.
#[derive(Debug, Default)]
struct Tail {
    /// By position.
    records: BTreeMap<u64, Replayed>,
    /// Whether some of them are not where they were found.
    carried: bool,
}

impl Tail {
    fn pin(&self) -> Option<u64> {
        self.records.keys().next().copied()
    }

    /// Bytes of its records in the journal.
    fn bytes(&self) -> u64 {
        self.records.values().map(bytes).sum()
    }
}

/// Bytes of a record in the journal.
fn bytes(it: &Replayed) -> u64 {
    it.place - it.record.position + it.record.payload_len()
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Tails {
    tails: RefCell<BTreeMap<TimelineId, Tail>>,
}

impl Tails {
    /// The tails in what was found, in the order of positions.
    pub fn new(journal: &Journal, found: Vec<Replayed>) -> Self {
        let mut tails: BTreeMap<TimelineId, Tail> = BTreeMap::new();
        let mut last: BTreeMap<(TimelineId, Epoch, Sequence, bool), u64> = BTreeMap::new();
        for it in found {
            let record = &it.record;
            let tail = tails.entry(record.timeline).or_default();
            let key = (record.timeline, record.epoch, record.sequence, record.body == Body::Counted);
            if let Some(copy) = last.insert(key, record.position) {
                reached_if(!key.3, Branch::CopyFound);
                tail.records.remove(&copy);
            }
            tail.records.insert(record.position, it);
        }
        tails.values().filter_map(Tail::pin).for_each(|pin| journal.pin(pin));
        Self { tails: RefCell::new(tails) }
    }

    /// How many records there are of a timeline.
    pub fn count(&self, timeline: TimelineId) -> usize {
        self.tails.borrow().get(&timeline).map_or(0, |tail| tail.records.len())
    }

    /// Adds records of a timeline that were copied from another journal.
    pub fn add(&self, journal: &Rc<Journal>, timeline: TimelineId, records: Vec<Replayed>) {
        let mut tails = self.tails.borrow_mut();
        let tail = tails.entry(timeline).or_default();
        let before = tail.pin();
        tail.records.extend(records.into_iter().map(|it| (it.record.position, it)));
        let after = tail.pin();
        drop(tails);
        if before != after {
            after.into_iter().for_each(|pin| journal.pin(pin));
            before.into_iter().for_each(|pin| journal.unpin(pin));
        }
    }

    /// Takes out the records of an epoch of a timeline up to a change: nobody needs them any more.
    pub fn release(
        &self,
        journal: &Rc<Journal>,
        timeline: TimelineId,
        epoch: Epoch,
        through: Sequence,
    ) -> Vec<Replayed> {
        let mut tails = self.tails.borrow_mut();
        let Some(tail) = tails.get_mut(&timeline) else { return Vec::new() };
        let before = tail.pin();
        let is_gone = |_: &u64, it: &mut Replayed| it.record.epoch == epoch && it.record.sequence <= through;
        let gone: Vec<_> = tail.records.extract_if(.., is_gone).map(|(_, it)| it).collect();
        let after = tail.pin();
        if after.is_none() {
            tails.remove(&timeline);
        }
        drop(tails);
        if before != after {
            after.into_iter().for_each(|pin| journal.pin(pin));
            before.into_iter().for_each(|pin| journal.unpin(pin));
        }
        gone
    }

    /// The records of a timeline, as they stand now.
    pub fn of(&self, timeline: TimelineId) -> Vec<Replayed> {
        let tails = self.tails.borrow();
        tails.get(&timeline).map(|tail| tail.records.values().cloned().collect()).unwrap_or_default()
    }

    /// Gives up those that `is_needed` does not name.
    pub fn retain(&self, journal: &Rc<Journal>, is_needed: &impl Fn(TimelineId) -> bool) {
        let mut gone = Vec::new();
        self.tails.borrow_mut().retain(|timeline, tail| {
            let stays = is_needed(*timeline);
            if !stays {
                gone.extend(tail.pin());
            }
            stays
        });
        gone.into_iter().for_each(|pin| journal.unpin(pin));
    }

    /// Bytes of all of them in the journal.
    pub fn bytes(&self) -> u64 {
        self.tails.borrow().values().map(Tail::bytes).sum()
    }

    /// Records that stand in a part of the journal.
    pub fn needed(&self, part: &Range<u64>, needed: &mut Vec<Needed>) {
        for (timeline, tail) in &*self.tails.borrow() {
            needed.extend(tail.records.range(part.clone()).map(|(position, it)| Needed {
                position: *position,
                timeline: *timeline,
                epoch: it.record.epoch,
                sequence: it.record.sequence,
            }));
        }
    }

    /// Follows records of a timeline that were carried.
    pub fn follow(&self, journal: &Rc<Journal>, timeline: TimelineId, moved: &[Moved]) {
        let mut pins = None;
        if let Some(tail) = self.tails.borrow_mut().get_mut(&timeline) {
            let before = tail.pin();
            for it in moved {
                if let Some(mut record) = tail.records.remove(&it.from) {
                    record.place += it.to - it.from;
                    record.record.position = it.to;
                    tail.records.insert(it.to, record);
                    tail.carried = true;
                }
            }
            pins = before.zip(tail.pin());
        }
        if let Some((before, after)) = pins.filter(|(before, after)| before != after) {
            reached(Branch::TailCarried);
            journal.pin(after);
            journal.unpin(before);
        }
    }

    /// What was on stable media of those that were carried.
    pub fn evidence(&self) -> Vec<Stamp> {
        let tails = self.tails.borrow();
        let of = |(timeline, tail): (&TimelineId, &Tail)| {
            let newest = tail.records.values().map(|it| &it.record).max_by_key(|record| record.flushed_through)?;
            let (epoch, flushed_through) = (newest.epoch, newest.flushed_through);
            Some(Stamp { timeline: *timeline, epoch, sequence: flushed_through, flushed_through })
        };
        tails.iter().filter(|(_, tail)| tail.carried).filter_map(of).filter(|stamp| stamp.sequence.0 > 0).collect()
    }
}
