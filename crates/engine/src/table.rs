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
    /// Kept with every change: a large volume has tens of thousands of segments, and is asked often.
    totals: TableTotals,
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

impl TableTotals {
    fn add(&mut self, entry: &TableEntry) {
        self.segments += 1;
        self.partly_dead += u64::from(entry.live.live() < entry.live.blocks());
        self.blocks += u64::from(entry.live.blocks());
        self.live_blocks += u64::from(entry.live.live());
        self.bytes += entry.bytes;
    }

    fn subtract(&mut self, entry: &TableEntry) {
        self.segments -= 1;
        self.partly_dead -= u64::from(entry.live.live() < entry.live.blocks());
        self.blocks -= u64::from(entry.live.blocks());
        self.live_blocks -= u64::from(entry.live.live());
        self.bytes -= entry.bytes;
    }
}

impl SegmentTable {
    /// Takes a page in that a manifest refers to.
    pub fn load(&mut self, page: PageRef, entries: TablePage) {
        self.pages.insert(page.page, page);
        for (ordinal, entry) in entries {
            self.enter(ordinal, entry);
        }
    }

    fn enter(&mut self, ordinal: Ordinal, entry: TableEntry) {
        self.totals.add(&entry);
        if let Some(before) = self.entries.insert(ordinal, entry) {
            self.totals.subtract(&before);
        }
    }

    /// Takes a segment in that counts from now on.
    pub fn insert(&mut self, ordinal: Ordinal, entry: TableEntry) {
        self.dirty.insert(ordinal.0 / PAGE_ORDINALS);
        self.enter(ordinal, entry);
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
            self.totals.live_blocks -= 1;
            self.totals.partly_dead += u64::from(entry.live.live() + 1 == entry.live.blocks());
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
                let entry = self.entries.remove(&ordinal)?;
                self.totals.subtract(&entry);
                Some((ordinal, entry))
            })
            .collect()
    }

    /// Takes out every segment at or above `boundary`.
    pub fn take_from(&mut self, boundary: Ordinal) -> Vec<(Ordinal, TableEntry)> {
        let gone = self.entries.split_off(&boundary);
        for (ordinal, entry) in &gone {
            self.dirty.insert(ordinal.0 / PAGE_ORDINALS);
            self.totals.subtract(entry);
        }
        gone.into_iter().collect()
    }

    /// The dirty pages that begin below `boundary`, in order. The caller puts what [`encode`](Self::encode) gives and then tells
    /// [`written`](Self::written).
    pub fn dirty_pages(&self, boundary: Ordinal) -> Vec<u64> {
        self.dirty.iter().copied().filter(|page| page * PAGE_ORDINALS < boundary.0).collect()
    }

    /// The bytes of a page as far as it lies below `boundary`; `None` for one that is empty, and loses its reference.
    pub fn encode(&self, page: u64, boundary: Ordinal) -> Option<Vec<u8>> {
        let first = page * PAGE_ORDINALS;
        let range = Ordinal(first)..Ordinal((first + PAGE_ORDINALS).min(boundary.0));
        let entries: Vec<_> = self.entries.range(range).map(|(o, e)| (*o, e)).collect();
        (!entries.is_empty()).then(|| encode_page(page, &entries))
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
    pub const fn totals(&self) -> TableTotals {
        self.totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use varve_format::table::LiveBits;
    use varve_types::{Epoch, Sequence, WriterId};

    #[test]
    fn totals_are_those_of_a_recount() {
        let entry = |blocks| TableEntry {
            epoch: Epoch(1),
            writer: WriterId(2),
            bytes: 100 + u64::from(blocks),
            last: Sequence(3),
            sealed_ms: 4,
            live: LiveBits::all(blocks),
        };
        let check = |table: &SegmentTable| {
            let mut again = TableTotals::default();
            table.iter().for_each(|(_, entry)| again.add(entry));
            assert_eq!(table.totals(), again);
        };
        let mut table = SegmentTable::default();
        table.load(PageRef { page: 0, object: 1, index: 0 }, vec![(Ordinal(1), entry(2)), (Ordinal(2), entry(70))]);
        table.insert(Ordinal(3), entry(1));
        table.insert(Ordinal(3), entry(3));
        check(&table);
        for (ordinal, block) in [(1, 0), (2, 69), (1, 0), (3, 2), (1, 1)] {
            table.clear(Ordinal(ordinal), block).unwrap();
            check(&table);
        }
        assert_eq!(
            table.totals(),
            TableTotals { segments: 3, partly_dead: 3, blocks: 75, live_blocks: 71, bytes: 375 }
        );
        assert_eq!(table.take_dead(Ordinal(9), |_| false).len(), 1);
        check(&table);
        assert!(table.clear(Ordinal(1), 0).is_err() && table.clear(Ordinal(2), 70).is_err());
        assert_eq!(table.dirty_pages(Ordinal(0)), [0u64; 0]);
        assert!(table.dirty_pages(Ordinal(3)) == [0] && table.encode(0, Ordinal(2)).is_none());
    }
}
