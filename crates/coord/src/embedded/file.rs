// SPDX-License-Identifier: Apache-2.0
//! The file of the embedded form: a redb database with two tables.
//!
//! ```text
//! meta     &str -> u64     "format" = 1, "revision" = the store's revision, "opening" = number of this opening
//! entries  &str -> bytes   key -> revision u64 LE, lease u64 LE (0: none), value
//! ```
//!
//! redb checksums every page, locks the file against other openers, and makes a commit durable, whole or not at all. At opening every page is
//! verified, and every entry is read into RAM. A new file is made under another name and gets its own only when it is whole, so that a crash
//! while it is made leaves nothing that looks like a damaged one. The table `meta` keeps its types for ever, so that a later format can be told.

use super::holder;
use crate::state::{Plan, Slot, Step};
use crate::{CoordError, LeaseId, MAX_VALUE_BYTES, Result, api};
use redb::backends::FileBackend;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, TableHandle};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const ENTRIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries");
/// The format that this build reads and writes.
pub(super) const FORMAT: u64 = 1;
/// redb's own file format that this build reads.
const REDB_FORMAT: u64 = 3;
const HEADER_BYTES: usize = 16;
/// Pages that redb keeps in RAM beside our own copy of the entries.
const CACHE_BYTES: usize = 8 << 20;
/// What must stay free on the disk beside a transaction, so that a full disk is a plain refusal and not a failed commit.
const RESERVE_BYTES: u64 = 1 << 20;

/// The open file.
pub(super) struct File {
    database: Database,
    path: PathBuf,
    /// What must stay free on the disk: [`RESERVE_BYTES`], but for tests.
    pub(super) reserve_bytes: u64,
}

/// What was in it.
pub(super) struct Loaded {
    pub(super) entries: BTreeMap<String, Slot>,
    pub(super) revision: u64,
    pub(super) opening: u64,
}

/// How a commit can fail.
pub(super) enum CommitFailure {
    /// Nothing was changed.
    NotApplied(CoordError),
    /// The file holds all of it or nothing.
    Unknown(crate::error::Cause),
}

impl File {
    /// Opens the file or makes it.
    pub(super) fn open(path: &Path) -> Result<(Self, Loaded)> {
        let fault = |error: io::Error| from_io(path, error);
        let (file, draft) = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) if file.metadata().map_err(fault)?.len() == 0 => {
                return Err(CoordError::corrupt(name(path), "it is empty"));
            }
            Ok(file) => (file, None),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let draft = draft_path(path);
                (open_draft(path, &draft).map_err(fault)??, Some(draft))
            }
            Err(error) => return Err(fault(error)),
        };
        let backend = FileBackend::new(file).map_err(|error| translate(path, error.into()))?;
        let opened = Self::with_backend(path, backend, draft.is_some())?;
        if let Some(draft) = draft {
            publish(path, &draft)?;
        } else {
            // A crash may have left the other name of a file that was just made.
            remove_if_there(&draft_path(path)).map_err(fault)?;
        }
        Ok(opened)
    }

    /// Opens what lies behind the backend; with `fresh` it must be empty and is made.
    pub(super) fn with_backend(path: &Path, backend: impl StorageBackend, fresh: bool) -> Result<(Self, Loaded)> {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
        let database = builder.create_with_backend(backend).map_err(|error| translate(path, error.into()))?;
        let file = Self { database, path: path.to_owned(), reserve_bytes: RESERVE_BYTES };
        if fresh {
            file.begin().map_err(|error| translate(path, error))?;
        }
        let loaded = file.load()?;
        Ok((file, loaded))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the tables of a new file.
    fn begin(&self) -> std::result::Result<(), redb::Error> {
        let mut write = self.database.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        {
            let mut meta = write.open_table(META)?;
            for (key, value) in [("format", FORMAT), ("revision", 0), ("opening", 0)] {
                meta.insert(key, value)?;
            }
            write.open_table(ENTRIES)?;
        }
        Ok(write.commit()?)
    }

    fn load(&self) -> Result<Loaded> {
        let (format, mut revision, opening) = self.read_meta().map_err(|error| translate(&self.path, error))??;
        if format != FORMAT {
            return Err(CoordError::Version { what: name(&self.path), found: format, known: FORMAT });
        }
        let mut entries = self.read_entries(revision).map_err(|error| translate(&self.path, error))??;
        let leased = entries.extract_if(.., |_, slot| slot.lease.is_some()).map(|(key, _)| key).collect::<Vec<_>>();
        revision += u64::from(!leased.is_empty());
        let opening = opening.wrapping_add(1) & u64::from(u32::MAX);
        self.write_opening(&leased, revision, opening).map_err(|error| translate(&self.path, error))?;
        Ok(Loaded { entries, revision, opening })
    }

    fn read_meta(&self) -> std::result::Result<Result<(u64, u64, u64)>, redb::Error> {
        let read = self.database.begin_read()?;
        if !read.list_tables()?.any(|table| table.name() == META.name()) {
            return Ok(Err(CoordError::corrupt(name(&self.path), "it is a database, but not one of coordination")));
        }
        let meta = read.open_table(META)?;
        let mut values = [0; 3];
        for (value, key) in values.iter_mut().zip(["format", "revision", "opening"]) {
            match meta.get(key)? {
                Some(found) => *value = found.value(),
                // A later format may keep other things; it is told by its number.
                None if key != "format" && values_of_other_format(&meta)? => {}
                None => return Ok(Err(CoordError::corrupt(name(&self.path), format!("it has no {key}")))),
            }
        }
        Ok(Ok((values[0], values[1], values[2])))
    }

    fn read_entries(&self, revision: u64) -> std::result::Result<Result<BTreeMap<String, Slot>>, redb::Error> {
        let table = self.database.begin_read()?.open_table(ENTRIES)?;
        let mut entries = BTreeMap::new();
        for item in table.iter()? {
            let (key, bytes) = item?;
            match decode(key.value(), bytes.value(), revision) {
                Ok(slot) => entries.insert(key.value().to_owned(), slot),
                Err(reason) => {
                    let what = format!("{}, key {:?}", name(&self.path), key.value());
                    return Ok(Err(CoordError::corrupt(what, reason)));
                }
            };
        }
        Ok(Ok(entries))
    }

    /// Numbers this opening, and deletes the keys of leases, all of which are over.
    fn write_opening(&self, leased: &[String], revision: u64, opening: u64) -> std::result::Result<(), redb::Error> {
        let mut write = self.database.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        {
            let mut entries = write.open_table(ENTRIES)?;
            for key in leased {
                entries.remove(key.as_str())?;
            }
            let mut meta = write.open_table(META)?;
            meta.insert("revision", revision)?;
            meta.insert("opening", opening)?;
        }
        Ok(write.commit()?)
    }

    /// Makes the plan durable.
    pub(super) fn commit(&self, plan: &Plan) -> std::result::Result<(), CommitFailure> {
        self.check_space(plan).map_err(CommitFailure::NotApplied)?;
        let write = self.write(plan).map_err(|error| CommitFailure::NotApplied(translate(&self.path, error)))?;
        write.commit().map_err(|error| CommitFailure::Unknown(Box::new(error)))
    }

    fn write(&self, plan: &Plan) -> std::result::Result<redb::WriteTransaction, redb::Error> {
        let mut write = self.database.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        {
            let mut entries = write.open_table(ENTRIES)?;
            for step in &plan.steps {
                match step {
                    Step::Put { key, value, lease } => {
                        entries.insert(key.as_str(), encode(plan.revision, *lease, value).as_slice())?
                    }
                    Step::Delete { key } => entries.remove(key.as_str())?,
                };
            }
            write.open_table(META)?.insert("revision", plan.revision)?;
        }
        Ok(write)
    }

    /// Refuses what the disk has no room for. The pages that a commit writes anew are a few times its bytes.
    fn check_space(&self, plan: &Plan) -> Result<()> {
        let size = |step: &Step| match step {
            Step::Put { key, value, .. } => (key.len() + value.len() + HEADER_BYTES) as u64,
            Step::Delete { .. } => 0,
        };
        let wanted = (4 * plan.steps.iter().map(size).sum::<u64>()).saturating_add(self.reserve_bytes);
        let free = match rustix::fs::statvfs(&self.path) {
            Ok(system) => system.f_bavail.saturating_mul(system.f_frsize),
            Err(error) => {
                tracing::debug!(path = %self.path.display(), %error, "the free space is not known");
                return Ok(());
            }
        };
        if free >= wanted {
            return Ok(());
        }
        Err(CoordError::NoSpace(format!("the disk of {} has only {free} bytes free", self.path.display())))
    }

    /// Closes it, so that the next opening need not repair it.
    pub(super) fn close(self) {
        if let Err(error) = self.database.close() {
            // Nothing is lost: what was answered is durable, and the next opening repairs the rest.
            tracing::warn!(path = %self.path.display(), %error, "the coordination file was not closed cleanly");
        }
    }
}

fn values_of_other_format(meta: &impl ReadableTable<&'static str, u64>) -> std::result::Result<bool, redb::Error> {
    Ok(meta.get("format")?.is_some_and(|format| format.value() != FORMAT))
}

fn encode(revision: u64, lease: Option<LeaseId>, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + value.len());
    bytes.extend_from_slice(&revision.to_le_bytes());
    bytes.extend_from_slice(&lease.map_or(0, |lease| lease.0).to_le_bytes());
    bytes.extend_from_slice(value);
    bytes
}

fn decode(key: &str, bytes: &[u8], newest: u64) -> std::result::Result<Slot, String> {
    api::check_key(key).map_err(|error| error.to_string())?;
    let short = || format!("it has only {} bytes", bytes.len());
    let (revision, rest) = bytes.split_first_chunk::<8>().ok_or_else(short)?;
    let (lease, value) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    let (revision, lease) = (u64::from_le_bytes(*revision), u64::from_le_bytes(*lease));
    if revision == 0 || revision > newest {
        return Err(format!("its revision {revision} is not between 1 and {newest}"));
    }
    if value.len() > MAX_VALUE_BYTES {
        return Err(format!("its value has {} bytes, more than {MAX_VALUE_BYTES}", value.len()));
    }
    Ok(Slot { value: value.into(), revision, lease: (lease != 0).then_some(LeaseId(lease)) })
}

/// The name under which a file is made.
fn draft_path(path: &Path) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(".new");
    text.into()
}

/// An empty draft that is ours alone.
fn open_draft(path: &Path, draft: &Path) -> io::Result<Result<fs::File>> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(draft)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            return Ok(Err(CoordError::Locked { path: path.to_owned(), pid: holder::pid(draft) }));
        }
        Err(fs::TryLockError::Error(error)) => return Err(error),
    }
    // Another opener may have published this very file since it was opened here, and closed it again. Whoever publishes holds the lock, so what
    // is seen now stays.
    let same = fs::metadata(draft).and_then(|named| Ok(named.ino() == file.metadata()?.ino())).unwrap_or(false);
    if !same || fs::exists(path)? {
        return Ok(Err(CoordError::Locked { path: path.to_owned(), pid: holder::pid(path) }));
    }
    // Drops what a crash left in it, if anything.
    file.set_len(0)?;
    Ok(Ok(file))
}

/// Gives a whole file its name, unless another opener was faster.
fn publish(path: &Path, draft: &Path) -> Result<()> {
    let fault = |error: io::Error| from_io(path, error);
    match fs::hard_link(draft, path) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            remove_if_there(draft).map_err(fault)?;
            return Err(CoordError::Locked { path: path.to_owned(), pid: holder::pid(path) });
        }
        Err(error) => return Err(fault(error)),
    }
    remove_if_there(draft).map_err(fault)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(fault)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn name(path: &Path) -> String {
    format!("the coordination file {}", path.display())
}

/// redb's error as ours.
fn translate(path: &Path, error: redb::Error) -> CoordError {
    let corrupt = |error: redb::Error| CoordError::Corrupt {
        what: name(path),
        reason: error.to_string(),
        source: Some(Box::new(error)),
    };
    match error {
        redb::Error::DatabaseAlreadyOpen => CoordError::Locked { path: path.to_owned(), pid: holder::pid(path) },
        redb::Error::UpgradeRequired(found) => {
            CoordError::Version { what: name(path), found: found.into(), known: REDB_FORMAT }
        }
        redb::Error::Io(error) => from_io(path, error),
        redb::Error::Corrupted(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TypeDefinitionChanged { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TableDoesNotExist(_) => corrupt(error),
        other => CoordError::Unavailable {
            reason: format!("{}: {other}; it must be opened again", path.display()),
            source: Some(Box::new(other)),
        },
    }
}

fn from_io(path: &Path, error: io::Error) -> CoordError {
    let text = format!("{}: {error}", path.display());
    match error.kind() {
        // redb says so of a file without its mark, and of one that ends too early.
        ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
            CoordError::Corrupt { what: name(path), reason: error.to_string(), source: Some(Box::new(error)) }
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => CoordError::NoSpace(text),
        ErrorKind::NotFound => CoordError::NotFound(format!("the directory of {}", name(path))),
        ErrorKind::PermissionDenied
        | ErrorKind::IsADirectory
        | ErrorKind::NotADirectory
        | ErrorKind::ReadOnlyFilesystem => CoordError::Invalid(text),
        _ => CoordError::Unavailable { reason: text, source: Some(Box::new(error)) },
    }
}
