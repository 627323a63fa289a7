// SPDX-License-Identifier: Apache-2.0
//! The disks of a node: superblocks and record headers of the journal, heads of a cache device.
//!
//! Of a record that decodes, also its lengths are asserted: the scan of a journal trusts them to go on.

use crate::{array, bounded, choose, made_up, put_u32};
use arbitrary::Arbitrary;
use varve_format::crc::{Domain, Identity, crc};
use varve_format::journal::{
    ALIGN, Body, MAX_HEADER, MAX_RECORD, MAX_RECORD_BLOCKS, Record, SUPERBLOCK, Superblock, WriteHeader,
    encode_write_header,
};
use varve_format::region::{FRAMES, HEAD, RegionHead};
use varve_types::{BLOCK, Epoch, JournalId, MAX_VOLUME, Sequence, TimelineId};

/// The journal that records of the corpus are of.
pub const JOURNAL: JournalId = JournalId::from_bytes([8; 16]);

/// See the module.
pub fn check(data: &[u8]) {
    let Some((choice, rest)) = choose(data, 7) else { return };
    match choice {
        0 => superblock(rest),
        1 => superblock(&mended_superblock(rest)),
        2 => record(rest),
        3 => record(&mended_record(rest)),
        4 => made_up_record(rest),
        5 => region(rest),
        _ => region(&mended_region(rest)),
    }
}

fn superblock(bytes: &[u8]) {
    let Ok(block) = bounded(bytes.len(), || Superblock::decode(bytes)) else { return };
    assert!(block.ring > 0 && block.ring.is_multiple_of(4096) && block.trim.is_multiple_of(ALIGN));
    let again = block.encode();
    assert_eq!(again.len() as u64, SUPERBLOCK);
    assert_eq!(Superblock::decode(&again), Ok(block));
}

/// The head of a region of a cache device.
fn region(bytes: &[u8]) {
    let number = u32::from_le_bytes(array(bytes, 16));
    let Ok(head) = bounded(bytes.len(), || RegionHead::decode(bytes, number)) else { return };
    assert!(head.entries.len() <= FRAMES && head.number == number);
    assert_eq!(head.encode(), bytes);
}

fn mended_region(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(HEAD as usize, 0);
    put_u32(&mut bytes, 12, 0);
    let sum = crc(&bytes);
    put_u32(&mut bytes, 12, sum);
    bytes
}

fn mended_superblock(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(SUPERBLOCK as usize, 0);
    put_u32(&mut bytes, 12, 0);
    let sum = crc(&bytes);
    put_u32(&mut bytes, 12, sum);
    bytes
}

/// The place at which the bytes say that they stand.
fn position(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(array(bytes, 16))
}

fn record(bytes: &[u8]) {
    let position = position(bytes);
    let Ok((record, len)) = bounded(bytes.len(), || Record::decode(JOURNAL, position, bytes)) else { return };
    assert!(len <= bytes.len() && len <= MAX_HEADER && (len as u64).is_multiple_of(ALIGN));
    assert!(len as u64 + record.payload_len() <= MAX_RECORD);
    assert_eq!(record.position, position);
    if let Body::Write { crcs, .. } = &record.body {
        assert!((1..=MAX_RECORD_BLOCKS as usize).contains(&crcs.len()));
    }
    let mut again = Vec::new();
    record.encode(JOURNAL, &mut again);
    assert!(again.len() <= len, "a header of {len} bytes is written in {}", again.len());
    assert_eq!(Record::decode(JOURNAL, position, &again), Ok((record, again.len())));
    for (journal, position) in [(JOURNAL, position ^ ALIGN), (JournalId::from_bytes([9; 16]), position)] {
        assert!(Record::decode(journal, position, &again).is_err(), "a record is taken for another place's");
    }
}

fn mended_record(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let len = u32::from_le_bytes(array(&bytes, 8)) as usize;
    if let Some(header) = bytes.get(8..len) {
        let identity = Identity::new(Domain::Journal, JOURNAL.to_bytes(), position(&bytes), 0);
        let sum = identity.bind(crc(header));
        put_u32(&mut bytes, 4, sum);
    }
    bytes
}

#[derive(Arbitrary)]
struct Made {
    position: u64,
    timeline: [u8; 16],
    numbers: [u64; 4],
    blocks: u8,
    hole: Option<u64>,
    sum: u32,
}

/// The two ways to write a header give the same bytes, and those decode to what was written.
fn made_up_record(bytes: &[u8]) {
    let Some(made) = made_up::<Made>(bytes) else { return };
    let [epoch, sequence, flushed, start] = made.numbers;
    // A record's place lies in the largest volume that there can be.
    let start = start % (MAX_VOLUME / BLOCK);
    let crcs: Vec<u32> = (0..=u32::from(made.blocks)).map(|n| made.sum.wrapping_mul(n)).collect();
    let body = match made.hole {
        Some(blocks) => Body::Hole { start, blocks: blocks % (MAX_VOLUME / BLOCK) + 1 },
        None => Body::Write { start, crcs: crcs.clone() },
    };
    let record = Record {
        position: made.position,
        timeline: TimelineId::from_bytes(made.timeline),
        epoch: Epoch(epoch),
        sequence: Sequence(sequence),
        flushed_through: Sequence(flushed),
        body,
    };
    let mut encoded = Vec::new();
    record.encode(JOURNAL, &mut encoded);
    if made.hole.is_none() {
        let Record { position, timeline, epoch, sequence, flushed_through, .. } = record;
        let header = WriteHeader { position, timeline, epoch, sequence, flushed_through, start, crcs: &crcs };
        let mut quick = Vec::new();
        encode_write_header(JOURNAL, &header, &mut quick);
        assert_eq!(quick, encoded);
    }
    let len = encoded.len();
    assert_eq!(Record::decode(JOURNAL, made.position, &encoded), Ok((record, len)));
}
