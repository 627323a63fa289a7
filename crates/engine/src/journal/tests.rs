// SPDX-License-Identifier: Apache-2.0
//! The end of a lap.

use super::*;
use std::io;
use varve_env::LocalFuture;
use varve_format::crc::crc;
use varve_format::journal::{RECORD_MAGIC, SHORT_HEADER};

const LEN: u64 = RING_START + MIN_RING;

/// A disk in memory that takes nothing beyond its end.
struct Memory(RefCell<Vec<u8>>);

impl Disk for Memory {
    fn len(&self) -> u64 {
        LEN
    }

    fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let (bytes, from) = (parts.iter().flat_map(|part| part.iter().copied()).collect::<Vec<u8>>(), offset as usize);
        let mut all = self.0.borrow_mut();
        let there = all.get_mut(from..from + bytes.len()).ok_or(io::ErrorKind::InvalidInput)?;
        there.copy_from_slice(&bytes);
        Ok(())
    }

    fn start_writeback(&self, _: u64, _: u64) {}

    fn sync(&self) -> LocalFuture<io::Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn settle(&self, _: Vec<Range<u64>>) -> LocalFuture<io::Result<()>> {
        self.sync()
    }

    fn read_at(&self, offset: u64, len: usize) -> LocalFuture<io::Result<Bytes>> {
        let bytes = Bytes::copy_from_slice(&self.0.borrow()[offset as usize..][..len]);
        Box::pin(std::future::ready(Ok(bytes)))
    }
}

/// A world in which nothing happens by itself.
struct Still;

impl Env for Still {
    fn now(&self) -> std::time::Duration {
        std::time::Duration::ZERO
    }

    fn wall_ms(&self) -> u64 {
        0
    }

    fn random(&self, bytes: &mut [u8]) {
        bytes.fill(7);
    }

    fn sleep(&self, _: std::time::Duration) -> LocalFuture<()> {
        Box::pin(std::future::pending())
    }

    fn spawn(&self, task: LocalFuture<()>) {
        drop(task);
    }

    fn run_job(&self, job: Box<dyn FnOnce() + Send>) -> LocalFuture<()> {
        job();
        Box::pin(std::future::ready(()))
    }
}

/// Appends so many writes of a block as one batch, the first one so far before the end of the ring; gives their positions.
fn lap(before: u64, writes: u64) -> (Rc<Memory>, Vec<u64>) {
    let disk = Rc::new(Memory(RefCell::new(vec![0; LEN as usize])));
    let created = Journal::create(Rc::clone(&disk) as Rc<dyn Disk>, Rc::new(Still), Rc::default());
    let journal = futures_util::future::FutureExt::now_or_never(created).expect("a disk in memory").expect("a journal");
    {
        let mut state = journal.state.borrow_mut();
        let head = journal.ring - before;
        (state.head, state.written, state.synced, state.batch_start) = (head, head, head, head);
        state.superblock.trim = journal.ring / 2;
    }
    let (timeline, data) = (TimelineId::from_bytes([1; 16]), Bytes::from(vec![9; BLOCK as usize]));
    let append = |n| {
        let stamp = Stamp { timeline, epoch: Epoch(1), sequence: Sequence(n), flushed_through: Sequence(0) };
        journal.append_write(stamp, n, data.clone(), &[crc(&data)]).expect("it is well").position
    };
    let positions = (1..=writes).map(append).collect();
    journal.commit().expect("the batch is written");
    (disk, positions)
}

/// Whether a record's header stands at a position.
fn is_record(disk: &Memory, position: u64) -> bool {
    let at = (RING_START + position % MIN_RING) as usize;
    disk.0.borrow()[at..].starts_with(&RECORD_MAGIC)
}

#[test]
fn a_batch_goes_on_at_the_start_of_the_ring_wherever_its_end_falls() {
    let record = write_header_len(1) + BLOCK;
    for behind in [0, SHORT_HEADER / 3, BLOCK - SHORT_HEADER, BLOCK, record - SHORT_HEADER] {
        for first in 0..4 {
            let (disk, positions) = lap(first * record + behind, 4);
            let next_lap = positions.iter().filter(|position| **position >= MIN_RING).count() as u64;
            assert_eq!((next_lap, positions[first as usize]), (4 - first, MIN_RING), "{first} records, {behind} bytes");
            assert!(positions.iter().all(|position| is_record(&disk, *position)), "{first} records, {behind} bytes");
        }
    }
}
