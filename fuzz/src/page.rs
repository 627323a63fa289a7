// SPDX-License-Identifier: Apache-2.0
//! Page objects and what their records hold beside map nodes: pages of the segment table, runs of kills.
//!
//! Records of an object lie one behind the other and each is proved by its own index: none is taken for its neighbour. A page of the table
//! describes the 64 ordinals of its number and no others, in order; its bitmaps count what they hold. Kills come in the order of their births,
//! and none dies before it was born.

use crate::{array, bounded, bounded_by, choose, made_up, ordinal, owner, put_u32};
use arbitrary::Arbitrary;
use varve_format::crc::crc;
use varve_format::page::{PAGE_HEADER, PageBuilder, PageTable, table_len};
use varve_format::table::{
    Kill, LiveBits, PAGE_ORDINALS, Place, TableEntry, TablePage, decode_kills, decode_node_kills, decode_page,
    encode_kills, encode_node_kills, encode_page,
};
use varve_format::{ObjectKind, ObjectName};
use varve_types::{Epoch, MAX_SEGMENT_BLOCKS, Ordinal, Sequence, TimelineId, WriterId};

/// See the module.
pub fn check(data: &[u8]) {
    let Some((choice, rest)) = choose(data, 8) else { return };
    match choice {
        0 => object(rest),
        1 => object(&mended_object(rest)),
        2 => made_up_object(rest),
        3 => table_page(rest),
        4 => made_up_page(rest),
        5 => kills(rest),
        6 => made_up_kills(rest),
        _ => node_kills(rest),
    }
}

/// The name that an object claims to have.
fn name(bytes: &[u8]) -> ObjectName {
    let number = |at| u64::from_le_bytes(array(bytes, at));
    let [kind, part, ..] = array::<8>(bytes, 32);
    ObjectName {
        timeline: TimelineId::from_bytes(array(bytes, 16)),
        kind: ObjectKind::from_raw(kind).unwrap_or(ObjectKind::Map),
        number: number(40),
        part,
        epoch: Epoch(number(48)),
        writer: WriterId(number(56)),
    }
}

fn object(bytes: &[u8]) {
    let name = name(bytes);
    let header = PageTable::decode_header(&name, bytes);
    let table = bounded(bytes.len(), || PageTable::decode(&name, bytes));
    let Ok(table) = table else { return };
    assert_eq!(header, Ok(table.count()));
    let mut end = table_len(table.count());
    for index in 0..table.count() {
        let range = table.range(index).expect("there is such a record");
        assert!(range.start == end && range.end >= range.start, "records lie one behind the other");
        end = range.end;
        if let Some(record) = bytes.get(range.start as usize..range.end as usize) {
            let fine = table.verify(index, record).is_ok();
            let mut wrong = record.to_vec();
            if let Some(byte) = wrong.first_mut().filter(|_| fine) {
                *byte ^= 1;
                assert!(table.verify(index, &wrong).is_err(), "a flipped bit is not seen");
            }
        }
    }
    assert!(table.range(table.count()).is_err() && table.verify(table.count(), &[]).is_err());
    let other = ObjectName { number: name.number ^ 1, ..name };
    assert!(PageTable::decode(&other, bytes).is_err(), "an object is taken for another");
}

fn mended_object(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let count = u32::from_le_bytes(array(&bytes, 72));
    let table = usize::try_from(table_len(count)).ok().and_then(|end| bytes.get(PAGE_HEADER..end));
    if let Some(sum) = table.map(crc) {
        put_u32(&mut bytes, 76, sum);
        put_u32(&mut bytes, 12, 0);
        let sum = crc(&bytes[..PAGE_HEADER]);
        put_u32(&mut bytes, 12, sum);
    }
    bytes
}

/// Records come back out of an object, each under its own index.
fn made_up_object(bytes: &[u8]) {
    let Some((part, records)) = made_up::<(u8, Vec<Vec<u8>>)>(bytes) else { return };
    let (timeline, epoch, writer) = owner();
    let name = ObjectName { timeline, kind: ObjectKind::Table, number: 9, part, epoch, writer };
    let mut builder = PageBuilder::new(name);
    for (index, record) in records.iter().enumerate() {
        assert_eq!(builder.push(record) as usize, index);
    }
    let (_, pieces) = builder.finish();
    let bytes = pieces.concat();
    let table = PageTable::decode(&name, &bytes).expect("what was built decodes");
    assert_eq!(table.count() as usize, records.len());
    for (index, record) in records.iter().enumerate() {
        let range = table.range(index as u32).expect("there is such a record");
        let found = &bytes[range.start as usize..range.end as usize];
        assert_eq!(found, record);
        assert_eq!(table.verify(index as u32, found), Ok(()));
        let next = (index + 1) % records.len();
        let same = records[next] == *record;
        assert_eq!(table.verify(next as u32, found).is_ok(), same, "a record is taken for its neighbour");
    }
}

fn encode(page: u64, entries: &TablePage) -> Vec<u8> {
    let entries: Vec<(Ordinal, &TableEntry)> = entries.iter().map(|(ordinal, entry)| (*ordinal, entry)).collect();
    encode_page(page, &entries)
}

fn live(bits: &LiveBits) -> Vec<u32> {
    (0..bits.blocks()).filter(|block| bits.is_live(*block)).collect()
}

/// A page: the number of the page, of those that 36 bits of ordinals give, and the page.
fn table_page(bytes: &[u8]) {
    let Some((number, bytes)) = bytes.split_first_chunk::<4>() else { return };
    let page = ordinal(u64::from(u32::from_le_bytes(*number)) * PAGE_ORDINALS).0 / PAGE_ORDINALS;
    // A segment without a live block is two bytes in a page and 8 KiB of bits in RAM, and there are at most 64.
    let most = PAGE_ORDINALS as usize * (MAX_SEGMENT_BLOCKS as usize / 8 + 256) + (64 << 10);
    let Ok(entries) = bounded_by(most, || decode_page(page, bytes)) else { return };
    assert!(entries.windows(2).all(|pair| pair[0].0 < pair[1].0));
    assert!(entries.iter().all(|(ordinal, _)| ordinal.0 / PAGE_ORDINALS == page));
    let again = encode(page, &entries);
    let second = decode_page(page, &again).expect("what was encoded decodes");
    assert_eq!(encode(page, &second), again);
    assert_eq!(second.len(), entries.len());
    for ((_, entry), (_, other)) in entries.iter().zip(&second) {
        assert!(entry.live.blocks() <= MAX_SEGMENT_BLOCKS && entry.live.live() <= entry.live.blocks());
        assert_eq!((entry.epoch, entry.writer, entry.bytes), (other.epoch, other.writer, other.bytes));
        assert_eq!((entry.last, entry.sealed_ms), (other.last, other.sealed_ms));
        assert_eq!((entry.live.blocks(), entry.live.live()), (other.live.blocks(), other.live.live()));
        // The bitmaps of large segments are compared by their counts alone, for speed.
        if entry.live.blocks() <= 1024 {
            let bits = live(&entry.live);
            assert!(bits.len() == entry.live.live() as usize && bits == live(&other.live));
        }
    }
}

#[derive(Arbitrary)]
struct MadeEntry {
    slot: u8,
    numbers: [u64; 5],
    blocks: u16,
    dead: Vec<u16>,
    /// A bundle, and how many of the dead blocks it has.
    bundle: Option<(u64, u16)>,
}

/// Bits that were cleared are clear in the page that comes back, and no others.
fn made_up_page(bytes: &[u8]) {
    let Some(mut made) = made_up::<Vec<MadeEntry>>(bytes) else { return };
    made.iter_mut().for_each(|entry| entry.slot %= PAGE_ORDINALS as u8);
    made.sort_by_key(|entry| entry.slot);
    made.dedup_by_key(|entry| entry.slot);
    let page = 5;
    let entry = |made: &MadeEntry| {
        let blocks = u32::from(made.blocks);
        let mut bits = LiveBits::all(blocks);
        for block in &made.dead {
            let was = bits.is_live(u32::from(*block));
            assert!(was || made.blocks <= *block || !bits.clear(u32::from(*block)));
            assert_eq!(bits.clear(u32::from(*block)), was);
            assert!(!bits.is_live(u32::from(*block)));
        }
        let [epoch, writer, bytes, last, sealed_ms] = made.numbers;
        let (epoch, writer, last) = (Epoch(epoch), WriterId(writer), Sequence(last));
        let ordinal = Ordinal(page * PAGE_ORDINALS + u64::from(made.slot));
        let kept = |dead: u16| bits.live() + u32::from(dead).min(blocks - bits.live());
        let bundle = |(number, dead)| Place::Bundle { number, blocks: kept(dead) };
        let place = made.bundle.map_or(Place::Own, bundle);
        (ordinal, TableEntry { place, epoch, writer, bytes, last, sealed_ms, live: bits })
    };
    let entries: TablePage = made.iter().map(entry).collect();
    let bytes = encode(page, &entries);
    assert_eq!(decode_page(page, &bytes), Ok(entries));
    for cut in 0..bytes.len().min(64) {
        assert!(decode_page(page, &bytes[..cut]).is_err());
    }
}

fn kills(bytes: &[u8]) {
    let Ok(mut kills) = bounded(bytes.len(), || decode_kills(bytes)) else { return };
    assert!(kills.windows(2).all(|pair| pair[0].ordinal <= pair[1].ordinal));
    assert!(kills.iter().all(|kill| kill.death >= kill.ordinal && kill.ordinal == ordinal(kill.ordinal.0)));
    // The order within a birth is the writer's to keep.
    kills.sort();
    assert_eq!(decode_kills(&encode_kills(&kills)), Ok(kills));
}

fn made_up_kills(bytes: &[u8]) {
    let Some(made) = made_up::<Vec<(u64, u16, u64)>>(bytes) else { return };
    let kill = |(a, block, b): &(u64, u16, u64)| {
        let (a, b) = (ordinal(*a), ordinal(*b));
        Kill { ordinal: a.min(b), block: *block, death: a.max(b) }
    };
    let mut kills: Vec<Kill> = made.iter().map(kill).collect();
    kills.sort();
    assert_eq!(decode_kills(&encode_kills(&kills)), Ok(kills));
}

fn node_kills(bytes: &[u8]) {
    let Ok(kills) = bounded(bytes.len(), || decode_node_kills(bytes)) else { return };
    assert_eq!(decode_node_kills(&encode_node_kills(&kills)), Ok(kills));
}
