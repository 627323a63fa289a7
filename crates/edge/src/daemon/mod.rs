// SPDX-License-Identifier: Apache-2.0
//! Many volumes in one process, shown over NBD, and the socket through which people and programs ask for them.
//!
//! | file | holds |
//! |---|---|
//! | `registry` | the volumes, and who uses them |
//! | `exports` | what the NBD listener tells of them |
//! | `front` | the NBD listener and its connections |
//! | `control` | the control socket: one JSON object a line |
//! | `spec` | how a volume is to be attached, as a request or a configuration file says it |
//! | `document` | what is told of a volume |
//!
//! All of it runs on one thread. Bounds: [`MOST_VOLUMES`] volumes, the connections of `front` and `control`.

mod control;
pub mod document;
mod exports;
mod front;
mod registry;
pub mod spec;

pub use control::{Command, Reply, ask, serve_control};
pub use front::Front;
pub use registry::Registry;

/// Most volumes of a process.
pub const MOST_VOLUMES: usize = 1024;
