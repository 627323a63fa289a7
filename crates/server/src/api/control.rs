// SPDX-License-Identifier: Apache-2.0
//! What the API needs of a node: one method an operation.
//!
//! The HTTP side knows nothing of shards, engines or coordination; it parses, checks what can be checked without knowing the node, calls
//! [`Control`] and writes down the answer. The node implements it; tests implement it in memory.
//!
//! Rules for both sides:
//!
//! * Changes (everything but reading and data) are run to their end even when the client has gone or the time of its request is over, so an
//!   implementation need not fear being dropped halfway. Data requests and questions may be dropped at any await.
//! * Many calls come at once, from any thread. How many is bounded by [`super::ApiServer`]; the order between two calls is not given.
//! * An answer of success means that the change is durable.
//! * An error's message is for people: it says what was tried and on what, without secrets.

use super::jobs::ProgressHandle;
use super::model::{
    CheckReport, Cleaning, CleaningDone, CleaningFailure, CleaningOffer, CleaningProgress, CleaningTaken,
    CleaningTerms, CloneVolume, Cluster, ClusterNode, ExtentMap, NewPool, NewVolume, Pool, PoolImport, Rewind,
    RewindPoints, Rewound, RollbackReport, Scrub, SetCleaning, SetScrub, Snapshot, Status, Target, Volume,
};
use bytes::Bytes;
use std::collections::BTreeMap;
use varve_env::SendFuture;
use varve_types::{ErrorKind, LeaseId, Name};

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    /// What the caller should do.
    pub kind: ErrorKind,
    /// What was tried and why it failed, for people.
    pub message: String,
}

impl ControlError {
    /// An error of a kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
    /// A request that is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }
    /// A thing that is not there; `what` is the kind of thing.
    pub fn not_found(what: &str, name: impl std::fmt::Display) -> Self {
        Self::new(ErrorKind::NotFound, format!("there is no {what} {name}"))
    }
    /// A thing whose state does not allow it.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }
    /// What the caller should do.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl From<varve_engine::EngineError> for ControlError {
    fn from(error: varve_engine::EngineError) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}

/// The answer of an operation, to be waited for.
pub type Answer<'a, T> = SendFuture<'a, Result<T, ControlError>>;

/// The operations of a node. See the module for what both sides may rely on.
pub trait Control: Send + Sync + 'static {
    /// All volumes, those deleted that can be brought back among them, sorted by name.
    fn volumes(&self) -> Answer<'_, Vec<Volume>>;
    /// One volume.
    fn volume(&self, name: Name) -> Answer<'_, Volume>;
    /// Makes a volume. The size was checked; the settings' keys and values were too.
    fn create_volume(&self, new: NewVolume) -> Answer<'_, Volume>;
    /// Changes the size. Shrinking is a conflict while it would cut data, unless forced.
    fn resize_volume(&self, name: Name, size_bytes: u64, force: bool) -> Answer<'_, Volume>;
    /// Gives it another name.
    fn rename_volume(&self, name: Name, new: Name) -> Answer<'_, Volume>;
    /// Hides it for the undelete window. A conflict while it is attached.
    fn delete_volume(&self, name: Name) -> Answer<'_, Volume>;
    /// Brings it back.
    fn undelete_volume(&self, name: Name) -> Answer<'_, Volume>;
    /// Takes it from the edge that has it for itself, if one has.
    fn detach_volume(&self, name: Name) -> Answer<'_, Volume>;
    /// Makes this node its owner, though another one is; what only that one has is lost. Without `force` it is only told what that would be, as a conflict.
    fn take_volume(&self, name: Name, force: bool) -> Answer<'_, Volume>;
    /// Makes it a template: read-only from now on.
    fn make_template(&self, name: Name) -> Answer<'_, Volume>;
    /// Changes settings, all or none of them. Keys and values were checked.
    fn set_volume(&self, name: Name, settings: BTreeMap<String, String>) -> Answer<'_, Volume>;

    /// All pools, sorted by name.
    fn pools(&self) -> Answer<'_, Vec<Pool>>;
    /// One pool.
    fn pool(&self, name: Name) -> Answer<'_, Pool>;
    /// Makes a pool on an empty store.
    fn create_pool(&self, new: NewPool) -> Answer<'_, Pool>;
    /// Changes settings, all or none of them. Keys and values were checked.
    fn set_pool(&self, name: Name, settings: BTreeMap<String, String>) -> Answer<'_, Pool>;
    /// Forgets a pool. A conflict while it has volumes.
    fn delete_pool(&self, name: Name) -> Answer<'_, Pool>;
    /// Takes over the pool that lies in the store.
    fn import_pool(&self, store: String, progress: ProgressHandle) -> Answer<'_, PoolImport>;

    /// The snapshots of a volume, oldest first; those that a rollback hid, and that its undo would show, are marked.
    fn snapshots(&self, volume: Name) -> Answer<'_, Vec<Snapshot>>;
    /// Takes a snapshot.
    fn create_snapshot(&self, volume: Name, name: Name) -> Answer<'_, Snapshot>;
    /// Deletes a snapshot.
    fn delete_snapshot(&self, volume: Name, name: Name) -> Answer<'_, Snapshot>;
    /// Makes the volume show a snapshot again. With `dry_run` only says what that would hide.
    fn rollback(&self, volume: Name, snapshot: Name, dry_run: bool) -> Answer<'_, RollbackReport>;
    /// Undoes the last rollback that can be undone.
    fn undo_rollback(&self, volume: Name) -> Answer<'_, Volume>;
    /// Makes a volume of a snapshot or of the present state of `volume`.
    fn clone_volume(&self, volume: Name, clone: CloneVolume) -> Answer<'_, Volume>;
    /// Moments of the recent past that can be brought back, the latest `most` of them one by one.
    fn rewind_points(&self, volume: Name, most: u32) -> Answer<'_, RewindPoints>;
    /// Makes a volume of what `volume` was at a moment.
    fn rewind(&self, volume: Name, rewind: Rewind) -> Answer<'_, Rewound>;
    /// Copies what a clone shares with its origin.
    fn flatten(&self, volume: Name, progress: ProgressHandle) -> Answer<'_, Volume>;

    /// The nodes of the cluster, sorted by name; none where this one is by itself.
    fn nodes(&self) -> Answer<'_, Vec<ClusterNode>>;
    /// A node of the cluster, by its name or its id.
    fn node(&self, node: Name) -> Answer<'_, ClusterNode>;
    /// Takes a node out of the cluster. A conflict while it is alive or owns volumes.
    fn remove_node(&self, node: Name) -> Answer<'_, ClusterNode>;
    /// The cluster, as far as this node sees it: also where coordination does not answer.
    fn cluster(&self) -> Answer<'_, Cluster>;

    /// The node's state.
    fn status(&self) -> Answer<'_, Status>;
    /// Verifies one volume or all. What is wrong is in the report; an error means that the check itself could not go on.
    fn check(&self, volume: Option<Name>, progress: ProgressHandle) -> Answer<'_, CheckReport>;
    /// How cleaning goes.
    fn cleaning(&self) -> Answer<'_, Cleaning>;
    /// Changes how it goes, until the node stops.
    fn set_cleaning(&self, set: SetCleaning) -> Answer<'_, Cleaning>;
    /// Gives a process a job of cleaning.
    fn cleaning_job(&self, worker: Name) -> Answer<'_, CleaningOffer>;
    /// Takes in that a process is still at its job.
    fn renew_cleaning_job(&self, job: LeaseId, progress: CleaningProgress) -> Answer<'_, CleaningTerms>;
    /// Looks at what a process has made, and takes it into use.
    fn complete_cleaning_job(&self, job: LeaseId, done: CleaningDone) -> Answer<'_, CleaningTaken>;
    /// Takes in that a process will not do its job. Its message is short.
    fn fail_cleaning_job(&self, job: LeaseId, failure: CleaningFailure) -> Answer<'_, Cleaning>;
    /// What scrubbing has found, and how it goes.
    fn scrub(&self) -> Answer<'_, Scrub>;
    /// Changes how it goes, until the node stops.
    fn set_scrub(&self, set: SetScrub) -> Answer<'_, Scrub>;
    /// The metrics in the text form of Prometheus (OpenMetrics).
    fn metrics(&self) -> Answer<'_, String>;

    /// Reads exactly `len` bytes. The range is a multiple of 512 at both ends and at most [`super::MAX_DATA`] long.
    fn read(&self, target: Target, offset: u64, len: u32) -> Answer<'_, Bytes>;
    /// Writes `data`, by the rules of [`read`](Self::read); durable after the next [`flush`](Self::flush).
    fn write(&self, volume: Name, offset: u64, data: Bytes) -> Answer<'_, ()>;
    /// Frees a range of any length; it reads as zeroes afterwards.
    fn zero(&self, volume: Name, offset: u64, len: u64) -> Answer<'_, ()>;
    /// Makes what was written before durable.
    fn flush(&self, volume: Name) -> Answer<'_, ()>;
    /// Which parts of a range hold data: at most [`super::MAX_EXTENTS`] extents, from its beginning. For `len` 0, only the size.
    fn extents(&self, target: Target, offset: u64, len: u64) -> Answer<'_, ExtentMap>;
}
