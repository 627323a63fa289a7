// SPDX-License-Identifier: Apache-2.0
//! What a seed is about: which operations and faults it has, how often, and in what bounds the engine runs.
//!
//! Each seed turns a random part of the operations and faults off and others up (swarm testing): a run that does everything a little reaches fewer states
//! than many that do a few things much. Source: Groce et al., "Swarm Testing", 2012.
//!
//! Writes are never turned off. Bounds are small (layers of some 100 KiB, overlays of some 100 entries), so that what a node meets once a day happens
//! many times in a run.

use crate::{Chaos, Rng};
use std::time::Duration;
use varve_engine::Limits;
use varve_types::{Compression, Overrides};

/// A kind of step, as the weights name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Op {
    Write,
    Burst,
    Partials,
    Zero,
    ZeroAll,
    Read,
    Flush,
    Status,
    Snapshot,
    Forget,
    Clone,
    Rewind,
    Rollback,
    Undo,
    Create,
    Delete,
    Undelete,
    Resize,
    Template,
    Rename,
    Set,
    Flatten,
    Seal,
    Checkpoint,
    View,
    Show,
    Check,
    Wait,
    WaitLong,
}

/// Every kind with its usual weight.
const WEIGHTS: [(Op, u32); 29] = [
    (Op::Write, 400),
    (Op::Burst, 30),
    (Op::Partials, 40),
    (Op::Zero, 60),
    (Op::ZeroAll, 4),
    (Op::Read, 160),
    (Op::Flush, 60),
    (Op::Status, 20),
    (Op::Snapshot, 30),
    (Op::Forget, 24),
    (Op::Clone, 10),
    (Op::Rewind, 12),
    (Op::Rollback, 16),
    (Op::Undo, 10),
    (Op::Create, 3),
    (Op::Delete, 6),
    (Op::Undelete, 6),
    (Op::Resize, 8),
    (Op::Template, 1),
    (Op::Rename, 4),
    (Op::Set, 6),
    (Op::Flatten, 8),
    (Op::Seal, 16),
    (Op::Checkpoint, 16),
    (Op::View, 8),
    (Op::Show, 6),
    (Op::Check, 1),
    (Op::Wait, 16),
    (Op::WaitLong, 1),
];

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Every window ends, and everything is compared once more.
    Windows,
    /// Everything is deleted, and nothing may stay in the store.
    Empty,
    /// Bytes go bad behind everyone's back: wrong ones are never served.
    Spoil,
    /// The journal's disk loses a write, puts it elsewhere, or a record goes bad: what was lost is noticed.
    Rot,
    /// A second node takes over while the first sleeps, which then wakes.
    TakeOver,
    /// Another cluster imports the pool while this one runs.
    Import,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) weights: Vec<(Op, u32)>,
    /// Requests that are under way together, at most.
    pub(super) width: u64,
    pub(super) chaos: Chaos,
    pub(super) latency: (Duration, Duration),
    pub(super) list_lag: Duration,
    /// Of a thousand batches, those inside which the process dies.
    pub(super) dies_inside: u32,
    /// Of a thousand batches, those behind which it dies.
    pub(super) dies: u32,
    /// Of a thousand crashes, those with another death while the next process starts.
    pub(super) dies_again: u32,
    /// Whether only processes die, and never the power.
    pub(super) kills_only: bool,
    /// Of a thousand batches, those before which the store goes away, is away until the journal is full, reads badly, is full, the journal's disk fails,
    /// the clock jumps.
    pub(super) away: u32,
    pub(super) fill: u32,
    /// And those before which one volume is stuck while another goes round the journal.
    pub(super) round: u32,
    pub(super) bad_reads: u32,
    pub(super) full: u32,
    pub(super) disk: u32,
    pub(super) jump: u32,
    pub(super) coordination: u32,
    /// How far away coordination is.
    pub(super) coord_latency: Duration,
    /// Of a thousand starts, those during which the store errs, and those right after which it takes nothing.
    pub(super) errs_at_start: u32,
    pub(super) full_at_start: u32,
    pub(super) limits: Limits,
    pub(super) pool: Overrides,
    pub(super) journal: u64,
    /// Regions of a cache device; 0: there is none.
    pub(super) cache: u64,
    /// Whether somebody cleans beside the node.
    pub(super) workers: bool,
    pub(super) ending: Ending,
}

/// Zero in `off` of a thousand seeds, else about `usual`.
fn sometimes(rng: &mut Rng, off: u32, usual: u32) -> u32 {
    if rng.chance(off) { 0 } else { 1 + rng.below(u64::from(usual) * 2) as u32 }
}

impl Plan {
    pub(super) fn new(rng: &mut Rng) -> Self {
        let weights = WEIGHTS.iter().filter_map(|(op, usual)| {
            let factor = if matches!(op, Op::Write) { 4 } else { [0, 2, 4, 4, 16][rng.below(5) as usize] };
            (factor > 0).then_some((*op, usual * factor))
        });
        let weights = weights.collect();
        let rate = |rng: &mut Rng| sometimes(rng, 500, 15);
        let chaos = Chaos {
            error_per_mille: rate(rng),
            lost_answer_per_mille: rate(rng),
            late_put_per_mille: rate(rng),
            late_by: Duration::from_secs(20),
            crossed_per_mille: 0,
            wrong_per_mille: sometimes(rng, 600, 6),
        };
        let slow = rng.chance(200);
        let most = if slow { 400 } else { 5 };
        let mut plan = Self {
            weights,
            width: 1 + rng.below(8),
            chaos,
            latency: (Duration::from_millis(1), Duration::from_millis(most)),
            list_lag: if rng.chance(300) { Duration::from_secs(5) } else { Duration::ZERO },
            dies_inside: sometimes(rng, 100, 3),
            dies: sometimes(rng, 100, 2),
            dies_again: sometimes(rng, 300, 200),
            kills_only: rng.chance(200),
            away: sometimes(rng, 600, 5),
            fill: sometimes(rng, 850, 1),
            round: sometimes(rng, 700, 2),
            bad_reads: sometimes(rng, 600, 5),
            full: sometimes(rng, 700, 4),
            disk: sometimes(rng, 550, 2),
            jump: sometimes(rng, 700, 4),
            coordination: sometimes(rng, 500, 8),
            coord_latency: if rng.chance(500) { Duration::from_millis(rng.below(40)) } else { Duration::ZERO },
            errs_at_start: sometimes(rng, 500, 150),
            full_at_start: sometimes(rng, 500, 200),
            limits: limits(rng),
            pool: Overrides {
                segment_size: Some((16 << 10) << rng.below(5)),
                seal_age_ms: rng.chance(300).then(|| 1000 + rng.below(20_000)),
                compression: match rng.below(8) {
                    0 => Some(Compression::Zstd),
                    1..=3 => Some(Compression::None),
                    _ => None,
                },
                undelete_window_ms: Some(120_000 << rng.below(3)),
                rewind_window_ms: Some(if rng.chance(400) { 0 } else { 500 << rng.below(10) }),
                rewind_space: rng.chance(600).then(|| 1 + rng.below(100)),
                ..Overrides::default()
            },
            journal: (12 << 20) + rng.below(4) * (2 << 20),
            workers: rng.chance(450),
            cache: if rng.chance(350) { 4 + rng.below(20) } else { 0 },
            ending: match rng.below(100) {
                0..33 => Ending::Windows,
                33..44 => Ending::Empty,
                44..57 => Ending::Spoil,
                57..68 => Ending::Rot,
                68..79 => Ending::TakeOver,
                _ => Ending::Import,
            },
        };
        if plan.ending == Ending::Import && rng.chance(850) {
            // What an import takes of older manifests is hard to get wrong where the past is kept for other reasons.
            plan.pool.rewind_window_ms = Some(0);
        }
        plan
    }

    /// A kind of step, by the weights.
    pub(super) fn pick(&self, rng: &mut Rng) -> Op {
        let total: u64 = self.weights.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut at = rng.below(total);
        for (op, weight) in &self.weights {
            if at < u64::from(*weight) {
                return *op;
            }
            at -= u64::from(*weight);
        }
        Op::Write
    }
}

/// Small bounds, so that everything that happens seldom happens often.
fn limits(rng: &mut Rng) -> Limits {
    Limits {
        layer_ram: (128 << 10) << rng.below(5),
        layer_runs: 4 << rng.below(8),
        cache_ram: (64 << 10) << rng.below(5),
        map_ram: (4 << 10) << rng.below(9),
        map_dirty: 1 + rng.below(16) as usize,
        map_object: 1 << rng.below(14),
        ssd_frames: 8,
        overlay_entries: 16 + rng.below(400) as usize,
        delete_grace_ms: 10,
        puts: 1 + rng.below(4) as usize,
        reclaim_level: rng.below(3) as u8,
        rewind_runs: 2 + rng.below(8) as usize,
        ask_kills: 1 << rng.below(10),
        reclaim_nodes: 1 + rng.below(7) as usize,
        occupancy: if rng.chance(500) { 0 } else { 40 + rng.below(50) },
        clean_rate: if rng.chance(200) { 64 << 10 } else { 0 },
        lease_ms: 500 << rng.below(5),
        scrub_rate: if rng.chance(150) { (64 << 10) << rng.below(8) } else { 0 },
        scrub_interval_ms: rng.below(60_000),
        end_objects: 1 + rng.below(32) as usize,
    }
}
