// SPDX-License-Identifier: Apache-2.0
//! The thread of a disk: syncs that may be slow, and early writeback.
//!
//! Syncs that wait when the thread comes round are answered by one `fdatasync` (it covers them all, since it begins
//! after each was asked for). Hints to write back are done when no sync waits; they are kept in a short list and
//! dropped when it is full, as nobody relies on them.
//!
//! Early writeback: Linux's `sync_file_range` is out of reach of safe code here. `posix_fadvise(DONTNEED)` begins,
//! for the dirty pages of a range, the same asynchronous write without a wait, at 50 to 100 µs a call, and then
//! drops pages that are clean; those just written are not yet, and the vain try costs a good part of the call. Pages
//! at the ends of a range are covered in part only, which spares them the try. After it a sync of 4 MiB takes a
//! sixth of the time that it took without, and one of two pages two thirds.
//!
//! **A failed sync is final.** The kernel reports a lost write once and then takes the pages for clean, so a second
//! sync that succeeds proves nothing. The failure is kept where both the thread and the shard see it, whichever met
//! it and whether or not anybody waited, and every later sync gives it again.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Ranges that may wait to be written back.
const MOST_HINTS: usize = 16;

/// What makes a file's data durable: `fdatasync`, but for tests.
pub(super) type SyncCall = Box<dyn Fn(&File) -> io::Result<()> + Send + Sync>;

/// A sync that the thread has done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Synced {
    /// Counts the thread's syncs: those answered together have the same.
    pub(super) number: u64,
    pub(super) took: Duration,
}

/// Why no sync can succeed any more.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    kind: io::ErrorKind,
    text: String,
}

impl Failure {
    pub(super) fn error(&self) -> io::Error {
        io::Error::new(self.kind, self.text.clone())
    }
}

pub(super) struct Syncer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    file: Arc<File>,
    path: String,
    call: SyncCall,
    failure: OnceLock<Failure>,
    work: Mutex<Work>,
    wake: Condvar,
}

#[derive(Default)]
struct Work {
    /// As many as there are futures that wait.
    waiting: Vec<oneshot::Sender<Result<Synced, Failure>>>,
    hints: Vec<Range<u64>>,
    done: u64,
    ending: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sync(&self) -> Result<Duration, Failure> {
        if let Some(failure) = self.failure.get() {
            return Err(failure.clone());
        }
        let start = Instant::now();
        let result = loop {
            match (self.call)(&self.file) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        let took = start.elapsed();
        result.map(|()| took).map_err(|error| {
            tracing::error!(path = %self.path, %error, "a sync failed: nothing written before it may be relied on");
            let text =
                format!("{}: a sync failed, and none can succeed until the file is opened again: {error}", self.path);
            self.failure.get_or_init(|| Failure { kind: error.kind(), text }).clone()
        })
    }

    fn write_back(&self, range: &Range<u64>) {
        // A byte less at each end: a page that is covered in part is written whole and not dropped.
        let Some(len) = range.end.checked_sub(range.start + 2).and_then(NonZeroU64::new) else { return };
        // A hint: where it is not possible, the sync has more to do.
        if let Err(error) = rustix::fs::fadvise(&*self.file, range.start + 1, Some(len), rustix::fs::Advice::DontNeed) {
            tracing::debug!(path = %self.path, %error, "early writeback is not possible");
        }
    }

    fn run(&self) {
        let mut work = self.lock();
        loop {
            if !work.waiting.is_empty() {
                let waiting = std::mem::take(&mut work.waiting);
                work.done += 1;
                let number = work.done;
                drop(work);
                let result = self.sync().map(|took| Synced { number, took });
                for waiter in waiting {
                    // One that waits no more is no loss: a failure is kept.
                    drop(waiter.send(result.clone()));
                }
                work = self.lock();
            } else if work.ending {
                return;
            } else if let Some(range) = work.hints.pop() {
                drop(work);
                self.write_back(&range);
                work = self.lock();
            } else {
                work = self.wake.wait(work).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl Syncer {
    pub(super) fn start(file: Arc<File>, path: String, call: SyncCall) -> io::Result<Self> {
        let work = Mutex::new(Work::default());
        let shared = Arc::new(Shared { file, path, call, failure: OnceLock::new(), work, wake: Condvar::new() });
        let own = Arc::clone(&shared);
        let thread = thread::Builder::new().name("varve-sync".to_owned()).spawn(move || own.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Syncs on this very thread, and says how long it took.
    pub(super) fn sync_here(&self) -> Result<Duration, Failure> {
        self.shared.sync()
    }

    /// Asks the thread for a sync. The receiver fails only where the thread has ended.
    pub(super) fn ask(&self) -> oneshot::Receiver<Result<Synced, Failure>> {
        let (answer, wait) = oneshot::channel();
        self.shared.lock().waiting.push(answer);
        self.shared.wake.notify_one();
        wait
    }

    /// Asks the thread to begin writing a range, some time.
    pub(super) fn hint(&self, range: Range<u64>) {
        let mut work = self.shared.lock();
        if work.hints.len() < MOST_HINTS {
            work.hints.push(range);
            self.shared.wake.notify_one();
        }
    }

    /// The failure after which no sync succeeds, if there was one.
    pub(super) fn failure(&self) -> Option<&Failure> {
        self.shared.failure.get()
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.shared.lock().ending = true;
        self.shared.wake.notify_one();
        // Waits for a sync under way: the file, and its lock with it, must be closed when the disk is gone.
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(path = %self.shared.path, "the thread of a disk panicked");
        }
    }
}
