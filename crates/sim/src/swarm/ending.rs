// SPDX-License-Identifier: Apache-2.0
//! How runs end: what must hold once every window has ended, when everything was deleted, and when bytes in the store went bad.
//!
//! - Windows end: everything is compared and recounted, before and after one more crash.
//! - Everything is deleted: the store has no data left, no node of a map, no table.
//! - Objects go bad, or answers cross: a read gives what was written, or says that it is damaged; a check finds what reads found.
//!
//! The journal's disk goes bad in `rot.rs`; others take over in `takeover.rs`.

use super::admin::Kind;
use super::disk::Disk;
use super::prove::check;
use super::run::{Run, known};
use super::stamp::{BLOCK, SECTOR, stamp_of};
use crate::node::read;
use crate::{Chaos, CrashMode, InFlight, Rng};
use std::rc::Rc;
use std::time::Duration;
use varve_engine::Device;
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

    pub(super) fn wait_ms(&mut self, ms: u64) {
        if let Err(error) = self.node.world.run_for(Duration::from_millis(ms)) {
            self.fail(&error.to_string());
        }
    }

    /// Every window ends; what is there stays, and is counted right before and after a crash.
    pub(super) fn end_windows(&mut self, rng: &mut Rng) {
        self.set_faults(false);
        let window = self.window_ms();
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
        while !self.vols.is_empty() {
            self.do_one(Kind::Delete, 0);
        }
        self.gone.clear();
        let window = self.window_ms();
        // The clock may have been ahead when something was deleted.
        let ahead = self.peak_ms.saturating_sub(self.node.env.wall_ms());
        self.wait_ms(ahead + window * 2 + 1_800_000);
        // A birth that a death cut off has left a first manifest, which nobody knows; where a listing lags, one that was put in vain just before may be
        // missed; and a put that lands late may come after everything was deleted.
        let lags = self.plan.list_lag > Duration::ZERO;
        let first = if lags { "/man/" } else { "/man/0000000000000001." };
        let stray = |name: &str| name.contains(first) || self.node.server.was_late(name);
        // Where the clock jumps over a window, an end may come so soon that a listing that lags does not show yet what it should take.
        if lags && self.plan.jump > 0 {
            return;
        }
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
        let journal_failed = self.node.shard().counts().journal_failed;
        for vol in 0..self.vols.len() {
            self.drain(vol);
            if journal_failed {
                // With nothing in the journal only a manifest tells which segments there are: a store that loses the newest is found out by nobody else.
                self.checkpoint(vol);
            }
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
        let crossed_per_mille = if rng.chance(400) { 1 + rng.below(200) as u32 } else { 0 };
        if crossed_per_mille > 0 {
            self.cover.count("fault: answers of the store cross");
        }
        for vol in vols.iter().filter(|vol| opened.iter().all(|(name, _)| name.as_str() != vol.name)) {
            self.node.server.set_chaos(Chaos { crossed_per_mille, ..Chaos::default() });
            let mut seen = self.read_spoilt(&vol.name, None, &vol.line.now, &vol.regions);
            for snap in vol.line.alive() {
                seen |= self.read_spoilt(&vol.name, Some(&snap.borrow().name), &snap.borrow().disk, &vol.regions);
            }
            self.node.server.set_chaos(Chaos::default());
            let open = self.node.volume(&vol.name);
            let checked = self.node.run(async move { check(&open).await });
            (any_seen, any_found) = (any_seen | seen, any_found | !matches!(checked, Ok(Ok(()))));
            self.cover.count(if seen { "proof: damage is found by a read" } else { "proof: damage shows in no read" });
        }
        // What a clone has inherited is checked with its origin, unless that is damaged so that it does not even open.
        if any_seen && !any_found && opened.is_empty() && crossed_per_mille == 0 {
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
    pub(super) fn drain(&mut self, vol: usize) {
        let open = self.node.volume(&self.vols[vol].name);
        self.alive(|this| {
            this.insist("seal", move || {
                let open = Rc::clone(&open);
                async move { open.seal().await }
            })
        });
        self.vols[vol].line.flushed(0);
    }
}
