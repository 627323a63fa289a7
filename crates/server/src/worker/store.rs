// SPDX-License-Identifier: Apache-2.0
//! The store as a lease lets it be used: read it one may, but nothing is put once the lease is over, and nothing is deleted.
//!
//! A put that was begun in time may still land later; the node looks for such ones. This keeps a worker that slept for a day from filling a store with what
//! nobody waits for.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use varve_env::{ObjectInfo, ObjectStore, Payload, PutOutcome, SendFuture, StoreError, StoreErrorKind};

/// Until when a job is one's own, by one's own clock.
pub(super) struct Lease {
    began: Instant,
    /// Milliseconds from the beginning to its end.
    until_ms: AtomicU64,
    /// The time that it was given last, in milliseconds.
    time_ms: AtomicU64,
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Lease {
    /// One that was asked for then.
    pub fn new(began: Instant, time: Duration) -> Self {
        Self { began, until_ms: AtomicU64::new(ms(time)), time_ms: AtomicU64::new(ms(time)) }
    }

    /// It was given anew to who asked then.
    pub fn renew(&self, asked: Instant, time: Duration) {
        self.time_ms.store(ms(time), Ordering::Relaxed);
        self.until_ms.store(ms(asked.saturating_duration_since(self.began) + time), Ordering::Relaxed);
    }

    /// The time that it was given last.
    pub fn time(&self) -> Duration {
        Duration::from_millis(self.time_ms.load(Ordering::Relaxed))
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        ms(self.began.elapsed()) >= self.until_ms.load(Ordering::Relaxed)
    }
}

/// See the module.
pub(super) struct LeasedStore {
    store: Arc<dyn ObjectStore>,
    lease: Arc<Lease>,
}

impl LeasedStore {
    /// A store for as long as a lease lasts.
    pub fn new(store: Arc<dyn ObjectStore>, lease: Arc<Lease>) -> Self {
        Self { store, lease }
    }
}

/// The refusal of an operation.
fn refused(operation: &'static str, name: &str, message: &str) -> StoreError {
    StoreError { kind: StoreErrorKind::Invalid, operation, name: name.to_owned(), message: message.to_owned() }
}

impl ObjectStore for LeasedStore {
    fn put<'a>(&'a self, name: &'a str, payload: Payload) -> SendFuture<'a, Result<PutOutcome, StoreError>> {
        if self.lease.is_over() {
            return Box::pin(async move { Err(refused("put", name, "the time of the job is over")) });
        }
        self.store.put(name, payload)
    }

    fn get<'a>(&'a self, name: &'a str, range: Range<u64>) -> SendFuture<'a, Result<bytes::Bytes, StoreError>> {
        self.store.get(name, range)
    }

    fn get_head<'a>(&'a self, name: &'a str, most: u64) -> SendFuture<'a, Result<bytes::Bytes, StoreError>> {
        self.store.get_head(name, most)
    }

    fn head<'a>(&'a self, name: &'a str) -> SendFuture<'a, Result<ObjectInfo, StoreError>> {
        self.store.head(name)
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> SendFuture<'a, Result<Vec<ObjectInfo>, StoreError>> {
        self.store.list(prefix, after)
    }

    fn delete<'a>(&'a self, name: &'a str) -> SendFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { Err(refused("delete", name, "a worker deletes nothing")) })
    }

    fn url(&self) -> String {
        self.store.url()
    }
}
