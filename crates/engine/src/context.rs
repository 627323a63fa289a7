// SPDX-License-Identifier: Apache-2.0
//! What all timelines of a shard share: the world, the journal, coordination, the caches, the budget of RAM for layers.
//!
//! It owns no volume. One thread uses it, so nothing is locked; what is counted here (bytes of layers in RAM) is changed by
//! the timelines, each for its own part, and those who wait for less are woken. Heads of segments are cached by (timeline,
//! ordinal), which never means two things, so none is ever invalidated. A crash loses all of it, and nothing by that.

use crate::EngineError;
use crate::cache::BlockCache;
use crate::journal::{Journal, Stamp};
use crate::lineage::PageTables;
use crate::signal::Signal;
use crate::timeline::Timeline;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use varve_coord::Coord;
use varve_env::Env;
use varve_format::ObjectName;
use varve_format::segment::{CHUNK_BLOCKS, Codec, SegmentHeader};
use varve_types::branch::{Branch, reached};
use varve_types::{MAX_SEGMENT_BLOCKS, Ordinal, TimelineId};

/// Bounds of a shard.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of layers in RAM; beyond it writers wait for a put, and where none ends soon, sealed layers give up their bytes for their places in
    /// the journal.
    pub layer_ram: u64,
    /// Runs of a layer at which it is sealed whatever its size, so that its index stays small.
    pub layer_runs: usize,
    /// Bytes of the read cache.
    pub cache_ram: u64,
    /// Most entries of an overlay: a checkpoint begins there, or earlier by the size of the map.
    pub overlay_entries: usize,
    /// Milliseconds between the second manifest and a delete: reads under way still use what they looked up.
    pub delete_grace_ms: u64,
    /// Segments of a volume that are built and put at the same time.
    pub puts: usize,
    /// Subtrees of the map of this level and above that a hole covers whole are cut out unread and worked off in the background: 0 for 2 MiB,
    /// 1 for 1 GiB, 2 for 512 GiB; 4 for none.
    pub reclaim_level: u8,
    /// Nodes of such subtrees that are worked off for one manifest: 512 blocks each.
    pub reclaim_nodes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layer_ram: 512 << 20,
            layer_runs: MAX_SEGMENT_BLOCKS as usize / 2,
            cache_ram: 256 << 20,
            overlay_entries: 4 << 20,
            delete_grace_ms: 10_000,
            puts: 4,
            reclaim_level: 1,
            reclaim_nodes: 2048,
        }
    }
}

/// The head of a segment as reads need it: where in its object each chunk is.
#[derive(Debug)]
pub(crate) struct Head {
    pub name: ObjectName,
    pub codec: Codec,
    pub blocks: u32,
    pub data_offset: u64,
    /// End of each chunk in the data area; empty where all are raw.
    pub chunk_ends: Vec<u32>,
}

impl Head {
    pub fn new(name: ObjectName, header: &SegmentHeader, chunks: &[u32]) -> Self {
        let mut end = 0;
        let chunk_ends = chunks
            .iter()
            .map(|len| {
                end += len;
                end
            })
            .collect();
        Self { name, codec: header.codec, blocks: header.blocks, data_offset: header.data_offset(), chunk_ends }
    }

    /// Range of a chunk in the object, and its blocks: first and number.
    pub fn chunk(&self, chunk: u32) -> (std::ops::Range<u64>, u32, u32) {
        let first = chunk * CHUNK_BLOCKS;
        let count = CHUNK_BLOCKS.min(self.blocks - first);
        let at = chunk as usize;
        let begin = if at == 0 { 0 } else { self.chunk_ends[at - 1] };
        (self.data_offset + u64::from(begin)..self.data_offset + u64::from(self.chunk_ends[at]), first, count)
    }
}

/// Heads of segments, the newest few thousand.
#[derive(Default)]
pub(crate) struct HeadCache {
    heads: BTreeMap<(TimelineId, Ordinal), Rc<Head>>,
    order: VecDeque<(TimelineId, Ordinal)>,
}

const MAX_HEADS: usize = 16_384;

impl HeadCache {
    pub fn get(&self, timeline: TimelineId, ordinal: Ordinal) -> Option<Rc<Head>> {
        self.heads.get(&(timeline, ordinal)).cloned()
    }
    pub fn insert(&mut self, head: Rc<Head>) {
        let key = (head.name.timeline, Ordinal(head.name.number));
        if self.heads.insert(key, head).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > MAX_HEADS
            && let Some(oldest) = self.order.pop_front()
        {
            self.heads.remove(&oldest);
        }
    }
}

/// See the module.
pub(crate) struct Context {
    pub env: Rc<dyn Env>,
    pub journal: Rc<Journal>,
    pub coord: Arc<dyn Coord>,
    pub cache: RefCell<BlockCache>,
    pub heads: RefCell<HeadCache>,
    pub tables: RefCell<PageTables>,
    pub limits: Limits,
    /// Bytes of layers in RAM.
    pub layer_ram: Cell<u64>,
    /// Rings when layers gave up RAM.
    pub relieved: Signal,
    /// The timelines that are open, for what concerns all of them.
    pub timelines: RefCell<BTreeMap<TimelineId, Weak<Timeline>>>,
}

impl Context {
    pub fn now_ms(&self) -> u64 {
        self.env.wall_ms()
    }

    /// Changes the count of bytes of layers in RAM.
    pub fn ram_changed(&self, before: u64, after: u64) {
        self.layer_ram.set((self.layer_ram.get() + after).saturating_sub(before));
        if after < before {
            self.relieved.ring();
        }
    }

    /// Lets every timeline do its part for room: what fills the journal or the RAM may be another's.
    pub fn make_room(&self) {
        let open: Vec<_> = self.timelines.borrow().values().filter_map(Weak::upgrade).collect();
        for timeline in open {
            timeline.make_room();
        }
    }

    /// Lets every timeline give up the RAM of what it can read back.
    pub fn spill(&self) {
        let open: Vec<_> = self.timelines.borrow().values().filter_map(Weak::upgrade).collect();
        for timeline in open {
            timeline.spill();
        }
    }

    /// How far the segments of each timeline go that no manifest names yet.
    pub fn evidence(&self) -> Vec<Stamp> {
        let timelines = self.timelines.borrow();
        timelines.values().filter_map(Weak::upgrade).filter_map(|timeline| timeline.evidence()).collect()
    }

    /// Whether layers have all the RAM that they may have.
    pub fn is_ram_full(&self) -> bool {
        self.layer_ram.get() >= self.limits.layer_ram
    }

    /// Sixteen random bytes.
    pub fn random_id(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.env.random(&mut bytes);
        bytes
    }
}

/// The error of an operation of coordination.
impl From<varve_coord::CoordError> for EngineError {
    fn from(error: varve_coord::CoordError) -> Self {
        Self::caused(error.kind(), "coordination", error)
    }
}

/// Names the object in an error of a decoder.
pub(crate) fn damaged(name: impl std::fmt::Display) -> impl FnOnce(varve_format::FormatError) -> EngineError {
    move |error| {
        reached(Branch::DamageFound);
        EngineError::caused(error.kind(), name, error)
    }
}

/// One at a time, within a shard.
#[derive(Default)]
pub(crate) struct Turn {
    taken: Cell<bool>,
    free: Signal,
}

/// Gives the turn back when dropped.
pub(crate) struct Held<'a>(&'a Turn);

impl Turn {
    /// Whether somebody has it.
    pub fn is_taken(&self) -> bool {
        self.taken.get()
    }

    /// Waits for the turn.
    pub async fn take(&self) -> Held<'_> {
        self.free.until(|| (!self.taken.replace(true)).then_some(())).await;
        Held(self)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.taken.set(false);
        self.0.free.ring();
    }
}
