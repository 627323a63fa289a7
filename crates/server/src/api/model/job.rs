// SPDX-License-Identifier: Apache-2.0
//! Jobs: operations too long for one request, their progress and their result.
//!
//! A request for one is answered with 202 and the job as it then is; the job's document is asked for again until its state is no longer
//! `running`. A finished job is remembered for a while, within a bound, and not beyond the life of the process.

use super::{CheckReport, ErrorBody, PoolImport, Volume};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A long operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// Its number, not used again while the node runs.
    pub id: u64,
    /// What it does.
    pub kind: JobKind,
    /// To what: a volume, a store; empty for everything.
    pub target: String,
    /// How it stands.
    pub state: JobState,
    /// How far it is.
    pub progress: Progress,
    /// When it was begun.
    pub started_ms: u64,
    /// When it ended.
    pub finished_ms: Option<u64>,
    /// What came of it, once it is `done`.
    pub result: Option<JobResult>,
    /// Why it ended, once it is `failed`.
    pub error: Option<ErrorBody>,
}

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// Verifies every block and every count.
    Check,
    /// Copies what a clone shares, until it needs its origin no more.
    Flatten,
    /// Takes over a pool from its store.
    PoolImport,
}

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// It goes on.
    Running,
    /// It ended, and has a result.
    Done,
    /// It ended, and has an error.
    Failed,
}

/// How far a job is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// What is done, in `unit`s.
    pub done: u64,
    /// What there is to do; 0 while it is not known, and it may grow.
    pub total: u64,
    /// What is counted.
    pub unit: ProgressUnit,
    /// What it is at: the name of a volume, say.
    pub message: String,
}

/// What a job counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProgressUnit {
    /// Bytes.
    #[default]
    Bytes,
    /// Whatever the message says: volumes, objects.
    Items,
}

/// What came of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobResult {
    /// Of a check.
    Check(CheckReport),
    /// Of a flatten: the volume, as it now is.
    Flatten(Box<Volume>),
    /// Of a pool's import.
    PoolImport(PoolImport),
}
