// SPDX-License-Identifier: Apache-2.0
//! The segment table of a timeline in RAM: where each segment is, and which of its blocks are live.
//!
//! Entries below the boundary of the last checkpoint are in pages in the store too; a page that changed since is
//! dirty and is written by the next one. Live bits only ever go out: clearing one twice is harmless, and a segment
//! that has none left leaves the table.
//!
//! Several segments may be in one bundle. An object is *left* once no entry leads to it any more: whoever writes the
//! pages without those entries names it as dead in the same manifest, and not before.

use crate::{EngineError, Result};
use std::collections::{BTreeMap, BTreeSet};
use varve_format::ObjectName;
use varve_format::manifest::PageRef;
use varve_format::table::{PAGE_ORDINALS, Place, TableEntry, TablePage, encode_page};
use varve_types::mutant::{Mutant, planted};
use varve_types::{Ordinal, TimelineId};

/// See the module.
#[derive(Debug)]
pub(crate) struct SegmentTable {
    timeline: TimelineId,
    entries: BTreeMap<Ordinal, TableEntry>,
    /// Entries that lead to each bundle.
    bundles: BTreeMap<ObjectName, u32>,
    /// Objects that no entry leads to any more, until somebody takes their names.
    left: BTreeSet<ObjectName>,
    /// Where the pages of the last checkpoint are.
    pages: BTreeMap<u64, PageRef>,
    dirty: BTreeSet<u64>,
    /// Kept with every change: a large volume has tens of thousands of segments, and is asked often.
    totals: TableTotals,
    /// Bytes of all bitmaps.
    bitmap_bytes: usize,
}

/// Bytes of RAM of an entry in its tree, without its bitmap, about.
const ENTRY_BYTES: usize = (size_of::<Ordinal>() + size_of::<TableEntry>()) * 3 / 2;

/// Totals for people and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableTotals {
    /// Segments that are kept.
    pub segments: u64,
    /// Segments of which some stored blocks are dead.
    pub partly_dead: u64,
    /// Blocks that are stored of them.
    pub blocks: u64,
    /// Blocks of them that are live.
    pub live_blocks: u64,
    /// Bytes of their objects.
    pub bytes: u64,
}

impl TableTotals {
    fn add(&mut self, entry: &TableEntry) {
        self.segments += 1;
        self.partly_dead += u64::from(entry.live.live() < entry.stored());
        self.blocks += u64::from(entry.stored());
        self.live_blocks += u64::from(entry.live.live());
        self.bytes += entry.bytes;
    }

    /// Adds those of another table.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.segments += other.segments;
        self.partly_dead += other.partly_dead;
        self.blocks += other.blocks;
        self.live_blocks += other.live_blocks;
        self.bytes += other.bytes;
    }

    fn subtract(&mut self, entry: &TableEntry) {
        self.segments -= 1;
        self.partly_dead -= u64::from(entry.live.live() < entry.stored());
        self.blocks -= u64::from(entry.stored());
        self.live_blocks -= u64::from(entry.live.live());
        self.bytes -= entry.bytes;
    }
}

impl SegmentTable {
    /// An empty one.
    pub fn new(timeline: TimelineId) -> Self {
        Self {
            timeline,
            entries: BTreeMap::new(),
            bundles: BTreeMap::new(),
            left: BTreeSet::new(),
            pages: BTreeMap::new(),
            dirty: BTreeSet::new(),
            totals: TableTotals::default(),
            bitmap_bytes: 0,
        }
    }

    /// Bytes of RAM that it takes, about.
    pub fn bytes_in_ram(&self) -> usize {
        self.entries.len() * ENTRY_BYTES + self.bitmap_bytes
    }

    /// Takes a page in that a manifest refers to.
    pub fn load(&mut self, page: PageRef, entries: TablePage) {
        self.pages.insert(page.page, page);
        for (ordinal, entry) in entries {
            self.enter(ordinal, entry);
        }
    }

    fn enter(&mut self, ordinal: Ordinal, entry: TableEntry) {
        if let Some(before) = self.entries.remove(&ordinal) {
            // The same segment, counted again.
            self.totals.subtract(&before);
            self.bitmap_bytes -= before.live.heap_len();
        } else if entry.place != Place::Own {
            *self.bundles.entry(entry.object(self.timeline, ordinal)).or_default() += 1;
        }
        self.totals.add(&entry);
        self.bitmap_bytes += entry.live.heap_len();
        self.entries.insert(ordinal, entry);
    }

    /// An entry leads to its object no more.
    fn leave(&mut self, ordinal: Ordinal, entry: &TableEntry) {
        if !planted(Mutant::MoveWithoutPage) {
            self.dirty.insert(ordinal.0 / PAGE_ORDINALS);
        }
        self.totals.subtract(entry);
        self.bitmap_bytes -= entry.live.heap_len();
        let object = entry.object(self.timeline, ordinal);
        if entry.place != Place::Own {
            let entries = self.bundles.get_mut(&object).expect("every entry was counted");
            *entries -= 1;
            if *entries > 0 {
                self.left.extend(planted(Mutant::DropSharedBundle).then_some(object));
                return;
            }
            self.bundles.remove(&object);
        }
        self.left.insert(object);
    }

    /// Lets a segment be in a bundle from now on, if it is still where it was read from; tells whether it was.
    pub fn move_to(&mut self, ordinal: Ordinal, from: &ObjectName, to: &ObjectName, blocks: u32, bytes: u64) -> bool {
        if !self.leads_to(ordinal, from) {
            return false;
        }
        if let Some(entry) = self.entries.remove(&ordinal) {
            self.leave(ordinal, &entry);
            let place = Place::Bundle { number: to.number, blocks };
            self.enter(ordinal, TableEntry { place, epoch: to.epoch, writer: to.writer, bytes, ..entry });
        }
        true
    }

    /// Whether the blocks of a segment are in that object.
    pub fn leads_to(&self, ordinal: Ordinal, object: &ObjectName) -> bool {
        self.entries.get(&ordinal).is_some_and(|entry| entry.object(self.timeline, ordinal) == *object)
    }

    /// Whether any entry leads to a bundle.
    pub fn has_bundles(&self) -> bool {
        !self.bundles.is_empty()
    }

    /// Whether an entry leads to this bundle.
    pub fn has_bundle(&self, name: &ObjectName) -> bool {
        self.bundles.contains_key(name)
    }

    /// Names an object as one that no entry leads to: a bundle that came too late.
    pub fn never_used(&mut self, name: ObjectName) {
        self.left.insert(name);
    }

    /// Whether there are objects that no entry leads to any more.
    pub fn has_left(&self) -> bool {
        !self.left.is_empty()
    }

    /// Whether this is one of them: pages in the store may lead to it still.
    pub fn is_left(&self, name: &ObjectName) -> bool {
        self.left.contains(name) && !planted(Mutant::SweepLeft)
    }

    /// Takes the names of the objects that no entry leads to any more. The caller writes the pages, and names these as dead.
    pub fn take_left(&mut self) -> BTreeSet<ObjectName> {
        std::mem::take(&mut self.left)
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
        self.bitmap_bytes -= entry.live.heap_len();
        let was = entry.live.clear(u32::from(block));
        self.bitmap_bytes += entry.live.heap_len();
        if was {
            self.totals.live_blocks -= 1;
            self.totals.partly_dead += u64::from(entry.live.live() + 1 == entry.stored());
            self.dirty.insert(ordinal.0 / PAGE_ORDINALS);
        }
        Ok(was)
    }

    /// Takes out every segment below `boundary` without live blocks that `keep` does not ask for.
    pub fn drop_dead(&mut self, boundary: Ordinal, keep: impl Fn(Ordinal) -> bool) {
        let is_dead = |(ordinal, entry): &(&Ordinal, &TableEntry)| entry.live.live() == 0 && !keep(**ordinal);
        let dead: Vec<Ordinal> = self.entries.range(..boundary).filter(is_dead).map(|(ordinal, _)| *ordinal).collect();
        for ordinal in dead {
            if let Some(entry) = self.entries.remove(&ordinal) {
                self.leave(ordinal, &entry);
            }
        }
    }

    /// Takes out every segment at or above `boundary`.
    pub fn drop_from(&mut self, boundary: Ordinal) {
        for (ordinal, entry) in self.entries.split_off(&boundary) {
            self.leave(ordinal, &entry);
        }
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

    /// Entries of a range of ordinals, in order.
    pub fn range(&self, range: std::ops::Range<Ordinal>) -> impl DoubleEndedIterator<Item = (Ordinal, &TableEntry)> {
        self.entries.range(range).map(|(ordinal, entry)| (*ordinal, entry))
    }

    /// Totals.
    pub const fn totals(&self) -> TableTotals {
        self.totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use varve_format::ObjectKind;
    use varve_format::table::LiveBits;
    use varve_types::{Epoch, Sequence, WriterId};

    const TIMELINE: TimelineId = TimelineId::from_bytes([1; 16]);

    fn entry(blocks: u32) -> TableEntry {
        TableEntry {
            place: Place::Own,
            epoch: Epoch(1),
            writer: WriterId(2),
            bytes: 100 + u64::from(blocks),
            last: Sequence(3),
            sealed_ms: 4,
            live: LiveBits::all(blocks),
        }
    }

    fn check(table: &SegmentTable) {
        let mut again = TableTotals::default();
        table.iter().for_each(|(_, entry)| again.add(entry));
        assert_eq!(table.totals(), again);
        assert_eq!(table.bitmap_bytes, table.iter().map(|(_, entry)| entry.live.heap_len()).sum::<usize>());
    }

    #[test]
    fn totals_are_those_of_a_recount() {
        let mut table = SegmentTable::new(TIMELINE);
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
        table.drop_dead(Ordinal(9), |_| false);
        let left = table.take_left();
        assert!(left.len() == 1 && left.iter().all(|name| name.number == 1) && !table.has_left());
        check(&table);
        assert!(table.clear(Ordinal(1), 0).is_err() && table.clear(Ordinal(2), 70).is_err());
        assert_eq!(table.dirty_pages(Ordinal(0)), [0u64; 0]);
        assert!(table.dirty_pages(Ordinal(3)) == [0] && table.encode(0, Ordinal(2)).is_none());
    }

    #[test]
    fn a_bundle_is_left_once_its_last_segment_is() {
        let mut table = SegmentTable::new(TIMELINE);
        for ordinal in [1, 2, 3].map(Ordinal) {
            table.insert(ordinal, entry(10));
            (0..8).for_each(|block| assert!(table.clear(ordinal, block).unwrap()));
        }
        let at =
            |table: &SegmentTable, ordinal| table.get(Ordinal(ordinal)).unwrap().object(TIMELINE, Ordinal(ordinal));
        let own = [1, 2, 3].map(|ordinal| at(&table, ordinal));
        let bundle = |number| ObjectName { kind: ObjectKind::Bundle, number, ..own[0] };
        assert!(
            table.move_to(Ordinal(1), &own[0], &bundle(1), 2, 50)
                && table.move_to(Ordinal(2), &own[1], &bundle(1), 2, 50)
        );
        assert!(!table.move_to(Ordinal(2), &own[1], &bundle(2), 2, 50), "it is there no more");
        check(&table);
        assert_eq!((table.totals().blocks, table.totals().partly_dead, table.totals().bytes), (14, 1, 210));
        assert!(table.is_left(&own[0]) && !table.is_left(&own[2]));
        assert_eq!(table.take_left(), BTreeSet::from([own[0], own[1]]));
        assert!(table.move_to(Ordinal(1), &bundle(1), &bundle(2), 2, 50));
        assert!(!table.has_left() && table.has_bundle(&bundle(1)) && at(&table, 1) == bundle(2));
        (8..10).for_each(|block| assert!(table.clear(Ordinal(2), block).unwrap()));
        table.drop_dead(Ordinal(9), |_| false);
        assert!(table.take_left() == BTreeSet::from([bundle(1)]) && !table.has_bundle(&bundle(1)));
        table.drop_from(Ordinal(1));
        assert_eq!(table.take_left(), BTreeSet::from([bundle(2), own[2]]));
        assert_eq!(table.totals(), TableTotals::default());
    }
}
