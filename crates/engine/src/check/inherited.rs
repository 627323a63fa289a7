// SPDX-License-Identifier: Apache-2.0
//! A check of what a clone has inherited from volumes that are deleted.
//!
//! What it inherits from a volume that is there is proved by the check of that one. A deleted volume has no check of its own, and what is left of it is there
//! for its clones: so each of them proves all of it. Its counts are its own affair: they are compared no more.

use super::{CheckReport, Progress, verify};
use crate::Result;
use crate::lineage::newest_manifest;
use crate::volume::Volume;
use varve_coord::{CoordError, Records};
use varve_types::TimelineId;

impl Volume {
    /// Verifies the objects of every ancestor whose volume is deleted.
    pub(super) async fn check_inherited(&self, report: &mut CheckReport, progress: Progress<'_>) -> Result<()> {
        let shown = self.shown();
        let ancestors: Vec<TimelineId> = {
            let data = shown.data.borrow();
            data.manifest.ancestors.iter().map(|ancestor| ancestor.timeline).collect()
        };
        for id in ancestors {
            if self.record().timeline(id).is_some() || !self.is_of_deleted(id).await? {
                continue;
            }
            let manifest = newest_manifest(&self.context, &self.pool.store, id).await;
            let Some(manifest) = report.note(format!("timeline {id}"), manifest)? else { continue };
            let subject = shown.closed_subject(manifest, false, report).await?;
            verify::verify(&shown, &subject, report, progress).await?;
        }
        Ok(())
    }

    /// Whether a timeline is one of a deleted volume.
    async fn is_of_deleted(&self, id: TimelineId) -> Result<bool> {
        let records = Records::new(&*self.context.coord);
        let volume = match records.find_timeline(id).await {
            Ok(volume) => volume,
            // Nothing of it is needed: an index that no tree uses is given back by a flatten only.
            Err(CoordError::NotFound(_)) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        Ok(records.load_volume(volume).await?.0.deleted.is_some())
    }
}
