// SPDX-License-Identifier: Apache-2.0
//! Whether to look for the next request again at once, instead of sleeping until it comes.
//!
//! To be woken costs several times what a small request costs, so a client that sends its next request as soon as it has its answer may be worth
//! waiting for awake, for a short [window](crate::Tuning::spin). Where the client and other programs want the same cores, staying awake takes
//! from the client what it needs to be quick. Nothing tells the two apart but trying: so the pauses between the last answer and the next request
//! are measured in both ways, and the way with the shorter ones is used, the other tried again now and then. Awake has to win clearly,
//! because it costs the window's time of a core.
//!
//! Between two looks the thread serves everything else that is ready and offers its core, so a connection that waits awake holds up nobody
//! on its shard. A client whose pauses are longer than the window is never waited for awake.

use std::time::{Duration, Instant};

/// A pause that was slept through looks longer than it was by about this: the cost of being woken.
const WAKE_NANOS: u64 = 50_000;
/// Pauses that a way is tried for.
const TRIAL: u32 = 32;
/// Pauses that the better way is used for, before the other is tried again.
const SETTLED: u32 = 1024;

/// The pauses of a connection.
pub(crate) struct Spin {
    window_nanos: u64,
    /// When nothing was to be done any more, if so.
    since: Option<Instant>,
    /// The way that is used now.
    awake: bool,
    /// Whether it is only tried.
    trial: bool,
    /// Pauses until the way is reconsidered.
    left: u32,
    /// Mean pause in nanoseconds, asleep and awake; the last ones count most.
    mean: [u64; 2],
}

impl Spin {
    /// With a window of zero, every pause is slept through.
    pub(crate) fn new(window: Duration) -> Self {
        let window_nanos = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX).min(1_000_000);
        let longest = longest(window_nanos);
        Self { window_nanos, since: None, awake: false, trial: false, left: TRIAL, mean: [longest; 2] }
    }

    /// Nothing is to be done now. Whether to look again at once.
    #[inline]
    pub(crate) fn look_again(&mut self) -> bool {
        if self.window_nanos == 0 {
            return false;
        }
        match self.since {
            None => {
                self.since = Some(Instant::now());
                self.awake
            }
            Some(since) => self.awake && nanos(since.elapsed()) < self.window_nanos,
        }
    }

    /// Something came.
    #[inline]
    pub(crate) fn came(&mut self) {
        if let Some(since) = self.since.take() {
            self.learn(nanos(since.elapsed()));
        }
    }

    fn learn(&mut self, pause_nanos: u64) {
        let mean = &mut self.mean[usize::from(self.awake)];
        *mean = *mean - *mean / 8 + pause_nanos.min(longest(self.window_nanos)) / 8;
        let in_vain = self.awake && !self.trial && *mean > self.window_nanos;
        self.left -= 1;
        if self.left == 0 || in_vain {
            self.reconsider(in_vain);
        }
    }

    fn reconsider(&mut self, in_vain: bool) {
        let [asleep, awake] = self.mean;
        if self.trial {
            self.awake = awake + awake / 4 < asleep;
            (self.trial, self.left) = (false, SETTLED);
        } else if in_vain || asleep > self.window_nanos + WAKE_NANOS {
            (self.awake, self.left) = (false, SETTLED);
        } else {
            (self.awake, self.trial, self.left) = (!self.awake, true, TRIAL);
        }
    }
}

/// What a pause counts as at most, so that one long pause does not hide many short ones.
const fn longest(window_nanos: u64) -> u64 {
    8 * (window_nanos + WAKE_NANOS)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `pauses` are waited for awake, if they last so long in microseconds.
    fn awake_in(spin: &mut Spin, pauses: u32, asleep: u64, awake: u64) -> u32 {
        (0..pauses)
            .map(|_| {
                let is_awake = spin.awake;
                spin.learn(1000 * if is_awake { awake } else { asleep });
                u32::from(is_awake)
            })
            .sum()
    }

    #[test]
    fn the_way_with_the_shorter_pauses_is_used_and_the_other_tried_now_and_then() {
        let mut spin = Spin::new(Duration::from_micros(50));
        awake_in(&mut spin, 2000, 60, 20);
        assert!(awake_in(&mut spin, 20_000, 60, 20) > 18_000);
        let tried = awake_in(&mut spin, 20_000, 20, 40);
        assert!((100..4000).contains(&tried), "{tried}");
        assert!(awake_in(&mut spin, 20_000, 60, 20) > 16_000, "it is found out when that changes");
    }

    #[test]
    fn slow_clients_are_slept_for() {
        let mut spin = Spin::new(Duration::from_micros(50));
        assert_eq!(awake_in(&mut spin, 100_000, 1000, 1000), 0);
        awake_in(&mut spin, 5000, 60, 20);
        assert!(spin.awake);
        assert!(awake_in(&mut spin, 1000, 1000, 1000) < 40, "it is soon noticed that a client became slow");
    }

    #[test]
    fn one_long_pause_does_not_hide_many_short_ones() {
        let mut spin = Spin::new(Duration::from_micros(50));
        awake_in(&mut spin, 5000, 60, 20);
        assert!(spin.awake);
        spin.learn(u64::MAX);
        awake_in(&mut spin, 3 * SETTLED, 60, 20);
        assert!(spin.awake);
    }

    #[test]
    fn it_can_be_turned_off() {
        let mut spin = Spin::new(Duration::ZERO);
        (0..10_000).for_each(|_| {
            assert!(!spin.look_again());
            spin.came();
        });
    }

    #[test]
    fn a_window_is_no_longer_than_it_is() {
        let mut spin = Spin::new(Duration::from_micros(50));
        spin.awake = true;
        assert!(spin.look_again());
        spin.since = Instant::now().checked_sub(Duration::from_micros(51));
        assert!(!spin.look_again());
    }
}
