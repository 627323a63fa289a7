// SPDX-License-Identifier: Apache-2.0
//! Fixed seeds of random work and faults, and that a seed is always the same run.
//!
//! Seeds that once failed stand here for ever, each with what it found. `cargo xtask sim` runs as many others as one likes.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

use varve_sim::swarm::{RunOptions, run_seed};

/// Seeds that run every time.
const FIXED: std::ops::Range<u64> = 0..12;

/// Seeds that found something, and what.
const REGRESSIONS: [(u64, &str); 8] = [
    (
        7,
        "an undone rollback kept the volume's old name, and hid its history above what is shown: an import showed the wrong one",
    ),
    (43, "a read that waited for the store met a node that a checkpoint had replaced meanwhile"),
    (52, "a volume whose record was made while the answer was lost could not be made again"),
    (65, "what has ended left its tombstone where a listing lagged"),
    (77, "a check of damaged objects"),
    (281, "a check of a swept history walked what a checkpoint gave back"),
    (564, "an import gave a volume's name to what a failed creation had left"),
    (754, "an import, a rollback, a crash and an undo"),
];

#[test]
fn random_work_and_faults_leave_what_was_promised() {
    for seed in FIXED {
        let report = run_seed(seed, &RunOptions::default());
        assert!(
            report.ops >= 2000 && report.crashes > 0,
            "seed {seed}: {} requests, {} deaths",
            report.ops,
            report.crashes
        );
    }
}

#[test]
fn seeds_that_found_something_pass() {
    for (seed, _) in REGRESSIONS {
        let _ = run_seed(seed, &RunOptions::default());
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [3, 5] {
        let options = RunOptions { ops: 600, ..RunOptions::default() };
        let (one, other) = (run_seed(seed, &options), run_seed(seed, &options));
        assert_eq!((one.trace, one.ops, one.crashes), (other.trace, other.ops, other.crashes), "seed {seed}");
        assert_ne!(one.trace, run_seed(seed + 1, &options).trace);
    }
}
