// SPDX-License-Identifier: Apache-2.0
//! A store that notes how its operations end: for the state that people see, and for metrics.
//!
//! It changes nothing of what passes through. The state is that of the last operations: a put that found no room
//! says `Full` until a put succeeds, an operation without an answer says `Unavailable` until one has an answer.
//! Errors that blame the request (a name that is not there) say nothing about the store.

use crate::latency::SharedHistogram;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use varve_env::{ObjectInfo, ObjectStore, Payload, PutOutcome, SendFuture, StoreError, StoreErrorKind};
use varve_types::Histogram;

/// How a store is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Health {
    /// It answers.
    #[default]
    Ok,
    /// It does not answer, and what was said.
    Unavailable(String),
    /// It takes no more, and what was said.
    Full(String),
}

/// What was done with a store since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StoreCounts {
    pub(super) puts: u64,
    pub(super) put_bytes: u64,
    pub(super) gets: u64,
    pub(super) get_bytes: u64,
    pub(super) deletes: u64,
    pub(super) errors: u64,
}

/// What is asked of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoreOperation {
    Put,
    Get,
    Head,
    List,
    Delete,
}

impl StoreOperation {
    /// All of them.
    pub(super) const ALL: [Self; 5] = [Self::Put, Self::Get, Self::Head, Self::List, Self::Delete];

    /// What metrics call it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Head => "head",
            Self::List => "list",
            Self::Delete => "delete",
        }
    }
}

#[derive(Debug, Default)]
struct Counters {
    puts: AtomicU64,
    put_bytes: AtomicU64,
    gets: AtomicU64,
    get_bytes: AtomicU64,
    deletes: AtomicU64,
    errors: AtomicU64,
    took: [SharedHistogram; StoreOperation::ALL.len()],
}

/// See the module.
pub(super) struct Watched {
    store: Arc<dyn ObjectStore>,
    health: Mutex<Health>,
    counters: Counters,
}

fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

impl Watched {
    pub(super) fn new(store: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Self { store, health: Mutex::default(), counters: Counters::default() })
    }

    /// How it is.
    pub(super) fn health(&self) -> Health {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was done with it.
    pub(super) fn counts(&self) -> StoreCounts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        StoreCounts {
            puts: get(&counters.puts),
            put_bytes: get(&counters.put_bytes),
            gets: get(&counters.gets),
            get_bytes: get(&counters.get_bytes),
            deletes: get(&counters.deletes),
            errors: get(&counters.errors),
        }
    }

    /// How long operations took that have ended, well or not.
    pub(super) fn took(&self, operation: StoreOperation) -> Histogram {
        self.counters.took[operation as usize].histogram()
    }

    /// Waits for an operation, and takes note of how it ended and how long that took.
    fn watch<'a, T: 'a>(
        &'a self,
        operation: StoreOperation,
        under_way: SendFuture<'a, Result<T, StoreError>>,
    ) -> SendFuture<'a, Result<T, StoreError>> {
        let since = Instant::now();
        Box::pin(async move {
            let result = under_way.await;
            self.counters.took[operation as usize].add(since.elapsed(), 1);
            self.note(result, operation == StoreOperation::Put)
        })
    }

    /// Takes note of how an operation ended. `takes_room`: it was a put.
    fn note<T>(&self, result: Result<T, StoreError>, takes_room: bool) -> Result<T, StoreError> {
        let new = match &result {
            Err(error) if error.kind == StoreErrorKind::NoSpace => Some(Health::Full(error.to_string())),
            Err(error) if error.kind == StoreErrorKind::Unavailable => Some(Health::Unavailable(error.to_string())),
            Err(_) => None,
            Ok(_) => Some(Health::Ok),
        };
        if result.as_ref().is_err_and(|error| error.kind != StoreErrorKind::NotFound) {
            add(&self.counters.errors, 1);
        }
        let Some(new) = new else { return result };
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let still_full = matches!(*health, Health::Full(_)) && new == Health::Ok && !takes_room;
        if still_full || *health == new {
            return result;
        }
        if std::mem::discriminant(&*health) != std::mem::discriminant(&new) {
            let store = self.store.url();
            match &new {
                Health::Ok => tracing::info!(%store, "the store answers again"),
                Health::Unavailable(why) => tracing::warn!(%store, %why, "the store does not answer"),
                Health::Full(why) => tracing::error!(%store, %why, "the store is full: writers will have to wait"),
            }
        }
        *health = new;
        drop(health);
        result
    }
}

impl ObjectStore for Watched {
    fn put<'a>(&'a self, name: &'a str, payload: Payload) -> SendFuture<'a, Result<PutOutcome, StoreError>> {
        add(&self.counters.puts, 1);
        add(&self.counters.put_bytes, payload.len());
        self.watch(StoreOperation::Put, self.store.put(name, payload))
    }

    fn get<'a>(&'a self, name: &'a str, range: Range<u64>) -> SendFuture<'a, Result<bytes::Bytes, StoreError>> {
        add(&self.counters.gets, 1);
        add(&self.counters.get_bytes, range.end.saturating_sub(range.start));
        self.watch(StoreOperation::Get, self.store.get(name, range))
    }

    fn get_head<'a>(&'a self, name: &'a str, most: u64) -> SendFuture<'a, Result<bytes::Bytes, StoreError>> {
        add(&self.counters.gets, 1);
        let get = self.watch(StoreOperation::Get, self.store.get_head(name, most));
        Box::pin(async move {
            let result = get.await?;
            add(&self.counters.get_bytes, result.len() as u64);
            Ok(result)
        })
    }

    fn head<'a>(&'a self, name: &'a str) -> SendFuture<'a, Result<ObjectInfo, StoreError>> {
        self.watch(StoreOperation::Head, self.store.head(name))
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> SendFuture<'a, Result<Vec<ObjectInfo>, StoreError>> {
        self.watch(StoreOperation::List, self.store.list(prefix, after))
    }

    fn delete<'a>(&'a self, name: &'a str) -> SendFuture<'a, Result<(), StoreError>> {
        add(&self.counters.deletes, 1);
        self.watch(StoreOperation::Delete, self.store.delete(name))
    }

    fn url(&self) -> String {
        self.store.url()
    }
}
