// SPDX-License-Identifier: Apache-2.0
//! Deleted volumes whose windows are over and that clones still need: what no clone sees of them is given back, and what stays is cleaned.
//!
//! They are in nobody's list of volumes. Their timelines are all closed, and the chores of closed timelines are done for them: trimmed to the newest boundary that is held, cleaned where they are
//! sparse. Once no clone is left they are ended as other deleted volumes are.
//!
//! Always holds:
//! - Before anything is freed the record says, in an epoch of its own, that the window is over for good: nothing brings the volume back, whatever the clock shows.
//! - Where its histories are known here, they alone change its manifests, one at a time: they know the newest ones.
//! - They are forgotten before the volume is ended.
//!
//! A crash leaves the manifest that was accepted last; the next look at windows goes on from it.

use super::Shard;
use crate::closed::Histories;
use crate::volume::raise;
use crate::{Result, TableTotals};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use varve_coord::{Deleted, Records, VolumeRecord};
use varve_types::branch::{Branch, reached};
use varve_types::{ErrorKind, TimelineId, VolumeId, WriterId};

/// The histories of deleted volumes that clones need, as far as they were looked at.
pub(super) type Gone = RefCell<BTreeMap<VolumeId, Rc<Histories>>>;

/// What deleted volumes keep for their clones, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GoneCounts {
    /// Deleted volumes whose windows are over and that clones need.
    pub volumes: u64,
    /// Segments and blocks that are stored of them, as of when they were last looked at.
    pub table: TableTotals,
}

impl Shard {
    /// Gives back what no clone sees of a deleted volume whose window is over. Nobody else is at it.
    pub(super) async fn keep_for_clones(&self, seen: &VolumeRecord) -> Result<()> {
        let known = self.gone.borrow().get(&seen.id).cloned();
        let histories = match known {
            Some(known) => known,
            None => match self.end_window(seen).await? {
                Some(begun) => begun,
                None => return Ok(()),
            },
        };
        let turn = histories.tidying.take().await;
        for id in histories.closed_ids() {
            match histories.tidy_one(&turn, id).await {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Fenced => {
                    self.gone.borrow_mut().remove(&seen.id);
                    return Err(error);
                }
                Err(error) => {
                    tracing::warn!(timeline = %id, %error, "a deleted volume could not give back its space yet");
                }
            }
        }
        drop(turn);
        histories.clean_closed_if_due();
        Ok(())
    }

    /// Takes a deleted volume over, with its window over for good; `None` where it was brought back since it was looked at.
    async fn end_window(&self, seen: &VolumeRecord) -> Result<Option<Rc<Histories>>> {
        let (pool, settings) = self.pool(&seen.pool)?;
        let mut writer = [0; 8];
        self.context.env.random(&mut writer);
        let writer = WriterId(u64::from_le_bytes(writer));
        let end = |record: &mut VolumeRecord| -> Result<bool> {
            if record.deleted != seen.deleted || !self.is_over(record) {
                return Ok(false);
            }
            // A writer of its own: bundles are numbered anew in each process.
            raise(record, writer);
            // An end that has begun says so with less.
            record.deleted =
                record.deleted.map(|deleted| Deleted { until_ms: Deleted::OVER.min(deleted.until_ms), ..deleted });
            Ok(true)
        };
        let (record, _, ended) = Records::new(&*self.context.coord).modify_volume(seen.id, end).await?;
        if !ended {
            return Ok(None);
        }
        reached(Branch::GoneKept);
        let histories = Histories::new(Rc::clone(&self.context), pool, settings, record, None);
        self.gone.borrow_mut().insert(seen.id, Rc::clone(&histories));
        Ok(Some(histories))
    }

    /// Drops the hold of a clone in a deleted volume that is known here; tells whether it is.
    pub(super) async fn drop_hold_of_gone(
        &self,
        volume: VolumeId,
        origin: TimelineId,
        clone: TimelineId,
    ) -> Result<bool> {
        let Some(histories) = self.gone.borrow().get(&volume).cloned() else { return Ok(false) };
        let _turn = histories.changes.take().await;
        histories.edit_closed(origin, |manifest| manifest.holds.retain(|hold| hold.clone != clone)).await?;
        Ok(true)
    }

    /// What deleted volumes keep for their clones.
    pub(super) fn gone_counts(&self) -> GoneCounts {
        let mut counts = GoneCounts::default();
        for histories in self.gone.borrow().values() {
            counts.volumes += 1;
            histories.closed.borrow().values().for_each(|closed| counts.table.merge(&closed.totals));
        }
        counts
    }
}
