// SPDX-License-Identifier: Apache-2.0
//! Coordination: its records, and the file of one node.
//!
//! The file is a database that checks itself. What it is asked for here is what the server relies on: bytes that were changed lead to an error, or to
//! entries each of which was written under that key; they lead to no panic, and to no invented entry.

use crate::config::scratch;
use crate::{bounded_by, choose, made_up, samples};
use std::cell::OnceCell;
use varve_coord::{
    ClusterRecord, Coord, CoordError, Embedded, NameRecord, PoolRecord, Record, ScrubRecord, TimelineOwner,
    VolumeRecord,
};

/// The records: a byte that says which, a key, a zero byte, the record.
pub fn check(data: &[u8]) {
    let Some((choice, rest)) = choose(data, 6) else { return };
    let Some(at) = rest.iter().position(|byte| *byte == 0) else { return };
    let (key, bytes) = (&rest[..at], &rest[at + 1..]);
    let Ok(key) = std::str::from_utf8(key) else { return };
    match choice {
        0 => record::<ClusterRecord>(key, bytes),
        1 => record::<PoolRecord>(key, bytes),
        2 => record::<VolumeRecord>(key, bytes),
        3 => record::<NameRecord>(key, bytes),
        4 => record::<TimelineOwner>(key, bytes),
        _ => record::<ScrubRecord>(key, bytes),
    }
}

fn record<R: Record + PartialEq + std::fmt::Debug>(key: &str, bytes: &[u8]) {
    // An error keeps the text of what it is about.
    let most = (key.len() + bytes.len()) * 64 + (64 << 10);
    let Ok(record) = bounded_by(most, || R::decode(key, bytes)) else { return };
    assert_eq!(record.key(), key);
    assert_eq!(record.check(), Ok(()));
    assert_eq!(record.version(), R::VERSION);
    match record.encode() {
        Ok(again) => assert_eq!(R::decode(key, &again).ok(), Some(record)),
        // What was read may be larger than what may be written.
        Err(error) => assert!(matches!(error, CoordError::Invalid(_)), "{error}"),
    }
}

/// A whole file of coordination, and what is in it.
struct Base {
    directory: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    bytes: Vec<u8>,
    entries: Vec<(String, Vec<u8>)>,
}

impl Base {
    fn make() -> Self {
        let directory = scratch();
        let runtime =
            tokio::runtime::Builder::new_current_thread().build().expect("a runtime without input and output");
        let path = directory.path().join("coord");
        let entries = samples::records();
        {
            let coord = Embedded::open(&path).expect("a new file can be made");
            for (key, value) in &entries {
                let change = varve_coord::Change::Put { key: key.clone(), value: value.clone(), lease: None };
                runtime.block_on(coord.transact(Vec::new(), vec![change])).expect("a change is taken");
            }
        }
        let bytes = std::fs::read(&path).expect("the file is there");
        Self { directory, runtime, bytes, entries }
    }
}

thread_local! {
    static BASE: OnceCell<Base> = const { OnceCell::new() };
}

/// The file, with changes to its bytes: where and what, and where it ends.
pub fn check_file(data: &[u8]) {
    let Some((cut, changes)) = made_up::<(Option<u32>, Vec<(u32, [u8; 8], u8)>)>(data) else { return };
    BASE.with(|base| {
        let base = base.get_or_init(Base::make);
        let mut bytes = base.bytes.clone();
        for (at, with, len) in changes.iter().take(32) {
            // Most of the file is room for what is to come; the beginning says what is where.
            let at = *at as usize % bytes.len();
            let end = bytes.len().min(at + usize::from(len % 8) + 1);
            bytes[at..end].copy_from_slice(&with[..end - at]);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut as usize % (bytes.len() + 1));
        }
        let path = base.directory.path().join("changed");
        std::fs::write(&path, &bytes).expect("a temporary file can be written");
        let Ok(coord) = Embedded::open(&path) else { return };
        let Ok(listing) = base.runtime.block_on(coord.list("")) else { return };
        for entry in &listing.entries {
            let known = base.entries.iter().any(|(key, value)| *key == entry.key && value[..] == entry.value[..]);
            assert!(known, "an entry {:?} that was never written", entry.key);
        }
    });
}
