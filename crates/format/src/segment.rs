// SPDX-License-Identifier: Apache-2.0
//! The head of a segment object: header and index. The data area behind it is in [`crate::chunk`].
//!
//! ```text
//! 0    header, 160 bytes        what segment this is, and how long its other parts are
//! 160  index                    extents in LBA order, marks, lengths of compressed chunks
//! ...  data                     from `data_offset`, a multiple of 16
//! ```
//! Blocks are numbered through the data extents in LBA order, so the index alone maps an LBA to a block. The
//! header's checksum is bound to nothing: it *carries* the identity, which a reader compares with the name it asked
//! for. The index has its own checksum in the header.

use crate::FormatError;
use crate::codec::{Decoder, Encoder};
use crate::crc::{crc, is_whole};
use crate::mark::Mark;
use varve_types::{BLOCK, Compression, Epoch, MAX_SEGMENT_BLOCKS, MAX_VOLUME, Ordinal, Sequence, TimelineId, WriterId};

const MAGIC: &[u8; 8] = b"VARVESEG";
const VERSION: u32 = 1;
/// Bytes of the header.
pub const SEGMENT_HEADER: usize = 160;
/// Blocks of a chunk, the unit of compression: 32 KiB.
pub const CHUNK_BLOCKS: u32 = 8;
/// Longest index: 65,536 single blocks, as many holes, marks and chunk lengths.
const MAX_INDEX: u32 = 8 << 20;
const MAX_BLOCK: u64 = MAX_VOLUME / BLOCK;

/// How the chunks of a data area are coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// Every chunk is raw: block `i` stands at `i × 4112`.
    Raw = 0,
    /// Chunks are raw or LZ4 blocks.
    Lz4 = 1,
    /// Chunks are raw or Zstandard frames.
    Zstd = 2,
}

impl From<Compression> for Codec {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::Lz4 => Self::Lz4,
            Compression::Zstd => Self::Zstd,
            Compression::None => Self::Raw,
        }
    }
}

/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Whose segment.
    pub timeline: TimelineId,
    /// Which of them.
    pub ordinal: Ordinal,
    /// Epoch of the opening that put it.
    pub epoch: Epoch,
    /// The opening that put it.
    pub writer: WriterId,
    /// Epoch in which its changes were made: an earlier one for a tail that was sealed after a recovery.
    pub stream_epoch: Epoch,
    /// First change in it.
    pub first: Sequence,
    /// Last change in it.
    pub last: Sequence,
    /// Blocks in the data area.
    pub blocks: u32,
    /// How chunks are coded.
    pub codec: Codec,
    /// Bytes of the index.
    pub index_len: u32,
    /// Bytes of the data area.
    pub data_len: u64,
    /// When it was sealed, in milliseconds since 1970.
    pub sealed_ms: u64,
    index_crc: u32,
}

/// A run of blocks that the segment holds, or that it makes a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexExtent {
    /// First block of the volume.
    pub start: u64,
    /// Number of blocks.
    pub blocks: u64,
    /// Whether it is a hole.
    pub hole: bool,
}

/// What a segment lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SegmentIndex {
    /// Disjoint, in LBA order.
    pub extents: Vec<IndexExtent>,
    /// In the order of their sequence.
    pub marks: Vec<Mark>,
    /// Bytes of each chunk in the data area; empty where every chunk is raw.
    pub chunks: Vec<u32>,
}

/// The facts of a header that the builder is given.
#[derive(Clone, Copy, Debug)]
pub struct SegmentFacts {
    /// See [`SegmentHeader::timeline`].
    pub timeline: TimelineId,
    /// See [`SegmentHeader::ordinal`].
    pub ordinal: Ordinal,
    /// See [`SegmentHeader::epoch`].
    pub epoch: Epoch,
    /// See [`SegmentHeader::writer`].
    pub writer: WriterId,
    /// See [`SegmentHeader::stream_epoch`].
    pub stream_epoch: Epoch,
    /// See [`SegmentHeader::first`].
    pub first: Sequence,
    /// See [`SegmentHeader::last`].
    pub last: Sequence,
    /// See [`SegmentHeader::sealed_ms`].
    pub sealed_ms: u64,
}

/// Place of the data area behind an index of so many bytes.
#[must_use]
pub const fn data_offset(index_len: u32) -> u64 {
    (SEGMENT_HEADER as u64 + index_len as u64).next_multiple_of(16)
}

/// Encodes header and index, padded up to the data area, for a data area of `data_len` bytes that was coded with `codec`.
#[must_use]
pub fn encode_head(facts: &SegmentFacts, codec: Codec, index: &SegmentIndex, data_len: u64) -> Vec<u8> {
    let body = encode_index(index);
    let blocks: u64 = index.extents.iter().filter(|e| !e.hole).map(|e| e.blocks).sum();
    assert!(blocks <= u64::from(MAX_SEGMENT_BLOCKS), "a layer is sealed before it has more blocks than a segment may");
    assert!(body.len() <= MAX_INDEX as usize, "a layer is sealed before its index is too long");
    let mut e = Encoder::new();
    e.raw(MAGIC);
    e.u32(VERSION);
    e.u32(0);
    e.timeline(facts.timeline);
    for number in [facts.ordinal.0, facts.epoch.0, facts.writer.0, facts.stream_epoch.0, facts.first.0, facts.last.0] {
        e.u64(number);
    }
    e.u32(blocks as u32);
    e.raw(&[codec as u8, CHUNK_BLOCKS as u8, 0, 0]);
    e.u32(body.len() as u32);
    e.u32(crc(&body));
    e.u64(data_len);
    e.u64(facts.sealed_ms);
    let mut bytes = e.finish();
    bytes.resize(SEGMENT_HEADER, 0);
    let sum = crc(&bytes);
    bytes[12..16].copy_from_slice(&sum.to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes.resize(data_offset(body.len() as u32) as usize, 0);
    bytes
}

fn encode_index(index: &SegmentIndex) -> Vec<u8> {
    let mut e = Encoder::new();
    encode_extents(&mut e, &index.extents);
    e.list(&index.marks, |e, mark| mark.encode(e));
    e.list(&index.chunks, |e, len| e.varint(u64::from(*len)));
    e.finish()
}

pub(crate) fn encode_extents(e: &mut Encoder, extents: &[IndexExtent]) {
    e.varint(extents.len() as u64);
    let mut end = 0;
    for extent in extents {
        debug_assert!(extent.start >= end && extent.blocks > 0);
        // One number for the common case: the distance from the extent before, and whether it is a hole.
        e.varint((extent.start - end) << 1 | u64::from(extent.hole));
        e.varint(extent.blocks);
        end = extent.start + extent.blocks;
    }
}

/// Reads extents, which hold `blocks` blocks.
pub(crate) fn decode_extents(d: &mut Decoder<'_>, blocks: u32) -> Result<Vec<IndexExtent>, FormatError> {
    let (mut end, mut found) = (0u64, 0u64);
    let extents = d.list(|d| {
        let first = d.varint()?;
        let (start, len) = (end.saturating_add(first >> 1), d.varint()?);
        if len == 0 || start > MAX_BLOCK || len > MAX_BLOCK - start {
            return Err(d.corrupt("an extent lies outside any volume"));
        }
        end = start + len;
        let extent = IndexExtent { start, blocks: len, hole: first & 1 == 1 };
        found += if extent.hole { 0 } else { len };
        Ok(extent)
    })?;
    if found != u64::from(blocks) {
        return Err(d.corrupt("its extents do not have as many blocks as it says"));
    }
    Ok(extents)
}

/// The codec that is stored as `raw`.
pub(crate) const fn codec_from_raw(raw: u8) -> Option<Codec> {
    match raw {
        0 => Some(Codec::Raw),
        1 => Some(Codec::Lz4),
        2 => Some(Codec::Zstd),
        _ => None,
    }
}

/// Checks the lengths of the chunks of `blocks` blocks; gives the bytes of all.
pub(crate) fn data_len(codec: Codec, blocks: u32, chunks: &[u32]) -> Result<u64, &'static str> {
    if codec == Codec::Raw {
        let len = u64::from(blocks) * crate::chunk::RAW_BLOCK as u64;
        return if chunks.is_empty() { Ok(len) } else { Err("it has lengths of chunks, and is raw") };
    }
    if chunks.len() != blocks.div_ceil(CHUNK_BLOCKS) as usize {
        return Err("it does not have a length for each chunk");
    }
    Ok(chunks.iter().map(|len| u64::from(*len)).sum())
}

impl SegmentHeader {
    /// Reads a header; `bytes` begin with it and may be longer.
    ///
    /// # Errors
    /// When it is damaged or of a version that is not known.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut d = Decoder::new("segment header", bytes);
        if &d.array::<8>()? != MAGIC {
            return Err(d.corrupt("it does not begin with VARVESEG"));
        }
        let found = d.u32()?;
        let sum = d.u32()?;
        let is_whole = bytes.get(..SEGMENT_HEADER).map(|bytes| is_whole(bytes, VERSION, sum));
        if found != VERSION {
            return Err(FormatError::version("a segment", found, VERSION, is_whole == Some(true)));
        }
        if !is_whole.ok_or_else(|| d.corrupt("it is too short"))? {
            return Err(d.corrupt("its checksum does not match"));
        }
        let timeline = d.timeline()?;
        let (ordinal, epoch, writer) = (Ordinal(d.u64()?), Epoch(d.u64()?), WriterId(d.u64()?));
        let (stream_epoch, first, last) = (Epoch(d.u64()?), Sequence(d.u64()?), Sequence(d.u64()?));
        let blocks = d.u32()?;
        let coding = d.array::<4>()?;
        let codec = codec_from_raw(coding[0]).filter(|_| coding[1..] == [CHUNK_BLOCKS as u8, 0, 0]);
        let codec = codec.ok_or_else(|| d.corrupt(format!("codec {coding:?} is not known")))?;
        let (index_len, index_crc, data_len, sealed_ms) = (d.u32()?, d.u32()?, d.u64()?, d.u64()?);
        if blocks > MAX_SEGMENT_BLOCKS || index_len > MAX_INDEX || last < first || data_len > 1 << 30 {
            return Err(d.corrupt("its numbers make no sense"));
        }
        Ok(Self {
            timeline,
            ordinal,
            epoch,
            writer,
            stream_epoch,
            first,
            last,
            blocks,
            codec,
            index_len,
            data_len,
            sealed_ms,
            index_crc,
        })
    }

    /// Place of the data area in the object.
    #[must_use]
    pub const fn data_offset(&self) -> u64 {
        data_offset(self.index_len)
    }

    /// Bytes of the whole object.
    #[must_use]
    pub const fn object_len(&self) -> u64 {
        self.data_offset() + self.data_len
    }

    /// Reads the index, of exactly `index_len` bytes.
    ///
    /// # Errors
    /// When it is damaged or does not fit the header.
    pub fn decode_index(&self, bytes: &[u8]) -> Result<SegmentIndex, FormatError> {
        let mut d = Decoder::new("segment index", bytes);
        if bytes.len() != self.index_len as usize || crc(bytes) != self.index_crc {
            return Err(d.corrupt("its checksum does not match"));
        }
        let extents = decode_extents(&mut d, self.blocks)?;
        let marks = d.list(Mark::decode)?;
        let chunks = d.list(Decoder::varint32)?;
        if data_len(self.codec, self.blocks, &chunks).map_err(|reason| d.corrupt(reason))? != self.data_len {
            return Err(d.corrupt("its chunks are not as long as the data"));
        }
        if marks.iter().any(|m| m.sequence() < self.first || m.sequence() > self.last) {
            return Err(d.corrupt("a mark lies outside its range"));
        }
        d.end()?;
        Ok(SegmentIndex { extents, marks, chunks })
    }
}
