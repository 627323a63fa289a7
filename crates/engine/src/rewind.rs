// SPDX-License-Identifier: Apache-2.0
//! Rewinding: a volume of what another one was at a moment of the recent past, though nobody took a snapshot then.
//!
//! A *rewind point* is the end of a segment, with the time at which that was sealed. Which points can be had is the window's business
//! ([`crate::checkpoint`]). To bring one back is to make a clone of its boundary: it begins with the last root of the window at or before it, and with the
//! changes of the segments between the two, which are read from the store.
//!
//! Always holds: no checkpoint runs while the hold for a point is being accepted. So what a boundary of the past needs is either gone, and the point with
//! it, or is kept from then on as for any clone.
//!
//! Only the history that the volume shows has points: what a rollback has hidden comes back by its undo.

use crate::birth::Source;
use crate::checkpoint::current_window;
use crate::overlay::Stratum;
use crate::read::load_changes;
use crate::signal::breathe;
use crate::snapshot::Base;
use crate::timeline::{Data, Timeline};
use crate::volume::Volume;
use crate::{EngineError, Result};
use std::ops::Range;
use std::sync::Arc;
use varve_coord::VolumeRecord;
use varve_format::manifest::{Cut, Manifest, RewindRoot};
use varve_format::mark::Mark;
use varve_types::branch::{Branch, reached, reached_if};
use varve_types::mutant::{Mutant, planted};
use varve_types::{BLOCK, ErrorKind, Ordinal, Sequence, TimelineId, VolumeId};

/// How often a segment is looked for anew, because it was moved meanwhile.
const MAX_TRIES: u32 = 4;

/// A moment that can be brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RewindPoint {
    /// The history that it is of.
    pub timeline: TimelineId,
    /// It sees the segments below this ordinal.
    pub boundary: Ordinal,
    /// The last change that it sees.
    pub last: Sequence,
    /// When its last segment was sealed, in milliseconds since 1970.
    pub at_ms: u64,
}

/// What can be brought back of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RewindPoints {
    /// Milliseconds that the window is long; 0: there is none.
    pub window_ms: u64,
    /// How many points there are.
    pub count: u64,
    /// The oldest.
    pub oldest: Option<RewindPoint>,
    /// The latest, oldest first: as many as were asked for.
    pub latest: Vec<RewindPoint>,
    /// Bytes of the volume that nothing but the window keeps, as they were before compression.
    pub held_bytes: u64,
}

impl Timeline {
    /// Its points, oldest first.
    fn points<'a>(&'a self, data: &'a Data) -> impl DoubleEndedIterator<Item = RewindPoint> + 'a {
        let window = current_window(data);
        let first =
            window.first_index().map_or(Ordinal(u64::MAX), |first| first.max(Ordinal(window.from.0.saturating_sub(1))));
        data.table.range(first..data.counted_end.max(first)).map(|(ordinal, entry)| RewindPoint {
            timeline: self.id,
            boundary: ordinal.next(),
            last: entry.last,
            at_ms: entry.sealed_ms,
        })
    }

    /// The root to begin at for a point, if it is still in the window.
    fn rewind_root(&self, point: &RewindPoint) -> Result<RewindRoot> {
        let data = self.data.borrow();
        let window = current_window(&data);
        let is_there = point.timeline == self.id && self.points(&data).any(|found| found == *point);
        let root = window.roots.iter().rev().find(|root| root.boundary <= point.boundary);
        let gone = || EngineError::new(ErrorKind::NotFound, "that moment has left the rewind window");
        root.copied().filter(|_| is_there).ok_or_else(gone)
    }

    /// What the segments of a range have changed: as entries, and the size of the volume behind them, if it changed.
    async fn changes_between(&self, range: Range<Ordinal>) -> Result<(Stratum, Option<u64>)> {
        let (mut stratum, mut size) = (Stratum { end: range.end, ..Stratum::default() }, None);
        let ordinals: Vec<Ordinal> = self.data.borrow().table.range(range).map(|(ordinal, _)| ordinal).collect();
        reached_if(!ordinals.is_empty(), Branch::RewindReplays);
        for ordinal in ordinals {
            let (extents, marks) = self.persist_changes(ordinal).await?;
            stratum.replay(self.own, ordinal, &extents);
            for mark in marks {
                if let Mark::Size { size: to, .. } = mark {
                    size = Some(to);
                }
            }
            breathe().await;
        }
        Ok((stratum, size))
    }

    /// The changes of one segment, wherever it is by now.
    async fn persist_changes(&self, ordinal: Ordinal) -> Result<(Vec<varve_format::segment::IndexExtent>, Vec<Mark>)> {
        let mut tries = 0;
        loop {
            let entry = self.data.borrow().table.get(ordinal).map(|entry| entry.object(self.id, ordinal));
            let missing = || EngineError::corrupt(format!("segment {ordinal} of timeline {} is missing", self.id));
            let name = entry.ok_or_else(missing)?;
            let loaded = self.persist("a get", async || load_changes(&*self.pool.store, &name, ordinal).await).await;
            match loaded {
                Err(error) if error.kind() == ErrorKind::NotFound && tries < MAX_TRIES => tries += 1,
                done => return done.map_err(crate::recover::missing_is_corrupt),
            }
        }
    }

    /// The rows of segments of a range, as a clone's first manifest names them.
    fn rows_between(&self, range: Range<Ordinal>) -> Vec<Cut> {
        let data = self.data.borrow();
        let mut rows: Vec<Cut> = Vec::new();
        for (ordinal, entry) in data.table.range(range) {
            match rows.last_mut() {
                Some(row) if row.end == ordinal && (row.epoch, row.writer) == (entry.epoch, entry.writer) => {
                    (row.end, row.last) = (ordinal.next(), entry.last);
                }
                _ => rows.push(Cut {
                    epoch: entry.epoch,
                    writer: entry.writer,
                    first: ordinal,
                    end: ordinal.next(),
                    last: entry.last,
                }),
            }
        }
        rows
    }
}

impl Volume {
    /// What can be brought back of it: the latest `most` points one by one.
    #[must_use]
    pub fn rewind_points(&self, most: usize) -> RewindPoints {
        let timeline = self.shown();
        let data = timeline.data.borrow();
        let (mut count, mut oldest) = (0, None);
        for point in timeline.points(&data) {
            count += 1;
            oldest.get_or_insert(point);
        }
        let mut latest: Vec<_> = timeline.points(&data).rev().take(most).collect();
        latest.reverse();
        let held_bytes = self.counts().rewind_blocks * BLOCK;
        let window_ms = data.settings.rewind_window_ms;
        RewindPoints { window_ms, count, oldest, latest, held_bytes }
    }

    /// The last point at or before a time, in milliseconds since 1970.
    ///
    /// # Errors
    /// `NotFound` where there is none: it says what the oldest one is.
    pub fn rewind_point_at(&self, at_ms: u64) -> Result<RewindPoint> {
        let timeline = self.shown();
        let data = timeline.data.borrow();
        if let Some(point) = timeline.points(&data).rev().find(|point| point.at_ms <= at_ms) {
            return Ok(point);
        }
        let name = self.name();
        let oldest = timeline.points(&data).next();
        let what = match (oldest, data.settings.rewind_window_ms) {
            (_, 0) => format!("volume {name} keeps nothing of its past: its rewind-window is 0s"),
            (None, _) => format!(
                "volume {name} has no moment to go back to yet: nothing of it is in the store since its window was turned on"
            ),
            (Some(oldest), _) => {
                let older = self.context.now_ms().saturating_sub(oldest.at_ms) / 1000;
                format!("volume {name} can not be brought back to so early a moment: the oldest is of {older} s ago")
            }
        };
        Err(EngineError::new(ErrorKind::NotFound, what))
    }

    /// Finds what a clone of a point is made of, and has the hold for it accepted. The caller has the turn.
    pub(crate) async fn hold_point(&self, point: &RewindPoint, clone: TimelineId, volume: VolumeId) -> Result<Source> {
        let timeline = self.shown();
        let (root, rows) = {
            // See the module: a checkpoint that is under way may be freeing just this.
            let _still = timeline.checkpoints.take().await;
            let turn = timeline.manifests.take().await;
            let root = timeline.rewind_root(point)?;
            let rows = timeline.rows_between(root.boundary..point.boundary);
            let ancestors = Vec::new();
            let base = Base { number: root.number, root: root.root, boundary: root.boundary, strata: Vec::new(), rows };
            let source = Source { base, boundary: point.boundary, size: 0, origin: timeline.id, ancestors };
            let hold = source.hold(clone, &self.record(), volume);
            let edit = |manifest: &mut Manifest, _: &mut Data| {
                if !planted(Mutant::RewindWithoutHold) {
                    manifest.holds.push(hold);
                }
            };
            let record = timeline.write_manifest_in_turn(&turn, edit, |_: &mut VolumeRecord| Ok(())).await?;
            *self.record.borrow_mut() = record;
            (root, source.base.rows)
        };
        reached(Branch::Rewound);
        let (stratum, size) = timeline.changes_between(root.boundary..point.boundary).await?;
        let strata = if rows.is_empty() { Vec::new() } else { vec![Arc::new(stratum)] };
        let base = Base { number: root.number, root: root.root, boundary: root.boundary, strata, rows };
        let size = size.filter(|_| !planted(Mutant::RewindIgnoresSize)).unwrap_or(root.size);
        let ancestors = timeline.data.borrow().manifest.ancestors.clone();
        Ok(Source { base, boundary: point.boundary, size, origin: timeline.id, ancestors })
    }
}
