// SPDX-License-Identifier: Apache-2.0
//! Windows that are over, and the ends of what they kept: volumes that were deleted, and hidden histories that nothing needs any more.
//!
//! A look at windows decides and begins, and waits for no end: each is a task of its own (`ends` says how it deletes, and what it may take).
//!
//! A deleted volume ends in this order: its record says that it does, so that nothing brings it back; each of its timelines gets a tombstone, so that an
//! import passes them over; every object goes, by name, and by prefix; the record in coordination; the hold in its origin. All but the deletes are short, and
//! they are what needs a turn: who brings back a volume, makes one or imports a pool waits for nothing that is long. A crash anywhere leaves a record that
//! is at its end, and tombstones that say what is left, from which the next look goes on.

use super::Shard;
use crate::closed::{edit_closed, has_objects};
use crate::ends::{End, Ending, shrink};
use crate::lineage::{manifest_name, newest_manifest_if_there};
use crate::manifests::{PoolStore, remove_manifest};
use crate::volume::{Volume, raise};
use crate::{EngineError, Result};
use std::cell::RefCell;
use std::rc::Rc;
use varve_coord::{Deleted, Records, VolumeRecord};
use varve_format::manifest::{Manifest, TimelineState};
use varve_types::TimelineId;
use varve_types::branch::{Branch, reached, reached_if};
use varve_types::mutant::{Mutant, planted};

/// Whether the end of a volume has begun: nothing brings it back any more.
pub(super) fn is_ending(record: &VolumeRecord) -> bool {
    record.deleted.is_some_and(|deleted| deleted.until_ms == Deleted::ENDING)
}

/// A timeline that is born from another volume's, which holds what it was born with: the origin, and itself.
type BornOf = (TimelineId, TimelineId);

/// What has become of a deleted volume whose window is over.
enum Buried {
    /// It ends; with the births of its timelines from those of others.
    Ends(Box<VolumeRecord>, Vec<BornOf>),
    /// Clones need it.
    Needed,
    /// It was brought back, or another node is at it.
    Overtaken,
}

impl Shard {
    /// What is being deleted for ever, by timeline.
    pub fn endings(&self) -> Vec<Ending> {
        self.context.ends.list()
    }

    /// Looks which windows have ended, and begins to end what they kept.
    pub async fn sweep(self: &Rc<Self>) -> Result<()> {
        let records = Records::new(&*self.context.coord).list_volumes().await?;
        let known =
            records.iter().flat_map(|(record, _)| record.timelines.iter().map(|timeline| timeline.id)).collect();
        self.context.ends.keep(&known);
        for (record, _) in records {
            if self.context.is_ours(&record)
                && self.is_over(&record)
                && let Err(error) = self.begin_purge(record.clone())
            {
                tracing::warn!(volume = %record.id, %error, "a deleted volume could not be removed yet");
            }
        }
        self.drop_orphaned_holds().await?;
        for volume in self.volumes().into_iter().filter(|volume| volume.stopped().is_none()) {
            if let Err(error) = self.tidy_volume(&volume).await {
                tracing::warn!(volume = %volume.id(), %error, "hidden histories could not be looked at; it will be tried again");
            }
        }
        Ok(())
    }

    /// Gives back what histories of a volume keep whose windows have ended, and begins to end those that nothing needs.
    async fn tidy_volume(self: &Rc<Self>, volume: &Rc<Volume>) -> Result<()> {
        let turn = volume.tidying.take().await;
        for id in volume.tidy(&turn, false).await? {
            if !self.context.ends.begin(&self.context, &volume.pool, id) {
                continue;
            }
            let buried = volume.bury_timeline(id).await;
            let (this, volume) = (Rc::clone(self), Rc::clone(volume));
            self.context.env.spawn(Box::pin(async move {
                let result = match buried {
                    Ok(tombstone) => this.end_timeline(&volume, id, tombstone).await,
                    Err(error) => Err(error),
                };
                this.context.ends.finish(&this.context, &volume.pool, id, &result);
                if let Err(error) = result {
                    tracing::warn!(timeline = %id, %error, "a history that nothing needs could not be removed yet");
                }
            }));
        }
        Ok(())
    }

    /// Removes a history of a volume that has its tombstone, unless even that is gone.
    async fn end_timeline(
        self: &Rc<Self>,
        volume: &Rc<Volume>,
        id: TimelineId,
        tombstone: Option<Rc<Manifest>>,
    ) -> Result<()> {
        let birth = match tombstone {
            Some(tombstone) => volume.remove_timeline(tombstone).await?,
            None => None,
        };
        // What a hold has kept is counted anew by whoever has this turn.
        let _turn = volume.tidying.take().await;
        match birth {
            Some(birth) if volume.record().timeline(birth.origin).is_some() => {
                volume.drop_hold(birth.origin, id).await?
            }
            Some(birth) => self.drop_hold(birth.origin, id).await?,
            None => {}
        }
        volume.forget_timeline(id).await
    }

    /// Whether a volume was deleted, and its window is over.
    pub(super) fn is_over(&self, record: &VolumeRecord) -> bool {
        let is_past = |until_ms| until_ms <= self.context.now_ms() || planted(Mutant::PurgeInsideWindow);
        record.deleted.is_some_and(|deleted| is_past(deleted.until_ms))
    }

    /// Takes a deleted volume over to end it; `None` where it was brought back since it was looked at. Nothing brings it back from then on, whatever the
    /// clock shows.
    async fn begin_end(&self, seen: &VolumeRecord) -> Result<Option<VolumeRecord>> {
        let begin = |record: &mut VolumeRecord| -> Result<bool> {
            // What was deleted anew meanwhile has other clones and histories than were looked at.
            let is_same = record.deleted == seen.deleted && self.is_over(record);
            if !is_same && !planted(Mutant::PurgeBroughtBack) {
                return Ok(false);
            }
            // The epoch is raised first: whoever still thinks that it owns the volume is fenced.
            raise(record, seen.writer);
            record.deleted = record.deleted.map(|deleted| Deleted { until_ms: Deleted::ENDING, ..deleted });
            Ok(true)
        };
        let (record, _, begun) = Records::new(&*self.context.coord).modify_volume(seen.id, begin).await?;
        reached_if(!begun, Branch::PurgeOvertaken);
        Ok(begun.then_some(record))
    }

    /// Lets a deleted volume be removed beside other work, if nobody is at it.
    fn begin_purge(self: &Rc<Self>, record: VolumeRecord) -> Result<()> {
        let (pool, _) = self.pool(&record.pool)?;
        if !self.context.ends.begin(&self.context, &pool, record.shown) {
            return Ok(());
        }
        let this = Rc::clone(self);
        self.context.env.spawn(Box::pin(async move {
            let result = this.purge(&pool, &record).await;
            this.context.ends.finish(&this.context, &pool, record.shown, &result);
            if let Err(error) = result {
                tracing::warn!(volume = %record.id, %error, "a deleted volume could not be removed yet");
            }
        }));
        Ok(())
    }

    /// Removes a deleted volume for ever, unless others were born from it.
    async fn purge(self: &Rc<Self>, pool: &PoolStore, record: &VolumeRecord) -> Result<()> {
        let (record, births) = match self.bury(pool, record).await? {
            Buried::Ends(record, births) => (*record, births),
            Buried::Needed => return self.keep_for_clones(record).await,
            Buried::Overtaken => return Ok(()),
        };
        self.context.ends.tell(Ending {
            volume: record.id,
            name: record.name.clone(),
            timeline: record.shown,
            whole: true,
            since_ms: self.context.now_ms(),
            deleted: 0,
            left: 0,
            waits: None,
        });
        let end = End { context: &self.context, pool, key: record.shown };
        let (ids, record) = (record.timelines.iter().map(|t| t.id).collect::<Vec<_>>(), RefCell::new(record));
        for id in &ids {
            let Ok(tombstone) = newest_manifest_if_there(&self.context, &pool.store, *id).await? else {
                reached(Branch::PurgeResumed);
                continue;
            };
            let left = async |pages| {
                let now = record.borrow().clone();
                let (newer, less) = edit_closed(&self.context, pool, &now, *id, |m| shrink(m, pages)).await?;
                record.replace(newer);
                Ok(Rc::new(less))
            };
            let tombstone = end.remove_named(Rc::new(tombstone), left).await?;
            end.remove_listed(*id, Some(tombstone.number)).await?;
        }
        self.forget_volume(&end, &record.into_inner()).await?;
        for (origin, clone) in births {
            self.drop_hold(origin, clone).await?;
        }
        Ok(())
    }

    /// Makes sure that nothing was born from a deleted volume, has its record say that it ends, and gives each of its timelines a tombstone.
    async fn bury(&self, pool: &PoolStore, record: &VolumeRecord) -> Result<Buried> {
        let _ending = self.begin_making(&record.pool)?;
        let _turn = self.deleted.take().await;
        let (mut births, mut buried) = (Vec::new(), Vec::new());
        for timeline in &record.timelines {
            let manifest = match newest_manifest_if_there(&self.context, &pool.store, timeline.id).await? {
                Ok(manifest) => manifest,
                // An earlier try came so far.
                Err(_) if is_ending(record) || planted(Mutant::PurgeWithoutManifest) => continue,
                // A history that had ended, and that only the record did not know of yet.
                Err(_) if timeline.id != record.shown && !has_objects(pool, timeline.id).await? => continue,
                Err(lost) => {
                    reached(Branch::PurgeBlind);
                    let name = manifest_name(timeline.id, lost);
                    return Err(EngineError::corrupt(format!(
                        "an object that is needed is missing: {name}; nobody can tell whether others were born from this timeline, so it is kept"
                    )));
                }
            };
            for hold in manifest.holds.iter().filter(|hold| hold.volume != record.id) {
                if self.is_held(hold, timeline.id).await? && !planted(Mutant::PurgeHeldOrigin) {
                    reached(Branch::PurgeKept);
                    return Ok(Buried::Needed);
                }
            }
            births.extend(manifest.birth.map(|birth| (birth.origin, timeline.id)));
            buried.push((timeline.id, manifest.state == TimelineState::Tombstone));
        }
        pool.check().await?;
        self.gone.borrow_mut().remove(&record.id);
        let Some(mut record) = self.begin_end(record).await? else { return Ok(Buried::Overtaken) };
        for (id, is_buried) in buried {
            reached_if(is_buried, Branch::EndResumed);
            if !is_buried {
                let end = |m: &mut Manifest| m.state = TimelineState::Tombstone;
                record = edit_closed(&self.context, pool, &record, id, end).await?.0;
            }
        }
        Ok(Buried::Ends(Box::new(record), births))
    }

    /// Takes a volume that has ended out of coordination, its tombstones before.
    async fn forget_volume(&self, end: &End<'_>, record: &VolumeRecord) -> Result<()> {
        // An import would find a volume whose record goes while its manifests do.
        let _ending = self.begin_making(&record.pool)?;
        for timeline in &record.timelines {
            end.remove_listed(timeline.id, None).await?;
            remove_manifest(end.pool, timeline.id, timeline.manifest).await?;
        }
        let _turn = self.deleted.take().await;
        let records = Records::new(&*self.context.coord);
        let (last, revision) = records.load_volume(record.id).await?;
        if last.epoch != record.epoch {
            return Err(crate::timeline::fenced(format!("volume {}: somebody else ends it", record.id)));
        }
        records.remove_volume(&last, revision).await?;
        Ok(())
    }
}
