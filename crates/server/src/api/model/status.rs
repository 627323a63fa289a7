// SPDX-License-Identifier: Apache-2.0
//! The state of a node at one moment, enough for a person to see whether it is well and what it is busy with.
//!
//! Counters only grow while the node runs; a watcher takes the difference of two answers. Fills are of bounded things, so `used_bytes` over
//! `limit_bytes` always means something.
//!
//! What is wrong, or on its way to be, is said in `warnings` too, in whole sentences.

use super::VolumeState;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use varve_types::{ClusterId, Name, NodeId, TimelineId, VolumeId};

/// Which program answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// The product: `varve`.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// The state of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Version of the server.
    pub version: String,
    /// The node's name.
    pub node: String,
    /// Its id; `null` where it is a cluster by itself.
    #[schema(value_type = Option<String>)]
    #[serde(default)]
    pub node_id: Option<NodeId>,
    /// The id of its cluster.
    #[schema(value_type = Option<String>)]
    #[serde(default)]
    pub cluster: Option<ClusterId>,
    /// When it was started.
    pub started_ms: u64,
    /// How long it has been serving.
    pub uptime_ms: u64,
    /// Path of its data directory.
    pub data: String,
    /// Path of its NBD socket.
    pub nbd_socket: String,
    /// Address of its NBD port, if it has one.
    pub nbd_listen: Option<String>,
    /// Path of its socket for edges.
    pub edge_socket: String,
    /// Address of its port for edges, if it has one.
    pub edge_listen: Option<String>,
    /// Address of its API port, if it has one.
    pub api_listen: Option<String>,
    /// Its pools, by name.
    pub pools: Vec<PoolStatus>,
    /// Its volumes, by name; deleted ones are not among them.
    pub volumes: Vec<VolumeStatus>,
    /// Its journals.
    pub journals: Vec<Journal>,
    /// Layers in RAM: written, not yet in the store.
    pub layers: Fill,
    /// What finds a block: nodes of maps, segment tables, places of chunks.
    pub map: Fill,
    /// The read cache in RAM.
    pub cache: Fill,
    /// The read cache on devices; zeroes where there is none.
    pub ssd_cache: Fill,
    /// Blocks that it had.
    pub ssd_cache_hits: u64,
    /// Blocks that it did not have.
    pub ssd_cache_misses: u64,
    /// Reads that the cache answered.
    pub cache_hits: u64,
    /// Reads that the store had to answer.
    pub cache_misses: u64,
    /// What is being deleted for ever: volumes whose time to be brought back is over, and histories that a rollback has hidden.
    #[serde(default)]
    pub endings: Vec<Ending>,
    /// Deleted volumes that clones need, though nothing brings them back.
    #[serde(default)]
    pub gone_volumes: u64,
    /// Bytes of data that are stored of these.
    #[serde(default)]
    pub gone_bytes: u64,
    /// What a person should know, in whole sentences; empty when all is well.
    pub warnings: Vec<String>,
}

/// How full a bounded thing is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Fill {
    /// Bytes in use.
    pub used_bytes: u64,
    /// The bound.
    pub limit_bytes: u64,
}

/// A journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Journal {
    /// The shard whose journal it is.
    pub shard: u32,
    /// Its file or block device.
    #[serde(default)]
    pub path: String,
    /// How full it is.
    pub fill: Fill,
    /// Whether it failed: writes then go to the store before a flush is answered.
    pub failed: bool,
    /// Whether it is no longer configured, and still needed.
    #[serde(default)]
    pub leaving: bool,
}

/// A pool and its store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolStatus {
    /// The pool.
    #[schema(value_type = String)]
    pub name: Name,
    /// Its store.
    pub store: String,
    /// Whether the store answers.
    pub state: StoreState,
    /// What the store said last when it did not.
    pub message: Option<String>,
    /// How many volumes it has.
    pub volumes: u64,
    /// Requests to its store that are under way.
    #[serde(default)]
    pub requests: u64,
    /// For how long the oldest of them is; `null` where there is none.
    #[serde(default)]
    pub oldest_request_ms: Option<u64>,
}

/// A volume, or a history of one, that is being deleted for ever, object by object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ending {
    /// What the volume is called, or was.
    #[schema(value_type = String)]
    pub volume: Name,
    /// Its id.
    #[schema(value_type = String)]
    pub volume_id: VolumeId,
    /// The history; that which the volume has shown last where all of it goes.
    #[schema(value_type = String)]
    pub timeline: TimelineId,
    /// Whether all of the volume goes; else a history of it that was hidden.
    pub whole: bool,
    /// Since when this process is at it, in milliseconds since 1970.
    pub since_ms: u64,
    /// Objects that it has deleted since.
    pub deleted_objects: u64,
    /// Objects that are left, at most.
    pub left_objects: u64,
    /// Why it waits; `null` while it goes on.
    pub message: Option<String>,
}

/// Whether a store answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StoreState {
    /// It answers.
    Ok,
    /// It does not answer; it is asked again and again.
    Unavailable,
    /// It is full.
    Full,
    /// The pool belongs to another cluster now, and is no longer served.
    Lost,
}

/// A volume at work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeStatus {
    /// The volume.
    #[schema(value_type = String)]
    pub name: Name,
    /// Its pool.
    #[schema(value_type = String)]
    pub pool: Name,
    /// Whether it serves.
    pub state: VolumeState,
    /// Its size as clients see it.
    pub size_bytes: u64,
    /// Bytes of blocks that hold data.
    pub live_bytes: u64,
    /// Bytes written that the store does not have yet.
    pub dirty_bytes: u64,
    /// Bytes that were discarded in large pieces and are not freed yet, at most.
    #[serde(default)]
    pub reclaim_bytes: u64,
    /// Bytes a second that it may write while its store takes less than is written; `null` while nothing is slowed.
    #[serde(default)]
    pub write_rate_bytes: Option<u64>,
    /// Clients that have it open.
    pub attached: u32,
    /// What was done with it since the node started.
    pub io: IoCounters,
}

/// What clients did with a volume since the node started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IoCounters {
    /// Read requests.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Write requests.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flushes.
    pub flushes: u64,
}
