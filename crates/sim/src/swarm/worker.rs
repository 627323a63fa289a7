// SPDX-License-Identifier: Apache-2.0
//! Somebody who cleans beside the node: as a worker should, or dying at it, answering late, twice, or falsely.
//!
//! It lives with the process of now, as a task of it, and knows of jobs that processes before had handed out: to those it answers too. What it gets from the
//! engine is a job; what it gives is an answer. Whatever it does, nothing may be lost, which the rest of the run proves; here it is seen that what must be
//! refused is refused at once.
//!
//! It draws from a stream of its own, made of the seed and the number of the process.

use super::run::{Run, known};
use crate::{Rng, SimEnv};
use futures_util::future::{Either, select};
use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;
use varve_engine::{CleanAnswer, CleanJob, EngineError, LeaseEnd, Leased, Shard, run_clean_job};
use varve_env::{Env, ObjectStore};
use varve_types::{LeaseId, Name};

/// Answers to jobs of before that are remembered.
const MOST_OLD: usize = 8;

/// What a run knows of its worker.
#[derive(Default)]
pub(super) struct Workers {
    /// The process that has one.
    process: Cell<Option<u32>>,
    /// No more of them.
    over: Rc<Cell<bool>>,
    /// Jobs that are over, and what was answered to them, or would have been.
    old: Rc<RefCell<Vec<(LeaseId, CleanAnswer)>>>,
}

/// A worker of one process.
struct Worker {
    name: Name,
    shard: Weak<Shard>,
    env: Rc<SimEnv>,
    store: Arc<dyn ObjectStore>,
    lease: Duration,
    over: Rc<Cell<bool>>,
    old: Rc<RefCell<Vec<(LeaseId, CleanAnswer)>>>,
    /// What it has put and not answered: the job is over once it asks for another.
    left: RefCell<Option<(LeaseId, CleanAnswer)>>,
}

impl Run {
    /// Sees that the process of now has a worker, where the run is to have one.
    pub(super) fn mind_worker(&mut self) {
        let (env, workers) = (&self.node.env, &self.workers);
        if !self.plan.workers || workers.over.get() || workers.process.replace(Some(env.number())) == Some(env.number())
        {
            return;
        }
        let mut worker = Worker {
            name: known(&format!("worker{}", env.number() % 3)),
            shard: Rc::downgrade(&self.node.shard()),
            env: Rc::clone(env),
            store: self.node.server.client(env),
            lease: Duration::from_millis(self.plan.limits.lease_ms),
            over: Rc::clone(&workers.over),
            old: Rc::clone(&workers.old),
            left: RefCell::default(),
        };
        let mut rng = Rng::stream(self.seed, 200_000_000 + u64::from(env.number()));
        env.spawn(Box::pin(async move { worker.live(&mut rng).await }));
    }

    /// Sends the worker home. What it was at is given up after its time.
    pub(super) fn end_workers(&self) {
        self.workers.over.set(true);
    }
}

impl Worker {
    async fn live(&mut self, rng: &mut Rng) {
        while !self.over.get() {
            self.env.sleep(Duration::from_millis(20 + rng.below(1500))).await;
            let Some(shard) = self.shard.upgrade() else { return };
            let old = self.old.borrow().get(rng.below(MOST_OLD as u64) as usize).copied();
            if let Some((id, answer)) = old {
                must_refuse("an answer to a job that is over", shard.answer_cleaning(id, &answer).await);
            }
            // It may be busy, or have nothing.
            let Ok(leased) = shard.lease_cleaning(&self.name).await else { continue };
            if let Some((id, answer)) = self.left.take() {
                self.remember(id, Ok(answer));
            }
            if let Some(leased) = leased {
                self.work(&shard, leased, rng).await;
            }
        }
    }

    /// Does with a job whatever comes to its mind.
    async fn work(&self, shard: &Shard, leased: Leased, rng: &mut Rng) {
        let (id, job) = (leased.id, &leased.job);
        match rng.below(12) {
            // It dies before it has put anything.
            0 => {}
            // It dies behind its put.
            1 => *self.left.borrow_mut() = self.run(job).await.ok().map(|answer| (id, answer)),
            // It is late.
            2 => {
                let answer = self.run(job).await;
                self.env.sleep(self.lease + Duration::from_millis(rng.below(5000))).await;
                if let Ok(answer) = answer {
                    must_refuse("an answer that is late", shard.answer_cleaning(id, &answer).await);
                }
                self.remember(id, answer);
            }
            // It has put nothing.
            3 => {
                let (bundle, shares) = (job.bundle, job.sources.len() as u32);
                let answer = CleanAnswer { bundle, shares, read_bytes: 1, put_bytes: 9000 };
                must_refuse("an answer about nothing", shard.answer_cleaning(id, &answer).await);
            }
            // It has left something out.
            4 => {
                let Some(less) = less_than(job) else { return };
                if let Ok(answer) = self.run(&less).await {
                    must_refuse("a bundle that lacks a block", shard.answer_cleaning(id, &answer).await);
                }
            }
            // It ends, or fails.
            5 => drop(shard.end_cleaning(id, if rng.chance(500) { LeaseEnd::Failed } else { LeaseEnd::GivenBack })),
            // It does its job.
            _ => {
                let answer = self.run_and_renew(shard, &leased).await;
                if let Ok(answer) = &answer {
                    let taken = shard.answer_cleaning(id, answer).await;
                    if taken.is_ok() && rng.chance(300) {
                        must_refuse("a second answer", shard.answer_cleaning(id, answer).await);
                    }
                }
                self.remember_if_over(shard, id, answer);
            }
        }
    }

    async fn run(&self, job: &CleanJob) -> Result<CleanAnswer, EngineError> {
        run_clean_job(&*self.env, &*self.store, &Cell::new(0), &Cell::new(0), job).await
    }

    /// The same, and tells that it is at it.
    async fn run_and_renew(&self, shard: &Shard, leased: &Leased) -> Result<CleanAnswer, EngineError> {
        let (rate, read) = (Cell::new(leased.terms.rate), Cell::new(0));
        let run = pin!(run_clean_job(&*self.env, &*self.store, &rate, &read, &leased.job));
        let renew = pin!(async {
            loop {
                self.env.sleep(self.lease / 3).await;
                match shard.renew_cleaning(leased.id, read.get()) {
                    Ok(terms) => rate.set(terms.rate),
                    Err(error) => return error,
                }
            }
        });
        match select(run, renew).await {
            Either::Left((done, _)) => done,
            Either::Right((error, _)) => Err(error),
        }
    }

    /// Remembers an answer to a job that is over for good, whatever became of it.
    fn remember(&self, id: LeaseId, answer: Result<CleanAnswer, EngineError>) {
        if let Ok(answer) = answer {
            let mut old = self.old.borrow_mut();
            if old.len() == MOST_OLD {
                old.remove(0);
            }
            old.push((id, answer));
        }
    }

    fn remember_if_over(&self, shard: &Shard, id: LeaseId, answer: Result<CleanAnswer, EngineError>) {
        if shard.renew_cleaning(id, 0).is_err() {
            self.remember(id, answer);
        }
    }
}

/// The job with a block less.
fn less_than(job: &CleanJob) -> Option<CleanJob> {
    let mut less = job.clone();
    let live = less.sources.iter_mut().map(|source| &mut source.live).find(|live| live.live() > 1)?;
    let first = (0..live.blocks()).find(|block| live.is_live(*block))?;
    live.clear(first);
    Some(less)
}

/// Sees that an answer was not taken.
fn must_refuse(what: &str, taken: Result<u32, EngineError>) {
    assert!(taken.is_err(), "{what} was taken");
}
