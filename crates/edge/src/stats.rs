// SPDX-License-Identifier: Apache-2.0
//! What a volume's users asked, and how long it took.

use std::time::Duration;
use varve_types::Histogram;
use varve_wire::transmission::Ask;

/// What requests are counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Flushes.
    Flush,
    /// Discards and writes of zeroes.
    Discard,
    /// Everything else.
    Other,
}

impl Operation {
    /// Every one, in the order of [`Stats::of`].
    pub const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Flush, Self::Discard, Self::Other];

    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::Other => "other",
        }
    }

    pub(crate) const fn of(ask: Ask) -> Self {
        match ask {
            Ask::Read => Self::Read,
            Ask::Write => Self::Write,
            Ask::Flush => Self::Flush,
            Ask::Discard | Ask::WriteZeroes => Self::Discard,
            Ask::Status | Ask::Prefetch | Ask::Ping | Ask::Detach => Self::Other,
        }
    }
}

/// Requests of one sort that were answered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// How many.
    pub requests: u64,
    /// How many of them with an error.
    pub errors: u64,
    /// Bytes that they were about; for reads and writes those that were carried.
    pub bytes: u64,
    /// How long they took, from when they were asked.
    pub latency: Histogram,
}

/// Since the volume was attached.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    counts: [Counts; 5],
}

impl Stats {
    pub(crate) fn answered(&mut self, operation: Operation, bytes: u64, took: Duration, is_done: bool) {
        let counts = &mut self.counts[operation as usize];
        counts.requests += 1;
        counts.errors += u64::from(!is_done);
        counts.bytes += bytes;
        counts.latency.add(took);
    }

    /// Of one sort.
    #[must_use]
    pub const fn of(&self, operation: Operation) -> &Counts {
        &self.counts[operation as usize]
    }
}
