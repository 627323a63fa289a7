// SPDX-License-Identifier: Apache-2.0
//! The whole engine under random work and random faults, against a model of what a disk promises.
//!
//! [`run_seed`] is one run: some 2,000 requests on several volumes (reads, writes, flushes, discards, snapshots, clones, rollbacks, deletions, resizes, …), many
//! of them under way together, while processes die at any I/O and any await, power fails, the store loses answers, is away or full, the journal's disk
//! fails, coordination refuses or is away, and clocks jump. Which of all that a seed has is drawn from the seed (`plan.rs`). What is found afterwards must be explained by
//! the model (`line.rs`): the last flushed value of each block or a newer one, never older, torn or invented, cut off at one point of the history;
//! snapshots and clones exact for ever; counts exact; nothing live deleted, nothing dead left.
//!
//! One seed fixes a run, to the last poll: the same seed gives the same trace. A run that fails panics; [`shrink()`] finds few steps that still fail.

mod act;
mod admin;
mod batch;
mod cover;
mod cut_off;
mod disk;
mod ending;
mod fault;
mod full;
mod line;
mod plan;
mod prove;
mod rot;
mod run;
mod scene;
mod shrink;
mod single;
mod stamp;
mod takeover;
mod worker;

pub use cover::Cover;
pub use shrink::{Failure, shrink, try_seed};

use std::collections::BTreeSet;

/// How a run is run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Requests after which it ends.
    pub ops: u64,
    /// Steps after which it ends in any case.
    pub most_steps: u64,
    /// The steps to do; all where it is absent.
    pub keep: Option<BTreeSet<u64>>,
    /// Whether to keep a readable log.
    pub log: bool,
    /// Whether there is nothing but a pair of nodes.
    pub pairs: bool,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { ops: 2000, most_steps: 6000, keep: None, log: false, pairs: false }
    }
}

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct RunReport {
    /// Requests.
    pub ops: u64,
    /// Deaths.
    pub crashes: u64,
    /// Steps.
    pub steps: u64,
    /// Hash of everything that happened.
    pub trace: u64,
    /// Virtual time that passed, in seconds.
    pub seconds: f64,
    /// How often each operation, fault and outcome was reached.
    pub cover: Cover,
    /// The last lines of the log, where one was asked for.
    pub log: Vec<String>,
}

/// Runs a seed.
///
/// # Panics
/// When anything is not as it must be.
#[must_use]
pub fn run_seed(seed: u64, options: &RunOptions) -> RunReport {
    let mut report = if options.pairs { RunReport::default() } else { run::Run::new(seed, options).go(options) };
    if options.pairs || seed.is_multiple_of(PAIR_EVERY) {
        let pair = crate::pair::run_logged(seed, options.log && options.pairs);
        report.cover.merge(&pair.cover);
        report.trace ^= pair.trace;
        report.cover.take_branches();
    }
    report
}

/// Keeps the log of a run that panics.
pub(crate) fn keep_log(log: Vec<String>) {
    shrink::LOG.with(|kept| *kept.borrow_mut() = log);
}

/// Of so many seeds one runs a pair of nodes too.
const PAIR_EVERY: u64 = 4;
