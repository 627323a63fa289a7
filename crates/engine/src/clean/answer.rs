// SPDX-License-Identifier: Apache-2.0
//! What another process answers to a job of cleaning, and how it is looked at before anything depends on it.
//!
//! The segments that a bundle takes over are deleted, so it has to be what the job asks for. Nothing of that is taken from the answer, all of it from the store:
//! - the bundle is there, as long as its head says, and is the one of the job;
//! - it has shares of the first of the job's segments, at least one, in order, each with exactly the blocks that lived when the job was made;
//! - where a share has to tell what its segment has changed, it tells what the segment's own object does;
//! - a few of its blocks, at places that are drawn, prove themselves.
//!
//! The rest of its blocks is not read here: whoever makes a bundle verifies each block that goes in, and it keeps its checksum, so a reader notices.

use super::job::{self, Failed, Job, Made, MadeShare, Source, load, patiently};
use crate::read::{fetch_ranks, heads_of, load_bundle_head};
use crate::timeline::Timeline;
use crate::{EngineError, Result};
use std::cell::Cell;
use std::rc::Rc;
use varve_env::{Env, ObjectStore};
use varve_format::bundle::{BundleHeader, Share};
use varve_format::{BlockSet, ObjectName};
use varve_types::ErrorKind;
use varve_types::mutant::{Mutant, planted};

/// Shares of which a block is read.
const SAMPLES: usize = 4;

/// What a process says of a job that it has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleanAnswer {
    /// What it has put.
    pub bundle: ObjectName,
    /// Segments of which that has what lives.
    pub shares: u32,
    /// Bytes of blocks that it has read.
    pub read_bytes: u64,
    /// Bytes of the bundle.
    pub put_bytes: u64,
}

/// Runs a job that was handed out, as the shard that did would: with at most `rate` bytes a second (0: as many as can be). What it has read is in `read` as it goes.
///
/// # Errors
/// Those of the store; `Corrupt` where what lives of a segment is damaged.
pub async fn run_clean_job(
    env: &dyn Env,
    store: &dyn ObjectStore,
    rate: &Cell<u64>,
    read: &Cell<u64>,
    job: &Job,
) -> Result<CleanAnswer> {
    let made = job::run(env, store, rate, read, job).await;
    let made = made.map_err(|Failed { object, error }| EngineError::caused(error.kind(), object, error))?;
    let Made { bundle, shares, read_bytes, put_bytes } = made;
    Ok(CleanAnswer { bundle, shares: shares.len() as u32, read_bytes, put_bytes })
}

/// A refusal.
fn refused(job: &Job, why: impl std::fmt::Display) -> EngineError {
    EngineError::invalid(format!("{}: {why}", job.bundle))
}

/// An error of the store as it concerns the answer: what is missing or damaged is the fault of who has put it.
fn judged(job: &Job) -> impl Fn(EngineError) -> EngineError {
    |error| match error.kind() {
        ErrorKind::NotFound => refused(job, "it is not in the store"),
        ErrorKind::Corrupt => refused(job, error),
        _ => error,
    }
}

impl Timeline {
    /// Takes in what another process has made. Tells how many segments are there now.
    pub(super) async fn take_answer(self: &Rc<Self>, job: &Job, answer: &CleanAnswer) -> Result<u32> {
        self.data.borrow().check()?;
        let made =
            if planted(Mutant::BelieveWorker) { believed(job, answer) } else { self.prove_answer(job, answer).await? };
        let (read_bytes, put_bytes) = (made.read_bytes, made.put_bytes);
        let moved = self.point_to(made).await?;
        self.context.cleaning.count_worker_job(read_bytes, put_bytes);
        Ok(moved)
    }

    /// What was made, as the store has it. See the module.
    async fn prove_answer(&self, job: &Job, answer: &CleanAnswer) -> Result<Made> {
        if answer.bundle != job.bundle {
            return Err(refused(job, format!("the answer is about {}", answer.bundle)));
        }
        let (env, store, text) = (&*self.context.env, &*self.pool.store, job.bundle.to_string());
        let about = patiently(env, async || Ok(store.head(&text).await?)).await.map_err(judged(job))?;
        let head = patiently(env, async || load_bundle_head(store, &job.bundle).await).await;
        let (header, shares) = head.map_err(judged(job))?;
        if about.size != header.object_len() || header.made_ms != job.made_ms {
            return Err(refused(job, format!("it is {} bytes long, and its head is of another", about.size)));
        }
        if (answer.put_bytes, answer.shares as usize) != (about.size, shares.len()) {
            let told = (answer.put_bytes, answer.shares);
            return Err(refused(job, format!("it was told as {} bytes with {} shares", told.0, told.1)));
        }
        if shares.is_empty() || shares.len() > job.sources.len() {
            return Err(refused(job, format!("it has {} shares of {} segments", shares.len(), job.sources.len())));
        }
        for (source, share) in job.sources.iter().zip(&shares) {
            let is_same = share.ordinal == source.ordinal && share.blocks == BlockSet::live(&source.live);
            if !is_same || share.history.is_some() != source.history {
                return Err(refused(job, format!("it has something else of segment {}", source.ordinal)));
            }
            if source.history {
                self.prove_history(job, source, share).await?;
            }
        }
        self.prove_samples(job, &header, &shares).await?;
        let share = |(source, share): (&Source, &Share)| MadeShare {
            ordinal: share.ordinal,
            from: source.object,
            blocks: share.blocks.len(),
            bytes: share.data_len(),
            history: source.history,
        };
        let made = job.sources.iter().zip(&shares).map(share).collect();
        Ok(Made { bundle: job.bundle, shares: made, read_bytes: answer.read_bytes, put_bytes: about.size })
    }

    /// Compares what a share says that its segment has changed with what the object says that has had it.
    async fn prove_history(&self, job: &Job, source: &Source, share: &Share) -> Result<()> {
        let loaded = patiently(&*self.context.env, async || load(&*self.pool.store, &source.object).await).await;
        let parts = match loaded {
            // It has moved meanwhile, or has died: its share is for nothing.
            Err(error) if error.kind() == ErrorKind::NotFound && !self.leads_to(source) => return Ok(()),
            loaded => loaded?,
        };
        let part = parts.into_iter().find(|part| part.head.ordinal == source.ordinal);
        match part {
            Some(part) if part.history == share.history => Ok(()),
            _ => Err(refused(job, format!("it tells other changes of segment {}", source.ordinal))),
        }
    }

    fn leads_to(&self, source: &Source) -> bool {
        self.data.borrow().table.leads_to(source.ordinal, &source.object)
    }

    /// Reads a block of a few shares.
    async fn prove_samples(&self, job: &Job, header: &BundleHeader, shares: &[Share]) -> Result<()> {
        let heads = heads_of(&job.bundle, header, shares);
        let mut heads: Vec<_> = heads.into_iter().filter(|head| !head.blocks.is_empty()).collect();
        for _ in 0..SAMPLES.min(heads.len()) {
            let drawn = self.context.random_id();
            let (which, rank) = drawn.split_at(8);
            let draw = |bytes: &[u8]| bytes.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
            let head = heads.swap_remove((draw(which) % heads.len() as u64) as usize);
            let rank = (draw(rank) % u64::from(head.blocks.len())) as u32;
            let read =
                patiently(&*self.context.env, async || fetch_ranks(&*self.pool.store, &head, rank, 1).await).await;
            read.map_err(judged(job))?;
        }
        Ok(())
    }
}

/// What was made, as the answer has it.
fn believed(job: &Job, answer: &CleanAnswer) -> Made {
    let share = |source: &Source| MadeShare {
        ordinal: source.ordinal,
        from: source.object,
        blocks: source.live.live(),
        bytes: answer.put_bytes / job.sources.len() as u64,
        history: source.history,
    };
    let shares = job.sources.iter().map(share).collect();
    Made { bundle: job.bundle, shares, read_bytes: answer.read_bytes, put_bytes: answer.put_bytes }
}
