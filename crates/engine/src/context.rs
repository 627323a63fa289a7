// SPDX-License-Identifier: Apache-2.0
//! What all timelines of a shard share: the world, the journals, coordination, the caches, the budget of RAM for layers.
//!
//! It owns no volume. One thread uses it, so nothing is locked; what is counted here (bytes of layers in RAM) is changed by
//! the timelines, each for its own part, and those who wait for less are woken. Heads of segments are cached by (timeline,
//! ordinal), which never means two things: one is forgotten only where cleaning has moved the segment's blocks to another object. A crash loses all of it, and
//! nothing by that.

use crate::EngineError;
use crate::cache::BlockCache;
use crate::clean::Cleaning;
use crate::ends::Ends;
use crate::fetch::Fetches;
use crate::journals::Journals;
use crate::lineage::PageTables;
use crate::map_ram::MapRam;
use crate::mirror::{Copies, MirrorNodes};
use crate::scrub::Scrub;
use crate::signal::Signal;
use crate::ssd::SsdCache;
use crate::stages::{Stage, Stages, Timed};
use crate::timeline::Timeline;
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use varve_coord::{Coord, VolumeRecord};
use varve_env::Env;
use varve_format::bundle::Share;
use varve_format::chunk::{Block, unpack, unpack_share};
use varve_format::segment::{CHUNK_BLOCKS, Codec, SegmentHeader};
use varve_format::{BlockSet, FormatError, ObjectKind, ObjectName};
use varve_types::branch::{Branch, reached};
use varve_types::{ErrorKind, MAX_SEGMENT_BLOCKS, NodeId, Ordinal, TimelineId};

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
    /// Bytes of what finds a block: nodes of maps, segment tables, heads of segments.
    pub map_ram: u64,
    /// Dirty nodes of a map at which a merge writes those that are behind it.
    pub map_dirty: usize,
    /// Bytes of a map object at which the next one is begun.
    pub map_object: usize,
    /// Frames of a region of a cache device that are used.
    pub ssd_frames: usize,
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
    /// Kills that are asked again at one checkpoint for a snapshot that has gone, about: no more than this and those of one run.
    pub ask_kills: u64,
    /// Runs of kills of each kind that wait for a volume's rewind window; beyond that small ones become one.
    pub rewind_runs: usize,
    /// Sparse segments are cleaned while less than so many of a hundred stored blocks of a volume are alive; 0: never.
    pub occupancy: u64,
    /// Bytes that cleaning may read and put in a second; 0: as many as can be.
    pub clean_rate: u64,
    /// Milliseconds that a job of cleaning counts which was handed to another process, without news of it. For as long nothing is cleaned here after such a
    /// process was heard of.
    pub lease_ms: u64,
    /// Bytes that scrubbing may read in a second; 0: nothing is scrubbed.
    pub scrub_rate: u64,
    /// Milliseconds between the end of a scrub and the next one.
    pub scrub_interval_ms: u64,
    /// Objects of a timeline that ends that are deleted for one tombstone, about.
    pub end_objects: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layer_ram: 512 << 20,
            layer_runs: MAX_SEGMENT_BLOCKS as usize / 2,
            cache_ram: 256 << 20,
            map_ram: 1 << 30,
            map_dirty: 4096,
            map_object: 32 << 20,
            ssd_frames: varve_format::region::FRAMES,
            overlay_entries: 4 << 20,
            delete_grace_ms: 10_000,
            puts: 4,
            reclaim_level: 1,
            reclaim_nodes: 2048,
            ask_kills: 4 << 20,
            rewind_runs: 512,
            occupancy: 80,
            clean_rate: 0,
            lease_ms: 120_000,
            scrub_rate: 0,
            scrub_interval_ms: 7 * 24 * 3_600_000,
            end_objects: 16_384,
        }
    }
}

/// The head of a segment as reads need it: where in its object each chunk is.
#[derive(Debug)]
pub(crate) struct Head {
    /// The object that has its blocks: its own, or a bundle.
    pub name: ObjectName,
    pub ordinal: Ordinal,
    pub codec: Codec,
    /// Which of its blocks the object has.
    pub blocks: BlockSet,
    /// Place of its first chunk in the object.
    pub data_offset: u64,
    /// End of each chunk behind that place; empty where all are raw.
    chunk_ends: Vec<u32>,
}

/// A chunk in its object.
pub(crate) struct Chunk {
    /// Its bytes in the object.
    pub range: Range<u64>,
    /// The numbers of its blocks in the segment.
    pub numbers: Vec<u16>,
}

impl Head {
    /// The head of a segment in an object of its own.
    pub fn new(name: ObjectName, header: &SegmentHeader, chunks: &[u32]) -> Self {
        let (ordinal, blocks) = (header.ordinal, BlockSet::all(header.blocks));
        let (codec, data_offset) = (header.codec, header.data_offset());
        Self { name, ordinal, codec, blocks, data_offset, chunk_ends: ends(chunks) }
    }

    /// The head of a segment of which a bundle has a share, which begins at `data_offset`.
    pub fn of_share(name: ObjectName, share: &Share, data_offset: u64) -> Self {
        let Share { ordinal, codec, .. } = *share;
        Self { name, ordinal, codec, blocks: share.blocks.clone(), data_offset, chunk_ends: ends(&share.chunks) }
    }

    /// Bytes of RAM that it takes, with its places in the cache, about.
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.blocks.heap_len() + self.chunk_ends.len() * 4 + 128
    }

    /// The place of blocks among those that the object has; `None` where it does not have all of them.
    pub fn rank(&self, first: u32, count: u32) -> Option<u32> {
        let rank = self.blocks.rank(first)?;
        (self.blocks.rank(first + count - 1)? == rank + count - 1).then_some(rank)
    }

    /// A chunk of one that is not raw.
    pub fn chunk(&self, chunk: u32) -> Chunk {
        let at = chunk as usize;
        let begin = if at == 0 { 0 } else { self.chunk_ends[at - 1] };
        let range = self.data_offset + u64::from(begin)..self.data_offset + u64::from(self.chunk_ends[at]);
        Chunk { range, numbers: self.blocks.from_rank(chunk * CHUNK_BLOCKS).take(CHUNK_BLOCKS as usize).collect() }
    }

    /// Verifies the bytes of a chunk and takes it apart.
    pub fn unpack(&self, chunk: &Chunk, bytes: &Bytes) -> Result<Vec<Block>, FormatError> {
        let (timeline, numbers) = (self.name.timeline, &chunk.numbers);
        if self.name.kind == ObjectKind::Bundle {
            return unpack_share(timeline, self.ordinal, numbers, self.codec, bytes);
        }
        let first = numbers.first().copied().unwrap_or_default();
        unpack(timeline, self.ordinal, u32::from(first), numbers.len() as u32, self.codec, bytes)
    }
}

fn ends(chunks: &[u32]) -> Vec<u32> {
    let add = |end: &mut u32, len: &u32| {
        *end += len;
        Some(*end)
    };
    chunks.iter().scan(0, add).collect()
}

/// Heads of segments, the newest that fit.
pub(crate) struct HeadCache {
    heads: BTreeMap<(TimelineId, Ordinal), Rc<Head>>,
    order: VecDeque<(TimelineId, Ordinal)>,
    bytes: usize,
    most_bytes: usize,
}

impl HeadCache {
    /// An empty one, which keeps so many bytes of heads, and one head at least.
    pub fn new(most_bytes: usize) -> Self {
        Self { heads: BTreeMap::new(), order: VecDeque::new(), bytes: 0, most_bytes }
    }

    /// Bytes of RAM that it takes, about.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn get(&self, timeline: TimelineId, ordinal: Ordinal) -> Option<Rc<Head>> {
        self.heads.get(&(timeline, ordinal)).cloned()
    }
    pub fn insert(&mut self, head: Rc<Head>) {
        let key = (head.name.timeline, head.ordinal);
        self.bytes += head.bytes();
        match self.heads.insert(key, head) {
            Some(before) => self.bytes -= before.bytes(),
            None => self.order.push_back(key),
        }
        while self.bytes > self.most_bytes
            && self.heads.len() > 1
            && let Some(oldest) = self.order.pop_front()
        {
            self.forget(oldest.0, oldest.1);
        }
        // Keys of what was forgotten stay in the row for their turn, but not for ever.
        if self.order.len() > 2 * self.heads.len() + 16 {
            let Self { heads, order, .. } = self;
            order.retain(|key| heads.contains_key(key));
        }
    }

    /// Forgets where a segment is.
    pub fn forget(&mut self, timeline: TimelineId, ordinal: Ordinal) {
        // Its key stays in the row, and makes way in its turn.
        if let Some(head) = self.heads.remove(&(timeline, ordinal)) {
            self.bytes -= head.bytes();
        }
    }
}

/// Bytes that a shard has put, by what they are; those of cleaning are [`crate::CleanCounts::put_bytes`].
#[derive(Clone, Copy, Debug, Default)]
pub struct PutBytes {
    /// Segments.
    pub segments: u64,
    /// Nodes of maps.
    pub maps: u64,
    /// Pages of segment tables, and runs of kills.
    pub tables: u64,
}

/// See the module.
pub(crate) struct Context {
    /// The node whose volumes these are; none where there is one node, and all are.
    pub node: Cell<Option<NodeId>>,
    /// The nodes that may keep copies of tails.
    pub mirrors: RefCell<Option<Rc<dyn MirrorNodes>>>,
    /// What this node keeps of others.
    pub copies: RefCell<Option<Rc<Copies>>>,
    pub env: Rc<dyn Env>,
    pub journals: Journals,
    pub coord: Arc<dyn Coord>,
    pub cache: RefCell<BlockCache>,
    pub ssd: SsdCache,
    pub fetches: Fetches,
    pub heads: RefCell<HeadCache>,
    pub tables: RefCell<PageTables>,
    pub map: MapRam,
    pub limits: Limits,
    /// Bytes of layers in RAM.
    pub layer_ram: Cell<u64>,
    /// Rings when layers gave up RAM.
    pub relieved: Signal,
    /// Bytes that were put.
    pub put: Cell<PutBytes>,
    pub cleaning: Cleaning,
    pub scrub: Scrub,
    pub ends: Ends,
    pub stages: Rc<Stages>,
    /// The timelines that are open, for what concerns all of them.
    pub timelines: RefCell<BTreeMap<TimelineId, Weak<Timeline>>>,
}

impl Context {
    /// Whether this node runs a volume.
    pub fn is_ours(&self, record: &VolumeRecord) -> bool {
        self.node.get().is_none_or(|node| record.owner == Some(node))
    }

    /// Refuses what another node runs.
    pub fn check_ours(&self, record: &VolumeRecord) -> crate::Result<()> {
        if self.is_ours(record) {
            return Ok(());
        }
        let owner = record.owner.map_or("nobody".to_owned(), |owner| format!("node {owner}"));
        Err(EngineError::new(ErrorKind::Fenced, format!("volume {} is run by {owner}", record.name)))
    }
    pub fn now_ms(&self) -> u64 {
        self.env.wall_ms()
    }

    /// Begins a stage: it ends when what this gives is dropped.
    pub fn timed(&self, stage: Stage) -> Timed<'_> {
        self.stages.begin(&*self.env, stage)
    }

    /// Counts an object that was put.
    pub fn note_put(&self, kind: ObjectKind, bytes: u64) {
        let mut put = self.put.get();
        match kind {
            ObjectKind::Segment => put.segments += bytes,
            ObjectKind::Map => put.maps += bytes,
            ObjectKind::Table => put.tables += bytes,
            ObjectKind::Bundle | ObjectKind::Manifest => {}
        }
        self.put.set(put);
    }

    /// Changes the count of bytes of layers in RAM.
    pub fn ram_changed(&self, before: u64, after: u64) {
        self.layer_ram.set((self.layer_ram.get() + after).saturating_sub(before));
        if after < before {
            self.relieved.ring();
        }
    }

    /// The timelines that are open.
    pub fn open_timelines(&self) -> Vec<Rc<Timeline>> {
        self.timelines.borrow().values().filter_map(Weak::upgrade).collect()
    }

    /// Lets every timeline do its part for room: what fills the journal or the RAM may be another's.
    pub fn make_room(&self) {
        for timeline in self.open_timelines() {
            timeline.make_room();
        }
    }

    /// Lets every timeline give up the RAM of what it can read back.
    pub fn spill(&self) {
        for timeline in self.open_timelines() {
            timeline.spill();
        }
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
