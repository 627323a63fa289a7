// SPDX-License-Identifier: Apache-2.0
//! The rewind window: how much of the past is kept though no snapshot sees it.
//!
//! Every boundary from `from` on can be brought back. So a block is kept iff it died in or behind segment `from` (`death ≥ from`: every boundary between its
//! birth and its death that counts lies in the window), and a node iff one of the window's roots holds it. To bring a boundary back takes the last of these roots at
//! or before it, and the indexes of the segments between the two: the first root lies at or before `from`, and from there on every index is kept.
//!
//! Always holds:
//! - `from` never goes back: what died before it is gone. So a longer window grows with time, and begins where the present is.
//! - It only moves in a checkpoint, by the segments' times of sealing and by the room that the window takes; what it leaves behind is asked again in that
//!   same checkpoint, and the manifest that says so is the one that frees it.
//! - Kills that nothing but the window keeps stand in runs of their own, which are asked once, when the last of their deaths has left it. Their number is the room that the window takes.
//!
//! A crash leaves the window of the last accepted manifest.

use super::merge::NewRoot;
use super::{Point, runs};
use crate::timeline::{Data, Timeline, is_kept};
use std::collections::BTreeSet;
use varve_env::compute;
use varve_format::manifest::{Manifest, NodeRunRef, NodeWait, Rewind, RewindRoot, RunRef};
use varve_format::table::Kill;
use varve_types::branch::{Branch, reached, reached_if};
use varve_types::mutant::{Mutant, planted};
use varve_types::{BLOCK, Ordinal, RootNumber};

/// A root is listed once so much of the window has passed since the one before it …
const ROOTS_A_WINDOW: u64 = 64;
/// … or so many segments: whoever brings back a moment reads the indexes of as many, and keeps their entries in RAM.
const ROOT_SEGMENTS: u64 = 64;
/// Most roots. Beyond it the window is cut short.
const MAX_ROOTS: usize = 16_384;

/// Whether a run waits for nothing but the window, and has left it.
fn has_left(run: &RunRef, from: Ordinal) -> bool {
    run.window && run.last_death < from
}

/// The window that a checkpoint leaves, but for the root that it makes.
pub(super) struct Window {
    pub rewind: Rewind,
    /// Whether there is one at all.
    is_on: bool,
}

impl Window {
    /// Numbers of its roots, sorted.
    pub fn roots(&self) -> Vec<RootNumber> {
        let roots = self.rewind.roots.iter().filter(|_| !planted(Mutant::RewindDropsRoots));
        roots.map(|root| root.number).collect()
    }

    /// Whether a run is to be asked again, whatever else has gone.
    pub fn asks(&self, run: &RunRef) -> bool {
        run.window && (!self.is_on || run.last_death < self.rewind.from)
    }

    /// The same for a run of nodes.
    pub fn asks_nodes(&self, run: &NodeRunRef) -> bool {
        node_run_is_due(run.waits, self.rewind.roots.first().map(|root| root.number))
    }

    /// Whether it keeps a block that no boundary keeps.
    pub fn keeps(&self, kill: &Kill) -> bool {
        let is_inside = kill.death >= self.rewind.from && !planted(Mutant::RewindFreesAtOnce);
        self.is_on && is_inside
    }

    /// The window with the root that the checkpoint has made, if it is listed.
    pub fn with(&self, point: Point, head: Option<NewRoot>, now_ms: u64, spacing_ms: u64) -> Rewind {
        let mut rewind = self.rewind.clone();
        let Some(NewRoot { number, root, .. }) = head.filter(|_| self.is_on) else { return rewind };
        let Point { boundary, size, .. } = point;
        let is_far = rewind.roots.last().is_none_or(|last| {
            now_ms.saturating_sub(last.written_ms) >= spacing_ms
                || boundary.0.saturating_sub(last.boundary.0) >= ROOT_SEGMENTS
        });
        if rewind.roots.last().is_none_or(|last| last.boundary < boundary) && is_far {
            if rewind.roots.is_empty() {
                rewind.from = boundary;
            }
            rewind.roots.push(RewindRoot { boundary, number, root, size, written_ms: now_ms });
        }
        rewind
    }
}

/// What died since the last checkpoint and nothing but the window would keep.
#[derive(Default)]
pub(super) struct Dying {
    /// How many blocks.
    count: u64,
    /// The last death of as many of them as there is no room for, were the window theirs alone.
    too_old: Option<Ordinal>,
}

impl Timeline {
    /// Looks which of the gathered kills are for the window, beside the shard: there may be millions. Gives them back.
    pub(super) async fn dying(&self, kills: Vec<Kill>) -> (Vec<Kill>, Dying) {
        let (kept, allowed) = {
            let data = self.data.borrow();
            if data.settings.rewind_window_ms == 0 {
                return (kills, Dying::default());
            }
            (data.kept_boundaries(), usize::try_from(allowed_blocks(&data)).unwrap_or(usize::MAX))
        };
        let look = move || {
            let waits = kills.iter().filter(|kill| !is_kept(&kept, kill));
            let mut deaths: Vec<Ordinal> = waits.map(|kill| kill.death).collect();
            let surplus = deaths.len().saturating_sub(allowed);
            let too_old = surplus.checked_sub(1).map(|last| *deaths.select_nth_unstable(last).1);
            let dying = Dying { count: deaths.len() as u64, too_old };
            (kills, dying)
        };
        compute(&*self.context.env, look).await
    }

    /// The window of the checkpoint that will end at `point`.
    pub(super) fn next_window(&self, data: &mut Data, dying: &Dying, point: Point) -> Window {
        let manifest = &data.manifest;
        let settings = &data.settings;
        let ends = std::mem::take(&mut data.rewind_ends);
        if settings.rewind_window_ms == 0 {
            reached_if(!manifest.rewind.roots.is_empty(), Branch::RewindClosed);
            return Window { rewind: Rewind::default(), is_on: false };
        }
        let mut rewind = current_window(data);
        if ends || rewind.roots.is_empty() {
            // It begins at the root that is being made.
            let rewind = Rewind { from: point.boundary, roots: Vec::new() };
            return Window { rewind, is_on: true };
        }
        rewind.from = self.aged_boundary(data, rewind.from, point.boundary);
        rewind.from = from_by_room(data, dying, rewind.from).min(point.boundary);
        if let Some(last) = rewind.roots.len().checked_sub(MAX_ROOTS) {
            rewind.from = rewind.from.max(rewind.roots[last].boundary);
        }
        rewind.roots.drain(..first_of(&rewind, rewind.from));
        reached_if(rewind.from > data.manifest.rewind.from, Branch::RewindMoved);
        Window { rewind, is_on: true }
    }

    /// The last boundary that is as old as the window is long.
    fn aged_boundary(&self, data: &Data, from: Ordinal, end: Ordinal) -> Ordinal {
        let Some(cutoff) = self.context.now_ms().checked_sub(data.settings.rewind_window_ms) else { return from };
        let old = data.table.range(from..end).take_while(|(_, entry)| entry.sealed_ms <= cutoff);
        old.last().map_or(from, |(ordinal, _)| ordinal.next())
    }

    /// Whether something waits for the window alone that has left it by now.
    pub(super) fn is_window_over(&self, data: &Data) -> bool {
        let Manifest { rewind, kills, node_kills, boundary, .. } = &data.manifest;
        if data.settings.rewind_window_ms == 0 || rewind.roots.is_empty() {
            return !rewind.roots.is_empty();
        }
        let from = self.aged_boundary(data, rewind.from, *boundary);
        let first = first_root(rewind, from);
        kills.iter().any(|run| has_left(run, from))
            || node_kills.iter().any(|run| run.waits != NodeWait::Passing && node_run_is_due(run.waits, first))
    }

    /// Milliseconds between two roots of the window.
    pub(super) fn root_spacing_ms(&self) -> u64 {
        self.data.borrow().settings.rewind_window_ms / ROOTS_A_WINDOW
    }
}

/// What can be brought back now. Where the window was just turned on it begins at the last checkpoint, as everything that died before is gone; or, in a clone that
/// has not merged what it inherited, with its first root: another clone can begin with the segments of one timeline only.
pub(crate) fn current_window(data: &Data) -> Rewind {
    let Manifest { rewind, inherited, boundary, .. } = &data.manifest;
    if data.settings.rewind_window_ms == 0 {
        return Rewind::default();
    }
    if rewind.roots.is_empty() && inherited.is_empty() {
        return Rewind { from: *boundary, roots: vec![root_of(&data.manifest)] };
    }
    rewind.clone()
}

/// The place of the last root at or before a boundary.
fn first_of(rewind: &Rewind, from: Ordinal) -> usize {
    rewind.roots.partition_point(|root| root.boundary <= from).saturating_sub(1)
}

/// The number of that root.
fn first_root(rewind: &Rewind, from: Ordinal) -> Option<RootNumber> {
    rewind.roots.get(first_of(rewind, from)).map(|root| root.number)
}

/// The root of an accepted manifest, as the window names it.
fn root_of(manifest: &Manifest) -> RewindRoot {
    let Manifest { boundary, root_number: number, root, size, written_ms, .. } = *manifest;
    RewindRoot { boundary, number, root, size, written_ms }
}

/// Blocks that the window may keep.
fn allowed_blocks(data: &Data) -> u64 {
    data.counted_size / 100 * data.settings.rewind_space / BLOCK
}

/// The boundary from which on the window takes no more room than it may: the oldest runs go first, then the oldest of the new deaths.
fn from_by_room(data: &Data, dying: &Dying, from: Ordinal) -> Ordinal {
    let allowed = allowed_blocks(data);
    let mut runs: Vec<&RunRef> = data.manifest.kills.iter().filter(|run| run.window && !has_left(run, from)).collect();
    runs.sort_by_key(|run| run.last_death);
    let mut taken = dying.count + runs.iter().map(|run| run.count).sum::<u64>();
    let mut first = from;
    for run in runs {
        if taken <= allowed {
            return first;
        }
        reached(Branch::RewindFull);
        taken -= run.count;
        first = first.max(run.last_death.next());
    }
    reached_if(dying.too_old.is_some(), Branch::RewindFull);
    // As many of the latest as there is room for.
    dying.too_old.map_or(first, |death| first.max(death.next()))
}

/// Runs by their places: number of the table object, and index there.
pub(super) type Runs = BTreeSet<(u64, u32)>;

/// The small runs, of kills and of node kills, that are to become one, where more than `most` wait for the window: the oldest.
pub(super) fn too_many(kills: &[RunRef], nodes: &[NodeRunRef], most: usize) -> (Runs, Runs) {
    let small = |count: u64| count < runs::RUN_KILLS as u64 / 4;
    let kills = kills.iter().filter(|run| run.window && small(run.count));
    let kills = kills.map(|run| (run.last_death.0, (run.object, run.index))).collect();
    let nodes = nodes.iter().filter(|run| small(run.count)).filter_map(|run| match run.waits {
        NodeWait::Window { last_death } => Some((u64::from(last_death.0), (run.object, run.index))),
        NodeWait::Kept | NodeWait::Passing => None,
    });
    (oldest(kills, most), oldest(nodes.collect(), most))
}

fn oldest(mut runs: Vec<(u64, (u64, u32))>, most: usize) -> Runs {
    if runs.len() <= most {
        return Runs::new();
    }
    reached(Branch::RewindRunsJoined);
    runs.sort_unstable();
    runs.into_iter().take(most / 2 + 1).map(|(_, place)| place).collect()
}

/// Whether a run of node kills that waits for the window is to be asked again: nothing of it is held by a root of the window any more.
fn node_run_is_due(waits: NodeWait, first_root: Option<RootNumber>) -> bool {
    match waits {
        NodeWait::Window { last_death } => first_root.is_none_or(|first| last_death <= first),
        NodeWait::Kept => false,
        NodeWait::Passing => true,
    }
}
