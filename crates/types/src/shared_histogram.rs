// SPDX-License-Identifier: Apache-2.0
//! A histogram that several threads add to: no lock, two additions.
//!
//! A reader may see one of the two and not yet the other, so the sum can be a moment off; each count is exact.

use crate::{BUCKETS, Histogram};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// See the module.
#[derive(Debug)]
pub struct SharedHistogram {
    counts: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl Default for SharedHistogram {
    fn default() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; BUCKETS], sum_ns: AtomicU64::new(0) }
    }
}

impl SharedHistogram {
    /// Adds so many that took so long each.
    #[inline]
    pub fn add(&self, took: Duration, times: u64) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.counts[Histogram::bucket(took)].fetch_add(times, Ordering::Relaxed);
        self.sum_ns.fetch_add(nanos.saturating_mul(times), Ordering::Relaxed);
    }

    /// What was added.
    pub fn histogram(&self) -> Histogram {
        let counts = std::array::from_fn(|bucket| self.counts[bucket].load(Ordering::Relaxed));
        Histogram::of(counts, self.sum_ns.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_one_thread_would_have_counted() {
        let (shared, mut alone) = (SharedHistogram::default(), Histogram::default());
        for (micros, times) in [(1, 2), (70, 3), (20_000_000, 1)] {
            shared.add(Duration::from_micros(micros), times);
            (0..times).for_each(|_| alone.add(Duration::from_micros(micros)));
        }
        assert_eq!(shared.histogram(), alone);
    }
}
