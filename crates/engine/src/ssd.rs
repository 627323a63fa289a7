// SPDX-License-Identifier: Apache-2.0
//! The read cache of a shard on devices of its own: verified blocks under (timeline, ordinal, block), as in RAM, so clones share
//! what they inherit, nothing is ever invalidated, and it is as good after a restart as before.
//!
//! It stands between the cache in RAM and the store. What is read from the store goes into both; what is found here goes into RAM.
//! Each segment has one device, by its name; a device that fails, hangs or is full costs time and nothing else. Which volumes use it,
//! and how much of it, their settings say (`cache`, `cache-quota`): that is asked where blocks are fetched.
//!
//! Always holds: what is given out was compared with the checksum that it came with; nobody who writes to it is ever waited for by a
//! guest.

mod device;
mod index;
mod load;

use crate::cache::CacheKey;
use device::{PATIENCE, Ssd};
use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use varve_env::{CacheDevice, Env};
use varve_format::chunk::Block;
use varve_types::TimelineId;

/// Numbers of the cache on devices since the shard began, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SsdCounts {
    /// Devices.
    pub devices: u64,
    /// Devices that are let be because they failed or hung a moment ago.
    pub resting: u64,
    /// Bytes of the devices.
    pub bytes: u64,
    /// Blocks held.
    pub blocks: u64,
    /// Blocks that were found.
    pub hits: u64,
    /// Blocks that were not.
    pub misses: u64,
    /// Blocks that were taken in.
    pub inserted: u64,
    /// Blocks that were not, as the device could not take them fast enough.
    pub refused: u64,
    /// Blocks that failed verification, and were dropped.
    pub damaged: u64,
    /// Calls that failed or took too long.
    pub errors: u64,
    /// Bytes written.
    pub written: u64,
}

impl SsdCounts {
    fn add(&mut self, other: &Self) {
        self.devices += other.devices;
        self.resting += other.resting;
        self.bytes += other.bytes;
        self.blocks += other.blocks;
        self.hits += other.hits;
        self.misses += other.misses;
        self.inserted += other.inserted;
        self.refused += other.refused;
        self.damaged += other.damaged;
        self.errors += other.errors;
        self.written += other.written;
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct SsdCache {
    devices: RefCell<Vec<Rc<Ssd>>>,
}

impl SsdCache {
    /// Takes a device into use; what was on it is found beside other work.
    pub fn add(&self, env: &Rc<dyn Env>, device: Rc<dyn CacheDevice>, frames: usize) {
        let ssd = Ssd::new(Rc::clone(env), device, frames);
        self.devices.borrow_mut().push(Rc::clone(&ssd));
        env.spawn(Box::pin(async move { load::load(&ssd).await }));
    }

    /// The device that has what there is of a segment.
    fn device(&self, key: &CacheKey) -> Option<Rc<Ssd>> {
        let devices = self.devices.borrow();
        let bytes = key.timeline.to_bytes();
        let id = u64::from_le_bytes(bytes[8..].try_into().expect("eight bytes"));
        let number = (id ^ key.ordinal.0).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let place = number.checked_rem(devices.len() as u64)?;
        devices.get(place as usize).cloned()
    }

    /// Gives those of some blocks of one segment that it has in their places; the rest stays as it is.
    pub async fn get(&self, keys: &[CacheKey], found: &mut [Option<Block>]) {
        if let Some(device) = keys.first().and_then(|key| self.device(key)) {
            device.get(keys, found).await;
        }
    }

    /// Takes a verified block in, if there is room at this moment.
    pub fn insert(&self, key: &CacheKey, block: &[u8], sum: u32) {
        if let Some(device) = self.device(key) {
            device.insert(key, block, sum, false);
        }
    }

    /// The same for what nobody waits for: it goes as fast as the device takes it.
    pub async fn insert_patiently(&self, key: &CacheKey, block: &[u8], sum: u32) {
        if let Some(device) = self.device(key) {
            device.until_room().await;
            device.insert(key, block, sum, false);
        }
    }

    /// Blocks that it holds of a timeline.
    pub fn blocks_of(&self, timeline: TimelineId) -> u64 {
        self.devices.borrow().iter().map(|device| device.blocks_of(timeline)).sum()
    }

    /// Whether there is any device.
    pub fn is_there(&self) -> bool {
        !self.devices.borrow().is_empty()
    }

    /// Writes what was taken in, with what leads to it.
    pub fn settle(&self) {
        self.devices.borrow().iter().for_each(Ssd::settle);
    }

    /// The same, and waits for it, for a while.
    pub async fn stop(&self) {
        self.settle();
        let devices = self.devices.borrow().clone();
        for device in devices {
            device.quiet().await;
        }
    }

    /// Counts, of all devices together.
    pub fn counts(&self) -> SsdCounts {
        let mut all = SsdCounts::default();
        self.devices.borrow().iter().for_each(|device| all.add(&device.counts()));
        all
    }
}

/// What a device answers within its time; then the error is `TimedOut`.
async fn within<T>(env: &dyn Env, call: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match futures_util::future::select(pin!(call), env.sleep(PATIENCE)).await {
        futures_util::future::Either::Left((done, _)) => done,
        futures_util::future::Either::Right(((), _)) => {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer for {} s", PATIENCE.as_secs())))
        }
    }
}
