// SPDX-License-Identifier: Apache-2.0
//! The file of the embedded form: it opens with what was in it; damaged, it is refused or holds the same.
//!
//! Which pages of the file are in use, and what redb mends at opening, is redb's: so of a flipped bit it is asked only that nothing else than what was
//! stored is ever read. Every byte that an entry stands in is among the bits that are flipped.

use crate::{bytes, values};
use std::fs;
use std::path::Path;
use varve_coord::{Change, Coord, CoordError, Embedded, Entry, Record};
use varve_types::ErrorKind;

/// The golden file.
pub const NAME: &str = "embedded.redb.zst";
/// Longest file.
const MOST: usize = 64 << 20;

/// What is in it, in the order in which it was put.
fn puts() -> Vec<(String, Vec<u8>)> {
    fn put(record: &impl Record) -> (String, Vec<u8>) {
        (record.key(), record.encode().unwrap())
    }
    vec![
        put(&values::cluster()),
        put(&values::pool()),
        put(&values::volume()),
        put(&values::claim()),
        put(&values::owner()),
        // A value is bytes, not only JSON.
        ("other/bytes".to_owned(), vec![0, 255, 10, 13]),
    ]
}

fn run<T>(task: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(task)
}

fn make() -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("meta.redb");
    let coord = Embedded::open(&path).unwrap();
    run(async {
        for (key, value) in puts() {
            coord.transact(vec![], vec![Change::put(&key, value)]).await.unwrap();
        }
        coord.transact(vec![], vec![Change::put("gone", "x")]).await.unwrap();
        coord.transact(vec![], vec![Change::Delete("gone".to_owned())]).await.unwrap();
    });
    drop(coord);
    zstd::bulk::compress(&fs::read(path).unwrap(), 19).unwrap()
}

/// The golden file as it was stored.
pub fn golden() -> Vec<u8> {
    zstd::bulk::decompress(&bytes(NAME, make), MOST).unwrap()
}

/// Opens a copy and lists all of it.
fn open(path: &Path, copy: &[u8]) -> Result<(Vec<Entry>, u64), CoordError> {
    fs::write(path, copy).unwrap();
    let coord = Embedded::open(path)?;
    let listing = run(coord.list(""))?;
    Ok((listing.entries, listing.revision))
}

/// What must be in it: the revision of each entry is the number of its put.
fn expected() -> (Vec<Entry>, u64) {
    let numbered = puts().into_iter().zip(1..);
    let mut entries = numbered.map(|((key, value), revision)| Entry { key, value, revision }).collect::<Vec<_>>();
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    (entries, 8)
}

#[test]
fn the_golden_file_opens_and_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("meta.redb");
    assert_eq!(open(&path, &golden()).unwrap(), expected());
    let coord = Embedded::open(&path).unwrap();
    run(coord.transact(vec![], vec![Change::put("new", "y")])).unwrap();
    assert_eq!(run(coord.get("new")).unwrap().unwrap().revision, 9);
}

#[test]
fn a_file_with_a_flipped_bit_is_refused_or_holds_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("meta.redb");
    let mut bytes = golden();
    let used = bytes.iter().enumerate().filter(|(_, byte)| **byte != 0).map(|(at, _)| at).collect::<Vec<_>>();
    let (mut refused, stride) = (0, used.len().div_ceil(150));
    for (number, at) in used.into_iter().step_by(stride).enumerate() {
        let bit = 1 << (number % 8);
        bytes[at] ^= bit;
        match open(&path, &bytes) {
            Ok(found) => assert_eq!(found, expected(), "byte {at}, bit {bit:#x}"),
            Err(error) => {
                let told = error.kind() == ErrorKind::Corrupt || matches!(error, CoordError::Version { .. });
                assert!(told, "byte {at}, bit {bit:#x}: {:?}: {error}", error.kind());
                refused += 1;
            }
        }
        bytes[at] ^= bit;
    }
    assert!(refused > 0, "damage that matters is told");
}

#[test]
fn a_file_that_was_cut_is_refused_or_holds_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("meta.redb");
    let bytes = golden();
    for cut in (0..bytes.len()).step_by(bytes.len() / 64) {
        match open(&path, &bytes[..cut]) {
            Ok(found) => assert_eq!(found, expected(), "cut after {cut} bytes"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "cut after {cut} bytes: {error}"),
        }
    }
}
