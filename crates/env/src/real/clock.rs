// SPDX-License-Identifier: Apache-2.0
//! The [`Env`] of a shard: the system's clock and random source, tokio's timers and tasks, the pool of
//! threads.
//!
//! It must be used inside a `LocalSet` of a current-thread runtime with timers: there, and only there, do
//! tasks that are not `Send` have a place. All shards of a process count time from the same moment.

use super::ComputePool;
use crate::{Env, LocalFuture};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The real world, for one shard. Cheap to make and to clone.
#[derive(Clone)]
pub struct RealEnv {
    pool: Arc<ComputePool>,
    start: Instant,
}

impl RealEnv {
    /// The world whose jobs run on `pool`.
    #[must_use]
    pub fn new(pool: Arc<ComputePool>) -> Self {
        static START: OnceLock<Instant> = OnceLock::new();
        Self { pool, start: *START.get_or_init(Instant::now) }
    }
}

impl Env for RealEnv {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Zero where the clock stands before 1970.
    fn wall_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// # Panics
    /// When the system has no random source: no id would be safe then, and nothing could be served.
    fn random(&self, bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("Linux's random source does not fail once the system is up");
    }

    fn sleep(&self, duration: Duration) -> LocalFuture<()> {
        Box::pin(tokio::time::sleep(duration))
    }

    /// A task that panics ends alone where panics unwind, with the message of the panic hook; the release build aborts.
    fn spawn(&self, task: LocalFuture<()>) {
        drop(tokio::task::spawn_local(task));
    }

    fn run_job(&self, job: Box<dyn FnOnce() + Send>) -> LocalFuture<()> {
        let run = self.pool.run(job);
        Box::pin(async move {
            if let Err(error) = run.await {
                // A panic has been logged where it happened. The job has left no result, which its owner finds out.
                tracing::error!(%error, "a job ended without a result");
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute;
    use crate::real::PoolOptions;
    use std::cell::Cell;
    use std::rc::Rc;
    use tokio::sync::oneshot;
    use tokio::task::LocalSet;

    fn env() -> RealEnv {
        let options = PoolOptions { name: "test".to_owned(), threads: 1, queue: 4, nice: true };
        RealEnv::new(Arc::new(ComputePool::new(&options).unwrap()))
    }

    #[test]
    fn a_shard_has_time_tasks_chance_and_jobs() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let env = env();
            let start = env.now();
            env.sleep(Duration::from_millis(2)).await;
            assert!(env.now() - start >= Duration::from_millis(2));
            assert!(env.wall_ms() > 1_700_000_000_000);
            let (mut first, mut second) = ([0; 16], [0; 16]);
            env.random(&mut first);
            env.random(&mut second);
            assert_ne!(first, second);

            let seen = Rc::new(Cell::new(0));
            let (told, wait) = oneshot::channel();
            let task = (Rc::clone(&seen), env.clone());
            env.spawn(Box::pin(async move {
                task.0.set(compute(&task.1, || 6 * 7).await);
                told.send(()).unwrap();
            }));
            wait.await.unwrap();
            assert_eq!(seen.get(), 42);
        });
    }

    #[test]
    fn two_shards_share_one_clock() {
        let (first, second) = (env(), env());
        let times = [first.now(), second.now(), first.now(), second.now()];
        assert!(times.is_sorted(), "{times:?}");
    }
}
