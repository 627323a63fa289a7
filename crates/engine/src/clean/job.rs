// SPDX-License-Identifier: Apache-2.0
//! A job of cleaning: it reads what lives of some segments, and puts it as one bundle.
//!
//! It is a function of the job and of objects that never change: whoever runs it, and however often, makes the same. It owns nothing, and what it has put is
//! for nothing until the owner of the timeline points to it.
//!
//! What it holds in RAM is what lives of its sources: at most a segment, and an index of each. Every block is verified as it is read, and keeps the checksum
//! that it was written with.

use crate::context::{Head, damaged};
use crate::error::MayPass;
use crate::pace::Pace;
use crate::read::{fetch_ranks, heads_of, load_bundle_head, load_segment_head};
use crate::signal::breathe;
use crate::{EngineError, Result};
use bytes::Bytes;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::RangeInclusive;
use std::time::Duration;
use varve_env::{Env, ObjectStore, Payload, PutOutcome, compute};
use varve_format::bundle::{BundleFacts, BundleIndex, History, Share};
use varve_format::chunk::{Block, SealBlock, UNKNOWN_LBA, pack_share};
use varve_format::segment::{Codec, IndexExtent};
use varve_format::table::LiveBits;
use varve_format::{BlockSet, ObjectKind, ObjectName};
use varve_types::branch::{Branch, reached};
use varve_types::mutant::{Mutant, planted};
use varve_types::{BLOCK, ErrorKind, Ordinal};

/// Most blocks of one get.
const SPAN: u32 = 256;
/// A store that refuses is asked again after so long, and then the job is given up: it holds up the others.
const PAUSES: [Duration; 3] = [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(4)];
/// Blocks copied between two looks at other tasks.
const COPIED: usize = 32;
/// So many dead blocks are read with what lives around them, rather than with a get of its own for each side.
const GAP: u32 = 16;

/// What is to be made.
#[derive(Clone, Debug)]
pub struct Job {
    /// The name that what is made is put under: it is used for nothing else.
    pub bundle: ObjectName,
    /// How its blocks are to be coded, where that makes them smaller.
    pub codec: Codec,
    /// When the job was made, in milliseconds since 1970. It stands in the bundle.
    pub made_ms: u64,
    /// By ordinal.
    pub sources: Vec<Source>,
}

/// A segment that is cleaned.
#[derive(Clone, Debug)]
pub struct Source {
    /// Which segment.
    pub ordinal: Ordinal,
    /// The object that has its blocks.
    pub object: ObjectName,
    /// What lives.
    pub live: LiveBits,
    /// Whether somebody may still need to know what it has changed.
    pub history: bool,
}

/// What was made.
pub(crate) struct Made {
    pub bundle: ObjectName,
    pub shares: Vec<MadeShare>,
    /// Bytes of blocks that were read for it, dead ones between them too.
    pub read_bytes: u64,
    /// Bytes of the bundle.
    pub put_bytes: u64,
}

/// How a job reaches what it works on.
#[derive(Clone, Copy)]
pub(crate) struct Means<'a> {
    pub pace: Pace<'a>,
    pub store: &'a dyn ObjectStore,
    /// Bytes of blocks that were read.
    pub read: &'a Cell<u64>,
}

/// Asks the store again where it refuses for now, a few times.
pub(super) async fn patiently<T>(env: &dyn Env, mut ask: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    for pause in PAUSES {
        match ask().await {
            Err(error) if error.may_pass() => env.sleep(pause).await,
            done => return done,
        }
    }
    ask().await
}

impl Means<'_> {
    async fn patiently<T>(&self, ask: impl AsyncFnMut() -> Result<T>) -> Result<T> {
        patiently(self.pace.env, ask).await
    }

    async fn read_span(&self, head: &Head, span: &RangeInclusive<u32>) -> Result<Vec<(u32, Block)>> {
        let count = span.end() - span.start() + 1;
        let blocks = self.patiently(async || fetch_ranks(self.store, head, *span.start(), count).await).await?;
        let bytes = blocks.len() as u64 * BLOCK;
        self.read.set(self.read.get() + bytes);
        self.pace.spend(bytes).await;
        Ok(blocks)
    }
}

/// A share that was made.
pub(crate) struct MadeShare {
    pub ordinal: Ordinal,
    /// Where its blocks were.
    pub from: ObjectName,
    pub blocks: u32,
    pub bytes: u64,
    /// Whether it tells what the segment has changed.
    pub history: bool,
}

/// Why nothing was made.
pub(crate) struct Failed {
    /// The object that was read, or put.
    pub object: ObjectName,
    pub error: EngineError,
}

/// What an object tells of one of its segments.
pub(super) struct Part {
    pub head: Head,
    pub history: Option<History>,
}

/// Runs a job, with at most `rate` bytes a second (0: as many as can be). What it has read is added to `read` as it goes.
pub(crate) async fn run(
    env: &dyn Env,
    store: &dyn ObjectStore,
    rate: &Cell<u64>,
    read: &Cell<u64>,
    job: &Job,
) -> std::result::Result<Made, Failed> {
    let means = Means { pace: Pace { env, rate }, store, read };
    let mut known: BTreeMap<ObjectName, Vec<Part>> = BTreeMap::new();
    let (mut index, mut made, mut parts) = (BundleIndex::default(), Vec::new(), Vec::new());
    for source in &job.sources {
        let failed = |error| Failed { object: source.object, error };
        let loaded = match known.entry(source.object) {
            Entry::Occupied(loaded) => loaded.into_mut(),
            Entry::Vacant(place) => {
                let loaded = means.patiently(async || load(store, &source.object).await).await;
                place.insert(loaded.map_err(failed)?)
            }
        };
        let part = loaded.iter().find(|part| part.head.ordinal == source.ordinal);
        let missing =
            || EngineError::corrupt(format!("{}: it has nothing of segment {}", source.object, source.ordinal));
        let part = part.ok_or_else(missing).map_err(failed)?;
        let blocks = read_live(means, source, part).await.map_err(failed)?;
        let (timeline, ordinal, codec) = (job.bundle.timeline, source.ordinal, job.codec);
        let set = BlockSet::live(&source.live);
        if blocks.len() as u32 != set.len() {
            return Err(failed(missing()));
        }
        let packed = compute(env, move || pack_share(timeline, ordinal, blocks.into_iter(), codec)).await;
        let packed = packed.map_err(damaged(source.object)).map_err(failed)?;
        let history = part.history.clone().filter(|_| source.history);
        let share = Share { ordinal, blocks: set, codec: packed.codec, chunks: packed.chunks, history };
        if !index.push(&share) {
            // The others are for another job.
            break;
        }
        parts.extend(packed.parts);
        let (blocks, bytes) = (share.blocks.len(), share.data_len());
        made.push(MadeShare { ordinal, from: source.object, blocks, bytes, history: source.history });
        breathe().await;
    }
    let put_bytes = match put(means, job, &index, parts).await {
        Err(error) if !planted(Mutant::CleanBeforePut) => return Err(Failed { object: job.bundle, error }),
        done => done.unwrap_or_default(),
    };
    Ok(Made { bundle: job.bundle, shares: made, read_bytes: read.get(), put_bytes })
}

/// Heads and histories of the segments that an object has blocks of.
pub(super) async fn load(store: &dyn ObjectStore, name: &ObjectName) -> Result<Vec<Part>> {
    if name.kind == ObjectKind::Bundle {
        let (header, shares) = load_bundle_head(store, name).await?;
        let heads = heads_of(name, &header, &shares).into_iter().zip(shares);
        return Ok(heads.map(|(head, share)| Part { head, history: share.history }).collect());
    }
    let (header, index) = load_segment_head(store, name).await?;
    let head = Head::new(*name, &header, &index.chunks);
    let history = History {
        stream_epoch: header.stream_epoch,
        first: header.first,
        last: header.last,
        extents: index.extents,
        marks: index.marks,
    };
    Ok(vec![Part { head, history: Some(history) }])
}

/// The blocks that live, verified, by their numbers.
async fn read_live(means: Means<'_>, source: &Source, part: &Part) -> Result<Vec<(u16, SealBlock)>> {
    let numbers = (0..source.live.blocks()).filter(|block| source.live.is_live(*block));
    let missing = |block: u32| {
        EngineError::corrupt(format!("{}: it does not have block {block} of segment {}", source.object, source.ordinal))
    };
    let ranks = numbers.map(|block| part.head.blocks.rank(block).ok_or_else(|| missing(block)));
    let ranks = ranks.collect::<Result<Vec<u32>>>()?;
    let places = part.history.as_ref().map_or(&[][..], |history| &history.extents);
    let mut places = Places::new(places);
    let mut blocks = Vec::with_capacity(ranks.len());
    for span in spans(&ranks, GAP) {
        let read = match means.read_span(&part.head, &span).await {
            // Perhaps only what is dead is damaged.
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                reached(Branch::CleanAroundDamage);
                let within = ranks.iter().copied().filter(|rank| span.contains(rank)).collect::<Vec<_>>();
                let mut all = Vec::new();
                for exact in spans(&within, 0) {
                    all.extend(means.read_span(&part.head, &exact).await?);
                }
                all
            }
            done => done?,
        };
        for (at, (number, (data, crc))) in read.into_iter().enumerate() {
            if at % COPIED == COPIED - 1 {
                breathe().await;
            }
            if source.live.is_live(number) && blocks.last().is_none_or(|(last, _)| u32::from(*last) < number) {
                // A copy: what was read with it need not stay in RAM.
                let data = Bytes::copy_from_slice(&data);
                blocks.push((number as u16, SealBlock { lba: places.of(number), data, crc }));
            }
        }
        breathe().await;
    }
    Ok(blocks)
}

/// Ranges that cover the ranks, which are sorted, with gaps of at most so many others inside.
fn spans(ranks: &[u32], gap: u32) -> Vec<RangeInclusive<u32>> {
    let mut spans: Vec<RangeInclusive<u32>> = Vec::new();
    for rank in ranks {
        match spans.last_mut() {
            Some(last) if rank - last.end() <= gap + 1 && rank - last.start() < SPAN => *last = *last.start()..=*rank,
            _ => spans.push(*rank..=*rank),
        }
    }
    spans
}

/// Where in the volume the blocks of a segment belong, asked in the order of their numbers.
struct Places<'a> {
    extents: &'a [IndexExtent],
    /// Number of the first block of the first of them.
    first: u64,
}

impl<'a> Places<'a> {
    const fn new(extents: &'a [IndexExtent]) -> Self {
        Self { extents, first: 0 }
    }

    /// The place of a block; where nobody has told, that nobody knows.
    fn of(&mut self, number: u32) -> u64 {
        while let Some(extent) = self.extents.first() {
            let blocks = if extent.hole { 0 } else { extent.blocks };
            if u64::from(number) < self.first + blocks {
                return extent.start + u64::from(number) - self.first;
            }
            self.first += blocks;
            self.extents = &self.extents[1..];
        }
        UNKNOWN_LBA
    }
}

/// Puts the bundle; gives its bytes.
async fn put(means: Means<'_>, job: &Job, index: &BundleIndex, parts: Vec<Bytes>) -> Result<u64> {
    let ObjectName { timeline, number, epoch, writer, .. } = job.bundle;
    let facts = BundleFacts { timeline, number, epoch, writer, made_ms: job.made_ms };
    let head = Bytes::from(index.encode_head(&facts));
    let payload = Payload::new([vec![head.clone()], parts].concat());
    let (text, len) = (job.bundle.to_string(), payload.len());
    let store = means.store;
    means.pace.spend(len).await;
    let put = async || {
        if store.put(&text, payload.clone()).await? == PutOutcome::Created {
            return Ok(());
        }
        // An earlier try whose answer was lost: the numbers of jobs are used once.
        reached(Branch::BundleWasPut);
        let is_same = store.head(&text).await?.size == len && store.get_head(&text, head.len() as u64).await? == head;
        let other = || EngineError::corrupt(format!("{text}: another object stands under its name"));
        if is_same { Ok(()) } else { Err(other()) }
    };
    means.patiently(put).await?;
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_cover_what_lives_and_little_else() {
        assert_eq!(spans(&[], 4), []);
        assert_eq!(spans(&[3], 4), [3..=3]);
        assert_eq!(spans(&[0, 1, 6, 12, 13], 4), [0..=6, 12..=13]);
        assert_eq!(spans(&[0, 1, 3], 0), [0..=1, 3..=3]);
        let all: Vec<u32> = (0..600).collect();
        assert_eq!(spans(&all, 4), [0..=255, 256..=511, 512..=599]);
    }

    #[test]
    fn places_are_those_of_the_extents() {
        let extent = |start, blocks, hole| IndexExtent { start, blocks, hole };
        let extents = [extent(10, 2, false), extent(20, 5, true), extent(30, 3, false)];
        let mut places = Places::new(&extents);
        let found: Vec<u64> = [0, 1, 2, 4, 5].iter().map(|number| places.of(*number)).collect();
        assert_eq!(found, [10, 11, 30, 32, UNKNOWN_LBA]);
        assert_eq!(Places::new(&[]).of(3), UNKNOWN_LBA);
    }
}
