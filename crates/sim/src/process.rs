// SPDX-License-Identifier: Apache-2.0
//! One process of a world: the [`Env`] that the engine is given.
//!
//! Its tasks, jobs and open handles live exactly as long as it does. It has its own crash points; time, chance and the order of
//! things are the world's. A job runs whole, at one instant a little later than it was asked for: so code that takes a job
//! for done before it was awaited shows itself.
//!
//! A process is never brought back. What starts again is a new one, with new handles on the same media.

use crate::core::{Core, Event, Sleep, Stream};
use crate::exec::Executor;
use crate::points::CrashPoints;
use std::future::pending;
use std::rc::{Rc, Weak};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;
use varve_env::{Env, LocalFuture};

/// One process of a world.
pub struct SimEnv {
    executor: Weak<Executor>,
    /// Itself, as its tasks hold it.
    me: Weak<SimEnv>,
    core: Arc<Core>,
    points: CrashPoints,
    name: String,
    number: u32,
    job_time: Duration,
}

impl SimEnv {
    pub(crate) fn start(executor: &Rc<Executor>, name: &str, number: u32) -> Rc<Self> {
        Rc::new_cyclic(|me| Self {
            executor: Rc::downgrade(executor),
            me: Weak::clone(me),
            core: Arc::clone(&executor.core),
            points: CrashPoints::default(),
            name: name.to_owned(),
            number,
            job_time: executor.options.job_time,
        })
    }
    /// Where it can die.
    #[must_use]
    pub const fn points(&self) -> &CrashPoints {
        &self.points
    }
    /// Whether it is dead.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.points.dead()
    }
    /// The name that it was started under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Its number: no two processes of a world share one.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }
}

impl Env for SimEnv {
    fn now(&self) -> Duration {
        self.core.now()
    }

    fn wall_ms(&self) -> u64 {
        self.core.wall_ms()
    }

    fn random(&self, bytes: &mut [u8]) {
        self.core.draw(Stream::Ids, |rng| rng.fill(bytes));
    }

    fn sleep(&self, duration: Duration) -> LocalFuture<()> {
        Box::pin(Sleep::new(&self.core, duration))
    }

    /// A task that is spawned by, or for, a dead process is dropped.
    fn spawn(&self, task: LocalFuture<()>) {
        if let (false, Some(executor), Some(me)) = (self.is_dead(), self.executor.upgrade(), self.me.upgrade()) {
            executor.add(&me, task);
        }
    }

    /// The job runs whole at one later instant, also where its future is dropped before, but not once the process is dead.
    fn run_job(&self, job: Box<dyn FnOnce() + Send>) -> LocalFuture<()> {
        let most = u64::try_from(self.job_time.as_nanos()).unwrap_or(u64::MAX);
        let takes = Duration::from_nanos(1 + self.core.draw(Stream::Schedule, |rng| rng.below(most)));
        let done: Arc<Mutex<(bool, Option<Waker>)>> = Arc::default();
        let told = Arc::clone(&done);
        let points = self.points.clone();
        let run = move || {
            if points.dead() {
                return;
            }
            job();
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            told.0 = true;
            if let Some(waker) = told.1.take() {
                waker.wake();
            }
        };
        self.core.schedule(takes, Event::Run(Box::new(run)));
        let points = self.points.clone();
        Box::pin(async move {
            if points.dead() {
                pending::<()>().await;
            }
            std::future::poll_fn(|context| {
                let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                if done.0 {
                    return Poll::Ready(());
                }
                done.1 = Some(context.waker().clone());
                Poll::Pending
            })
            .await;
        })
    }
}
