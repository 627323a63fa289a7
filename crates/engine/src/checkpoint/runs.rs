// SPDX-License-Identifier: Apache-2.0
//! Runs of kills, as they stand in a table object: sorted, encoded, each read and written whole.

use varve_format::manifest::{NodeRunRef, NodeWait, RunRef};
use varve_format::page::PageBuilder;
use varve_format::table::{Kill, NodeKill, encode_kills, encode_node_kills};
use varve_types::{Ordinal, RootNumber};

/// Kills of a run.
pub(super) const RUN_KILLS: usize = 1 << 20;

/// A run of block kills.
pub(crate) struct KillRun {
    bytes: Vec<u8>,
    first_birth: Ordinal,
    last_death: Ordinal,
    count: u64,
    window: bool,
}

/// Runs of sorted kills; those with `window` wait for the rewind window alone. Encoding a full one takes tens of milliseconds: no work for a shard.
pub(crate) fn kill_runs(kills: &[Kill], window: bool) -> Vec<KillRun> {
    let run = |kills: &[Kill]| KillRun {
        bytes: encode_kills(kills),
        first_birth: kills.first().map_or(Ordinal(0), |kill| kill.ordinal),
        last_death: kills.iter().map(|kill| kill.death).max().unwrap_or_default(),
        count: kills.len() as u64,
        window,
    };
    kills.chunks(RUN_KILLS).map(run).collect()
}

impl KillRun {
    /// Adds it to table object `object`; gives how a manifest names it.
    pub(crate) fn push(&self, object: u64, builder: &mut PageBuilder) -> RunRef {
        let Self { first_birth, last_death, count, window, .. } = *self;
        RunRef { object, index: builder.push(&self.bytes), first_birth, last_death, count, window }
    }
}

/// A run of node kills.
pub(crate) struct NodeKillRun {
    bytes: Vec<u8>,
    waits: NodeWait,
    count: u64,
}

/// Runs of sorted node kills, and what they wait for: of those that wait for the window each says when its last died.
pub(crate) fn node_kill_runs(kills: &[NodeKill], waits: NodeWait) -> Vec<NodeKillRun> {
    let run = |kills: &[NodeKill]| {
        let last_death: RootNumber = kills.iter().map(|kill| kill.death).max().unwrap_or_default();
        let waits = if matches!(waits, NodeWait::Window { .. }) { NodeWait::Window { last_death } } else { waits };
        NodeKillRun { bytes: encode_node_kills(kills), waits, count: kills.len() as u64 }
    };
    kills.chunks(RUN_KILLS).map(run).collect()
}

impl NodeKillRun {
    /// Adds it to table object `object`; gives how a manifest names it.
    pub(crate) fn push(&self, object: u64, builder: &mut PageBuilder) -> NodeRunRef {
        NodeRunRef { object, index: builder.push(&self.bytes), count: self.count, waits: self.waits }
    }
}
