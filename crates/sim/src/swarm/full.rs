// SPDX-License-Identifier: Apache-2.0
//! The journal is written full, and round and round: what happens at its end, when it wraps, and to trims that jump.
//!
//! - A store that is away leaves everything in the journal, until a writer has to wait for room. The oldest layers are tiny then, so the first trims
//!   behind it give back next to nothing.
//! - A layer whose put is refused again and again pins the trim, and all of its volume behind it: once it counts, the trim jumps. What is written after that
//!   lies more than a lap behind the trim before, which is what the older superblock tells.
//! - While the layers of one volume are refused again and again another one goes round: what the first needs is carried, and perhaps the process dies then.
//!
//! Everything is written in the way of the model, one request after the other, and no death is planned meanwhile.

use super::run::Run;
use super::stamp::BLOCK;
use crate::Rng;
use crate::{StoreFault, StoreOp};
use std::time::Duration;
use varve_env::{Env, StoreErrorKind};

/// Bytes of one of the writes that fill a journal, at most.
const LARGE: u64 = 512 << 10;
/// Least size of a volume that is written to.
const LEAST: u64 = 32 << 10;
/// Times that the put of the layer that pins the trim is refused.
const REFUSED: u64 = 12;

impl Run {
    /// A volume to write to, with the bytes of a write at its beginning.
    fn a_volume(&self, rng: &mut Rng) -> Option<(usize, u64)> {
        let fits = |vol: &usize| {
            let vol = &self.vols[*vol];
            !vol.template && vol.line.now.size >= LEAST
        };
        let all: Vec<usize> = (0..self.vols.len()).filter(fits).collect();
        let vol = *all.get(rng.below(all.len().max(1) as u64) as usize)?;
        let len = self.vols[vol].regions[0].1.min(self.vols[vol].line.now.size).min(LARGE);
        Some((vol, len / BLOCK * BLOCK))
    }

    /// The store is away until the journal is full, and a little longer.
    pub(super) fn fill_journal(&mut self, rng: &mut Rng) {
        let (Some((tiny, _)), Some((large, len))) = (self.a_volume(rng), self.a_volume(rng)) else { return };
        self.cover.count("fault: the store is away until the journal is full");
        self.node.server.away_for(Duration::from_millis(20_000 + rng.below(60_000)));
        for block in 0..rng.below(4) {
            self.discard(tiny, block * BLOCK, BLOCK);
            self.seal_some_time(tiny);
        }
        for _ in 0..=self.plan.journal / len {
            self.write_one(large, 0, len);
        }
    }

    /// The newest superblock tells of a trim far ahead of the older one's, and most of what lies between is overwritten.
    pub(super) fn jump_trim(&mut self, rng: &mut Rng) {
        // One volume only: what is old and another's would be carried.
        let Some((large, len)) = self.a_volume(rng) else { return };
        self.set_faults(false);
        // Nothing else pins the trim.
        (0..self.vols.len()).for_each(|vol| self.drain(vol));
        self.refuse_puts(large, REFUSED);
        self.discard(large, 0, BLOCK);
        self.seal_some_time(large);
        for _ in 0..self.plan.journal * 7 / 10 / len {
            self.write_one(large, 0, len);
        }
        self.drain(large);
        self.all_sure(large);
        self.node.server.away_for(Duration::from_secs(3600));
        for _ in 0..self.plan.journal * 6 / 10 / len {
            self.write_one(large, 0, len);
        }
        self.alive(|this| this.flush(large));
        self.all_sure(large);
    }

    /// The next puts of layers of a volume are refused.
    fn refuse_puts(&self, vol: usize, count: u64) {
        let part = format!("{}/seg/", self.node.volume(&self.vols[vol].name).record().shown);
        for _ in 0..count {
            self.node.server.fail(StoreOp::Put, &part, 0, StoreFault::Error(StoreErrorKind::Unavailable));
        }
    }

    /// The layers of a volume are refused, while another volume goes round the journal.
    pub(super) fn go_round_the_stuck(&mut self, rng: &mut Rng) {
        let (Some((stuck, some)), Some((large, len))) = (self.a_volume(rng), self.a_volume(rng)) else { return };
        if stuck == large {
            return;
        }
        self.cover.count("fault: a volume is stuck while another goes round the journal");
        self.refuse_puts(stuck, REFUSED + rng.below(12));
        for _ in 0..1 + rng.below(12) {
            if rng.chance(200) {
                self.discard(stuck, 0, BLOCK);
            } else {
                let (from, blocks) = (rng.below(some / BLOCK), 1 + rng.below(8));
                self.write_one(stuck, from * BLOCK, blocks.min(some / BLOCK - from) * BLOCK);
            }
        }
        if rng.chance(700) {
            self.alive(|this| this.flush(stuck));
            self.vols[stuck].line.flushed(0);
        }
        let (reads, dies) = (self.node.disk.counts().reads, rng.chance(600));
        for _ in 0..self.plan.journal * (4 + rng.below(14)) / 10 / len {
            self.write_one(large, 0, len);
            if rng.chance(60) {
                self.write_one(stuck, rng.below(some / BLOCK) * BLOCK, BLOCK);
                self.alive(|this| this.flush(stuck));
                self.vols[stuck].line.flushed(0);
            }
            // Nothing else reads the journal now but what is carried.
            if dies && self.node.disk.counts().reads > reads && rng.chance(500) {
                self.cover.count("death: while records are carried");
                // At once, or behind the sync of the copies.
                let a_little = Duration::from_micros(if rng.chance(500) { 0 } else { rng.below(1000) });
                self.node.world.run_for(a_little).expect("the world runs");
                self.crash(rng);
                return;
            }
        }
    }

    /// All that was written to a volume is there, whatever happens.
    fn all_sure(&mut self, vol: usize) {
        let line = &mut self.vols[vol].line;
        line.make_sure(line.batches());
    }

    /// Lets the journal go round more than twice: what a superblock of long ago tells is then far from the truth.
    pub(super) fn go_round(&mut self, rng: &mut Rng) {
        let Some((vol, len)) = self.a_volume(rng) else { return };
        // Where the journal has failed nothing goes to it any more.
        for _ in 0..self.plan.journal * 5 / 2 / len {
            self.write_one(vol, 0, len);
            self.alive(|this| this.flush(vol));
            self.vols[vol].line.flushed(0);
        }
    }

    /// Has the open layer sealed, and does not wait for its put.
    fn seal_some_time(&self, vol: usize) {
        let open = self.node.volume(&self.vols[vol].name);
        self.node.env.spawn(Box::pin(async move {
            // Whatever comes of it: what is put is compared anyhow.
            drop(open.seal().await);
        }));
    }
}
