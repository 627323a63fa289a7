// SPDX-License-Identifier: Apache-2.0
//! An object store: immutable objects under names, put whole, read by range.
//!
//! Names are `/`-separated, of `a-z 0-9 - . /`, relative to the pool's root. Nothing is ever overwritten: a name is
//! put once, with [`put`](ObjectStore::put), which fails where the name is taken. A put whose answer was lost may
//! have happened, or may still happen later; the caller finds out with a second put or by reading back.

use crate::SendFuture;
use bytes::Bytes;
use std::ops::Range;
use varve_types::{ErrorKind, Kinded};

/// The bytes of an object to put, in parts that stand one behind the other. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    parts: Vec<Bytes>,
    len: u64,
}

impl Payload {
    /// The payload made of `parts`.
    #[must_use]
    pub fn new(parts: Vec<Bytes>) -> Self {
        let len = parts.iter().map(|part| part.len() as u64).sum();
        Self { parts, len }
    }
    /// The parts, in order.
    #[must_use]
    pub fn parts(&self) -> &[Bytes] {
        &self.parts
    }
    /// Bytes in all.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }
    /// Whether there is nothing in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self::new(vec![bytes])
    }
}

/// How a put ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// The object is there, durably, with these bytes.
    Created,
    /// The name was taken already, perhaps by this very put, tried twice. Nothing was changed.
    Exists,
}

/// What is known of an object without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its whole name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
}

/// What went wrong, as far as the caller must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// No object has this name.
    NotFound,
    /// The store does not answer, answers that it can not now, or took too long; retries are used up. A put may have happened.
    Unavailable,
    /// The store is full or a quota is.
    NoSpace,
    /// Credentials or permissions are wrong, the bucket or directory is not there, the range lies beyond the object.
    Invalid,
}

/// An error of an object store: the operation, the name, what went wrong.
#[derive(Debug, thiserror::Error)]
#[error("object store: {operation} {name}: {message}")]
pub struct StoreError {
    /// What the caller may conclude.
    pub kind: StoreErrorKind,
    /// The operation, for people: `put`, `get`, `head`, `list`, `delete`, `open`.
    pub operation: &'static str,
    /// The object's name or the prefix, for people.
    pub name: String,
    /// What the store or the system said.
    pub message: String,
}

impl StoreError {
    /// What the caller should do.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self.kind {
            StoreErrorKind::NotFound => ErrorKind::NotFound,
            StoreErrorKind::Unavailable => ErrorKind::Unavailable,
            StoreErrorKind::NoSpace => ErrorKind::NoSpace,
            StoreErrorKind::Invalid => ErrorKind::Invalid,
        }
    }
}

impl Kinded for StoreError {
    fn kind(&self) -> ErrorKind {
        Self::kind(self)
    }
}

/// A pool's objects. Implementations bound the number of requests under way and the time of each, and retry what may pass.
pub trait ObjectStore: Send + Sync {
    /// Creates the object durably, whole or not at all, if the name is free.
    fn put<'a>(&'a self, name: &'a str, payload: Payload) -> SendFuture<'a, Result<PutOutcome, StoreError>>;

    /// Reads the range, exactly; a range that ends beyond the object is an error of kind `Invalid`.
    fn get<'a>(&'a self, name: &'a str, range: Range<u64>) -> SendFuture<'a, Result<Bytes, StoreError>>;

    /// Reads at most the first `most` bytes: fewer where the object is shorter.
    fn get_head<'a>(&'a self, name: &'a str, most: u64) -> SendFuture<'a, Result<Bytes, StoreError>>;

    /// The object's size.
    fn head<'a>(&'a self, name: &'a str) -> SendFuture<'a, Result<ObjectInfo, StoreError>>;

    /// Names that begin with `prefix`, sorted, after `after` (exclusive) if given; at most 1,000 a call. A listing may lag behind.
    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> SendFuture<'a, Result<Vec<ObjectInfo>, StoreError>>;

    /// Deletes the object; succeeds where there is none.
    fn delete<'a>(&'a self, name: &'a str) -> SendFuture<'a, Result<(), StoreError>>;

    /// The store's address, for people; without secrets.
    fn url(&self) -> String;
}
