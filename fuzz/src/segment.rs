// SPDX-License-Identifier: Apache-2.0
//! Segments: header, index, chunks.
//!
//! A reader of a segment trusts its index for every place in the object, so that the extents lie apart, in order and within a volume, and
//! that the chunks fill the data area, is asserted of all that decodes. What a chunk holds is believed only with its checksum: a flipped bit
//! anywhere in a data area leads to an error or to the same blocks, never to others.

use crate::{bounded, bounded_by, choose, made_up, ordinal, owner, put_u32};
use arbitrary::Arbitrary;
use bytes::Bytes;
use varve_format::chunk::{RAW_BLOCK, SealBlock, pack, raw_block, unpack};
use varve_format::crc::{Domain, Identity, crc};
use varve_format::mark::Mark;
use varve_format::segment::{
    CHUNK_BLOCKS, Codec, IndexExtent, SEGMENT_HEADER, SegmentFacts, SegmentHeader, SegmentIndex, encode_head,
};
use varve_types::{BLOCK, Epoch, MAX_SEGMENT_BLOCKS, MAX_VOLUME, Ordinal, Sequence};

/// See the module.
pub fn check(data: &[u8]) {
    let Some((choice, rest)) = choose(data, 6) else { return };
    match choice {
        0 => head(rest),
        1 => head(&mended_head(rest)),
        2 => chunk(rest, false),
        3 => chunk(rest, true),
        4 => made_up_chunks(rest),
        _ => made_up_head(rest),
    }
}

fn head(bytes: &[u8]) {
    let Ok(header) = bounded(bytes.len(), || SegmentHeader::decode(bytes)) else { return };
    assert!(header.blocks <= MAX_SEGMENT_BLOCKS && header.first <= header.last);
    assert!(header.data_offset().is_multiple_of(16) && header.data_offset() >= SEGMENT_HEADER as u64);
    assert_eq!(header.object_len(), header.data_offset() + header.data_len);
    let Some(body) = bytes.get(SEGMENT_HEADER..SEGMENT_HEADER + header.index_len as usize) else { return };
    let Ok(index) = bounded(body.len(), || header.decode_index(body)) else { return };
    check_index(&header, &index);

    let facts = SegmentFacts {
        timeline: header.timeline,
        ordinal: header.ordinal,
        epoch: header.epoch,
        writer: header.writer,
        stream_epoch: header.stream_epoch,
        first: header.first,
        last: header.last,
        sealed_ms: header.sealed_ms,
    };
    let again = encode_head(&facts, header.codec, &index, header.data_len);
    let second = SegmentHeader::decode(&again).expect("what was encoded decodes");
    assert!(second.index_len <= header.index_len, "the shortest form of an index is longer than another");
    assert_eq!(again.len() as u64, second.data_offset());
    let body = &again[SEGMENT_HEADER..SEGMENT_HEADER + second.index_len as usize];
    assert_eq!(second.decode_index(body), Ok(index));
    if second.index_len == header.index_len {
        // Then the checksum of the index tells whether its bytes are the same, too.
        assert_eq!((second.ordinal, second.blocks, second.data_len), (header.ordinal, header.blocks, header.data_len));
    }
}

fn check_index(header: &SegmentHeader, index: &SegmentIndex) {
    let (mut end, mut blocks) = (0, 0);
    for extent in &index.extents {
        assert!(extent.start >= end && extent.blocks > 0, "{extent:?} behind {end}");
        end = extent.start + extent.blocks;
        blocks += if extent.hole { 0 } else { extent.blocks };
    }
    assert!(end <= MAX_VOLUME / BLOCK);
    assert_eq!(blocks, u64::from(header.blocks));
    if header.codec != Codec::Raw {
        assert_eq!(index.chunks.len(), header.blocks.div_ceil(CHUNK_BLOCKS) as usize);
        assert_eq!(index.chunks.iter().map(|len| u64::from(*len)).sum::<u64>(), header.data_len);
    }
    assert!(index.marks.iter().all(|mark| (header.first..=header.last).contains(&mark.sequence())));
}

fn mended_head(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if let Some(body) = bytes.get(SEGMENT_HEADER..) {
        let (len, sum) = (body.len() as u32, crc(body));
        put_u32(&mut bytes, 88, len);
        put_u32(&mut bytes, 92, sum);
        put_u32(&mut bytes, 12, 0);
        let sum = crc(&bytes[..SEGMENT_HEADER]);
        put_u32(&mut bytes, 12, sum);
    }
    bytes
}

#[derive(Arbitrary)]
struct MadeHead {
    numbers: [u64; 5],
    codec: u8,
    /// Distance from the one before, blocks, whether it is a hole.
    extents: Vec<(u32, u16, bool)>,
    /// Sequence above the first, size.
    marks: Vec<(u8, u64)>,
    chunk: u16,
}

/// What is sealed is read again, whatever extents, marks and chunks there are.
fn made_up_head(bytes: &[u8]) {
    let Some(made) = made_up::<MadeHead>(bytes) else { return };
    let codec = [Codec::Raw, Codec::Lz4, Codec::Zstd][usize::from(made.codec % 3)];
    let (mut extents, mut end, mut blocks) = (Vec::new(), 0, 0);
    for (distance, len, hole) in made.extents {
        let (start, len) = (end + u64::from(distance), u64::from(len) + 1);
        if start + len > MAX_VOLUME / BLOCK || (!hole && blocks + len > u64::from(MAX_SEGMENT_BLOCKS)) {
            break;
        }
        blocks += if hole { 0 } else { len };
        extents.push(IndexExtent { start, blocks: len, hole });
        end = start + len;
    }
    let first = Sequence(made.numbers[0] >> 1);
    let mark = |(above, size): &(u8, u64)| Mark::Size { sequence: Sequence(first.0 + u64::from(*above)), size: *size };
    let marks = made.marks.iter().map(mark).collect();
    let (timeline, epoch, writer) = owner();
    let [_, stream_epoch, sealed_ms, number, _] = made.numbers;
    let (last, stream_epoch) = (Sequence(first.0 + 255), Epoch(stream_epoch));
    let facts =
        SegmentFacts { timeline, ordinal: ordinal(number), epoch, writer, stream_epoch, first, last, sealed_ms };
    let packed = if codec == Codec::Raw { 0 } else { blocks.div_ceil(u64::from(CHUNK_BLOCKS)) };
    let chunks: Vec<u32> = (0..packed as u32).map(|n| u32::from(made.chunk) % 32_000 + n % 7).collect();
    let raw = blocks * RAW_BLOCK as u64;
    let data_len = if codec == Codec::Raw { raw } else { chunks.iter().map(|len| u64::from(*len)).sum() };
    let index = SegmentIndex { extents, marks, chunks };
    let bytes = encode_head(&facts, codec, &index, data_len);
    let header = SegmentHeader::decode(&bytes).expect("what was encoded decodes");
    assert_eq!((header.ordinal, header.first, header.last), (facts.ordinal, first, last));
    assert_eq!((header.codec, header.data_len, u64::from(header.blocks)), (codec, data_len, blocks));
    assert_eq!(bytes.len() as u64, header.data_offset());
    let body = &bytes[SEGMENT_HEADER..SEGMENT_HEADER + header.index_len as usize];
    assert_eq!(header.decode_index(body), Ok(index));
}

const FIRST: u32 = 16;
const ORDINAL: Ordinal = Ordinal(3);

/// A chunk: a byte that says the codec, one that says the number of blocks, the chunk.
fn chunk(bytes: &[u8], mend: bool) {
    let [codec, count, bytes @ ..] = bytes else { return };
    let codec = [Codec::Raw, Codec::Lz4, Codec::Zstd][usize::from(codec % 3)];
    let count = u32::from(count % 8) + 1;
    let (timeline, ..) = owner();
    let mut bytes = bytes.to_vec();
    if mend && bytes.len() >= 8 {
        put_u32(&mut bytes, 4, count);
        let identity = Identity::new(Domain::Chunk, timeline.to_bytes(), ORDINAL.0, u64::from(FIRST));
        let sum = identity.bind(crc(&bytes[4..]));
        put_u32(&mut bytes, 0, sum);
    }
    let bytes = Bytes::from(bytes);
    // Zstandard has tables of its own; what comes out is at most the blocks, whatever the bytes claim.
    let most = count as usize * BLOCK as usize + (1 << 20);
    let result = bounded_by(most, || unpack(timeline, ORDINAL, FIRST, count, codec, &bytes));
    if let Ok(blocks) = result {
        assert_eq!(blocks.len(), count as usize);
        for (data, sum) in blocks {
            assert!(data.len() as u64 == BLOCK && crc(&data) == sum);
        }
    }
    if bytes.len() >= RAW_BLOCK {
        let one = bytes.slice(..RAW_BLOCK);
        if let Ok((data, sum)) = raw_block(timeline, ORDINAL, FIRST, &one) {
            assert_eq!(crc(&data), sum);
        }
    }
}

#[derive(Arbitrary)]
struct Made {
    /// Bytes that the blocks repeat, at most so many as there are.
    patterns: Vec<[u8; 5]>,
    codec: u8,
    /// Where to flip a bit of the data area.
    flip: u16,
}

/// Blocks come back out of a data area, and a flipped bit in it is seen.
fn made_up_chunks(bytes: &[u8]) {
    let Some(made) = made_up::<Made>(bytes) else { return };
    let codec = [Codec::Raw, Codec::Lz4, Codec::Zstd][usize::from(made.codec % 3)];
    let (timeline, ..) = owner();
    let blocks: Vec<SealBlock> = made.patterns.iter().take(20).enumerate().map(|(at, p)| block(at, *p)).collect();
    let packed = pack(timeline, ORDINAL, blocks.iter().cloned(), codec).expect("the checksums are right");
    let mut area = packed.parts.concat();
    assert_eq!(area.len() as u64, packed.len);
    if packed.codec == Codec::Raw {
        assert!(packed.chunks.is_empty() && area.len() == blocks.len() * RAW_BLOCK);
    }
    let read = |area: &[u8]| -> Option<Vec<Bytes>> {
        let (mut at, mut found) = (0, Vec::new());
        for (number, chunk) in blocks.chunks(CHUNK_BLOCKS as usize).enumerate() {
            let len = packed.chunks.get(number).map_or(chunk.len() * RAW_BLOCK, |len| *len as usize);
            let bytes = Bytes::copy_from_slice(area.get(at..at + len)?);
            let first = number as u32 * CHUNK_BLOCKS;
            let blocks = unpack(timeline, ORDINAL, first, chunk.len() as u32, packed.codec, &bytes).ok()?;
            found.extend(blocks.into_iter().map(|(data, _)| data));
            at += len;
        }
        (at == area.len()).then_some(found)
    };
    let expected: Vec<Bytes> = blocks.iter().map(|block| block.data.clone()).collect();
    assert_eq!(read(&area).as_ref(), Some(&expected));
    if !area.is_empty() {
        let bit = usize::from(made.flip) * 8191 % (area.len() * 8);
        area[bit / 8] ^= 1 << (bit % 8);
        // The address beside a raw block is for people; it is not proved.
        assert!(read(&area).is_none_or(|found| found == expected), "bit {bit} was flipped and other data came out");
    }
}

/// A block that compresses well, badly or not at all, as its pattern says.
fn block(at: usize, [kind, seed @ ..]: [u8; 5]) -> SealBlock {
    let mut state = u64::from(u32::from_le_bytes(seed)) | 1;
    let period = [1, 7, 200, 4096][usize::from(kind % 4)];
    let mut data: Vec<u8> = Vec::with_capacity(BLOCK as usize);
    while data.len() < BLOCK as usize {
        let byte = if data.len() < period {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 56) as u8
        } else {
            data[data.len() - period]
        };
        data.push(byte);
    }
    SealBlock { lba: at as u64, crc: crc(&data), data: data.into() }
}
