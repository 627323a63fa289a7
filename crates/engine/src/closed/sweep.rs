// SPDX-License-Identifier: Apache-2.0
//! The sweep of a timeline that is held by timelines of its own volume: what no kept tree of the volume reaches is
//! freed.
//!
//! It is only made where the rule of kept boundaries says too little: where a boundary is kept for the sake of a
//! rollback alone. From then on the timeline is *swept*: what lives of it is what the last walk reached, its kills
//! are dropped, and the holds of the volume's own timelines name no root of it any more. What other volumes' clones
//! hold are roots like a snapshot's.
//!
//! Always holds:
//! - What is freed, no kept root, hold or overlay reaches, of no accepted manifest and of none that is the one before:
//!   after the walk a manifest more is accepted where the shown timeline had none since, and the walk waits until
//!   closed ones have theirs, and until what was inherited as entries is merged.
//! - While the walk goes on the nodes under its roots stay: their numbers are pinned in the timeline that is shown.
//! - The walk may be given up anywhere, and is begun anew: it changes nothing. What it found becomes one manifest.
//!
//! The walk is in slices, without any turn, and not more often than pays off.

use super::is_swept;
use super::pages::{Pages, Waiting};
use super::reach::{Member, Reached};
use super::trim::{become_held, put_parts_into};
use crate::lineage::map_name;
use crate::signal::breathe;
use crate::timeline::Timeline;
use crate::volume::Volume;
use crate::{EngineError, Result};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;
use varve_coord::TimelineState as RecordState;
use varve_format::manifest::{Hold, Manifest, TimelineState};
use varve_format::{NodePointer, ObjectKind};
use varve_types::branch::{Branch, reached_if};
use varve_types::mutant::{Mutant, planted};
use varve_types::{ErrorKind, Ordinal, RootNumber, TimelineId};

/// Between two walks for the same timeline, at least; and how many times as long as the walk took.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
const SWEEP_SHARE: u32 = 16;
/// How often what was walked is written anew because the manifest was changed meanwhile.
const MAX_TRIES: u32 = 4;
/// Segments looked at between two looks at other tasks.
const SLICE: usize = 16;

/// The kept roots that a walk begins at. While they are the same it would find the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Family(Vec<(TimelineId, Vec<NodePointer>)>);

impl Family {
    pub(crate) fn of(members: &[Member]) -> Self {
        Self(members.iter().map(|member| (member.manifest.timeline, member.roots.clone())).collect())
    }
}

/// Keeps the nodes of some roots while somebody walks them. Who has the turn to tidy the volume has one at most.
pub(crate) struct Pinned(Rc<Timeline>);

impl Pinned {
    /// Waits for the checkpoint that is under way: it has decided what goes, perhaps a root that is still named, and asks for no pins any more.
    pub(crate) async fn take(timeline: Rc<Timeline>) -> Self {
        {
            let _still = timeline.checkpoints.take().await;
            let mut data = timeline.data.borrow_mut();
            let snapshots = data.snapshots.iter().filter_map(|s| s.root.map(|(number, _)| number));
            let holds = data.manifest.holds.iter().map(|hold| hold.base_number);
            let past = data.manifest.rewind.roots.iter().map(|root| root.number);
            let pins = snapshots.chain(holds).chain(past).chain([data.manifest.root_number]);
            let pins: Vec<RootNumber> = pins.collect();
            data.pins = pins;
        }
        Self(timeline)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let mut data = self.0.data.borrow_mut();
        data.pins.clear();
        data.reconsider = true;
    }
}

impl Volume {
    /// Whether a hold is that of a timeline of this volume.
    fn is_own(&self, hold: &Hold) -> bool {
        self.record.borrow().timeline(hold.clone).is_some()
    }

    /// Whether the rule of kept boundaries keeps more of a held timeline than is reached, or was given up for it.
    fn wants_sweep(&self, manifest: &Manifest) -> bool {
        let others = manifest.holds.iter().filter(|hold| !self.is_own(hold)).map(|hold| hold.boundary);
        let kept: BTreeSet<Ordinal> = manifest.snapshots.iter().map(|s| s.boundary).chain(others).collect();
        let alone = |hold: &Hold| self.is_own(hold) && !kept.contains(&hold.boundary);
        is_swept(manifest) || manifest.holds.iter().any(alone)
    }

    /// The timelines whose trees may lead to this one, and their kept roots; `None` while a walk could not tell all.
    pub(crate) async fn family(&self, id: TimelineId) -> Result<Option<Vec<Member>>> {
        let record = self.record();
        let mut members = Vec::new();
        for timeline in &record.timelines {
            let shown = self.shown();
            if timeline.id == shown.id {
                let data = shown.data.borrow();
                let manifest = Rc::new(data.manifest.clone());
                let fresh = data.snapshots.iter().filter_map(|s| s.root.map(|(_, root)| root));
                let mut roots = kept_roots(&manifest, true);
                roots.extend(fresh);
                members.push(Member { manifest, roots });
                continue;
            }
            let Some(manifest) = self.held_manifest(timeline.id).await? else { continue };
            if manifest.state == TimelineState::Tombstone {
                continue;
            }
            let fresh_dead = |dead: &varve_format::manifest::DeadObject| {
                dead.since >= manifest.number && dead.name.kind != ObjectKind::Manifest
            };
            if manifest.dead.iter().any(fresh_dead) {
                return Ok(None);
            }
            let is_held = timeline.state == RecordState::Held;
            let mut roots = kept_roots(&manifest, !is_held);
            if timeline.id == id {
                let others: Vec<Hold> = manifest.holds.iter().filter(|hold| !self.is_own(hold)).copied().collect();
                if others.iter().any(|hold| hold.base_boundary < hold.boundary) {
                    return Ok(None);
                }
                let snapshots = manifest.snapshots.iter().filter_map(|s| s.root.map(|(_, root)| root));
                let snapshots = snapshots.filter(|_| !planted(Mutant::SweepIgnoresSnapshots));
                let holds = others.iter().map(|hold| hold.base_root);
                let holds = holds.filter(|_| !planted(Mutant::SweepIgnoresHolds));
                roots = snapshots.chain(holds).collect();
            }
            members.push(Member { manifest, roots });
        }
        keep_family(&mut members, id);
        if members.iter().any(|m| m.manifest.timeline != id && !m.manifest.inherited.is_empty()) {
            return Ok(None);
        }
        for member in &mut members {
            member.roots.sort_unstable();
            member.roots.dedup();
        }
        Ok(Some(members))
    }

    /// Walks and frees, if something changed since the last time, and if that is long enough ago or `all` is to be freed.
    pub(super) async fn sweep_if_due(&self, id: TimelineId, all: bool) -> Result<()> {
        let manifest = self.closed_manifest(id).await?;
        if !matches!(manifest.state, TimelineState::Held { .. }) || !self.wants_sweep(&manifest) {
            return Ok(());
        }
        let Some(members) = self.family(id).await? else { return Ok(()) };
        let (family, begun) = (Family::of(&members), self.context.env.now());
        let is_done = |closed: &super::Closed| {
            let swept = closed.swept.as_ref();
            swept.is_some_and(|(last, next)| *last == family || (!all && begun < *next))
        };
        if self.closed.borrow().get(&id).is_some_and(is_done) {
            return Ok(());
        }
        let shown = self.shown();
        let pinned = Pinned::take(Rc::clone(&shown)).await;
        let number = shown.data.borrow().manifest.number;
        // What of these is no member has ended, or leads here no more.
        let looked_at: BTreeSet<TimelineId> = self.record().timelines.iter().map(|timeline| timeline.id).collect();
        // Once more, as what was looked at before it was pinned may be on its way out.
        let Some(members) = self.family(id).await? else { return Ok(()) };
        if self.shown().id != shown.id || shown.data.borrow().manifest.number != number {
            return Err(EngineError::new(ErrorKind::Busy, format!("volume {} is changed all the time", self.name())));
        }
        let family = Family::of(&members);
        let reached = self.reach(&manifest, &members).await?;
        drop(pinned);
        {
            let _turn = self.changes.take().await;
            let is_newest = shown.data.borrow().manifest.number == number;
            if self.shown().id == shown.id && is_newest && !planted(Mutant::SweepWithoutManifest) {
                // Else the manifest before the last may reach more than was walked.
                self.change(|_, _| {}, |_| Ok(())).await?;
            }
        }
        let mut tries = 0;
        while !self.apply_sweep(id, &looked_at, &reached).await? {
            tries += 1;
            if tries >= MAX_TRIES || !self.is_closed(id) {
                return Ok(());
            }
        }
        let now = self.context.env.now();
        if let Some(closed) = self.closed.borrow_mut().get_mut(&id) {
            closed.swept = Some((family, now + SWEEP_EVERY.max((now - begun) * SWEEP_SHARE)));
        }
        Ok(())
    }

    /// Frees what was not reached by the trees of the timelines that were looked at. Tells whether it could: else somebody has changed the timeline meanwhile.
    async fn apply_sweep(&self, id: TimelineId, looked_at: &BTreeSet<TimelineId>, reached: &Reached) -> Result<bool> {
        let manifest = self.closed_manifest(id).await?;
        let mut pages = Pages::load(&self.pool.store, &manifest).await?;
        let all: Vec<(Ordinal, u32)> = pages.table.iter().map(|(o, entry)| (o, entry.live.blocks())).collect();
        for slice in all.chunks(SLICE) {
            for (ordinal, blocks) in slice {
                for block in (0..*blocks).filter(|block| !reached.has(*ordinal, *block)) {
                    pages.table.clear(*ordinal, block as u16)?;
                }
            }
            breathe().await;
        }
        pages.table.drop_dead(Ordinal(u64::MAX), |_| false);
        let mut dead: Vec<_> = pages.table.take_left().into_iter().collect();
        let mut maps = manifest.maps.clone();
        for map in &mut maps {
            map.live = map.live.min(reached.nodes_of(map.root, map.part));
        }
        let (maps, gone): (Vec<_>, Vec<_>) = maps.into_iter().partition(|map| map.live > 0);
        dead.extend(gone.iter().map(|map| map_name(id, map)));
        let waits = !(manifest.kills.is_empty() && manifest.node_kills.is_empty() && manifest.reclaim.is_empty());
        if dead.is_empty() && !pages.is_dirty() && maps == manifest.maps && !waits && is_swept(&manifest) {
            return Ok(true);
        }
        let parts = self.put_parts(&manifest, &pages, Some(Waiting::default())).await?;
        let edit = |m: &mut Manifest| {
            become_held(m, TimelineState::Held { swept: true });
            for hold in m.holds.iter_mut().filter(|hold| looked_at.contains(&hold.clone)) {
                // Its clone's own trees say what it needs, if it is there still: what is named here may be gone.
                hold.base_number = RootNumber(0);
                hold.base_root = NodePointer::absent();
                hold.base_boundary = hold.boundary;
            }
            m.maps.clone_from(&maps);
            m.reclaim.clear();
            put_parts_into(m, &parts, &dead);
        };
        self.edit_held(&manifest, edit).await.inspect(|done| reached_if(*done, Branch::HistorySwept))
    }
}

/// Leaves who descends from a timeline; and, without roots, who is between such a one and the timeline and descends from it no more: a flatten has taken its own
/// trees out of the family, and others still lead through its nodes.
fn keep_family(members: &mut Vec<Member>, id: TimelineId) {
    let descends = |member: &Member| ancestors(member).any(|ancestor| ancestor == id);
    let above: BTreeSet<TimelineId> =
        members.iter().filter(|member| member.manifest.timeline == id).flat_map(ancestors).collect();
    let below: BTreeSet<TimelineId> = members.iter().filter(|member| descends(member)).flat_map(ancestors).collect();
    members.retain_mut(|member| {
        if descends(member) {
            return true;
        }
        member.roots.clear();
        below.contains(&member.manifest.timeline) && !above.contains(&member.manifest.timeline)
    });
}

/// A timeline itself and those that it came from.
fn ancestors(member: &Member) -> impl Iterator<Item = TimelineId> {
    member.manifest.ancestors.iter().map(|ancestor| ancestor.timeline)
}

/// Roots that a manifest keeps, also for its rewind window, the head's too where it can be shown.
fn kept_roots(manifest: &Manifest, head: bool) -> Vec<NodePointer> {
    let snapshots = manifest.snapshots.iter().filter_map(|s| s.root.map(|(_, root)| root));
    let holds = manifest.holds.iter().map(|hold| hold.base_root);
    let past = manifest.rewind.roots.iter().map(|root| root.root);
    let past = past.filter(|_| !planted(Mutant::SweepIgnoresRewind));
    snapshots.chain(holds).chain(past).chain(head.then_some(manifest.root)).collect()
}
