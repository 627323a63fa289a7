// SPDX-License-Identifier: Apache-2.0
//! Scenes: sequences of single operations that chance would seldom put together, and whose end few runs would see otherwise.
//!
//! They are part of how runs end: no death is planned while one is played.

use super::admin::Kind;
use super::batch::Batch;
use super::run::Run;
use super::stamp::BLOCK;
use crate::{Rng, StoreFault, StoreOp};
use std::rc::Rc;
use std::time::Duration;

/// Within so much time of its end, in milliseconds, what a window kept is gone.
const GONE_MS: u64 = 60_000;
/// Checks of a volume that follow each other.
const CHECKS: u32 = 6;
/// Snapshots go within so many milliseconds.
const LET_GO_MS: u64 = 300;
/// Segments that one of them has to look at.
const SEGMENTS: u64 = 16;

impl Run {
    /// Rolls a volume back to its newest snapshot, deletes all of them, and lets the window end: only what the volume shows still needs what was before.
    pub(super) fn roll_back_for_good(&mut self, vol: usize) {
        let Some(newest) = self.vols[vol].line.alive().pop() else { return };
        let shown = self.node.volume(&self.vols[vol].name).record().shown;
        self.do_one(Kind::Rollback { snap: newest, shown }, vol);
        for snap in self.vols[vol].line.alive() {
            self.do_one(Kind::Forget { snap }, vol);
        }
        self.wait_ms(self.window_ms() + GONE_MS / 2);
    }

    /// The last volume is deleted for good, and a manifest of it lands after that.
    pub(super) fn leave_a_manifest(&mut self) {
        let Some(vol) = (self.vols.len() > 1).then(|| self.vols.len() - 1) else { return };
        let part = format!("{}/man/", self.node.volume(&self.vols[vol].name).record().shown);
        let end_ms = self.window_ms() + GONE_MS;
        let late = StoreFault::Late(Duration::from_millis(end_ms + GONE_MS / 2));
        self.node.server.fail(StoreOp::Put, &part, 0, late);
        self.checkpoint(vol);
        self.do_one(Kind::Delete, vol);
        self.wait_ms(end_ms + GONE_MS);
    }

    /// Two clones let go of a history that a rollback has hidden, and snapshots of it go, while all of it is looked at.
    pub(super) fn let_go_beside_checks(&mut self, rng: &mut Rng) {
        let name = self.fresh_name("v");
        self.do_one(Kind::Create { name, size: 64 * BLOCK, ram: false }, 0);
        let vol = self.vols.len() - 1;
        let snaps = [0, 1, 2, 3, 4, 5].map(|block| {
            self.write_one(vol, block * BLOCK, BLOCK);
            let name = self.fresh_name("s");
            self.do_one(Kind::Snapshot { name }, vol);
            self.vols[vol].line.alive().pop().expect("it was just taken")
        });
        for snap in &snaps[4..] {
            let name = self.fresh_name("v");
            self.do_one(Kind::Clone { snap: Some(Rc::clone(snap)), name }, vol);
        }
        let shown = self.node.volume(&self.vols[vol].name).record().shown;
        self.do_one(Kind::Rollback { snap: Rc::clone(&snaps[3]), shown }, vol);
        // What is shown is looked at first, and for long.
        for block in 0..SEGMENTS {
            self.write_one(vol, block * BLOCK, BLOCK);
            self.drain(vol);
        }
        self.wait_ms(self.window_ms() + GONE_MS);
        let mut batch = Batch::default();
        self.add_admin(Kind::Flatten, vol + 1, Duration::ZERO, &mut batch);
        self.add_admin(Kind::Flatten, vol + 2, Duration::ZERO, &mut batch);
        for snap in &snaps[..3] {
            let delay = Duration::from_millis(rng.below(LET_GO_MS));
            self.add_admin(Kind::Forget { snap: Rc::clone(snap) }, vol, delay, &mut batch);
        }
        // One after the other, until both clones have done.
        for _ in 0..CHECKS {
            self.add_admin(Kind::Check, vol, Duration::ZERO, &mut batch);
        }
        let done = self.run_batch(batch);
        self.alive(|_| done);
    }
}
