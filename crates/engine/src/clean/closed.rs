// SPDX-License-Identifier: Apache-2.0
//! Cleaning of closed timelines that are held: what snapshots and clones see of them stays for as long as they do, and must not cost what it was once part of.
//!
//! The same jobs, chosen in the same way. Its table is loaded for the choice and, once the bundle was put, again: whatever was trimmed or swept meanwhile is so, and what has moved is let be.
//! The manifest that says where the blocks are now names the objects that they were in as dead, in one step. While it is written nobody checks or trims
//! the volume's closed timelines.
//!
//! A crash before it is accepted leaves a bundle that nothing names: the next opening looks for such.

use super::choose::Search;
use super::job::{self, Failed, Job, Made};
use super::{debt_bytes, gave_up_on};
use crate::closed::{Closed, Histories, Pages, put_parts_into};
use crate::error::MayPass;
use crate::signal::breathe;
use crate::stages::Stage;
use crate::{EngineError, Result};
use std::cell::Cell;
use std::rc::Rc;
use varve_format::manifest::{Manifest, TimelineState};
use varve_format::{ObjectKind, ObjectName};
use varve_types::branch::{Branch, reached};
use varve_types::{ErrorKind, Ordinal, Settings, TimelineId};

/// Behind every ordinal: all of a closed timeline is in its table.
const END: Ordinal = Ordinal(u64::MAX);
/// How often what was moved is written anew because the manifest was changed meanwhile.
const MAX_TRIES: u32 = 4;

impl Histories {
    /// Begins to clean a closed timeline of which too much is dead, if there is one and no timeline of the shard is being cleaned.
    pub(crate) fn clean_closed_if_due(self: &Rc<Self>) {
        let cleaning = &self.context.cleaning;
        if cleaning.paused.get() || self.context.limits.occupancy == 0 || cleaning.turn.is_taken() {
            return;
        }
        let Some(id) = self.sparse_closed() else { return };
        let this = Rc::clone(self);
        self.context.env.spawn(Box::pin(async move {
            let done = async {
                while !this.context.cleaning.paused.get() && this.clean_closed(id).await? {}
                Result::Ok(())
            };
            match done.await {
                Ok(()) => {}
                // The store is away, others have changed it meanwhile, or the volume is another's by now.
                Err(error) if error.may_pass() || matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Fenced) => {
                    tracing::debug!(timeline = %id, %error, "a hidden history waits for its cleaning");
                }
                Err(error) => tracing::error!(timeline = %id, %error, "a hidden history can not be cleaned"),
            }
        }));
    }

    /// A held timeline whose manifest was not looked at for its cleaning yet.
    fn sparse_closed(&self) -> Option<TimelineId> {
        let all = self.closed.borrow();
        let waits = |(id, closed): &(&TimelineId, &Closed)| {
            closed.settled.is_some() && closed.clean_at != Some(closed.manifest.number) && self.is_past(**id)
        };
        all.iter().find(waits).map(|(id, _)| *id)
    }

    /// Runs one job. Tells whether there was one.
    ///
    /// # Errors
    /// Those of the store; `Corrupt` where what lives is damaged or missing.
    async fn clean_closed(&self, id: TimelineId) -> Result<bool> {
        let cleaning = &self.context.cleaning;
        let turn = cleaning.turn.take().await;
        let Some(manifest) = self.held_manifest(id).await? else { return Ok(false) };
        let Some(job) = self.closed_job(&manifest).await? else {
            if let Some(closed) = self.closed.borrow_mut().get_mut(&id) {
                closed.clean_at = Some(manifest.number);
            }
            return Ok(false);
        };
        reached(Branch::CleanClosed);
        let timed = self.context.timed(Stage::Clean);
        let ended = job::run(&*self.context.env, &*self.pool.store, &cleaning.rate, &Cell::new(0), &job).await;
        drop(timed);
        cleaning.count(ended.as_ref());
        drop(turn);
        match ended {
            Ok(made) => self.move_closed(id, made).await.map(|()| true),
            Err(failed) => Err(self.gave_up_closed(id, &job, failed).await),
        }
    }

    /// What is to be done next for a closed timeline; nothing where it is as full as it should be, or nothing can be gained.
    async fn closed_job(&self, manifest: &Manifest) -> Result<Option<Job>> {
        if manifest.state == TimelineState::Tombstone || !self.is_past(manifest.timeline) {
            return Ok(None);
        }
        let pages = Pages::load(&self.pool.store, manifest).await?;
        let totals = pages.table.totals();
        self.note_totals(manifest.timeline, totals);
        if debt_bytes(&totals, self.context.limits.occupancy) == 0 {
            return Ok(None);
        }
        let (mut search, mut from) = (Search::default(), Some(Ordinal(0)));
        while let Some(first) = from {
            from = search.step(manifest.timeline, &pages.table, first, END);
            breathe().await;
        }
        let unclean = self.closed.borrow().get(&manifest.timeline).map(|closed| closed.unclean.clone());
        let mut victims = search.end(manifest.number, self.context.now_ms(), &unclean.unwrap_or_default());
        let record = self.record();
        let settings = Settings::resolve(&record.settings, &self.pool_settings());
        let sources = victims.take(&pages.table, manifest, &settings);
        let bundle = ObjectName {
            timeline: manifest.timeline,
            kind: ObjectKind::Bundle,
            number: self.context.cleaning.next_bundle(),
            part: 0,
            epoch: record.epoch,
            writer: record.writer,
        };
        let job = Job { bundle, codec: settings.compression.into(), made_ms: self.context.now_ms(), sources };
        Ok((!job.sources.is_empty()).then_some(job))
    }

    /// Lets the table point to what was made.
    async fn move_closed(&self, id: TimelineId, made: Made) -> Result<()> {
        let _tidying = self.tidying.take().await;
        for _ in 0..MAX_TRIES {
            let Some(manifest) = self.held_manifest(id).await?.filter(|m| m.state != TimelineState::Tombstone) else {
                // It has ended, and with it whatever lies below its prefix.
                return Ok(());
            };
            let mut pages = Pages::load(&self.pool.store, &manifest).await?;
            let mut moved = 0u32;
            for share in &made.shares {
                // A clone of a snapshot may have come to need that since the job was made.
                if manifest.needs_index(share.ordinal) && !share.history {
                    continue;
                }
                let (ordinal, from) = (share.ordinal, &share.from);
                moved += u32::from(pages.table.move_to(ordinal, from, &made.bundle, share.blocks, share.bytes));
            }
            if moved == 0 {
                pages.table.never_used(made.bundle);
            }
            let dead = pages.table.take_left();
            let parts = self.put_parts(&manifest, &pages, None).await?;
            let edit = |m: &mut Manifest| {
                put_parts_into(m, &parts, &dead.iter().copied().collect::<Vec<_>>());
                m.bundles = true;
            };
            if self.edit_held(&manifest, edit).await? {
                made.shares.iter().for_each(|share| self.context.heads.borrow_mut().forget(id, share.ordinal));
                return Ok(());
            }
        }
        Err(EngineError::new(ErrorKind::Busy, format!("timeline {id}: others write its manifests all the time")))
    }

    /// Takes in that a job has failed. Gives the reason.
    async fn gave_up_closed(&self, id: TimelineId, job: &Job, failed: Failed) -> EngineError {
        let leads = self.held_manifest(id).await.ok().flatten();
        let leads = match &leads {
            Some(manifest) => Pages::load(&self.pool.store, manifest).await.ok(),
            None => None,
        };
        let is_needed = |source: &job::Source, object: &ObjectName| {
            leads.as_ref().is_some_and(|pages| source.object == *object && pages.table.leads_to(source.ordinal, object))
        };
        let object = failed.object;
        let (error, is_unclean) = gave_up_on(failed, job.sources.iter().any(|source| is_needed(source, &object)));
        if is_unclean && let Some(closed) = self.closed.borrow_mut().get_mut(&id) {
            closed.unclean.insert(object);
        }
        // Its put may have come to something all the same: then nothing names it, and nobody looks for it before the next opening.
        let forget = async {
            self.pool.check().await?;
            Result::Ok(self.pool.store.delete(&job.bundle.to_string()).await?)
        };
        if let Err(left) = forget.await {
            tracing::debug!(bundle = %job.bundle, error = %left, "a bundle that nothing names may be left until the next opening");
        }
        error
    }
}
