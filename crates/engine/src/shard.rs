// SPDX-License-Identifier: Apache-2.0
//! A shard: the volumes that one thread owns, their journals, and the chores that time brings.
//!
//! Everything here runs on the shard's thread. Volumes are opened one by one; records of a
//! journal that belong to a volume which is not opened yet are kept for it ([`crate::tails`]), and
//! until all have been tried nothing of what a start has found is given up.

mod births;
mod end;
mod gone;
mod life;

pub use births::Importing;
pub use gone::GoneCounts;
pub use life::NewVolume;

use crate::cache::{BlockCache, CacheCounts};
use crate::clean::{CleanCounts, Cleaning};
use crate::context::{Context, HeadCache, Limits, PutBytes, Turn};
use crate::ends::{EndCounts, Ends};
use crate::fetch::Fetches;
use crate::journals::{JournalCounts, JournalDisk, JournalRole, Journals};
use crate::lineage::PageTables;
use crate::manifests::PoolStore;
use crate::map_ram::{MapCounts, MapRam};
use crate::mirror::{Copies, MirrorNodes};
use crate::scrub::{Scrub, ScrubCounts};
use crate::signal::Signal;
use crate::ssd::{SsdCache, SsdCounts};
use crate::stages::{Stage, StageTimes, Stages};
use crate::volume::{Claim, Volume};
use crate::{EngineError, Result};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use varve_coord::{Coord, Records, VolumeRecord};
use varve_env::{CacheDevice, Disk, Env};
use varve_types::{Epoch, ErrorKind, Name, NodeId, Overrides, VolumeId};

/// How often the chores run.
const TICK: Duration = Duration::from_secs(1);
/// Ticks between two looks at what windows have ended.
const SWEEP_TICKS: u32 = 10;

/// A pool as the shard knows it.
struct Pool {
    store: Rc<PoolStore>,
    settings: Overrides,
}

/// Numbers of a shard, for people.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShardCounts {
    /// Bytes of the journals.
    pub journal_bytes: u64,
    /// Bytes of them in use.
    pub journal_used: u64,
    /// Whether one of them has failed: flushes of its volumes are answered by the store then.
    pub journal_failed: bool,
    /// Bytes of layers in RAM.
    pub layer_ram_bytes: u64,
    /// The read cache.
    pub cache: CacheCounts,
    /// RAM of the maps.
    pub map: MapCounts,
    /// Bytes that were put.
    pub put: PutBytes,
    /// The read cache on devices.
    pub ssd: SsdCounts,
    /// Cleaning.
    pub clean: CleanCounts,
    /// Scrubbing.
    pub scrub: ScrubCounts,
    /// Deleted volumes that clones need.
    pub gone: GoneCounts,
    /// What is being deleted for ever.
    pub ends: EndCounts,
}

/// See the module.
pub struct Shard {
    pub(crate) context: Rc<Context>,
    pools: RefCell<BTreeMap<Name, Pool>>,
    volumes: RefCell<BTreeMap<VolumeId, Rc<Volume>>>,
    /// Whose turn it is to open a volume.
    opening: RefCell<BTreeMap<VolumeId, Rc<Turn>>>,
    /// Who makes, ends or imports volumes at the moment.
    births: births::Births,
    /// Whoever brings back, ends or edits what is deleted: it is in nobody's list of volumes, and still each of its manifests follows from the one before.
    deleted: Turn,
    /// Deleted volumes that clones need.
    gone: gone::Gone,
    stopping: Cell<bool>,
    /// Whether somebody looks what windows have ended.
    sweeping: Cell<bool>,
    stopped: Signal,
}

impl Shard {
    /// Starts a shard on a journal that is made new.
    ///
    /// # Errors
    /// When the disk is too small or can not be written.
    pub async fn create(
        env: Rc<dyn Env>,
        disk: Rc<dyn Disk>,
        coord: Arc<dyn Coord>,
        limits: Limits,
    ) -> Result<Rc<Self>> {
        Self::start(env, vec![JournalDisk { disk, role: JournalRole::New }], coord, limits).await
    }

    /// Starts a shard on a journal that it had before.
    ///
    /// # Errors
    /// When the journal can not be read.
    pub async fn open(env: Rc<dyn Env>, disk: Rc<dyn Disk>, coord: Arc<dyn Coord>, limits: Limits) -> Result<Rc<Self>> {
        Self::start(env, vec![JournalDisk { disk, role: JournalRole::Used }], coord, limits).await
    }

    /// Starts a shard on its journals: 16 at most that stay, and 16 that are to be given up.
    ///
    /// # Errors
    /// When one of them can not be made or read.
    pub async fn start(
        env: Rc<dyn Env>,
        disks: Vec<JournalDisk>,
        coord: Arc<dyn Coord>,
        limits: Limits,
    ) -> Result<Rc<Self>> {
        let stages = Rc::new(Stages::default());
        let journals = Journals::start(&env, disks, &stages).await?;
        Ok(Self::with(env, journals, stages, coord, limits))
    }

    fn with(
        env: Rc<dyn Env>,
        journals: Journals,
        stages: Rc<Stages>,
        coord: Arc<dyn Coord>,
        limits: Limits,
    ) -> Rc<Self> {
        let context = Rc::new(Context {
            node: Cell::new(None),
            mirrors: RefCell::new(None),
            copies: RefCell::new(None),
            env,
            stages,
            journals,
            coord,
            cache: RefCell::new(BlockCache::new(limits.cache_ram)),
            ssd: SsdCache::default(),
            fetches: Fetches::default(),
            heads: RefCell::new(HeadCache::new((limits.map_ram / 8) as usize)),
            map: MapRam::default(),
            tables: RefCell::new(PageTables::new(limits.map_ram / 16)),
            limits,
            layer_ram: Cell::new(0),
            put: Cell::default(),
            relieved: Signal::default(),
            cleaning: Cleaning::new(limits.clean_rate),
            scrub: Scrub::new(limits.scrub_rate),
            ends: Ends::default(),
            timelines: RefCell::new(BTreeMap::new()),
        });
        context.journals.keep(&context);
        let this = Rc::new(Self {
            context,
            pools: RefCell::new(BTreeMap::new()),
            volumes: RefCell::new(BTreeMap::new()),
            opening: RefCell::default(),
            births: births::Births::default(),
            deleted: Turn::default(),
            gone: gone::Gone::default(),
            stopping: Cell::new(false),
            sweeping: Cell::new(false),
            stopped: Signal::default(),
        });
        let weak = Rc::downgrade(&this);
        let env = Rc::clone(&this.context.env);
        this.context.env.spawn(Box::pin(async move {
            let mut ticks = 0u32;
            loop {
                env.sleep(TICK).await;
                let Some(shard) = weak.upgrade() else { return };
                if shard.stopping.get() {
                    return;
                }
                ticks += 1;
                shard.tick(ticks.is_multiple_of(SWEEP_TICKS));
            }
        }));
        this
    }

    /// Whether it was told to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// The chores of a moment.
    fn tick(self: &Rc<Self>, sweep: bool) {
        let volumes: Vec<_> = self.volumes.borrow().values().cloned().collect();
        for volume in volumes {
            let timeline = volume.shown();
            timeline.seal_if_old();
            timeline.checkpoint_if_due();
            timeline.mirror_if_due();
            timeline.checkpoint_if_quiet();
            timeline.reclaim_if_due();
            timeline.clean_if_due();
            timeline.start_deletes();
            if sweep {
                volume.histories.clean_closed_if_due();
            }
        }
        self.context.fit_maps();
        self.context.mind_leases();
        if sweep {
            self.context.ssd.settle();
            self.scrub_if_due();
        }
        if sweep && !self.sweeping.replace(true) {
            // Beside the other chores: a store that is away must not keep layers from being sealed.
            let this = Rc::clone(self);
            self.context.env.spawn(Box::pin(async move {
                if let Err(error) = this.sweep().await {
                    tracing::warn!(%error, "what windows have ended could not be looked at; it will be tried again");
                }
                this.sweeping.set(false);
            }));
        }
    }

    /// Takes a device into use for the read cache. What an earlier process has left there is found beside other work.
    pub fn add_cache(&self, device: Rc<dyn CacheDevice>) {
        self.context.ssd.add(&self.context.env, device, self.context.limits.ssd_frames);
    }

    /// Makes a pool known. Its volumes can be opened then.
    pub fn add_pool(&self, name: Name, store: PoolStore, settings: Overrides) {
        self.pools.borrow_mut().insert(name, Pool { store: Rc::new(store), settings });
    }

    /// Forgets a pool, which has no volumes any more.
    pub fn remove_pool(&self, name: &Name) {
        self.pools.borrow_mut().remove(name);
    }

    /// Stops the volumes of a pool that another cluster has taken over: what they would still acknowledge, nobody would ever read.
    pub fn lose_pool(&self, name: &Name, why: &EngineError) {
        for volume in self.volumes.borrow().values().filter(|v| v.record().pool == *name) {
            volume.shown().stop(why.clone());
        }
    }

    /// Takes new settings of a pool.
    pub fn set_pool(&self, name: &Name, settings: Overrides) {
        if let Some(pool) = self.pools.borrow_mut().get_mut(name) {
            pool.settings = settings;
        }
        for volume in self.volumes.borrow().values().filter(|v| v.record().pool == *name) {
            volume.pool_changed(settings);
        }
    }

    pub(crate) fn pool(&self, name: &Name) -> Result<(Rc<PoolStore>, Overrides)> {
        let pools = self.pools.borrow();
        let pool = pools.get(name);
        let pool = pool.ok_or_else(|| EngineError::new(ErrorKind::NotFound, format!("there is no pool {name}")))?;
        Ok((Rc::clone(&pool.store), pool.settings))
    }

    /// Opens every volume that coordination lists and that is not deleted. Gives those that could not be opened, and why.
    ///
    /// # Errors
    /// When coordination does not answer.
    pub async fn open_all(self: &Rc<Self>) -> Result<Vec<(Name, EngineError)>> {
        let records = Records::new(&*self.context.coord).list_volumes().await?;
        let mut failed = Vec::new();
        let mut known = std::collections::BTreeSet::new();
        let node = self.context.node.get();
        let is_kept = |record: &&VolumeRecord| {
            record.counting_mirror().is_some_and(|mirror| Some(mirror.node) == node) && record.owner != node
        };
        let named = records.iter().map(|(record, _)| record).filter(is_kept);
        self.context.recover_copies(named.map(|record| (record.shown, record.epoch)));
        for (record, _) in records {
            known.extend(record.timelines.iter().map(|t| t.id));
            if record.deleted.is_none()
                && self.context.is_ours(&record)
                && let Err(error) = self.open_volume(record.id).await
            {
                failed.push((record.name, error));
            }
        }
        // Records of timelines that are no more, or that were put whole before they were hidden, keep no room.
        let waits = |timeline| !failed.is_empty() && known.contains(&timeline);
        self.context.retain_tails(waits);
        Ok(failed)
    }

    /// Opens a volume in a new epoch.
    ///
    /// # Errors
    /// `Corrupt` when it can not be recovered whole; those of store and coordination.
    pub async fn open_volume(self: &Rc<Self>, id: VolumeId) -> Result<Rc<Volume>> {
        self.opened(id, Claim::Own).await
    }

    /// Makes this node the owner of a volume that a node has run up to epoch `since`, and opens it with what this one has. Whoever runs it is fenced with that.
    /// What only that one or its mirror had is lost: for a person to force.
    ///
    /// # Errors
    /// `Fenced` where its epoch is another by now; those of [`open_volume`](Self::open_volume), with which the volume is this node's all the same.
    pub async fn take_over(self: &Rc<Self>, id: VolumeId, since: Epoch) -> Result<Rc<Volume>> {
        self.opened(id, Claim::Forced(since)).await
    }

    /// The same on the mirror of the volume, with the copy that it has: nothing is lost.
    ///
    /// # Errors
    /// `Conflict` where this node has no copy that is in sync; those of [`take_over`](Self::take_over).
    pub async fn take_over_as_mirror(self: &Rc<Self>, id: VolumeId) -> Result<Rc<Volume>> {
        self.opened(id, Claim::Mirror).await
    }

    async fn opened(self: &Rc<Self>, id: VolumeId, claim: Claim) -> Result<Rc<Volume>> {
        // One by one: each opening ends the epoch of the one before.
        let turn = {
            let mut opening = self.opening.borrow_mut();
            opening.retain(|_, turn| Rc::strong_count(turn) > 1);
            Rc::clone(opening.entry(id).or_default())
        };
        let _turn = turn.take().await;
        if let Some(volume) = self.volumes.borrow().get(&id) {
            return Ok(Rc::clone(volume));
        }
        let volume = self.open_unlisted(id, claim).await?;
        self.volumes.borrow_mut().insert(id, Rc::clone(&volume));
        Ok(volume)
    }

    /// Says which node of a cluster this is: it runs the volumes that it is the owner of, and no others. To be said before anything is opened.
    pub fn serve_as(&self, node: NodeId) {
        self.context.node.set(Some(node));
    }

    /// Says which nodes may keep copies of the tails of its volumes, and what it keeps itself of others: as much as its journals could take over.
    pub fn mirror_on(&self, nodes: Rc<dyn MirrorNodes>, copies: Rc<Copies>) {
        let journals = self.journals();
        let stay = || journals.iter().filter(|journal| !journal.leaving).map(|journal| journal.bytes);
        copies.set_shard(&self.context, stay().min().unwrap_or(0), stay().sum());
        self.context.mirrors.replace(Some(nodes));
        self.context.copies.replace(Some(copies));
    }

    /// Opens a volume that nobody can find yet.
    async fn open_unlisted(self: &Rc<Self>, id: VolumeId, claim: Claim) -> Result<Rc<Volume>> {
        let (record, _) = Records::new(&*self.context.coord).load_volume(id).await?;
        let (pool, settings) = self.pool(&record.pool)?;
        let volume = Volume::open(Rc::clone(&self.context), pool, settings, id, claim).await?;
        if let Some(copies) = &*self.context.copies.borrow() {
            copies.is_own_now(record.shown);
        }
        self.context.retain_tails(|timeline| timeline != record.shown);
        Ok(volume)
    }

    /// Lets go of a volume that another node runs by now: it has stopped, and what is left of it here is of no use to anybody.
    pub fn forget(&self, id: VolumeId) {
        let mut volumes = self.volumes.borrow_mut();
        // Whatever stopped it: it can not be opened again before it is gone.
        let Some(volume) = volumes.get(&id).filter(|volume| volume.stopped().is_some()) else { return };
        // What it needs of the journal nobody else would ever give up: the ring would be full once it came round to that.
        volume.shown().let_go();
        volumes.remove(&id);
    }

    /// An open volume by name.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub fn find(&self, name: &Name) -> Result<Rc<Volume>> {
        let found = self.volumes.borrow().values().find(|volume| volume.name() == *name).cloned();
        found.ok_or_else(|| EngineError::new(ErrorKind::NotFound, format!("there is no volume {name}")))
    }

    /// All open volumes, by name.
    pub fn volumes(&self) -> Vec<Rc<Volume>> {
        let mut all: Vec<_> = self.volumes.borrow().values().cloned().collect();
        all.sort_by_key(|volume| volume.name());
        all
    }

    /// Numbers of the shard.
    pub fn counts(&self) -> ShardCounts {
        let journals = self.context.journals.counts();
        ShardCounts {
            journal_bytes: journals.iter().map(|journal| journal.bytes).sum(),
            journal_used: journals.iter().map(|journal| journal.used).sum(),
            journal_failed: journals.iter().any(|journal| journal.failed),
            layer_ram_bytes: self.context.layer_ram.get(),
            cache: self.context.cache.borrow().counts(),
            map: self.context.map_counts(),
            put: self.context.put.get(),
            ssd: self.context.ssd.counts(),
            clean: self.context.cleaning.counts(self.context.env.now()),
            scrub: self.context.scrub.counts(),
            gone: self.gone_counts(),
            ends: self.context.ends.counts(),
        }
    }

    /// Numbers of its journals, in the order in which it was started with them.
    pub fn journals(&self) -> Vec<JournalCounts> {
        self.context.journals.counts()
    }

    /// How long its stages take.
    pub fn stages(&self) -> impl Iterator<Item = (Stage, StageTimes)> {
        Stage::ALL.into_iter().zip(self.context.stages.times())
    }

    /// Ends: makes the journal durable, so that a start needs nothing else. What is not in the store yet stays in the journal.
    ///
    /// # Errors
    /// When the journal has failed and the store did not take everything.
    pub async fn stop(&self) -> Result<()> {
        self.stopping.set(true);
        self.context.ends.stop();
        let volumes = self.volumes();
        let mut result = Ok(());
        for volume in &volumes {
            let timeline = volume.shown();
            if timeline.is_stopped() {
                continue;
            }
            if let Err(error) = timeline.flush_waiting().await {
                result = Err(error);
            }
        }
        for volume in volumes {
            volume.shown().stop(EngineError::new(ErrorKind::Unavailable, "the node stops"));
        }
        self.stopped.ring();
        self.context.ssd.stop().await;
        result
    }
}
