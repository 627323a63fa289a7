// SPDX-License-Identifier: Apache-2.0
//! A start on a journal whose bytes were changed: the real engine in the simulated world, scan and recovery included.
//!
//! A node writes, discards, takes a snapshot, changes a size, and is killed with all of it in the journal. Then superblocks, headers and data are
//! changed as the input says, on request with the checksum of the header made right, so that the scan believes what it should not.
//!
//! Whatever the bytes, the start ends, with an error or with volumes; what a volume then reads it also reads after one more kill, and what is
//! written to it stays.

use crate::array;
use std::io::IoSlice;
use std::rc::Rc;
use varve_engine::{Device, EngineError};
use varve_env::Disk;
use varve_format::crc::{Domain, Identity, crc};
use varve_format::journal::{ALIGN, RECORD_MAGIC, RING_START, SUPERBLOCK};
use varve_sim::node::{Node, name};
use varve_sim::{CrashMode, InFlight, SimOptions};
use varve_types::ErrorKind;

const JOURNAL: u64 = 9 << 20;
const SIZE: u64 = 256 << 10;
/// As far as the records reach.
const USED: u64 = RING_START + (128 << 10);
/// Most changes of one input.
const CHANGES: usize = 16;

/// A change of some bytes.
pub struct Change {
    /// 0: of a superblock; 1 to 3: of a record's header; else: anywhere.
    pub kind: u8,
    /// Where in it.
    pub at: u8,
    /// How many bytes, less one.
    pub len: u8,
    /// Whether the checksum is made right afterwards.
    pub mend: bool,
    /// Which superblock or record, or where.
    pub which: u32,
    /// What is put there.
    pub bytes: [u8; 8],
}

impl Change {
    /// Bytes of a change in an input.
    const LEN: usize = 16;

    fn decode(bytes: &[u8]) -> Self {
        let [kind, at, len, mend] = array(bytes, 0);
        let which = u32::from_le_bytes(array(bytes, 4));
        Self { kind: kind % 6, at, len: len % 8, mend: mend & 1 == 1, which, bytes: array(bytes, 8) }
    }

    /// The change as a part of an input.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let head = [self.kind, self.at, self.len, u8::from(self.mend)];
        [&head[..], &self.which.to_le_bytes(), &self.bytes].concat()
    }
}

/// See the module.
pub fn check(data: &[u8]) {
    let mut node = killed();
    let mut image = node.disk.contents(0..USED);
    let records = records(&image);
    for change in data.chunks(Change::LEN).take(CHANGES) {
        apply(&mut image, &records, &Change::decode(change));
    }
    let vandal = node.world.process("vandal");
    let disk = node.disk.open(&vandal);
    disk.write_at(0, &[IoSlice::new(&image)]).expect("a disk takes a write");
    node.world.kill(&vandal);
    node.disk.crash(CrashMode::Kill);
    start(&mut node);
}

/// A node that was killed with work in its journal.
fn killed() -> Node {
    let mut node = Node::new(SimOptions::seed(1), JOURNAL);
    node.create().expect("the world runs").expect("the shard starts");
    node.create_volume("v", SIZE);
    let device = node.device("v");
    let write = |offset, len: usize, byte| {
        let data = vec![byte; len];
        node.write(&device, offset, data, true).expect("the world runs").expect("a write");
    };
    write(0, 12 << 10, 1);
    write(4 << 10, 512, 2);
    node.discard(&device, 8 << 10, 4 << 10, true).expect("the world runs").expect("a discard");
    let volume = node.volume("v");
    node.must("resize", async move { volume.resize(SIZE - (64 << 10), true).await.map(drop) });
    let volume = node.volume("v");
    node.must("snapshot", async move { volume.snapshot(name("s")).await.map(drop) });
    write(100 << 10, 8 << 10, 3);
    drop(device);
    node.crash(CrashMode::Kill, InFlight::Lost);
    node
}

/// Where records begin.
fn records(image: &[u8]) -> Vec<usize> {
    let places = (RING_START as usize..image.len()).step_by(ALIGN as usize);
    // Compared as numbers: the fuzzer watches comparisons of bytes, and would learn nothing from these.
    let magic = u32::from_le_bytes(RECORD_MAGIC);
    places.filter(|at| u32::from_le_bytes(array(image, *at)) == magic).collect()
}

fn apply(image: &mut [u8], records: &[usize], change: &Change) {
    let which = change.which as usize;
    let (base, at) = match change.kind {
        0 => (which % 2 * SUPERBLOCK as usize, usize::from(change.at % 64)),
        1..=3 if !records.is_empty() => (records[which % records.len()], usize::from(change.at)),
        _ => (which % image.len(), 0),
    };
    let end = (base + at + usize::from(change.len) + 1).min(image.len());
    let place = (base + at).min(end);
    image[place..end].copy_from_slice(&change.bytes[..end - place]);
    if change.mend && change.kind == 0 {
        image[base + 12..base + 16].fill(0);
        let sum = crc(&image[base..base + SUPERBLOCK as usize]);
        crate::put_u32(image, base + 12, sum);
    } else if change.mend && change.kind < 4 {
        let journal = array::<16>(image, 16);
        let len = u32::from_le_bytes(array(image, base + 8)) as usize;
        let position = u64::from_le_bytes(array(image, base + 16));
        if let Some(header) = image.get(base + 8..base.saturating_add(len)) {
            let sum = Identity::new(Domain::Journal, journal, position, 0).bind(crc(header));
            crate::put_u32(image, base + 4, sum);
        }
    }
}

fn start(node: &mut Node) {
    match node.open().expect("the world runs") {
        Err(error) => return refused(&error),
        Ok(failed) => failed.iter().for_each(|(_, error)| refused(error)),
    }
    if node.shard().find(&name("v")).is_err() {
        return;
    }
    let device = node.device("v");
    let before = contents(node, &device);
    let mark = vec![9; 4096];
    let written = node.write(&device, 4096, mark.clone(), true).expect("the world runs");
    drop(device);
    node.crash(CrashMode::Kill, InFlight::Lost);
    let failed = node.open().expect("the world runs").expect("what was started once starts again");
    assert!(failed.is_empty(), "a volume that was served once is not served again: {failed:?}");
    let device = node.device("v");
    let (Some(mut before), Some(after)) = (before, contents(node, &device)) else { return };
    if written.is_ok() {
        before[4096..8192].copy_from_slice(&mark);
        assert!(before == after, "other data are read after one more start");
    }
}

/// Damage is told as damage; a version, or a file of another size, as a request that can not be.
fn refused(error: &EngineError) {
    let kinds = [ErrorKind::Corrupt, ErrorKind::Invalid, ErrorKind::Conflict];
    assert!(kinds.contains(&error.kind()), "{error} ({:?})", error.kind());
}

/// What the first part of a volume reads as, if all of it can be read.
fn contents(node: &Node, device: &Rc<Device>) -> Option<Vec<u8>> {
    node.read(device, 0, 128 << 10).expect("the world runs").ok().map(|bytes| bytes.to_vec())
}
