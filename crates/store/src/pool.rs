// SPDX-License-Identifier: Apache-2.0
//! A few threads for work that blocks: system calls on files.
//!
//! Invariants: the number of threads is fixed; the queue holds at most as many jobs as there are permits, so a caller that finds it full
//! waits without blocking its executor; a job whose caller went away before it began is not done. The answer comes through a oneshot
//! channel, so any executor can wait for it. Dropping the pool lets the jobs that run end, forgets the others, and joins the threads.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::{Semaphore, oneshot};

type Job = Box<dyn FnOnce() + Send>;

/// Threads and the queue before them.
pub(crate) struct Pool {
    queue: Arc<Queue>,
    permits: Arc<Semaphore>,
    threads: Vec<JoinHandle<()>>,
}

struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Pool {
    /// Starts `threads` threads named `NAME-0`, `NAME-1`, …; at most `jobs` jobs wait or run at once.
    pub(crate) fn start(name: &str, threads: usize, jobs: usize) -> std::io::Result<Self> {
        let queue = Arc::new(Queue { state: Mutex::new(State::default()), changed: Condvar::new() });
        // Made first, so that the threads that did start are joined if one does not.
        let mut pool = Self { queue, permits: Arc::new(Semaphore::new(jobs)), threads: Vec::with_capacity(threads) };
        for number in 0..threads {
            let queue = Arc::clone(&pool.queue);
            let thread = std::thread::Builder::new().name(format!("{name}-{number}")).spawn(move || queue.work())?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Runs `job` on a thread of the pool. `None` only when the job panicked.
    pub(crate) async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok()?;
        let (sender, receiver) = oneshot::channel();
        self.queue.push(Box::new(move || {
            if !sender.is_closed() {
                // The caller may have gone meanwhile; then nobody wants the answer.
                let _nobody_waits = sender.send(job());
            }
            drop(permit);
        }));
        receiver.await.ok()
    }
}

impl Queue {
    fn push(&self, job: Job) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).jobs.push_back(job);
        self.changed.notify_one();
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            // A job that panics drops its channel, which tells its caller; the thread stays for the others.
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                tracing::error!("a job of the directory store panicked");
            }
        }
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.closed {
                return None;
            }
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.queue.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.closed = true;
        let forgotten = std::mem::take(&mut state.jobs);
        drop(state);
        drop(forgotten);
        self.queue.changed.notify_all();
        for thread in self.threads.drain(..) {
            // Jobs cannot make it panic, and a pool that goes has nobody to tell.
            let _ended = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use futures_util::future::join_all;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn jobs_run_on_its_threads_and_more_than_the_queue_holds_wait() {
        let pool = Pool::start("test-pool", 2, 3).unwrap();
        let names = block_on(join_all(
            (0..50).map(|n| pool.run(move || (n, std::thread::current().name().map(str::to_owned)))),
        ));
        for (expected, answer) in names.into_iter().enumerate() {
            let (n, name) = answer.unwrap();
            assert_eq!(n, expected);
            assert!(name.unwrap().starts_with("test-pool-"));
        }
    }

    #[test]
    fn a_job_that_panics_answers_none_and_costs_no_thread() {
        let pool = Pool::start("test-pool", 1, 2).unwrap();
        assert_eq!(block_on(pool.run(|| panic!("on purpose"))), None::<()>);
        assert_eq!(block_on(pool.run(|| 7)), Some(7));
    }

    #[test]
    fn a_job_that_nobody_waits_for_is_not_done_and_dropping_joins() {
        let pool = Pool::start("test-pool", 1, 4).unwrap();
        let done = Arc::new(AtomicUsize::new(0));
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let count = Arc::clone(&done);
        let mut first = Box::pin(pool.run(move || {
            let _released = gate.recv();
            count.fetch_add(1, Ordering::SeqCst);
        }));
        assert!(first.as_mut().now_or_never().is_none());
        let count = Arc::clone(&done);
        let mut second = Box::pin(pool.run(move || count.fetch_add(100, Ordering::SeqCst)));
        assert!(second.as_mut().now_or_never().is_none());
        drop(second);
        release.send(()).unwrap();
        block_on(first);
        assert_eq!(block_on(pool.run(|| 1)), Some(1));
        drop(pool);
        assert_eq!(done.load(Ordering::SeqCst), 1);
        assert_eq!(Arc::strong_count(&done), 1, "every job is gone");
    }
}
