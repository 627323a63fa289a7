// SPDX-License-Identifier: Apache-2.0
//! Bundles: header, shares, chunks of shares.
//!
//! As with segments a reader trusts the index for every place, so that the sets of blocks are in order and within their segments and that the chunks fill the
//! data area is asserted of all that decodes; and a flipped bit in a data area never gives other blocks.
//! Numbers, lengths and codecs are made up as well: what the encoder takes has to come back as it was.

use crate::{bounded, choose, made_up, ordinal, owner, put_u32};
use arbitrary::Arbitrary;
use bytes::Bytes;
use varve_format::BlockSet;
use varve_format::bundle::{BUNDLE_HEADER, BundleFacts, BundleHeader, MAX_SHARES, Share, encode_head};
use varve_format::chunk::{RAW_BLOCK, SealBlock, pack_share, unpack_share};
use varve_format::crc::crc;
use varve_format::segment::{CHUNK_BLOCKS, Codec};
use varve_types::{BLOCK, MAX_SEGMENT_BLOCKS, Ordinal};

/// See the module.
pub fn check(data: &[u8]) {
    let Some((choice, rest)) = choose(data, 4) else { return };
    match choice {
        0 => head(rest),
        1 => head(&mended(rest)),
        2 => made_up_head(rest),
        _ => made_up_chunks(rest),
    }
}

fn head(bytes: &[u8]) {
    let Ok(header) = bounded(bytes.len(), || BundleHeader::decode(bytes)) else { return };
    assert!(header.shares as usize <= MAX_SHARES && header.data_offset().is_multiple_of(16));
    assert_eq!(header.object_len(), header.data_offset() + header.data_len);
    let Some(body) = bytes.get(BUNDLE_HEADER..BUNDLE_HEADER + header.index_len as usize) else { return };
    let Ok(shares) = bounded(body.len(), || header.decode_index(body)) else { return };
    assert!(shares.windows(2).all(|pair| pair[0].ordinal < pair[1].ordinal));
    assert_eq!(shares.iter().map(Share::data_len).sum::<u64>(), header.data_len);
    shares.iter().for_each(check_share);
    let again = encode_head(&facts_of(&header), &shares);
    let second = BundleHeader::decode(&again).expect("what was encoded decodes");
    assert_eq!(again.len() as u64, second.data_offset());
    let body = &again[BUNDLE_HEADER..BUNDLE_HEADER + second.index_len as usize];
    assert_eq!(second.decode_index(body), Ok(shares));
}

fn facts_of(header: &BundleHeader) -> BundleFacts {
    let BundleHeader { timeline, number, epoch, writer, made_ms, .. } = *header;
    BundleFacts { timeline, number, epoch, writer, made_ms }
}

fn check_share(share: &Share) {
    let (end, len) = (share.blocks.end(), share.blocks.len());
    assert!(end <= MAX_SEGMENT_BLOCKS && len <= end);
    let numbers: Vec<u16> = share.blocks.iter().collect();
    assert!(numbers.len() == len as usize && numbers.windows(2).all(|pair| pair[0] < pair[1]));
    for (rank, number) in numbers.iter().enumerate().step_by(97) {
        assert!(u32::from(*number) < end && share.blocks.rank(u32::from(*number)) == Some(rank as u32));
        assert!(share.blocks.from_rank(rank as u32).next() == Some(*number));
    }
    if share.codec == Codec::Raw {
        assert!(share.chunks.is_empty() && share.data_len() == u64::from(len) * RAW_BLOCK as u64);
    } else {
        assert_eq!(share.chunks.len(), len.div_ceil(CHUNK_BLOCKS) as usize);
    }
    if let Some(history) = &share.history {
        let blocks: u64 = history.extents.iter().filter(|extent| !extent.hole).map(|extent| extent.blocks).sum();
        assert!(blocks == u64::from(end) && history.first <= history.last);
    }
}

fn mended(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if let Some(body) = bytes.get(BUNDLE_HEADER..) {
        let (len, sum) = (body.len() as u32, crc(body));
        put_u32(&mut bytes, 56, len);
        put_u32(&mut bytes, 60, sum);
        put_u32(&mut bytes, 12, 0);
        let sum = crc(&bytes[..BUNDLE_HEADER]);
        put_u32(&mut bytes, 12, sum);
    }
    bytes
}

#[derive(Arbitrary)]
struct MadeShare {
    /// Distance from the ordinal before.
    distance: u16,
    end: u16,
    /// Distances of the numbers.
    numbers: Vec<u8>,
    packed: bool,
    chunk: u16,
}

/// What is encoded is read again, whatever sets and chunks there are.
fn made_up_head(bytes: &[u8]) {
    let Some(made) = made_up::<Vec<MadeShare>>(bytes) else { return };
    let (mut shares, mut next) = (Vec::new(), 0);
    for made in made.into_iter().take(MAX_SHARES) {
        let here = next + u64::from(made.distance);
        next = here + 1;
        let end = u32::from(made.end) + 1;
        let numbers = made.numbers.iter().scan(0u32, |at, distance| {
            *at += u32::from(*distance) + 1;
            (*at <= end).then(|| (*at - 1) as u16)
        });
        let numbers: Vec<u16> = numbers.collect();
        let codec = if made.packed { Codec::Lz4 } else { Codec::Raw };
        let count = if made.packed { (numbers.len() as u32).div_ceil(CHUNK_BLOCKS) } else { 0 };
        let chunks = (0..count).map(|n| u32::from(made.chunk) % 32_000 + n % 7).collect();
        shares.push(Share {
            ordinal: ordinal(here),
            blocks: BlockSet::new(end, &numbers),
            codec,
            chunks,
            history: None,
        });
    }
    let (timeline, epoch, writer) = owner();
    let facts = BundleFacts { timeline, number: 5, epoch, writer, made_ms: 7 };
    if shares.iter().map(Share::data_len).sum::<u64>() <= 1 << 30 {
        head(&encode_head(&facts, &shares));
    }
}

#[derive(Arbitrary)]
struct Made {
    /// Distance of the number from the one before, the byte that the block repeats, whether it does.
    blocks: Vec<(u8, u8, bool)>,
    codec: u8,
    /// Where to flip a bit of the data area.
    flip: u16,
}

/// Blocks come back out of a share, and a flipped bit in it is seen.
fn made_up_chunks(bytes: &[u8]) {
    let Some(made) = made_up::<Made>(bytes) else { return };
    let codec = [Codec::Raw, Codec::Lz4, Codec::Zstd][usize::from(made.codec % 3)];
    let (timeline, ..) = owner();
    let mut next = 0u16;
    let blocks: Vec<(u16, SealBlock)> = made
        .blocks
        .iter()
        .take(20)
        .map(|(distance, byte, repeats)| {
            let number = next + u16::from(*distance);
            next = number + 1;
            let noise = |i: u64| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
            let data: Bytes = (0..BLOCK).map(|i| if *repeats { *byte } else { noise(i) ^ byte }).collect();
            (number, SealBlock { lba: u64::MAX, crc: crc(&data), data })
        })
        .collect();
    let packed = pack_share(timeline, Ordinal(3), blocks.iter().cloned(), codec).expect("the checksums are right");
    let mut area = packed.parts.concat();
    let read = |area: &[u8]| -> Option<Vec<Bytes>> {
        let (mut at, mut found) = (0, Vec::new());
        for (n, chunk) in blocks.chunks(CHUNK_BLOCKS as usize).enumerate() {
            let len = packed.chunks.get(n).map_or(chunk.len() * RAW_BLOCK, |len| *len as usize);
            let numbers: Vec<u16> = chunk.iter().map(|(number, _)| *number).collect();
            let bytes = Bytes::copy_from_slice(area.get(at..at + len)?);
            let blocks = unpack_share(timeline, Ordinal(3), &numbers, packed.codec, &bytes).ok()?;
            found.extend(blocks.into_iter().map(|(data, _)| data));
            at += len;
        }
        (at == area.len()).then_some(found)
    };
    let expected: Vec<Bytes> = blocks.iter().map(|(_, block)| block.data.clone()).collect();
    assert_eq!(read(&area).as_ref(), Some(&expected));
    if !area.is_empty() {
        let bit = usize::from(made.flip) * 8191 % (area.len() * 8);
        area[bit / 8] ^= 1 << (bit % 8);
        assert!(read(&area).is_none_or(|found| found == expected), "bit {bit} was flipped and other data came out");
    }
}
