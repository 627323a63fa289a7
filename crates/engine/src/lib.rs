// SPDX-License-Identifier: Apache-2.0
//! The volume engine: journal, layers, segments, map, snapshots, recovery.
//!
//! A library that names no runtime, thread, clock, socket or random source: it is given an [`Env`](varve_env::Env),
//! a disk for its journal, object stores and coordination. One [`Shard`] owns its volumes alone, on one thread, so
//! nothing here is locked.
//!
//! The way of a write: [`BlockDevice::write`] → journal batch and open layer → commit → answer; the layer is
//! sealed, put as a segment, counts, moves to the overlay, and is merged into the map by a checkpoint. The way of a
//! read: layer → overlay → map → cache in RAM → cache devices → store.

mod ahead;
mod birth;
mod cache;
mod check;
mod checkpoint;
mod clean;
mod closed;
mod context;
mod ends;
mod error;
mod extent;
mod facts;
mod fetch;
mod flatten;
#[cfg(feature = "generator")]
mod generator;
mod import;
mod journal;
mod journals;
mod keeper;
mod layer;
mod lineage;
mod manifests;
pub mod map;
mod map_ram;
mod mirror;
mod nodes;
mod orphans;
mod overlay;
mod pace;
mod pressure;
mod proof;
mod rate;
mod read;
mod recover;
mod rewind;
mod scrub;
mod seal;
mod serve;
mod session;
mod shard;
mod signal;
mod snapshot;
mod ssd;
mod stages;
mod table;
mod tails;
mod timeline;
mod volume;
mod waits;
mod write;

pub use cache::CacheCounts;
pub use check::{CheckReport, Problem, Progress};
pub use clean::{
    CleanAnswer, CleanCounts, CleanJob, CleanSource, CleanWorker, LeaseEnd, LeaseTerms, Leased, run_clean_job,
};
pub use context::{Limits, PutBytes};
pub use ends::{EndCounts, Ending};
pub use error::{EngineError, Result};
pub use facts::{ClosedInfo, OriginInfo};
pub use flatten::Flattened;
pub use import::{ImportFailure, Imported, ImportedVolume, PoolImport, import_pool};
pub use journals::{JournalCounts, JournalDisk, JournalRole};
pub use manifests::PoolStore;
pub use map_ram::MapCounts;
pub use mirror::{
    BeginCopy, Begun, Copies, CopyCounts, Delivery, DiskCopies, Fetched, MirrorCounts, MirrorNodes, MirrorPeer,
    MirrorPhase, MirrorState, Release, TailRecord,
};
pub use pressure::SlowCounts;
pub use rewind::{RewindPoint, RewindPoints};
pub use scrub::{Finding, ScrubCounts};
pub use serve::Device;
pub use session::{SessionRequest, SessionStart};
pub use shard::{GoneCounts, Importing, NewVolume, Shard, ShardCounts};
pub use ssd::SsdCounts;
pub use stages::{Stage, StageTimes};
pub use table::TableTotals;
pub use varve_block::{BlockDevice, Later, Position, StatusExtent, Submit};
pub use volume::{Attachment, SnapshotInfo, Volume, VolumeCounts};
pub use waits::WaitCounts;
