// SPDX-License-Identifier: Apache-2.0
//! What is told of a volume, as JSON has it: on the control socket, and by the command with `--json`.
//!
//! Times are durations in milliseconds, or in microseconds where the name says so, since the clocks of whoever reads them need not agree with this one's. The latency of
//! an operation is that of [`Histogram`], from when a front end asked until the owner's answer was there: what is between the guest and the front end is not in it. A share
//! (`p50`) is the bound of a bucket, and so at most half too large.

use crate::session::Standing;
use crate::stats::{Counts, Operation};
use crate::volume::{Stat, Volume};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;
use varve_types::{BUCKETS, Histogram};

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeDocument {
    /// Its name, and that of its export.
    pub volume: String,
    /// `attaching`, `connected`, `looking`, `failed` or `detached`.
    pub state: String,
    /// The node that owns it, where there is one.
    pub node: Option<String>,
    /// How long it has been in that state, in milliseconds.
    pub for_ms: u64,
    /// Why there is no owner, or why it has failed.
    pub trouble: Option<String>,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Whether changes are refused.
    pub read_only: bool,
    /// NBD clients.
    pub clients: u64,
    /// Where NBD clients find it.
    pub nbd_uri: String,
}

/// What a volume has done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatsDocument {
    /// The volume.
    #[serde(flatten)]
    pub volume: VolumeDocument,
    /// How often there was an owner again after there was none.
    pub reconnects: u64,
    /// The longest that there was none, in milliseconds.
    pub longest_stall_ms: u64,
    /// Bytes of changes that were acknowledged and are not safe yet.
    pub kept_bytes: u64,
    /// By operation.
    pub operations: BTreeMap<String, OperationDocument>,
}

/// Requests of one sort.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationDocument {
    /// How many were answered.
    pub requests: u64,
    /// How many of them with an error.
    pub errors: u64,
    /// Bytes that they were about.
    pub bytes: u64,
    /// The mean of how long they took, in microseconds.
    pub mean_us: u64,
    /// Half of them took at most so long, in microseconds; a bound of the histogram.
    pub p50_us: u64,
    /// The same of 99 in 100.
    pub p99_us: u64,
    /// How many took at most so long: pairs of a bound in microseconds (none for the last) and a count; those that are not 0.
    pub latency: Vec<(Option<u64>, u64)>,
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The document of a volume that is attached.
#[must_use]
pub fn volume(volume: &Volume, stat: &Stat, clients: u64, nbd_uri: String) -> VolumeDocument {
    let (state, node, since) = match &stat.standing {
        Standing::Connected(node, since) => ("connected", Some(node.clone()), *since),
        Standing::Looking(since) => ("looking", None, *since),
        Standing::Failed(since) => ("failed", None, *since),
        Standing::Detached(since) => ("detached", None, *since),
    };
    let trouble = match &stat.failure {
        Some(error) => Some(error.to_string()),
        None => (!stat.trouble.is_empty()).then(|| stat.trouble.clone()),
    };
    VolumeDocument {
        volume: volume.name().to_owned(),
        state: state.to_owned(),
        node,
        for_ms: ms(stat.now.saturating_sub(since)),
        trouble,
        size_bytes: stat.size,
        read_only: stat.read_only,
        clients,
        nbd_uri,
    }
}

/// What it has done, with it.
#[must_use]
pub fn stats(volume: VolumeDocument, stat: &Stat) -> StatsDocument {
    let operations = Operation::ALL.iter().map(|one| (one.name().to_owned(), operation(stat.stats.of(*one))));
    StatsDocument {
        volume,
        reconnects: stat.stalls.reconnects,
        longest_stall_ms: ms(stat.stalls.longest),
        kept_bytes: stat.kept_bytes,
        operations: operations.collect(),
    }
}

fn operation(counts: &Counts) -> OperationDocument {
    let latency = &counts.latency;
    let mean = latency.sum().as_micros() / u128::from(latency.count().max(1));
    let row = latency.counts().iter().enumerate().filter(|(_, count)| **count > 0);
    OperationDocument {
        requests: counts.requests,
        errors: counts.errors,
        bytes: counts.bytes,
        mean_us: u64::try_from(mean).unwrap_or(u64::MAX),
        p50_us: share(latency, 50),
        p99_us: share(latency, 99),
        latency: row.map(|(bucket, count)| (Histogram::bound_us(bucket), *count)).collect(),
    }
}

/// The bound below which so many of a hundred lie.
fn share(latency: &Histogram, of_hundred: u64) -> u64 {
    let mut left = (latency.count() * of_hundred).div_ceil(100);
    for (bucket, count) in latency.counts().iter().enumerate() {
        left = left.saturating_sub(*count);
        if left == 0 && latency.count() > 0 {
            return Histogram::bound_us(bucket).or_else(|| Histogram::bound_us(BUCKETS - 2)).unwrap_or(u64::MAX);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_bounds_of_buckets() {
        let mut latency = Histogram::default();
        assert_eq!(share(&latency, 50), 0);
        (0..99).for_each(|_| latency.add(Duration::from_micros(10)));
        latency.add(Duration::from_secs(60));
        assert_eq!((share(&latency, 50), share(&latency, 99), share(&latency, 100)), (12, 12, 12_582_912));
    }
}
