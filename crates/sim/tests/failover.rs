// SPDX-License-Identifier: Apache-2.0
//! A volume that goes from node to node: some seeds of the scenario, each run.

use varve_sim::pair::run;
use varve_sim::swarm::Cover;

/// Seeds that run every time.
const FIXED: std::ops::Range<u64> = 0..32;

#[test]
fn a_client_reads_what_it_was_answered_wherever_its_volume_goes() {
    let mut cover = Cover::default();
    for seed in FIXED {
        cover.merge(&run(seed).cover);
    }
    // Whatever these seeds do not reach, they prove nothing about.
    let never: Vec<_> = cover.iter().filter(|(_, count)| *count == 0).collect();
    assert!(never.is_empty(), "{never:?}\n{cover}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [0, 1, 2] {
        assert_eq!(run(seed).trace, run(seed).trace, "seed {seed}");
    }
    assert_ne!(run(0).trace, run(1).trace);
}
