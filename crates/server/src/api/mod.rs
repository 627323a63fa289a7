// SPDX-License-Identifier: Apache-2.0
//! The HTTP API of a node: everything that manages it, and the data of its volumes, under `/v1`.
//!
//! It stands beside the write path, not on it: guests speak NBD, people and programs that manage speak this. It listens on a unix socket of
//! mode 0600, where who may open it may do all, and on a loopback port, where a request needs the token ([`Token`]). Nothing is kept here
//! beyond the life of the process but the token; a crash ends the requests and jobs under way and nothing else.
//!
//! Everything is bounded: connections, the size of heads and bodies, the time of a request, changes and data requests under way, jobs
//! running and remembered. What does not fit waits where waiting is bounded, or is refused with `Busy`.
//!
//! * [`model`]: the documents.
//! * [`Control`]: what a node must be able to do.
//! * [`ApiServer`]: the sockets; [`serve`] is all of it in one call.

mod control;
mod extract;
mod guard;
mod jobs;
mod listen;
pub mod model;
mod routes;

pub use control::{Answer, Control, ControlError};
pub use guard::Token;
pub use jobs::ProgressHandle;
pub use listen::{ApiConfig, ApiServer, serve};
pub use routes::ROUTES;

use std::time::Duration;

/// Most bytes of data in one request.
pub const MAX_DATA: u64 = 8 << 20;
/// Most extents in one answer.
pub const MAX_EXTENTS: usize = 4096;
/// Most bytes of a JSON body.
const MAX_JSON: usize = 64 << 10;
/// Most connections of each listener.
const MOST_CONNECTIONS: usize = 256;
/// Most changes under way.
const MOST_CHANGES: usize = 64;
/// Most data requests under way: 24 × 8 MiB are the most memory that they hold.
const MOST_DATA_REQUESTS: usize = 24;
/// How long a request may take, its body and the node's answer included.
const REQUEST_TIME: Duration = Duration::from_secs(60);
/// How long a connection may take to send the head of its next request.
const HEAD_TIME: Duration = Duration::from_secs(60);
/// How long requests under way may take to end when the server stops.
const STOP_TIME: Duration = Duration::from_secs(10);
