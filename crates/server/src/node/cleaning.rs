// SPDX-License-Identifier: Apache-2.0
//! Cleaning: how it goes, and how it is held back.

use super::local::Local;
use crate::api::model::{Cleaning, SetCleaning};
use varve_engine::Limits;
use varve_types::BLOCK;

/// How it goes.
pub(super) fn state(local: &Local, limits: &Limits) -> Cleaning {
    let counts = local.shard.counts().clean;
    let (mut live, mut stored) = (0, 0);
    for volume in local.shard.volumes() {
        let table = volume.counts().table;
        live += table.live_blocks;
        stored += table.blocks;
    }
    Cleaning {
        running: counts.running,
        paused: counts.paused,
        rate_bytes: (counts.rate > 0).then_some(counts.rate),
        occupancy_percent: limits.occupancy,
        live_bytes: live * BLOCK,
        dead_bytes: stored.saturating_sub(live) * BLOCK,
        jobs: counts.jobs,
        failed_jobs: counts.failed,
        read_bytes: counts.read_bytes,
        put_bytes: counts.put_bytes,
    }
}

/// Changes it.
pub(super) fn set(local: &Local, limits: &Limits, set: SetCleaning) -> Cleaning {
    if let Some(paused) = set.paused {
        local.shard.pause_cleaning(paused);
    }
    if let Some(rate) = set.rate_bytes {
        local.shard.set_clean_rate(rate);
    }
    state(local, limits)
}
