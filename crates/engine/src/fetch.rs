// SPDX-License-Identifier: Apache-2.0
//! Verified blocks of segments, from where they are nearest: the cache in RAM, the cache devices, the store.
//!
//! Blocks that lie side by side are asked for together: one read of a device, one ranged get of an object, which brings the rest of
//! their chunks along where they are packed. What comes is kept as the volume's settings say; what is read once for a purpose of our
//! own, like a flatten, is kept nowhere.
//!
//! Always holds: of blocks that somebody fetches, nobody else fetches the same ones meanwhile; who wants them waits, looks again, and
//! fetches for himself only what was not kept.

use crate::cache::CacheKey;
use crate::context::Head;
use crate::read::fetch_ranks;
use crate::signal::Signal;
use crate::timeline::Timeline;
use crate::{EngineError, Result};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use varve_format::Pointer;
use varve_format::chunk::Block;
use varve_format::segment::{CHUNK_BLOCKS, Codec};
use varve_types::branch::{Branch, reached};
use varve_types::mutant::{Mutant, planted};
use varve_types::{BLOCK, CacheMode, ErrorKind, Ordinal, TimelineId};

/// What blocks are fetched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Somebody reads them, and may again.
    Asked,
    /// They are read this once.
    Once,
}

/// Blocks of a segment.
type Span = (TimelineId, Ordinal, Range<u32>);

/// What is being fetched in a shard.
#[derive(Default)]
pub(crate) struct Fetches {
    under_way: RefCell<Vec<Span>>,
    ended: Signal,
    /// Whether a segment that was written goes to the cache devices.
    keeping: Cell<bool>,
    /// Parts that are read ahead at this moment.
    pub ahead: Cell<usize>,
}

/// Ends when dropped.
struct Fetching<'a>(&'a Fetches, Span);

impl Fetches {
    fn meets(&self, (timeline, ordinal, blocks): &Span) -> bool {
        let is_same = |other: &Span| {
            other.0 == *timeline && other.1 == *ordinal && other.2.start < blocks.end && blocks.start < other.2.end
        };
        self.under_way.borrow().iter().any(is_same)
    }

    /// Waits until nobody fetches any of these; tells whether it had to.
    async fn wait(&self, span: &Span) -> bool {
        if !self.meets(span) {
            return false;
        }
        self.ended.until(|| (!self.meets(span)).then_some(())).await;
        true
    }

    fn begin(&self, span: Span) -> Fetching<'_> {
        self.under_way.borrow_mut().push(span.clone());
        Fetching(self, span)
    }
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        let mut under_way = self.0.under_way.borrow_mut();
        if let Some(at) = under_way.iter().position(|span| *span == self.1) {
            under_way.swap_remove(at);
        }
        drop(under_way);
        self.0.ended.ring();
    }
}

/// The first blocks that are missing, as a range of places.
fn missing(blocks: &[Option<Block>]) -> Option<Range<usize>> {
    let from = blocks.iter().position(Option::is_none)?;
    let len = blocks[from..].iter().take_while(|block| block.is_none()).count();
    Some(from..from + len)
}

impl Timeline {
    /// The timeline under which the cache knows a block: that of its segment, so that all who are born from it share the block.
    pub fn cached_under(&self, timeline: TimelineId) -> TimelineId {
        if planted(Mutant::CacheForgetsTimeline) { self.id } else { timeline }
    }

    fn key(&self, timeline: TimelineId, ordinal: Ordinal, block: u32) -> CacheKey {
        CacheKey { timeline: self.cached_under(timeline), ordinal, block: block as u16 }
    }

    /// Verified blocks of a segment, from the caches or the store.
    pub async fn fetch(&self, pointer: Pointer, count: u64, taken: Taken) -> Result<Vec<Block>> {
        let timeline = self.lineages.timeline(pointer.lineage())?;
        let (ordinal, first) = (pointer.ordinal(), u32::from(pointer.block()));
        let keys: Vec<_> = (first..first + count as u32).map(|block| self.key(timeline, ordinal, block)).collect();
        let mut blocks: Vec<Option<Block>> = vec![None; keys.len()];
        self.look_in_ram(&keys, &mut blocks);
        let hits = blocks.iter().flatten().count() as u64;
        self.context.cache.borrow_mut().count(hits, count - hits);
        if hits < count {
            self.look_on_devices(&keys, &mut blocks, taken).await;
        }
        let mut has_waited = false;
        while let Some(places) = missing(&blocks) {
            let span = self.span(timeline, ordinal, first + places.start as u32..first + places.end as u32);
            if !has_waited && self.context.fetches.wait(&span).await {
                reached(Branch::FetchShared);
                has_waited = true;
                self.look_in_ram(&keys, &mut blocks);
                continue;
            }
            let _fetching = self.context.fetches.begin(span);
            self.fetch_from_store(timeline, ordinal, first, places, &mut blocks, taken).await?;
        }
        Ok(blocks.into_iter().flatten().collect())
    }

    /// What comes along with some blocks: where they may be packed, the rest of their chunks.
    fn span(&self, timeline: TimelineId, ordinal: Ordinal, blocks: Range<u32>) -> Span {
        let head = self.context.heads.borrow().get(timeline, ordinal);
        if head.is_some_and(|head| head.codec == Codec::Raw) {
            return (timeline, ordinal, blocks);
        }
        let begin = blocks.start / CHUNK_BLOCKS * CHUNK_BLOCKS;
        (timeline, ordinal, begin..blocks.end.next_multiple_of(CHUNK_BLOCKS))
    }

    fn look_in_ram(&self, keys: &[CacheKey], blocks: &mut [Option<Block>]) {
        let mut cache = self.context.cache.borrow_mut();
        for (key, block) in keys.iter().zip(blocks).filter(|(_, block)| block.is_none()) {
            *block = cache.get(key).map(|(bytes, sum)| (Bytes::copy_from_slice(bytes), sum));
        }
    }

    /// What a cache device has goes into RAM too.
    async fn look_on_devices(&self, keys: &[CacheKey], blocks: &mut [Option<Block>], taken: Taken) {
        if !self.context.ssd.is_there() {
            return;
        }
        let had: Vec<bool> = blocks.iter().map(Option::is_some).collect();
        self.context.ssd.get(keys, blocks).await;
        if taken == Taken::Once || self.settings().cache == CacheMode::None {
            return;
        }
        let mut cache = self.context.cache.borrow_mut();
        for ((key, block), had) in keys.iter().zip(blocks).zip(had) {
            if let (false, Some((bytes, sum))) = (had, block) {
                cache.insert(*key, bytes, *sum);
            }
        }
    }

    /// Fetches the blocks at `places`, of which the first of all is number `first` of the segment.
    async fn fetch_from_store(
        &self,
        timeline: TimelineId,
        ordinal: Ordinal,
        first: u32,
        places: Range<usize>,
        blocks: &mut [Option<Block>],
        taken: Taken,
    ) -> Result<()> {
        let head = self.head(timeline, ordinal).await?;
        let (from, count) = (first + places.start as u32, places.len() as u32);
        if from + count > head.blocks.end() {
            return Err(EngineError::corrupt(format!("{}: it has no block {}", head.name, from + count - 1)));
        }
        let fetched = self.ranks(&head, from, count).await?;
        self.keep(timeline, ordinal, &fetched, taken);
        for (block, data) in fetched {
            if let Some(slot) = block.checked_sub(first).and_then(|i| blocks.get_mut(i as usize)) {
                *slot = Some(data);
            }
        }
        if let Some(at) = places.into_iter().find(|at| blocks[*at].is_none()) {
            let number = first + at as u32;
            return Err(EngineError::corrupt(format!("{}: block {number} was not in its chunk", head.name)));
        }
        Ok(())
    }

    /// Verified blocks from `first` on, and what is in the same chunks, with their numbers in the segment.
    async fn ranks(&self, head: &Head, first: u32, count: u32) -> Result<Vec<(u32, Block)>> {
        let Some(rank) = head.rank(first, count) else {
            // Cleaning has left out what was dead, perhaps only since it was looked up: who looks again finds what is there now.
            let what =
                format!("{}: it does not have {count} blocks from {first} of segment {}", head.name, head.ordinal);
            return Err(EngineError::new(ErrorKind::NotFound, what));
        };
        fetch_ranks(&*self.pool.store, head, rank, count).await
    }

    /// Keeps what was read from the store, as the settings say.
    fn keep(&self, timeline: TimelineId, ordinal: Ordinal, fetched: &[(u32, Block)], taken: Taken) {
        if taken == Taken::Once || self.settings().cache == CacheMode::None {
            return;
        }
        let ssd = self.may_use_devices(timeline);
        let mut cache = self.context.cache.borrow_mut();
        for (block, (bytes, sum)) in fetched {
            let key = self.key(timeline, ordinal, *block);
            cache.insert(key, bytes, *sum);
            if ssd {
                self.context.ssd.insert(&key, bytes, *sum);
            }
        }
    }

    /// Whether more of a timeline may go to the cache devices. What was inherited counts for whom it is from.
    fn may_use_devices(&self, timeline: TimelineId) -> bool {
        let (quota, ssd) = (self.settings().cache_quota, &self.context.ssd);
        ssd.is_there() && (quota == 0 || timeline != self.id || ssd.blocks_of(timeline) * BLOCK < quota)
    }

    /// Takes what went to the store into the cache devices, beside everything else. One segment of the shard at a time, since they are held in RAM for that; what
    /// comes meanwhile is not taken.
    pub fn keep_written(self: &Rc<Self>, ordinal: Ordinal, blocks: Vec<Block>) {
        if !blocks.is_empty() && !self.context.fetches.keeping.replace(true) {
            let this = Rc::clone(self);
            self.context.env.spawn(Box::pin(async move {
                this.insert_written(ordinal, blocks).await;
                this.context.fetches.keeping.set(false);
            }));
        }
    }

    async fn insert_written(&self, ordinal: Ordinal, blocks: Vec<Block>) {
        for (block, (bytes, sum)) in (0..).zip(blocks) {
            if !self.may_use_devices(self.id) {
                return;
            }
            let key = self.key(self.id, ordinal, block);
            self.context.ssd.insert_patiently(&key, &bytes, sum).await;
        }
    }

    /// Whether what is written goes to the cache devices.
    pub fn keeps_written(&self) -> bool {
        self.settings().cache == CacheMode::Write && self.context.ssd.is_there()
    }
}
