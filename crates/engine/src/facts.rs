// SPDX-License-Identifier: Apache-2.0
//! What people ask about volumes beyond their numbers: when they were made, from what, and what is hidden
//! in them.
//!
//! Nothing here is on the path of a read or a write, and nothing changes. Answers come from RAM where the
//! volume is open, and else from the manifest that coordination names, at the cost of one get.

use crate::Result;
use crate::lineage::newest_manifest;
use crate::shard::Shard;
use crate::volume::{SnapshotInfo, Volume};
use std::rc::Rc;
use varve_coord::{CoordError, Records, TimelineState, VolumeRecord};
use varve_format::manifest::{Birth, Manifest};
use varve_types::{Name, VolumeId};

/// What a volume was cloned from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginInfo {
    /// The volume; `None` when it is gone for good.
    pub volume: Option<VolumeId>,
    /// The snapshot; `None` when the clone was made of the present, or the snapshot is gone.
    pub snapshot: Option<Name>,
}

/// What is known of a volume that is not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClosedInfo {
    /// Its size in bytes, by its newest manifest.
    pub size: u64,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// Its snapshots, by its newest manifest.
    pub snapshots: u64,
}

fn infos(manifest: &Manifest) -> impl Iterator<Item = SnapshotInfo> {
    manifest.snapshots.iter().map(|s| SnapshotInfo {
        id: s.id,
        name: s.name.clone(),
        created_ms: s.created_ms,
        size: s.size,
        stored: true,
        hidden: s.hidden,
        timeline: manifest.timeline,
    })
}

impl Volume {
    /// When it was made, in milliseconds since 1970.
    pub fn created_ms(&self) -> u64 {
        self.shown().data.borrow().manifest.created_ms
    }

    /// The snapshots that are only in histories which a rollback hid and that can be shown again, oldest first.
    ///
    /// # Errors
    /// When a manifest can not be read.
    pub async fn hidden_snapshots(&self) -> Result<Vec<SnapshotInfo>> {
        let (record, now) = (self.record(), self.context.now_ms());
        let mut found: Vec<SnapshotInfo> = Vec::new();
        for timeline in &record.timelines {
            let hidden = matches!(timeline.state, TimelineState::Hidden { until_ms } if until_ms > now);
            if hidden && timeline.id != record.shown {
                let manifest = self.closed_manifest(timeline.id).await?;
                found.extend(infos(&manifest));
            }
        }
        if !found.is_empty() {
            let seen: Vec<_> = self.snapshots().await?.into_iter().map(|s| s.id).collect();
            found.retain(|s| !seen.contains(&s.id));
            found.sort_by_key(|s| s.created_ms);
        }
        Ok(found)
    }

    /// Where it was born from another volume: beyond all its own rollbacks.
    async fn birth(&self) -> Result<Option<Birth>> {
        let mut birth = self.shown().data.borrow().manifest.birth;
        while let Some(born) = birth {
            if self.record().timeline(born.origin).is_none() {
                return Ok(Some(born));
            }
            birth = self.closed_birth(born.origin).await?;
        }
        Ok(None)
    }

    /// What it was cloned from, if it was.
    ///
    /// # Errors
    /// When coordination does not answer or a manifest can not be read.
    pub async fn origin(&self) -> Result<Option<OriginInfo>> {
        let Some(born) = self.birth().await? else { return Ok(None) };
        let volume = match Records::new(&*self.context.coord).find_timeline(born.origin).await {
            Ok(volume) => volume,
            Err(CoordError::NotFound(_)) => return Ok(Some(OriginInfo { volume: None, snapshot: None })),
            Err(error) => return Err(error.into()),
        };
        let manifest = newest_manifest(&self.context, &self.pool.store, born.origin).await?;
        let snapshot = manifest.snapshots.iter().find(|s| s.boundary == born.boundary && !s.hidden);
        Ok(Some(OriginInfo { volume: Some(volume), snapshot: snapshot.map(|s| s.name.clone()) }))
    }
}

impl Shard {
    /// What is known of a volume that is not open.
    ///
    /// # Errors
    /// Those of the store; `NotFound` for an unknown pool.
    pub async fn look_at(self: &Rc<Self>, record: &VolumeRecord) -> Result<ClosedInfo> {
        let (pool, _) = self.pool(&record.pool)?;
        let manifest = newest_manifest(&self.context, &pool.store, record.shown).await?;
        let snapshots = infos(&manifest).filter(|s| !s.hidden).count() as u64;
        Ok(ClosedInfo { size: manifest.size, created_ms: manifest.created_ms, snapshots })
    }
}
