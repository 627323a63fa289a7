// SPDX-License-Identifier: Apache-2.0
//! The life of volumes: made, cloned, deleted, and brought back.
//!
//! A deleted volume is hidden until its window ends; what others were born from stays until they are gone. What happens then
//! is in [`super::end`]. Here too: holds of clones, which are dropped once the clone is gone.
//!
//! Always holds: whoever edits a manifest of a deleted volume has the turn of all that is deleted, but for the end itself, which nothing follows.

use super::Shard;
use super::end::is_ending;
use crate::birth::{Source, start};
use crate::closed::edit_closed;
use crate::manifests::{PoolStore, put_manifest, reference, remove_manifest};
use crate::rewind::RewindPoint;
use crate::timeline::Data;
use crate::volume::{Claim, Volume};
use crate::{EngineError, Result};
use std::rc::Rc;
use varve_coord::{
    Check, CoordError, Deleted, Record, Records, TimelineRecord, TimelineState as RecordState, VolumeRecord,
};
use varve_format::manifest::{DeadObject, Hold, Manifest, TimelineState};
use varve_types::branch::{Branch, reached};
use varve_types::mutant::{Mutant, planted};
use varve_types::{Epoch, ErrorKind, Name, Overrides, TimelineId, VolumeId, WriterId};

/// What a new volume is.
#[derive(Clone, Debug)]
pub struct NewVolume {
    /// Its name.
    pub name: Name,
    /// Its pool.
    pub pool: Name,
    /// Its size in bytes.
    pub size: u64,
    /// Its settings.
    pub settings: Overrides,
}

/// Tries of a transaction that others may be faster than.
const MAX_TRIES: u32 = 16;

fn not_back(name: &Name) -> EngineError {
    let what = format!("no deleted volume {name} can be brought back (its window may be over)");
    EngineError::new(ErrorKind::NotFound, what)
}

/// Why a volume has no record.
enum Unrecorded {
    /// It has none, and never will.
    Never(EngineError),
    /// Nobody knows: it may come to have one.
    Unknown(EngineError),
}

impl From<CoordError> for Unrecorded {
    fn from(error: CoordError) -> Self {
        if error.is_unknown() { Self::Unknown(error.into()) } else { Self::Never(error.into()) }
    }
}

/// Takes the first manifest of a volume back that was not recorded: an import would find a volume that nobody was ever told of. While nobody knows
/// the record may need it.
async fn forget_unmade(pool: &PoolStore, record: &VolumeRecord, why: Unrecorded) -> EngineError {
    match why {
        Unrecorded::Unknown(error) => error,
        Unrecorded::Never(error) => {
            reached(Branch::BirthTakenBack);
            if let Err(left) = remove_manifest(pool, record.shown, record.timelines[0].manifest).await {
                tracing::warn!(timeline = %record.shown, error = %left, "the manifest of a volume that was not made is left in the store");
            }
            error
        }
    }
}

impl Shard {
    fn new_record(&self, name: Name, pool: Name, settings: Overrides) -> VolumeRecord {
        let id = VolumeId::from_random(self.context.random_id());
        let timeline = TimelineId::from_random(self.context.random_id());
        let mut writer = [0; 8];
        self.context.env.random(&mut writer);
        VolumeRecord {
            version: VolumeRecord::VERSION,
            id,
            name,
            pool,
            epoch: Epoch(1),
            writer: WriterId(u64::from_le_bytes(writer)),
            shown: timeline,
            show_number: 1,
            template: false,
            settings,
            deleted: None,
            timelines: vec![TimelineRecord { id: timeline, state: RecordState::Shown, manifest: None, parent: None }],
            owner: self.context.node.get(),
            mirror: None,
            forced: false,
            holder: None,
            ends: Vec::new(),
        }
    }

    fn first_manifest(&self, record: &VolumeRecord) -> Manifest {
        let mut manifest = Manifest::new(record.id, record.shown, record.name.clone(), record.epoch, record.writer);
        manifest.number = 1;
        manifest.show_number = 1;
        manifest.created_ms = self.context.now_ms();
        manifest.written_ms = manifest.created_ms;
        manifest.settings = record.settings;
        manifest
    }

    async fn check_name_free(&self, name: &Name) -> Result<()> {
        match Records::new(&*self.context.coord).find_by_name(name).await {
            Ok(_) => Err(EngineError::new(ErrorKind::Conflict, format!("there is a volume {name} already"))),
            Err(CoordError::NotFound(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a volume.
    ///
    /// # Errors
    /// `Conflict` when the name is taken; `NotFound` for an unknown pool.
    pub async fn create_volume(self: &Rc<Self>, new: NewVolume) -> Result<Rc<Volume>> {
        let (pool, pool_settings) = self.pool(&new.pool)?;
        let _making = self.begin_making(&new.pool)?;
        self.check_name_free(&new.name).await?;
        let mut record = self.new_record(new.name, new.pool, new.settings);
        let mut manifest = self.first_manifest(&record);
        manifest.size = new.size;
        put_manifest(&*pool.store, &manifest).await?;
        record.timelines[0].manifest = Some(reference(&manifest));
        if let Err(error) = self.record_volume(&record, Vec::new()).await.map_err(Unrecorded::from) {
            return Err(forget_unmade(&pool, &record, error).await);
        }
        let timeline = start(&self.context, &pool, manifest, &pool_settings, None);
        Ok(self.enter(Volume::with(Rc::clone(&self.context), pool, pool_settings, record, timeline)))
    }

    /// Makes the record of a volume. An answer that was lost is found out by looking: the id is nobody else's.
    async fn record_volume(&self, record: &VolumeRecord, checks: Vec<Check>) -> std::result::Result<(), CoordError> {
        let records = Records::new(&*self.context.coord);
        match records.create_volume(record, checks).await {
            Err(error) if error.is_unknown() => match records.load_volume(record.id).await {
                Ok((found, _)) if found == *record => Ok(()),
                // It may still come: whoever lists the volumes next sees what became of it.
                _ => Err(error),
            },
            done => done.map(drop),
        }
    }

    fn enter(&self, volume: Rc<Volume>) -> Rc<Volume> {
        self.volumes.borrow_mut().insert(volume.id(), Rc::clone(&volume));
        volume
    }

    /// Makes a clone of a snapshot of a volume, or of what the volume is now.
    ///
    /// # Errors
    /// `NotFound` for an unknown volume or snapshot; `Conflict` when the name is taken or the volume has too many ancestors.
    pub async fn clone_volume(
        self: &Rc<Self>,
        source: &Name,
        snapshot: Option<&Name>,
        new: Name,
        settings: Overrides,
    ) -> Result<Rc<Volume>> {
        let origin = self.find(source)?;
        let _making = self.begin_making(&origin.record().pool)?;
        self.check_name_free(&new).await?;
        let _turn = origin.changes.take().await;
        let info = match snapshot {
            Some(name) => origin.find_snapshot(name).await?,
            None => origin.take_snapshot(self.hidden_name()?, true).await?,
        };
        let record = self.new_record(new, origin.record().pool, settings);
        let held = origin.hold(&info, record.shown, record.id).await?;
        self.bear(&origin, record, held).await
    }

    /// Makes a volume of what another one was at a rewind point.
    ///
    /// # Errors
    /// `NotFound` for an unknown volume, or a point that has left the window; `Conflict` when the name is taken or the volume has too many ancestors.
    pub async fn rewind_volume(
        self: &Rc<Self>,
        source: &Name,
        point: &RewindPoint,
        new: Name,
        settings: Overrides,
    ) -> Result<Rc<Volume>> {
        let origin = self.find(source)?;
        let _making = self.begin_making(&origin.record().pool)?;
        self.check_name_free(&new).await?;
        let _turn = origin.changes.take().await;
        let record = self.new_record(new, origin.record().pool, settings);
        let held = origin.hold_point(point, record.shown, record.id).await?;
        self.bear(&origin, record, held).await
    }

    /// Makes the volume of `record` from what is held for it. The caller has the turn of the origin.
    async fn bear(&self, origin: &Volume, mut record: VolumeRecord, held: Source) -> Result<Rc<Volume>> {
        record.timelines[0].parent = Some(held.origin);
        let mut manifest = self.first_manifest(&record);
        held.shape(&mut manifest)?;
        put_manifest(&*origin.pool.store, &manifest).await?;
        record.timelines[0].manifest = Some(reference(&manifest));
        if let Err(error) = self.record_clone(origin, &record).await {
            return Err(forget_unmade(&origin.pool, &record, error).await);
        }
        let timeline = start(&self.context, &origin.pool, manifest, &origin.pool_settings(), Some(&held));
        let pool = Rc::clone(&origin.pool);
        Ok(self.enter(Volume::with(Rc::clone(&self.context), pool, origin.pool_settings(), record, timeline)))
    }

    fn hidden_name(&self) -> Result<Name> {
        let id = varve_types::SnapshotId::from_random(self.context.random_id());
        format!("clone-{id}").parse().map_err(|error| EngineError::caused(ErrorKind::Internal, "snapshot", error))
    }

    /// Records a clone, if its origin's volume is still in the epoch of the hold.
    async fn record_clone(&self, origin: &Volume, record: &VolumeRecord) -> std::result::Result<(), Unrecorded> {
        let records = Records::new(&*self.context.coord);
        for _ in 0..MAX_TRIES {
            let (now, revision) = records.load_volume(origin.id()).await?;
            if now.epoch != origin.record().epoch {
                return Err(Unrecorded::Never(crate::timeline::fenced(format!(
                    "volume {}: it was opened elsewhere",
                    now.name
                ))));
            }
            let check = Check::Revision(now.key(), revision);
            match self.record_volume(record, vec![check]).await {
                Ok(_) => return Ok(()),
                Err(CoordError::Changed(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let what = format!("volume {} is changed all the time", origin.name());
        Err(Unrecorded::Never(EngineError::new(ErrorKind::Busy, what)))
    }

    /// Deletes a volume: it is hidden, and can be brought back within its window. Clones of it stay.
    ///
    /// # Errors
    /// `Conflict` while it is attached.
    pub async fn delete_volume(self: &Rc<Self>, name: &Name) -> Result<()> {
        let volume = self.find(name)?;
        let _turn = volume.changes.take().await;
        volume.check_detached("deleted")?;
        let timeline = volume.shown();
        timeline.drain().await?;
        // One that is under way may have long to go: nothing is lost where it comes to no end.
        if !timeline.is_merged() {
            timeline.checkpoint().await?;
        }
        let (at_ms, until_ms) = (self.context.now_ms(), volume.window_end());
        let edit = |m: &mut Manifest, data: &mut Data| {
            m.state = TimelineState::Hidden { until_ms };
            // Nobody is left to remember them: whoever ends it deletes them by name.
            let before = [data.previous_manifest, Some(data.manifest.object_name())];
            let since = m.number;
            m.dead.extend(before.into_iter().flatten().map(|name| DeadObject { name, since }));
        };
        let also = |record: &mut VolumeRecord| {
            record.deleted = Some(Deleted { at_ms, until_ms });
            Ok(())
        };
        volume.change(edit, also).await?;
        timeline.stop(EngineError::new(ErrorKind::NotFound, format!("volume {name} was deleted")));
        self.volumes.borrow_mut().remove(&volume.id());
        Ok(())
    }

    /// Brings the volume back that was deleted last under this name.
    ///
    /// # Errors
    /// `NotFound` when there is none or its window is over; `Conflict` when the name is taken.
    pub async fn undelete_volume(self: &Rc<Self>, name: &Name) -> Result<Rc<Volume>> {
        let _turn = self.deleted.take().await;
        let records = Records::new(&*self.context.coord);
        let now = self.context.now_ms();
        let deleted = records.list_volumes().await?.into_iter().filter(|(record, _)| {
            let is_inside = |until_ms| until_ms > now || planted(Mutant::UndeleteAfterWindow);
            record.name == *name && record.deleted.is_some_and(|deleted| is_inside(deleted.until_ms))
        });
        let Some((record, _)) = deleted.max_by_key(|(record, _)| record.deleted.map(|deleted| deleted.at_ms)) else {
            return Err(not_back(name));
        };
        self.context.check_ours(&record)?;
        self.check_name_free(name).await?;
        match self.bring_back(record.id).await {
            Ok(volume) => Ok(self.enter(volume)),
            Err(error) => Err(self.why_not_back(&record, error).await),
        }
    }

    /// Brings a volume back in one step, and only once it can be served: a try that fails leaves it deleted, to be tried again.
    async fn bring_back(self: &Rc<Self>, id: VolumeId) -> Result<Rc<Volume>> {
        let volume = self.open_unlisted(id, Claim::Own).await?;
        let edit = |m: &mut Manifest, _: &mut Data| m.state = TimelineState::Shown;
        let also = |record: &mut VolumeRecord| {
            record.deleted = None;
            Ok(())
        };
        let done = volume.change(edit, also).await;
        done.inspect_err(|error| volume.shown().stop(error.clone()))?;
        Ok(volume)
    }

    /// Why a deleted volume could not be brought back. One that another node has begun to end meanwhile looks damaged, or opened elsewhere.
    async fn why_not_back(&self, seen: &VolumeRecord, error: EngineError) -> EngineError {
        let has_begun = match Records::new(&*self.context.coord).load_volume(seen.id).await {
            Ok((record, _)) => is_ending(&record),
            Err(error) => matches!(error, CoordError::NotFound(_)),
        };
        if has_begun { not_back(&seen.name) } else { error }
    }

    /// Drops the hold of a clone that is no more, wherever its origin is.
    pub(crate) async fn drop_hold(self: &Rc<Self>, origin: TimelineId, clone: TimelineId) -> Result<()> {
        let records = Records::new(&*self.context.coord);
        let volume = match records.find_timeline(origin).await {
            Ok(volume) => volume,
            Err(CoordError::NotFound(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let turn = self.deleted.take().await;
        let open = self.volumes.borrow().get(&volume).cloned();
        if let Some(open) = open {
            drop(turn);
            return open.drop_hold(origin, clone).await;
        }
        if self.drop_hold_of_gone(volume, origin, clone).await? {
            return Ok(());
        }
        let (record, _) = records.load_volume(volume).await?;
        if record.deleted.is_none() || is_ending(&record) {
            // Whoever owns it writes its manifests, and looks after its holds; one that ends keeps nothing for anybody.
            return Ok(());
        }
        let (pool, _) = self.pool(&record.pool)?;
        edit_closed(&self.context, &pool, &record, origin, |m| m.holds.retain(|h| h.clone != clone)).await?;
        Ok(())
    }

    /// Drops holds whose clone was never recorded, is gone, or was flattened, and snapshots that were only taken for such a clone.
    pub(super) async fn drop_orphaned_holds(&self) -> Result<()> {
        for volume in self.volumes() {
            let record = volume.record();
            if !volume.unused_snapshots().is_empty() {
                let _turn = volume.changes.take().await;
                volume.forget_unused_in_turn().await?;
            }
            for timeline in &record.timelines {
                let shown = volume.shown();
                let holds = if timeline.id == shown.id {
                    shown.data.borrow().manifest.holds.clone()
                } else {
                    volume.held_manifest(timeline.id).await?.map(|m| m.holds.clone()).unwrap_or_default()
                };
                // What the volume's own record says needs no question.
                let is_own = |h: &Hold| record.timeline(h.clone).is_some_and(|t| t.parent == Some(timeline.id));
                for hold in holds.into_iter().filter(|hold| !is_own(hold)) {
                    // With the turn nothing is being born here. A request to record it that is late still comes to nothing: it names the revision
                    // of this volume's record, which the drop changes.
                    let _turn = volume.changes.take().await;
                    if planted(Mutant::DropHold) || !self.is_held(&hold, timeline.id).await? {
                        reached(Branch::HoldOrphaned);
                        volume.drop_hold_in_turn(timeline.id, hold.clone).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the clone of a hold is recorded, and still needs the origin: a flattened one names no parent any more.
    pub(super) async fn is_held(&self, hold: &Hold, origin: TimelineId) -> Result<bool> {
        let records = Records::new(&*self.context.coord);
        let found = match records.find_timeline(hold.clone).await {
            Ok(volume) => records.load_volume(volume).await,
            Err(error) => Err(error),
        };
        match found {
            Ok((record, _)) => Ok(record.timeline(hold.clone).is_some_and(|clone| clone.parent == Some(origin))),
            Err(CoordError::NotFound(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
