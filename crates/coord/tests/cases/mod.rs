// SPDX-License-Identifier: Apache-2.0
//! What every form of coordination does alike, as functions of a `dyn Coord` that is empty when a case begins.
//!
//! `with_every_case!` names them once; the tests of this crate run each on the embedded form and the one in memory, those of the crate for etcd on a real
//! etcd, which several cases share under prefixes of their own. So nothing here counts on a revision but relative to one that was read.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a test of real threads")]

#[allow(dead_code, reason = "each test takes what it needs")]
pub mod facts;

use std::time::Duration;
use tokio::time::timeout;
use varve_coord::{
    Change, Check, Coord, CoordError, Entry, Event, LeaseId, MAX_KEY_BYTES, MAX_OPERATIONS, MAX_VALUE_BYTES, Outcome,
    Watch,
};
use varve_types::ErrorKind;

pub const DEADLINE: Duration = Duration::from_secs(30);

/// Hands the names of all cases to a macro.
macro_rules! with_every_case {
    ($then:ident) => {
        $then!(
            puts_are_read_back_with_growing_revisions,
            checks_decide_all_or_nothing,
            checks_alone_are_answered,
            a_transaction_without_effect_keeps_the_revision,
            listings_are_sorted_and_of_the_prefix_alone,
            bounds_are_refused_by_name,
            a_watch_tells_changes_in_order,
            a_watch_begins_where_it_is_told,
            a_watch_waits_for_the_future,
            a_listing_and_a_watch_after_it_miss_nothing,
            a_revoked_lease_takes_its_keys,
            a_put_without_the_lease_frees_the_key,
            leases_that_are_not_there_are_not_found,
            names_and_timelines_follow_the_record,
            the_second_writer_of_a_record_loses,
            a_node_joins_once_and_has_its_name_for_itself,
            a_node_is_removed_once_it_is_dead_and_owns_nothing,
            edges_have_one_token,
        );
    };
}
pub use facts::{
    a_node_is_removed_once_it_is_dead_and_owns_nothing, a_node_joins_once_and_has_its_name_for_itself,
    edges_have_one_token, names_and_timelines_follow_the_record, the_second_writer_of_a_record_loses,
};
pub(crate) use with_every_case;

pub async fn apply(coord: &dyn Coord, changes: Vec<Change>) -> u64 {
    match coord.transact(Vec::new(), changes).await.unwrap() {
        Outcome::Applied { revision } => revision,
        Outcome::Refused => panic!("refused without a check"),
    }
}

pub async fn put(coord: &dyn Coord, key: &str, value: &str) -> u64 {
    apply(coord, vec![Change::put(key, value)]).await
}

pub async fn next(watch: &mut Watch) -> Event {
    timeout(DEADLINE, watch.next()).await.expect("the watch tells something in time").unwrap()
}

pub fn entry(key: &str, value: &str, revision: u64) -> Entry {
    Entry { key: key.to_owned(), value: value.into(), revision }
}

pub fn kind<T: std::fmt::Debug>(result: Result<T, CoordError>) -> ErrorKind {
    result.unwrap_err().kind()
}

pub async fn puts_are_read_back_with_growing_revisions(coord: &dyn Coord) {
    assert_eq!(coord.get("a").await.unwrap(), None);
    let first = put(coord, "a", "1").await;
    let second = put(coord, "b", "2").await;
    assert_eq!(second, first + 1);
    assert_eq!(coord.get("a").await.unwrap(), Some(entry("a", "1", first)));
    let third = put(coord, "a", "").await;
    assert_eq!(coord.get("a").await.unwrap(), Some(entry("a", "", third)));
    assert_eq!(coord.get("b").await.unwrap(), Some(entry("b", "2", second)));
    let gone = apply(coord, vec![Change::Delete("a".to_owned())]).await;
    assert_eq!(gone, third + 1);
    assert_eq!(coord.get("a").await.unwrap(), None);
}

pub async fn checks_decide_all_or_nothing(coord: &dyn Coord) {
    let revision = put(coord, "a", "1").await;
    let good = [Check::Revision("a".into(), revision), Check::Exists("a".into()), Check::Absent("b".into())];
    let bad = [
        Check::Revision("a".into(), revision + 1),
        Check::Revision("b".into(), revision),
        Check::Exists("b".into()),
        Check::Absent("a".into()),
    ];
    let changes = || vec![Change::put("a", "2"), Change::put("b", "2"), Change::put("c", "2")];
    for wrong in bad {
        let mut checks = good.to_vec();
        checks.push(wrong.clone());
        assert_eq!(coord.transact(checks, changes()).await.unwrap(), Outcome::Refused, "{wrong:?}");
        assert_eq!(coord.list("").await.unwrap().entries, [entry("a", "1", revision)], "{wrong:?}");
    }
    let outcome = coord.transact(good.to_vec(), changes()).await.unwrap();
    assert_eq!(outcome, Outcome::Applied { revision: revision + 1 });
    let listing = coord.list("").await.unwrap();
    assert_eq!(listing.entries, ["a", "b", "c"].map(|key| entry(key, "2", revision + 1)));
    assert_eq!(coord.transact(good.to_vec(), changes()).await.unwrap(), Outcome::Refused);
}

pub async fn checks_alone_are_answered(coord: &dyn Coord) {
    let revision = put(coord, "a", "1").await;
    let ask = async |check: Check| coord.transact(vec![check], Vec::new()).await.unwrap();
    for holds in [Check::Revision("a".into(), revision), Check::Exists("a".into()), Check::Absent("b".into())] {
        assert_eq!(ask(holds).await, Outcome::Applied { revision });
    }
    for fails in [Check::Revision("a".into(), u64::MAX), Check::Exists("b".into()), Check::Absent("a".into())] {
        assert_eq!(ask(fails).await, Outcome::Refused);
    }
}

pub async fn a_transaction_without_effect_keeps_the_revision(coord: &dyn Coord) {
    let revision = put(coord, "a", "1").await;
    assert_eq!(apply(coord, Vec::new()).await, revision);
    assert_eq!(apply(coord, vec![Change::Delete("b".into())]).await, revision);
    assert_eq!(coord.list("").await.unwrap().revision, revision);
    assert_eq!(put(coord, "a", "1").await, revision + 1, "the same value again is a change");
}

pub async fn listings_are_sorted_and_of_the_prefix_alone(coord: &dyn Coord) {
    let keys = ["v/b", "v", "v/a/x", "v/", "v0", "v/a", "u/z", "~", "v/~"];
    let mut last = 0;
    for key in keys {
        last = put(coord, key, key).await;
    }
    let names = |listing: varve_coord::Listing| listing.entries.into_iter().map(|entry| entry.key).collect::<Vec<_>>();
    assert_eq!(names(coord.list("v/").await.unwrap()), ["v/", "v/a", "v/a/x", "v/b", "v/~"]);
    let mut sorted = keys;
    sorted.sort_unstable();
    assert_eq!(names(coord.list("").await.unwrap()), sorted);
    let none = coord.list("w").await.unwrap();
    assert_eq!((none.entries.len(), none.revision), (0, last));
}

pub async fn bounds_are_refused_by_name(coord: &dyn Coord) {
    let before = coord.list("").await.unwrap().revision;
    let long = "k".repeat(MAX_KEY_BYTES + 1);
    for key in ["", "a b", "ä", "a\n", "a\0", long.as_str()] {
        assert_eq!(kind(coord.get(key).await), ErrorKind::Invalid, "{key:?}");
        assert_eq!(kind(coord.transact(vec![], vec![Change::put(key, "x")]).await), ErrorKind::Invalid, "{key:?}");
        assert_eq!(kind(coord.transact(vec![Check::Absent(key.into())], vec![]).await), ErrorKind::Invalid, "{key:?}");
    }
    assert_eq!(kind(coord.list(" ").await), ErrorKind::Invalid);
    assert_eq!(kind(coord.watch(&long, 0).await), ErrorKind::Invalid);
    let numbered = |n: usize| (0..n).map(|n| Change::put(format!("k{n}"), "x")).collect::<Vec<_>>();
    let refused: [(Vec<Check>, Vec<Change>, &str); 6] = [
        (vec![], vec![Change::put("big", vec![0; MAX_VALUE_BYTES + 1])], "big"),
        (vec![], ["one", "two"].map(|key| Change::put(key, vec![0; MAX_VALUE_BYTES])).into(), "bytes"),
        (vec![], numbered(MAX_OPERATIONS + 1), "128"),
        (vec![Check::Absent("a".into()); MAX_OPERATIONS + 1], vec![], "128"),
        (vec![], vec![Change::put("twice", "x"), Change::Delete("twice".into())], "twice"),
        (vec![Check::Revision("zero".into(), 0)], vec![], "zero"),
    ];
    for (checks, changes, named) in refused {
        let error = coord.transact(checks, changes).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(named), "{error} names {named}");
    }
    for ttl in [Duration::ZERO, Duration::from_millis(999), Duration::from_secs(24 * 3600 + 1)] {
        assert_eq!(kind(coord.lease(ttl).await), ErrorKind::Invalid, "{ttl:?}");
    }
    assert_eq!(coord.list("").await.unwrap().revision, before, "nothing of it was done");
    let longest = "k".repeat(MAX_KEY_BYTES);
    apply(coord, vec![Change::put(longest.as_str(), vec![7; MAX_VALUE_BYTES])]).await;
    assert_eq!(coord.get(&longest).await.unwrap().unwrap().value, vec![7; MAX_VALUE_BYTES]);
    apply(coord, numbered(MAX_OPERATIONS)).await;
    assert_eq!(coord.list("k").await.unwrap().entries.len(), MAX_OPERATIONS + 1);
}

pub async fn a_watch_tells_changes_in_order(coord: &dyn Coord) {
    put(coord, "v/old", "0").await;
    let mut watch = coord.watch("v/", 0).await.unwrap();
    put(coord, "other", "1").await;
    let both = apply(coord, vec![Change::put("v/b", "2"), Change::put("w", "2"), Change::put("v/a", "2")]).await;
    let gone = apply(coord, vec![Change::Delete("v/b".into()), Change::Delete("v/none".into())]).await;
    let again = put(coord, "v/b", "4").await;
    let expected = [
        Event::Put(entry("v/b", "2", both)),
        Event::Put(entry("v/a", "2", both)),
        Event::Deleted { key: "v/b".into(), revision: gone },
        Event::Put(entry("v/b", "4", again)),
    ];
    for event in expected {
        assert_eq!(next(&mut watch).await, event);
    }
}

pub async fn a_watch_begins_where_it_is_told(coord: &dyn Coord) {
    let mut revisions = Vec::new();
    for n in 0..5 {
        revisions.push(put(coord, "k", &n.to_string()).await);
    }
    for (n, revision) in revisions.iter().enumerate() {
        let mut watch = coord.watch("k", *revision).await.unwrap();
        for (later, revision) in revisions.iter().enumerate().skip(n) {
            assert_eq!(next(&mut watch).await, Event::Put(entry("k", &later.to_string(), *revision)));
        }
    }
    let mut future = coord.watch("k", revisions[4] + 2).await.unwrap();
    put(coord, "k", "not yet").await;
    let told = put(coord, "k", "now").await;
    assert_eq!(next(&mut future).await, Event::Put(entry("k", "now", told)));
}

pub async fn a_watch_waits_for_the_future(coord: &dyn Coord) {
    let mut watch = coord.watch("", 0).await.unwrap();
    for n in 0..20 {
        // The watch is polled first and finds nothing, so that it is the change that wakes it.
        let value = n.to_string();
        let (event, revision) = tokio::join!(biased; next(&mut watch), put(coord, "k", &value));
        assert_eq!(event, Event::Put(entry("k", &value, revision)));
    }
}

/// `forget` lets the store drop the history that it has so far.
pub async fn a_watch_that_fell_behind_says_so(coord: &dyn Coord, forget: impl AsyncFn()) {
    let first = put(coord, "k/first", "1").await;
    let mut slow = coord.watch("k/", first).await.unwrap();
    assert_eq!(next(&mut slow).await, Event::Put(entry("k/first", "1", first)));
    let changes =
        |round: usize| (0..MAX_OPERATIONS).map(|n| Change::put(format!("k/{n}"), round.to_string())).collect();
    let mut last = first;
    for round in 0..40 {
        last = apply(coord, changes(round)).await;
    }
    forget().await;
    let mut old = coord.watch("k/", first).await.unwrap();
    assert_eq!(next(&mut old).await, Event::Behind);
    assert_eq!(next(&mut old).await, Event::Behind, "it has ended");
    // One that stands still is told what was on the way to it, without a gap, and then that it fell behind, if it did.
    let (mut told, mut revision) = (MAX_OPERATIONS, first);
    while revision < last || told < MAX_OPERATIONS {
        match next(&mut slow).await {
            Event::Put(entry) => {
                (told, revision) = if told == MAX_OPERATIONS { (0, revision + 1) } else { (told, revision) };
                assert_eq!((entry.key, entry.revision), (format!("k/{told}"), revision));
                told += 1;
            }
            Event::Deleted { key, .. } => panic!("{key} was never deleted"),
            Event::Behind => {
                assert_eq!(next(&mut slow).await, Event::Behind, "it has ended");
                break;
            }
        }
    }
    let listing = coord.list("k/").await.unwrap();
    let mut anew = coord.watch("k/", listing.revision + 1).await.unwrap();
    let last = put(coord, "k/last", "1").await;
    assert_eq!(next(&mut anew).await, Event::Put(entry("k/last", "1", last)));
}

pub async fn a_listing_and_a_watch_after_it_miss_nothing(coord: &dyn Coord) {
    let mut model = std::collections::BTreeMap::new();
    put(coord, "m/0", "x").await;
    let listing = coord.list("m/").await.unwrap();
    apply(coord, vec![Change::Delete("m/0".into())]).await;
    let last = put(coord, "m/1", "y").await;
    model.extend(listing.entries.into_iter().map(|entry| (entry.key.clone(), entry)));
    let mut watch = coord.watch("m/", listing.revision + 1).await.unwrap();
    loop {
        let revision = match next(&mut watch).await {
            Event::Put(entry) => {
                let revision = entry.revision;
                model.insert(entry.key.clone(), entry);
                revision
            }
            Event::Deleted { key, revision } => {
                model.remove(&key);
                revision
            }
            Event::Behind => panic!("nothing was missed"),
        };
        if revision == last {
            break;
        }
    }
    assert_eq!(model.into_values().collect::<Vec<_>>(), coord.list("m/").await.unwrap().entries);
}

pub fn leased(key: &str, lease: LeaseId) -> Change {
    Change::Put { key: key.into(), value: b"x".into(), lease: Some(lease) }
}

pub async fn a_revoked_lease_takes_its_keys(coord: &dyn Coord) {
    let (one, two) =
        (coord.lease(Duration::from_secs(60)).await.unwrap(), coord.lease(Duration::from_secs(60)).await.unwrap());
    assert_ne!(one, two);
    apply(coord, vec![leased("b", one), leased("a", one), leased("c", two), Change::put("d", "x")]).await;
    coord.keep_alive(one).await.unwrap();
    let before = coord.list("").await.unwrap().revision;
    let mut watch = coord.watch("", 0).await.unwrap();
    coord.revoke(one).await.unwrap();
    for key in ["a", "b"] {
        assert_eq!(next(&mut watch).await, Event::Deleted { key: key.into(), revision: before + 1 });
    }
    let keys = coord.list("").await.unwrap().entries.into_iter().map(|entry| entry.key).collect::<Vec<_>>();
    assert_eq!(keys, ["c", "d"]);
    coord.keep_alive(two).await.unwrap();
}

pub async fn a_put_without_the_lease_frees_the_key(coord: &dyn Coord) {
    let lease = coord.lease(Duration::from_secs(60)).await.unwrap();
    apply(coord, vec![leased("a", lease), leased("b", lease)]).await;
    put(coord, "a", "free").await;
    coord.revoke(lease).await.unwrap();
    assert_eq!(coord.get("a").await.unwrap().unwrap().value, b"free");
    assert_eq!(coord.get("b").await.unwrap(), None);
}

pub async fn leases_that_are_not_there_are_not_found(coord: &dyn Coord) {
    let over = coord.lease(Duration::from_secs(60)).await.unwrap();
    coord.revoke(over).await.unwrap();
    for lease in [over, LeaseId(0), LeaseId(u64::MAX)] {
        assert_eq!(kind(coord.keep_alive(lease).await), ErrorKind::NotFound);
        assert_eq!(kind(coord.revoke(lease).await), ErrorKind::NotFound);
        assert_eq!(
            kind(coord.transact(vec![], vec![Change::put("a", "x"), leased("b", lease)]).await),
            ErrorKind::NotFound
        );
    }
    assert_eq!(coord.list("").await.unwrap().entries, []);
}

pub async fn a_watch_ends_with_its_store(store: Box<dyn Coord>) {
    let mut watch = store.watch("", 0).await.unwrap();
    let waiting = tokio::spawn(async move { [watch.next().await, watch.next().await, watch.next().await] });
    tokio::task::yield_now().await;
    drop(store);
    for ended in timeout(DEADLINE, waiting).await.unwrap().unwrap() {
        assert_eq!(kind(ended), ErrorKind::Unavailable);
    }
}

/// Threads that each add to one number by compare-and-swap: none of the additions is lost.
pub fn count_up(coord: &dyn Coord, threads: u64, each: u64) {
    let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
    let before = runtime().block_on(coord.list("")).unwrap().revision;
    let add = async || loop {
        let found = coord.get("count").await.unwrap();
        let (check, value) = match &found {
            None => (Check::Absent("count".into()), 0),
            Some(entry) => (Check::Revision("count".into(), entry.revision), count(entry)),
        };
        let changes = vec![Change::put("count", (value + 1).to_string())];
        if coord.transact(vec![check], changes).await.unwrap() != Outcome::Refused {
            return;
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                runtime().block_on(async {
                    for _ in 0..each {
                        add().await
                    }
                })
            });
        }
    });
    let last = runtime().block_on(coord.get("count")).unwrap().unwrap();
    assert_eq!((count(&last), last.revision), (threads * each, before + threads * each));
}

fn count(entry: &Entry) -> u64 {
    std::str::from_utf8(&entry.value).unwrap().parse().unwrap()
}
