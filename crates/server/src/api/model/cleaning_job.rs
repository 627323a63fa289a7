// SPDX-License-Identifier: Apache-2.0
//! Jobs of cleaning that other processes run: what such a process is told, and what it answers.
//!
//! Which blocks of a segment live is said as lengths of runs, in turn of dead and of living blocks, beginning with dead ones (perhaps none); their sum is the
//! number of its blocks. A job has at most a segment full of living blocks and so at most as many runs, however many segments it takes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use varve_types::{ClusterId, LeaseId, Name};

/// Asks for a job of cleaning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AskCleaningJob {
    /// What the process calls itself: one that asks anew under a name has lost the job that it had before.
    #[schema(value_type = String)]
    pub worker: Name,
}

/// A job of cleaning, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CleaningOffer {
    /// The job; null: there is nothing to do now.
    pub job: Option<CleaningJob>,
}

/// A job of cleaning: what lives of some segments is to be put as one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CleaningJob {
    /// By what it is spoken of.
    #[schema(value_type = String)]
    pub id: LeaseId,
    /// The pool that it is about.
    #[schema(value_type = String)]
    pub pool: Name,
    /// The address of that pool's store, without secrets.
    pub store: String,
    /// Whose that store is.
    #[schema(value_type = String)]
    pub cluster: ClusterId,
    /// Number of the record in the store that says so.
    pub owner_number: u64,
    /// The name of the object that is to be put.
    pub bundle: String,
    /// How its blocks are to be coded.
    pub codec: CleaningCodec,
    /// The moment that stands in it, in milliseconds since 1970.
    pub made_ms: u64,
    /// The segments, by ordinal.
    pub sources: Vec<CleaningSource>,
    /// For how long, and how fast.
    pub terms: CleaningTerms,
}

/// How blocks are coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CleaningCodec {
    /// As they are.
    Raw,
    /// LZ4, by chunk.
    Lz4,
    /// Zstandard, by chunk.
    Zstd,
}

/// A segment that is cleaned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CleaningSource {
    /// Its ordinal.
    pub ordinal: u64,
    /// The object that has its blocks.
    pub object: String,
    /// Which of them live: lengths of runs, in turn of dead and of living blocks.
    pub live: Vec<u32>,
    /// Whether what the segment has changed is to be told too.
    pub history: bool,
}

/// For how long a job counts without news of it, and how fast it may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CleaningTerms {
    /// For so many milliseconds, from when it was asked for.
    pub lease_ms: u64,
    /// Bytes that it may read and put in a second; null: as many as can be.
    pub rate_bytes: Option<u64>,
}

/// A process is still at its job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CleaningProgress {
    /// Bytes of blocks that it has read for it.
    pub read_bytes: u64,
}

/// A process has done its job. What it has put is looked at before anything depends on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CleaningDone {
    /// The name of the object that it has put.
    pub bundle: String,
    /// Segments of which that has what lives.
    pub shares: u32,
    /// Bytes of blocks that it has read.
    pub read_bytes: u64,
    /// Bytes of the object.
    pub put_bytes: u64,
}

/// What a process has done was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CleaningTaken {
    /// Segments that are where it has put them; of others all is dead by now, or elsewhere.
    pub segments: u32,
}

/// A process will not do its job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CleaningFailure {
    /// Why, for the log of the node.
    #[schema(max_length = 1024)]
    pub message: String,
    /// It could, but it ends.
    #[serde(default)]
    pub given_back: bool,
}
