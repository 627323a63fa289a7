// SPDX-License-Identifier: Apache-2.0
//! A load that remembers: clients on an NBD socket that write and read a few blocks, and note when each operation was asked for and answered.
//!
//! Every value is written once: it names its client and its turn, and fills its block, so that a block that was torn is seen. Nothing may fail: whoever has no I/O timeout
//! is answered some day. A client has one operation under way; between two it rests for a moment, which leaves the machine to those who are to be tested.

use super::history::{Deed, Operation};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use varve_lab::nbd::{Client, Command};
use varve_lab::random::Random;

/// Blocks that are used: few, so that clients meet.
pub const BLOCKS: u64 = 12;
const BLOCK: u32 = 4096;
/// Clients at once.
const CLIENTS: u64 = 6;
/// Between two operations of a client.
const REST: Duration = Duration::from_millis(1);

/// A load that runs.
pub struct Load {
    clock: Instant,
    stop: Arc<AtomicBool>,
    /// Operations that each client was answered.
    done: Arc<[AtomicU64]>,
    clients: Vec<JoinHandle<Result<Vec<Operation>>>>,
    socket: PathBuf,
    export: String,
}

struct Worker {
    client: Client,
    clock: Instant,
    random: Random,
    /// What the next value is made of.
    name: u64,
    operations: Vec<Operation>,
}

impl Worker {
    fn new(socket: &Path, export: &str, clock: Instant, random: Random, name: u64) -> Result<Self> {
        let client = Client::unix(socket, export).context("connecting to the edge")?;
        Ok(Self { client, clock, random, name, operations: Vec::new() })
    }

    #[allow(clippy::cast_possible_truncation, reason = "nanoseconds of centuries")]
    fn now(&self) -> u64 {
        self.clock.elapsed().as_nanos() as u64
    }

    fn step(&mut self) -> Result<()> {
        let block = self.random.below(BLOCKS);
        match self.random.below(100) {
            0..3 => self.client.run(Command::Flush, 0, 0, &[]).context("a flush"),
            3..60 => self.write(block),
            _ => self.read(block).map(drop),
        }
    }

    fn write(&mut self, block: u64) -> Result<()> {
        self.name += 1;
        let (value, invoked) = (self.name, self.now());
        let data = value.to_le_bytes().repeat(BLOCK as usize / 8);
        let offset = block * u64::from(BLOCK);
        self.client.run(Command::Write { fua: false }, offset, BLOCK, &data).context("a write")?;
        self.operations.push(Operation { block, deed: Deed::Write, value, invoked, answered: self.now() });
        Ok(())
    }

    fn read(&mut self, block: u64) -> Result<u64> {
        let invoked = self.now();
        let data = self.client.read(block * u64::from(BLOCK), BLOCK).context("a read")?;
        let answered = self.now();
        let value = data.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        ensure!(data.chunks_exact(8).all(|word| word == value.to_le_bytes()), "block {block} is torn");
        self.operations.push(Operation { block, deed: Deed::Read, value, invoked, answered });
        Ok(value)
    }
}

impl Load {
    /// Begins. `turn` tells the values of one load from those of the others.
    pub fn start(socket: &Path, export: &str, random: &mut Random, turn: u64) -> Result<Self> {
        let (clock, stop) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        let done: Arc<[AtomicU64]> = (0..CLIENTS).map(|_| AtomicU64::new(0)).collect();
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            let name = (turn * CLIENTS + number + 1) << 32;
            let mut worker = Worker::new(socket, export, clock, Random::new(random.next()), name)?;
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            clients.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    worker.step()?;
                    done[usize::try_from(number)?].fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(REST);
                }
                Ok(worker.operations)
            }));
        }
        Ok(Self { clock, stop, done, clients, socket: socket.to_owned(), export: export.to_owned() })
    }

    /// Operations of each client so far.
    pub fn done(&self) -> Vec<u64> {
        self.done.iter().map(|done| done.load(Ordering::Relaxed)).collect()
    }

    /// An error if a client has ended.
    pub fn must_live(&mut self) -> Result<()> {
        match self.clients.iter().position(JoinHandle::is_finished) {
            None => Ok(()),
            Some(at) => match self.clients.swap_remove(at).join() {
                Ok(Err(error)) => Err(error),
                _ => bail!("a client has ended by itself"),
            },
        }
    }

    /// Ends it, and reads every block once more: gives all that was done, and what each block is now.
    pub fn finish(mut self) -> Result<(Vec<Operation>, Vec<u64>)> {
        self.stop.store(true, Ordering::Relaxed);
        let mut operations = Vec::new();
        for client in self.clients.drain(..) {
            let joined = client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            operations.extend(joined?);
        }
        let mut last = Worker::new(&self.socket, &self.export, self.clock, Random::new(1), 0)?;
        let blocks = (0..BLOCKS).map(|block| last.read(block)).collect::<Result<_>>()?;
        operations.append(&mut last.operations);
        Ok((operations, blocks))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
