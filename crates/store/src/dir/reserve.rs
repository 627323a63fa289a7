// SPDX-License-Identifier: Apache-2.0
//! The reserve: room on the disk that is kept so that a full one can be emptied.
//!
//! To delete something, a manifest that no longer needs it has to be put first. On a disk that is full to the last byte nothing could ever go. So a file of
//! zeroes takes a part of the disk, and gives way once something does not fit. What it gave is not for *bulk*, the objects that guests' data come in: those wait as
//! if the disk were full, while all else is put and the disk can be emptied. The file grows back as soon as there is twice the room that it lacks.
//!
//! It also leaves room for others on the same disk who must not fail: coordination first of all.
//!
//! Always holds: bulk leaves as much free as the reserve has given. Nothing here keeps a put from being tried for longer than it takes to ask the file system for its
//! free space, and an error of the reserve itself is told and costs the reserve only.

use rustix::fs::{FallocateFlags, fallocate, ftruncate, statvfs};
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The file, in the directory of temporary files.
pub(super) const NAME: &str = "reserve";
/// Its part of the file system, and its most bytes.
const PART: u64 = 64;
const MOST: u64 = 256 << 20;

/// See the module.
pub(super) struct Reserve {
    path: PathBuf,
    /// Bytes that it should have.
    full: u64,
    /// Bytes that it has.
    held: Mutex<u64>,
}

impl Reserve {
    /// The reserve of a store whose temporary files are in `temporary`; filled, if there is room.
    pub(super) fn open(temporary: &Path) -> Self {
        let path = temporary.join(NAME);
        let size = statvfs(temporary).map_or(0, |system| system.f_blocks.saturating_mul(system.f_frsize));
        let full = (size / PART).min(MOST) / 4096 * 4096;
        let this = Self { path, full, held: Mutex::new(0) };
        this.refill();
        this
    }

    fn free(&self) -> u64 {
        // Where it can not be known there is nothing to be careful of.
        let system = self.path.parent().map(statvfs).and_then(Result::ok);
        system.map_or(u64::MAX, |system| system.f_bavail.saturating_mul(system.f_frsize))
    }

    /// Whether bulk of so many bytes leaves what the reserve has given.
    pub(super) fn admits(&self, bytes: u64) -> bool {
        let held = *self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held >= self.full || self.free() >= bytes.saturating_add(self.full - held)
    }

    /// Something did not fit: gives up half of it, then the rest. Tells whether there was something to give.
    pub(super) fn give(&self) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if *held == 0 {
            return false;
        }
        let left = if *held > self.full / 2 { self.full / 2 } else { 0 };
        match self.resize(left) {
            Ok(()) => {
                tracing::warn!(path = %self.path.display(), given = *held - left, left, "the disk is full: its reserve gives way");
                *held = left;
                true
            }
            Err(failure) => {
                tracing::warn!(path = %self.path.display(), %failure, "the disk is full, and its reserve can not be given up");
                false
            }
        }
    }

    /// Takes back what it lacks, where there is twice as much.
    pub(super) fn refill(&self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let lacks = self.full - *held;
        if lacks == 0 || self.free() < 2 * lacks {
            return;
        }
        match self.resize(self.full) {
            Ok(()) => *held = self.full,
            Err(failure) => {
                tracing::debug!(path = %self.path.display(), %failure, "the reserve could not be filled");
                // What came of it is not known: it goes, and is tried again.
                *held = if self.resize(0).is_ok() { 0 } else { *held };
            }
        }
    }

    fn resize(&self, bytes: u64) -> io::Result<()> {
        let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(&self.path)?;
        ftruncate(&file, bytes)?;
        if bytes > 0 {
            fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_gives_half_then_the_rest_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::open(dir.path());
        let size = || std::fs::metadata(dir.path().join(NAME)).unwrap().len();
        assert!(reserve.full > 0 && size() == reserve.full, "{}", reserve.full);
        assert!(reserve.admits(u64::MAX / 2), "while it is whole the file system says what fits");
        assert!(reserve.give() && size() == reserve.full / 2);
        let free = reserve.free();
        assert!(
            !reserve.admits(free) && !reserve.admits(u64::MAX) && reserve.admits(4096),
            "what was given is not for bulk"
        );
        assert!(reserve.give() && size() == 0 && !reserve.give());
        reserve.refill();
        assert_eq!(size(), reserve.full);
    }
}
