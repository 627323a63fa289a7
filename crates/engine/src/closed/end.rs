// SPDX-License-Identifier: Apache-2.0
//! The end of a closed timeline: its window is over, nobody lists a snapshot of it, and nothing holds it.
//!
//! In this order, so that a crash anywhere leaves something to go on from: a manifest that is a tombstone, accepted,
//! so that an import passes it over; its objects, by name and then by prefix; its hold in the origin, which is the last that anybody
//! knows of its birth; the tombstone; its entry in the volume's record. Nothing was born from it that is still
//! there, so nobody's table has its index.
//!
//! Also here: objects of a closed timeline that no manifest names, which are looked for once an opening.

use super::pages::Pages;
use super::trim::Kept;
use super::{Histories, held};
use crate::ends::{End, Ending, shrink};
use crate::lineage::{map_name, newest_manifest_if_there, table_name};
use crate::manifests::{PoolStore, remove_manifest};
use crate::timeline::fenced;
use crate::volume::Volume;
use crate::{EngineError, Result};
use std::collections::BTreeSet;
use std::rc::Rc;
use varve_coord::{Records, VolumeRecord};
use varve_format::manifest::{Birth, Cut, Manifest, TimelineState};
use varve_format::{ObjectKind, ObjectName};
use varve_types::branch::{Branch, reached, reached_if};
use varve_types::{ErrorKind, TimelineId};

/// Pages of names that are looked at for orphans.
const MAX_PAGES: u32 = 10_000;

impl Histories {
    /// The manifest of a closed timeline; `None` where its end came so far that it is gone.
    pub(crate) async fn held_manifest(&self, id: TimelineId) -> Result<Option<Rc<Manifest>>> {
        match self.closed_manifest(id).await {
            Ok(manifest) => Ok(Some(manifest)),
            Err(error) if error.kind() == ErrorKind::Corrupt && self.is_past(id) => {
                // Only a timeline of which nothing but manifests is left has ended (one that a fenced writer had sent may land late); else the one
                // that is named is lost.
                // Nor does one end while another leads through it, which may be all that it is there for.
                let missing = newest_manifest_if_there(&self.context, &self.pool.store, id).await?.is_err();
                let is_over = missing && !self.has_objects(id).await? && !self.has_child(id).await?;
                if is_over { Ok(None) } else { Err(error) }
            }
            Err(error) => Err(error),
        }
    }

    /// Whether a timeline of this volume that has not ended was born from one.
    async fn has_child(&self, id: TimelineId) -> Result<bool> {
        let is_child = |manifest: &Manifest| {
            manifest.state != TimelineState::Tombstone && manifest.birth.is_some_and(|birth| birth.origin == id)
        };
        if self.open_timeline().is_some_and(|shown| is_child(&shown.data.borrow().manifest)) {
            return Ok(true);
        }
        for other in self.closed_ids().into_iter().filter(|other| *other != id) {
            if is_child(&*self.closed_manifest(other).await?) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the store has anything of a timeline but manifests.
    pub(crate) async fn has_objects(&self, id: TimelineId) -> Result<bool> {
        has_objects(&self.pool, id).await
    }

    /// Where a timeline of this volume was born.
    pub(crate) async fn closed_birth(&self, id: TimelineId) -> Result<Option<Birth>> {
        if let Some(shown) = self.open_timeline().filter(|shown| shown.id == id) {
            return Ok(shown.data.borrow().manifest.birth);
        }
        Ok(self.held_manifest(id).await?.and_then(|manifest| manifest.birth))
    }

    /// Deletes objects of earlier epochs that the manifest of a closed timeline does not name, once an opening and after some manifests.
    pub(super) async fn delete_orphans(&self, id: TimelineId) -> Result<()> {
        let Some(manifest) = self.held_manifest(id).await? else { return Ok(()) };
        let looked = |closed: &super::Closed| closed.orphans.is_some_and(|at| manifest.number < at + 2);
        if manifest.state == TimelineState::Tombstone || self.closed.borrow().get(&id).is_none_or(looked) {
            return Ok(());
        }
        let named = names(&manifest, &Pages::load(&self.pool.store, &manifest).await?);
        let (prefix, epoch) = (format!("{id}/"), self.record().epoch);
        let mut after: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let page = self.pool.store.list(&prefix, after.as_deref()).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.name.clone());
            let found = page.iter().filter_map(|info| ObjectName::parse(&info.name));
            let orphans: Vec<_> = found
                .filter(|name| name.epoch < epoch && !named.contains(name) && !is_needed(&manifest, name))
                .collect();
            if !orphans.is_empty() {
                self.pool.check().await?;
            }
            for name in orphans {
                reached(Branch::HistoryOrphanDeleted);
                self.pool.store.delete(&name.to_string()).await?;
            }
        }
        if let Some(closed) = self.closed.borrow_mut().get_mut(&id) {
            closed.orphans = Some(manifest.number);
        }
        Ok(())
    }
}

impl Volume {
    /// Gives a timeline its tombstone, if nothing keeps it still: nothing brings it back from here on. Gives that; `None` where it is gone already.
    pub(crate) async fn bury_timeline(&self, id: TimelineId) -> Result<Option<Rc<Manifest>>> {
        let _turn = self.changes.take().await;
        if !self.is_closed(id) || !self.is_past(id) {
            return Err(EngineError::new(ErrorKind::Busy, format!("timeline {id} is not at its end")));
        }
        let Some(manifest) = self.held_manifest(id).await? else { return Ok(None) };
        reached_if(manifest.state == TimelineState::Tombstone, Branch::HistoryEndResumed);
        if manifest.state != TimelineState::Tombstone {
            if !Kept::of(&manifest, self.listed(id).await?).boundaries.is_empty() {
                return Err(EngineError::new(ErrorKind::Busy, format!("timeline {id} is kept again")));
            }
            self.edit_closed_with(id, |m| m.state = TimelineState::Tombstone, |record| held(record, id)).await?;
            reached(Branch::HistoryEnds);
        }
        Ok(Some(self.closed_manifest(id).await?))
    }

    /// Deletes whatever a timeline has that got its tombstone. Gives where it was born: the caller drops that hold and then calls
    /// [`forget_timeline`](Self::forget_timeline).
    pub(crate) async fn remove_timeline(&self, tombstone: Rc<Manifest>) -> Result<Option<Birth>> {
        let (id, birth) = (tombstone.timeline, tombstone.birth);
        self.context.ends.tell(Ending {
            volume: self.id,
            name: self.name(),
            timeline: id,
            whole: false,
            since_ms: self.context.now_ms(),
            deleted: 0,
            left: 0,
            waits: None,
        });
        let end = End { context: &self.context, pool: &self.pool, key: id };
        let left = async |pages| {
            let _turn = self.changes.take().await;
            self.edit_closed(id, |manifest| shrink(manifest, pages)).await?;
            self.closed_manifest(id).await
        };
        let tombstone = end.remove_named(tombstone, left).await?;
        end.remove_listed(id, Some(tombstone.number)).await?;
        Ok(birth)
    }

    /// Takes a timeline that has ended out of the volume's record, its tombstone before.
    pub(crate) async fn forget_timeline(&self, id: TimelineId) -> Result<()> {
        let _turn = self.changes.take().await;
        self.pool.check().await?;
        let tombstone = self.record.borrow().timeline(id).and_then(|timeline| timeline.manifest);
        let end = End { context: &self.context, pool: &self.pool, key: id };
        end.remove_listed(id, None).await?;
        remove_manifest(&self.pool, id, tombstone).await?;
        let (epoch, writer) = (self.record().epoch, self.record().writer);
        let change = |record: &mut VolumeRecord| -> Result<()> {
            if (record.epoch, record.writer) != (epoch, writer) {
                return Err(fenced(format!("volume {}: it was opened elsewhere", record.name)));
            }
            record.timelines.retain(|timeline| timeline.id != id || timeline.id == record.shown);
            Ok(())
        };
        let (record, _, ()) = Records::new(&*self.context.coord).modify_volume(self.id, change).await?;
        *self.record.borrow_mut() = record;
        self.closed.borrow_mut().remove(&id);
        tracing::info!(volume = %self.id, timeline = %id, "a history that nothing needs any more was removed");
        Ok(())
    }
}

/// Whether the store has anything of a timeline but manifests.
pub(crate) async fn has_objects(pool: &PoolStore, id: TimelineId) -> Result<bool> {
    for kind in [ObjectKind::Segment, ObjectKind::Bundle, ObjectKind::Map, ObjectKind::Table] {
        if !pool.store.list(&format!("{id}/{}/", kind.as_str()), None).await?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Everything that a manifest and its table name.
fn names(manifest: &Manifest, pages: &Pages) -> BTreeSet<ObjectName> {
    let id = manifest.timeline;
    let segments = pages.table.iter().map(|(ordinal, entry)| entry.object(id, ordinal));
    let maps = manifest.maps.iter().map(|map| map_name(id, map));
    let tables = manifest.tables.iter().map(|table| table_name(id, table));
    let dead = manifest.dead.iter().map(|dead| dead.name);
    segments.chain(maps).chain(tables).chain(dead).chain([manifest.object_name()]).collect()
}

/// Whether it is the manifest before the newest, or a segment in the row of its writer above what the table speaks of.
fn is_needed(manifest: &Manifest, name: &ObjectName) -> bool {
    let holds = |cut: &Cut| (cut.epoch, cut.writer) == (name.epoch, name.writer) && name.number < cut.end.0;
    match name.kind {
        ObjectKind::Segment => name.number >= manifest.boundary.0 && manifest.cuts.iter().any(holds),
        ObjectKind::Manifest => name.number + 1 == manifest.number,
        ObjectKind::Map | ObjectKind::Table | ObjectKind::Bundle => false,
    }
}
