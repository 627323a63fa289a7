// SPDX-License-Identifier: Apache-2.0
//! A node on a real S3 server: what it keeps there is read again after stops and kills, by snapshots and by clones; a
//! store that can not be used is refused in words that say why; and one that goes away for a while costs nothing but
//! time, since writes go on into the journal until it is back.

#![allow(clippy::unwrap_used)]

mod load;
mod real;

use load::{Promise, Random, Worker};
use real::{DEADLINE, Node, Run, noise};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use varve_lab::nbd::{Client, Command};
use varve_lab::process::wait_until;
use varve_lab::seaweedfs::SeaweedFs;

const MIB: u64 = 1 << 20;

/// An S3 server with the bucket `disks`, and credentials for it.
struct S3 {
    server: SeaweedFs,
    dir: tempfile::TempDir,
}

impl S3 {
    fn start() -> Self {
        let server = SeaweedFs::start().unwrap();
        server.make_bucket("disks").unwrap();
        let s3 = Self { server, dir: tempfile::tempdir().unwrap() };
        s3.credentials("right", SeaweedFs::ACCESS_KEY, SeaweedFs::SECRET_KEY);
        s3
    }

    fn credentials(&self, name: &str, key: &str, secret: &str) {
        let text = format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n");
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    /// The address of a place, `bucket/prefix`, with the credentials of that name.
    fn url(&self, place: &str, credentials: &str) -> String {
        let file = self.dir.path().join(credentials);
        format!("s3://{place}?endpoint={}&credentials={}", self.server.endpoint(), file.display())
    }
}

/// Segments are small and put soon.
fn hurry(node: &Node) {
    node.varve(&["volume", "set", "v", "segment-size=4M", "seal-age=1s"]).ok();
}

fn client(node: &Node, export: &str) -> Client {
    Client::unix(&node.data().join("nbd.sock"), export).unwrap()
}

fn write(client: &mut Client, at: u64, data: &[u8]) {
    for (index, piece) in data.chunks(MIB as usize).enumerate() {
        client.run(Command::Write { fua: false }, at + index as u64 * MIB, piece.len() as u32, piece).unwrap();
    }
}

#[track_caller]
fn reads(client: &mut Client, at: u64, data: &[u8]) {
    for (index, piece) in data.chunks(MIB as usize).enumerate() {
        let found = client.read(at + index as u64 * MIB, piece.len() as u32).unwrap();
        assert!(found == piece, "other data at {at} + {index} MiB");
    }
}

fn space(node: &Node, field: &str) -> u64 {
    node.varve(&["volume", "show", "v", "--json"]).json()["space"][field].as_u64().unwrap()
}

fn until_stored(node: &Node) {
    wait_until(DEADLINE, "all to be in the store", || Ok(space(node, "dirty_bytes") == 0)).unwrap();
}

#[test]
fn what_is_written_is_read_after_stops_and_kills() {
    let s3 = S3::start();
    let mut node = Node::start(&["--store", &s3.url("disks/some/prefix", "right"), "--volume", "v:128M"]);
    hurry(&node);
    let (old, new, late) = (noise(20 << 20, 1), noise(6 << 20, 2), noise(3 << 20, 3));
    write(&mut client(&node, "v"), MIB, &old);
    node.varve(&["snapshot", "create", "v", "s"]).ok();
    write(&mut client(&node, "v"), 5 * MIB, &new);
    client(&node, "v").run(Command::Trim, 30 * MIB, 8 << 20, &[]).unwrap();

    node.stop();
    node.up();
    let check = |node: &Node| {
        let mut v = client(node, "v");
        reads(&mut v, MIB, &old[..4 << 20]);
        reads(&mut v, 5 * MIB, &new);
        reads(&mut v, 11 * MIB, &old[10 << 20..]);
        reads(&mut v, 30 * MIB, &vec![0; 8 << 20]);
        reads(&mut client(node, "v@s"), MIB, &old);
    };
    check(&node);
    assert!(space(&node, "stored_bytes") > 20 * MIB);
    assert!(!node.data().join("store").exists(), "nothing is kept beside the bucket");

    write(&mut client(&node, "v"), 60 * MIB, &late);
    node.kill();
    node.up();
    check(&node);
    reads(&mut client(&node, "v"), 60 * MIB, &late);
    until_stored(&node);

    node.varve(&["clone", "v@s", "c"]).ok();
    write(&mut client(&node, "c"), 2 * MIB, &late);
    node.kill();
    node.up();
    check(&node);
    let mut c = client(&node, "c");
    reads(&mut c, MIB, &old[..1 << 20]);
    reads(&mut c, 2 * MIB, &late);
    reads(&mut c, 5 * MIB, &old[4 << 20..]);
    reads(&mut c, 60 * MIB, &vec![0; 3 << 20]);
    node.stop();
}

/// A start that must fail.
#[track_caller]
fn refused(node: &Node, data: &Path, store: &str) -> String {
    let run: Run = node.command(data).args(["--store", store, "--volume", "v:1M"]).output().unwrap().into();
    assert!(run.code != 0 && run.out.is_empty(), "{run:?}");
    run.err
}

#[test]
fn wrong_credentials_and_buckets_are_refused_in_words() {
    let s3 = S3::start();
    s3.credentials("key", "nobody", SeaweedFs::SECRET_KEY);
    s3.credentials("secret", SeaweedFs::ACCESS_KEY, "guessed-secret");
    let node = Node::new(&[]);
    for wrong in ["key", "secret"] {
        let error = refused(&node, &node.path(wrong), &s3.url("disks", wrong));
        assert!(error.contains("credentials") || error.contains("denied") || error.contains("refuse"), "{error}");
        assert!(!error.contains("guessed-secret") && !error.contains(SeaweedFs::SECRET_KEY), "{error}");
    }
    let error = refused(&node, &node.path("file"), &s3.url("disks", "none"));
    assert!(error.contains("credentials file"), "{error}");
    let error = refused(&node, &node.path("bucket"), &s3.url("nothing-here", "right"));
    assert!(error.contains("nothing-here") && error.contains("bucket"), "{error}");
    let elsewhere = s3.url("disks", "right").replace(&s3.server.endpoint(), "http://127.0.0.1:9");
    let error = refused(&node, &node.path("port"), &elsewhere);
    assert!(error.contains("127.0.0.1:9"), "{error}");
    // What was refused is no hindrance to what is right.
    for data in ["key", "bucket"] {
        let mut node = Node::new(&["--store", &s3.url(&format!("disks/{data}"), "right"), "--volume", "v:1M"]);
        node.up();
        node.stop();
    }
}

#[test]
fn a_store_that_goes_away_costs_only_time() {
    let mut s3 = S3::start();
    let mut node = Node::start(&["--store", &s3.url("disks/p", "right"), "--volume", "v:256M"]);
    hurry(&node);
    let (first, second, third) = (noise(12 << 20, 4), noise(16 << 20, 5), noise(4 << 20, 6));
    let mut v = client(&node, "v");
    write(&mut v, 0, &first);
    v.run(Command::Flush, 0, 0, &[]).unwrap();
    until_stored(&node);
    reads(&mut v, 0, &first);

    s3.server.stop().unwrap();
    write(&mut v, 20 * MIB, &second);
    v.run(Command::Flush, 0, 0, &[]).unwrap();
    node.varve(&["snapshot", "create", "v", "meanwhile"]).ok();
    write(&mut v, 100 * MIB, &third);
    v.run(Command::Flush, 0, 0, &[]).unwrap();
    // What is not in the store yet, and what the cache has.
    reads(&mut v, 20 * MIB, &second);
    reads(&mut v, 0, &first);
    reads(&mut v, 100 * MIB, &third);
    let stored = space(&node, "stored_bytes");
    node.until_status("the status to tell of it", |status| status["pools"][0]["state"] != "ok");
    assert_eq!(space(&node, "stored_bytes"), stored);
    assert!(space(&node, "dirty_bytes") >= 20 * MIB);

    s3.server.start_again().unwrap();
    until_stored(&node);
    assert!(space(&node, "stored_bytes") >= stored + 20 * MIB);
    drop(v);
    node.kill();
    node.up();
    let mut v = client(&node, "v");
    reads(&mut v, 0, &first);
    reads(&mut v, 20 * MIB, &second);
    reads(&mut v, 100 * MIB, &third);
    reads(&mut client(&node, "v@meanwhile"), 20 * MIB, &second);
    reads(&mut client(&node, "v@meanwhile"), 100 * MIB, &vec![0; 4 << 20]);
    node.stop();
}

#[test]
fn a_kill_while_the_store_is_away_loses_nothing() {
    let mut s3 = S3::start();
    let mut node = Node::start(&["--store", &s3.url("disks/p", "right"), "--volume", "v:64M"]);
    hurry(&node);
    let (first, second) = (noise(5 << 20, 7), noise(9 << 20, 8));
    write(&mut client(&node, "v"), 0, &first);
    until_stored(&node);
    s3.server.stop().unwrap();
    write(&mut client(&node, "v"), 3 * MIB, &second);
    node.kill();
    // What the store has can not be told now, so the volume waits, and the node serves it by itself later.
    node.up();
    let served = |node: &Node| Client::unix(&node.data().join("nbd.sock"), "v").is_ok();
    assert!(!served(&node));
    s3.server.start_again().unwrap();
    wait_until(DEADLINE, "the volume to be served", || Ok(served(&node))).unwrap();
    reads(&mut client(&node, "v"), 0, &first[..3 << 20]);
    reads(&mut client(&node, "v"), 3 * MIB, &second);
}

#[test]
fn a_running_load_goes_on_while_the_store_is_away() {
    let mut s3 = S3::start();
    let mut node = Node::start(&["--store", &s3.url("disks/p", "right"), "--volume", "v:32M"]);
    hurry(&node);
    let seed = Random::seed();
    println!("VARVE_SEED={seed}");
    let mut worker = Worker::new(0, 32 << 20 >> 12, Promise::Acknowledged, seed);
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut loaded = client(&node, "v");
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                worker.step(&mut loaded, &done).unwrap();
            }
        });
        let more = |changes: u64| {
            let goal = done.load(Ordering::Relaxed) + changes;
            let reached = || Ok(load.is_finished() || done.load(Ordering::Relaxed) >= goal);
            wait_until(DEADLINE, "the load to go on", reached)
        };
        let mut away = || {
            more(400)?;
            // Changes of parts of blocks wait where the rest of a block is only in the store: how many go on meanwhile is chance.
            s3.server.stop()?;
            s3.server.start_again()?;
            more(400)
        };
        let survived = away();
        stop.store(true, Ordering::Relaxed);
        survived.unwrap();
    });
    worker.verify(&mut loaded);
    until_stored(&node);
    drop(loaded);
    node.kill();
    node.up();
    worker.recover(&mut client(&node, "v"));
    node.varve(&["check", "v"]).ok();
}
