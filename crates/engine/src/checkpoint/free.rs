// SPDX-License-Identifier: Apache-2.0
//! What a checkpoint frees, and what waits: kills against kept boundaries, node kills against kept roots, objects
//! without anything live.
//!
//! A kill that some boundary keeps goes into a run in the store; runs are asked again when a snapshot or a hold has
//! gone: a snapshot of tens of TiB may keep billions, so some millions at a checkpoint, and the others at the next ones. Until then they are kept, which does
//! no harm. Every kill is asked, and freed, once: counts are changed in the same manifest that drops it from its run.

use super::Point;
use super::merge::Gathered;
use super::runs::{KillRun, NodeKillRun, kill_runs, node_kill_runs};
use super::window::{Window, too_many};
use crate::context::damaged;
use crate::lineage::{load_record, map_name, table_name, table_object};
use crate::signal::breathe;
use crate::timeline::{Data, Timeline, is_kept, node_is_kept};
use crate::{EngineError, Result};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use varve_env::compute;
use varve_format::manifest::{MapObject, NodeRunRef, NodeWait, PageRef, RunRef, TableObject};
use varve_format::page::PageBuilder;
use varve_format::table::{Kill, NodeKill, decode_kills, decode_node_kills};
use varve_format::{ObjectKind, ObjectName};
use varve_types::branch::{Branch, reached_if};
use varve_types::mutant::{Mutant, planted};
use varve_types::{ErrorKind, Ordinal, RootNumber};

/// Kills asked between two looks at other tasks.
const SLICE: usize = 4096;

/// What is decided of kills.
pub(super) struct Freed {
    /// New runs.
    pub runs: Vec<KillRun>,
    /// Runs that stay as they are.
    pub kept_runs: Vec<RunRef>,
    /// New runs of node kills.
    pub node_runs: Vec<NodeKillRun>,
    /// Runs of node kills that stay as they are.
    pub kept_node_runs: Vec<NodeRunRef>,
    pub maps: Vec<MapObject>,
    pub dead: Vec<ObjectName>,
    /// The rewind window from now on.
    pub window: Window,
}

/// What was put for the table.
pub(super) struct Tables {
    pub pages: Vec<PageRef>,
    pub runs: Vec<RunRef>,
    pub node_runs: Vec<NodeRunRef>,
    pub objects: Vec<TableObject>,
    pub dead: Vec<ObjectName>,
    pub places: Vec<(u64, Option<PageRef>)>,
}

/// Roots that stay for longer than until the next checkpoint: of snapshots, also of those that have just got
/// theirs, of holds, and of walks that somebody is on. Sorted.
fn kept_roots(data: &Data, gathered: &Gathered) -> Vec<RootNumber> {
    let snapshots = data.snapshots.iter().filter_map(|s| s.root.map(|(number, _)| number));
    let holds = data.manifest.holds.iter().map(|h| h.base_number);
    let fresh = gathered.roots.iter().filter(|root| data.snapshots.iter().any(|s| root.snapshot == Some(s.id)));
    let pins = data.pins.iter().copied();
    let mut kept: Vec<_> = snapshots.chain(holds).chain(pins).chain(fresh.map(|root| root.number)).collect();
    kept.sort_unstable();
    kept
}

/// Takes the runs that are asked again now, for snapshots or holds that have gone: some of those that were not asked since. With `all` that is every run
/// that waits for any.
fn next_to_ask(data: &mut Data, all: bool, most: u64) -> BTreeSet<(u64, u32)> {
    let place = |run: &RunRef| (run.object, run.index);
    let waiting = data.manifest.kills.iter().filter(|run| !run.window);
    if all {
        data.to_ask = waiting.clone().map(place).collect();
    }
    let (mut again, mut kills) = (BTreeSet::new(), 0);
    for run in waiting.filter(|run| data.to_ask.contains(&place(run))) {
        if kills > 0 && kills + run.count > most {
            break;
        }
        kills += run.count;
        again.insert(place(run));
    }
    // What is not there any more was asked for another reason.
    let left: BTreeSet<_> = data.manifest.kills.iter().map(place).filter(|run| !again.contains(run)).collect();
    data.to_ask.retain(|run| left.contains(run) && !planted(Mutant::AskOnlyFirst));
    reached_if(!data.to_ask.is_empty(), Branch::KillsAskedLater);
    again
}

impl Timeline {
    /// Decides what of the gathered kills, and of those that waited, is free.
    pub(super) async fn free(self: &Rc<Self>, gathered: &mut Gathered, point: Point) -> Result<Freed> {
        let (mut kills, dying) = self.dying(std::mem::take(&mut gathered.kills)).await;
        let (window, reconsider, again, runs, node_runs) = {
            let mut data = self.data.borrow_mut();
            let window = self.next_window(&mut data, &dying, point);
            let reconsider = std::mem::take(&mut data.reconsider);
            let again = next_to_ask(&mut data, reconsider, self.context.limits.ask_kills);
            (window, reconsider, again, data.manifest.kills.clone(), data.manifest.node_kills.clone())
        };
        let mut nodes = std::mem::take(&mut gathered.node_kills);
        let (joined, joined_nodes) = too_many(&runs, &node_runs, self.context.limits.rewind_runs);
        let (mut kept_runs, mut kept_node_runs) = (Vec::new(), Vec::new());
        let asked_again = !again.is_empty();
        reached_if(asked_again, Branch::KillsReconsidered);
        for run in runs {
            let is_asked = window.asks(&run) || again.contains(&(run.object, run.index));
            if !is_asked && !joined.contains(&(run.object, run.index)) {
                kept_runs.push(run);
                continue;
            }
            let bytes = self.persist("a get", async || self.load_run(run.object, run.index).await).await?;
            // Of a full one that takes tens of milliseconds: no work for a shard.
            let decoded = compute(&*self.context.env, move || decode_kills(&bytes)).await;
            kills.extend(decoded.map_err(damaged("a run of kills"))?);
            breathe().await;
            if planted(Mutant::KeepAskedRuns) {
                kept_runs.push(run);
            }
        }
        for run in node_runs {
            let is_asked = window.asks_nodes(&run) || (reconsider && run.waits == NodeWait::Kept);
            if !is_asked && !joined_nodes.contains(&(run.object, run.index)) {
                kept_node_runs.push(run);
                continue;
            }
            let bytes = self.persist("a get", async || self.load_run(run.object, run.index).await).await?;
            nodes.extend(decode_node_kills(&bytes).map_err(damaged("a run of node kills"))?);
        }
        let (mut waiting, mut past) = self.free_blocks(kills, &window).await?;
        reached_if(!waiting.is_empty(), Branch::KillsKept);
        reached_if(!past.is_empty(), Branch::RewindKillsKept);
        reached_if(asked_again && waiting.is_empty(), Branch::RunsDropped);
        let sorted = move || {
            waiting.sort_unstable();
            past.sort_unstable();
            let mut runs = kill_runs(&waiting, false);
            runs.append(&mut kill_runs(&past, true));
            runs
        };
        let runs = compute(&*self.context.env, sorted).await;
        let (node_runs, maps) = self.free_nodes(nodes, gathered, &window).await;
        let (maps, dead): (Vec<_>, Vec<_>) = maps.into_iter().partition(|map| map.live > 0);
        let dead = dead.iter().map(|map| map_name(self.id, map));
        Ok(Freed { runs, kept_runs, node_runs, kept_node_runs, maps, dead: dead.collect(), window })
    }

    async fn load_run(&self, object: u64, index: u32) -> Result<Bytes> {
        let name = table_object(&self.data.borrow().manifest, object)?;
        load_record(&self.pool.store, &name, index).await
    }

    /// Frees blocks that nothing keeps, in slices; gives those that a boundary keeps, and those that only the rewind window does. Boundaries that
    /// come meanwhile lie behind every death, but for moments that are brought back, which wait until no checkpoint runs.
    async fn free_blocks(&self, kills: Vec<Kill>, window: &Window) -> Result<(Vec<Kill>, Vec<Kill>)> {
        let kept = self.data.borrow().kept_boundaries();
        let (mut waiting, mut past) = (Vec::new(), Vec::new());
        for slice in kills.chunks(SLICE) {
            {
                let mut data = self.data.borrow_mut();
                for kill in slice {
                    if is_kept(&kept, kill) {
                        waiting.push(*kill);
                    } else if window.keeps(kill) {
                        past.push(*kill);
                    } else {
                        data.table.clear(kill.ordinal, kill.block)?;
                    }
                }
            }
            breathe().await;
        }
        Ok((waiting, past))
    }

    /// Frees nodes that no root keeps, in slices; gives runs of the others, and the map objects with what is live
    /// in them now.
    async fn free_nodes(
        &self,
        nodes: Vec<NodeKill>,
        gathered: &Gathered,
        window: &Window,
    ) -> (Vec<NodeKillRun>, Vec<MapObject>) {
        let in_window = window.roots();
        let (kept, passing, old) = {
            let data = self.data.borrow();
            (kept_roots(&data, gathered), [data.manifest.root_number], data.manifest.maps.clone())
        };
        let maps = old.into_iter().chain(gathered.maps.iter().copied());
        let mut maps: BTreeMap<_, _> = maps.map(|map| ((map.root, map.part), map)).collect();
        // Most nodes go at the checkpoint after the one that replaced them. They stand apart, so that the runs of
        // snapshots are let be.
        let (mut long, mut past, mut short) = (Vec::new(), Vec::new(), Vec::new());
        for slice in nodes.chunks(SLICE) {
            for kill in slice {
                if node_is_kept(&kept, kill) {
                    long.push(*kill);
                } else if node_is_kept(&in_window, kill) {
                    past.push(*kill);
                } else if node_is_kept(&passing, kill) {
                    short.push(*kill);
                } else if let Some(map) = maps.get_mut(&(kill.node.root(), kill.node.part())) {
                    map.live = map.live.saturating_sub(1);
                }
            }
            breathe().await;
        }
        reached_if(!short.is_empty(), Branch::KillsPassing);
        let sorted = move || {
            let mut runs = Vec::new();
            let past_waits = NodeWait::Window { last_death: RootNumber(0) };
            for (mut kills, waits) in [(long, NodeWait::Kept), (past, past_waits), (short, NodeWait::Passing)] {
                kills.sort_unstable();
                runs.append(&mut node_kill_runs(&kills, waits));
            }
            runs
        };
        (compute(&*self.context.env, sorted).await, maps.into_values().collect())
    }

    pub(super) fn take_dead_segments(
        &self,
        data: &mut Data,
        boundary: Ordinal,
        window: &Window,
    ) -> BTreeSet<ObjectName> {
        // Between a hold's base root and its boundary a clone still reads indexes, of holes and marks too; so does who brings a moment back.
        let holds = data.manifest.holds.clone();
        let held = |ordinal| {
            let is_past = window.rewind.first_index().is_some_and(|first| first <= ordinal);
            if is_past && !planted(Mutant::RewindDropsIndexes) {
                return true;
            }
            let is_held = holds.iter().any(|h| h.base_boundary <= ordinal && ordinal < h.boundary);
            reached_if(is_held, Branch::HeldIndexKept);
            is_held && !planted(Mutant::DropHeldIndexes)
        };
        data.table.drop_dead(boundary, held);
        data.table.take_left()
    }

    /// Puts the dirty pages of the segment table and the new runs as one object.
    pub(super) async fn put_tables(self: &Rc<Self>, boundary: Ordinal, freed: &Freed) -> Result<Tables> {
        let (number, dirty, old) = {
            let data = self.data.borrow();
            (data.manifest_number + 1, data.table.dirty_pages(boundary), data.manifest.tables.clone())
        };
        let name = self.object(ObjectKind::Table, number, 0);
        let mut builder = PageBuilder::new(name);
        let mut places = Vec::new();
        for page in dirty {
            let bytes = self.data.borrow().table.encode(page, boundary);
            places.push((page, bytes.map(|bytes| PageRef { page, object: number, index: builder.push(&bytes) })));
            breathe().await;
        }
        let (mut kept_runs, mut node_runs) = (freed.kept_runs.clone(), freed.kept_node_runs.clone());
        kept_runs.extend(freed.runs.iter().map(|run| run.push(number, &mut builder)));
        node_runs.extend(freed.node_runs.iter().map(|run| run.push(number, &mut builder)));
        let mut objects = old;
        if !builder.is_empty() {
            let (_, bytes) = builder.finish();
            let len: usize = bytes.iter().map(Vec::len).sum();
            if len as u64 > varve_format::page::MAX_BYTES {
                // Nobody could read it: it must not come to count.
                return Err(EngineError::new(ErrorKind::Internal, format!("{name} would have {len} bytes")));
            }
            let bytes = self.put_own(&name, bytes).await?;
            objects.push(TableObject { number, epoch: self.epoch, writer: self.writer, bytes });
        }
        let pages = {
            let data = self.data.borrow();
            let mut pages: std::collections::BTreeMap<u64, PageRef> =
                data.table.pages().into_iter().map(|page| (page.page, page)).collect();
            for (page, place) in &places {
                match place {
                    Some(place) => pages.insert(*page, *place),
                    None => pages.remove(page),
                };
            }
            pages.into_values().collect::<Vec<_>>()
        };
        let runs = kept_runs.iter().map(|run| run.object).chain(node_runs.iter().map(|run| run.object));
        let used: BTreeSet<u64> = pages.iter().map(|p| p.object).chain(runs).collect();
        let (objects, gone): (Vec<_>, Vec<_>) = objects.into_iter().partition(|t| used.contains(&t.number));
        let dead = gone.iter().map(|table| table_name(self.id, table));
        Ok(Tables { pages, runs: kept_runs, node_runs, objects, dead: dead.collect(), places })
    }
}
