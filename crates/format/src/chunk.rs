// SPDX-License-Identifier: Apache-2.0
//! The data area of a segment: chunks of eight blocks.
//!
//! A *raw* chunk is its blocks, each behind 16 bytes that prove it: so one get of 4,112 bytes reads a block and
//! shows that it is the right one.
//! ```text
//! 0   u32 checksum of the block, bound to (timeline, ordinal, block)
//! 4   u32 0
//! 8   u64 LBA of the block, in blocks
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

use crate::FormatError;
use crate::crc::{Domain, Identity, crc};
use crate::segment::{CHUNK_BLOCKS, Codec};
use bytes::{Bytes, BytesMut};
use std::cell::RefCell;
use varve_types::mutant::{Mutant, planted};
use varve_types::{BLOCK, Ordinal, TimelineId};
use zstd::bulk::{Compressor, Decompressor};

const BLOCK_LEN: usize = BLOCK as usize;
/// Bytes in front of a raw block.
pub const BLOCK_HEADER: usize = 16;
/// Bytes of a raw block with its header.
pub const RAW_BLOCK: usize = BLOCK_HEADER + BLOCK_LEN;
const PACKED_HEADER: usize = 8;
const ZSTD_LEVEL: i32 = 1;

/// A block on its way into a segment.
#[derive(Clone, Debug)]
pub struct SealBlock {
    /// Its place in the volume, in blocks.
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
    let mut packer = Packer {
        timeline,
        ordinal,
        codec,
        gained: false,
        parts: Vec::new(),
        part: BytesMut::with_capacity(PART),
        chunks: Vec::new(),
        len: 0,
        first: 0,
        scratch: Vec::new(),
    };
    let mut chunk: Vec<SealBlock> = Vec::with_capacity(CHUNK_BLOCKS as usize);
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
    timeline: TimelineId,
    ordinal: Ordinal,
    codec: Codec,
    gained: bool,
    parts: Vec<Bytes>,
    part: BytesMut,
    chunks: Vec<u32>,
    len: u64,
    first: u32,
    scratch: Vec<u8>,
}

impl Packer {
    fn chunk(&mut self, blocks: &[SealBlock]) -> Result<(), FormatError> {
        for (i, block) in blocks.iter().enumerate() {
            if block.data.len() != BLOCK_LEN || crc(&block.data) != block.crc {
                let reason = format!("block {} changed in memory before it was sealed", self.first as usize + i);
                return Err(FormatError::new("layer", reason));
            }
        }
        let mut len = blocks.len() * RAW_BLOCK;
        match self.compress(blocks) {
            Some(packed) => {
                self.gained = true;
                let identity =
                    Identity::new(Domain::Chunk, self.timeline.to_bytes(), self.ordinal.0, u64::from(self.first));
                let mut body = Vec::with_capacity(4 + 4 * blocks.len() + packed.len());
                body.extend_from_slice(&(blocks.len() as u32).to_le_bytes());
                for block in blocks {
                    body.extend_from_slice(&block.crc.to_le_bytes());
                }
                body.extend_from_slice(&packed);
                len = 4 + body.len();
                self.room(len);
                self.part.extend_from_slice(&identity.bind(crc(&body)).to_le_bytes());
                self.part.extend_from_slice(&body);
            }
            None => {
                for (i, block) in blocks.iter().enumerate() {
                    let identity = Identity::block(self.timeline, self.ordinal.0, self.first + i as u32);
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
        self.first += blocks.len() as u32;
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
    fn compress(&mut self, blocks: &[SealBlock]) -> Option<Vec<u8>> {
        if self.codec == Codec::Raw {
            return None;
        }
        let most = blocks.len() * BLOCK_LEN * 7 / 8 - PACKED_HEADER - 4 * blocks.len();
        // One block first: data that does not compress is the common case of a busy disk, and need not pay for a whole chunk.
        if blocks.len() > 1 && compress_with(self.codec, &blocks[0].data)?.len() > BLOCK_LEN * 15 / 16 {
            let last = &blocks[blocks.len() - 1].data;
            if compress_with(self.codec, last)?.len() > BLOCK_LEN * 15 / 16 {
                return None;
            }
        }
        self.scratch.clear();
        for block in blocks {
            self.scratch.extend_from_slice(&block.data);
        }
        let packed = compress_with(self.codec, &self.scratch)?;
        (packed.len() <= most).then_some(packed)
    }
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
    if bytes.len() == count as usize * RAW_BLOCK {
        return (0..count)
            .map(|i| {
                let at = i as usize * RAW_BLOCK;
                raw_block(timeline, ordinal, first + i, &bytes.slice(at..at + RAW_BLOCK))
            })
            .collect();
    }
    let corrupt = |reason: &str| FormatError::new("segment chunk", format!("chunk at block {first}: {reason}"));
    let table = PACKED_HEADER + 4 * count as usize;
    if bytes.len() < table {
        return Err(corrupt("it is too short"));
    }
    let identity = Identity::new(Domain::Chunk, timeline.to_bytes(), ordinal.0, u64::from(first));
    let is_whole = identity.bind(crc(&bytes[4..])) == u32_at(bytes, 0) || planted(Mutant::TrustStoredBlocks);
    if !is_whole || u32_at(bytes, 4) != count {
        return Err(corrupt("its checksum does not match"));
    }
    let len = count as usize * BLOCK_LEN;
    let raw = match codec {
        Codec::Raw => None,
        Codec::Lz4 => lz4_flex::block::decompress(&bytes[table..], len).ok(),
        Codec::Zstd => {
            DECOMPRESSOR.with_borrow_mut(|zstd| kept(zstd, Decompressor::new)?.decompress(&bytes[table..], len).ok())
        }
    };
    let raw = Bytes::from(raw.filter(|raw| raw.len() == len).ok_or_else(|| corrupt("it does not decompress"))?);
    (0..count as usize)
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
