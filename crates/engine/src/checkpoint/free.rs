// SPDX-License-Identifier: Apache-2.0
//! What a checkpoint frees, and what waits: kills against kept boundaries, node kills against kept roots, objects
//! without anything live.
//!
//! A kill that some boundary keeps goes into a run in the store; runs are asked again when a snapshot or a hold has
//! gone. Every kill is asked, and freed, once: counts are changed in the same manifest that drops it from its run.

use super::merge::Gathered;
use crate::Result;
use crate::context::damaged;
use crate::lineage::{load_record, table_object};
use crate::timeline::{Data, Timeline, is_kept};
use std::collections::BTreeSet;
use std::rc::Rc;
use varve_format::manifest::{MapObject, PageRef, RunRef, TableObject};
use varve_format::page::PageBuilder;
use varve_format::table::{Kill, NodeKill, decode_kills, encode_kills};
use varve_format::{ObjectKind, ObjectName};
use varve_types::{Ordinal, RootNumber};

/// Kills of a run: a run is read and written whole.
const RUN_KILLS: usize = 1 << 20;

/// What is decided of kills.
pub(super) struct Freed {
    /// New runs, sorted.
    pub runs: Vec<Vec<Kill>>,
    /// Runs that stay as they are.
    pub kept_runs: Vec<RunRef>,
    pub node_kills: Vec<NodeKill>,
    pub maps: Vec<MapObject>,
    pub dead: Vec<ObjectName>,
}

/// What was put for the table.
pub(super) struct Tables {
    pub pages: Vec<PageRef>,
    pub runs: Vec<RunRef>,
    pub objects: Vec<TableObject>,
    pub dead: Vec<ObjectName>,
    pub places: Vec<(u64, Option<PageRef>)>,
}

/// Whether some kept root `r` has birth ≤ r < death. `kept` is sorted.
fn node_is_kept(kept: &[RootNumber], kill: &NodeKill) -> bool {
    let at = kept.partition_point(|r| *r < kill.node.root());
    kept.get(at).is_some_and(|r| *r < kill.death)
}

impl Timeline {
    /// Decides what of the gathered kills, and of those that waited, is free.
    pub(super) async fn free(self: &Rc<Self>, gathered: &mut Gathered) -> Result<Freed> {
        let (mut kills, reconsider, runs) = {
            let mut data = self.data.borrow_mut();
            let reconsider = std::mem::take(&mut data.reconsider);
            (std::mem::take(&mut gathered.kills), reconsider, data.manifest.kills.clone())
        };
        let mut kept_runs = Vec::new();
        for run in runs {
            if !reconsider {
                kept_runs.push(run);
                continue;
            }
            kills.extend(self.persist("a get", async || self.load_run(run).await).await?);
        }
        let mut data = self.data.borrow_mut();
        let kept = data.kept_boundaries();
        let mut waiting = Vec::new();
        for kill in kills {
            if is_kept(&kept, &kill) {
                waiting.push(kill);
            } else {
                data.table.clear(kill.ordinal, kill.block)?;
            }
        }
        waiting.sort_unstable();
        let (node_kills, maps, dead) = self.free_nodes(&data, gathered);
        let runs = waiting.chunks(RUN_KILLS).map(<[Kill]>::to_vec).collect();
        Ok(Freed { runs, kept_runs, node_kills, maps, dead })
    }

    async fn load_run(&self, run: RunRef) -> Result<Vec<Kill>> {
        let name = table_object(&self.data.borrow().manifest, run.object)?;
        let bytes = load_record(&self.pool.store, &name, run.index).await?;
        decode_kills(&bytes).map_err(damaged(name))
    }

    fn free_nodes(&self, data: &Data, gathered: &Gathered) -> (Vec<NodeKill>, Vec<MapObject>, Vec<ObjectName>) {
        // Snapshots, holds, and the newest two manifests: the one in force and the one that is being written.
        let snapshots = data.snapshots.iter().filter_map(|s| s.root.map(|(number, _)| number));
        let holds = data.manifest.holds.iter().map(|h| h.base_number);
        let newest = gathered.roots.last().map(|root| root.number);
        let fresh = gathered.roots.iter().filter(|root| data.snapshots.iter().any(|s| root.snapshot == Some(s.id)));
        let kept = snapshots.chain(holds).chain([data.manifest.root_number]).chain(newest);
        let mut kept: Vec<_> = kept.chain(fresh.map(|root| root.number)).collect();
        kept.sort_unstable();
        let mut maps: Vec<_> = data.manifest.maps.iter().chain(&gathered.maps).copied().collect();
        let mut waiting = Vec::new();
        for kill in data.manifest.node_kills.iter().chain(&gathered.node_kills) {
            if node_is_kept(&kept, kill) {
                waiting.push(*kill);
                continue;
            }
            let (root, part) = (kill.node.root(), kill.node.part());
            if let Some(map) = maps.iter_mut().find(|m| m.root == root && m.part == part) {
                map.live = map.live.saturating_sub(1);
            }
        }
        let dead = maps.iter().filter(|m| m.live == 0).map(|m| ObjectName {
            timeline: self.id,
            kind: ObjectKind::Map,
            number: u64::from(m.root.0),
            part: m.part,
            epoch: m.epoch,
            writer: m.writer,
        });
        let dead = dead.collect();
        maps.retain(|m| m.live > 0);
        (waiting, maps, dead)
    }

    pub(super) fn take_dead_segments(&self, data: &mut Data, boundary: Ordinal) -> Vec<ObjectName> {
        // Between a hold's base root and its boundary a clone still reads indexes, of holes and marks too.
        let holds = data.manifest.holds.clone();
        let held = |ordinal| holds.iter().any(|h| h.base_boundary <= ordinal && ordinal < h.boundary);
        let dead = data.table.take_dead(boundary, held);
        dead.into_iter()
            .map(|(ordinal, entry)| ObjectName {
                timeline: self.id,
                kind: ObjectKind::Segment,
                number: ordinal.0,
                part: 0,
                epoch: entry.epoch,
                writer: entry.writer,
            })
            .collect()
    }

    /// Puts the dirty pages of the segment table and the new runs as one object.
    pub(super) async fn put_tables(
        self: &Rc<Self>,
        boundary: Ordinal,
        runs: Vec<Vec<Kill>>,
        mut kept_runs: Vec<RunRef>,
    ) -> Result<Tables> {
        let (number, dirty, old) = {
            let data = self.data.borrow();
            (data.manifest_number + 1, data.table.dirty_pages(boundary), data.manifest.tables.clone())
        };
        let name = self.object(ObjectKind::Table, number, 0);
        let mut builder = PageBuilder::new(name);
        let mut places = Vec::new();
        for (page, bytes) in dirty {
            let place = bytes.map(|bytes| PageRef { page, object: number, index: builder.push(&bytes) });
            places.push((page, place));
        }
        for run in runs {
            kept_runs.push(RunRef {
                object: number,
                index: builder.push(&encode_kills(&run)),
                first_birth: run.first().map_or(Ordinal(0), |kill| kill.ordinal),
                last_death: run.iter().map(|kill| kill.death).max().unwrap_or_default(),
                count: run.len() as u64,
            });
        }
        let mut objects = old;
        if !builder.is_empty() {
            let (_, bytes) = builder.finish();
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
        let used: BTreeSet<u64> =
            pages.iter().map(|p| p.object).chain(kept_runs.iter().map(|run| run.object)).collect();
        let (objects, gone): (Vec<_>, Vec<_>) = objects.into_iter().partition(|t| used.contains(&t.number));
        let dead = gone.into_iter().map(|t| ObjectName {
            timeline: self.id,
            kind: ObjectKind::Table,
            number: t.number,
            part: 0,
            epoch: t.epoch,
            writer: t.writer,
        });
        Ok(Tables { pages, runs: kept_runs, objects, dead: dead.collect(), places })
    }
}
