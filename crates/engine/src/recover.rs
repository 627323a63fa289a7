// SPDX-License-Identifier: Apache-2.0
//! Opening a timeline: from its accepted manifest, the segments behind it and the journal, to what it was.
//!
//! In this order: the manifest; the rows of segments that earlier writers put, each of which must be there; the row
//! of the manifest's own writer, asked for one ordinal after the other until one is absent; the tail in the
//! journal, as far as its sequence numbers are unbroken; a manifest with the cut of the epoch that ended, accepted;
//! and only then is anything served.
//!
//! Always holds when it ends: what counts is the longest unbroken row of changes; a change that is missing below a
//! flushed-through or a cut is `Corrupt` and nothing is served; a change behind the cut of its epoch is never
//! looked at again.

mod tail;

use crate::ahead::Streams;
use crate::clean::Victims;
use crate::context::{Context, Turn, damaged};
use crate::journal::Journal;
use crate::layer::Layer;
use crate::lineage::{Lineages, get_range, load_manifest, row_name, table_object};
use crate::manifests::{PoolStore, accept, put_numbered};
use crate::map::Tree;
use crate::mirror::Mirror;
use crate::nodes::NodeLoads;
use crate::overlay::{Overlay, Stratum};
use crate::pressure::Throttle;
use crate::proof::proved;
use crate::read::{load_history, load_segment_head};
use crate::seal::{PutSegment, seal};
use crate::signal::Signal;
use crate::table::SegmentTable;
use crate::timeline::{Data, NUMBER_GAP, ROOT_GAP, Timeline};
use crate::{EngineError, Result};
use std::cell::RefCell;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use varve_coord::{EpochEnd, ManifestRef, VolumeRecord};
use varve_format::manifest::{Cut, Manifest, NodeWait};
use varve_format::mark::Mark;
use varve_format::page::{PageTable, table_len};
use varve_format::segment::IndexExtent;
use varve_format::table::decode_page;
use varve_format::{ObjectKind, ObjectName};
use varve_types::branch::{Branch, reached};
use varve_types::mutant::{Mutant, planted};
use varve_types::{Epoch, ErrorKind, Ordinal, RootNumber, Sequence, Settings, TimelineId, VolumeId, WriterId};

/// Most segments looked at behind a manifest: an owner stays below this.
const MAX_PROBES: u64 = NUMBER_GAP;
/// How often a segment is looked for that moves again meanwhile.
const MAX_TRIES: u32 = 4;

/// What an opening is given.
pub(crate) struct Opening {
    pub context: Rc<Context>,
    /// The journal that its changes go to.
    pub journal: Rc<Journal>,
    pub pool: Rc<PoolStore>,
    pub volume: VolumeId,
    pub timeline: TimelineId,
    /// The epoch and writer of this opening, already in the volume's record.
    pub epoch: Epoch,
    pub writer: WriterId,
    pub settings: Settings,
    pub manifest: ManifestRef,
    /// The volume's show number if the timeline is the one shown, else 0. Attempts to show another one may have put manifests with lower ones.
    pub show_number: u64,
}

/// What the journals have of a timeline that is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Nothing: all of it was put.
    None,
    /// Everything that was promised and is not in the store.
    Whole,
    /// What a copy has left of what another node has run: what it lacks is lost, as a person was told.
    Left,
}

/// Opens a timeline, with what the journals have of it.
pub(crate) async fn open(opening: Opening, tail: Tail) -> Result<Rc<Timeline>> {
    let store = Arc::clone(&opening.pool.store);
    let mut old = load_manifest(&store, opening.timeline, opening.manifest).await.map_err(missing_is_corrupt)?;
    old.show_number = old.show_number.max(opening.show_number);
    let timeline = assemble(opening, old.clone());
    timeline.load_table(&old).await.map_err(missing_is_corrupt)?;
    timeline.load_inherited(&old).await?;
    timeline.load_rows(&old).await?;
    if tail != Tail::None {
        timeline.gather_strays(&old).await?;
    }
    // Only now, and in one step with the pins of the layers: until then the tail may be carried.
    let found = match tail {
        Tail::None => Vec::new(),
        Tail::Whole | Tail::Left => timeline.context.journals.tails(&timeline.journal).of(timeline.id),
    };
    let loaded = timeline.load_tail(&old, found, tail);
    let closed = if loaded.is_ok() { timeline.close_epoch(&old).await } else { loaded };
    closed.inspect_err(|_| timeline.let_go())?;
    timeline.seal_now();
    timeline.start_orphan_sweep();
    Ok(timeline)
}

/// A timeline as its manifest alone describes it.
pub(crate) fn assemble(opening: Opening, manifest: Manifest) -> Rc<Timeline> {
    let Opening { context, journal, pool, volume, timeline, epoch, writer, settings, .. } = opening;
    let data = data_of(&context, epoch, timeline, settings, &manifest);
    let open = Rc::clone(&context);
    let this = Rc::new(Timeline {
        id: timeline,
        volume,
        context,
        pool,
        journal,
        epoch,
        writer,
        own: manifest.own,
        lineages: Lineages::new(manifest.ancestors),
        ends: RefCell::default(),
        mirror: Mirror::default(),
        throttle: Throttle::default(),
        streams: Streams::default(),
        data: RefCell::new(data),
        loads: NodeLoads::default(),
        changed: Signal::default(),
        manifests: Turn::default(),
        checkpoints: Turn::default(),
        cleans: Turn::default(),
    });
    let mut timelines = open.timelines.borrow_mut();
    timelines.retain(|_, timeline| timeline.strong_count() > 0);
    timelines.insert(timeline, Rc::downgrade(&this));
    drop(timelines);
    this
}

/// What a timeline is as its manifest alone describes it.
fn data_of(context: &Context, epoch: Epoch, timeline: TimelineId, settings: Settings, manifest: &Manifest) -> Data {
    let tree = if manifest.root.is_absent() { Tree::empty() } else { Tree::cold(manifest.root) };
    let next_ordinal = manifest.first_ordinal.max(manifest.boundary);
    Data {
        settings,
        size: manifest.size,
        last: manifest.merged,
        last_end: 0,
        flushed: manifest.merged,
        told_safe: Sequence(0),
        awaited: None,
        open: Layer::new(epoch),
        open_epoch: epoch,
        sealed: VecDeque::new(),
        sealed_taken: 0,
        next_ordinal,
        counted: manifest.merged,
        counted_end: next_ordinal,
        counted_size: manifest.size,
        overlay: Overlay::default(),
        tree,
        table: SegmentTable::new(timeline),
        snapshots: manifest.snapshots.clone(),
        pending: Vec::new(),
        manifest_number: manifest.number,
        last_root: manifest.last_root,
        reconsider: has_kept_runs(manifest),
        to_ask: BTreeSet::new(),
        rewind_ends: false,
        touched: context.env.now(),
        counted_bytes: 0,
        stopped: None,
        no_checkpoints: None,
        busy: Vec::new(),
        previous_manifest: None,
        deleted: BTreeSet::new(),
        deleting: false,
        unclean: BTreeSet::new(),
        clean_at: None,
        victims: Victims::default(),
        pins: Vec::new(),
        fresh_maps: Vec::new(),
        reclaiming: false,
        manifest: manifest.clone(),
    }
}

/// Whether kills wait that a snapshot or a hold keeps: one may have gone before they were asked again.
fn has_kept_runs(manifest: &Manifest) -> bool {
    manifest.kills.iter().any(|run| !run.window) || manifest.node_kills.iter().any(|run| run.waits == NodeWait::Kept)
}

impl Timeline {
    async fn load_table(&self, manifest: &Manifest) -> Result<()> {
        let mut tables: BTreeMap<u64, (ObjectName, PageTable)> = BTreeMap::new();
        for page in &manifest.table {
            let (name, table) = match tables.entry(page.object) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => {
                    new.insert(proved(async || self.load_page_table(manifest, page.object).await).await?)
                }
            };
            let text = name.to_string();
            let range = table.range(page.index).map_err(damaged(&text))?;
            let ask = async || {
                let bytes = get_range(&*self.pool.store, &text, range.clone()).await?;
                table.verify(page.index, &bytes).map_err(damaged(&text))?;
                Ok(bytes)
            };
            let bytes = proved(ask).await?;
            let entries = decode_page(page.page, &bytes).map_err(damaged(&text))?;
            self.data.borrow_mut().table.load(*page, entries);
        }
        Ok(())
    }

    async fn load_page_table(&self, manifest: &Manifest, object: u64) -> Result<(ObjectName, PageTable)> {
        let name = table_object(manifest, object)?;
        let text = name.to_string();
        let mut head = self.pool.store.get_head(&text, 64 << 10).await?;
        let count = PageTable::decode_header(&name, &head).map_err(damaged(&text))?;
        if table_len(count) > head.len() as u64 {
            head = self.pool.store.get_head(&text, table_len(count)).await?;
        }
        Ok((name, PageTable::decode(&name, &head).map_err(damaged(&text))?))
    }

    /// What a segment of the origin has changed, from its own object or from where the origin's table says that it is: cleaning has put it there since; or it
    /// never came to the bundle that it was on its way to when it was inherited, because the origin died before that counted.
    async fn inherited_extents(&self, own: &ObjectName) -> Result<Vec<IndexExtent>> {
        let (store, ordinal) = (&*self.pool.store, Ordinal(own.number));
        let gone = match load_history(store, own, ordinal).await {
            Err(error) if error.kind() == ErrorKind::NotFound => error,
            done => return done,
        };
        for _ in 0..MAX_TRIES {
            self.lineages.forget(own.timeline);
            let now = self.segment_object(own.timeline, ordinal).await?;
            if now == *own {
                // Nobody has moved it: it is lost.
                break;
            }
            match load_history(store, &now, ordinal).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                done => return done,
            }
        }
        Err(missing_is_corrupt(gone))
    }

    /// Entries of the origin's segments that no root of this timeline has merged yet.
    async fn load_inherited(&self, manifest: &Manifest) -> Result<()> {
        let (Some(birth), false) = (manifest.birth, manifest.inherited.is_empty()) else { return Ok(()) };
        let origin = manifest.ancestors.iter().find(|a| a.timeline == birth.origin);
        let Some(origin) = origin else {
            return Err(EngineError::corrupt(format!("timeline {}: its origin is not among its ancestors", self.id)));
        };
        reached(Branch::EntriesInherited);
        let mut stratum = Stratum { end: manifest.boundary, ..Stratum::default() };
        for row in &manifest.inherited {
            for ordinal in row.first.0..row.end.0 {
                let name = ObjectName {
                    timeline: birth.origin,
                    kind: ObjectKind::Segment,
                    number: ordinal,
                    part: 0,
                    epoch: row.epoch,
                    writer: row.writer,
                };
                stratum.replay(origin.lineage, Ordinal(ordinal), &self.inherited_extents(&name).await?);
            }
        }
        self.data.borrow_mut().overlay = Overlay::inherited(vec![Arc::new(stratum)]);
        Ok(())
    }

    /// Segments behind the manifest's boundary: those of earlier writers, then those of its own.
    async fn load_rows(&self, manifest: &Manifest) -> Result<()> {
        for row in manifest.cuts.iter().filter(|cut| cut.end > manifest.boundary) {
            for ordinal in row.first.max(manifest.boundary).0..row.end.0 {
                reached(Branch::EarlierRow);
                let name = row_name(manifest, Ordinal(ordinal));
                self.count_loaded(name).await.map_err(missing_is_corrupt)?;
            }
        }
        let first = manifest.first_ordinal.max(manifest.boundary);
        for ordinal in first.0..first.0 + MAX_PROBES {
            let name = row_name(manifest, Ordinal(ordinal));
            if planted(Mutant::BelieveListing) && self.pool.store.list(&name.to_string(), None).await?.is_empty() {
                break;
            }
            match self.count_loaded(name).await {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound || planted(Mutant::ErrorIsAbsence) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn count_loaded(&self, name: ObjectName) -> Result<()> {
        let (header, index) = load_segment_head(&*self.pool.store, &name).await?;
        let size = self.pool.store.head(&name.to_string()).await?.size;
        if size != header.object_len() {
            let what = format!("{name}: it has {size} bytes, not the {} that it should", header.object_len());
            return Err(EngineError::corrupt(what));
        }
        let mut data = self.data.borrow_mut();
        if header.first != data.counted.next() {
            let what = format!("{name}: it begins with change {}, not with {}", header.first, data.counted.next());
            return Err(EngineError::corrupt(what));
        }
        for mark in &index.marks {
            if let Mark::Size { size, .. } = mark {
                data.size = *size;
            }
        }
        data.last = header.last;
        data.next_ordinal = header.ordinal.next();
        self.count(&mut data, &PutSegment { name, header, index });
        Ok(())
    }

    /// Ends the epochs before this one: a manifest with the cut, accepted.
    async fn close_epoch(self: &Rc<Self>, old: &Manifest) -> Result<()> {
        {
            let mut data = self.data.borrow_mut();
            seal(&mut data);
            data.open_epoch = self.epoch;
            data.open = Layer::new(self.epoch);
            data.last_root = RootNumber(old.last_root.0 + ROOT_GAP);
            data.previous_manifest = Some(old.object_name());
        }
        let mut manifest = {
            let mut data = self.data.borrow_mut();
            let row_end = data.counted_end.max(old.first_ordinal);
            let first_new = data.sealed.front().map_or(data.next_ordinal, |sealed| sealed.ordinal);
            let mut manifest = Manifest {
                epoch: self.epoch,
                writer: self.writer,
                written_ms: self.context.now_ms(),
                first_ordinal: first_new,
                last_root: data.last_root,
                ..old.clone()
            };
            let cut =
                Cut { epoch: old.epoch, writer: old.writer, first: old.first_ordinal, end: row_end, last: data.last };
            manifest.cuts.retain(|cut| cut.end > old.boundary || cut.last > old.merged);
            if !planted(Mutant::RecoverWithoutCut) {
                manifest.cuts.push(cut);
            }
            data.counted_end = first_new;
            manifest
        };
        put_numbered(&*self.context.env, &*self.pool.store, &mut manifest).await?;
        let last = self.data.borrow().last;
        let last = if planted(Mutant::EndTooLate) { last.next() } else { last };
        let end = EpochEnd { timeline: self.id, epoch: old.epoch, last };
        let note = |record: &mut VolumeRecord| {
            record.note_end(end);
            if record.shown == end.timeline && !planted(Mutant::OpenKeepsMirror) {
                record.mirror = None;
                record.forced = false;
            }
            Ok(())
        };
        let record = accept(&self.context, self.volume, &manifest, note).await?;
        self.ends.replace(record.ends);
        self.data.borrow_mut().manifest_number = manifest.number;
        self.data.borrow_mut().manifest = manifest;
        Ok(())
    }
}

/// An object that a manifest names is there, or the store has lost it.
pub(crate) fn missing_is_corrupt(error: EngineError) -> EngineError {
    if error.kind() == ErrorKind::NotFound {
        reached(Branch::ObjectMissing);
        return EngineError::corrupt(format!("an object that is needed is missing: {error}"));
    }
    error
}
