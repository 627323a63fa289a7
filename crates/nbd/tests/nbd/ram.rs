// SPDX-License-Identifier: Apache-2.0
//! A device in RAM that a test can make slow, sick or small while clients use it.
//!
//! It is sparse by sectors of 512 bytes. Its knobs are in a [`Control`], which the test holds on another thread. Beside its data it keeps what the
//! front end owes it: no flush may be asked for while writes are uncommitted, and every range has to be valid; a breach is counted.

use bytes::{Bytes, BytesMut};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use varve_block::{BlockDevice, BlockError, Result, StatusExtent, Submit};
use varve_types::ErrorKind;

const SECTOR: u64 = 512;

/// The knobs and meters of a [`Ram`].
#[derive(Debug, Default)]
pub struct Control {
    /// Size in bytes.
    pub size: AtomicU64,
    /// Every operation answers `Later`, some later than others.
    pub later: AtomicBool,
    /// Operations that answer `Later` do not complete while this is set.
    pub hold: AtomicBool,
    /// Every operation fails with the kind of this number in [`KINDS`], if there is one; 0 is none.
    pub fail: AtomicU64,
    /// Commits fail.
    pub fail_commit: AtomicBool,
    /// Commits answer `Later`, and complete when [`Control::end_commit`] says so.
    pub later_commits: AtomicBool,
    /// The commits that were ended, by their number, and whether they succeed.
    ended_commits: Mutex<BTreeMap<u64, bool>>,
    /// Commits that answered `Later` and were given up before they completed.
    pub dropped_commits: AtomicU64,
    /// Writes that are done and whose commit is not, now and at most.
    pub unanswered: AtomicU64,
    /// The most that [`Control::unanswered`] has been.
    pub most_unanswered: AtomicU64,
    /// Commits that were asked for.
    pub commits: AtomicU64,
    /// Writes, discards and write-zeroes.
    pub writes: AtomicU64,
    /// Those with FUA.
    pub fua: AtomicU64,
    /// Flushes that were asked for.
    pub flushes: AtomicU64,
    /// Prefetches that were asked for.
    pub prefetches: AtomicU64,
    /// What the front end did against the rules.
    pub breaches: AtomicU64,
}

/// The kinds that [`Control::fail`] stands for, from 1.
pub const KINDS: [&str; 9] =
    ["invalid", "not-found", "conflict", "fenced", "unavailable", "busy", "corrupt", "no-space", "internal"];

impl Control {
    /// Completes the commit that was asked for as number `number`, from 1.
    pub fn end_commit(&self, number: u64, succeeds: bool) {
        self.ended_commits.lock().unwrap().insert(number, succeeds);
    }
}

/// A commit under way.
struct Commit {
    control: Arc<Control>,
    /// Writes that it covers.
    writes: u64,
    completed: bool,
}

impl Commit {
    async fn complete(mut self, number: u64) -> Result<()> {
        loop {
            let ended = self.control.ended_commits.lock().unwrap().get(&number).copied();
            if let Some(succeeds) = ended {
                self.completed = true;
                return committed(succeeds);
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }
}

impl Drop for Commit {
    fn drop(&mut self) {
        self.control.dropped_commits.fetch_add(u64::from(!self.completed), SeqCst);
        self.control.unanswered.fetch_sub(self.writes, SeqCst);
    }
}

fn committed(succeeds: bool) -> Result<()> {
    if succeeds { Ok(()) } else { Err(BlockError::new(ErrorKind::Unavailable, "the journal took nothing")) }
}

/// The device.
pub struct Ram {
    control: Arc<Control>,
    read_only: bool,
    sectors: RefCell<BTreeMap<u64, [u8; SECTOR as usize]>>,
    /// Writes that are done and for which no commit was asked.
    uncommitted: Cell<u64>,
    turn: Cell<u64>,
}

impl Ram {
    pub fn new(control: Arc<Control>, read_only: bool) -> Self {
        Self { control, read_only, sectors: RefCell::default(), uncommitted: Cell::new(0), turn: Cell::new(0) }
    }

    /// Counts a range that should have been refused.
    fn check(&self, offset: u64, len: u64) {
        let wrong =
            len == 0 || !offset.is_multiple_of(SECTOR) || !len.is_multiple_of(SECTOR) || offset + len > self.size();
        self.control.breaches.fetch_add(u64::from(wrong), SeqCst);
    }

    /// Gives `result` as the knobs say.
    fn submit<T: 'static>(&self, result: T) -> Submit<T> {
        let kind = usize::try_from(self.control.fail.load(SeqCst)).ok().and_then(|n| KINDS.get(n.checked_sub(1)?));
        let kind = kind.and_then(|kind| ErrorKind::parse(kind));
        let result = match kind {
            Some(kind) => Err(BlockError::new(kind, format!("the test wants it {kind}"))),
            None => Ok(result),
        };
        if !self.control.later.load(SeqCst) {
            return Submit::Done(result);
        }
        let (control, turns) = (Arc::clone(&self.control), self.turn.replace(self.turn.get() + 1) % 5);
        Submit::Later(Box::pin(async move {
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
            while control.hold.load(SeqCst) {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            result
        }))
    }

    fn write_submit(&self, fua: bool) -> Submit<()> {
        self.control.writes.fetch_add(1, SeqCst);
        self.control.fua.fetch_add(u64::from(fua), SeqCst);
        let submit = self.submit(());
        if matches!(submit, Submit::Done(Ok(()))) {
            self.uncommitted.set(self.uncommitted.get() + 1);
            let unanswered = self.control.unanswered.fetch_add(1, SeqCst) + 1;
            self.control.most_unanswered.fetch_max(unanswered, SeqCst);
        }
        submit
    }
}

impl BlockDevice for Ram {
    fn size(&self) -> u64 {
        self.control.size.load(SeqCst)
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, offset: u64, len: u32, out: &mut BytesMut) -> Submit<Bytes> {
        self.check(offset, u64::from(len));
        let sectors = self.sectors.borrow();
        let mut data = Vec::with_capacity(len as usize);
        for sector in offset / SECTOR..(offset + u64::from(len)) / SECTOR {
            data.extend_from_slice(sectors.get(&sector).unwrap_or(&[0; SECTOR as usize]));
        }
        match self.submit(Bytes::from(data)) {
            Submit::Done(Ok(data)) => {
                out.extend_from_slice(&data);
                Submit::Done(Ok(Bytes::new()))
            }
            other => other,
        }
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> Submit<()> {
        self.check(offset, data.len() as u64);
        let submit = self.write_submit(fua);
        if !matches!(submit, Submit::Done(Err(_))) {
            let mut sectors = self.sectors.borrow_mut();
            for (sector, bytes) in (offset / SECTOR..).zip(data.chunks_exact(SECTOR as usize)) {
                sectors.insert(sector, bytes.try_into().unwrap());
            }
        }
        submit
    }

    fn flush(&self) -> Submit<()> {
        self.control.flushes.fetch_add(1, SeqCst);
        self.control.breaches.fetch_add(u64::from(self.uncommitted.get() > 0), SeqCst);
        self.submit(())
    }

    fn discard(&self, offset: u64, len: u64, fua: bool) -> Submit<()> {
        self.check(offset, len);
        let submit = self.write_submit(fua);
        if !matches!(submit, Submit::Done(Err(_))) {
            let mut sectors = self.sectors.borrow_mut();
            let gone: Vec<u64> =
                sectors.range(offset / SECTOR..(offset + len) / SECTOR).map(|(sector, _)| *sector).collect();
            for sector in gone {
                sectors.remove(&sector);
            }
        }
        submit
    }

    fn block_status(&self, offset: u64, len: u64, most: usize) -> Submit<Vec<StatusExtent>> {
        self.check(offset, len);
        let (first, end) = (offset / SECTOR, (offset + len) / SECTOR);
        let sectors = self.sectors.borrow();
        // Runs of data are told in parts of at most 128 sectors, so that the front end has something to merge.
        let (mut extents, mut at): (Vec<StatusExtent>, _) = (Vec::new(), first);
        for (sector, _) in sectors.range(first..end) {
            if *sector > at {
                extents.push(StatusExtent { len: (sector - at) * SECTOR, hole: true });
            }
            let full = extents.len() > most;
            match extents.last_mut() {
                Some(last) if !last.hole && last.len < 128 * SECTOR => last.len += SECTOR,
                _ if full => break,
                _ => extents.push(StatusExtent { len: SECTOR, hole: false }),
            }
            at = sector + 1;
        }
        if at < end && extents.len() <= most {
            extents.push(StatusExtent { len: (end - at) * SECTOR, hole: true });
        }
        extents.truncate(most);
        self.submit(extents)
    }

    fn prefetch(&self, offset: u64, len: u64) -> Submit<()> {
        self.check(offset, len);
        self.control.prefetches.fetch_add(1, SeqCst);
        self.submit(())
    }

    fn commit(&self) -> Submit<()> {
        let number = self.control.commits.fetch_add(1, SeqCst) + 1;
        let writes = self.uncommitted.take();
        if self.control.later_commits.load(SeqCst) {
            let commit = Commit { control: Arc::clone(&self.control), writes, completed: false };
            return Submit::Later(Box::pin(commit.complete(number)));
        }
        self.control.unanswered.fetch_sub(writes, SeqCst);
        Submit::Done(committed(!self.control.fail_commit.load(SeqCst)))
    }
}

/// A device for each export, all with the same knobs.
pub fn devices(control: &Arc<Control>) -> BTreeMap<&'static str, Rc<dyn BlockDevice>> {
    let device = |read_only| -> Rc<dyn BlockDevice> { Rc::new(Ram::new(Arc::clone(control), read_only)) };
    BTreeMap::from([("disk", device(false)), ("other", device(false)), ("disk@monday", device(true))])
}
