// SPDX-License-Identifier: Apache-2.0
//! A volume: a name for a timeline, its record in coordination, and who is attached.
//!
//! The volume shows one of its timelines. Everything that changes which one, or what the volume is called, goes
//! through a compare-and-swap of its record together with the acceptance of a manifest, one at a time. A change of
//! the shown timeline is refused while somebody is attached.

use crate::closed::Histories;
use crate::context::Context;
use crate::manifests::PoolStore;
use crate::mirror::MirrorState;
use crate::pressure::SlowCounts;
use crate::rate::RateLimiter;
use crate::recover::{Opening, Tail, open};
use crate::timeline::Timeline;
use crate::waits::WaitCounts;
use crate::{EngineError, Result, TableTotals};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Deref;
use std::rc::Rc;
use varve_coord::{Records, VolumeRecord};
use varve_format::manifest::Manifest;
use varve_types::branch::{Branch, reached, reached_if};
use varve_types::mutant::{Mutant, planted};
use varve_types::{
    BLOCK, Epoch, ErrorKind, Name, Overrides, Sequence, Settings, SnapshotId, TimelineId, VolumeId, WriterId,
};

/// Somebody who uses a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Who, for people.
    pub peer: String,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
}

/// A snapshot, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its id.
    pub id: SnapshotId,
    /// Its name.
    pub name: Name,
    /// When it was taken, in milliseconds since 1970.
    pub created_ms: u64,
    /// Size of the volume then, in bytes.
    pub size: u64,
    /// Whether its data are in the store.
    pub stored: bool,
    /// Whether it was taken for a clone of the present, and is left out of listings.
    pub hidden: bool,
    /// The timeline that it belongs to.
    pub timeline: TimelineId,
}

/// Numbers of a volume, for people and tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct VolumeCounts {
    /// Segments and blocks of its own in the store.
    pub table: TableTotals,
    /// Bytes of layers not yet in the store.
    pub unsealed_bytes: u64,
    /// Layers that wait for the store.
    pub sealed_layers: usize,
    /// Entries of the overlay.
    pub overlay_entries: usize,
    /// Bytes of the map in RAM.
    pub map_ram_bytes: usize,
    /// Number of the newest manifest.
    pub manifest_number: u64,
    /// Objects that wait to be deleted.
    pub dead_objects: usize,
    /// Bytes of the volume that were discarded in large pieces and whose blocks are not yet freed, or kept for snapshots alone: at most so many.
    pub reclaim_bytes: u64,
    /// What its limits have held back.
    pub limits: WaitCounts,
    /// What was slowed because the store did not keep up.
    pub slowed: SlowCounts,
    /// Blocks of its own that were replaced, and that snapshots and clones alone keep: as of the last checkpoint.
    pub kept_blocks: u64,
    /// The same of what nothing but the rewind window keeps.
    pub rewind_blocks: u64,
    /// The last change that was made.
    pub last_change: Sequence,
    /// Whether it is in a layer that is sealed.
    pub is_sealed: bool,
    /// Bytes of dead blocks that cleaning has to give back until the volume is as full as it should be, before compression.
    pub clean_debt_bytes: u64,
    /// Histories that it does not show: what rollbacks and undos have left behind, and is not gone yet.
    pub hidden_timelines: u64,
}

/// See the module.
pub struct Volume {
    pub(crate) histories: Rc<Histories>,
    /// Its limits; those who are attached share them.
    pub(crate) rate: RateLimiter,
    attached: RefCell<BTreeMap<u64, Attachment>>,
    next_attachment: Cell<u64>,
}

/// Gives a volume a new epoch, and its writer.
pub(crate) fn raise(record: &mut VolumeRecord, writer: WriterId) {
    if !planted(Mutant::KeepEpoch) {
        record.epoch = record.epoch.next();
    }
    record.writer = writer;
}

/// By what right a volume is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// This node is its owner.
    Own,
    /// A person says so: another node has run it up to this epoch.
    Forced(Epoch),
    /// This node has a copy of its tail that is in sync.
    Mirror,
}

/// Raises the epoch of a volume in its record, which was read as `known`, and makes this node its owner.
async fn raise_epoch(context: &Context, known: &VolumeRecord, writer: WriterId, claim: Claim) -> Result<VolumeRecord> {
    let change = |record: &mut VolumeRecord| -> Result<()> {
        let is_the_same = (record.epoch, record.mirror) == (known.epoch, known.mirror);
        let may = match claim {
            Claim::Own if planted(Mutant::OpenOthers) => true,
            Claim::Own => return context.check_ours(record).map(|()| raise(record, writer)),
            Claim::Forced(since) => record.epoch == since,
            Claim::Mirror => is_the_same || planted(Mutant::TakeBlindly),
        };
        if !may {
            reached(Branch::TakenBefore);
            let text = format!("volume {}: another node was faster, it is in epoch {}", record.name, record.epoch);
            return Err(EngineError::new(ErrorKind::Fenced, text));
        }
        reached_if(claim == Claim::Mirror, Branch::TakenAsMirror);
        record.forced |= matches!(claim, Claim::Forced(_)) && record.owner != context.node.get();
        record.owner = context.node.get();
        raise(record, writer);
        Ok(())
    };
    Ok(Records::new(&*context.coord).modify_volume(known.id, change).await?.0)
}

/// Raises the epoch of a volume; the own journal has what its mirror has when this comes back.
async fn claimed(context: &Rc<Context>, id: VolumeId, writer: WriterId, claim: Claim) -> Result<VolumeRecord> {
    let known = Records::new(&*context.coord).load_volume(id).await?.0;
    if claim == Claim::Mirror {
        // In the journal first: nobody else has it once the owner is fenced.
        context.adopt_own(&known, known.epoch.next()).await?;
    }
    let raised = raise_epoch(context, &known, writer, claim).await;
    let record = raised.inspect_err(|_| {
        if claim == Claim::Mirror {
            context.retain_tails(|timeline| timeline != known.shown);
            context.give_back(&known);
        }
    })?;
    if let Some(copies) = &*context.copies.borrow() {
        // An owner of before that has heard of nothing begins no copy in the place of what this one builds on.
        copies.fence_at(record.shown, record.epoch)?;
    }
    if claim == Claim::Own {
        context.adopt_from_mirror(&record, record.epoch).await?;
    }
    Ok(record)
}

impl Deref for Volume {
    type Target = Histories;

    fn deref(&self) -> &Histories {
        &self.histories
    }
}

impl Volume {
    /// Opens a volume in a new epoch.
    pub(crate) async fn open(
        context: Rc<Context>,
        pool: Rc<PoolStore>,
        pool_settings: Overrides,
        id: VolumeId,
        claim: Claim,
    ) -> Result<Rc<Self>> {
        let mut writer = [0; 8];
        context.env.random(&mut writer);
        let writer = WriterId(u64::from_le_bytes(writer));
        pool.check().await?;
        let record = claimed(&context, id, writer, claim).await?;
        let tail = if record.forced { Tail::Left } else { Tail::Whole };
        let timeline = Self::open_one(&context, &pool, &pool_settings, &record, record.shown, tail).await?;
        let this = Self::with(context, pool, pool_settings, record, timeline);
        this.know_closed().await;
        Ok(this)
    }

    pub(crate) fn with(
        context: Rc<Context>,
        pool: Rc<PoolStore>,
        pool_settings: Overrides,
        record: VolumeRecord,
        timeline: Rc<Timeline>,
    ) -> Rc<Self> {
        let rate = RateLimiter::new(&timeline.settings());
        Rc::new(Self {
            histories: Histories::new(context, pool, pool_settings, record, Some(timeline)),
            rate,
            attached: RefCell::new(BTreeMap::new()),
            next_attachment: Cell::new(1),
        })
    }

    /// Opens one of the volume's timelines, at the epoch of the record; with what the journal has of it, or without, where all of it was put.
    pub(crate) async fn open_one(
        context: &Rc<Context>,
        pool: &Rc<PoolStore>,
        pool_settings: &Overrides,
        record: &VolumeRecord,
        timeline: TimelineId,
        tail: Tail,
    ) -> Result<Rc<Timeline>> {
        let manifest = record.timeline(timeline).and_then(|t| t.manifest);
        let Some(manifest) = manifest else {
            let what = format!("volume {}: coordination names no manifest of timeline {timeline}", record.id);
            return Err(EngineError::corrupt(what));
        };
        let opening = Opening {
            context: Rc::clone(context),
            journal: context.journals.choose(timeline),
            pool: Rc::clone(pool),
            volume: record.id,
            timeline,
            epoch: record.epoch,
            writer: record.writer,
            settings: Settings::resolve(&record.settings, pool_settings),
            manifest,
            show_number: if timeline == record.shown { record.show_number } else { 0 },
        };
        open(opening, tail).await
    }

    /// The timeline that it shows.
    pub(crate) fn shown(&self) -> Rc<Timeline> {
        self.open_timeline().expect("what a volume shows is open")
    }

    /// Its id.
    pub fn id(&self) -> VolumeId {
        self.id
    }
    /// Its name.
    pub fn name(&self) -> Name {
        self.record.borrow().name.clone()
    }
    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.shown().data.borrow().size
    }
    /// Why it serves nothing any more, if so.
    pub fn stopped(&self) -> Option<EngineError> {
        self.shown().data.borrow().stopped.clone()
    }
    /// Why it can make no checkpoints, if so: it serves, but a person should look.
    pub fn degraded(&self) -> Option<EngineError> {
        self.shown().data.borrow().no_checkpoints.clone()
    }

    /// Numbers of it.
    pub fn counts(&self) -> VolumeCounts {
        let timeline = self.shown();
        let slowed = timeline.slow_counts();
        let data = timeline.data.borrow();
        let layers = data.sealed.iter().map(|sealed| &sealed.layer).chain([&data.open]);
        VolumeCounts {
            table: data.table.totals(),
            unsealed_bytes: layers.map(|layer| layer.blocks() * BLOCK).sum(),
            sealed_layers: data.sealed.len(),
            overlay_entries: data.overlay.len(),
            map_ram_bytes: data.tree.bytes_in_ram(),
            manifest_number: data.manifest.number,
            dead_objects: data.manifest.dead.iter().filter(|dead| !data.deleted.contains(&dead.name)).count(),
            reclaim_bytes: crate::checkpoint::covered_bytes(&data.manifest.reclaim),
            limits: self.rate.counts(),
            slowed,
            kept_blocks: data.manifest.kills.iter().filter(|run| !run.window).map(|run| run.count).sum(),
            rewind_blocks: data.manifest.kills.iter().filter(|run| run.window).map(|run| run.count).sum(),
            last_change: data.last,
            is_sealed: data.open.is_empty(),
            clean_debt_bytes: timeline.clean_debt_bytes(&data.table.totals()),
            hidden_timelines: self.record.borrow().timelines.iter().filter(|t| t.id != timeline.id).count() as u64,
        }
    }

    /// How its mirror is.
    pub fn mirror(&self) -> MirrorState {
        self.shown().mirror_state()
    }

    /// Notes that somebody uses it. Gives a number for [`detach`](Self::detach), and who else uses it.
    pub fn attach(&self, peer: String) -> (u64, Vec<Attachment>) {
        let others = self.attachments();
        let number = self.next_attachment.replace(self.next_attachment.get() + 1);
        self.attached.borrow_mut().insert(number, Attachment { peer, since_ms: self.context.now_ms() });
        (number, others)
    }

    /// Notes that somebody uses it no longer. The last one seals the layer.
    pub fn detach(&self, number: u64) {
        self.attached.borrow_mut().remove(&number);
        if self.attached.borrow().is_empty() {
            self.shown().seal_now();
        }
    }

    /// Who uses it.
    pub fn attachments(&self) -> Vec<Attachment> {
        self.attached.borrow().values().cloned().collect()
    }

    /// Refuses while somebody uses it.
    pub(crate) fn check_detached(&self, what: &str) -> Result<()> {
        let connected = self.attachments().into_iter().next().map(|first| first.peer);
        let Some(by) = connected.or_else(|| self.holder().map(|holder| holder.edge)) else { return Ok(()) };
        let text = format!("volume {} can not be {what} while it is attached (by {by}): detach it first", self.name());
        Err(EngineError::new(ErrorKind::Conflict, text))
    }

    /// Seals what is open and waits until everything that came in before is in the store and counts.
    ///
    /// # Errors
    /// When the volume stops meanwhile.
    pub async fn seal(&self) -> Result<()> {
        self.shown().drain().await
    }

    /// Makes everything that counts durable as map, table and manifest.
    ///
    /// # Errors
    /// When the volume stops meanwhile, or can make no checkpoints.
    pub async fn checkpoint(&self) -> Result<()> {
        self.shown().checkpoint().await
    }

    /// Gives the volume another size. A shrink that would cut stored data is refused unless forced.
    ///
    /// # Errors
    /// `Conflict` for a shrink that would cut data; `Conflict` for a template.
    pub async fn resize(&self, size: u64, force: bool) -> Result<()> {
        let _turn = self.changes.take().await;
        self.check_writable()?;
        let timeline = self.shown();
        let old = self.size();
        if size < old {
            if !force && timeline.has_data(size, old).await? {
                let text = format!(
                    "volume {}: there are data behind {size} bytes that a shrink would cut; force it to lose them",
                    self.name()
                );
                return Err(EngineError::new(ErrorKind::Conflict, text));
            }
            return timeline.cut(size).await;
        }
        if size > old && !planted(Mutant::GrowShowsOldData) {
            // Whatever a shrink may have left behind the end does not come back.
            timeline
                .discard_now(old.next_multiple_of(BLOCK), size.next_multiple_of(BLOCK) - old.next_multiple_of(BLOCK))
                .await?;
        }
        timeline.set_size(size).await
    }

    /// Changes settings of the volume while it runs.
    ///
    /// # Errors
    /// Those of the store and of coordination; nothing has changed then.
    pub async fn set(&self, settings: Overrides) -> Result<()> {
        let _turn = self.changes.take().await;
        let edit = |manifest: &mut Manifest, _: &mut crate::timeline::Data| manifest.settings = settings;
        let also = |record: &mut VolumeRecord| {
            record.settings = settings;
            Ok(())
        };
        self.change(edit, also).await?;
        self.apply_settings();
        Ok(())
    }

    /// Takes new settings of the pool.
    pub fn pool_changed(&self, settings: Overrides) {
        *self.pool_settings.borrow_mut() = settings;
        self.apply_settings();
    }

    fn apply_settings(&self) {
        let settings = Settings::resolve(&self.record.borrow().settings, &self.pool_settings.borrow());
        let shown = self.shown();
        shown.data.borrow_mut().settings = settings;
        // Some may wait for what is not asked for any more.
        shown.changed.ring();
        self.rate.set(&settings);
    }

    /// Gives the volume another name.
    ///
    /// # Errors
    /// `Conflict` when the name is taken.
    pub async fn rename(&self, name: Name) -> Result<()> {
        let _turn = self.changes.take().await;
        // Coordination first: it is there that names are unique. The manifest follows in the same acceptance.
        let edit = |manifest: &mut Manifest, _: &mut crate::timeline::Data| manifest.name = name.clone();
        let also = |record: &mut VolumeRecord| {
            record.name = name.clone();
            Ok(())
        };
        self.change(edit, also).await
    }

    /// Makes the volume a template: read-only for ever, to clone from.
    ///
    /// # Errors
    /// `Conflict` while it is attached.
    pub async fn make_template(&self) -> Result<()> {
        let _turn = self.changes.take().await;
        self.check_detached("made a template")?;
        let timeline = self.shown();
        timeline.drain().await?;
        let edit = |manifest: &mut Manifest, _: &mut crate::timeline::Data| manifest.template = true;
        let also = |record: &mut VolumeRecord| {
            record.template = true;
            Ok(())
        };
        self.change(edit, also).await
    }

    /// Refuses what a template does not allow.
    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.record.borrow().template {
            return Err(crate::write::read_only(&format!("volume {}, a template,", self.name())));
        }
        Ok(())
    }

    /// Writes a manifest and changes the record with its acceptance.
    pub(crate) async fn change(
        &self,
        edit: impl Fn(&mut Manifest, &mut crate::timeline::Data),
        also: impl FnMut(&mut VolumeRecord) -> Result<()>,
    ) -> Result<()> {
        let record = self.shown().write_manifest(edit, also).await?;
        *self.record.borrow_mut() = record;
        Ok(())
    }
}
