// SPDX-License-Identifier: Apache-2.0
//! A worker: a process beside a node, which runs its jobs of cleaning.
//!
//! It asks the node for a job, reads and puts in the pool's store itself, and answers. It keeps nothing: whatever becomes of it, the node hands its job to
//! somebody else after a while, and deletes what it has left behind. So it dies whenever it likes, and survives a node that is started anew.
//!
//! Always holds:
//! - It puts nothing once its lease is over by its own clock, which counts from before it asked: see `lease`.
//! - It works in no store but one that says to be the pool's: a path that means another directory on this machine is refused before anything is read.
//! - It deletes nothing. What it has put may be in use, even if it never heard so.
//!
//! | file | holds |
//! |---|---|
//! | `wire` | jobs as documents, there and back |
//! | `store` | the store as a lease lets it be used |

mod store;
pub(crate) mod wire;

use crate::api::ControlError;
use crate::api::model::{
    AskCleaningJob, CleaningDone, CleaningFailure, CleaningJob, CleaningOffer, CleaningProgress, CleaningTaken,
    CleaningTerms,
};
use crate::node::{check_owner_record, is_bulk};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{Lease, LeasedStore};
use varve_engine::{CleanAnswer, run_clean_job};
use varve_env::ObjectStore;
use varve_env::real::{ComputePool, PoolOptions, RealEnv};
use varve_store::{StoreLimits, StoreUrl};
use varve_types::{ErrorKind, LeaseId, Name, format_size};

/// Where there is nothing to do, the node is asked again after so long.
const IDLE_TIME: Duration = Duration::from_secs(2);
/// What fails is tried again after so long, twice as long each time, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long the node may take to hear that a job is given back.
const LEAVE_TIME: Duration = Duration::from_secs(5);
/// Bounds of the time of a lease, whatever the node says.
const LEASE_TIME: std::ops::RangeInclusive<u64> = 100..=3_600_000;
/// Stores that are kept open.
const MOST_STORES: usize = 16;
/// Longest message of a failure, in bytes.
const MAX_MESSAGE: usize = 1000;
/// Jobs that wait for a thread of the pool.
const QUEUE: usize = 64;

/// What a node answers, to be waited for.
pub type NodeAnswer<'a, T> = Pin<Box<dyn Future<Output = Result<T, ControlError>> + 'a>>;

/// The node, as a worker sees it. Every answer comes within some time, or is an error.
pub trait Jobs {
    /// Asks for a job.
    fn ask(&self, ask: AskCleaningJob) -> NodeAnswer<'_, CleaningOffer>;
    /// Tells that it is at it.
    fn renew(&self, job: LeaseId, progress: CleaningProgress) -> NodeAnswer<'_, CleaningTerms>;
    /// Tells that it is done.
    fn complete(&self, job: LeaseId, done: CleaningDone) -> NodeAnswer<'_, CleaningTaken>;
    /// Tells that it will not be done.
    fn fail(&self, job: LeaseId, failure: CleaningFailure) -> NodeAnswer<'_, ()>;
}

/// How to work.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// What it calls itself: no two at a time share a name.
    pub name: Name,
    /// Bytes that it may read and put in a second, whatever more the node allows; 0: as many as that.
    pub rate_bytes: u64,
    /// Jobs after which it ends.
    pub most_jobs: Option<u64>,
    /// Whether it ends once there is nothing to do.
    pub until_idle: bool,
}

/// What a worker has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct WorkerReport {
    /// Jobs that the node has taken.
    pub jobs: u64,
    /// Jobs that came to nothing.
    pub failed_jobs: u64,
    /// Segments that are elsewhere for it.
    pub segments: u64,
    /// Bytes of blocks that it has read.
    pub read_bytes: u64,
    /// Bytes that it has put.
    pub put_bytes: u64,
}

/// A worker at work.
struct Worker<'a> {
    node: &'a dyn Jobs,
    options: &'a WorkerOptions,
    env: RealEnv,
    /// Stores that were opened, by their addresses.
    stores: RefCell<BTreeMap<String, Arc<dyn ObjectStore>>>,
    /// The job that it is at.
    current: Cell<Option<LeaseId>>,
    report: Cell<WorkerReport>,
}

/// Works until `stop` completes, or there is no more to do as `options` have it; a job that is under way is given back. Must run on a current-thread runtime.
///
/// # Errors
/// When the node refuses the worker for good, or this machine has no threads for it.
pub async fn work(
    node: &dyn Jobs,
    options: &WorkerOptions,
    stop: impl Future<Output = ()>,
) -> Result<WorkerReport, ControlError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(16);
    let pool = PoolOptions { name: "varve-job".to_owned(), threads, queue: QUEUE, nice: true };
    let pool = ComputePool::new(&pool);
    let pool = pool.map_err(|error| ControlError::new(ErrorKind::Internal, format!("the job threads: {error}")))?;
    let worker = Worker {
        node,
        options,
        env: RealEnv::new(Arc::new(pool)),
        stores: RefCell::default(),
        current: Cell::default(),
        report: Cell::default(),
    };
    let ended = tokio::task::LocalSet::new()
        .run_until(async {
            tokio::select! {
                ended = worker.run() => ended,
                () = stop => Ok(()),
            }
        })
        .await;
    if let Some(job) = worker.current.take() {
        let failure = CleaningFailure { message: "the worker ends".to_owned(), given_back: true };
        match tokio::time::timeout(LEAVE_TIME, node.fail(job, failure)).await {
            Ok(Ok(())) => tracing::info!(%job, "the job under way was given back"),
            // Its time ends by itself.
            _ => tracing::info!(%job, "the job under way could not be given back"),
        }
    }
    ended.map(|()| worker.report.get())
}

/// Whether trying again may help.
const fn may_pass(error: &ControlError) -> bool {
    matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Busy)
}

/// The pause behind so many failures in a row.
fn pause(failures: u32) -> Duration {
    (FIRST_PAUSE * 2u32.saturating_pow(failures.saturating_sub(1).min(16))).min(LONGEST_PAUSE)
}

impl Worker<'_> {
    /// Does job after job.
    async fn run(&self) -> Result<(), ControlError> {
        let mut failures = 0;
        loop {
            let WorkerReport { jobs, failed_jobs, .. } = self.report.get();
            if self.options.most_jobs.is_some_and(|most| jobs + failed_jobs >= most) {
                return Ok(());
            }
            match self.node.ask(AskCleaningJob { worker: self.options.name.clone() }).await {
                Ok(CleaningOffer { job: Some(job) }) if self.one(&job).await => failures = 0,
                Ok(CleaningOffer { job: Some(_) }) => failures += 1,
                Ok(CleaningOffer { job: None }) if self.options.until_idle => return Ok(()),
                Ok(CleaningOffer { job: None }) => {
                    failures = 0;
                    tokio::time::sleep(IDLE_TIME).await;
                }
                Err(error) if may_pass(&error) => {
                    if failures == 0 {
                        tracing::warn!(%error, "the node has no job for now; it is asked again");
                    }
                    failures += 1;
                }
                Err(error) => return Err(error),
            }
            if failures > 0 {
                tokio::time::sleep(pause(failures)).await;
            }
        }
    }

    fn count(&self, change: impl FnOnce(&mut WorkerReport)) {
        let mut report = self.report.get();
        change(&mut report);
        self.report.set(report);
    }

    /// Does a job, and tells the node how it ended. Tells whether it was done.
    async fn one(&self, document: &CleaningJob) -> bool {
        self.current.set(Some(document.id));
        let done = self.attempt(document).await;
        let is_done = done.is_ok();
        match done {
            Ok((taken, answer)) => {
                tracing::info!(bundle = document.bundle, segments = taken.segments, put = %format_size(answer.put_bytes), "cleaned");
                self.count(|report| {
                    report.jobs += 1;
                    report.segments += u64::from(taken.segments);
                    report.read_bytes += answer.read_bytes;
                    report.put_bytes += answer.put_bytes;
                });
            }
            Err(error) => {
                tracing::warn!(bundle = document.bundle, %error, "a job came to nothing");
                self.count(|report| report.failed_jobs += 1);
                let message = error.message.chars().scan(0, |bytes, c| {
                    *bytes += c.len_utf8();
                    (*bytes <= MAX_MESSAGE).then_some(c)
                });
                let failure = CleaningFailure { message: message.collect(), given_back: false };
                if let Err(error) = self.node.fail(document.id, failure).await {
                    tracing::debug!(%error, "the node knows already, or will");
                }
            }
        }
        self.current.set(None);
        is_done
    }

    async fn attempt(&self, document: &CleaningJob) -> Result<(CleaningTaken, CleanAnswer), ControlError> {
        // The time that the node counts began later.
        let lease = Arc::new(Lease::new(Instant::now(), lease_time(document.terms)));
        let job = wire::job(document)?;
        let store = LeasedStore::new(self.store(document).await?, Arc::clone(&lease));
        let (rate, read) = (Cell::new(self.rate(document.terms)), Cell::new(0));
        let answer = tokio::select! {
            done = run_clean_job(&self.env, &store, &rate, &read, &job) => done?,
            over = self.keep(document.id, &lease, &rate, &read) => return Err(over),
        };
        let CleanAnswer { shares, read_bytes, put_bytes, .. } = answer;
        let mut failures = 0;
        loop {
            let done = CleaningDone { bundle: answer.bundle.to_string(), shares, read_bytes, put_bytes };
            match self.node.complete(document.id, done).await {
                Ok(taken) => return Ok((taken, answer)),
                Err(error) if may_pass(&error) && !lease.is_over() => failures += 1,
                Err(error) => return Err(error),
            }
            tokio::time::sleep(pause(failures)).await;
        }
    }

    /// Tells the node that the job is being worked at, over and over. Ends when nobody waits for it any more, with why.
    async fn keep(&self, job: LeaseId, lease: &Lease, rate: &Cell<u64>, read: &Cell<u64>) -> ControlError {
        loop {
            tokio::time::sleep(lease.time() / 3).await;
            let asked = Instant::now();
            match self.node.renew(job, CleaningProgress { read_bytes: read.get() }).await {
                Ok(terms) => {
                    lease.renew(asked, lease_time(terms));
                    rate.set(self.rate(terms));
                }
                Err(error) if may_pass(&error) && !lease.is_over() => {
                    tracing::warn!(%error, "the node could not be told of the job under way");
                }
                Err(error) => return error,
            }
        }
    }

    /// The store of a job.
    async fn store(&self, document: &CleaningJob) -> Result<Arc<dyn ObjectStore>, ControlError> {
        let known = self.stores.borrow().get(&document.store).cloned();
        let store = match known {
            Some(store) => store,
            None => {
                let store = open(&document.store).await?;
                let mut stores = self.stores.borrow_mut();
                if stores.len() == MOST_STORES {
                    stores.pop_first();
                }
                stores.insert(document.store.clone(), Arc::clone(&store));
                store
            }
        };
        check_owner_record(&*store, document.owner_number, document.cluster).await?;
        Ok(store)
    }

    /// Bytes a second: no more than the node allows, and no more than this worker may; 0: as many as can be.
    fn rate(&self, terms: CleaningTerms) -> u64 {
        let bounds = [terms.rate_bytes.unwrap_or(0), self.options.rate_bytes];
        bounds.into_iter().filter(|rate| *rate > 0).min().unwrap_or(0)
    }
}

fn lease_time(terms: CleaningTerms) -> Duration {
    Duration::from_millis(terms.lease_ms.clamp(*LEASE_TIME.start(), *LEASE_TIME.end()))
}

/// Opens a store that is there: a directory would be made where there is none.
async fn open(url: &str) -> Result<Arc<dyn ObjectStore>, ControlError> {
    let failed = |error: varve_env::StoreError| ControlError::new(error.kind(), error.to_string());
    let url = StoreUrl::parse(url).map_err(failed)?;
    if let StoreUrl::File { path } = &url
        && !path.join("owner").is_dir()
    {
        let what = format!("{url} is not on this machine: a worker for a pool in a directory runs beside its node");
        return Err(ControlError::new(ErrorKind::Invalid, what));
    }
    varve_store::open(&url, StoreLimits::default(), is_bulk, tokio::runtime::Handle::current()).await.map_err(failed)
}

#[cfg(test)]
mod tests;
