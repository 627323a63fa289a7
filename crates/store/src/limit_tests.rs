// SPDX-License-Identifier: Apache-2.0
//! Bounds and retries, against a store that fails as it is told, with time that only passes on paper.

use super::*;
use futures_util::FutureExt;
use futures_util::future::{join_all, pending};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What the store does with the next request.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Fails(StoreErrorKind),
    /// A put happens, and its answer is lost.
    AnswerLost,
    /// Nothing ever comes.
    Silent,
}

/// A store of one name, whose first requests have fates.
#[derive(Default)]
struct Scripted {
    fates: Mutex<VecDeque<Fate>>,
    taken: Mutex<bool>,
    calls: AtomicUsize,
    running: AtomicUsize,
    most_running: AtomicUsize,
}

impl Scripted {
    fn new(fates: &[Fate]) -> Arc<Self> {
        Arc::new(Self { fates: Mutex::new(fates.iter().copied().collect()), ..Self::default() })
    }

    async fn request<T>(&self, done: impl FnOnce() -> T) -> Result<T, StoreError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_running.fetch_max(running, Ordering::SeqCst);
        tokio::task::yield_now().await;
        self.running.fetch_sub(1, Ordering::SeqCst);
        let fate = self.fates.lock().unwrap().pop_front();
        let failed = |kind| Err(error(kind, "put", "a", "scripted"));
        match fate {
            None => Ok(done()),
            Some(Fate::Fails(kind)) => failed(kind),
            Some(Fate::AnswerLost) => {
                done();
                failed(StoreErrorKind::Unavailable)
            }
            Some(Fate::Silent) => pending().await,
        }
    }
}

/// The same store, as the bounds own it.
struct Shared(Arc<Scripted>);

impl std::ops::Deref for Shared {
    type Target = Scripted;
    fn deref(&self) -> &Scripted {
        &self.0
    }
}

impl ObjectStore for Shared {
    fn put<'a>(&'a self, _: &'a str, _: Payload) -> SendFuture<'a, Result<PutOutcome, StoreError>> {
        Box::pin(self.request(|| {
            let was_taken = std::mem::replace(&mut *self.taken.lock().unwrap(), true);
            if was_taken { PutOutcome::Exists } else { PutOutcome::Created }
        }))
    }
    fn get<'a>(&'a self, _: &'a str, _: Range<u64>) -> SendFuture<'a, Result<Bytes, StoreError>> {
        Box::pin(self.request(Bytes::new))
    }
    fn get_head<'a>(&'a self, _: &'a str, _: u64) -> SendFuture<'a, Result<Bytes, StoreError>> {
        Box::pin(self.request(Bytes::new))
    }
    fn head<'a>(&'a self, name: &'a str) -> SendFuture<'a, Result<ObjectInfo, StoreError>> {
        Box::pin(self.request(move || ObjectInfo { name: name.to_owned(), size: 0 }))
    }
    fn list<'a>(&'a self, _: &'a str, _: Option<&'a str>) -> SendFuture<'a, Result<Vec<ObjectInfo>, StoreError>> {
        Box::pin(self.request(Vec::new))
    }
    fn delete<'a>(&'a self, _: &'a str) -> SendFuture<'a, Result<(), StoreError>> {
        Box::pin(self.request(|| ()))
    }
    fn url(&self) -> String {
        "scripted".into()
    }
}

/// Time on paper: a sleep shorter than a try's limit is a pause, is written down and is over at once; the limit is reached only
/// when the store is silent, since the request is asked first.
#[derive(Clone, Default)]
struct Paper {
    sleeps: Arc<Mutex<Vec<Duration>>>,
    random: u64,
}

impl Pace for Paper {
    fn sleep(&self, duration: Duration) -> SendFuture<'static, ()> {
        let sleeps = Arc::clone(&self.sleeps);
        let mut polls = 0;
        Box::pin(std::future::poll_fn(move |context| {
            polls += 1;
            // Requests here are done by their second poll.
            if polls < 4 {
                context.waker().wake_by_ref();
                return std::task::Poll::Pending;
            }
            sleeps.lock().unwrap().push(duration);
            std::task::Poll::Ready(())
        }))
    }
    fn random(&self) -> u64 {
        self.random
    }
}

fn limits() -> StoreLimits {
    StoreLimits { concurrency: 3, put_concurrency: 2, tries: 4, ..StoreLimits::default() }
}

fn limited(fates: &[Fate]) -> (Limited<Shared>, Arc<Scripted>, Paper) {
    let (store, paper) = (Scripted::new(fates), Paper { random: u64::MAX, ..Paper::default() });
    (Limited::new(Shared(Arc::clone(&store)), limits(), paper.clone()), store, paper)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

const DOWN: Fate = Fate::Fails(StoreErrorKind::Unavailable);

#[test]
fn what_fails_and_then_works_has_worked() {
    let (limited, store, paper) = limited(&[DOWN, DOWN, DOWN]);
    assert_eq!(block_on(limited.put("a", Payload::default())).unwrap(), PutOutcome::Created);
    assert_eq!(store.calls.load(Ordering::SeqCst), 4);
    let pauses = paper.sleeps.lock().unwrap().clone();
    assert_eq!(pauses.len(), 3);
    for (number, pause) in pauses.iter().enumerate() {
        assert!(*pause <= Duration::from_millis(100 << number), "{pauses:?}");
    }
}

#[test]
fn it_gives_up_after_the_last_try_and_says_so() {
    let (limited, store, _) = limited(&[DOWN; 9]);
    let error = block_on(limited.get("a", 0..1)).unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unavailable);
    assert!(error.message.contains("scripted") && error.message.contains("4 times"), "{error}");
    assert_eq!(store.calls.load(Ordering::SeqCst), 4);
}

#[test]
fn what_cannot_pass_is_not_tried_again() {
    for kind in [StoreErrorKind::NotFound, StoreErrorKind::Invalid, StoreErrorKind::NoSpace] {
        let (limited, store, _) = limited(&[Fate::Fails(kind)]);
        assert_eq!(block_on(limited.head("a")).unwrap_err().kind, kind);
        assert_eq!(store.calls.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn a_put_whose_answer_was_lost_meets_itself() {
    let (limited, store, _) = limited(&[Fate::AnswerLost]);
    assert_eq!(block_on(limited.put("a", Payload::default())).unwrap(), PutOutcome::Exists);
    assert_eq!(store.calls.load(Ordering::SeqCst), 2);
}

#[test]
fn silence_ends_with_the_time_of_a_try() {
    let (limited, store, paper) = limited(&[Fate::Silent; 4]);
    let error = block_on(limited.put("a", Bytes::from(vec![0; 3 << 20]).into())).unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unavailable);
    assert!(error.message.contains("18 seconds"), "15 and one for each MiB: {error}");
    assert_eq!(store.calls.load(Ordering::SeqCst), 4);
    let sleeps = paper.sleeps.lock().unwrap().clone();
    assert_eq!(sleeps.iter().filter(|sleep| **sleep == Duration::from_secs(18)).count(), 4);
}

#[test]
fn only_so_many_run_at_once_and_puts_are_counted_apart() {
    let (limited, store, _) = limited(&[]);
    block_on(join_all((0..20).map(|_| limited.delete("a")))).into_iter().for_each(Result::unwrap);
    assert_eq!(store.most_running.load(Ordering::SeqCst), 3);

    let (limited, store, _) = limited_silent();
    let mut puts: Vec<_> = (0..5).map(|_| limited.put("a", Payload::default())).collect();
    assert!(puts.iter_mut().all(|put| put.now_or_never().is_none()));
    assert_eq!(store.calls.load(Ordering::SeqCst), 2, "the others wait for a place");
    store.fates.lock().unwrap().clear();
    block_on(limited.head("a")).unwrap();
}

fn limited_silent() -> (Limited<Shared>, Arc<Scripted>, Paper) {
    limited(&[Fate::Silent; 64])
}

#[test]
fn pauses_double_to_a_bound_with_full_jitter() {
    let paper = |random| Paper { random, ..Paper::default() };
    let limited = |random| Limited::new(Shared(Scripted::new(&[])), limits(), paper(random));
    // A span of n µs has n + 1 pauses: with n itself as the random number, the longest comes.
    for (failures, longest_ms) in [(1, 100), (2, 200), (3, 400), (6, 3200), (7, 5000), (33, 5000), (u32::MAX, 5000)] {
        assert_eq!(limited(longest_ms * 1000).pause(failures), Duration::from_millis(longest_ms), "{failures}");
        assert_eq!(limited(0).pause(failures), Duration::ZERO);
        assert!(limited(u64::MAX / 3).pause(failures) <= Duration::from_millis(longest_ms));
    }
}

#[test]
fn zeros_count_as_ones() {
    let none = StoreLimits { concurrency: 0, put_concurrency: 0, tries: 0, slowest_rate: 0, ..StoreLimits::default() };
    let limited = Limited::new(Shared(Scripted::new(&[DOWN; 2])), none, Paper::default());
    assert!(block_on(limited.put("a", Payload::default())).is_err());
    assert!(block_on(limited.get("a", 0..u64::MAX)).is_err());
    assert!(block_on(limited.get("a", 0..u64::MAX)).is_ok());
}
