// SPDX-License-Identifier: Apache-2.0
//! The documents of the HTTP API: what is sent and what is answered, as JSON.
//!
//! These are the stable face of Varve: scripts read them, so a field is never renamed and never changes its meaning; new fields may appear, and
//! a reader must pass over what it does not know. Conventions that hold throughout:
//!
//! * A size or a moment is a whole number with its unit last in its name: `size_bytes`, `created_ms` (milliseconds since 1970, by the node's
//!   clock), `uptime_ms` (a duration).
//! * A name, an id, a URL is a string. What may be missing is `null`, and is left out of requests.
//! * Requests refuse fields that they do not know, so that a misspelt one is not silently without effect.
//!
//! The structures hold no logic beyond reading and writing themselves; the node fills them ([`super::Control`]) and the command line prints them.

mod check;
mod cleaning;
mod cleaning_job;
mod cluster;
mod data;
mod job;
mod pool;
mod rewind;
mod scrub;
mod status;
mod volume;

pub use check::{CheckError, CheckReport, VolumeCheck};
pub use cleaning::{Cleaning, CleaningWorker, SetCleaning};
pub use cleaning_job::{
    AskCleaningJob, CleaningCodec, CleaningDone, CleaningFailure, CleaningJob, CleaningOffer, CleaningProgress,
    CleaningSource, CleaningTaken, CleaningTerms,
};
pub use cluster::{Cluster, ClusterNode, Coordination, CoordinationKind, Owner, TakeVolume, VolumeCounts};
pub use data::{Extent, ExtentMap, RangeQuery, Target, WriteQuery};
pub use job::{Job, JobKind, JobResult, JobState, Progress, ProgressUnit};
pub use pool::{ImportPool, NewPool, Pool, PoolImport};
pub use rewind::{Rewind, RewindPoints, RewindQuery, Rewound};
pub use scrub::{Finding, Scrub, ScrubPass, SetScrub};
pub use status::{Ending, Fill, IoCounters, Journal, PoolStatus, Status, StoreState, Version, VolumeStatus};
pub use volume::{
    Client, CloneVolume, Holder, Mirror, MirrorState, NewSnapshot, NewVolume, Origin, Rename, Resize, Rollback,
    RollbackReport, SetSettings, Setting, Snapshot, Space, Timeline, TimelineState, Volume, VolumeState,
};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What every failed request answers, with the status code that belongs to the kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What the caller should do: `invalid`, `not-found`, `conflict`, `fenced`, `unavailable`, `busy`, `corrupt`, `no-space` or `internal`.
    pub kind: String,
    /// What was tried and why it failed, for people.
    pub message: String,
}
