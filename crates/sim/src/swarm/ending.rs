// SPDX-License-Identifier: Apache-2.0
//! How runs end: what must hold once every window has ended, when everything was deleted, when bytes went bad, and when somebody else took over.
//!
//! - Windows end: everything is compared and recounted, before and after one more crash.
//! - Everything is deleted: the store has no data left, no node of a map, no table.
//! - Objects go bad: a read gives what was written, or says that it is damaged; a check finds what reads found.
//! - A second node, or another cluster, takes over while the first sleeps with requests under way and then wakes: what was in the store is there,
//!   what was only in the first one's journal may be cut off at one point, and nothing that the first one does afterwards is ever seen.

use super::RunOptions;
use super::disk::{Change, Disk};
use super::line::Made;
use super::plan::Op;
use super::prove::check;
use super::run::{Run, cluster, known, write};
use super::stamp::{BLOCK, SECTOR, bytes_of, stamp_of};
use crate::node::{Node, read};
use crate::{CrashMode, InFlight, Rng};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use varve_engine::{BlockDevice, Device, PoolImport, import_pool};
use varve_env::Env;
use varve_types::ErrorKind;

impl Run {
    /// No more faults; everything that was written is in the store, or will be soon.
    pub(super) fn settle(&mut self) {
        self.set_faults(false);
        self.plan.dies = 0;
        self.plan.dies_inside = 0;
        self.compare_all();
    }

    fn wait_ms(&mut self, ms: u64) {
        if let Err(error) = self.node.world.run_for(Duration::from_millis(ms)) {
            self.fail(&error.to_string());
        }
    }

    /// Every window ends; what is there stays, and is counted right before and after a crash.
    pub(super) fn end_windows(&mut self, rng: &mut Rng) {
        self.set_faults(false);
        self.check_all();
        let window = self.plan.pool.undelete_window_ms.unwrap_or_default();
        self.gone.clear();
        self.vols.iter_mut().for_each(|vol| vol.hidden.clear());
        self.wait_ms(window * 2 + 120_000);
        self.compare_all();
        self.check_all();
        self.plan.dies_again = 0;
        self.crash(rng);
        self.set_faults(false);
        self.compare_all();
        self.check_all();
    }

    /// Everything is deleted and every window ends: the store holds who owns it and nothing else.
    pub(super) fn end_empty(&mut self) {
        self.views.clear();
        self.devices.clear();
        self.wait_ms(10);
        for volume in self.vols.iter().map(|vol| vol.name.clone()).collect::<Vec<_>>() {
            let shard = self.node.shard();
            self.alive(|this| {
                this.insist("delete", move || {
                    let (shard, volume) = (Rc::clone(&shard), known(&volume));
                    async move { shard.delete_volume(&volume).await }
                })
            });
        }
        self.vols.clear();
        let window = self.plan.pool.undelete_window_ms.unwrap_or_default();
        // The clock may have been ahead when something was deleted.
        self.wait_ms(window * 2 + 3_600_000 + 2 * 1_200_000 * 8);
        // A birth that a death cut off has left a first manifest, which nobody knows; and where a listing lags, or puts land late, others may be missed.
        let late = self.plan.chaos.late_put_per_mille > 0 || self.plan.list_lag > Duration::ZERO;
        let stray = |name: &str| name.contains(if late { "/man/" } else { "/man/0000000000000001." });
        let mut left = self.node.server.names();
        left.retain(|name| !name.starts_with("owner/") && !stray(name));
        if !left.is_empty() {
            self.fail(&format!(
                "everything is deleted, and {} objects are left: {:?}",
                left.len(),
                &left[..left.len().min(5)]
            ));
        }
        self.cover.count("proof: nothing is left in an empty store");
    }

    /// Some objects go bad. What is read is right, or an error says that it is damaged; where a check finds nothing everything is right.
    pub(super) fn end_spoilt(&mut self, rng: &mut Rng) {
        for vol in 0..self.vols.len() {
            self.drain(vol);
        }
        self.devices.clear();
        self.views.clear();
        self.node.crash(CrashMode::Kept, InFlight::Landed);
        for _ in 0..1 + rng.below(3) {
            self.spoil(rng);
        }
        let opened = match self.node.open() {
            Ok(Ok(failed)) => failed,
            other => self.fail(&format!("with damaged objects the shard does not open: {other:?}")),
        };
        for (volume, error) in &opened {
            if error.kind() != ErrorKind::Corrupt {
                self.fail(&format!("damaged, {volume} does not open: {error} ({:?})", error.kind()));
            }
        }
        self.cover.add("proof: a damaged volume is refused", opened.len() as u64);
        let vols = std::mem::take(&mut self.vols);
        let (mut any_seen, mut any_found) = (false, false);
        for vol in vols.iter().filter(|vol| opened.iter().all(|(name, _)| name.as_str() != vol.name)) {
            let mut seen = self.read_spoilt(&vol.name, None, &vol.line.now, &vol.regions);
            for snap in vol.line.alive() {
                seen |= self.read_spoilt(&vol.name, Some(&snap.borrow().name), &snap.borrow().disk, &vol.regions);
            }
            let open = self.node.volume(&vol.name);
            let checked = self.node.run(async move { check(&open).await });
            (any_seen, any_found) = (any_seen | seen, any_found | !matches!(checked, Ok(Ok(()))));
            self.cover.count(if seen { "proof: damage is found by a read" } else { "proof: damage shows in no read" });
        }
        // What a clone has inherited is checked with its origin, where that is not deleted.
        if any_seen && !any_found && opened.is_empty() && self.gone.is_empty() {
            self.fail("a read found damage, and no check does");
        }
    }

    fn spoil(&mut self, rng: &mut Rng) {
        let names: Vec<String> =
            self.node.server.names().into_iter().filter(|name| !name.starts_with("owner/")).collect();
        let Some(name) = names.get(rng.below(names.len().max(1) as u64) as usize) else { return };
        let len = self.node.server.object(name).map_or(0, |bytes| bytes.len() as u64);
        match rng.below(4) {
            0 => {
                self.node.world.note(&format!("cut short {name}"));
                self.cover.count("fault: an object is cut short");
                self.node.server.truncate(name, rng.below(len.max(1)));
            }
            1 => {
                self.node.world.note(&format!("gone {name}"));
                self.cover.count("fault: an object is gone");
                self.node.server.remove(name);
            }
            2 => {
                self.node.world.note(&format!("other bytes in {name}"));
                self.cover.count("fault: an object has another's bytes");
                let other = &names[rng.below(names.len() as u64) as usize];
                let bytes = self.node.server.object(other).unwrap_or_default();
                self.node.server.plant(name, bytes);
            }
            _ => {
                self.node.world.note(&format!("a bit flips in {name}"));
                self.cover.count("fault: a bit of an object flips");
                self.node.server.flip_bit(name, rng.below(len.max(1)), rng.below(8) as u8);
            }
        }
    }

    /// Reads a volume or a snapshot block by block; whether some of it is damaged.
    fn read_spoilt(&mut self, volume: &str, snapshot: Option<&str>, disk: &Disk, regions: &[(u64, u64)]) -> bool {
        let (open, text) = (self.node.volume(volume), snapshot.map(known));
        let attached = self.node.run(async move {
            match text {
                None => open.device("swarm".to_owned()).await.map(|(device, _)| device),
                Some(snapshot) => open.snapshot_device(&snapshot, "swarm".to_owned()).await,
            }
        });
        let device: Rc<Device> = match attached {
            Ok(Ok(device)) => Rc::new(device),
            Ok(Err(error)) if error.kind() == ErrorKind::Corrupt => return true,
            other => self.fail(&format!("attach {volume} {snapshot:?}: {:?}", other.map(|done| done.map(drop)))),
        };
        let mut damaged = false;
        let regions = if regions.len() == 1 { vec![(0, disk.size)] } else { regions.to_vec() };
        for (start, len) in regions {
            let end = (start + len).min(disk.size);
            for at in (start..end).step_by(BLOCK as usize) {
                let (device, part) = (Rc::clone(&device), BLOCK.min(end - at) as u32);
                match self.node.run(async move { read(&device, at, part).await }) {
                    Ok(Ok(bytes)) => {
                        let wanted = disk.block(at / BLOCK);
                        for (within, sector) in bytes.chunks(SECTOR as usize).enumerate() {
                            let stamp = stamp_of(sector, at / SECTOR + within as u64);
                            if stamp != Some(wanted[within]) {
                                self.fail(&format!("{volume} {snapshot:?}: wrong data at {at} from a damaged store: {stamp:x?}, not {wanted:x?}"));
                            }
                        }
                    }
                    Ok(Err(error)) if error.kind() == ErrorKind::Corrupt => {
                        self.node.world.note(&format!("{volume} {snapshot:?} at {at}: {error}"));
                        damaged = true;
                    }
                    other => self.fail(&format!("read {volume} {snapshot:?}: {other:?}")),
                }
            }
        }
        damaged
    }

    /// Puts everything of a volume.
    fn drain(&mut self, vol: usize) {
        let open = self.node.volume(&self.vols[vol].name);
        self.alive(|this| {
            this.insist("seal", move || {
                let open = Rc::clone(&open);
                async move { open.seal().await }
            })
        });
        self.vols[vol].line.flushed(0);
    }

    /// Puts everything, then writes what may be lost with this node.
    fn write_what_may_be_lost(&mut self, rng: &mut Rng) {
        for vol in 0..self.vols.len() {
            self.drain(vol);
            self.vols[vol].line.frozen_base = true;
        }
        let usual = std::mem::replace(
            &mut self.plan.weights,
            vec![
                (Op::Write, 50),
                (Op::Burst, 5),
                (Op::Partials, 5),
                (Op::Zero, 10),
                (Op::Read, 10),
                (Op::Flush, 10),
                (Op::Wait, 5),
            ],
        );
        for _ in 0..rng.below(30) {
            let done = self.batch(rng);
            self.alive(|_| done);
        }
        self.plan.weights = usual;
    }

    /// The old node falls asleep with requests under way. Gives its devices.
    fn fall_asleep(&mut self, rng: &mut Rng) -> Vec<Rc<Device>> {
        self.views.clear();
        for vol in 0..self.vols.len() {
            let (name, size) = (self.vols[vol].name.clone(), self.vols[vol].line.now.size);
            let (offset, len) = (rng.below(16) * BLOCK, BLOCK);
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
            let (device, at) = (Rc::clone(device), rng.below(16) * BLOCK);
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

    /// Another cluster imports the pool.
    pub(super) fn import(&mut self, rng: &mut Rng, options: &RunOptions) {
        self.write_what_may_be_lost(rng);
        // What was put within the lag of a listing an import may miss: a store to import from shows what it has.
        self.node.server.set_list_lag(Duration::ZERO);
        let devices = self.fall_asleep(rng);
        if rng.chance(500) {
            self.node.world.resume(&self.node.env);
        }
        let mut stranger = self.node.stranger("stranger");
        stranger.create().expect("the world runs").expect("the shard starts");
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
        if let Some(failure) = imported.failures.iter().find(|failure| failure.error.kind() != ErrorKind::NotFound) {
            self.fail(&format!("not imported: {failure:?}"));
        }
        for failure in &imported.failures {
            self.node.world.note(&format!("not imported: {failure:?}"));
        }
        stranger.owner = imported.owner;
        stranger.add_pool();
        let shard = stranger.shard();
        let failed = stranger.must("open all", async move { shard.open_all().await });
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
