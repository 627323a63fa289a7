// SPDX-License-Identifier: Apache-2.0
//! Scrub: whatever the volumes of a node have in stores is read in the background, at a set pace, and proved against its checksums, so that damage is found
//! while there may still be a copy of what it took.
//!
//! It goes by manifests: of each timeline, whether shown, hidden, or deleted and held, the newest one, and what that names. A pass takes timelines in the
//! order of their ids, and goes on where it was after whatever has interrupted it, a restart too ([`place`]). What comes to be behind its place is the next
//! pass's; so are segments above a manifest's boundary.
//!
//! Always holds:
//! - It takes no turn and changes nothing: objects never change, and one that went meanwhile is none that is needed any more. So damage is a finding only where a
//!   newer look at the manifest still names the object.
//! - Nothing that it reads goes into the cache, and nothing that it found damaged is given out: a read proves its blocks by itself.
//! - A finding is told of until a pass has proved the object, or nothing names it any more.
//! - A pass that has ended has come to every object that was named when it began and is still.

mod place;

use crate::closed::has_objects;
use crate::context::Turn;
use crate::error::MayPass;
use crate::lineage::{load_table_page, manifest_name, newest_manifest_if_there};
use crate::manifests::PoolStore;
use crate::pace::Pace;
use crate::proof::{Proved, Prover, page_objects, proved};
use crate::shard::Shard;
use crate::{EngineError, Result};
use place::Rest;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use varve_coord::{CoordError, Records, ScrubPass, VolumeRecord};
use varve_format::manifest::{Manifest, TimelineState};
use varve_format::table::{TableEntry, TablePage};
use varve_format::{ObjectKind, ObjectName};
use varve_types::branch::{Branch, reached, reached_if};
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
    /// When the pass began that has not ended, in milliseconds since 1970; 0: there is none. An earlier process may have begun it.
    pub pass_begun_ms: u64,
    /// Objects that it has proved.
    pub pass_objects: u64,
    /// Bytes of them.
    pub pass_bytes: u64,
}

/// What is known of scrubbing in a shard.
#[derive(Default)]
pub(crate) struct Scrub {
    pub rate: Cell<u64>,
    running: Cell<bool>,
    /// One pass at a time.
    turn: Turn,
    due_ms: Cell<u64>,
    /// Whether somebody has asked for a pass, however short ago the last was.
    asked: Cell<bool>,
    /// Whether what an earlier process has kept was taken up.
    recalled: Cell<bool>,
    /// When it was kept last how far the pass has come.
    kept_at: Cell<Option<Duration>>,
    /// The pass that has begun and not ended.
    pass: RefCell<Option<ScrubPass>>,
    /// Passes that came to their end, in earlier processes too.
    total: Cell<u64>,
    counts: Cell<ScrubCounts>,
    findings: RefCell<BTreeMap<ObjectName, Finding>>,
}

impl Scrub {
    pub fn new(rate: u64) -> Self {
        Self { rate: Cell::new(rate), ..Self::default() }
    }

    pub fn counts(&self) -> ScrubCounts {
        let (running, rate) = (self.running.get(), self.rate.get());
        let pass = self.pass.borrow();
        let [pass_begun_ms, pass_objects, pass_bytes] =
            pass.as_ref().map_or([0; 3], |pass| [pass.begun_ms, pass.objects, pass.bytes]);
        let findings = self.findings.borrow().len() as u64;
        ScrubCounts { running, rate, findings, pass_begun_ms, pass_objects, pass_bytes, ..self.counts.get() }
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
        self.context.scrub.asked.set(true);
        self.context.scrub.due_ms.set(0);
    }

    /// What scrubbing has found and nothing has mended, by name.
    pub fn findings(&self) -> Vec<Finding> {
        self.context.scrub.findings.borrow().values().cloned().collect()
    }

    /// Begins a pass if one is due, or goes on with the one that was interrupted.
    pub(crate) fn scrub_if_due(self: &Rc<Self>) {
        let scrub = &self.context.scrub;
        if scrub.rate.get() == 0 || scrub.due_ms.get() > self.context.now_ms() || scrub.running.replace(true) {
            return;
        }
        let this = Rc::clone(self);
        self.context.env.spawn(Box::pin(async move {
            let (ended, scrub) = (this.go_on_scrubbing().await, &this.context.scrub);
            if let Err(error) = ended {
                tracing::debug!(%error, "scrubbing waits");
                scrub.due_ms.set(this.context.now_ms().saturating_add(PAUSE_MS));
            }
            scrub.running.set(false);
        }));
    }

    /// The same, once it is known how far an earlier process has come.
    async fn go_on_scrubbing(&self) -> Result<()> {
        let scrub = &self.context.scrub;
        let _turn = scrub.turn.take().await;
        self.context.recall_scrub().await?;
        if scrub.due_ms.get() > self.context.now_ms() {
            return Ok(());
        }
        self.pass().await
    }

    /// One pass over all timelines, from the first.
    ///
    /// # Errors
    /// Those of store and coordination that may pass.
    pub async fn scrub(&self) -> Result<()> {
        let scrub = &self.context.scrub;
        let _turn = scrub.turn.take().await;
        self.context.recall_scrub().await?;
        scrub.pass.borrow_mut().take();
        self.pass().await
    }

    /// The rest of the pass that is under way, or a whole one.
    async fn pass(&self) -> Result<()> {
        let scrub = &self.context.scrub;
        reached(Branch::ScrubPass);
        let records = Records::new(&*self.context.coord).list_volumes().await?;
        let mut all: BTreeMap<TimelineId, &VolumeRecord> = BTreeMap::new();
        for (record, _) in records.iter().filter(|(record, _)| self.context.is_ours(record)) {
            all.extend(record.timelines.iter().map(|timeline| (timeline.id, record)));
        }
        scrub.asked.set(false);
        let goes_on = scrub.go_on(self.context.now_ms());
        let at = scrub.at();
        reached_if(at.is_some(), Branch::ScrubGoesOn);
        // What was found on the way so far is found until a pass comes by there again.
        let mut named: BTreeSet<ObjectName> =
            if goes_on { scrub.findings.borrow().keys().copied().collect() } else { BTreeSet::new() };
        for (timeline, record) in all.into_iter().filter(|(timeline, _)| at.is_none_or(|at| at <= *timeline)) {
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
        scrub.findings.borrow_mut().retain(|object, _| named.contains(object));
        let now_ms = self.context.now_ms();
        scrub.pass.borrow_mut().take();
        scrub.total.set(scrub.total.get() + 1);
        scrub.count(|counts| (counts.passes, counts.ended_ms) = (counts.passes + 1, now_ms));
        if !scrub.asked.get() {
            scrub.due_ms.set(now_ms.saturating_add(self.context.limits.scrub_interval_ms));
        }
        self.context.keep_scrub(true).await;
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
        let scrub = &self.context.scrub;
        let rest = scrub.come_to(subject.timeline);
        let Some(manifest) = self.prove_manifest(subject, named).await? else { return Ok(()) };
        let pace = Pace { env: &*self.context.env, rate: &scrub.rate };
        let prover = Prover { store: &*subject.pool.store, pace };
        self.scrub_data(subject, &prover, &manifest, rest, named).await?;
        let mut objects = Vec::new();
        for (name, bytes, records) in page_objects(&manifest) {
            objects.push((name?, bytes, records));
        }
        objects.sort_unstable_by_key(|(name, ..)| *name);
        for (name, bytes, records) in objects.into_iter().filter(|(name, ..)| rest.has(None, name)) {
            self.check_scrubs()?;
            let found = proved(async || prover.pages(&name, bytes, records).await).await;
            self.note(subject, name, found, named).await?;
            scrub.done(None, &name);
            self.context.keep_scrub(false).await;
        }
        Ok(())
    }

    /// Whatever the pages of a table lead to that are left.
    async fn scrub_data(
        &self,
        subject: &Subject<'_>,
        prover: &Prover<'_>,
        manifest: &Manifest,
        rest: Rest,
        named: &mut BTreeSet<ObjectName>,
    ) -> Result<()> {
        let mut bundles = BTreeSet::new();
        for page in manifest.table.iter().filter(|page| rest.has_page(page.page)) {
            let table = match load_table_page(&subject.pool.store, manifest, *page).await {
                Ok(table) => table,
                // The object that has the page is proved with the others.
                Err(error) if !error.may_pass() => continue,
                Err(error) => return Err(error),
            };
            let page = Some(page.page);
            for (name, entries) in by_object(subject.timeline, &table) {
                // One whose shares are in several pages is proved with the first.
                if !rest.has(page, &name) || (name.kind == ObjectKind::Bundle && !bundles.insert(name)) {
                    continue;
                }
                self.check_scrubs()?;
                let found = proved(async || prover.data(&name, &entries).await).await;
                self.note(subject, name, found, named).await?;
                self.context.scrub.done(page, &name);
                self.context.keep_scrub(false).await;
            }
        }
        Ok(())
    }

    /// The newest manifest of a timeline. One that is damaged or missing is a finding; `None` then, and where the timeline has ended.
    async fn prove_manifest(
        &self,
        subject: &Subject<'_>,
        named: &mut BTreeSet<ObjectName>,
    ) -> Result<Option<Manifest>> {
        let id = subject.timeline;
        let error = match newest_manifest_if_there(&self.context, &subject.pool.store, id).await {
            Ok(Ok(manifest)) => {
                let is_of_it = |object: &ObjectName| object.kind == ObjectKind::Manifest && object.timeline == id;
                self.context.scrub.findings.borrow_mut().retain(|object, _| !is_of_it(object));
                return Ok(Some(manifest).filter(|manifest| manifest.state != TimelineState::Tombstone));
            }
            Ok(Err(lost)) => EngineError::corrupt(format!("it is missing: {}", manifest_name(id, lost))),
            Err(error) if error.kind() == ErrorKind::Corrupt => error,
            Err(error) => return Err(error),
        };
        let record = match Records::new(&*self.context.coord).load_volume(subject.record.id).await {
            Ok((record, _)) => record,
            Err(CoordError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let Some(accepted) = record.timeline(id).and_then(|timeline| timeline.manifest) else { return Ok(None) };
        // Of a timeline that ends the manifest goes last, and then its record.
        let may_end = record.deleted.is_some() || record.shown != id;
        if !may_end || has_objects(subject.pool, id).await? {
            reached(Branch::ScrubFindsManifest);
            self.take_finding(subject, manifest_name(id, accepted), &error, named);
        }
        Ok(None)
    }

    /// The newest manifest of a timeline, if it is still there and whole.
    async fn newest(&self, subject: &Subject<'_>) -> Result<Option<Manifest>> {
        match newest_manifest_if_there(&self.context, &subject.pool.store, subject.timeline).await {
            Ok(Ok(manifest)) if manifest.state == TimelineState::Tombstone => Ok(None),
            Ok(found) => Ok(found.ok()),
            // It is a finding itself.
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(None),
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
                scrub.change(|pass| (pass.objects, pass.bytes) = (pass.objects + 1, pass.bytes + proved.bytes));
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
        self.take_finding(subject, object, &error, named);
        Ok(())
    }

    /// Takes in that an object is damaged or missing.
    fn take_finding(
        &self,
        subject: &Subject<'_>,
        object: ObjectName,
        error: &EngineError,
        named: &mut BTreeSet<ObjectName>,
    ) {
        named.insert(object);
        let mut findings = self.context.scrub.findings.borrow_mut();
        if findings.len() < MAX_FINDINGS && !findings.contains_key(&object) {
            tracing::error!(volume = %subject.record.name, %object, %error, "a stored object is damaged");
            let Subject { record, .. } = subject;
            let (volume, name, found_ms) = (record.id, record.name.clone(), self.context.now_ms());
            findings.insert(object, Finding { volume, name, object, message: error.to_string(), found_ms });
        }
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
