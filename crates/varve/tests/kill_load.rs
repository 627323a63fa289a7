// SPDX-License-Identifier: Apache-2.0
//! A verifying load under which the server is killed again and again, at random moments: in the middle of writes, of a
//! snapshot, of its own start. What it acknowledged is there when the volume acknowledges by `process`, what it flushed
//! when by `ram`; the rest is old or new by block; snapshots are exact. Segments and journal are as small as they may be,
//! so that seals, checkpoints and laps of the journal lie under the kills.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod load;
mod real;

use load::{BLOCK, Content, Picture, Promise, Random, Worker, compare};
use real::{DEADLINE, Node};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use varve_lab::nbd::Client;
use varve_lab::process::{Process, wait_until};
use varve_lab::seaweedfs::SeaweedFs;

const WORKERS: u64 = 4;
/// Of a worker.
const BLOCKS: u64 = 6 << 20 >> 12;
const JOURNAL_BYTES: u64 = 64 << 20;
/// Older snapshots are deleted.
const SNAPSHOTS: usize = 4;

/// A snapshot, and what each worker's part of it may hold.
struct Taken {
    name: String,
    pictures: Vec<Picture>,
    /// Whether its command was answered.
    sure: bool,
}

/// The volume `v`, its load, and what is known of it.
struct Scene {
    node: Node,
    workers: Vec<Worker>,
    snapshots: Vec<Taken>,
    random: Random,
    taken: u32,
}

impl Scene {
    fn new(args: &[&str], promise: Promise) -> Self {
        let seed = Random::seed();
        println!("VARVE_SEED={seed}");
        let mut random = Random::new(seed);
        let mut args = args.to_vec();
        args.extend(["--volume", "v:24M"]);
        assert_eq!(WORKERS * BLOCKS * BLOCK as u64, 24 << 20);
        let node = Node::start(&args);
        let ack = if promise == Promise::Acknowledged { "ack=process" } else { "ack=ram" };
        node.varve(&["volume", "set", "v", "segment-size=4M", "seal-age=1s", ack]).ok();
        let workers = (0..WORKERS).map(|index| Worker::new(index * BLOCKS, BLOCKS, promise, random.next())).collect();
        Self { node, workers, snapshots: Vec::new(), random, taken: 0 }
    }

    fn socket(&self) -> PathBuf {
        self.node.data().join("nbd.sock")
    }

    fn client(&self, export: &str) -> Client {
        Client::unix(&self.socket(), export).unwrap()
    }

    /// Runs the load until so many changes are acknowledged and `meanwhile` is done.
    fn load(&mut self, changes: u64, meanwhile: impl FnOnce(&Node)) {
        let (socket, done, stop) = (self.socket(), AtomicU64::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for worker in &mut self.workers {
                worker.settle();
                let (socket, done, stop) = (&socket, &done, &stop);
                scope.spawn(move || {
                    let _stop = StopOnPanic(stop);
                    let mut client = Client::unix(socket, "v").unwrap();
                    while !stop.load(Ordering::Relaxed) {
                        worker.step(&mut client, done).unwrap();
                    }
                });
            }
            meanwhile(&self.node);
            wait_until(DEADLINE, "the load", || {
                Ok(done.load(Ordering::Relaxed) >= changes || stop.load(Ordering::Relaxed))
            })
            .unwrap();
            stop.store(true, Ordering::Relaxed);
        });
    }

    /// Kills the server once so many changes are acknowledged.
    fn load_and_kill(&mut self, changes: u64) {
        let (socket, done, killed) = (self.socket(), AtomicU64::new(0), AtomicBool::new(false));
        let node = &mut self.node;
        std::thread::scope(|scope| {
            for worker in &mut self.workers {
                worker.settle();
                let (socket, done, killed) = (&socket, &done, &killed);
                scope.spawn(move || {
                    let error = endless(worker, socket, done);
                    assert!(killed.load(Ordering::SeqCst), "the server lives, and the load met {error}");
                });
            }
            let enough = wait_until(DEADLINE, "the load", || Ok(done.load(Ordering::Relaxed) >= changes));
            killed.store(true, Ordering::SeqCst);
            node.kill();
            enough.unwrap();
        });
    }

    fn name(&mut self) -> String {
        self.taken += 1;
        format!("s{}", self.taken)
    }

    /// A snapshot of a volume at rest.
    fn snapshot_at_rest(&mut self) {
        let name = self.name();
        self.node.varve(&["snapshot", "create", "v", &name]).ok();
        self.workers.iter_mut().for_each(Worker::flushed);
        let pictures = self.workers.iter().map(Worker::picture).collect();
        self.snapshots.push(Taken { name, pictures, sure: true });
    }

    /// A snapshot in the middle of the load: each block as it was at some moment of it.
    fn snapshot_under_load(&mut self) {
        let name = self.name();
        // What is acknowledged before has to be in it.
        self.load(200, |node| {
            node.varve(&["snapshot", "create", "v", &name]).ok();
        });
        let pictures = self.workers.iter().map(Worker::pictures).collect();
        self.snapshots.push(Taken { name, pictures, sure: true });
    }

    /// A snapshot during which the server is killed: there or not, but if there, exact.
    fn snapshot_and_kill(&mut self) {
        let name = self.name();
        let api = format!("unix:{}", self.node.data().join("api.sock").display());
        let mut command = real::varve();
        command.env("VARVE_API", api).args(["snapshot", "create", "v", &name]);
        let mut client = Process::start(&format!("snapshot-{name}"), command, self.node.dir.path()).unwrap();
        self.moment();
        self.node.kill();
        let sure = client.wait(DEADLINE).unwrap().success();
        if sure {
            self.workers.iter_mut().for_each(Worker::flushed);
        }
        let pictures = self.workers.iter().map(Worker::picture).collect();
        self.snapshots.push(Taken { name, pictures, sure });
    }

    /// A random moment, not a wait for anything.
    fn moment(&mut self) {
        std::thread::sleep(Duration::from_micros(self.random.below(60_000)));
    }

    /// Starts the server, and kills it before it serves or just after, so many times; then starts it to stay.
    fn restart(&mut self, kills: u64) {
        for kill in 0..kills {
            let name = format!("cut-{}-{kill}", self.taken);
            let mut process =
                Process::start(&name, self.node.command(&self.node.data()), self.node.dir.path()).unwrap();
            self.moment();
            process.kill().unwrap();
        }
        self.node.up();
    }

    /// After a crash: the volume and its snapshots are what they may be.
    fn recover(&mut self) {
        let mut client = self.client("v");
        for worker in &mut self.workers {
            worker.recover(&mut client);
        }
        let listed = self.node.varve(&["snapshot", "list", "v", "--json"]).json();
        let listed: Vec<&str> = listed.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
        self.snapshots.retain(|taken| taken.sure || listed.contains(&taken.name.as_str()));
        let known: Vec<&str> = self.snapshots.iter().map(|taken| taken.name.as_str()).collect();
        assert_eq!(listed, known);
        self.snapshots.iter_mut().for_each(|taken| taken.sure = true);
        self.verify_snapshots(1);
        while self.snapshots.len() > SNAPSHOTS {
            let oldest = self.snapshots.remove(0);
            self.node.varve(&["snapshot", "delete", "v", &oldest.name]).ok();
        }
    }

    /// The newest so many snapshots are exact. What was found once stays.
    fn verify_snapshots(&mut self, newest: usize) {
        let socket = self.socket();
        for taken in self.snapshots.iter_mut().rev().take(newest) {
            let export = format!("v@{}", taken.name);
            let mut client = Client::unix(&socket, &export).unwrap();
            for (worker, picture) in taken.pictures.iter_mut().enumerate() {
                let found: Vec<Content> = compare(&mut client, worker as u64 * BLOCKS, picture, &export);
                *picture = found.into_iter().map(|content| vec![content]).collect();
            }
        }
    }

    /// The load, and in each round a kill.
    fn run(&mut self, rounds: u64) {
        let mut acknowledged = 0;
        for round in 0..rounds {
            let changes = 100 + self.random.below(700);
            self.load(changes, |_| {});
            self.snapshot_at_rest();
            self.snapshot_under_load();
            if round % 3 == 2 {
                self.snapshot_and_kill();
            } else {
                let changes = self.random.below(900);
                self.load_and_kill(changes);
            }
            let kills = round % 2 * (1 + self.random.below(3));
            self.restart(kills);
            self.recover();
            self.check(&["check", "v"]);
            acknowledged = self.workers.iter().map(|worker| worker.changes).sum();
            println!("round {round}: {acknowledged} changes acknowledged, {:?}", self.space());
        }
        // At least this much, so that the journal has come round.
        let bytes = |scene: &Self| scene.workers.iter().map(|worker| worker.bytes).sum::<u64>();
        while bytes(self) < JOURNAL_BYTES * 5 / 4 {
            self.load(500, |_| {});
            self.load_and_kill(100);
            self.restart(0);
            self.recover();
        }
        println!("{acknowledged} changes in rounds, {} MiB in all", bytes(self) >> 20);
        let mut client = self.client("v");
        self.workers.iter().for_each(|worker| worker.verify(&mut client));
        self.verify_snapshots(SNAPSHOTS);
        self.verify_clone();
        self.check(&["check"]);
        self.node.stop();
        let data = self.node.data();
        self.check(&["check", "--data", data.to_str().unwrap()]);
    }

    /// Every block that is kept proves itself, and every count is what a count gives.
    fn check(&self, args: &[&str]) {
        let report = self.node.varve(&[args, &["--json"]].concat()).json();
        let volumes = report["volumes"].as_array().unwrap();
        assert!(!volumes.is_empty() && volumes.iter().all(|volume| volume["errors_total"] == 0), "{report}");
        // The clone has no block of its own.
        assert!(volumes.iter().any(|volume| volume["blocks_verified"].as_u64() > Some(0)), "{report}");
    }

    fn space(&self) -> String {
        self.node.varve(&["volume", "show", "v", "--json"]).json()["space"].to_string()
    }

    /// A clone of the oldest snapshot is that snapshot.
    fn verify_clone(&mut self) {
        let oldest = &self.snapshots[0];
        self.node.varve(&["clone", &format!("v@{}", oldest.name), "c"]).ok();
        let mut client = self.client("c");
        for (worker, picture) in oldest.pictures.iter().enumerate() {
            compare(&mut client, worker as u64 * BLOCKS, picture, "the clone");
        }
    }
}

/// Runs a worker until the connection ends, and tells why it did.
fn endless(worker: &mut Worker, socket: &Path, done: &AtomicU64) -> std::io::Error {
    match Client::unix(socket, "v") {
        Err(error) => error,
        Ok(mut client) => loop {
            if let Err(error) = worker.step(&mut client, done) {
                return error;
            }
        },
    }
}

/// Ends the others when one of them fails.
struct StopOnPanic<'a>(&'a AtomicBool);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

#[test]
fn every_acknowledged_write_survives_kills() {
    let mut scene = Scene::new(&[], Promise::Acknowledged);
    scene.run(9);
}

#[test]
fn every_flushed_write_survives_kills_when_ram_acknowledges() {
    let mut scene = Scene::new(&[], Promise::Flushed);
    scene.run(6);
}

#[test]
fn every_acknowledged_write_survives_kills_on_s3() {
    let server = SeaweedFs::start().unwrap();
    server.make_bucket("kills").unwrap();
    let secrets = tempfile::tempdir().unwrap();
    let store = s3_url(&server, "kills/some/prefix", secrets.path());
    let mut scene = Scene::new(&["--store", &store], Promise::Acknowledged);
    scene.run(6);
}

/// The address of a place on the server, whose credentials are written into the directory.
fn s3_url(server: &SeaweedFs, place: &str, dir: &Path) -> String {
    let file = dir.join("credentials");
    let (key, secret) = (SeaweedFs::ACCESS_KEY, SeaweedFs::SECRET_KEY);
    std::fs::write(&file, format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")).unwrap();
    format!("s3://{place}?endpoint={}&credentials={}", server.endpoint(), file.display())
}
