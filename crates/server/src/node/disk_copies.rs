// SPDX-License-Identifier: Apache-2.0
//! What the copies that this node keeps on disk for others live and die with, in the file `copies` of its data directory.
//!
//! ```text
//! {"version":1,"incarnation":"UUID","boot":"BOOT"}
//! ```
//!
//! What a process has handed to the kernel outlives the process and not the kernel. So the next process of the same boot has the same incarnation, and the copies that
//! its journals have are whole; after another boot it is a new one, and what is left of them may lack something.
//!
//! Always holds: the file is written before any copy is begun under its incarnation, and gone before it is told that a journal has failed.

use super::directory::{Directory, io_error, replace_file};
use crate::api::ControlError;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{ErrorKind as IoKind, Read};
use std::path::{Path, PathBuf};
use varve_engine::DiskCopies;
use varve_types::{ErrorKind, IncarnationId};

/// The version that is written, and the only one that is taken.
const VERSION: u32 = 1;
/// Most bytes of the file.
const MOST_FILE: u64 = 4096;
/// Says which boot of the kernel this is.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    version: u32,
    incarnation: IncarnationId,
    boot: String,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct DiskCopiesFile {
    path: PathBuf,
    incarnation: IncarnationId,
    is_inherited: bool,
}

impl DiskCopiesFile {
    /// That of a data directory, for this boot.
    ///
    /// # Errors
    /// When the file can not be written.
    pub(super) fn open(directory: &Directory) -> Result<Self, ControlError> {
        let boot = std::fs::read_to_string(BOOT).map_err(|error| io_error(BOOT, &error))?;
        Self::of_boot(directory.disk_copies(), boot.trim())
    }

    fn of_boot(path: PathBuf, boot: &str) -> Result<Self, ControlError> {
        match read(&path) {
            Ok(Some(known)) if known.version == VERSION && known.boot == boot => {
                return Ok(Self { path, incarnation: known.incarnation, is_inherited: true });
            }
            Ok(_) => {}
            // To begin anew is always safe: nobody takes what is there for whole then.
            Err(error) => tracing::warn!(%error, file = %path.display(), "copies on disk begin anew"),
        }
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| ControlError::new(ErrorKind::Internal, error.to_string()))?;
        let incarnation = IncarnationId::from_random(random);
        write(&path, &Stored { version: VERSION, incarnation, boot: boot.to_owned() })
            .map_err(|error| io_error(path.display(), &error))?;
        Ok(Self { path, incarnation, is_inherited: false })
    }

    /// What the shard is told.
    pub(super) fn into_copies(self) -> DiskCopies {
        let Self { path, incarnation, is_inherited } = self;
        let spoil = move || match std::fs::remove_file(&path) {
            Err(error) if error.kind() != IoKind::NotFound => {
                tracing::error!(%error, file = %path.display(), "this file must go before the node is started again: copies of other nodes' volumes are lost");
            }
            _ => {}
        };
        DiskCopies { incarnation, is_inherited, spoil: Box::new(spoil) }
    }
}

fn read(path: &Path) -> std::io::Result<Option<Stored>> {
    let mut text = String::new();
    match File::open(path) {
        Err(error) if error.kind() == IoKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
        Ok(file) => file.take(MOST_FILE).read_to_string(&mut text)?,
    };
    Ok(Some(serde_json::from_str(&text)?))
}

fn write(path: &Path, stored: &Stored) -> std::io::Result<()> {
    replace_file(path, format!("{}\n", serde_json::to_string(stored)?).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_one_boot_share_it_until_it_is_spoiled() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("copies");
        let open = |boot: &str| DiskCopiesFile::of_boot(path.clone(), boot).unwrap();
        let first = open("a");
        assert!(!first.is_inherited);
        let second = open("a");
        assert!(second.is_inherited && second.incarnation == first.incarnation);
        let third = open("b");
        assert!(!third.is_inherited && third.incarnation != first.incarnation, "the kernel is another one");
        (third.clone().into_copies().spoil)();
        let fourth = open("b");
        assert!(!fourth.is_inherited && fourth.incarnation != third.incarnation, "a journal has failed");
        std::fs::write(&path, "{").unwrap();
        let fifth = open("b");
        assert!(!fifth.is_inherited && fifth.incarnation != fourth.incarnation, "nobody can tell what it was");
    }
}
