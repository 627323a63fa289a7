// SPDX-License-Identifier: Apache-2.0
//! The configuration file of a node, read as the program reads it.
//!
//! What is accepted keeps the rules of [`UpConfig`](varve_config::UpConfig); what is refused is refused with one line that names the file.

use std::cell::OnceCell;
use std::path::PathBuf;
use varve_config::FileConfig;

/// Longest input that is looked at: errors are found by lines and keys, not by length.
const LONGEST: usize = 4096;

/// The directory that the file is written to, again and again. In RAM where the system has such a place.
struct Place {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

thread_local! {
    static PLACE: OnceCell<Place> = const { OnceCell::new() };
}

/// A directory in RAM, or else any: files of the fuzzer are small, many, and need not last.
pub(crate) fn scratch() -> tempfile::TempDir {
    let mut builder = tempfile::Builder::new();
    builder.prefix("varve-fuzz-");
    builder.tempdir_in("/dev/shm").or_else(|_| builder.tempdir()).expect("there is a directory for temporary files")
}

/// See the module.
pub fn check(data: &[u8]) {
    if data.len() > LONGEST {
        return;
    }
    let path = PLACE.with(|place| {
        let make = || {
            let directory = scratch();
            Place { path: directory.path().join("varve.toml"), _directory: directory }
        };
        place.get_or_init(make).path.clone()
    });
    std::fs::write(&path, data).expect("a temporary file can be written");
    let refused = |message: &str| {
        assert!(!message.contains('\n'), "more than a line: {message:?}");
    };
    match FileConfig::read(&path) {
        Err(error) => {
            refused(&error.to_string());
            assert!(error.to_string().contains("varve.toml"), "{error}");
        }
        Ok(file) => match FileConfig::default().resolve(file.clone()) {
            Err(error) => refused(&error.to_string()),
            Ok(config) => {
                assert!(config.api_listen.is_none_or(|address| address.ip().is_loopback()));
                assert!((64 << 20..=1 << 40).contains(&config.journal_size_bytes));
                assert!((16 << 20..=1 << 40).contains(&config.layer_ram_bytes));
                let names: std::collections::BTreeSet<_> = config.volumes.iter().map(|volume| &volume.name).collect();
                assert_eq!(names.len(), config.volumes.len());
                // Flags go before the file: the same once more changes nothing.
                assert_eq!(file.clone().resolve(file).as_ref(), Ok(&config));
            }
        },
    }
}
