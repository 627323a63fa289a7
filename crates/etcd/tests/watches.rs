// SPDX-License-Identifier: Apache-2.0
//! Watches on one member, directly and through a proxy: nothing is missed over a cut, and what can not be told any more is said.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

mod common;

use common::{Runtime, at, client, config, next, put, value, wait_for};
use varve_coord::{Change, Coord, Event, MAX_OPERATIONS, Watch};
use varve_etcd::{Etcd, EtcdTls};
use varve_lab::etcd::{Etcd as Lab, Options};
use varve_lab::tcp_proxy::{Mode, TcpProxy};

const WATCHERS: &str = "etcd_debugging_mvcc_watcher_total";

/// The key and revision of the next event, which is a put.
async fn told(watch: &mut Watch) -> (String, u64) {
    match next(watch).await {
        Event::Put(entry) => (entry.key, entry.revision),
        other => panic!("{other:?} is no put"),
    }
}

async fn compact(lab: &Lab, coord: &dyn Coord) -> u64 {
    let revision = coord.list("").await.unwrap().revision;
    lab.ctl(&["compaction", &revision.to_string()]).unwrap();
    revision
}

#[tokio::test]
async fn a_watch_that_is_dropped_ends_at_the_server() {
    let (lab, runtime) = (Lab::start().unwrap(), Runtime::start());
    let etcd = client(&lab, runtime.handle()).await;
    let watchers = || lab.metric(0, WATCHERS).unwrap();
    let mut watches = Vec::new();
    for _ in 0..3 {
        watches.push(etcd.watch("k", 0).await.unwrap());
    }
    wait_for("three watches at the server", async || watchers() == 3.0).await;
    watches.pop();
    wait_for("the dropped one to end", async || watchers() == 2.0).await;
    put(&etcd, "k", "1").await.unwrap();
    for watch in &mut watches {
        next(watch).await;
    }
    drop(etcd);
    wait_for("all to end with the client", async || watchers() == 0.0).await;
}

#[tokio::test]
async fn a_cut_connection_misses_and_repeats_nothing() {
    let (lab, runtime) = (Lab::start().unwrap(), Runtime::start());
    let direct = client(&lab, runtime.handle()).await;
    let proxy = TcpProxy::start(lab.port(0)).unwrap();
    let etcd = Etcd::open(&config(&[at(proxy.port())]), runtime.handle().clone()).await.unwrap();
    let mut watch = etcd.watch("k/", 0).await.unwrap();
    let changes = |n: usize| (0..5).map(|key| Change::put(format!("k/{key}"), n.to_string())).collect::<Vec<_>>();
    for round in 0..6 {
        let mut expected = Vec::new();
        for n in 0..10 {
            if n == round {
                proxy.cut();
            }
            direct.transact(Vec::new(), changes(n)).await.unwrap();
            let revision = direct.list("").await.unwrap().revision;
            expected.extend((0..5).map(|key| (format!("k/{key}"), revision)));
        }
        for expected in expected {
            assert_eq!(told(&mut watch).await, expected);
        }
    }
    assert!(proxy.connections() > 6, "each cut led to another connection");
}

#[tokio::test]
async fn a_watch_behind_a_compaction_says_so_and_one_beside_it_goes_on() {
    let lab = Lab::start_with(&Options {
        arguments: vec!["--experimental-watch-progress-notify-interval=100ms".to_owned()],
        ..Options::default()
    });
    let (lab, runtime) = (lab.unwrap(), Runtime::start());
    let direct = client(&lab, runtime.handle()).await;
    let proxy = TcpProxy::start(lab.port(0)).unwrap();
    let etcd = Etcd::open(&config(&[at(proxy.port())]), runtime.handle().clone()).await.unwrap();
    let mut busy = etcd.watch("busy/", 0).await.unwrap();
    let mut quiet = etcd.watch("quiet/", 0).await.unwrap();
    let first = put(&direct, "busy/k", "1").await.unwrap();
    assert_eq!(told(&mut busy).await, ("busy/k".to_owned(), first));
    // Both are told how far they are; then the way is closed, and one of them misses something for good.
    for _ in 0..20 {
        put(&direct, "other", "x").await.unwrap();
    }
    let sent =
        || lab.metric(0, "grpc_server_msg_sent_total{grpc_method=\"Watch\",grpc_service=\"etcdserverpb").unwrap();
    let before = sent();
    wait_for("word of the progress of both", async || sent() >= before + 6.0).await;
    proxy.set(Mode::Down);
    put(&direct, "busy/k", "2").await.unwrap();
    put(&direct, "busy/k", "3").await.unwrap();
    compact(&lab, &direct).await;
    put(&direct, "busy/k", "4").await.unwrap();
    proxy.set(Mode::Pass);
    assert_eq!(next(&mut busy).await, Event::Behind);
    assert_eq!(next(&mut busy).await, Event::Behind, "it has ended");
    // The compaction was of a moment that the quiet one had not reached by its own events.
    assert_eq!(next(&mut quiet).await, Event::Behind, "the two changes before the compaction could have been its");
    // Where it has word of everything up to the compaction, it goes on.
    let mut quiet = etcd.watch("quiet/", 0).await.unwrap();
    put(&direct, "other", "y").await.unwrap();
    let before = sent();
    wait_for("word of its progress", async || sent() >= before + 3.0).await;
    compact(&lab, &direct).await;
    proxy.cut();
    let last = put(&direct, "quiet/k", "1").await.unwrap();
    assert_eq!(told(&mut quiet).await, ("quiet/k".to_owned(), last));
}

/// Some versions of etcd leave out deletions of the very revision that they were compacted at.
#[tokio::test]
async fn a_deletion_at_the_compacted_revision_is_not_passed_over() {
    let (lab, runtime) = (Lab::start().unwrap(), Runtime::start());
    let etcd = client(&lab, runtime.handle()).await;
    put(&etcd, "k", "1").await.unwrap();
    etcd.transact(Vec::new(), vec![Change::Delete("k".to_owned())]).await.unwrap();
    let deleted = etcd.list("").await.unwrap().revision;
    put(&etcd, "k", "2").await.unwrap();
    lab.ctl(&["compaction", &deleted.to_string()]).unwrap();
    let mut watch = etcd.watch("k", deleted).await.unwrap();
    let told = next(&mut watch).await;
    assert!(
        matches!(&told, Event::Behind) || told == Event::Deleted { key: "k".into(), revision: deleted },
        "{told:?}"
    );
    let mut after = etcd.watch("k", deleted + 1).await.unwrap();
    assert!(matches!(next(&mut after).await, Event::Put(entry) if entry.value == b"2"));
}

/// More than etcd sends in one message, told from the past.
#[tokio::test]
async fn a_large_past_comes_in_parts_and_whole() {
    let (lab, runtime) = (Lab::start().unwrap(), Runtime::start());
    let etcd = client(&lab, runtime.handle()).await;
    let mut expected = Vec::new();
    let first = etcd.list("").await.unwrap().revision + 1;
    for n in 0..12 {
        let changes = (0..4).map(|key| Change::put(format!("k/{key}"), vec![n; 300_000])).collect();
        etcd.transact(Vec::new(), changes).await.unwrap();
        let changes = (0..MAX_OPERATIONS).map(|key| Change::put(format!("s/{key}"), "x")).collect();
        etcd.transact(Vec::new(), changes).await.unwrap();
        expected.extend((0..4).map(|key| (format!("k/{key}"), first + 2 * u64::from(n))));
    }
    let mut watch = etcd.watch("k/", first).await.unwrap();
    for expected in expected {
        assert_eq!(told(&mut watch).await, expected);
    }
}

/// As many watches as there may be, all but one of which nobody reads, with more to tell than fits on the way.
#[tokio::test]
async fn watches_that_stand_still_hold_up_nobody() {
    // etcd has one server of HTTP/2 without TLS and another one with it.
    for tls in [false, true] {
        stand_still(tls).await;
    }
}

async fn stand_still(tls: bool) {
    let (lab, runtime) = (Lab::start_with(&Options { tls, ..Options::default() }).unwrap(), Runtime::start());
    let mut config = config(&lab.endpoints());
    config.tls = lab.certificates().ok().map(|files| EtcdTls { ca: Some(files.ca()), ..EtcdTls::default() });
    // A watch that was held up would otherwise help itself with another connection.
    config.request_timeout = 4 * common::DEADLINE;
    let etcd = Etcd::open(&config, runtime.handle().clone()).await.unwrap();
    let mut still = Vec::new();
    for _ in 0..199 {
        still.push(etcd.watch("k", 0).await.unwrap());
    }
    let mut read = etcd.watch("k", 0).await.unwrap();
    let error = etcd.watch("k", 0).await.unwrap_err();
    assert_eq!(error.kind(), varve_types::ErrorKind::Busy, "{error}");
    let value_of = |n: usize| n.to_string().repeat(100_000);
    let mut revisions = Vec::new();
    for n in 0..5 {
        revisions.push(put(&etcd, "k", &value_of(n)).await.unwrap());
        assert_eq!(told(&mut read).await.1, revisions[n]);
        assert_eq!(value(&etcd, "k").await.unwrap(), value_of(n));
    }
    // They were not cut off either.
    for watch in still.iter_mut().step_by(50) {
        for revision in &revisions {
            assert_eq!(told(watch).await.1, *revision);
        }
    }
    still.pop();
    wait_for("room for another watch", async || etcd.watch("k", 0).await.is_ok()).await;
}
