// SPDX-License-Identifier: Apache-2.0
//! Coordination in memory, for tests and for the simulator.
//!
//! Deterministic: no thread, no clock, no randomness. Every call is done at its first poll; the time of leases moves only when
//! [`Memory::advance_to`] is told so; faults happen only where [`Memory::inject`] put them. The same calls give the same answers, revisions and events. What a crash
//! does to a node does nothing to it: it stands for the coordination that the node talks to.

use crate::shared::Shared;
use crate::state::State;
use crate::{Change, Check, Coord, CoordError, Entry, LeaseId, Listing, Outcome, Result, Watch, api};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use varve_env::SendFuture;

/// Most faults that wait to happen.
const MAX_FAULTS: usize = 1024;

/// A fault that a coming transaction meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not applied, and the caller is told so.
    Unavailable,
    /// It is applied if its checks hold, but the caller gets `Unknown`.
    AnswerLost,
    /// It is not applied, but the caller gets `Unknown`.
    RequestLost,
}

/// Coordination in memory.
pub struct Memory {
    shared: Arc<Shared>,
    now: Mutex<Duration>,
    faults: Mutex<VecDeque<Fault>>,
    away: AtomicBool,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// An empty one, whose time is zero.
    #[must_use]
    pub fn new() -> Self {
        Self {
            shared: Shared::new(State::new(BTreeMap::new(), 0, 1)),
            now: Mutex::new(Duration::ZERO),
            faults: Mutex::new(VecDeque::new()),
            away: AtomicBool::new(false),
        }
    }

    /// Moves the time of leases to `now`; an earlier time changes nothing. Leases that are over end one by one, in order of their ends.
    ///
    /// # Errors
    /// `Internal`, after a panic while the state was changed.
    pub fn advance_to(&self, now: Duration) -> Result<()> {
        let mut clock = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        *clock = now.max(*clock);
        let mut state = self.shared.lock()?;
        while let Some((_, lease)) = state.next_deadline().filter(|(deadline, _)| *deadline <= *clock) {
            let plan = state.plan_end(lease);
            state.apply(plan);
            state.drop_lease(lease);
        }
        drop(state);
        self.shared.notify();
        Ok(())
    }

    /// The coming transactions meet these faults, one each, after those injected before.
    ///
    /// # Errors
    /// `Busy` when too many wait already.
    pub fn inject(&self, faults: &[Fault]) -> Result<()> {
        let mut queue = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() + faults.len() > MAX_FAULTS {
            return Err(CoordError::Busy(format!("more than {MAX_FAULTS} faults wait")));
        }
        queue.extend(faults);
        Ok(())
    }

    /// Lets no fault that was injected come any more.
    pub fn forget_faults(&self) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// While it is away every call fails with `Unavailable` and changes nothing. Leases go on ending; watches wait.
    pub fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    fn check_there(&self) -> Result<()> {
        if self.away.load(Ordering::SeqCst) { Err(CoordError::unavailable("it is away")) } else { Ok(()) }
    }

    fn live(&self) -> Result<MutexGuard<'_, State>> {
        self.check_there()?;
        self.shared.live()
    }

    /// Read before the state is locked: `advance_to` takes the two locks in this order.
    fn now(&self) -> Duration {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn transact_now(&self, checks: &[Check], changes: Vec<Change>) -> Result<Outcome> {
        api::check_transaction(checks, &changes)?;
        self.check_there()?;
        let fault = self.faults.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        match fault {
            Some(Fault::Unavailable) => return Err(CoordError::unavailable("a fault was injected")),
            Some(Fault::RequestLost) => return Err(CoordError::unknown("a fault was injected")),
            Some(Fault::AnswerLost) | None => {}
        }
        let mut state = self.live()?;
        let outcome = match state.plan(checks, changes)? {
            None => Outcome::Refused,
            Some(plan) => {
                let revision = plan.revision;
                state.apply(plan);
                Outcome::Applied { revision }
            }
        };
        drop(state);
        self.shared.notify();
        if fault.is_some() { Err(CoordError::unknown("a fault was injected")) } else { Ok(outcome) }
    }

    fn revoke_now(&self, lease: LeaseId) -> Result<()> {
        let mut state = self.live()?;
        state.check_lease(lease)?;
        let plan = state.plan_end(lease);
        state.apply(plan);
        state.drop_lease(lease);
        drop(state);
        self.shared.notify();
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.shared.end("it was closed");
    }
}

impl Coord for Memory {
    fn get<'a>(&'a self, key: &'a str) -> SendFuture<'a, Result<Option<Entry>>> {
        Box::pin(async move { self.check_there().and_then(|()| self.shared.get(key)) })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> SendFuture<'a, Result<Listing>> {
        Box::pin(async move { self.check_there().and_then(|()| self.shared.list(prefix)) })
    }

    fn transact<'a>(&'a self, checks: Vec<Check>, changes: Vec<Change>) -> SendFuture<'a, Result<Outcome>> {
        Box::pin(async move { self.transact_now(&checks, changes) })
    }

    fn watch<'a>(&'a self, prefix: &'a str, from_revision: u64) -> SendFuture<'a, Result<Watch>> {
        Box::pin(async move { self.check_there().and_then(|()| self.shared.watch(prefix, from_revision)) })
    }

    fn lease<'a>(&'a self, ttl: Duration) -> SendFuture<'a, Result<LeaseId>> {
        Box::pin(async move {
            api::check_ttl(ttl)?;
            let now = self.now();
            self.live()?.grant(now, ttl)
        })
    }

    fn keep_alive<'a>(&'a self, lease: LeaseId) -> SendFuture<'a, Result<()>> {
        Box::pin(async move {
            let now = self.now();
            self.live()?.keep_alive(now, lease)
        })
    }

    fn revoke<'a>(&'a self, lease: LeaseId) -> SendFuture<'a, Result<()>> {
        Box::pin(async move { self.revoke_now(lease) })
    }
}
