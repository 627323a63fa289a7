// SPDX-License-Identifier: Apache-2.0
//! What the tests of this crate share: a runtime that outlives the tests' own, and clients of an etcd of the laboratory.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]
#![allow(dead_code, reason = "each test takes what it needs")]

use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use varve_coord::{Change, Coord, CoordError, Event, Outcome, Watch};
use varve_etcd::{Etcd, EtcdConfig};
use varve_lab::etcd::Etcd as Lab;

pub const DEADLINE: Duration = Duration::from_secs(30);

/// The runtime on which clients do their requests: another thread than that of the test, as in a node.
pub struct Runtime {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Runtime {
    pub fn start() -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let thread = std::thread::spawn(move || drop(runtime.block_on(stopped)));
        Self { handle, stop: Some(stop), thread: Some(thread) }
    }

    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// A configuration with times that suit a test.
pub fn config(endpoints: &[String]) -> EtcdConfig {
    let mut config = EtcdConfig::new(endpoints.iter().cloned());
    config.connect_timeout = Duration::from_secs(2);
    config.request_timeout = Duration::from_secs(3);
    config.give_up_after = Duration::from_secs(15);
    config
}

/// A client of all members.
pub async fn client(lab: &Lab, handle: &Handle) -> Etcd {
    Etcd::open(&config(&lab.endpoints()), handle.clone()).await.unwrap()
}

/// The address of a port of this machine.
pub fn at(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

pub async fn put(coord: &dyn Coord, key: &str, value: &str) -> Result<u64, CoordError> {
    match coord.transact(Vec::new(), vec![Change::put(key, value)]).await? {
        Outcome::Applied { revision } => Ok(revision),
        Outcome::Refused => panic!("refused without a check"),
    }
}

pub async fn value(coord: &dyn Coord, key: &str) -> Option<String> {
    coord.get(key).await.unwrap().map(|entry| String::from_utf8(entry.value).unwrap())
}

/// The next event, which comes in time.
pub async fn next(watch: &mut Watch) -> Event {
    tokio::time::timeout(DEADLINE, watch.next()).await.expect("the watch tells something in time").unwrap()
}

/// Asks for a condition until it holds, or the deadline has passed.
pub async fn wait_for(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < DEADLINE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
