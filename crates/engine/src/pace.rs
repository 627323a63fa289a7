// SPDX-License-Identifier: Apache-2.0
//! How fast work in the background may go: so many bytes a second, changed while it is at it.

use std::cell::Cell;
use std::time::Duration;
use varve_env::Env;

/// See the module.
#[derive(Clone, Copy)]
pub(crate) struct Pace<'a> {
    pub env: &'a dyn Env,
    /// Bytes a second; 0: as many as can be.
    pub rate: &'a Cell<u64>,
}

impl Pace<'_> {
    /// Waits as long as so many bytes may take; asks every second how many may be.
    pub async fn spend(&self, bytes: u64) {
        let mut left = bytes;
        while left > 0 && self.rate.get() > 0 {
            let (rate, part) = (self.rate.get(), left.min(self.rate.get()));
            let micros = u128::from(part) * 1_000_000 / u128::from(rate);
            self.env.sleep(Duration::from_micros(micros as u64)).await;
            left -= part;
        }
    }
}
