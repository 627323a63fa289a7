// SPDX-License-Identifier: Apache-2.0
//! The server's side of the edge protocol: `docs/protocol.md`.
//!
//! | file | holds |
//! |---|---|
//! | `greeter` | how a connection begins: the request to attach, read within bounds, and its token |
//! | `dialect` | requests and replies, for [`varve_serve`] |
//!
//! Who has which volume is decided on the shard's thread (`node/attach.rs`), where connections are served.

mod dialect;
mod greeter;

pub(crate) use dialect::{EdgeDialect, WINDOW};
pub(crate) use greeter::{Accepted, Asked, EdgeGreeter, read_greeting, refuse};
