// SPDX-License-Identifier: Apache-2.0
//! Cleaning, as people see it and hold it back.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use varve_types::Name;

/// Cleaning in a node: what still lives of sparse segments is moved together, and their objects go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cleaning {
    /// Whether something is being cleaned at this moment.
    pub running: bool,
    /// Whether nothing new is begun.
    pub paused: bool,
    /// Bytes that may be read and put in a second; null: as many as can be.
    pub rate_bytes: Option<u64>,
    /// A volume is cleaned while less than so many of a hundred of its stored blocks are alive; 0: never.
    pub occupancy_percent: u64,
    /// Bytes of blocks in the store that are alive, of all volumes.
    pub live_bytes: u64,
    /// Bytes of blocks in the store that are dead, of all volumes: what cleaning has before it, as far as it is worth it.
    pub dead_bytes: u64,
    /// Jobs that were done since the node started.
    pub jobs: u64,
    /// Those of them that other processes have run (`varve clean --worker`).
    #[serde(default)]
    pub worker_jobs: u64,
    /// Jobs that were given up since then, to be tried again.
    pub failed_jobs: u64,
    /// Those of them in which another process has put something else than it should have.
    #[serde(default)]
    pub refused_jobs: u64,
    /// Those of them that another process was at, and nothing was heard of it.
    #[serde(default)]
    pub expired_jobs: u64,
    /// Bytes of blocks that cleaning has read since then.
    pub read_bytes: u64,
    /// Bytes that it has put since then.
    pub put_bytes: u64,
    /// The processes that clean beside the node, by name. While there are any, the node does not clean.
    #[serde(default)]
    pub workers: Vec<CleaningWorker>,
}

/// A process that cleans beside a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CleaningWorker {
    /// What it calls itself.
    #[schema(value_type = String)]
    pub name: Name,
    /// Jobs of it that were done since it was first heard of.
    pub jobs: u64,
    /// Jobs of it that came to nothing.
    pub failed_jobs: u64,
    /// Whether it has a job.
    pub running: bool,
    /// Bytes of blocks that it has read for that job, as far as it has told.
    pub read_bytes: u64,
    /// How long ago it was heard of, in milliseconds.
    pub heard_ms: u64,
}

/// Changes how a node cleans, until it stops; what is left out stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SetCleaning {
    /// Begin nothing new, or go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
    /// Bytes that may be read and put in a second, 65536 at least; 0: as many as can be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_bytes: Option<u64>,
}
