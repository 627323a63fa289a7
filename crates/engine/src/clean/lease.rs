// SPDX-License-Identifier: Apache-2.0
//! Jobs of cleaning that other processes run: handed out, and taken back.
//!
//! A process asks for a job and gets it with a *lease*. It runs the job as the shard would, tells now and then that it is still at it, and answers once the
//! bundle is in the store. The shard believes nothing of that answer: see [`answer`](super::answer). All this is in RAM; after a start nothing is out, and what a
//! process answers then is refused.
//!
//! Always holds:
//! - A job is out once: its lease ends by an answer that was taken, by one that was refused, by a failure, or when nothing was heard for its time. After that
//!   nothing that is said of it counts, and where its bundle was not taken its name is [`lost`](super::lost).
//! - A timeline has one job at most, out or here; a process has one at most, and loses it when it asks for another.
//! - At most [`MAX_LEASES`] jobs are out, none for longer than [`MAX_LIFE`], whatever is heard.
//! - A lease keeps no timeline open: of one that has stopped nothing is taken.

use super::control::Cleaning;
use super::job::Job;
use super::workers::CleanWorker;
use crate::context::Context;
use crate::error::MayPass;
use crate::manifests::PoolStore;
use crate::timeline::Timeline;
use crate::{CleanAnswer, EngineError, Result, Shard};
use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::time::Duration;
use varve_types::branch::{Branch, reached};
use varve_types::mutant::{Mutant, planted};
use varve_types::{ErrorKind, LeaseId, MIN_RATE, Name, TimelineId};

/// Most jobs that are out at a time: of each the shard keeps the bitmaps.
const MAX_LEASES: usize = 8;
/// The longest that a job may take, even if it is heard of: at the lowest rate a full one takes less than an hour.
const MAX_LIFE: Duration = Duration::from_secs(6 * 3600);

/// A job that is handed out.
#[derive(Clone, Debug)]
pub struct Leased {
    /// By what it is spoken of.
    pub id: LeaseId,
    /// The pool whose store it is about.
    pub pool: Name,
    /// Number of the record by which that pool is ours.
    pub owner: u64,
    /// The job.
    pub job: Job,
    /// For how long, and how fast.
    pub terms: LeaseTerms,
}

/// For how long a job counts without news, and how fast it may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTerms {
    /// The time, from when it was asked for.
    pub time: Duration,
    /// Bytes that it may read and put in a second; 0: as many as can be.
    pub rate: u64,
}

/// Why a process ends a job that it has not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseEnd {
    /// It could not be done.
    Failed,
    /// The process ends.
    GivenBack,
}

/// A job that is out.
struct Lease {
    id: LeaseId,
    worker: Name,
    timeline: Weak<Timeline>,
    /// Its timeline, which may be gone.
    of: TimelineId,
    pool: Rc<PoolStore>,
    job: Job,
    /// When it ends unless something is heard, in the time of the shard; `None` while its answer is looked at.
    until: Option<Duration>,
    /// When it ends in any case.
    last: Duration,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Leases(RefCell<Vec<Lease>>);

impl Leases {
    /// Jobs that are out.
    pub fn count(&self) -> usize {
        self.0.borrow().len()
    }

    fn has(&self, timeline: TimelineId) -> bool {
        self.0.borrow().iter().any(|lease| lease.of == timeline)
    }

    /// Takes an answer to be looked at: what it is about, and the timeline if it still is there; `None` where that job is not out.
    ///
    /// # Errors
    /// `Busy` while another one is looked at.
    fn begin_answer(&self, id: LeaseId) -> Result<Option<(Job, Option<Rc<Timeline>>)>> {
        let mut leases = self.0.borrow_mut();
        let Some(lease) = leases.iter_mut().find(|lease| lease.id == id) else { return Ok(None) };
        if lease.until.take().is_none() {
            return Err(EngineError::new(ErrorKind::Busy, format!("an answer to job {id} is being looked at")));
        }
        Ok(Some((lease.job.clone(), lease.timeline.upgrade())))
    }

    /// The answer could not be looked at: it may be given again until then.
    fn await_again(&self, id: LeaseId, until: Duration) {
        let mut leases = self.0.borrow_mut();
        let lease = leases.iter_mut().find(|lease| lease.id == id);
        lease.expect("what is being looked at stays").until = Some(until);
    }

    fn take(&self, is_it: impl Fn(&Lease) -> bool) -> Option<Lease> {
        let mut leases = self.0.borrow_mut();
        let at = leases.iter().position(is_it)?;
        Some(leases.remove(at))
    }
}

impl Cleaning {
    /// What one of the jobs that are out may read and put in a second: all of them together no more than one that runs here.
    fn share_of_rate(&self) -> u64 {
        match self.rate.get() {
            0 => 0,
            rate => (rate / self.leases.count().max(1) as u64).max(MIN_RATE),
        }
    }
}

impl Timeline {
    /// Whether others do the cleaning: it has a job out, or somebody who asks for jobs is awaited.
    pub(super) fn is_left_to_workers(&self) -> bool {
        let cleaning = &self.context.cleaning;
        cleaning.leases.has(self.id) || cleaning.workers.is_any_awaited(self.context.env.now())
    }
}

impl Context {
    fn lease_time(&self) -> Duration {
        Duration::from_millis(self.limits.lease_ms)
    }

    /// Ends what was not heard of in its time, and looks for what may have come of jobs that were given up.
    pub(crate) fn mind_leases(self: &Rc<Self>) {
        let (cleaning, now) = (&self.cleaning, self.env.now());
        let is_over = |lease: &Lease| lease.until.is_some_and(|until| until.min(lease.last) <= now);
        if planted(Mutant::TakeLateAnswer) {
            let mut leases = cleaning.leases.0.borrow_mut();
            for lease in leases.iter_mut().filter(|lease| is_over(lease)) {
                lease.until = Some(now + MAX_LIFE);
                cleaning.lost.enter(lease.id, lease.job.bundle, Rc::clone(&lease.pool), now);
            }
        }
        while let Some(lease) = cleaning.leases.take(is_over) {
            reached(Branch::CleanExpired);
            tracing::info!(worker = %lease.worker, bundle = %lease.job.bundle, "nothing was heard of a job of cleaning: it is given up");
            cleaning.count_expired();
            self.end_lease(&lease, LeaseEnd::Failed);
        }
        self.look_for_lost();
    }

    /// A job that is out no more has come to nothing.
    fn end_lease(&self, lease: &Lease, end: LeaseEnd) {
        let (cleaning, now) = (&self.cleaning, self.env.now());
        cleaning.lost.enter(lease.id, lease.job.bundle, Rc::clone(&lease.pool), now);
        if let Some(timeline) = lease.timeline.upgrade() {
            timeline.choose_again();
        }
        match end {
            LeaseEnd::GivenBack => cleaning.workers.left(&lease.worker),
            LeaseEnd::Failed => {
                cleaning.count_failed();
                cleaning.workers.failed(&lease.worker, now + self.lease_time());
            }
        }
    }
}

/// The error for who speaks of a job that is not out.
fn not_out(id: LeaseId) -> EngineError {
    let what = format!("job {id} is over: it was answered or given up, or the node was started anew since");
    EngineError::new(ErrorKind::NotFound, what)
}

impl Shard {
    /// Hands out a job of cleaning to a process, by the name that it gives itself; `None` where there is nothing to do for it now.
    ///
    /// # Errors
    /// `Busy` where too many processes ask.
    pub async fn lease_cleaning(&self, worker: &Name) -> Result<Option<Leased>> {
        let (context, cleaning) = (&self.context, &self.context.cleaning);
        context.mind_leases();
        if let Some(before) = cleaning.leases.take(|lease| lease.worker == *worker && lease.until.is_some()) {
            // It was started anew, or has not got our answer.
            context.end_lease(&before, LeaseEnd::GivenBack);
        }
        let may = cleaning.workers.asked(worker, context.env.now(), context.lease_time())?;
        let is_held_back = cleaning.paused.get() || self.is_stopping() || cleaning.leases.count() >= MAX_LEASES;
        if !may || is_held_back || cleaning.turn.is_taken() {
            return Ok(None);
        }
        let _turn = cleaning.turn.take().await;
        let mut volumes = self.volumes();
        volumes.sort_by_cached_key(|volume| std::cmp::Reverse(volume.counts().clean_debt_bytes));
        for volume in volumes {
            let timeline = volume.shown();
            if !timeline.is_sparse() || cleaning.leases.has(timeline.id) || timeline.cleans.is_taken() {
                continue;
            }
            let Some(job) = timeline.next_job().await else { continue };
            let now = context.env.now();
            let lease = Lease {
                id: LeaseId::from_random(context.random_id()),
                worker: worker.clone(),
                timeline: Rc::downgrade(&timeline),
                of: timeline.id,
                pool: Rc::clone(&timeline.pool),
                job: job.clone(),
                until: Some(now + context.lease_time()),
                last: now + MAX_LIFE,
            };
            let (id, owner) = (lease.id, lease.pool.owner);
            cleaning.leases.0.borrow_mut().push(lease);
            cleaning.workers.works(worker, now, context.lease_time(), 0);
            reached(Branch::CleanLeased);
            let terms = LeaseTerms { time: context.lease_time(), rate: cleaning.share_of_rate() };
            return Ok(Some(Leased { id, pool: volume.record().pool, owner, job, terms }));
        }
        Ok(None)
    }

    /// Takes in that a process is at its job, and has read so many bytes of blocks for it.
    ///
    /// # Errors
    /// `NotFound` where the job is over: nobody waits for what it makes.
    pub fn renew_cleaning(&self, id: LeaseId, read_bytes: u64) -> Result<LeaseTerms> {
        let (context, cleaning) = (&self.context, &self.context.cleaning);
        context.mind_leases();
        let is_gone = |lease: &Lease| {
            let timeline = lease.timeline.upgrade();
            lease.id == id && lease.until.is_some() && timeline.is_none_or(|timeline| timeline.is_stopped())
        };
        if let Some(lease) = cleaning.leases.take(is_gone) {
            context.end_lease(&lease, LeaseEnd::GivenBack);
        }
        let mut leases = cleaning.leases.0.borrow_mut();
        let lease = leases.iter_mut().find(|lease| lease.id == id).ok_or_else(|| not_out(id))?;
        let (now, time) = (context.env.now(), context.lease_time());
        if lease.until.is_some() {
            lease.until = Some(now + time);
        }
        cleaning.workers.works(&lease.worker, now, time, read_bytes);
        drop(leases);
        Ok(LeaseTerms { time, rate: cleaning.share_of_rate() })
    }

    /// Looks at what a process has made, and lets the segment table point there. Tells how many segments are there now.
    ///
    /// # Errors
    /// `NotFound` where the job is over, `Busy` while an answer to it is looked at; `Invalid` where what was put is not what the job asks for: the job is over
    /// then. `Unavailable` where the store can not tell: the answer may be given again.
    pub async fn answer_cleaning(&self, id: LeaseId, answer: &CleanAnswer) -> Result<u32> {
        let (context, cleaning) = (&self.context, &self.context.cleaning);
        context.mind_leases();
        let Some((job, timeline)) = cleaning.leases.begin_answer(id)? else {
            reached(Branch::CleanLate);
            if !cleaning.lost.answered(id, context.env.now()) {
                self.sweep_answered(answer);
            }
            return Err(not_out(id));
        };
        let done = match &timeline {
            Some(timeline) => timeline.take_answer(&job, answer).await,
            None => Err(not_out(id)),
        };
        if let Err(error) = &done
            && error.may_pass()
        {
            cleaning.leases.await_again(id, context.env.now() + context.lease_time());
            return done;
        }
        let lease = cleaning.leases.take(|lease| lease.id == id).expect("what is being looked at stays");
        match &done {
            Ok(_) => {
                reached(Branch::CleanAnswered);
                cleaning.workers.done(&lease.worker);
            }
            Err(error) if error.kind() == ErrorKind::Invalid => {
                reached(Branch::CleanRefused);
                tracing::error!(worker = %lease.worker, %error, "what a process has cleaned is refused");
                cleaning.count_refused();
                context.end_lease(&lease, LeaseEnd::Failed);
            }
            // Something that is needed is damaged: the shard finds out itself, while the process rests.
            Err(_) if timeline.is_some_and(|timeline| !timeline.is_stopped()) => {
                context.end_lease(&lease, LeaseEnd::Failed);
            }
            Err(_) => context.end_lease(&lease, LeaseEnd::GivenBack),
        }
        done
    }

    /// An answer came to a job that nobody knows, perhaps of the opening before: what it is about may have been put behind the sweep of this one.
    fn sweep_answered(&self, answer: &CleanAnswer) {
        let (timelines, bundle) = (self.context.timelines.borrow(), answer.bundle);
        let Some(timeline) = timelines.get(&bundle.timeline).and_then(Weak::upgrade) else { return };
        self.context.env.spawn(Box::pin(async move {
            if let Err(error) = timeline.delete_if_orphan(bundle).await {
                tracing::debug!(%bundle, %error, "a bundle that came to nothing could not be looked for");
            }
        }));
    }

    /// Takes in that a process will not do its job.
    ///
    /// # Errors
    /// `NotFound` where the job is over anyway.
    pub fn end_cleaning(&self, id: LeaseId, end: LeaseEnd) -> Result<()> {
        let is_it = |lease: &Lease| lease.id == id && lease.until.is_some();
        let lease = self.context.cleaning.leases.take(is_it).ok_or_else(|| not_out(id))?;
        self.context.end_lease(&lease, end);
        Ok(())
    }

    /// The processes that clean for this shard, by name.
    pub fn clean_workers(&self) -> Vec<CleanWorker> {
        self.context.cleaning.workers.awaited(self.context.env.now())
    }
}
