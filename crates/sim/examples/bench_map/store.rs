// SPDX-License-Identifier: Apache-2.0
//! A store whose segments are computed: it holds a tebibyte without having it.
//!
//! What the engine puts is kept in RAM, or in files where RAM is what is measured, and deleted when the engine deletes it. Manifests are written to a file
//! and synced as well, as a directory store would, because
//! what waits for a manifest waits for that. A generated segment is known by its facts and its pattern alone.
//! Bytes put are counted by kind.
//!
//! Nothing outlives the program.

use crate::pattern::{Pattern, block_at, bytes_of};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use varve_env::{ObjectInfo, ObjectStore, Payload, PutOutcome, SendFuture, StoreError, StoreErrorKind};
use varve_format::chunk::RAW_BLOCK;
use varve_format::crc::{Identity, crc};
use varve_format::segment::{Codec, SegmentFacts, encode_head};
use varve_format::{ObjectKind, ObjectName};

/// Bytes that were put, by kind of object.
#[derive(Clone, Copy, Debug, Default)]
pub struct PutBytes {
    /// Map nodes.
    pub map: u64,
    /// Pages of the segment table, and runs of kills.
    pub table: u64,
    /// Manifests.
    pub manifest: u64,
}

/// Where an object is that was put.
#[derive(Clone)]
enum Stored {
    Ram(Bytes),
    /// In a file of so many bytes.
    File(u64),
}

impl Stored {
    fn len(&self) -> u64 {
        match self {
            Self::Ram(bytes) => bytes.len() as u64,
            Self::File(len) => *len,
        }
    }
}

#[derive(Default)]
struct Inner {
    objects: BTreeMap<String, Stored>,
    generated: BTreeMap<String, (SegmentFacts, Pattern)>,
    put: PutBytes,
}

/// See the module.
pub struct GeneratedStore {
    inner: Mutex<Inner>,
    directory: PathBuf,
    /// Whether what is put lies in files.
    in_files: bool,
}

fn name_of(facts: &SegmentFacts) -> String {
    let SegmentFacts { timeline, ordinal, epoch, writer, .. } = *facts;
    ObjectName { timeline, kind: ObjectKind::Segment, number: ordinal.0, part: 0, epoch, writer }.to_string()
}

/// The bytes `range` of a generated segment's object, as far as it has them; and its length.
fn compute(facts: &SegmentFacts, pattern: Pattern, range: Range<u64>) -> (Bytes, u64) {
    let index = pattern.index();
    let raw = RAW_BLOCK as u64;
    let blocks: u64 = index.extents.iter().map(|extent| extent.blocks).sum();
    let mut bytes = encode_head(facts, Codec::Raw, &index, blocks * raw);
    let head = bytes.len() as u64;
    let len = head + blocks * raw;
    let range = range.start..range.end.min(len);
    let mut start = 0;
    if range.end > head {
        let first = range.start.saturating_sub(head) / raw;
        if range.start >= head {
            bytes.clear();
            start = head + first * raw;
        }
        for at in first..(range.end - head).div_ceil(raw) {
            let block = block_at(&index, at).unwrap_or_default();
            let data = bytes_of(facts.ordinal.0, at, block);
            let identity = Identity::block(facts.timeline, facts.ordinal.0, at as u32);
            bytes.extend_from_slice(&identity.bind(crc(&data)).to_le_bytes());
            bytes.extend_from_slice(&[0; 4]);
            bytes.extend_from_slice(&block.to_le_bytes());
            bytes.extend_from_slice(&data);
        }
    }
    (Bytes::from(bytes).slice((range.start - start) as usize..(range.end - start) as usize), len)
}

fn fail(kind: StoreErrorKind, operation: &'static str, name: &str, message: impl ToString) -> StoreError {
    StoreError { kind, operation, name: name.to_owned(), message: message.to_string() }
}

fn file_of(directory: &Path, name: &str) -> PathBuf {
    directory.join(name.replace('/', "_"))
}

fn write(directory: &Path, name: &str, payload: &Payload) -> std::io::Result<File> {
    let mut file = File::create(file_of(directory, name))?;
    for part in payload.parts() {
        file.write_all(part)?;
    }
    Ok(file)
}

fn write_synced(directory: &Path, name: &str, payload: &Payload) -> std::io::Result<()> {
    write(directory, name, payload)?.sync_all()?;
    File::open(directory)?.sync_all()
}

impl GeneratedStore {
    /// An empty store; manifests are written below `directory`, and all else that is put where it is to be `in_files`.
    pub fn new(directory: PathBuf, in_files: bool) -> Self {
        Self { inner: Mutex::default(), directory, in_files }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A segment is in the store from now on.
    pub fn announce(&self, facts: &SegmentFacts, pattern: Pattern) {
        self.lock().generated.insert(name_of(facts), (*facts, pattern));
    }

    /// Bytes put since the last call.
    pub fn take_put(&self) -> PutBytes {
        std::mem::take(&mut self.lock().put)
    }

    /// Bytes that it holds in RAM.
    pub fn bytes_in_ram(&self) -> u64 {
        let in_ram = |stored: &Stored| if matches!(stored, Stored::Ram(_)) { stored.len() } else { 0 };
        self.lock().objects.values().map(in_ram).sum()
    }

    /// Objects that are there: generated segments, and all that was put.
    pub fn objects(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.generated.len() as u64, inner.objects.len() as u64)
    }

    /// Bytes of all that was put and is still there.
    pub fn bytes(&self) -> u64 {
        self.lock().objects.values().map(Stored::len).sum()
    }

    fn read_file(&self, name: &str, range: Range<u64>) -> std::io::Result<Bytes> {
        let mut bytes = vec![0; range.end.saturating_sub(range.start) as usize];
        File::open(file_of(&self.directory, name))?.read_exact_at(&mut bytes, range.start)?;
        Ok(Bytes::from(bytes))
    }

    fn read(&self, name: &str, range: Range<u64>) -> Result<(Bytes, u64), StoreError> {
        let generated = {
            let inner = self.lock();
            if let Some(stored) = inner.objects.get(name).cloned() {
                drop(inner);
                let len = stored.len();
                let range = range.start.min(len)..range.end.min(len);
                let bytes = match stored {
                    Stored::Ram(bytes) => bytes.slice(range.start as usize..range.end as usize),
                    Stored::File(_) => self
                        .read_file(name, range)
                        .map_err(|error| fail(StoreErrorKind::Unavailable, "get", name, error))?,
                };
                return Ok((bytes, len));
            }
            inner.generated.get(name).copied()
        };
        let Some((facts, pattern)) = generated else {
            return Err(fail(StoreErrorKind::NotFound, "get", name, "there is no such object"));
        };
        Ok(compute(&facts, pattern, range))
    }

    fn insert(&self, name: &str, bytes: Stored) -> PutOutcome {
        let mut inner = self.lock();
        if inner.objects.contains_key(name) || inner.generated.contains_key(name) {
            return PutOutcome::Exists;
        }
        match ObjectName::parse(name).map(|name| name.kind) {
            Some(ObjectKind::Map) => inner.put.map += bytes.len(),
            Some(ObjectKind::Table) => inner.put.table += bytes.len(),
            Some(ObjectKind::Manifest) => inner.put.manifest += bytes.len(),
            Some(ObjectKind::Segment | ObjectKind::Bundle) | None => {}
        }
        inner.objects.insert(name.to_owned(), bytes);
        PutOutcome::Created
    }
}

impl ObjectStore for GeneratedStore {
    fn put<'a>(&'a self, name: &'a str, payload: Payload) -> SendFuture<'a, Result<PutOutcome, StoreError>> {
        Box::pin(async move {
            let (directory, owned, in_files) = (self.directory.clone(), name.to_owned(), self.in_files);
            // On another thread, as any store: a map object of a large volume has a hundred megabytes.
            let put = tokio::task::spawn_blocking(move || {
                if owned.contains("/man/") {
                    write_synced(&directory, &owned, &payload)?;
                }
                if in_files {
                    write(&directory, &owned, &payload)?;
                    return Ok(Stored::File(payload.len()));
                }
                std::io::Result::Ok(Stored::Ram(Bytes::from(payload.parts().concat())))
            });
            let bytes = put.await.map_err(|error| fail(StoreErrorKind::Unavailable, "put", name, error))?;
            let bytes = bytes.map_err(|error| fail(StoreErrorKind::Unavailable, "put", name, error))?;
            Ok(self.insert(name, bytes))
        })
    }

    fn get<'a>(&'a self, name: &'a str, range: Range<u64>) -> SendFuture<'a, Result<Bytes, StoreError>> {
        let wanted = range.end - range.start;
        let read = self.read(name, range).and_then(|(bytes, len)| match bytes.len() as u64 == wanted {
            true => Ok(bytes),
            false => Err(fail(StoreErrorKind::Invalid, "get", name, format!("it has {len} bytes"))),
        });
        Box::pin(std::future::ready(read))
    }

    fn get_head<'a>(&'a self, name: &'a str, most: u64) -> SendFuture<'a, Result<Bytes, StoreError>> {
        Box::pin(std::future::ready(self.read(name, 0..most).map(|(bytes, _)| bytes)))
    }

    fn head<'a>(&'a self, name: &'a str) -> SendFuture<'a, Result<ObjectInfo, StoreError>> {
        let info = self.read(name, 0..0).map(|(_, size)| ObjectInfo { name: name.to_owned(), size });
        Box::pin(std::future::ready(info))
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> SendFuture<'a, Result<Vec<ObjectInfo>, StoreError>> {
        let inner = self.lock();
        let names = inner.objects.iter().filter(|(name, _)| name.starts_with(prefix));
        let names = names.filter(|(name, _)| after.is_none_or(|after| name.as_str() > after)).take(1000);
        let names = names.map(|(name, stored)| ObjectInfo { name: name.clone(), size: stored.len() }).collect();
        Box::pin(std::future::ready(Ok(names)))
    }

    fn delete<'a>(&'a self, name: &'a str) -> SendFuture<'a, Result<(), StoreError>> {
        let mut inner = self.lock();
        let gone = inner.objects.remove(name);
        inner.generated.remove(name);
        drop(inner);
        let done = match gone {
            Some(Stored::File(_)) => std::fs::remove_file(file_of(&self.directory, name)),
            Some(Stored::Ram(_)) | None => Ok(()),
        };
        Box::pin(std::future::ready(done.map_err(|error| fail(StoreErrorKind::Unavailable, "delete", name, error))))
    }

    fn url(&self) -> String {
        "generated:///".to_owned()
    }
}
