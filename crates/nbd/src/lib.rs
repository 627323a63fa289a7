// SPDX-License-Identifier: Apache-2.0
//! The NBD server: volumes as network block devices, by the public specification (`doc/proto.md` of NetworkBlockDevice/nbd).
//!
//! A connection lives in two phases. The **handshake** (fixed newstyle) runs on the control runtime, where a slow or hostile client costs
//! nothing but a bounded buffer and a bounded time. The **transmission** runs on the thread of the shard that owns the volume: the socket is
//! handed over as an [`Accepted`] and registered anew there.
//!
//! | file | holds |
//! |---|---|
//! | `wire` | requests and replies of the transmission, byte by byte |
//! | `option` | the messages of the handshake, byte by byte |
//! | `handshake` | the negotiation, over any stream |
//! | `listener`, `socket`, `peer` | accepting within limits, the hand-over, who the client is |
//! | `connection` | the transmission: the turns of one connection |
//! | `session` | what a request does, and its reply; the commit of a batch |
//! | `input`, `buffers`, `output`, `asked`, `check`, `later`, `commits`, `spin`, `stats` | their parts |
//!
//! Invariants: no length from a client is used before it was bounded; a write is answered only after
//! [`commit`](varve_block::BlockDevice::commit) covered it; a client that does not read its replies is not read from any more. Nothing here is
//! durable: a crash ends the connections, and what was answered is the device's promise.

mod asked;
mod buffers;
mod check;
mod commits;
mod connection;
mod error;
mod handshake;
mod input;
mod later;
mod listener;
pub mod option;
mod output;
mod peer;
mod session;
mod socket;
mod spin;
mod stats;
pub mod wire;

pub use buffers::trim as trim_buffers;
pub use connection::{Closed, Tuning, serve};
pub use error::{NbdError, Result};
pub use handshake::{ExportInfo, Exports, HandshakeLimits, Negotiated, Outcome, negotiate};
pub use listener::{Accepted, Endpoint, Limits, Listener, Local, Slot, Slots, Socket, raise_open_file_limit};
pub use peer::{Client, Peer};
pub use stats::{Counts, Operation, Stats};
