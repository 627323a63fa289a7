// SPDX-License-Identifier: Apache-2.0
//! Bounds and patience around a store that is reached over a network.
//!
//! [`Limited`] lets only so many requests run at once (puts are counted apart, so that a row of large ones does not hold up reads),
//! gives each try a time that grows with the bytes it moves, and repeats what failed with `Unavailable` after a pause that doubles, with
//! full jitter. Other kinds of error are final. A request holds its place through all its tries, so a store in trouble sees no more than
//! the bound. Everything is bounded: tries, pause and time of a try, hence the whole.
//!
//! A put whose answer was lost is tried again and may meet its own success; it then ends in `Exists`, and the caller finds out by
//! reading back whose object it is. Time and randomness come from a [`Pace`], so tests decide about both.

use crate::{LIST_MAX, error};
use bytes::Bytes;
use futures_util::future::{Either, select};
use std::fmt;
use std::ops::Range;
use std::time::Duration;
use tokio::sync::Semaphore;
use varve_env::{ObjectInfo, ObjectStore, Payload, PutOutcome, SendFuture, StoreError, StoreErrorKind};

/// How much at once, and how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreLimits {
    /// Requests under way at once, puts aside. At least 1.
    pub concurrency: usize,
    /// Puts under way at once. At least 1.
    pub put_concurrency: usize,
    /// Tries of a request, the first included. At least 1.
    pub tries: u32,
    /// Time to connect, within the time of a try.
    pub connect_timeout: Duration,
    /// Time of a try, beside the time for its bytes.
    pub timeout: Duration,
    /// The slowest rate, in bytes a second, at which a body may move: adds `bytes / rate` to the time of a try.
    pub slowest_rate: u64,
    /// The pause after the first failure is a random part of this; it doubles with each further one.
    pub backoff_first: Duration,
    /// The pause is never longer than this.
    pub backoff_most: Duration,
}

impl StoreLimits {
    /// The slowest rate that is waited for unless another is set, in bytes a second.
    pub const SLOWEST_RATE: u64 = 1 << 20;
}

impl Default for StoreLimits {
    /// What suits a server nearby and one across a country: a refused connection is reported within 2 seconds, silence within 1.5
    /// minutes, and a body of 64 MiB is given 80 seconds a try.
    fn default() -> Self {
        Self {
            concurrency: 64,
            put_concurrency: 8,
            tries: 5,
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(15),
            slowest_rate: Self::SLOWEST_RATE,
            backoff_first: Duration::from_millis(100),
            backoff_most: Duration::from_secs(5),
        }
    }
}

/// Time and randomness, as far as retries need them.
pub trait Pace: Send + Sync {
    /// Completes after `duration`.
    fn sleep(&self, duration: Duration) -> SendFuture<'static, ()>;
    /// 64 random bits; they spread load and keep no secret.
    fn random(&self) -> u64;
}

/// The real [`Pace`], on a tokio runtime, whichever executor asks.
#[derive(Clone, Debug)]
pub struct SystemPace(
    /// The runtime whose clock is used.
    pub tokio::runtime::Handle,
);

impl Pace for SystemPace {
    fn sleep(&self, duration: Duration) -> SendFuture<'static, ()> {
        let _entered = self.0.enter();
        Box::pin(tokio::time::sleep(duration))
    }
    fn random(&self) -> u64 {
        // Without a random source the pauses are of middle length: worse spread, nothing else.
        getrandom::u64().unwrap_or(u64::MAX / 2)
    }
}

/// A store with bounds.
pub struct Limited<S> {
    store: S,
    limits: StoreLimits,
    pace: Box<dyn Pace>,
    places: Semaphore,
    put_places: Semaphore,
}

impl<S> fmt::Debug for Limited<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limited").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// What a request is, for its errors and its limits.
#[derive(Clone, Copy)]
struct Request<'a> {
    operation: &'static str,
    name: &'a str,
    /// Bytes that it moves, about.
    bytes: u64,
}

impl<S: ObjectStore> Limited<S> {
    /// Puts bounds around `store`. Zeros in `limits` count as ones.
    #[must_use]
    pub fn new(store: S, limits: StoreLimits, pace: impl Pace + 'static) -> Self {
        let places = |places: usize| Semaphore::new(places.clamp(1, Semaphore::MAX_PERMITS));
        let (places, put_places) = (places(limits.concurrency), places(limits.put_concurrency));
        Self { store, limits, pace: Box::new(pace), places, put_places }
    }

    async fn run<'a, T>(
        &'a self,
        request: Request<'a>,
        call: impl Fn() -> SendFuture<'a, Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let places = if request.operation == "put" { &self.put_places } else { &self.places };
        // The semaphores are never closed; the permit lasts to the end of this function.
        let _permit = places.acquire().await;
        let mut failures = 0;
        loop {
            let failure = match self.attempt(request, call()).await {
                Err(failure) if failure.kind == StoreErrorKind::Unavailable => failure,
                done => return done,
            };
            failures += 1;
            if failures >= self.limits.tries {
                let message = format!("{} (tried {failures} times)", failure.message);
                return Err(StoreError { message, ..failure });
            }
            let pause = self.pause(failures);
            tracing::debug!(%failure, failures, pause_ms = pause.as_millis(), "a store request is tried again");
            self.pace.sleep(pause).await;
        }
    }

    async fn attempt<T>(
        &self,
        request: Request<'_>,
        call: SendFuture<'_, Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let limit = self.time_of_a_try(request.bytes);
        match select(call, self.pace.sleep(limit)).await {
            Either::Left((result, _)) => result,
            Either::Right(((), _)) => {
                let message = format!("no answer within {} seconds", limit.as_secs());
                Err(error(StoreErrorKind::Unavailable, request.operation, request.name, message))
            }
        }
    }

    fn time_of_a_try(&self, bytes: u64) -> Duration {
        let rate = self.limits.slowest_rate.max(1);
        self.limits.timeout.saturating_add(Duration::from_secs(bytes.min(BODY_MAX_BYTES).div_ceil(rate)))
    }

    /// A random part of a span that doubles with each failure.
    fn pause(&self, failures: u32) -> Duration {
        let doubled = 1_u32.checked_shl(failures - 1).unwrap_or(u32::MAX);
        let span = self.limits.backoff_first.saturating_mul(doubled).min(self.limits.backoff_most);
        let span_us = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.pace.random() % span_us.saturating_add(1).max(1))
    }
}

/// More than the largest body; bounds the time of a try whatever range is asked for.
const BODY_MAX_BYTES: u64 = 1 << 30;
/// Bytes of a listing's answer, about: what a full page takes in XML.
const LIST_BYTES: u64 = LIST_MAX as u64 * 1024;

impl<S: ObjectStore> ObjectStore for Limited<S> {
    fn put<'a>(&'a self, name: &'a str, payload: Payload) -> SendFuture<'a, Result<PutOutcome, StoreError>> {
        let request = Request { operation: "put", name, bytes: payload.len() };
        Box::pin(self.run(request, move || self.store.put(name, payload.clone())))
    }

    fn get<'a>(&'a self, name: &'a str, range: Range<u64>) -> SendFuture<'a, Result<Bytes, StoreError>> {
        let request = Request { operation: "get", name, bytes: range.end.saturating_sub(range.start) };
        Box::pin(self.run(request, move || self.store.get(name, range.clone())))
    }

    fn get_head<'a>(&'a self, name: &'a str, most: u64) -> SendFuture<'a, Result<Bytes, StoreError>> {
        // The object may be much shorter than `most`; a generous limit does no harm.
        let request = Request { operation: "get", name, bytes: most };
        Box::pin(self.run(request, move || self.store.get_head(name, most)))
    }

    fn head<'a>(&'a self, name: &'a str) -> SendFuture<'a, Result<ObjectInfo, StoreError>> {
        let request = Request { operation: "head", name, bytes: 0 };
        Box::pin(self.run(request, move || self.store.head(name)))
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> SendFuture<'a, Result<Vec<ObjectInfo>, StoreError>> {
        let request = Request { operation: "list", name: prefix, bytes: LIST_BYTES };
        Box::pin(self.run(request, move || self.store.list(prefix, after)))
    }

    fn delete<'a>(&'a self, name: &'a str) -> SendFuture<'a, Result<(), StoreError>> {
        let request = Request { operation: "delete", name, bytes: 0 };
        Box::pin(self.run(request, move || self.store.delete(name)))
    }

    fn url(&self) -> String {
        self.store.url()
    }
}

#[cfg(test)]
#[path = "limit_tests.rs"]
mod tests;
