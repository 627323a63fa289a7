// SPDX-License-Identifier: Apache-2.0
//! Coordination as one process sees it: [`Memory`], at the other end of a network.
//!
//! A request travels half the latency, takes effect, and its answer travels the other half; without latency it is done at its first
//! poll. A transaction passes the crash points of its process before it is sent and once it was applied, so that "applied, and nobody
//! was told" happens by a death too. A dead process's requests never complete, and one that sleeps sends nothing: what it read may be
//! old by the time that it writes.
//!
//! Faults of the answers themselves are [`Memory`]'s.

use crate::core::{Core, Sleep};
use crate::{CrashPoints, IoPoint, SimEnv, SimWorld};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;
use varve_coord::{Change, Check, Coord, Entry, LeaseId, Listing, Memory, Outcome, Result, Watch};
use varve_env::SendFuture;

/// See the module.
pub struct SimCoord {
    memory: Arc<Memory>,
    core: Arc<Core>,
    points: CrashPoints,
    latency: Duration,
}

impl SimCoord {
    /// Coordination for a process, `latency` away, there and back.
    #[must_use]
    pub fn new(world: &SimWorld, process: &SimEnv, memory: Arc<Memory>, latency: Duration) -> Self {
        Self { memory, core: Arc::clone(world.core()), points: process.points().clone(), latency }
    }

    /// Half the way.
    async fn travel(&self) {
        if !self.latency.is_zero() {
            Sleep::new(&self.core, self.latency / 2).await;
        }
        if self.points.dead() {
            pending::<()>().await;
        }
    }
}

impl Coord for SimCoord {
    fn get<'a>(&'a self, key: &'a str) -> SendFuture<'a, Result<Option<Entry>>> {
        Box::pin(async move {
            self.travel().await;
            let answer = self.memory.get(key).await;
            self.travel().await;
            answer
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> SendFuture<'a, Result<Listing>> {
        Box::pin(async move {
            self.travel().await;
            let answer = self.memory.list(prefix).await;
            self.travel().await;
            answer
        })
    }

    fn transact<'a>(&'a self, checks: Vec<Check>, changes: Vec<Change>) -> SendFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            self.points.survive(IoPoint::TransactStart, "coordination").await;
            self.travel().await;
            let answer = self.memory.transact(checks, changes).await;
            self.points.survive(IoPoint::TransactEnd, "coordination").await;
            self.travel().await;
            answer
        })
    }

    fn watch<'a>(&'a self, prefix: &'a str, from_revision: u64) -> SendFuture<'a, Result<Watch>> {
        self.memory.watch(prefix, from_revision)
    }

    fn lease<'a>(&'a self, ttl: Duration) -> SendFuture<'a, Result<LeaseId>> {
        self.memory.lease(ttl)
    }

    fn keep_alive<'a>(&'a self, lease: LeaseId) -> SendFuture<'a, Result<()>> {
        self.memory.keep_alive(lease)
    }

    fn revoke<'a>(&'a self, lease: LeaseId) -> SendFuture<'a, Result<()>> {
        self.memory.revoke(lease)
    }
}
