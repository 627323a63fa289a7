// SPDX-License-Identifier: Apache-2.0
//! Whether to look for the next request again at once, instead of sleeping until it comes.
//!
//! To be woken costs several times what a small request costs. A client that sends its next request as soon as it has its answer is worth
//! waiting for awake, for a short [window](super::Tuning::spin); one that pauses is not, and must not cost a core. So the pauses of the
//! connection are measured, and only while the last ones were mostly short is the window used. Between two looks the thread serves everything else
//! that is ready, so a connection that waits awake takes time from nobody on its shard.

use std::time::{Duration, Instant};

/// A pause that was slept through looks longer than it was by about this: the cost of being woken.
const WAKE: Duration = Duration::from_micros(50);
/// Highest score; the window is used while the score is above half of it.
const BEST: u8 = 16;

/// The pauses of a connection.
pub(crate) struct Spin {
    window: Duration,
    score: u8,
    since: Option<Instant>,
}

impl Spin {
    /// With a window of zero, every pause is slept through.
    pub(crate) fn new(window: Duration) -> Self {
        Self { window, score: 0, since: None }
    }

    /// Nothing is to be done now. Whether to look again at once.
    pub(crate) fn look_again(&mut self) -> bool {
        self.look_again_at(Instant::now)
    }

    fn look_again_at(&mut self, now: impl FnOnce() -> Instant) -> bool {
        if self.window.is_zero() {
            return false;
        }
        let now = now();
        let since = *self.since.get_or_insert(now);
        self.score > BEST / 2 && now.saturating_duration_since(since) < self.window
    }

    /// Something came.
    #[inline]
    pub(crate) fn came(&mut self) {
        if let Some(since) = self.since.take() {
            self.learn(since.elapsed());
        }
    }

    fn learn(&mut self, pause: Duration) {
        if pause < self.window + WAKE {
            self.score = (self.score + 1).min(BEST);
        } else {
            self.score = self.score.saturating_sub(2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_awake_only_for_clients_that_are_quick() {
        let window = Duration::from_micros(50);
        let mut spin = Spin::new(window);
        let start = Instant::now();
        assert!(!spin.look_again_at(|| start), "nothing is known yet");
        (0..100).for_each(|_| spin.learn(Duration::from_micros(10)));
        spin.since = None;
        assert!(spin.look_again_at(|| start));
        assert!(spin.look_again_at(|| start + window / 2));
        assert!(!spin.look_again_at(|| start + window), "a window, and no longer");
        (0..4).for_each(|_| spin.learn(Duration::from_millis(1)));
        assert!(!spin.look_again_at(|| start), "the client has become slow");
    }

    #[test]
    fn it_can_be_turned_off() {
        let mut spin = Spin::new(Duration::ZERO);
        (0..100).for_each(|_| spin.learn(Duration::from_micros(1)));
        assert!(!spin.look_again());
    }
}
