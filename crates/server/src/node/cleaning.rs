// SPDX-License-Identifier: Apache-2.0
//! Cleaning: how it goes, how it is held back, and its jobs that other processes run.

use super::local::Local;
use crate::api::ControlError;
use crate::api::model::{
    Cleaning, CleaningDone, CleaningFailure, CleaningOffer, CleaningProgress, CleaningTaken, CleaningTerms,
    CleaningWorker, SetCleaning,
};
use crate::worker::wire;
use varve_engine::{CleanWorker, LeaseEnd, Limits};
use varve_types::{BLOCK, LeaseId, Name};

/// How it goes.
pub(super) fn state(local: &Local, limits: &Limits) -> Cleaning {
    let counts = local.shard.counts().clean;
    let (mut live, mut stored) = (0, 0);
    for volume in local.shard.volumes() {
        let table = volume.counts().table;
        live += table.live_blocks;
        stored += table.blocks;
    }
    Cleaning {
        running: counts.running,
        paused: counts.paused,
        rate_bytes: (counts.rate > 0).then_some(counts.rate),
        occupancy_percent: limits.occupancy,
        live_bytes: live * BLOCK,
        dead_bytes: stored.saturating_sub(live) * BLOCK,
        jobs: counts.jobs,
        worker_jobs: counts.worker_jobs,
        failed_jobs: counts.failed,
        refused_jobs: counts.refused,
        expired_jobs: counts.expired,
        read_bytes: counts.read_bytes,
        put_bytes: counts.put_bytes,
        workers: local.shard.clean_workers().into_iter().map(|worker| describe(local, worker)).collect(),
    }
}

fn describe(local: &Local, worker: CleanWorker) -> CleaningWorker {
    let since = local.env.now().saturating_sub(worker.heard);
    CleaningWorker {
        name: worker.name,
        jobs: worker.jobs,
        failed_jobs: worker.failed,
        running: worker.read_bytes.is_some(),
        read_bytes: worker.read_bytes.unwrap_or_default(),
        heard_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
    }
}

/// Gives a process a job, where there is one.
pub(super) async fn offer(local: &Local, worker: &Name) -> Result<CleaningOffer, ControlError> {
    let Some(leased) = local.shard.lease_cleaning(worker).await? else { return Ok(CleaningOffer::default()) };
    let Some(store) = local.pools.url(&leased.pool) else {
        local.shard.end_cleaning(leased.id, LeaseEnd::GivenBack)?;
        return Err(ControlError::not_found("pool", &leased.pool));
    };
    tracing::debug!(%worker, bundle = %leased.job.bundle, "a job of cleaning is handed out");
    Ok(CleaningOffer { job: Some(wire::document(&leased, store, local.pools.cluster())) })
}

/// Takes in that a process is still at its job.
pub(super) fn renew(local: &Local, job: LeaseId, progress: CleaningProgress) -> Result<CleaningTerms, ControlError> {
    Ok(wire::terms(local.shard.renew_cleaning(job, progress.read_bytes)?))
}

/// Looks at what a process has made, and takes it into use.
pub(super) async fn complete(local: &Local, job: LeaseId, done: &CleaningDone) -> Result<CleaningTaken, ControlError> {
    let segments = local.shard.answer_cleaning(job, &wire::answer(done)?).await?;
    Ok(CleaningTaken { segments })
}

/// Takes in that a process will not do its job.
pub(super) fn fail(
    local: &Local,
    limits: &Limits,
    job: LeaseId,
    failure: &CleaningFailure,
) -> Result<Cleaning, ControlError> {
    let end = if failure.given_back { LeaseEnd::GivenBack } else { LeaseEnd::Failed };
    local.shard.end_cleaning(job, end)?;
    if end == LeaseEnd::Failed {
        tracing::warn!(%job, why = failure.message, "a process could not do its job of cleaning");
    }
    Ok(state(local, limits))
}

/// Changes it.
pub(super) fn set(local: &Local, limits: &Limits, set: SetCleaning) -> Cleaning {
    if let Some(paused) = set.paused {
        local.shard.pause_cleaning(paused);
    }
    if let Some(rate) = set.rate_bytes {
        local.shard.set_clean_rate(rate);
    }
    state(local, limits)
}
