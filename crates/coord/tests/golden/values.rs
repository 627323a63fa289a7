// SPDX-License-Identifier: Apache-2.0
//! The values of the golden records, with something in every field.
//!
//! They are written out without defaults: a new field does not compile here until it has a value, and with it a golden file of its own.

use varve_coord::{
    AliveRecord, ClusterRecord, CoordError, Deleted, EdgeToken, EpochEnd, HolderRecord, ManifestRef, MirrorRecord,
    NameRecord, NodeName, NodeRecord, NodeToken, PoolRecord, Record, ScrubFinding, ScrubPass, ScrubRecord,
    TimelineOwner, TimelineRecord, TimelineState, VolumeRecord,
};
use varve_types::{
    Ack, ClusterId, Compression, Epoch, IncarnationId, JournalId, Name, NodeId, Overrides, Sequence, SessionId,
    TimelineId, VolumeId, WriterId,
};

/// A record with its golden file.
pub struct Golden {
    pub file: &'static str,
    pub key: String,
    pub encode: fn() -> Vec<u8>,
    /// Whether it is the value, or why it can not be read.
    pub read: fn(&str, &[u8]) -> Result<bool, CoordError>,
}

const VOLUME: VolumeId = VolumeId::from_bytes(*b"volume-id-v1-000");
const SHOWN: TimelineId = TimelineId::from_bytes(*b"timeline-id-v1-0");
const HIDDEN: TimelineId = TimelineId::from_bytes(*b"timeline-id-v1-1");
const HELD: TimelineId = TimelineId::from_bytes(*b"timeline-id-v1-2");
const WRITER: WriterId = WriterId(0x0123_4567_89ab_cdef);

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn settings() -> Overrides {
    Overrides {
        ack: Some(Ack::Ram),
        compression: Some(Compression::Zstd),
        segment_size: Some(32 << 20),
        seal_age_ms: Some(5_000),
        undelete_window_ms: Some(7_200_000),
        ..Overrides::default()
    }
}

pub fn cluster() -> ClusterRecord {
    ClusterRecord { version: 1, cluster: ClusterId::from_bytes(*b"cluster-id-v1-00"), created_ms: 1_700_000_000_123 }
}

pub fn pool() -> PoolRecord {
    PoolRecord {
        version: 1,
        name: name("default"),
        store: "s3://bucket/prefix?endpoint=http%3A%2F%2F127.0.0.1%3A8333".to_owned(),
        owner_number: 2,
        settings: Overrides { compression: Some(Compression::None), ack: Some(Ack::Process), ..settings() },
        created_ms: 1_700_000_000_124,
    }
}

fn manifest(number: u64) -> Option<ManifestRef> {
    Some(ManifestRef { number, epoch: Epoch(4), writer: WRITER })
}

pub fn volume() -> VolumeRecord {
    let (hidden, held) = (TimelineState::Hidden { until_ms: 1_800_000_000_000 }, TimelineState::Held);
    VolumeRecord {
        version: 1,
        id: VOLUME,
        name: name("disk-1"),
        pool: name("default"),
        epoch: Epoch(4),
        writer: WRITER,
        shown: SHOWN,
        show_number: 6,
        template: true,
        settings: settings(),
        deleted: None,
        timelines: vec![
            TimelineRecord { id: SHOWN, state: TimelineState::Shown, manifest: manifest(12), parent: Some(HIDDEN) },
            TimelineRecord { id: HIDDEN, state: hidden, manifest: manifest(3), parent: Some(HELD) },
            TimelineRecord { id: HELD, state: held, manifest: None, parent: None },
        ],
        owner: None,
        mirror: None,
        forced: false,
        holder: None,
        ends: Vec::new(),
    }
}

fn deleted() -> VolumeRecord {
    let until_ms = 1_800_000_000_001;
    let timeline =
        TimelineRecord { id: SHOWN, state: TimelineState::Hidden { until_ms }, manifest: manifest(12), parent: None };
    VolumeRecord {
        template: false,
        settings: Overrides::default(),
        deleted: Some(Deleted { at_ms: 1_700_000_000_125, until_ms }),
        timelines: vec![timeline],
        ..volume()
    }
}

fn held() -> VolumeRecord {
    let session = SessionId::from_bytes(*b"session-id-v1-00");
    VolumeRecord {
        owner: Some(NodeId::from_bytes(*b"node-id-for-v1-0")),
        mirror: Some(MirrorRecord {
            node: NodeId::from_bytes(*b"node-id-for-v1-1"),
            incarnation: IncarnationId::from_bytes(*b"incarnation-v1-0"),
            timeline: SHOWN,
        }),
        holder: Some(HolderRecord { session, edge: "host-1".to_owned(), since_ms: 1_700_000_000_129 }),
        ends: vec![EpochEnd { timeline: SHOWN, epoch: Epoch(3), last: Sequence(41) }],
        ..volume()
    }
}

pub fn claim() -> NameRecord {
    NameRecord { version: 1, name: name("disk-1"), volume: VOLUME }
}

pub fn owner() -> TimelineOwner {
    TimelineOwner { version: 1, timeline: HELD, volume: VOLUME }
}

fn scrub() -> ScrubRecord {
    ScrubRecord {
        version: 1,
        journal: JournalId::from_bytes(*b"journal-id-v1-00"),
        passes: 3,
        ended_ms: 1_700_000_000_126,
        pass: Some(ScrubPass {
            begun_ms: 1_700_000_000_127,
            timeline: Some(HIDDEN),
            page: Some(17),
            object: Some(format!("{HIDDEN}/seg/0000000000000011.00-4-{WRITER}")),
            objects: 1000,
            bytes: 70_000_000_000,
        }),
        findings: vec![ScrubFinding {
            volume: VOLUME,
            name: name("disk-1"),
            object: format!("{SHOWN}/seg/0000000000000007.00-4-{WRITER}"),
            message: "the checksum of block 3 is wrong".to_owned(),
            found_ms: 1_700_000_000_128,
        }],
    }
}

const NODE: NodeId = NodeId::from_bytes(*b"node-id-for-v1-0");

fn node() -> NodeRecord {
    NodeRecord {
        version: 1,
        id: NODE,
        name: name("node-1"),
        edge: vec!["10.0.0.1:7421".to_owned(), "node-1.example:7421".to_owned()],
        api: Some("127.0.0.1:7420".to_owned()),
        mirror: Some("10.0.0.1:7422".to_owned()),
        rack: Some("r1".to_owned()),
        site: Some("s1".to_owned()),
        joined_ms: 1_700_000_000_130,
    }
}

fn node_name() -> NodeName {
    NodeName { version: 1, name: name("node-1"), node: NODE }
}

fn alive() -> AliveRecord {
    AliveRecord {
        version: 1,
        node: NODE,
        incarnation: IncarnationId::from_bytes(*b"incarnation-v1-1"),
        since_ms: 1_700_000_000_131,
        program: "0.1.0".to_owned(),
    }
}

fn node_token() -> NodeToken {
    NodeToken { version: 1, token: "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100".to_owned() }
}

fn edge_token() -> EdgeToken {
    EdgeToken { version: 1, token: "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff".to_owned() }
}

macro_rules! golden {
    ($file:literal, $value:ident) => {
        Golden {
            file: $file,
            key: $value().key(),
            encode: || $value().encode().unwrap(),
            read: |key, bytes| Record::decode(key, bytes).map(|found| $value() == found),
        }
    };
}

/// Every record that there is.
pub fn all() -> Vec<Golden> {
    vec![
        golden!("cluster", cluster),
        golden!("pool", pool),
        golden!("volume", volume),
        golden!("volume-deleted", deleted),
        golden!("volume-held", held),
        golden!("name", claim),
        golden!("timeline", owner),
        golden!("scrub", scrub),
        golden!("node", node),
        golden!("node-name", node_name),
        golden!("alive", alive),
        golden!("edge-token", edge_token),
        golden!("node-token", node_token),
    ]
}
