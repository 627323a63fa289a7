// SPDX-License-Identifier: Apache-2.0
//! What people can see of cleaning in a shard, and how they hold it back.

use super::job::{Failed, Made};
use super::lease::Leases;
use super::lost::Lost;
use super::workers::Workers;
use crate::Shard;
use crate::context::Turn;
use std::cell::Cell;
use std::time::Duration;

/// Numbers of cleaning since the shard began, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CleanCounts {
    /// Whether a job is under way.
    pub running: bool,
    /// Whether no job begins.
    pub paused: bool,
    /// Bytes that a job may read and put in a second; 0: as many as can be.
    pub rate: u64,
    /// Jobs that came to an end.
    pub jobs: u64,
    /// Jobs of them that other processes have run.
    pub worker_jobs: u64,
    /// Jobs that were given up: the store refused, or what they read was damaged; of other processes also those that were refused, or not heard of.
    pub failed: u64,
    /// Jobs of other processes whose answer was refused: what they have put was not what it should be.
    pub refused: u64,
    /// Jobs of other processes that were given up because nothing was heard of them.
    pub expired: u64,
    /// Jobs that other processes are at.
    pub leased: u64,
    /// Other processes that clean.
    pub workers: u64,
    /// Bytes of blocks that they have read.
    pub read_bytes: u64,
    /// Bytes of the bundles that they have put.
    pub put_bytes: u64,
}

/// Cleaning in a shard.
#[derive(Default)]
pub(crate) struct Cleaning {
    /// One job at a time.
    pub(super) turn: Turn,
    /// Bundles that were begun. A timeline that was let go and opened again has its writer's names still, so the count is no timeline's.
    bundles: Cell<u64>,
    pub(super) paused: Cell<bool>,
    pub(super) rate: Cell<u64>,
    counts: Cell<CleanCounts>,
    /// Jobs that are out.
    pub(super) leases: Leases,
    /// Who asks for jobs.
    pub(super) workers: Workers,
    /// What may come of jobs that were given up.
    pub(super) lost: Lost,
}

impl Cleaning {
    /// With at most so many bytes a second; 0: as many as can be.
    pub fn new(rate: u64) -> Self {
        Self { rate: Cell::new(rate), ..Self::default() }
    }

    /// Its numbers, at this moment of the shard's time.
    pub fn counts(&self, now: Duration) -> CleanCounts {
        let (leased, workers) = (self.leases.count() as u64, self.workers.awaited(now).len() as u64);
        let (running, paused, rate) = (self.turn.is_taken() || leased > 0, self.paused.get(), self.rate.get());
        CleanCounts { running, paused, rate, leased, workers, ..self.counts.get() }
    }

    /// A number that no bundle of this opening has.
    pub(super) fn next_bundle(&self) -> u64 {
        self.bundles.set(self.bundles.get() + 1);
        self.bundles.get()
    }

    pub(super) fn count(&self, ended: std::result::Result<&Made, &Failed>) {
        let mut counts = self.counts.get();
        match ended {
            Ok(made) => {
                counts.jobs += 1;
                counts.read_bytes += made.read_bytes;
                counts.put_bytes += made.put_bytes;
            }
            Err(_) => counts.failed += 1,
        }
        self.counts.set(counts);
    }

    fn change_counts(&self, change: impl FnOnce(&mut CleanCounts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
    }

    /// A job of another process was done.
    pub(super) fn count_worker_job(&self, read_bytes: u64, put_bytes: u64) {
        self.change_counts(|counts| {
            counts.jobs += 1;
            counts.worker_jobs += 1;
            counts.read_bytes = counts.read_bytes.saturating_add(read_bytes);
            counts.put_bytes += put_bytes;
        });
    }

    /// One came to nothing.
    pub(super) fn count_failed(&self) {
        self.change_counts(|counts| counts.failed += 1);
    }

    /// What it has put was refused.
    pub(super) fn count_refused(&self) {
        self.change_counts(|counts| counts.refused += 1);
    }

    /// Nothing was heard of it.
    pub(super) fn count_expired(&self) {
        self.change_counts(|counts| counts.expired += 1);
    }
}

impl Shard {
    /// Lets no job of cleaning begin from now on, or again; one that is under way comes to its end.
    pub fn pause_cleaning(&self, paused: bool) {
        self.context.cleaning.paused.set(paused);
    }

    /// Bounds what cleaning reads and puts in a second, in bytes; 0: as many as can be. A job that is under way minds it too.
    pub fn set_clean_rate(&self, rate: u64) {
        self.context.cleaning.rate.set(rate);
    }
}
