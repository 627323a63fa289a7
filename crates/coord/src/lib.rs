// SPDX-License-Identifier: Apache-2.0
//! Coordination: the small facts that make a cluster of nodes one system, changed by compare-and-swap.
//!
//! [`Coord`] is what the rest of Varve sees: get, list, transact, watch, lease. [`Embedded`] keeps them in one redb file for one node, [`Memory`]
//! in RAM for tests and the simulator; the crate `varve-etcd` keeps them in etcd for a cluster. [`Records`] are the facts themselves, typed: the cluster, its pools, its volumes
//! with their timelines and accepted manifests.
//!
//! It stands beside the write path, never in it: a volume asks coordination when it is opened, when a checkpoint is accepted and when something
//! about it is changed, and goes on while coordination is away. What was answered is durable; what was not may or may not have happened
//! ([`CoordError::Unknown`]).

mod api;
mod embedded;
mod error;
mod memory;
mod node;
mod record;
mod records;
mod shared;
mod state;

pub use api::{
    Change, Check, Coord, DEFAULT_PREFIX, Entry, Event, LEASE_TTL, LeaseId, Listing, MAX_KEY_BYTES, MAX_OPERATIONS,
    MAX_TRANSACTION_BYTES, MAX_VALUE_BYTES, Outcome, Watch, check_key, check_prefix, check_transaction, check_ttl,
};
pub use embedded::Embedded;
pub use error::{Cause, CoordError, Result};
pub use memory::{Fault, Memory};
pub use node::{AliveRecord, EdgeToken, MAX_ADDRESSES, NodeName, NodeRecord, NodeToken};
pub use record::{
    ClusterRecord, Deleted, EpochEnd, HolderRecord, MAX_ENDS, ManifestRef, MirrorRecord, NameRecord, PoolRecord,
    Record, ScrubFinding, ScrubPass, ScrubRecord, TimelineOwner, TimelineRecord, TimelineState, VolumeRecord,
};
pub use records::Records;
