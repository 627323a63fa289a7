// SPDX-License-Identifier: Apache-2.0
//! The light client on a compute host: volumes of a cluster as block devices.
//!
//! An [`Edge`] opens [`Volume`]s. Each has a [`session`] with the node that owns it, which outlives connections and owners: while there is no owner requests wait, and
//! when there is one again nothing that was acknowledged is missing. What that takes is decided in [`session`], without I/O; `drive` gives it a clock and
//! connections; `device` shows it as a [`BlockDevice`](varve_block::BlockDevice), which the NBD server serves ([`daemon`]).
//!
//! One thread, no task and no hop between threads on the way of a request. Everything is bounded: see [`session`], [`inbound`] and [`daemon`].

pub mod daemon;
mod device;
mod drive;
mod error;
pub mod inbound;
mod outbound;
pub mod session;
mod stats;
mod tls;
mod transport;
mod volume;
mod waiters;

pub use stats::{Counts, Operation, Stats};
pub use transport::{Sockets, Stream, Transport};
pub use varve_serve::{ClientTls, ClientTlsFiles};
pub use volume::{Edge, Options, Stat, Volume};
