// SPDX-License-Identifier: Apache-2.0
//! Fixed seeds of random work and faults, and that a seed is always the same run.
//!
//! `cargo xtask sim` runs as many others as one likes. What one of them finds gets a test of its own beside this one, which makes that very state: a
//! seed is another run as soon as the work that is drawn from it changes.

use varve_sim::swarm::{RunOptions, run_seed};

/// Seeds that run every time.
const FIXED: std::ops::Range<u64> = 0..12;

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
fn the_same_seed_is_the_same_run() {
    for seed in [3, 5] {
        let options = RunOptions { ops: 600, ..RunOptions::default() };
        let (one, other) = (run_seed(seed, &options), run_seed(seed, &options));
        assert_eq!((one.trace, one.ops, one.crashes), (other.trace, other.ops, other.crashes), "seed {seed}");
        assert_ne!(one.trace, run_seed(seed + 1, &options).trace);
    }
}
