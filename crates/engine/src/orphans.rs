// SPDX-License-Identifier: Apache-2.0
//! Orphans: objects in the store that nothing refers to, and nothing ever will.
//!
//! They come from openings that ended early: map and table objects of a checkpoint that never got its manifest,
//! manifests that were never accepted, segments that a fenced writer put beyond the cut. At each opening the
//! timeline's names are listed once, in the background and slowly, and such objects are deleted.
//!
//! What may go is decided from the name and the accepted manifest alone:
//! - only names of an epoch *below* our own. Own names are the checkpoint's business, those of a higher epoch
//!   belong to somebody newer, and what is no name of an object is left alone;
//! - only what neither the segment table, nor the rows of earlier writers, nor the manifest's maps, tables and
//!   dead, nor the newest two manifests name. New references are made to objects of one's own epoch only, so what
//!   is an orphan once is one for ever;
//! - never a segment that the cut of its epoch counts: whatever the table says of it, it was part of the history.
//!
//! It begins after the manifest with the cut *and the one after it* were accepted, after the grace, and asks before
//! every page of names whether the pool is still this cluster's. A put of a fenced writer may land later still: the
//! next opening finds it. A crash leaves what was not deleted yet to the next opening.

use crate::context::Held;
use crate::timeline::{Data, Timeline};
use crate::{EngineError, Result};
use std::rc::Rc;
use std::time::Duration;
use varve_format::manifest::Manifest;
use varve_format::{ObjectKind, ObjectName};
use varve_types::branch::{Branch, reached};
use varve_types::mutant::{Mutant, planted};
use varve_types::{ErrorKind, Ordinal};

/// Between two pages of names: the sweep is never in a hurry.
const PAUSE: Duration = Duration::from_millis(200);
/// Pages of names that one sweep looks at: ten million objects.
const MAX_PAGES: u32 = 10_000;

impl Timeline {
    /// Begins the sweep of an opening whose first manifest was accepted.
    pub fn start_orphan_sweep(self: &Rc<Self>) {
        let this = Rc::clone(self);
        let first = self.data.borrow().manifest.number;
        self.context.env.spawn(Box::pin(async move {
            match this.sweep_orphans(first).await {
                Ok(0) => {}
                Ok(count) => tracing::info!(timeline = %this.id, count, "objects that nothing refers to were deleted"),
                Err(_) if this.is_stopped() => {}
                Err(error) => tracing::warn!(timeline = %this.id, %error, "the sweep of orphans ended early; the next opening does it again"),
            }
        }));
    }

    /// Deletes orphans, once a manifest behind number `first` is accepted. Gives how many there were.
    async fn sweep_orphans(self: &Rc<Self>, first: u64) -> Result<u64> {
        self.changed
            .until(|| {
                let data = self.data.borrow();
                (data.manifest.number > first || data.stopped.is_some()).then_some(())
            })
            .await;
        self.context.env.sleep(Duration::from_millis(self.context.limits.delete_grace_ms)).await;
        let prefix = format!("{}/", self.id);
        let (mut after, mut count): (Option<String>, u64) = (None, 0);
        for _ in 0..MAX_PAGES {
            let page =
                self.persist("a list", async || Ok(self.pool.store.list(&prefix, after.as_deref()).await?)).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.name.clone());
            let names = page.iter().filter_map(|info| ObjectName::parse(&info.name)).collect();
            let orphans = self.orphans_among(names).await?;
            if !orphans.is_empty() {
                self.persist("a look at the pool's owner", async || self.pool.check().await).await.inspect_err(
                    |error| {
                        if error.kind() == ErrorKind::Fenced {
                            self.stop(error.clone());
                        }
                    },
                )?;
            }
            for name in orphans {
                self.persist("a delete", async || Ok(self.pool.store.delete(&name.to_string()).await?)).await?;
                reached(Branch::OrphanDeleted);
                count += 1;
            }
            self.context.env.sleep(PAUSE).await;
        }
        Ok(count)
    }

    /// Deletes a bundle that an opening before this one has asked for and somebody says to have put by now, if nothing refers to it. Does nothing before the
    /// newest two manifests are of this opening: the sweep is still to come then.
    pub async fn delete_if_orphan(&self, name: ObjectName) -> Result<()> {
        let is_begun = self.data.borrow().previous_manifest.is_some_and(|previous| previous.epoch == self.epoch);
        if name.kind != ObjectKind::Bundle || !is_begun {
            return Ok(());
        }
        for name in self.orphans_among(vec![name]).await? {
            self.pool.check().await?;
            self.pool.store.delete(&name.to_string()).await?;
            reached(Branch::OrphanDeleted);
        }
        Ok(())
    }

    async fn orphans_among(&self, names: Vec<ObjectName>) -> Result<Vec<ObjectName>> {
        // In the turn: a checkpoint takes segments out of the table some time before the manifest that lists them as dead is accepted.
        let turn = self.manifests.take().await;
        let data = self.data.borrow();
        data.check()?;
        if let Some(error) = &data.no_checkpoints {
            // One that failed half-way may have done so: only an opening can tell what is needed.
            return Err(EngineError::new(error.kind(), format!("no checkpoints can be made: {error}")));
        }
        Ok(names.into_iter().filter(|name| self.is_orphan(&turn, &data, name)).collect())
    }

    /// See the module. Who asks has the manifests' turn.
    fn is_orphan(&self, _turn: &Held<'_>, data: &Data, name: &ObjectName) -> bool {
        let is_old = name.epoch < self.epoch || planted(Mutant::SweepUnknownWriter);
        name.timeline == self.id && is_old && !is_named(data, name)
    }
}

/// Whether the table, the newest two manifests or a cut name the object.
fn is_named(data: &Data, name: &ObjectName) -> bool {
    let manifest = &data.manifest;
    let is_dead = manifest.dead.iter().any(|dead| dead.name == *name);
    if is_dead || data.previous_manifest == Some(*name) || data.table.is_left(name) {
        return true;
    }
    let number = name.number;
    match name.kind {
        ObjectKind::Segment if number >= manifest.boundary.0 && planted(Mutant::SweepCountedRow) => false,
        ObjectKind::Segment => {
            let entry = data.table.get(Ordinal(number));
            entry.is_some_and(|e| e.object(name.timeline, Ordinal(number)) == *name) || is_counted(manifest, name)
        }
        ObjectKind::Bundle => data.table.has_bundle(name),
        ObjectKind::Map => manifest.maps.iter().any(|m| {
            u64::from(m.root.0) == number && (m.part, m.epoch, m.writer) == (name.part, name.epoch, name.writer)
        }),
        ObjectKind::Table => {
            manifest.tables.iter().any(|t| (t.number, t.epoch, t.writer) == (number, name.epoch, name.writer))
        }
        ObjectKind::Manifest => manifest.object_name() == *name,
    }
}

/// Whether a segment lies before the end of the row of its writer.
fn is_counted(manifest: &Manifest, name: &ObjectName) -> bool {
    let of_writer = |cut: &&varve_format::manifest::Cut| (cut.epoch, cut.writer) == (name.epoch, name.writer);
    manifest.cuts.iter().filter(of_writer).any(|cut| name.number < cut.end.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use varve_format::manifest::Cut;
    use varve_types::{Epoch, Sequence, TimelineId, VolumeId, WriterId};

    #[test]
    fn what_a_cut_counts_is_never_an_orphan() {
        let timeline = TimelineId::from_bytes([1; 16]);
        let volume = VolumeId::from_bytes([2; 16]);
        let name = "v".parse().unwrap();
        let mut manifest = Manifest::new(volume, timeline, name, Epoch(7), WriterId(70));
        let row = |writer, first, end| Cut {
            epoch: Epoch(6),
            writer: WriterId(writer),
            first: Ordinal(first),
            end: Ordinal(end),
            last: Sequence(9),
        };
        manifest.cuts = vec![row(60, 10, 14), row(61, 20, 20)];
        let segment = |writer, number| ObjectName {
            timeline,
            kind: ObjectKind::Segment,
            number,
            part: 0,
            epoch: Epoch(6),
            writer: WriterId(writer),
        };
        assert!(is_counted(&manifest, &segment(60, 10)) && is_counted(&manifest, &segment(60, 13)));
        assert!(!is_counted(&manifest, &segment(60, 14)), "behind the end");
        assert!(!is_counted(&manifest, &segment(61, 20)), "its writer has an empty row");
        assert!(!is_counted(&manifest, &segment(62, 12)), "nobody's row");
    }
}
