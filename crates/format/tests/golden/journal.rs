// SPDX-License-Identifier: Apache-2.0
//! The journal: superblock, and a record of every kind. A record has no version: the superblock's speaks for all of them.

use crate::dump::{Field, Form, field};
use crate::segment::{noise, rest};
use crate::{Golden, PLAIN};
use varve_format::FormatError;
use varve_format::crc::crc;
use varve_format::journal::{Body, Record, Superblock};
use varve_format::mark::Mark;
use varve_types::{BLOCK, Epoch, JournalId, Sequence, SnapshotId, TimelineId};

const JOURNAL: JournalId = JournalId::from_bytes(*b"journal-id-v1-00");
pub const TIMELINE: TimelineId = TimelineId::from_bytes(*b"timeline-id-v1-0");
pub const SNAPSHOT: SnapshotId = SnapshotId::from_bytes(*b"snapshot-id-v1-0");
const POSITION: u64 = 5_242_880;

const SUPERBLOCK: Superblock = Superblock { journal: JOURNAL, ring: 1_048_576, generation: 41, trim: 5_242_848 };

/// A snapshot's mark, as records and indexes have it.
pub fn snapshot(sequence: u64, hidden: bool) -> Mark {
    Mark::Snapshot {
        sequence: Sequence(sequence),
        id: SNAPSHOT,
        name: "before-upgrade".parse().unwrap(),
        created_ms: 1_700_000_000_123,
        size: 1 << 40,
        hidden,
    }
}

/// Two blocks of data.
fn payload() -> Vec<u8> {
    noise(2 * BLOCK as usize, 7)
}

fn record(body: Body) -> Record {
    Record {
        position: POSITION,
        timeline: TIMELINE,
        epoch: Epoch(3),
        sequence: Sequence(1_009),
        flushed_through: Sequence(1_004),
        body,
    }
}

fn write() -> Record {
    record(Body::Write { start: 77, crcs: payload().chunks(BLOCK as usize).map(crc).collect() })
}

fn hole() -> Record {
    record(Body::Hole { start: 512, blocks: 1 << 34 })
}

fn pad() -> Record {
    let nobody = TimelineId::from_bytes([0; 16]);
    let (epoch, none) = (Epoch(0), Sequence(0));
    Record { timeline: nobody, epoch, sequence: none, flushed_through: none, ..record(Body::Pad) }
}

fn snapshot_mark() -> Record {
    record(Body::Mark(snapshot(1_009, true)))
}

fn size_mark() -> Record {
    record(Body::Mark(Mark::Size { sequence: Sequence(1_009), size: 1 << 30 }))
}

fn counted() -> Record {
    Record { flushed_through: Sequence(1_009), ..record(Body::Counted) }
}

fn header(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    record.encode(JOURNAL, &mut bytes);
    bytes
}

/// Reads a record and the blocks behind it.
fn read(bytes: &[u8], expected: &Record) -> Result<bool, FormatError> {
    let (found, len) = Record::decode(JOURNAL, POSITION, bytes)?;
    let data = rest(bytes, len..len + found.payload_len() as usize);
    if data.len() as u64 != found.payload_len() {
        return Err(FormatError::new("journal record", "its blocks are cut"));
    }
    if let Body::Write { crcs, .. } = &found.body
        && data.chunks(BLOCK as usize).zip(crcs).any(|(block, sum)| crc(block) != *sum)
    {
        return Err(FormatError::new("journal record", "a block's checksum does not match"));
    }
    Ok(found == *expected && bytes.len() == len + data.len())
}

pub fn superblock_fields() -> Vec<Field> {
    let mut fields = vec![field("magic", Form::Text(8)), field("version", Form::U32), field("checksum", Form::Sum)];
    fields.push(field("journal id", Form::Bytes(16)));
    fields.extend(["ring", "generation", "trim"].map(|name| field(name, Form::U64)));
    fields.push(field("zero", Form::Zero(4040)));
    fields
}

pub fn record_fields() -> Vec<Field> {
    let mut fields = vec![field("magic", Form::Text(4)), field("checksum", Form::Sum)];
    fields.push(field("length of the header", Form::U32));
    fields.push(field("kind", Form::U8));
    fields.push(field("zero", Form::Zero(3)));
    fields.push(field("position", Form::U64));
    fields.push(field("timeline", Form::Bytes(16)));
    let numbers = ["epoch", "sequence", "flushed through", "first block", "number"];
    fields.extend(numbers.map(|name| field(name, Form::U64)));
    fields
}

fn hole_fields() -> Vec<Field> {
    let mut fields = record_fields();
    fields.push(field("zero", Form::Zero(16)));
    fields
}

/// A mark's own fields.
pub fn snapshot_fields() -> Vec<Field> {
    vec![
        field("mark", Form::U8),
        field("sequence", Form::Varint),
        field("id", Form::Bytes(16)),
        field("name", Form::Name),
        field("created", Form::Varint),
        field("size", Form::Varint),
        field("hidden", Form::U8),
    ]
}

fn mark_fields() -> Vec<Field> {
    let mut fields = record_fields();
    fields.extend(snapshot_fields());
    fields.push(field("zero", Form::Zero(1)));
    fields
}

pub fn goldens() -> Vec<Golden> {
    vec![
        Golden {
            file: "journal-superblock",
            encode: || SUPERBLOCK.encode(),
            read: |bytes| Superblock::decode(bytes).map(|found| found == SUPERBLOCK),
            version: Some(8),
            fields: superblock_fields,
            ..PLAIN
        },
        Golden {
            file: "journal-write",
            encode: || [header(&write()), payload()].concat(),
            read: |bytes| read(bytes, &write()),
            ..PLAIN
        },
        Golden {
            file: "journal-hole",
            encode: || header(&hole()),
            read: |bytes| read(bytes, &hole()),
            fields: hole_fields,
            ..PLAIN
        },
        Golden {
            file: "journal-snapshot",
            encode: || header(&snapshot_mark()),
            read: |bytes| read(bytes, &snapshot_mark()),
            fields: mark_fields,
            ..PLAIN
        },
        Golden {
            file: "journal-size",
            encode: || header(&size_mark()),
            read: |bytes| read(bytes, &size_mark()),
            ..PLAIN
        },
        Golden {
            file: "journal-counted",
            encode: || header(&counted()),
            read: |bytes| read(bytes, &counted()),
            ..PLAIN
        },
        Golden { file: "journal-pad", encode: || header(&pad()), read: |bytes| read(bytes, &pad()), ..PLAIN },
    ]
}
