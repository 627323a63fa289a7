// SPDX-License-Identifier: Apache-2.0
//! What every form of coordination does alike, tried on those of this crate; and what only they do.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a test of real threads")]

mod cases;

use cases::{apply, count_up, kind, leased, next, with_every_case};
use std::time::Duration;
use varve_coord::{Change, Coord, Embedded, Event, Memory};
use varve_types::ErrorKind;

macro_rules! on_each_form {
    ($($case:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test]
            async fn $case() {
                super::cases::$case(&super::Memory::new()).await;
            })*
        }
        mod embedded {
            $(#[tokio::test]
            async fn $case() {
                let directory = tempfile::tempdir().unwrap();
                super::cases::$case(&super::Embedded::open(directory.path().join("coord")).unwrap()).await;
            })*
        }
    };
}

with_every_case!(on_each_form);

#[tokio::test]
async fn a_watch_that_fell_behind_says_so() {
    // The history of these forms is shorter than what the case writes.
    cases::a_watch_that_fell_behind_says_so(&Memory::new(), async || {}).await;
    let directory = tempfile::tempdir().unwrap();
    let embedded = Embedded::open(directory.path().join("coord")).unwrap();
    cases::a_watch_that_fell_behind_says_so(&embedded, async || {}).await;
}

#[tokio::test]
async fn a_watch_ends_with_its_store() {
    cases::a_watch_ends_with_its_store(Box::new(Memory::new())).await;
    let directory = tempfile::tempdir().unwrap();
    cases::a_watch_ends_with_its_store(Box::new(Embedded::open(directory.path().join("coord")).unwrap())).await;
}

/// Nothing waits between these forms and a watch: one that stood still is told at once that it fell behind.
#[tokio::test]
async fn a_watch_in_memory_is_behind_at_once() {
    let coord = Memory::new();
    let mut slow = coord.watch("k/", 0).await.unwrap();
    for _ in 0..40 {
        apply(&coord, (0..128).map(|n| Change::put(format!("k/{n}"), "x")).collect()).await;
    }
    assert_eq!(next(&mut slow).await, Event::Behind);
}

#[tokio::test]
async fn leases_in_memory_end_when_their_time_is_fed() {
    let coord = Memory::new();
    let seconds = Duration::from_secs;
    let (short, long) = (coord.lease(seconds(5)).await.unwrap(), coord.lease(seconds(8)).await.unwrap());
    apply(&coord, vec![leased("short", short), leased("long", long)]).await;
    coord.advance_to(seconds(4)).unwrap();
    coord.keep_alive(short).await.unwrap();
    let mut watch = coord.watch("", 0).await.unwrap();
    coord.advance_to(Duration::from_millis(7999)).unwrap();
    assert_eq!(coord.list("").await.unwrap().entries.len(), 2);
    coord.advance_to(seconds(1)).unwrap();
    coord.advance_to(seconds(100)).unwrap();
    for (key, revision) in [("long", 2), ("short", 3)] {
        assert_eq!(next(&mut watch).await, Event::Deleted { key: key.into(), revision }, "in order of their ends");
    }
    assert_eq!(kind(coord.keep_alive(short).await), ErrorKind::NotFound);
}

#[tokio::test]
async fn memory_meets_the_faults_that_were_injected() {
    use varve_coord::Fault::{AnswerLost, RequestLost, Unavailable};
    let coord = Memory::new();
    coord.inject(&[Unavailable, RequestLost, AnswerLost]).unwrap();
    let try_put = async |key: &str| coord.transact(vec![], vec![Change::put(key, "x")]).await;
    let error = try_put("a").await.unwrap_err();
    assert!(!error.is_unknown() && error.kind() == ErrorKind::Unavailable);
    assert!(try_put("b").await.unwrap_err().is_unknown());
    assert!(try_put("c").await.unwrap_err().is_unknown());
    try_put("d").await.unwrap();
    let keys = coord.list("").await.unwrap().entries.into_iter().map(|entry| entry.key).collect::<Vec<_>>();
    assert_eq!(keys, ["c", "d"]);
    coord.set_away(true);
    assert_eq!(kind(coord.get("c").await), ErrorKind::Unavailable);
    assert_eq!(kind(try_put("e").await), ErrorKind::Unavailable);
    coord.set_away(false);
    assert_eq!(coord.get("e").await.unwrap(), None);
}

#[test]
fn eight_threads_count_to_the_exact_sum() {
    count_up(&Memory::new(), 8, 500);
    let directory = tempfile::tempdir().unwrap();
    count_up(&Embedded::open(directory.path().join("coord")).unwrap(), 8, 20);
}
