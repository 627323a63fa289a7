// SPDX-License-Identifier: Apache-2.0
//! The segment table of a timeline in RAM: where each segment is, and which of its blocks are live.
//!
//! Entries below the boundary of the last checkpoint are in pages in the store too; a page that changed since is
//! dirty and is written by the next one. Live bits only ever go out: clearing one twice is harmless, and a segment
//! that has none left leaves the table.

use crate::{EngineError, Result};
use std::collections::{BTreeMap, BTreeSet};
use varve_format::manifest::PageRef;
use varve_format::table::{PAGE_ORDINALS, TableEntry, TablePage, encode_page};
use varve_types::Ordinal;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct SegmentTable {
    entries: BTreeMap<Ordinal, TableEntry>,
    /// Where the pages of the last checkpoint are.
    pages: BTreeMap<u64, PageRef>,
    dirty: BTreeSet<u64>,
}

/// Totals for people and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableTotals {
    /// Segments that are kept.
    pub segments: u64,
    /// Segments of which some blocks are dead.
    pub partly_dead: u64,
    /// Blocks in them.
    pub blocks: u64,
    /// Blocks of them that are live.
    pub live_blocks: u64,
    /// Bytes of their objects.
    pub bytes: u64,
}

impl SegmentTable {
    /// Takes a page in that a manifest refers to.
    pub fn load(&mut self, page: PageRef, entries: TablePage) {
        self.pages.insert(page.page, page);
        self.entries.extend(entries);
    }

    /// Takes a segment in that counts from now on.
    pub fn insert(&mut self, ordinal: Ordinal, entry: TableEntry) {
        self.dirty.insert(ordinal.0 / PAGE_ORDINALS);
        self.entries.insert(ordinal, entry);
    }

    /// The entry of a segment.
    pub fn get(&self, ordinal: Ordinal) -> Option<&TableEntry> {
        self.entries.get(&ordinal)
    }

    /// Marks a block dead. Tells whether it was live.
    ///
    /// # Errors
    /// When the segment is not there or has no such block: map and table disagree.
    pub fn clear(&mut self, ordinal: Ordinal, block: u16) -> Result<bool> {
        let entry = self.entries.get_mut(&ordinal).filter(|entry| u32::from(block) < entry.live.blocks());
        let Some(entry) = entry else {
            let what = format!("segment table: block {block} of segment {ordinal} died but the table does not know it");
            return Err(EngineError::corrupt(what));
        };
        let was = entry.live.clear(u32::from(block));
        if was {
            self.dirty.insert(ordinal.0 / PAGE_ORDINALS);
        }
        Ok(was)
    }

    /// Takes out every segment below `boundary` without live blocks that `keep` does not ask for.
    pub fn take_dead(&mut self, boundary: Ordinal, keep: impl Fn(Ordinal) -> bool) -> Vec<(Ordinal, TableEntry)> {
        let dead: Vec<Ordinal> = self
            .entries
            .range(..boundary)
            .filter(|(ordinal, entry)| entry.live.live() == 0 && !keep(**ordinal))
            .map(|(ordinal, _)| *ordinal)
            .collect();
        dead.into_iter()
            .filter_map(|ordinal| {
                self.dirty.insert(ordinal.0 / PAGE_ORDINALS);
                self.entries.remove(&ordinal).map(|entry| (ordinal, entry))
            })
            .collect()
    }

    /// Encodes the dirty pages as far as they lie below `boundary`; empty ones lose their reference. The caller puts them and then tells
    /// [`written`](Self::written).
    pub fn dirty_pages(&self, boundary: Ordinal) -> Vec<(u64, Option<Vec<u8>>)> {
        self.dirty
            .iter()
            .filter(|page| **page * PAGE_ORDINALS < boundary.0)
            .map(|page| {
                let first = page * PAGE_ORDINALS;
                let range = Ordinal(first)..Ordinal((first + PAGE_ORDINALS).min(boundary.0));
                let entries: Vec<_> = self.entries.range(range).map(|(o, e)| (*o, e)).collect();
                (*page, (!entries.is_empty()).then(|| encode_page(*page, &entries)))
            })
            .collect()
    }

    /// The pages stand at these places from now on; `None` for a page that is gone. A page with segments beyond `boundary` stays dirty.
    pub fn written(&mut self, boundary: Ordinal, places: Vec<(u64, Option<PageRef>)>) {
        for (page, place) in places {
            match place {
                Some(place) => self.pages.insert(page, place),
                None => self.pages.remove(&page),
            };
            let end = Ordinal((page + 1) * PAGE_ORDINALS);
            // A segment beyond the boundary is not in the page yet. One that comes later makes the page dirty again.
            if end <= boundary || self.entries.range(boundary..end).next().is_none() {
                self.dirty.remove(&page);
            }
        }
    }

    /// Where the pages are, in order.
    pub fn pages(&self) -> Vec<PageRef> {
        self.pages.values().copied().collect()
    }

    /// All entries, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Ordinal, &TableEntry)> {
        self.entries.iter().map(|(ordinal, entry)| (*ordinal, entry))
    }

    /// Totals.
    pub fn totals(&self) -> TableTotals {
        self.entries.values().fold(TableTotals::default(), |mut t, entry| {
            t.segments += 1;
            t.partly_dead += u64::from(entry.live.live() < entry.live.blocks());
            t.blocks += u64::from(entry.live.blocks());
            t.live_blocks += u64::from(entry.live.live());
            t.bytes += entry.bytes;
            t
        })
    }
}
