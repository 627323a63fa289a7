// SPDX-License-Identifier: Apache-2.0
//! A server whose machine loses its power: it runs inside a guest, on ext4 on a disk with a volatile cache, and QEMU is
//! killed under load. Unlike a `kill -9` this takes the kernel's page cache and the disk's, so it tells every missing
//! `fsync`: what was flushed has to be there at the next boot, and the rest is old or new by block.
//!
//! The load runs on the host, over a forwarded port, so that what it knows outlives the guest.

#![allow(clippy::unwrap_used)]

mod load;

use load::{Picture, Promise, Random, Worker, compare};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use varve_lab::guest::{Disk, Guest, GuestConfig, Initramfs, Kernel, RawCache};
use varve_lab::nbd::Client;
use varve_lab::process::wait_until;

/// Ten times what anything here takes on a quiet machine, and short enough that the runner lets the test say what hangs.
const SOON: Duration = Duration::from_secs(60);
const PORT: u16 = 10809;
const WORKERS: u64 = 2;
/// Of a worker.
const BLOCKS: u64 = 4 << 20 >> 12;

/// Mounts the disk and starts the server in the background; ends when it serves.
const START: &str = "mkdir -p /data && mount -t ext4 -o commit=600 /dev/vda /data || exit 1
    varve up --config /etc/varve.toml --data /data/varve --volume v:8M --nbd-listen 0.0.0.0:10809 >/tmp/log 2>&1 &
    until grep -q 'Ctrl-C stops it' /tmp/log; do
        tries=$((tries + 1))
        kill -0 $! 2>/dev/null && [ $tries -lt 1500 ] || { cat /tmp/log; exit 1; }; usleep 20000; done";

fn config(directory: &Path) -> GuestConfig {
    let kernel = Kernel::find().unwrap();
    let settings = "journal-size = '64M'\nlayer-ram = '64M'\napi-listen = 'none'\n";
    let initramfs = Initramfs::builder().program("mkfs.ext4").program(env!("CARGO_BIN_EXE_varve"));
    let initramfs = initramfs.bytes("/etc/varve.toml", 0o644, settings).build(&kernel, directory).unwrap();
    let mut config = GuestConfig::new(kernel, initramfs, directory);
    config.memory_mb = 1536;
    config.disks.push(Disk::create_raw(directory.join("disk.raw"), 1 << 30, RawCache::Volatile).unwrap());
    config.forward_ports.push(PORT);
    config
}

/// A guest whose server serves.
fn boot(config: &GuestConfig) -> (Guest, SocketAddr) {
    let mut guest = Guest::boot(config.clone()).unwrap();
    guest.keep_writes_in_memory().unwrap();
    guest.check(START, SOON).unwrap();
    let address = guest.forwarded(PORT).unwrap();
    (guest, address)
}

fn varve(guest: &mut Guest, command: &str) {
    let command = format!("timeout 40 varve --api unix:/data/varve/api.sock {command}");
    guest.check(&format!("{command} || {{ cat /tmp/log; exit 1; }}"), SOON).unwrap();
}

/// Runs a worker until it is told to stop or the connection ends, and gives the reason.
fn work(worker: &mut Worker, address: SocketAddr, done: &AtomicU64, stop: &AtomicBool) -> std::io::Result<()> {
    let mut client = Client::tcp(address, "v")?;
    while !stop.load(Ordering::SeqCst) {
        worker.step(&mut client, done)?;
    }
    Ok(())
}

/// Runs the load until so many changes are acknowledged, and then `end`s it, which may be the end of the guest.
fn load(workers: &mut [Worker], address: SocketAddr, changes: u64, end: impl FnOnce(&AtomicBool)) {
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for worker in workers {
            worker.settle();
            let (done, stop) = (&done, &stop);
            scope.spawn(move || {
                if let Err(error) = work(worker, address, done, stop) {
                    assert!(stop.swap(true, Ordering::SeqCst), "the guest lives, and the load met {error}");
                }
            });
        }
        let enough = || done.load(Ordering::Relaxed) >= changes || stop.load(Ordering::SeqCst);
        let waited = wait_until(SOON, "the load", || Ok(enough()));
        end(&stop);
        stop.store(true, Ordering::SeqCst);
        waited.unwrap();
    });
}

#[test]
fn what_was_flushed_in_a_guest_outlives_its_power() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    let seed = Random::seed();
    println!("VARVE_SEED={seed}");
    let mut random = Random::new(seed);
    let new = |index| Worker::new(index * BLOCKS, BLOCKS, Promise::Flushed, random.next());
    let mut workers: Vec<Worker> = (0..WORKERS).map(new).collect();

    let mut guest = Guest::boot(config.clone()).unwrap();
    guest.check("mkfs.ext4 -q /dev/vda && sync", SOON).unwrap();
    guest.kill().unwrap();
    let (mut guest, mut address) = boot(&config);
    varve(&mut guest, "volume set v segment-size=4M seal-age=1s");
    let mut snapshots: Vec<(String, Vec<Picture>)> = Vec::new();
    for round in 0..2 {
        load(&mut workers, address, 150 + random.below(150), |_| {});
        let name = format!("s{round}");
        varve(&mut guest, &format!("snapshot create v {name}"));
        workers.iter_mut().for_each(Worker::flushed);
        snapshots.push((name, workers.iter().map(Worker::picture).collect()));
        load(&mut workers, address, random.below(250), |stop| {
            stop.store(true, Ordering::SeqCst);
            guest.kill().unwrap();
        });

        (guest, address) = boot(&config);
        let mut client = Client::tcp(address, "v").unwrap();
        workers.iter_mut().for_each(|worker| worker.recover(&mut client));
        for (name, pictures) in &snapshots {
            let export = format!("v@{name}");
            let mut client = Client::tcp(address, &export).unwrap();
            for (worker, picture) in pictures.iter().enumerate() {
                compare(&mut client, worker as u64 * BLOCKS, picture, &export);
            }
        }
        let changes: u64 = workers.iter().map(|worker| worker.changes).sum();
        println!("round {round}: {changes} changes acknowledged");
    }
    guest.kill().unwrap();
}
