// SPDX-License-Identifier: Apache-2.0
//! What a store answers, and what it holds, under each fault.

use super::*;
use crate::{RunError, SimEnv, SimOptions, SimWorld};
use bytes::Bytes;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use varve_env::{ObjectStore, Payload, PutOutcome, StoreError, StoreErrorKind};

struct Bench {
    world: SimWorld,
    process: Rc<SimEnv>,
    server: StoreServer,
}

fn bench() -> Bench {
    let world = SimWorld::new(SimOptions::seed(5));
    let process = world.process("node");
    let server = StoreServer::new(&world, "pool");
    Bench { world, process, server }
}

impl Bench {
    fn run<T: 'static, F: Future<Output = T> + 'static>(&self, call: impl FnOnce(Arc<dyn ObjectStore>) -> F) -> T {
        self.world.block_on(&self.process, call(self.server.client(&self.process))).unwrap()
    }
    fn put(&self, name: &'static str, bytes: &'static [u8]) -> Result<PutOutcome, StoreErrorKind> {
        self.run(move |store| async move { store.put(name, Bytes::from_static(bytes).into()).await })
            .map_err(|error| error.kind)
    }
    fn list(&self, after: Option<&'static str>) -> Vec<String> {
        let names = self.run(move |store| async move { store.list("a/", after).await }).unwrap();
        names.into_iter().map(|info| info.name).collect()
    }
}

fn kind<T: std::fmt::Debug>(result: Result<T, StoreError>) -> StoreErrorKind {
    result.unwrap_err().kind
}

#[test]
fn objects_are_put_once_and_read_by_range() {
    let b = bench();
    let parts = Payload::new(vec![Bytes::from_static(b"abc"), Bytes::from_static(b"def")]);
    let put = b.run(move |store| async move { store.put("t/seg/1", parts).await });
    assert_eq!(put.unwrap(), PutOutcome::Created);
    assert_eq!(b.put("t/seg/1", b"other"), Ok(PutOutcome::Exists));
    let get = |range: std::ops::Range<u64>| b.run(move |store| async move { store.get("t/seg/1", range).await });
    assert_eq!(get(2..5).unwrap(), "cde");
    assert_eq!(kind(get(2..7)), StoreErrorKind::Invalid);
    assert_eq!(b.run(|store| async move { store.get_head("t/seg/1", 100).await }).unwrap(), "abcdef");
    assert_eq!(b.run(|store| async move { store.head("t/seg/1").await }).unwrap().size, 6);
    assert_eq!(kind(b.run(|store| async move { store.head("t/seg/2").await })), StoreErrorKind::NotFound);
    for _ in 0..2 {
        b.run(|store| async move { store.delete("t/seg/1").await }).unwrap();
    }
    assert_eq!(kind(get(0..1)), StoreErrorKind::NotFound);
    assert_eq!(b.put("A", b""), Err(StoreErrorKind::Invalid));
    assert_eq!(b.put("a//b", b""), Err(StoreErrorKind::Invalid));

    let counts = b.server.counts();
    let expected = KindCounts { created: 1, created_bytes: 6, gets: 2, got_bytes: 9, deleted: 1 };
    assert_eq!(counts.kinds["seg"], expected);
    assert_eq!((counts.requests[&StoreOp::Put], counts.requests[&StoreOp::Delete]), (2, 2));
    let puts: Vec<_> = b.server.log().into_iter().filter(|e| e.op == StoreOp::Put).map(|e| e.outcome).collect();
    assert_eq!(puts, [LogOutcome::Created, LogOutcome::Exists]);
}

#[test]
fn a_put_without_an_answer_may_have_happened_or_happen_later() {
    let b = bench();
    b.server.fail(StoreOp::Put, "lost", 0, StoreFault::LostAnswer);
    assert_eq!(b.put("a/lost", b"1"), Err(StoreErrorKind::Unavailable));
    assert_eq!(b.server.object("a/lost").unwrap(), "1");

    b.server.fail(StoreOp::Put, "late", 1, StoreFault::Late(Duration::from_secs(9)));
    assert_eq!(b.put("a/late-0", b"1"), Ok(PutOutcome::Created), "the first that fits is let through");
    assert_eq!(b.put("a/late-1", b"1"), Err(StoreErrorKind::Unavailable));
    assert_eq!(b.server.object("a/late-1"), None);
    b.world.run_for(Duration::from_secs(10)).unwrap();
    assert_eq!(b.server.object("a/late-1").unwrap(), "1");

    b.server.fail(StoreOp::Put, "", 0, StoreFault::Held);
    assert_eq!(b.put("a/held", b"old"), Err(StoreErrorKind::Unavailable));
    assert_eq!(b.put("a/held", b"new"), Ok(PutOutcome::Created));
    b.server.release_held();
    assert_eq!(b.server.object("a/held").unwrap(), "new", "a late put overwrites nothing");
}

#[test]
fn a_dead_process_s_puts_are_lost_landed_or_late() {
    for fate in [InFlight::Lost, InFlight::Landed, InFlight::Late(Duration::from_secs(1))] {
        let b = bench();
        b.process.points().at(1);
        let store = b.server.client(&b.process);
        let dead = b.world.block_on(&b.process, async move { store.put("a/1", Bytes::from_static(b"x").into()).await });
        let RunError::Dead { death, .. } = dead.unwrap_err() else { panic!("it should have died") };
        assert_eq!(death, "at I/O 1, PutSent of a/1");
        b.server.settle(&b.process, fate);
        let at_once = b.server.object("a/1").is_some();
        b.world.run_for(Duration::from_millis(500)).unwrap();
        let soon = b.server.object("a/1").is_some();
        b.world.run_for(Duration::from_secs(1)).unwrap();
        let later = b.server.object("a/1").is_some();
        let expected = match fate {
            InFlight::Lost => (false, false, false),
            InFlight::Landed => (true, true, true),
            InFlight::Late(_) => (false, false, true),
        };
        assert_eq!((at_once, soon, later), expected, "{fate:?}");
    }
}

#[test]
fn a_store_is_away_full_or_refuses() {
    let b = bench();
    b.server.away_for(Duration::from_secs(60));
    assert_eq!(b.put("a/1", b"x"), Err(StoreErrorKind::Unavailable));
    b.world.run_for(Duration::from_secs(60)).unwrap();
    assert_eq!(b.put("a/1", b"x"), Ok(PutOutcome::Created));
    b.server.set_capacity(Some(3));
    assert_eq!(b.put("a/2", b"xyz"), Err(StoreErrorKind::NoSpace));
    assert!(b.server.remove("a/1"));
    assert_eq!(b.put("a/2", b"xyz"), Ok(PutOutcome::Created));
    b.server.fail(StoreOp::Get, "", 0, StoreFault::Error(StoreErrorKind::Invalid));
    assert_eq!(kind(b.run(|store| async move { store.get("a/2", 0..1).await })), StoreErrorKind::Invalid);
    b.server.set_chaos(Chaos { error_per_mille: 1000, ..Chaos::default() });
    assert_eq!(b.put("a/3", b""), Err(StoreErrorKind::Unavailable));
}

#[test]
fn listings_come_in_pages_and_lag() {
    let b = bench();
    for number in 0..1005 {
        b.server.plant(&format!("a/{number:04}"), "");
    }
    b.server.plant("b/1", "");
    let first = b.list(None);
    assert_eq!((first.len(), first[999].as_str()), (1000, "a/0999"));
    assert_eq!(b.list(Some("a/0999")), ["a/1000", "a/1001", "a/1002", "a/1003", "a/1004"]);

    b.server.set_list_lag(Duration::from_secs(1));
    b.world.run_for(Duration::from_secs(1)).unwrap();
    b.put("a/new", b"").unwrap();
    b.run(|store| async move { store.delete("a/1004").await }).unwrap();
    assert_eq!(b.list(Some("a/1003")), ["a/1004"], "it shows the past");
    b.world.run_for(Duration::from_secs(1)).unwrap();
    assert_eq!(b.list(Some("a/1003")), ["a/new"]);
}

#[test]
fn objects_are_spoilt_behind_everyone_s_back() {
    let b = bench();
    b.server.plant("a/1", "abc");
    assert!(b.server.flip_bit("a/1", 1, 0));
    assert_eq!(b.server.object("a/1").unwrap(), "acc");
    assert!(b.server.truncate("a/1", 1));
    assert_eq!(b.server.object("a/1").unwrap(), "a");
    assert!(!b.server.flip_bit("a/1", 1, 0) && !b.server.truncate("a/2", 0) && !b.server.remove("a/2"));
}
