// SPDX-License-Identifier: Apache-2.0
//! The node: a data directory, its shard, and what they serve.
//!
//! The two entries of the command line. Both block the calling thread and bring their own runtimes. Only [`up`]
//! serves; [`check_offline`] opens the same data directory, which the same lock keeps to one process, and serves
//! nobody.
//!
//! | file | holds |
//! |---|---|
//! | `directory`, `journal`, `journal_list` | the data directory, its lock, the journals |
//! | `start` | the order in which a node starts and stops |
//! | `thread`, `local` | the thread of the shard, and what lives there |
//! | `connections`, `exports`, `attach` | who uses volumes: NBD clients and edges |
//! | `control`, `volume_control`, `pool_control`, `job_control`, `status`, `metrics`, `sessions`, `describe` | the API's operations |
//! | `offline` | the check without a node |
//! | `pools`, `default_pool`, `watched` | the stores, and whom they belong to |
//! | `identity`, `membership`, `ownership`, `takeover`, `cluster` | the other nodes of a cluster |
//!
//! Two threads matter: that of the shard, which owns volumes, journal and connections; and the caller's, which runs
//! everything else. They meet in `thread::ShardHandle` alone.

mod attach;
mod cleaning;
mod cluster;
mod connections;
mod control;
mod default_pool;
mod describe;
mod directory;
mod disk_copies;
mod exports;
mod identity;
mod job_control;
mod journal;
mod journal_list;
mod local;
mod membership;
mod metrics;
mod mirroring;
mod offline;
mod ownership;
mod pool_control;
mod pools;
mod scrub;
mod sessions;
mod start;
mod status;
mod takeover;
mod thread;
mod volume_control;
mod watched;

use crate::api::model::CheckReport;
use crate::api::{ControlError, ProgressHandle};
pub use metrics::{MetricInfo, metric_infos};
pub(crate) use pools::{check_owner_record, is_bulk};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use varve_config::{EtcdKeys, UpConfig};
use varve_engine::EngineError;
use varve_env::{SendFuture, StoreError};
use varve_types::{ClusterId, ErrorKind, Name};

/// Descriptors that a node asks the system for: a connection takes one.
const OPEN_FILES: u64 = 65_536;

/// An error of coordination as the API tells it.
fn coord_error(error: varve_coord::CoordError) -> ControlError {
    ControlError::new(error.kind(), error.to_string())
}

/// An error of a store as the API tells it.
fn store_error(error: StoreError) -> ControlError {
    ControlError::new(error.kind(), error.to_string())
}

/// The error that there must be, or that `what` was not found.
fn engine_error(error: Option<EngineError>, what: &str) -> ControlError {
    error.map_or_else(|| ControlError::new(ErrorKind::NotFound, format!("there is no {what}")), ControlError::from)
}

/// What a node serves, once it does.
#[derive(Clone, Debug)]
pub struct Serving {
    /// What the node is called.
    pub node: String,
    /// The cluster that it is one of; none where it is by itself.
    pub cluster: Option<ClusterId>,
    /// The data directory.
    pub data: PathBuf,
    /// The URL of the store of the pool `default`, without secrets.
    pub store: String,
    /// The NBD socket.
    pub nbd_socket: PathBuf,
    /// The NBD port, if there is one.
    pub nbd_listen: Option<SocketAddr>,
    /// The socket for edges.
    pub edge_socket: PathBuf,
    /// The port for edges, if there is one.
    pub edge_listen: Option<SocketAddr>,
    /// The API socket.
    pub api_socket: PathBuf,
    /// The API port, if there is one.
    pub api_listen: Option<SocketAddr>,
    /// The volumes, with their sizes in bytes, sorted by name.
    pub volumes: Vec<(Name, u64)>,
}

/// Told again and again that a node works.
pub struct Beat {
    /// How often.
    pub every: Duration,
    /// Called on the caller's thread, each time the shard's thread has answered.
    pub tell: Box<dyn Fn() + Send + Sync>,
}

/// Whom a node tells of its life, and who ends it.
pub struct Hooks {
    /// Called once, when everything is served.
    pub ready: Box<dyn FnOnce(&Serving) + Send>,
    /// Polled on a tokio runtime; when it completes, the node stops.
    pub stop: SendFuture<'static, ()>,
    /// Told that it works, if somebody wants to hear it.
    pub beat: Option<Beat>,
}

/// Runs a node until it is told to stop, and stops it in good order: what was acknowledged is durable when this returns.
///
/// # Errors
/// When the node can not start or must stop by itself.
pub fn up(config: UpConfig, hooks: Hooks) -> Result<(), ControlError> {
    if let Err(error) = varve_serve::raise_open_file_limit(OPEN_FILES) {
        tracing::warn!(%error, "the limit of open descriptors stays as it is");
    }
    let directory = directory::Directory::open_or_create(&config.data)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| directory::io_error("a runtime", &error))?;
    runtime.block_on(start::run(config, directory, hooks))
}

/// Makes a cluster in etcd, which nodes can be started for then.
///
/// # Errors
/// `Conflict` where there is one under the prefix already; what etcd says.
pub fn init_cluster(etcd: &EtcdKeys) -> Result<ClusterId, ControlError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| directory::io_error("a runtime", &error))?;
    runtime.block_on(membership::init(etcd))
}

/// Verifies every block and every count of one volume or of all, without a server.
///
/// # Errors
/// `NotFound` when there is no such data directory or volume, `Conflict` when a server runs on it.
pub fn check_offline(
    data: &Path,
    volume: Option<&Name>,
    progress: &ProgressHandle,
) -> Result<CheckReport, ControlError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| directory::io_error("a runtime", &error))?;
    runtime.block_on(offline::check(data, volume.cloned(), progress.clone()))
}
