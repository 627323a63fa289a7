// SPDX-License-Identifier: Apache-2.0
//! Runs that may fail, and shorter ones that fail too.
//!
//! A failing run is shortened by leaving out steps: halves first, then ever smaller pieces, as long as what is left still fails. It need not fail in the same way.
//! Source: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002.

use super::run::ENDING;
use super::{RunOptions, RunReport, run_seed};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

/// More steps than an ending has.
const MOST_ENDING: u64 = 100;

thread_local! {
    static MESSAGE: RefCell<Option<String>> = const { RefCell::new(None) };
    /// Steps of the run before its ending, so far.
    pub(super) static STEPS: Cell<u64> = const { Cell::new(0) };
    /// Left by a run that fails.
    pub(super) static LOG: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// A run that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// Of its steps those that were done; all where it is absent.
    pub keep: Option<BTreeSet<u64>>,
    /// What was wrong.
    pub message: String,
    /// Steps that it had before its ending.
    pub steps: u64,
    /// The last lines of the log, where one was asked for.
    pub log: Vec<String>,
}

/// Runs a seed; a panic is an error. Panics of the calling thread are no longer printed afterwards.
///
/// # Errors
/// When the run fails.
pub fn try_seed(seed: u64, options: &RunOptions) -> Result<RunReport, Failure> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let place = info.location().map_or_else(String::new, |place| format!(" ({place})"));
            let text = info.payload_as_str().unwrap_or("a panic without a message");
            MESSAGE.with(|message| *message.borrow_mut() = Some(format!("{text}{place}")));
        }));
    });
    let run = catch_unwind(AssertUnwindSafe(|| run_seed(seed, options)));
    run.map_err(|_| {
        let message = MESSAGE.with(|message| message.borrow_mut().take()).unwrap_or_default();
        let message = format!("seed {seed}: {message}");
        let log = LOG.with(|log| std::mem::take(&mut *log.borrow_mut()));
        Failure { seed, keep: options.keep.clone(), message, steps: STEPS.get(), log }
    })
}

/// Finds few steps of a failing run that still fail, with at most `tries` runs. `tell` is told how many steps are left.
pub fn shrink(failure: Failure, options: &RunOptions, tries: u32, mut tell: impl FnMut(usize)) -> Failure {
    let mut best = failure;
    let ending = ENDING..ENDING + MOST_ENDING;
    let mut steps: Vec<u64> = best
        .keep
        .as_ref()
        .map_or_else(|| (0..best.steps).chain(ending).collect(), |keep| keep.iter().copied().collect());
    let mut left = tries;
    let mut piece = steps.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        let mut shorter = false;
        while at < steps.len() && left > 0 {
            left -= 1;
            let end = (at + piece).min(steps.len());
            let keep: BTreeSet<u64> = steps[..at].iter().chain(&steps[end..]).copied().collect();
            match try_seed(best.seed, &RunOptions { keep: Some(keep.clone()), ..options.clone() }) {
                Err(found) => {
                    best = found;
                    steps.drain(at..end);
                    shorter = true;
                    tell(steps.len());
                }
                Ok(_) => at = end,
            }
        }
        if left == 0 || (piece == 1 && !shorter) {
            return best;
        }
        piece = (piece / 2).max(1);
    }
}
