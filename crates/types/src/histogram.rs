// SPDX-License-Identifier: Apache-2.0
//! How long things took, counted in buckets: enough to tell the share that took longer than so much, for as little as an addition each.
//!
//! The bounds are those of a microsecond doubled again and again, and one half way between two of them: 1, 2, 3, 4, 6, 8, 12 µs and so on up to 12.6 s. So what is
//! read off is at most half too large, over seven orders of magnitude. They are the same in every histogram, so those of several nodes can be added up.
//!
//! Always holds: what was added is in exactly one bucket, the first whose bound it does not pass.

use std::time::Duration;

/// Buckets of a histogram. The last one is for what passes every bound.
pub const BUCKETS: usize = 48;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BUCKETS],
    sum_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self::of([0; BUCKETS], 0)
    }
}

impl Histogram {
    /// With so many in each bucket, which took so many nanoseconds all together.
    #[must_use]
    pub const fn of(counts: [u64; BUCKETS], sum_ns: u64) -> Self {
        Self { counts, sum_ns }
    }

    /// The bucket of what took so long.
    #[must_use]
    #[inline]
    pub fn bucket(took: Duration) -> usize {
        let last_us = (nanos(took).div_ceil(1000)).saturating_sub(1);
        if last_us == 0 {
            return 0;
        }
        // Two buckets for each power of two: below the half between it and the next, and above.
        let power = last_us.ilog2() as usize;
        let is_upper = power == 0 || last_us >> (power - 1) & 1 == 1;
        (2 * power + usize::from(is_upper)).min(BUCKETS - 1)
    }

    /// The most that what is in a bucket took, in microseconds; `None` for the last one, which has no bound.
    #[must_use]
    pub const fn bound_us(bucket: usize) -> Option<u64> {
        match bucket {
            0 => Some(1),
            bucket if bucket >= BUCKETS - 1 => None,
            bucket if bucket % 2 == 1 => Some(2 << (bucket / 2)),
            bucket => Some(3 << (bucket / 2 - 1)),
        }
    }

    /// Adds what took so long.
    #[inline]
    pub fn add(&mut self, took: Duration) {
        self.counts[Self::bucket(took)] += 1;
        self.sum_ns += nanos(took);
    }

    /// How many are in each bucket.
    #[must_use]
    pub const fn counts(&self) -> &[u64; BUCKETS] {
        &self.counts
    }

    /// How many were added.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// How long all of them took together.
    #[must_use]
    pub const fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns)
    }
}

fn nanos(took: Duration) -> u64 {
    u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_grow_by_a_half_at_most_and_end_behind_ten_seconds() {
        let bounds: Vec<u64> = (0..BUCKETS).map_while(Histogram::bound_us).collect();
        assert_eq!(bounds[..8], [1, 2, 3, 4, 6, 8, 12, 16]);
        assert_eq!((bounds.len(), bounds[BUCKETS - 2]), (BUCKETS - 1, 12_582_912));
        assert!(bounds[1..].windows(2).all(|two| two[0] < two[1] && two[1] * 2 <= two[0] * 3), "{bounds:?}");
    }

    #[test]
    fn what_took_as_long_as_a_bound_is_below_it_and_what_took_longer_is_not() {
        for bucket in 0..BUCKETS - 1 {
            let bound = Duration::from_micros(Histogram::bound_us(bucket).unwrap());
            assert_eq!(Histogram::bucket(bound), bucket, "{bound:?}");
            assert_eq!(Histogram::bucket(bound + Duration::from_nanos(1)), bucket + 1, "behind {bound:?}");
        }
        assert_eq!(Histogram::bucket(Duration::ZERO), 0);
        assert_eq!(Histogram::bucket(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn what_was_added_is_counted_once_and_summed() {
        let mut histogram = Histogram::default();
        for nanos in [0, 1, 999, 1000, 1001, 5_000_000_000, 40_000_000_000] {
            histogram.add(Duration::from_nanos(nanos));
        }
        assert_eq!((histogram.count(), histogram.sum()), (7, Duration::from_nanos(45_000_003_001)));
        assert_eq!((histogram.counts()[0], histogram.counts()[1], histogram.counts()[BUCKETS - 1]), (4, 1, 1));
    }
}
