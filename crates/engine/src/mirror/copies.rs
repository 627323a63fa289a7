// SPDX-License-Identifier: Apache-2.0
//! The copies that this node keeps of tails of other nodes' volumes, in RAM.
//!
//! Always holds: the changes of a copy have no gap, from its base to its last; whoever has fenced a timeline at an epoch finds in it all that was ever answered
//! to lower ones, and nothing of them is taken any more, nor are they given a lease. All copies together have at most so many bytes; what an owner may send is bounded by the
//! credits that it is given at the begin.
//!
//! The process' end loses all of them. The next one has another incarnation, and knows nothing of any.

use super::lease::LEASE_WAIT;
use super::{BeginCopy, Begun, Delivery, Fetched, TailRecord};
use crate::{EngineError, Result};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;
use varve_types::branch::{Branch, reached};
use varve_types::mutant::{Mutant, planted};
use varve_types::{Epoch, ErrorKind, IncarnationId, Sequence, TimelineId};

/// Bytes that one copy may have, at most, however large the journals are.
const MOST_CREDITS: u64 = 256 << 20;
/// A copy has to find room in a journal when it is taken over with: so much of the smallest one it may be, and so much of all of them all copies together.
const JOURNAL_PART: u64 = 4;
/// Bytes that it is worth to begin a copy with.
const LEAST_CREDITS: u64 = 8 << 20;
/// One copy is given so much of all there is.
const SHARES: u64 = 16;
/// How often what there is is given: few volumes have much that is not in the store at the same time.
const OVERCOMMIT: u64 = 8;

struct Copy {
    epoch: Epoch,
    /// Changes behind this one are in it.
    base: Sequence,
    last: Sequence,
    records: BTreeMap<Sequence, TailRecord>,
    bytes: u64,
    credits: u64,
}

/// Nothing of lower epochs is taken.
#[derive(Clone, Copy)]
struct Floor {
    epoch: Epoch,
    /// Which fence has set it.
    fence: u64,
}

/// The copies that a node keeps, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyCounts {
    /// How many.
    pub copies: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Bytes that their owners may have there: more than there is room for, as few have much at the same time.
    pub credit_bytes: u64,
    /// Bytes that all of them may have.
    pub limit_bytes: u64,
}

/// See the module.
pub struct Copies {
    incarnation: IncarnationId,
    /// Bytes of all of them, at most.
    quota: Cell<u64>,
    /// Bytes of one, at most.
    most: Cell<u64>,
    copies: RefCell<BTreeMap<TimelineId, Copy>>,
    /// The epoch of timelines below which nothing is taken.
    floors: RefCell<BTreeMap<TimelineId, Floor>>,
    /// Fences so far.
    fences: Cell<u64>,
    /// Until when what was promised of a timeline is kept, by the clock of whoever asks.
    leases: RefCell<BTreeMap<TimelineId, Duration>>,
}

fn fenced(timeline: TimelineId, epoch: Epoch) -> EngineError {
    EngineError::new(ErrorKind::Fenced, format!("timeline {timeline} has another owner, in epoch {epoch}"))
}

fn not_begun(timeline: TimelineId, epoch: Epoch) -> EngineError {
    EngineError::new(ErrorKind::Conflict, format!("no copy of timeline {timeline} was begun in epoch {epoch}"))
}

impl Copies {
    /// None yet, of this process, with at most so many bytes.
    #[must_use]
    pub fn new(incarnation: IncarnationId, quota: u64) -> Self {
        Self {
            incarnation,
            quota: Cell::new(quota),
            most: Cell::new(MOST_CREDITS),
            copies: RefCell::default(),
            floors: RefCell::default(),
            fences: Cell::new(0),
            leases: RefCell::default(),
        }
    }

    /// Bounds them by the journals that they may have to go to: bytes of the smallest, and of all.
    pub(crate) fn fit(&self, smallest: u64, all: u64) {
        self.most.set(MOST_CREDITS.min(smallest / JOURNAL_PART));
        self.quota.set(self.quota.get().min(all / JOURNAL_PART));
    }

    /// The process that keeps them.
    pub fn incarnation(&self) -> IncarnationId {
        self.incarnation
    }

    /// What there is.
    pub fn counts(&self) -> CopyCounts {
        let copies = self.copies.borrow();
        CopyCounts {
            copies: copies.len() as u64,
            bytes: copies.values().map(|copy| copy.bytes).sum(),
            credit_bytes: copies.values().map(|copy| copy.credits).sum(),
            limit_bytes: self.quota.get(),
        }
    }

    /// Begins a copy in the place of the one before it.
    ///
    /// # Errors
    /// `Fenced` where a higher epoch is known, `Conflict` where the owner has begun anew since it asked, `NoSpace` where there is no room for another copy.
    pub fn begin(&self, begin: BeginCopy) -> Result<Begun> {
        self.check(begin.timeline, begin.epoch)?;
        let mut copies = self.copies.borrow_mut();
        // An owner begins behind everything that it has ever sent: this was asked on an older connection, and has been on its way for long.
        let is_late = |copy: &Copy| copy.epoch == begin.epoch && begin.base < copy.last;
        if copies.get(&begin.timeline).is_some_and(is_late) && !planted(Mutant::BeginLate) {
            reached(Branch::BeginLate);
            let text = format!("a copy of timeline {} behind {} comes too late", begin.timeline, begin.base);
            return Err(EngineError::new(ErrorKind::Conflict, text));
        }
        copies.remove(&begin.timeline);
        let given: u64 = copies.values().map(|copy| copy.credits).sum();
        let quota = self.quota.get();
        let credits = (quota / SHARES).max(LEAST_CREDITS).min(self.most.get()).min(quota);
        if given + credits > OVERCOMMIT * quota {
            return Err(EngineError::new(ErrorKind::NoSpace, "there is no room for another copy"));
        }
        let (epoch, base) = (begin.epoch, begin.base);
        let copy = Copy { epoch, base, last: base, records: BTreeMap::new(), bytes: 0, credits };
        copies.insert(begin.timeline, copy);
        Ok(Begun { incarnation: self.incarnation, credits })
    }

    /// Takes changes in.
    ///
    /// # Errors
    /// `Fenced` where a higher epoch is known, `Conflict` where they do not follow on what is there, `NoSpace` beyond the credits, or where all copies together
    /// have no room left.
    pub fn deliver(&self, delivery: Delivery) -> Result<()> {
        self.check(delivery.timeline, delivery.epoch)?;
        let mut copies = self.copies.borrow_mut();
        let all: u64 = copies.values().map(|copy| copy.bytes).sum();
        let copy = copies.get_mut(&delivery.timeline).filter(|copy| copy.epoch == delivery.epoch);
        let Some(copy) = copy else {
            return Err(not_begun(delivery.timeline, delivery.epoch));
        };
        let mut last = copy.last;
        let in_row = delivery
            .records
            .iter()
            .all(|record| std::mem::replace(&mut last, record.sequence).next() == record.sequence);
        if delivery.previous != copy.last || !in_row {
            let text = format!("changes behind {} do not follow on {}", delivery.previous, copy.last);
            return Err(EngineError::new(ErrorKind::Conflict, text));
        }
        let bytes: u64 = delivery.records.iter().map(TailRecord::cost).sum();
        let is_full = all + bytes > self.quota.get().max(copy.credits);
        if copy.bytes > 0 && (copy.bytes + bytes > copy.credits || is_full) {
            return Err(EngineError::new(ErrorKind::NoSpace, "more was sent than there are credits for"));
        }
        copy.bytes += bytes;
        copy.last = last;
        copy.records.extend(delivery.records.into_iter().map(|record| (record.sequence, record)));
        Ok(())
    }

    /// Lets go of what the store has.
    pub fn release(&self, timeline: TimelineId, epoch: Epoch, through: Sequence) {
        let mut copies = self.copies.borrow_mut();
        let Some(copy) = copies.get_mut(&timeline).filter(|copy| copy.epoch == epoch) else { return };
        let through = if planted(Mutant::ReleaseTooMuch) { through.next() } else { through };
        let kept = copy.records.split_off(&through.next());
        let gone = std::mem::replace(&mut copy.records, kept);
        copy.bytes -= gone.values().map(TailRecord::cost).sum::<u64>();
        copy.base = copy.base.max(through.min(copy.last));
    }

    /// Gives what there is of a timeline, and takes nothing of epochs below `epoch` from then on.
    ///
    /// # Errors
    /// `Fenced` where a higher one is known.
    pub fn fetch(&self, timeline: TimelineId, epoch: Epoch) -> Result<Fetched> {
        self.check(timeline, epoch)?;
        if !planted(Mutant::FetchWithoutFence) {
            self.fences.set(self.fences.get() + 1);
            self.floors.borrow_mut().insert(timeline, Floor { epoch, fence: self.fences.get() });
        }
        let copies = self.copies.borrow();
        let records = copies.get(&timeline).map(|copy| copy.records.values().cloned().collect());
        Ok(Fetched { incarnation: self.incarnation, records })
    }

    /// The fence of a timeline, if there is one.
    pub(crate) fn fence(&self, timeline: TimelineId) -> Option<u64> {
        self.floors.borrow().get(&timeline).map(|floor| floor.fence)
    }

    /// Takes a fence back: what `epoch` sends is taken again. One that was set since stays.
    pub(crate) fn unfence(&self, timeline: TimelineId, fence: u64, epoch: Epoch) {
        if let Some(floor) = self.floors.borrow_mut().get_mut(&timeline).filter(|floor| floor.fence == fence) {
            reached(Branch::FenceTakenBack);
            floor.epoch = epoch;
        }
    }

    /// Promises the owner of a copy that nobody serves its timeline from it for a while; `now` is by the clock of this node.
    ///
    /// # Errors
    /// `Fenced` where a higher epoch is known, `Conflict` where there is no copy of this one.
    pub fn lease(&self, timeline: TimelineId, epoch: Epoch, now: Duration) -> Result<()> {
        self.check(timeline, epoch)?;
        if self.copies.borrow().get(&timeline).is_none_or(|copy| copy.epoch != epoch) {
            return Err(not_begun(timeline, epoch));
        }
        self.leases.borrow_mut().insert(timeline, now + LEASE_WAIT);
        Ok(())
    }

    /// For how long a timeline may not be served from its copy.
    pub(crate) fn leased_for(&self, timeline: TimelineId, now: Duration) -> Duration {
        self.leases.borrow().get(&timeline).map_or(Duration::ZERO, |until| until.saturating_sub(now))
    }

    /// Lets go of the copies that `is_used` does not name, by timeline and epoch.
    pub fn retain(&self, mut is_used: impl FnMut(TimelineId, Epoch) -> bool) {
        let mut copies = self.copies.borrow_mut();
        copies.retain(|timeline, copy| is_used(*timeline, copy.epoch));
        self.floors
            .borrow_mut()
            .retain(|timeline, floor| copies.contains_key(timeline) || is_used(*timeline, floor.epoch));
        self.leases.borrow_mut().retain(|timeline, _| copies.contains_key(timeline));
    }

    fn check(&self, timeline: TimelineId, epoch: Epoch) -> Result<()> {
        let floor = self.floors.borrow().get(&timeline).map(|floor| floor.epoch);
        let known = self.copies.borrow().get(&timeline).map(|copy| copy.epoch);
        match floor.max(known) {
            Some(highest) if highest > epoch => {
                reached(Branch::CopyFenced);
                Err(fenced(timeline, highest))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "copies_tests.rs"]
mod tests;
