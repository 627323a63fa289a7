// SPDX-License-Identifier: Apache-2.0
//! Object stores: a server that outlives processes, and a client for each process.
//!
//! [`StoreServer`] holds the objects, the faults to come, the counters and the log; [`SimStore`] is the
//! `ObjectStore` of one process. A request travels half its latency, takes effect at the server, and its answer travels the other half. A
//! put that has been sent takes effect whatever becomes of the process: when its time comes, unless
//! [`StoreServer::settle`] decides otherwise. So a caller can never conclude from a missing answer that nothing happened, or that
//! nothing will. (A delete takes effect only while its sender lives: one that lands late harms nobody, since no name is used twice.)
//!
//! Nothing is ever overwritten: a put that finds its name taken answers `Exists`, one that lands late and finds it taken does
//! nothing.

mod client;
mod fault;
mod record;
mod server;

pub use client::SimStore;
pub use fault::{Chaos, InFlight, StoreFault, StoreOp};
pub use record::{KindCounts, LogEntry, LogOutcome, StoreCounts};
pub use server::StoreServer;

#[cfg(test)]
mod tests;
