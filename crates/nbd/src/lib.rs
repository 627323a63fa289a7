// SPDX-License-Identifier: Apache-2.0
//! The NBD server: volumes as network block devices, by the public specification (`doc/proto.md` of NetworkBlockDevice/nbd).
//!
//! A connection lives in two phases. The **handshake** (fixed newstyle) runs on the control runtime, where a slow or hostile client costs
//! nothing but a bounded buffer and a bounded time. The **transmission** runs on the thread of the shard that owns the volume: the socket is
//! handed over as an [`Accepted`](varve_serve::Accepted) and registered anew there. What is the same in every protocol of requests and replies is in [`varve_serve`].
//!
//! | file | holds |
//! |---|---|
//! | `wire` | requests and replies of the transmission, byte by byte |
//! | `option` | the messages of the handshake, byte by byte |
//! | `handshake` | the negotiation, over any stream |
//! | `serve`, `dialect`, `check` | the transmission |
//!
//! Invariant: no length from a client is used before it was bounded.

mod check;
mod dialect;
mod handshake;
pub mod option;
mod serve;
pub mod wire;

pub use handshake::{ExportInfo, Exports, HandshakeLimits, NbdGreeter, Negotiated, Outcome, negotiate};
pub use serve::{Closed, serve};

/// A negotiated connection on its way to the thread that will serve it.
pub type Accepted = varve_serve::Accepted<Negotiated>;
