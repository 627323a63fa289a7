// SPDX-License-Identifier: Apache-2.0
//! What all parts of a world share: virtual time, pending events, the queue of tasks that can run, chance, and the trace.
//!
//! It sits behind a mutex and is `Send`, because wakers and the futures of an object store must be; only one thread ever
//! takes the lock. Nothing of the caller's runs under it: an event that fires is taken out first.
//!
//! Events are ordered by time and then by the order in which they were scheduled, so that two for the same instant never
//! swap. The trace is a hash over every poll, I/O and note with its time; two runs that did the same have the same hash.

use crate::rng::Rng;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Lines of trace that are kept for people.
const LOG_LINES: usize = 1_000_000;

/// Which stream of chance to draw from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// The order in which tasks run.
    Schedule = 1,
    /// What processes draw.
    Ids = 2,
    /// Faults, latencies, what a crash leaves.
    Faults = 3,
}

/// Place of an event among all events: time, then order of scheduling.
pub(crate) type EventKey = (Duration, u64);

/// What happens when its time comes.
pub(crate) enum Event {
    Wake(Waker),
    Run(Box<dyn FnOnce() + Send>),
}

pub(crate) struct Core {
    state: Mutex<State>,
}

struct State {
    now: Duration,
    wall_offset_ms: i64,
    events: BTreeMap<EventKey, Event>,
    next_event: u64,
    ready: VecDeque<u64>,
    schedule: Rng,
    ids: Rng,
    faults: Rng,
    trace: u64,
    log: Option<VecDeque<String>>,
}

impl Core {
    pub(crate) fn new(seed: u64, wall_ms: u64, log: bool) -> Self {
        Self {
            state: Mutex::new(State {
                now: Duration::ZERO,
                wall_offset_ms: i64::try_from(wall_ms).unwrap_or(i64::MAX),
                events: BTreeMap::new(),
                next_event: 0,
                ready: VecDeque::new(),
                schedule: Rng::stream(seed, Stream::Schedule as u64),
                ids: Rng::stream(seed, Stream::Ids as u64),
                faults: Rng::stream(seed, Stream::Faults as u64),
                trace: 0xcbf2_9ce4_8422_2325,
                log: log.then(VecDeque::new),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> Duration {
        self.lock().now
    }

    pub(crate) fn wall_ms(&self) -> u64 {
        let state = self.lock();
        let passed = i64::try_from(state.now.as_millis()).unwrap_or(i64::MAX);
        u64::try_from(state.wall_offset_ms.saturating_add(passed)).unwrap_or(0)
    }

    pub(crate) fn jump_wall(&self, by_ms: i64) {
        let mut state = self.lock();
        state.wall_offset_ms = state.wall_offset_ms.saturating_add(by_ms);
    }

    /// Draws from a stream.
    pub(crate) fn draw<T>(&self, stream: Stream, draw: impl FnOnce(&mut Rng) -> T) -> T {
        let mut state = self.lock();
        match stream {
            Stream::Schedule => draw(&mut state.schedule),
            Stream::Ids => draw(&mut state.ids),
            Stream::Faults => draw(&mut state.faults),
        }
    }

    /// Schedules an event `after` from now.
    pub(crate) fn schedule(&self, after: Duration, event: Event) -> EventKey {
        let mut state = self.lock();
        let key = (state.now.saturating_add(after), state.next_event);
        state.next_event += 1;
        state.events.insert(key, event);
        key
    }

    pub(crate) fn cancel(&self, key: EventKey) {
        let removed = self.lock().events.remove(&key);
        drop(removed);
    }

    /// Takes out the first event if it is due at or before `until`, and moves time to it.
    pub(crate) fn advance(&self, until: Option<Duration>) -> Option<Event> {
        let mut state = self.lock();
        let first = state.events.first_entry()?;
        let at = first.key().0;
        if until.is_some_and(|until| at > until) {
            return None;
        }
        let event = first.remove();
        state.now = state.now.max(at);
        Some(event)
    }

    /// Moves time forward to `to` where nothing is due before.
    pub(crate) fn pass_time(&self, to: Duration) {
        let mut state = self.lock();
        state.now = state.now.max(to);
    }

    /// Forgets every event; what they held is dropped outside the lock.
    pub(crate) fn clear_events(&self) {
        let events = std::mem::take(&mut self.lock().events);
        drop(events);
    }

    pub(crate) fn make_ready(&self, task: u64) {
        self.lock().ready.push_back(task);
    }

    /// The next task to poll: the one that waits longest, or any where the order is shuffled.
    pub(crate) fn next_ready(&self, shuffle: bool) -> Option<u64> {
        let mut state = self.lock();
        if shuffle && state.ready.len() > 1 {
            let count = state.ready.len() as u64;
            let pick = state.schedule.below(count) as usize;
            return state.ready.remove(pick);
        }
        state.ready.pop_front()
    }

    /// Adds to the trace. `text` is made only where a log is kept.
    pub(crate) fn note(&self, numbers: &[u64], name: &str, text: impl FnOnce() -> String) {
        const PRIME: u64 = 0x0000_0100_0000_01b3;
        let mut state = self.lock();
        let mut hash = state.trace ^ state.now.as_nanos() as u64;
        hash = hash.wrapping_mul(PRIME);
        for number in numbers {
            hash = (hash ^ number).wrapping_mul(PRIME).rotate_left(23);
        }
        for byte in name.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(PRIME);
        }
        state.trace = hash;
        let now = state.now;
        if let Some(log) = &mut state.log {
            if log.len() == LOG_LINES {
                log.pop_front();
            }
            log.push_back(format!("{:>14.6} {}", now.as_secs_f64(), text()));
        }
    }

    pub(crate) fn trace(&self) -> u64 {
        self.lock().trace
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.lock().log.iter().flatten().cloned().collect()
    }
}

/// Completes when virtual time has come; see [`crate::SimWorld::sleep`]. Dropping it takes its event away, so that a cancelled sleep
/// never moves time.
pub struct Sleep {
    core: Arc<Core>,
    until: Duration,
    event: Option<EventKey>,
}

impl Sleep {
    pub(crate) fn new(core: &Arc<Core>, duration: Duration) -> Self {
        Self { core: Arc::clone(core), until: core.now().saturating_add(duration), event: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if let Some(event) = self.event.take() {
            self.core.cancel(event);
        }
        let now = self.core.now();
        if now >= self.until {
            return Poll::Ready(());
        }
        let event = Event::Wake(context.waker().clone());
        self.event = Some(self.core.schedule(self.until - now, event));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(event) = self.event.take() {
            self.core.cancel(event);
        }
    }
}
