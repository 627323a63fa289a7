// SPDX-License-Identifier: Apache-2.0
//! Requests from the moment they are taken from the connection until their answers are with the kernel, and how long that took.
//!
//! The clock is read twice a turn and not for each request: all requests of a turn were taken at its beginning, and all answers that one sending hands over are
//! answered at its end. So they are counted in runs, of those of one operation that were taken together.
//!
//! Bounds: there are no more runs than answers that are not sent, and those are bounded by the output. Where nothing had to wait, there are as many as operations.

use crate::stats::{Operation, Stats};
use std::time::Instant;

/// A request that is acted on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// What its client calls it.
    pub(crate) cookie: u64,
    /// What it is counted as; `None` for one whose time is not taken: cache, block status.
    pub(crate) operation: Option<Operation>,
    /// When it was taken.
    pub(crate) since: Instant,
}

/// Requests of one operation that were taken together.
#[derive(Debug)]
struct Run {
    operation: Operation,
    since: Instant,
    times: u64,
}

/// Requests whose answers are made and not yet with the kernel.
#[derive(Debug, Default)]
pub(crate) struct Answered(Vec<Run>);

impl Answered {
    /// Takes in that the answer of a request is made.
    #[inline]
    pub(crate) fn note(&mut self, asked: &Asked) {
        let Some(operation) = asked.operation else { return };
        let mut together = self.0.iter_mut().rev().take_while(|run| run.since == asked.since);
        match together.find(|run| run.operation == operation) {
            Some(run) => run.times += 1,
            None => self.0.push(Run { operation, since: asked.since, times: 1 }),
        }
    }

    /// All answers that were made are with the kernel.
    #[inline]
    pub(crate) fn sent(&mut self, stats: &Stats) {
        if self.0.is_empty() {
            return;
        }
        let now = Instant::now();
        for run in self.0.drain(..) {
            stats.took(run.operation, now.saturating_duration_since(run.since), run.times);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_is_counted_once_and_runs_are_few() {
        let (stats, mut answered) = (Stats::default(), Answered::default());
        let first = Instant::now();
        let then = first + std::time::Duration::from_micros(1);
        for (moment, turn) in [first, then].into_iter().enumerate() {
            for cookie in 0..300 {
                let operation = [Some(Operation::Read), Some(Operation::Write), None][cookie as usize % 3];
                answered.note(&Asked { cookie, operation, since: turn });
            }
            assert_eq!(answered.0.len(), 2 * (moment + 1));
        }
        answered.sent(&stats);
        answered.sent(&stats);
        let counts = Operation::ALL.map(|operation| stats.latency(operation).count());
        assert_eq!(counts, [200, 200, 0, 0]);
    }
}
