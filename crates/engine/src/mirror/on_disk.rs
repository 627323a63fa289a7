// SPDX-License-Identifier: Apache-2.0
//! Copies on disk: the changes of other nodes' volumes in the journals of this one, as records like its own.
//!
//! The journals know them as tails of timelines that are not open ([`crate::tails`]): they are pinned, carried, and found again by the next process. Who takes a
//! volume over with such a copy has nothing to copy.
//!
//! What outlives what: a change is answered once the kernel has it, so the end of the process loses nothing; a loss of power loses what no [`Copies::sync`] has made
//! stable. So these copies have an *incarnation* of their own, which goes from process to process until power may have been lost, or a journal has failed: whoever keeps
//! it for the shard ([`DiskCopies`]) has to tell. Copies of earlier ones are given to whoever asks for them, and said to lack something; nobody takes over with them.
//!
//! Always holds:
//! - A record of a copy is in the journals' tails as long as the store does not have it and the copy is known; where one is lost, the incarnation ends before that is
//!   answered.
//! - No tail is given up for a copy but that of a copy: what this node may need to open a volume of its own is not touched by who sends it changes.

use super::copies::{Copies, Kept};
use super::peer::cost;
use super::{BeginCopy, Delivery, TailRecord};
use crate::context::Context;
use crate::journal::{Journal, Promised, Replayed};
use crate::{EngineError, Result};
use std::rc::Rc;
use varve_coord::Records;
use varve_format::journal::Body;
use varve_types::branch::{Branch, reached};
use varve_types::mutant::{Mutant, planted};
use varve_types::{Epoch, ErrorKind, IncarnationId, Sequence, TimelineId, VolumeId};

/// What copies on disk live and die with.
pub struct DiskCopies {
    /// Their incarnation.
    pub incarnation: IncarnationId,
    /// Whether an earlier process had it, and everything that it handed to the kernel is there.
    pub is_inherited: bool,
    /// Has the incarnation end: no later process has it. Called before anybody hears that something was lost.
    pub spoil: Box<dyn Fn()>,
}

fn no_shard() -> EngineError {
    EngineError::new(ErrorKind::Unavailable, "this node keeps no copies on disk now")
}

impl Copies {
    /// Lets there be copies on disk.
    pub fn allow_disk(&self, disk: DiskCopies) {
        self.disk.replace(Some(disk));
    }

    pub(super) fn disk_incarnation(&self) -> Option<IncarnationId> {
        self.disk.borrow().as_ref().map(|disk| disk.incarnation)
    }

    pub(super) fn is_inherited(&self) -> bool {
        self.disk.borrow().as_ref().is_some_and(|disk| disk.is_inherited)
    }

    fn context(&self) -> Result<Rc<Context>> {
        self.shard.borrow().upgrade().ok_or_else(no_shard)
    }

    pub(super) fn begin_on_disk(&self, begin: &BeginCopy) -> Result<(IncarnationId, Kept)> {
        let (incarnation, timeline) = (self.disk_incarnation().ok_or_else(no_shard)?, begin.timeline);
        let context = self.context()?;
        if context.journals.iter().any(|home| home.tails.count(timeline) > 0) {
            reached(Branch::TailInTheWay);
            context.look_at_tail(begin.volume, timeline);
            let text = format!(
                "this node has changes of timeline {timeline} from when it was the owner: it looks whether it needs them"
            );
            return Err(EngineError::new(ErrorKind::Busy, text));
        }
        let journal = context.journals.choose(timeline);
        match journal.failure() {
            Some(error) => Err(error),
            None => Ok((incarnation, Kept::Disk(Some(journal)))),
        }
    }

    /// Appends changes to a journal, one by one as it has room: what is appended is a part of the copy at once.
    pub(super) async fn keep_on_disk(&self, journal: &Rc<Journal>, number: u64, delivery: Delivery) -> Result<()> {
        let context = self.context()?;
        let tails = context.journals.tails(journal);
        let Delivery { timeline, epoch, records, .. } = delivery;
        let mut added: Vec<Replayed> = Vec::with_capacity(records.len());
        for record in records {
            let need = Journal::need(&record);
            if !journal.has_foreign_room(need) {
                tails.add(journal, timeline, std::mem::take(&mut added));
                journal.commit().map_err(|error| self.spoiled(error))?;
                journal.foreign_room(need).await;
                self.is_still(timeline, epoch, number)?;
            }
            let (cost, sequence) = (record.cost(), record.sequence);
            added.push(journal.append_foreign(timeline, record).map_err(|error| self.spoiled(error))?);
            if let Some(copy) = self.copies.borrow_mut().get_mut(&timeline) {
                (copy.last, copy.bytes) = (sequence, copy.bytes + cost);
            }
        }
        tails.add(journal, timeline, added);
        if planted(Mutant::CopyUncommitted) {
            return Ok(());
        }
        journal.commit().map_err(|error| self.spoiled(error))
    }

    /// Whether behind a wait a copy is the one that it was.
    fn is_still(&self, timeline: TimelineId, epoch: Epoch, number: u64) -> Result<()> {
        self.check(timeline, epoch)?;
        if self.copies.borrow().get(&timeline).is_some_and(|copy| copy.number == number) {
            return Ok(());
        }
        Err(EngineError::new(ErrorKind::Conflict, format!("another copy of timeline {timeline} was begun")))
    }

    /// Brings a copy to stable media, up to a change at least.
    ///
    /// # Errors
    /// `Fenced` where a higher epoch is known, `Conflict` where it does not have that change, or is not on disk; those of the journal.
    pub async fn sync(&self, timeline: TimelineId, epoch: Epoch, through: Sequence) -> Result<()> {
        self.check(timeline, epoch)?;
        let journal = match self.copies.borrow().get(&timeline) {
            Some(copy) if copy.epoch == epoch && copy.last >= through => match &copy.kept {
                Kept::Disk(journal) => journal.clone(),
                Kept::Ram(_) => None,
            },
            _ => None,
        };
        let Some(journal) = journal else {
            let text = format!("there is no copy of timeline {timeline} on disk that has change {through}");
            return Err(EngineError::new(ErrorKind::Conflict, text));
        };
        if planted(Mutant::CopyUnsynced) {
            return Ok(());
        }
        journal.sync_all().await.map_err(|error| self.spoiled(error))
    }

    /// A journal has failed: what it has of copies nobody may count on any more.
    fn spoiled(&self, error: EngineError) -> EngineError {
        if let Some(disk) = self.disk.take() {
            reached(Branch::DiskCopiesSpoiled);
            tracing::error!(%error, "copies on disk are given up: a journal has failed");
            (disk.spoil)();
        }
        error
    }

    /// The store has more: gives the bytes of what goes.
    pub(super) fn release_on_disk(
        &self,
        journal: &Rc<Journal>,
        timeline: TimelineId,
        epoch: Epoch,
        through: Sequence,
    ) -> u64 {
        let Ok(context) = self.context() else { return 0 };
        let gone = context.journals.tails(journal).release(journal, timeline, epoch, through);
        gone.iter().map(|it| cost(&it.record)).sum()
    }

    /// Tells a journal what was promised of it.
    pub(super) fn promise(&self, journal: &Rc<Journal>) {
        let mut promised = Promised::default();
        for copy in self.copies.borrow().values() {
            if let Kept::Disk(Some(own)) = &copy.kept
                && Rc::ptr_eq(own, journal)
            {
                promised.all += copy.credits;
                promised.unused += copy.credits - copy.bytes;
            }
        }
        journal.promise(promised);
    }

    pub(super) fn forget_on_disk(&self, timelines: &[TimelineId]) {
        if let Ok(context) = self.context() {
            context.journals.retain_tails(|timeline| !timelines.contains(&timeline));
        }
    }

    /// The changes that the journals have of a timeline.
    pub(super) async fn read_from_disk(&self, timeline: TimelineId) -> Result<Vec<TailRecord>> {
        let Ok(context) = self.context() else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for home in context.journals.iter() {
            let mut records = home.tails.of(timeline);
            records.retain(|it| it.record.body != Body::Counted);
            all.extend(home.journal.read_tail(records).await?);
        }
        Ok(all)
    }

    /// Whether a timeline's tail in the journals is a copy.
    pub(crate) fn is_on_disk(&self, timeline: TimelineId) -> bool {
        let copies = self.copies.borrow();
        copies.get(&timeline).is_some_and(|copy| matches!(copy.kept, Kept::Disk(_))) && !planted(Mutant::DropCopyTail)
    }

    /// This node has opened a timeline with what it had of it: it is no copy any more.
    pub(crate) fn is_own_now(&self, timeline: TimelineId) {
        let gone = self.copies.borrow_mut().remove(&timeline);
        if let Some(Kept::Disk(Some(journal))) = gone.map(|copy| copy.kept) {
            self.promise(&journal);
        }
    }
}

impl Context {
    /// Gives up what the journals have of a timeline from when this node was its owner, if another one is by now, as coordination says.
    fn look_at_tail(self: &Rc<Self>, volume: VolumeId, timeline: TimelineId) {
        let this = Rc::clone(self);
        self.env.spawn(Box::pin(async move {
            let node = this.node.get();
            let Ok((record, _)) = Records::new(&*this.coord).load_volume(volume).await else { return };
            let is_named = record.mirror.is_some_and(|mirror| Some(mirror.node) == node);
            if record.owner != node && !is_named {
                this.retain_tails(|other| other != timeline);
            }
        }));
    }

    /// Gives up the tails that `is_needed` does not name, and that are no copies of others.
    pub fn retain_tails(&self, is_needed: impl Fn(TimelineId) -> bool) {
        let copies = self.copies.borrow().clone();
        let is_copy = |timeline| copies.as_ref().is_some_and(|copies| copies.is_on_disk(timeline));
        self.journals.retain_tails(|timeline| is_needed(timeline) || is_copy(timeline));
    }

    /// Notes the copies that an earlier process has left on disk: those of volumes, by timeline and epoch, whose records name this node.
    pub fn recover_copies(&self, named: impl Iterator<Item = (TimelineId, Epoch)>) {
        let Some(copies) = self.copies.borrow().clone() else { return };
        for (timeline, epoch) in named {
            let records: Vec<_> = self.journals.iter().flat_map(|home| home.tails.of(timeline)).collect();
            if !records.is_empty() {
                reached(Branch::DiskCopyFound);
                copies.recover(timeline, epoch, records.iter().map(|it| cost(&it.record)).sum());
            }
        }
    }

    /// Brings to stable media what the journals have of a timeline.
    pub(super) async fn settle_tail(&self, timeline: TimelineId) -> Result<()> {
        for home in self.journals.iter().filter(|home| home.tails.count(timeline) > 0) {
            home.journal.sync_all().await?;
        }
        Ok(())
    }
}
