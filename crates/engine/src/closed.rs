// SPDX-License-Identifier: Apache-2.0
//! Closed timelines: those of an open volume that it does not show, and that a rollback or an undo has left behind.
//!
//! Everything of a closed timeline was put and merged before it was closed, so its manifest says all of it, and only
//! its volume, one step at a time, writes the next one. So a manifest is loaded once and kept: to list snapshots
//! needs no store.
//!
//! Always holds:
//! - The manifest in RAM is the one that coordination accepted last. Where an answer is lost it is forgotten, and
//!   asked for anew.
//! - Until its window ends a closed timeline stays whole: undo shows it again. Then it is *held*, in the same step in
//!   its manifest and in the volume's record, and nothing can show it again; only then is anything of it freed
//!   ([`trim`], [`sweep`]). Without a snapshot that somebody lists, and without a hold, it is removed ([`end`]).
//! - An object goes when the manifest that stopped needing it, and the one after that, were accepted, and after a
//!   grace. So each of them names the one before it as dead, and a closed timeline that nothing happens to has two.
//!
//! It is off the way of writes and reads: a chore of the shard does one timeline after the other. A crash anywhere
//! leaves the last accepted manifest, and the chore finds from it what is left to do.

mod end;
mod pages;
mod reach;
mod sweep;
mod trim;

pub(crate) use end::has_objects;
pub(crate) use pages::Pages;
pub(crate) use reach::Reached;
pub(crate) use sweep::{Family, Pinned};
pub(crate) use trim::{Kept, put_parts_into};

use crate::context::{Context, Held, Turn};
use crate::ends::delete_all;
use crate::lineage::newest_manifest;
use crate::manifests::{PoolStore, accept, may_go, numbers_behind, put_manifest};
use crate::timeline::Timeline;
use crate::volume::Volume;
use crate::{EngineError, Result, TableTotals};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use varve_coord::{TimelineState as RecordState, VolumeRecord};
use varve_format::manifest::{DeadObject, Manifest, TimelineState};
use varve_format::{ObjectKind, ObjectName};
use varve_types::branch::{Branch, reached};
use varve_types::mutant::{Mutant, planted};
use varve_types::{ErrorKind, Overrides, TimelineId, VolumeId};

/// The timelines of a volume: the one that it shows, if that is open, and what is known of those that are closed. Of a deleted volume whose window is over all are.
pub struct Histories {
    pub(crate) id: VolumeId,
    pub(crate) context: Rc<Context>,
    pub(crate) pool: Rc<PoolStore>,
    pub(crate) pool_settings: RefCell<Overrides>,
    pub(crate) record: RefCell<VolumeRecord>,
    /// The timeline that is shown; `None` where the volume is not open.
    pub(crate) timeline: RefCell<Option<Rc<Timeline>>>,
    /// One change of what the volume is at a time.
    pub(crate) changes: Turn,
    /// Its timelines that are not open, as far as they were asked for.
    pub(crate) closed: RefCell<BTreeMap<TimelineId, Closed>>,
    /// One look at a time at what closed timelines can give back.
    pub(crate) tidying: Turn,
}

/// What is known of a closed timeline.
pub(crate) struct Closed {
    /// The manifest that was accepted last.
    pub manifest: Rc<Manifest>,
    /// When it was accepted, or loaded.
    since: Duration,
    /// Objects that were deleted and that the manifest still lists.
    deleted: BTreeSet<ObjectName>,
    /// What was kept when nothing more could be freed.
    pub settled: Option<Kept>,
    /// What the trees of the volume were when they were walked last, and when they may be walked again.
    swept: Option<(Family, Duration)>,
    /// Number of the manifest at which objects that no manifest names were looked for last in this opening.
    orphans: Option<u64>,
    /// The manifest at which nothing was found to clean.
    pub clean_at: Option<u64>,
    /// Objects of which something that lives is damaged: they are cleaned no more.
    pub unclean: BTreeSet<ObjectName>,
    /// What its table was when it was last looked at.
    pub totals: TableTotals,
}

impl Closed {
    fn new(context: &Context, manifest: Rc<Manifest>) -> Self {
        let (since, deleted, unclean) = (context.env.now(), BTreeSet::new(), BTreeSet::new());
        Self {
            manifest,
            since,
            deleted,
            settled: None,
            swept: None,
            orphans: None,
            clean_at: None,
            unclean,
            totals: TableTotals::default(),
        }
    }

    /// Whether the trees were these when they were walked last.
    pub fn swept_at(&self, family: &Family) -> bool {
        self.swept.as_ref().is_some_and(|(last, _)| last == family)
    }

    fn replace(&mut self, context: &Context, manifest: Rc<Manifest>) {
        self.deleted.retain(|name| manifest.dead.iter().any(|dead| dead.name == *name));
        (self.since, self.manifest) = (context.env.now(), manifest);
    }
}

impl Histories {
    /// Those of a volume with this record.
    pub(crate) fn new(
        context: Rc<Context>,
        pool: Rc<PoolStore>,
        pool_settings: Overrides,
        record: VolumeRecord,
        shown: Option<Rc<Timeline>>,
    ) -> Rc<Self> {
        Rc::new(Self {
            id: record.id,
            context,
            pool,
            pool_settings: RefCell::new(pool_settings),
            record: RefCell::new(record),
            timeline: RefCell::new(shown),
            changes: Turn::default(),
            closed: RefCell::default(),
            tidying: Turn::default(),
        })
    }

    /// The volume's record in coordination, as this node knows it.
    pub fn record(&self) -> VolumeRecord {
        self.record.borrow().clone()
    }

    /// The settings of its pool, as far as they are set.
    pub fn pool_settings(&self) -> Overrides {
        *self.pool_settings.borrow()
    }

    /// The timeline that is open.
    pub(crate) fn open_timeline(&self) -> Option<Rc<Timeline>> {
        self.timeline.borrow().clone()
    }

    /// The manifest of a timeline of this volume that is not shown. The store is asked once.
    ///
    /// # Errors
    /// Those of the store and of coordination where it was not loaded yet.
    pub(crate) async fn closed_manifest(&self, id: TimelineId) -> Result<Rc<Manifest>> {
        if let Some(closed) = self.closed.borrow().get(&id) {
            return Ok(Rc::clone(&closed.manifest));
        }
        let loaded = Rc::new(newest_manifest(&self.context, &self.pool.store, id).await?);
        let mut all = self.closed.borrow_mut();
        // Somebody may have been faster, and may have written another since.
        let closed = all.entry(id).or_insert_with(|| Closed::new(&self.context, loaded));
        Ok(Rc::clone(&closed.manifest))
    }

    /// Notes that a timeline is closed from now on, and with which manifest.
    pub(crate) fn close_timeline(&self, timeline: &Timeline) {
        let (mut manifest, previous) = {
            let data = timeline.data.borrow();
            (data.manifest.clone(), data.previous_manifest)
        };
        let (id, since) = (manifest.timeline, manifest.number);
        // The manifest after the next is told of it; after a crash it is found as an orphan.
        manifest.dead.extend(previous.map(|name| DeadObject { name, since }));
        self.closed.borrow_mut().insert(id, Closed::new(&self.context, Rc::new(manifest)));
    }

    /// Writes a manifest of a closed timeline and has it accepted. The caller has the turn.
    pub(crate) async fn edit_closed(&self, id: TimelineId, edit: impl Fn(&mut Manifest)) -> Result<()> {
        self.edit_closed_with(id, edit, |_| Ok(())).await
    }

    /// The same, with other changes of the volume's record in the same step.
    pub(crate) async fn edit_closed_with(
        &self,
        id: TimelineId,
        edit: impl Fn(&mut Manifest),
        also: impl FnMut(&mut VolumeRecord) -> Result<()>,
    ) -> Result<()> {
        let old = self.closed_manifest(id).await?;
        let deleted = self.closed.borrow().get(&id).map(|closed| closed.deleted.clone()).unwrap_or_default();
        let record = self.record();
        let all = |manifest: &mut Manifest| {
            manifest.dead.retain(|dead| !deleted.contains(&dead.name));
            edit(manifest);
        };
        let new = put_edited(&self.context, &self.pool, &record, &old, all).await?;
        match accept(&self.context, self.id, &new, also).await {
            Ok(record) => {
                *self.record.borrow_mut() = record;
                let new = Rc::new(new);
                let mut all = self.closed.borrow_mut();
                let closed = all.entry(id).or_insert_with(|| Closed::new(&self.context, Rc::clone(&new)));
                closed.replace(&self.context, new);
                Ok(())
            }
            Err(error) => {
                // It may count all the same.
                self.closed.borrow_mut().remove(&id);
                Err(error)
            }
        }
    }

    /// Does what is due for a closed timeline, but for its end and for a sweep. The caller has the turn to do so.
    pub(crate) async fn tidy_one(&self, _turn: &Held<'_>, id: TimelineId) -> Result<Tidied> {
        if self.held_manifest(id).await?.is_none() {
            return Ok(Tidied::AtEnd);
        }
        self.write_second(id).await?;
        self.delete_dead(id).await?;
        self.delete_orphans(id).await?;
        if !self.is_past(id) {
            return Ok(Tidied::Whole);
        }
        Ok(if self.trim(id).await? { Tidied::AtEnd } else { Tidied::Held })
    }

    /// Writes the manifest after the one that stopped needing something.
    async fn write_second(&self, id: TimelineId) -> Result<()> {
        let _turn = self.changes.take().await;
        if !self.is_closed(id) {
            return Ok(());
        }
        let manifest = self.closed_manifest(id).await?;
        if manifest.dead.iter().any(|dead| dead.since >= manifest.number && dead.name.kind != ObjectKind::Manifest) {
            reached(Branch::SecondManifest);
            self.edit_closed(id, |_| {}).await?;
        }
        Ok(())
    }

    /// Writes a manifest of a closed timeline that was made from `from`, if that is still the newest and its window is over. Tells whether it was.
    pub(crate) async fn edit_held(&self, from: &Manifest, edit: impl Fn(&mut Manifest)) -> Result<bool> {
        let id = from.timeline;
        let _turn = self.changes.take().await;
        if !self.is_closed(id) || !self.is_past(id) || *self.closed_manifest(id).await? != *from {
            reached(Branch::HistoryOvertaken);
            return Ok(false);
        }
        self.edit_closed_with(id, edit, |record| held(record, id)).await?;
        Ok(true)
    }

    pub(crate) fn closed_ids(&self) -> Vec<TimelineId> {
        let ids: Vec<_> = self.record.borrow().timelines.iter().map(|timeline| timeline.id).collect();
        // The youngest first: what it keeps of the others is known then.
        ids.into_iter().rev().filter(|id| self.is_closed(*id)).collect()
    }

    fn is_closed(&self, id: TimelineId) -> bool {
        let record = self.record.borrow();
        (record.shown != id || self.timeline.borrow().is_none()) && record.timeline(id).is_some()
    }

    /// Notes what the table of a closed timeline is, for people.
    pub(crate) fn note_totals(&self, id: TimelineId, totals: TableTotals) {
        if let Some(closed) = self.closed.borrow_mut().get_mut(&id) {
            closed.totals = totals;
        }
    }

    /// Whether it is that of a deleted volume that nothing brings back any more.
    fn is_gone(&self) -> bool {
        self.timeline.borrow().is_none() && is_for_good(&self.record.borrow())
    }

    /// Whether its window is over. What is held never comes back.
    pub(crate) fn is_past(&self, id: TimelineId) -> bool {
        match self.record.borrow().timeline(id).map(|timeline| timeline.state) {
            Some(RecordState::Hidden { until_ms }) => {
                until_ms <= self.context.now_ms() || planted(Mutant::TrimInsideWindow)
            }
            Some(RecordState::Held) => true,
            Some(RecordState::Shown) => self.is_gone(),
            None => false,
        }
    }

    /// Deletes what its manifests have stopped needing; see the module for when. What is dead once is dead for ever, so nobody has to wait for this.
    async fn delete_dead(&self, id: TimelineId) -> Result<()> {
        let (since, due) = {
            let all = self.closed.borrow();
            let Some(closed) = all.get(&id) else { return Ok(()) };
            let manifest = &closed.manifest;
            let due = manifest.dead.iter().filter(|d| may_go(d, manifest.number) && !closed.deleted.contains(&d.name));
            (closed.since, due.map(|dead| dead.name).collect::<Vec<_>>())
        };
        let grace = Duration::from_millis(self.context.limits.delete_grace_ms);
        if due.is_empty() || self.context.env.now().saturating_sub(since) < grace {
            return Ok(());
        }
        self.pool.check().await?;
        delete_all(&*self.pool.store, due, |name| {
            if let Some(closed) = self.closed.borrow_mut().get_mut(&id) {
                closed.deleted.insert(name);
            }
        })
        .await
    }
}

impl Volume {
    /// Loads the manifests that a listing of snapshots needs, so that later ones need no store.
    pub(crate) async fn know_closed(&self) {
        if let Err(error) = self.snapshots().await {
            tracing::warn!(volume = %self.id, %error, "what was before a rollback can not be looked at yet");
        }
    }

    /// Does what is due for every closed timeline but the end of one, and tells which are to be ended. With `all` everything that can be freed is, however
    /// short ago it was looked at. The caller has the turn to do so.
    ///
    /// # Errors
    /// `Fenced` when the volume or its pool is another's. What hinders one timeline alone is only told: it is tried again.
    pub(crate) async fn tidy(&self, turn: &Held<'_>, all: bool) -> Result<Vec<TimelineId>> {
        let mut over = Vec::new();
        // What somebody is at the end of is nobody else's business.
        for id in self.closed_ids().into_iter().filter(|id| !self.context.ends.is_under_way(*id)) {
            let tidied = match self.tidy_one(turn, id).await {
                Ok(Tidied::Held) => self.sweep_if_due(id, all).await.map(|()| Tidied::Held),
                done => done,
            };
            match tidied {
                Ok(Tidied::Whole | Tidied::Held) => {}
                Ok(Tidied::AtEnd) => over.push(id),
                Err(error) if error.kind() == ErrorKind::Fenced => return Err(error),
                Err(error) => {
                    tracing::warn!(timeline = %id, %error, "a hidden history could not give back its space yet");
                }
            }
        }
        Ok(over)
    }
}

/// How far a closed timeline has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tidied {
    /// Inside its window: it stays whole.
    Whole,
    /// Past it, and something of it is kept.
    Held,
    /// Nothing of it is kept.
    AtEnd,
}

/// Whether nothing brings a deleted volume back any more: before anything of it is freed its record says so.
fn is_for_good(record: &VolumeRecord) -> bool {
    record.deleted.is_some_and(|deleted| deleted.is_for_good())
}

/// Makes the record say of a timeline that it is held.
fn held(record: &mut VolumeRecord, id: TimelineId) -> Result<()> {
    if record.shown == id && is_for_good(record) {
        // That it was shown last is all that tells which of the timelines the volume was.
        return Ok(());
    }
    match record.timeline_mut(id) {
        Some(entry) if entry.state != RecordState::Shown => entry.state = RecordState::Held,
        _ => return Err(EngineError::new(ErrorKind::Conflict, format!("timeline {id} is shown"))),
    }
    Ok(())
}

/// Puts a manifest that differs from `old` by `edit`, under the first number that no earlier try has taken. `edit` is told that number in the manifest.
async fn put_edited(
    context: &Context,
    pool: &PoolStore,
    record: &VolumeRecord,
    old: &Manifest,
    edit: impl Fn(&mut Manifest),
) -> Result<Manifest> {
    for number in numbers_behind(&*context.env, old.number) {
        let mut manifest = Manifest {
            number,
            epoch: record.epoch,
            writer: record.writer,
            written_ms: context.now_ms(),
            first_ordinal: old.first_ordinal.max(old.boundary),
            ..old.clone()
        };
        if !manifest.dead.iter().any(|dead| dead.name == old.object_name()) {
            manifest.dead.push(DeadObject { name: old.object_name(), since: number });
        }
        edit(&mut manifest);
        match put_manifest(&*pool.store, &manifest).await {
            Err(error) if error.kind() == ErrorKind::Corrupt => reached(Branch::ManifestNumberTaken),
            done => return done.map(|()| manifest),
        }
    }
    let what = format!("timeline {}: no number is free for a manifest", old.timeline);
    Err(EngineError::new(ErrorKind::Busy, what))
}

/// Writes a manifest of a timeline whose volume is not open and has it accepted, at the epoch of the record.
pub(crate) async fn edit_closed(
    context: &Context,
    pool: &PoolStore,
    record: &VolumeRecord,
    timeline: TimelineId,
    edit: impl Fn(&mut Manifest),
) -> Result<(VolumeRecord, Manifest)> {
    let old = newest_manifest(context, &pool.store, timeline).await?;
    let manifest = put_edited(context, pool, record, &old, edit).await?;
    let record = accept(context, record.id, &manifest, |_: &mut VolumeRecord| Ok(())).await?;
    Ok((record, manifest))
}

/// Whether a walk has freed what no tree of the volume reaches.
const fn is_swept(manifest: &Manifest) -> bool {
    matches!(manifest.state, TimelineState::Held { swept: true })
}
