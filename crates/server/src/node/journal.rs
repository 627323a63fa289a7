// SPDX-License-Identifier: Apache-2.0
//! The file of the journal: made at the first start, opened at every other.
//!
//! It is made whole under another name, and gets its own once a shard has begun in it, so a crash on the way leaves
//! nothing that the next start would take for a journal. A directory that was whole once and has no journal any
//! more is refused: what was acknowledged and had not reached the store was in it.

use super::directory::{Directory, io_error};
use crate::api::ControlError;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use varve_coord::Coord;
use varve_engine::{Limits, Shard};
use varve_env::Env;
use varve_env::real::FileDisk;
use varve_types::{ErrorKind, format_size};

/// The smallest journal.
const LEAST: u64 = 64 << 20;
/// What part of the free space a new journal takes at most.
const PART: u64 = 4;

/// Where the journal is, and how large it is to be.
#[derive(Clone, Debug)]
pub(super) struct JournalFile {
    file: PathBuf,
    size: u64,
    must_exist: bool,
}

impl JournalFile {
    pub(super) fn new(directory: &Directory, size: u64) -> Self {
        Self { file: directory.journal(), size, must_exist: directory.is_whole() }
    }

    /// Starts a shard on it, on the thread that will own both.
    ///
    /// # Errors
    /// `NoSpace` when there is no room for it, `NotFound` when it is lost, and what the engine says of its contents.
    pub(super) async fn start(
        self,
        env: Rc<dyn Env>,
        coord: Arc<dyn Coord>,
        limits: Limits,
    ) -> Result<Rc<Shard>, ControlError> {
        let at = self.file.display().to_string();
        let exists = self.file.try_exists().map_err(|error| io_error(&at, &error))?;
        if exists {
            let disk = FileDisk::open(&self.file).map_err(|error| io_error("the journal", &error))?;
            let len = varve_env::Disk::len(&disk);
            if len != self.size {
                let (has, wanted) = (format_size(len), format_size(self.size));
                tracing::info!(%has, %wanted, "the journal keeps its size: journal-size takes effect on a new one");
            }
            return Ok(Shard::open(env, Rc::new(disk), coord, limits).await?);
        }
        if self.must_exist {
            let message = format!(
                "the journal {at} is missing: what was written and is not in the store yet is only there. Put it back; or, \
                 if that is lost, begin with a new data directory and `varve pool import`"
            );
            return Err(ControlError::new(ErrorKind::NotFound, message));
        }
        self.make(env, coord, limits).await
    }

    async fn make(&self, env: Rc<dyn Env>, coord: Arc<dyn Coord>, limits: Limits) -> Result<Rc<Shard>, ControlError> {
        let made = self.file.with_extension("making");
        for left_over in [made.clone(), made.with_extension("making.new")] {
            match std::fs::remove_file(&left_over) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(io_error(left_over.display(), &error));
                }
                _ => {}
            }
        }
        let size = self.size_within_space()?;
        tracing::info!(size = %format_size(size), file = %self.file.display(), "making the journal");
        let disk = FileDisk::create(&made, size).map_err(|error| io_error("the journal", &error))?;
        let shard = Shard::create(env, Rc::new(disk), coord, limits).await?;
        let name = || {
            std::fs::rename(&made, &self.file)?;
            std::fs::File::open(directory_of(&self.file))?.sync_all()
        };
        name().map_err(|error| io_error(self.file.display(), &error))?;
        Ok(shard)
    }

    /// The size, but not more than a part of the space that is free.
    fn size_within_space(&self) -> Result<u64, ControlError> {
        let directory = directory_of(&self.file);
        let space = rustix::fs::statvfs(directory).map_err(|error| io_error(directory.display(), &error.into()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        let most = (free / PART) & !((1 << 20) - 1);
        if self.size <= most || self.size == LEAST {
            return Ok(self.size);
        }
        let size = most.max(LEAST);
        tracing::warn!(
            wanted = %format_size(self.size), size = %format_size(size), free = %format_size(free),
            "the journal is made smaller than journal-size says: it takes at most a quarter of the free space"
        );
        Ok(size)
    }
}

fn directory_of(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new("/"))
}
