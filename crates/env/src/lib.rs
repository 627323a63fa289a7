// SPDX-License-Identifier: Apache-2.0
//! The world as the engine sees it, as traits; and the real ones.
//!
//! The engine names no runtime, thread, clock, socket or random source. It is given an [`Env`] (time, randomness,
//! tasks, heavy computation), [`Disk`]s (one a journal), [`CacheDevice`]s and [`ObjectStore`]s (one a pool). The simulator gives it
//! others, and runs the very same code.
//!
//! Everything of a shard happens on one thread, so futures here need not be `Send`. An [`ObjectStore`] is shared
//! between shards and so is `Send + Sync`; what it does in other threads is its own affair.

mod cache;
mod disk;
mod store;

pub mod real;

pub use cache::CacheDevice;
pub use disk::Disk;
pub use store::{ObjectInfo, ObjectStore, Payload, PutOutcome, StoreError, StoreErrorKind};

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// A future of the shard's own thread.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T> + 'static>>;
/// A future that may move between threads.
pub type SendFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Time, randomness, tasks and computation, for one shard.
pub trait Env {
    /// Monotonic time since some fixed moment. Never goes back.
    fn now(&self) -> Duration;

    /// Wall-clock time in milliseconds since 1970. May jump: only ever shown to people and compared with windows that people set.
    fn wall_ms(&self) -> u64;

    /// Fills `bytes` with random bytes, good enough for ids.
    fn random(&self, bytes: &mut [u8]);

    /// Completes after `duration`.
    fn sleep(&self, duration: Duration) -> LocalFuture<()>;

    /// Runs `task` on this shard's thread until it completes or the shard ends.
    fn spawn(&self, task: LocalFuture<()>);

    /// Runs `job` where it does not hold up the shard, and completes with it. The job returns its result through its own channel:
    /// see [`compute`], the form to use.
    fn run_job(&self, job: Box<dyn FnOnce() + Send>) -> LocalFuture<()>;
}

/// Runs a pure function beside the shard and gives its result.
///
/// # Panics
/// When the job itself panicked or its runner dropped it, both of which are defects.
pub async fn compute<T: Send + 'static>(env: &dyn Env, job: impl FnOnce() -> T + Send + 'static) -> T {
    let slot = std::sync::Arc::new(std::sync::Mutex::new(None));
    let target = std::sync::Arc::clone(&slot);
    env.run_job(Box::new(move || {
        let result = job();
        if let Ok(mut slot) = target.lock() {
            *slot = Some(result);
        }
    }))
    .await;
    let result = slot.lock().ok().and_then(|mut slot| slot.take());
    result.expect("a job that completed has left its result")
}
