// SPDX-License-Identifier: Apache-2.0
//! One object of a timeline, every byte of it, read from the store and proved: all blocks of a segment or a bundle (dead ones too), all records of a map or
//! table object.
//!
//! The RAM cache is passed by, in both directions: what is proved is what the store has, and what is read for it pushes nothing out. A few hundred blocks at a
//! time, at the pace that is asked for, with looks at other tasks between.

use crate::context::{Head, damaged};
use crate::lineage::{get_range, map_object, table_object};
use crate::pace::Pace;
use crate::read::{fetch_ranks, heads_of, load_bundle_head, load_segment_head};
use crate::signal::breathe;
use crate::{EngineError, Result};
use bytes::Bytes;
use std::ops::Range;
use varve_env::ObjectStore;
use varve_format::bundle::{BUNDLE_HEADER, Share};
use varve_format::manifest::Manifest;
use varve_format::page::PageTable;
use varve_format::segment::SEGMENT_HEADER;
use varve_format::table::TableEntry;
use varve_format::{ObjectKind, ObjectName};
use varve_types::branch::{Branch, reached};
use varve_types::mutant::{Mutant, planted};
use varve_types::{BLOCK, ErrorKind, Ordinal};

/// Blocks read at a time: whole chunks.
const STEP_BLOCKS: u32 = 256;
/// Longest object that is read at once.
const MAX_OBJECT: u64 = 2 << 30;

/// What was proved.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Proved {
    pub blocks: u64,
    pub bytes: u64,
}

/// How often a store is asked for what it does not answer right.
const TRIES: u32 = 3;

/// Asks again where an answer of a store does not prove: it may have gone wrong on its way. What is damaged in the store is so each time.
pub(crate) async fn proved<T>(mut ask: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let mut tries = 1;
    loop {
        match ask().await {
            Err(error)
                if error.kind() == ErrorKind::Corrupt && tries < TRIES && !planted(Mutant::BelieveFirstAnswer) =>
            {
                reached(Branch::AskedAgain);
                tracing::warn!(%error, tries, "the store is asked again: its answer does not prove");
                tries += 1;
            }
            done => return done,
        }
    }
}

/// Where objects are, and how fast they may be read.
#[derive(Clone, Copy)]
pub(crate) struct Prover<'a> {
    pub store: &'a dyn ObjectStore,
    pub pace: Pace<'a>,
}

/// The map and table objects that a manifest names: name, bytes, and records where it says how many.
pub(crate) fn page_objects(manifest: &Manifest) -> impl Iterator<Item = (Result<ObjectName>, u64, Option<u32>)> {
    let maps = manifest.maps.iter().map(|map| (map_object(manifest, map.root, map.part), map.bytes, Some(map.records)));
    maps.chain(manifest.tables.iter().map(|table| (table_object(manifest, table.number), table.bytes, None)))
}

impl Prover<'_> {
    /// A segment, or a bundle with what the table says of its shares.
    pub async fn data(&self, name: &ObjectName, entries: &[(Ordinal, &TableEntry)]) -> Result<Proved> {
        match (name.kind, entries) {
            (ObjectKind::Bundle, _) => self.bundle(name, entries).await,
            (_, [(_, entry), ..]) => self.segment(name, entry).await,
            (_, []) => Ok(Proved::default()),
        }
    }

    async fn segment(&self, name: &ObjectName, entry: &TableEntry) -> Result<Proved> {
        let (header, index) = load_segment_head(self.store, name).await?;
        let size = self.store.head(&name.to_string()).await?.size;
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
        self.padding(name, SEGMENT_HEADER as u64 + u64::from(header.index_len)..header.data_offset()).await?;
        let blocks = self.blocks(&Head::new(*name, &header, &index.chunks)).await?;
        Ok(Proved { blocks, bytes: size })
    }

    /// All shares of a bundle; and that it has all that lives of the segments that are said to be in it.
    async fn bundle(&self, name: &ObjectName, entries: &[(Ordinal, &TableEntry)]) -> Result<Proved> {
        let (header, shares) = load_bundle_head(self.store, name).await?;
        let size = self.store.head(&name.to_string()).await?.size;
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
        self.padding(name, BUNDLE_HEADER as u64 + u64::from(header.index_len)..header.data_offset()).await?;
        let mut blocks = 0;
        for head in heads_of(name, &header, &shares) {
            blocks += self.blocks(&head).await?;
        }
        Ok(Proved { blocks, bytes: size })
    }

    /// No checksum covers the few bytes between index and data, and nobody reads them; they are zero all the same.
    async fn padding(&self, name: &ObjectName, range: Range<u64>) -> Result<()> {
        if !range.is_empty() {
            let bytes = get_range(self.store, &name.to_string(), range).await?;
            if bytes.iter().any(|byte| *byte != 0) {
                return Err(EngineError::corrupt(format!("{name}: the padding behind its index is not zero")));
            }
        }
        Ok(())
    }

    /// Every block that an object has of a segment; gives how many.
    async fn blocks(&self, head: &Head) -> Result<u64> {
        let (mut at, mut proved) = (0, 0);
        while at < head.blocks.len() {
            let count = STEP_BLOCKS.min(head.blocks.len() - at);
            let blocks = fetch_ranks(self.store, head, at, count).await?.len() as u64;
            proved += blocks;
            at += count;
            self.pace.spend(blocks * BLOCK).await;
            breathe().await;
        }
        Ok(proved)
    }

    /// A map or table object: all of its records, and that it is as long as the manifest says.
    pub async fn pages(&self, name: &ObjectName, bytes: u64, records: Option<u32>) -> Result<Proved> {
        let text = name.to_string();
        let found = self.store.get_head(&text, MAX_OBJECT).await?;
        let table = PageTable::decode(name, &found).map_err(damaged(&text))?;
        if found.len() as u64 != bytes || records.is_some_and(|records| records != table.count()) {
            return Err(EngineError::corrupt(format!(
                "{name}: it has {} bytes, the manifest says {bytes}",
                found.len()
            )));
        }
        for index in 0..table.count() {
            record_of(name, &table, &found, index)?;
        }
        self.pace.spend(bytes).await;
        breathe().await;
        Ok(Proved { blocks: 0, bytes })
    }
}

/// A record of an object that was read whole, proved.
pub(crate) fn record_of(name: &ObjectName, table: &PageTable, bytes: &Bytes, index: u32) -> Result<Bytes> {
    let range = table.range(index).map_err(damaged(name))?;
    if range.end > bytes.len() as u64 {
        return Err(EngineError::corrupt(format!("{name}: it ends before record {index}")));
    }
    let record = bytes.slice(range.start as usize..range.end as usize);
    table.verify(index, &record).map_err(damaged(name))?;
    Ok(record)
}
