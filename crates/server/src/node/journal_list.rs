// SPDX-License-Identifier: Apache-2.0
//! The journals that a node has in use, written down: `DIR/journals`, one a line.
//!
//! ```text
//! varve-journals 1
//! used 0d0f…-uuid /ssd0/varve.journal
//! making /dev/nvme1n1
//! ```
//!
//! A journal stands there as *making* before anything is written to its place, and as *used* before a volume is served from it; it leaves the list only once
//! nothing needs it. So a place that is *making* never held anything, and may be made anew; and a journal that is *used* is needed until the list says otherwise.
//! A node whose only journal is the one in its data directory has no list. The file is written beside its place and renamed: a crash leaves the old one or the new.

use super::directory::{io_error, replace_file};
use crate::api::ControlError;
use std::fs::File;
use std::io::{ErrorKind as IoKind, Read};
use std::path::{Path, PathBuf};
use varve_types::{ErrorKind, JournalId};

/// First line.
const HEAD: &str = "varve-journals 1";
/// Longest list, in bytes.
const MOST: u64 = 1 << 20;

/// A journal of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// It is being made: nothing is in it.
    Making(PathBuf),
    /// It is in use, and was last here.
    Used(JournalId, PathBuf),
}

/// Reads the list, if there is one.
///
/// # Errors
/// `Corrupt` when it is none; when it can not be read.
pub(super) fn load(file: &Path) -> Result<Option<Vec<Entry>>, ControlError> {
    let at = file.display();
    let mut text = String::new();
    match File::open(file) {
        Err(error) if error.kind() == IoKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(at, &error)),
        Ok(open) => open.take(MOST).read_to_string(&mut text).map_err(|error| io_error(&at, &error))?,
    };
    let mut lines = text.lines();
    let head = lines.next();
    let entries: Option<Vec<Entry>> = lines.map(parse).collect();
    match (head, entries) {
        (Some(HEAD), Some(entries)) if text.ends_with('\n') => Ok(Some(entries)),
        _ => {
            Err(ControlError::new(ErrorKind::Corrupt, format!("{at}: it is no list of journals that this build knows")))
        }
    }
}

fn parse(line: &str) -> Option<Entry> {
    let absolute = |path: &str| path.starts_with('/').then(|| PathBuf::from(path));
    match line.split_once(' ')? {
        ("making", path) => Some(Entry::Making(absolute(path)?)),
        ("used", rest) => {
            let (id, path) = rest.split_once(' ')?;
            Some(Entry::Used(id.parse().ok()?, absolute(path)?))
        }
        _ => None,
    }
}

/// Writes the list, durably.
///
/// # Errors
/// When it can not be written.
pub(super) fn save(file: &Path, entries: &[Entry]) -> Result<(), ControlError> {
    let mut text = format!("{HEAD}\n");
    for entry in entries {
        let line = match entry {
            Entry::Making(path) => format!("making {}\n", path.display()),
            Entry::Used(id, path) => format!("used {id} {}\n", path.display()),
        };
        text.push_str(&line);
    }
    replace_file(file, text.as_bytes()).map_err(|error| io_error(file.display(), &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_nothing_else_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("journals");
        assert_eq!(load(&file).unwrap(), None);
        let entries = vec![
            Entry::Used(JournalId::from_bytes([7; 16]), PathBuf::from("/ssd/with a space/journal")),
            Entry::Making(PathBuf::from("/dev/nvme1n1")),
        ];
        save(&file, &entries).unwrap();
        assert_eq!(load(&file).unwrap(), Some(entries.clone()));
        let text = std::fs::read_to_string(&file).unwrap();
        let wanted = "varve-journals 1\nused 07070707-0707-0707-0707-070707070707 /ssd/with a space/journal\nmaking /dev/nvme1n1\n";
        assert_eq!(text, wanted, "its form is read for ever");
        for cut in 0..text.len() - 1 {
            std::fs::write(&file, &text[..cut]).unwrap();
            let whole_lines = text[..cut].ends_with('\n') && cut > HEAD.len();
            assert_eq!(load(&file).is_err(), !whole_lines, "cut at {cut}");
        }
        for bad in ["varve-journals 2\n", "varve-journals 1\nused x /a\n", "varve-journals 1\nmaking a\n"] {
            std::fs::write(&file, bad).unwrap();
            assert_eq!(load(&file).unwrap_err().kind, ErrorKind::Corrupt, "{bad}");
        }
    }
}
