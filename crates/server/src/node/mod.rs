// SPDX-License-Identifier: Apache-2.0
//! The node: a data directory, its shards, and what they serve.
//!
//! The two entries of the command line. Both block the calling thread and bring their own runtimes. Only [`up`] serves; [`check_offline`] opens
//! the same data directory, which the same lock keeps to one process, reads, and leaves it as it was.

use crate::api::model::CheckReport;
use crate::api::{ControlError, ProgressHandle};
use crate::config::UpConfig;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use varve_env::SendFuture;
use varve_types::{ErrorKind, Name};

/// What a node serves, once it does.
#[derive(Clone, Debug)]
pub struct Serving {
    /// The data directory.
    pub data: PathBuf,
    /// The URL of the store of the pool `default`, without secrets.
    pub store: String,
    /// The NBD socket.
    pub nbd_socket: PathBuf,
    /// The NBD port, if there is one.
    pub nbd_listen: Option<SocketAddr>,
    /// The API socket.
    pub api_socket: PathBuf,
    /// The API port, if there is one.
    pub api_listen: Option<SocketAddr>,
    /// The volumes, with their sizes in bytes, sorted by name.
    pub volumes: Vec<(Name, u64)>,
}

/// Runs a node until `stop` completes, and stops it in good order: what was acknowledged is durable when this returns.
///
/// `ready` is called once, when everything is served. `stop` is polled on a tokio runtime.
///
/// # Errors
/// When the node can not start or must stop by itself.
pub fn up(
    config: UpConfig,
    ready: Box<dyn FnOnce(&Serving) + Send>,
    stop: SendFuture<'static, ()>,
) -> Result<(), ControlError> {
    drop((config, ready, stop));
    Err(ControlError::new(ErrorKind::Unavailable, "the node is not built yet"))
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
    let _ = (data, volume, progress);
    Err(ControlError::new(ErrorKind::Unavailable, "the node is not built yet"))
}
