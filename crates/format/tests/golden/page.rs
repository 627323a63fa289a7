// SPDX-License-Identifier: Apache-2.0
//! Page objects: one of tables (table page, kill run, node kill run) and one of a map (every form of node).
//!
//! The records have neither version nor checksum of their own: the version stands in the object's header, and the checksum of each record in the
//! object's table, bound to what the record is.

use crate::dump::{Field, Form, field};
use crate::journal::TIMELINE;
use crate::segment::rest;
use crate::{Golden, PLAIN, node};
use varve_format::page::{PageBuilder, PageTable};
use varve_format::table::{
    Kill, LiveBits, NodeKill, Place, TableEntry, decode_kills, decode_node_kills, decode_page, encode_kills,
    encode_node_kills, encode_page,
};
use varve_format::{FormatError, Lineage, NodePointer, ObjectKind, ObjectName};
use varve_types::{Epoch, Ordinal, RootNumber, Sequence, WriterId};

const TABLE: ObjectName = ObjectName {
    timeline: TIMELINE,
    kind: ObjectKind::Table,
    number: 12,
    part: 0,
    epoch: Epoch(4),
    writer: WriterId(0x0123_4567_89ab_cdef),
};
const MAP: ObjectName = ObjectName { kind: ObjectKind::Map, number: 9, part: 5, ..TABLE };

/// The page of the ordinals 128 to 191.
const PAGE: u64 = 2;

fn entries() -> Vec<(Ordinal, TableEntry)> {
    let mut some = LiveBits::all(100);
    assert!((64..100).chain([0, 3]).all(|block| some.clear(block)));
    let mut none = LiveBits::all(65);
    assert!((0..65).all(|block| none.clear(block)));
    let entry = |epoch, bytes, last, live| TableEntry {
        place: Place::Own,
        epoch: Epoch(epoch),
        writer: WriterId(0xfeed_0000_0000_0000 + epoch),
        bytes,
        last: Sequence(last),
        sealed_ms: 1_700_000_000_000,
        live,
    };
    vec![
        (Ordinal(128), entry(1, 269_484_288, 70_000, LiveBits::all(65_536))),
        (Ordinal(130), entry(1, 411_616, 70_100, some)),
        (Ordinal(190), entry(2, 267_600, 70_165, none)),
        (Ordinal(191), entry(2, 192, 70_166, LiveBits::all(0))),
    ]
}

/// The same segments, but two of them are in a bundle.
fn bundled() -> Vec<(Ordinal, TableEntry)> {
    let mut entries = entries();
    entries[0].1.place = Place::Bundle { number: 3, blocks: 65_536 };
    entries[1].1.place = Place::Bundle { number: 300, blocks: 70 };
    entries[2].1.place = Place::Bundle { number: 3, blocks: 0 };
    entries
}

fn encode_entries(entries: &[(Ordinal, TableEntry)]) -> Vec<u8> {
    encode_page(PAGE, &entries.iter().map(|(ordinal, entry)| (*ordinal, entry)).collect::<Vec<_>>())
}

fn kills() -> Vec<Kill> {
    let kill = |ordinal, block, death| Kill { ordinal: Ordinal(ordinal), block, death: Ordinal(death) };
    vec![kill(3, 7, 6), kill(3, 9, 4), kill(6, 65_535, 70_000), kill((1 << 36) - 2, 0, (1 << 36) - 1)]
}

fn node_kills() -> Vec<NodeKill> {
    let kill = |lineage, root, index, death| NodeKill {
        node: NodePointer::new(Lineage(lineage), RootNumber(root), index),
        death: RootNumber(death),
    };
    vec![kill(0, 1, 0, 2), kill(1, 3, 0x2a_bcde, 9), kill(255, u32::MAX - 1, (1 << 22) - 1, u32::MAX)]
}

/// The records of the table object.
fn table_records() -> Vec<Vec<u8>> {
    vec![encode_entries(&entries()), encode_kills(&kills()), encode_node_kills(&node_kills())]
}

fn encode(name: ObjectName, records: Vec<Vec<u8>>) -> Vec<u8> {
    let mut builder = PageBuilder::new(name);
    for (index, record) in records.iter().enumerate() {
        assert_eq!(builder.push(record), index as u32);
    }
    builder.finish().1.concat()
}

/// The records of a page object, each proved.
fn records(name: &ObjectName, bytes: &[u8]) -> Result<Vec<Vec<u8>>, FormatError> {
    let table = PageTable::decode(name, bytes)?;
    let record = |index| {
        let range = table.range(index)?;
        let record = rest(bytes, range.start as usize..range.end as usize);
        table.verify(index, record)?;
        Ok(record.to_vec())
    };
    (0..table.count()).map(record).collect()
}

fn read_table(bytes: &[u8]) -> Result<bool, FormatError> {
    let records = records(&TABLE, bytes)?;
    let [page, run, node_run] = &records[..] else { return Ok(false) };
    let same_page = decode_page(PAGE, page)? == entries();
    Ok(same_page && decode_kills(run)? == kills() && decode_node_kills(node_run)? == node_kills())
}

pub fn header_fields() -> Vec<Field> {
    let mut fields = vec![field("magic", Form::Text(8)), field("version", Form::U32), field("checksum", Form::Sum)];
    fields.push(field("timeline", Form::Bytes(16)));
    fields.extend([field("kind", Form::U8), field("part", Form::U8), field("zero", Form::Zero(6))]);
    fields.extend(["number", "epoch", "writer", "bytes of all records"].map(|name| field(name, Form::U64)));
    fields.extend([field("number of records", Form::U32), field("checksum of the table", Form::Sum)]);
    fields.push(field("zero", Form::Zero(16)));
    fields
}

fn table_fields() -> Vec<Field> {
    let mut fields = header_fields();
    for record in 0..3 {
        fields.push(field(format!("record {record}: end"), Form::U32));
        fields.push(field(format!("record {record}: bound checksum"), Form::Sum));
    }
    fields.push(field("table page: entries", Form::Varint));
    for (ordinal, words) in [(128, 0), (130, 2), (190, 0), (191, 0)] {
        fields.extend(entry_fields(ordinal, words));
    }
    fields.push(field("kill run: kills", Form::Varint));
    for kill in 0..4 {
        fields.push(field(format!("kill {kill}: births apart"), Form::Varint));
        fields.extend(["block", "death minus birth"].map(|name| field(name, Form::Varint)));
    }
    fields.push(field("node kill run: kills", Form::Varint));
    for kill in 0..3 {
        fields.push(field(format!("kill {kill}: node"), Form::Bytes(8)));
        fields.push(field("death", Form::Varint));
    }
    fields
}

fn bundled_fields() -> Vec<Field> {
    let mut fields = header_fields();
    fields.extend([field("record 0: end", Form::U32), field("record 0: bound checksum", Form::Sum)]);
    fields.push(field("table page: entries", Form::Varint));
    for (ordinal, words, bundled) in [(128, 0, true), (130, 2, true), (190, 0, true), (191, 0, false)] {
        fields.extend(entry_fields(ordinal, words));
        if bundled {
            fields.extend(["number of the bundle", "blocks of the share"].map(|name| field(name, Form::Varint)));
        }
    }
    fields
}

fn entry_fields(ordinal: u64, words: usize) -> Vec<Field> {
    let mut fields = vec![field(format!("ordinal {ordinal}: mod 64"), Form::U8)];
    fields.extend([field("epoch", Form::Varint), field("writer", Form::U64)]);
    let numbers = ["bytes of the object", "last sequence", "sealed at", "blocks"];
    fields.extend(numbers.map(|name| field(name, Form::Varint)));
    fields.push(field("live bits", Form::U8));
    fields.extend((0..words).map(|word| field(format!("word {word}"), Form::Bytes(8))));
    fields
}

fn map_fields() -> Vec<Field> {
    let nodes = node::records();
    let mut fields = header_fields();
    for record in 0..nodes.len() {
        fields.push(field(format!("record {record}: end"), Form::U32));
        fields.push(field(format!("record {record}: bound checksum"), Form::Sum));
    }
    for (number, bytes) in nodes.iter().enumerate() {
        fields.extend(node::fields(number, bytes));
    }
    fields
}

pub fn goldens() -> Vec<Golden> {
    vec![
        Golden {
            file: "page-table",
            encode: || encode(TABLE, table_records()),
            read: read_table,
            version: Some(8),
            fields: table_fields,
            ..PLAIN
        },
        Golden {
            file: "page-table-bundled",
            since: 2,
            encode: || encode(TABLE, vec![encode_entries(&bundled())]),
            read: |bytes| {
                let records = records(&TABLE, bytes)?;
                let [page] = &records[..] else { return Ok(false) };
                Ok(decode_page(PAGE, page)? == bundled())
            },
            version: Some(8),
            fields: bundled_fields,
            ..PLAIN
        },
        Golden {
            file: "page-map",
            encode: || encode(MAP, node::records()),
            read: |bytes| node::read(&records(&MAP, bytes)?),
            version: Some(8),
            fields: map_fields,
            ..PLAIN
        },
    ]
}

/// What is read without a checksum of its own must not be trusted either: a later defect must not become a crash.
#[test]
fn a_damaged_record_is_refused_or_read_as_another_but_never_ends_the_program() {
    type Decoder = fn(&[u8]) -> bool;
    let decoders: [Decoder; 3] = [
        |bytes| decode_page(PAGE, bytes).is_ok(),
        |bytes| decode_kills(bytes).is_ok(),
        |bytes| decode_node_kills(bytes).is_ok(),
    ];
    for (mut record, decode) in table_records().into_iter().zip(decoders) {
        for cut in 0..record.len() {
            assert!(!decode(&record[..cut]), "a record says how much there is of it");
        }
        for bit in 0..record.len() * 8 {
            record[bit / 8] ^= 1 << (bit % 8);
            decode(&record);
            record[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(!decode(&[&record[..], &[0]].concat()), "nothing follows a record");
    }
}
