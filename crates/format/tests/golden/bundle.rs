// SPDX-License-Identifier: Apache-2.0
//! Bundles: shares in every form, raw and packed.
//!
//! As in a segment nobody asks the zeroes up to the data area, and the LBA beside a raw block.

use crate::dump::{Field, Form, field};
use crate::journal::{TIMELINE, snapshot, snapshot_fields};
use crate::segment::{noise, rest};
use crate::{Golden, PLAIN};
use bytes::Bytes;
use std::ops::Range;
use varve_format::bundle::{BUNDLE_HEADER, BundleFacts, BundleHeader, History, Share, encode_head};
use varve_format::chunk::{BLOCK_HEADER, RAW_BLOCK, SealBlock, UNKNOWN_LBA, pack_share, unpack_share};
use varve_format::crc::crc;
use varve_format::mark::Mark;
use varve_format::segment::{CHUNK_BLOCKS, Codec, IndexExtent};
use varve_format::{BlockSet, FormatError};
use varve_types::{BLOCK, Epoch, Ordinal, Sequence, WriterId};

const FACTS: BundleFacts = BundleFacts {
    timeline: TIMELINE,
    number: 12,
    epoch: Epoch(4),
    writer: WriterId(0x0123_4567_89ab_cdef),
    made_ms: 1_700_000_000_789,
};

/// A share: its segment, the blocks that the segment had, those that are here.
type Content = (Ordinal, u32, Vec<u16>);

/// All of a segment; few of a large one; many of a small one.
fn contents() -> Vec<Content> {
    vec![
        (Ordinal(3), 2, vec![0, 1]),
        (Ordinal(65_541), 16_384, vec![7, 16_383]),
        (Ordinal((1 << 36) - 1), 20, (0..20).filter(|number| number % 4 == 3).collect()),
    ]
}

fn history() -> History {
    let extent = |start, blocks, hole| IndexExtent { start, blocks, hole };
    History {
        stream_epoch: Epoch(3),
        first: Sequence(1_000),
        last: Sequence(1_017),
        extents: vec![extent(10, 2, false), extent(100, 1 << 30, true)],
        marks: vec![Mark::Size { sequence: Sequence(1_005), size: 1 << 46 }, snapshot(1_017, false)],
    }
}

/// What a block holds: of the last segment what does not compress.
fn block(ordinal: Ordinal, number: u16, codec: Codec) -> Vec<u8> {
    if codec == Codec::Raw || ordinal.0 > 1 << 35 {
        return noise(BLOCK as usize, ordinal.0 + u64::from(number));
    }
    format!("block {number} of segment {ordinal}\n").into_bytes().into_iter().cycle().take(BLOCK as usize).collect()
}

fn encode(codec: Codec) -> Vec<u8> {
    let (mut shares, mut parts) = (Vec::new(), Vec::new());
    for (ordinal, end, numbers) in contents() {
        let lba = |number: u16| if ordinal == Ordinal(3) { 10 + u64::from(number) } else { UNKNOWN_LBA };
        let blocks = numbers.iter().map(|number| {
            let data = Bytes::from(block(ordinal, *number, codec));
            (*number, SealBlock { lba: lba(*number), crc: crc(&data), data })
        });
        let packed = pack_share(TIMELINE, ordinal, blocks, codec).unwrap();
        parts.extend(packed.parts);
        let history = (ordinal == Ordinal(3)).then(history);
        let blocks = BlockSet::new(end, &numbers);
        shares.push(Share { ordinal, blocks, codec: packed.codec, chunks: packed.chunks, history });
    }
    [vec![Bytes::from(encode_head(&FACTS, &shares))], parts].concat().concat()
}

/// Reads a whole bundle as the engine does.
fn read(bytes: &[u8], codec: Codec) -> Result<bool, FormatError> {
    let header = BundleHeader::decode(bytes)?;
    let shares = header.decode_index(rest(bytes, BUNDLE_HEADER..BUNDLE_HEADER + header.index_len as usize))?;
    let (mut at, mut same) = (header.data_offset() as usize, shares.len() == contents().len());
    for (share, (ordinal, end, numbers)) in shares.iter().zip(contents()) {
        same &= share.ordinal == ordinal && share.blocks == BlockSet::new(end, &numbers);
        same &= share.history == (ordinal == Ordinal(3)).then(history);
        let chunks = numbers.chunks(CHUNK_BLOCKS as usize);
        for (n, chunk) in chunks.enumerate() {
            let len = share.chunks.get(n).map_or(chunk.len() * RAW_BLOCK, |len| *len as usize);
            let piece = Bytes::copy_from_slice(rest(bytes, at..at + len));
            let found = unpack_share(header.timeline, share.ordinal, chunk, share.codec, &piece)?;
            same &= found.iter().zip(chunk).all(|((data, _), number)| *data == block(ordinal, *number, codec));
            at += len;
        }
    }
    let facts = (header.timeline, header.number, header.epoch, header.writer, header.made_ms);
    let whole = header.object_len() >= bytes.len() as u64;
    Ok(same && whole && facts == (FACTS.timeline, FACTS.number, FACTS.epoch, FACTS.writer, FACTS.made_ms))
}

/// The zeroes in front of the data area, and the LBAs of the raw blocks, which are the last.
fn unread(bytes: &[u8], raw_blocks: usize) -> Vec<Range<usize>> {
    let header = BundleHeader::decode(bytes).unwrap();
    let first = bytes.len() - raw_blocks * RAW_BLOCK;
    let lba = |block: usize| first + block * RAW_BLOCK + 8..first + block * RAW_BLOCK + BLOCK_HEADER;
    let mut ranges: Vec<_> = (0..raw_blocks).map(lba).collect();
    ranges.push(BUNDLE_HEADER + header.index_len as usize..header.data_offset() as usize);
    ranges
}

pub fn header_fields() -> Vec<Field> {
    let mut fields = vec![field("magic", Form::Text(8)), field("version", Form::U32), field("checksum", Form::Sum)];
    fields.push(field("timeline", Form::Bytes(16)));
    fields.extend(["number", "epoch", "writer"].map(|name| field(name, Form::U64)));
    fields.extend([field("bytes of the index", Form::U32), field("checksum of the index", Form::Sum)]);
    fields.extend([field("shares", Form::U32), field("zero", Form::Zero(4))]);
    fields.extend(["bytes of the data area", "made at"].map(|name| field(name, Form::U64)));
    fields.push(field("zero", Form::Zero(40)));
    fields
}

fn share_fields(fields: &mut Vec<Field>, form: &[(&str, Form)]) {
    fields.extend([field("ordinal", Form::Varint), field("blocks of the segment", Form::Varint)]);
    fields.push(field("form of the set", Form::U8));
    fields.extend(form.iter().map(|(name, form)| field(*name, *form)));
    fields.extend([field("codec", Form::U8), field("chunk lengths", Form::Varint), field("history", Form::U8)]);
}

fn fields() -> Vec<Field> {
    let mut fields = header_fields();
    share_fields(&mut fields, &[]);
    fields.extend(["stream epoch", "first sequence", "last minus first", "extents"].map(|n| field(n, Form::Varint)));
    for at in 0..2 {
        fields.push(field(format!("extent {at}: distance << 1 | hole"), Form::Varint));
        fields.push(field(format!("extent {at}: blocks"), Form::Varint));
    }
    fields.push(field("marks", Form::Varint));
    fields.extend([field("mark", Form::U8), field("sequence", Form::Varint), field("size", Form::Varint)]);
    fields.extend(snapshot_fields());
    let list = [("numbers", Form::Varint), ("number 0", Form::Varint), ("number 1: distance", Form::Varint)];
    share_fields(&mut fields, &list);
    share_fields(&mut fields, &[("word 0", Form::Bytes(8))]);
    let bytes = encode(Codec::Raw);
    let header = BundleHeader::decode(&bytes).unwrap();
    let gap = header.data_offset() as usize - BUNDLE_HEADER - header.index_len as usize;
    fields.push(field("up to the data area", Form::Zero(gap)));
    for at in 0..9 {
        fields.push(field(format!("block {at}: bound checksum"), Form::Sum));
        fields.push(field("zero", Form::Zero(4)));
        fields.push(field(format!("block {at}: LBA"), Form::U64));
        fields.push(field(format!("block {at}: data"), Form::Bytes(BLOCK as usize)));
    }
    fields
}

pub fn goldens() -> Vec<Golden> {
    vec![
        Golden {
            file: "bundle-raw",
            since: 2,
            encode: || encode(Codec::Raw),
            read: |bytes| read(bytes, Codec::Raw),
            version: Some(8),
            unread: |bytes| unread(bytes, 9),
            fields,
            ..PLAIN
        },
        Golden {
            file: "bundle-lz4",
            since: 2,
            encode: || encode(Codec::Lz4),
            exact: false,
            read: |bytes| read(bytes, Codec::Lz4),
            version: Some(8),
            unread: |bytes| unread(bytes, 5),
            ..PLAIN
        },
    ]
}
