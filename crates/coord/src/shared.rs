// SPDX-License-Identifier: Apache-2.0
//! The state behind a lock, with those who wait for changes: the reading half of both forms.
//!
//! Reads and watches take the lock for a moment and never wait for a disk. The lock is never held over an await or an fsync. A watch keeps the
//! state alive after its store is gone, and is then told so.

use crate::state::{Cursor, State};
use crate::{CoordError, Entry, Event, Listing, Result, Watch, api};
use futures_util::stream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Notify;

/// Most watches at once.
const MAX_WATCHES: usize = 4096;

pub(crate) struct Shared {
    state: Mutex<State>,
    changed: Notify,
    watches: AtomicUsize,
}

/// A watch that counts among [`MAX_WATCHES`] until it is dropped.
struct Watcher {
    shared: Arc<Shared>,
    cursor: Cursor,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.watches.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    pub(crate) fn new(state: State) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(state), changed: Notify::new(), watches: AtomicUsize::new(0) })
    }

    /// The state, whether or not it has ended.
    pub(crate) fn lock(&self) -> Result<MutexGuard<'_, State>> {
        self.state.lock().map_err(|_| CoordError::Internal("a thread died while it changed the state".to_owned()))
    }

    /// The state while it is of use.
    pub(crate) fn live(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.lock()?;
        state.check_alive()?;
        Ok(state)
    }

    /// Ends it for everybody.
    pub(crate) fn end(&self, reason: &str) {
        if let Ok(mut state) = self.lock() {
            state.end(reason);
        }
        self.changed.notify_waiters();
    }

    /// Wakes the watches.
    pub(crate) fn notify(&self) {
        self.changed.notify_waiters();
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<Entry>> {
        api::check_key(key)?;
        Ok(self.live()?.get(key))
    }

    pub(crate) fn list(&self, prefix: &str) -> Result<Listing> {
        api::check_prefix(prefix)?;
        Ok(self.live()?.list(prefix))
    }

    pub(crate) fn watch(self: &Arc<Self>, prefix: &str, from_revision: u64) -> Result<Watch> {
        api::check_prefix(prefix)?;
        let cursor = self.live()?.cursor(prefix, from_revision);
        let counted = |count: usize| (count < MAX_WATCHES).then_some(count + 1);
        if self.watches.fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted).is_err() {
            return Err(CoordError::Busy(format!("there are {MAX_WATCHES} watches already")));
        }
        let watcher = Watcher { shared: Arc::clone(self), cursor };
        Ok(Watch::new(stream::unfold(Some(watcher), |watcher| async move {
            let mut watcher = watcher?;
            let event = watcher.next().await;
            let rest = event.is_ok().then_some(watcher);
            Some((event, rest))
        })))
    }
}

impl Watcher {
    async fn next(&mut self) -> Result<Event> {
        loop {
            // Made before the look, so that a change between the look and the wait is not missed.
            let changed = self.shared.changed.notified();
            {
                let state = self.shared.lock()?;
                if let Some(event) = state.next_event(&mut self.cursor) {
                    return Ok(event);
                }
                state.check_alive()?;
            }
            changed.await;
        }
    }
}
