// SPDX-License-Identifier: Apache-2.0
//! A disk as a cache device: what the kernel was given is never synced, so a power cut leaves of it what it likes.
//!
//! Writes take a while, and pass each other on the way: nothing says in which order a device takes what is under way together.

use crate::{DiskMedium, SimDisk, SimEnv};
use bytes::Bytes;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::time::Duration;
use varve_env::{CacheDevice, Disk, Env, LocalFuture};

/// See the module.
pub struct SimCache {
    disk: SimDisk,
    env: Rc<SimEnv>,
}

impl SimCache {
    /// An opening of a disk by a process.
    #[must_use]
    pub fn new(disk: &DiskMedium, process: &Rc<SimEnv>) -> Self {
        Self { disk: disk.open(process), env: Rc::clone(process) }
    }
}

impl CacheDevice for SimCache {
    fn len(&self) -> u64 {
        Disk::len(&self.disk)
    }

    fn read_at(&self, offset: u64, len: usize) -> LocalFuture<io::Result<Bytes>> {
        Disk::read_at(&self.disk, offset, len)
    }

    fn write_at(&self, offset: u64, data: Bytes) -> LocalFuture<io::Result<()>> {
        let (disk, takes) = (self.disk.clone(), Duration::from_micros(100 + offset / 4096 % 13 * 100));
        let sleep = self.env.sleep(takes);
        Box::pin(async move {
            sleep.await;
            disk.write_at(offset, &[IoSlice::new(&data)])
        })
    }
}
