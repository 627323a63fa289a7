// SPDX-License-Identifier: Apache-2.0
//! Listing a tree of directories as the flat, sorted row of names that an object store is.
//!
//! Names are sorted by their bytes, and `-` and `.` sort before `/`: `a-b` comes before `a/b` although the directory `a` was met first.
//! So within a directory an inner directory is sorted as its name with `/` behind, and then the walk gives the right order. Memory is
//! bounded by the names asked for at each level, however large a directory is; a directory that is larger is read again from where
//! the last pass ended. What is put or deleted meanwhile may be missed or seen, as the trait allows.

use super::area::is_absent;
use crate::name::{PARTS_MAX, is_name, is_part};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use varve_env::ObjectInfo;

/// The first `most` objects whose names begin with `prefix` and come after `after` (empty: from the beginning), sorted.
pub(super) fn list(root: &Path, prefix: &str, after: &str, most: usize) -> io::Result<Vec<ObjectInfo>> {
    let mut walk = Walk { root, prefix, after, most, found: Vec::new() };
    let dir = prefix.rfind('/').map_or("", |at| &prefix[..=at]);
    walk.directory(dir, 0)?;
    Ok(walk.found)
}

struct Walk<'a> {
    root: &'a Path,
    prefix: &'a str,
    after: &'a str,
    most: usize,
    found: Vec<ObjectInfo>,
}

impl Walk<'_> {
    /// Walks the directory whose objects' names begin with `dir`, which is empty or ends with `/`.
    fn directory(&mut self, dir: &str, depth: usize) -> io::Result<()> {
        if depth >= PARTS_MAX {
            return Ok(()); // no name is that deep
        }
        let mut cursor = String::new();
        loop {
            let keys = self.next_keys(dir, &cursor)?;
            let is_last_pass = keys.len() < self.most;
            for key in keys {
                if key.ends_with('/') {
                    self.directory(&key, depth + 1)?;
                } else {
                    self.object(&key)?;
                }
                if self.found.len() >= self.most {
                    return Ok(());
                }
                cursor = key;
            }
            if is_last_pass {
                return Ok(());
            }
        }
    }

    /// The first keys after `cursor` in a directory: names, and those of inner directories with `/` behind.
    fn next_keys(&self, dir: &str, cursor: &str) -> io::Result<BTreeSet<String>> {
        let mut keys = BTreeSet::new();
        let entries = match fs::read_dir(self.root.join(dir)) {
            Err(failure) if is_absent(&failure) => return Ok(keys),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            // What is no name of ours was put by somebody else, or is `_tmp`.
            let Some(part) = name.to_str().filter(|part| is_part(part)) else { continue };
            let is_dir = entry.file_type()?.is_dir();
            let key = format!("{dir}{part}{}", if is_dir { "/" } else { "" });
            if key.as_str() > cursor && key.starts_with(self.prefix) && self.is_after(&key) {
                keys.insert(key);
                if keys.len() > self.most {
                    keys.pop_last();
                }
            }
        }
        Ok(keys)
    }

    /// Whether the key, or something in that directory, comes after `after`.
    fn is_after(&self, key: &str) -> bool {
        key > self.after || (key.ends_with('/') && self.after.starts_with(key))
    }

    fn object(&mut self, name: &str) -> io::Result<()> {
        match fs::metadata(self.root.join(name)) {
            Ok(meta) if meta.is_file() && is_name(name) => {
                self.found.push(ObjectInfo { name: name.to_owned(), size: meta.len() });
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(failure) if is_absent(&failure) => Ok(()),
            Err(failure) => Err(failure),
        }
    }
}
