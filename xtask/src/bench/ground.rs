// SPDX-License-Identifier: Apache-2.0
//! Where it is measured: the directory, the raw file that the peers and the bare disk share, quiet before each turn.
//!
//! The raw file is written through once, so that no target pays for the file system's first allocation of a block. The
//! directory is made by the run and removed with it, also when the run is ended from outside. Other files of a turn lie in it
//! too, and each turn begins without those of the one before.

use super::targets::Kind;
use crate::fleet::Plan;
use crate::guard;
use anyhow::{Context, Result, ensure};
use std::cell::Cell;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// What the raw file is written with: this much that does not compress, over and over.
const FILL_BYTES: usize = 8 << 20;

/// The directory of a run and its settings.
pub struct Ground {
    directory: PathBuf,
    /// Bytes of a volume, and of the raw file.
    pub size: u64,
    /// Seconds a measurement.
    pub seconds: u32,
    /// Our server's program.
    pub varve: PathBuf,
    raw_is_filled: Cell<bool>,
}

impl Ground {
    /// Makes a directory of its own below `parent`.
    pub fn new(parent: &Path, size: u64, seconds: u32, varve: PathBuf) -> Result<Self> {
        fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        let parent = parent.canonicalize().context("where is that directory?")?;
        let status = rustix::fs::statvfs(&parent).context("how much space is free?")?;
        let free = status.f_bavail.saturating_mul(status.f_frsize);
        let wanted = size.saturating_mul(4);
        ensure!(free >= wanted, "{} has {} GiB free; {} are needed", parent.display(), free >> 30, wanted >> 30);
        let directory = parent.join(format!("run-{}", std::process::id()));
        fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
        guard::add_directory(&directory)?;
        Ok(Self { directory, size, seconds, varve, raw_is_filled: Cell::new(false) })
    }

    /// The run's directory, on the disk that is measured.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// An empty directory for one turn of one target; the last one's is removed.
    pub fn scratch(&self, kind: Kind) -> Result<PathBuf> {
        let path = self.directory.join(kind.name());
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        }
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(path)
    }

    /// A cluster on the measured disk, with etcd and the edge where no fault comes.
    pub fn fleet(&self) -> Result<Plan> {
        let directory = self.scratch(Kind::Varve)?;
        Ok(Plan { directory, varve: self.varve.clone(), size: self.size, apart: false })
    }

    /// The path of a file that is not there: the last turn's is removed.
    pub fn fresh_file(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", path.display()))
            }
            _ => Ok(path),
        }
    }

    /// The raw file, every byte written.
    pub fn raw_file(&self) -> Result<PathBuf> {
        let path = self.directory.join("raw");
        if !self.raw_is_filled.get() {
            println!("writing a raw file of {} GiB", self.size >> 30);
            fill(&path, self.size).with_context(|| format!("writing {}", path.display()))?;
            self.raw_is_filled.set(true);
        }
        Ok(path)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.directory) {
            Ok(()) => guard::remove_directory(&self.directory),
            Err(error) => eprintln!("{} is left behind: {error}", self.directory.display()),
        }
    }
}

fn fill(path: &Path, size: u64) -> Result<()> {
    let mut file = fs::File::create(path)?;
    let mut block = vec![0; FILL_BYTES];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for word in block.chunks_exact_mut(8) {
        // xorshift64: fast, and nothing that a compressor finds a pattern in
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    let mut left = size;
    while left > 0 {
        let length = left.min(FILL_BYTES as u64);
        file.write_all(&block[..usize::try_from(length)?])?;
        left -= length;
    }
    file.sync_all()?;
    Ok(())
}

/// Writes back what the page cache holds, so that no turn pays for the one before.
pub fn quiet_disk() {
    rustix::fs::sync();
}
