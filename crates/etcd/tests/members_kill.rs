// SPDX-License-Identifier: Apache-2.0
//! Three members, of which one after the other is killed or frozen in the middle of things.
//!
//! What always has to hold: what was answered is there, what was refused is not, what is unknown is either; reads are answered as long as two members
//! live; and a watch tells the whole history, each event once.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

mod common;

use common::{Runtime, client, config, next, put, wait_for};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::task::JoinHandle;
use varve_coord::{Coord, CoordError, Event, Watch};
use varve_etcd::Etcd;
use varve_lab::etcd::{Etcd as Lab, Options};

fn three() -> Lab {
    Lab::start_with(&Options { members: 3, ..Options::default() }).unwrap()
}

/// What came of the puts of a writer.
#[derive(Default)]
struct Written {
    /// Key and revision.
    done: BTreeMap<String, u64>,
    unknown: Vec<String>,
    refused: Vec<String>,
}

/// Puts one key after the other and reads each back until it is told to stop.
struct Writer {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    task: JoinHandle<Written>,
}

impl Writer {
    fn start(etcd: Arc<Etcd>, handle: &tokio::runtime::Handle) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&count));
        let task = handle.spawn(async move {
            let mut written = Written::default();
            while !stopped.load(Ordering::SeqCst) {
                let number = counted.load(Ordering::SeqCst);
                let key = format!("w/{number:06}");
                match put(&*etcd, &key, "x").await {
                    Ok(revision) => {
                        written.done.insert(key.clone(), revision);
                        let found =
                            etcd.get(&key).await.expect("a read is answered").expect("what was answered is there");
                        assert_eq!(found.revision, revision);
                    }
                    Err(CoordError::Unknown { .. }) => written.unknown.push(key),
                    Err(error) if error.kind() == varve_types::ErrorKind::Unavailable => written.refused.push(key),
                    Err(error) => panic!("{error}"),
                }
                counted.fetch_add(1, Ordering::SeqCst);
            }
            written
        });
        Self { stop, count, task }
    }

    /// Waits until so many more puts have come to something.
    async fn goes_on(&self, more: u64) {
        let goal = self.count.load(Ordering::SeqCst) + more;
        wait_for("the writer to go on", async || self.count.load(Ordering::SeqCst) >= goal || self.task.is_finished())
            .await;
    }

    async fn stop(self) -> Written {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.unwrap()
    }
}

/// Keys and revisions of the puts that a watch tells, up to the one of `last`.
async fn history(watch: &mut Watch, last: u64) -> Vec<(String, u64)> {
    let mut told = Vec::new();
    loop {
        match next(watch).await {
            Event::Put(entry) if entry.revision == last => return told,
            Event::Put(entry) => told.push((entry.key, entry.revision)),
            other => panic!("{other:?} was not to be told"),
        }
    }
}

/// Holds what was written against what is there.
async fn check(etcd: &Etcd, written: &Written) -> Vec<(String, u64)> {
    let entries = etcd.list("w/").await.unwrap().entries;
    let there: BTreeMap<String, u64> = entries.into_iter().map(|entry| (entry.key, entry.revision)).collect();
    for (key, revision) in &written.done {
        assert_eq!(there.get(key), Some(revision), "{key} was answered");
    }
    for key in &written.refused {
        assert_eq!(there.get(key), None, "{key} was refused");
    }
    for key in there.keys() {
        assert!(written.done.contains_key(key) || written.unknown.contains(key), "{key} came from nowhere");
    }
    let mut history: Vec<_> = there.into_iter().collect();
    history.sort_by_key(|(_, revision)| *revision);
    history
}

#[tokio::test]
async fn killed_and_frozen_members_lose_no_answer_and_no_event() {
    let (mut lab, runtime) = (three(), Runtime::start());
    // Requests of this one begin at the first member, those of the watcher at the last.
    let writer = Arc::new(client(&lab, runtime.handle()).await);
    let reversed: Vec<String> = lab.endpoints().into_iter().rev().collect();
    let mut of_watcher = config(&reversed);
    of_watcher.request_timeout = std::time::Duration::from_millis(700);
    let watcher = Etcd::open(&of_watcher, runtime.handle().clone()).await.unwrap();
    let mut watch = watcher.watch("w/", 0).await.unwrap();
    let writing = Writer::start(Arc::clone(&writer), runtime.handle());
    writing.goes_on(30).await;
    // The members that the two use, which may lead or not.
    for member in [0, 2] {
        lab.kill(member).unwrap();
        writing.goes_on(30).await;
        lab.start_again(member).unwrap();
        writing.goes_on(30).await;
    }
    // Whichever leads: nobody does for a while.
    let leader = lab.leader().unwrap();
    lab.kill(leader).unwrap();
    writing.goes_on(30).await;
    lab.start_again(leader).unwrap();
    // One that keeps its connections and says nothing.
    let leader = lab.leader().unwrap();
    lab.freeze(leader).unwrap();
    writing.goes_on(30).await;
    lab.thaw(leader).unwrap();
    writing.goes_on(10).await;
    let written = writing.stop().await;
    let last = put(&*writer, "w/last", "x").await.unwrap();
    let told = history(&mut watch, last).await;
    let mut expected =
        check(&watcher, &Written { unknown: [written.unknown.clone(), vec!["w/last".to_owned()]].concat(), ..written })
            .await;
    expected.retain(|(_, revision)| *revision != last);
    assert_eq!(told, expected);
}

#[tokio::test]
async fn a_minority_is_not_available_and_says_so_in_time() {
    let (mut lab, runtime) = (three(), Runtime::start());
    let mut config = config(&lab.endpoints());
    config.give_up_after = std::time::Duration::from_secs(1);
    let etcd = Etcd::open(&config, runtime.handle().clone()).await.unwrap();
    put(&etcd, "k", "1").await.unwrap();
    lab.kill(1).unwrap();
    lab.kill(2).unwrap();
    wait_for("the last member to know that it is alone", async || {
        lab.metric(0, "etcd_server_has_leader").unwrap() == 0.0
    })
    .await;
    let begun = std::time::Instant::now();
    let error = etcd.get("k").await.unwrap_err();
    assert_eq!(error.kind(), varve_types::ErrorKind::Unavailable, "{error}");
    // Known not to have been done, and so no doubt about it.
    let error = put(&etcd, "k", "2").await.unwrap_err();
    assert!(!error.is_unknown() && error.kind() == varve_types::ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("no leader"), "{error}");
    assert!(begun.elapsed() < 4 * config.give_up_after, "{:?}", begun.elapsed());
    lab.start_again(1).unwrap();
    assert_eq!(common::value(&etcd, "k").await.as_deref(), Some("1"));
    put(&etcd, "k", "3").await.unwrap();
}
