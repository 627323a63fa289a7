// SPDX-License-Identifier: Apache-2.0
//! A check of what a clone has inherited from volumes that are deleted.
//!
//! What it inherits from a volume that is there is proved by the check of that one. A deleted volume has no check of its own, and what is left of it is there
//! for its clones: so each of them proves all of it. Its counts are its own affair: they are compared no more.

use super::{ALL, CheckReport, Progress, verify};
use crate::Result;
use crate::lineage::newest_manifest_if_there;
use crate::volume::Volume;
use std::collections::BTreeSet;
use varve_coord::{CoordError, Records};
use varve_format::manifest::{Manifest, TimelineState};
use varve_types::TimelineId;

impl Volume {
    /// Verifies the objects of every ancestor, of what is shown and of what is hidden, whose volume is deleted.
    pub(super) async fn check_inherited(&self, report: &mut CheckReport, progress: Progress<'_>) -> Result<()> {
        let (shown, record) = (self.shown(), self.record());
        let mut ancestors = BTreeSet::new();
        for timeline in &record.timelines {
            if timeline.id == shown.id {
                ancestors.extend(shown.data.borrow().manifest.ancestors.iter().map(|ancestor| ancestor.timeline));
            } else if let Some(manifest) = self.held_manifest(timeline.id).await? {
                ancestors.extend(manifest.ancestors.iter().map(|ancestor| ancestor.timeline));
            }
        }
        for id in ancestors {
            if record.timeline(id).is_some() || !self.is_of_deleted(id).await? {
                continue;
            }
            let Some(manifest) = self.lasting_manifest(id, report).await? else { continue };
            let mut found = CheckReport::default();
            let subject = shown.closed_subject(manifest, (false, ALL), &mut found).await?;
            verify::verify(&shown, &subject, &mut found, progress).await?;
            // What ended meanwhile nobody needed: a flatten in between has let go of it.
            if found.problems.is_empty() || self.lasting_manifest(id, report).await?.is_some() {
                report.add(found);
            }
        }
        Ok(())
    }

    /// The newest manifest of a timeline, unless that has ended or is about to.
    async fn lasting_manifest(&self, id: TimelineId, report: &mut CheckReport) -> Result<Option<Manifest>> {
        let found = newest_manifest_if_there(&self.context, &self.pool.store, id).await;
        match report.note(format!("timeline {id}"), found)? {
            Some(Ok(manifest)) => Ok(Some(manifest).filter(|m| m.state != TimelineState::Tombstone)),
            Some(Err(named)) => {
                if self.has_objects(id).await? {
                    let what = "an object that is needed is missing";
                    report.problem(crate::lineage::manifest_name(id, named), what);
                }
                Ok(None)
            }
            None => Ok(None),
        }
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
