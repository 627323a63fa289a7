// SPDX-License-Identifier: Apache-2.0
//! A store that notes how its operations end: for the state that people see, and for metrics.
//!
//! It changes nothing of what passes through. The state is that of the last operations: a put that found no room
//! says `Full` until a put succeeds, an operation without an answer says `Unavailable` until one has an answer.
//! That a name is not there is an answer; other errors that blame the request say nothing about the store.
//!
//! A store that takes requests and never answers any would look well until the patience with the first of them ends, which is minutes. So the requests under
//! way are known, and [`Watched::look`], asked every second, says `Unavailable` once one waits for longer than any should
//! while nothing at all was answered since it began. One that is slow with a large body beside others that are answered says nothing.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use varve_env::{ObjectInfo, ObjectStore, Payload, PutOutcome, SendFuture, StoreError, StoreErrorKind};
use varve_types::Histogram;
use varve_types::SharedHistogram;

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

/// For how long nothing at all may be answered while a request waits.
const SILENCE: Duration = Duration::from_secs(5);
/// Bytes that even a slow store moves in a second: so much longer a request may take.
const SLOWEST: u64 = varve_store::StoreLimits::SLOWEST_RATE;

/// Bytes that the beginning of an object has, at most, where nobody knows how long it is: a map object.
const HEAD_BYTES: u64 = 32 << 20;

/// A request under way.
#[derive(Clone, Copy, Debug)]
struct Request {
    operation: StoreOperation,
    since: Instant,
    /// Bytes that it moves, about.
    bytes: u64,
}

/// Requests under way, and the last answer.
#[derive(Debug, Default)]
struct UnderWay {
    requests: BTreeMap<u64, Request>,
    next: u64,
    answered: Option<Instant>,
}

/// How many requests are under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) requests: u64,
    /// For how long the oldest is.
    pub(super) oldest: Duration,
}

/// Takes a request out of those under way when dropped, also where its caller went away.
struct Asked<'a> {
    watched: &'a Watched,
    number: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.watched.under_way().requests.remove(&self.number);
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
    under_way: Mutex<UnderWay>,
    counters: Counters,
}

fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

impl Watched {
    pub(super) fn new(store: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Self { store, health: Mutex::default(), under_way: Mutex::default(), counters: Counters::default() })
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

    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is under way at this moment.
    pub(super) fn waiting(&self) -> Waiting {
        let under_way = self.under_way();
        let oldest = under_way.requests.values().map(|request| request.since).min();
        let oldest = oldest.map_or(Duration::ZERO, |since| since.elapsed());
        Waiting { requests: under_way.requests.len() as u64, oldest }
    }

    /// Looks whether it is silent; to be asked every second.
    pub(super) fn look(&self) {
        if let Some(why) = self.silence(Instant::now()) {
            self.set_health(Health::Unavailable(why));
        }
    }

    /// What is to be said of a store that answers nothing; `None` of one that does, or is not asked.
    fn silence(&self, now: Instant) -> Option<String> {
        let under_way = self.under_way();
        let is_late = |request: &&Request| {
            let patience = SILENCE + Duration::from_secs(request.bytes / SLOWEST);
            now.saturating_duration_since(request.since) >= patience
                && under_way.answered.is_none_or(|answered| answered < request.since)
        };
        let late = under_way.requests.values().filter(is_late).min_by_key(|request| request.since)?;
        let (seconds, operation) = (now.saturating_duration_since(late.since).as_secs(), late.operation.name());
        let others = under_way.requests.len() - 1;
        Some(format!(
            "it takes requests and has answered none for {seconds} s: a {operation} waits, and {others} others"
        ))
    }

    /// Waits for an operation that moves so many bytes, and takes note of how it ended and how long that took.
    fn watch<'a, T: 'a>(
        &'a self,
        operation: StoreOperation,
        bytes: u64,
        request: SendFuture<'a, Result<T, StoreError>>,
    ) -> SendFuture<'a, Result<T, StoreError>> {
        let since = Instant::now();
        let asked = {
            let mut under_way = self.under_way();
            let number = under_way.next;
            under_way.next += 1;
            under_way.requests.insert(number, Request { operation, since, bytes });
            Asked { watched: self, number }
        };
        Box::pin(async move {
            let result = request.await;
            drop(asked);
            self.counters.took[operation as usize].add(since.elapsed(), 1);
            self.note(result, operation == StoreOperation::Put)
        })
    }

    /// Takes note of how an operation ended. `takes_room`: it was a put, and only that says whether there is room.
    fn note<T>(&self, result: Result<T, StoreError>, takes_room: bool) -> Result<T, StoreError> {
        let new = match &result {
            Err(error) if error.kind == StoreErrorKind::NoSpace => Some(Health::Full(error.to_string())),
            Err(error) if error.kind == StoreErrorKind::Unavailable => Some(Health::Unavailable(error.to_string())),
            Err(error) if error.kind != StoreErrorKind::NotFound => None,
            Ok(_) | Err(_) => Some(Health::Ok),
        };
        if result.as_ref().is_err_and(|error| error.kind != StoreErrorKind::NotFound) {
            add(&self.counters.errors, 1);
        }
        if !matches!(new, Some(Health::Unavailable(_))) {
            self.under_way().answered = Some(Instant::now());
        }
        let Some(new) = new else { return result };
        if matches!(self.health(), Health::Full(_)) && new == Health::Ok && !takes_room {
            return result;
        }
        self.set_health(new);
        result
    }

    /// Notes how it is from now on.
    fn set_health(&self, new: Health) {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        if *health == new {
            return;
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
    }
}

impl ObjectStore for Watched {
    fn put<'a>(&'a self, name: &'a str, payload: Payload) -> SendFuture<'a, Result<PutOutcome, StoreError>> {
        add(&self.counters.puts, 1);
        add(&self.counters.put_bytes, payload.len());
        self.watch(StoreOperation::Put, payload.len(), self.store.put(name, payload))
    }

    fn get<'a>(&'a self, name: &'a str, range: Range<u64>) -> SendFuture<'a, Result<bytes::Bytes, StoreError>> {
        add(&self.counters.gets, 1);
        let bytes = range.end.saturating_sub(range.start);
        add(&self.counters.get_bytes, bytes);
        self.watch(StoreOperation::Get, bytes, self.store.get(name, range))
    }

    fn get_head<'a>(&'a self, name: &'a str, most: u64) -> SendFuture<'a, Result<bytes::Bytes, StoreError>> {
        add(&self.counters.gets, 1);
        let get = self.watch(StoreOperation::Get, most.min(HEAD_BYTES), self.store.get_head(name, most));
        Box::pin(async move {
            let result = get.await?;
            add(&self.counters.get_bytes, result.len() as u64);
            Ok(result)
        })
    }

    fn head<'a>(&'a self, name: &'a str) -> SendFuture<'a, Result<ObjectInfo, StoreError>> {
        self.watch(StoreOperation::Head, 0, self.store.head(name))
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> SendFuture<'a, Result<Vec<ObjectInfo>, StoreError>> {
        self.watch(StoreOperation::List, 0, self.store.list(prefix, after))
    }

    fn delete<'a>(&'a self, name: &'a str) -> SendFuture<'a, Result<(), StoreError>> {
        add(&self.counters.deletes, 1);
        self.watch(StoreOperation::Delete, 0, self.store.delete(name))
    }

    fn url(&self) -> String {
        self.store.url()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::Notify;

    /// Answers nothing until it is told to.
    #[derive(Default)]
    struct Silent(Notify);

    impl Silent {
        fn late<'a, T: Send + 'a>(
            &'a self,
            result: Result<T, StoreErrorKind>,
        ) -> SendFuture<'a, Result<T, StoreError>> {
            Box::pin(async move {
                self.0.notified().await;
                result.map_err(|kind| {
                    let (name, message) = ("x".to_owned(), "no".to_owned());
                    StoreError { kind, operation: "get", name, message }
                })
            })
        }
    }

    impl ObjectStore for Silent {
        fn put<'a>(&'a self, _: &'a str, _: Payload) -> SendFuture<'a, Result<PutOutcome, StoreError>> {
            self.late(Ok(PutOutcome::Created))
        }
        fn get<'a>(&'a self, _: &'a str, _: Range<u64>) -> SendFuture<'a, Result<bytes::Bytes, StoreError>> {
            self.late(Err(StoreErrorKind::NotFound))
        }
        fn get_head<'a>(&'a self, _: &'a str, _: u64) -> SendFuture<'a, Result<bytes::Bytes, StoreError>> {
            self.late(Err(StoreErrorKind::Unavailable))
        }
        fn head<'a>(&'a self, _: &'a str) -> SendFuture<'a, Result<ObjectInfo, StoreError>> {
            self.late(Err(StoreErrorKind::NotFound))
        }
        fn list<'a>(&'a self, _: &'a str, _: Option<&'a str>) -> SendFuture<'a, Result<Vec<ObjectInfo>, StoreError>> {
            self.late(Ok(Vec::new()))
        }
        fn delete<'a>(&'a self, _: &'a str) -> SendFuture<'a, Result<(), StoreError>> {
            self.late(Ok(()))
        }
        fn url(&self) -> String {
            "silent:".to_owned()
        }
    }

    fn silent() -> (Arc<Silent>, Arc<Watched>) {
        let store = Arc::new(Silent::default());
        (Arc::clone(&store), Watched::new(store))
    }

    #[tokio::test]
    async fn a_store_that_answers_nothing_is_told_soon() {
        let (store, watched) = silent();
        let now = Instant::now();
        assert_eq!(watched.silence(now + Duration::from_secs(100)), None, "nobody asks it for anything");
        let get = watched.get("x", 0..4096);
        assert_eq!(watched.silence(now + SILENCE / 2), None);
        let why = watched.silence(now + SILENCE * 2 + Duration::from_millis(500)).unwrap();
        assert!(why.contains("10 s: a get waits, and 0 others"), "{why}");
        assert_eq!(watched.waiting().requests, 1);
        store.0.notify_one();
        get.await.unwrap_err();
        assert_eq!(watched.waiting(), Waiting::default());
        assert_eq!(watched.silence(now + SILENCE * 2), None);
    }

    #[tokio::test]
    async fn a_large_body_has_time_and_an_answer_to_any_counts_for_all() {
        let (store, watched) = silent();
        let now = Instant::now();
        let put = watched.put("large", Payload::from(bytes::Bytes::from(vec![0; 20 << 20])));
        assert_eq!(watched.silence(now + SILENCE * 3), None);
        assert!(watched.silence(now + Duration::from_secs(26)).is_some());
        store.0.notify_one();
        // The oldest that waits is woken: this one.
        watched.head("x").await.unwrap_err();
        assert_eq!(watched.silence(now + Duration::from_secs(60)), None, "it answers others");
        drop(put);
        assert_eq!(watched.waiting(), Waiting::default(), "a caller that goes away waits for nothing");
    }

    #[tokio::test]
    async fn an_answer_that_blames_the_request_ends_the_silence() {
        let (store, watched) = silent();
        watched.set_health(Health::Unavailable("it was silent".to_owned()));
        store.0.notify_one();
        watched.get("x", 0..1).await.unwrap_err();
        assert_eq!(watched.health(), Health::Ok);
        watched.set_health(Health::Full("no room".to_owned()));
        store.0.notify_one();
        watched.head("x").await.unwrap_err();
        assert!(matches!(watched.health(), Health::Full(_)));
    }
}
