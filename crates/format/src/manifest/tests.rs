// SPDX-License-Identifier: Apache-2.0
//! A manifest with something in every field comes back; damaged ones are refused.

use super::*;

fn full() -> Manifest {
    let timeline = TimelineId::from_bytes([2; 16]);
    let (epoch, writer) = (Epoch(4), WriterId(77));
    let node = NodePointer::new(Lineage(1), RootNumber(3), 9);
    let mut m = Manifest::new(VolumeId::from_bytes([1; 16]), timeline, "disk".parse().unwrap(), epoch, writer);
    let cut = Cut { epoch: Epoch(2), writer: WriterId(5), first: Ordinal(0), end: Ordinal(7), last: Sequence(99) };
    m.number = 12;
    m.settings.set("compression", "zstd").unwrap();
    m.settings.set("seal-age", "5s").unwrap();
    m.state = TimelineState::Hidden { until_ms: 5 };
    m.ancestors.insert(0, Ancestor { lineage: Lineage(0), timeline: TimelineId::from_bytes([3; 16]) });
    m.ancestors[1].lineage = Lineage(1);
    m.own = Lineage(1);
    m.birth = Some(Birth {
        origin: TimelineId::from_bytes([3; 16]),
        boundary: Ordinal(9),
        base_number: RootNumber(1),
        base_root: node,
        base_boundary: Ordinal(4),
    });
    m.inherited = vec![cut];
    m.cuts = vec![cut];
    m.size = 1 << 40;
    m.root = node;
    m.snapshots = vec![SnapshotEntry {
        id: SnapshotId::from_bytes([6; 16]),
        name: "s".parse().unwrap(),
        created_ms: 1,
        boundary: Ordinal(3),
        sequence: Sequence(44),
        size: 512,
        root: Some((RootNumber(2), node)),
        hidden: true,
    }];
    m.holds = vec![Hold {
        clone: TimelineId::from_bytes([8; 16]),
        volume: VolumeId::from_bytes([7; 16]),
        boundary: Ordinal(3),
        base_number: RootNumber(2),
        base_root: node,
        base_boundary: Ordinal(3),
        epoch,
    }];
    m.tables = vec![TableObject { number: 11, epoch, writer, bytes: 10 }];
    m.table = vec![PageRef { page: 0, object: 11, index: 0 }, PageRef { page: 1024, object: 11, index: 1 }];
    m.kills =
        vec![RunRef { object: 11, index: 2, first_birth: Ordinal(1), last_death: Ordinal(9), count: 3, window: false }];
    m.node_kills = vec![NodeRunRef { object: 11, index: 3, count: 5, waits: NodeWait::Passing }];
    m.maps = vec![MapObject { root: RootNumber(3), part: 0, epoch, writer, records: 10, live: 4, bytes: 999 }];
    let name = ObjectName { timeline, kind: ObjectKind::Segment, number: 4, part: 0, epoch, writer };
    m.dead = vec![DeadObject { name, since: 11 }];
    m.reclaim = vec![Reclaim { node, level: 2, first_block: 0, death: Ordinal(5), death_root: RootNumber(4) }];
    m
}

/// One that keeps something of the past.
fn rewinding() -> Manifest {
    let mut m = full();
    let node = NodePointer::new(Lineage(1), RootNumber(3), 9);
    m.boundary = Ordinal(20);
    let root = |boundary, number, root| RewindRoot { boundary, number, root, size: 1 << 30, written_ms: 7 };
    m.rewind = Rewind {
        from: Ordinal(12),
        roots: vec![root(Ordinal(10), RootNumber(0), NodePointer::absent()), root(Ordinal(15), RootNumber(3), node)],
    };
    m.kills.push(RunRef { window: true, index: 7, ..m.kills[0] });
    m.node_kills.push(NodeRunRef { waits: NodeWait::Window { last_death: RootNumber(3) }, ..m.node_kills[0] });
    m.node_kills.push(NodeRunRef { waits: NodeWait::Kept, ..m.node_kills[0] });
    m
}

#[test]
fn what_waits_for_the_rewind_window_comes_back_and_has_to_make_sense() {
    let m = rewinding();
    assert_eq!(Manifest::decode(&m.encode()).unwrap(), m);
    let late = |m: &Manifest| Manifest::decode(&m.encode()).unwrap_err().to_string();
    let behind = Manifest { rewind: Rewind { from: Ordinal(21), ..m.rewind.clone() }, ..m.clone() };
    assert!(late(&behind).contains("rewind window"), "it begins behind the boundary");
    let before = Manifest { rewind: Rewind { from: Ordinal(9), ..m.rewind.clone() }, ..m.clone() };
    assert!(late(&before).contains("rewind window"), "it begins before its first root");
    let mut order = m.clone();
    order.rewind.roots.reverse();
    assert!(late(&order).contains("out of order"));
}

#[test]
fn every_field_comes_back() {
    for bundles in [false, true] {
        let manifest = Manifest { bundles, ..full() };
        assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
    }
}

#[test]
fn any_flipped_bit_and_any_cut_is_seen() {
    for bundles in [false, true] {
        let bytes = Manifest { bundles, ..full() }.encode();
        for bit in 0..bytes.len() * 8 {
            let mut copy = bytes.clone();
            copy[bit / 8] ^= 1 << (bit % 8);
            assert!(Manifest::decode(&copy).is_err(), "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert!(Manifest::decode(&bytes[..cut]).is_err());
        }
    }
}

#[test]
fn a_feature_that_is_not_known_is_refused_by_name() {
    let mut bytes = Manifest { bundles: true, ..full() }.encode();
    assert_eq!(bytes[16], 1, "what it needs");
    bytes[16] = 5;
    bytes[12..16].fill(0);
    let sum = crc(&bytes);
    bytes[12..16].copy_from_slice(&sum.to_le_bytes());
    let error = Manifest::decode(&bytes).unwrap_err();
    assert!(error.kind() == varve_types::ErrorKind::Invalid && error.to_string().contains("(0x4)"), "{error}");
}

#[test]
fn a_newer_version_is_refused_by_name() {
    let mut bytes = full().encode();
    bytes[8] = 9;
    let error = Manifest::decode(&bytes).unwrap_err();
    assert_eq!(error.kind(), varve_types::ErrorKind::Corrupt, "nothing but its number says that it is newer: {error}");
    bytes[20] ^= 1;
    let error = Manifest::decode(&bytes).unwrap_err();
    assert!(error.kind() == varve_types::ErrorKind::Invalid && error.to_string().contains("version 9;"), "{error}");
}

#[test]
fn a_subtree_to_be_worked_off_is_of_its_own_map_and_in_its_place() {
    let good = full();
    let own = good.reclaim[0].node;
    let other = NodePointer::new(Lineage(0), own.root(), own.index());
    for (node, level, first_block, fine) in [
        (own, 3, 0, true),
        (own, 0, 512, true),
        (own, 1, 1 << 18, true),
        (own, 4, 0, false),
        (own, 0, 511, false),
        (own, 1, 512, false),
        (other, 1, 0, false),
        (NodePointer::absent(), 1, 0, false),
    ] {
        let mut manifest = good.clone();
        manifest.reclaim[0] = Reclaim { node, level, first_block, ..good.reclaim[0] };
        assert_eq!(Manifest::decode(&manifest.encode()).is_ok(), fine, "{node:?}, {level}, {first_block}");
    }
}
