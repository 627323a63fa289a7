// SPDX-License-Identifier: Apache-2.0
//! A check of the timelines that a volume does not show.
//!
//! Inside its window a timeline is whole, and may keep more than its roots reach. One that is held keeps exactly what
//! its snapshots and holds see. One that was swept keeps what all trees of the volume reach of it: they are walked
//! again, and since they may reach less now than at the last sweep, only less of what lives may be missing then.
//!
//! Before, everything is freed that can be; nobody else frees meanwhile. Nothing is written otherwise.

use super::{ALL, CheckReport, Progress, Subject};
use crate::Result;
use crate::closed::{Family, Kept, Pinned, Reached};
use crate::context::Held;
use crate::error::MayPass;
use crate::lineage::load_manifest;
use crate::volume::Volume;
use std::rc::Rc;
use varve_coord::TimelineRecord;
use varve_format::manifest::{Manifest, TimelineState};
use varve_types::{ErrorKind, Ordinal, TimelineId};

/// Rounds in which everything that can be freed is: what one timeline lets go of, another may.
const ROUNDS: u32 = 6;

impl Volume {
    /// Frees whatever closed timelines can give back now.
    pub(super) async fn settle_closed(&self, turn: &Held<'_>) -> Result<()> {
        for _ in 0..ROUNDS {
            self.tidy(turn, true).await?;
        }
        Ok(())
    }

    /// Checks a timeline that is not shown.
    pub(super) async fn check_closed(
        &self,
        other: &TimelineRecord,
        report: &mut CheckReport,
        progress: Progress<'_>,
    ) -> Result<()> {
        let timeline = self.shown();
        let Some(mut accepted) = other.manifest else { return Ok(()) };
        let mut loaded = load_manifest(&timeline.pool.store, other.id, accepted).await;
        for _ in 0..ROUNDS {
            // Whoever drops a hold replaces it meanwhile.
            let now = self.record().timeline(other.id).and_then(|entry| entry.manifest);
            let Some(now) = now.filter(|now| loaded.is_err() && *now != accepted) else { break };
            accepted = now;
            loaded = load_manifest(&timeline.pool.store, other.id, accepted).await;
        }
        let is_missing = loaded.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound);
        if is_missing {
            match self.held_manifest(other.id).await {
                // It has ended but for its entry in the record.
                Ok(found) if found.as_ref().is_none_or(|m| m.state == TimelineState::Tombstone) => return Ok(()),
                Err(error) if error.may_pass() => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        let Some(manifest) = report.note(format!("timeline {}", other.id), loaded)? else { return Ok(()) };
        match manifest.state {
            TimelineState::Tombstone => Ok(()),
            TimelineState::Held { swept: true } => self.check_swept(manifest, report, progress).await,
            // It is at its end: nothing of it is kept, and the next look at windows takes it away whole.
            TimelineState::Held { .. } if Kept::of(&manifest, self.listed(other.id).await?).boundaries.is_empty() => {
                Ok(())
            }
            _ => {
                let settled = self.settled(other.id, &manifest).await?;
                let subject = timeline.closed_subject(manifest, settled, report).await?;
                timeline.check_subject(&subject, report, progress).await
            }
        }
    }

    /// Whether all that waited in a held timeline was asked since what is kept has changed; and above which boundary nothing is kept.
    async fn settled(&self, id: TimelineId, manifest: &Manifest) -> Result<(bool, Ordinal)> {
        if !matches!(manifest.state, TimelineState::Held { .. }) {
            return Ok((false, ALL));
        }
        let kept = Kept::of(manifest, self.listed(id).await?);
        let newest = kept.newest().0;
        let known = self.closed.borrow().get(&id).and_then(|closed| closed.settled.clone());
        Ok((known == Some(kept), newest))
    }

    async fn check_swept(&self, manifest: Manifest, report: &mut CheckReport, progress: Progress<'_>) -> Result<()> {
        let (timeline, id) = (self.shown(), manifest.timeline);
        // The shown timeline makes checkpoints meanwhile; what is walked stays.
        let _pinned = Pinned::take(Rc::clone(&timeline)).await;
        let subject = timeline.closed_subject(manifest, (true, ALL), report).await?;
        if let Some(members) = self.family(id).await? {
            let family = Family::of(&members);
            let exact = self.closed.borrow().get(&id).is_some_and(|closed| closed.swept_at(&family));
            let reached = self.reach(&subject.manifest, &members).await;
            if let Some(reached) = report.note(format!("timeline {id}"), reached)? {
                compare(&subject, &reached, exact, report);
            }
        }
        timeline.check_objects(&subject, report, progress).await
    }
}

/// Compares what is reached with the table and the counts; where it is `exact`, nothing else may live.
fn compare(subject: &Subject, reached: &Reached, exact: bool, report: &mut CheckReport) {
    for (ordinal, entry) in &subject.table {
        let name = subject.segment(*ordinal, entry);
        report.counts_compared += 1;
        let blocks = 0..entry.live.blocks();
        let lost = blocks.clone().filter(|b| reached.has(*ordinal, *b) && !entry.live.is_live(*b)).count();
        let dead = blocks.filter(|b| !reached.has(*ordinal, *b) && entry.live.is_live(*b)).count();
        if lost > 0 {
            report.problem(name, format!("{lost} blocks are dead though a kept tree of the volume leads to them"));
        }
        if exact && dead > 0 {
            report.problem(name, format!("{dead} blocks are live though no kept tree of the volume leads to them"));
        }
    }
    let manifest = &subject.manifest;
    for ordinal in reached.blocks.keys().filter(|ordinal| !subject.table.contains_key(ordinal)) {
        let what = format!("a tree leads to segment {ordinal}, which the table does not have");
        report.problem(format!("timeline {}", manifest.timeline), what);
    }
    for map in &manifest.maps {
        report.counts_compared += 1;
        let found = reached.nodes_of(map.root, map.part);
        if found > map.live || (exact && found != map.live) {
            let what =
                format!("kept trees reach {found} nodes of part {} of root {}, not {}", map.part, map.root, map.live);
            report.problem(manifest.object_name(), what);
        }
    }
    for (root, part) in reached.nodes.keys() {
        if !manifest.maps.iter().any(|map| (map.root, map.part) == (*root, *part)) {
            report
                .problem(manifest.object_name(), format!("no object has part {part} of root {root}, which is reached"));
        }
    }
}
