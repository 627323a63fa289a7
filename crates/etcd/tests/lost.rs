// SPDX-License-Identifier: Apache-2.0
//! Requests and answers that a proxy loses, and an etcd that is away.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

mod common;

use common::{Runtime, at, client, config, next, put, value, wait_for};
use std::sync::Arc;
use std::time::{Duration, Instant};
use varve_coord::{Change, Coord, CoordError, Event, LeaseId, Outcome};
use varve_etcd::{Etcd, EtcdConfig};
use varve_lab::etcd::{Etcd as Lab, Options};
use varve_lab::tcp_proxy::{Mode, TcpProxy};
use varve_types::ErrorKind;

struct World {
    lab: Lab,
    runtime: Runtime,
    proxy: TcpProxy,
}

impl World {
    fn start() -> Self {
        let lab = Lab::start().unwrap();
        let proxy = TcpProxy::start(lab.port(0)).unwrap();
        Self { lab, runtime: Runtime::start(), proxy }
    }

    /// A client through the proxy, with times that a test can wait for.
    fn config(&self) -> EtcdConfig {
        let mut config = config(&[at(self.proxy.port())]);
        config.request_timeout = Duration::from_secs(10);
        config.give_up_after = Duration::from_secs(1);
        config
    }

    async fn through(&self) -> Arc<Etcd> {
        Arc::new(Etcd::open(&self.config(), self.runtime.handle().clone()).await.unwrap())
    }

    async fn direct(&self) -> Etcd {
        client(&self.lab, self.runtime.handle()).await
    }
}

/// Starts a change whose answer is lost, and cuts the connection when `done` says that it has been done.
async fn lose_answer<T: Send + 'static>(
    world: &World,
    change: impl Future<Output = Result<T, CoordError>> + Send + 'static,
    done: impl AsyncFnMut() -> bool,
) -> CoordError {
    world.proxy.set(Mode::LoseAnswers);
    let changing = tokio::spawn(change);
    wait_for("the change to be done", done).await;
    world.proxy.set(Mode::Pass);
    world.proxy.cut();
    changing.await.unwrap().err().expect("the answer was lost")
}

#[tokio::test]
async fn a_change_whose_answer_is_lost_is_unknown_and_done_once() {
    let world = World::start();
    let (etcd, direct) = (world.through().await, world.direct().await);
    let mut watch = direct.watch("", 0).await.unwrap();
    put(&*etcd, "before", "1").await.unwrap();
    assert!(matches!(next(&mut watch).await, Event::Put(entry) if entry.key == "before"));

    let changing = Arc::clone(&etcd);
    let change = async move { put(&*changing, "k", "1").await };
    let error = lose_answer(&world, change, async || value(&direct, "k").await.is_some()).await;
    assert!(error.is_unknown() && error.kind() == ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains(&at(world.proxy.port())), "{error} names the endpoint");
    // The next request finds a new connection by itself, and the change was not done again.
    put(&*etcd, "after", "1").await.unwrap();
    for key in ["k", "after"] {
        assert!(matches!(next(&mut watch).await, Event::Put(entry) if entry.key == key));
    }

    let leased = direct.lease(Duration::from_secs(60)).await.unwrap();
    let put_leased = Change::Put { key: "leased".into(), value: b"x".into(), lease: Some(leased) };
    direct.transact(Vec::new(), vec![put_leased]).await.unwrap();
    let changing = Arc::clone(&etcd);
    let revoke = async move { changing.revoke(leased).await };
    let error = lose_answer(&world, revoke, async || value(&direct, "leased").await.is_none()).await;
    assert!(error.is_unknown(), "{error}");
    assert_eq!(etcd.revoke(leased).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_change_that_is_lost_on_the_way_is_unknown_and_not_done() {
    let world = World::start();
    let etcd = world.through().await;
    put(&*etcd, "k", "1").await.unwrap();
    for change in ["put", "lease", "revoke"] {
        world.proxy.set(Mode::LoseRequests);
        let changing = Arc::clone(&etcd);
        let task = tokio::spawn(async move {
            match change {
                "put" => put(&*changing, "k", "2").await.map(drop),
                "lease" => changing.lease(Duration::from_secs(60)).await.map(drop),
                _ => changing.revoke(LeaseId(7)).await,
            }
        });
        wait_for("the request to be lost", async || world.proxy.lost_bytes() > 0).await;
        world.proxy.set(Mode::Pass);
        world.proxy.cut();
        let error = task.await.unwrap().unwrap_err();
        assert!(error.is_unknown(), "{change}: {error}");
        assert_eq!(value(&*etcd, "k").await.as_deref(), Some("1"));
    }
}

#[tokio::test]
async fn a_read_whose_answer_is_lost_is_asked_again_elsewhere() {
    let world = World::start();
    let mut config = world.config();
    config.endpoints.push(at(world.lab.port(0)));
    config.request_timeout = Duration::from_millis(300);
    let etcd = Etcd::open(&config, world.runtime.handle().clone()).await.unwrap();
    put(&etcd, "k", "1").await.unwrap();
    let lease = etcd.lease(Duration::from_secs(60)).await.unwrap();
    for lost in [Mode::LoseAnswers, Mode::LoseRequests] {
        // The other endpoint is used from the first loss on; a cut leads back.
        world.proxy.set(lost);
        assert_eq!(value(&etcd, "k").await.as_deref(), Some("1"));
        assert_eq!(etcd.list("").await.unwrap().entries.len(), 1);
        etcd.keep_alive(lease).await.unwrap();
        let check = varve_coord::Check::Exists("k".into());
        let outcome = etcd.transact(vec![check], Vec::new()).await.unwrap();
        assert!(matches!(outcome, Outcome::Applied { .. }), "a transaction without changes is a read");
    }
}

/// A member that vanished without a word closes no connection.
#[tokio::test]
async fn a_watch_whose_member_falls_silent_goes_on_elsewhere() {
    let world = World::start();
    let mut config = world.config();
    config.endpoints.push(at(world.lab.port(0)));
    config.request_timeout = Duration::from_millis(300);
    let etcd = Etcd::open(&config, world.runtime.handle().clone()).await.unwrap();
    let direct = world.direct().await;
    let mut watch = etcd.watch("k", 0).await.unwrap();
    let first = put(&direct, "k", "1").await.unwrap();
    assert!(matches!(next(&mut watch).await, Event::Put(entry) if entry.revision == first));
    world.proxy.set(Mode::LoseAnswers);
    let second = put(&direct, "k", "2").await.unwrap();
    assert!(matches!(next(&mut watch).await, Event::Put(entry) if entry.revision == second));
}

#[tokio::test]
async fn etcd_away_is_told_in_time_and_it_comes_back() {
    let world = World::start();
    let (etcd, direct) = (world.through().await, world.direct().await);
    put(&*etcd, "k", "1").await.unwrap();
    let mut watch = etcd.watch("k", 0).await.unwrap();
    world.proxy.set(Mode::Down);
    let begun = Instant::now();
    let (config, handle) = (world.config(), world.runtime.handle().clone());
    let results = tokio::join!(
        async { etcd.get("k").await.map(drop) },
        async { etcd.list("").await.map(drop) },
        async { put(&*etcd, "k", "2").await.map(drop) },
        async { etcd.watch("k", 0).await.map(drop) },
        async { etcd.lease(Duration::from_secs(60)).await.map(drop) },
        etcd.keep_alive(LeaseId(1)),
        async { Etcd::open(&config, handle).await.map(drop) },
    );
    let (a, b, c, d, e, f, g) = results;
    for result in [a, b, c, d, e, f, g] {
        let error = result.unwrap_err();
        assert!(error.kind() == ErrorKind::Unavailable && !error.is_unknown(), "{error}");
        assert!(error.to_string().contains(&at(world.proxy.port())), "{error} names the endpoint");
    }
    assert!(begun.elapsed() < 2 * config.give_up_after, "{:?}", begun.elapsed());
    let missed = put(&direct, "k", "3").await.unwrap();
    world.proxy.set(Mode::Pass);
    assert_eq!(value(&*etcd, "k").await.as_deref(), Some("3"));
    assert!(matches!(next(&mut watch).await, Event::Put(entry) if entry.revision == missed));
    put(&*etcd, "k", "4").await.unwrap();
}

#[tokio::test]
async fn a_node_can_begin_while_etcd_is_away() {
    let world = World::start();
    world.proxy.set(Mode::Down);
    let etcd = Etcd::new(&world.config(), world.runtime.handle().clone()).unwrap();
    assert_eq!(etcd.get("k").await.unwrap_err().kind(), ErrorKind::Unavailable);
    world.proxy.set(Mode::Pass);
    assert_eq!(etcd.get("k").await.unwrap(), None);
}

/// A connection that died without a word while nobody used it is not found out by a change.
#[tokio::test]
async fn a_connection_that_died_unnoticed_leaves_no_doubt() {
    let world = World::start();
    let mut config = world.config();
    config.endpoints.push(at(world.lab.port(0)));
    config.request_timeout = Duration::from_millis(300);
    config.connect_timeout = Duration::from_millis(300);
    let etcd = Etcd::open(&config, world.runtime.handle().clone()).await.unwrap();
    put(&etcd, "k", "1").await.unwrap();
    world.proxy.set(Mode::LoseAnswers);
    let idle = Instant::now();
    wait_for("the connection to be idle for a while", async || idle.elapsed() > 2 * config.request_timeout).await;
    put(&etcd, "k", "2").await.unwrap();
    assert_eq!(value(&etcd, "k").await.as_deref(), Some("2"));
}

#[tokio::test]
async fn a_cut_that_crosses_a_change_is_never_told_wrongly() {
    let world = World::start();
    let (etcd, direct) = (world.through().await, world.direct().await);
    put(&*etcd, "k", "1").await.unwrap();
    for round in 0..20 {
        world.proxy.cut();
        let text = round.to_string();
        match put(&*etcd, "k", &text).await {
            Ok(_) => assert_eq!(value(&direct, "k").await, Some(text)),
            Err(error) => assert!(error.is_unknown(), "{error}"),
        }
    }
}

/// An etcd with the same ports and less data is the same cluster by its id.
#[tokio::test]
async fn an_etcd_that_was_set_back_is_not_trusted() {
    let (mut lab, runtime) = (Lab::start().unwrap(), Runtime::start());
    let etcd = client(&lab, runtime.handle()).await;
    for n in 0..10 {
        put(&etcd, "k", &n.to_string()).await.unwrap();
    }
    let mut watch = etcd.watch("k", 0).await.unwrap();
    lab.kill(0).unwrap();
    lab.start_empty(0).unwrap();
    for _ in 0..2 {
        let error = etcd.get("k").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(put(&etcd, "k", "1").await.unwrap_err().is_unknown());
    }
    assert_eq!(watch.next().await.unwrap_err().kind(), ErrorKind::Corrupt);
    let anew = client(&lab, runtime.handle()).await;
    assert_eq!(value(&anew, "k").await.as_deref(), Some("1"));
}

/// etcd tells some changes that they found no space although it has done them.
#[tokio::test]
async fn a_full_etcd_leaves_doubt_and_says_what_to_do() {
    let arguments = vec!["--quota-backend-bytes=4194304".to_owned()];
    let lab = Lab::start_with(&Options { arguments, ..Options::default() }).unwrap();
    let runtime = Runtime::start();
    let etcd = client(&lab, runtime.handle()).await;
    let large = vec![7; varve_coord::MAX_VALUE_BYTES];
    let mut error = None;
    // It looks at its size a few times a second, so there may go more into it than there is room for.
    for n in 0..100 {
        let changes = vec![Change::put(format!("k{n}"), large.clone())];
        if let Err(failed) = etcd.transact(Vec::new(), changes).await {
            error = Some(failed);
            break;
        }
    }
    let error = error.expect("there is not room for all");
    assert!(error.is_unknown() && error.to_string().contains("quota-backend-bytes"), "{error}");
    assert!(etcd.lease(Duration::from_secs(60)).await.unwrap_err().is_unknown());
    // It is read, and made smaller, all the same.
    let keys = etcd.list("").await.unwrap().entries.into_iter().map(|entry| Change::Delete(entry.key));
    etcd.transact(Vec::new(), keys.collect()).await.unwrap();
    let revision = etcd.list("").await.unwrap().revision;
    lab.ctl(&["compaction", &revision.to_string(), "--physical"]).unwrap();
    lab.ctl(&["defrag"]).unwrap();
    wait_for("it to see that it has room", async || {
        lab.ctl(&["alarm", "disarm"]).unwrap();
        put(&etcd, "k", "1").await.is_ok()
    })
    .await;
}
