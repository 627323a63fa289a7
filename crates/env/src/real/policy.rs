// SPDX-License-Identifier: Apache-2.0
//! Where a sync is done: on the shard's own thread while syncs are quick, on the disk's thread while they are not.
//!
//! A hop to a thread and back costs 70 to 160 µs, a sync of a good SSD about 110: done in place, a flush takes half
//! the time, and the shard is held up no longer than by a batch of requests. On a disk that takes milliseconds, or
//! while another program floods it, the same would stop every volume of the shard. So the policy goes by what syncs
//! have taken lately. One that stalls, or a mean that creeps up, moves them to the thread at once; a row of quick
//! ones there moves them back. Each relapse doubles the length of that row, up to a bound, so a disk that is quick
//! only now and then stays on the thread.
//!
//! Pure: it is told durations and sees no clock.

use std::time::Duration;

/// A sync in place that takes so many times the limit moves the next ones to the thread, whatever the mean.
const STALL: u32 = 4;
/// The mean moves by one part in so many at each sync.
const WEIGHT: u32 = 8;
/// Longest row of quick syncs that is asked for.
const MOST_CALM: u32 = 256;
/// Quick syncs in place after which earlier relapses are forgotten.
const FORGIVEN: u32 = 1024;
/// Quick syncs that a disk just opened has to show.
const FIRST_CALM: u32 = 4;

/// What the policy goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncTuning {
    /// A sync that takes no longer is quick.
    pub inline_below: Duration,
    /// With more bytes than this written since the last sync, the thread does it in any case.
    pub inline_bytes: u64,
    /// Quick syncs in a row, on the thread, that move syncs back in place. Zero: they begin in place.
    pub calm_syncs: u32,
}

impl Default for SyncTuning {
    fn default() -> Self {
        Self { inline_below: Duration::from_micros(400), inline_bytes: 256 << 10, calm_syncs: 32 }
    }
}

impl SyncTuning {
    /// Every sync in place, for tests and tools.
    pub const INLINE: Self = Self { inline_below: Duration::MAX, inline_bytes: u64::MAX, calm_syncs: 0 };
    /// Every sync on the thread, for tests and slow disks.
    pub const THREAD: Self = Self { inline_below: Duration::ZERO, inline_bytes: 0, calm_syncs: u32::MAX };
}

/// The state of one disk.
#[derive(Debug)]
pub(super) struct SyncPolicy {
    tuning: SyncTuning,
    mean: Duration,
    inline: bool,
    /// Quick syncs in a row.
    calm: u32,
    /// Quick syncs in a row that are asked for.
    wanted: u32,
}

impl SyncPolicy {
    pub(super) fn new(tuning: SyncTuning) -> Self {
        let wanted = tuning.calm_syncs.min(FIRST_CALM);
        Self { tuning, mean: tuning.inline_below, inline: wanted == 0, calm: 0, wanted }
    }

    /// Whether the next sync, of so many bytes, is to be done in place.
    pub(super) const fn inline(&self, bytes: u64) -> bool {
        self.inline && bytes <= self.tuning.inline_bytes
    }

    /// Takes note of what a sync of so many bytes took, wherever it was done.
    pub(super) fn record(&mut self, took: Duration, bytes: u64) {
        if bytes > self.tuning.inline_bytes {
            return;
        }
        let limit = self.tuning.inline_below;
        self.mean = self.mean - self.mean / WEIGHT + took / WEIGHT;
        if took <= limit {
            self.calm = self.calm.saturating_add(1);
        } else {
            self.calm = 0;
        }
        if !self.inline {
            // The mean of the past must not keep a disk away that has been quick ever since.
            self.inline = self.calm >= self.wanted;
            if self.inline {
                self.mean = took;
                self.calm = 0;
            }
            return;
        }
        if took > limit.saturating_mul(STALL) || self.mean > limit {
            self.inline = false;
            self.calm = 0;
            self.wanted = self.wanted.max(self.tuning.calm_syncs / 2).saturating_mul(2).clamp(1, MOST_CALM);
        } else if self.calm >= FORGIVEN {
            self.wanted = self.tuning.calm_syncs;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_micros(110);
    const SLOW: Duration = Duration::from_micros(600);
    const STALLED: Duration = Duration::from_millis(20);

    /// How many quick syncs it takes to come in place.
    fn calm(policy: &mut SyncPolicy) -> u32 {
        (0..10_000)
            .take_while(|_| {
                !policy.inline(0) && {
                    policy.record(QUICK, 0);
                    true
                }
            })
            .count() as u32
    }

    #[test]
    fn a_quick_disk_is_synced_in_place_after_a_short_trial() {
        let mut policy = SyncPolicy::new(SyncTuning::default());
        assert!(!policy.inline(0));
        assert_eq!(calm(&mut policy), FIRST_CALM);
        assert!(policy.inline(256 << 10) && !policy.inline((256 << 10) + 1));
        for _ in 0..100_000 {
            policy.record(QUICK, 4096);
        }
        assert!(policy.inline(0));
    }

    #[test]
    fn one_stall_moves_to_the_thread_and_relapses_take_longer_to_forgive() {
        let mut policy = SyncPolicy::new(SyncTuning::default());
        calm(&mut policy);
        let mut rows = Vec::new();
        for _ in 0..10 {
            policy.record(STALLED, 0);
            assert!(!policy.inline(0));
            rows.push(calm(&mut policy));
        }
        assert_eq!(rows, [32, 64, 128, 256, 256, 256, 256, 256, 256, 256]);
        for _ in 0..FORGIVEN {
            policy.record(QUICK, 0);
        }
        policy.record(STALLED, 0);
        assert_eq!(calm(&mut policy), 64, "a long good time is worth something");
    }

    #[test]
    fn a_mean_that_creeps_up_moves_to_the_thread_and_stays_there() {
        let mut policy = SyncPolicy::new(SyncTuning::default());
        calm(&mut policy);
        policy.record(SLOW, 0);
        assert!(policy.inline(0), "a single one that is a little slow is cheaper than a hop");
        for _ in 0..20 {
            policy.record(SLOW, 0);
        }
        assert!(!policy.inline(0));
        for _ in 0..1000 {
            policy.record(QUICK, 0);
            policy.record(SLOW, 0);
            assert!(!policy.inline(0));
        }
    }

    #[test]
    fn large_syncs_say_nothing_about_small_ones() {
        let mut policy = SyncPolicy::new(SyncTuning::default());
        calm(&mut policy);
        policy.record(STALLED, 64 << 20);
        assert!(policy.inline(0));
    }

    #[test]
    fn the_extremes_never_move() {
        let mut inline = SyncPolicy::new(SyncTuning::INLINE);
        let mut thread = SyncPolicy::new(SyncTuning::THREAD);
        for took in [QUICK, STALLED, Duration::ZERO, Duration::from_secs(100), QUICK] {
            assert!(inline.inline(1 << 40) && !thread.inline(0));
            inline.record(took, 1 << 40);
            thread.record(took, 1);
        }
    }
}
