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
use crate::read::load_segment_head;
use crate::signal::breathe;
use crate::timeline::Timeline;
use crate::{EngineError, Result};
use std::rc::Rc;
use varve_format::ObjectName;
use varve_format::segment::SEGMENT_HEADER;
use varve_format::table::TableEntry;

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
    for (ordinal, entry) in &subject.table {
        let name = subject.segment(*ordinal, entry);
        let verified = segment(timeline, &name, entry, report).await;
        report.note(name, verified)?;
        done += entry.bytes;
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
    // No checksum covers the few bytes between index and data, and nobody reads them; they are zero all the same.
    let padding = SEGMENT_HEADER as u64 + u64::from(header.index_len)..header.data_offset();
    if !padding.is_empty() {
        let bytes = get_range(&*timeline.pool.store, &name.to_string(), padding).await?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Err(EngineError::corrupt(format!("{name}: the padding behind its index is not zero")));
        }
    }
    let head = Head::new(*name, &header, &index.chunks);
    let mut at = 0;
    while at < head.blocks {
        let count = STEP_BLOCKS.min(head.blocks - at);
        let blocks = timeline.fetch_from_store(&head, at, count).await?;
        report.blocks_verified += blocks.len() as u64;
        at += count;
        breathe().await;
    }
    report.objects += 1;
    report.bytes_verified += size;
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
