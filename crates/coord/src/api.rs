// SPDX-License-Identifier: Apache-2.0
//! The trait [`Coord`] and its vocabulary: entries, checks, changes, events, leases; and the bounds that every form enforces alike.
//!
//! The rules are those that etcd 3.4 can keep, so that code written against the embedded form runs in a cluster unchanged:
//! - one revision a transaction that changed something, store-wide, growing; all its changes carry it;
//! - checks look at the state before the transaction, all or nothing is applied, and no key is changed twice in one transaction;
//! - an answer means that the change is durable and that every later read, by anybody, sees it or something newer;
//! - a listing is of one moment and says its revision, so that a watch from the next revision misses nothing;
//! - a watch sees whole revisions in order, or is told that it fell [behind](Event::Behind);
//! - a lease that is not kept alive takes its keys with it. Leases only trigger detection: they never permit anything.
//!
//! The bounds below leave etcd's default request limit (1.5 MiB, 128 operations) some room for framing.

use crate::{CoordError, Result};
use futures_util::{Stream, StreamExt};
use std::collections::BTreeSet;
use std::fmt;
use std::pin::Pin;
use std::time::Duration;
use varve_env::SendFuture;

/// Longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 512;
/// Longest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 1 << 20;
/// Most checks, and most changes, of a transaction.
pub const MAX_OPERATIONS: usize = 128;
/// Most bytes of keys and values in a transaction.
pub const MAX_TRANSACTION_BYTES: usize = 5 << 18;
/// Shortest and longest life of a lease that is not kept alive.
pub const LEASE_TTL: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// Revision of the last change of the key.
    pub revision: u64,
}

/// What a prefix held at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The entries, sorted by key.
    pub entries: Vec<Entry>,
    /// The store's revision at that moment: watch from the one after it.
    pub revision: u64,
}

/// What must hold before a transaction for it to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// The key is not there.
    Absent(String),
    /// The key is there, last changed at this revision (never 0).
    Revision(String, u64),
    /// The key is there.
    Exists(String),
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Sets the value.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: Vec<u8>,
        /// The lease with which the key goes, if any; takes the place of an earlier one.
        lease: Option<LeaseId>,
    },
    /// Deletes the key; changes nothing where there is none.
    Delete(String),
}

impl Change {
    /// A put without a lease.
    pub fn put(key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        Self::Put { key: key.into(), value: value.into(), lease: None }
    }
    /// The key that it changes.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete(key) => key,
        }
    }
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was applied, durably.
    Applied {
        /// The revision that its changes carry; the store's revision where it changed nothing.
        revision: u64,
    },
    /// A check did not hold; nothing was changed.
    Refused,
}

/// A lease: keys put with it go when it ends. Text form: 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeaseId({self})")
    }
}

/// What a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A key was set.
    Put(Entry),
    /// A key was deleted.
    Deleted {
        /// The key.
        key: String,
        /// The revision of the deletion.
        revision: u64,
    },
    /// Changes were missed, because they are no longer kept: list again and watch anew. The watch has ended.
    Behind,
}

/// A row of events under a prefix, in order of revision and, within a revision, of the transaction's changes. Holds no queue of its own: a slow
/// reader costs nothing and is at worst told that it fell behind.
pub struct Watch {
    events: Pin<Box<dyn Stream<Item = Result<Event>> + Send>>,
    behind: bool,
}

impl Watch {
    /// The watch that tells what `events` yields.
    pub fn new(events: impl Stream<Item = Result<Event>> + Send + 'static) -> Self {
        // Fused: a watch that has ended stays so, however often it is asked.
        Self { events: Box::pin(events.fuse()), behind: false }
    }

    /// Waits for the next event. Once it was [`Event::Behind`] it stays that. Dropping the future loses nothing.
    ///
    /// # Errors
    /// `Unavailable` once the store was closed or has failed; the watch has then ended.
    pub async fn next(&mut self) -> Result<Event> {
        if self.behind {
            return Ok(Event::Behind);
        }
        match self.events.next().await {
            Some(Ok(event)) => {
                self.behind = event == Event::Behind;
                Ok(event)
            }
            Some(Err(error)) => Err(error),
            None => Err(CoordError::unavailable("the watch has ended")),
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("behind", &self.behind).finish_non_exhaustive()
    }
}

/// Coordination: small facts under keys, changed by compare-and-swap. Dropping the future of a change leaves open whether it happens.
pub trait Coord: Send + Sync {
    /// The entry of the key, if there is one.
    fn get<'a>(&'a self, key: &'a str) -> SendFuture<'a, Result<Option<Entry>>>;

    /// All entries whose keys begin with `prefix`, of one moment.
    fn list<'a>(&'a self, prefix: &'a str) -> SendFuture<'a, Result<Listing>>;

    /// Applies all changes if all checks hold, else none. `NotFound` if a put names a lease that is over.
    fn transact<'a>(&'a self, checks: Vec<Check>, changes: Vec<Change>) -> SendFuture<'a, Result<Outcome>>;

    /// Tells the changes under `prefix` from `from_revision` on, that one included; 0 means from now on.
    fn watch<'a>(&'a self, prefix: &'a str, from_revision: u64) -> SendFuture<'a, Result<Watch>>;

    /// Begins a lease that ends `ttl` (within [`LEASE_TTL`]) after it was last kept alive.
    fn lease<'a>(&'a self, ttl: Duration) -> SendFuture<'a, Result<LeaseId>>;

    /// Lets the lease live for its whole time again. `NotFound` if it is over: whoever held it must act as one who lost it.
    fn keep_alive<'a>(&'a self, lease: LeaseId) -> SendFuture<'a, Result<()>>;

    /// Ends the lease and deletes its keys. `NotFound` if it is over already.
    fn revoke<'a>(&'a self, lease: LeaseId) -> SendFuture<'a, Result<()>>;
}

/// Whether `key` may be a key: 1 to [`MAX_KEY_BYTES`] of printable ASCII, no space.
///
/// # Errors
/// `Invalid`, with the reason.
pub fn check_key(key: &str) -> Result<()> {
    if key.is_empty() {
        return Err(CoordError::Invalid("a key can not be empty".to_owned()));
    }
    check_prefix(key)
}

/// What the keys of a cluster begin with in an etcd, where nothing else is said.
pub const DEFAULT_PREFIX: &str = "/varve/";

/// Whether `prefix` may be the beginning of a key; the empty one is that of all.
///
/// # Errors
/// `Invalid`, with the reason.
pub fn check_prefix(prefix: &str) -> Result<()> {
    if prefix.len() > MAX_KEY_BYTES {
        return Err(CoordError::Invalid(format!("a key of {} bytes is longer than {MAX_KEY_BYTES}", prefix.len())));
    }
    if !prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(CoordError::Invalid(format!("the key {prefix:?} has other than printable ASCII characters")));
    }
    Ok(())
}

/// Whether `ttl` may be the life of a lease.
///
/// # Errors
/// `Invalid`, with the bounds.
pub fn check_ttl(ttl: Duration) -> Result<()> {
    if LEASE_TTL.contains(&ttl) {
        return Ok(());
    }
    Err(CoordError::Invalid(format!(
        "a lease lives between {:?} and {:?}, not {ttl:?}",
        LEASE_TTL.start(),
        LEASE_TTL.end()
    )))
}

/// Whether the transaction keeps the bounds and changes no key twice.
///
/// # Errors
/// `Invalid`, with the reason.
pub fn check_transaction(checks: &[Check], changes: &[Change]) -> Result<()> {
    let invalid = |text: String| Err(CoordError::Invalid(text));
    if checks.len() > MAX_OPERATIONS || changes.len() > MAX_OPERATIONS {
        return invalid(format!(
            "a transaction of {} checks and {} changes has more than {MAX_OPERATIONS} of one kind",
            checks.len(),
            changes.len()
        ));
    }
    let mut bytes = 0;
    for check in checks {
        let (Check::Absent(key) | Check::Revision(key, _) | Check::Exists(key)) = check;
        check_key(key)?;
        if matches!(check, Check::Revision(_, 0)) {
            return invalid(format!("no key has the revision 0, so {key} can not be checked for it"));
        }
        bytes += key.len();
    }
    let mut keys = BTreeSet::new();
    for change in changes {
        check_key(change.key())?;
        if !keys.insert(change.key()) {
            return invalid(format!("the transaction changes the key {} twice", change.key()));
        }
        bytes += change.key().len();
        if let Change::Put { key, value, .. } = change {
            if value.len() > MAX_VALUE_BYTES {
                return invalid(format!("the value of {key} has {} bytes, more than {MAX_VALUE_BYTES}", value.len()));
            }
            bytes += value.len();
        }
    }
    if bytes > MAX_TRANSACTION_BYTES {
        return invalid(format!("the transaction has {bytes} bytes, more than {MAX_TRANSACTION_BYTES}"));
    }
    Ok(())
}
