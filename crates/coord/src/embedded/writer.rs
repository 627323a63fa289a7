// SPDX-License-Identifier: Apache-2.0
//! The thread that makes changes: one job after the other, judge, commit, apply.
//!
//! It alone applies plans, so a plan stays good between the judgement and the fsync, for which the state is not locked. Leases that are over end
//! between jobs; one that is over can no longer be kept alive, even where its end was not yet carried out.

use super::file::{CommitFailure, File};
use crate::shared::Shared;
use crate::state::Plan;
use crate::{Change, Check, CoordError, LeaseId, Outcome, Result};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Something for the thread to do.
pub(super) type Job = Box<dyn FnOnce(&Writer) + Send>;

pub(super) struct Writer {
    file: File,
    shared: Arc<Shared>,
    /// The zero of the time of leases.
    opened: Instant,
}

impl Writer {
    pub(super) fn new(file: File, shared: Arc<Shared>) -> Self {
        Self { file, shared, opened: Instant::now() }
    }

    /// Does jobs until nobody can send any more, then closes the file.
    pub(super) fn run(self, jobs: &Receiver<Job>) {
        loop {
            let job = match self.until_next_end() {
                None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(wait) => jobs.recv_timeout(wait),
            };
            self.end_leases();
            match job {
                Ok(job) => job(&self),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.shared.end("it was closed");
        self.file.close();
    }

    pub(super) fn transact(&self, checks: &[Check], changes: Vec<Change>) -> Result<Outcome> {
        let Some(plan) = self.shared.live()?.plan(checks, changes)? else { return Ok(Outcome::Refused) };
        let revision = plan.revision;
        self.carry_out(plan)?;
        Ok(Outcome::Applied { revision })
    }

    pub(super) fn lease(&self, ttl: Duration) -> Result<LeaseId> {
        self.shared.live()?.grant(self.now(), ttl)
    }

    pub(super) fn keep_alive(&self, lease: LeaseId) -> Result<()> {
        self.shared.live()?.keep_alive(self.now(), lease)
    }

    pub(super) fn revoke(&self, lease: LeaseId) -> Result<()> {
        let plan = {
            let state = self.shared.live()?;
            state.check_lease(lease)?;
            state.plan_end(lease)
        };
        self.carry_out(plan)?;
        self.shared.live()?.drop_lease(lease);
        Ok(())
    }

    /// Makes the plan durable, then visible.
    fn carry_out(&self, plan: Plan) -> Result<()> {
        if plan.steps.is_empty() {
            return Ok(());
        }
        match self.file.commit(&plan) {
            Ok(()) => {}
            Err(CommitFailure::NotApplied(error)) => return Err(error),
            Err(CommitFailure::Unknown(error)) => {
                let reason =
                    format!("a commit to {} failed ({error}); it must be opened again", self.file.path().display());
                tracing::error!(path = %self.file.path().display(), %error, "coordination has failed");
                self.shared.end(&reason);
                return Err(CoordError::Unknown { reason, source: Some(error) });
            }
        }
        self.shared.lock()?.apply(plan);
        self.shared.notify();
        Ok(())
    }

    fn now(&self) -> Duration {
        self.opened.elapsed()
    }

    /// How long until a lease ends; `None` if nothing is to be waited for.
    fn until_next_end(&self) -> Option<Duration> {
        let (deadline, _) = self.shared.live().ok()?.next_deadline()?;
        Some(deadline.saturating_sub(self.now()))
    }

    /// Ends the leases that are over. Bounded by the number of leases, since each round removes one or gives up.
    fn end_leases(&self) {
        let now = self.now();
        loop {
            let Ok(next) = self.shared.live().map(|state| state.next_deadline()) else { return };
            let Some((_, lease)) = next.filter(|(deadline, _)| *deadline <= now) else { return };
            if let Err(error) = self.revoke(lease) {
                // Only a disk that takes no writes leads here. The lease must not be kept alive again, so nothing goes on without its end.
                tracing::error!(path = %self.file.path().display(), %lease, %error, "a lease that is over could not be ended");
                self.shared.end(&format!("a lease that is over could not be ended ({error}); it must be opened again"));
                return;
            }
        }
    }
}
