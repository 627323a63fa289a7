// SPDX-License-Identifier: Apache-2.0
//! The light client on a compute host: volumes of a cluster as block devices.
//!
//! An [`Edge`] opens [`Volume`]s. Each has a [`session`] with the node that owns it, which outlives connections and owners: while there is no owner requests wait, and
//! when there is one again nothing that was acknowledged is missing. What that takes is decided in [`session`], without I/O; `drive` gives it a clock and
//! connections; `device` shows it as a [`BlockDevice`](varve_block::BlockDevice), which the NBD server serves ([`daemon`]).
//!
//! Without the feature `sockets` there is the session alone: that is what the simulator drives.
//!
//! One thread, no task and no hop between threads on the way of a request. Everything is bounded: see [`session`], [`inbound`] and [`daemon`].

#[cfg(feature = "sockets")]
pub mod daemon;
#[cfg(feature = "sockets")]
mod device;
#[cfg(feature = "sockets")]
mod drive;
#[cfg(feature = "sockets")]
mod error;
#[cfg(feature = "sockets")]
pub mod inbound;
#[cfg(feature = "sockets")]
mod outbound;
pub mod session;
#[cfg(feature = "sockets")]
mod stats;
#[cfg(feature = "sockets")]
mod tls;
#[cfg(feature = "sockets")]
mod transport;
#[cfg(feature = "sockets")]
mod volume;
#[cfg(feature = "sockets")]
mod waiters;

#[cfg(feature = "sockets")]
pub use stats::{Counts, Operation, Stats};
#[cfg(feature = "sockets")]
pub use transport::{Sockets, Stream, Transport};
#[cfg(feature = "sockets")]
pub use varve_serve::{ClientTls, ClientTlsFiles};
#[cfg(feature = "sockets")]
pub use volume::{Edge, Options, Stat, Volume};
