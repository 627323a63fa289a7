// SPDX-License-Identifier: Apache-2.0
//! Scrubbing: what it has found, and how fast it goes.

use super::local::Local;
use crate::api::model::{Finding, Scrub, ScrubPass, SetScrub};
use varve_engine::Limits;

/// How it goes.
pub(super) fn state(local: &Local, limits: &Limits) -> Scrub {
    let counts = local.shard.counts().scrub;
    let finding = |finding: varve_engine::Finding| Finding {
        volume_id: finding.volume,
        volume: finding.name,
        object: finding.object.to_string(),
        message: finding.message,
        found_ms: finding.found_ms,
    };
    Scrub {
        running: counts.running,
        rate_bytes: (counts.rate > 0).then_some(counts.rate),
        interval_ms: limits.scrub_interval_ms,
        pass: (counts.pass_begun_ms > 0).then_some(ScrubPass {
            begun_ms: counts.pass_begun_ms,
            objects: counts.pass_objects,
            read_bytes: counts.pass_bytes,
        }),
        passes: counts.passes,
        ended_ms: (counts.ended_ms > 0).then_some(counts.ended_ms),
        objects: counts.objects,
        read_bytes: counts.bytes,
        findings: local.shard.findings().into_iter().map(finding).collect(),
    }
}

/// Changes it.
pub(super) fn set(local: &Local, limits: &Limits, set: SetScrub) -> Scrub {
    if let Some(rate) = set.rate_bytes {
        local.shard.set_scrub_rate(rate);
    }
    if set.now {
        local.shard.scrub_now();
    }
    state(local, limits)
}
