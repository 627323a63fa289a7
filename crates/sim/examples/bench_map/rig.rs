// SPDX-License-Identifier: Apache-2.0
//! One volume on a shard of the real world: a journal in a file, coordination in a file, a store whose segments
//! are computed.
//!
//! A rig writes generated segments, takes snapshots and clones by the clock, and proves with samples that what the
//! map says is what was written last.
//! It can end its shard and start another on the same journal, coordination and store: what the map says must be
//! the same again.
//!
//! Its files lie in a directory of its own, which goes with it.

use crate::pattern::{Order, Pattern, SEGMENT_BLOCKS, bytes_of, find, mix};
use crate::store::GeneratedStore;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::error::Error;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use varve_coord::{Coord, Embedded, PoolRecord, Record, Records};
use varve_engine::{BlockDevice, Device, EngineError, Limits, MapCounts, NewVolume, PoolStore, Shard, Submit, Volume};
use varve_env::real::{ComputePool, FileDisk, PoolOptions, RealEnv};
use varve_types::{BLOCK, Name, Overrides};

/// What is measured is the map: its store keeps no data that could be cleaned.
fn limits(map_ram: Option<u64>) -> Limits {
    // Without a bound on it all of a map stays in RAM, which tells what it takes.
    let (map_ram, cache_ram) = map_ram.map_or((1 << 40, 256 << 20), |bytes| (bytes, 64 << 20));
    Limits { occupancy: 0, map_ram, cache_ram, ..Limits::default() }
}

/// What a step gives; the program ends with the first error.
pub type Outcome<T> = Result<T, Box<dyn Error>>;

/// Bytes of the journal: only snapshots and single blocks pass it.
const JOURNAL: u64 = 64 << 20;
/// Blocks whose newest contents are remembered and compared.
const SAMPLES: u64 = 256;
/// How long a snapshot's data may take to be put.
const PATIENCE: Duration = Duration::from_secs(60);

/// Median and longest of some times.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// The median, in milliseconds.
    pub median_ms: f64,
    /// The longest, in milliseconds.
    longest_ms: f64,
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} ms (longest {:.1})", self.median_ms, self.longest_ms)
    }
}

impl Times {
    fn of(mut all: Vec<Duration>) -> Self {
        all.sort_unstable();
        let ms = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1e3);
        Self { median_ms: ms(all.get(all.len() / 2)), longest_ms: ms(all.last()) }
    }
}

/// What ends with a shard.
struct Live {
    shard: Rc<Shard>,
    volume: Rc<Volume>,
    device: Device,
}

/// See the module.
pub struct Rig {
    env: Rc<RealEnv>,
    coord: Arc<dyn Coord>,
    /// `None` only while one shard follows another.
    live: Option<Live>,
    /// The store.
    pub store: Arc<GeneratedStore>,
    blocks: u64,
    limits: Limits,
    /// Of the pool.
    settings: Overrides,
    /// Block of the volume → (ordinal, block of the segment), once it was written.
    samples: BTreeMap<u64, Option<(u64, u64)>>,
    names: u64,
    stall: Rc<Cell<Duration>>,
    directory: TempDir,
}

fn name(text: &str) -> Outcome<Name> {
    Ok(text.parse()?)
}

async fn finish<T>(submit: Submit<T>) -> Result<T, EngineError> {
    submit.wait().await
}

impl Rig {
    /// An empty volume of so many bytes; its map may take `map_ram` bytes of RAM, and lies in files then.
    pub async fn new(size: u64, map_ram: Option<u64>) -> Outcome<Self> {
        Self::with(size, map_ram, Overrides::default()).await
    }

    /// The same in a pool with these settings.
    pub async fn with(size: u64, map_ram: Option<u64>, settings: Overrides) -> Outcome<Self> {
        let limits = limits(map_ram);
        let directory = TempDir::new()?;
        let options = PoolOptions { name: "compute".to_owned(), threads: 1, queue: 16, nice: false };
        let env = Rc::new(RealEnv::new(Arc::new(ComputePool::new(&options)?)));
        let disk = Rc::new(FileDisk::create(&directory.path().join("journal"), JOURNAL)?);
        let coord: Arc<dyn Coord> = Arc::new(Embedded::open(directory.path().join("coord"))?);
        let store = Arc::new(GeneratedStore::new(directory.path().to_owned(), map_ram.is_some()));
        let pool = PoolRecord {
            version: PoolRecord::VERSION,
            name: name("default")?,
            store: "generated:///".to_owned(),
            owner_number: 1,
            settings: Overrides::default(),
            created_ms: 0,
        };
        Records::new(&*coord).create_pool(&pool).await?;
        let shard = Shard::create(env.clone(), disk, Arc::clone(&coord), limits).await?;
        shard.add_pool(name("default")?, PoolStore::new(store.clone(), 1), settings);
        let new = NewVolume { name: name("v")?, pool: name("default")?, size, settings: Overrides::default() };
        let volume = shard.create_volume(new).await?;
        let (device, _) = volume.device("bench".to_owned()).await?;
        let live = Some(Live { shard, volume, device });
        let blocks = size / BLOCK;
        let samples = (0..SAMPLES).map(|i| (mix(!i) & (blocks - 1), None)).collect();
        let stall = Rc::new(Cell::new(Duration::ZERO));
        tokio::task::spawn_local(watch(Rc::downgrade(&stall)));
        Ok(Self { env, coord, live, store, blocks, limits, settings, samples, names: 0, stall, directory })
    }

    /// Segments that are as large as the volume.
    pub const fn segments(&self) -> u64 {
        self.blocks / SEGMENT_BLOCKS
    }

    /// Takes in segments `numbers` of an order. Gives the bytes of data in them.
    pub async fn write(&mut self, order: Order, numbers: std::ops::Range<u64>) -> Outcome<u64> {
        let mut data = 0;
        for number in numbers {
            let pattern = Pattern { order, blocks: self.blocks, number };
            let index = pattern.index();
            let places: Vec<_> =
                self.samples.keys().filter_map(|block| Some((*block, find(&index, *block)?))).collect();
            data += index.extents.iter().map(|extent| extent.blocks * BLOCK).sum::<u64>();
            let volume = Rc::clone(&self.live().volume);
            let (store, samples) = (&self.store, &mut self.samples);
            let announce = |facts: &_| {
                let facts: &varve_format::segment::SegmentFacts = facts;
                store.announce(facts, pattern);
                samples.extend(places.into_iter().map(|(block, at)| (block, Some((facts.ordinal.0, at)))));
            };
            volume.take_generated(index, announce).await?;
            // A front end returns to its loop after each batch.
            tokio::task::yield_now().await;
        }
        Ok(data)
    }

    /// Reads so many blocks of the volume, drawn at random; so many at a time.
    pub async fn read(&self, count: u64, seed: u64, at_a_time: usize) -> Outcome<()> {
        let device = &self.live().device;
        let read = async |at: u64| {
            let (block, mut out) = (mix(seed ^ (at + 1)) & (self.blocks - 1), BytesMut::new());
            finish(device.read(block * BLOCK, BLOCK as u32, &mut out)).await.map(drop)
        };
        let mut reads = stream::iter((0..count).map(read)).buffer_unordered(at_a_time);
        while let Some(done) = reads.next().await {
            done?;
        }
        Ok(())
    }

    /// What the shard counts of its maps.
    pub fn map_counts(&self) -> MapCounts {
        self.live().shard.counts().map
    }

    /// Merges everything into the map. Gives the time it took, in seconds.
    pub async fn merge(&self) -> Outcome<f64> {
        let start = Instant::now();
        self.live().volume.merge_all().await?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Bytes of the map in RAM.
    pub fn map_ram(&self) -> usize {
        self.live().volume.counts().map_ram_bytes
    }

    /// The longest time for which the shard did nothing else, since the last call, in milliseconds.
    pub fn take_stall(&self) -> f64 {
        self.stall.take().as_secs_f64() * 1e3
    }

    /// Takes snapshots and clones them once their data are put: times of both.
    pub async fn snapshots(&mut self, count: u64) -> Outcome<(Times, Times)> {
        let (mut taken, mut cloned) = (Vec::new(), Vec::new());
        for _ in 0..count {
            self.names += 1;
            // Something to flush, and a block that the clone must not share.
            let block = mix(self.names) & (self.blocks - 1);
            self.write_block(block).await?;
            let (snapshot, clone) = (name(&format!("s{}", self.names))?, name(&format!("c{}", self.names))?);
            let start = Instant::now();
            self.live().volume.snapshot(snapshot.clone()).await?;
            taken.push(start.elapsed());
            self.until_stored(&snapshot).await?;
            let start = Instant::now();
            self.live().shard.clone_volume(&name("v")?, Some(&snapshot), clone, Overrides::default()).await?;
            cloned.push(start.elapsed());
        }
        Ok((Times::of(taken), Times::of(cloned)))
    }

    fn live(&self) -> &Live {
        self.live.as_ref().expect("a rig is open but while it is opened again")
    }

    async fn write_block(&mut self, block: u64) -> Outcome<()> {
        let device = &self.live().device;
        finish(device.write(block * BLOCK, Bytes::from(vec![7; BLOCK as usize]), false)).await?;
        finish(device.commit()).await?;
        self.samples.remove(&block);
        Ok(())
    }

    /// Ends the shard and starts another, on the same journal. Gives the time until every volume was open, in
    /// seconds.
    pub async fn reopen(&mut self) -> Outcome<f64> {
        if let Some(live) = self.live.take() {
            live.shard.stop().await?;
        }
        // The tasks of the old shard end with their next look at it, and the lock of the journal with the last of
        // them.
        let (journal, patience) = (self.directory.path().join("journal"), Instant::now());
        let disk = loop {
            match FileDisk::open(&journal) {
                Ok(disk) => break Rc::new(disk),
                Err(error) if patience.elapsed() > PATIENCE => return Err(error.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let start = Instant::now();
        let shard = Shard::open(self.env.clone(), disk, Arc::clone(&self.coord), self.limits).await?;
        shard.add_pool(name("default")?, PoolStore::new(self.store.clone(), 1), self.settings);
        if let Some((volume, error)) = shard.open_all().await?.into_iter().next() {
            return Err(format!("volume {volume} does not open: {error}").into());
        }
        let opened = start.elapsed().as_secs_f64();
        let volume = shard.volumes().into_iter().next().ok_or("there is no volume")?;
        let (device, _) = volume.device("bench".to_owned()).await?;
        self.live = Some(Live { shard, volume, device });
        Ok(opened)
    }

    async fn until_stored(&self, snapshot: &Name) -> Outcome<()> {
        let start = Instant::now();
        while !self.live().volume.find_snapshot(snapshot).await?.stored {
            if start.elapsed() > PATIENCE {
                return Err(format!("the data of snapshot {snapshot} are not put").into());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Reads the samples and compares them with what was written last.
    pub async fn verify(&self) -> Outcome<()> {
        for (block, written) in &self.samples {
            let Some((ordinal, at)) = *written else { continue };
            let mut out = BytesMut::new();
            let later = finish(self.live().device.read(block * BLOCK, BLOCK as u32, &mut out)).await?;
            if [&out[..], &later[..]].concat() != bytes_of(ordinal, at, *block) {
                return Err(format!("block {block} is not block {at} of segment {ordinal}").into());
            }
        }
        Ok(())
    }

    /// The shard of now.
    pub fn shard(&self) -> Rc<Shard> {
        Rc::clone(&self.live().shard)
    }

    /// The volume, while it is there.
    pub fn volume(&self) -> Rc<Volume> {
        Rc::clone(&self.live().volume)
    }

    /// Takes a snapshot, and waits until its data are put.
    pub async fn snapshot(&self, text: &str) -> Outcome<()> {
        let snapshot = name(text)?;
        self.live().volume.snapshot(snapshot.clone()).await?;
        self.until_stored(&snapshot).await
    }

    /// Deletes a snapshot. Gives the time until it was answered, in milliseconds.
    pub async fn delete_snapshot(&self, text: &str) -> Outcome<f64> {
        let (snapshot, start) = (name(text)?, Instant::now());
        self.live().volume.delete_snapshot(&snapshot).await?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }

    /// Discards all of the volume and makes that durable. Gives the time until it was answered, in milliseconds. What was written is forgotten.
    pub async fn discard_all(&mut self) -> Outcome<f64> {
        let start = Instant::now();
        let device = &self.live().device;
        finish(device.discard(0, self.blocks * BLOCK, false)).await?;
        finish(device.commit()).await?;
        finish(device.flush()).await?;
        let answered = start.elapsed().as_secs_f64() * 1e3;
        self.samples.values_mut().for_each(|written| *written = None);
        Ok(answered)
    }

    /// Deletes the volume. Gives the time until it was answered, in milliseconds.
    pub async fn delete_volume(&mut self) -> Outcome<f64> {
        let live = self.live.take().expect("a rig is open but while it is opened again");
        let Live { shard, volume, device } = live;
        drop((volume, device));
        // The device lets go of it with the next turn of the shard.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let start = Instant::now();
        shard.delete_volume(&name("v")?).await?;
        let answered = start.elapsed().as_secs_f64() * 1e3;
        let new = NewVolume { name: name("w")?, pool: name("default")?, size: BLOCK, settings: Overrides::default() };
        let volume = shard.create_volume(new).await?;
        let (device, _) = volume.device("bench".to_owned()).await?;
        self.live = Some(Live { shard, volume, device });
        Ok(answered)
    }

    /// Ends the shard.
    pub async fn end(self) -> Outcome<()> {
        Ok(self.live().shard.stop().await?)
    }
}

/// Sleeps again and again, and notes by how much it was woken too late.
async fn watch(longest: std::rc::Weak<Cell<Duration>>) {
    const NAP: Duration = Duration::from_millis(1);
    loop {
        let start = Instant::now();
        tokio::time::sleep(NAP).await;
        let Some(longest) = longest.upgrade() else { return };
        longest.set(longest.get().max(start.elapsed().saturating_sub(NAP)));
    }
}
