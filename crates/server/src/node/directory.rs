// SPDX-License-Identifier: Apache-2.0
//! The data directory: its layout, its lock, and the version of its form.
//!
//! ```text
//! DIR/lock        flock'ed by the process that owns the directory, which writes its id into it
//! DIR/format      the version of this layout; written last when a directory is made
//! DIR/meta.redb   coordination, of a node by itself
//! DIR/node        id, name and cluster of a node of a cluster, whose coordination is elsewhere
//! DIR/journal/0   the journal, unless others are configured
//! DIR/journals    the journals in use, where that is not the one above alone; from version 2 on
//! DIR/store       the store of the pool `default`, unless another was given
//! DIR/nbd.sock, DIR/api.sock, DIR/token
//! ```
//!
//! Always holds: one process at a time owns a directory, by the kernel's lock and not by the id in the file, so a
//! process that died leaves nothing to clear away. A directory with `format` was whole once: then a journal that is
//! missing is a loss, and is refused instead of made anew, since what was acknowledged and had not reached the
//! store was only there. A crash before `format` is written leaves a directory that the next start completes.

use crate::api::ControlError;
use rustix::fs::{FlockOperation, flock};
use std::cell::Cell;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind as IoKind, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use varve_types::ErrorKind;

/// The newest version of the layout that this build knows.
const FORMAT: u32 = 2;
/// The version of a directory without a list of journals.
const FIRST_FORMAT: u32 = 1;

/// A data directory that this process owns.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// Held for its lock.
    _lock: File,
    /// The version that it has; of one that was never whole, that it will have.
    version: Cell<u32>,
    whole: bool,
}

/// Gives an error of the system its place.
pub(super) fn io_error(what: impl std::fmt::Display, error: &std::io::Error) -> ControlError {
    let kind = match error.kind() {
        IoKind::NotFound => ErrorKind::NotFound,
        IoKind::StorageFull | IoKind::QuotaExceeded => ErrorKind::NoSpace,
        IoKind::ResourceBusy | IoKind::AddrInUse => ErrorKind::Conflict,
        IoKind::PermissionDenied | IoKind::NotADirectory | IoKind::InvalidInput | IoKind::ReadOnlyFilesystem => {
            ErrorKind::Invalid
        }
        _ => ErrorKind::Unavailable,
    };
    ControlError::new(kind, format!("{what}: {error}"))
}

/// Puts a small file in the place of the one of this name, if there is one: whole and on stable media, or not at all.
pub(super) fn replace_file(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

impl Directory {
    /// Takes the directory, making it when it is not there.
    ///
    /// # Errors
    /// `Conflict` while another process has it, naming the process; `Invalid` for a version that is not known.
    pub(super) fn open_or_create(path: &Path) -> Result<Self, ControlError> {
        let path = std::path::absolute(path).map_err(|error| io_error(path.display(), &error))?;
        make(&path).map_err(|error| io_error(format_args!("the data directory {}", path.display()), &error))?;
        Self::lock(path)
    }

    /// Takes a directory that must be there and whole.
    ///
    /// # Errors
    /// `NotFound` when there is none; and those of [`open_or_create`](Self::open_or_create).
    pub(super) fn open(path: &Path) -> Result<Self, ControlError> {
        let path = std::path::absolute(path).map_err(|error| io_error(path.display(), &error))?;
        if !path.join("format").exists() {
            return Err(ControlError::not_found("data directory", path.display()));
        }
        Self::lock(path)
    }

    fn lock(path: PathBuf) -> Result<Self, ControlError> {
        let file = path.join("lock");
        let fail = |error: &std::io::Error| io_error(format_args!("the lock {}", file.display()), error);
        let mut lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&file);
        let lock = lock.as_mut().map_err(|error| fail(error))?;
        match flock(&*lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                // Where it can not be read, the process has no name.
                let _ = lock.take(32).read_to_string(&mut text);
                let who =
                    text.trim().parse::<u32>().map_or("another process".to_owned(), |pid| format!("process {pid}"));
                let message = format!("the data directory {} is in use by {who}", path.display());
                return Err(ControlError::conflict(message));
            }
            Err(error) => return Err(fail(&error.into())),
        }
        let write = |mut lock: &File| {
            lock.set_len(0)?;
            lock.rewind()?;
            writeln!(lock, "{}", std::process::id())
        };
        // Only for people: a full disk is no reason not to serve.
        if let Err(error) = write(lock) {
            tracing::warn!(%error, file = %file.display(), "the process id could not be written");
        }
        let lock = lock.try_clone().map_err(|error| fail(&error))?;
        let found = read_format(&path)?;
        let (version, whole) = (Cell::new(found.unwrap_or(FIRST_FORMAT)), found.is_some());
        Ok(Self { path, _lock: lock, version, whole })
    }

    /// Its absolute path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it was completed once.
    pub(super) const fn is_whole(&self) -> bool {
        self.whole
    }

    /// The file of the journal, unless others are configured.
    pub(super) fn journal(&self) -> PathBuf {
        self.path.join("journal").join("0")
    }

    /// The list of journals.
    pub(super) fn journals(&self) -> PathBuf {
        self.path.join("journals")
    }

    /// The file of coordination.
    pub(super) fn coordination(&self) -> PathBuf {
        self.path.join("meta.redb")
    }

    /// The file that says which node of a cluster this is.
    pub(super) fn node(&self) -> PathBuf {
        self.path.join("node")
    }

    /// The file that says what copies of other nodes' volumes on this node's disk live and die with.
    pub(super) fn disk_copies(&self) -> PathBuf {
        self.path.join("copies")
    }

    /// The NBD socket.
    pub(super) fn nbd_socket(&self) -> PathBuf {
        self.path.join("nbd.sock")
    }

    /// The socket for edges.
    pub(super) fn edge_socket(&self) -> PathBuf {
        self.path.join("edge.sock")
    }

    /// What edges prove themselves by over TCP.
    pub(super) fn edge_token(&self) -> PathBuf {
        self.path.join("edge-token")
    }

    /// The API socket.
    pub(super) fn api_socket(&self) -> PathBuf {
        self.path.join("api.sock")
    }

    /// Notes that everything that a directory must have is there.
    ///
    /// # Errors
    /// When the file can not be written.
    pub(super) fn complete(&mut self) -> Result<(), ControlError> {
        if self.whole {
            return Ok(());
        }
        self.write_format(self.version.get())?;
        self.whole = true;
        Ok(())
    }

    /// Gives the directory at least this version, durably: a build that does not know it refuses the directory.
    ///
    /// # Errors
    /// When the file can not be written.
    pub(super) fn raise_format(&self, version: u32) -> Result<(), ControlError> {
        if self.version.get() >= version {
            return Ok(());
        }
        if self.whole {
            self.write_format(version)?;
        }
        self.version.set(version);
        Ok(())
    }

    fn write_format(&self, version: u32) -> Result<(), ControlError> {
        let (new, file) = (self.path.join("format.new"), self.path.join("format"));
        let write = || {
            let mut text = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            writeln!(text, "varve {version}")?;
            text.sync_all()?;
            std::fs::rename(&new, &file)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|error| io_error(file.display(), &error))
    }
}

/// Makes the directories, open to their owner alone. One that is there and has something in it keeps its mode: somebody may have meant it.
fn make(path: &Path) -> std::io::Result<()> {
    let empty = match std::fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == IoKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(path)?;
            true
        }
        Err(error) => return Err(error),
    };
    if empty {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))?;
    }
    match DirBuilder::new().mode(0o700).create(path.join("journal")) {
        Err(error) if error.kind() != IoKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// The version, if there is one, which must then be one that is known.
fn read_format(path: &Path) -> Result<Option<u32>, ControlError> {
    let file = path.join("format");
    let at = file.display();
    let mut text = String::new();
    match File::open(&file) {
        Err(error) if error.kind() == IoKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(at, &error)),
        Ok(open) => open.take(64).read_to_string(&mut text).map_err(|error| io_error(&at, &error))?,
    };
    match text.trim_end().strip_prefix("varve ").map(str::parse::<u32>) {
        Some(Ok(found @ FIRST_FORMAT..=FORMAT)) => Ok(Some(found)),
        Some(Ok(found)) => {
            let message = format!(
                "{at}: the data directory has format version {found}; this build knows {FORMAT} at most: use a newer one"
            );
            Err(ControlError::invalid(message))
        }
        _ => Err(ControlError::new(ErrorKind::Corrupt, format!("{at}: it does not hold a format version"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_owner_at_a_time_and_a_crash_leaves_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let mut first = Directory::open_or_create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        let error = Directory::open_or_create(&path).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict);
        assert!(error.message.contains(&format!("process {}", std::process::id())), "{error}");
        assert!(!first.is_whole());
        first.complete().unwrap();
        drop(first);
        assert!(Directory::open(&path).unwrap().is_whole());
    }

    #[test]
    fn a_version_that_is_not_known_is_refused_by_its_number() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Directory::open(dir.path()).unwrap_err().kind, ErrorKind::NotFound);
        for (text, kind, part) in
            [("varve 99\n", ErrorKind::Invalid, "version 99"), ("\0\0", ErrorKind::Corrupt, "format")]
        {
            std::fs::write(dir.path().join("format"), text).unwrap();
            let error = Directory::open_or_create(dir.path()).unwrap_err();
            assert_eq!(error.kind, kind);
            assert!(error.message.contains(part), "{error}");
        }
    }

    #[test]
    fn a_directory_in_use_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("other"), "x").unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o750)).unwrap();
        Directory::open_or_create(dir.path()).unwrap();
        assert_eq!(std::fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777, 0o750);
    }
}
