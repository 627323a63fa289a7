// SPDX-License-Identifier: Apache-2.0
//! Values of every structure, with something in every field: what the corpus began with.
//!
//! They are built by hand and encoded by the real encoders. All ids are fixed, so that the same seeds come out every time; the values satisfy
//! every rule that the decoders check (a manifest's runs lie in tables that it names, a volume shows a timeline that it lists), for a seed that is
//! refused at once teaches the fuzzer little.

use crate::journal::JOURNAL;
use crate::owner;
use varve_coord::{
    ClusterRecord, Deleted, EpochEnd, HolderRecord, ManifestRef, MirrorRecord, NameRecord, PoolRecord, Record as _,
    TimelineOwner, TimelineRecord, TimelineState as Seen, VolumeRecord,
};
use varve_format::bundle::{BUNDLE_HEADER, BundleFacts, History, Share, encode_head};
use varve_format::journal::{Body, MAX_RECORD_BLOCKS, Record, Superblock};
use varve_format::manifest::{
    Ancestor, Birth, Cut, DeadObject, Hold, Manifest, MapObject, NodeRunRef, NodeWait, PageRef, Reclaim, RunRef,
    SnapshotEntry, TableObject, TimelineState,
};
use varve_format::mark::Mark;
use varve_format::segment::{self, Codec, IndexExtent, SegmentFacts, SegmentIndex};
use varve_format::{BlockSet, Lineage, NodePointer, ObjectKind, ObjectName};
use varve_types::{
    ClusterId, Epoch, IncarnationId, Name, NodeId, Ordinal, Overrides, RootNumber, Sequence, SessionId, SnapshotId,
    TimelineId, VolumeId, WriterId,
};

fn a_name(text: &str) -> Name {
    text.parse().expect("a good name")
}

fn settings() -> Overrides {
    let mut all = Overrides::default();
    for (key, value) in Overrides::KEYS.into_iter().zip(["ram", "zstd", "8M", "1500ms", "2d"]) {
        all.set(key, value).expect("a good value");
    }
    all
}

/// A superblock.
#[must_use]
pub fn superblock() -> Superblock {
    Superblock { journal: JOURNAL, ring: 1 << 20, generation: 3, trim: 64 }
}

fn marks() -> [Mark; 2] {
    let snapshot = Mark::Snapshot {
        sequence: Sequence(9),
        id: SnapshotId::from_bytes([3; 16]),
        name: a_name("before-upgrade"),
        created_ms: 1_700_000_000_000,
        size: 1 << 30,
        hidden: false,
    };
    [Mark::Size { sequence: Sequence(8), size: 1 << 31 }, snapshot]
}

/// A record of each kind.
#[must_use]
pub fn journal_records() -> Vec<Record> {
    let [size, snapshot] = marks();
    let bodies = [
        Body::Write { start: 77, crcs: vec![1, 2, 3] },
        Body::Write { start: 0, crcs: (0..MAX_RECORD_BLOCKS).collect() },
        Body::Hole { start: 5, blocks: 1 << 34 },
        Body::Mark(size),
        Body::Mark(snapshot),
        Body::Pad,
        Body::Counted,
    ];
    let (timeline, epoch, _) = owner();
    let record =
        |body| Record { position: 4096, timeline, epoch, sequence: Sequence(9), flushed_through: Sequence(4), body };
    bodies.into_iter().map(record).collect()
}

/// Header and index of segments: with every sort of extent and mark, raw and compressed.
#[must_use]
pub fn segment_heads() -> Vec<Vec<u8>> {
    let (timeline, epoch, writer) = owner();
    let facts = SegmentFacts {
        timeline,
        ordinal: Ordinal(3),
        epoch,
        writer,
        stream_epoch: Epoch(3),
        first: Sequence(1),
        last: Sequence(9),
        sealed_ms: 1_700_000_000_000,
    };
    let extents = vec![
        IndexExtent { start: 0, blocks: 3, hole: false },
        IndexExtent { start: 3, blocks: 1 << 20, hole: true },
        IndexExtent { start: 1 << 30, blocks: 9, hole: false },
    ];
    let raw = SegmentIndex { extents: extents.clone(), marks: marks().into(), chunks: Vec::new() };
    let packed = SegmentIndex { extents, marks: Vec::new(), chunks: vec![5000, 400] };
    let empty = SegmentIndex::default();
    [
        (Codec::Raw, raw, 12 * 4112),
        (Codec::Lz4, packed.clone(), 5400),
        (Codec::Zstd, packed, 5400),
        (Codec::Raw, empty, 0),
    ]
    .into_iter()
    .map(|(codec, index, data_len)| {
        let bytes = segment::encode_head(&facts, codec, &index, data_len);
        let len = u32::from_le_bytes(crate::array(&bytes, 88)) as usize;
        bytes[..segment::SEGMENT_HEADER + len].to_vec()
    })
    .collect()
}

/// Header and index of bundles: of a segment that somebody may still ask what it changed, and of one that nobody asks.
#[must_use]
pub fn bundle_heads() -> Vec<Vec<u8>> {
    let (timeline, epoch, writer) = owner();
    let facts = BundleFacts { timeline, number: 5, epoch, writer, made_ms: 1_700_000_000_000 };
    let extents = vec![
        IndexExtent { start: 3, blocks: 1 << 20, hole: true },
        IndexExtent { start: 1 << 30, blocks: 12, hole: false },
    ];
    let (first, last) = (Sequence(1), Sequence(9));
    let history = Some(History { stream_epoch: Epoch(3), first, last, extents, marks: marks().into() });
    [(Codec::Raw, vec![], vec![]), (Codec::Lz4, vec![5000, 400], vec![300]), (Codec::Zstd, vec![5000, 400], vec![300])]
        .into_iter()
        .map(|(codec, chunks, few)| {
            let all: Vec<u16> = (0..12).collect();
            let share = |ordinal, end, numbers: &[u16], chunks, history| Share {
                ordinal: Ordinal(ordinal),
                blocks: BlockSet::new(end, numbers),
                codec,
                chunks,
                history,
            };
            let shares = [
                share(3, 12, &all, chunks, history.clone()),
                share(70_000, 16_384, &[4, 16_383], few.clone(), None),
                share(70_001, 40, &[1, 3, 5, 7, 9, 11, 39], few, None),
            ];
            let bytes = encode_head(&facts, &shares);
            let len = u32::from_le_bytes(crate::array(&bytes, 56)) as usize;
            bytes[..BUNDLE_HEADER + len].to_vec()
        })
        .collect()
}

/// A manifest with something in every list.
#[must_use]
pub fn manifest() -> Manifest {
    let (timeline, epoch, writer) = owner();
    let origin = TimelineId::from_bytes([3; 16]);
    let node = NodePointer::new(Lineage(1), RootNumber(3), 9);
    let row = Cut { epoch: Epoch(2), writer: WriterId(5), first: Ordinal(0), end: Ordinal(7), last: Sequence(99) };
    let (base_number, boundary) = (RootNumber(2), Ordinal(3));
    let name = ObjectName { timeline, kind: ObjectKind::Segment, number: 4, part: 0, epoch, writer };
    let mut m = Manifest::new(VolumeId::from_bytes([1; 16]), timeline, a_name("disk"), epoch, writer);
    m.number = 12;
    m.settings = settings();
    m.state = TimelineState::Hidden { until_ms: 5 };
    m.ancestors.insert(0, Ancestor { lineage: Lineage(0), timeline: origin });
    m.ancestors[1].lineage = Lineage(1);
    m.own = Lineage(1);
    m.birth = Some(Birth { origin, boundary: Ordinal(9), base_number, base_root: node, base_boundary: boundary });
    (m.inherited, m.cuts) = (vec![row], vec![row]);
    (m.size, m.root) = (1 << 40, node);
    let snapshot = SnapshotEntry {
        id: SnapshotId::from_bytes([6; 16]),
        name: a_name("s"),
        created_ms: 1,
        boundary,
        sequence: Sequence(44),
        size: 512,
        root: Some((base_number, node)),
        hidden: true,
    };
    m.snapshots = vec![snapshot.clone(), SnapshotEntry { root: None, boundary: Ordinal(4), ..snapshot }];
    let (clone, volume) = (TimelineId::from_bytes([8; 16]), VolumeId::from_bytes([7; 16]));
    m.holds = vec![Hold { clone, volume, boundary, base_number, base_root: node, base_boundary: boundary, epoch }];
    m.tables = vec![TableObject { number: 11, epoch, writer, bytes: 10 }];
    m.table = vec![PageRef { page: 0, object: 11, index: 0 }, PageRef { page: 1024, object: 11, index: 1 }];
    m.kills =
        vec![RunRef { object: 11, index: 2, first_birth: Ordinal(1), last_death: Ordinal(9), count: 3, window: false }];
    m.node_kills = vec![NodeRunRef { object: 11, index: 3, count: 5, waits: NodeWait::Passing }];
    m.maps = vec![MapObject { root: RootNumber(3), part: 0, epoch, writer, records: 10, live: 4, bytes: 999 }];
    m.dead = vec![DeadObject { name, since: 11 }];
    m.reclaim = vec![Reclaim { node, level: 2, first_block: 0, death: Ordinal(5), death_root: RootNumber(4) }];
    m
}

/// The records of coordination, each under its key, as they are stored.
#[must_use]
pub fn records() -> Vec<(String, Vec<u8>)> {
    let (timeline, epoch, writer) = owner();
    let (volume, old) = (VolumeId::from_bytes([1; 16]), TimelineId::from_bytes([3; 16]));
    let manifest = Some(ManifestRef { number: 12, epoch, writer });
    let shown = TimelineRecord { id: timeline, state: Seen::Shown, manifest, parent: Some(old) };
    let hidden = TimelineRecord { id: old, state: Seen::Hidden { until_ms: 5 }, manifest: None, parent: None };
    let record = VolumeRecord {
        version: 1,
        id: volume,
        name: a_name("disk"),
        pool: a_name("default"),
        epoch,
        writer,
        shown: timeline,
        show_number: 2,
        template: false,
        settings: settings(),
        deleted: Some(Deleted { at_ms: 1, until_ms: 2 }),
        timelines: vec![shown, hidden],
        owner: Some(NodeId::from_bytes([6; 16])),
        mirror: Some(MirrorRecord {
            node: NodeId::from_bytes([7; 16]),
            incarnation: IncarnationId::from_bytes([7; 16]),
            timeline,
        }),
        forced: false,
        holder: Some(HolderRecord { session: SessionId::from_bytes([8; 16]), edge: "host-1".to_owned(), since_ms: 9 }),
        ends: vec![EpochEnd { timeline, epoch, last: Sequence(77) }],
    };
    let pool = PoolRecord {
        version: 1,
        name: a_name("default"),
        store: "file:///var/lib/varve/store".to_owned(),
        owner_number: 1,
        settings: settings(),
        created_ms: 1_700_000_000_000,
    };
    let cluster = ClusterRecord::new(ClusterId::from_bytes([5; 16]), 7);
    let name = NameRecord { version: 1, name: a_name("disk"), volume };
    let owner = TimelineOwner { version: 1, timeline, volume };
    let stored = [
        (cluster.key(), cluster.encode()),
        (pool.key(), pool.encode()),
        (record.key(), record.encode()),
        (name.key(), name.encode()),
        (owner.key(), owner.encode()),
    ];
    stored.into_iter().map(|(key, bytes)| (key, bytes.expect("a good record"))).collect()
}
