// SPDX-License-Identifier: Apache-2.0
//! What can become of a disk's writes: at a crash, by a fault; and how long things take.
//!
//! A crash at which nothing was written back and one at which everything was are both worth a run of their own, beside those
//! that the seed mixes: a missing sync shows in the first, a wrong order of replay in the second, a missing checksum only in a mix.

use std::time::Duration;

/// What a crash leaves of the writes that no sync covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashMode {
    /// Only the process dies: the page cache lives on, everything written is there, and still unsynced.
    Kill,
    /// The power goes, and all of them had just been written back.
    Kept,
    /// The power goes, and none had.
    Lost,
    /// The power goes, and only the newest had: the device wrote it first.
    Newest,
    /// The power goes, and the seed chooses for each write whether it was written back.
    Writes,
    /// The power goes, and the seed chooses for each sector of each write.
    Torn,
}

impl CrashMode {
    /// Every mode, for loops.
    pub const ALL: [Self; 6] = [Self::Kill, Self::Kept, Self::Lost, Self::Newest, Self::Writes, Self::Torn];
}

/// What is to go wrong with a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteFault {
    /// It fails with an I/O error, and nothing of it is there.
    Error,
    /// It fails for want of space, and nothing of it is there.
    NoSpace,
    /// It fails, and the first so many bytes of it are there.
    Partial(u64),
    /// It succeeds, is seen until the next power cut, and never reaches the platters.
    Dropped,
    /// It succeeds, is seen until the next power cut, and reaches the platters at this offset (rounded down to a sector).
    Misdirected(u64),
}

/// How long the device takes, in virtual time.
#[derive(Clone, Copy, Debug)]
pub struct DiskTiming {
    /// For a sync.
    pub sync: Duration,
    /// For a read.
    pub read: Duration,
}

impl Default for DiskTiming {
    fn default() -> Self {
        Self { sync: Duration::from_micros(110), read: Duration::from_micros(80) }
    }
}

/// What was done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounts {
    /// Calls of `write_at`.
    pub writes: u64,
    /// Bytes in them.
    pub written: u64,
    /// Syncs asked for.
    pub syncs: u64,
    /// Reads asked for.
    pub reads: u64,
    /// Hints to write back.
    pub hints: u64,
}
