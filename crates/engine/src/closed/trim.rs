// SPDX-License-Identifier: Apache-2.0
//! What a closed timeline gives back once its window is over: all that its newest kept boundary does not see.
//!
//! What keeps something are the snapshots that a timeline lists which is shown or inside its window, and holds. With
//! the newest kept boundary B, segments at or above B go whole, and so do map objects of roots above the newest kept
//! root: no walk is needed. Kills are asked again below them. One with a death at or above B says nothing any more:
//! its block is seen by B itself, and should B go, then either the block lies above the next boundary or that one
//! sees it too. The same is true of nodes and roots. But where B is that of a past moment which lies inside what one checkpoint has merged, a death
//! is only known to that checkpoint: then the kills of it wait until B goes.
//!
//! All of it is one manifest: a crash before it is accepted leaves everything as it was.

use super::pages::{Pages, Parts, Waiting, is_index_held, load_waiting};
use super::{Histories, is_swept};
use crate::Result;
use crate::lineage::map_name;
use crate::signal::breathe;
use crate::timeline::{is_kept, node_is_kept};
use std::collections::BTreeSet;
use std::rc::Rc;
use varve_coord::{Deleted, TimelineState as RecordState};
use varve_format::NodePointer;
use varve_format::manifest::{Birth, DeadObject, Hold, Manifest, MapObject, Rewind, TimelineState};
use varve_format::table::{Kill, NodeKill};
use varve_types::branch::{Branch, reached_if};
use varve_types::mutant::{Mutant, planted};
use varve_types::{Ordinal, RootNumber, SnapshotId, TimelineId};

/// Kills asked between two looks at other tasks.
const SLICE: usize = 4096;

/// What keeps something of a closed timeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Snapshots that somebody lists or that a hold names.
    pub snapshots: Vec<SnapshotId>,
    /// Boundaries of these and of holds, sorted.
    pub boundaries: Vec<Ordinal>,
    /// Roots of these and of holds, sorted.
    pub roots: Vec<RootNumber>,
}

impl Kept {
    /// What is kept of a timeline of which snapshots up to boundary `listed` are listed.
    pub fn of(manifest: &Manifest, listed: Option<Ordinal>) -> Self {
        let holds = &manifest.holds;
        let stays = |s: &&varve_format::manifest::SnapshotEntry| {
            // One without a root was never merged, and a timeline is merged before it is closed.
            listed.is_some_and(|listed| s.boundary <= listed) && !s.hidden
                || holds.iter().any(|h| h.boundary == s.boundary)
        };
        let snapshots: Vec<_> = manifest.snapshots.iter().filter(stays).collect();
        let mut boundaries: Vec<_> =
            snapshots.iter().map(|s| s.boundary).chain(holds.iter().map(|h| h.boundary)).collect();
        boundaries.sort_unstable();
        boundaries.dedup();
        let own = snapshots.iter().filter_map(|s| s.root.map(|(number, _)| number));
        let mut roots: Vec<_> = own.chain(holds.iter().map(|h| h.base_number)).collect();
        roots.sort_unstable();
        roots.dedup();
        Self { snapshots: snapshots.iter().map(|s| s.id).collect(), boundaries, roots }
    }

    /// Boundary and root above which nothing is kept.
    pub fn newest(&self) -> (Ordinal, RootNumber) {
        (self.boundaries.last().copied().unwrap_or_default(), self.roots.last().copied().unwrap_or_default())
    }
}

impl Histories {
    /// Up to which boundary of a timeline a snapshot is listed by one that is shown or inside its window.
    pub(crate) async fn listed(&self, id: TimelineId) -> Result<Option<Ordinal>> {
        let (record, now) = (self.record(), self.context.now_ms());
        let mut listed = None;
        // Nobody lists anything of a volume that is gone.
        let Some(shown) = self.open_timeline() else { return Ok(listed) };
        if planted(Mutant::TrimIgnoresListings) {
            return Ok(listed);
        }
        for timeline in &record.timelines {
            let mut birth: Option<Birth> = match timeline.state {
                _ if timeline.id == record.shown => shown.data.borrow().manifest.birth,
                RecordState::Hidden { until_ms } if until_ms > now => self.closed_manifest(timeline.id).await?.birth,
                _ => continue,
            };
            // A timeline has fewer ancestors than there are timelines.
            while let Some(born) = birth.filter(|born| record.timeline(born.origin).is_some()) {
                if born.origin == id {
                    listed = listed.max(Some(born.boundary));
                }
                birth = self.closed_birth(born.origin).await?;
            }
        }
        Ok(listed)
    }

    /// Frees what nothing keeps of a timeline whose window is over; tells whether nothing is kept at all.
    pub(super) async fn trim(&self, id: TimelineId) -> Result<bool> {
        let Some(manifest) = self.held_manifest(id).await? else { return Ok(true) };
        if manifest.state == TimelineState::Tombstone {
            return Ok(true);
        }
        let kept = Kept::of(&manifest, self.listed(id).await?);
        if kept.boundaries.is_empty() && !self.is_gone() {
            return Ok(true);
        }
        let is_settled = |closed: &super::Closed| closed.settled.as_ref() == Some(&kept);
        if self.closed.borrow().get(&id).is_some_and(is_settled) {
            return Ok(false);
        }
        let done = if is_swept(&manifest) {
            kept.snapshots.len() == manifest.snapshots.len()
                || self.edit_held(&manifest, |m| m.snapshots.retain(|s| kept.snapshots.contains(&s.id))).await?
        } else {
            self.trim_by_rule(id, &manifest, &kept).await?
        };
        if let Some(closed) = self.closed.borrow_mut().get_mut(&id).filter(|_| done) {
            closed.settled = Some(kept);
        }
        Ok(false)
    }

    /// Frees by the rule. Tells whether it could: else somebody has changed the timeline meanwhile, and it is tried again.
    async fn trim_by_rule(&self, id: TimelineId, manifest: &Rc<Manifest>, kept: &Kept) -> Result<bool> {
        let (boundary, root) = kept.newest();
        let mut pages = Pages::load(&self.pool.store, manifest).await?;
        pages.table.drop_from(boundary);
        let Waiting { kills, nodes } = load_waiting(&self.context, &self.pool.store, manifest).await?;
        let is_inside = manifest.holds.iter().any(Hold::may_be_inside);
        let mut kills = free_blocks(&mut pages, kills, &kept.boundaries, boundary, is_inside).await?;
        let (mut nodes, maps) = free_nodes(nodes, &manifest.maps, &kept.roots, root).await;
        kills.sort_unstable();
        nodes.sort_unstable();
        pages.table.drop_dead(boundary, |o| is_index_held(manifest, o));
        self.note_totals(id, pages.table.totals());
        let mut dead: Vec<_> = pages.table.take_left().into_iter().collect();
        let (maps, gone): (Vec<_>, Vec<_>) = maps.into_iter().partition(|map| map.live > 0);
        dead.extend(gone.iter().map(|map| map_name(id, map)));
        let waiting = Waiting { kills, nodes };
        let runs = waiting.is_less_than(manifest).then_some(waiting);
        // An import has to find it as that of a deleted volume.
        let is_shown = self.record.borrow().shown == id;
        let state = if is_shown {
            TimelineState::Hidden { until_ms: Deleted::OVER }
        } else {
            TimelineState::Held { swept: false }
        };
        let same = dead.is_empty()
            && runs.is_none()
            && !pages.is_dirty()
            && maps == manifest.maps
            && kept.snapshots.len() == manifest.snapshots.len()
            && manifest.state == state
            && manifest.root.is_absent();
        if same {
            return Ok(true);
        }
        let parts = self.put_parts(manifest, &pages, runs).await?;
        let edit = |m: &mut Manifest| {
            become_held(m, state);
            m.snapshots.retain(|s| kept.snapshots.contains(&s.id));
            m.maps.clone_from(&maps);
            m.reclaim.clear();
            put_parts_into(m, &parts, &dead);
        };
        self.edit_held(manifest, edit).await.inspect(|done| reached_if(*done, Branch::HistoryTrimmed))
    }
}

/// The head of a held timeline is no more.
pub(super) fn become_held(manifest: &mut Manifest, state: TimelineState) {
    manifest.state = state;
    manifest.root = NodePointer::absent();
    // Its window is over, and with it whatever only that has kept.
    manifest.rewind = Rewind::default();
}

/// Puts what was written into a manifest, and lists what it does not need any more.
pub(crate) fn put_parts_into(m: &mut Manifest, parts: &Parts, dead: &[varve_format::ObjectName]) {
    m.table.clone_from(&parts.pages);
    m.kills.clone_from(&parts.kills);
    m.node_kills.clone_from(&parts.node_kills);
    m.tables.clone_from(&parts.objects);
    let since = m.number;
    m.dead.extend(dead.iter().chain(&parts.dead).map(|name| DeadObject { name: *name, since }));
}

/// Frees blocks below `newest` that no boundary keeps; gives the kills that still wait, with those behind it where `late` is.
async fn free_blocks(
    pages: &mut Pages,
    kills: Vec<Kill>,
    kept: &[Ordinal],
    newest: Ordinal,
    late: bool,
) -> Result<Vec<Kill>> {
    let mut waiting = Vec::new();
    for slice in kills.chunks(SLICE) {
        for kill in slice.iter().filter(|kill| kill.ordinal < newest && (kill.death < newest || late)) {
            if is_kept(kept, kill) || planted(Mutant::TrimForgetsKills) {
                waiting.push(*kill);
            } else {
                pages.table.clear(kill.ordinal, kill.block)?;
            }
        }
        breathe().await;
    }
    Ok(waiting)
}

/// The same for nodes, with `newest` the newest kept root; and the map objects with what lives in them now.
async fn free_nodes(
    nodes: Vec<NodeKill>,
    maps: &[MapObject],
    kept: &[RootNumber],
    newest: RootNumber,
) -> (Vec<NodeKill>, Vec<MapObject>) {
    let mut maps: std::collections::BTreeMap<_, _> = maps.iter().map(|map| ((map.root, map.part), *map)).collect();
    let (mut waiting, mut seen) = (Vec::new(), BTreeSet::new());
    for slice in nodes.chunks(SLICE) {
        for kill in slice.iter().filter(|kill| kill.node.root() <= newest && kill.death <= newest) {
            if node_is_kept(kept, kill) {
                waiting.push(*kill);
            } else if seen.insert(kill.node)
                && let Some(map) = maps.get_mut(&(kill.node.root(), kill.node.part()))
            {
                map.live = map.live.saturating_sub(1);
            }
        }
        breathe().await;
    }
    for map in maps.values_mut().filter(|map| map.root > newest) {
        map.live = 0;
    }
    (waiting, maps.into_values().collect())
}
