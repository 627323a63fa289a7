// SPDX-License-Identifier: Apache-2.0
//! A file, or a block device, as a cache device.
//!
//! It is read and written past the page cache where the system can (`O_DIRECT`): what is read often is in the cache in RAM already, and
//! pages of it would only take memory from others. All calls go through an io_uring, or to threads of its own where the system has none for this
//! process: so a device that hangs holds up nobody.
//!
//! Nothing is ever synced. A new file is sparse: it takes space as it fills.

use super::create::{self, context};
use super::{ComputePool, PoolOptions};
use crate::{CacheDevice, LocalFuture};
use bytes::{Bytes, BytesMut};
use rustix::fs::OFlags;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use varve_uring::Ring;

/// What offsets, lengths and memory are multiples of.
const ALIGN: usize = 4096;
/// First bytes that are looked at: every file system and partition table has something there.
const FRONT: usize = 128 << 10;
/// Longest read or write.
const MOST: usize = 16 << 20;
/// Calls that are under way at once; further ones wait.
const MOST_CALLS: u16 = 256;
/// Threads, where there is no io_uring.
const THREADS: usize = 16;

/// See the module.
pub struct CacheFile {
    path: String,
    len: u64,
    file: Arc<File>,
    way: Way,
}

/// How calls get to the system without holding up the caller.
enum Way {
    Ring(Rc<Ring>),
    Threads(ComputePool),
}

impl Way {
    fn best() -> io::Result<Self> {
        match Ring::new(MOST_CALLS) {
            Ok(ring) => Ok(Self::Ring(Rc::new(ring))),
            Err(error) => {
                tracing::info!(%error, "the cache is read by threads, and slower: there is no io_uring for this process");
                Self::threads()
            }
        }
    }

    fn threads() -> io::Result<Self> {
        let (name, queue) = ("varve-cache".to_owned(), usize::from(MOST_CALLS));
        ComputePool::new(&PoolOptions { name, threads: THREADS, queue, nice: false }).map(Self::Threads)
    }
}

impl CacheFile {
    /// Opens a file with `len` bytes, which is made where there is none, or without `len` a block device; for this process alone.
    /// `is_ours` says of its first bytes, 128 KiB of them, whether it may be written to: what it holds is lost.
    ///
    /// # Errors
    /// Of kind `ResourceBusy` when it is open already, `InvalidInput` when it is neither file nor block device or not ours.
    ///
    /// # Panics
    /// Outside a `LocalSet` of a runtime with I/O and time, that of the shard.
    pub fn open(path: &Path, len: Option<u64>, is_ours: fn(&[u8]) -> bool) -> io::Result<Self> {
        let shown = path.display().to_string();
        let mut how = std::fs::OpenOptions::new();
        how.read(true).write(true).create(len.is_some()).truncate(false).mode(0o600);
        drop(how.open(path).map_err(|error| context(&shown, "open", error))?);
        let (file, mut has) = create::open(path)?;
        let is_device = file.metadata().is_ok_and(|found| found.file_type().is_block_device());
        let mut front = vec![0; FRONT.min(usize::try_from(has).unwrap_or(FRONT))];
        file.read_exact_at(&mut front, 0).map_err(|error| context(&shown, "look at its first bytes", error))?;
        if !is_ours(&front) {
            let what = "it holds something that is no cache: choose another, or wipe it first";
            return Err(context(&shown, "use as a cache", io::Error::new(io::ErrorKind::InvalidInput, what)));
        }
        match len {
            Some(len) if !is_device => {
                file.set_len(len).map_err(|error| context(&shown, format!("make it {len} bytes"), error))?;
                has = len;
            }
            None if !is_device => {
                let what = "it is a file: say how large it is to be, as in PATH:100G";
                return Err(context(&shown, "use as a cache", io::Error::new(io::ErrorKind::InvalidInput, what)));
            }
            Some(_) | None => {}
        }
        let flags = rustix::fs::fcntl_getfl(&file).map_err(|error| context(&shown, "look at it", error.into()))?;
        if let Err(error) = rustix::fs::fcntl_setfl(&file, flags | OFlags::DIRECT) {
            tracing::info!(path = %shown, %error, "the cache goes through the page cache");
        }
        let way = Way::best().map_err(|error| context(&shown, "start its threads", error))?;
        Ok(Self { path: shown, len: has, file: Arc::new(file), way })
    }

    fn check(&self, what: &str, offset: u64, len: usize) -> io::Result<()> {
        let fits = offset.checked_add(len as u64).is_some_and(|end| end <= self.len);
        if !fits || len > MOST || !len.is_multiple_of(ALIGN) || !offset.is_multiple_of(ALIGN as u64) {
            let odd = io::Error::new(io::ErrorKind::InvalidInput, "out of range");
            return Err(context(&self.path, format!("{what} {len} bytes at {offset}"), odd));
        }
        Ok(())
    }
}

/// Zeroes in memory that begins at a multiple of [`ALIGN`].
fn aligned(len: usize) -> BytesMut {
    let mut bytes = BytesMut::zeroed(len + ALIGN);
    let skip = bytes.as_ptr().align_offset(ALIGN);
    drop(bytes.split_to(skip));
    bytes.truncate(len);
    bytes
}

/// The same bytes in memory that begins at a multiple of [`ALIGN`].
fn copied_to_fit(data: Bytes) -> Bytes {
    if data.as_ptr().align_offset(ALIGN) == 0 {
        return data;
    }
    let mut bytes = aligned(data.len());
    bytes.copy_from_slice(&data);
    bytes.freeze()
}

impl CacheDevice for CacheFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, len: usize) -> LocalFuture<io::Result<Bytes>> {
        let failed = {
            let path = self.path.clone();
            move |error| context(&path, format!("read {len} bytes at {offset}"), error)
        };
        if let Err(error) = self.check("read", offset, len) {
            return Box::pin(std::future::ready(Err(error)));
        }
        let file = Arc::clone(&self.file);
        match &self.way {
            Way::Ring(ring) => {
                let ring = Rc::clone(ring);
                Box::pin(
                    async move { ring.read(&file, offset, aligned(len)).await.map(BytesMut::freeze).map_err(failed) },
                )
            }
            Way::Threads(threads) => {
                let read = threads.compute(move || {
                    let mut bytes = aligned(len);
                    file.read_exact_at(&mut bytes, offset).map(|()| bytes.freeze())
                });
                Box::pin(async move { read.await.unwrap_or_else(|lost| Err(io::Error::other(lost))).map_err(failed) })
            }
        }
    }

    fn write_at(&self, offset: u64, data: Bytes) -> LocalFuture<io::Result<()>> {
        let failed = {
            let (path, len) = (self.path.clone(), data.len());
            move |error| context(&path, format!("write {len} bytes at {offset}"), error)
        };
        if let Err(error) = self.check("write", offset, data.len()) {
            return Box::pin(std::future::ready(Err(error)));
        }
        let file = Arc::clone(&self.file);
        match &self.way {
            Way::Ring(ring) => {
                let ring = Rc::clone(ring);
                Box::pin(async move { ring.write(&file, offset, copied_to_fit(data)).await.map_err(failed) })
            }
            Way::Threads(threads) => {
                let write = threads.compute(move || file.write_all_at(&copied_to_fit(data), offset));
                Box::pin(async move { write.await.unwrap_or_else(|lost| Err(io::Error::other(lost))).map_err(failed) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test)
    }

    fn ours(front: &[u8]) -> bool {
        front.first().is_none_or(|byte| *byte == 0 || *byte == 7)
    }

    #[test]
    fn what_was_written_is_read_also_by_the_next_process() {
        run(async {
            for way in [Way::best, Way::threads] {
                let directory = tempfile::tempdir().unwrap();
                let path = directory.path().join("cache");
                {
                    let file =
                        CacheFile { way: way().unwrap(), ..CacheFile::open(&path, Some(1 << 20), ours).unwrap() };
                    assert_eq!(file.len(), 1 << 20);
                    // Of a buffer that is not aligned too.
                    let data = Bytes::from(vec![7; 8193]).slice(1..);
                    file.write_at(0, data).await.unwrap();
                    let busy = CacheFile::open(&path, Some(1 << 20), ours).err().expect("one at a time");
                    assert_eq!(busy.kind(), io::ErrorKind::ResourceBusy, "{busy}");
                    for (offset, len) in [(1 << 20, 4096), (1, 4096), (0, 100), (u64::MAX - 4095, 4096)] {
                        assert!(file.read_at(offset, len).await.is_err(), "{len} bytes at {offset}");
                    }
                }
                let file = CacheFile { way: way().unwrap(), ..CacheFile::open(&path, Some(2 << 20), ours).unwrap() };
                assert_eq!(file.len(), 2 << 20, "the file takes the size that is asked for");
                assert_eq!(file.read_at(4096, 4096).await.unwrap(), vec![7; 4096]);
                assert_eq!(file.read_at(8192, 4096).await.unwrap(), vec![0; 4096]);
            }
        });
    }

    #[test]
    fn what_fails_names_the_device_and_the_place() {
        run(async {
            for way in [Way::best, Way::threads] {
                let directory = tempfile::tempdir().unwrap();
                let path = directory.path().join("cache");
                let file = CacheFile { way: way().unwrap(), ..CacheFile::open(&path, Some(1 << 20), ours).unwrap() };
                // As a device that has become smaller.
                file.file.set_len(4096).unwrap();
                let error = file.read_at(8192, 4096).await.unwrap_err().to_string();
                assert!(error.contains("cache: read 4096 bytes at 8192"), "{error}");
            }
        });
    }

    #[test]
    fn what_is_not_ours_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        std::fs::write(&path, b"the only copy").unwrap();
        let refused = CacheFile::open(&path, Some(1 << 20), |_| false).err().expect("it is not ours");
        assert!(refused.to_string().contains("precious") && refused.to_string().contains("wipe it"), "{refused}");
        assert_eq!(std::fs::read(&path).unwrap(), b"the only copy");
    }
}
