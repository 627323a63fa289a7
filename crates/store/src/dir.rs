// SPDX-License-Identifier: Apache-2.0
//! A directory as an object store: a file an object, `a/b` being file `b` in directory `a`.
//!
//! Owns the directory `_tmp` in it, where files are written before they get their names, and, while it lives, a lock there. A put writes
//! such a file, syncs it, renames it to a name that must be free, and syncs the directory; so under a name there is always a whole
//! object, and after a crash there is at most a file in `_tmp`, which the next opening removes. See `area` for the order of syncs.
//!
//! System calls that may block run on threads of the store's own (reads apart from writes, so that a row of large puts does not hold up
//! reads); only a read of what the page cache holds is answered on the caller's thread, which saves two thread switches. The time of a
//! system call cannot be bounded: a file system that hangs (a lost NFS server) hangs the request, and dropping the store then waits.

mod area;
mod list;
mod read;
mod reserve;
mod write;

use crate::name::{check_name, check_prefix};
use crate::pool::Pool;
use crate::url::StoreUrl;
use crate::{LIST_MAX, error, invalid};
use area::Area;
use bytes::Bytes;
use read::Files;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use varve_env::{ObjectInfo, ObjectStore, Payload, PutOutcome, SendFuture, StoreError, StoreErrorKind};

/// Threads that read, and reads that wait or run at once. More than cores, since they wait for the disk.
const READ_THREADS: usize = 8;
const READS_MAX: usize = 256;
/// Threads that write, list and delete, and such requests that wait or run at once.
const WRITE_THREADS: usize = 4;
const WRITES_MAX: usize = 64;

/// A store of files.
pub struct DirStore {
    inner: Arc<Inner>,
    reads: Pool,
    writes: Pool,
    url: String,
}

struct Inner {
    area: Area,
    /// Tells by its name what the reserve of the disk is not for.
    is_bulk: fn(&str) -> bool,
    files: Files,
}

impl std::fmt::Debug for DirStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DirStore").field("url", &self.url).finish_non_exhaustive()
    }
}

impl DirStore {
    /// Opens the store in the directory `path` (absolute), making it with mode 0700 if its parent is there, and proves that it may be
    /// written. Removes what a crash left in `_tmp`, unless another process has the store open. Blocks.
    ///
    /// # Errors
    /// `Invalid` when the path is no directory that can be used, `NoSpace` when nothing fits into it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, |_| false)
    }

    /// The same, with a reserve on the disk that objects of which `is_bulk` holds do not touch.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn open_with(path: &Path, is_bulk: fn(&str) -> bool) -> Result<Self, StoreError> {
        let shown = path.display().to_string();
        let url = StoreUrl::try_from(path)?.to_string();
        let area = Area::open(path).map_err(|(what, failure)| {
            let failed = translate("open", &shown, &failure);
            StoreError { message: format!("{what}: {}", failed.message), ..failed }
        })?;
        let no_threads =
            |failure| error(StoreErrorKind::Unavailable, "open", &shown, format!("start threads: {failure}"));
        Ok(Self {
            inner: Arc::new(Inner { area, is_bulk, files: Files::new() }),
            reads: Pool::start("dir-read", READ_THREADS, READS_MAX).map_err(no_threads)?,
            writes: Pool::start("dir-write", WRITE_THREADS, WRITES_MAX).map_err(no_threads)?,
            url,
        })
    }

    /// Runs a job on one of the pools, with a name of its own.
    async fn run<T: Send + 'static>(
        &self,
        pool: &Pool,
        operation: &'static str,
        name: &str,
        job: impl FnOnce(&Inner, &str) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (inner, owned) = (Arc::clone(&self.inner), name.to_owned());
        let done = pool.run(move || job(&inner, &owned)).await;
        done.unwrap_or_else(|| Err(error(StoreErrorKind::Unavailable, operation, name, "the request ended early")))
    }
}

impl ObjectStore for DirStore {
    fn put<'a>(&'a self, name: &'a str, payload: Payload) -> SendFuture<'a, Result<PutOutcome, StoreError>> {
        Box::pin(async move {
            check_name("put", name)?;
            let put = move |inner: &Inner, name: &str| {
                inner
                    .area
                    .put(name, &payload, (inner.is_bulk)(name))
                    .map_err(|failure| translate_write("put", name, &failure))
            };
            self.run(&self.writes, "put", name, put).await
        })
    }

    fn get<'a>(&'a self, name: &'a str, range: Range<u64>) -> SendFuture<'a, Result<Bytes, StoreError>> {
        Box::pin(async move {
            check_name("get", name)?;
            if let Some(bytes) = self.inner.files.read_cached(name, &range) {
                return Ok(bytes);
            }
            self.run(&self.reads, "get", name, move |inner, name| inner.get(name, &range)).await
        })
    }

    fn get_head<'a>(&'a self, name: &'a str, most: u64) -> SendFuture<'a, Result<Bytes, StoreError>> {
        Box::pin(async move {
            check_name("get", name)?;
            let get = move |inner: &Inner, name: &str| {
                let file = inner.open(name)?;
                file.read(0..most.min(file.size())).map_err(|failure| translate("get", name, &failure))
            };
            self.run(&self.reads, "get", name, get).await
        })
    }

    fn head<'a>(&'a self, name: &'a str) -> SendFuture<'a, Result<ObjectInfo, StoreError>> {
        Box::pin(async move {
            check_name("head", name)?;
            let head = |inner: &Inner, name: &str| {
                let size = inner.area.size(name).map_err(|failure| translate("head", name, &failure))?;
                Ok(ObjectInfo { name: name.to_owned(), size })
            };
            self.run(&self.reads, "head", name, head).await
        })
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> SendFuture<'a, Result<Vec<ObjectInfo>, StoreError>> {
        let after = after.unwrap_or_default().to_owned();
        Box::pin(async move {
            check_prefix("list", prefix)?;
            check_prefix("list", &after)?;
            let list = move |inner: &Inner, prefix: &str| {
                let listed = list::list(inner.area.root(), prefix, &after, LIST_MAX);
                listed.map_err(|failure| translate("list", prefix, &failure))
            };
            self.run(&self.writes, "list", prefix, list).await
        })
    }

    fn delete<'a>(&'a self, name: &'a str) -> SendFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            check_name("delete", name)?;
            let delete = |inner: &Inner, name: &str| {
                let removed = inner.area.remove(name);
                // After the name is gone, so that nobody opens it again for the cache.
                inner.files.forget(name);
                removed.map_err(|failure| translate_write("delete", name, &failure))
            };
            self.run(&self.writes, "delete", name, delete).await
        })
    }

    fn url(&self) -> String {
        self.url.clone()
    }
}

impl Inner {
    fn open(&self, name: &str) -> Result<Arc<read::OpenFile>, StoreError> {
        self.files.open(name, &self.area).map_err(|failure| translate("get", name, &failure))
    }

    fn get(&self, name: &str, range: &Range<u64>) -> Result<Bytes, StoreError> {
        let file = self.open(name)?;
        if range.start > range.end || range.end > file.size() {
            let message = format!("bytes {range:?} were asked for, the object has {} bytes", file.size());
            return Err(invalid("get", name, message));
        }
        file.read(range.clone()).map_err(|failure| translate("get", name, &failure))
    }
}

/// The error of this crate for one of the system, met while looking for an object or reading it.
fn translate(operation: &'static str, name: &str, failure: &io::Error) -> StoreError {
    use io::ErrorKind as System;
    let kind = match failure.kind() {
        // A part of the name that is a file: then there is no directory to hold the object either.
        System::NotFound | System::NotADirectory if operation != "open" => StoreErrorKind::NotFound,
        System::StorageFull | System::QuotaExceeded | System::FileTooLarge => StoreErrorKind::NoSpace,
        System::NotFound
        | System::NotADirectory
        | System::IsADirectory
        | System::PermissionDenied
        | System::ReadOnlyFilesystem
        | System::UnexpectedEof
        | System::InvalidInput
        | System::InvalidFilename
        | System::Unsupported => StoreErrorKind::Invalid,
        _ => StoreErrorKind::Unavailable,
    };
    error(kind, operation, name, failure)
}

/// The same, met while changing something: what is missing then is the store's directory itself.
fn translate_write(operation: &'static str, name: &str, failure: &io::Error) -> StoreError {
    let failed = translate(operation, name, failure);
    if failed.kind != StoreErrorKind::NotFound {
        return failed;
    }
    let message =
        format!("the store's directory, or `_tmp` in it, is gone, or a file is in the place of a directory: {failure}");
    StoreError { kind: StoreErrorKind::Invalid, message, ..failed }
}

#[cfg(test)]
#[path = "dir/tests.rs"]
mod tests;
