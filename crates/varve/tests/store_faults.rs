// SPDX-License-Identifier: Apache-2.0
//! A node whose S3 store is in trouble in every way that a proxy can make: down, slow, half-open, erring, cutting answers short,
//! and answering with wrong bytes.
//!
//! In each a random load goes on or waits, but meets no error; every read is compared with what was written; and when the trouble
//! ends everything heals by itself: what was written is in the store, and a check of every block finds nothing. The node is killed and
//! started again before, with a cache that holds little, so that reads need the store. Only with bytes that stay wrong may a read be
//! answered with an error, and then it says so; with wrong data never.
//!
//! `VARVE_SEED` plays the load of a failed run again.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod faulty;
mod load;
mod real;

use faulty::FaultyStore;
use load::{BLOCK, Promise, Random, Worker};
use real::{DEADLINE, Node};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use varve_lab::fault_proxy::{Fault, FaultProxy};
use varve_lab::nbd::{Client, Command};
use varve_lab::process::wait_until;

/// Within so much time the status tells of a store that takes requests and answers none: on a machine that is busy too.
const SOON: Duration = Duration::from_secs(14);
/// Of the volume.
const BLOCKS: u64 = 16 << 20 >> 12;

/// A node, its load, and the proxy before its store. What is dropped first stands first.
struct Scene {
    node: Node,
    worker: Worker,
    store: FaultyStore,
}

impl Scene {
    /// The volume has data in the store, and nothing of it in RAM.
    fn start() -> Self {
        let seed = Random::seed();
        println!("VARVE_SEED={seed}");
        let store = FaultyStore::start();
        let node = Node::start(&["--store", &store.url, "--volume", "v:16M"]);
        node.varve(&["volume", "set", "v", "segment-size=4M", "seal-age=1s"]).ok();
        let worker = Worker::new(0, BLOCKS, Promise::Acknowledged, seed);
        let mut scene = Self { node, worker, store };
        scene.load(|scene| scene.more(600));
        scene.until_stored();
        scene.node.kill();
        scene.node.up();
        scene
    }

    fn client(&self) -> Client {
        Client::unix(&self.node.data().join("nbd.sock"), "v").unwrap()
    }

    /// Runs the load while `meanwhile` does something; any error that the load meets is a failure.
    fn load(&mut self, meanwhile: impl FnOnce(&Meanwhile)) {
        let mut client = self.client();
        let (worker, proxy, node) = (&mut self.worker, &self.store.proxy, &self.node);
        let stop = AtomicBool::new(false);
        let scene = Meanwhile { proxy, node, done: AtomicU64::new(0), ended: AtomicBool::new(false) };
        std::thread::scope(|scope| {
            let (scene, stop) = (&scene, &stop);
            scope.spawn(move || {
                let _ended = Raise(&scene.ended);
                while !stop.load(Ordering::Relaxed) {
                    worker.step(&mut client, &scene.done).unwrap();
                }
            });
            let _stop = Raise(stop);
            meanwhile(scene);
        });
    }

    fn until_stored(&self) {
        let dirty = || self.node.varve(&["volume", "show", "v", "--json"]).json()["space"]["dirty_bytes"].clone();
        wait_until(DEADLINE, "all to be in the store", || Ok(dirty() == 0)).unwrap();
    }

    /// All is as it was before the fault, and stays so.
    fn healed(&mut self) {
        self.store.proxy.set(Fault::Pass);
        self.until_stored();
        self.node.until_status("all to be well", |status| {
            status["pools"][0]["state"] == "ok" && status["volumes"][0]["state"] == "ready"
        });
        self.worker.verify(&mut self.client());
        let report = self.node.varve(&["check", "v", "--json"]).json();
        let volume = &report["volumes"][0];
        assert!(volume["errors_total"] == 0 && volume["blocks_verified"].as_u64() > Some(0), "{report}");
        self.node.kill();
        self.node.up();
        let mut client = self.client();
        self.worker.recover(&mut client);
    }
}

/// What is at hand while the load runs.
struct Meanwhile<'a> {
    proxy: &'a FaultProxy,
    node: &'a Node,
    done: AtomicU64,
    ended: AtomicBool,
}

impl Meanwhile<'_> {
    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        wait_until(DEADLINE, what, || {
            assert!(!self.ended.load(Ordering::Relaxed), "the load met an error");
            Ok(holds())
        })
        .unwrap();
    }

    fn more(&self, changes: u64) {
        let goal = self.done.load(Ordering::Relaxed) + changes;
        self.until("the load to go on", || self.done.load(Ordering::Relaxed) >= goal);
    }

    fn hits(&self, hits: u64) {
        self.until("the fault to be met", || self.proxy.hits() >= hits);
    }
}

/// Becomes true when dropped, also by a panic.
struct Raise<'a>(&'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The load goes on under a fault that leaves some requests alone, and reads are right under it.
fn goes_on(fault: Fault, hits: u64) {
    let mut scene = Scene::start();
    scene.store.proxy.set(fault);
    scene.worker.verify(&mut scene.client());
    scene.load(|scene| {
        scene.more(300);
        scene.hits(hits);
    });
    scene.client().run(Command::Flush, 0, 0, &[]).unwrap();
    scene.worker.verify(&mut scene.client());
    scene.healed();
}

/// The load waits under a fault that lets nothing through, people are told of it soon, and the load goes on behind it.
fn waits(fault: Fault) {
    let mut scene = Scene::start();
    scene.load(|scene| {
        scene.proxy.set(fault);
        scene.hits(3);
        let begun = Instant::now();
        scene.until("the status to tell of it", || {
            let status = scene.node.varve(&["status", "--json"]).json();
            let pool = &status["pools"][0];
            if pool["state"] != "unavailable" {
                return false;
            }
            let message = pool["message"].as_str().unwrap_or_default();
            if fault == Fault::HalfOpen {
                assert!(message.contains("has answered none for"), "{status}");
                assert!(pool["requests"].as_u64() > Some(0), "{status}");
                assert!(pool["oldest_request_ms"].as_u64() >= Some(5000), "{status}");
            }
            assert!(status["warnings"].to_string().contains(message), "{status}");
            true
        });
        // Long before the patience with any request is over.
        assert!(begun.elapsed() < SOON, "told after {:?}", begun.elapsed());
        scene.proxy.set(Fault::Pass);
        scene.more(300);
    });
    scene.healed();
}

#[test]
fn a_store_that_is_down_costs_only_time() {
    waits(Fault::Down);
}

#[test]
fn a_store_that_takes_requests_and_never_answers_costs_only_time() {
    waits(Fault::HalfOpen);
}

#[test]
fn a_slow_store_costs_only_time() {
    goes_on(Fault::Slow(Duration::from_millis(300)), 5);
}

#[test]
fn refused_requests_and_lost_answers_cost_only_time() {
    goes_on(Fault::Erring { one_in: 3 }, 5);
}

#[test]
fn answers_cut_short_are_asked_for_again() {
    goes_on(Fault::Truncating { one_in: 3 }, 5);
}

#[test]
fn wrong_bytes_now_and_then_are_asked_for_again() {
    goes_on(Fault::Wrong { one_in: 3 }, 5);
}

#[test]
fn bytes_that_stay_wrong_are_never_given_for_right_ones() {
    let mut scene = Scene::start();
    scene.store.proxy.set(Fault::Wrong { one_in: 1 });
    let refused = (0..BLOCKS).step_by(256).filter(|block| {
        // One connection each: what is behind an error on a connection is another matter.
        let read = scene.client().read(block * BLOCK as u64, 256 * BLOCK as u32);
        match read {
            Ok(data) => {
                scene.worker.is_now(*block, &data);
                false
            }
            Err(error) => error.to_string().contains("answers with error"),
        }
    });
    assert!(refused.count() > 0 && scene.store.proxy.hits() > 0);
    let log = scene.node.log();
    assert!(log.contains("checksum") || log.contains("damaged"), "{log}");
    scene.healed();
}

/// A deleted volume is seen on its way out, with why it waits while the store is down; and then all of it is gone.
#[test]
fn the_end_of_a_volume_is_shown_and_waits_for_the_store() {
    let store = FaultyStore::start();
    let node = Node::start(&["--store", &store.url, "--volume", "v:256M", "--volume", "other:16M"]);
    node.varve(&["pool", "set", "default", "segment-size=4M", "seal-age=1s", "undelete-window=0s"]).ok();
    let mut client = Client::unix(&node.data().join("nbd.sock"), "v").unwrap();
    for at in 0..32 {
        client.run(Command::Write { fua: false }, at * (4 << 20), 4 << 20, &real::noise(4 << 20, at + 1)).unwrap();
    }
    drop(client);
    node.until_status("all to be in the store", |status| {
        status["volumes"].as_array().unwrap().iter().all(|volume| volume["dirty_bytes"] == 0)
    });
    store.proxy.set(Fault::Slow(Duration::from_millis(700)));
    node.varve(&["volume", "delete", "v"]).ok();
    node.until_status("the end to be seen", |status| {
        let ending = &status["endings"][0];
        ending["volume"] == "v" && ending["whole"] == true && ending["left_objects"].as_u64() > Some(0)
    });
    assert!(node.varve(&["status"]).ok().contains("deleted volume"));
    store.proxy.set(Fault::Down);
    node.until_status("it to be said why it waits", |status| status["endings"][0]["message"].is_string());
    store.proxy.set(Fault::Pass);
    node.until_status("the end", |status| status["endings"].as_array().unwrap().is_empty());
    let metrics = node.metrics();
    let value = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("{name} is not there")).parse::<f64>().unwrap()
    };
    assert!(value("varve_ended_objects_total") >= 32.0, "{metrics}");
    assert_eq!((value("varve_endings"), value("varve_ending_objects")), (0.0, 0.0));
}
