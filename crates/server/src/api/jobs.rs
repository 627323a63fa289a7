// SPDX-License-Identifier: Apache-2.0
//! The table of jobs: long operations that outlive the request that began them.
//!
//! Invariants: at most [`MOST_RUNNING`] jobs run, and a request for one more is answered `Busy`; at most [`MOST_KEPT`] are remembered, the
//! oldest finished one is forgotten first; a number is never used twice while the process lives. The table is in RAM alone: a crash ends every
//! job, and what a job does must be harmless to leave undone and to begin again.
//!
//! A job is a task of the runtime; its operation sees only a [`ProgressHandle`] to tell how far it is. When the operation panics (a defect),
//! the job fails with `Internal` and the rest goes on.

use super::control::ControlError;
use super::model::{ErrorBody, Job, JobKind, JobResult, JobState, Progress, ProgressUnit};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use varve_types::ErrorKind;

/// Jobs that may run at once.
pub const MOST_RUNNING: usize = 8;
/// Jobs that are remembered, running ones included.
pub const MOST_KEPT: usize = 64;

/// Where an operation tells how far it is. Cheap to clone and to update; updates may come as often as one likes.
#[derive(Clone, Debug, Default)]
pub struct ProgressHandle {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    done: AtomicU64,
    total: AtomicU64,
    text: Mutex<(ProgressUnit, String)>,
}

impl ProgressHandle {
    /// Sets what is counted.
    pub fn unit(&self, unit: ProgressUnit) {
        lock(&self.shared.text).0 = unit;
    }
    /// Sets how much there is to do.
    pub fn total(&self, total: u64) {
        self.shared.total.store(total, Ordering::Relaxed);
    }
    /// Adds to what is done.
    pub fn add(&self, done: u64) {
        self.shared.done.fetch_add(done, Ordering::Relaxed);
    }
    /// Says what it is at.
    pub fn message(&self, message: impl Into<String>) {
        lock(&self.shared.text).1 = message.into();
    }
    /// How far it is.
    #[must_use]
    pub fn snapshot(&self) -> Progress {
        let (unit, message) = lock(&self.shared.text).clone();
        let (done, total) = (self.shared.done.load(Ordering::Relaxed), self.shared.total.load(Ordering::Relaxed));
        Progress { done, total: if total == 0 { 0 } else { total.max(done) }, unit, message }
    }
}

/// The state is valid after every single change, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The jobs of a node.
#[derive(Clone, Debug, Default)]
pub(super) struct Jobs {
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    last_id: u64,
    jobs: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// The job as of its last change of state.
    job: Job,
    /// Where the live progress is.
    progress: ProgressHandle,
}

impl Entry {
    fn view(&self) -> Job {
        Job { progress: self.progress.snapshot(), ..self.job.clone() }
    }
}

impl Jobs {
    /// Begins a job and gives it as it is at that moment.
    ///
    /// # Errors
    /// `Busy` when as many run as may.
    pub(super) fn start<F>(
        &self,
        kind: JobKind,
        target: String,
        operation: impl FnOnce(ProgressHandle) -> F,
    ) -> Result<Job, ControlError>
    where
        F: Future<Output = Result<JobResult, ControlError>> + Send + 'static,
    {
        let progress = ProgressHandle::default();
        let view = self.admit(kind, target, &progress)?;
        let task = tokio::spawn(operation(progress));
        let (jobs, id) = (self.clone(), view.id);
        tokio::spawn(async move {
            let outcome = match task.await {
                Ok(outcome) => outcome,
                Err(error) => Err(ControlError::new(ErrorKind::Internal, format!("the job was cut off: {error}"))),
            };
            jobs.finish(id, outcome);
        });
        Ok(view)
    }

    fn admit(&self, kind: JobKind, target: String, progress: &ProgressHandle) -> Result<Job, ControlError> {
        let mut table = lock(&self.table);
        let running = table.jobs.values().filter(|entry| entry.job.state == JobState::Running).count();
        if running >= MOST_RUNNING {
            let message = format!("{running} jobs are running, which is the most; try again when one has ended");
            return Err(ControlError::new(ErrorKind::Busy, message));
        }
        while table.jobs.len() >= MOST_KEPT {
            let finished = table.jobs.iter().find(|(_, entry)| entry.job.state != JobState::Running);
            let id = *finished.expect("fewer run than are kept, so one has ended").0;
            table.jobs.remove(&id);
        }
        table.last_id += 1;
        let job = Job {
            id: table.last_id,
            kind,
            target,
            state: JobState::Running,
            progress: Progress::default(),
            started_ms: now_ms(),
            finished_ms: None,
            result: None,
            error: None,
        };
        let entry = Entry { job, progress: progress.clone() };
        let view = entry.view();
        table.jobs.insert(view.id, entry);
        Ok(view)
    }

    fn finish(&self, id: u64, outcome: Result<JobResult, ControlError>) {
        let mut table = lock(&self.table);
        let Some(entry) = table.jobs.get_mut(&id) else { return };
        entry.job.finished_ms = Some(now_ms());
        match outcome {
            Ok(result) => {
                entry.job.state = JobState::Done;
                entry.job.result = Some(result);
            }
            Err(error) => {
                entry.job.state = JobState::Failed;
                entry.job.error = Some(ErrorBody { kind: error.kind.as_str().to_owned(), message: error.message });
            }
        }
    }

    /// The job with this number.
    pub(super) fn get(&self, id: u64) -> Result<Job, ControlError> {
        lock(&self.table).jobs.get(&id).map(Entry::view).ok_or_else(|| ControlError::not_found("job", id))
    }

    /// Every job that is remembered, oldest first.
    pub(super) fn list(&self) -> Vec<Job> {
        lock(&self.table).jobs.values().map(Entry::view).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::model::CheckReport;
    use tokio::sync::Notify;

    async fn ended(jobs: &Jobs, id: u64) -> Job {
        loop {
            let job = jobs.get(id).unwrap();
            if job.state != JobState::Running {
                return job;
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn too_many_jobs_are_refused_and_old_ones_forgotten() {
        let (jobs, gate) = (Jobs::default(), Arc::new(Notify::new()));
        for _ in 0..MOST_RUNNING {
            let gate = Arc::clone(&gate);
            let wait = |_| async move {
                gate.notified().await;
                Ok(JobResult::Check(CheckReport::default()))
            };
            jobs.start(JobKind::Check, String::new(), wait).unwrap();
        }
        let no = jobs.start(JobKind::Check, String::new(), |_| async { unreachable!() }).unwrap_err();
        assert_eq!(no.kind, ErrorKind::Busy);
        tokio::task::yield_now().await;
        gate.notify_waiters();
        for id in 1..=MOST_RUNNING as u64 {
            assert_eq!(ended(&jobs, id).await.state, JobState::Done);
        }
        for _ in 0..MOST_KEPT {
            let fail = |_| async { Err(ControlError::conflict("no")) };
            let job = jobs.start(JobKind::Flatten, "v".to_owned(), fail).unwrap();
            assert_eq!(ended(&jobs, job.id).await.error.unwrap().kind, "conflict");
        }
        assert_eq!(jobs.list().len(), MOST_KEPT);
        assert_eq!(jobs.get(1).unwrap_err().kind, ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_job_that_panics_has_failed() {
        let jobs = Jobs::default();
        let job = jobs.start(JobKind::Check, String::new(), |_| async { panic!("on purpose") }).unwrap();
        assert_eq!(ended(&jobs, job.id).await.error.unwrap().kind, "internal");
    }

    #[test]
    fn progress_never_shows_more_than_all() {
        let handle = ProgressHandle::default();
        handle.add(5);
        assert_eq!((handle.snapshot().done, handle.snapshot().total), (5, 0));
        handle.total(3);
        assert_eq!((handle.snapshot().done, handle.snapshot().total), (5, 5));
    }
}
