// SPDX-License-Identifier: Apache-2.0
//! The soak: everything at once, for as long as is asked for. Several volumes on a real S3 server behind a proxy with faults; random load, snapshots, clones,
//! rollbacks, rewinds and deletions; cleaning all the time; the server killed under load; and the store down, slow, erring, cutting short and answering wrongly.
//!
//! A round is a phase of load, in which faults come and go and the server may be killed, and a phase without load, in which everything can be compared: volumes, snapshots,
//! clones and moments of the past with what was written; every few rounds every block and every count is verified (`varve check`), and the server's RAM is looked at.
//!
//! `VARVE_SOAK_SECONDS` says how long (30 where nobody says it); `VARVE_SEED` plays the choices of a failed run again. `cargo xtask soak --minutes N` runs it.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod faulty;
mod load;
mod real;

use faulty::FaultyStore;
use load::{BLOCK, Picture, Promise, Random, Worker, compare};
use real::{DEADLINE, Node};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};
use varve_lab::fault_proxy::Fault;
use varve_lab::nbd::Client;
use varve_lab::process::wait_until;

/// Of a volume.
const BLOCKS: u64 = 16 << 20 >> 12;
const VOLUMES: usize = 3;
/// Snapshots, and moments, that are remembered of a volume.
const MOST: usize = 4;
/// How long a phase of load lasts.
const PHASE: Duration = Duration::from_secs(2);
/// Rounds between two checks.
const CHECK_EVERY: u64 = 4;
/// The read cache in RAM.
const CACHE_KIB: u64 = 32 << 10;
/// More RAM than the server may ever take: its bounds for layers (64 MiB) and cache, and what is under way to and from the store.
const MOST_RAM_KIB: u64 = 256 << 10;

/// A volume, and what is known of it.
struct Volume {
    name: String,
    worker: Worker,
    snapshots: Vec<(String, Picture)>,
    /// What it was, and when: in milliseconds since 1970.
    moments: Vec<(u64, Picture)>,
}

/// What was done.
#[derive(Debug, Default)]
struct Counts {
    rounds: u64,
    kills: u64,
    faults: u64,
    snapshots: u64,
    clones: u64,
    rollbacks: u64,
    rewinds: u64,
    /// Moments that had left the window because it was full.
    moments_gone: u64,
    checks: u64,
}

struct Soak {
    node: Node,
    volumes: Vec<Volume>,
    random: Random,
    names: u64,
    counts: Counts,
    ram_kib: Vec<u64>,
    store: FaultyStore,
}

fn now_ms() -> u64 {
    UNIX_EPOCH.elapsed().unwrap().as_millis() as u64
}

impl Soak {
    fn start(seed: u64) -> Self {
        let store = FaultyStore::start();
        let mut node = Node::new(&["--store", &store.url]);
        let config = node.path("varve.toml");
        let mut lines = std::fs::read_to_string(&config).unwrap();
        lines.push_str(&format!("ram-cache = '{}M'\n", CACHE_KIB >> 10));
        std::fs::write(&config, lines).unwrap();
        node.up();
        node.varve(&["pool", "set", "default", "segment-size=4M", "seal-age=1s", "undelete-window=0s"]).ok();
        node.varve(&["pool", "set", "default", "rewind-window=30s", "rewind-space=100%"]).ok();
        let mut soak = Self {
            node,
            volumes: Vec::new(),
            random: Random::new(seed),
            names: 0,
            counts: Counts::default(),
            ram_kib: Vec::new(),
            store,
        };
        for _ in 0..VOLUMES {
            let (name, seed) = (soak.fresh("v"), soak.random.next());
            soak.node.varve(&["volume", "create", &name, "--size", "16M"]).ok();
            let worker = Worker::new(0, BLOCKS, Promise::Acknowledged, seed);
            soak.volumes.push(Volume { name, worker, snapshots: Vec::new(), moments: Vec::new() });
        }
        soak
    }

    fn fresh(&mut self, kind: &str) -> String {
        self.names += 1;
        format!("{kind}{}", self.names)
    }

    fn client(&self, export: &str) -> Client {
        Client::unix(&self.node.data().join("nbd.sock"), export).unwrap()
    }

    fn chance(&mut self, of_hundred: u64) -> bool {
        self.random.below(100) < of_hundred
    }

    fn fault(&mut self) -> Fault {
        match self.random.below(8) {
            0 => Fault::Down,
            1 => Fault::Slow(Duration::from_millis(20 + self.random.below(200))),
            2 => Fault::Erring { one_in: 2 + self.random.below(8) },
            3 => Fault::Truncating { one_in: 2 + self.random.below(8) },
            4 => Fault::Wrong { one_in: 2 + self.random.below(8) },
            _ => Fault::Pass,
        }
    }

    /// A phase of load, under a fault perhaps; the server may be killed inside it.
    fn load(&mut self) {
        let (fault, is_killed) = (self.fault(), self.chance(25));
        self.counts.faults += u64::from(fault != Fault::Pass);
        self.store.proxy.set(fault);
        let clients: Vec<Client> = self.volumes.iter().map(|volume| self.client(&volume.name)).collect();
        let (stop, done, killed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicBool::new(false));
        let (stop, done, killed) = (&stop, &done, &killed);
        let (node, proxy, volumes) = (&mut self.node, &self.store.proxy, &mut self.volumes);
        std::thread::scope(|scope| {
            for (volume, mut client) in volumes.iter_mut().zip(clients) {
                scope.spawn(move || {
                    while !stop.load(Ordering::SeqCst) {
                        if let Err(error) = volume.worker.step(&mut client, done) {
                            assert!(killed.load(Ordering::SeqCst), "{}: {error}", volume.name);
                            return;
                        }
                    }
                });
            }
            let begun = Instant::now();
            // What waits for the store waits until it is well again.
            wait_until(DEADLINE, "the phase to pass", || Ok(begun.elapsed() >= PHASE)).unwrap();
            if is_killed {
                killed.store(true, Ordering::SeqCst);
                node.kill();
            }
            stop.store(true, Ordering::SeqCst);
            proxy.set(Fault::Pass);
        });
        if is_killed {
            self.counts.kills += 1;
            self.node.up();
            for at in 0..self.volumes.len() {
                let mut client = self.client(&self.volumes[at].name);
                self.volumes[at].worker.recover(&mut client);
            }
        }
        assert!(is_killed || done.load(Ordering::SeqCst) > 0, "nothing was done");
    }

    /// Everything is in the store.
    fn settle(&mut self) {
        let node = &self.node;
        wait_until(DEADLINE, "all to be in the store", || {
            let status = node.varve(&["status", "--json"]).json();
            Ok(status["volumes"].as_array().unwrap().iter().all(|volume| volume["dirty_bytes"] == 0))
        })
        .unwrap();
        // Another moment than the end of the next segment, by any clock.
        let at = now_ms();
        for volume in &mut self.volumes {
            volume.worker.flushed();
            volume.worker.settle();
            volume.moments.push((at, volume.worker.picture()));
            let surplus = volume.moments.len().saturating_sub(MOST);
            volume.moments.drain(..surplus);
        }
        wait_until(DEADLINE, "the clock to go on", || Ok(now_ms() > at + 200)).unwrap();
    }

    fn act(&mut self) {
        let at = self.random.below(VOLUMES as u64) as usize;
        let name = self.volumes[at].name.clone();
        match self.random.below(5) {
            0 if self.volumes[at].snapshots.len() < MOST => {
                let snapshot = self.fresh("s");
                self.node.varve(&["snapshot", "create", &name, &snapshot]).ok();
                let picture = self.volumes[at].worker.picture();
                self.volumes[at].snapshots.push((snapshot, picture));
                self.counts.snapshots += 1;
            }
            1 if !self.volumes[at].snapshots.is_empty() => {
                let one = self.random.below(self.volumes[at].snapshots.len() as u64) as usize;
                let (snapshot, _) = self.volumes[at].snapshots.remove(one);
                self.node.varve(&["snapshot", "delete", &name, &snapshot]).ok();
            }
            2 if !self.volumes[at].snapshots.is_empty() => {
                let one = self.random.below(self.volumes[at].snapshots.len() as u64) as usize;
                let (snapshot, picture) = self.volumes[at].snapshots[one].clone();
                let new = self.fresh("c");
                self.node.varve(&["clone", &format!("{name}@{snapshot}"), &new]).ok();
                self.prove_and_delete(&new, &picture, &format!("a clone of {name}@{snapshot}"));
                self.counts.clones += 1;
            }
            3 if !self.volumes[at].snapshots.is_empty() => self.roll_back(at, &name),
            4 => self.rewind(at, &name),
            _ => {}
        }
    }

    /// Compares a volume that was made of another one, and deletes it again.
    fn prove_and_delete(&self, new: &str, picture: &Picture, what: &str) {
        compare(&mut self.client(new), 0, picture, what);
        self.node.varve(&["volume", "delete", new]).ok();
    }

    fn roll_back(&mut self, at: usize, name: &str) {
        let one = self.random.below(self.volumes[at].snapshots.len() as u64) as usize;
        let (snapshot, picture) = self.volumes[at].snapshots[one].clone();
        self.node.varve(&["snapshot", "rollback", name, &snapshot, "--yes"]).ok();
        let mut client = self.client(name);
        let volume = &mut self.volumes[at];
        volume.snapshots.truncate(one + 1);
        volume.moments.clear();
        volume.worker.becomes(&picture);
        volume.worker.verify(&mut client);
        self.counts.rollbacks += 1;
    }

    /// Brings back a moment, where it is young enough to be in the window for sure.
    fn rewind(&mut self, at: usize, name: &str) {
        let now = now_ms();
        let young: Vec<_> = self.volumes[at].moments.iter().filter(|(ms, _)| now < ms + 20_000).cloned().collect();
        if young.is_empty() {
            return;
        }
        let (ms, picture) = young[self.random.below(young.len() as u64) as usize].clone();
        // A little later than the moment: the command takes its time, too.
        let ago = format!("{}ms", now_ms().saturating_sub(ms + 50));
        let new = self.fresh("c");
        let run = self.node.varve(&["rewind", name, &new, "--ago", &ago]);
        if run.code == 3 && run.err.contains("the oldest is of") {
            // A phase may overwrite more than the window has room for.
            self.counts.moments_gone += 1;
            return;
        }
        run.ok();
        self.prove_and_delete(&new, &picture, &format!("{name} {ago} ago"));
        self.counts.rewinds += 1;
    }

    fn compare_all(&mut self) {
        for volume in &self.volumes {
            volume.worker.verify(&mut self.client(&volume.name));
            for (snapshot, picture) in &volume.snapshots {
                compare(&mut self.client(&format!("{}@{snapshot}", volume.name)), 0, picture, snapshot);
            }
        }
    }

    fn look_at_ram(&mut self) {
        let pid = self.node.process().id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(kib <= MOST_RAM_KIB, "the server takes {kib} KiB: {:?}", self.ram_kib);
        self.ram_kib.push(kib);
    }

    fn round(&mut self) {
        self.counts.rounds += 1;
        self.load();
        self.settle();
        for _ in 0..2 + self.random.below(3) {
            self.act();
        }
        if self.counts.rounds.is_multiple_of(CHECK_EVERY) {
            self.compare_all();
            self.node.varve(&["check"]).ok();
            self.counts.checks += 1;
        }
        self.look_at_ram();
    }
}

#[test]
fn everything_at_once_for_a_while_on_s3() {
    let seconds = std::env::var("VARVE_SOAK_SECONDS").ok().map_or(30, |text| text.parse().unwrap());
    let seed = Random::seed();
    println!("VARVE_SEED={seed}");
    let mut soak = Soak::start(seed);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(seconds) || soak.counts.checks == 0 {
        soak.round();
    }
    soak.compare_all();
    soak.node.varve(&["check"]).ok();
    let changes: u64 = soak.volumes.iter().map(|volume| volume.worker.changes).sum();
    let bytes: u64 = soak.volumes.iter().map(|volume| volume.worker.bytes).sum();
    let (first, last) = (soak.ram_kib.first().unwrap(), soak.ram_kib.last().unwrap());
    let most = soak.ram_kib.iter().max().unwrap();
    println!("{changes} changes, {} MiB, {} blocks of {BLOCK}; {:?}", bytes >> 20, BLOCKS, soak.counts);
    println!("RAM of the server in KiB: {first} first, {last} last, {most} most");
}
