// SPDX-License-Identifier: Apache-2.0
//! The journals of a node: which of the places that the configuration names are made, which are opened, and which are to be given up.
//!
//! [`JournalPlan`] decides that before anything is written; [`NodeJournals`] is what came of it.
//!
//! Always holds:
//! - Nothing is written to a place that holds something else: a file that is no journal, a journal that is not of this node, a device that is not blank.
//! - A journal that was in use and is missing is a loss, and the start is refused: what was acknowledged and had not reached the store is only there.
//!   One that is in use and no longer configured is opened all the same, what it holds goes to the others, and it leaves the list once nothing needs it.
//! - A file is made whole under another name, and gets its own once a shard has begun in it. What a crash leaves of one that was being made is made anew:
//!   the list says so ([`super::journal_list`]). Without a list a data directory that was never whole says so.

use super::directory::{Directory, io_error};
use super::journal_list::{self, Entry};
use crate::api::ControlError;
use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use varve_config::{JournalSpec, UpConfig};
use varve_coord::Coord;
use varve_engine::{JournalCounts, JournalDisk, JournalRole, Limits, Shard};
use varve_env::Env;
use varve_env::real::FileDisk;
use varve_format::journal::{SUPERBLOCK, Superblock};
use varve_types::{ErrorKind, JournalId, MAX_JOURNALS, format_size};

/// The smallest journal.
const LEAST: u64 = 64 << 20;
/// What part of the free space the journal of the data directory takes at most.
const PART: u64 = 4;
/// First bytes of a block device that are looked at: every file system and partition table has something there.
const FRONT: usize = 128 << 10;
/// The version of a data directory with a list: a build that does not know the list would pass by what other journals hold.
const LISTED_FORMAT: u32 = 2;

/// What stands at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    /// A block device that holds nothing.
    Blank,
    Journal(JournalId),
    Other,
}

/// What is to be done with a place.
#[derive(Clone, Debug)]
enum Step {
    /// A journal is made: a file of so many bytes, or on a block device.
    Make(Option<u64>),
    /// The journal there is opened; a new one would have so many bytes.
    Open(Option<u64>),
    /// It is opened, to be given up.
    Leave,
}

/// The places of a start, and what is to be done with each.
#[derive(Clone, Debug)]
pub(super) struct JournalPlan {
    parts: Vec<(PathBuf, Step)>,
    /// The list, where there is to be one.
    list: Option<PathBuf>,
}

/// The journals that a shard was started with, in its order.
#[derive(Debug)]
pub(super) struct NodeJournals {
    paths: Vec<PathBuf>,
    list: Option<PathBuf>,
    /// Those of the list that were given up.
    gone: RefCell<Vec<JournalId>>,
}

impl JournalPlan {
    /// Looks at every place and decides.
    ///
    /// # Errors
    /// `NotFound` for a journal that is lost; `Conflict` for a place that holds something else; `Invalid` where a size is needed.
    pub(super) fn new(directory: &Directory, config: &UpConfig) -> Result<Self, ControlError> {
        let default = directory.journal();
        let wanted = if config.journals.is_empty() {
            vec![JournalSpec { path: default.clone(), size_bytes: Some(config.journal_size_bytes) }]
        } else {
            config.journals.clone()
        };
        let listed = journal_list::load(&directory.journals())?;
        let known = match &listed {
            Some(entries) => entries.clone(),
            None => known_without_list(&default, directory.is_whole())?,
        };
        let mut parts: Vec<(PathBuf, Step)> = Vec::new();
        let mut here: Vec<JournalId> = Vec::new();
        for spec in &wanted {
            let found = look(&spec.path)?;
            let step = step(spec, found, &known)?;
            if let (Found::Journal(id), Step::Open(_)) = (found, &step) {
                if here.contains(&id) {
                    let what =
                        format!("the journal {}: it is a copy of another that is configured", spec.path.display());
                    return Err(ControlError::conflict(what));
                }
                here.push(id);
            }
            parts.push((spec.path.clone(), step));
        }
        for entry in &known {
            let Entry::Used(id, path) = entry else { continue };
            let is_here =
                here.contains(id) || parts.iter().any(|(part, step)| part == path && matches!(step, Step::Open(_)));
            if !is_here {
                match look(path)? {
                    Found::Journal(found) if found == *id => parts.push((path.clone(), Step::Leave)),
                    _ => return Err(missing(path, Some(*id))),
                }
            }
        }
        let is_default = parts.len() == 1 && parts[0].0 == default;
        let list = (listed.is_some() || !is_default).then(|| directory.journals());
        if parts.len() > 2 * MAX_JOURNALS {
            return Err(ControlError::invalid(format!("more than {} journals", 2 * MAX_JOURNALS)));
        }
        if list.is_some() {
            directory.raise_format(LISTED_FORMAT)?;
        }
        Ok(Self { parts, list })
    }

    /// The journals that are in use, whatever is configured: nothing is made or given up.
    ///
    /// # Errors
    /// `NotFound` for a journal that is lost.
    pub(super) fn as_it_is(directory: &Directory) -> Result<Self, ControlError> {
        let Some(entries) = journal_list::load(&directory.journals())? else {
            return Self::new(directory, &UpConfig::default());
        };
        let mut parts = Vec::new();
        for entry in &entries {
            let Entry::Used(id, path) = entry else { continue };
            match look(path)? {
                Found::Nothing | Found::Blank => return Err(missing(path, Some(*id))),
                Found::Journal(_) | Found::Other => parts.push((path.clone(), Step::Open(None))),
            }
        }
        Ok(Self { parts, list: None })
    }

    /// Starts a shard on them, on the thread that will own all of it.
    ///
    /// # Errors
    /// `NoSpace` when there is no room for one, and what the engine says of their contents.
    pub(super) async fn start(
        self,
        env: Rc<dyn Env>,
        coord: Arc<dyn Coord>,
        limits: Limits,
    ) -> Result<(Rc<Shard>, NodeJournals), ControlError> {
        if let Some(list) = &self.list {
            let entry = |(path, step): &(PathBuf, Step)| match (step, look(path)?) {
                (Step::Make(_), _) => Ok(Some(Entry::Making(path.clone()))),
                (_, Found::Journal(id)) => Ok(Some(Entry::Used(id, path.clone()))),
                // The engine says below what is wrong with it, and the list stays as it is.
                _ => Ok(None),
            };
            let entries: Vec<_> = self.parts.iter().map(entry).collect::<Result<_, ControlError>>()?;
            if let Some(entries) = entries.into_iter().collect::<Option<Vec<_>>>() {
                journal_list::save(list, &entries)?;
            }
        }
        let disks = self.parts.iter().map(|(path, step)| self.disk(path, step)).collect::<Result<_, _>>()?;
        let shard = Shard::start(env, disks, coord, limits).await?;
        for (path, step) in &self.parts {
            if matches!(step, Step::Make(Some(_))) {
                publish(path).map_err(|error| io_error(path.display(), &error))?;
            }
        }
        let journals = NodeJournals {
            paths: self.parts.into_iter().map(|(path, _)| path).collect(),
            list: self.list,
            gone: RefCell::default(),
        };
        journals.save(&shard)?;
        Ok((shard, journals))
    }

    fn disk(&self, path: &Path, step: &Step) -> Result<JournalDisk, ControlError> {
        let failed = |error: std::io::Error| io_error("the journal", &error);
        let (disk, role) = match step {
            Step::Make(Some(size)) => {
                let made = making(path);
                // Of a start that a crash has ended.
                for left_over in [made.clone(), with_suffix(&made, ".new"), path.to_owned()] {
                    match std::fs::remove_file(&left_over) {
                        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                            return Err(io_error(left_over.display(), &error));
                        }
                        _ => {}
                    }
                }
                let size = if self.list.is_none() { size_within_space(path, *size)? } else { *size };
                tracing::info!(size = %format_size(size), file = %path.display(), "making a journal");
                (FileDisk::create(&made, size).map_err(failed)?, JournalRole::New)
            }
            Step::Make(None) => {
                tracing::info!(device = %path.display(), "making a journal");
                (FileDisk::open(path).map_err(failed)?, JournalRole::New)
            }
            Step::Open(wanted) => {
                let disk = FileDisk::open(path).map_err(failed)?;
                let len = varve_env::Disk::len(&disk);
                if wanted.is_some_and(|wanted| wanted != len) {
                    let (has, wanted) = (format_size(len), format_size(wanted.unwrap_or_default()));
                    tracing::info!(file = %path.display(), %has, %wanted, "the journal keeps its size: another takes effect on a new one");
                }
                (disk, JournalRole::Used)
            }
            Step::Leave => {
                tracing::info!(file = %path.display(), "a journal is no longer configured: what it holds goes to the others");
                (FileDisk::open(path).map_err(failed)?, JournalRole::Leaving)
            }
        };
        Ok(JournalDisk { disk: Rc::new(disk), role })
    }
}

impl NodeJournals {
    /// The journals, with their places.
    pub(super) fn counts(&self, shard: &Shard) -> Vec<(String, JournalCounts)> {
        let paths = self.paths.iter().map(|path| path.display().to_string());
        paths.zip(shard.journals()).filter(|(_, counts)| !self.gone.borrow().contains(&counts.id)).collect()
    }

    /// Takes journals that are to be given up, and that nothing needs any more, from the list. To be called once all volumes were tried to be opened.
    pub(super) fn forget_empty(&self, shard: &Shard) {
        let mut any = false;
        for (path, counts) in self.counts(shard) {
            if counts.leaving && counts.empty {
                self.gone.borrow_mut().push(counts.id);
                any = true;
                tracing::info!(journal = %path, "nothing needs this journal any more: it is no longer in use, and can be removed");
            }
        }
        if any && let Err(error) = self.save(shard) {
            tracing::warn!(%error, "the list of journals could not be written: the next start needs the same ones");
        }
    }

    fn save(&self, shard: &Shard) -> Result<(), ControlError> {
        let Some(list) = &self.list else { return Ok(()) };
        let gone = self.gone.borrow();
        let all = self.paths.iter().zip(shard.journals()).filter(|(_, counts)| !gone.contains(&counts.id));
        let entries: Vec<_> = all.map(|(path, counts)| Entry::Used(counts.id, path.clone())).collect();
        journal_list::save(list, &entries)
    }
}

/// What is known without a list: the journal of the data directory, where that was whole once.
fn known_without_list(default: &Path, is_whole: bool) -> Result<Vec<Entry>, ControlError> {
    match look(default)? {
        Found::Journal(id) => Ok(vec![Entry::Used(id, default.to_owned())]),
        Found::Nothing if is_whole => Err(missing(default, None)),
        // The engine says what is wrong with it.
        Found::Other => Ok(vec![Entry::Used(JournalId::from_bytes([0; 16]), default.to_owned())]),
        Found::Nothing | Found::Blank => Ok(Vec::new()),
    }
}

/// What is to be done with a configured place.
fn step(spec: &JournalSpec, found: Found, known: &[Entry]) -> Result<Step, ControlError> {
    let (path, at) = (&spec.path, spec.path.display());
    let is_making = known.contains(&Entry::Making(path.clone()));
    let was_here = known.iter().any(|entry| matches!(entry, Entry::Used(_, place) if place == path));
    let is_device = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
    match found {
        Found::Journal(_) | Found::Other if is_making => {}
        Found::Journal(id) if known.iter().any(|entry| matches!(entry, Entry::Used(known, _) if *known == id)) => {
            return Ok(Step::Open(spec.size_bytes.filter(|_| !is_device)));
        }
        Found::Journal(id) => {
            let what = format!(
                "the journal {at}: it is {id}, which is not one of this node: wipe it first, if nothing needs it"
            );
            return Err(ControlError::conflict(what));
        }
        Found::Other if was_here => return Ok(Step::Open(None)),
        Found::Other => {
            let what = format!(
                "the journal {at}: something is there that is no journal: choose another place, or wipe it first"
            );
            return Err(ControlError::conflict(what));
        }
        Found::Nothing | Found::Blank if was_here => return Err(missing(path, None)),
        Found::Nothing | Found::Blank => {}
    }
    match spec.size_bytes {
        _ if is_device => Ok(Step::Make(None)),
        Some(size) => Ok(Step::Make(Some(size))),
        None => Err(ControlError::invalid(format!(
            "the journal {at} is no block device: say how large its file is to be, as in PATH:8G"
        ))),
    }
}

fn missing(path: &Path, id: Option<JournalId>) -> ControlError {
    let id = id.map(|id| format!(" ({id})")).unwrap_or_default();
    let message = format!(
        "the journal {}{id} is missing: what was written and is not in the store yet is only there. Put it back, or \
         configure where it is now; or, if that is lost, begin with a new data directory and `varve pool import`",
        path.display()
    );
    ControlError::new(ErrorKind::NotFound, message)
}

/// What stands at a place.
fn look(path: &Path) -> Result<Found, ControlError> {
    let failed = |error: std::io::Error| io_error(format_args!("the journal {}", path.display()), &error);
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Nothing),
        opened => opened.map_err(failed)?,
    };
    let mut front = vec![0; FRONT];
    let mut have = 0;
    while have < FRONT {
        match file.read_at(&mut front[have..], have as u64).map_err(failed)? {
            0 => break,
            read => have += read,
        }
    }
    front.truncate(have);
    let blocks = front.chunks_exact(SUPERBLOCK as usize).take(2);
    let newest = blocks.filter_map(|block| Superblock::decode(block).ok()).max_by_key(|block| block.generation);
    let is_device = file.metadata().map_err(failed)?.file_type().is_block_device();
    Ok(match newest {
        Some(superblock) => Found::Journal(superblock.journal),
        None if is_device && front.iter().all(|byte| *byte == 0) => Found::Blank,
        None => Found::Other,
    })
}

/// The name of a file that is being made.
fn making(path: &Path) -> PathBuf {
    with_suffix(path, ".making")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().map(ToOwned::to_owned).unwrap_or_default();
    name.push(suffix);
    path.with_file_name(name)
}

/// Gives a file that was made its name, durably.
fn publish(path: &Path) -> std::io::Result<()> {
    std::fs::rename(making(path), path)?;
    File::open(directory_of(path))?.sync_all()
}

/// A size, but not more than a part of the space that is free.
fn size_within_space(file: &Path, wanted: u64) -> Result<u64, ControlError> {
    let directory = directory_of(file);
    let space = rustix::fs::statvfs(directory).map_err(|error| io_error(directory.display(), &error.into()))?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let most = (free / PART) & !((1 << 20) - 1);
    if wanted <= most || wanted == LEAST {
        return Ok(wanted);
    }
    let size = most.max(LEAST);
    tracing::warn!(
        wanted = %format_size(wanted), size = %format_size(size), free = %format_size(free),
        "the journal is made smaller than journal-size says: it takes at most a quarter of the free space"
    );
    Ok(size)
}

fn directory_of(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new("/"))
}
