// SPDX-License-Identifier: Apache-2.0
//! A small pool of threads for what would hold up a shard: computation, and reads of a disk.
//!
//! The queue is bounded. Where it is full the one who has a job waits, asynchronously, until there is room: so a
//! shard that produces faster than the pool works is slowed, and memory is not what gives way. A job that panics is
//! contained, logged as an error, and reported to its owner as [`JobLost`]; the thread goes on.
//!
//! Dropping the pool lets the jobs that run end, loses those that wait (their owners are told) and joins the
//! threads.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// How nice the threads of a pool for computation are: the shards go first.
const NICE: i32 = 5;
/// Most threads of a pool.
const MOST_THREADS: usize = 256;

/// What a pool is made of.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// Name of its threads, each with its number behind; the system shows 15 bytes.
    pub name: String,
    /// Threads, 1 to 256.
    pub threads: usize,
    /// Jobs that may wait, at least 1.
    pub queue: usize,
    /// Whether the threads run at a lower priority than the shards.
    pub nice: bool,
}

/// The job panicked, or the pool ended before it ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the job was lost: it panicked, or its threads have ended")]
pub struct JobLost;

/// The pool.
pub struct ComputePool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    ready: Condvar,
    room: Arc<Semaphore>,
}

struct Queue {
    jobs: VecDeque<Job>,
    ending: bool,
}

struct Job {
    work: Box<dyn FnOnce() + Send>,
    done: oneshot::Sender<()>,
    /// Its place in the queue, given up when it starts.
    place: OwnedSemaphorePermit,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a job in its place. Its receiver ends without a value where the job is lost.
    fn push(&self, work: Box<dyn FnOnce() + Send>, place: OwnedSemaphorePermit) -> oneshot::Receiver<()> {
        let (done, wait) = oneshot::channel();
        let mut queue = self.lock();
        if !queue.ending {
            queue.jobs.push_back(Job { work, done, place });
            drop(queue);
            self.ready.notify_one();
        }
        wait
    }

    fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        loop {
            if queue.ending {
                return None;
            }
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            queue = self.ready.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn work(&self) {
        while let Some(Job { work, done, place }) = self.next() {
            drop(place);
            match catch_unwind(AssertUnwindSafe(work)) {
                // The owner may have gone, which is its own affair.
                Ok(()) => drop(done.send(())),
                Err(panic) => {
                    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
                    tracing::error!(panic = %text, thread = thread::current().name(), "a job panicked");
                }
            }
        }
    }
}

impl ComputePool {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the options are out of range, or the system gives no thread.
    pub fn new(options: &PoolOptions) -> io::Result<Self> {
        if options.threads == 0 || options.threads > MOST_THREADS || options.queue == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("not a pool: {options:?}")));
        }
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue { jobs: VecDeque::new(), ending: false }),
            ready: Condvar::new(),
            room: Arc::new(Semaphore::new(options.queue.min(Semaphore::MAX_PERMITS))),
        });
        // Built up in place, so that an error half-way ends the threads there are.
        let mut pool = Self { shared, threads: Vec::new() };
        for number in 0..options.threads {
            let shared = Arc::clone(&pool.shared);
            let nice = options.nice;
            let builder = thread::Builder::new().name(format!("{}-{number}", options.name));
            pool.threads.push(builder.spawn(move || {
                // Without a process id it is the calling thread that Linux takes; where it refuses, the threads are equals.
                if nice && let Err(error) = rustix::process::setpriority_process(None, NICE) {
                    tracing::debug!(%error, "the pool's threads keep their priority");
                }
                shared.work();
            })?);
        }
        Ok(pool)
    }

    /// Runs a job, which is queued at once if there is room, and else when the future is polled and room has come. Dropping the future
    /// takes back a job that is not queued yet, and no other.
    pub fn run(&self, work: Box<dyn FnOnce() + Send>) -> impl Future<Output = Result<(), JobLost>> + Send + use<> {
        let queued = match Arc::clone(&self.shared.room).try_acquire_owned() {
            Ok(place) => Ok(self.shared.push(work, place)),
            Err(_) => Err((Arc::clone(&self.shared), work)),
        };
        async move {
            let done = match queued {
                Ok(done) => done,
                Err((shared, work)) => {
                    let place = Arc::clone(&shared.room).acquire_owned().await.map_err(|_| JobLost)?;
                    shared.push(work, place)
                }
            };
            done.await.map_err(|_| JobLost)
        }
    }

    /// Runs a function and gives its result.
    pub fn compute<T: Send + 'static, W: FnOnce() -> T + Send + 'static>(
        &self,
        work: W,
    ) -> impl Future<Output = Result<T, JobLost>> + Send + use<T, W> {
        let (give, take) = oneshot::channel();
        let run = self.run(Box::new(move || drop(give.send(work()))));
        async move {
            run.await?;
            take.await.map_err(|_| JobLost)
        }
    }
}

impl Drop for ComputePool {
    fn drop(&mut self) {
        let lost = {
            let mut queue = self.shared.lock();
            queue.ending = true;
            std::mem::take(&mut queue.jobs)
        };
        drop(lost);
        self.shared.room.close();
        self.shared.ready.notify_all();
        let me = thread::current().id();
        for thread in self.threads.drain(..) {
            // The last owner may be a job of the pool's own.
            if thread.thread().id() != me && thread.join().is_err() {
                tracing::error!("a thread of a pool panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::task::{Context, Poll, Waker};
    use tokio::runtime::{Builder, Runtime};

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn pool(threads: usize, queue: usize) -> ComputePool {
        ComputePool::new(&PoolOptions { name: "test".to_owned(), threads, queue, nice: true }).unwrap()
    }

    #[test]
    fn computes_elsewhere_at_a_lower_priority() {
        let pool = pool(2, 8);
        let here = thread::current().id();
        let (there, name, nice) = runtime()
            .block_on(pool.compute(|| {
                let thread = thread::current();
                let nice = rustix::process::getpriority_process(None).unwrap();
                (thread.id(), thread.name().map(str::to_owned), nice)
            }))
            .unwrap();
        assert_ne!(here, there);
        assert!(name.unwrap().starts_with("test-"));
        assert!(nice >= NICE, "{nice}");
        assert!(nice > rustix::process::getpriority_process(None).unwrap(), "only the pool's threads are nice");
    }

    #[test]
    fn a_panic_is_contained_and_reported() {
        let pool = pool(1, 8);
        let runtime = runtime();
        let lost: Result<(), JobLost> = runtime.block_on(pool.compute(|| panic!("as it is told to")));
        assert_eq!(lost, Err(JobLost));
        assert_eq!(runtime.block_on(pool.compute(|| 7)), Ok(7));
    }

    #[test]
    fn a_full_queue_makes_the_next_wait_without_blocking() {
        let pool = pool(1, 1);
        let runtime = runtime();
        let (go, gate) = mpsc::channel::<()>();
        let (started, start) = mpsc::channel::<()>();
        let first = pool.compute(move || {
            started.send(()).unwrap();
            gate.recv().unwrap();
            1
        });
        start.recv().unwrap();
        let second = pool.compute(|| 2);
        let mut third = Box::pin(pool.compute(|| 3));
        let polled = third.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Pending));
        assert_eq!(pool.shared.lock().jobs.len(), 1, "the third is not queued");
        go.send(()).unwrap();
        let all = runtime.block_on(async { (first.await, second.await, third.await) });
        assert_eq!(all, (Ok(1), Ok(2), Ok(3)));
    }

    #[test]
    fn the_end_of_the_pool_loses_what_waits_and_joins_what_runs() {
        let pool = pool(1, 2);
        let (go, gate) = mpsc::channel::<()>();
        let (started, start) = mpsc::channel::<()>();
        let first = pool.compute(move || {
            started.send(()).unwrap();
            // Held until the second job, which the end of the pool drops, lets its end of the channel go.
            gate.recv().is_err()
        });
        start.recv().unwrap();
        let second = pool.run(Box::new(move || drop(go)));
        let third = pool.compute(|| 3);
        let fourth = pool.compute(|| 4);
        drop(pool);
        let all = runtime().block_on(async { (first.await, second.await, third.await, fourth.await) });
        assert_eq!(all, (Ok(true), Err(JobLost), Err(JobLost), Err(JobLost)));
    }

    #[test]
    fn odd_options_are_refused() {
        for (threads, queue) in [(0, 1), (1, 0), (1000, 1)] {
            let options = PoolOptions { name: "test".to_owned(), threads, queue, nice: false };
            assert!(ComputePool::new(&options).is_err());
        }
    }
}
