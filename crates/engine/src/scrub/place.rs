// SPDX-License-Identifier: Apache-2.0
//! How far scrubbing has come, kept over a restart: a pass over a large store takes weeks, and a node that is started anew every week would never come
//! to its end.
//!
//! It is one record in coordination, under the first of the shard's journals: what is done of the pass under way, when the last one ended, and what was found. It is
//! written at most once a minute, and at the end of a pass. One that is lost, damaged, or older than what was done only costs that way: it is gone again.
//!
//! Always holds: whatever the record says is done was proved, or told as a finding that the record has too (of very many the first).

use super::{Finding, Scrub};
use crate::context::Context;
use crate::error::MayPass;
use crate::{EngineError, Result};
use std::time::Duration;
use varve_coord::{Record, Records, ScrubFinding, ScrubPass, ScrubRecord};
use varve_format::ObjectName;
use varve_types::TimelineId;
use varve_types::branch::{Branch, reached};

/// Between two records of a pass.
const EVERY: Duration = Duration::from_secs(60);
/// Findings that a record has; of more the first.
const MOST_FINDINGS: usize = 64;
/// Characters of what it says of one.
const MOST_TEXT: usize = 400;

/// What is left to prove of a timeline.
#[derive(Clone, Copy)]
pub(super) struct Rest {
    /// Pages of the table from this one on; none where all are done.
    page: Option<u64>,
    /// Of the first of them, or of map and table objects, those whose names stand behind this one.
    after: Option<ObjectName>,
}

impl Rest {
    /// Whether a page of the table is left.
    pub fn has_page(&self, page: u64) -> bool {
        self.page.is_some_and(|from| from <= page)
    }

    /// Whether an object is left that a page leads to; of no page: a map or table object.
    pub fn has(&self, page: Option<u64>, object: &ObjectName) -> bool {
        match (self.page, page) {
            (at, page) if at == page => self.after.is_none_or(|after| after < *object),
            (Some(from), Some(page)) => from < page,
            (Some(_), None) => true,
            (None, _) => false,
        }
    }
}

impl Scrub {
    /// Goes on with the pass that is under way, or begins one; tells which.
    pub(super) fn go_on(&self, now_ms: u64) -> bool {
        let mut pass = self.pass.borrow_mut();
        let goes_on = pass.is_some();
        pass.get_or_insert(ScrubPass {
            begun_ms: now_ms,
            timeline: None,
            page: Some(0),
            object: None,
            objects: 0,
            bytes: 0,
        });
        goes_on
    }

    /// The timeline that the pass is at.
    pub(super) fn at(&self) -> Option<TimelineId> {
        self.pass.borrow().as_ref().and_then(|pass| pass.timeline)
    }

    /// Comes to a timeline; tells what is left of it.
    pub(super) fn come_to(&self, timeline: TimelineId) -> Rest {
        let mut rest = Rest { page: Some(0), after: None };
        self.change(|pass| {
            if pass.timeline == Some(timeline) {
                // A name that makes no sense is none: it begins with the first object.
                let after = pass.object.as_ref().and_then(|text| ObjectName::parse(text));
                rest = Rest { page: pass.page, after };
            } else {
                (pass.timeline, pass.page, pass.object) = (Some(timeline), Some(0), None);
            }
        });
        rest
    }

    /// Notes that an object is done, and where it stands: see [`Rest::has`].
    pub(super) fn done(&self, page: Option<u64>, object: &ObjectName) {
        self.change(|pass| (pass.page, pass.object) = (page, Some(object.to_string())));
    }

    /// Changes what is known of the pass under way.
    pub(super) fn change(&self, change: impl FnOnce(&mut ScrubPass)) {
        if let Some(pass) = self.pass.borrow_mut().as_mut() {
            change(pass);
        }
    }
}

impl Context {
    /// Takes up what an earlier process has kept, once.
    pub(super) async fn recall_scrub(&self) -> Result<()> {
        let (scrub, journal) = (&self.scrub, self.journals.first());
        if scrub.recalled.get() {
            return Ok(());
        }
        let kept = match Records::new(&*self.coord).scrub(journal).await.map_err(EngineError::from) {
            Ok(kept) => kept,
            Err(error) if error.may_pass() => return Err(error),
            Err(error) => {
                reached(Branch::ScrubForgotten);
                tracing::warn!(%error, "how far scrubbing has come is lost: it begins anew");
                None
            }
        };
        scrub.recalled.set(true);
        let Some(kept) = kept else { return Ok(()) };
        reached(Branch::ScrubRecalled);
        scrub.total.set(kept.passes);
        scrub.count(|counts| counts.ended_ms = kept.ended_ms);
        if kept.pass.is_none() && kept.ended_ms > 0 && !scrub.asked.get() {
            // However the clock was set since: not longer than it rests at all.
            let (now_ms, rest) = (self.now_ms(), self.limits.scrub_interval_ms);
            scrub.due_ms.set(kept.ended_ms.saturating_add(rest).min(now_ms.saturating_add(rest)));
        }
        let mut findings = scrub.findings.borrow_mut();
        for ScrubFinding { volume, name, object, message, found_ms } in kept.findings {
            if let Some(object) = ObjectName::parse(&object) {
                findings.entry(object).or_insert(Finding { volume, name, object, message, found_ms });
            }
        }
        *scrub.pass.borrow_mut() = kept.pass;
        Ok(())
    }

    /// Keeps how far it has come, if that was not done for a while, or `now`. Where that can not be the way is gone again, and nothing else.
    pub(super) async fn keep_scrub(&self, now: bool) {
        let (scrub, time) = (&self.scrub, self.env.now());
        let is_due = scrub.kept_at.get().is_none_or(|at| time.saturating_sub(at) >= EVERY);
        if !now && !is_due {
            return;
        }
        scrub.kept_at.set(Some(time));
        let record = {
            let findings = scrub.findings.borrow();
            let finding = |finding: &Finding| ScrubFinding {
                volume: finding.volume,
                name: finding.name.clone(),
                object: finding.object.to_string(),
                message: finding.message.chars().take(MOST_TEXT).collect(),
                found_ms: finding.found_ms,
            };
            ScrubRecord {
                version: ScrubRecord::VERSION,
                journal: self.journals.first(),
                passes: scrub.total.get(),
                ended_ms: scrub.counts().ended_ms,
                pass: scrub.pass.borrow().clone(),
                findings: findings.values().take(MOST_FINDINGS).map(finding).collect(),
            }
        };
        if let Err(error) = Records::new(&*self.coord).keep_scrub(&record).await {
            tracing::debug!(%error, "how far scrubbing has come can not be kept");
        }
    }
}
