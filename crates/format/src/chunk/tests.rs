// SPDX-License-Identifier: Apache-2.0
//! Segments there and back: every codec, every block, every flipped bit.

use super::*;
use crate::mark::Mark;
use crate::segment::{IndexExtent, SegmentFacts, SegmentHeader, SegmentIndex, data_offset, encode_head};
use varve_types::{Epoch, Sequence, WriterId};

const TIMELINE: TimelineId = TimelineId::from_bytes([4; 16]);

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

fn blocks(count: u32, compressible: impl Fn(u32) -> bool) -> Vec<SealBlock> {
    (0..count)
        .map(|i| {
            let data = if compressible(i) { vec![i as u8; 4096] } else { noise(u64::from(i) + 1, 4096) };
            SealBlock { lba: u64::from(i) * 3, crc: crc(&data), data: Bytes::from(data) }
        })
        .collect()
}

fn join(packed: &Packed) -> Bytes {
    Bytes::from(packed.parts.concat())
}

#[test]
fn chunks_come_back_with_every_codec() {
    for codec in [Codec::Raw, Codec::Lz4, Codec::Zstd] {
        for (count, compressible) in [(1, true), (8, true), (21, false), (300, true), (300, false)] {
            let input = blocks(count, |i| compressible || i % 16 < 8);
            let packed = pack(TIMELINE, Ordinal(9), input.iter().cloned(), codec).unwrap();
            let bytes = join(&packed);
            assert_eq!(bytes.len() as u64, packed.len);
            let mut at = 0;
            for (n, chunk) in input.chunks(8).enumerate() {
                let len = packed.chunks.get(n).map_or(chunk.len() * RAW_BLOCK, |len| *len as usize);
                let piece = bytes.slice(at..at + len);
                let first = n as u32 * 8;
                let out = unpack(TIMELINE, Ordinal(9), first, chunk.len() as u32, packed.codec, &piece).unwrap();
                assert!(out.iter().zip(chunk).all(|(out, block)| out.0 == block.data && out.1 == block.crc));
                assert!(unpack(TIMELINE, Ordinal(8), first, chunk.len() as u32, packed.codec, &piece).is_err());
                at += len;
            }
            assert_eq!(at, bytes.len());
        }
    }
}

#[test]
fn data_that_does_not_compress_stays_raw_and_addressable() {
    let input = blocks(20, |_| false);
    let packed = pack(TIMELINE, Ordinal(9), input.iter().cloned(), Codec::Lz4).unwrap();
    assert_eq!((packed.codec, packed.chunks.len()), (Codec::Raw, 0));
    let bytes = join(&packed);
    let at = 13 * RAW_BLOCK;
    let (data, sum) = raw_block(TIMELINE, Ordinal(9), 13, &bytes.slice(at..at + RAW_BLOCK)).unwrap();
    assert_eq!((data, sum), (input[13].data.clone(), input[13].crc));
}

#[test]
fn a_flipped_bit_is_corrupt_and_never_data() {
    for codec in [Codec::Raw, Codec::Lz4, Codec::Zstd] {
        let input = blocks(2, |_| true);
        let packed = pack(TIMELINE, Ordinal(9), input.into_iter(), codec).unwrap();
        let bytes = join(&packed);
        for bit in (0..bytes.len() * 8).step_by(7) {
            let mut copy = bytes.to_vec();
            copy[bit / 8] ^= 1 << (bit % 8);
            // The LBA in front of a raw block is for people who salvage; the checksum binds the block's number instead.
            if codec == Codec::Raw && (8..16).contains(&(bit / 8 % RAW_BLOCK)) {
                continue;
            }
            assert!(unpack(TIMELINE, Ordinal(9), 0, 2, packed.codec, &Bytes::from(copy)).is_err(), "bit {bit}");
        }
    }
}

#[test]
fn a_block_that_changed_in_memory_is_not_sealed() {
    let mut input = blocks(9, |_| true);
    input[8].crc ^= 1;
    assert!(pack(TIMELINE, Ordinal(9), input.into_iter(), Codec::Lz4).is_err());
}

#[test]
fn head_comes_back_and_any_flipped_bit_is_seen() {
    let facts = SegmentFacts {
        timeline: TIMELINE,
        ordinal: Ordinal(70_000),
        epoch: Epoch(2),
        writer: WriterId(5),
        stream_epoch: Epoch(1),
        first: Sequence(10),
        last: Sequence(40),
        sealed_ms: 1,
    };
    let index = SegmentIndex {
        extents: vec![
            IndexExtent { start: 0, blocks: 3, hole: false },
            IndexExtent { start: 3, blocks: 1 << 33, hole: true },
            IndexExtent { start: (1 << 33) + 9, blocks: 9, hole: false },
        ],
        marks: vec![Mark::Size { sequence: Sequence(12), size: 1 << 46 }],
        chunks: vec![100, 50],
    };
    let bytes = encode_head(&facts, Codec::Zstd, &index, 150);
    let header = SegmentHeader::decode(&bytes).unwrap();
    assert_eq!(header.data_offset() as usize, bytes.len());
    assert_eq!(header.blocks, 12);
    let range = crate::segment::SEGMENT_HEADER..crate::segment::SEGMENT_HEADER + header.index_len as usize;
    assert_eq!(header.decode_index(&bytes[range.clone()]).unwrap(), index);
    let end = range.end;
    for bit in 0..end * 8 {
        let mut copy = bytes.clone();
        copy[bit / 8] ^= 1 << (bit % 8);
        let seen = SegmentHeader::decode(&copy)
            .and_then(|h| if h == header { h.decode_index(&copy[range.clone()]) } else { panic!("bit {bit}") });
        assert!(seen.is_err(), "bit {bit}");
    }
    assert_eq!(data_offset(header.index_len), header.data_offset());
}

#[test]
fn chunks_of_shares_come_back_and_pass_for_no_others() {
    let numbers: Vec<u16> = (0..21).map(|i| i * 7).collect();
    for codec in [Codec::Raw, Codec::Lz4, Codec::Zstd] {
        let input: Vec<_> = numbers.iter().copied().zip(blocks(21, |i| i < 16)).collect();
        let packed = pack_share(TIMELINE, Ordinal(9), input.iter().cloned(), codec).unwrap();
        let bytes = join(&packed);
        let mut at = 0;
        for (n, chunk) in input.chunks(8).enumerate() {
            let len = packed.chunks.get(n).map_or(chunk.len() * RAW_BLOCK, |len| *len as usize);
            let piece = bytes.slice(at..at + len);
            let mut told: Vec<u16> = chunk.iter().map(|(number, _)| *number).collect();
            let out = unpack_share(TIMELINE, Ordinal(9), &told, packed.codec, &piece).unwrap();
            assert!(out.iter().zip(chunk).all(|(out, (_, block))| out.0 == block.data && out.1 == block.crc));
            assert!(unpack_share(TIMELINE, Ordinal(8), &told, packed.codec, &piece).is_err());
            // The chunk of the segment itself that begins with the same block.
            assert!(unpack(TIMELINE, Ordinal(9), u32::from(told[0]), told.len() as u32, packed.codec, &piece).is_err());
            let last = told.len() - 1;
            told[last] += 1;
            assert!(unpack_share(TIMELINE, Ordinal(9), &told, packed.codec, &piece).is_err(), "another last block");
            at += len;
        }
        assert_eq!(at, bytes.len());
    }
}
