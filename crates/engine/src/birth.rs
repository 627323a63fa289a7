// SPDX-License-Identifier: Apache-2.0
//! New timelines: of a new volume, of a clone, of a rollback.
//!
//! A clone starts with the nearest root at or before its boundary as its tree and the origin's entries between the
//! two as its overlay, so it waits for no checkpoint, only for the puts up to its boundary. The origin's manifest
//! with the hold is accepted before the clone exists, and the clone is recorded only if the origin's volume is
//! still in the epoch in which the hold was made.

use crate::context::Context;
use crate::manifests::{PoolStore, put_manifest, reference};
use crate::overlay::{Overlay, Stratum};
use crate::recover::{Opening, Tail, assemble};
use crate::snapshot::Base;
use crate::timeline::{Data, Timeline, fenced};
use crate::volume::{SnapshotInfo, Volume};
use crate::{EngineError, Result};
use std::rc::Rc;
use std::sync::Arc;
use varve_coord::{Records, TimelineRecord, TimelineState as RecordState, VolumeRecord};
use varve_format::Lineage;
use varve_format::manifest::{Ancestor, Birth, Hold, Manifest, SnapshotEntry, TimelineState};
use varve_types::branch::{Branch, reached, reached_if};
use varve_types::mutant::{Mutant, planted};
use varve_types::{ErrorKind, Name, Ordinal, Overrides, Settings, SnapshotId, TimelineId, VolumeId};

/// Ancestors at which a person is warned; a pointer can name 256.
const MANY_ANCESTORS: usize = 200;

/// What a clone is made of: where it begins, and the manifest of the timeline that it begins in.
pub(crate) struct Source {
    pub base: Base,
    pub boundary: Ordinal,
    pub size: u64,
    pub origin: TimelineId,
    pub ancestors: Vec<Ancestor>,
}

impl Source {
    /// The hold that keeps it.
    pub fn hold(&self, clone: TimelineId, record: &VolumeRecord, volume: VolumeId) -> Hold {
        Hold {
            clone,
            volume,
            boundary: self.boundary,
            base_number: self.base.number,
            base_root: self.base.root,
            base_boundary: self.base.boundary,
            epoch: record.epoch,
        }
    }

    /// Makes `manifest`, which is a new one, that of a clone.
    pub fn shape(&self, manifest: &mut Manifest) -> Result<()> {
        // The lowest index that no ancestor has: a flattened volume has given its ancestors' indexes back.
        let own = (0..=u8::MAX).find(|own| self.ancestors.iter().all(|a| a.lineage.0 != *own));
        let Some(own) = own else {
            let what = "a clone can have 255 ancestors: flatten the volume first, then clone it";
            return Err(EngineError::new(ErrorKind::Conflict, what));
        };
        reached_if(self.ancestors.len() > 1, Branch::CloneOfClone);
        reached_if(self.ancestors.iter().any(|a| a.lineage.0 > own), Branch::LineageReused);
        if self.ancestors.len() >= MANY_ANCESTORS {
            tracing::warn!(
                ancestors = self.ancestors.len(),
                "a volume has many ancestors: flatten it before there are 255"
            );
        }
        manifest.own = Lineage(own);
        manifest.ancestors = self.ancestors.clone();
        manifest.ancestors.push(Ancestor { lineage: Lineage(own), timeline: manifest.timeline });
        manifest.ancestors.sort_unstable_by_key(|ancestor| ancestor.lineage);
        manifest.birth = Some(Birth {
            origin: self.origin,
            boundary: self.boundary,
            base_number: self.base.number,
            base_root: self.base.root,
            base_boundary: self.base.boundary,
        });
        manifest.inherited = self.base.rows.clone();
        manifest.root = self.base.root;
        manifest.size = self.size;
        Ok(())
    }
}

/// Forgets, at its end, what is known of a closed timeline.
struct Forgotten<'a> {
    volume: &'a Volume,
    timeline: TimelineId,
}

impl Drop for Forgotten<'_> {
    fn drop(&mut self) {
        self.volume.closed.borrow_mut().remove(&self.timeline);
    }
}

/// The timeline of a manifest that was just put, ready to serve.
pub(crate) fn start(
    context: &Rc<Context>,
    pool: &Rc<PoolStore>,
    manifest: Manifest,
    pool_settings: &Overrides,
    source: Option<&Source>,
) -> Rc<Timeline> {
    let opening = Opening {
        context: Rc::clone(context),
        journal: context.journals.choose(manifest.timeline),
        pool: Rc::clone(pool),
        volume: manifest.volume,
        timeline: manifest.timeline,
        epoch: manifest.epoch,
        writer: manifest.writer,
        settings: Settings::resolve(&manifest.settings, pool_settings),
        manifest: reference(&manifest),
        show_number: 0,
    };
    let end = manifest.boundary;
    let timeline = assemble(opening, manifest);
    if let Some(source) = source.filter(|_| !planted(Mutant::CloneWithoutOverlay)) {
        // They end where the clone's own ordinals begin: the origin's ordinals mean nothing here.
        let own = |s: &Arc<Stratum>| s.inherited(end);
        timeline.data.borrow_mut().overlay = Overlay::inherited(source.base.strata.iter().map(own).collect());
    }
    timeline
}

impl Timeline {
    /// What [`Mutant::HoldAfterClone`] does in the place of waiting for the hold.
    fn hold_later(self: &Rc<Self>, hold: Hold) {
        let this = Rc::clone(self);
        self.context.env.spawn(Box::pin(async move {
            this.context.env.sleep(std::time::Duration::from_secs(1)).await;
            let edit = |manifest: &mut Manifest, _: &mut Data| manifest.holds.push(hold);
            if let Err(error) = this.write_manifest(edit, |_: &mut VolumeRecord| Ok(())).await {
                tracing::warn!(%error, "a hold was not accepted");
            }
        }));
    }
}

impl Volume {
    /// Finds what a clone of a snapshot is made of, and has the hold for it accepted. The caller has the turn.
    pub(crate) async fn hold(&self, info: &SnapshotInfo, clone: TimelineId, volume: VolumeId) -> Result<Source> {
        let timeline = self.shown();
        let record = self.record();
        if info.timeline != timeline.id {
            reached(Branch::HoldOnHistory);
            let manifest = self.closed_manifest(info.timeline).await?;
            let (base, size) = self.closed_base(&manifest, info.id).await?;
            let (boundary, ancestors) = (base.boundary, manifest.ancestors.clone());
            let source = Source { base, boundary, size, origin: info.timeline, ancestors };
            let hold = source.hold(clone, &record, volume);
            self.edit_closed(info.timeline, |manifest| manifest.holds.push(hold)).await?;
            return Ok(source);
        }
        let entry = timeline.entry_of(info.id).await?;
        if !timeline.data.borrow().manifest.inherited.is_empty() {
            reached(Branch::CloneAfterCheckpoint);
            // A clone's birth record names segments of one origin: what this timeline inherited itself must be in a root first.
            timeline.checkpoint().await?;
        }
        let turn = timeline.manifests.take().await;
        // In the turn: no other manifest comes between the look at what is kept and the hold that keeps it.
        let source = {
            let base = timeline.base_of(entry.boundary);
            let ancestors = timeline.data.borrow().manifest.ancestors.clone();
            Source { base, boundary: entry.boundary, size: entry.size, origin: timeline.id, ancestors }
        };
        let hold = source.hold(clone, &record, volume);
        if planted(Mutant::HoldAfterClone) {
            timeline.hold_later(hold);
            return Ok(source);
        }
        let edit = |manifest: &mut Manifest, _: &mut Data| manifest.holds.push(hold);
        let record = timeline.write_manifest_in_turn(&turn, edit, |_: &mut VolumeRecord| Ok(())).await?;
        *self.record.borrow_mut() = record;
        Ok(source)
    }

    /// Drops the holds of a clone that is no more.
    pub(crate) async fn drop_hold(&self, origin: TimelineId, clone: TimelineId) -> Result<()> {
        let _turn = self.changes.take().await;
        self.drop_hold_in_turn(origin, clone).await
    }

    /// The same for who has the turn.
    pub(crate) async fn drop_hold_in_turn(&self, origin: TimelineId, clone: TimelineId) -> Result<()> {
        let timeline = self.shown();
        if origin != timeline.id {
            return self.edit_closed(origin, |manifest| manifest.holds.retain(|h| h.clone != clone)).await;
        }
        let edit = |manifest: &mut Manifest, _: &mut Data| manifest.holds.retain(|h| h.clone != clone);
        self.change(edit, |_: &mut VolumeRecord| Ok(())).await?;
        timeline.data.borrow_mut().reconsider = true;
        self.forget_unused_in_turn().await
    }

    /// Snapshots that were only taken for a clone, of the timeline that is shown, whose hold is gone; or is not there yet, if one is being born.
    pub(crate) fn unused_snapshots(&self) -> Vec<SnapshotId> {
        let shown = self.shown();
        let data = shown.data.borrow();
        let is_held = |s: &SnapshotEntry| data.manifest.holds.iter().any(|hold| hold.boundary == s.boundary);
        data.snapshots.iter().filter(|s| s.hidden && !is_held(s)).map(|s| s.id).collect()
    }

    /// Forgets them. The caller has the turn, so nothing is being born.
    pub(crate) async fn forget_unused_in_turn(&self) -> Result<()> {
        let unused = self.unused_snapshots();
        for info in self.shown().snapshots().into_iter().filter(|s| unused.contains(&s.id)) {
            self.forget_snapshot(&info).await?;
        }
        Ok(())
    }

    /// Shows the volume as it was at a snapshot. What it showed until now is hidden, and can be shown again within the window.
    ///
    /// # Errors
    /// `Conflict` while it is attached; `NotFound` when there is no such snapshot.
    pub async fn rollback(&self, name: &Name) -> Result<()> {
        let _turn = self.changes.take().await;
        self.check_detached("rolled back")?;
        self.check_writable()?;
        let info = self.find_snapshot(name).await?;
        let old = self.shown();
        if !planted(Mutant::RollbackWithoutDrain) {
            old.drain().await?;
        }
        old.checkpoint().await?;
        let id = TimelineId::from_random(self.context.random_id());
        let source = self.hold(&info, id, self.id).await?;
        let before = old.data.borrow().manifest.show_number;
        let attempt = self.begin_switch().await?;
        let record = self.record();
        let mut manifest = Manifest { timeline: id, ..self.fresh_manifest(&record, id) };
        manifest.show_number = attempt;
        source.shape(&mut manifest)?;
        put_manifest(&*self.pool.store, &manifest).await?;
        let accepted = reference(&manifest);
        let until_ms = self.window_end();
        let (old_id, origin) = (old.id, source.origin);
        let edit = |m: &mut Manifest, _: &mut Data| {
            m.state = TimelineState::Hidden { until_ms };
            m.show_number = before;
        };
        let also = |record: &mut VolumeRecord| {
            if let Some(entry) = record.timeline_mut(old_id) {
                entry.state = RecordState::Hidden { until_ms };
            }
            let entry =
                TimelineRecord { id, state: RecordState::Shown, manifest: Some(accepted), parent: Some(origin) };
            record.timelines.push(entry);
            record.shown = id;
            Ok(())
        };
        self.change(edit, also).await?;
        let timeline = start(&self.context, &self.pool, manifest, &self.pool_settings(), Some(&source));
        self.show(timeline);
        self.close_timeline(&old);
        Ok(())
    }

    /// Shows again what the last rollback hid.
    ///
    /// # Errors
    /// `NotFound` when nothing is hidden or its window is over; `Conflict` while the volume is attached.
    pub async fn undo_rollback(&self) -> Result<()> {
        let _turn = self.changes.take().await;
        self.check_detached("rolled back")?;
        let record = self.record();
        let hidden = record.timelines.iter().filter_map(|t| match t.state {
            RecordState::Hidden { until_ms } if until_ms > self.context.now_ms() => Some((until_ms, t.id)),
            _ => None,
        });
        let Some((_, id)) = hidden.max() else {
            let what = format!("volume {}: no rollback can be undone (its window may be over)", self.name());
            return Err(EngineError::new(ErrorKind::NotFound, what));
        };
        let now = self.shown();
        now.drain().await?;
        now.checkpoint().await?;
        // From here on the one that is shown writes no manifest but the last.
        let _still = now.checkpoints.take().await;
        // In the epoch of now, so that an attempt that fails leaves what is shown as it is.
        let (record, _) = Records::new(&*self.context.coord).load_volume(self.id).await?;
        let dead = self.closed.borrow().get(&id).map(|closed| closed.manifest.dead.clone()).unwrap_or_default();
        // The opening writes manifests of it, also where the undo fails then.
        let _forgotten = Forgotten { volume: self, timeline: id };
        let old = Self::open_one(&self.context, &self.pool, &self.pool_settings(), &record, id, Tail::None).await?;
        {
            // The manifest before it was hidden is in no list in the store yet.
            let listed = &mut old.data.borrow_mut().manifest.dead;
            let more: Vec<_> = dead.into_iter().filter(|dead| listed.iter().all(|l| l.name != dead.name)).collect();
            listed.extend(more);
        }
        let (until_ms, now_id) = (self.window_end(), now.id);
        let before = now.data.borrow().manifest.show_number;
        let attempt = self.begin_switch().await?;
        let volume = self.record();
        let edit = |m: &mut Manifest, _: &mut Data| {
            m.state = TimelineState::Shown;
            m.show_number = attempt;
            // They may have changed while it was hidden, and an import knows no others.
            m.name = volume.name.clone();
            m.settings = volume.settings;
        };
        let also = |record: &mut VolumeRecord| {
            for entry in &mut record.timelines {
                if entry.id == id {
                    entry.state = RecordState::Shown;
                } else if entry.id == now_id {
                    entry.state = RecordState::Hidden { until_ms };
                }
            }
            record.shown = id;
            Ok(())
        };
        let record = old.write_manifest(edit, also).await?;
        *self.record.borrow_mut() = record;
        // The attempt has raised it for the case that it fails; what is hidden stays below what is shown, in every manifest that comes of it.
        now.data.borrow_mut().manifest.show_number = before;
        self.show(old);
        self.close_timeline(&now);
        // The undo is done. An import goes by the show number, so what the manifest of the hidden one says is for people.
        if let Err(error) = self.edit_closed(now_id, |m| m.state = TimelineState::Hidden { until_ms }).await {
            tracing::warn!(timeline = %now_id, %error, "the manifest of a hidden timeline does not say so yet");
        }
        Ok(())
    }

    /// Begins an attempt to show another timeline: gives the show number for that one's manifest.
    ///
    /// The number in the record goes beyond it at once. If the attempt fails, whatever it has put, the next manifest of the timeline that is shown
    /// still carries the higher number: an import is not misled by what was never accepted.
    async fn begin_switch(&self) -> Result<u64> {
        let (epoch, writer) = (self.record().epoch, self.record().writer);
        let change = |record: &mut VolumeRecord| -> Result<()> {
            if record.epoch != epoch || record.writer != writer {
                return Err(fenced(format!(
                    "volume {}: it was opened elsewhere, in epoch {}",
                    record.name, record.epoch
                )));
            }
            record.show_number += 2;
            Ok(())
        };
        let (record, _, ()) = Records::new(&*self.context.coord).modify_volume(self.id, change).await?;
        let number = record.show_number;
        *self.record.borrow_mut() = record;
        self.shown().data.borrow_mut().manifest.show_number = number;
        Ok(number - 1)
    }

    fn show(&self, timeline: Rc<Timeline>) {
        self.closed.borrow_mut().remove(&timeline.id);
        let before = self.timeline.replace(Some(timeline));
        if let Some(before) = before {
            before.stop(EngineError::new(ErrorKind::Unavailable, "this history of the volume is hidden now"));
        }
    }

    /// Until when something that is hidden now can be brought back.
    pub(crate) fn window_end(&self) -> u64 {
        self.context.now_ms() + self.shown().settings().undelete_window_ms
    }

    /// The first manifest of a new timeline of this volume.
    fn fresh_manifest(&self, record: &VolumeRecord, timeline: TimelineId) -> Manifest {
        let mut manifest = Manifest::new(self.id, timeline, record.name.clone(), record.epoch, record.writer);
        let shown = self.shown();
        let data = shown.data.borrow();
        manifest.number = 1;
        manifest.written_ms = self.context.now_ms();
        manifest.created_ms = data.manifest.created_ms;
        manifest.settings = record.settings;
        manifest
    }
}
