// SPDX-License-Identifier: Apache-2.0
//! Mirrors over a network: the engine's [`MirrorPeer`](varve_engine::MirrorPeer) as a connection to another node, and the other end of it.
//!
//! | file | holds |
//! |---|---|
//! | `dial`, `greeter` | how a node begins to talk to another, and how that hears it |
//! | `far` | the end that keeps copies: does what frames ask |
//! | `peer` | the owner's end: one connection to a node, for all volumes |
//! | `frames` | frames cut out of a stream |
//! | `members` | which nodes there are, and which of them is to be a volume's mirror |
//!
//! Everything but the greeting runs on the shard's thread: the owner's journal and the copies are there. Invariants: requests of a connection are done in their
//! order; a connection that breaks answers all that was asked with an error, and is never used again.

mod dial;
mod far;
mod frames;
mod greeter;
mod members;
mod peer;

pub(crate) use dial::Dialer;
pub(crate) use far::{Links, serve};
pub(crate) use greeter::{Accepted, MirrorGreeter};
pub(crate) use members::{Member, Members};
