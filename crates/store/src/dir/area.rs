// SPDX-License-Identifier: Apache-2.0
//! The directory of a store: its temporary files, the names in it, and which of them are durable.
//!
//! The order of a put, and why:
//! 1. the file is written in `_tmp` and synced: a name never stands for bytes that a power cut takes away;
//! 2. the directories of its name are made, and **settled**: for each one new to this process, its parent and it are synced;
//! 3. it is renamed to its name, which must be free (`RENAME_NOREPLACE`, or `link` where that is missing), and the directory is synced;
//! 4. only then it is answered. Where the name is taken, the directory is synced too before `Exists` is answered, since the process that
//!    put it may have died between 3 and 4.
//!
//! For the same reason a file is opened or measured only in a settled directory: what a reader has seen, a power cut must not undo.
//! A sync that failed is never repeated as if it could mend: the temporary file goes and the put fails.
//!
//! Directories that a delete left empty are removed. `structure` keeps that from happening between 2 and 3 of a put of this process; a put
//! that meets such a removal by another process makes the directories again.

use super::reserve::{self, Reserve};
use super::write::{release, write_payload};
use rustix::fs::{FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;
use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;
use varve_env::{Payload, PutOutcome};

/// The directory of temporary files; its `_` keeps it out of the names of objects.
const TEMPORARY: &str = "_tmp";
/// The file in it whose lock says that a process has the store open.
const LOCK: &str = "lock";
/// How often a lock is asked for that another process holds while it cleans, and the pause between.
const LOCK_TRIES: usize = 200;
const LOCK_PAUSE: Duration = Duration::from_millis(50);
/// How often a put makes its directories that somebody else removes.
const PUBLISH_TRIES: usize = 8;
/// More settled directories than this are forgotten, which costs a sync when they are met again.
const SETTLED_MAX: usize = 65_536;

/// The directory of a store.
pub(super) struct Area {
    root: PathBuf,
    temporary: PathBuf,
    /// Held shared as long as the store is open.
    _lock: File,
    /// Names temporary files, together with `counter`.
    nonce: u64,
    counter: AtomicU64,
    /// Directories (relative to the root, which is empty) that are durable, with what was in them when they were settled.
    settled: Mutex<HashSet<String>>,
    /// Shared: names are made. Exclusive: empty directories are removed.
    structure: RwLock<()>,
    reserve: Reserve,
}

/// What was tried, and how it failed.
type OpenFailure = (String, io::Error);

impl Area {
    pub(super) fn open(root: &Path) -> Result<Self, OpenFailure> {
        let tell = |what: String| move |failure: io::Error| (what, failure);
        match fs::metadata(root) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err((format!("{} is no directory", root.display()), io::ErrorKind::NotADirectory.into())),
            Err(failure) if failure.kind() == io::ErrorKind::NotFound => {
                make_dir(root)
                    .map_err(tell(format!("make the directory {} (its parent must be there)", root.display())))?;
            }
            Err(failure) => return Err((format!("look at {}", root.display()), failure)),
        }
        // The directory may have been made by a process that died before it was durable.
        let parent = root.parent().unwrap_or(root);
        sync_dir(parent).map_err(tell(format!("sync {}", parent.display())))?;
        let temporary = root.join(TEMPORARY);
        make_dir(&temporary).map_err(tell(format!("make {}", temporary.display())))?;
        let lock = lock_and_clean(&temporary).map_err(tell(format!("lock and clean {}", temporary.display())))?;
        let nonce =
            getrandom::u64().map_err(|failure| ("ask for random bytes".to_owned(), io::Error::other(failure)))?;
        let reserve = Reserve::open(&temporary);
        let area = Self {
            root: root.to_owned(),
            reserve,
            temporary,
            _lock: lock,
            nonce,
            counter: AtomicU64::new(0),
            settled: Mutex::default(),
            structure: RwLock::new(()),
        };
        area.settle("").map_err(tell(format!("sync {}", root.display())))?;
        // Proves that the directory may be written; the file goes at once.
        area.write_temporary(&Payload::from(bytes::Bytes::from_static(b"varve")))
            .map_err(tell(format!("write in {}", root.display())))?;
        Ok(area)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Puts an object. `bulk` leaves alone what the reserve has given; all else may use it.
    pub(super) fn put(&self, name: &str, payload: &Payload, bulk: bool) -> io::Result<PutOutcome> {
        if bulk && !self.reserve.admits(payload.len()) {
            self.reserve.refill();
            return Err(io::Error::new(io::ErrorKind::StorageFull, "what is left of the disk is its reserve"));
        }
        loop {
            match self.put_once(name, payload) {
                Err(failure) if is_full(&failure) && self.reserve.give() && !bulk => {}
                done => return done,
            }
        }
    }

    fn put_once(&self, name: &str, payload: &Payload) -> io::Result<PutOutcome> {
        let (dir, _) = split(name);
        // Spares writing the body; the rename below is what decides.
        if self.root.join(name).symlink_metadata().is_ok() {
            return self.confirm(name);
        }
        let temporary = self.write_temporary(payload)?;
        for _ in 0..PUBLISH_TRIES {
            match self.publish(&temporary.path, name) {
                Err(failure) if failure.kind() == io::ErrorKind::NotFound => self.forget(dir),
                Err(failure) if failure.kind() == io::ErrorKind::AlreadyExists => return self.confirm(name),
                done => return done.map(|()| PutOutcome::Created),
            }
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "its directory vanishes as often as it is made"))
    }

    /// Gives the temporary file its name, durably. `AlreadyExists` where it is taken, `NotFound` where a directory vanished.
    fn publish(&self, temporary: &Path, name: &str) -> io::Result<()> {
        let _no_removal = self.structure.read().unwrap_or_else(PoisonError::into_inner);
        let (dir, _) = split(name);
        for level in levels(dir).skip(1) {
            if !self.is_settled(level) {
                make_dir(&self.root.join(level))?;
            }
        }
        self.settle(dir)?;
        let target = self.root.join(name);
        match renameat_with(rustix::fs::CWD, temporary, rustix::fs::CWD, &target, RenameFlags::NOREPLACE) {
            // A file system that does not know the flag (NFS) has `link`, which never replaces either.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => fs::hard_link(temporary, &target)?,
            done => done?,
        }
        sync_dir(&self.root.join(dir))
    }

    /// Answers for a name that is taken: whoever took it may have died before it was durable.
    fn confirm(&self, name: &str) -> io::Result<PutOutcome> {
        let (dir, _) = split(name);
        let _no_removal = self.structure.read().unwrap_or_else(PoisonError::into_inner);
        // A directory cannot be an object, and no object can be put in its place.
        if self.root.join(name).is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        self.settle(dir)?;
        sync_dir(&self.root.join(dir))?;
        Ok(PutOutcome::Exists)
    }

    fn write_temporary(&self, payload: &Payload) -> io::Result<Temporary> {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        let path = self.temporary.join(format!("{:016x}-{number}", self.nonce));
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        let temporary = Temporary { path };
        write_payload(&file, payload)?;
        file.sync_data()?;
        release(&file);
        Ok(temporary)
    }

    /// Makes the directory's names durable, as far as this process has not done it.
    pub(super) fn settle_for_reading(&self, name: &str) -> io::Result<()> {
        let (dir, _) = split(name);
        if self.is_settled(dir) {
            return Ok(());
        }
        let _no_removal = self.structure.read().unwrap_or_else(PoisonError::into_inner);
        self.settle(dir)
    }

    fn settle(&self, dir: &str) -> io::Result<()> {
        for level in levels(dir) {
            if self.is_settled(level) {
                continue;
            }
            if !level.is_empty() {
                sync_dir(&self.root.join(split(level).0))?;
            }
            sync_dir(&self.root.join(level))?;
            let mut settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
            if settled.len() >= SETTLED_MAX {
                settled.clear();
            }
            settled.insert(level.to_owned());
        }
        Ok(())
    }

    fn is_settled(&self, dir: &str) -> bool {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner).contains(dir)
    }

    fn forget(&self, dir: &str) {
        let mut settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        for level in levels(dir) {
            settled.remove(level);
        }
    }

    /// The size of an object.
    pub(super) fn size(&self, name: &str) -> io::Result<u64> {
        let meta = fs::metadata(self.root.join(name))?;
        if !meta.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.settle_for_reading(name)?;
        Ok(meta.len())
    }

    /// Removes an object, and the directories that are empty then. What a crash undoes of that is deleted again by whoever asked.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.root.join(name)) {
            Ok(()) => {}
            Err(failure) if is_absent(&failure) => return Ok(()),
            // A directory of that name is no object.
            Err(failure) if failure.kind() == io::ErrorKind::IsADirectory => return Ok(()),
            Err(failure) => return Err(failure),
        }
        self.reserve.refill();
        let mut dir = split(name).0;
        while !dir.is_empty() && is_empty(&self.root.join(dir)) {
            let _alone = self.structure.write().unwrap_or_else(PoisonError::into_inner);
            // Fails where something came in meanwhile, which is as well.
            if fs::remove_dir(self.root.join(dir)).is_err() {
                break;
            }
            self.settled.lock().unwrap_or_else(PoisonError::into_inner).remove(dir);
            dir = split(dir).0;
        }
        Ok(())
    }
}

/// A file in `_tmp`, removed when dropped; a file that was renamed is not there any more.
struct Temporary {
    path: PathBuf,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(failure) = fs::remove_file(&self.path)
            && failure.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %failure, "a temporary file stays until the store is opened again");
        }
    }
}

/// Takes the shared lock, after removing what is left of dead processes if no other holds it.
fn lock_and_clean(temporary: &Path) -> io::Result<File> {
    let lock =
        File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(temporary.join(LOCK))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => clean(temporary)?,
        Err(Errno::WOULDBLOCK) => {
            tracing::info!(path = %temporary.display(), "the store is open elsewhere; nothing is cleaned")
        }
        Err(failure) => return Err(failure.into()),
    }
    // The step from exclusive to shared may let another process clean in between: nothing of ours is there yet.
    for _ in 0..LOCK_TRIES {
        match flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => return Ok(lock),
            Err(Errno::WOULDBLOCK) => std::thread::sleep(LOCK_PAUSE),
            Err(failure) => return Err(failure.into()),
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "another process is cleaning it for too long"))
}

fn clean(temporary: &Path) -> io::Result<()> {
    for entry in fs::read_dir(temporary)? {
        let entry = entry?;
        if entry.file_name() != LOCK && entry.file_name() != reserve::NAME && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Makes a directory of mode 0700; it may be there already.
fn make_dir(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(failure) if failure.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(failure) if failure.kind() == io::ErrorKind::AlreadyExists => Err(io::ErrorKind::NotADirectory.into()),
        done => done,
    }
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn is_empty(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

/// Whether the system says that there is no room.
fn is_full(failure: &io::Error) -> bool {
    matches!(failure.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether the system says that there is no such file.
pub(super) fn is_absent(failure: &io::Error) -> bool {
    matches!(failure.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// A name's directory (empty: the root) and the rest.
fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('/').unwrap_or(("", name))
}

/// The root, then each directory on the way to `dir`, then `dir`.
fn levels(dir: &str) -> impl Iterator<Item = &str> {
    let inner = dir.match_indices('/').map(|(at, _)| &dir[..at]);
    let last = Some(dir).filter(|dir| !dir.is_empty());
    std::iter::once("").chain(inner).chain(last)
}
