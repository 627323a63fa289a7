// SPDX-License-Identifier: Apache-2.0
//! The promise of the format, for coordination: what this version wrote, every later version reads.
//!
//! `v1/` has each record as it is stored (the key, a line feed, the JSON), and a whole file of the embedded form (compressed, as it is mostly
//! zeroes). Records carry a version but no checksum: that is the file's, so damage is asked of the file. Of a record alone it is asked that damage is
//! told or gives another well-formed record, and never ends the program.
//!
//! Golden files are never changed. `VARVE_GOLDEN=write cargo test -p varve-coord --test golden` writes those that are not there yet, and the
//! examples in `docs/formats.md`.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "here a failed unwrap is a failed test")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a test of files that are in the repository")]

mod file;
mod values;

use std::fs;
use std::path::PathBuf;
use values::Golden;
use varve_coord::CoordError;
use varve_types::ErrorKind;

/// Where the files of version 1 are.
pub fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1")
}

/// Whether files that are missing are to be written.
pub fn writing() -> bool {
    std::env::var_os("VARVE_GOLDEN").is_some_and(|value| value == "write")
}

/// A golden file; `make` gives its bytes where there is none and it is to be written.
pub fn bytes(file: &str, make: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let path = directory().join(file);
    match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && writing() => {
            let bytes = make();
            fs::create_dir_all(directory()).unwrap();
            // A file that is there is never touched: another test of this run was faster then.
            if let Ok(mut file) = fs::File::create_new(&path) {
                std::io::Write::write_all(&mut file, &bytes).unwrap();
                eprintln!("{}: written", path.display());
            }
            fs::read(&path).unwrap()
        }
        Err(error) => panic!("{}: {error}; VARVE_GOLDEN=write makes one for a new structure", path.display()),
    }
}

/// Key and value of a golden record.
fn parts(golden: &Golden) -> (String, Vec<u8>) {
    let bytes = bytes(golden.file, || [golden.key.as_bytes(), b"\n", &(golden.encode)()[..]].concat());
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap();
    (String::from_utf8(bytes[..end].to_vec()).unwrap(), bytes[end + 1..].to_vec())
}

#[test]
fn every_golden_record_reads_as_its_value_and_is_written_so() {
    for golden in values::all() {
        let (key, value) = parts(&golden);
        assert_eq!(key, golden.key, "{}", golden.file);
        assert!((golden.read)(&key, &value).unwrap(), "{} reads as something else", golden.file);
        assert_eq!(String::from_utf8((golden.encode)()), String::from_utf8(value), "{}", golden.file);
    }
}

#[test]
fn a_newer_version_is_refused_by_name() {
    for golden in values::all() {
        let (key, value) = parts(&golden);
        let newer = String::from_utf8(value).unwrap().replacen("\"version\":1,", "\"version\":2,", 1);
        let error = (golden.read)(&key, newer.as_bytes()).unwrap_err();
        assert!(matches!(error, CoordError::Version { found: 2, known: 1, .. }), "{error}");
        assert!(error.to_string().contains(&key), "{error}");
    }
}

#[test]
fn a_damaged_record_is_refused_or_is_another() {
    let told = |error: &CoordError| error.kind() == ErrorKind::Corrupt || matches!(error, CoordError::Version { .. });
    for golden in values::all() {
        let (key, mut value) = parts(&golden);
        for cut in 0..value.len() {
            let error = (golden.read)(&key, &value[..cut]).unwrap_err();
            assert!(told(&error), "{} cut after {cut} bytes: {error}", golden.file);
        }
        for bit in 0..value.len() * 8 {
            value[bit / 8] ^= 1 << (bit % 8);
            if let Err(error) = (golden.read)(&key, &value) {
                assert!(told(&error), "{} with bit {bit} flipped: {error}", golden.file);
            }
            value[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn every_golden_file_is_of_a_structure() {
    let mut known = values::all().iter().map(|golden| golden.file.to_owned()).collect::<Vec<_>>();
    known.push(file::NAME.to_owned());
    known.sort();
    if writing() {
        values::all().iter().for_each(|golden| drop(parts(golden)));
        file::golden();
    }
    let entries = fs::read_dir(directory()).unwrap();
    let mut found = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>();
    found.sort();
    assert_eq!(found, known, "files on the left, structures on the right");
}

/// The examples stand one behind the other between two marks, each as its key and its JSON.
#[test]
fn the_document_shows_the_golden_records() {
    const BEGIN: &str = "<!-- records -->\n";
    const END: &str = "<!-- /records -->";
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/formats.md");
    let mut text = fs::read_to_string(&path).unwrap();
    let mut expected = "```json\n".to_owned();
    for golden in values::all() {
        let (key, value) = parts(&golden);
        expected.push_str(&format!("{key}\n{}\n", String::from_utf8(value).unwrap()));
    }
    expected.push_str("```\n");
    let start = text.find(BEGIN).unwrap() + BEGIN.len();
    let end = start + text[start..].find(END).unwrap();
    if writing() && text[start..end] != expected {
        text.replace_range(start..end, &expected);
        fs::write(&path, &text).unwrap();
    }
    assert!(text[start..].starts_with(&expected), "docs/formats.md should say:\n{expected}");
}
