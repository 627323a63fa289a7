// SPDX-License-Identifier: Apache-2.0
//! Every byte of a timeline's objects, read from the store and proved: all blocks of all segments (dead ones too),
//! all records of map and table objects.
//!
//! The RAM cache is passed by: what is proved is what the store has. An object at a time, a few hundred blocks at a
//! time, with looks at other tasks between.

use super::objects::{Objects, record_of};
use super::{CheckReport, Progress, Subject};
use crate::context::Head;
use crate::lineage::{get_range, map_object, table_object};
use crate::read::{fetch_ranks, heads_of, load_bundle_head, load_segment_head};
use crate::signal::breathe;
use crate::timeline::Timeline;
use crate::{EngineError, Result};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use varve_format::bundle::{BUNDLE_HEADER, Share};
use varve_format::segment::SEGMENT_HEADER;
use varve_format::table::TableEntry;
use varve_format::{ObjectKind, ObjectName};
use varve_types::Ordinal;

/// Blocks read at a time: whole chunks.
const STEP_BLOCKS: u32 = 256;

/// Verifies everything that the table and the manifest name.
pub(super) async fn verify(
    timeline: &Timeline,
    subject: &Subject,
    report: &mut CheckReport,
    progress: Progress<'_>,
) -> Result<()> {
    let total: u64 = subject.table.values().map(|entry| entry.bytes).sum();
    let mut done = 0;
    let mut objects: BTreeMap<ObjectName, Vec<(Ordinal, &TableEntry)>> = BTreeMap::new();
    for (ordinal, entry) in &subject.table {
        objects.entry(subject.segment(*ordinal, entry)).or_default().push((*ordinal, entry));
    }
    for (name, entries) in objects {
        let verified = if name.kind == ObjectKind::Bundle {
            bundle(timeline, &name, &entries, report).await
        } else {
            segment(timeline, &name, entries[0].1, report).await
        };
        report.note(name, verified)?;
        done += entries.iter().map(|(_, entry)| entry.bytes).sum::<u64>();
        progress(done, total);
    }
    let manifest = &subject.manifest;
    let maps = manifest.maps.iter().map(|map| (map_object(manifest, map.root, map.part), map.bytes, Some(map.records)));
    let tables = manifest.tables.iter().map(|table| (table_object(manifest, table.number), table.bytes, None));
    for (name, bytes, records) in maps.chain(tables) {
        let Some(name) = report.note(manifest.object_name(), name)? else { continue };
        let verified = pages(timeline, &name, bytes, records).await;
        if report.note(name, verified)?.is_some() {
            report.bytes_verified += bytes;
            report.objects += 1;
        }
        breathe().await;
    }
    Ok(())
}

async fn segment(timeline: &Timeline, name: &ObjectName, entry: &TableEntry, report: &mut CheckReport) -> Result<()> {
    let (header, index) = load_segment_head(&*timeline.pool.store, name).await?;
    let size = timeline.pool.store.head(&name.to_string()).await?.size;
    if size != header.object_len() || size != entry.bytes || header.blocks != entry.live.blocks() {
        let text = format!(
            "{name}: it has {size} bytes and {} blocks; its header says {} bytes, the table {} bytes and {} blocks",
            header.blocks,
            header.object_len(),
            entry.bytes,
            entry.live.blocks()
        );
        return Err(EngineError::corrupt(text));
    }
    padding(timeline, name, SEGMENT_HEADER as u64 + u64::from(header.index_len)..header.data_offset()).await?;
    blocks(timeline, &Head::new(*name, &header, &index.chunks), report).await?;
    report.objects += 1;
    report.bytes_verified += size;
    Ok(())
}

/// All shares of a bundle; and that it has all that lives of the segments that are said to be in it.
async fn bundle(
    timeline: &Timeline,
    name: &ObjectName,
    entries: &[(Ordinal, &TableEntry)],
    report: &mut CheckReport,
) -> Result<()> {
    let (header, shares) = load_bundle_head(&*timeline.pool.store, name).await?;
    let size = timeline.pool.store.head(&name.to_string()).await?.size;
    if size != header.object_len() {
        let text = format!("{name}: it has {size} bytes; its header says {}", header.object_len());
        return Err(EngineError::corrupt(text));
    }
    for (ordinal, entry) in entries {
        let share = shares.iter().find(|share| share.ordinal == *ordinal);
        let has = |share: &Share| {
            let found = (share.blocks.end(), share.blocks.len(), share.data_len());
            found == (entry.live.blocks(), entry.stored(), entry.bytes)
                && (0..entry.live.blocks())
                    .all(|block| !entry.live.is_live(block) || share.blocks.rank(block).is_some())
        };
        if !share.is_some_and(has) {
            let text = format!("{name}: its share of segment {ordinal} is not there, or not what the table says");
            return Err(EngineError::corrupt(text));
        }
    }
    padding(timeline, name, BUNDLE_HEADER as u64 + u64::from(header.index_len)..header.data_offset()).await?;
    for head in heads_of(name, &header, &shares) {
        blocks(timeline, &head, report).await?;
    }
    report.objects += 1;
    report.bytes_verified += size;
    Ok(())
}

/// No checksum covers the few bytes between index and data, and nobody reads them; they are zero all the same.
async fn padding(timeline: &Timeline, name: &ObjectName, range: Range<u64>) -> Result<()> {
    if !range.is_empty() {
        let bytes = get_range(&*timeline.pool.store, &name.to_string(), range).await?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Err(EngineError::corrupt(format!("{name}: the padding behind its index is not zero")));
        }
    }
    Ok(())
}

/// Every block that an object has of a segment.
async fn blocks(timeline: &Timeline, head: &Head, report: &mut CheckReport) -> Result<()> {
    let mut at = 0;
    while at < head.blocks.len() {
        let count = STEP_BLOCKS.min(head.blocks.len() - at);
        let blocks = fetch_ranks(&*timeline.pool.store, head, at, count).await?;
        report.blocks_verified += blocks.len() as u64;
        at += count;
        breathe().await;
    }
    Ok(())
}

async fn pages(timeline: &Timeline, name: &ObjectName, bytes: u64, records: Option<u32>) -> Result<()> {
    let object = Objects::new(Rc::clone(&timeline.pool)).object(name).await?;
    let (table, found) = (&object.0, &object.1);
    if found.len() as u64 != bytes || records.is_some_and(|records| records != table.count()) {
        let text = format!("{name}: it has {} bytes, the manifest says {bytes}", found.len());
        return Err(EngineError::corrupt(text));
    }
    for index in 0..table.count() {
        record_of(name, table, found, index)?;
    }
    Ok(())
}
