// SPDX-License-Identifier: Apache-2.0
//! A node in a simulated world: what outlives a process (disk, store, coordination), and the process of now with its shard.
//!
//! Tests and the swarm share it; it takes no decision of its own.
//!
//! A test drives it from outside: it runs futures to their end, kills the process, lets the power go, and starts the next process. Devices speak as a front
//! end does: a write counts as answered once it was applied and committed.

use crate::{
    CoordLine, CrashMode, DiskMedium, InFlight, RunError, SimCache, SimCoord, SimEnv, SimOptions, SimWorld, StoreServer,
};
use bytes::{Bytes, BytesMut};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use varve_coord::{Memory, PoolRecord, Record, Records};
use varve_engine::{
    BlockDevice, Device, EngineError, JournalDisk, JournalRole, Limits, NewVolume, PoolStore, Shard, Submit, Volume,
};
use varve_types::{Name, Overrides};

/// What a run in the world gives.
pub type Run<T> = Result<T, RunError>;

/// Small bounds, so that everything that happens seldom happens often.
pub fn small_limits() -> Limits {
    Limits {
        layer_ram: 1 << 20,
        layer_runs: 256,
        cache_ram: 1 << 20,
        map_ram: 1 << 20,
        map_dirty: 4,
        map_object: 4 << 10,
        ssd_frames: 8,
        overlay_entries: 64,
        delete_grace_ms: 10,
        puts: 2,
        reclaim_level: 0,
        reclaim_nodes: 3,
        ask_kills: 40,
        rewind_runs: 4,
        occupancy: 80,
        clean_rate: 0,
        lease_ms: 20_000,
        scrub_rate: 0,
        scrub_interval_ms: 0,
        end_objects: 4,
    }
}

/// Settings of the pool: small segments, and no past, so that what is overwritten is free. They are the pool's because a manifest takes only what a person may set.
pub fn small_segments() -> Overrides {
    Overrides { segment_size: Some(64 << 10), rewind_window_ms: Some(0), ..Overrides::default() }
}

/// See the module.
pub struct Node {
    /// Its world.
    pub world: SimWorld,
    /// The disk that its journal lies on.
    pub disk: DiskMedium,
    /// Disks of more journals, and what they are for the next shard that is started on what was there.
    pub more: Vec<(DiskMedium, JournalRole)>,
    /// The pool's store.
    pub server: StoreServer,
    /// Pools beside `default`, and their stores.
    pub others: Vec<(Name, StoreServer)>,
    /// Coordination.
    pub coord: Arc<Memory>,
    /// How far away it is, there and back.
    pub coord_latency: Duration,
    /// The line to it.
    pub coord_line: Arc<CoordLine>,
    /// The device that its read cache lies on, if it has one.
    pub cache: Option<DiskMedium>,
    /// Bounds that the next shard is started with.
    pub limits: Limits,
    /// Settings of the pool.
    pub pool: Overrides,
    /// Number of the owner record by which the pool is this cluster's.
    pub owner: u64,
    /// The process of now.
    pub env: Rc<SimEnv>,
    shard: RefCell<Option<Rc<Shard>>>,
}

/// A name that is known to be good.
///
/// # Panics
/// When it is not.
#[must_use]
pub fn name(text: &str) -> Name {
    text.parse().expect("tests use good names")
}

impl Node {
    /// A world with an empty journal disk, an empty store and a pool that is known; no shard yet.
    pub fn new(options: SimOptions, journal: u64) -> Self {
        let world = SimWorld::new(options);
        let disk = DiskMedium::new(&world, "journal", journal);
        let server = StoreServer::new(&world, "pool");
        let env = world.process("node");
        let coord = Arc::new(Memory::new());
        record_pool(&world, &coord, name("default"), "pool");
        let (limits, pool) = (small_limits(), small_segments());
        let (coord_latency, coord_line) = (Duration::ZERO, Arc::default());
        let (cache, shard) = (None, RefCell::new(None));
        let (more, others) = (Vec::new(), Vec::new());
        Self {
            world,
            disk,
            more,
            server,
            others,
            coord,
            coord_latency,
            coord_line,
            cache,
            limits,
            pool,
            owner: 1,
            env,
            shard,
        }
    }

    /// Makes another pool, with a store of its own; the next shard knows it.
    pub fn create_pool(&mut self, pool: &str) -> StoreServer {
        record_pool(&self.world, &self.coord, name(pool), pool);
        let server = StoreServer::new(&self.world, pool);
        self.others.push((name(pool), server.clone()));
        server
    }

    /// A node of another cluster beside this one: the same world and store, an empty disk, a coordination that knows nothing.
    pub fn stranger(&self, process: &str) -> Self {
        let world = self.world.clone();
        let disk = DiskMedium::new(&world, process, self.disk_len());
        let env = world.process(process);
        let coord = Arc::new(Memory::new());
        let (server, limits, pool) = (self.server.clone(), self.limits, self.pool);
        let (coord_latency, coord_line) = (self.coord_latency, Arc::default());
        let (cache, shard) = (None, RefCell::new(None));
        let (more, others) = (Vec::new(), self.others.clone());
        Self {
            world,
            disk,
            more,
            server,
            others,
            coord,
            coord_latency,
            coord_line,
            cache,
            limits,
            pool,
            owner: 0,
            env,
            shard,
        }
    }

    /// A second node of the same cluster: the same world, store and coordination, an empty disk.
    pub fn second(&self, process: &str) -> Self {
        Self { coord: Arc::clone(&self.coord), owner: self.owner, ..self.stranger(process) }
    }

    fn disk_len(&self) -> u64 {
        varve_env::Disk::len(&self.disk.open(&self.world.process("ruler")))
    }

    /// Runs a future of the process to its end.
    pub fn run<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Run<T> {
        self.world.block_on(&self.env, future)
    }

    /// Runs a future that neither dies nor fails.
    pub fn must<T: 'static>(&self, what: &str, future: impl Future<Output = Result<T, EngineError>> + 'static) -> T {
        match self.run(future) {
            Ok(Ok(value)) => value,
            Ok(Err(error)) => panic!("{what}: {error} ({:?})", error.kind()),
            Err(error) => panic!("{what}: {error}"),
        }
    }

    /// The shard of now.
    pub fn shard(&self) -> Rc<Shard> {
        Rc::clone(self.shard.borrow().as_ref().expect("the shard was started"))
    }

    /// Starts the shard on a fresh journal.
    pub fn create(&self) -> Run<Result<(), EngineError>> {
        let (env, mut disks, coord, limits) = self.parts();
        disks.iter_mut().for_each(|disk| disk.role = JournalRole::New);
        let shard = self.run(async move { Shard::start(env, disks, coord, limits).await })?;
        Ok(shard.map(|shard| self.adopt(shard)))
    }

    /// Starts the shard on the journal of the process before. Gives the volumes that could not be opened.
    pub fn open(&self) -> Run<Result<Vec<(Name, EngineError)>, EngineError>> {
        match self.start_only()? {
            Ok(shard) => self.run(async move { shard.open_all().await }),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Starts the shard on the journal of the process before, and opens no volume yet.
    pub fn start_only(&self) -> Run<Result<Rc<Shard>, EngineError>> {
        let (env, disks, coord, limits) = self.parts();
        let shard = self.run(async move { Shard::start(env, disks, coord, limits).await })?;
        Ok(shard.inspect(|shard| self.adopt(Rc::clone(shard))))
    }

    fn parts(&self) -> (Rc<dyn varve_env::Env>, Vec<JournalDisk>, Arc<dyn varve_coord::Coord>, Limits) {
        let env: Rc<dyn varve_env::Env> = Rc::<SimEnv>::clone(&self.env);
        let (memory, line) = (Arc::clone(&self.coord), Arc::clone(&self.coord_line));
        let coord = Arc::new(SimCoord::new(&self.world, &self.env, memory, self.coord_latency, line));
        let open = |disk: &DiskMedium, role| JournalDisk { disk: Rc::new(disk.open(&self.env)), role };
        let mut disks = vec![open(&self.disk, JournalRole::Used)];
        disks.extend(self.more.iter().map(|(disk, role)| open(disk, *role)));
        (env, disks, coord, self.limits)
    }

    fn adopt(&self, shard: Rc<Shard>) {
        if let Some(cache) = &self.cache {
            shard.add_cache(Rc::new(SimCache::new(cache, &self.env)));
        }
        *self.shard.borrow_mut() = Some(shard);
        self.add_pool();
    }

    /// Makes the pools known to the shard, by the owner's number of now.
    pub fn add_pool(&self) {
        let others = self.others.iter().map(|(pool, server)| (pool.clone(), server));
        for (pool, server) in others.chain([(name("default"), &self.server)]) {
            let store = PoolStore::new(server.client(&self.env), self.owner);
            self.shard().add_pool(pool, store, self.pool);
        }
    }

    /// Ends the process, makes the disk what the crash leaves of it, settles its puts, and begins a new process without a shard.
    pub fn crash(&mut self, mode: CrashMode, fate: InFlight) {
        self.world.kill(&self.env);
        self.disk.crash(mode);
        self.more.iter().for_each(|(disk, _)| disk.crash(mode));
        self.cache.iter().for_each(|cache| cache.crash(mode));
        self.server.settle(&self.env, fate);
        self.others.iter().for_each(|(_, server)| server.settle(&self.env, fate));
        self.shard.borrow_mut().take();
        self.env = self.world.process("node");
    }

    /// Starts anew after a crash; every volume must open.
    pub fn reopen(&self) {
        let failed = self.open().expect("the world runs").expect("the shard opens");
        assert!(failed.is_empty(), "volumes that do not open: {failed:?}");
    }

    /// An open volume.
    pub fn volume(&self, volume: &str) -> Rc<Volume> {
        self.shard().find(&name(volume)).expect("the volume is open")
    }

    /// Makes a volume.
    pub fn create_volume(&self, volume: &str, size: u64) -> Rc<Volume> {
        self.create_volume_in("default", volume, size)
    }

    /// Makes a volume in a pool.
    pub fn create_volume_in(&self, pool: &str, volume: &str, size: u64) -> Rc<Volume> {
        let shard = self.shard();
        let new = NewVolume { name: name(volume), pool: name(pool), size, settings: Overrides::default() };
        self.must("create a volume", async move { shard.create_volume(new).await })
    }

    /// Attaches to a volume.
    pub fn device(&self, volume: &str) -> Rc<Device> {
        let volume = self.volume(volume);
        self.must("attach", async move { volume.device("test".to_owned()).await.map(|(device, _)| Rc::new(device)) })
    }

    /// Writes, as a front end does.
    pub fn write(&self, device: &Rc<Device>, offset: u64, data: Vec<u8>, fua: bool) -> Run<Result<(), EngineError>> {
        let device = Rc::clone(device);
        self.run(async move { finish(&device, device.write(offset, data.into(), fua)).await })
    }

    /// Discards, as a front end does.
    pub fn discard(&self, device: &Rc<Device>, offset: u64, len: u64, fua: bool) -> Run<Result<(), EngineError>> {
        let device = Rc::clone(device);
        self.run(async move { finish(&device, device.discard(offset, len, fua)).await })
    }

    /// Flushes.
    pub fn flush(&self, device: &Rc<Device>) -> Run<Result<(), EngineError>> {
        let device = Rc::clone(device);
        self.run(async move { wait(device.flush()).await })
    }

    /// Reads.
    pub fn read(&self, device: &Rc<Device>, offset: u64, len: u32) -> Run<Result<Bytes, EngineError>> {
        let device = Rc::clone(device);
        self.run(async move { read(&device, offset, len).await })
    }
}

/// Has coordination know a pool.
fn record_pool(world: &SimWorld, coord: &Arc<Memory>, pool: Name, store: &str) {
    let record = PoolRecord {
        version: PoolRecord::VERSION,
        store: format!("sim:///{store}"),
        name: pool,
        owner_number: 1,
        settings: Overrides::default(),
        created_ms: 0,
    };
    let (keeper, to) = (world.process("setup"), Arc::clone(coord));
    let made = world.block_on(&keeper, async move { Records::new(&*to).create_pool(&record).await.map(drop) });
    made.expect("the setup runs").expect("the pool is made");
    world.kill(&keeper);
}

/// Waits for what was submitted.
pub async fn wait<T>(submit: Submit<T>) -> Result<T, EngineError> {
    submit.wait().await
}

/// Waits for a change and commits it.
pub async fn finish(device: &Device, submit: Submit<()>) -> Result<(), EngineError> {
    match submit {
        Submit::Done(done) => {
            done?;
            device.commit().wait().await
        }
        Submit::Later(later) => later.await,
    }
}

/// Reads as a front end does.
pub async fn read(device: &Device, offset: u64, len: u32) -> Result<Bytes, EngineError> {
    let mut out = BytesMut::new();
    match device.read(offset, len, &mut out) {
        Submit::Done(done) => done.map(|_| out.freeze()),
        Submit::Later(later) => later.await,
    }
}
