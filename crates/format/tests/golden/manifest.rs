// SPDX-License-Identifier: Apache-2.0
//! Manifests: one with something in every part, an empty one, one of each other state of a timeline, and one that needs a feature.
//!
//! The full one is written out without defaults: a new field does not compile here until it has been given a value, and with it a version.

use crate::dump::{Field, Form, field};
use crate::journal::{SNAPSHOT, TIMELINE};
use crate::{Golden, PLAIN};
use varve_format::manifest::{
    Ancestor, Birth, Cut, DeadObject, Hold, Manifest, MapObject, NodeRunRef, NodeWait, PageRef, Reclaim, Rewind,
    RewindRoot, RunRef, SnapshotEntry, TableObject, TimelineState,
};
use varve_format::{FormatError, Lineage, NodePointer, ObjectKind, ObjectName};
use varve_types::{
    Ack, Compression, Epoch, Ordinal, Overrides, RootNumber, Sequence, SnapshotId, TimelineId, VolumeId, WriterId,
};

const VOLUME: VolumeId = VolumeId::from_bytes(*b"volume-id-v1-000");
const ORIGIN: TimelineId = TimelineId::from_bytes(*b"origin-id-v1-000");
const CLONE: TimelineId = TimelineId::from_bytes(*b"clone-id-v1-0000");
const CLONES_VOLUME: VolumeId = VolumeId::from_bytes(*b"other-volume-id1");
const SECOND: SnapshotId = SnapshotId::from_bytes(*b"snapshot-id-v1-1");
const EPOCH: Epoch = Epoch(4);
const WRITER: WriterId = WriterId(0x0123_4567_89ab_cdef);
const OLDER: WriterId = WriterId(0x00fe_dcba_9876_5432);

fn node(lineage: u8, root: u32, index: u32) -> NodePointer {
    NodePointer::new(Lineage(lineage), RootNumber(root), index)
}

fn cut(epoch: u64, first: u64, end: u64, last: u64) -> Cut {
    Cut { epoch: Epoch(epoch), writer: OLDER, first: Ordinal(first), end: Ordinal(end), last: Sequence(last) }
}

fn snapshots() -> Vec<SnapshotEntry> {
    let first = SnapshotEntry {
        id: SNAPSHOT,
        name: "before-upgrade".parse().unwrap(),
        created_ms: 1_700_000_000_123,
        boundary: Ordinal(131_080),
        sequence: Sequence(4_400),
        size: 1 << 30,
        root: Some((RootNumber(2), node(1, 2, 17))),
        hidden: false,
    };
    let second = SnapshotEntry {
        id: SECOND,
        name: "clone.of.now".parse().unwrap(),
        created_ms: 1_700_000_100_456,
        boundary: Ordinal(131_090),
        sequence: Sequence(4_500),
        size: 1 << 40,
        root: None,
        hidden: true,
    };
    vec![first, second]
}

fn dead() -> Vec<DeadObject> {
    let kinds = [ObjectKind::Segment, ObjectKind::Map, ObjectKind::Table, ObjectKind::Manifest];
    let object = |(kind, (number, part))| DeadObject {
        name: ObjectName { timeline: TIMELINE, kind, number, part, epoch: Epoch(3), writer: OLDER },
        since: 11,
    };
    kinds.into_iter().zip([(131_072, 0), (1, 2), (9, 0), (10, 0)]).map(object).collect()
}

fn reclaim() -> Vec<Reclaim> {
    let entry = |level, first_block, index| Reclaim {
        node: node(1, 3, index),
        level,
        first_block,
        death: Ordinal(131_085),
        death_root: RootNumber(4),
    };
    vec![entry(0, 512, 3), entry(1, 1 << 18, 40), entry(2, 1 << 27, 41), entry(3, 0, 42)]
}

fn birth() -> Birth {
    Birth {
        origin: ORIGIN,
        boundary: Ordinal(900),
        base_number: RootNumber(7),
        base_root: node(0, 7, 99),
        base_boundary: Ordinal(890),
    }
}

fn maps() -> Vec<MapObject> {
    vec![
        MapObject { root: RootNumber(2), part: 0, epoch: Epoch(3), writer: OLDER, records: 20, live: 4, bytes: 9_999 },
        MapObject {
            root: RootNumber(5),
            part: 63,
            epoch: EPOCH,
            writer: WRITER,
            records: 65_536,
            live: 65_536,
            bytes: 1 << 29,
        },
    ]
}

fn holds() -> Vec<Hold> {
    vec![Hold {
        clone: CLONE,
        volume: CLONES_VOLUME,
        boundary: Ordinal(131_080),
        base_number: RootNumber(2),
        base_root: node(1, 2, 17),
        base_boundary: Ordinal(131_080),
        epoch: Epoch(3),
    }]
}

fn full() -> Manifest {
    Manifest {
        volume: VOLUME,
        timeline: TIMELINE,
        number: 12,
        epoch: EPOCH,
        writer: WRITER,
        written_ms: 1_700_000_200_789,
        name: "disk-1".parse().unwrap(),
        created_ms: 1_690_000_000_001,
        settings: Overrides {
            ack: Some(Ack::Ram),
            compression: Some(Compression::Zstd),
            segment_size: Some(32 << 20),
            seal_age_ms: Some(5_000),
            undelete_window_ms: Some(7_200_000),
            ..Overrides::default()
        },
        template: true,
        state: TimelineState::Hidden { until_ms: 1_800_000_000_000 },
        show_number: 6,
        ancestors: vec![
            Ancestor { lineage: Lineage(0), timeline: ORIGIN },
            Ancestor { lineage: Lineage(1), timeline: TIMELINE },
        ],
        own: Lineage(1),
        birth: Some(birth()),
        inherited: vec![cut(1, 890, 895, 333), cut(2, 66_431, 66_431, 340)],
        boundary: Ordinal(131_100),
        merged: Sequence(4_600),
        size: 1 << 41,
        root: node(1, 5, 0x05_0007),
        root_number: RootNumber(5),
        last_root: RootNumber(65_540),
        first_ordinal: Ordinal(196_640),
        marks_through: Ordinal(196_650),
        cuts: vec![cut(3, 131_072, 131_104, 4_700)],
        snapshots: snapshots(),
        holds: holds(),
        table: vec![PageRef { page: 2_048, object: 11, index: 0 }, PageRef { page: 2_049, object: 12, index: 65_535 }],
        kills: vec![RunRef {
            object: 11,
            index: 2,
            first_birth: Ordinal(131_072),
            last_death: Ordinal(131_099),
            count: 70_000,
            window: false,
        }],
        node_kills: vec![NodeRunRef { object: 12, index: 3, count: 5, waits: NodeWait::Passing }],
        maps: maps(),
        tables: vec![
            TableObject { number: 11, epoch: Epoch(3), writer: OLDER, bytes: 4_321 },
            TableObject { number: 12, epoch: EPOCH, writer: WRITER, bytes: 1 << 20 },
        ],
        dead: dead(),
        reclaim: reclaim(),
        bundles: false,
        rewind: Rewind::default(),
    }
}

/// One whose table leads to bundles: it says what its reader has to know.
fn bundled() -> Manifest {
    let bundle =
        ObjectName { timeline: TIMELINE, kind: ObjectKind::Bundle, number: 3, part: 0, epoch: EPOCH, writer: WRITER };
    Manifest { bundles: true, dead: vec![DeadObject { name: bundle, since: 12 }], ..full() }
}

/// One that keeps something of the past, and runs of kills that wait for it.
fn rewinding() -> Manifest {
    let root = |boundary, number, root| RewindRoot {
        boundary: Ordinal(boundary),
        number: RootNumber(number),
        root,
        size: 1 << 41,
        written_ms: 1_700_000_200_000 + boundary,
    };
    let (mut kills, mut node_kills) = (full().kills, full().node_kills);
    kills.push(RunRef { index: 4, window: true, ..kills[0] });
    let waits = NodeWait::Window { last_death: RootNumber(5) };
    node_kills.push(NodeRunRef { object: 12, index: 5, count: 9, waits });
    node_kills.push(NodeRunRef { object: 12, index: 6, count: 2, waits: NodeWait::Kept });
    let rewind = Rewind {
        from: Ordinal(131_075),
        roots: vec![root(131_072, 0, NodePointer::absent()), root(131_080, 5, node(1, 5, 0x05_0007))],
    };
    Manifest { rewind, kills, node_kills, ..full() }
}

fn empty() -> Manifest {
    Manifest::new(VOLUME, TIMELINE, "disk-1".parse().unwrap(), EPOCH, WRITER)
}

fn with_state(state: TimelineState) -> Manifest {
    Manifest { state, root: NodePointer::absent(), ..full() }
}

fn held() -> Manifest {
    with_state(TimelineState::Held { swept: true })
}

fn tombstone() -> Manifest {
    with_state(TimelineState::Tombstone)
}

fn read(bytes: &[u8], expected: &Manifest) -> Result<bool, FormatError> {
    Manifest::decode(bytes).map(|found| found == *expected)
}

fn empty_fields() -> Vec<Field> {
    let mut fields = vec![field("magic", Form::Text(8)), field("version", Form::U32), field("checksum", Form::Sum)];
    fields.extend([field("volume", Form::Bytes(16)), field("timeline", Form::Bytes(16))]);
    fields.extend([field("number", Form::Varint), field("epoch", Form::Varint), field("writer", Form::U64)]);
    fields.extend([field("written at", Form::Varint), field("name", Form::Name), field("created at", Form::Varint)]);
    fields.extend([field("settings", Form::Varint), field("template", Form::U8), field("state", Form::U8)]);
    fields.extend([field("show number", Form::Varint), field("ancestors", Form::Varint)]);
    fields.extend([field("ancestor 0: index", Form::U8), field("timeline", Form::Bytes(16))]);
    fields.extend([field("own index", Form::U8), field("birth", Form::U8), field("inherited rows", Form::Varint)]);
    fields.extend(["boundary", "last merged sequence", "size"].map(|name| field(name, Form::Varint)));
    fields.push(field("root", Form::U64));
    let numbers = ["root number", "highest root number used", "first ordinal of the writer", "marks through"];
    fields.extend(numbers.map(|name| field(name, Form::Varint)));
    let lists =
        ["cuts", "snapshots", "holds", "table", "kill runs", "node kill runs", "maps", "tables", "dead", "reclaim"];
    fields.extend(lists.map(|name| field(name, Form::Varint)));
    fields
}

pub fn goldens() -> Vec<Golden> {
    vec![
        Golden {
            file: "manifest-full",
            encode: || full().encode(),
            read: |bytes| read(bytes, &full()),
            version: Some(8),
            versions: (1, 2),
            ..PLAIN
        },
        Golden {
            file: "manifest-empty",
            encode: || empty().encode(),
            read: |bytes| read(bytes, &empty()),
            version: Some(8),
            versions: (1, 2),
            fields: empty_fields,
            ..PLAIN
        },
        Golden {
            file: "manifest-held",
            encode: || held().encode(),
            read: |bytes| read(bytes, &held()),
            version: Some(8),
            versions: (1, 2),
            ..PLAIN
        },
        Golden {
            file: "manifest-tombstone",
            encode: || tombstone().encode(),
            read: |bytes| read(bytes, &tombstone()),
            version: Some(8),
            versions: (1, 2),
            ..PLAIN
        },
        Golden {
            file: "manifest-bundled",
            since: 2,
            encode: || bundled().encode(),
            read: |bytes| read(bytes, &bundled()),
            version: Some(8),
            versions: (2, 2),
            ..PLAIN
        },
        Golden {
            file: "manifest-rewind",
            since: 2,
            encode: || rewinding().encode(),
            read: |bytes| read(bytes, &rewinding()),
            version: Some(8),
            versions: (2, 2),
            ..PLAIN
        },
    ]
}
