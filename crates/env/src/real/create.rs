// SPDX-License-Identifier: Apache-2.0
//! Making and opening the file under a disk.
//!
//! A new file is made whole beside its place, as `PATH.new`: space is asked for first, so that a full file system
//! says so at once; then every byte is written with zeroes, because an extent that is only allocated changes its
//! metadata at the first write and would make each sync wait for the file system's journal too; then file and
//! directory are synced and it is renamed. A crash leaves nothing, a `PATH.new` that the next attempt overwrites,
//! or the whole file.
//!
//! A file is locked for as long as it is open: two writers would destroy each other's journal. The lock goes with
//! the process.

use rustix::fs::{FallocateFlags, FlockOperation, RenameFlags};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes of one write of zeroes.
const ZEROES: usize = 1 << 20;

/// An I/O error with what was tried on which file.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {action}: {source}")]
struct FileError {
    path: String,
    action: String,
    source: io::Error,
}

/// Joins what was tried to an error, whose kind stays.
pub(super) fn context(path: &str, action: impl Into<String>, source: io::Error) -> io::Error {
    io::Error::new(source.kind(), FileError { path: path.to_owned(), action: action.into(), source })
}

/// Makes a file of `len` zeroes at `path`, durably, and keeps it open and locked. Takes as long as writing them takes.
pub(super) fn create(path: &Path, len: u64) -> io::Result<File> {
    let shown = path.display().to_string();
    let mut name = path.file_name().map(ToOwned::to_owned).unwrap_or_default();
    name.push(".new");
    let new = path.with_file_name(name);
    if path.try_exists().map_err(|error| context(&shown, "look for it", error))? {
        return Err(context(&shown, "create", io::ErrorKind::AlreadyExists.into()));
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&new)
        .map_err(|error| context(&shown, "create", error))?;
    lock(&file, &shown)?;
    // Another one may have given the file its name, and died, between the two steps: then this is a whole disk, and not ours to empty.
    let same = |(ours, there): (Metadata, Metadata)| (ours.dev(), ours.ino()) == (there.dev(), there.ino());
    if !file.metadata().and_then(|ours| Ok((ours, new.metadata()?))).is_ok_and(same) {
        return Err(context(&shown, "create", io::Error::new(io::ErrorKind::ResourceBusy, "another process makes it")));
    }
    let made = fill(&file, len).and_then(|()| publish(&new, path));
    if let Err(error) = made {
        // What is left over would only be overwritten by the next attempt, but it may hold the space that is wanting.
        drop(std::fs::remove_file(&new));
        return Err(context(&shown, format!("create with {len} bytes"), error));
    }
    Ok(file)
}

fn fill(file: &File, len: u64) -> io::Result<()> {
    file.set_len(0)?;
    if len > 0 {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
            // A file system that can not promise space has it taken by the zeroes.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let zeroes = vec![0; ZEROES];
    let mut file = file;
    let mut left = len;
    while left > 0 {
        let part = left.min(ZEROES as u64);
        file.write_all(&zeroes[..part as usize])?;
        left -= part;
    }
    file.sync_all()
}

/// Gives the file its name, if that is still free, and makes the name durable.
fn publish(new: &Path, path: &Path) -> io::Result<()> {
    let cwd = rustix::fs::CWD;
    match rustix::fs::renameat_with(cwd, new, cwd, path, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        // A file system without this; that the name was free a moment ago must do.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => std::fs::rename(new, path)?,
        Err(error) => return Err(error.into()),
    }
    let directory =
        path.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(PathBuf::from("."), Path::to_owned);
    File::open(directory)?.sync_all()
}

/// Opens the file or block device at `path`, locked, and gives its length.
pub(super) fn open(path: &Path) -> io::Result<(File, u64)> {
    let shown = path.display().to_string();
    let mut file =
        OpenOptions::new().read(true).write(true).open(path).map_err(|error| context(&shown, "open", error))?;
    let kind = file.metadata().map_err(|error| context(&shown, "look at it", error))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let odd = io::Error::new(io::ErrorKind::InvalidInput, "it is neither a file nor a block device");
        return Err(context(&shown, "open", odd));
    }
    lock(&file, &shown)?;
    let len = file.seek(SeekFrom::End(0)).map_err(|error| context(&shown, "find its length", error))?;
    Ok((file, len))
}

fn lock(file: &File, path: &str) -> io::Result<()> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let busy = io::Error::new(io::ErrorKind::ResourceBusy, "another process, or this one, has it open");
            Err(context(path, "lock", busy))
        }
        Err(error) => Err(context(path, "lock", error.into())),
    }
}
