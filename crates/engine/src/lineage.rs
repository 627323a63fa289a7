// SPDX-License-Identifier: Apache-2.0
//! Where the segments and map nodes of a timeline's ancestors are.
//!
//! A pointer names an ancestor by its index. The names of the ancestor's objects are in the ancestor's own newest
//! manifest: its table below the boundary, its rows of writers above. They are loaded when they are needed first,
//! page by page, and loaded anew when an object turns out to be gone.

use crate::context::{Context, damaged};
use crate::proof::proved;
use crate::{EngineError, Result};
use bytes::Bytes;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use varve_coord::{ManifestRef, Records};
use varve_env::ObjectStore;
use varve_format::manifest::{Ancestor, MAX_MANIFEST, Manifest, MapObject, PageRef, TableObject};
use varve_format::page::{PageTable, table_len};
use varve_format::table::{PAGE_ORDINALS, TablePage, decode_page};
use varve_format::{Lineage, NodePointer, ObjectKind, ObjectName};
use varve_types::branch::{Branch, reached, reached_if};
use varve_types::{ErrorKind, Ordinal, RootNumber, TimelineId};

/// What is known of one ancestor.
struct Known {
    manifest: Manifest,
    pages: BTreeMap<u64, Objects>,
}

/// Where the segments of a page of the table are. What is live of them is their own timeline's to know.
type Objects = Vec<(Ordinal, ObjectName)>;

/// The ancestors of a timeline, and itself.
pub(crate) struct Lineages {
    entries: Vec<Ancestor>,
    known: RefCell<BTreeMap<TimelineId, Known>>,
}

impl Lineages {
    pub fn new(entries: Vec<Ancestor>) -> Self {
        Self { entries, known: RefCell::new(BTreeMap::new()) }
    }

    /// The timeline with this index.
    ///
    /// # Errors
    /// `Corrupt` when no ancestor has it.
    pub fn timeline(&self, lineage: Lineage) -> Result<TimelineId> {
        let found = self.entries.iter().find(|a| a.lineage == lineage);
        found.map(|a| a.timeline).ok_or_else(|| EngineError::corrupt(format!("map: no ancestor has index {lineage}")))
    }

    /// Bytes of RAM that pages take, about.
    pub fn bytes_in_ram(&self) -> usize {
        let entries = |known: &Known| known.pages.values().map(|page| page.capacity() + 1).sum::<usize>();
        self.known.borrow().values().map(entries).sum::<usize>() * size_of::<(Ordinal, ObjectName)>()
    }

    /// Forgets what is known of an ancestor: it has a newer manifest.
    pub fn forget(&self, timeline: TimelineId) {
        reached(Branch::LookedUpAnew);
        self.known.borrow_mut().remove(&timeline);
    }

    async fn know(&self, context: &Context, store: &Arc<dyn ObjectStore>, timeline: TimelineId) -> Result<()> {
        if self.known.borrow().contains_key(&timeline) {
            return Ok(());
        }
        let manifest = newest_manifest(context, store, timeline).await?;
        self.known.borrow_mut().insert(timeline, Known { manifest, pages: BTreeMap::new() });
        Ok(())
    }

    /// The object that has the blocks of an ancestor's segment.
    pub async fn segment(
        &self,
        context: &Context,
        store: &Arc<dyn ObjectStore>,
        timeline: TimelineId,
        ordinal: Ordinal,
    ) -> Result<ObjectName> {
        self.know(context, store, timeline).await?;
        let wanted = {
            let known = self.known.borrow();
            let known = known.get(&timeline).ok_or_else(|| EngineError::new(ErrorKind::Busy, "map: try again"))?;
            if ordinal >= known.manifest.boundary {
                return Ok(row_name(&known.manifest, ordinal));
            }
            let page = ordinal.0 / PAGE_ORDINALS;
            match known.pages.get(&page) {
                Some(objects) => return object_of(timeline, objects, ordinal),
                None => known.manifest.table.iter().find(|p| p.page == page).map(|p| (*p, known.manifest.clone())),
            }
        };
        let Some((page, manifest)) = wanted else { return Err(missing(timeline, ordinal)) };
        let entries = load_table_page(store, &manifest, page).await?;
        let objects = entries.iter().map(|(ordinal, entry)| (*ordinal, entry.object(timeline, *ordinal))).collect();
        let name = object_of(timeline, &objects, ordinal);
        if let Some(known) = self.known.borrow_mut().get_mut(&timeline) {
            known.pages.insert(page.page, objects);
        }
        name
    }

    /// The object of an ancestor's map node.
    pub async fn map_object(
        &self,
        context: &Context,
        store: &Arc<dyn ObjectStore>,
        timeline: TimelineId,
        node: NodePointer,
    ) -> Result<ObjectName> {
        self.know(context, store, timeline).await?;
        let known = self.known.borrow();
        let manifest =
            &known.get(&timeline).ok_or_else(|| EngineError::new(ErrorKind::Busy, "map: try again"))?.manifest;
        map_object(manifest, node.root(), node.part())
    }
}

fn missing(timeline: TimelineId, ordinal: Ordinal) -> EngineError {
    EngineError::corrupt(format!("timeline {timeline}: segment {ordinal} is in no page of its table"))
}

fn object_of(timeline: TimelineId, objects: &Objects, ordinal: Ordinal) -> Result<ObjectName> {
    let found = objects.iter().find(|(at, _)| *at == ordinal);
    found.map(|(_, name)| *name).ok_or_else(|| missing(timeline, ordinal))
}

/// The object of a segment at or above a manifest's boundary: of the row of an earlier writer, or of the manifest's own.
pub(crate) fn row_name(manifest: &Manifest, ordinal: Ordinal) -> ObjectName {
    let row = manifest.cuts.iter().find(|cut| cut.first <= ordinal && ordinal < cut.end);
    let (epoch, writer) = row.map_or((manifest.epoch, manifest.writer), |cut| (cut.epoch, cut.writer));
    let (timeline, kind) = (manifest.timeline, ObjectKind::Segment);
    ObjectName { timeline, kind, number: ordinal.0, part: 0, epoch, writer }
}

/// The map object that holds the nodes of a root's part.
pub(crate) fn map_object(manifest: &Manifest, root: RootNumber, part: u8) -> Result<ObjectName> {
    let object = manifest.maps.iter().find(|map| map.root == root && map.part == part);
    let Some(object) = object else {
        let what = format!("timeline {}: no map object holds part {part} of root {root}", manifest.timeline);
        return Err(EngineError::corrupt(what));
    };
    Ok(map_name(manifest.timeline, object))
}

/// The name of a map object of a timeline.
pub(crate) const fn map_name(timeline: TimelineId, map: &MapObject) -> ObjectName {
    let MapObject { root, part, epoch, writer, .. } = *map;
    ObjectName { timeline, kind: ObjectKind::Map, number: root.0 as u64, part, epoch, writer }
}

/// Manifests that may be accepted, one after the other, while one is being loaded.
const MAX_NEWER: u32 = 8;

/// The manifest of a timeline that coordination accepted last.
///
/// # Errors
/// `Corrupt` when the store does not have it.
pub(crate) async fn newest_manifest(
    context: &Context,
    store: &Arc<dyn ObjectStore>,
    timeline: TimelineId,
) -> Result<Manifest> {
    let found = newest_manifest_if_there(context, store, timeline).await?;
    found.map_err(|accepted| {
        let name = manifest_name(timeline, accepted);
        EngineError::corrupt(format!("an object that is needed is missing: {name}"))
    })
}

/// The same; where the store does not have it, what coordination calls it: the objects of a deleted timeline go before its record does.
pub(crate) async fn newest_manifest_if_there(
    context: &Context,
    store: &Arc<dyn ObjectStore>,
    timeline: TimelineId,
) -> Result<std::result::Result<Manifest, ManifestRef>> {
    let records = Records::new(&*context.coord);
    let mut missing = None;
    for _ in 0..MAX_NEWER {
        let volume = records.find_timeline(timeline).await?;
        let (record, _) = records.load_volume(volume).await?;
        let accepted = record.timeline(timeline).and_then(|t| t.manifest);
        let Some(accepted) = accepted else {
            return Err(EngineError::corrupt(format!("timeline {timeline}: coordination names no manifest of it")));
        };
        match load_manifest(store, timeline, accepted).await {
            Ok(manifest) => {
                reached_if(missing.is_some(), Branch::ManifestGone);
                return Ok(Ok(manifest));
            }
            // Others may have been accepted, and this one deleted, since coordination was asked.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if missing.replace(accepted) == Some(accepted) {
                    return Ok(Err(accepted));
                }
            }
            Err(error) => return Err(error),
        }
    }
    Err(EngineError::new(ErrorKind::Busy, format!("timeline {timeline}: its manifests change all the time")))
}

pub(crate) fn manifest_name(timeline: TimelineId, named: ManifestRef) -> ObjectName {
    let ManifestRef { number, epoch, writer } = named;
    ObjectName { timeline, kind: ObjectKind::Manifest, number, part: 0, epoch, writer }
}

/// Loads a manifest and checks that it is the one that was named.
pub(crate) async fn load_manifest(
    store: &Arc<dyn ObjectStore>,
    timeline: TimelineId,
    wanted: ManifestRef,
) -> Result<Manifest> {
    let name = manifest_name(timeline, wanted);
    let text = name.to_string();
    proved(async || {
        let bytes = store.get_head(&text, MAX_MANIFEST).await?;
        let manifest = Manifest::decode(&bytes).map_err(damaged(&text))?;
        if manifest.object_name() != name {
            return Err(EngineError::corrupt(format!("{text}: it says that it is another object")));
        }
        Ok(manifest)
    })
    .await
}

/// Loads a page of the segment table that a manifest refers to.
pub(crate) async fn load_table_page(
    store: &Arc<dyn ObjectStore>,
    manifest: &Manifest,
    page: PageRef,
) -> Result<TablePage> {
    let name = table_object(manifest, page.object)?;
    let bytes = load_record(store, &name, page.index).await?;
    decode_page(page.page, &bytes).map_err(damaged(name))
}

/// The table object with this number.
pub(crate) fn table_object(manifest: &Manifest, number: u64) -> Result<ObjectName> {
    let object = manifest.tables.iter().find(|t| t.number == number);
    let Some(object) = object else {
        return Err(EngineError::corrupt(format!("{}: it names no table object {number}", manifest.object_name())));
    };
    Ok(table_name(manifest.timeline, object))
}

/// The name of a table object of a timeline.
pub(crate) const fn table_name(timeline: TimelineId, table: &TableObject) -> ObjectName {
    let TableObject { number, epoch, writer, .. } = *table;
    ObjectName { timeline, kind: ObjectKind::Table, number, part: 0, epoch, writer }
}

/// Bytes of a page object that a first get asks for: the table of some thousand records.
const FIRST_GET: u64 = 64 << 10;

/// Reads a range that the object has if it is whole.
///
/// # Errors
/// `Corrupt` when it ends before: a store calls that a wrong request, like one without rights.
pub(crate) async fn get_range(store: &dyn ObjectStore, name: &str, range: std::ops::Range<u64>) -> Result<Bytes> {
    let end = range.end;
    let error = match store.get(name, range).await {
        Ok(bytes) => return Ok(bytes),
        Err(error) => error,
    };
    if error.kind() == ErrorKind::Invalid
        && let Ok(info) = store.head(name).await
        && info.size < end
    {
        return Err(EngineError::corrupt(format!("{name}: it has {} bytes and should have {end} at least", info.size)));
    }
    Err(error.into())
}

/// Tables of page objects that records were read of last. Objects never change, so nor does what is kept here; without it, each cold node of a
/// large map would cost the table of tens of thousands of others.
pub(crate) struct PageTables {
    /// The one used last stands behind.
    tables: VecDeque<(ObjectName, Rc<PageTable>)>,
    records: u64,
    most_records: u64,
}

/// Most tables kept, and most bytes of all of them together.
const MAX_TABLES: usize = 256;
const MAX_TABLE_BYTES: u64 = 16 << 20;
/// Bytes of a record in its table.
const RECORD_BYTES: u64 = 8;

impl PageTables {
    /// None yet; so many bytes of them are kept at most, and one table at least.
    pub fn new(most_bytes: u64) -> Self {
        let most_records = most_bytes.min(MAX_TABLE_BYTES) / RECORD_BYTES;
        Self { tables: VecDeque::new(), records: 0, most_records }
    }

    /// Bytes of RAM that they take, about.
    pub const fn bytes(&self) -> usize {
        (self.records * RECORD_BYTES) as usize
    }

    fn get(&mut self, name: &ObjectName) -> Option<Rc<PageTable>> {
        let at = self.tables.iter().rposition(|(known, _)| known == name)?;
        let found = self.tables.remove(at)?;
        self.tables.push_back(found.clone());
        Some(found.1)
    }

    fn insert(&mut self, name: ObjectName, table: Rc<PageTable>) {
        self.records += u64::from(table.count());
        self.tables.push_back((name, table));
        while self.tables.len() > 1 && (self.tables.len() > MAX_TABLES || self.records > self.most_records) {
            if let Some((_, oldest)) = self.tables.pop_front() {
                self.records -= u64::from(oldest.count());
            }
        }
    }
}

/// Loads the table of a page object. Gives what was read with it as well: the beginning of the object.
async fn load_page_table(store: &Arc<dyn ObjectStore>, name: &ObjectName) -> Result<(PageTable, Bytes)> {
    let text = name.to_string();
    let mut head = store.get_head(&text, FIRST_GET).await?;
    let count = PageTable::decode_header(name, &head).map_err(damaged(&text))?;
    if table_len(count) > head.len() as u64 {
        head = store.get_head(&text, table_len(count)).await?;
    }
    Ok((PageTable::decode(name, &head).map_err(damaged(&text))?, head))
}

/// Loads one record of a page object, and proves it.
pub(crate) async fn load_record(store: &Arc<dyn ObjectStore>, name: &ObjectName, index: u32) -> Result<Bytes> {
    let ask = async || {
        let (table, head) = load_page_table(store, name).await?;
        record_of(store, name, &table, &head, index).await
    };
    proved(ask).await
}

/// The same for an object of which other records are likely to be asked soon: a map's.
pub(crate) async fn load_node_record(
    context: &Context,
    store: &Arc<dyn ObjectStore>,
    name: &ObjectName,
    index: u32,
) -> Result<Bytes> {
    proved(async || ask_node_record(context, store, name, index).await).await
}

async fn ask_node_record(
    context: &Context,
    store: &Arc<dyn ObjectStore>,
    name: &ObjectName,
    index: u32,
) -> Result<Bytes> {
    let known = context.tables.borrow_mut().get(name);
    if let Some(table) = known {
        return record_of(store, name, &table, &Bytes::new(), index).await;
    }
    let (table, head) = load_page_table(store, name).await?;
    let table = Rc::new(table);
    context.tables.borrow_mut().insert(*name, Rc::clone(&table));
    record_of(store, name, &table, &head, index).await
}

/// Records closer together than this are read with one get, the bytes between them too.
const NEAR_BYTES: u64 = 32 << 10;
/// Most bytes read with one get, if there is more than one record in them.
const MOST_BYTES: u64 = 1 << 20;

/// Loads several records of a map object, whose indexes grow, and proves them. Those that lie together come with one get.
pub(crate) async fn load_node_records(
    context: &Context,
    store: &Arc<dyn ObjectStore>,
    name: &ObjectName,
    indexes: &[u32],
) -> Result<Vec<Bytes>> {
    proved(async || ask_node_records(context, store, name, indexes).await).await
}

async fn ask_node_records(
    context: &Context,
    store: &Arc<dyn ObjectStore>,
    name: &ObjectName,
    indexes: &[u32],
) -> Result<Vec<Bytes>> {
    let known = context.tables.borrow_mut().get(name);
    let table = match known {
        Some(table) => table,
        None => {
            let table = Rc::new(load_page_table(store, name).await?.0);
            context.tables.borrow_mut().insert(*name, Rc::clone(&table));
            table
        }
    };
    let text = name.to_string();
    let places = indexes.iter().map(|index| Ok((*index, table.range(*index).map_err(damaged(&text))?)));
    let places = places.collect::<Result<Vec<_>>>()?;
    let mut records = Vec::with_capacity(places.len());
    let mut rest = &places[..];
    while let Some((_, first)) = rest.first() {
        let mut end = first.end;
        let together = rest.iter().take_while(|(_, place)| {
            let near = place.start <= end + NEAR_BYTES
                && (place.start == first.start || place.end - first.start <= MOST_BYTES);
            end = if near { place.end } else { end };
            near
        });
        let (group, behind) = rest.split_at(together.count());
        let bytes = get_range(&**store, &text, first.start..end).await?;
        for (index, place) in group {
            let record = bytes.slice((place.start - first.start) as usize..(place.end - first.start) as usize);
            table.verify(*index, &record).map_err(damaged(&text))?;
            records.push(record);
        }
        rest = behind;
    }
    Ok(records)
}

async fn record_of(
    store: &Arc<dyn ObjectStore>,
    name: &ObjectName,
    table: &PageTable,
    head: &Bytes,
    index: u32,
) -> Result<Bytes> {
    let text = name.to_string();
    let range = table.range(index).map_err(damaged(&text))?;
    let bytes = if range.end <= head.len() as u64 {
        head.slice(range.start as usize..range.end as usize)
    } else {
        get_range(&**store, &text, range).await?
    };
    table.verify(index, &bytes).map_err(damaged(&text))?;
    Ok(bytes)
}
