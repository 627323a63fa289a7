// SPDX-License-Identifier: Apache-2.0
//! Coordination of one node: one redb file, all of it in RAM as well, one thread that writes.
//!
//! Every change is done by a thread of its own, in the order of a bounded queue: it judges the transaction against the state in RAM, commits it to
//! the file (an fsync), applies it in RAM, answers. So an answer means durable; readers see only what is durable and never wait for the disk; and
//! the futures may be awaited on any executor. Whoever finds the queue full waits.
//!
//! After a crash the file holds every transaction that was answered, and of those that were not each one whole or not at all. After a commit that
//! failed nothing more is read or written until the file is opened again: the transaction may be in the file or not, and an fsync that succeeds
//! afterwards would prove nothing.
//!
//! Leases run on the monotonic clock of this opening and end with it: opening deletes the keys of all leases.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "this is the real form: files, a thread and a clock are what it is made of; a simulation takes `Memory`"
)]

mod file;
mod holder;
mod writer;

use crate::shared::Shared;
use crate::state::State;
use crate::{Change, Check, Coord, CoordError, Entry, LeaseId, Listing, Outcome, Result, Watch, api};
use file::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};
use varve_env::SendFuture;
use writer::{Job, Writer};

/// Most changes that wait for the writing thread.
const QUEUE: usize = 64;

/// Coordination in one file. Dropping it does what is queued, closes the file and joins the thread.
pub struct Embedded {
    shared: Arc<Shared>,
    path: PathBuf,
    room: Arc<Semaphore>,
    /// `None` only while it is dropped.
    jobs: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
}

impl Embedded {
    /// Opens the file, or makes it where there is none (its directory must be there). Blocks for a few fsyncs, and reads the whole file.
    ///
    /// # Errors
    /// `Conflict` while somebody else has it open, with the path and, where known, the process; `Corrupt` where it is damaged or something else;
    /// `Invalid` where its format version is not known or the system does not let us; `NoSpace`; `Unavailable` for other faults of the disk.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::start(File::open(path.as_ref())?)
    }

    fn start((file, loaded): (File, file::Loaded)) -> Result<Self> {
        let path = file.path().to_owned();
        // Lease numbers begin anew above those of all earlier openings.
        let first_lease = (loaded.opening << 32) | 1;
        let shared = Shared::new(State::new(loaded.entries, loaded.revision, first_lease));
        let writer = Writer::new(file, Arc::clone(&shared));
        let (jobs, queue) = mpsc::channel();
        let thread = std::thread::Builder::new().name("coord-writer".to_owned()).spawn(move || writer.run(&queue));
        let thread = thread.map_err(|error| CoordError::Unavailable {
            reason: format!("its thread can not be started: {error}"),
            source: Some(Box::new(error)),
        })?;
        let room = Arc::new(Semaphore::new(QUEUE));
        Ok(Self { shared, path, room, jobs: Some(jobs), writer: Some(thread) })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Has the writing thread do `task`, and waits for its answer. A task whose caller went away before its turn is not done.
    async fn ask<T: Send + 'static>(&self, task: impl FnOnce(&Writer) -> Result<T> + Send + 'static) -> Result<T> {
        let gone = || CoordError::unavailable("its thread has ended");
        let room = Arc::clone(&self.room).acquire_owned().await.map_err(|_| gone())?;
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |writer| {
            let _room = room;
            if !answer.is_closed() {
                // A caller that went away meanwhile has chosen not to know.
                let _ = answer.send(task(writer));
            }
        });
        self.jobs.as_ref().ok_or_else(gone)?.send(job).map_err(|_| gone())?;
        answered.await.unwrap_or_else(|_| Err(CoordError::unknown("its thread ended before it answered")))
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if self.writer.take().is_some_and(|writer| writer.join().is_err()) {
            tracing::error!(path = %self.path.display(), "the coordination thread panicked");
        }
        self.shared.end("it was closed");
    }
}

impl Coord for Embedded {
    fn get<'a>(&'a self, key: &'a str) -> SendFuture<'a, Result<Option<Entry>>> {
        Box::pin(async move { self.shared.get(key) })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> SendFuture<'a, Result<Listing>> {
        Box::pin(async move { self.shared.list(prefix) })
    }

    fn transact<'a>(&'a self, checks: Vec<Check>, changes: Vec<Change>) -> SendFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            api::check_transaction(&checks, &changes)?;
            self.ask(move |writer| writer.transact(&checks, changes)).await
        })
    }

    fn watch<'a>(&'a self, prefix: &'a str, from_revision: u64) -> SendFuture<'a, Result<Watch>> {
        Box::pin(async move { self.shared.watch(prefix, from_revision) })
    }

    fn lease<'a>(&'a self, ttl: Duration) -> SendFuture<'a, Result<LeaseId>> {
        Box::pin(async move {
            api::check_ttl(ttl)?;
            self.ask(move |writer| writer.lease(ttl)).await
        })
    }

    fn keep_alive<'a>(&'a self, lease: LeaseId) -> SendFuture<'a, Result<()>> {
        Box::pin(self.ask(move |writer| writer.keep_alive(lease)))
    }

    fn revoke<'a>(&'a self, lease: LeaseId) -> SendFuture<'a, Result<()>> {
        Box::pin(self.ask(move |writer| writer.revoke(lease)))
    }
}

#[cfg(test)]
mod tests;
