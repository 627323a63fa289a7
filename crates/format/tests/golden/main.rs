// SPDX-License-Identifier: Apache-2.0
//! The promise of the format: what this version wrote, every later version reads.
//!
//! `v1/` has one file of each structure, as it was written by the first release; `v2/` has what came with bundles. Each is paired here with its value in Rust, and
//!
//! - reads as exactly that value,
//! - is what today's encoder makes of the value, to the byte (compressed chunks apart: what a compressor emits may change, so there only what
//!   is read counts),
//! - gives an error when it is cut anywhere, and when any bit of it flips, but for the bytes that no reader asks, which are listed;
//! - is refused by name with a version that is not known.
//!
//! Golden files are never changed. `VARVE_GOLDEN=write cargo test -p varve-format --test golden` writes those that are not there yet, and the
//! examples in `docs/formats.md`. A structure that changes gets a new version, new files in a new directory, and keeps its old ones here.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "here a failed unwrap is a failed test")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a test of files that are in the repository")]

mod bundle;
mod document;
mod dump;
mod journal;
mod layout;
mod manifest;
mod names;
mod node;
mod page;
mod region;
mod segment;

use dump::Field;
use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use varve_format::FormatError;
use varve_types::ErrorKind;

/// A structure with its golden file.
pub struct Golden {
    /// The file.
    pub file: &'static str,
    /// The directory: 1 for `v1/`.
    pub since: u32,
    /// What today's encoder makes of the value.
    pub encode: fn() -> Vec<u8>,
    /// Whether that is the file to the byte.
    pub exact: bool,
    /// Reads all of it with nothing but what the product reads it with; tells whether it is the value.
    pub read: fn(&[u8]) -> Result<bool, FormatError>,
    /// Place of the version; `None` where it stands in the structure around.
    pub version: Option<usize>,
    /// The version there, and the newest that this build knows.
    pub versions: (u32, u32),
    /// Bytes that no checksum covers and no reader asks.
    pub unread: fn(&[u8]) -> Vec<Range<usize>>,
    /// Whether checksums tell damage, or only that it is something else (names).
    pub sealed: bool,
    /// Its fields in their order, for the example in the document; empty for those that are not shown there.
    pub fields: fn() -> Vec<Field>,
}

/// A golden as most are; what differs is named where it is made.
pub const PLAIN: Golden = Golden {
    file: "",
    since: 1,
    encode: Vec::new,
    exact: true,
    read: |_| Ok(false),
    version: None,
    versions: (1, 1),
    unread: |_| Vec::new(),
    sealed: true,
    fields: Vec::new,
};

/// Longest file of which every single bit is flipped; of longer ones every bit of the first 512 bytes, and then one in [`STRIDE`].
const SMALL: usize = 8192;
/// Odd, so that every bit of a byte has its turn.
const STRIDE: usize = 61;

/// Every structure that there is.
pub fn all() -> Vec<Golden> {
    let mut all = journal::goldens();
    all.extend(segment::goldens());
    all.extend(bundle::goldens());
    all.extend(page::goldens());
    all.extend(manifest::goldens());
    all.extend(names::goldens());
    all.extend(region::goldens());
    all
}

/// The directories of files.
const DIRECTORIES: [u32; 2] = [1, 2];

/// Where files are.
fn directory(since: u32) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/v{since}"))
}

/// Whether files that are missing are to be written.
pub fn writing() -> bool {
    std::env::var_os("VARVE_GOLDEN").is_some_and(|value| value == "write")
}

impl Golden {
    /// The golden bytes; written first where there are none and that is asked for.
    pub fn bytes(&self) -> Vec<u8> {
        let path = directory(self.since).join(self.file);
        match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && writing() => {
                let bytes = (self.encode)();
                fs::create_dir_all(directory(self.since)).unwrap();
                // Another test of this run may have been faster, with the same bytes; a file that is there is never touched.
                let written =
                    fs::File::create_new(&path).and_then(|mut file| std::io::Write::write_all(&mut file, &bytes));
                eprintln!("{}: {}", path.display(), if written.is_ok() { "written" } else { "is there already" });
                bytes
            }
            Err(error) => panic!("{}: {error}; VARVE_GOLDEN=write makes one for a new structure", path.display()),
        }
    }

    /// What is wrong with a damaged copy being read as it is, if anything.
    fn judge(&self, copy: &[u8], unread: bool) -> Option<String> {
        match (self.read)(copy) {
            Ok(true) if unread => None,
            Ok(true) => Some("it is read as if nothing were".into()),
            Ok(false) if !self.sealed => None,
            Ok(false) => Some("it is read as something else".into()),
            Err(error) if unread => Some(format!("nobody should have looked there, but {error}")),
            Err(error) if error.kind() == ErrorKind::Corrupt => None,
            Err(error) => Some(format!("it is refused as {:?}: {error}", error.kind())),
        }
    }
}

#[test]
fn every_golden_file_reads_as_its_value() {
    for golden in all() {
        assert_eq!((golden.read)(&golden.bytes()), Ok(true), "{}", golden.file);
    }
}

#[test]
fn every_value_is_written_as_its_golden_file() {
    for golden in all() {
        let today = (golden.encode)();
        if golden.exact {
            assert!(today == golden.bytes(), "{}: the encoder writes something else now", golden.file);
        }
        assert_eq!((golden.read)(&today), Ok(true), "{}", golden.file);
    }
}

#[test]
fn what_is_cut_is_refused() {
    for golden in all().into_iter().filter(|golden| golden.sealed) {
        let bytes = golden.bytes();
        let unread = (golden.unread)(&bytes);
        let stride = if bytes.len() <= SMALL { 1 } else { STRIDE };
        let cuts = (0..bytes.len().min(512)).chain((512..bytes.len()).step_by(stride)).chain([bytes.len() - 1]);
        for cut in cuts {
            // Zeroes at the end that nobody asks for are not missed.
            let missed = (cut..bytes.len()).any(|at| !unread.iter().any(|range| range.contains(&at)));
            let wrong = golden.judge(&bytes[..cut], !missed);
            assert_eq!(wrong, None, "{} cut after {cut} bytes", golden.file);
        }
    }
}

#[test]
fn a_flipped_bit_is_seen() {
    for golden in all() {
        let mut bytes = golden.bytes();
        let (bits, stride) = (bytes.len() * 8, if bytes.len() <= SMALL { 1 } else { STRIDE });
        let unread = (golden.unread)(&bytes).into_iter().flatten().collect::<BTreeSet<_>>();
        let passed_over = unread.iter().flat_map(|at| at * 8..at * 8 + 8);
        for bit in (0..bits.min(4096)).chain((4096..bits).step_by(stride)).chain(passed_over) {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let wrong = golden.judge(&bytes, unread.contains(&(bit / 8)));
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(wrong, None, "{} with bit {bit} flipped", golden.file);
        }
    }
}

#[test]
fn an_unknown_version_is_refused_by_name() {
    for golden in all() {
        let Some(at) = golden.version else { continue };
        let (own, newest) = golden.versions;
        for version in [0u32, newest + 1, 77, u32::MAX] {
            let mut bytes = golden.bytes();
            assert_eq!(bytes[at..at + 4], own.to_le_bytes(), "{}", golden.file);
            bytes[at..at + 4].copy_from_slice(&version.to_le_bytes());
            // A newer version has other things in it too: with nothing but its number changed, this would be damage.
            bytes[at + 8] ^= 1;
            let error = (golden.read)(&bytes).unwrap_err();
            let told =
                matches!(error, FormatError::Version { found, known, .. } if (found, known) == (version, newest));
            assert!(told && error.to_string().contains(&format!("version {version};")), "{}: {error}", golden.file);
        }
    }
}

#[test]
fn every_golden_file_is_of_a_structure() {
    if writing() {
        all().iter().for_each(|golden| drop(golden.bytes()));
    }
    for since in DIRECTORIES {
        let of_it = |golden: &&Golden| golden.since == since;
        let mut known = all().iter().filter(of_it).map(|golden| golden.file.to_owned()).collect::<Vec<_>>();
        known.sort();
        let entries = fs::read_dir(directory(since)).unwrap();
        let mut found = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>();
        found.sort();
        assert_eq!(found, known, "v{since}: files on the left, structures on the right");
    }
}
