// SPDX-License-Identifier: Apache-2.0
//! Coordination as one process sees it: [`Memory`], at the other end of a network.
//!
//! A request travels half the latency, takes effect, and its answer travels the other half; without latency it is done at its first
//! poll. A transaction passes the crash points of its process before it is sent and once it was applied, so that "applied, and nobody
//! was told" happens by a death too. A dead process's requests never complete, and one that sleeps sends nothing: what it read may be
//! old by the time that it writes.
//!
//! What goes wrong for all processes alike is [`Memory`]'s; what goes wrong for one node is its [`CoordLine`]'s.

use crate::core::{Core, Event, Sleep, Stream};
use crate::{CrashPoints, IoPoint, SimEnv, SimWorld};
use futures_util::FutureExt;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use varve_coord::{Change, Check, Coord, CoordError, Entry, LeaseId, Listing, Memory, Outcome, Result, Watch};
use varve_env::SendFuture;

/// How long a client waits for an answer.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// How long after it was given up what was sent may still be applied, at most.
const MOST_LATE: Duration = Duration::from_secs(6);

/// A node's line to coordination, which outlives its processes.
///
/// While it is away a request is refused at once, or is not answered in time. Of a transaction that is not answered nobody knows what becomes of it: it was applied, is
/// applied some seconds later, or never.
#[derive(Debug, Default)]
pub struct CoordLine {
    away: AtomicBool,
    slower_us: AtomicU64,
    loses_per_mille: AtomicU32,
    lost: AtomicU64,
    late: AtomicU64,
}

impl CoordLine {
    /// Nothing is answered any more, or everything again.
    pub fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
    }

    /// Requests take so much longer.
    pub fn slow(&self, by: Duration) {
        self.slower_us.store(by.as_micros() as u64, Ordering::Relaxed);
    }

    /// Of a thousand transactions so many are not answered.
    pub fn lose(&self, per_mille: u32) {
        self.loses_per_mille.store(per_mille, Ordering::Relaxed);
    }

    /// Whatever is wrong with it is over.
    pub fn mend(&self) {
        self.set_away(false);
        self.slow(Duration::ZERO);
        self.lose(0);
    }

    /// Whether nothing is answered.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.away.load(Ordering::Relaxed)
    }

    /// How many transactions were not answered, and how many of these came there only later.
    #[must_use]
    pub fn unknown(&self) -> (u64, u64) {
        (self.lost.load(Ordering::Relaxed), self.late.load(Ordering::Relaxed))
    }

    fn slower(&self) -> Duration {
        Duration::from_micros(self.slower_us.load(Ordering::Relaxed))
    }
}

/// What becomes of a transaction.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Answered,
    /// It is refused before it is sent.
    Refused,
    /// It never comes there.
    NeverApplied,
    /// It is applied, and that is not told.
    AppliedUntold,
    /// It is applied when nobody waits for it any more.
    AppliedLate,
}

/// See the module.
pub struct SimCoord {
    memory: Arc<Memory>,
    core: Arc<Core>,
    points: CrashPoints,
    latency: Duration,
    line: Arc<CoordLine>,
}

impl SimCoord {
    /// Coordination for a process, over its node's line, `latency` away, there and back.
    #[must_use]
    pub fn new(
        world: &SimWorld,
        process: &SimEnv,
        memory: Arc<Memory>,
        latency: Duration,
        line: Arc<CoordLine>,
    ) -> Self {
        Self { memory, core: Arc::clone(world.core()), points: process.points().clone(), latency, line }
    }

    /// Half the way.
    async fn travel(&self) {
        let latency = self.latency + self.line.slower();
        if !latency.is_zero() {
            Sleep::new(&self.core, latency / 2).await;
        }
        if self.points.dead() {
            pending::<()>().await;
        }
    }

    fn draw(&self, below: u64) -> u64 {
        self.core.draw(Stream::Faults, |rng| rng.below(below))
    }

    /// A question that changes nothing, there and back.
    async fn ask<T>(&self, asked: impl Future<Output = Result<T>> + Send) -> Result<T> {
        self.travel().await;
        let answer = if self.line.is_away() { Err(away()) } else { asked.await };
        self.travel().await;
        if self.line.is_away() && self.draw(2) == 0 {
            Sleep::new(&self.core, ANSWER_TIME).await;
        }
        if self.line.is_away() { Err(away()) } else { answer }
    }

    fn fate(&self) -> Fate {
        let loses = u64::from(self.line.loses_per_mille.load(Ordering::Relaxed));
        let is_away = self.line.is_away();
        if !is_away && (loses == 0 || self.draw(1000) >= loses) {
            return Fate::Answered;
        }
        match self.draw(4) {
            0 if is_away => Fate::Refused,
            0 | 1 => Fate::AppliedLate,
            2 => Fate::NeverApplied,
            _ if is_away => Fate::NeverApplied,
            _ => Fate::AppliedUntold,
        }
    }

    /// Has a transaction applied when its sender has long stopped to wait for it, and may be dead.
    fn apply_late(&self, checks: Vec<Check>, changes: Vec<Change>) {
        let after = Duration::from_millis(self.draw((ANSWER_TIME + MOST_LATE).as_millis() as u64));
        let (memory, line) = (Arc::clone(&self.memory), Arc::clone(&self.line));
        let apply = move || {
            drop(memory.transact(checks, changes).now_or_never());
            line.late.fetch_add(u64::from(after > ANSWER_TIME), Ordering::Relaxed);
        };
        self.core.schedule(after, Event::Run(Box::new(apply)));
    }
}

fn away() -> CoordError {
    CoordError::Unavailable { reason: "it does not answer".to_owned(), source: None }
}

impl Coord for SimCoord {
    fn get<'a>(&'a self, key: &'a str) -> SendFuture<'a, Result<Option<Entry>>> {
        Box::pin(self.ask(self.memory.get(key)))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> SendFuture<'a, Result<Listing>> {
        Box::pin(self.ask(self.memory.list(prefix)))
    }

    fn transact<'a>(&'a self, checks: Vec<Check>, changes: Vec<Change>) -> SendFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            self.points.survive(IoPoint::TransactStart, "coordination").await;
            self.travel().await;
            let answer = match self.fate() {
                Fate::Refused => return Err(away()),
                Fate::NeverApplied => None,
                Fate::AppliedLate => {
                    self.apply_late(checks, changes);
                    None
                }
                Fate::AppliedUntold => {
                    drop(self.memory.transact(checks, changes).await);
                    None
                }
                Fate::Answered => Some(self.memory.transact(checks, changes).await),
            };
            self.points.survive(IoPoint::TransactEnd, "coordination").await;
            self.travel().await;
            // The line may have gone meanwhile.
            if let Some(answer) = answer.filter(|_| !self.line.is_away()) {
                return answer;
            }
            Sleep::new(&self.core, ANSWER_TIME).await;
            self.line.lost.fetch_add(1, Ordering::Relaxed);
            Err(CoordError::Unknown { reason: "it was not answered".to_owned(), source: None })
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
