// SPDX-License-Identifier: Apache-2.0
//! Scenes: sequences of single operations that chance would seldom put together, and whose end few runs would see otherwise.
//!
//! They are part of how runs end: no death is planned while one is played.
//!
//! Each leaves a run that goes on like any other, and what it has made or damaged is compared there too.

use super::admin::{Kind, Shared};
use super::batch::Batch;
use super::run::Run;
use super::stamp::BLOCK;
use crate::{Rng, StoreFault, StoreOp};
use std::rc::Rc;
use std::time::Duration;
use varve_format::chunk::RAW_BLOCK;
use varve_format::segment::{Codec, SegmentHeader};
use varve_types::Overrides;

/// Within so much time of its end, in milliseconds, what a window kept is gone.
const GONE_MS: u64 = 60_000;
/// Checks of a volume that follow each other.
const CHECKS: u32 = 6;
/// Snapshots go within so many milliseconds.
const LET_GO_MS: u64 = 300;
/// Requests to the store take up to so many milliseconds while one snapshot goes after the other.
const SLOW_MS: u64 = 40;
/// Segments that one of them has to look at.
const SEGMENTS: u64 = 16;
/// Blocks of a volume of which one in [`LIVING`] lives on.
const SPARSE: u64 = 64;
const LIVING: u64 = 4;
/// Bytes that a pass of scrubbing may read in a second.
const SCRUB_RATE: u64 = 1 << 30;

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
        let snaps = [0, 1, 2, 3, 4, 5, 6, 7].map(|block| {
            // Each sees something that no other does.
            self.write_one(vol, 0, (block + 1) * BLOCK);
            let name = self.fresh_name("s");
            self.do_one(Kind::Snapshot { name }, vol);
            self.vols[vol].line.alive().pop().expect("it was just taken")
        });
        for snap in &snaps[6..] {
            let name = self.fresh_name("v");
            self.do_one(Kind::Clone { snap: Some(Rc::clone(snap)), name }, vol);
        }
        let shown = self.node.volume(&self.vols[vol].name).record().shown;
        self.do_one(Kind::Rollback { snap: Rc::clone(&snaps[5]), shown }, vol);
        // What is shown is looked at first, and for long.
        for block in 0..SEGMENTS {
            self.write_one(vol, block * BLOCK, BLOCK);
            self.drain(vol);
        }
        self.wait_ms(self.window_ms() + GONE_MS);
        let mut batch = Batch::default();
        self.add_admin(Kind::Flatten, vol + 1, Duration::ZERO, &mut batch);
        self.add_admin(Kind::Flatten, vol + 2, Duration::ZERO, &mut batch);
        for snap in &snaps[..2] {
            let delay = Duration::from_millis(rng.below(LET_GO_MS));
            self.add_admin(Kind::Forget { snap: Rc::clone(snap) }, vol, delay, &mut batch);
        }
        // One after the other, until both clones have done.
        for _ in 0..CHECKS {
            self.add_admin(Kind::Check, vol, Duration::ZERO, &mut batch);
        }
        let done = self.run_batch(batch);
        self.alive(|_| done);
        self.let_go_one_by_one(vol, &snaps[2..6], rng);
    }

    /// While what the snapshot before kept is freed of a history, the next one goes.
    fn let_go_one_by_one(&mut self, vol: usize, snaps: &[Shared], rng: &mut Rng) {
        let slow = Duration::from_millis(SLOW_MS);
        self.node.server.set_latency(slow / 2, slow);
        for snap in snaps {
            let mut batch = Batch::default();
            let delay = Duration::from_millis(rng.below(4 * SLOW_MS));
            self.add_admin(Kind::Forget { snap: Rc::clone(snap) }, vol, delay, &mut batch);
            self.add_admin(Kind::Check, vol, Duration::ZERO, &mut batch);
            let done = self.run_batch(batch);
            self.alive(|_| done);
        }
        self.node.server.set_latency(self.plan.latency.0, self.plan.latency.1);
    }

    /// A volume is deleted for good that another was born from, and its manifests are away until its window is over.
    pub(super) fn lose_manifests(&mut self) {
        let name = self.fresh_name("v");
        self.do_one(Kind::Create { name, size: SPARSE * BLOCK, ram: false }, 0);
        let vol = self.vols.len() - 1;
        self.write_one(vol, 0, SPARSE * BLOCK);
        self.checkpoint(vol);
        let name = self.fresh_name("v");
        self.do_one(Kind::Clone { snap: None, name }, vol);
        let part = format!("{}/man/", self.node.volume(&self.vols[vol].name).record().shown);
        self.do_one(Kind::Delete, vol);
        let server = self.node.server.clone();
        let names = server.names().into_iter().filter(|name| name.starts_with(&part));
        let lost: Vec<_> = names.map(|name| (server.object(&name).unwrap_or_default(), name)).collect();
        for (_, name) in &lost {
            self.node.world.note(&format!("gone for a while {name}"));
            server.remove(name);
        }
        self.wait_ms(self.window_ms() + GONE_MS);
        for (bytes, name) in lost {
            server.plant(&name, bytes);
        }
    }

    /// A block that is dead goes bad beside others that live: cleaning takes those, and the damage goes with what it leaves.
    pub(super) fn damage_what_is_dead(&mut self) {
        let name = self.fresh_name("v");
        self.do_one(Kind::Create { name, size: SPARSE * BLOCK, ram: false }, 0);
        let vol = self.vols.len() - 1;
        // What is dead is garbage at once.
        let settings = Overrides { rewind_window_ms: Some(0), ..Overrides::default() };
        self.do_one(Kind::Set { settings, times: 1 }, vol);
        self.write_one(vol, 0, SPARSE * BLOCK);
        self.checkpoint(vol);
        let part = format!("{}/seg/", self.node.volume(&self.vols[vol].name).record().shown);
        let names = self.node.server.names();
        let segments = names.iter().filter(|name| name.starts_with(&part));
        let damaged: Vec<String> = segments.filter(|name| self.spoil_dead(name)).cloned().collect();
        self.scrub_finds(&damaged);
        (0..SPARSE)
            .filter(|block| !block.is_multiple_of(LIVING))
            .for_each(|block| self.discard(vol, block * BLOCK, BLOCK));
        self.drain(vol);
        self.checkpoint(vol);
        self.wait_ms(GONE_MS);
        if let Some(name) = damaged.iter().find(|name| self.node.server.object(name).is_some()) {
            self.fail(&format!("{name} is a quarter full, and damaged where it is dead, and is there still"));
        }
    }

    /// A pass of scrubbing finds these objects, and no others.
    fn scrub_finds(&mut self, damaged: &[String]) {
        let shard = self.node.shard();
        if shard.counts().scrub.rate == 0 {
            shard.set_scrub_rate(SCRUB_RATE);
        }
        let pass = self.insist("scrub", move || {
            let shard = Rc::clone(&shard);
            async move { shard.scrub().await }
        });
        self.alive(|_| pass);
        let mut found: Vec<String> = self.node.shard().findings().iter().map(|f| f.object.to_string()).collect();
        found.sort();
        if found != damaged {
            self.fail(&format!("scrubbing has found {found:?}, and damaged are {damaged:?}"));
        }
    }

    /// Damages a block of a segment that is soon dead, if its blocks can be told apart; whether it has.
    fn spoil_dead(&self, name: &str) -> bool {
        let bytes = self.node.server.object(name).unwrap_or_default();
        let Ok(header) = SegmentHeader::decode(&bytes) else { return false };
        let places = (header.data_offset()..bytes.len() as u64).step_by(RAW_BLOCK);
        // In front of its data a block has eight bytes of checksum, and where in the volume it belongs.
        let lba = |at: u64| u64::from_le_bytes(bytes[at as usize + 8..][..8].try_into().expect("eight bytes"));
        let dead = (header.codec == Codec::Raw).then(|| places.into_iter().find(|at| !lba(*at).is_multiple_of(LIVING)));
        let Some(at) = dead.flatten() else { return false };
        self.node.world.note(&format!("a bit flips in {name}, where it is soon dead"));
        self.node.server.flip_bit(name, at + 100, 3);
        true
    }
}
