// SPDX-License-Identifier: Apache-2.0
//! The places where a process can die: every I/O, counted.
//!
//! Each process has one [`CrashPoints`]. A disk write, a sync, a request to a store, each passes one or more points; the points
//! stand before the effect, or behind it where "it happened but nobody was told" is a state of its own. At the point that was
//! chosen the process dies: that I/O and all later ones never complete, a `write_at` is refused and changes nothing, and the
//! world drops the tasks once the poll that is under way returns.
//!
//! Code that runs on in that same poll has no way to tell that it is dead unless it does I/O. A test that records
//! acknowledgements must therefore look at [`CrashPoints::dead`] before it takes one for given.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A kind of place where a process can die.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IoPoint {
    /// Before a disk write: the kernel has nothing of it.
    DiskWrite,
    /// Before a sync: it has made nothing durable.
    SyncStart,
    /// A sync made all durable, and nobody was told.
    SyncEnd,
    /// Before a disk read.
    DiskRead,
    /// Before a put: the store knows nothing of it.
    PutStart,
    /// A put is on its way: it may land, land later, or never.
    PutSent,
    /// A put landed, and nobody was told.
    PutEnd,
    /// Before a read of an object, whole or by range.
    Get,
    /// Before asking for an object's size.
    Head,
    /// Before a listing.
    List,
    /// Before a delete: the object is still there.
    DeleteStart,
    /// A delete was done, and nobody was told.
    DeleteEnd,
    /// Before a transaction of coordination.
    TransactStart,
    /// A transaction was applied or refused, and nobody was told.
    TransactEnd,
}

/// The I/O counter of one process, and when it dies. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct CrashPoints {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    passed: u64,
    die_at: Option<u64>,
    polls_left: Option<u64>,
    death: Option<String>,
    by_kind: BTreeMap<IoPoint, u64>,
}

impl CrashPoints {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Dies at point number `number`, the process's first being 0.
    pub fn at(&self, number: u64) {
        self.lock().die_at = Some(number);
    }

    /// Dies after `polls` more polls of its tasks: at an await, whatever it waits for.
    pub fn after_polls(&self, polls: u64) {
        self.lock().polls_left = Some(polls);
    }

    /// Dies at once.
    pub fn die(&self, why: &str) {
        let mut state = self.lock();
        if state.death.is_none() {
            state.death = Some(why.to_owned());
        }
    }

    /// Whether the process is dead.
    #[must_use]
    pub fn dead(&self) -> bool {
        self.lock().death.is_some()
    }

    /// Where it died, for people.
    #[must_use]
    pub fn death(&self) -> Option<String> {
        self.lock().death.clone()
    }

    /// How many points it has passed alive.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.lock().passed
    }

    /// How many of each kind it has passed alive.
    #[must_use]
    pub fn passed_by_kind(&self) -> BTreeMap<IoPoint, u64> {
        self.lock().by_kind.clone()
    }

    /// Passes a point; false where the process is, or now falls, dead.
    pub(crate) fn pass(&self, point: IoPoint, what: &str) -> bool {
        let mut state = self.lock();
        if state.death.is_some() {
            return false;
        }
        if state.die_at == Some(state.passed) {
            state.death = Some(format!("at I/O {}, {point:?} of {what}", state.passed));
            return false;
        }
        state.passed += 1;
        *state.by_kind.entry(point).or_default() += 1;
        true
    }

    /// Passes a point, or never completes.
    pub(crate) async fn survive(&self, point: IoPoint, what: &str) {
        if !self.pass(point, what) {
            pending::<()>().await;
        }
    }

    /// Counts one poll of one of its tasks.
    pub(crate) fn polled(&self) {
        let mut state = self.lock();
        match state.polls_left {
            Some(0) if state.death.is_none() => state.death = Some("at an await".to_owned()),
            Some(left) => state.polls_left = Some(left.saturating_sub(1)),
            None => {}
        }
    }
}

/// Runs `scenario` with 0, 1, 2, … for the number of the I/O to die at until it says that the process did not die, and gives how many
/// deaths there were.
///
/// # Panics
/// When the scenario still dies at I/O number `most`: it is longer than the caller thought, or never ends.
pub fn at_every_io(most: u64, mut scenario: impl FnMut(u64) -> bool) -> u64 {
    for number in 0..=most {
        if !scenario(number) {
            return number;
        }
    }
    panic!("the scenario has more than {most} I/Os");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dies_at_the_chosen_point_and_stays_dead() {
        let points = CrashPoints::default();
        points.at(2);
        assert!(points.pass(IoPoint::DiskWrite, "a"));
        assert!(points.pass(IoPoint::SyncStart, "a"));
        assert!(!points.pass(IoPoint::SyncEnd, "a"));
        assert!(!points.pass(IoPoint::DiskWrite, "a"));
        assert_eq!((points.passed(), points.dead()), (2, true));
        assert_eq!(points.death().unwrap(), "at I/O 2, SyncEnd of a");
        assert_eq!(points.passed_by_kind()[&IoPoint::DiskWrite], 1);
    }

    #[test]
    #[should_panic(expected = "more than 3 I/Os")]
    fn an_endless_scenario_is_an_error() {
        at_every_io(3, |_| true);
    }
}
