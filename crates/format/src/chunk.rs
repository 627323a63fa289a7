// SPDX-License-Identifier: Apache-2.0
//! The data area of a segment, or of a share of a bundle: chunks of eight blocks.
//!
//! A *raw* chunk is its blocks, each behind 16 bytes that prove it: so one get of 4,112 bytes reads a block and
//! shows that it is the right one.
//! ```text
//! 0   u32 checksum of the block, bound to (timeline, ordinal, block)
//! 4   u32 0
//! 8   u64 LBA of the block, in blocks; in a bundle all ones where nobody knows it
//! 16  4,096 bytes
//! ```
//! A *packed* chunk is compressed whole, behind 8 bytes; its packed form begins with the plain checksum of each
//! block, and is only ever shorter than the raw one by at least an eighth. Its kind is told by its length: a raw
//! chunk of `n` blocks has exactly `n × 4,112` bytes.
//! ```text
//! 0   u32 checksum of all that follows, bound to (timeline, ordinal, first block)
//! 4   u32 number of blocks
//! 8   number of blocks × u32 plain checksum, then the compressed blocks
//! ```
//! A packed chunk of a share tells the numbers of its blocks as well (u16 each, up to the next multiple of 4 bytes), behind the plain checksums: they need
//! not follow each other, and a chunk of another object of the same segment must not pass for this one.

use crate::FormatError;
use crate::crc::{Domain, Identity, crc};
use crate::segment::{CHUNK_BLOCKS, Codec};
use bytes::{Bytes, BytesMut};
use std::cell::RefCell;
use varve_types::mutant::{Mutant, planted};
use varve_types::{BLOCK, MAX_SEGMENT_BLOCKS, Ordinal, TimelineId};
use zstd::bulk::{Compressor, Decompressor};

const BLOCK_LEN: usize = BLOCK as usize;
/// Bytes in front of a raw block.
pub const BLOCK_HEADER: usize = 16;
/// Bytes of a raw block with its header.
pub const RAW_BLOCK: usize = BLOCK_HEADER + BLOCK_LEN;
const PACKED_HEADER: usize = 8;
const ZSTD_LEVEL: i32 = 1;

/// The place of a block of which nobody knows it any more.
pub const UNKNOWN_LBA: u64 = u64::MAX;

/// A block on its way into a segment or a bundle.
#[derive(Clone, Debug)]
pub struct SealBlock {
    /// Its place in the volume, in blocks; or [`UNKNOWN_LBA`].
    pub lba: u64,
    /// Its 4 KiB.
    pub data: Bytes,
    /// Their plain checksum, as it was computed when they came in.
    pub crc: u32,
}

/// A data area that was built.
#[derive(Debug)]
pub struct Packed {
    /// Its bytes, in parts. Those of a raw block are the block's own, not a copy.
    pub parts: Vec<Bytes>,
    /// Bytes of each chunk; empty where all are raw.
    pub chunks: Vec<u32>,
    /// `Raw` where no chunk gained anything.
    pub codec: Codec,
    /// Bytes in all.
    pub len: u64,
}

/// Bytes of an allocation for what is not a block's own: headers and compressed chunks.
const PART: usize = 256 << 10;

/// Builds the data area of a segment.
///
/// # Errors
/// When a block's bytes no longer match the checksum that they came in with: memory is failing, and nothing may be written.
pub fn pack(
    timeline: TimelineId,
    ordinal: Ordinal,
    blocks: impl Iterator<Item = SealBlock>,
    codec: Codec,
) -> Result<Packed, FormatError> {
    let numbered = (0..=u16::MAX).zip(blocks);
    pack_as(Domain::Chunk, timeline, ordinal, numbered, codec)
}

/// Builds the data of a share of a bundle: blocks of a segment by their numbers there, in order.
///
/// # Errors
/// As [`pack`].
pub fn pack_share(
    timeline: TimelineId,
    ordinal: Ordinal,
    blocks: impl Iterator<Item = (u16, SealBlock)>,
    codec: Codec,
) -> Result<Packed, FormatError> {
    pack_as(Domain::Share, timeline, ordinal, blocks, codec)
}

fn pack_as(
    domain: Domain,
    timeline: TimelineId,
    ordinal: Ordinal,
    blocks: impl Iterator<Item = (u16, SealBlock)>,
    codec: Codec,
) -> Result<Packed, FormatError> {
    let mut packer = Packer {
        domain,
        timeline,
        ordinal,
        codec,
        gained: false,
        parts: Vec::new(),
        part: BytesMut::with_capacity(PART),
        chunks: Vec::new(),
        len: 0,
        scratch: Vec::new(),
    };
    let mut chunk: Vec<(u16, SealBlock)> = Vec::with_capacity(CHUNK_BLOCKS as usize);
    for block in blocks {
        chunk.push(block);
        if chunk.len() == CHUNK_BLOCKS as usize {
            packer.chunk(&chunk)?;
            chunk.clear();
        }
    }
    if !chunk.is_empty() {
        packer.chunk(&chunk)?;
    }
    packer.cut();
    let (codec, chunks) = if packer.gained { (codec, packer.chunks) } else { (Codec::Raw, Vec::new()) };
    Ok(Packed { parts: packer.parts, chunks, codec, len: packer.len })
}

struct Packer {
    domain: Domain,
    timeline: TimelineId,
    ordinal: Ordinal,
    codec: Codec,
    gained: bool,
    parts: Vec<Bytes>,
    part: BytesMut,
    chunks: Vec<u32>,
    len: u64,
    scratch: Vec<u8>,
}

impl Packer {
    fn chunk(&mut self, blocks: &[(u16, SealBlock)]) -> Result<(), FormatError> {
        for (number, block) in blocks {
            if block.data.len() != BLOCK_LEN || crc(&block.data) != block.crc {
                let reason = format!("block {number} changed in memory before it was sealed");
                return Err(FormatError::new("layer", reason));
            }
        }
        let mut len = blocks.len() * RAW_BLOCK;
        match self.compress(blocks) {
            Some(packed) => {
                self.gained = true;
                let first = u64::from(blocks[0].0);
                let identity = Identity::new(self.domain, self.timeline.to_bytes(), self.ordinal.0, first);
                let mut body = Vec::with_capacity(table_len(self.domain, blocks.len()) + packed.len());
                body.extend_from_slice(&(blocks.len() as u32).to_le_bytes());
                for (_, block) in blocks {
                    body.extend_from_slice(&block.crc.to_le_bytes());
                }
                if self.domain == Domain::Share {
                    blocks.iter().for_each(|(number, _)| body.extend_from_slice(&number.to_le_bytes()));
                    body.resize(body.len().next_multiple_of(4), 0);
                }
                body.extend_from_slice(&packed);
                len = 4 + body.len();
                self.room(len);
                self.part.extend_from_slice(&identity.bind(crc(&body)).to_le_bytes());
                self.part.extend_from_slice(&body);
            }
            None => {
                for (number, block) in blocks {
                    let identity = Identity::block(self.timeline, self.ordinal.0, u32::from(*number));
                    self.room(BLOCK_HEADER);
                    self.part.extend_from_slice(&identity.bind(block.crc).to_le_bytes());
                    self.part.extend_from_slice(&[0; 4]);
                    self.part.extend_from_slice(&block.lba.to_le_bytes());
                    self.cut();
                    self.parts.push(block.data.clone());
                }
            }
        }
        self.chunks.push(len as u32);
        self.len += len as u64;
        Ok(())
    }

    /// Makes sure that so many bytes fit into the part at hand, which never grows.
    fn room(&mut self, bytes: usize) {
        if self.part.capacity() - self.part.len() < bytes {
            self.cut();
            self.part = BytesMut::with_capacity(PART.max(bytes));
        }
    }

    /// Ends the part at hand; the next one begins behind it in the same allocation.
    fn cut(&mut self) {
        if !self.part.is_empty() {
            self.parts.push(self.part.split().freeze());
        }
    }

    /// The compressed blocks, if that saves at least an eighth.
    fn compress(&mut self, blocks: &[(u16, SealBlock)]) -> Option<Vec<u8>> {
        if self.codec == Codec::Raw {
            return None;
        }
        let most = blocks.len() * BLOCK_LEN * 7 / 8 - table_len(self.domain, blocks.len());
        // One block first: data that does not compress is the common case of a busy disk, and need not pay for a whole chunk.
        if blocks.len() > 1 && compress_with(self.codec, &blocks[0].1.data)?.len() > BLOCK_LEN * 15 / 16 {
            let last = &blocks[blocks.len() - 1].1.data;
            if compress_with(self.codec, last)?.len() > BLOCK_LEN * 15 / 16 {
                return None;
            }
        }
        self.scratch.clear();
        for (_, block) in blocks {
            self.scratch.extend_from_slice(&block.data);
        }
        let packed = compress_with(self.codec, &self.scratch)?;
        (packed.len() <= most).then_some(packed)
    }
}

/// Bytes of a packed chunk in front of its compressed blocks.
const fn table_len(domain: Domain, blocks: usize) -> usize {
    let numbers = if matches!(domain, Domain::Share) { (2 * blocks).next_multiple_of(4) } else { 0 };
    PACKED_HEADER + 4 * blocks + numbers
}

fn compress_with(codec: Codec, raw: &[u8]) -> Option<Vec<u8>> {
    match codec {
        Codec::Raw => None,
        Codec::Lz4 => Some(lz4_flex::block::compress(raw)),
        // A failure to compress costs space only: the chunk stays raw.
        Codec::Zstd => {
            COMPRESSOR.with_borrow_mut(|zstd| kept(zstd, || Compressor::new(ZSTD_LEVEL))?.compress(raw).ok())
        }
    }
}

thread_local! {
    // What zstd needs to begin costs more than a chunk: each thread makes it once.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// What is kept, made at the first use; `None` where it can not be made.
fn kept<T>(kept: &mut Option<T>, make: impl FnOnce() -> std::io::Result<T>) -> Option<&mut T> {
    if kept.is_none() {
        *kept = make().ok();
    }
    kept.as_mut()
}

/// A verified block: its bytes and their plain checksum.
pub type Block = (Bytes, u32);

/// Takes a chunk of `count` blocks apart, verifying all of it.
///
/// # Errors
/// `Corrupt` when anything in it is not what was sealed.
pub fn unpack(
    timeline: TimelineId,
    ordinal: Ordinal,
    first: u32,
    count: u32,
    codec: Codec,
    bytes: &Bytes,
) -> Result<Vec<Block>, FormatError> {
    let numbers = std::array::from_fn::<u16, { CHUNK_BLOCKS as usize }, _>(|i| (first as usize + i) as u16);
    let numbers = numbers.get(..count as usize).filter(|_| first + count <= MAX_SEGMENT_BLOCKS);
    let numbers = numbers.ok_or_else(|| FormatError::new("segment chunk", format!("{count} blocks from {first}")))?;
    unpack_as(Domain::Chunk, timeline, ordinal, numbers, codec, bytes)
}

/// Takes a chunk of a share apart that has blocks of these numbers, verifying all of it.
///
/// # Errors
/// As [`unpack`].
pub fn unpack_share(
    timeline: TimelineId,
    ordinal: Ordinal,
    numbers: &[u16],
    codec: Codec,
    bytes: &Bytes,
) -> Result<Vec<Block>, FormatError> {
    unpack_as(Domain::Share, timeline, ordinal, numbers, codec, bytes)
}

fn unpack_as(
    domain: Domain,
    timeline: TimelineId,
    ordinal: Ordinal,
    numbers: &[u16],
    codec: Codec,
    bytes: &Bytes,
) -> Result<Vec<Block>, FormatError> {
    let count = numbers.len();
    if bytes.len() == count * RAW_BLOCK {
        let raw = |(at, number): (usize, &u16)| {
            raw_block(timeline, ordinal, u32::from(*number), &bytes.slice(at * RAW_BLOCK..(at + 1) * RAW_BLOCK))
        };
        return numbers.iter().enumerate().map(raw).collect();
    }
    let first = numbers.first().copied().unwrap_or_default();
    let corrupt = |reason: &str| FormatError::new("segment chunk", format!("chunk at block {first}: {reason}"));
    let table = table_len(domain, count);
    if bytes.len() < table {
        return Err(corrupt("it is too short"));
    }
    let identity = Identity::new(domain, timeline.to_bytes(), ordinal.0, u64::from(first));
    let is_whole = identity.bind(crc(&bytes[4..])) == u32_at(bytes, 0) || planted(Mutant::TrustStoredBlocks);
    if !is_whole || u32_at(bytes, 4) as usize != count {
        return Err(corrupt("its checksum does not match"));
    }
    let told = bytes[PACKED_HEADER + 4 * count..table].chunks_exact(2).map(|n| u16::from_le_bytes([n[0], n[1]]));
    if domain == Domain::Share && !told.take(count).eq(numbers.iter().copied()) {
        return Err(corrupt("it has other blocks"));
    }
    let len = count * BLOCK_LEN;
    let raw = match codec {
        Codec::Raw => None,
        Codec::Lz4 => lz4_flex::block::decompress(&bytes[table..], len).ok(),
        Codec::Zstd => {
            DECOMPRESSOR.with_borrow_mut(|zstd| kept(zstd, Decompressor::new)?.decompress(&bytes[table..], len).ok())
        }
    };
    let raw = Bytes::from(raw.filter(|raw| raw.len() == len).ok_or_else(|| corrupt("it does not decompress"))?);
    (0..count)
        .map(|i| {
            let block = raw.slice(i * BLOCK_LEN..(i + 1) * BLOCK_LEN);
            let sum = u32_at(bytes, PACKED_HEADER + 4 * i);
            if crc(&block) != sum && !planted(Mutant::TrustStoredBlocks) {
                return Err(corrupt("a block's checksum does not match"));
            }
            Ok((block, sum))
        })
        .collect()
}

/// Verifies a raw block of [`RAW_BLOCK`] bytes and gives its data.
///
/// # Errors
/// `Corrupt` when it is not the block that was sealed.
pub fn raw_block(timeline: TimelineId, ordinal: Ordinal, block: u32, bytes: &Bytes) -> Result<Block, FormatError> {
    if bytes.len() != RAW_BLOCK {
        return Err(FormatError::new("segment", format!("block {block}: it has {} bytes", bytes.len())));
    }
    let data = bytes.slice(BLOCK_HEADER..);
    let plain = Identity::block(timeline, ordinal.0, block).bind(u32_at(bytes, 0));
    let is_whole = crc(&data) == plain || planted(Mutant::TrustStoredBlocks);
    if !is_whole || u32_at(bytes, 4) != 0 {
        return Err(FormatError::new("segment", format!("block {block}: its checksum does not match")));
    }
    Ok((data, plain))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests;
