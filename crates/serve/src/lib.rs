// SPDX-License-Identifier: Apache-2.0
//! Serves a block device to a client over a byte stream: requests come in bursts, replies go back in any order.
//!
//! What is the same in every such protocol is here: cutting the stream into requests, acting on them, committing once a burst, answering what had to wait,
//! the bounds of all of that. What tells one protocol from another is a [`Dialect`]: how a request and a reply look. NBD is one, Varve's own for edges
//! is another. How a connection begins is a [`Greeter`]'s affair.
//!
//! | file | holds |
//! |---|---|
//! | `listener`, `socket`, `tls`, `peer` | accepting within limits, the hand-over between threads, TLS, who the client is |
//! | `stopped` | how the process is told to stop |
//! | `dialect` | what a protocol has to say |
//! | `connection` | the turns of one connection |
//! | `session` | what a request does, and its reply; the commit of a batch |
//! | `input`, `buffers`, `output`, `asked`, `later`, `commits`, `spin`, `stats` | their parts |
//!
//! Invariants: no length from a client is used before it was bounded; a write is answered only after
//! [`commit`](varve_block::BlockDevice::commit) covered it; a client that does not read its replies is not read from any more. Nothing here is
//! durable: a crash ends the connections, and what was answered is the device's promise.

mod asked;
mod buffers;
mod commits;
mod connection;
mod dialect;
mod error;
mod input;
mod later;
mod listener;
mod output;
mod peer;
mod session;
mod socket;
mod spin;
mod stats;
mod stopped;
mod tls;

pub use buffers::trim as trim_buffers;
pub use connection::{Closed, Tuning, serve};
pub use dialect::{Command, Dialect, Failed, Refusal, Request};
pub use error::{Result, ServeError, socket};
pub use listener::{Greeter, Listener, Slot, Slots, raise_open_file_limit};
pub use peer::{Client, Peer};
pub use socket::{Accepted, Endpoint, Local, Socket, remove_stale};
pub use stats::{Counts, Operation, Stats};
pub use stopped::stopped;
pub use tls::{Carrier, ClientTls, ClientTlsFiles, ServerTls, TlsFault, TlsFiles};
