// SPDX-License-Identifier: Apache-2.0
//! Records of tests, and the cases of records that run on every form of coordination.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

use std::time::Duration;
use varve_coord::{
    AliveRecord, Coord, CoordError, Deleted, EdgeToken, NodeRecord, PoolRecord, Record, Records, TimelineRecord,
    TimelineState, VolumeRecord,
};
use varve_types::{Epoch, ErrorKind, IncarnationId, Name, NodeId, Overrides, TimelineId, VolumeId, WriterId};

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub fn timeline(n: u8, state: TimelineState) -> TimelineRecord {
    TimelineRecord { id: TimelineId::from_bytes([n; 16]), state, manifest: None, parent: None }
}

pub fn volume(n: u8, text: &str) -> VolumeRecord {
    VolumeRecord {
        version: VolumeRecord::VERSION,
        id: VolumeId::from_bytes([n; 16]),
        name: name(text),
        pool: name("default"),
        epoch: Epoch(1),
        writer: WriterId(0xabc),
        shown: TimelineId::from_bytes([n; 16]),
        show_number: 1,
        template: false,
        settings: Overrides::default(),
        deleted: None,
        timelines: vec![timeline(n, TimelineState::Shown)],
        owner: None,
        mirror: None,
        forced: false,
        holder: None,
        ends: Vec::new(),
    }
}

pub fn pool(text: &str) -> PoolRecord {
    PoolRecord {
        version: PoolRecord::VERSION,
        name: name(text),
        store: "file:///srv/store".to_owned(),
        owner_number: 1,
        settings: Overrides::default(),
        created_ms: 5,
    }
}

/// Makes the pool `default`.
pub async fn begin(coord: &dyn Coord) {
    Records::new(coord).create_pool(&pool("default")).await.unwrap();
}

pub async fn keys(coord: &dyn Coord) -> Vec<String> {
    coord.list("").await.unwrap().entries.into_iter().map(|entry| entry.key).collect()
}

pub fn kind<T>(result: Result<T, CoordError>) -> ErrorKind {
    result.err().expect("it is refused").kind()
}

pub async fn names_and_timelines_follow_the_record(coord: &dyn Coord) {
    begin(coord).await;
    let records = Records::new(coord);
    let old = volume(1, "root");
    let revision = records.create_volume(&old, vec![]).await.unwrap();
    let (timeline_1, timeline_2) =
        (format!("timeline/{}", old.shown), format!("timeline/{}", TimelineId::from_bytes([2; 16])));
    let key = old.key();
    assert_eq!(keys(coord).await, ["name/root", "pool/default", &timeline_1, &key]);

    let mut renamed = old.clone();
    renamed.name = name("new");
    let revision = records.update_volume(&old, revision, &renamed, vec![]).await.unwrap();
    assert_eq!(keys(coord).await, ["name/new", "pool/default", &timeline_1, &key]);

    // A rollback: another timeline is shown, the first is hidden.
    let mut rolled = renamed.clone();
    rolled.timelines[0].state = TimelineState::Hidden { until_ms: 99 };
    rolled.timelines.push(timeline(2, TimelineState::Shown));
    (rolled.shown, rolled.show_number) = (TimelineId::from_bytes([2; 16]), 2);
    let revision = records.update_volume(&renamed, revision, &rolled, vec![]).await.unwrap();
    assert_eq!(keys(coord).await, ["name/new", "pool/default", &timeline_1, &timeline_2, &key]);

    // A deletion gives the name up, so that another can take it; then it can not be had back.
    let mut deleted = rolled.clone();
    deleted.deleted = Some(Deleted { at_ms: 1, until_ms: 2 });
    let revision = records.update_volume(&rolled, revision, &deleted, vec![]).await.unwrap();
    assert_eq!(kind(records.find_by_name(&name("new")).await), ErrorKind::NotFound);
    records.create_volume(&volume(3, "new"), vec![]).await.unwrap();
    let error = records.update_volume(&deleted, revision, &rolled, vec![]).await.unwrap_err();
    assert!(matches!(&error, CoordError::Exists(what) if what == "the volume new"), "{error}");

    let mut last = deleted.clone();
    last.timelines.remove(0);
    let revision = records.update_volume(&deleted, revision, &last, vec![]).await.unwrap();
    assert_eq!(kind(records.find_timeline(old.shown).await), ErrorKind::NotFound);
    records.remove_volume(&last, revision).await.unwrap();
    assert_eq!(records.list_volumes().await.unwrap().len(), 1);
    assert_eq!(kind(records.find_timeline(last.shown).await), ErrorKind::NotFound);
    assert_eq!(records.find_by_name(&name("new")).await.unwrap().0.id, VolumeId::from_bytes([3; 16]));
}

pub async fn the_second_writer_of_a_record_loses(coord: &dyn Coord) {
    begin(coord).await;
    let records = Records::new(coord);
    let old = volume(1, "root");
    let revision = records.create_volume(&old, vec![]).await.unwrap();
    let next = VolumeRecord { epoch: old.epoch.next(), ..old.clone() };
    records.update_volume(&old, revision, &next, vec![]).await.unwrap();
    let error = records.update_volume(&old, revision, &next, vec![]).await.unwrap_err();
    assert!(matches!(error, CoordError::Changed(_)) && error.kind() == ErrorKind::Conflict, "{error}");
    assert_eq!(kind(records.remove_volume(&old, revision).await), ErrorKind::Conflict);
    let (now, revision) = records.load_volume(old.id).await.unwrap();
    assert_eq!(
        kind(records.update_volume(&now, revision, &old, vec![]).await),
        ErrorKind::Internal,
        "back to an old epoch"
    );
    records.remove_volume(&now, revision).await.unwrap();
    assert_eq!(kind(records.update_volume(&now, revision, &now, vec![]).await), ErrorKind::NotFound);
    assert_eq!(kind(records.remove_volume(&now, revision).await), ErrorKind::NotFound);
}

fn node(n: u8, text: &str) -> NodeRecord {
    NodeRecord {
        version: NodeRecord::VERSION,
        id: NodeId::from_bytes([n; 16]),
        name: name(text),
        edge: vec![format!("10.0.0.{n}:7421")],
        api: None,
        mirror: None,
        rack: None,
        site: None,
        joined_ms: u64::from(n),
    }
}

pub async fn a_node_joins_once_and_has_its_name_for_itself(coord: &dyn Coord) {
    let records = Records::new(coord);
    records.join_node(&node(1, "a")).await.unwrap();
    let again = NodeRecord { joined_ms: 99, rack: Some("r".to_owned()), ..node(1, "a") };
    assert_eq!(records.join_node(&again).await.unwrap().joined_ms, 1, "it has joined before");
    assert_eq!(records.load_node(again.id).await.unwrap().0.rack.as_deref(), Some("r"));
    let error = records.join_node(&node(2, "a")).await.unwrap_err();
    assert!(matches!(&error, CoordError::Exists(what) if what.contains("node a")), "{error}");
    assert_eq!(keys(coord).await.len(), 2, "nothing of it is left");
    // A new name gives the old one up.
    records.join_node(&node(1, "b")).await.unwrap();
    records.join_node(&node(2, "a")).await.unwrap();
    assert_eq!(kind(records.join_node(&node(1, "a")).await), ErrorKind::Conflict);
    let names: Vec<_> = records.list_nodes().await.unwrap().into_iter().map(|(node, _)| node.name).collect();
    assert_eq!(names, [name("b"), name("a")]);
    let many = NodeRecord { edge: vec!["a:1".to_owned(); 17], ..node(3, "c") };
    assert_eq!(kind(records.join_node(&many).await), ErrorKind::Internal);
}

pub async fn a_node_is_removed_once_it_is_dead_and_owns_nothing(coord: &dyn Coord) {
    begin(coord).await;
    let records = Records::new(coord);
    let one = records.join_node(&node(1, "a")).await.unwrap();
    let owned = VolumeRecord { owner: Some(one.id), ..volume(1, "root") };
    let at = records.create_volume(&owned, vec![]).await.unwrap();
    let alive = AliveRecord {
        version: AliveRecord::VERSION,
        node: one.id,
        incarnation: IncarnationId::from_bytes([7; 16]),
        since_ms: 5,
        program: "0".to_owned(),
    };
    let lease = coord.lease(Duration::from_secs(60)).await.unwrap();
    records.announce(&alive, lease).await.unwrap();
    assert_eq!(records.list_alive().await.unwrap(), std::slice::from_ref(&alive));
    let (_, revision) = records.load_node(one.id).await.unwrap();
    let error = records.remove_node(&one, revision).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Conflict && error.to_string().contains("alive"), "{error}");
    coord.revoke(lease).await.unwrap();
    assert_eq!(records.alive(one.id).await.unwrap(), None);
    assert_eq!(kind(records.announce(&alive, lease).await), ErrorKind::NotFound, "the lease is over");
    let error = records.remove_node(&one, revision).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Conflict && error.to_string().contains("root"), "{error}");
    let moved = VolumeRecord { owner: None, ..owned.clone() };
    records.update_volume(&owned, at, &moved, vec![]).await.unwrap();
    assert_eq!(kind(records.remove_node(&one, revision + 1000).await), ErrorKind::Conflict, "another revision");
    records.remove_node(&one, revision).await.unwrap();
    assert_eq!(kind(records.load_node(one.id).await), ErrorKind::NotFound);
    assert_eq!(kind(records.remove_node(&one, revision).await), ErrorKind::NotFound);
    records.join_node(&node(2, "a")).await.expect("its name is free");
}

pub async fn edges_have_one_token(coord: &dyn Coord) {
    let records = Records::new(coord);
    let token = |text: &str| EdgeToken::new(text.to_owned());
    assert_eq!(records.token_or_create(token("a")).await.unwrap(), token("a"));
    assert_eq!(records.token_or_create(token("b")).await.unwrap(), token("a"));
    assert!(!format!("{:?}", token("secret")).contains("secret"));
}
