// SPDX-License-Identifier: Apache-2.0
//! Runs that end with somebody else: a second node of the cluster, or another cluster that imports the pool.
//!
//! The first node has put everything, has worked on, and falls asleep with requests under way; it then wakes, during or after the change. What was in
//! the store is there. What was only in the first one's journal may be cut off at one point. Nothing that the first one does afterwards is ever seen.
//! Before an import it may die once more and start again, so that what only its journal has stands in a manifest as a promise; and the import may find a
//! listing that lags, or the newest manifest of a volume damaged.

use super::RunOptions;
use super::admin::Kind;
use super::disk::Change;
use super::line::Made;
use super::plan::Op;
use super::run::{REGION, Run, cluster, known, write};
use super::stamp::{BLOCK, bytes_of};
use crate::node::Node;
use crate::{CrashMode, InFlight, Rng, StoreFault, StoreOp};
use std::rc::Rc;
use std::sync::Arc;
use varve_engine::{BlockDevice, Device, ImportFailure, Imported, PoolImport, import_pool};
use varve_env::{Env, StoreErrorKind};
use varve_format::{ObjectKind, ObjectName};
use varve_types::ErrorKind;

/// After so long a history is swept once more, in milliseconds.
const SWEPT_AGAIN_MS: u64 = 700_000;
/// A volume that is touched so often is never quiet, in milliseconds.
const TOUCHED_EVERY_MS: u64 = 5000;

impl Run {
    /// From now on only what is in the store by now counts as sure, and nothing but data is worked on. Gives the weights of before.
    pub(super) fn begin_losing(&mut self) -> Vec<(Op, u32)> {
        for vol in 0..self.vols.len() {
            self.drain(vol);
            self.vols[vol].line.frozen_base = true;
        }
        let data = vec![
            (Op::Write, 50),
            (Op::Burst, 5),
            (Op::Partials, 5),
            (Op::Zero, 10),
            (Op::Read, 10),
            (Op::Flush, 10),
            (Op::Wait, 5),
        ];
        std::mem::replace(&mut self.plan.weights, data)
    }

    /// Up to so many batches that no death cuts off.
    fn batches(&mut self, most: u64, rng: &mut Rng) {
        for _ in 0..rng.below(most) {
            let done = self.batch(rng);
            self.alive(|_| done);
        }
    }

    /// Puts everything, then writes what may be lost with this node.
    fn write_what_may_be_lost(&mut self, rng: &mut Rng) {
        let usual = self.begin_losing();
        self.batches(30, rng);
        self.plan.weights = usual;
    }

    /// The process dies and starts again, and what was in the journal only comes back; no segment of it can be put for a while.
    fn die_with_unput(&mut self, rng: &mut Rng) {
        self.cover.count("death: with changes that only the journal has, which stay there");
        for vol in 0..self.vols.len() {
            self.write_and_flush(vol, rng);
        }
        for _ in 0..32 {
            self.node.server.fail(StoreOp::Put, "/seg/", 0, StoreFault::Error(StoreErrorKind::Unavailable));
        }
        self.views.clear();
        self.devices.clear();
        self.crashes += 1;
        self.node.crash(CrashMode::Kill, InFlight::Landed);
        self.node.reopen();
        self.compare_all();
    }

    /// The old node falls asleep with requests under way. Gives its devices.
    fn fall_asleep(&mut self, rng: &mut Rng) -> Vec<Rc<Device>> {
        self.views.clear();
        for vol in 0..self.vols.len() {
            let (name, size) = (self.vols[vol].name.clone(), self.vols[vol].line.now.size);
            let (offset, len) = (rng.below(REGION / BLOCK) * BLOCK, BLOCK);
            if self.vols[vol].template || offset + len > size {
                continue;
            }
            self.stamps += 1;
            let stamp = self.stamps;
            let device = self.alive(|this| this.device(&name));
            let change = Change::Write { offset, len, stamp };
            self.vols[vol].line.add(vec![Made { change, answered: false, stable: false }]);
            self.node.env.spawn(Box::pin(async move {
                // Whether it was answered nobody hears any more.
                let _ = write(device, offset, bytes_of(stamp, offset, len).into(), true).await;
            }));
        }
        self.wait_ms(rng.below(40));
        self.node.world.pause(&self.node.env);
        std::mem::take(&mut self.devices).into_values().collect()
    }

    /// Writes to volumes that others own by now: nothing of them is ever seen.
    fn keep_writing(&self, devices: &[Rc<Device>], rng: &mut Rng) {
        for device in devices.iter().filter(|device| !device.read_only()) {
            let (device, at) = (Rc::clone(device), rng.below(REGION / BLOCK) * BLOCK);
            if at + BLOCK > device.size() {
                continue;
            }
            self.node.env.spawn(Box::pin(async move {
                // It may be refused, or answered: this node does not know that its time is over.
                let _ = write(device, at, vec![0xA5; BLOCK as usize].into(), true).await;
            }));
        }
    }

    /// Goes on with another node while the old one wakes.
    fn go_on_with(&mut self, node: Node, devices: Vec<Rc<Device>>, rng: &mut Rng, options: &RunOptions) {
        let old = std::mem::replace(&mut self.node, node);
        for vol in &mut self.vols {
            vol.ram = true;
        }
        self.recover(true);
        for vol in &mut self.vols {
            vol.line.frozen_base = false;
        }
        self.more_steps(rng.below(30), options);
        old.world.resume(&old.env);
        self.cover.count("fault: the node that lost its volumes wakes");
        let new = std::mem::replace(&mut self.node, old);
        self.keep_writing(&devices, rng);
        let old = std::mem::replace(&mut self.node, new);
        self.set_faults(true);
        (self.plan.dies, self.plan.dies_inside) = (5, 5);
        self.more_steps(60, options);
        drop(devices);
        self.old_nodes.push(old);
    }

    /// A second node of the cluster opens the volumes while the first one sleeps.
    pub(super) fn take_over(&mut self, rng: &mut Rng, options: &RunOptions) {
        self.write_what_may_be_lost(rng);
        let devices = self.fall_asleep(rng);
        let second = self.node.second("second");
        second.create().expect("the world runs").expect("the shard starts");
        let shard = second.shard();
        let failed = second.must("open all", async move { shard.open_all().await });
        if !failed.is_empty() {
            self.fail(&format!("a second node can not open: {failed:?}"));
        }
        self.go_on_with(second, devices, rng, options);
    }

    /// Renames a volume. With `twice` see [`checkpoint_twice`](Self::checkpoint_twice).
    fn change_names(&mut self, twice: bool, rng: &mut Rng) -> Option<usize> {
        let (vol, name) = (rng.below(self.vols.len() as u64) as usize, self.fresh_name("v"));
        self.devices.clear();
        self.views.clear();
        self.do_one(Kind::Rename { name }, vol);
        if twice && rng.chance(500) {
            // What is hidden may then be given back; nothing of that can be brought back here.
            self.wait_ms(self.window_ms());
        }
        if twice { Some(self.checkpoint_twice(rng)) } else { None }
    }

    /// The newest two manifests of each volume say the same but for its data. Gives a volume, one with a history behind it where there is one: of that
    /// the newest manifest may lead to nothing, and the one before it to everything.
    fn checkpoint_twice(&mut self, rng: &mut Rng) -> usize {
        let old = |this: &Self, vol: &usize| this.node.volume(&this.vols[*vol].name).record().timelines.len() > 1;
        let with_history: Vec<usize> = (0..self.vols.len()).filter(|vol| old(self, vol)).collect();
        let any = rng.below(self.vols.len() as u64) as usize;
        let chosen = with_history.get(rng.below(with_history.len().max(1) as u64) as usize).copied().unwrap_or(any);
        for round in 0..2 {
            let leave = round == 1 && rng.chance(500) && !self.vols[chosen].template;
            let for_good = leave && rng.chance(700);
            if for_good {
                self.roll_back_for_good(chosen);
            }
            // Nothing of its own dies then, which would bring about another manifest: the newest leads to no node of before, and the one before it to all.
            let quietly = for_good && self.vols[chosen].line.now.size >= 2 * BLOCK && rng.chance(600);
            if quietly {
                self.write_one(chosen, 0, BLOCK);
            } else {
                let usual = self.begin_losing();
                self.batches(12, rng);
                self.plan.weights = usual;
                if leave {
                    self.discard(chosen, 0, self.vols[chosen].line.now.size);
                }
            }
            for vol in 0..self.vols.len() {
                self.checkpoint(vol);
                self.vols[vol].line.frozen_base = false;
            }
            if quietly {
                // A volume that is not quiet makes no checkpoint only to give something back.
                for _ in 0..SWEPT_AGAIN_MS / TOUCHED_EVERY_MS {
                    self.discard(chosen, BLOCK, BLOCK);
                    self.wait_ms(TOUCHED_EVERY_MS);
                }
            } else {
                self.wait_ms(rng.below(60_000));
            }
        }
        chosen
    }

    pub(super) fn checkpoint(&mut self, vol: usize) {
        self.drain(vol);
        let open = self.node.volume(&self.vols[vol].name);
        self.alive(|this| {
            this.insist("checkpoint", move || {
                let open = Rc::clone(&open);
                async move { open.checkpoint().await }
            })
        });
    }

    /// A bit of the newest manifest of a volume that is shown turns over.
    fn spoil_newest_manifest(&mut self, vol: usize, rng: &mut Rng) {
        let vol = &self.vols[vol];
        let timeline = self.node.volume(&vol.name).record().shown;
        let names = self.node.server.names();
        let manifests = names.iter().filter_map(|name| ObjectName::parse(name));
        let newest = manifests
            .filter(|name| name.timeline == timeline && name.kind == ObjectKind::Manifest)
            .max_by_key(|name| (name.epoch, name.number));
        let Some(newest) = newest.map(|name| name.to_string()) else { return };
        self.cover.count("fault: a bit of the newest manifest flips");
        self.node.world.note(&format!("a bit flips in {newest}"));
        let len = self.node.server.object(&newest).map_or(1, |bytes| bytes.len() as u64);
        self.node.server.flip_bit(&newest, rng.below(len), rng.below(8) as u8);
    }

    /// Imports the pool to another cluster.
    fn import_into(&self, stranger: &Node, spoilt: bool) -> Imported {
        let env: Rc<crate::SimEnv> = Rc::clone(&stranger.env);
        let (coord, store, settings) =
            (Arc::clone(&stranger.coord), stranger.server.client(&stranger.env), stranger.pool);
        let imported = stranger.run(async move {
            let import = PoolImport {
                env: &*env,
                coord: &*coord,
                store,
                cluster: cluster(2),
                pool: known("default"),
                url: "sim:///pool".to_owned(),
                settings,
            };
            import_pool(import, |_, _| ()).await
        });
        let imported = match imported {
            Ok(Ok(imported)) => imported,
            other => self.fail(&format!("an import: {other:?}")),
        };
        // What a cut-off birth or a last deletion has left is no volume; one that is missing shows when it is compared.
        let is_known = |kind| kind == ErrorKind::NotFound || (spoilt && kind == ErrorKind::Corrupt);
        if let Some(failure) = imported.failures.iter().find(|failure| !is_known(failure.error.kind())) {
            self.fail(&format!("not imported: {failure:?}"));
        }
        for failure in &imported.failures {
            self.node.world.note(&format!("not imported: {failure:?}"));
        }
        imported
    }

    /// Another cluster imports the pool.
    pub(super) fn import(&mut self, rng: &mut Rng, options: &RunOptions) {
        // A listing shows which volumes there are; what they have come to since is asked for by name.
        self.node.server.set_list_lag(self.plan.list_lag);
        self.wait_ms(self.plan.list_lag.as_millis() as u64);
        let spoilt = rng.chance(300);
        let chosen = self.change_names(spoilt, rng);
        self.write_what_may_be_lost(rng);
        // An opening that has put one manifest only leaves an import no other; and one that no listing shows yet is not found.
        if !spoilt && self.plan.list_lag.is_zero() && rng.chance(400) {
            self.die_with_unput(rng);
        }
        let devices = self.fall_asleep(rng);
        if let Some(vol) = chosen {
            self.spoil_newest_manifest(vol, rng);
        }
        if rng.chance(500) {
            self.node.world.resume(&self.node.env);
        }
        let mut stranger = self.node.stranger("stranger");
        stranger.create().expect("the world runs").expect("the shard starts");
        let mut imported = self.import_into(&stranger, spoilt);
        let is_missing = |failure: &ImportFailure| failure.error.kind() == ErrorKind::NotFound;
        if !self.plan.list_lag.is_zero() && imported.failures.iter().any(is_missing) {
            // As it is told: what was opened a moment ago, and left what was there before, is found by a later listing.
            self.wait_ms(self.plan.list_lag.as_millis() as u64);
            imported = self.import_into(&stranger, spoilt);
        }
        stranger.owner = imported.owner;
        stranger.add_pool();
        let shard = stranger.shard();
        let mut failed = stranger.must("open all", async move { shard.open_all().await });
        // Where listings lag, the end of a volume may miss what is young: what is left looks like a damaged volume then.
        let is_left_over = |name: &str| !self.plan.list_lag.is_zero() && self.vols.iter().all(|vol| vol.name != name);
        let left_over: Vec<_> = failed
            .extract_if(.., |(name, error)| error.kind() == ErrorKind::Corrupt && is_left_over(name.as_str()))
            .collect();
        self.damaged.extend(left_over.into_iter().map(|(name, _)| name.to_string()));
        if !failed.is_empty() {
            self.fail(&format!("imported, and not to be opened: {failed:?}"));
        }
        self.gone.clear();
        self.vols.iter_mut().for_each(|vol| vol.hidden.clear());
        if self.plan.jump > 0 {
            // Where the clock jumped, what was hidden before may look newer than what is hidden next.
            self.plan.weights.retain(|(op, _)| *op != Op::Undo);
        }
        self.go_on_with(stranger, devices, rng, options);
    }
}
