// SPDX-License-Identifier: Apache-2.0
//! Holds off: a branch that the table of a run lists and no code reports, so that it would look as if it were never reached; names that
//! mean two things; counts that go astray.
//!
//! The sources of the whole workspace are read as text, from this crate's own directory on.

#![allow(clippy::disallowed_methods, reason = "it looks at the sources, and at two threads")]

use std::collections::BTreeSet;
use std::path::Path;
use varve_types::branch::Branch;

/// Text of every source below a directory.
fn sources(dir: &Path, all: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).expect("a directory of the workspace can be read") {
        let path = entry.expect("an entry of it can be read").path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|found| found == "rs") {
            all.push(std::fs::read_to_string(&path).expect("a source is text"));
        }
    }
}

#[test]
fn every_branch_is_reported_by_what_ships() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("it is in a directory of crates");
    let mut all = Vec::new();
    for entry in std::fs::read_dir(crates).expect("the crates can be listed") {
        let source = entry.expect("an entry can be read").path().join("src");
        if source.is_dir() {
            sources(&source, &mut all);
        }
    }
    for branch in Branch::ALL {
        // The end of a call of `reached` or of `reached_if`.
        let call = format!("Branch::{branch:?})");
        assert!(all.iter().any(|text| text.contains(&call)), "{branch} is reported nowhere");
    }
}

#[test]
fn names_are_unique_and_every_branch_says_when_it_is_reached() {
    let names: BTreeSet<&str> = Branch::ALL.iter().map(|branch| branch.name()).collect();
    assert_eq!(names.len(), Branch::ALL.len());
    for branch in Branch::ALL {
        let dashed = branch.name().chars().all(|c| c.is_ascii_lowercase() || c == '-');
        assert!(dashed, "{branch}: small letters and dashes");
        assert_eq!(branch.name().replace('-', ""), format!("{branch:?}").to_lowercase());
        assert!(branch.about().len() > 40 && branch.about().ends_with('.'), "{branch} says too little");
    }
}

#[cfg(feature = "mutants")]
#[test]
fn each_thread_counts_for_itself_and_begins_anew() {
    use varve_types::branch::{reached, reached_if, take_counts};
    let seen = || take_counts().into_iter().filter(|(_, count)| *count > 0).collect::<Vec<_>>();
    drop(take_counts());
    let [first, .., last] = Branch::ALL else { panic!("there are branches") };
    reached(*first);
    reached_if(true, *last);
    reached_if(false, *first);
    reached(*last);
    let elsewhere = std::thread::spawn(move || {
        reached(Branch::ALL[0]);
        take_counts()
    });
    let elsewhere = elsewhere.join().expect("the other thread ends");
    assert_eq!(elsewhere.len(), Branch::ALL.len(), "also those that were never reached are told");
    assert_eq!(elsewhere.iter().map(|(_, count)| count).sum::<u64>(), 1);
    assert_eq!(seen(), [(*first, 1), (*last, 2)]);
    assert_eq!(seen(), []);
}

#[cfg(not(feature = "mutants"))]
#[test]
fn nothing_is_counted_in_what_ships() {
    use varve_types::branch::{reached, reached_if, take_counts};
    const { reached(Branch::ALL[0]) };
    const { reached_if(true, Branch::ALL[0]) };
    assert!(take_counts().is_empty());
}
