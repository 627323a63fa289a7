// SPDX-License-Identifier: Apache-2.0
//! Requests that are held back, counted: how many, for how long, and how many at this moment.

use std::cell::Cell;
use std::time::Duration;
use varve_env::Env;

/// What holding back has come to since the volume was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaitCounts {
    /// Requests that had to wait.
    pub requests: u64,
    /// For how long, in microseconds, all together.
    pub waited_us: u64,
    /// Requests that wait at this moment.
    pub waiting: u64,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Waits(Cell<WaitCounts>);

/// A request that waits: it ends in the counts when this is dropped, also where it is given up.
pub(crate) struct Waiting<'a> {
    waits: &'a Waits,
    env: &'a dyn Env,
    since: Duration,
}

impl Waits {
    /// A request begins to wait.
    pub fn begin<'a>(&'a self, env: &'a dyn Env) -> Waiting<'a> {
        let mut counts = self.0.get();
        (counts.requests, counts.waiting) = (counts.requests + 1, counts.waiting + 1);
        self.0.set(counts);
        Waiting { waits: self, env, since: env.now() }
    }

    pub fn counts(&self) -> WaitCounts {
        self.0.get()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut counts = self.waits.0.get();
        counts.waiting -= 1;
        counts.waited_us += (self.env.now() - self.since).as_micros() as u64;
        self.waits.0.set(counts);
    }
}
