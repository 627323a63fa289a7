// SPDX-License-Identifier: Apache-2.0
//! A world in memory, in which the real code runs and everything can fail.
//!
//! [`SimWorld`] owns virtual time, one seed, and every task. A [`SimEnv`] is one process in it and is the
//! [`Env`](varve_env::Env) that the engine is given. A [`DiskMedium`] and a [`StoreServer`] are what outlives a process: the
//! platters and the objects. A process opens them as [`SimDisk`] and [`SimStore`], the [`Disk`](varve_env::Disk) and
//! [`ObjectStore`](varve_env::ObjectStore) of that process alone; they end with it.
//!
//! Rules that always hold:
//! - One thread, and nothing real: no clock, no file, no hash map order. The same seed and the same calls give the same trace.
//! - Time stands still while a task can run, and jumps to the next event when none can.
//! - Every I/O passes the [`CrashPoints`] of its process. When the process dies at one, that I/O and all later ones never
//!   complete, its tasks are dropped, and handles that anyone still holds do nothing any more.
//! - What a disk shows after a crash is what [`CrashMode`] allows for the writes that no completed sync covered.
//!
//! A test that crashes a scenario everywhere counts up the I/O to die at until the scenario ends alive:
//! [`at_every_io`] is that loop, and `tests/write_ahead_log.rs` shows it at work.

mod cache;
mod coord;
mod core;
mod disk;
mod disk_fault;
mod exec;
mod image;
mod mirror;
mod network;
pub mod node;
pub mod pair;
mod points;
mod process;
mod rng;
mod store;
pub mod swarm;

pub use crate::core::Sleep;
pub use cache::SimCache;
pub use coord::{CoordLine, SimCoord};
pub use disk::{DiskMedium, SimDisk};
pub use disk_fault::{CrashMode, DiskCounts, DiskTiming, WriteFault};
pub use exec::{RunError, SimOptions, SimWorld};
pub use mirror::{SimFar, SimMirrors, SimPeer};
pub use network::Way;
pub use points::{CrashPoints, IoPoint, at_every_io};
pub use process::SimEnv;
pub use rng::Rng;
pub use store::{
    Chaos, InFlight, KindCounts, LogEntry, LogOutcome, SimStore, StoreCounts, StoreFault, StoreOp, StoreServer,
};
