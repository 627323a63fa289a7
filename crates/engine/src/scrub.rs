// SPDX-License-Identifier: Apache-2.0
//! Scrub: whatever the volumes of a node have in stores is read in the background, at a set pace, and proved against its checksums, so that damage is found
//! while there may still be a copy of what it took.
//!
//! It goes by manifests: of each timeline, whether shown, hidden, or deleted and held, the newest one, and what that names; a pass begins with a timeline at
//! random, so that a node that is often started anew comes to all of them. Segments above a manifest's boundary are the next pass's.
//!
//! Always holds:
//! - It takes no turn and changes nothing: objects never change, and one that went meanwhile is none that is needed any more. So damage is a finding only where a
//!   newer look at the manifest still names the object.
//! - Nothing that it reads goes into the cache, and nothing that it found damaged is given out: a read proves its blocks by itself.
//! - A finding is told of until a pass has proved the object, or nothing names it any more.

use crate::context::Turn;
use crate::lineage::{load_table_page, newest_manifest_if_there};
use crate::manifests::PoolStore;
use crate::pace::Pace;
use crate::proof::{Proved, Prover, page_objects, proved};
use crate::shard::Shard;
use crate::{EngineError, Result};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use varve_coord::{Records, VolumeRecord};
use varve_format::manifest::{Manifest, TimelineState};
use varve_format::table::{TableEntry, TablePage};
use varve_format::{ObjectKind, ObjectName};
use varve_types::branch::{Branch, reached};
use varve_types::mutant::{Mutant, planted};
use varve_types::{ErrorKind, Name, Ordinal, TimelineId, VolumeId};

/// Findings that are remembered; of more the first.
const MAX_FINDINGS: usize = 1000;
/// After a store or a coordination that did not answer, a pass goes on after so long.
const PAUSE_MS: u64 = 60_000;

/// An object that is damaged, or missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Volume whose timeline it is.
    pub volume: VolumeId,
    /// What that was called then.
    pub name: Name,
    /// The object.
    pub object: ObjectName,
    /// What is wrong with it.
    pub message: String,
    /// When it was found first, in milliseconds since 1970.
    pub found_ms: u64,
}

/// Numbers of scrubbing since the shard began, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubCounts {
    /// Whether a pass is under way.
    pub running: bool,
    /// Bytes that it may read in a second; 0: it is off.
    pub rate: u64,
    /// Passes that came to their end.
    pub passes: u64,
    /// When the last of them did, in milliseconds since 1970; 0: none has.
    pub ended_ms: u64,
    /// Objects that were proved.
    pub objects: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Objects that are damaged or missing.
    pub findings: u64,
}

/// What is known of scrubbing in a shard.
#[derive(Default)]
pub(crate) struct Scrub {
    pub rate: Cell<u64>,
    running: Cell<bool>,
    /// One pass at a time.
    turn: Turn,
    due_ms: Cell<u64>,
    counts: Cell<ScrubCounts>,
    findings: RefCell<BTreeMap<ObjectName, Finding>>,
}

impl Scrub {
    pub fn new(rate: u64) -> Self {
        Self { rate: Cell::new(rate), ..Self::default() }
    }

    pub fn counts(&self) -> ScrubCounts {
        let (running, rate) = (self.running.get(), self.rate.get());
        ScrubCounts { running, rate, findings: self.findings.borrow().len() as u64, ..self.counts.get() }
    }

    fn count(&self, change: impl FnOnce(&mut ScrubCounts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
    }
}

/// Whose objects are looked at.
struct Subject<'a> {
    record: &'a VolumeRecord,
    pool: &'a PoolStore,
    timeline: TimelineId,
}

impl Shard {
    /// Bounds what scrubbing reads in a second, in bytes; 0 ends it, after what is under way.
    pub fn set_scrub_rate(&self, rate: u64) {
        self.context.scrub.rate.set(rate);
    }

    /// Lets a pass begin soon, if none is under way and scrubbing is not off.
    pub fn scrub_now(&self) {
        self.context.scrub.due_ms.set(0);
    }

    /// What scrubbing has found and nothing has mended, by name.
    pub fn findings(&self) -> Vec<Finding> {
        self.context.scrub.findings.borrow().values().cloned().collect()
    }

    /// Begins a pass if one is due.
    pub(crate) fn scrub_if_due(self: &Rc<Self>) {
        let scrub = &self.context.scrub;
        if scrub.rate.get() == 0 || scrub.due_ms.get() > self.context.now_ms() || scrub.running.replace(true) {
            return;
        }
        let this = Rc::clone(self);
        self.context.env.spawn(Box::pin(async move {
            let (ended, scrub) = (this.scrub().await, &this.context.scrub);
            let now_ms = this.context.now_ms();
            let wait_ms = match ended {
                Ok(()) => {
                    scrub.count(|counts| (counts.passes, counts.ended_ms) = (counts.passes + 1, now_ms));
                    this.context.limits.scrub_interval_ms
                }
                Err(error) => {
                    tracing::debug!(%error, "scrubbing waits");
                    PAUSE_MS
                }
            };
            scrub.due_ms.set(now_ms.saturating_add(wait_ms));
            scrub.running.set(false);
        }));
    }

    /// One pass over all timelines.
    ///
    /// # Errors
    /// Those of store and coordination that may pass.
    pub async fn scrub(&self) -> Result<()> {
        let _turn = self.context.scrub.turn.take().await;
        reached(Branch::ScrubPass);
        let records = Records::new(&*self.context.coord).list_volumes().await?;
        let mut all: Vec<(&VolumeRecord, TimelineId)> = Vec::new();
        for (record, _) in &records {
            all.extend(record.timelines.iter().map(|timeline| (record, timeline.id)));
        }
        let mut seed = [0; 8];
        self.context.env.random(&mut seed);
        let first = u64::from_le_bytes(seed).checked_rem(all.len() as u64).unwrap_or_default();
        all.rotate_left(first as usize);
        let mut named = BTreeSet::new();
        for (record, timeline) in all {
            // A pool that this node does not serve is another's.
            let Ok((pool, _)) = self.pool(&record.pool) else { continue };
            let subject = Subject { record, pool: &pool, timeline };
            self.check_scrubs()?;
            match self.scrub_timeline(&subject, &mut named).await {
                // It has gone meanwhile, or its manifest makes no sense, of which its volume tells.
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => {
                    tracing::debug!(%timeline, %error, "not scrubbed");
                }
                done => done?,
            }
        }
        // What no manifest names any more is nobody's loss.
        self.context.scrub.findings.borrow_mut().retain(|object, _| named.contains(object));
        Ok(())
    }

    /// Refuses to go on once it was told to stop.
    fn check_scrubs(&self) -> Result<()> {
        if self.is_stopping() || self.context.scrub.rate.get() == 0 {
            return Err(EngineError::new(ErrorKind::Busy, "scrubbing was told to stop"));
        }
        Ok(())
    }

    async fn scrub_timeline(&self, subject: &Subject<'_>, named: &mut BTreeSet<ObjectName>) -> Result<()> {
        let Some(manifest) = self.newest(subject).await? else { return Ok(()) };
        let scrub = &self.context.scrub;
        let pace = Pace { env: &*self.context.env, rate: &scrub.rate };
        let prover = Prover { store: &*subject.pool.store, pace };
        let mut bundles = BTreeSet::new();
        for page in &manifest.table {
            let table = match load_table_page(&subject.pool.store, &manifest, *page).await {
                Ok(table) => table,
                // The object that has the page is proved below.
                Err(error) if !error.may_pass() => continue,
                Err(error) => return Err(error),
            };
            for (name, entries) in by_object(subject.timeline, &table) {
                // One whose shares are in several pages is proved with the first.
                if name.kind == ObjectKind::Bundle && !bundles.insert(name) {
                    continue;
                }
                self.check_scrubs()?;
                let found = proved(async || prover.data(&name, &entries).await).await;
                self.note(subject, name, found, named).await?;
            }
        }
        for (name, bytes, records) in page_objects(&manifest) {
            self.check_scrubs()?;
            let name = name?;
            let found = proved(async || prover.pages(&name, bytes, records).await).await;
            self.note(subject, name, found, named).await?;
        }
        Ok(())
    }

    /// The newest manifest of a timeline, if it is still there and whole.
    async fn newest(&self, subject: &Subject<'_>) -> Result<Option<Manifest>> {
        match newest_manifest_if_there(&self.context, &subject.pool.store, subject.timeline).await {
            Ok(Ok(manifest)) if manifest.state == TimelineState::Tombstone => Ok(None),
            Ok(found) => Ok(found.ok()),
            // The volume tells of it wherever its manifest is needed.
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                tracing::error!(timeline = %subject.timeline, %error, "scrubbing can not go by its manifest");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Takes in what a look at an object came to.
    async fn note(
        &self,
        subject: &Subject<'_>,
        object: ObjectName,
        proved: Result<Proved>,
        named: &mut BTreeSet<ObjectName>,
    ) -> Result<()> {
        let scrub = &self.context.scrub;
        let error = match proved {
            Ok(proved) => {
                scrub.count(|counts| {
                    counts.objects += 1;
                    counts.bytes += proved.bytes;
                });
                scrub.findings.borrow_mut().remove(&object);
                return Ok(());
            }
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => error,
            Err(error) => return Err(error),
        };
        if !planted(Mutant::ScrubBelievesFirstLook) && !self.is_named(subject, object).await? {
            reached(Branch::ScrubOvertaken);
            return Ok(());
        }
        reached(Branch::ScrubFinding);
        named.insert(object);
        let mut findings = scrub.findings.borrow_mut();
        if findings.len() < MAX_FINDINGS && !findings.contains_key(&object) {
            tracing::error!(volume = %subject.record.name, %object, %error, "a stored object is damaged");
            let Subject { record, .. } = subject;
            let (volume, name, found_ms) = (record.id, record.name.clone(), self.context.now_ms());
            findings.insert(object, Finding { volume, name, object, message: error.to_string(), found_ms });
        }
        Ok(())
    }

    /// Whether the newest manifest of a timeline names an object.
    async fn is_named(&self, subject: &Subject<'_>, object: ObjectName) -> Result<bool> {
        let Some(manifest) = self.newest(subject).await? else { return Ok(false) };
        for (name, ..) in page_objects(&manifest) {
            if name? == object {
                return Ok(true);
            }
        }
        for page in &manifest.table {
            match load_table_page(&subject.pool.store, &manifest, *page).await {
                Ok(table) if by_object(subject.timeline, &table).contains_key(&object) => return Ok(true),
                Ok(_) => {}
                Err(error) if !error.may_pass() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

/// The objects that a page of the table leads to, each with its segments.
fn by_object(timeline: TimelineId, table: &TablePage) -> BTreeMap<ObjectName, Vec<(Ordinal, &TableEntry)>> {
    let mut objects: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (ordinal, entry) in table {
        objects.entry(entry.object(timeline, *ordinal)).or_default().push((*ordinal, entry));
    }
    objects
}
