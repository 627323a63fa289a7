// SPDX-License-Identifier: Apache-2.0
//! Checkpoints: the overlay merged into the map, and the map, the segment table and the kills made durable.
//!
//! Order of writes: map objects of each new root, then the table object (pages of the segment table, runs of
//! kills), then the manifest that names them all, then its acceptance by coordination. Until then nothing of the
//! old state is touched in the store, so a crash anywhere leaves the old manifest in force, and recovery replays
//! the segments behind its boundary.
//!
//! Roots are built in stream order: one at each boundary in the overlay (a snapshot), and one for the head. A
//! stratum is merged leaf by leaf in slices; reads go on between them, and see the same, because the strata stay in
//! the overlay until the manifest is accepted.
//!
//! Of a large hole only the topmost nodes of what it covers are noted; what is below is worked off by later checkpoints: see [`reclaim`].
//!
//! A block that was replaced is freed iff no kept boundary b has birth < b ≤ death; a node iff no kept root r has
//! birth ≤ r < death.

mod compact;
mod free;
mod merge;
mod reclaim;
mod root;
mod runs;
mod window;

pub(crate) use reclaim::covered_bytes;
pub(crate) use window::current_window;

pub(crate) use runs::{kill_runs, node_kill_runs};

use crate::context::Held;
use crate::error::MayPass;
use crate::overlay::Stratum;
use crate::proof::proved;
use crate::signal::breathe;
use crate::stages::Stage;
use crate::timeline::{Data, Timeline};
use crate::{EngineError, Result};
use bytes::Bytes;
use free::Freed;
use merge::{Gathered, NewRoot};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use varve_env::{Payload, PutOutcome, compute};
use varve_format::ObjectName;
use varve_format::manifest::{Manifest, MapObject, SnapshotEntry};
use varve_types::branch::{Branch, reached, reached_if};
use varve_types::mutant::{Mutant, planted};
use varve_types::{Ordinal, Sequence};

/// Bytes at which one begins however large the volume is: each block of them may be told as a kill, in RAM and in one table object.
const MOST_UNMERGED: u64 = 16 << 30;
/// Segments since the last checkpoint at which one is worth it in a small volume: recovery reads their indexes.
const MIN_SEGMENTS: u64 = 4;
/// Bytes of RAM of an entry of the overlay, about.
const OVERLAY_ENTRY: usize = 34;
/// Deletions wait at most so long for a checkpoint once the volume is quiet.
const QUIET: Duration = Duration::from_secs(10);

impl Timeline {
    /// Begins a checkpoint if the overlay is full or enough was written.
    pub fn checkpoint_if_due(self: &Rc<Self>) {
        if self.is_due(&self.data.borrow()) && !self.checkpoints.is_taken() {
            self.start_checkpoint();
        }
    }

    fn is_due(&self, data: &Data) -> bool {
        let live = data.table.totals().live_blocks * varve_types::BLOCK;
        let far = since_last(data);
        data.stopped.is_none()
            && data.no_checkpoints.is_none()
            && (data.overlay.is_full()
                || data.overlay.own_len() >= self.overlay_bound(data)
                || far > crate::timeline::NUMBER_GAP / 2
                || data.counted_bytes > (MIN_SEGMENTS * data.settings.segment_size).max((live / 64).min(MOST_UNMERGED)))
    }

    /// Entries of the overlay at which a checkpoint begins: more in a large map, where each costs more to merge.
    fn overlay_bound(&self, data: &Data) -> usize {
        let bytes = (map_bytes(&data.manifest) / 16).clamp(16 << 20, 64 << 20) as usize;
        (bytes / OVERLAY_ENTRY).min(self.context.limits.overlay_entries)
    }

    /// Begins a checkpoint if deletions wait and the volume is quiet.
    pub fn checkpoint_if_quiet(self: &Rc<Self>) {
        let due = {
            let data = self.data.borrow();
            let quiet = self.context.env.now().saturating_sub(data.touched) >= QUIET;
            // What a clone took over in its overlay is no reason: each would write nodes that it could share.
            let waiting = || {
                data.reconsider
                    || !data.to_ask.is_empty()
                    || self.is_window_over(&data)
                    || data.table.has_left()
                    || data.manifest.dead.iter().any(|dead| dead.since >= data.manifest.number)
                    || (since_last(&data) > 0 && data.sealed.is_empty() && data.open.is_empty())
            };
            data.stopped.is_none() && data.no_checkpoints.is_none() && quiet && waiting()
        };
        if due && !self.checkpoints.is_taken() {
            self.start_checkpoint();
        }
    }

    fn start_checkpoint(self: &Rc<Self>) {
        let this = Rc::clone(self);
        self.context.env.spawn(Box::pin(async move {
            if let Err(error) = this.checkpoint().await {
                tracing::warn!(timeline = %this.id, %error, "a checkpoint failed; it will be tried again");
            }
        }));
    }

    /// Whether the newest manifest says all that counts: a checkpoint would only free something.
    pub fn is_merged(&self) -> bool {
        let data = self.data.borrow();
        let has_roots = data.pending.is_empty() && data.snapshots.iter().all(|snapshot| snapshot.root.is_some());
        data.overlay.len() == 0
            && data.manifest.boundary == data.counted_end
            && has_roots
            && data.no_checkpoints.is_none()
    }

    /// Makes everything that counts durable as map, table and manifest.
    ///
    /// Waits for a store or a coordination that is away: a checkpoint that was begun is ended.
    ///
    /// # Errors
    /// When the timeline stops meanwhile, or something that is needed is corrupt: no more checkpoints are made then until it is opened again.
    pub async fn checkpoint(self: &Rc<Self>) -> Result<()> {
        let turn = self.checkpoints.take().await;
        self.checkpoint_in_turn(&turn, true).await
    }

    /// The same for who has the turn already. Without `merge` it only frees what nothing keeps any more, and leaves the overlay as it is.
    pub async fn checkpoint_in_turn(self: &Rc<Self>, turn: &Held<'_>, merge: bool) -> Result<()> {
        self.run_checkpoint(turn, merge, Gathered::default()).await
    }

    /// The same, with kills that were gathered before.
    async fn run_checkpoint(self: &Rc<Self>, _turn: &Held<'_>, merge: bool, gathered: Gathered) -> Result<()> {
        let (strata, point) = {
            let mut data = self.data.borrow_mut();
            data.check()?;
            if let Some(error) = &data.no_checkpoints {
                return Err(error.clone());
            }
            if merge {
                let boundary = data.counted_end;
                data.overlay.freeze(boundary, None);
                data.counted_bytes = 0;
                let mut strata = data.overlay.frozen().to_vec();
                if planted(Mutant::MergeOutOfOrder) {
                    strata.reverse();
                }
                let merged = if planted(Mutant::MergeBeforeCount) { data.last } else { data.counted };
                (strata, Point { boundary, merged, size: data.counted_size })
            } else {
                let Manifest { boundary, merged, size, .. } = data.manifest;
                (Vec::new(), Point { boundary, merged, size })
            }
        };
        let _timed = self.context.timed(Stage::Checkpoint);
        self.count_ready();
        let done = self.merge_and_write(&strata, point, gathered).await;
        self.count_ready();
        if let Err(error) = &done {
            reached_if(!self.is_stopped(), Branch::CheckpointBroken);
            // Half of it is done in RAM: only what is in the store can be built upon.
            self.data.borrow_mut().no_checkpoints = Some(error.clone());
        }
        // Beside the shard: a full stratum is two million entries to give back one by one.
        compute(&*self.context.env, move || drop(strata)).await;
        done
    }

    async fn merge_and_write(
        self: &Rc<Self>,
        strata: &[Arc<Stratum>],
        point: Point,
        mut gathered: Gathered,
    ) -> Result<()> {
        reached_if(strata.len() > 1, Branch::SeveralBoundaries);
        for stratum in strata {
            let root = self.merge(stratum, &mut gathered).await?;
            gathered.roots.push(root);
        }
        let freed = self.free(&mut gathered, point).await?;
        self.put_checkpoint(strata, point, gathered, freed).await
    }

    /// Puts an object of this writer until the store has answered that it is there.
    pub async fn put_own(&self, name: &ObjectName, pieces: Vec<Vec<u8>>) -> Result<u64> {
        let payload = Payload::new(pieces.into_iter().map(Bytes::from).collect());
        let (text, len) = (name.to_string(), payload.len());
        self.persist("a put", async || match self.pool.store.put(&text, payload.clone()).await? {
            PutOutcome::Created => {
                self.context.note_put(name.kind, len);
                Ok(len)
            }
            // Within one opening a number is used once, so only an earlier try of this very put can stand there: if it is the same.
            PutOutcome::Exists if planted(Mutant::TakeAnyObject) => Ok(len),
            PutOutcome::Exists => {
                let ask = async || match is_same(&payload, &self.pool.store.get(&text, 0..len).await?) {
                    true => Ok(len),
                    false => Err(EngineError::corrupt(format!("{text}: another object stands under its name"))),
                };
                proved(ask).await.inspect(|_| reached(Branch::PageObjectWasPut))
            }
        })
        .await
    }

    /// Puts table pages and kill runs, then writes the manifest, then drops what was merged from the overlay.
    async fn put_checkpoint(
        self: &Rc<Self>,
        strata: &[Arc<Stratum>],
        point: Point,
        gathered: Gathered,
        freed: Freed,
    ) -> Result<()> {
        let boundary = point.boundary;
        let turn = self.manifests.take().await;
        // In the turn: a hold that was accepted before it is seen, and none is accepted before this manifest.
        let dead_segments = self.take_dead_segments(&mut self.data.borrow_mut(), boundary, &freed.window);
        let tables = self.put_tables(boundary, &freed).await?;
        let head = gathered.roots.last().copied();
        let rewind = freed.window.with(point, head, self.context.now_ms(), self.root_spacing_ms());
        let edit = |manifest: &mut Manifest, data: &mut Data| {
            manifest.boundary = boundary;
            manifest.merged = point.merged;
            manifest.size = point.size;
            if let Some(head) = head {
                manifest.root = head.root;
                manifest.root_number = head.number;
            }
            manifest.last_root = data.last_root;
            manifest.rewind = rewind.clone();
            note_roots(&mut manifest.snapshots, &gathered.roots);
            if !strata.is_empty() {
                manifest.inherited.clear();
            }
            manifest.cuts.retain_mut(|cut| {
                // Rows below the boundary are in the table; of each closed epoch the last row stays, for its cut.
                cut.first = cut.first.max(boundary.min(cut.end));
                true
            });
            manifest.table = tables.pages.clone();
            manifest.kills = tables.runs.clone();
            manifest.node_kills = tables.node_runs.clone();
            manifest.maps = freed.maps.clone();
            manifest.tables = tables.objects.clone();
            if !planted(Mutant::DropReclaim) {
                manifest.reclaim = gathered.queue.apply(&manifest.reclaim);
            }
            manifest.dead.extend(
                freed
                    .dead
                    .iter()
                    .chain(&tables.dead)
                    .chain(&dead_segments)
                    .map(|name| varve_format::manifest::DeadObject { name: *name, since: manifest.number }),
            );
            manifest.bundles |= data.table.has_bundles()
                || manifest.dead.iter().any(|dead| dead.name.kind == varve_format::ObjectKind::Bundle);
        };
        self.persist("a manifest", async || {
            let written = self.write_manifest_in_turn(&turn, edit, |_| Ok(())).await;
            written.map(drop).inspect_err(|error| reached_if(error.may_pass(), Branch::ManifestTriedAgain))
        })
        .await?;
        {
            let mut data = self.data.borrow_mut();
            note_roots(&mut data.snapshots, &gathered.roots);
            data.overlay.merged(strata.len());
            data.table.written(boundary, tables.places);
            data.fresh_maps.clear();
        }
        drop(turn);
        self.changed.ring();
        breathe().await;
        Ok(())
    }
}

/// Whether an object that was read back is the one that was to be put.
pub(crate) fn is_same(payload: &Payload, mut found: &[u8]) -> bool {
    let parts = payload.parts().iter().all(|part| {
        let rest = found.strip_prefix(&part[..]);
        found = rest.unwrap_or_default();
        rest.is_some()
    });
    parts && found.is_empty()
}

/// Ordinals of its own that a timeline has used since its last checkpoint.
fn since_last(data: &Data) -> u64 {
    data.next_ordinal.0.saturating_sub(data.manifest.boundary.0.max(data.manifest.first_ordinal.0))
}

/// Bytes that nodes of the map which live take in the store, about.
fn map_bytes(manifest: &Manifest) -> u64 {
    let live = |map: &MapObject| map.bytes * u64::from(map.live) / u64::from(map.records.max(1));
    manifest.maps.iter().map(live).sum()
}

/// Where a checkpoint ends.
#[derive(Clone, Copy)]
struct Point {
    boundary: Ordinal,
    merged: Sequence,
    size: u64,
}

/// Gives snapshots the roots that were built for them.
fn note_roots(snapshots: &mut [SnapshotEntry], roots: &[NewRoot]) {
    for root in roots {
        if let Some(snapshot) = snapshots.iter_mut().find(|s| root.snapshot == Some(s.id)) {
            snapshot.root = Some((root.number, root.root));
        }
    }
}
