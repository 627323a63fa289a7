// SPDX-License-Identifier: Apache-2.0
//! Limits of a volume: so many requests and so many bytes a second, for all who are attached together.
//!
//! Virtual scheduling, the form of the leaky bucket that needs one number: the moment at which all that was taken is paid for (ITU-T I.371, annex A). A request
//! that finds this moment at most the burst ahead of now goes at once, however large it is, and moves it on by what it costs; others wait until it is so. So over
//! any time no more than the rate goes through, plus the burst and one request.
//!
//! Always holds: requests take their turns in the order in which they came; and limits that change are in force for those who wait too, within [`LOOK`].

use crate::waits::{WaitCounts, Waits};
use std::cell::Cell;
use std::time::Duration;
use varve_env::Env;
use varve_types::Settings;

/// Who waits looks for new limits as often as this.
const LOOK: Duration = Duration::from_millis(100);
const SECOND_NS: u128 = 1_000_000_000;

/// When what was taken of one thing is paid for, in nanoseconds of the shard's clock.
#[derive(Default)]
struct Bucket(Cell<u64>);

impl Bucket {
    /// Takes so much at so much a second (0: no bound); gives how long to wait before it may be used.
    fn take(&self, now_ns: u64, amount: u64, rate: u64, burst_ns: u64) -> u64 {
        if rate == 0 {
            return 0;
        }
        let from = self.0.get().max(now_ns);
        let cost = u128::from(amount) * SECOND_NS / u128::from(rate);
        self.0.set(from.saturating_add(u64::try_from(cost).unwrap_or(u64::MAX)));
        (from - now_ns).saturating_sub(burst_ns)
    }
}

/// Limits as they are set.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Limits {
    requests: u64,
    bytes: u64,
    burst_ns: u64,
}

/// The limits of a volume at work. See the module.
#[derive(Default)]
pub(crate) struct RateLimiter {
    limits: Cell<Limits>,
    requests: Bucket,
    bytes: Bucket,
    /// Raised with every change of the limits.
    generation: Cell<u64>,
    waits: Waits,
}

impl RateLimiter {
    pub fn new(settings: &Settings) -> Self {
        let this = Self::default();
        this.set(settings);
        this
    }

    /// Takes a request of so many bytes; gives how long to wait before it may begin.
    pub fn take(&self, env: &dyn Env, bytes: u64) -> Duration {
        let limits = self.limits.get();
        if limits.requests == 0 && limits.bytes == 0 {
            return Duration::ZERO;
        }
        let now_ns = env.now().as_nanos() as u64;
        let requests = self.requests.take(now_ns, 1, limits.requests, limits.burst_ns);
        let bytes = self.bytes.take(now_ns, bytes, limits.bytes, limits.burst_ns);
        Duration::from_nanos(requests.max(bytes))
    }

    /// Waits out what [`take`](Self::take) gave for a request of so many bytes; under new limits it is taken anew.
    pub async fn wait(&self, env: &dyn Env, first: Duration, bytes: u64) {
        let _waiting = self.waits.begin(env);
        let (mut until, mut generation) = (env.now() + first, self.generation.get());
        loop {
            let left = until.saturating_sub(env.now());
            if left.is_zero() {
                return;
            }
            env.sleep(left.min(LOOK)).await;
            if generation != self.generation.get() {
                generation = self.generation.get();
                until = env.now() + self.take(env, bytes);
            }
        }
    }

    /// Lets other limits be in force; what was taken under the old ones is forgotten.
    pub fn set(&self, settings: &Settings) {
        let burst_ns = settings.limit_burst_ms.saturating_mul(1_000_000);
        let limits = Limits { requests: settings.iops_limit, bytes: settings.bandwidth_limit, burst_ns };
        if self.limits.replace(limits) == limits {
            return;
        }
        self.requests.0.set(0);
        self.bytes.0.set(0);
        self.generation.set(self.generation.get() + 1);
    }

    pub fn counts(&self) -> WaitCounts {
        self.waits.counts()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn what_comes_at_once_is_spread_at_the_rate() {
        let bucket = Bucket::default();
        let waits: Vec<u64> = (0..4).map(|_| bucket.take(5000 * MS, 1, 100, 0) / MS).collect();
        assert_eq!(waits, [0, 10, 20, 30]);
        assert_eq!(bucket.take(6000 * MS, 1, 100, 0), 0);
    }

    #[test]
    fn a_burst_is_what_was_not_used_and_no_more() {
        let bucket = Bucket::default();
        let at_once =
            |now_s: u64| (0..100).take_while(|_| bucket.take(now_s * 1000 * MS, 1, 4, 2000 * MS) == 0).count();
        // Two seconds of it, and the one that finds the burst just used.
        assert_eq!(at_once(10), 9);
        // Of the four of a second, one was taken by the request that had to wait.
        assert_eq!(at_once(11), 3);
        assert_eq!(at_once(1000), 9);
    }

    #[test]
    fn a_large_request_goes_through_and_is_paid_for_afterwards() {
        let bucket = Bucket::default();
        assert_eq!(bucket.take(0, 32 << 20, 1 << 20, 0), 0);
        assert_eq!(bucket.take(0, 1, 1 << 20, 0), 32_000 * MS);
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let bucket = Bucket::default();
        for _ in 0..3 {
            assert_eq!(bucket.take(1 << 60, u64::MAX, 1, u64::MAX), 0);
        }
    }
}
