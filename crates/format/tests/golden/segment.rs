// SPDX-License-Identifier: Apache-2.0
//! Segments: head and data area, for every codec; and one of marks alone.
//!
//! Two things in a segment are asked by no reader: the zeroes up to the data area, and the LBA beside a raw block, which is there for people who
//! have nothing but the object. Which block belongs where is said by the index, and proved by the identity in the block's checksum.

use crate::dump::{Field, Form, field};
use crate::journal::{TIMELINE, snapshot, snapshot_fields};
use crate::{Golden, PLAIN};
use bytes::Bytes;
use std::ops::Range;
use varve_format::FormatError;
use varve_format::chunk::{BLOCK_HEADER, RAW_BLOCK, SealBlock, pack, raw_block, unpack};
use varve_format::crc::crc;
use varve_format::mark::Mark;
use varve_format::segment::{
    CHUNK_BLOCKS, Codec, IndexExtent, SEGMENT_HEADER, SegmentFacts, SegmentHeader, SegmentIndex, encode_head,
};
use varve_types::{BLOCK, Epoch, Ordinal, Sequence, WriterId};

const FACTS: SegmentFacts = SegmentFacts {
    timeline: TIMELINE,
    ordinal: Ordinal(65_541),
    epoch: Epoch(4),
    writer: WriterId(0x0123_4567_89ab_cdef),
    stream_epoch: Epoch(3),
    first: Sequence(1_000),
    last: Sequence(1_017),
    sealed_ms: 1_700_000_000_456,
};

/// Bytes that do not compress, the same for the same seed (xorshift).
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// What there is of a range: all of it, or less where the bytes were cut. So it is the decoder that has to see the cut.
pub fn rest(bytes: &[u8], range: Range<usize>) -> &[u8] {
    &bytes[range.start.min(bytes.len())..range.end.min(bytes.len())]
}

const fn extent(start: u64, blocks: u64, hole: bool) -> IndexExtent {
    IndexExtent { start, blocks, hole }
}

/// The blocks of a segment in order, with their LBAs: some that compress, the last one does not.
fn blocks(index: &SegmentIndex) -> Vec<(u64, Vec<u8>)> {
    let lbas = index.extents.iter().filter(|e| !e.hole).flat_map(|e| e.start..e.start + e.blocks).collect::<Vec<_>>();
    let last = lbas.len() - 1;
    let data = |i: usize| if i == last { noise(BLOCK as usize, 99) } else { pattern(i) };
    lbas.into_iter().enumerate().map(|(i, lba)| (lba, data(i))).collect()
}

/// A block that compresses well, but not to nothing.
fn pattern(i: usize) -> Vec<u8> {
    let lines = (0..BLOCK).map(|line| format!("block {i} line {line}\n")).collect::<String>();
    lines.into_bytes()[..BLOCK as usize].to_vec()
}

/// Three data blocks, two holes, a mark of each kind.
fn raw_index() -> SegmentIndex {
    SegmentIndex {
        extents: vec![
            extent(10, 2, false),
            extent(100, 1 << 30, true),
            extent(1 << 33, 1, false),
            extent((1 << 33) + 1, 7, true),
        ],
        marks: vec![Mark::Size { sequence: Sequence(1_005), size: 1 << 46 }, snapshot(1_017, false)],
        chunks: Vec::new(),
    }
}

/// Nine data blocks: a chunk that is packed, and one that is raw.
fn packed_index() -> SegmentIndex {
    SegmentIndex { extents: vec![extent(0, 4, false), extent(512, 5, false)], marks: Vec::new(), chunks: Vec::new() }
}

fn marks_index() -> SegmentIndex {
    SegmentIndex { extents: Vec::new(), marks: vec![snapshot(1_000, false)], chunks: Vec::new() }
}

fn encode(mut index: SegmentIndex, codec: Codec) -> Vec<u8> {
    let blocks = if index.extents.is_empty() { Vec::new() } else { blocks(&index) };
    let sealed = blocks.into_iter().map(|(lba, data)| SealBlock { lba, crc: crc(&data), data: data.into() });
    let packed = pack(TIMELINE, FACTS.ordinal, sealed, codec).unwrap();
    assert_eq!(packed.codec, codec, "the blocks are such that compressing gains");
    index.chunks = packed.chunks;
    let mut bytes = encode_head(&FACTS, codec, &index, packed.len);
    packed.parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

fn facts(header: &SegmentHeader) -> SegmentFacts {
    let SegmentHeader { timeline, ordinal, epoch, writer, stream_epoch, first, last, sealed_ms, .. } = *header;
    SegmentFacts { timeline, ordinal, epoch, writer, stream_epoch, first, last, sealed_ms }
}

/// Reads a whole segment as the engine does: header, index, every chunk, every block of a raw chunk alone.
fn read(bytes: &[u8], mut expected: SegmentIndex, codec: Codec) -> Result<bool, FormatError> {
    let header = SegmentHeader::decode(bytes)?;
    let index = header.decode_index(rest(bytes, SEGMENT_HEADER..SEGMENT_HEADER + header.index_len as usize))?;
    let lens = match header.codec {
        Codec::Raw => {
            let full = vec![CHUNK_BLOCKS; (header.blocks / CHUNK_BLOCKS) as usize].into_iter();
            let rest = Some(header.blocks % CHUNK_BLOCKS).filter(|rest| *rest > 0);
            full.chain(rest).map(|blocks| blocks * RAW_BLOCK as u32).collect()
        }
        _ => index.chunks.clone(),
    };
    let (mut at, mut first, mut found) = (header.data_offset() as usize, 0, Vec::new());
    for len in lens {
        let count = CHUNK_BLOCKS.min(header.blocks - first);
        let chunk = Bytes::copy_from_slice(rest(bytes, at..at + len as usize));
        let blocks = unpack(header.timeline, header.ordinal, first, count, header.codec, &chunk)?;
        if len as usize == count as usize * RAW_BLOCK {
            for (i, block) in blocks.iter().enumerate() {
                let raw = Bytes::copy_from_slice(rest(&chunk, i * RAW_BLOCK..(i + 1) * RAW_BLOCK));
                assert_eq!(&raw_block(header.timeline, header.ordinal, first + i as u32, &raw)?, block);
            }
        }
        found.extend(blocks.into_iter().map(|(data, _)| data.to_vec()));
        (at, first) = (at + len as usize, first + count);
    }
    let data = if expected.extents.is_empty() { Vec::new() } else { blocks(&expected) };
    expected.chunks.clone_from(&index.chunks);
    let same_facts = format!("{:?}", facts(&header)) == format!("{FACTS:?}");
    let same_data = data.iter().map(|(_, data)| data).eq(found.iter());
    let whole = header.object_len() >= bytes.len() as u64 && header.blocks as usize == data.len();
    Ok(same_facts && index == expected && same_data && whole && header.codec == codec)
}

/// The zeroes in front of the data area, and the LBAs of raw blocks. Of a packed segment: of its last chunk, which is one raw block.
fn unread(bytes: &[u8], raw_blocks: usize) -> Vec<Range<usize>> {
    let header = SegmentHeader::decode(bytes).unwrap();
    let begin = bytes.len() - raw_blocks * RAW_BLOCK;
    let mut ranges =
        (0..raw_blocks).map(|i| begin + i * RAW_BLOCK + 8..begin + i * RAW_BLOCK + BLOCK_HEADER).collect::<Vec<_>>();
    ranges.push(SEGMENT_HEADER + header.index_len as usize..header.data_offset() as usize);
    ranges
}

pub fn header_fields() -> Vec<Field> {
    let mut fields = vec![field("magic", Form::Text(8)), field("version", Form::U32), field("checksum", Form::Sum)];
    fields.push(field("timeline", Form::Bytes(16)));
    let numbers = ["ordinal", "epoch", "writer", "stream epoch", "first sequence", "last sequence"];
    fields.extend(numbers.map(|name| field(name, Form::U64)));
    fields.push(field("blocks", Form::U32));
    fields.extend([field("codec", Form::U8), field("blocks a chunk", Form::U8), field("zero", Form::Zero(2))]);
    fields.extend([field("bytes of the index", Form::U32), field("checksum of the index", Form::Sum)]);
    fields.extend(["bytes of the data area", "sealed at"].map(|name| field(name, Form::U64)));
    fields.push(field("zero", Form::Zero(48)));
    fields
}

fn raw_fields() -> Vec<Field> {
    let mut fields = header_fields();
    fields.push(field("extents", Form::Varint));
    for at in 0..4 {
        fields.push(field(format!("extent {at}: distance << 1 | hole"), Form::Varint));
        fields.push(field(format!("extent {at}: blocks"), Form::Varint));
    }
    fields.push(field("marks", Form::Varint));
    fields.extend([field("mark", Form::U8), field("sequence", Form::Varint), field("size", Form::Varint)]);
    fields.extend(snapshot_fields());
    fields.push(field("chunk lengths", Form::Varint));
    let head = encode_head(&FACTS, Codec::Raw, &raw_index(), 0).len();
    let index = SegmentHeader::decode(&encode(raw_index(), Codec::Raw)).unwrap().index_len as usize;
    fields.push(field("up to the data area", Form::Zero(head - SEGMENT_HEADER - index)));
    for at in 0..3 {
        fields.push(field(format!("block {at}: bound checksum"), Form::Sum));
        fields.push(field("zero", Form::Zero(4)));
        fields.push(field(format!("block {at}: LBA"), Form::U64));
        fields.push(field(format!("block {at}: data"), Form::Bytes(BLOCK as usize)));
    }
    fields
}

pub fn goldens() -> Vec<Golden> {
    let packed = Golden { exact: false, version: Some(8), unread: |bytes| unread(bytes, 1), ..PLAIN };
    vec![
        Golden {
            file: "segment-raw",
            encode: || encode(raw_index(), Codec::Raw),
            read: |bytes| read(bytes, raw_index(), Codec::Raw),
            version: Some(8),
            unread: |bytes| unread(bytes, 3),
            fields: raw_fields,
            ..PLAIN
        },
        Golden {
            file: "segment-lz4",
            encode: || encode(packed_index(), Codec::Lz4),
            read: |bytes| read(bytes, packed_index(), Codec::Lz4),
            ..packed
        },
        Golden {
            file: "segment-zstd",
            encode: || encode(packed_index(), Codec::Zstd),
            read: |bytes| read(bytes, packed_index(), Codec::Zstd),
            ..packed
        },
        Golden {
            file: "segment-marks",
            encode: || encode(marks_index(), Codec::Raw),
            read: |bytes| read(bytes, marks_index(), Codec::Raw),
            version: Some(8),
            unread: |bytes| unread(bytes, 0),
            ..PLAIN
        },
    ]
}

/// A block may also be read alone, by a get of its own.
#[test]
fn a_block_that_was_cut_is_refused() {
    let bytes = encode(raw_index(), Codec::Raw);
    let block = Bytes::copy_from_slice(&bytes[bytes.len() - RAW_BLOCK..]);
    let read = |bytes: &Bytes| raw_block(TIMELINE, FACTS.ordinal, 2, bytes);
    assert_eq!(read(&block).unwrap().0, noise(BLOCK as usize, 99));
    for cut in 0..RAW_BLOCK {
        assert!(read(&block.slice(..cut)).is_err(), "cut after {cut} bytes");
    }
    assert!(read(&[&block[..], &[0]].concat().into()).is_err());
}
