// SPDX-License-Identifier: Apache-2.0
//! What the kept trees of a timeline reach: a bit for every block of its own segments, a bit for every node of its
//! own map. Subtrees that wait to be worked off count like trees that are kept.
//!
//! A node that one tree has led to need not be entered again from another: its place in all trees is the same, and
//! so is all below it. A hold sees its base root *under* the entries up to its boundary, so what those cover of the
//! root does not count; nodes that were seen only in such a walk are entered again by others.

use super::objects::Objects;
use super::{CheckReport, Entries, Subject};
use crate::Result;
use crate::context::damaged;
use crate::extent::At;
use crate::lineage::map_object;
use crate::map::{NodePath, Step, Tree, Walk};
use crate::read::load_history;
use crate::signal::breathe;
use crate::timeline::Timeline;
use std::collections::BTreeMap;
use std::ops::Range;
use varve_format::manifest::{Manifest, Reclaim};
use varve_format::table::{LiveBits, TableEntry};
use varve_format::{Lineage, NodePointer, Pointer};
use varve_types::branch::{Branch, reached};
use varve_types::{Ordinal, RootNumber};

/// Nodes entered between two looks at other tasks.
const SLICE: u32 = 64;

/// Bits that are set one by one.
#[derive(Default)]
struct Bits(Vec<u64>);

impl Bits {
    /// Sets a bit; tells whether it was clear.
    fn set(&mut self, bit: usize) -> bool {
        if self.0.len() <= bit / 64 {
            self.0.resize(bit / 64 + 1, 0);
        }
        let word = &mut self.0[bit / 64];
        let clear = *word >> (bit % 64) & 1 == 0;
        *word |= 1 << (bit % 64);
        clear
    }
    fn get(&self, bit: usize) -> bool {
        self.0.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }
    fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }
}

/// See the module.
pub(super) struct Reach {
    own: Lineage,
    range: Range<Ordinal>,
    blocks: BTreeMap<Ordinal, Bits>,
    /// By root and part: nodes that some kept tree holds.
    nodes: BTreeMap<(RootNumber, u8), Bits>,
    /// Nodes all of whose blocks were taken.
    whole: BTreeMap<(RootNumber, u8), Bits>,
}

impl Reach {
    pub fn new(manifest: &Manifest, table: &BTreeMap<Ordinal, TableEntry>, range: Range<Ordinal>) -> Self {
        let blocks = table.range(range.clone()).map(|(ordinal, _)| (*ordinal, Bits::default())).collect();
        Self { own: manifest.own, range, blocks, nodes: BTreeMap::new(), whole: BTreeMap::new() }
    }

    /// Walks everything that is kept.
    pub async fn walk_all(
        &mut self,
        timeline: &Timeline,
        subject: &Subject,
        objects: &mut Objects,
        report: &mut CheckReport,
    ) -> Result<()> {
        let m = &subject.manifest;
        let nothing = Entries::default();
        self.walk(m.root, &nothing, m, objects, report).await?;
        for (_, root) in m.snapshots.iter().filter_map(|s| s.root) {
            self.walk(root, &nothing, m, objects, report).await?;
        }
        for Reclaim { node, level, first_block, .. } in &m.reclaim {
            // No root holds it, but nothing below it was told as a kill, so all of it counts.
            let top = NodePath { level: *level, first_block: *first_block, pointer: *node };
            self.walk_tree(&Tree::below(top), &nothing, m, objects, report).await?;
        }
        // Of what the first root of the window sees, only what still lives where the window begins is kept.
        let past = m.rewind.roots.iter().map(|root| (root.root, root.boundary, root.boundary.max(m.rewind.from)));
        let past = past.enumerate().map(|(at, (root, base, from))| (root, base, if at == 0 { from } else { base }));
        let holds = m.holds.iter().map(|hold| (hold.base_root, hold.base_boundary, hold.boundary));
        for (root, base, boundary) in holds.chain(past) {
            let entries = self.entries_of(timeline, base, boundary, subject, report).await?;
            for (_, len, pointer) in entries.map.iter() {
                self.take(*pointer, len, m, report);
            }
            self.walk(root, &entries, m, objects, report).await?;
        }
        Ok(())
    }

    /// Entries of the segments between a base and a boundary.
    async fn entries_of(
        &self,
        timeline: &Timeline,
        base: Ordinal,
        boundary: Ordinal,
        subject: &Subject,
        report: &mut CheckReport,
    ) -> Result<Entries> {
        let mut entries = Entries::default();
        if base >= boundary {
            return Ok(entries);
        }
        for (ordinal, entry) in subject.table.range(base..boundary) {
            let name = subject.segment(*ordinal, entry);
            let extents = load_history(&*timeline.pool.store, &name, *ordinal).await;
            let Some(extents) = report.note(name, extents)? else { continue };
            entries.replay(self.own, *ordinal, &extents);
        }
        Ok(entries)
    }

    /// Walks a tree under some entries.
    async fn walk(
        &mut self,
        root: NodePointer,
        over: &Entries,
        manifest: &Manifest,
        objects: &mut Objects,
        report: &mut CheckReport,
    ) -> Result<()> {
        let tree = if root.is_absent() { Tree::empty() } else { Tree::cold(root) };
        self.walk_tree(&tree, over, manifest, objects, report).await
    }

    async fn walk_tree(
        &mut self,
        tree: &Tree,
        over: &Entries,
        manifest: &Manifest,
        objects: &mut Objects,
        report: &mut CheckReport,
    ) -> Result<()> {
        let mut walk = Walk::from(0);
        let mut steps = 0u32;
        loop {
            match walk.step(tree) {
                Step::End => return Ok(()),
                // It stands above a subtree alone, and in no store.
                Step::Node(path) if path.pointer.is_absent() => {}
                Step::Node(path) if path.pointer.lineage() != self.own => walk.skip(&path),
                Step::Node(path) => {
                    let key = (path.pointer.root(), path.pointer.part());
                    let record = usize::from(path.pointer.record());
                    self.nodes.entry(key).or_default().set(record);
                    let whole = self.whole.entry(key).or_default();
                    let seen = if over.map.is_empty() { !whole.set(record) } else { whole.get(record) };
                    if seen {
                        walk.skip(&path);
                    }
                }
                Step::Cold(path) => {
                    let load = async {
                        let name = map_object(manifest, path.pointer.root(), path.pointer.part())?;
                        let bytes = objects.record(&name, u32::from(path.pointer.record())).await?;
                        walk.supply(path, &bytes).map_err(damaged(name))
                    };
                    let loaded = load.await;
                    let what = format!("timeline {}, {:?}", manifest.timeline, path.pointer);
                    if report.note(what, loaded)?.is_none() {
                        walk.skip(&path);
                    }
                    steps += 1;
                    if steps.is_multiple_of(SLICE) {
                        breathe().await;
                    }
                }
                Step::Run { block, blocks, pointer } => {
                    let mut at = 0;
                    while at < blocks {
                        match over.map.at(block + at, blocks - at) {
                            At::Run(_, len) => at += len,
                            At::Gap(len) => {
                                self.take(pointer.advance(at), len, manifest, report);
                                at += len;
                            }
                        }
                    }
                }
            }
        }
    }

    /// Takes blocks that a tree leads to.
    fn take(&mut self, first: Pointer, blocks: u64, manifest: &Manifest, report: &mut CheckReport) {
        if !first.is_data() || first.lineage() != self.own || !self.range.contains(&first.ordinal()) {
            return;
        }
        let Some(bits) = self.blocks.get_mut(&first.ordinal()) else {
            let what = format!("a tree leads to segment {}, which the table does not have", first.ordinal());
            report.problem(format!("timeline {}", manifest.timeline), what);
            return;
        };
        for i in 0..blocks {
            bits.set(usize::from(first.advance(i).block()));
        }
    }

    /// Compares the blocks that are reached with those that are live.
    pub fn compare_blocks(&mut self, subject: &Subject, report: &mut CheckReport) {
        let boundary = subject.manifest.boundary;
        let mut kept = std::mem::take(&mut self.blocks);
        for kill in subject.kills.iter().filter(|_| !subject.settled).chain(&subject.past).chain(&subject.over_kept) {
            if let Some(bits) = kept.get_mut(&kill.ordinal) {
                bits.set(usize::from(kill.block));
            }
        }
        for (ordinal, entry) in subject.table.range(self.range.clone()) {
            let name = subject.segment(*ordinal, entry);
            report.counts_compared += 1;
            if *ordinal >= boundary {
                // No root knows it yet, so nothing of it can have been freed.
                if entry.live.live() != entry.live.blocks() {
                    report.problem(name, "blocks of it are dead though no checkpoint has merged it");
                }
                continue;
            }
            if let Some(bits) = kept.get_mut(ordinal) {
                if !subject.settled && *ordinal >= subject.newest {
                    // What lives there goes whole; what a tree leads to has to live all the same.
                    reached(Branch::CheckBeforeTrim);
                    (0..entry.live.blocks()).filter(|block| entry.live.is_live(*block)).for_each(|block| {
                        bits.set(block as usize);
                    });
                }
                compare(&name, bits, &entry.live, report);
            }
        }
    }

    /// Compares the nodes that are reached with the counts of map objects.
    pub fn compare_nodes(&mut self, subject: &Subject, report: &mut CheckReport) {
        let m = &subject.manifest;
        for node in &subject.past_nodes {
            self.nodes.entry((node.node.root(), node.node.part())).or_default().set(usize::from(node.node.record()));
        }
        for map in &m.maps {
            report.counts_compared += 1;
            let found = self.nodes.remove(&(map.root, map.part)).map_or(0, |bits| bits.count());
            // A hidden timeline may keep the root before its last one.
            if found > map.live || (subject.settled && found != map.live) {
                let name = map_object(m, map.root, map.part).unwrap_or_else(|_| m.object_name());
                report.problem(name, format!("kept roots reach {found} of its nodes, the manifest says {}", map.live));
            }
        }
        for ((root, part), bits) in &self.nodes {
            let what = format!("{} nodes of part {part} of root {root} are kept, but no object has them", bits.count());
            report.problem(m.object_name(), what);
        }
    }
}

fn compare(name: &varve_format::ObjectName, reached: &Bits, live: &LiveBits, report: &mut CheckReport) {
    let (mut dead, mut lost) = (Vec::new(), Vec::new());
    for block in 0..live.blocks() {
        match (reached.get(block as usize), live.is_live(block)) {
            (true, false) => lost.push(block),
            (false, true) => dead.push(block),
            _ => {}
        }
    }
    if let Some(block) = lost.first() {
        let count = lost.len();
        report.problem(name, format!("{count} blocks are dead though a kept tree leads to them, the first is {block}"));
    }
    if let Some(block) = dead.first() {
        let count = dead.len();
        report
            .problem(name, format!("{count} blocks are live though no kept tree leads to them, the first is {block}"));
    }
    let beyond = reached.count() as usize != (0..live.blocks()).filter(|b| reached.get(*b as usize)).count();
    if beyond {
        report.problem(name, "a tree leads to a block beyond its last");
    }
}
