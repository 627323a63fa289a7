// SPDX-License-Identifier: Apache-2.0
//! The way of a read: layer, overlay, tree, RAM cache, cache devices, store; verified at every level.
//!
//! A read that finds all it needs in RAM is copied into the reply at once. Otherwise the whole read goes the
//! waiting way: runs that lie together in a segment are fetched together ([`crate::fetch`]) and copied. What was looked up may
//! move on while a read waits: an object that is gone makes it look up again.
//!
//! A store that is away is waited for, like a disk that spins up: a guest that was answered an error would take its file
//! system for broken, and the rest of a partly written block could not be read.

use crate::cache::CacheKey;
use crate::context::{Chunk, Head, damaged};
use crate::fetch::Taken;
use crate::layer::Piece;
use crate::lineage::get_range;
use crate::proof::proved;
use crate::timeline::{Found, Timeline};
use crate::{EngineError, Result, StatusExtent, Submit};
use bytes::{Bytes, BytesMut};
use std::rc::Rc;
use varve_format::bundle::{BUNDLE_HEADER, BundleHeader, Share};
use varve_format::chunk::{Block, RAW_BLOCK, raw_block};
use varve_format::crc::crc;
use varve_format::mark::Mark;
use varve_format::segment::{CHUNK_BLOCKS, Codec, IndexExtent, SEGMENT_HEADER, SegmentHeader, SegmentIndex};
use varve_format::{ObjectKind, ObjectName, Pointer};
use varve_types::branch::{Branch, reached, reached_if};
use varve_types::{BLOCK, ErrorKind, Ordinal, TimelineId};

const ZEROES: [u8; BLOCK as usize] = [0; BLOCK as usize];
/// Most blocks fetched with one get.
const MAX_FETCH_BLOCKS: u64 = 256;
/// How often a read looks up again because an object was gone.
const MAX_TRIES: u32 = 4;
/// Bytes of a segment that a first get asks for: header and most indexes.
const FIRST_GET: u64 = 64 << 10;

/// The part of a block run that a byte range covers: bytes to skip in front, bytes to take.
fn window(run_start: u64, run_blocks: u64, offset: u64, end: u64) -> (usize, usize) {
    let from = offset.max(run_start * BLOCK);
    let to = end.min((run_start + run_blocks) * BLOCK);
    ((from - run_start * BLOCK) as usize, (to - from) as usize)
}

fn put_zeroes(out: &mut BytesMut, mut len: usize) {
    while len > 0 {
        let part = len.min(ZEROES.len());
        out.extend_from_slice(&ZEROES[..part]);
        len -= part;
    }
}

impl Timeline {
    /// See [`crate::BlockDevice::read`].
    pub fn read(self: &Rc<Self>, offset: u64, len: u32, out: &mut BytesMut) -> Submit<Bytes> {
        let before = out.len();
        if let Err(error) = self.check_range(offset, u64::from(len)) {
            return Submit::Done(Err(error));
        }
        self.note_read(offset, u64::from(len));
        if self.read_from_ram(offset, u64::from(len), out) {
            return Submit::Done(Ok(Bytes::new()));
        }
        out.truncate(before);
        let this = Rc::clone(self);
        Submit::Later(Box::pin(async move { this.read_waiting(offset, u64::from(len)).await }))
    }

    fn read_from_ram(&self, offset: u64, len: u64, out: &mut BytesMut) -> bool {
        let data = self.data.borrow();
        let end = offset + len;
        let (mut block, mut hits) = (offset / BLOCK, 0);
        while block * BLOCK < end {
            let (found, run) = data.find(block, end.div_ceil(BLOCK) - block);
            let (skip, take) = window(block, run, offset, end);
            match found {
                Found::Layer(Piece::Data { data, .. }) => out.extend_from_slice(&data[skip..skip + take]),
                Found::Layer(Piece::Hole) | Found::Nothing => put_zeroes(out, take),
                Found::Layer(Piece::Journal { .. }) | Found::Cold(_) => return false,
                Found::Stored(pointer) => {
                    let Ok(timeline) = self.lineages.timeline(pointer.lineage()) else { return false };
                    let mut cache = self.context.cache.borrow_mut();
                    for i in 0..run {
                        let at = pointer.advance(i);
                        let timeline = self.cached_under(timeline);
                        let key = CacheKey { timeline, ordinal: at.ordinal(), block: at.block() };
                        let Some((bytes, _)) = cache.get(&key) else { return false };
                        let (skip, take) = window(block + i, 1, offset, end);
                        out.extend_from_slice(&bytes[skip..skip + take]);
                    }
                    hits += run;
                }
            }
            block += run;
        }
        if hits > 0 {
            self.context.cache.borrow_mut().count(hits, 0);
        }
        true
    }

    /// The waiting way of a read.
    pub async fn read_waiting(self: &Rc<Self>, offset: u64, len: u64) -> Result<Bytes> {
        let end = offset + len;
        let mut out = BytesMut::with_capacity(len as usize);
        let mut block = offset / BLOCK;
        let mut tries = 0;
        while block * BLOCK < end {
            self.data.borrow().check()?;
            let most = (end.div_ceil(BLOCK) - block).min(MAX_FETCH_BLOCKS);
            let (found, run) = self.data.borrow().find(block, most);
            let (skip, take) = window(block, run, offset, end);
            match found {
                Found::Layer(Piece::Data { data, .. }) => out.extend_from_slice(&data[skip..skip + take]),
                Found::Layer(Piece::Hole) | Found::Nothing => put_zeroes(&mut out, take),
                Found::Layer(Piece::Journal { place, sums }) => {
                    reached(Branch::ReadFromJournal);
                    let bytes = self.journal.read(place, (run * BLOCK) as usize).await?;
                    let is_whole = bytes.chunks(BLOCK as usize).enumerate().all(|(i, b)| crc(b) == sums.get(i as u64));
                    if !is_whole {
                        // The layer may have been counted or carried meanwhile, and the place used again.
                        reached_if(!self.journal.holds(place), Branch::PlaceMoved);
                        self.again(&mut tries, EngineError::corrupt(format!("journal: data at {place} are damaged")))?;
                        continue;
                    }
                    out.extend_from_slice(&bytes[skip..skip + take]);
                }
                Found::Cold(path) => {
                    self.persist("a get", async || self.load_node(path).await).await?;
                    continue;
                }
                Found::Stored(pointer) => {
                    match self.persist("a get", async || self.fetch(pointer, run, Taken::Asked).await).await {
                        Ok(blocks) => {
                            for (i, bytes) in (0..run).zip(blocks) {
                                let (skip, take) = window(block + i, 1, offset, end);
                                out.extend_from_slice(&bytes.0[skip..skip + take]);
                            }
                        }
                        Err(error) if error.kind() == ErrorKind::NotFound => {
                            self.forget_place(pointer)?;
                            self.again(&mut tries, EngineError::corrupt(format!("block {block}: {error}")))?;
                            continue;
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
            block += run;
            // Each of them may have moved once.
            tries = 0;
        }
        Ok(out.freeze())
    }

    /// Fetches what of a range is in segments into RAM, as far as that goes at this moment.
    pub async fn warm(&self, offset: u64, len: u64) -> Result<()> {
        let (mut block, end) = (offset / BLOCK, (offset + len).div_ceil(BLOCK));
        while block < end {
            self.data.borrow().check()?;
            let (found, run) = self.data.borrow().find(block, (end - block).min(MAX_FETCH_BLOCKS));
            match found {
                Found::Cold(path) => {
                    self.load_node(path).await?;
                    continue;
                }
                Found::Stored(pointer) => drop(self.fetch(pointer, run, Taken::Asked).await?),
                Found::Layer(_) | Found::Nothing => {}
            }
            block += run;
        }
        Ok(())
    }

    /// Forgets where the blocks of a segment are: its object is gone.
    pub fn forget_place(&self, pointer: Pointer) -> Result<()> {
        let timeline = self.lineages.timeline(pointer.lineage())?;
        self.lineages.forget(timeline);
        self.context.heads.borrow_mut().forget(timeline, pointer.ordinal());
        Ok(())
    }

    /// Counts a try; after too many of them `error` is the answer.
    pub fn again(&self, tries: &mut u32, error: EngineError) -> Result<()> {
        *tries += 1;
        if *tries > MAX_TRIES { Err(error) } else { Ok(()) }
    }

    /// The head of a segment, from the cache or the store.
    pub async fn head(&self, timeline: TimelineId, ordinal: Ordinal) -> Result<Rc<Head>> {
        if let Some(head) = self.context.heads.borrow().get(timeline, ordinal) {
            return Ok(head);
        }
        let name = self.segment_object(timeline, ordinal).await?;
        let heads = load_heads(&*self.pool.store, &name).await?;
        let mut cache = self.context.heads.borrow_mut();
        let mut found = None;
        for head in heads.into_iter().map(Rc::new) {
            if head.ordinal == ordinal {
                found = Some(Rc::clone(&head));
                cache.insert(head);
            } else if cache.get(timeline, head.ordinal).is_none() {
                // Should that one be elsewhere by now, whoever reads there finds this object gone, and looks again.
                cache.insert(head);
            }
        }
        found.ok_or_else(|| EngineError::corrupt(format!("{name}: it has no share of segment {ordinal}")))
    }

    /// The object that has the blocks of a segment.
    pub async fn segment_object(&self, timeline: TimelineId, ordinal: Ordinal) -> Result<ObjectName> {
        if timeline != self.id {
            return self.lineages.segment(&self.context, &self.pool.store, timeline, ordinal).await;
        }
        let data = self.data.borrow();
        let Some(entry) = data.table.get(ordinal) else {
            return Err(EngineError::new(ErrorKind::NotFound, format!("timeline {timeline}: no segment {ordinal}")));
        };
        Ok(entry.object(timeline, ordinal))
    }

    /// See [`crate::BlockDevice::block_status`].
    pub fn block_status(self: &Rc<Self>, offset: u64, len: u64, most: usize) -> Submit<Vec<StatusExtent>> {
        if let Err(error) = self.check_range(offset, len) {
            return Submit::Done(Err(error));
        }
        let this = Rc::clone(self);
        Submit::Later(Box::pin(async move { this.status_waiting(offset, len, most).await }))
    }

    async fn status_waiting(&self, offset: u64, len: u64, most: usize) -> Result<Vec<StatusExtent>> {
        let end = offset + len;
        let mut extents: Vec<StatusExtent> = Vec::new();
        let mut block = offset / BLOCK;
        let mut steps = 0u32;
        while block * BLOCK < end {
            let (found, run) = self.data.borrow().find(block, end.div_ceil(BLOCK) - block);
            let hole = match found {
                Found::Cold(path) => {
                    self.persist("a get", async || self.load_node(path).await).await?;
                    continue;
                }
                Found::Layer(Piece::Hole) | Found::Nothing => true,
                Found::Layer(_) | Found::Stored(_) => false,
            };
            let (_, take) = window(block, run, offset, end);
            block += run;
            let full = extents.len() >= most;
            match extents.last_mut() {
                Some(last) if last.hole == hole => last.len += take as u64,
                _ if full => break,
                _ => extents.push(StatusExtent { len: take as u64, hole }),
            }
            steps += 1;
            if steps.is_multiple_of(1024) {
                crate::signal::breathe().await;
            }
        }
        Ok(extents)
    }
}

/// Verified blocks by their place among those that the object has, from `rank` on, and what is in the same chunks; with their numbers in the segment.
pub(crate) async fn fetch_ranks(
    store: &dyn varve_env::ObjectStore,
    head: &Head,
    rank: u32,
    count: u32,
) -> Result<Vec<(u32, Block)>> {
    proved(async || ask_ranks(store, head, rank, count).await).await
}

async fn ask_ranks(
    store: &dyn varve_env::ObjectStore,
    head: &Head,
    rank: u32,
    count: u32,
) -> Result<Vec<(u32, Block)>> {
    let text = head.name.to_string();
    if head.codec == Codec::Raw {
        let begin = head.data_offset + u64::from(rank) * RAW_BLOCK as u64;
        let range = begin..begin + u64::from(count) * RAW_BLOCK as u64;
        let bytes = get_range(store, &text, range).await?;
        let numbers = head.blocks.from_rank(rank).map(u32::from);
        return (0..count as usize)
            .zip(numbers)
            .map(|(i, number)| {
                let part = bytes.slice(i * RAW_BLOCK..(i + 1) * RAW_BLOCK);
                let block = raw_block(head.name.timeline, head.ordinal, number, &part);
                Ok((number, block.map_err(damaged(&text))?))
            })
            .collect();
    }
    let chunks = rank / CHUNK_BLOCKS..=(rank + count - 1) / CHUNK_BLOCKS;
    let chunks: Vec<Chunk> = chunks.map(|chunk| head.chunk(chunk)).collect();
    let (Some(from), Some(to)) = (chunks.first(), chunks.last()) else { return Ok(Vec::new()) };
    let begin = from.range.start;
    let bytes = get_range(store, &text, begin..to.range.end).await?;
    let mut blocks = Vec::new();
    for chunk in &chunks {
        let part = bytes.slice((chunk.range.start - begin) as usize..(chunk.range.end - begin) as usize);
        let unpacked = head.unpack(chunk, &part).map_err(damaged(&text))?;
        blocks.extend(chunk.numbers.iter().map(|number| u32::from(*number)).zip(unpacked));
    }
    Ok(blocks)
}

/// The heads of all segments that an object has blocks of.
async fn load_heads(store: &dyn varve_env::ObjectStore, name: &ObjectName) -> Result<Vec<Head>> {
    if name.kind != ObjectKind::Bundle {
        let (header, index) = load_segment_head(store, name).await?;
        return Ok(vec![Head::new(*name, &header, &index.chunks)]);
    }
    let (header, shares) = load_bundle_head(store, name).await?;
    Ok(heads_of(name, &header, &shares))
}

/// The heads of the shares of a bundle.
pub(crate) fn heads_of(name: &ObjectName, header: &BundleHeader, shares: &[Share]) -> Vec<Head> {
    let mut offset = header.data_offset();
    let head = |share: &Share| {
        let head = Head::of_share(*name, share, offset);
        offset += share.data_len();
        head
    };
    shares.iter().map(head).collect()
}

/// What a segment has changed of blocks, from the object that has its blocks.
pub(crate) async fn load_history(
    store: &dyn varve_env::ObjectStore,
    name: &ObjectName,
    ordinal: Ordinal,
) -> Result<Vec<IndexExtent>> {
    Ok(load_changes(store, name, ordinal).await?.0)
}

/// The same, with its marks.
pub(crate) async fn load_changes(
    store: &dyn varve_env::ObjectStore,
    name: &ObjectName,
    ordinal: Ordinal,
) -> Result<(Vec<IndexExtent>, Vec<Mark>)> {
    if name.kind != ObjectKind::Bundle {
        let index = load_segment_head(store, name).await?.1;
        return Ok((index.extents, index.marks));
    }
    let (_, shares) = load_bundle_head(store, name).await?;
    let history = shares.into_iter().find(|share| share.ordinal == ordinal).and_then(|share| share.history);
    let missing = || EngineError::corrupt(format!("{name}: it does not say what segment {ordinal} has changed"));
    let history = history.ok_or_else(missing)?;
    Ok((history.extents, history.marks))
}

/// Loads header and index of a bundle and checks that it is the one that was asked for.
pub(crate) async fn load_bundle_head(
    store: &dyn varve_env::ObjectStore,
    name: &ObjectName,
) -> Result<(BundleHeader, Vec<Share>)> {
    proved(async || ask_bundle_head(store, name).await).await
}

async fn ask_bundle_head(store: &dyn varve_env::ObjectStore, name: &ObjectName) -> Result<(BundleHeader, Vec<Share>)> {
    let text = name.to_string();
    let head = store.get_head(&text, FIRST_GET).await?;
    let header = BundleHeader::decode(&head).map_err(damaged(&text))?;
    let found = (header.timeline, header.number, header.epoch, header.writer);
    if found != (name.timeline, name.number, name.epoch, name.writer) {
        return Err(EngineError::corrupt(format!("{text}: it says that it is another bundle")));
    }
    let index = index_of(store, &text, head, BUNDLE_HEADER, header.index_len).await?;
    let shares = header.decode_index(&index).map_err(damaged(&text))?;
    Ok((header, shares))
}

/// The index behind a header, of which the first bytes were read.
async fn index_of(
    store: &dyn varve_env::ObjectStore,
    text: &str,
    mut head: Bytes,
    start: usize,
    len: u32,
) -> Result<Bytes> {
    let end = start + len as usize;
    if head.len() < end {
        head = store.get_head(text, end as u64).await?;
    }
    if head.len() < end {
        return Err(EngineError::corrupt(format!("{text}: it ends before its index")));
    }
    Ok(head.slice(start..end))
}

/// Loads header and index of a segment and checks that it is the one that was asked for.
pub(crate) async fn load_segment_head(
    store: &dyn varve_env::ObjectStore,
    name: &ObjectName,
) -> Result<(SegmentHeader, SegmentIndex)> {
    proved(async || ask_segment_head(store, name).await).await
}

async fn ask_segment_head(
    store: &dyn varve_env::ObjectStore,
    name: &ObjectName,
) -> Result<(SegmentHeader, SegmentIndex)> {
    let text = name.to_string();
    let head = store.get_head(&text, FIRST_GET).await?;
    let header = SegmentHeader::decode(&head).map_err(damaged(&text))?;
    let (timeline, ordinal) = (name.timeline, Ordinal(name.number));
    if (header.timeline, header.ordinal, header.epoch, header.writer) != (timeline, ordinal, name.epoch, name.writer) {
        return Err(EngineError::corrupt(format!("{text}: it says that it is another segment")));
    }
    let bytes = index_of(store, &text, head, SEGMENT_HEADER, header.index_len).await?;
    let index = header.decode_index(&bytes).map_err(damaged(&text))?;
    Ok((header, index))
}
