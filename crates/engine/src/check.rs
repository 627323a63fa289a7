// SPDX-License-Identifier: Apache-2.0
//! Check: every stored byte of a volume verified, and every count of its tables counted anew.
//!
//! For the timeline that is shown a checkpoint is made first, so that nothing waits to be freed; then, while no
//! other checkpoint may run, and nothing that moves blocks, every tree that is kept is walked (the head's, those of snapshots, the bases of holds
//! with the entries up to their boundaries), and what they reach is compared, bit by bit, with the segment table,
//! and node by node with the counts of map objects. For timelines that are hidden the same is done with what their
//! manifests say, once all that their ended windows kept was freed. What was inherited from deleted volumes is verified too.
//!
//! Always holds: no data are written, nothing is repaired, and the volume is served meanwhile. RAM is bounded:
//! trees are walked once for each range of ordinals whose bitmaps fit [`RANGE_BLOCKS`] bits. What is wrong becomes
//! a [`Problem`]; only a store or a coordination that does not answer ends a check early.

mod closed;
mod inherited;
mod objects;
mod reach;
mod verify;

use crate::lineage::{load_table_page, table_object};
use crate::overlay::Stratum;
use crate::proof::Proved;
use crate::timeline::{Timeline, is_kept};
use crate::volume::Volume;
use crate::{EngineError, Result};
use objects::Objects;
use reach::Reach;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use varve_format::manifest::{Manifest, NodeWait};
use varve_format::table::{Kill, NodeKill, TableEntry, decode_kills, decode_node_kills};
use varve_format::{ObjectKind, ObjectName};
use varve_types::{ErrorKind, Ordinal, TimelineId};

/// Blocks whose bits are counted at a time.
const RANGE_BLOCKS: u64 = 1 << 30;
/// Problems that are told one by one.
const MAX_PROBLEMS: usize = 1000;
/// Checkpoints in which everything that waits to be freed has to be.
const MAX_SETTLE: u32 = 8;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Name of the object in the store, or of the timeline where it is none.
    pub object: String,
    /// What is wrong with it.
    pub message: String,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Blocks of segments that were read and proved.
    pub blocks_verified: u64,
    /// Bytes of objects that were read and proved.
    pub bytes_verified: u64,
    /// Objects that were read.
    pub objects: u64,
    /// Counts that were counted anew and compared: of segments, of map objects.
    pub counts_compared: u64,
    /// Objects that nothing names: left behind by a crash, harmless.
    pub unreferenced: u64,
    /// What is wrong; of very many the first.
    pub problems: Vec<Problem>,
}

impl CheckReport {
    /// Takes in what another one found.
    fn add(&mut self, other: Self) {
        self.blocks_verified += other.blocks_verified;
        self.bytes_verified += other.bytes_verified;
        self.objects += other.objects;
        self.counts_compared += other.counts_compared;
        self.unreferenced += other.unreferenced;
        other.problems.into_iter().for_each(|problem| self.problem(problem.object, problem.message));
    }

    /// Counts an object that was proved.
    fn proved(&mut self, proved: Proved) {
        self.objects += 1;
        self.blocks_verified += proved.blocks;
        self.bytes_verified += proved.bytes;
    }

    pub(crate) fn problem(&mut self, object: impl std::fmt::Display, message: impl Into<String>) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem { object: object.to_string(), message: message.into() });
        }
    }

    /// Takes what a step gave; damage becomes a problem, and only what may pass ends the check.
    pub(crate) fn note<T>(&mut self, object: impl std::fmt::Display, step: Result<T>) -> Result<Option<T>> {
        match step {
            Ok(value) => Ok(Some(value)),
            Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Busy | ErrorKind::Fenced) => {
                Err(error)
            }
            Err(error) => {
                self.problem(object, error.to_string());
                Ok(None)
            }
        }
    }
}

/// How far a check has come: bytes of segments verified, of so many.
pub type Progress<'a> = &'a dyn Fn(u64, u64);

/// A boundary above all.
const ALL: Ordinal = Ordinal(u64::MAX);

/// A timeline as it is checked.
struct Subject {
    manifest: Manifest,
    /// Segments that count, as the table knows them.
    table: BTreeMap<Ordinal, TableEntry>,
    /// Kills that wait.
    kills: Vec<Kill>,
    /// Those of them that nothing but the rewind window keeps: some are seen between its roots only.
    past: Vec<Kill>,
    /// Those that a clone of a past moment may keep though it does not see them: a checkpoint tells of what died in its time that the last segment that wrote
    /// there took it, and such a moment lies in between.
    over_kept: Vec<Kill>,
    /// The same of nodes.
    past_nodes: Vec<NodeKill>,
    /// Whether all that waited was freed: then the kept trees reach exactly what is live.
    settled: bool,
    /// Nothing is kept above this boundary: where not all was freed yet, what lies there goes whole.
    newest: Ordinal,
}

impl Volume {
    /// Verifies every object of the volume, and counts anew. `progress` is told now and then.
    ///
    /// # Errors
    /// When store or coordination do not answer, or the volume stops meanwhile. What is wrong in the store is no error, but in the report.
    pub async fn check(&self, progress: Progress<'_>) -> Result<CheckReport> {
        let mut report = CheckReport::default();
        // Nobody else frees meanwhile what is hidden.
        let tidying = self.tidying.take().await;
        self.settle_closed(&tidying).await?;
        let timeline = self.shown();
        if let Some(why) = self.degraded() {
            report.problem(format!("timeline {}", timeline.id), format!("it makes no checkpoints: {why}"));
        } else {
            let _unmoved = timeline.cleans.take().await;
            let turn = timeline.checkpoints.take().await;
            timeline.settle(&turn).await?;
            let subject = timeline.subject(&mut report).await?;
            timeline.check_subject(&subject, &mut report, progress).await?;
            drop(turn);
        }
        let hidden: Vec<_> = self.record().timelines.iter().filter(|t| t.id != timeline.id).cloned().collect();
        for other in &hidden {
            self.check_closed(other, &mut report, progress).await?;
        }
        self.check_inherited(&mut report, progress).await?;
        Ok(report)
    }
}

impl Timeline {
    /// Makes checkpoints until nothing waits to be freed; the caller has the turn.
    async fn settle(self: &Rc<Self>, turn: &crate::context::Held<'_>) -> Result<()> {
        self.checkpoint_in_turn(turn, true).await?;
        // Once more at least: the root before the newest was still kept.
        let mut tries = 0;
        while tries < MAX_SETTLE {
            self.checkpoint_in_turn(turn, false).await?;
            let data = self.data.borrow();
            if !data.reconsider && data.to_ask.is_empty() {
                return Ok(());
            }
            // Each checkpoint asks some of what is left.
            tries += u32::from(data.reconsider);
        }
        Err(EngineError::new(ErrorKind::Busy, "snapshots are deleted all the time: try again"))
    }

    /// The timeline as it is now.
    async fn subject(&self, report: &mut CheckReport) -> Result<Subject> {
        let (manifest, table) = {
            let data = self.data.borrow();
            let table = data.table.iter().map(|(ordinal, entry)| (ordinal, entry.clone())).collect();
            (data.manifest.clone(), table)
        };
        let (kills, past) = self.load_kills(&manifest, report).await?;
        let past_nodes = self.load_past_nodes(&manifest, report).await?;
        // The table in RAM is what counts; what is stored of it has to say the same.
        let stored = self.load_pages(&manifest, report).await?;
        let over_kept = over_kept(&manifest, &kills);
        let subject = Subject { manifest, table, kills, past, over_kept, past_nodes, settled: true, newest: ALL };
        let mut below = subject.table.range(..subject.manifest.boundary);
        if !below.by_ref().eq(stored.iter()) {
            let name = subject.manifest.object_name();
            report.problem(name, "the segment table in the store differs from the one in RAM");
        }
        Ok(subject)
    }

    /// A timeline that is not open, as its manifest describes it.
    async fn closed_subject(
        &self,
        manifest: Manifest,
        (settled, newest): (bool, Ordinal),
        report: &mut CheckReport,
    ) -> Result<Subject> {
        let table = self.load_pages(&manifest, report).await?;
        let (kills, past) = self.load_kills(&manifest, report).await?;
        let past_nodes = self.load_past_nodes(&manifest, report).await?;
        let over_kept = over_kept(&manifest, &kills);
        Ok(Subject { manifest, table, kills, past, over_kept, past_nodes, settled, newest })
    }

    async fn load_pages(&self, manifest: &Manifest, report: &mut CheckReport) -> Result<BTreeMap<Ordinal, TableEntry>> {
        let mut table = BTreeMap::new();
        for page in &manifest.table {
            let loaded = load_table_page(&self.pool.store, manifest, *page).await;
            table.extend(report.note(manifest.object_name(), loaded)?.into_iter().flatten());
        }
        Ok(table)
    }

    /// All kills that wait, and those that wait for the rewind window alone.
    async fn load_kills(&self, manifest: &Manifest, report: &mut CheckReport) -> Result<(Vec<Kill>, Vec<Kill>)> {
        let (mut kills, mut past) = (Vec::new(), Vec::new());
        for run in &manifest.kills {
            let load = async {
                let name = table_object(manifest, run.object)?;
                let bytes = crate::lineage::load_record(&self.pool.store, &name, run.index).await?;
                decode_kills(&bytes).map_err(crate::context::damaged(name))
            };
            let loaded = report.note(manifest.object_name(), load.await)?.unwrap_or_default();
            if loaded.len() as u64 != run.count {
                report.problem(manifest.object_name(), "a run of kills is not as long as the manifest says");
            }
            if run.window {
                past.extend_from_slice(&loaded);
            }
            kills.extend(loaded);
        }
        Ok((kills, past))
    }

    /// Nodes that nothing but the rewind window keeps, or kept.
    async fn load_past_nodes(&self, manifest: &Manifest, report: &mut CheckReport) -> Result<Vec<NodeKill>> {
        let mut nodes = Vec::new();
        for run in manifest.node_kills.iter().filter(|run| matches!(run.waits, NodeWait::Window { .. })) {
            let load = async {
                let name = table_object(manifest, run.object)?;
                let bytes = crate::lineage::load_record(&self.pool.store, &name, run.index).await?;
                decode_node_kills(&bytes).map_err(crate::context::damaged(name))
            };
            nodes.extend(report.note(manifest.object_name(), load.await)?.unwrap_or_default());
        }
        Ok(nodes)
    }

    async fn check_subject(
        self: &Rc<Self>,
        subject: &Subject,
        report: &mut CheckReport,
        progress: Progress<'_>,
    ) -> Result<()> {
        let mut objects = Objects::new(Rc::clone(&self.pool));
        let mut from = Ordinal(0);
        let mut first = true;
        while let Some(to) = next_range(&subject.table, from) {
            let mut reach = Reach::new(&subject.manifest, &subject.table, from..to);
            reach.walk_all(self, subject, &mut objects, report).await?;
            reach.compare_blocks(subject, report);
            if first {
                reach.compare_nodes(subject, report);
            }
            (from, first) = (to, false);
        }
        if first {
            let mut reach = Reach::new(&subject.manifest, &subject.table, from..from);
            reach.walk_all(self, subject, &mut objects, report).await?;
            reach.compare_nodes(subject, report);
        }
        self.check_objects(subject, report, progress).await
    }

    /// Verifies the objects that a timeline names, and counts those that it does not.
    async fn check_objects(&self, subject: &Subject, report: &mut CheckReport, progress: Progress<'_>) -> Result<()> {
        verify::verify(self, subject, report, progress).await?;
        self.count_unreferenced(subject, report).await
    }

    /// Counts objects that nothing names. Those of the present epoch are left out: they may be on their way.
    async fn count_unreferenced(&self, subject: &Subject, report: &mut CheckReport) -> Result<()> {
        let names = subject.names();
        let mut after: Option<String> = None;
        loop {
            let prefix = format!("{}/", subject.manifest.timeline);
            let listed = self.pool.store.list(&prefix, after.as_deref()).await?;
            let Some(last) = listed.last() else { return Ok(()) };
            after = Some(last.name.clone());
            for info in &listed {
                let known = ObjectName::parse(&info.name)
                    .is_some_and(|name| name.epoch >= subject.manifest.epoch || names.contains(&name));
                report.unreferenced += u64::from(!known);
            }
        }
    }
}

/// The end of the range of ordinals, from `from` on, whose blocks are counted together.
fn next_range(table: &BTreeMap<Ordinal, TableEntry>, from: Ordinal) -> Option<Ordinal> {
    let mut blocks = 0;
    let mut end = None;
    for (ordinal, entry) in table.range(from..) {
        blocks += u64::from(entry.live.blocks());
        if end.is_some() && blocks > RANGE_BLOCKS {
            break;
        }
        end = Some(ordinal.next());
    }
    end
}

/// Kills that are kept by boundaries which need not be those of a checkpoint.
fn over_kept(manifest: &Manifest, kills: &[Kill]) -> Vec<Kill> {
    let past = manifest.holds.iter().filter(|hold| hold.may_be_inside());
    let mut boundaries: Vec<Ordinal> = past.map(|hold| hold.boundary).collect();
    boundaries.sort_unstable();
    kills.iter().filter(|kill| is_kept(&boundaries, kill)).copied().collect()
}

impl Subject {
    /// The object that has the blocks of a segment of the table.
    const fn segment(&self, ordinal: Ordinal, entry: &TableEntry) -> ObjectName {
        entry.object(self.manifest.timeline, ordinal)
    }

    /// Everything that the table and the manifest name.
    fn names(&self) -> BTreeSet<ObjectName> {
        let m = &self.manifest;
        let timeline: TimelineId = m.timeline;
        let segments = self.table.iter().map(|(ordinal, entry)| self.segment(*ordinal, entry));
        let maps = m.maps.iter().map(|map| ObjectName {
            timeline,
            kind: ObjectKind::Map,
            number: u64::from(map.root.0),
            part: map.part,
            epoch: map.epoch,
            writer: map.writer,
        });
        let tables = m.tables.iter().map(|t| ObjectName {
            timeline,
            kind: ObjectKind::Table,
            number: t.number,
            part: 0,
            epoch: t.epoch,
            writer: t.writer,
        });
        let dead = m.dead.iter().map(|dead| dead.name);
        segments.chain(maps).chain(tables).chain(dead).chain([m.object_name()]).collect()
    }
}

/// A stratum of the entries of a row of segments: what a hold sees beyond its base root.
type Entries = Stratum;
