// SPDX-License-Identifier: Apache-2.0
//! The promise of the format, as people keep it: a data directory that an earlier version left behind is served by this one.
//!
//! `golden/v1/data.tar.zst` is a data directory whose node was killed: volumes with snapshots, holes, clones and a rollback, in part in the store
//! and in part in the journal alone. `golden/v1/data.sums` says what each export reads as: its name, its bytes, the CRC-32C of them. The directory
//! is unpacked to another place than it was made in, which is a thing that people do with data directories.
//!
//! `VARVE_GOLDEN=write cargo test -p varve --test golden_data` makes both files where they are not there yet (for a new version: in a directory of its
//! own, beside those of the old ones, all of which are tested). A file that is there is never written.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "here a failed unwrap is a failed test")]

mod real;

use real::{DEADLINE, Node, nbdsh_command, noise, run};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use varve_format::crc::crc;
use varve_lab::process::{Process, find_program, wait_until};

/// The versions that have a golden directory; the last one is that of this build.
const VERSIONS: [&str; 1] = ["v1"];
/// Most bytes of an archive, and of what is in it.
const MOST_PACKED: usize = 300 << 10;
const MOST: usize = 1 << 30;
const MIB: usize = 1 << 20;

fn directory(version: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(version)
}

/// What an export reads as.
#[derive(Clone)]
struct Image(Vec<u8>);

impl Image {
    fn new() -> Self {
        Self(vec![0; 16 * MIB])
    }
    /// What `write -P` and `discard` of qemu-io leave.
    fn fill(&mut self, at: usize, len: usize, byte: u8) {
        self.0[at..at + len].fill(byte);
    }
    fn sum(&self, export: &str) -> String {
        format!("{export} {} {:08x}\n", self.0.len(), crc(&self.0))
    }
}

fn tar(args: &[&str]) -> Command {
    let mut command = Command::new(find_program("tar", "tar").unwrap());
    command.args(args);
    command
}

/// Packs a data directory without what belongs to a process or to a machine.
fn pack(data: &Path) -> Vec<u8> {
    let without = ["--exclude=./*.sock", "--exclude=./token", "--exclude=./lock", "--exclude=./store/_tmp"];
    let mut command = tar(&["-c", "--sparse", "--hole-detection=raw", "--sort=name", "--mtime=@0"]);
    command.args(["--owner=0", "--group=0", "--numeric-owner"]).args(without).arg("-C").arg(data).arg(".");
    let packed = command.stderr(Stdio::inherit()).output().unwrap();
    assert!(packed.status.success());
    zstd::bulk::compress(&packed.stdout, 19).unwrap()
}

fn unpack(archive: &[u8], data: &Path) {
    fs::create_dir(data).unwrap();
    let bytes = zstd::bulk::decompress(archive, MOST).unwrap();
    let mut child = tar(&["-x", "--no-same-owner", "-C"]).arg(data).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert!(child.wait().unwrap().success());
}

/// Bytes that do not compress, from a file.
fn write_noise(node: &Node, export: &str, image: &mut Image, at: usize, len: usize) {
    let (bytes, file) = (noise(len, at as u64 + 1), node.path("noise"));
    fs::write(&file, &bytes).unwrap();
    node.qemu_io(export, &[&format!("write -s {} {at} {len}", file.display())]);
    image.0[at..at + len].copy_from_slice(&bytes);
}

/// Segments of all timelines in the store.
fn segments(node: &Node) -> usize {
    let timelines = fs::read_dir(node.data().join("store")).unwrap().map(|entry| entry.unwrap().path().join("seg"));
    timelines.filter_map(|kind| fs::read_dir(kind).ok()).map(Iterator::count).sum()
}

/// The volume `disk` with two snapshots, and its clone: what each export reads as.
fn make_disk(node: &Node) -> Vec<(&'static str, Image)> {
    node.varve(&["volume", "set", "disk", "seal-age=1h", "compression=zstd"]).ok();
    let mut disk = Image::new();
    node.qemu_io("disk", &["write -P 1 0 8M", "write -P 2 12M 64k"]);
    disk.fill(0, 8 * MIB, 1);
    disk.fill(12 * MIB, 64 << 10, 2);
    write_noise(node, "disk", &mut disk, 9 * MIB, 48 << 10);
    node.varve(&["snapshot", "create", "disk", "one"]).ok();
    let one = disk.clone();
    node.qemu_io("disk", &["write -P 3 512 1024", "discard 4M 3M", "write -P 4 7M 2M"]);
    disk.fill(512, 1024, 3);
    disk.fill(4 * MIB, 3 * MIB, 0);
    disk.fill(7 * MIB, 2 * MIB, 4);
    node.varve(&["snapshot", "create", "disk", "two"]).ok();
    let two = disk.clone();
    node.varve(&["clone", "disk@one", "clone"]).ok();
    let mut clone = one.clone();
    node.qemu_io("clone", &["write -P 5 1M 1M", "discard 12M 64k"]);
    clone.fill(MIB, MIB, 5);
    clone.fill(12 * MIB, 64 << 10, 0);
    vec![("disk", disk), ("disk@one", one), ("disk@two", two), ("clone", clone)]
}

/// The volume `rolled`, which shows a snapshot again and went on from there.
fn make_rolled(node: &Node) -> Vec<(&'static str, Image)> {
    let mut rolled = Image::new();
    node.qemu_io("rolled", &["write -P 6 0 2M"]);
    rolled.fill(0, 2 * MIB, 6);
    node.varve(&["snapshot", "create", "rolled", "early"]).ok();
    let early = rolled.clone();
    node.qemu_io("rolled", &["write -P 7 0 1M"]);
    node.varve(&["snapshot", "create", "rolled", "late"]).ok();
    node.varve(&["snapshot", "rollback", "rolled", "early", "--yes"]).ok();
    node.qemu_io("rolled", &["write -P 8 1M 1M"]);
    rolled.fill(MIB, MIB, 8);
    vec![("rolled", rolled), ("rolled@early", early)]
}

/// Writes to every volume from a client that stays: when one goes, what it wrote is sealed.
fn write_tail(node: &Node, images: &mut [(&'static str, Image)]) -> Process {
    let volumes = images.iter_mut().filter(|(export, _)| !export.contains('@'));
    let mut uris = Vec::new();
    for (export, image) in volumes {
        image.fill(14 * MIB, 64 << 10, 9);
        image.fill(100 << 10, 1 << 10, 10);
        image.fill(0, 64 << 10, 0);
        uris.push(node.uri(export));
    }
    let done = node.path("done");
    let script = format!(
        "import nbd, time\n\
         handles = []\n\
         for uri in {uris:?}:\n    \
             n = nbd.NBD()\n    \
             n.connect_uri(uri)\n    \
             n.pwrite(b'\\x09' * 65536, 14 << 20)\n    \
             n.pwrite(b'\\x0a' * 1024, 100 << 10)\n    \
             n.trim(65536, 0)\n    \
             n.flush()\n    \
             handles.append(n)\n\
         open({done:?}, 'w').close()\n\
         time.sleep(600)\n"
    );
    let mut process = Process::start("tail", nbdsh_command(&uris[0], &script), node.dir.path()).unwrap();
    wait_until(DEADLINE, "the tail to be written", || {
        process.check_running()?;
        Ok(done.exists())
    })
    .unwrap();
    process
}

/// Makes a data directory with today's program, kills its node, and gives the archive and the sums.
fn make() -> (Vec<u8>, String) {
    let mut node = Node::start(&["--volume", "disk:16M", "--volume", "rolled:16M"]);
    let mut images = make_disk(&node);
    images.extend(make_rolled(&node));
    // Once more with what is in the store, and then what only the journal has.
    node.stop();
    node.up();
    let before = segments(&node);
    let tail = write_tail(&node, &mut images);
    node.kill();
    drop(tail);
    assert_eq!(segments(&node), before, "the tail is in the journal alone");
    (pack(&node.data()), images.iter().map(|(export, image)| image.sum(export)).collect())
}

/// One test makes the files where all of them find none.
static MAKING: Mutex<()> = Mutex::new(());

/// Archive and sums of a version; made where they are missing and that is asked for.
fn golden(version: &str) -> (Vec<u8>, String) {
    let (archive, sums) = (directory(version).join("data.tar.zst"), directory(version).join("data.sums"));
    let _making = MAKING.lock().unwrap();
    let writing = std::env::var_os("VARVE_GOLDEN").is_some_and(|value| value == "write");
    if writing && VERSIONS.last() == Some(&version) && !archive.exists() && !sums.exists() {
        let (packed, text) = make();
        fs::create_dir_all(directory(version)).unwrap();
        // Never over one that somebody else made meanwhile.
        fs::File::create_new(&archive).and_then(|mut file| file.write_all(&packed)).unwrap();
        fs::File::create_new(&sums).and_then(|mut file| file.write_all(text.as_bytes())).unwrap();
        eprintln!("{} and {}: written", archive.display(), sums.display());
    }
    let packed = fs::read(&archive).unwrap_or_else(|error| panic!("{}: {error}", archive.display()));
    (packed, fs::read_to_string(sums).unwrap())
}

/// What the exports read as now, in the form of the sums.
fn read_back(node: &Node, sums: &str) -> String {
    let file = node.path("copy");
    let export = |line: &str| {
        let export = line.split(' ').next().unwrap();
        run("nbdcopy", "libnbd-bin", &[&node.uri(export), file.to_str().unwrap()]).ok();
        let image = Image(fs::read(&file).unwrap());
        fs::remove_file(&file).unwrap();
        image.sum(export)
    };
    sums.lines().map(export).collect()
}

#[test]
fn a_data_directory_of_every_version_is_served_and_checked() {
    for version in VERSIONS {
        let (archive, sums) = golden(version);
        assert!(archive.len() <= MOST_PACKED, "{version}: {} bytes", archive.len());
        assert!(sums.lines().count() >= 6, "{version}: {sums}");
        let mut node = Node::new(&[]);
        unpack(&archive, &node.data());
        node.up();
        assert_eq!(read_back(&node, &sums), sums, "{version}");
        node.varve(&["check"]).ok();
        // Nothing is read-only from here on: it goes on as a directory of today.
        node.varve(&["snapshot", "create", "disk", "today"]).ok();
        node.qemu_io("disk", &["write -P 77 15M 1M", "flush"]);
        node.kill();
        node.up();
        node.qemu_io("disk", &["read -P 77 15M 1M"]);
        let others = sums.lines().filter(|line| !line.starts_with("disk ")).map(|line| format!("{line}\n"));
        let others = others.collect::<String>();
        assert_eq!(read_back(&node, &others), others, "{version}, after a restart");
        node.stop();
        let run = node.varve(&["check", "--data", node.data().to_str().unwrap()]);
        assert!(run.code == 0 && run.out.contains("rolled"), "{version}: {run:?}");
    }
}

/// Without a node first: the check is what somebody with an old directory may run before anything else.
#[test]
fn a_data_directory_of_every_version_is_checked_without_a_node() {
    for version in VERSIONS {
        let (archive, _) = golden(version);
        let node = Node::new(&[]);
        unpack(&archive, &node.data());
        let run = node.varve(&["check", "--data", node.data().to_str().unwrap(), "--json"]);
        let report = run.json();
        let volumes = report["volumes"].as_array().unwrap();
        assert_eq!(volumes.len(), 3, "{version}: {report}");
        let read = |key: &str| volumes.iter().map(|volume| volume[key].as_u64().unwrap()).sum::<u64>();
        assert!(read("blocks_verified") > 0 && read("errors_total") == 0, "{version}: {report}");
    }
}

#[test]
fn a_data_directory_of_a_newer_version_is_refused_by_name() {
    let version = VERSIONS[VERSIONS.len() - 1];
    let (archive, _) = golden(version);
    let node = Node::new(&[]);
    unpack(&archive, &node.data());
    fs::write(node.data().join("format"), "varve 3\n").unwrap();
    let mut process = Process::start("newer", node.command(&node.data()), node.dir.path()).unwrap();
    wait_until(DEADLINE, "the node to end", || Ok(process.ended()?.is_some())).unwrap();
    let log = process.log_tail();
    assert!(log.contains("format version 3") && log.contains("use a newer one"), "{log}");
}
