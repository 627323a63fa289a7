// SPDX-License-Identifier: Apache-2.0
//! What a store tells a test of the requests that it met: a log of them, and counts by kind.
//!
//! Both speak of what happened at the server, whatever the callers were told. A kind of object is a part of its name, as in
//! `timeline/KIND/number`: so a test can say "one get reads a block", or "the map's bytes are a tenth of the data's".

use super::fault::StoreOp;
use std::collections::BTreeMap;
use std::time::Duration;
use varve_env::StoreErrorKind;

/// How a request, or a put that landed by itself, ended at the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogOutcome {
    /// A put created the object.
    Created,
    /// A put found the name taken.
    Exists,
    /// It was done.
    Done,
    /// It was refused, or found nothing, without effect.
    Failed(StoreErrorKind),
}

/// A line of the log of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Virtual time.
    pub at: Duration,
    /// Number of the process that sent it.
    pub process: u32,
    /// What.
    pub op: StoreOp,
    /// On what: a name or a prefix.
    pub name: String,
    /// Bytes put or read; names listed.
    pub amount: u64,
    /// How it ended at the server, whatever the caller was told.
    pub outcome: LogOutcome,
}

/// What was done to the objects of one kind: the part of the name before the last `/`, after the one before that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KindCounts {
    /// Objects created.
    pub created: u64,
    /// Bytes in them.
    pub created_bytes: u64,
    /// Reads.
    pub gets: u64,
    /// Bytes read.
    pub got_bytes: u64,
    /// Objects deleted.
    pub deleted: u64,
}

/// What was done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreCounts {
    /// Requests sent, by kind of request, refused ones too.
    pub requests: BTreeMap<StoreOp, u64>,
    /// By kind of object.
    pub kinds: BTreeMap<String, KindCounts>,
}
