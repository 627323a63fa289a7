// SPDX-License-Identifier: Apache-2.0
//! The segment table and the kill runs of a closed timeline: loaded whole for one step, and what changed put again.
//!
//! A table object is put under the first number that no earlier try has taken, and is named by the manifest that
//! follows; a crash before leaves an object that nothing names, which the next opening removes. Nothing here
//! outlives a step.

use super::Histories;
use crate::Result;
use crate::checkpoint::{is_same, kill_runs, node_kill_runs};
use crate::context::damaged;
use crate::lineage::{load_node_record, load_record, load_table_page, map_object, table_name, table_object};
use crate::manifests::numbers_behind;
use crate::map::{NodePath, Step, Tree, Walk};
use crate::overlay::kill_of;
use crate::recover::missing_is_corrupt;
use crate::signal::breathe;
use crate::table::SegmentTable;
use crate::{EngineError, context::Context};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use varve_env::{ObjectStore, Payload, PutOutcome};
use varve_format::manifest::{Manifest, NodeRunRef, NodeWait, PageRef, Reclaim, RunRef, TableObject};
use varve_format::page::PageBuilder;
use varve_format::table::{Kill, NodeKill, decode_kills, decode_node_kills};
use varve_format::{ObjectKind, ObjectName};
use varve_types::mutant::{Mutant, planted};
use varve_types::{ErrorKind, Ordinal};

/// Behind every ordinal: all of a closed timeline is in its table.
const END: Ordinal = Ordinal(1 << 36);
/// Steps of a walk between two looks at other tasks.
const SLICE: u32 = 256;

/// Blocks and nodes that waited to be freed.
#[derive(Default)]
pub(crate) struct Waiting {
    pub kills: Vec<Kill>,
    pub nodes: Vec<NodeKill>,
}

/// The segment table, to be changed.
pub(crate) struct Pages {
    pub table: SegmentTable,
}

/// What was put of a table, as a manifest names it.
pub(crate) struct Parts {
    pub pages: Vec<PageRef>,
    pub kills: Vec<RunRef>,
    pub node_kills: Vec<NodeRunRef>,
    pub objects: Vec<TableObject>,
    /// Table objects that are not needed any more.
    pub dead: Vec<ObjectName>,
}

impl Pages {
    /// Loads the table that a manifest names.
    pub async fn load(store: &Arc<dyn ObjectStore>, manifest: &Manifest) -> Result<Self> {
        let mut table = SegmentTable::new(manifest.timeline);
        for page in &manifest.table {
            table.load(*page, load_table_page(store, manifest, *page).await.map_err(missing_is_corrupt)?);
        }
        Ok(Self { table })
    }

    /// Whether something is to be put.
    pub fn is_dirty(&self) -> bool {
        !self.table.dirty_pages(END).is_empty()
    }
}

/// Everything that waits to be freed of a closed timeline: its runs, and what lies below the entries of its reclaim queue.
pub(super) async fn load_waiting(
    context: &Context,
    store: &Arc<dyn ObjectStore>,
    manifest: &Manifest,
) -> Result<Waiting> {
    let mut waiting = Waiting::default();
    for run in &manifest.kills {
        let bytes = load_run(store, manifest, run.object, run.index).await?;
        waiting.kills.extend(decode_kills(&bytes).map_err(damaged("a run of kills"))?);
    }
    for run in &manifest.node_kills {
        let bytes = load_run(store, manifest, run.object, run.index).await?;
        waiting.nodes.extend(decode_node_kills(&bytes).map_err(damaged("a run of node kills"))?);
    }
    for entry in &manifest.reclaim {
        work_off(context, store, manifest, entry, &mut waiting).await?;
    }
    Ok(waiting)
}

async fn load_run(store: &Arc<dyn ObjectStore>, manifest: &Manifest, object: u64, index: u32) -> Result<Bytes> {
    load_record(store, &table_object(manifest, object)?, index).await.map_err(missing_is_corrupt)
}

/// Tells all that lies below an entry of the reclaim queue.
async fn work_off(
    context: &Context,
    store: &Arc<dyn ObjectStore>,
    manifest: &Manifest,
    entry: &Reclaim,
    waiting: &mut Waiting,
) -> Result<()> {
    let top = NodePath { level: entry.level, first_block: entry.first_block, pointer: entry.node };
    let (tree, mut walk, mut steps) = (Tree::below(top), Walk::from(entry.first_block), 0u32);
    loop {
        match walk.step(&tree) {
            Step::End => return Ok(()),
            Step::Node(path) if path.pointer.is_absent() => {}
            Step::Node(path) if path.pointer.lineage() != manifest.own => walk.skip(&path),
            Step::Node(path) => waiting.nodes.push(NodeKill { node: path.pointer, death: entry.death_root }),
            Step::Run { blocks, pointer, .. } if pointer.is_data() && pointer.lineage() == manifest.own => {
                waiting.kills.extend((0..blocks).map(|i| kill_of(pointer.advance(i), entry.death)));
            }
            Step::Run { .. } => {}
            Step::Cold(path) => {
                let name = map_object(manifest, path.pointer.root(), path.pointer.part())?;
                let record = u32::from(path.pointer.record());
                let bytes = load_node_record(context, store, &name, record).await.map_err(missing_is_corrupt)?;
                walk.supply(path, &bytes).map_err(damaged(name))?;
            }
        }
        steps += 1;
        if steps.is_multiple_of(SLICE) {
            breathe().await;
        }
    }
}

impl Histories {
    /// Puts the pages that changed; and with `runs` these kills, which are sorted, in the place of all that waited.
    pub(crate) async fn put_parts(&self, old: &Manifest, pages: &Pages, runs: Option<Waiting>) -> Result<Parts> {
        let (record, id) = (self.record(), old.timeline);
        let taken: BTreeSet<u64> = old.tables.iter().map(|table| table.number).collect();
        for number in numbers_behind(&*self.context.env, taken.last().copied().unwrap_or_default().max(old.number)) {
            let (epoch, writer) = (record.epoch, record.writer);
            let name = ObjectName { timeline: id, kind: ObjectKind::Table, number, part: 0, epoch, writer };
            let mut builder = PageBuilder::new(name);
            let mut parts = build(&mut builder, number, old, pages, runs.as_ref()).await;
            if !builder.is_empty() {
                let (name, bytes) = builder.finish();
                let payload = Payload::new(bytes.into_iter().map(Bytes::from).collect());
                let (text, bytes) = (name.to_string(), payload.len());
                let outcome = self.pool.store.put(&text, payload.clone()).await?;
                // An earlier try that was given up may have put something else under it.
                if outcome == PutOutcome::Exists
                    && !is_same(&payload, &self.pool.store.get_head(&text, bytes + 1).await?)
                {
                    continue;
                }
                parts.objects.push(TableObject { number, epoch, writer, bytes });
            }
            let runs = parts.kills.iter().map(|run| run.object).chain(parts.node_kills.iter().map(|run| run.object));
            let used: BTreeSet<u64> = parts.pages.iter().map(|page| page.object).chain(runs).collect();
            let (objects, gone): (Vec<_>, Vec<_>) = parts.objects.into_iter().partition(|t| used.contains(&t.number));
            let dead = gone.iter().map(|table| table_name(id, table)).collect();
            return Ok(Parts { objects, dead, ..parts });
        }
        let what = format!("timeline {id}: no number is free for a table");
        Err(EngineError::new(ErrorKind::Busy, what))
    }
}

async fn build(builder: &mut PageBuilder, number: u64, old: &Manifest, pages: &Pages, runs: Option<&Waiting>) -> Parts {
    let mut places: BTreeMap<u64, PageRef> = pages.table.pages().into_iter().map(|page| (page.page, page)).collect();
    for page in pages.table.dirty_pages(END) {
        match pages.table.encode(page, END) {
            Some(bytes) => places.insert(page, PageRef { page, object: number, index: builder.push(&bytes) }),
            None => places.remove(&page),
        };
        breathe().await;
    }
    let (mut kills, mut node_kills) = (old.kills.clone(), old.node_kills.clone());
    if let Some(runs) = runs {
        kills = kill_runs(&runs.kills, false).iter().map(|run| run.push(number, builder)).collect();
        node_kills = node_kill_runs(&runs.nodes, NodeWait::Kept).iter().map(|run| run.push(number, builder)).collect();
    }
    Parts { pages: places.into_values().collect(), kills, node_kills, objects: old.tables.clone(), dead: Vec::new() }
}

impl Waiting {
    /// Whether the runs that a manifest names have more, or something is still below its reclaim queue.
    pub fn is_less_than(&self, manifest: &Manifest) -> bool {
        let kills: u64 = manifest.kills.iter().map(|run| run.count).sum();
        let nodes: u64 = manifest.node_kills.iter().map(|run| run.count).sum();
        (kills, nodes) != (self.kills.len() as u64, self.nodes.len() as u64) || !manifest.reclaim.is_empty()
    }
}

/// Tells whether a hold needs the index of a segment, whatever is live in it: its clone reads what lies between base root and boundary.
pub(super) fn is_index_held(manifest: &Manifest, ordinal: Ordinal) -> bool {
    manifest.is_index_held(ordinal) && !planted(Mutant::DropHeldIndexes)
}
