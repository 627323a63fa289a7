// SPDX-License-Identifier: Apache-2.0
//! Pressure: writes are slowed while the store takes less than guests write, long before the journal is full.
//!
//! A volume has a *share* of the journal: eight tenths of it, divided by the volumes that have anything to speak of in there. While what it wrote and the store does
//! not have yet is less than half of its share, nothing is slowed. From there on it may write so many bytes a second:
//!
//! ```text
//!     4 × (1 − fill) × what the store has lately taken of it a second
//! ```
//!
//! which is twice that at half of the share, as much at three quarters, and nothing at the whole. So a store that is slow but steady finds a volume at three quarters, every
//! write waiting a little and none for long; and a store that is away, which takes next to nothing, finds writes that get slower and slower over minutes. Who stands at
//! the end of its share all the same waits there until the store has taken something, and leaves the rest of the journal to others.
//!
//! Always holds: a volume that writes little is not slowed by one that writes much; requests of one volume are slowed in the order in which they came, by
//! what they bring; and while its share is not used up none waits here for longer than [`MOST_WAIT`]. Who is slowed has its layer sealed early, so that what is waited for is
//! under way. Nothing here is needed for safety: it may err, and only speed is lost; the wall of the journal itself is [`crate::write`]'s.

use crate::context::Context;
use crate::journal::Journal;
use crate::timeline::{Data, Timeline};
use crate::waits::{WaitCounts, Waits};
use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::time::Duration;
use varve_types::branch::{Branch, reached};

/// A request waits at most so long while there is room.
const MOST_WAIT: Duration = Duration::from_secs(2);
/// Who waits looks so often whether it still has to.
const LOOK: Duration = Duration::from_millis(100);
/// How often the rate is made anew; and whenever the backlog has changed by a little.
const REFRESH: Duration = Duration::from_millis(20);
/// What the store takes is averaged over so long.
const MEMORY: Duration = Duration::from_secs(8);
/// After so long without pressure nothing is known of the store any more.
const FORGOTTEN: Duration = Duration::from_secs(5);
/// A store that takes nothing is taken for one that empties a journal in so many seconds: room is given out slowly, and lasts for minutes.
const SLOWEST_S: u64 = 120;
/// A volume with less than this part of the journal needs no share.
const LITTLE: u64 = 64;

/// What slowing has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlowCounts {
    /// Requests that were slowed.
    pub waits: WaitCounts,
    /// Bytes a second that the volume may write now; 0 while nothing is slowed.
    pub rate: u64,
}

/// How a timeline's writes are slowed. See the module.
#[derive(Default)]
pub(crate) struct Throttle {
    /// When what was let through is paid for, in nanoseconds of the shard's clock.
    paid_ns: Cell<u64>,
    /// When the rate was made.
    made: Cell<Duration>,
    /// The backlog then.
    seen: Cell<u64>,
    /// Bytes a second that the store takes, as far as is known; 0: not known yet.
    drained_rate: Cell<u64>,
    /// Bytes of the journal that the volume may have.
    share: Cell<u64>,
    /// Bytes that it took since `made`.
    drained: Cell<u64>,
    /// Bytes a second that may be written; 0 while nothing is slowed.
    rate: Cell<u64>,
    waits: Waits,
}

/// Bytes a second that may be written, where `backlog` of a share of the journal is taken and the store takes `drained` a second; `None` for as many as come.
fn rate(backlog: u64, share: u64, drained: u64) -> Option<u64> {
    let left = share.saturating_sub(backlog);
    let fill_is_low = left > share / 2;
    let drained = drained.max(share / SLOWEST_S);
    let rate = u128::from(drained) * 4 * u128::from(left) / u128::from(share.max(1));
    (!fill_is_low).then(|| u64::try_from(rate).unwrap_or(u64::MAX).max(1))
}

impl Throttle {
    /// The store has taken so many bytes.
    pub fn drained(&self, bytes: u64) {
        self.drained.set(self.drained.get() + bytes);
    }

    /// The store refuses: what it took before says nothing any more.
    pub fn refused(&self) {
        self.drained_rate.set(1);
    }

    /// Averages what the store has taken since the last time, and gives it.
    fn average(&self, now: Duration, ring: u64) -> u64 {
        // Nothing is known of a store that was never busy: it is thought well of.
        let passed = now.saturating_sub(self.made.get());
        if self.drained_rate.get() == 0 || passed >= FORGOTTEN {
            self.drained.set(0);
            self.drained_rate.set((ring / 2).max(1));
            return ring / 2;
        }
        let before = self.drained_rate.get();
        let (ms, memory_ms) = (passed.as_millis() as u64, MEMORY.as_millis() as u64);
        let taken = self.drained.replace(0);
        let rate = (u128::from(before) * u128::from(memory_ms - ms) + u128::from(taken) * 1000) / u128::from(memory_ms);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX).max(1);
        self.drained_rate.set(rate);
        rate
    }

    /// Takes a request of so many bytes at so many a second; gives how long it has to wait.
    fn take(&self, now: Duration, bytes: u64, rate: u64) -> Duration {
        let now_ns = now.as_nanos() as u64;
        let from = self.paid_ns.get().max(now_ns);
        let cost = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        let paid = from.saturating_add(u64::try_from(cost).unwrap_or(u64::MAX));
        // However slow it is, nobody stands behind more than the longest wait.
        self.paid_ns.set(paid.min(now_ns + MOST_WAIT.as_nanos() as u64));
        Duration::from_nanos(from - now_ns)
    }
}

impl Context {
    /// What each volume that has more than a little in a journal of so many bytes may have there.
    fn share(&self, journal: &Rc<Journal>, ring: u64) -> u64 {
        let timelines = self.timelines.borrow();
        let writes = |timeline: &Rc<Timeline>| {
            Rc::ptr_eq(&timeline.journal, journal) && timeline.data.borrow().backlog() > ring / LITTLE
        };
        let writers = timelines.values().filter_map(Weak::upgrade).filter(writes).count() as u64;
        (ring / 10 * 8).saturating_sub(journal.promised()) / writers.max(1)
    }
}

impl Data {
    /// Bytes that came in and that the store does not have yet.
    pub fn backlog(&self) -> u64 {
        self.sealed_taken + self.open.taken()
    }
}

impl Timeline {
    /// For how long a change of so many bytes has to wait so that the journal does not fill up; `None` for not at all.
    pub fn slowed(self: &Rc<Self>, bytes: u64) -> Option<Duration> {
        let (ring, used) = self.journal.usage();
        let throttle = &self.throttle;
        let backlog = self.data.borrow().backlog();
        if used < ring / 4 || backlog <= ring / LITTLE {
            // The way of nearly every write.
            throttle.rate.set(0);
            return None;
        }
        let now = self.context.env.now();
        let is_other = throttle.seen.get().abs_diff(backlog) > ring / LITTLE;
        if is_other || now.saturating_sub(throttle.made.get()) >= REFRESH {
            let drained = throttle.average(now, ring);
            throttle.made.set(now);
            throttle.seen.set(backlog);
            throttle.share.set(self.context.share(&self.journal, ring));
            throttle.rate.set(rate(backlog, throttle.share.get(), drained).unwrap_or(0));
        }
        let rate = throttle.rate.get();
        if rate > 0 && self.data.borrow().open.taken() > throttle.share.get() / 8 {
            self.seal_now();
        }
        let wait = (rate > 0).then(|| throttle.take(now, bytes, rate));
        wait.filter(|wait| !wait.is_zero() || backlog >= throttle.share.get())
    }

    /// What slowing has come to.
    pub fn slow_counts(&self) -> SlowCounts {
        let (ring, used) = self.journal.usage();
        // Who writes nothing now is not slowed, whatever was in force for the last write.
        let is_pressed = used >= ring / 4 && self.data.borrow().backlog() > ring / LITTLE;
        let rate = if is_pressed { self.throttle.rate.get() } else { 0 };
        SlowCounts { waits: self.throttle.waits.counts(), rate }
    }

    /// Whether it has all of the journal that it may have.
    fn has_its_share(&self) -> bool {
        let (ring, used) = self.journal.usage();
        used >= ring / 4 && self.data.borrow().backlog() >= self.context.share(&self.journal, ring)
    }

    /// Waits for so long, and for its share of the journal; or until nothing is slowed any more.
    pub async fn wait_slowed(self: &Rc<Self>, wait: Duration) {
        reached(Branch::WriteSlowed);
        let env = &*self.context.env;
        let _waiting = self.throttle.waits.begin(env);
        let until = env.now() + wait.min(MOST_WAIT);
        loop {
            let left = until.saturating_sub(env.now());
            if self.is_stopped() || (left.is_zero() && !self.has_its_share()) {
                return;
            }
            if left.is_zero() {
                // All of its share may be in a layer that nobody would seal for long.
                self.seal_now();
            }
            env.sleep(if left.is_zero() { LOOK } else { left.min(LOOK) }).await;
            let (ring, used) = self.journal.usage();
            if used < ring / 4 || self.journal.failure().is_some() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn writes_are_slowed_in_proportion_and_long_before_the_wall() {
        let share = 1000 * MIB;
        assert_eq!(rate(499 * MIB, share, 100 * MIB), None);
        assert_eq!(rate(500 * MIB, share, 100 * MIB), Some(200 * MIB));
        assert_eq!(rate(750 * MIB, share, 100 * MIB), Some(100 * MIB), "as much as the store takes");
        assert_eq!(rate(990 * MIB, share, 100 * MIB), Some(4 * MIB));
        assert_eq!(rate(1500 * MIB, share, 100 * MIB), Some(1));
        assert_eq!(rate(750 * MIB, share, 0), Some(share / SLOWEST_S), "what is left is given out over minutes");
    }

    #[test]
    fn what_the_store_takes_is_known_from_what_it_took() {
        let throttle = Throttle::default();
        let mut now = Duration::ZERO;
        throttle.average(now, 1000 * MIB);
        for _ in 0..200 {
            now += Duration::from_millis(250);
            throttle.drained(5 * MIB);
            throttle.average(now, 1000 * MIB);
            throttle.made.set(now);
        }
        let rate = throttle.drained_rate.get() / MIB;
        assert!((18..=22).contains(&rate), "{rate} MiB a second");
        throttle.refused();
        assert_eq!(throttle.average(now, 1000 * MIB), 1);
    }

    #[test]
    fn nobody_waits_for_longer_than_the_longest_wait() {
        let throttle = Throttle::default();
        let now = Duration::from_secs(5);
        assert_eq!(throttle.take(now, 1 << 30, 1), Duration::ZERO, "the first pays afterwards");
        assert_eq!(throttle.take(now, 4096, 1), MOST_WAIT);
        assert_eq!(throttle.take(now + MOST_WAIT, 4096, 4096), Duration::ZERO);
        assert_eq!(throttle.take(now + MOST_WAIT, 4096, 4096), Duration::from_secs(1));
    }
}
