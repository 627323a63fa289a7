// SPDX-License-Identifier: Apache-2.0
//! Holds off: a planted bug that is planted nowhere, one that ships, names that do not lead back.
//!
//! The sources and manifests of the whole workspace are read as text, from this crate's own directory on.

#![allow(clippy::disallowed_methods, reason = "it looks at the sources, and at two threads")]

use std::path::{Path, PathBuf};
use varve_types::mutant::Mutant;

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("it is in a directory of crates").to_owned()
}

/// Text of every file with this ending in `src` of a crate, or right in the crate.
fn texts(dir: &Path, ending: &str, all: &mut Vec<(PathBuf, String)>) {
    for entry in std::fs::read_dir(dir).expect("a directory of the workspace can be read") {
        let path = entry.expect("an entry of it can be read").path();
        if path.is_dir() {
            texts(&path, ending, all);
        } else if path.extension().is_some_and(|found| found == ending) {
            let text = std::fs::read_to_string(&path).expect("a source is text");
            all.push((path, text));
        }
    }
}

#[test]
fn every_mutant_is_planted_in_what_ships() {
    let mut sources = Vec::new();
    for entry in std::fs::read_dir(crates()).expect("the crates can be listed") {
        let source = entry.expect("an entry can be read").path().join("src");
        if source.is_dir() {
            texts(&source, "rs", &mut sources);
        }
    }
    for mutant in Mutant::ALL {
        let call = format!("planted(Mutant::{mutant:?})");
        assert!(sources.iter().any(|(_, text)| text.contains(&call)), "{mutant} is planted nowhere");
    }
}

#[test]
fn no_default_feature_plants() {
    let mut manifests = Vec::new();
    for entry in std::fs::read_dir(crates()).expect("the crates can be listed") {
        let path = entry.expect("an entry can be read").path().join("Cargo.toml");
        if path.is_file() {
            let text = std::fs::read_to_string(&path).expect("a manifest is text");
            manifests.push((path, text));
        }
    }
    assert!(manifests.len() > 5, "the workspace has crates");
    for (path, text) in manifests {
        for line in text.lines().filter(|line| line.contains("mutants")) {
            let defines = line == "mutants = []" || line == r#"mutants = ["varve-types/mutants"]"#;
            assert!(defines || line.starts_with('#'), "{}: {line}", path.display());
        }
    }
}

#[test]
fn names_lead_back_and_every_mutant_says_what_it_breaks() {
    for mutant in Mutant::ALL {
        assert_eq!(mutant.name().parse(), Ok(*mutant));
        let dashed = mutant.name().chars().all(|c| c.is_ascii_lowercase() || c == '-');
        assert!(dashed, "{mutant}: small letters and dashes");
        assert_eq!(mutant.name().replace('-', ""), format!("{mutant:?}").to_lowercase());
        assert!(mutant.about().len() > 40 && mutant.about().contains(": "), "{mutant} says too little");
    }
    assert!("no-such".parse::<Mutant>().is_err());
}

#[cfg(feature = "mutants")]
#[test]
fn at_most_one_is_planted() {
    use varve_types::mutant::{plant, planted, strikes};
    let planted_now = || Mutant::ALL.iter().filter(|mutant| planted(**mutant)).count();
    plant(None);
    assert_eq!((planted_now(), strikes()), (0, 0));
    for mutant in Mutant::ALL {
        plant(Some(*mutant));
        assert!(planted(*mutant));
        assert_eq!((planted_now(), strikes()), (1, 2));
    }
    let here = Mutant::ALL[0];
    plant(Some(here));
    let elsewhere = std::thread::spawn(move || planted(here)).join().expect("the other thread ends");
    assert!(planted(here) && !elsewhere, "each thread has its own");
}

#[cfg(not(feature = "mutants"))]
#[test]
fn nothing_is_planted_in_what_ships() {
    const { assert!(!varve_types::mutant::planted(Mutant::SkipJournalSync)) };
    const { assert!(!varve_types::mutant::PLANTABLE) };
}
