// SPDX-License-Identifier: Apache-2.0
//! Counters of a volume's connections, and how long its requests take. One [`Stats`] a volume; connections add to it once a batch, a scraper reads it
//! from any thread.
//!
//! The numbers only grow, save `connections`. They are for people and metrics; nothing is decided by them, and a crash forgets them. Each is exact, but
//! those that are read together may be of slightly different moments.

use crate::dialect::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use varve_types::{Histogram, SharedHistogram};

/// What requests are counted as whose times are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Flushes.
    Flush,
    /// Discards and zeroes.
    Discard,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Flush, Self::Discard];

    /// What metrics call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
        }
    }

    /// What a command is; `None` where no time is taken.
    pub(crate) const fn of(command: Command) -> Option<Self> {
        match command {
            Command::Read => Some(Self::Read),
            Command::Write => Some(Self::Write),
            Command::Flush => Some(Self::Flush),
            Command::Discard | Command::WriteZeroes => Some(Self::Discard),
            _ => None,
        }
    }
}

/// What connections did, since the start.
#[derive(Debug, Default)]
pub struct Stats {
    connections: AtomicU64,
    batches: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
    flushes: AtomicU64,
    discards: AtomicU64,
    others: AtomicU64,
    errors: AtomicU64,
    read_bytes: AtomicU64,
    write_bytes: AtomicU64,
    latencies: [SharedHistogram; Operation::ALL.len()],
}

/// The numbers of a [`Stats`] at some moment; also what a connection gathers between two additions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections in transmission now.
    pub connections: u64,
    /// Batches of requests that were acted on.
    pub batches: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards and zeroes.
    pub discards: u64,
    /// All other requests.
    pub others: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Bytes of the reads.
    pub read_bytes: u64,
    /// Bytes of the writes.
    pub write_bytes: u64,
}

impl Counts {
    /// Counts a request.
    pub(crate) fn request(&mut self, command: Command, length: u64) {
        match command {
            Command::Read => {
                self.reads += 1;
                self.read_bytes += length;
            }
            Command::Write => {
                self.writes += 1;
                self.write_bytes += length;
            }
            Command::Flush => self.flushes += 1,
            Command::Discard | Command::WriteZeroes => self.discards += 1,
            _ => self.others += 1,
        }
    }
}

impl Stats {
    /// The numbers now. They are read one by one, so they may be of slightly different moments.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            connections: get(&self.connections),
            batches: get(&self.batches),
            reads: get(&self.reads),
            writes: get(&self.writes),
            flushes: get(&self.flushes),
            discards: get(&self.discards),
            others: get(&self.others),
            errors: get(&self.errors),
            read_bytes: get(&self.read_bytes),
            write_bytes: get(&self.write_bytes),
        }
    }

    /// How long requests took from when they were taken from their connection until their answer was with the kernel: all that were acted on, whatever
    /// came of them.
    #[must_use]
    pub fn latency(&self, operation: Operation) -> Histogram {
        self.latencies[operation as usize].histogram()
    }

    /// Adds so many requests that took so long each.
    #[inline]
    pub(crate) fn took(&self, operation: Operation, took: Duration, times: u64) {
        self.latencies[operation as usize].add(took, times);
    }

    /// Adds what a connection gathered, and empties it.
    pub(crate) fn add(&self, gathered: &mut Counts) {
        let gathered = std::mem::take(gathered);
        for (counter, more) in [
            (&self.batches, gathered.batches),
            (&self.reads, gathered.reads),
            (&self.writes, gathered.writes),
            (&self.flushes, gathered.flushes),
            (&self.discards, gathered.discards),
            (&self.others, gathered.others),
            (&self.errors, gathered.errors),
            (&self.read_bytes, gathered.read_bytes),
            (&self.write_bytes, gathered.write_bytes),
        ] {
            if more != 0 {
                counter.fetch_add(more, Ordering::Relaxed);
            }
        }
    }

    /// Counts a connection as long as the result lives.
    pub(crate) fn connected(&self) -> Connected<'_> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Connected(self)
    }
}

/// A connection that is counted.
pub(crate) struct Connected<'a>(&'a Stats);

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
