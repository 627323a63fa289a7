// SPDX-License-Identifier: Apache-2.0
//! Ids, names, sizes, settings and error kinds of Varve.
//!
//! The vocabulary that every other crate shares. It holds no I/O and no state; what is here is either a newtype
//! with one text form (used in logs, API and CLI alike) or a rule that a person can break (a name, a size, a
//! setting) together with the error that says so.

pub mod branch;
mod catalogue;
mod histogram;
mod id;
mod kind;
pub mod mutant;
mod name;
mod settings;
mod shared_histogram;
mod size;

pub use histogram::{BUCKETS, Histogram};
pub use id::{
    ClusterId, Epoch, IncarnationId, JournalId, LeaseId, NodeId, Ordinal, RootNumber, Sequence, SessionId, SnapshotId,
    TimelineId, VolumeId, WriterId,
};
pub use kind::{ALL as ALL_KINDS, ErrorKind, Kinded};
pub use name::{Name, NameError};
pub use settings::{
    Ack, CacheMode, Compression, MirrorMedium, MirrorMode, Overrides, SettingError, Settings, Source, parse_duration_ms,
};
pub use shared_histogram::SharedHistogram;
pub use size::{SizeError, format_size, parse_size, parse_volume_size};

/// Bytes of a block, the unit of the map.
pub const BLOCK: u64 = 4096;
/// Bytes of a sector, the smallest unit that a client may write.
pub const SECTOR: u64 = 512;
/// Largest volume, in bytes (64 TiB).
pub const MAX_VOLUME: u64 = 64 << 40;
/// Most journals of a node.
pub const MAX_JOURNALS: usize = 16;
/// Largest segment, in blocks.
pub const MAX_SEGMENT_BLOCKS: u32 = 65_536;

/// Least bytes a second that work in the background can be bounded to: below, a job of a large segment would take days.
pub const MIN_RATE: u64 = 64 << 10;
