// SPDX-License-Identifier: Apache-2.0
//! A preallocated file, or a block device, as a disk.
//!
//! Writes go to the page cache on the caller's thread, so they survive the process and cost one system call. A sync
//! is done in place or on the disk's thread, as [`SyncPolicy`] finds; one that finds everything it was asked for
//! covered by another does nothing. Reads go to two threads, which start with the first read: a read of a page that
//! is not in memory would hold up the shard.
//!
//! Invariants: `synced <= written`, both counted in calls of `write_at`; what an opened file holds counts as
//! written and not synced, since a process that died may have left it in the page cache alone; after a failed sync
//! there is no successful one (see [`super::syncer`]).
//!
//! What an earlier process left in memory and could not make durable is written again when it is asked for (see
//! [`super::settle`]).
//!
//! A crash of the process loses nothing that `write_at` took; the loss of power loses at most what no sync covered.

use super::create::{self, context};
use super::policy::{SyncPolicy, SyncTuning};
use super::settle::settle;
use super::syncer::{SyncCall, Syncer};
use super::{ComputePool, PoolOptions};
use crate::{Disk, LocalFuture};
use bytes::Bytes;
use std::cell::{Cell, OnceCell, RefCell};
use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Parts that one system call takes (IOV_MAX).
const MOST_PARTS: usize = 1024;
/// Longest read.
const MOST_READ: usize = 256 << 20;
/// Hinted bytes that are worth waking the thread for.
const HINT_BYTES: u64 = 256 << 10;
/// Bytes of a hint that is passed on at once where syncs are quick.
const SMALL_HINT: u64 = 8 << 10;
/// Threads that read, and reads that may wait for one.
const READERS: (usize, usize) = (2, 64);

/// How many syncs were done, and where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncCounts {
    /// On the shard's own thread.
    pub inline: u64,
    /// Waits for the disk's thread, several of which may have been for one sync.
    pub threaded: u64,
    /// Asked for when all was durable already.
    pub needless: u64,
}

/// A file as a [`Disk`], for the thread that opened it. Clones are the same opening; it is closed and unlocked with the last one
/// and the last future.
#[derive(Clone)]
pub struct FileDisk {
    inner: Rc<Inner>,
}

struct Inner {
    path: String,
    len: u64,
    file: Arc<File>,
    syncer: Syncer,
    readers: OnceCell<ComputePool>,
    policy: RefCell<SyncPolicy>,
    /// Calls of `write_at`; begins at 1, which stands for what the file held when it was opened.
    written: Cell<u64>,
    /// Calls that a successful sync covered.
    synced: Cell<u64>,
    /// Bytes written since the last sync began.
    dirty: Cell<u64>,
    /// Futures that wait for the thread.
    waiting: Cell<u32>,
    /// The last sync of the thread whose duration was recorded.
    recorded: Cell<u64>,
    /// What was hinted and not yet passed on.
    hinted: RefCell<Range<u64>>,
    counts: Cell<SyncCounts>,
}

impl FileDisk {
    /// Makes a file of `len` zeroes that lie really on the device, and opens it. Blocks for as long as writing them takes; a crash
    /// leaves the whole file or none at `path`.
    ///
    /// # Errors
    /// When the path exists, or its file system is full or fails; no file is left then.
    pub fn create(path: &Path, len: u64) -> io::Result<Self> {
        Self::create_tuned(path, len, SyncTuning::default())
    }

    /// As [`create`](Self::create), with a tuning of its own.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_tuned(path: &Path, len: u64, tuning: SyncTuning) -> io::Result<Self> {
        let file = create::create(path, len)?;
        Self::over(file, path, len, tuning, Box::new(File::sync_data))
    }

    /// Opens a file or a block device, for this process alone. Its length now is the disk's.
    ///
    /// # Errors
    /// Of kind `ResourceBusy` when it is open already, here or in another process; when there is no such file, or it can not be
    /// read and written.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::open_tuned(path, SyncTuning::default())
    }

    /// As [`open`](Self::open), with a tuning of its own.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_tuned(path: &Path, tuning: SyncTuning) -> io::Result<Self> {
        let (file, len) = create::open(path)?;
        Self::over(file, path, len, tuning, Box::new(File::sync_data))
    }

    fn over(file: File, path: &Path, len: u64, tuning: SyncTuning, call: SyncCall) -> io::Result<Self> {
        let path = path.display().to_string();
        let file = Arc::new(file);
        let syncer = Syncer::start(Arc::clone(&file), path.clone(), call)
            .map_err(|error| context(&path, "start its thread", error))?;
        let inner = Inner {
            path,
            len,
            file,
            syncer,
            readers: OnceCell::new(),
            policy: RefCell::new(SyncPolicy::new(tuning)),
            written: Cell::new(1),
            synced: Cell::new(0),
            dirty: Cell::new(0),
            waiting: Cell::new(0),
            recorded: Cell::new(0),
            hinted: RefCell::new(0..0),
            counts: Cell::default(),
        };
        Ok(Self { inner: Rc::new(inner) })
    }

    /// How many syncs were done, and where.
    #[must_use]
    pub fn sync_counts(&self) -> SyncCounts {
        self.inner.counts.get()
    }
}

/// Writes all parts with calls that each take at most so many of them and may write less than they were given.
fn write_whole(
    mut offset: u64,
    parts: &[IoSlice<'_>],
    mut write_some: impl FnMut(u64, &[IoSlice<'_>]) -> io::Result<usize>,
) -> io::Result<()> {
    for batch in parts.chunks(MOST_PARTS) {
        let wanted: usize = batch.iter().map(|part| part.len()).sum();
        let mut done = write_some(offset, batch)?;
        offset += done as u64;
        if done == wanted {
            continue;
        }
        // Rare: a signal, or a file system at its limit. Only then is the list copied, to be cut.
        let mut copy = batch.to_vec();
        let mut rest = copy.as_mut_slice();
        IoSlice::advance_slices(&mut rest, done);
        while !rest.is_empty() {
            done = write_some(offset, rest)?;
            offset += done as u64;
            IoSlice::advance_slices(&mut rest, done);
        }
    }
    Ok(())
}

/// One future that waits for the thread.
struct Waiting<'a>(&'a Cell<u32>);

impl<'a> Waiting<'a> {
    fn new(count: &'a Cell<u32>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Inner {
    fn check(&self, offset: u64, len: u64, action: &str) -> io::Result<()> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            let beyond = io::Error::new(io::ErrorKind::InvalidInput, format!("beyond its end at {}", self.len));
            return Err(context(&self.path, format!("{action} {len} bytes at {offset}"), beyond));
        }
        Ok(())
    }

    /// Writes a first part, which is not empty unless there is nothing to write.
    fn write_some(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        loop {
            match rustix::io::pwritev(&*self.file, parts, offset) {
                Ok(0) if parts.iter().any(|part| !part.is_empty()) => {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                Ok(done) => return Ok(done),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn count(&self, add: impl FnOnce(&mut SyncCounts)) {
        let mut counts = self.counts.get();
        add(&mut counts);
        self.counts.set(counts);
    }

    fn covered(&self, written: u64) {
        self.synced.set(self.synced.get().max(written));
    }

    /// Makes durable what was written up to call number `target`.
    async fn sync(&self, target: u64) -> io::Result<()> {
        if let Some(failure) = self.syncer.failure() {
            return Err(failure.error());
        }
        if self.synced.get() >= target {
            self.count(|counts| counts.needless += 1);
            return Ok(());
        }
        // A sync now covers more than was asked for, and so answers those who ask for it a moment later.
        let written = self.written.get();
        let bytes = self.dirty.replace(0);
        if self.waiting.get() == 0 && self.policy.borrow().inline(bytes) {
            self.count(|counts| counts.inline += 1);
            let took = self.syncer.sync_here().map_err(|failure| failure.error())?;
            self.record(took, bytes);
        } else {
            self.count(|counts| counts.threaded += 1);
            let waiting = Waiting::new(&self.waiting);
            let answer = self.syncer.ask().await;
            drop(waiting);
            let ended = || context(&self.path, "sync", io::Error::other("its thread has ended"));
            let synced = answer.map_err(|_| ended())?.map_err(|failure| failure.error())?;
            if synced.number > self.recorded.replace(self.recorded.get().max(synced.number)) {
                self.record(synced.took, bytes);
            }
        }
        self.covered(written);
        Ok(())
    }

    fn record(&self, took: Duration, bytes: u64) {
        self.policy.borrow_mut().record(took, bytes);
    }

    fn readers(&self) -> io::Result<&ComputePool> {
        if let Some(readers) = self.readers.get() {
            return Ok(readers);
        }
        let (threads, queue) = READERS;
        let readers = ComputePool::new(&PoolOptions { name: "varve-read".to_owned(), threads, queue, nice: false })
            .map_err(|error| context(&self.path, "start its readers", error))?;
        Ok(self.readers.get_or_init(|| readers))
    }

    async fn settle(&self, ranges: Vec<Range<u64>>) -> io::Result<()> {
        for range in &ranges {
            self.check(range.start, range.end.saturating_sub(range.start), "settle")?;
        }
        let failed = |error| context(&self.path, "write again what an earlier process left in memory", error);
        let (file, len) = (Arc::clone(&self.file), self.len);
        let done = self.readers()?.compute(move || settle(&file, len, &ranges));
        done.await.map_err(|lost| failed(io::Error::other(lost)))?.map_err(failed)?;
        self.written.set(self.written.get() + 1);
        self.sync(self.written.get()).await
    }

    async fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.check(offset, len as u64, "read")?;
        let failed = |error| context(&self.path, format!("read {len} bytes at {offset}"), error);
        if len > MOST_READ {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "too much for one read")));
        }
        let file = Arc::clone(&self.file);
        let read = self.readers()?.compute(move || {
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, offset).map(|()| Bytes::from(bytes))
        });
        read.await.map_err(|lost| failed(io::Error::other(lost)))?.map_err(failed)
    }
}

impl Disk for FileDisk {
    fn len(&self) -> u64 {
        self.inner.len
    }

    fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let inner = &*self.inner;
        let len: u64 = parts.iter().map(|part| part.len() as u64).sum();
        inner.check(offset, len, "write")?;
        // Counted also where it fails: a part of it may have been taken.
        inner.written.set(inner.written.get() + 1);
        inner.dirty.set(inner.dirty.get().saturating_add(len));
        write_whole(offset, parts, |offset, parts| inner.write_some(offset, parts))
            .map_err(|error| context(&inner.path, format!("write {len} bytes at {offset}"), error))
    }

    /// On a quick disk a small one is passed on at once: a sync is likely to follow. Neighbouring ones are gathered until they are worth a wake-up.
    fn start_writeback(&self, offset: u64, len: u64) {
        let inner = &*self.inner;
        let end = offset.saturating_add(len).min(inner.len);
        if offset >= end {
            return;
        }
        if end - offset <= SMALL_HINT && inner.policy.borrow().inline(end - offset) {
            inner.syncer.hint(offset..end);
            return;
        }
        let mut hinted = inner.hinted.borrow_mut();
        if hinted.is_empty() || offset > hinted.end || end < hinted.start {
            *hinted = offset..end;
        } else {
            *hinted = hinted.start.min(offset)..hinted.end.max(end);
        }
        if hinted.end - hinted.start >= HINT_BYTES {
            inner.syncer.hint(std::mem::take(&mut *hinted));
        }
    }

    fn sync(&self) -> LocalFuture<io::Result<()>> {
        let inner = Rc::clone(&self.inner);
        let target = inner.written.get();
        Box::pin(async move { inner.sync(target).await })
    }

    fn settle(&self, ranges: Vec<Range<u64>>) -> LocalFuture<io::Result<()>> {
        let inner = Rc::clone(&self.inner);
        Box::pin(async move { inner.settle(ranges).await })
    }

    fn read_at(&self, offset: u64, len: usize) -> LocalFuture<io::Result<Bytes>> {
        let inner = Rc::clone(&self.inner);
        Box::pin(async move { inner.read(offset, len).await })
    }
}

#[cfg(test)]
#[path = "file_disk_tests.rs"]
mod tests;
