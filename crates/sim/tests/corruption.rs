// SPDX-License-Identifier: Apache-2.0
//! Spoilt bytes: every kind of object and the journal are flipped, cut short, removed, and swapped for one another. What reads them says `Corrupt` and names the object, or was
//! never in need of those bytes; it never gives wrong data and never panics. A check finds whatever no read has met.

use varve_sim::node;

use node::{Node, name};
use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;
use std::rc::Rc;
use std::time::Duration;
use varve_engine::{CheckReport, EngineError};
use varve_env::Disk;
use varve_format::journal::{SUPERBLOCK, Superblock};
use varve_sim::{CrashMode, InFlight, Rng, SimOptions};
use varve_types::{Compression, ErrorKind, Overrides};

const SIZE: u64 = 1 << 20;

/// A volume with every kind of object: merged segments, a bundle, kept kills, snapshots, segments behind the manifest, a clone, a tail in the journal.
struct Stored {
    node: Node,
    /// What each volume and snapshot reads as.
    wanted: BTreeMap<(String, Option<String>), Vec<u8>>,
}

fn pattern(seed: u64, len: u64) -> Vec<u8> {
    (0..len).map(|i| ((i / 5 + seed * 77) % 251 + 1) as u8).collect()
}

fn write(node: &Node, array: &mut [u8], offset: u64, len: u64, seed: u64) {
    let data = pattern(seed, len);
    array[offset as usize..(offset + len) as usize].copy_from_slice(&data);
    let device = node.device("v");
    node.write(&device, offset, data, true).expect("alive").expect("a write");
}

fn settle(node: &Node) {
    let volume = node.volume("v");
    node.must("settle", async move {
        volume.seal().await?;
        volume.checkpoint().await
    });
}

fn stored(compression: Compression) -> Stored {
    let mut node = Node::new(SimOptions::seed(3), 9 << 20);
    node.pool = Overrides { compression: Some(compression), ..node.pool };
    node.create().expect("the world runs").expect("the shard starts");
    node.create_volume("v", SIZE);
    let mut array = vec![0; SIZE as usize];
    let mut wanted = BTreeMap::new();
    write(&node, &mut array, 0, 300 << 10, 0);
    settle(&node);
    (0..10).for_each(|part| write(&node, &mut array, part * (30 << 10), 20 << 10, 1));
    settle(&node);
    node.world.run_for(Duration::from_secs(10)).expect("the world runs");
    // From the next start on nothing is cleaned: what goes bad stays where it is.
    node.limits.occupancy = 0;
    let volume = node.volume("v");
    node.must("snapshot", async move { volume.snapshot(name("a")).await });
    wanted.insert(("v".to_owned(), Some("a".to_owned())), array.clone());
    write(&node, &mut array, 64 << 10, 100 << 10, 2);
    settle(&node);
    write(&node, &mut array, 128 << 10, 8 << 10, 3);
    let shard = node.shard();
    node.must(
        "clone",
        async move { shard.clone_volume(&name("v"), None, name("w"), Overrides::default()).await.map(drop) },
    );
    wanted.insert(("w".to_owned(), None), array.clone());
    write(&node, &mut array, 400 << 10, 20 << 10, 4);
    wanted.insert(("v".to_owned(), None), array);
    // Objects that wait to be deleted go.
    node.world.run_for(Duration::from_millis(200)).expect("the world runs");
    Stored { node, wanted }
}

/// What came of reading everything after a start.
#[derive(Default)]
struct Outcome {
    errors: Vec<EngineError>,
    problems: Vec<varve_engine::Problem>,
}

impl Outcome {
    fn texts(&self) -> String {
        let errors = self.errors.iter().map(|error| format!("{error} ({:?})", error.kind()));
        let problems = self.problems.iter().map(|problem| format!("{}: {}", problem.object, problem.message));
        errors.chain(problems).collect::<Vec<_>>().join("\n")
    }
}

impl Stored {
    /// Starts anew and reads and checks everything. Data that are wrong end the test.
    fn read_all(&mut self, what: &str) -> Outcome {
        self.node.crash(CrashMode::Kill, InFlight::Landed);
        let mut outcome = Outcome::default();
        match self.node.open().unwrap_or_else(|error| panic!("{what}: {error}")) {
            Err(error) => {
                outcome.errors.push(error);
                return outcome;
            }
            Ok(failed) => outcome.errors.extend(failed.into_iter().map(|(_, error)| error)),
        }
        for ((vol, snap), wanted) in &self.wanted {
            let Ok(volume) = self.node.shard().find(&name(vol)) else { continue };
            let snap = snap.clone();
            let device = self.node.run(async move {
                Ok(match snap {
                    None => Rc::new(volume.device("test".to_owned()).await?.0),
                    Some(snap) => Rc::new(volume.snapshot_device(&name(&snap), "test".to_owned()).await?),
                })
            });
            match device.unwrap_or_else(|error| panic!("{what}: {error}")) {
                Err(error) => outcome.errors.push(error),
                Ok(device) => {
                    for at in (0..SIZE).step_by(64 << 10) {
                        match self.node.read(&device, at, 64 << 10).unwrap_or_else(|error| panic!("{what}: {error}")) {
                            Err(error) => outcome.errors.push(error),
                            Ok(bytes) => {
                                let range = at as usize..at as usize + (64 << 10);
                                assert!(bytes == wanted[range], "{what}: wrong data of {vol} at {at}");
                            }
                        }
                    }
                }
            }
        }
        for volume in self.node.shard().volumes() {
            let checked = self.node.run(async move { volume.check(&|_, _| {}).await });
            match checked.unwrap_or_else(|error| panic!("{what}: {error}")) {
                Ok(CheckReport { problems, .. }) => outcome.problems.extend(problems),
                Err(error) => outcome.errors.push(error),
            }
        }
        outcome
    }
}

fn must_name(outcome: &Outcome, object: &str, what: &str) {
    for error in &outcome.errors {
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    }
    assert!(outcome.texts().contains(object), "{what}: nothing names {object}:\n{}", outcome.texts());
}

/// Whether the manifests that coordination names, or what they name, need this object.
fn is_needed(object: &str, needed: &[String]) -> bool {
    needed.iter().any(|name| name == object)
}

/// Names of all objects without which something is missed, found by removing one after the other.
fn needed(compression: Compression) -> Vec<String> {
    let names = stored(compression).node.server.names();
    let gone = |object: &String| {
        let mut stored = stored(compression);
        assert!(stored.node.server.remove(object));
        let outcome = stored.read_all(&format!("{object} removed"));
        if outcome.texts().is_empty() {
            return false;
        }
        must_name(&outcome, object, "removed");
        true
    };
    names.into_iter().filter(gone).collect()
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    for compression in [Compression::Lz4, Compression::None] {
        assert_eq!(stored(compression).read_all("untouched").texts(), "");
    }
}

#[test]
fn spoilt_objects_are_named_and_never_believed() {
    let compression = Compression::Lz4;
    let needed = needed(compression);
    for kind in ["/seg/", "/bun/", "/map/", "/tab/", "/man/"] {
        assert!(
            needed.iter().any(|object| object.contains(kind)),
            "an object of the kind {kind} is needed: {needed:?}"
        );
    }
    let mut rng = Rng::new(5);
    for object in stored(compression).node.server.names() {
        let len = stored(compression).node.server.object(&object).expect("it is there").len() as u64;
        let places = [0, 9, 17, len / 3, len / 2, len - 1, rng.below(len), rng.below(len)];
        for place in places {
            let mut stored = stored(compression);
            assert!(stored.node.server.flip_bit(&object, place, (place % 8) as u8));
            let what = format!("{object}, bit of byte {place} of {len}");
            let outcome = stored.read_all(&what);
            if is_needed(&object, &needed) {
                let version = outcome.errors.iter().any(|error| error.kind() == ErrorKind::Invalid);
                assert!(version || !outcome.texts().is_empty(), "{what}: nobody has noticed");
                if !version {
                    must_name(&outcome, &object, &what);
                }
            }
        }
        for keep in [0, 8, len / 2, len - 1] {
            let mut stored = stored(compression);
            assert!(stored.node.server.truncate(&object, keep));
            let what = format!("{object}, {keep} of {len} bytes");
            let outcome = stored.read_all(&what);
            if is_needed(&object, &needed) {
                must_name(&outcome, &object, &what);
            }
        }
    }
}

#[test]
fn an_object_in_the_place_of_another_is_seen() {
    let names = stored(Compression::None).node.server.names();
    for kind in ["/seg/", "/bun/", "/map/", "/man/"] {
        let of: Vec<_> = names.iter().filter(|name| name.contains(kind)).collect();
        for pair in of.windows(2) {
            let mut stored = stored(Compression::None);
            let bytes = stored.node.server.object(pair[1]).expect("it is there");
            stored.node.server.plant(pair[0], bytes);
            let what = format!("{} under the name {}", pair[1], pair[0]);
            let outcome = stored.read_all(&what);
            assert!(outcome.errors.iter().all(|e| e.kind() == ErrorKind::Corrupt), "{what}: {}", outcome.texts());
        }
    }
}

#[test]
fn a_spoilt_journal_is_corrupt_or_loses_its_end_cleanly() {
    let ring = 2 * 4096;
    let used = 500 << 10;
    let mut rng = Rng::new(9);
    let mut seen = 0;
    for n in 0..150 {
        let place = if n < 20 { n * 409 } else { ring + rng.below(used) };
        let mut stored = stored(Compression::Lz4);
        stored.node.disk.flip_bit(place, (n % 8) as u8);
        // All was flushed. Where the last records are spoilt nothing can tell that from a torn tail, so the volume may lack its last write.
        let mut older = stored.wanted[&("v".to_owned(), None)].clone();
        older[400 << 10..420 << 10].fill(0);
        let what = format!("journal, byte {place}");
        let outcome = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| stored.read_all(&what))) {
            Ok(outcome) => outcome,
            Err(_) => {
                let mut stored = self::stored(Compression::Lz4);
                stored.node.disk.flip_bit(place, (n % 8) as u8);
                stored.wanted.insert(("v".to_owned(), None), older);
                stored.read_all(&what)
            }
        };
        for error in &outcome.errors {
            assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Invalid), "{what}: {error}");
        }
        seen += usize::from(!outcome.texts().is_empty());
    }
    assert!(seen < 150, "the journal is not all that there is");
}

/// What is left of a deleted volume is there for its clones alone: their checks prove it.
#[test]
fn a_clone_proves_what_it_has_of_a_deleted_volume() {
    let Stored { node, wanted } = stored(Compression::Lz4);
    let origin = node.volume("v").record().shown;
    let shard = node.shard();
    node.must("delete", async move { shard.delete_volume(&name("v")).await });
    node.world.run_for(Duration::from_secs(3 * 3600)).expect("the world runs");
    let wanted = wanted.into_iter().filter(|((vol, _), _)| vol == "w").collect();
    let mut stored = Stored { node, wanted };
    assert_eq!(stored.read_all("nothing is wrong").texts(), "");
    let node = stored.node;
    let is_of_origin = |object: &String| object.starts_with(&format!("{origin}/seg/"));
    let object = node.server.names().into_iter().rfind(is_of_origin).expect("the clone holds something of it");
    let len = node.server.object(&object).expect("it is there").len() as u64;
    node.server.flip_bit(&object, len - 20, 1);
    let volume = node.volume("w");
    let report = node.must("check", async move { volume.check(&|_, _| {}).await });
    assert!(report.problems.iter().any(|problem| problem.object == object), "{object}: {:?}", report.problems);
}

/// Whole by its checksum, and of no use: a start says so, where it could only wait for room that never comes.
#[test]
fn a_superblock_whose_ring_can_not_be_is_refused() {
    for ring in [4096, 4 << 20, 1 << 44] {
        let mut node = stored(Compression::Lz4).node;
        node.crash(CrashMode::Kill, InFlight::Lost);
        let vandal = node.world.process("vandal");
        let disk = node.disk.open(&vandal);
        for place in 0..2 {
            let bytes = node.disk.contents(place * SUPERBLOCK..(place + 1) * SUPERBLOCK);
            let block = Superblock { ring, ..Superblock::decode(&bytes).expect("whole") };
            disk.write_at(place * SUPERBLOCK, &[IoSlice::new(&block.encode())]).expect("a disk takes a write");
        }
        node.world.kill(&vandal);
        let refused = node.open().expect("the start ends").expect_err("no such journal");
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
        assert!(refused.to_string().contains(&ring.to_string()), "{refused}");
    }
}

/// A volume whose newest segments are in the store, and nowhere else: the journal was trimmed behind them, and no manifest names them yet.
fn put_and_trimmed() -> Node {
    let mut node = Node::new(SimOptions::seed(1), 9 << 20);
    node.pool = Overrides { segment_size: Some(4 << 20), ..Overrides::default() };
    node.limits.layer_ram = 16 << 20;
    node.create().expect("the world runs").expect("the shard starts");
    for volume in ["v", "w"] {
        node.create_volume(volume, 8 << 20);
    }
    node
}

/// Writes 1.25 MiB to a volume, and puts it as one segment.
fn put_one(node: &Node, volume: &str, seed: u64) {
    let device = node.device(volume);
    for part in 0..40 {
        node.write(&device, part * (32 << 10), pattern(seed, 32 << 10), false).expect("alive").expect("a write");
    }
    let open = node.volume(volume);
    node.must("seal", async move { open.seal().await });
    node.world.run_for(Duration::from_millis(200)).expect("the world runs");
}

#[test]
fn a_store_that_loses_the_newest_segment_gives_itself_away() {
    // Laps of other work behind it change nothing: each trim tells anew.
    for others in [0, 1, 12] {
        let mut node = put_and_trimmed();
        put_one(&node, "v", 1);
        let used = node.shard().counts().journal_used;
        assert!(used < 256 << 10, "the journal was trimmed: {used} bytes are in use");
        let before = node.server.names();
        let newest = before.iter().rfind(|name| name.contains("/seg/")).expect("it was put").clone();
        for round in 0..others {
            put_one(&node, "w", 2 + round);
        }
        node.crash(CrashMode::Kept, InFlight::Landed);
        node.server.remove(&newest);
        let failed = node.open().expect("the world runs").expect("the shard opens");
        let [(volume, error)] = &failed[..] else { panic!("after {others} others: {failed:?}") };
        assert_eq!((volume.as_str(), error.kind()), ("v", ErrorKind::Corrupt), "{error}");
        assert!(error.to_string().contains("is missing"), "{error}");
    }
}

#[test]
fn a_store_that_loses_nothing_is_believed_whatever_the_journal_tells() {
    let mut node = put_and_trimmed();
    for round in 0..20 {
        put_one(&node, if round % 3 == 0 { "w" } else { "v" }, round);
        if round % 4 == 0 {
            node.crash(CrashMode::ALL[round as usize % 6], InFlight::Landed);
            node.reopen();
        }
    }
    let device = node.device("v");
    let bytes = node.read(&device, 0, 32 << 10).expect("alive").expect("a read");
    assert_eq!(bytes, pattern(19, 32 << 10));
}

/// Nobody can tell then whether others need what it has: it is kept, until somebody has looked.
#[test]
fn a_deleted_volume_whose_manifest_is_lost_keeps_what_it_has() {
    let mut stored = stored(Compression::Lz4);
    let origin = stored.node.volume("v").record().shown;
    let shard = stored.node.shard();
    stored.node.must("delete", async move { shard.delete_volume(&name("v")).await });
    let of_it = |node: &Node, kind: &str| -> BTreeSet<String> {
        node.server.names().into_iter().filter(|name| name.starts_with(&format!("{origin}/{kind}"))).collect()
    };
    let (objects, manifests) = (of_it(&stored.node, ""), of_it(&stored.node, "man/"));
    let lost: Vec<_> =
        manifests.iter().map(|name| (name, stored.node.server.object(name).expect("it is there"))).collect();
    assert!(lost.iter().all(|(name, _)| stored.node.server.remove(name)));
    stored.node.world.run_for(Duration::from_secs(3 * 3600)).expect("the world runs");
    assert_eq!(of_it(&stored.node, ""), &objects - &manifests);
    for (name, bytes) in lost {
        stored.node.server.plant(name, bytes);
    }
    stored.wanted.retain(|(volume, _), _| volume == "w");
    assert_eq!(stored.read_all("its manifests are back").texts(), "");
}
