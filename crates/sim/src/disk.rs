// SPDX-License-Identifier: Apache-2.0
//! Disks: what the kernel was given, what is durable, and what a crash makes of the difference.
//!
//! A [`DiskMedium`] outlives processes; a [`SimDisk`] is one opening of it by one process. The medium keeps two images:
//! *current*, which reads show (platters and page cache together), and *durable*; and, in order, the writes that make the
//! difference. `write_at` reaches the current image at once. A sync that completes makes durable what was written before it was
//! **asked for**; writes made while it runs stay unsynced.
//!
//! The unit of the device is the sector of 512 bytes: after a power cut each holds one of the contents that it has had since it was last
//! durable, never a mixture. A write smaller than a sector dirties it whole, as a page cache does.
//!
//! A sync that is made to fail behaves as Linux does: the pages count as clean from then on, reads go on showing them, no later sync
//! writes them, and a power cut loses them.

use crate::core::{Core, Sleep, Stream};
use crate::disk_fault::{CrashMode, DiskCounts, DiskTiming, WriteFault};
use crate::image::Image;
use crate::points::IoPoint;
use crate::{CrashPoints, SimEnv, SimWorld};
use bytes::Bytes;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::pending;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use varve_env::{Disk, LocalFuture};

const SECTOR: u64 = 512;
/// What a page cache has at a time.
const PAGE: u64 = 4096;

/// A write that no sync has covered: whole sectors as they were after it.
struct Unsynced {
    /// Number of the `write_at`.
    number: u64,
    /// A multiple of 512.
    offset: u64,
    sectors: Vec<u8>,
}

struct State {
    current: Image,
    durable: Image,
    unsynced: Vec<Unsynced>,
    /// Raised by each crash: older openings do nothing any more.
    generation: u64,
    timing: DiskTiming,
    counts: DiskCounts,
    /// By number of the write.
    write_faults: BTreeMap<u64, WriteFault>,
    /// Of the next write that begins below an offset.
    low_write_fault: Option<(u64, WriteFault)>,
    /// By number of the sync.
    sync_faults: BTreeMap<u64, io::ErrorKind>,
    unreadable: Vec<Range<u64>>,
    full: bool,
}

struct Medium {
    core: Arc<Core>,
    name: String,
    len: u64,
    state: RefCell<State>,
}

/// A disk as such. Clones are the same disk.
#[derive(Clone)]
pub struct DiskMedium {
    medium: Rc<Medium>,
}

impl DiskMedium {
    /// A disk of zeroes.
    ///
    /// # Panics
    /// When `len` is not a multiple of 512.
    #[must_use]
    pub fn new(world: &SimWorld, name: &str, len: u64) -> Self {
        assert!(len.is_multiple_of(SECTOR), "a disk is made of sectors");
        let image = Image::zeroes(len);
        let state = State {
            current: image.clone(),
            durable: image,
            unsynced: Vec::new(),
            generation: 0,
            timing: DiskTiming::default(),
            counts: DiskCounts::default(),
            write_faults: BTreeMap::new(),
            low_write_fault: None,
            sync_faults: BTreeMap::new(),
            unreadable: Vec::new(),
            full: false,
        };
        let core = Arc::clone(world.core());
        Self { medium: Rc::new(Medium { core, name: name.to_owned(), len, state: RefCell::new(state) }) }
    }

    /// Opens it for a process.
    #[must_use]
    pub fn open(&self, process: &SimEnv) -> SimDisk {
        let generation = self.medium.state.borrow().generation;
        SimDisk { medium: Rc::clone(&self.medium), points: process.points().clone(), generation }
    }

    /// Makes the disk what it may be after the death of all processes that have it open; their openings end.
    pub fn crash(&self, mode: CrashMode) {
        let medium = &*self.medium;
        let mut state = medium.state.borrow_mut();
        let state = &mut *state;
        medium.core.note(&[20, mode as u64, state.unsynced.len() as u64], &medium.name, || {
            format!("{}: crash, {mode:?}, {} unsynced writes", medium.name, state.unsynced.len())
        });
        state.generation += 1;
        if mode == CrashMode::Kill {
            return;
        }
        let unsynced = std::mem::take(&mut state.unsynced);
        let newest = unsynced.len().checked_sub(1);
        for (place, write) in unsynced.iter().enumerate() {
            let whole = match mode {
                CrashMode::Kill | CrashMode::Kept => true,
                CrashMode::Lost => false,
                CrashMode::Newest => Some(place) == newest,
                CrashMode::Writes => medium.core.draw(Stream::Faults, |rng| rng.chance(500)),
                CrashMode::Torn => {
                    for (index, sector) in write.sectors.chunks(SECTOR as usize).enumerate() {
                        if medium.core.draw(Stream::Faults, |rng| rng.chance(500)) {
                            state.durable.write(write.offset + index as u64 * SECTOR, sector);
                        }
                    }
                    false
                }
            };
            if whole {
                state.durable.write(write.offset, &write.sectors);
            }
        }
        state.current = state.durable.clone();
    }

    /// Lets the `nth` write from now go wrong, the next one being 0.
    pub fn fail_write(&self, nth: u64, fault: WriteFault) {
        let mut state = self.medium.state.borrow_mut();
        let number = state.counts.writes + nth;
        state.write_faults.insert(number, fault);
    }

    /// Lets the next write that begins below `end` go wrong.
    pub fn fail_write_below(&self, end: u64, fault: WriteFault) {
        self.medium.state.borrow_mut().low_write_fault = Some((end, fault));
    }

    /// Lets the `nth` sync from now fail, the next one being 0; what it should have covered is lost for good.
    pub fn fail_sync(&self, nth: u64) {
        let mut state = self.medium.state.borrow_mut();
        let number = state.counts.syncs + nth;
        state.sync_faults.insert(number, io::ErrorKind::Other);
    }

    /// Lets no fault that was planned come any more.
    pub fn forget_faults(&self) {
        let mut state = self.medium.state.borrow_mut();
        state.write_faults.clear();
        state.low_write_fault = None;
        state.sync_faults.clear();
        state.unreadable.clear();
    }

    /// Lets every read that touches the range fail.
    pub fn fail_reads(&self, range: Range<u64>) {
        self.medium.state.borrow_mut().unreadable.push(range);
    }

    /// Lets every write fail for want of space, or no longer.
    pub fn set_full(&self, full: bool) {
        self.medium.state.borrow_mut().full = full;
    }

    /// Sets how long the device takes.
    pub fn set_timing(&self, timing: DiskTiming) {
        self.medium.state.borrow_mut().timing = timing;
    }

    /// Turns one bit over, in the page cache and on the platters.
    ///
    /// # Panics
    /// When `offset` lies beyond the end.
    pub fn flip_bit(&self, offset: u64, bit: u8) {
        assert!(offset < self.medium.len, "beyond the end of {}", self.medium.name);
        let mut state = self.medium.state.borrow_mut();
        let mask = 1u8 << (bit % 8);
        let State { current, durable, .. } = &mut *state;
        for image in [current, durable] {
            let byte = image.read(offset, 1)[0] ^ mask;
            image.write(offset, &[byte]);
        }
    }

    /// What a reader sees, without a read.
    #[must_use]
    pub fn contents(&self, range: Range<u64>) -> Vec<u8> {
        self.medium.state.borrow().current.read(range.start, (range.end - range.start) as usize)
    }

    /// What was done so far, by all openings.
    #[must_use]
    pub fn counts(&self) -> DiskCounts {
        self.medium.state.borrow().counts
    }

    /// How many writes no sync has covered.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        self.medium.state.borrow().unsynced.len()
    }
}

/// One opening of a disk by one process.
#[derive(Clone)]
pub struct SimDisk {
    medium: Rc<Medium>,
    points: CrashPoints,
    generation: u64,
}

impl SimDisk {
    /// Passes a crash point; false where this opening has ended.
    fn pass(&self, point: IoPoint) -> bool {
        self.medium.state.borrow().generation == self.generation && self.points.pass(point, &self.medium.name)
    }

    fn error(&self, kind: io::ErrorKind, what: &str) -> io::Error {
        io::Error::new(kind, format!("{}: {what}", self.medium.name))
    }

    fn check(&self, offset: u64, len: u64, what: &str) -> io::Result<()> {
        if offset.checked_add(len).is_none_or(|end| end > self.medium.len) {
            return Err(self.error(io::ErrorKind::InvalidInput, &format!("{what} beyond the end: {len} at {offset}")));
        }
        Ok(())
    }

    fn finish_sync(&self, number: u64, covered: u64) -> io::Result<()> {
        let mut state = self.medium.state.borrow_mut();
        let fault = state.sync_faults.remove(&number);
        let State { unsynced, durable, .. } = &mut *state;
        unsynced.retain(|write| {
            if write.number >= covered {
                return true;
            }
            if fault.is_none() {
                durable.write(write.offset, &write.sectors);
            }
            false
        });
        match fault {
            Some(kind) => Err(self.error(kind, "sync failed, as it was told to")),
            None => Ok(()),
        }
    }
}

impl State {
    /// Lets the current image take `bytes`, and gives the sectors as they are then.
    fn apply(&mut self, offset: u64, bytes: Vec<u8>) -> (u64, Vec<u8>) {
        self.current.write(offset, &bytes);
        let (start, end) = (offset / SECTOR * SECTOR, offset + bytes.len() as u64);
        if start == offset && end.is_multiple_of(SECTOR) {
            return (offset, bytes);
        }
        let end = end.next_multiple_of(SECTOR);
        (start, self.current.read(start, (end - start) as usize))
    }

    /// Makes unsynced what reads show of a range and the platters do not hold.
    fn write_again(&mut self, range: Range<u64>) {
        let (mut at, end) = (range.start / SECTOR * SECTOR, range.end.next_multiple_of(SECTOR));
        while at < end {
            let len = (end - at).min(PAGE);
            let sectors = self.current.read(at, len as usize);
            if sectors != self.durable.read(at, len as usize) {
                self.unsynced.push(Unsynced { number: self.counts.writes, offset: at, sectors });
            }
            at += len;
        }
        self.counts.writes += 1;
    }

    /// What goes wrong with a write.
    fn fault_of(&mut self, number: u64, offset: u64) -> Option<WriteFault> {
        if self.full {
            return Some(WriteFault::NoSpace);
        }
        let low = self.low_write_fault.take_if(|(end, _)| offset < *end).map(|(_, fault)| fault);
        self.write_faults.remove(&number).or(low)
    }
}

impl Disk for SimDisk {
    fn len(&self) -> u64 {
        self.medium.len
    }

    fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let len: u64 = parts.iter().map(|part| part.len() as u64).sum();
        self.check(offset, len, "write")?;
        if !self.pass(IoPoint::DiskWrite) {
            return Err(self.error(io::ErrorKind::BrokenPipe, "the process is dead"));
        }
        let mut bytes = parts.iter().map(|part| &part[..]).collect::<Vec<_>>().concat();
        let head = bytes.get(..8).map_or(0, |head| u64::from_le_bytes(head.try_into().unwrap_or_default()));
        self.medium.core.note(&[21, offset, len, head], &self.medium.name, || {
            format!("{}: write {len} at {offset}", self.medium.name)
        });
        let mut state = self.medium.state.borrow_mut();
        let number = state.counts.writes;
        state.counts.writes += 1;
        state.counts.written += len;
        let fault = state.fault_of(number, offset);
        let mut result = Ok(());
        match fault {
            Some(WriteFault::Error) => return Err(self.error(io::ErrorKind::Other, "write failed, as it was told to")),
            Some(WriteFault::NoSpace) => return Err(self.error(io::ErrorKind::StorageFull, "no space")),
            Some(WriteFault::Partial(part)) => {
                bytes.truncate(usize::try_from(part).unwrap_or(usize::MAX));
                result = Err(self.error(io::ErrorKind::Other, "write failed half-way, as it was told to"));
            }
            Some(WriteFault::Dropped | WriteFault::Misdirected(_)) | None => {}
        }
        if bytes.is_empty() {
            return result;
        }
        let (mut start, sectors) = state.apply(offset, bytes);
        if let Some(WriteFault::Misdirected(to)) = fault {
            start = (to / SECTOR * SECTOR).min(self.medium.len - sectors.len() as u64);
        }
        if fault != Some(WriteFault::Dropped) {
            state.unsynced.push(Unsynced { number, offset: start, sectors });
        }
        result
    }

    fn start_writeback(&self, _offset: u64, _len: u64) {
        self.medium.state.borrow_mut().counts.hints += 1;
    }

    fn sync(&self) -> LocalFuture<io::Result<()>> {
        let disk = self.clone();
        let (number, covered, takes) = {
            let mut state = self.medium.state.borrow_mut();
            let number = state.counts.syncs;
            state.counts.syncs += 1;
            (number, state.counts.writes, state.timing.sync)
        };
        // Asked for now, though it may be awaited later: the time that it takes begins here too.
        let sleep = Sleep::new(&self.medium.core, takes);
        Box::pin(async move {
            if !disk.pass(IoPoint::SyncStart) {
                pending::<()>().await;
            }
            disk.medium.core.note(&[22, number], &disk.medium.name, || format!("{}: sync", disk.medium.name));
            sleep.await;
            if disk.medium.state.borrow().generation != disk.generation || disk.points.dead() {
                pending::<()>().await;
            }
            let result = disk.finish_sync(number, covered);
            if !disk.pass(IoPoint::SyncEnd) {
                pending::<()>().await;
            }
            result
        })
    }

    fn settle(&self, ranges: Vec<Range<u64>>) -> LocalFuture<io::Result<()>> {
        for range in ranges {
            if let Err(error) = self.check(range.start, range.end.saturating_sub(range.start), "settle") {
                return Box::pin(std::future::ready(Err(error)));
            }
            self.medium.state.borrow_mut().write_again(range);
        }
        self.sync()
    }

    fn read_at(&self, offset: u64, len: usize) -> LocalFuture<io::Result<Bytes>> {
        let disk = self.clone();
        Box::pin(async move {
            disk.check(offset, len as u64, "read")?;
            if !disk.pass(IoPoint::DiskRead) {
                pending::<()>().await;
            }
            let takes = {
                let mut state = disk.medium.state.borrow_mut();
                state.counts.reads += 1;
                state.timing.read
            };
            disk.medium.core.note(&[23, offset, len as u64], &disk.medium.name, || {
                format!("{}: read {len} at {offset}", disk.medium.name)
            });
            Sleep::new(&disk.medium.core, takes).await;
            let state = disk.medium.state.borrow();
            let end = offset + len as u64;
            if state.unreadable.iter().any(|bad| bad.start < end && offset < bad.end) {
                return Err(disk.error(io::ErrorKind::Other, &format!("read failed at {offset}, as it was told to")));
            }
            Ok(state.current.shared(offset, len))
        })
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
