// SPDX-License-Identifier: Apache-2.0
//! Cleaning: what still lives of several sparse segments goes into one bundle, and their objects can go.
//!
//! The map is never touched: a block keeps its address, and only the segment table says that it is elsewhere. Reads, snapshots and clones go on meanwhile, and
//! see the same.
//!
//! Always holds:
//! - Only segments below the last checkpoint's boundary are cleaned: recovery asks for the others under their own names.
//! - A bundle has every block that lived when the job was made. Blocks only ever die, so it has all that lives when the table comes to point there.
//! - The table points to a bundle only once its put was answered; what it pointed to before is named as dead in the manifest that says so, and goes by the rule
//!   of two manifests.
//! - A segment that was moved since a job was made is let be: the job's share of it is for nothing.
//! - Where a hold still needs to know what a segment has changed, its share tells that too.
//! - A share that does not tell what its segment has changed is let be where somebody needs to know that by now.
//!
//! A crash leaves a bundle that nothing names: the next opening sweeps it. The shard itself runs one job at a time; other processes may run more, at most one
//! of each timeline: see [`lease`].

mod answer;
mod choose;
mod closed;
mod control;
mod job;
mod lease;
mod lost;
mod workers;

pub use answer::{CleanAnswer, run_clean_job};
pub(crate) use choose::Victims;
pub use control::CleanCounts;
pub(crate) use control::Cleaning;
pub use job::{Job as CleanJob, Source as CleanSource};
pub use lease::{LeaseEnd, LeaseTerms, Leased};
pub use workers::CleanWorker;

use crate::error::MayPass;
use crate::stages::Stage;
use crate::timeline::Timeline;
use crate::{EngineError, Result, TableTotals};
use job::{Failed, Job, Made};
use std::cell::Cell;
use std::rc::Rc;
use varve_format::ObjectKind;
use varve_types::branch::{Branch, reached, reached_if};
use varve_types::mutant::{Mutant, planted};
use varve_types::{BLOCK, ErrorKind};

/// Bytes of dead blocks that cleaning has to give back, as they were before compression, for the room that is taken to be as full as it should be: `occupancy` of a
/// hundred blocks alive. Room that headers and indexes take of blocks that live can not be given back.
fn debt_bytes(totals: &TableTotals, occupancy: u64) -> u64 {
    // Of what does not compress with headers and indexes.
    let room = totals.bytes.max(totals.blocks * BLOCK);
    let allowed = (totals.live_blocks * BLOCK * 100).checked_div(occupancy).unwrap_or(u64::MAX);
    let dead = totals.blocks.saturating_sub(totals.live_blocks) * BLOCK;
    room.saturating_sub(allowed).min(dead)
}

/// Why a job has failed, and whether its object is to be let be from now on; `is_needed` tells whether the table leads to the object still.
fn gave_up_on(Failed { object, error }: Failed, is_needed: bool) -> (EngineError, bool) {
    let error = match error.kind() {
        ErrorKind::NotFound if is_needed => {
            EngineError::corrupt(format!("an object that is needed is missing: {object}"))
        }
        _ => error,
    };
    let is_unclean = !error.may_pass() && error.kind() != ErrorKind::NotFound;
    (error, is_unclean)
}

impl Timeline {
    /// Begins to clean if too much of what is stored is dead, unless some timeline of the shard is at it.
    pub fn clean_if_due(self: &Rc<Self>) {
        let cleaning = &self.context.cleaning;
        if cleaning.paused.get() || !self.is_sparse() || self.cleans.is_taken() || cleaning.turn.is_taken() {
            return;
        }
        if self.is_left_to_workers() {
            return;
        }
        let this = Rc::clone(self);
        self.context.env.spawn(Box::pin(async move {
            let done = async {
                while !this.context.cleaning.paused.get() && this.is_sparse() && this.clean().await? {}
                Result::Ok(())
            };
            match done.await {
                Ok(()) => {}
                Err(_) if this.is_stopped() => {}
                // The store is away, or a checkpoint has taken a segment out meanwhile.
                Err(error) if error.may_pass() || error.kind() == ErrorKind::NotFound => {
                    tracing::debug!(timeline = %this.id, %error, "sparse segments wait for their cleaning");
                }
                Err(error) => tracing::error!(timeline = %this.id, %error, "sparse segments can not be cleaned"),
            }
        }));
    }

    /// Whether less of the room that is taken is for blocks that live than should be.
    fn is_sparse(&self) -> bool {
        let data = self.data.borrow();
        let totals = data.table.totals();
        data.stopped.is_none()
            && data.no_checkpoints.is_none()
            && data.clean_at != Some(data.manifest.number)
            && self.clean_debt_bytes(&totals) > 0
    }

    /// Runs one job. Tells whether there was one.
    ///
    /// # Errors
    /// Those of the store; `Corrupt` where what lives of a segment is damaged, which is then let be until it is opened again.
    pub async fn clean(self: &Rc<Self>) -> Result<bool> {
        let cleaning = &self.context.cleaning;
        let turn = cleaning.turn.take().await;
        if self.is_left_to_workers() {
            return Ok(false);
        }
        let Some(job) = self.next_job().await else { return Ok(false) };
        reached(Branch::CleanJob);
        let timed = self.context.timed(Stage::Clean);
        let read = Cell::new(0);
        let ended = job::run(&*self.context.env, &*self.pool.store, &cleaning.rate, &read, &job).await;
        drop(timed);
        cleaning.count(ended.as_ref());
        // A check may keep blocks where they are for long; others are cleaned meanwhile.
        drop(turn);
        let made = ended.map_err(|failed| self.gave_up(&job, failed))?;
        let from: Vec<_> = made.shares.iter().map(|share| share.from).collect();
        self.point_to(made).await?;
        for name in from.iter().filter(|_| planted(Mutant::CleanDeletesAtOnce)) {
            self.pool.store.delete(&name.to_string()).await?;
        }
        Ok(true)
    }

    /// Bytes of dead blocks that cleaning has to give back.
    pub fn clean_debt_bytes(&self, totals: &TableTotals) -> u64 {
        debt_bytes(totals, self.context.limits.occupancy)
    }

    async fn next_job(&self) -> Option<Job> {
        let at = self.data.borrow().manifest.number;
        let sources = self.choose_sparse().await;
        let mut data = self.data.borrow_mut();
        if sources.is_empty() {
            data.clean_at = Some(at);
            return None;
        }
        let number = self.context.cleaning.next_bundle();
        let bundle = self.object(ObjectKind::Bundle, number, 0);
        Some(Job { bundle, codec: data.settings.compression.into(), made_ms: self.context.now_ms(), sources })
    }

    /// Takes in that a job has failed: what can not be read is let be, so that the rest is cleaned. Gives the reason.
    fn gave_up(&self, job: &Job, failed: Failed) -> EngineError {
        let object = failed.object;
        self.choose_again();
        let mut data = self.data.borrow_mut();
        // Its put may have come to something all the same.
        data.table.never_used(job.bundle);
        let is_needed = job.sources.iter().any(|s| s.object == object && data.table.leads_to(s.ordinal, &object));
        let (error, is_unclean) = gave_up_on(failed, is_needed);
        if is_unclean {
            data.unclean.insert(object);
        }
        error
    }

    /// Lets the table point to what was made. Tells how many segments are there now.
    async fn point_to(&self, made: Made) -> Result<u32> {
        let _moving = self.cleans.take().await;
        // In the turn: the pages of one manifest are encoded, and what they leave is named as dead, while nothing moves.
        let _turn = self.manifests.take().await;
        let mut data = self.data.borrow_mut();
        data.check()?;
        let mut moved = 0u32;
        for share in &made.shares {
            // A hold begins at a root that is no older than what may be cleaned, so none comes to need this later. If one did, the segment would stay.
            if data.manifest.needs_index(share.ordinal) && !share.history && !planted(Mutant::CleanWithoutHistory) {
                continue;
            }
            if data.table.move_to(share.ordinal, &share.from, &made.bundle, share.blocks, share.bytes) {
                self.context.heads.borrow_mut().forget(self.id, share.ordinal);
                reached_if(share.from.kind == ObjectKind::Bundle, Branch::CleanAgain);
                moved += 1;
            }
        }
        reached_if((moved as usize) < made.shares.len(), Branch::CleanOvertaken);
        if moved == 0 {
            data.table.never_used(made.bundle);
        }
        Ok(moved)
    }
}
