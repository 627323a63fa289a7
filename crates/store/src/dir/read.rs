// SPDX-License-Identifier: Apache-2.0
//! Reading: open files, kept for a while, and exact ranges of them.
//!
//! Objects never change, so an open file and its size stay true for as long as they are kept. At most [`FILES_MAX`] are, the least
//! useful going first. A deleted object leaves the cache, also when it was deleted while it was being opened, so its space comes back.

use super::area::Area;
use bytes::Bytes;
use quick_cache::sync::Cache;
use rustix::buffer::spare_capacity;
use rustix::io::{Errno, ReadWriteFlags, pread, preadv2};
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

/// Files that are kept open.
const FILES_MAX: usize = 256;
/// The longest read that is tried on the caller's thread: copying more would hold it up by more than a thread switch.
const INLINE_MAX_BYTES: u64 = 64 << 10;

/// Files that are open.
pub(super) struct Files {
    cache: Cache<String, Arc<OpenFile>>,
}

/// An object's file.
pub(super) struct OpenFile {
    file: File,
    size: u64,
}

impl Files {
    pub(super) fn new() -> Self {
        Self { cache: Cache::new(FILES_MAX) }
    }

    /// The object's file, from the cache or the directory. Blocks.
    pub(super) fn open(&self, name: &str, area: &Area) -> io::Result<Arc<OpenFile>> {
        if let Some(file) = self.cache.get(name) {
            return Ok(file);
        }
        let file = File::open(area.root().join(name))?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        area.settle_for_reading(name)?;
        let opened = Arc::new(OpenFile { file, size: meta.len() });
        self.cache.insert(name.to_owned(), Arc::clone(&opened));
        // A delete removes the name, then the entry. Asking for the name after the insertion leaves no gap between the two.
        if opened.file.metadata()?.nlink() == 0 {
            self.cache.remove(name);
        }
        Ok(opened)
    }

    /// The range, if the file is open and the page cache holds all of it. Never blocks; all else is for [`open`](Self::open) to tell.
    pub(super) fn read_cached(&self, name: &str, range: &Range<u64>) -> Option<Bytes> {
        let length = range.end.checked_sub(range.start).filter(|length| *length <= INLINE_MAX_BYTES)?;
        let file = self.cache.get(name).filter(|file| range.end <= file.size)?;
        let mut buffer = vec![0; usize::try_from(length).ok()?];
        let slice = &mut [IoSliceMut::new(&mut buffer)];
        let read = preadv2(&file.file, slice, range.start, ReadWriteFlags::NOWAIT);
        read.is_ok_and(|read| read == buffer.len()).then(|| buffer.into())
    }

    pub(super) fn forget(&self, name: &str) {
        self.cache.remove(name);
    }
}

impl OpenFile {
    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    /// Reads the range, which lies within the size.
    pub(super) fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        let length = usize::try_from(range.end - range.start).map_err(|_| io::Error::from(Errno::NOMEM))?;
        let mut buffer = Vec::with_capacity(length);
        while buffer.len() < length {
            let offset = range.start + buffer.len() as u64;
            match pread(&self.file, spare_capacity(&mut buffer), offset) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it was")),
                Ok(_) | Err(Errno::INTR) => {}
                Err(failure) => return Err(failure.into()),
            }
        }
        // The vector may have got more room than it asked for.
        buffer.truncate(length);
        Ok(buffer.into())
    }
}
