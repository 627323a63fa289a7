// SPDX-License-Identifier: Apache-2.0
//! Snapshots, and read-only views of them.
//!
//! A snapshot is a mark in the stream that closes its layer, answered once it and all before it are flushed: it
//! needs neither the store nor a checkpoint, and costs the same at any size. It goes with a manifest that no longer
//! lists it; what only it kept is freed by the next checkpoint.

use crate::overlay::{Overlay, Stratum};
use crate::recover::{Opening, assemble};
use crate::timeline::{Data, Timeline};
use crate::volume::{SnapshotInfo, Volume};
use crate::{EngineError, Result};
use std::rc::Rc;
use std::sync::Arc;
use varve_coord::VolumeRecord;
use varve_format::NodePointer;
use varve_format::manifest::{Cut, Manifest, SnapshotEntry};
use varve_format::mark::Mark;
use varve_types::branch::{Branch, reached, reached_if};
use varve_types::mutant::{Mutant, planted};
use varve_types::{ErrorKind, Name, Ordinal, RootNumber, SnapshotId, TimelineId};

/// Where a clone or a view of a boundary begins: the nearest root at or before it, and the entries between the two.
pub(crate) struct Base {
    pub number: RootNumber,
    pub root: NodePointer,
    pub boundary: Ordinal,
    pub strata: Vec<Arc<Stratum>>,
    /// The segments behind `strata`.
    pub rows: Vec<Cut>,
}

impl Timeline {
    /// The base of a boundary all of whose segments count, and that a snapshot keeps.
    pub fn base_of(&self, boundary: Ordinal) -> Base {
        let data = self.data.borrow();
        let manifest = &data.manifest;
        // Only roots that the accepted manifest names: others may not be in the store yet.
        let rooted = manifest.snapshots.iter().find(|s| s.boundary == boundary && s.root.is_some());
        if let Some((number, root)) = rooted.and_then(|s| s.root) {
            return Base { number, root, boundary, strata: Vec::new(), rows: Vec::new() };
        }
        let between = data.overlay.frozen().iter().filter(|s| s.end <= boundary);
        let strata = between.map(|s| s.inherited(s.end));
        let strata: Vec<_> = strata.collect();
        reached_if(!strata.is_empty(), Branch::CloneWithEntries);
        let own = Cut {
            epoch: self.epoch,
            writer: self.writer,
            first: manifest.first_ordinal,
            end: boundary.max(manifest.first_ordinal),
            last: data.counted,
        };
        let clip = |row: &Cut| Cut {
            first: row.first.max(manifest.boundary).min(boundary),
            end: row.end.min(boundary),
            ..*row
        };
        let rows = manifest.cuts.iter().chain([&own]).map(clip).filter(|row| row.first < row.end).collect();
        Base { number: manifest.root_number, root: manifest.root, boundary: manifest.boundary, strata, rows }
    }

    /// Seals what is open and waits until all of it counts.
    pub async fn drain(self: &Rc<Self>) -> Result<()> {
        let last = self.data.borrow().last;
        self.seal_now();
        self.until_counted(last).await
    }

    /// A timeline that only reads, and shows what a snapshot saw. It has an id of its own, so what it reads belongs to its ancestors.
    pub fn view(&self, base: &Base, size: u64) -> Rc<Self> {
        let mut manifest = self.data.borrow().manifest.clone();
        manifest.timeline = TimelineId::from_random(self.context.random_id());
        manifest.root = base.root;
        manifest.size = size;
        let opening = Opening {
            context: Rc::clone(&self.context),
            journal: Rc::clone(&self.journal),
            pool: Rc::clone(&self.pool),
            volume: self.volume,
            timeline: manifest.timeline,
            epoch: self.epoch,
            writer: self.writer,
            settings: self.settings(),
            manifest: crate::manifests::reference(&manifest),
            show_number: 0,
        };
        let view = assemble(opening, manifest);
        view.data.borrow_mut().overlay = Overlay::inherited(base.strata.clone());
        view
    }

    /// Whether anything is stored between two byte offsets.
    pub async fn has_data(self: &Rc<Self>, from: u64, to: u64) -> Result<bool> {
        let mut at = from;
        while at < to {
            let extents = match self.block_status(at, to - at, 64) {
                crate::Submit::Done(done) => done?,
                crate::Submit::Later(later) => later.await?,
            };
            for extent in extents {
                if !extent.hole {
                    return Ok(true);
                }
                at += extent.len;
            }
        }
        Ok(false)
    }

    /// Snapshots of this timeline that a manifest or the journal knows, in the order of the stream.
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        let data = self.data.borrow();
        let info = |stored: bool| {
            move |s: &SnapshotEntry| SnapshotInfo {
                id: s.id,
                name: s.name.clone(),
                created_ms: s.created_ms,
                size: s.size,
                stored,
                hidden: s.hidden,
                timeline: self.id,
            }
        };
        data.snapshots.iter().map(info(true)).chain(data.pending.iter().map(info(false))).collect()
    }
}

impl Volume {
    /// Takes a snapshot. Answered once it, and everything before it, is on stable media.
    ///
    /// # Errors
    /// `Conflict` when the volume has a snapshot of this name.
    pub async fn snapshot(&self, name: Name) -> Result<SnapshotInfo> {
        let _turn = self.changes.take().await;
        if self.snapshots().await?.iter().any(|s| s.name == name) {
            let text = format!("volume {} has a snapshot {name} already", self.name());
            return Err(EngineError::new(ErrorKind::Conflict, text));
        }
        self.take_snapshot(name, false).await
    }

    /// Takes a snapshot; the caller has the turn.
    pub(crate) async fn take_snapshot(&self, name: Name, hidden: bool) -> Result<SnapshotInfo> {
        let timeline = self.shown();
        timeline.room_for_mark().await?;
        let id = SnapshotId::from_random(self.context.random_id());
        let (created_ms, size) = (self.context.now_ms(), self.size());
        let copy = name.clone();
        timeline.make_mark(|sequence| Mark::Snapshot { sequence, id, name, created_ms, size, hidden })?;
        // The mark closes its layer at once: nothing may follow it there.
        if !planted(Mutant::SnapshotKeepsLayer) {
            timeline.seal_now();
        }
        if !planted(Mutant::SnapshotUnflushed) {
            timeline.flush_waiting().await?;
        }
        Ok(SnapshotInfo { id, name: copy, created_ms, size, stored: false, hidden, timeline: timeline.id })
    }

    /// Its snapshots, oldest first: those of the shown timeline, and before them those of its ancestors within the volume.
    ///
    /// # Errors
    /// When an ancestor's manifest can not be read.
    pub async fn snapshots(&self) -> Result<Vec<SnapshotInfo>> {
        let timeline = self.shown();
        let mut all = timeline.snapshots();
        let mut birth = timeline.data.borrow().manifest.birth;
        while let Some(born) = birth {
            if self.record.borrow().timeline(born.origin).is_none() {
                break;
            }
            let manifest = self.closed_manifest(born.origin).await?;
            let is_seen = |s: &&SnapshotEntry| s.boundary <= born.boundary || planted(Mutant::RollbackKeepsLater);
            let seen = manifest.snapshots.iter().filter(is_seen);
            let older: Vec<_> = seen
                .map(|s| SnapshotInfo {
                    id: s.id,
                    name: s.name.clone(),
                    created_ms: s.created_ms,
                    size: s.size,
                    stored: true,
                    hidden: s.hidden,
                    timeline: born.origin,
                })
                .collect();
            all.splice(0..0, older);
            birth = manifest.birth;
        }
        Ok(all)
    }

    /// One of its snapshots by name.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub async fn find_snapshot(&self, name: &Name) -> Result<SnapshotInfo> {
        let found = self.snapshots().await?.into_iter().find(|s| s.name == *name && !s.hidden);
        found.ok_or_else(|| {
            EngineError::new(ErrorKind::NotFound, format!("volume {} has no snapshot {name}", self.name()))
        })
    }

    /// Deletes a snapshot. Clones of it stay.
    ///
    /// # Errors
    /// `NotFound` when there is none; `Unavailable` where the store does not take a manifest.
    pub async fn delete_snapshot(&self, name: &Name) -> Result<()> {
        let _turn = self.changes.take().await;
        let info = self.find_snapshot(name).await?;
        self.forget_snapshot(&info).await
    }

    /// Deletes a snapshot by id; the caller has the turn.
    pub(crate) async fn forget_snapshot(&self, info: &SnapshotInfo) -> Result<()> {
        let timeline = self.shown();
        let id = info.id;
        if info.timeline != timeline.id {
            let edit = |manifest: &mut Manifest| manifest.snapshots.retain(|s| s.id != id);
            return self.edit_closed(info.timeline, edit).await;
        }
        timeline.entry_of(id).await?;
        let edit = |manifest: &mut Manifest, _: &mut Data| manifest.snapshots.retain(|s| s.id != id);
        let record = timeline.write_manifest(edit, |_: &mut VolumeRecord| Ok(())).await?;
        {
            let mut data = timeline.data.borrow_mut();
            data.snapshots.retain(|s| s.id != id);
            data.reconsider |= !planted(Mutant::ForgetToReconsider);
        }
        *self.record.borrow_mut() = record;
        Ok(())
    }

    /// A read-only timeline of what a snapshot saw.
    ///
    /// # Errors
    /// `NotFound` when there is none; those of the store while its data are not there yet.
    pub(crate) async fn snapshot_view(&self, name: &Name) -> Result<Rc<Timeline>> {
        let info = self.find_snapshot(name).await?;
        let timeline = self.shown();
        if info.timeline == timeline.id {
            let entry = timeline.entry_of(info.id).await?;
            if entry.root.is_none() {
                // A view stands on the snapshot's own root: any other may be freed by the checkpoints to come, while somebody still reads.
                let done = timeline.checkpoint().await;
                // Where no checkpoint can be made none will free anything either.
                done.or_else(|error| timeline.data.borrow().no_checkpoints.as_ref().map_or(Err(error), |_| Ok(())))?;
            }
            return Ok(timeline.view(&timeline.base_of(entry.boundary), entry.size));
        }
        let manifest = self.closed_manifest(info.timeline).await?;
        let (base, size) = self.closed_base(&manifest, info.id).await?;
        let view = timeline.view(&base, size);
        Ok(view)
    }

    /// The base of a snapshot of a timeline that is not open.
    pub(crate) async fn closed_base(&self, manifest: &Manifest, id: SnapshotId) -> Result<(Base, u64)> {
        let entry = manifest.snapshots.iter().find(|s| s.id == id);
        let Some(entry) = entry else {
            return Err(EngineError::new(ErrorKind::NotFound, "the snapshot was deleted meanwhile"));
        };
        let Some((number, root)) = entry.root else {
            // A timeline is checkpointed before it is closed, so all its snapshots have roots.
            return Err(EngineError::corrupt(format!("snapshot {}: it has no root", entry.name)));
        };
        Ok((Base { number, root, boundary: entry.boundary, strata: Vec::new(), rows: Vec::new() }, entry.size))
    }
}

impl Timeline {
    /// The entry of a snapshot of this timeline, once its segments count.
    pub async fn entry_of(self: &Rc<Self>, id: SnapshotId) -> Result<SnapshotEntry> {
        let pending = self.data.borrow().pending.iter().find(|s| s.id == id).cloned();
        if let Some(pending) = pending {
            reached(Branch::SnapshotWaitsForPut);
            if planted(Mutant::CloneBeforePuts) {
                return Ok(pending);
            }
            self.start_puts();
            self.until_counted(pending.sequence).await?;
        }
        let found = self.data.borrow().snapshots.iter().find(|s| s.id == id).cloned();
        found.ok_or_else(|| EngineError::new(ErrorKind::NotFound, "the snapshot was deleted meanwhile"))
    }
}
