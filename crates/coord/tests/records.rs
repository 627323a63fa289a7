// SPDX-License-Identifier: Apache-2.0
//! The typed records: their stored form, the keys that go with a volume, lost races, and what is refused.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

#[path = "cases/facts.rs"]
#[allow(dead_code, reason = "each test takes what it needs")]
mod facts;

use facts::{begin, keys, kind, name, pool, timeline, volume};
use std::sync::atomic::{AtomicU32, Ordering};
use varve_coord::{
    Change, Check, ClusterRecord, Coord, CoordError, Deleted, Fault, ManifestRef, Memory, Record, Records,
    TimelineRecord, TimelineState, VolumeRecord,
};
use varve_types::{ClusterId, Epoch, ErrorKind, TimelineId, WriterId};

/// A coordination with the pool `default`.
async fn begun() -> Memory {
    let coord = Memory::new();
    begin(&coord).await;
    coord
}

#[test]
fn the_stored_form_is_fixed() {
    let mut record = volume(1, "root");
    record.settings.set("segment-size", "8M").unwrap();
    record.deleted = Some(Deleted { at_ms: 7, until_ms: 9 });
    record.timelines[0].state = TimelineState::Hidden { until_ms: 9 };
    record.timelines[0].manifest = Some(ManifestRef { number: 3, epoch: Epoch(1), writer: WriterId(0xabc) });
    record.timelines.push(TimelineRecord { parent: Some(record.shown), ..timeline(2, TimelineState::Held) });
    let one = "01010101-0101-0101-0101-010101010101";
    let two = one.replace('1', "2");
    let text = format!(
        "{{\"version\":1,\"id\":\"{one}\",\"name\":\"root\",\"pool\":\"default\",\"epoch\":1,\"writer\":\"0000000000000abc\",\
         \"shown\":\"{one}\",\"show_number\":1,\"template\":false,\"settings\":{{\"segment-size\":8388608}},\
         \"deleted\":{{\"at_ms\":7,\"until_ms\":9}},\"timelines\":[{{\"id\":\"{one}\",\"state\":\"hidden\",\"until_ms\":9,\
         \"manifest\":{{\"number\":3,\"epoch\":1,\"writer\":\"0000000000000abc\"}},\"parent\":null}},\
         {{\"id\":\"{two}\",\"state\":\"held\",\"manifest\":null,\"parent\":\"{one}\"}}]}}"
    );
    assert_eq!(String::from_utf8(record.encode().unwrap()).unwrap(), text);
    assert_eq!(VolumeRecord::decode(&format!("volume/{one}"), text.as_bytes()).unwrap(), record);
    let more = text.replacen("{\"version\":1,", "{\"version\":1,\"later\":[1],", 1);
    assert_eq!(VolumeRecord::decode(&record.key(), more.as_bytes()).unwrap(), record, "unknown fields are passed over");
}

#[test]
fn what_can_not_be_read_is_refused_by_name() {
    let record = volume(1, "root");
    let text = String::from_utf8(record.encode().unwrap()).unwrap();
    let key = record.key();
    for version in ["0", "2", "4000000000000"] {
        let newer =
            text.replacen("\"version\":1", &format!("\"version\":{version}"), 1).replace("\"epoch\"", "\"other\"");
        let error = VolumeRecord::decode(&key, newer.as_bytes()).unwrap_err();
        assert!(matches!(error, CoordError::Version { known: 1, .. }) && error.to_string().contains(&key), "{error}");
    }
    let hidden = text.replace("\"state\":\"shown\"", "\"state\":\"held\"");
    let elsewhere = text.replacen("\"shown\":\"01", "\"shown\":\"11", 1);
    for bad in ["", "{}", "[]", "null", "\"x\"", "{\"version\":1}", &text[..text.len() - 1], &hidden, &elsewhere] {
        let error = VolumeRecord::decode(&key, bad.as_bytes()).unwrap_err();
        assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains(&key), "{bad}: {error}");
    }
    assert_eq!(kind(VolumeRecord::decode(&volume(2, "root").key(), text.as_bytes())), ErrorKind::Corrupt, "wrong key");
    let mut twice = volume(1, "root");
    twice.timelines.push(timeline(1, TimelineState::Held));
    assert_eq!(kind(twice.encode()), ErrorKind::Internal);
    let mut large = volume(1, "root");
    large.timelines.extend((0..20_000_u128).map(|n| TimelineRecord {
        id: TimelineId::from_bytes((n << 64).to_le_bytes()),
        ..timeline(0, TimelineState::Held)
    }));
    assert_eq!(kind(large.encode()), ErrorKind::Invalid);
}

#[tokio::test]
async fn the_cluster_is_made_once() {
    let coord = Memory::new();
    let records = Records::new(&coord);
    assert_eq!(records.cluster().await.unwrap(), None);
    let fresh = |n: u8| ClusterRecord::new(ClusterId::from_bytes([n; 16]), u64::from(n));
    assert_eq!(records.cluster_or_create(fresh(1)).await.unwrap(), fresh(1));
    assert_eq!(records.cluster_or_create(fresh(2)).await.unwrap(), fresh(1));
}

#[tokio::test]
async fn pools_are_made_changed_and_removed() {
    let coord = begun().await;
    let records = Records::new(&coord);
    assert_eq!(kind(records.create_pool(&pool("default")).await), ErrorKind::Conflict);
    records.create_pool(&pool("a")).await.unwrap();
    let names = records.list_pools().await.unwrap().into_iter().map(|(pool, _)| pool.name).collect::<Vec<_>>();
    assert_eq!(names, [name("a"), name("default")]);
    let (mut record, revision) = records.load_pool(&name("a")).await.unwrap();
    record.settings.set("ack", "ram").unwrap();
    let changed = records.update_pool(revision, &record).await.unwrap();
    assert_eq!(records.load_pool(&name("a")).await.unwrap(), (record.clone(), changed));
    assert_eq!(kind(records.update_pool(revision, &record).await), ErrorKind::Conflict);
    assert_eq!(kind(records.remove_pool(&name("a"), revision).await), ErrorKind::Conflict);
    records.remove_pool(&name("a"), changed).await.unwrap();
    for missing in [kind(records.remove_pool(&name("a"), changed).await), kind(records.load_pool(&name("a")).await)] {
        assert_eq!(missing, ErrorKind::NotFound);
    }
}

#[tokio::test]
async fn a_pool_with_volumes_stays() {
    let coord = begun().await;
    let records = Records::new(&coord);
    let (_, before) = records.load_pool(&name("default")).await.unwrap();
    let record = volume(1, "root");
    let revision = records.create_volume(&record, vec![]).await.unwrap();
    assert_eq!(kind(records.remove_pool(&name("default"), before).await), ErrorKind::Conflict);
    records.remove_volume(&record, revision).await.unwrap();
    assert_eq!(keys(&coord).await, ["pool/default"]);
    // Somebody who found the pool empty before the volume was made would hold the old revision.
    assert_eq!(kind(records.remove_pool(&name("default"), before).await), ErrorKind::Conflict);
    let (_, now) = records.load_pool(&name("default")).await.unwrap();
    records.remove_pool(&name("default"), now).await.unwrap();
    assert_eq!(kind(records.create_volume(&record, vec![]).await), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_volume_is_found_by_id_name_and_timeline() {
    let coord = begun().await;
    let records = Records::new(&coord);
    let record = volume(1, "root");
    let revision = records.create_volume(&record, vec![]).await.unwrap();
    assert_eq!(records.load_volume(record.id).await.unwrap(), (record.clone(), revision));
    assert_eq!(records.find_by_name(&name("root")).await.unwrap(), (record.clone(), revision));
    assert_eq!(records.find_timeline(record.shown).await.unwrap(), record.id);
    let other = volume(2, "other");
    assert_eq!(kind(records.load_volume(other.id).await), ErrorKind::NotFound);
    assert_eq!(kind(records.find_by_name(&other.name).await), ErrorKind::NotFound);
    assert_eq!(kind(records.find_timeline(other.shown).await), ErrorKind::NotFound);
    records.create_volume(&other, vec![Check::Revision(record.key(), revision)]).await.unwrap();
    assert_eq!(records.list_volumes().await.unwrap().len(), 2);
}

#[tokio::test]
async fn what_is_taken_is_refused_and_nothing_is_left() {
    let coord = begun().await;
    let records = Records::new(&coord);
    let revision = records.create_volume(&volume(1, "root"), vec![]).await.unwrap();
    let before = coord.list("").await.unwrap();
    let mut same_timeline = volume(2, "other");
    (same_timeline.shown, same_timeline.timelines) = (volume(1, "x").shown, volume(1, "x").timelines);
    for (record, named) in
        [(volume(2, "root"), "volume root"), (volume(1, "other"), "volume 0101"), (same_timeline, "timeline 0101")]
    {
        let error = records.create_volume(&record, vec![]).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Conflict && error.to_string().contains(named), "{error}");
    }
    let stale = vec![Check::Revision(volume(1, "root").key(), revision + 1)];
    assert_eq!(kind(records.create_volume(&volume(3, "third"), stale).await), ErrorKind::Conflict);
    assert_eq!(coord.list("").await.unwrap(), before);
}

#[tokio::test]
async fn modify_tries_again_on_a_lost_race_and_only_then() {
    let coord = begun().await;
    let records = Records::new(&coord);
    let record = volume(1, "root");
    records.create_volume(&record, vec![]).await.unwrap();
    let tries = AtomicU32::new(0);
    // Somebody else is faster twice: the record is put anew, as it is, between the read and the write.
    let forestall = || {
        let found = futures_util::FutureExt::now_or_never(coord.get("volume/01010101-0101-0101-0101-010101010101"));
        let value = found.unwrap().unwrap().unwrap().value;
        let again = coord.transact(vec![], vec![Change::put(record.key(), value)]);
        futures_util::FutureExt::now_or_never(again).unwrap().unwrap();
    };
    let (new, revision, given) = records
        .modify_volume(record.id, |volume| {
            let n = tries.fetch_add(1, Ordering::SeqCst);
            if n < 2 {
                forestall();
            }
            volume.epoch = volume.epoch.next();
            Ok::<_, CoordError>(n)
        })
        .await
        .unwrap();
    assert_eq!((given, new.epoch), (2, Epoch(2)));
    assert_eq!(records.load_volume(record.id).await.unwrap(), (new, revision));

    tries.store(0, Ordering::SeqCst);
    let always = records.modify_volume(record.id, |volume| {
        tries.fetch_add(1, Ordering::SeqCst);
        forestall();
        volume.show_number += 1;
        Ok::<_, CoordError>(())
    });
    assert_eq!(kind(always.await), ErrorKind::Busy);
    assert!(tries.load(Ordering::SeqCst) < 100, "the tries are bounded");

    tries.store(0, Ordering::SeqCst);
    let refused = records.modify_volume(record.id, |_| {
        tries.fetch_add(1, Ordering::SeqCst);
        Err::<(), _>(CoordError::Invalid("no".to_owned()))
    });
    assert_eq!((kind(refused.await), tries.load(Ordering::SeqCst)), (ErrorKind::Invalid, 1));

    coord.inject(&[Fault::AnswerLost]).unwrap();
    let unknown = records.modify_volume(record.id, |volume| {
        tries.fetch_add(1, Ordering::SeqCst);
        volume.template = true;
        Ok::<_, CoordError>(())
    });
    assert!(unknown.await.unwrap_err().is_unknown());
    assert_eq!(tries.load(Ordering::SeqCst), 2, "what may have been done is not done again");
    assert!(records.load_volume(record.id).await.unwrap().0.template);
    let before = coord.list("").await.unwrap().revision;
    records.modify_volume(record.id, |_| Ok::<_, CoordError>(())).await.unwrap();
    assert_eq!(coord.list("").await.unwrap().revision, before, "nothing changed, nothing written");
}
