// SPDX-License-Identifier: Apache-2.0
//! A load that knows what it may find: random changes of random sectors, each with a generation of its own, and of every
//! block all contents that it may have after the server died.
//!
//! A block (4 KiB) is the row of contents it was given, oldest first. The last is what a read gives while the server
//! lives. After a crash it is one of those from `sure` on: an acknowledged change makes itself sure when the volume
//! acknowledges by `process`, and a flush or FUA when it acknowledges by `ram`. A sector says its generation in its first
//! bytes and the rest follows from generation and place, so a torn sector, a mixed block and a stray one are all told.
//!
//! A worker has a part of the volume for itself and never two requests in flight on one block, so the row is exact.

// Each test program uses a part of it.
#![allow(dead_code)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use varve_lab::nbd::{Client, Command};
pub use varve_lab::random::Random;

pub const SECTOR: usize = 512;
pub const BLOCK: usize = 4096;
const SECTORS: usize = BLOCK / SECTOR;
/// The longest change, blocks.
const LONGEST: u64 = 32;
/// Most requests in flight.
const DEPTH: u64 = 8;
/// Bytes of a read.
const READ: u32 = 1 << 20;

/// The generation of each sector of a block; 0 is a sector of zeroes.
pub type Content = [u32; SECTORS];

/// When an acknowledged change is sure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// At once.
    Acknowledged,
    /// With a flush behind it, or with FUA.
    Flushed,
}

/// What a block may hold.
#[derive(Clone, Debug)]
pub struct Block {
    contents: Vec<Content>,
    sure: usize,
}

impl Block {
    fn now(&self) -> Content {
        self.contents[self.contents.len() - 1]
    }

    fn becomes(&mut self, content: Content) {
        self.contents = vec![content];
        self.sure = 0;
    }
}

/// The bytes of a sector.
fn fill(sector: &mut [u8], generation: u32, place: u64) {
    if generation == 0 {
        return sector.fill(0);
    }
    sector[..4].copy_from_slice(&generation.to_le_bytes());
    let mut random = Random::new(u64::from(generation) << 32 ^ place.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    // Half of it compresses.
    sector[4..SECTOR / 2].fill(generation as u8);
    for word in sector[SECTOR / 2..].chunks_mut(8) {
        word.copy_from_slice(&random.next().to_le_bytes());
    }
}

/// What a block holds, or why it holds nothing that was ever written.
fn decode(bytes: &[u8], block: u64) -> Result<Content, String> {
    let mut content = [0; SECTORS];
    let mut wanted = [0; SECTOR];
    for (index, sector) in bytes.chunks(SECTOR).enumerate() {
        let generation = u32::from_le_bytes([sector[0], sector[1], sector[2], sector[3]]);
        fill(&mut wanted, generation, block * SECTORS as u64 + index as u64);
        if sector != wanted {
            return Err(format!("sector {index} of block {block} is torn or not its own: {:02x?}", &sector[..16]));
        }
        content[index] = generation;
    }
    Ok(content)
}

/// Contents that every block of a snapshot may have.
pub type Picture = Vec<Vec<Content>>;

/// Compares an export with a picture, whose blocks begin at `first`.
pub fn compare(client: &mut Client, first: u64, picture: &Picture, what: &str) -> Vec<Content> {
    let mut found = Vec::with_capacity(picture.len());
    let (begin, len) = (first * BLOCK as u64, picture.len() as u64 * BLOCK as u64);
    while found.len() < picture.len() {
        let at = found.len() as u64 * BLOCK as u64;
        let data = client.read(begin + at, u64::from(READ).min(len - at) as u32).unwrap();
        for bytes in data.chunks(BLOCK) {
            let (index, block) = (found.len(), first + found.len() as u64);
            let content = decode(bytes, block).unwrap_or_else(|error| panic!("{what}: {error}"));
            let allowed = &picture[index];
            assert!(allowed.contains(&content), "{what}: block {block} has {content:?}, and not one of {allowed:?}");
            found.push(content);
        }
    }
    found
}

/// What a worker does next.
#[derive(Clone, Copy, Debug)]
struct Change {
    command: Command,
    /// First sector and number of sectors, of the volume.
    sector: u64,
    sectors: u64,
    generation: u32,
}

/// One connection's part of the load, and of the volume.
pub struct Worker {
    first: u64,
    blocks: Vec<Block>,
    random: Random,
    generation: u32,
    promise: Promise,
    /// What was acknowledged since the load began.
    pub changes: u64,
    pub bytes: u64,
}

impl Worker {
    /// A worker for `count` blocks from `first`, which are all zeroes.
    pub fn new(first: u64, count: u64, promise: Promise, seed: u64) -> Self {
        let block = Block { contents: vec![[0; SECTORS]], sure: 0 };
        let blocks = vec![block; count as usize];
        Self { first, blocks, random: Random::new(seed), generation: 0, promise, changes: 0, bytes: 0 }
    }

    /// The block after its last.
    pub fn end(&self) -> u64 {
        self.first + self.blocks.len() as u64
    }

    fn change(&mut self) -> Change {
        self.generation += 1;
        let mut blocks = 1 + self.random.below(3);
        if self.random.below(8) == 0 {
            blocks = 1 + self.random.below(LONGEST);
        }
        let block = self.first + self.random.below(self.blocks.len() as u64 - blocks + 1);
        let (mut sector, mut sectors) = (block * SECTORS as u64, blocks * SECTORS as u64);
        let command = match self.random.below(100) {
            0..5 => Command::Trim,
            5..10 => Command::WriteZeroes,
            10..15 => Command::Write { fua: true },
            _ => Command::Write { fua: false },
        };
        if command != Command::Trim && self.random.below(3) == 0 {
            let cut = self.random.below(SECTORS as u64);
            sector += cut;
            sectors -= cut + self.random.below(SECTORS as u64 - cut);
        }
        Change { command, sector, sectors, generation: self.generation }
    }

    /// The blocks that a change touches, as indexes of `blocks`.
    fn touched(&self, change: &Change) -> std::ops::RangeInclusive<usize> {
        let index = |sector: u64| (sector / SECTORS as u64 - self.first) as usize;
        index(change.sector)..=index(change.sector + change.sectors - 1)
    }

    /// Adds what a change makes of its blocks.
    fn enter(&mut self, change: &Change) {
        let generation = if matches!(change.command, Command::Write { .. }) { change.generation } else { 0 };
        for sector in change.sector..change.sector + change.sectors {
            let index = (sector / SECTORS as u64 - self.first) as usize;
            let block = &mut self.blocks[index];
            let within = (sector % SECTORS as u64) as usize;
            if sector == change.sector || within == 0 {
                let now = block.now();
                block.contents.push(now);
            }
            let last = block.contents.len() - 1;
            block.contents[last][within] = generation;
        }
    }

    fn acknowledged(&mut self, change: &Change) {
        self.changes += 1;
        self.bytes += change.sectors * SECTOR as u64;
        if self.promise == Promise::Acknowledged || change.command == (Command::Write { fua: true }) {
            for index in self.touched(change) {
                self.blocks[index].sure = self.blocks[index].contents.len() - 1;
            }
        }
    }

    /// Everything acknowledged so far is sure: a flush, or a snapshot, was answered.
    pub fn flushed(&mut self) {
        for block in &mut self.blocks {
            block.sure = block.contents.len() - 1;
        }
    }

    /// Sends a few changes of different blocks at once, and takes the answers. An error ends the worker until the next
    /// [`Worker::recover`], since what was in flight may have happened or not.
    pub fn step(&mut self, client: &mut Client, done: &AtomicU64) -> std::io::Result<()> {
        if self.random.below(20) == 0 {
            client.run(Command::Flush, 0, 0, &[])?;
            self.flushed();
        }
        let (mut in_flight, mut busy) = (HashMap::new(), Vec::<(usize, usize)>::new());
        let depth = 1 + self.random.below(DEPTH);
        for _ in 0..depth {
            let change = self.change();
            let touched = self.touched(&change);
            let (from, to) = (*touched.start(), *touched.end());
            if busy.iter().any(|&(begin, end)| from <= end && begin <= to) {
                continue;
            }
            busy.push((from, to));
            let (offset, len) = (change.sector * SECTOR as u64, change.sectors as usize * SECTOR);
            let mut data = Vec::new();
            if matches!(change.command, Command::Write { .. }) {
                data.resize(len, 0);
                for (index, sector) in data.chunks_mut(SECTOR).enumerate() {
                    fill(sector, change.generation, change.sector + index as u64);
                }
            }
            // Half a request that was sent is none; but whether it was is not known when sending fails.
            self.enter(&change);
            let handle = client.send(change.command, offset, len as u32, &data)?;
            in_flight.insert(handle, change);
        }
        while !in_flight.is_empty() {
            let answer = client.receive()?;
            let change = in_flight.remove(&answer.handle).expect("an answer to what is in flight");
            assert_eq!(answer.error, 0, "{change:?}");
            self.acknowledged(&change);
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Forgets what can not be found any more, so that pictures speak of what comes.
    pub fn settle(&mut self) {
        for block in &mut self.blocks {
            block.contents.drain(..block.sure);
            block.sure = 0;
        }
    }

    /// The volume was rolled back to what a picture shows, of which each block has one content.
    pub fn becomes(&mut self, picture: &Picture) {
        for (block, contents) in self.blocks.iter_mut().zip(picture) {
            block.becomes(contents[contents.len() - 1]);
        }
    }

    /// What a read gives now.
    pub fn picture(&self) -> Picture {
        self.blocks.iter().map(|block| vec![block.now()]).collect()
    }

    /// All that the blocks held since the last [`Worker::settle`], and what they held then.
    pub fn pictures(&self) -> Picture {
        self.blocks.iter().map(|block| block.contents.clone()).collect()
    }

    /// What a crash may leave.
    fn after_crash(&self) -> Picture {
        self.blocks.iter().map(|block| block.contents[block.sure..].to_vec()).collect()
    }

    /// Verifies what a crash left, from which all goes on.
    pub fn recover(&mut self, client: &mut Client) {
        let found = compare(client, self.first, &self.after_crash(), "after a crash");
        for (block, content) in self.blocks.iter_mut().zip(found) {
            block.becomes(content);
        }
    }

    /// Verifies data that was read from `block` on.
    pub fn is_now(&self, block: u64, data: &[u8]) {
        for (block, bytes) in (block..).zip(data.chunks(BLOCK)) {
            let content = decode(bytes, block).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(content, self.blocks[(block - self.first) as usize].now(), "block {block}");
        }
    }

    /// Verifies what a server that lives has.
    pub fn verify(&self, client: &mut Client) {
        compare(client, self.first, &self.picture(), "while serving");
    }
}
