// SPDX-License-Identifier: Apache-2.0
//! What nodes say to their mirrors is heard as it was said, and what was damaged is told.

use super::*;
use varve_types::SnapshotId;

fn timeline() -> TimelineId {
    TimelineId::from_bytes([3; 16])
}

fn write(sequence: u64, blocks: &[u8]) -> Change {
    let data: Vec<u8> = blocks.iter().flat_map(|byte| [*byte; BLOCK as usize]).collect();
    let crcs = data.chunks(BLOCK as usize).map(crc).collect();
    let (epoch, flushed_through) = (Epoch(4), Sequence(sequence - 1));
    Change {
        epoch,
        sequence: Sequence(sequence),
        flushed_through,
        body: Body::Write { start: 7, crcs },
        data: data.into(),
    }
}

fn other(sequence: u64, body: Body) -> Change {
    Change { body, data: Bytes::new(), ..write(sequence, &[0]) }
}

fn all() -> Vec<Message> {
    let mark = Mark::Snapshot {
        sequence: Sequence(13),
        id: SnapshotId::from_bytes([1; 16]),
        name: "now".parse().unwrap(),
        created_ms: 5,
        size: 1 << 30,
        hidden: false,
    };
    let changes = vec![
        write(11, &[1, 2]),
        other(12, Body::Hole { start: 5, blocks: 1 << 40 }),
        other(13, Body::Mark(mark)),
        write(14, &[3]),
    ];
    vec![
        Message::Begin {
            volume: VolumeId::from_bytes([2; 16]),
            timeline: timeline(),
            epoch: Epoch(4),
            base: Sequence(10),
            medium: MirrorMedium::Disk,
        },
        Message::Deliver { timeline: timeline(), epoch: Epoch(4), previous: Sequence(10), changes: changes.clone() },
        Message::Release { timeline: timeline(), epoch: Epoch(4), through: Sequence(12), back: 9 << 20 },
        Message::Sync { timeline: timeline(), epoch: Epoch(4), through: Sequence(13) },
        Message::Fetch { timeline: timeline(), epoch: Epoch(5), named: IncarnationId::from_bytes([6; 16]) },
        Message::Lease { timeline: timeline(), epoch: Epoch(5) },
        Message::Begun { credits: 1 << 28, incarnation: IncarnationId::from_bytes([7; 16]) },
        Message::Taken { more: 8 << 20 },
        Message::Done,
        Message::Fetched { changes, more: true, whole: false },
        Message::Failed { kind: ErrorKind::Fenced, reason: "another owner".to_owned() },
    ]
}

fn bytes(message: &Message) -> Vec<u8> {
    let (head, data) = message.encode(77);
    [&head[..], &data.concat()[..]].concat()
}

fn read(bytes: &[u8]) -> Result<Message> {
    let header = Header::decode(bytes.first_chunk().unwrap())?;
    assert_eq!(header.id, 77);
    let rest = &bytes[HEADER_BYTES..];
    let (meta, data) = rest.split_at((header.meta as usize).min(rest.len()));
    header.message(meta, &Bytes::copy_from_slice(data))
}

#[test]
fn what_was_said_is_what_is_heard() {
    for message in all() {
        assert_eq!(read(&bytes(&message)), Ok(message));
    }
}

#[test]
fn what_was_damaged_is_told() {
    for message in all() {
        let whole = bytes(&message);
        // Every bit of header and meta, and one here and there of the data.
        let dense = whole.len().min(HEADER_BYTES + 200) * 8;
        for bit in (0..dense).chain((dense..whole.len() * 8).step_by(997)) {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let id_is_hit = (8..16).contains(&(bit / 8));
            assert!(id_is_hit || read(&damaged).is_err(), "{message:?}: bit {bit}");
        }
        if whole.len() > HEADER_BYTES {
            assert!(read(&whole[..whole.len() - 1]).is_err(), "{message:?}");
        }
    }
}

#[test]
fn data_belong_to_changes() {
    let deliver = |changes| Message::Deliver { timeline: timeline(), epoch: Epoch(4), previous: Sequence(10), changes };
    let mut more = write(11, &[1]);
    more.data = [&more.data[..], &[0; 4096][..]].concat().into();
    assert!(matches!(read(&bytes(&deliver(vec![more]))), Err(WireError::Senseless { .. })));
    let mut less = write(11, &[1, 2]);
    less.data = less.data.slice(..4096);
    assert!(matches!(read(&bytes(&deliver(vec![less]))), Err(WireError::Senseless { .. })));
}

#[test]
fn lengths_have_bounds() {
    let mut long = bytes(&Message::Done);
    long[16..20].copy_from_slice(&(MAX_META + 1).to_le_bytes());
    let sum = crc(&long[..44]);
    long[44..48].copy_from_slice(&sum.to_le_bytes());
    assert!(matches!(Header::decode(long.first_chunk().unwrap()), Err(WireError::TooLong { .. })));
}

#[test]
fn greetings_of_nodes_are_read_back() {
    let hello =
        MirrorHello { token: "t".into(), cluster: ClusterId::from_bytes([1; 16]), node: NodeId::from_bytes([2; 16]) };
    let body = |frame: Bytes| frame.slice(crate::greeting::HEADER_BYTES..);
    assert_eq!(MirrorHello::decode(&body(hello.encode())).unwrap(), hello);
    let node = NodeId::from_bytes([3; 16]);
    let welcome = MirrorWelcome { version: 1, node };
    assert_eq!(MirrorWelcome::decode(&body(welcome.encode())).unwrap(), welcome);
}
