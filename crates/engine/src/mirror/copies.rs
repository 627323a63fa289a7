// SPDX-License-Identifier: Apache-2.0
//! The copies that this node keeps of tails of other nodes' volumes: in RAM, or in its own journals ([`super::on_disk`]).
//!
//! Always holds:
//! - The changes of a copy have no gap, from its base to its last. Whoever has fenced a timeline at an epoch finds in it all that was ever answered to lower ones, and
//!   nothing of them is taken any more, nor are they given a lease.
//! - What all owners may have here, by the credits that they were given, there is room for. An owner with much gets more, as long as there is some for others; one
//!   with little gives back. So nobody who keeps to his credits is ever refused, and a copy that counts is never lost for want of room.
//!
//! The process' end loses those in RAM: the next process has another incarnation, and knows nothing of them.

use super::lease::LEASE_WAIT;
use super::on_disk::DiskCopies;
use super::{BeginCopy, Begun, Delivery, Fetched, Release, TailRecord};
use crate::context::Context;
use crate::journal::Journal;
use crate::{EngineError, Result};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;
use varve_types::branch::{Branch, reached};
use varve_types::mutant::{Mutant, planted};
use varve_types::{Epoch, ErrorKind, IncarnationId, MirrorMedium, Sequence, TimelineId};

/// Bytes that one copy may have, at most, however large the journals are.
const MOST_CREDITS: u64 = 256 << 20;
/// A copy has to find room in a journal: so much of the smallest one it may be, and so much of all of them all copies together.
const JOURNAL_PART: u64 = 4;
/// Bytes that a copy is begun with, where there is so much room.
const FIRST_CREDITS: u64 = 8 << 20;
/// Bytes without which none is begun: any change fits.
const LEAST_CREDITS: u64 = 2 << 20;
/// Of what is free one copy gets so much at once, so that there is some for those that come.
const SHARE: u64 = 4;

/// Where a copy is.
pub(super) enum Kept {
    Ram(BTreeMap<Sequence, TailRecord>),
    /// In the journal that changes go to; in whichever an earlier process has left it, where nothing more comes.
    Disk(Option<Rc<Journal>>),
}

impl Kept {
    const fn medium(&self) -> MirrorMedium {
        match self {
            Self::Ram(_) => MirrorMedium::Ram,
            Self::Disk(_) => MirrorMedium::Disk,
        }
    }
}

pub(super) struct Copy {
    /// Tells it from others of the same timeline and epoch.
    pub number: u64,
    pub epoch: Epoch,
    /// Changes behind this one are in it.
    base: Sequence,
    pub last: Sequence,
    pub kept: Kept,
    pub bytes: u64,
    pub credits: u64,
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
    /// How many of them are on disk.
    pub on_disk: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Bytes of those on disk.
    pub disk_bytes: u64,
    /// Bytes that their owners may have there.
    pub credit_bytes: u64,
    /// Bytes that all of them may have.
    pub limit_bytes: u64,
    /// Bytes that those in RAM may have.
    pub ram_limit_bytes: u64,
}

/// See the module.
pub struct Copies {
    incarnation: IncarnationId,
    /// What those on disk live and die with; none where there can be none.
    pub(super) disk: RefCell<Option<DiskCopies>>,
    /// The shard whose journals take those on disk.
    pub(super) shard: RefCell<Weak<Context>>,
    /// When it was told of them, by its clock.
    since: Cell<Duration>,
    /// Bytes of those in RAM, of all of them, and of one, at most.
    ram_limit: Cell<u64>,
    limit: Cell<u64>,
    most: Cell<u64>,
    pub(super) copies: RefCell<BTreeMap<TimelineId, Copy>>,
    begun: Cell<u64>,
    /// The epoch of timelines below which nothing is taken.
    floors: RefCell<BTreeMap<TimelineId, Floor>>,
    /// Fences so far.
    fences: Cell<u64>,
    /// Until when what was promised of a timeline is kept, by the clock of whoever asks.
    leases: RefCell<BTreeMap<TimelineId, Duration>>,
}

/// What this node has of a timeline that it is about to take over.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// These changes.
    Ram(Vec<TailRecord>),
    /// What its journals have.
    Disk,
}

fn fenced(timeline: TimelineId, epoch: Epoch) -> EngineError {
    EngineError::new(ErrorKind::Fenced, format!("timeline {timeline} has another owner, in epoch {epoch}"))
}

fn not_begun(timeline: TimelineId, epoch: Epoch) -> EngineError {
    EngineError::new(ErrorKind::Conflict, format!("no copy of timeline {timeline} was begun in epoch {epoch}"))
}

impl Copies {
    /// None yet, of this process, with at most so many bytes in RAM.
    #[must_use]
    pub fn new(incarnation: IncarnationId, ram: u64) -> Self {
        Self {
            incarnation,
            disk: RefCell::default(),
            shard: RefCell::default(),
            since: Cell::default(),
            ram_limit: Cell::new(ram),
            limit: Cell::new(ram),
            most: Cell::new(MOST_CREDITS),
            copies: RefCell::default(),
            begun: Cell::default(),
            floors: RefCell::default(),
            fences: Cell::new(0),
            leases: RefCell::default(),
        }
    }

    /// Takes the journals of a shard, of which the smallest and all have so many bytes, for those on disk; they bound those in RAM as well, which have to go there
    /// when they are taken over with.
    pub(crate) fn set_shard(&self, context: &Rc<Context>, smallest: u64, all: u64) {
        self.shard.replace(Rc::downgrade(context));
        self.since.set(context.env.now());
        self.most.set(MOST_CREDITS.min(smallest / JOURNAL_PART));
        self.limit.set(all / JOURNAL_PART);
    }

    /// The process that keeps them.
    pub fn incarnation(&self) -> IncarnationId {
        self.incarnation
    }

    /// Whether a copy of that incarnation is one of these, and nothing of it was lost.
    pub fn is_here(&self, incarnation: IncarnationId) -> bool {
        incarnation == self.incarnation || self.disk_incarnation() == Some(incarnation)
    }

    /// What there is.
    pub fn counts(&self) -> CopyCounts {
        let copies = self.copies.borrow();
        let on_disk = || copies.values().filter(|copy| copy.kept.medium() == MirrorMedium::Disk);
        CopyCounts {
            copies: copies.len() as u64,
            on_disk: on_disk().count() as u64,
            bytes: copies.values().map(|copy| copy.bytes).sum(),
            disk_bytes: on_disk().map(|copy| copy.bytes).sum(),
            credit_bytes: copies.values().map(|copy| copy.credits).sum(),
            limit_bytes: self.limit.get(),
            ram_limit_bytes: self.ram_limit.get(),
        }
    }

    /// Bytes that nobody was promised yet.
    fn free(&self, copies: &BTreeMap<TimelineId, Copy>, medium: MirrorMedium) -> u64 {
        let given = |of: Option<MirrorMedium>| {
            let counts = |copy: &&Copy| of.is_none_or(|of| of == copy.kept.medium());
            copies.values().filter(counts).map(|copy| copy.credits).sum::<u64>()
        };
        let all = self.limit.get().saturating_sub(given(None));
        match medium {
            MirrorMedium::Ram => all.min(self.ram_limit.get().saturating_sub(given(Some(MirrorMedium::Ram)))),
            MirrorMedium::Disk => all,
        }
    }

    /// Begins a copy in the place of the one before it.
    ///
    /// # Errors
    /// `Fenced` where a higher epoch is known, `Conflict` where the owner has begun anew since it asked, `NoSpace` where there is no room for another copy.
    pub fn begin(&self, begin: BeginCopy) -> Result<Begun> {
        self.check(begin.timeline, begin.epoch)?;
        // An owner begins behind everything that it has ever sent: this was asked on an older connection, and has been on its way for long.
        let is_late = |copy: &Copy| copy.epoch == begin.epoch && begin.base < copy.last;
        if self.copies.borrow().get(&begin.timeline).is_some_and(is_late) && !planted(Mutant::BeginLate) {
            reached(Branch::BeginLate);
            let text = format!("a copy of timeline {} behind {} comes too late", begin.timeline, begin.base);
            return Err(EngineError::new(ErrorKind::Conflict, text));
        }
        self.forget(&[begin.timeline]);
        let free = self.free(&self.copies.borrow(), begin.medium);
        let credits = FIRST_CREDITS.min(free / SHARE).max(LEAST_CREDITS);
        if credits > free.min(self.most.get()) {
            reached(Branch::CopyWithoutRoom);
            return Err(EngineError::new(ErrorKind::NoSpace, "there is no room for another copy"));
        }
        let (incarnation, kept) = match begin.medium {
            MirrorMedium::Ram => (self.incarnation, Kept::Ram(BTreeMap::new())),
            MirrorMedium::Disk => self.begin_on_disk(&begin)?,
        };
        let (epoch, base, number) = (begin.epoch, begin.base, self.begun.get() + 1);
        self.begun.set(number);
        let copy = Copy { number, epoch, base, last: base, kept, bytes: 0, credits };
        self.copies.borrow_mut().insert(begin.timeline, copy);
        self.promise_for(begin.timeline);
        Ok(Begun { incarnation, credits })
    }

    /// Notes a copy that an earlier process of this node has left on disk: nothing more comes to it. One that this process keeps stays what it is.
    pub(crate) fn recover(&self, timeline: TimelineId, epoch: Epoch, bytes: u64) {
        if self.copies.borrow().contains_key(&timeline) {
            return;
        }
        let number = self.begun.get() + 1;
        self.begun.set(number);
        let (base, kept) = (Sequence(0), Kept::Disk(None));
        let copy = Copy { number, epoch, base, last: base, kept, bytes, credits: bytes };
        self.copies.borrow_mut().insert(timeline, copy);
    }

    /// Takes changes in: they outlive the process' end, where the copy does, when this comes back. Gives further credits.
    ///
    /// # Errors
    /// `Fenced` where a higher epoch is known, `Conflict` where they do not follow on what is there, `NoSpace` beyond the credits; those of the journal.
    pub async fn deliver(&self, delivery: Delivery) -> Result<u64> {
        let timeline = delivery.timeline;
        match self.check_delivery(&delivery)? {
            Some((journal, number)) => self.keep_on_disk(&journal, number, delivery).await?,
            None => self.keep_in_ram(delivery),
        }
        let more = self.grant(timeline);
        self.promise_for(timeline);
        Ok(more)
    }

    /// Tells the journal of a copy, where it has one, what was promised of it.
    fn promise_for(&self, timeline: TimelineId) {
        let journal = match self.copies.borrow().get(&timeline).map(|copy| &copy.kept) {
            Some(Kept::Disk(Some(journal))) => Rc::clone(journal),
            _ => return,
        };
        self.promise(&journal);
    }

    /// Whether changes may be taken in; gives the journal that they go to, where they do, and the number of the copy.
    fn check_delivery(&self, delivery: &Delivery) -> Result<Option<(Rc<Journal>, u64)>> {
        self.check(delivery.timeline, delivery.epoch)?;
        let copies = self.copies.borrow();
        let none = || not_begun(delivery.timeline, delivery.epoch);
        let copy = copies.get(&delivery.timeline).filter(|copy| copy.epoch == delivery.epoch).ok_or_else(none)?;
        let journal = match &copy.kept {
            Kept::Ram(_) => None,
            Kept::Disk(journal) => Some((journal.clone().ok_or_else(none)?, copy.number)),
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
        if copy.bytes + bytes > copy.credits {
            return Err(EngineError::new(ErrorKind::NoSpace, "more was sent than there are credits for"));
        }
        Ok(journal)
    }

    fn keep_in_ram(&self, delivery: Delivery) {
        let mut copies = self.copies.borrow_mut();
        let Some(copy) = copies.get_mut(&delivery.timeline) else { return };
        let Kept::Ram(records) = &mut copy.kept else { return };
        for record in delivery.records {
            copy.bytes += record.cost();
            copy.last = record.sequence;
            // Data of its own, so that it does not keep the buffer of others alive.
            let data = Bytes::copy_from_slice(&record.data);
            records.insert(record.sequence, TailRecord { data, ..record });
        }
    }

    /// Gives an owner that has used much of its credits more, where there is room.
    fn grant(&self, timeline: TimelineId) -> u64 {
        let mut copies = self.copies.borrow_mut();
        let wants = |copy: &&Copy| copy.bytes * 2 > copy.credits && copy.credits < self.most.get();
        let Some(copy) = copies.get(&timeline).filter(wants) else { return 0 };
        let more = copy.credits.min(self.most.get() - copy.credits);
        let more = more.min(self.free(&copies, copy.kept.medium()) / SHARE);
        if let Some(copy) = copies.get_mut(&timeline) {
            copy.credits += more;
        }
        more
    }

    /// Lets go of what the store has, and takes credits back.
    pub fn release(&self, release: Release) {
        let Release { timeline, epoch, through, back } = release;
        let mut copies = self.copies.borrow_mut();
        let Some(copy) = copies.get_mut(&timeline).filter(|copy| copy.epoch == epoch) else { return };
        let through = if planted(Mutant::ReleaseTooMuch) { through.next() } else { through };
        let gone = match &mut copy.kept {
            Kept::Ram(records) => {
                let kept = records.split_off(&through.next());
                std::mem::replace(records, kept).values().map(TailRecord::cost).sum()
            }
            Kept::Disk(Some(journal)) => self.release_on_disk(journal, timeline, epoch, through),
            Kept::Disk(None) => 0,
        };
        copy.bytes -= gone;
        copy.base = copy.base.max(through.min(copy.last));
        // Never below what is there: whoever gives back more has lost count.
        copy.credits = copy.credits.saturating_sub(back).max(copy.bytes);
        drop(copies);
        self.promise_for(timeline);
    }

    /// Takes nothing of epochs below `epoch` any more.
    ///
    /// # Errors
    /// `Fenced` where a higher one is known.
    pub(crate) fn fence_at(&self, timeline: TimelineId, epoch: Epoch) -> Result<()> {
        self.check(timeline, epoch)?;
        if !planted(Mutant::FetchWithoutFence) {
            self.fences.set(self.fences.get() + 1);
            self.floors.borrow_mut().insert(timeline, Floor { epoch, fence: self.fences.get() });
        }
        Ok(())
    }

    /// Gives what there is of a timeline, and takes nothing of epochs below `epoch` from then on; `named` is the incarnation of the copy that is looked for.
    ///
    /// # Errors
    /// `Fenced` where a higher one is known; `NotFound` where that is this process, and there is no such copy; those of the journals.
    pub async fn fetch(&self, timeline: TimelineId, epoch: Epoch, named: IncarnationId) -> Result<Fetched> {
        match self.take(timeline, epoch, named) {
            Ok(Held::Ram(records)) => Ok(Fetched { is_whole: true, records }),
            Ok(Held::Disk) => Ok(Fetched { is_whole: true, records: self.read_from_disk(timeline).await? }),
            // Of what is left of another one nobody knows what it lacks; it may be all that there is.
            Err(error) if error.kind() == ErrorKind::Conflict => {
                Ok(Fetched { is_whole: false, records: self.read_from_disk(timeline).await? })
            }
            Err(error) => Err(error),
        }
    }

    /// What there is of a timeline, for this node itself, of the copy of an incarnation. Nothing of epochs below `epoch` is taken from then on.
    ///
    /// # Errors
    /// `Fenced` where a higher one is known; `NotFound` where there is no such copy of this process; `Conflict` where that incarnation is not here.
    pub(super) fn take(&self, timeline: TimelineId, epoch: Epoch, named: IncarnationId) -> Result<Held> {
        self.fence_at(timeline, epoch)?;
        if self.disk_incarnation() == Some(named) {
            return Ok(Held::Disk);
        }
        if named != self.incarnation && !planted(Mutant::TakeWithAnyCopy) {
            return Err(EngineError::new(ErrorKind::Conflict, "that copy is of another process"));
        }
        let copies = self.copies.borrow();
        match copies.get(&timeline).map(|copy| &copy.kept) {
            Some(Kept::Ram(records)) => Ok(Held::Ram(records.values().cloned().collect())),
            _ if planted(Mutant::TakeWithAnyCopy) => Ok(Held::Ram(Vec::new())),
            _ => Err(EngineError::new(ErrorKind::NotFound, format!("there is no copy of timeline {timeline}"))),
        }
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
        let given = self.leases.borrow().get(&timeline).copied().unwrap_or_default();
        // An earlier process may have given one just before it ended.
        let before = if self.is_inherited() && !planted(Mutant::RestartForgetsLease) {
            self.since.get() + LEASE_WAIT
        } else {
            Duration::ZERO
        };
        given.max(before).saturating_sub(now)
    }

    /// Lets go of the copies that `is_used` does not name, by timeline, epoch and number.
    pub fn retain(&self, mut is_used: impl FnMut(TimelineId, Epoch, u64) -> bool) {
        let mut unused = Vec::new();
        for (timeline, copy) in &*self.copies.borrow() {
            if !is_used(*timeline, copy.epoch, copy.number) {
                unused.push(*timeline);
            }
        }
        self.forget(&unused);
        let copies = self.copies.borrow();
        self.floors
            .borrow_mut()
            .retain(|timeline, floor| copies.contains_key(timeline) || is_used(*timeline, floor.epoch, 0));
        self.leases.borrow_mut().retain(|timeline, _| copies.contains_key(timeline));
    }

    /// Lets go of the copies of timelines, of which nobody needs anything any more.
    fn forget(&self, timelines: &[TimelineId]) {
        let mut on_disk = Vec::new();
        for timeline in timelines {
            let gone = self.copies.borrow_mut().remove(timeline);
            if let Some(Kept::Disk(journal)) = gone.map(|copy| copy.kept) {
                journal.iter().for_each(|journal| self.promise(journal));
                on_disk.push(*timeline);
            }
        }
        if !on_disk.is_empty() {
            self.forget_on_disk(&on_disk);
        }
    }

    pub(super) fn check(&self, timeline: TimelineId, epoch: Epoch) -> Result<()> {
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
