// SPDX-License-Identifier: Apache-2.0
//! Comparing the engine with the model: contents of volumes, snapshots and views; what a crash may have left; and the engine's own recount.
//!
//! After every crash each volume is read whole and has to be explained by its model ([`super::line`]), its list of snapshots has to be right, and one
//! snapshot of one volume is read; the model then goes on from what was found. Everything else is compared now and then and at the end. Reads
//! are tried again where the store refuses, and no death is planned while the model looks.

use super::disk::Disk;
use super::run::{Died, Run, known};
use super::stamp::{BLOCK, SECTOR, SECTORS, stamp_of};
use crate::node::read;
use std::rc::Rc;
use varve_engine::{BlockDevice, Device, EngineError, Volume};
use varve_types::ErrorKind;

/// Bytes read at a time.
const STEP: u64 = 256 << 10;

/// Recounts everything of a volume: what is wrong is an error.
pub(super) async fn check(volume: &Volume) -> Result<(), EngineError> {
    let report = volume.check(&|_, _| {}).await?;
    match report.problems.first() {
        None => Ok(()),
        Some(problem) => {
            let text = format!("{} problems: {}: {}", report.problems.len(), problem.object, problem.message);
            Err(EngineError::new(ErrorKind::Corrupt, text))
        }
    }
}

impl Run {
    /// What is done while no death is planned.
    pub(super) fn alive<T>(&mut self, act: impl FnOnce(&mut Self) -> Result<T, Died>) -> T {
        self.immortal();
        match act(self) {
            Ok(value) => value,
            Err(Died) => self.fail("no death is planned, and the process is dead"),
        }
    }

    /// Where a disk is used.
    fn regions_of(&self, vol: usize, size: u64) -> Vec<(u64, u64)> {
        let vol = &self.vols[vol];
        if vol.regions.len() == 1 { vec![(0, size)] } else { vol.regions.clone() }
    }

    /// Reads what a device shows where it is used.
    pub(super) fn contents(&self, device: &Rc<Device>, regions: &[(u64, u64)]) -> Result<Disk, Died> {
        let mut disk = Disk::new(device.size());
        for (start, len) in regions {
            let (mut at, end) = (*start, (start + len).min(disk.size));
            while at < end {
                let part = STEP.min(end - at);
                let copy = Rc::clone(device);
                let bytes = self.insist("read", move || {
                    let device = Rc::clone(&copy);
                    async move { read(&device, at, part as u32).await }
                })?;
                self.decode(&mut disk, at, &bytes);
                at += part;
            }
        }
        Ok(disk)
    }

    /// Takes bytes that were read into a disk; `at` is a multiple of a block.
    fn decode(&self, disk: &mut Disk, at: u64, bytes: &[u8]) {
        for (index, whole) in bytes.chunks(BLOCK as usize).enumerate() {
            let number = at / BLOCK + index as u64;
            let mut block = [0; SECTORS];
            for (within, sector) in whole.chunks(SECTOR as usize).enumerate() {
                let place = number * SECTORS as u64 + within as u64;
                match stamp_of(sector, place) {
                    Some(stamp) => block[within] = stamp,
                    None => self.fail(&format!("a sector at {} is nobody's: {:x?}", place * SECTOR, &sector[..16])),
                }
            }
            disk.set(number, block);
        }
    }

    /// Reads a volume.
    fn read_volume(&mut self, vol: usize) -> Disk {
        let volume = self.vols[vol].name.clone();
        self.alive(|this| {
            let device = this.device(&volume)?;
            let regions = this.regions_of(vol, device.size());
            this.contents(&device, &regions)
        })
    }

    /// Reads a snapshot.
    pub(super) fn read_snapshot(&mut self, vol: usize, snapshot: &str) -> Result<Disk, Died> {
        let (open, text) = (self.node.volume(&self.vols[vol].name), known(snapshot));
        let device = self.insist("attach a snapshot", move || {
            let (open, text) = (Rc::clone(&open), text.clone());
            async move { Ok(Rc::new(open.snapshot_device(&text, "swarm".to_owned()).await?)) }
        })?;
        let regions = self.regions_of(vol, device.size());
        self.contents(&device, &regions)
    }

    /// Whether a volume lists a snapshot.
    pub(super) fn lists(&mut self, vol: usize, snapshot: &str) -> bool {
        self.listed(vol).iter().any(|name| name == snapshot)
    }

    fn listed(&mut self, vol: usize) -> Vec<String> {
        let open = self.node.volume(&self.vols[vol].name);
        let listed = self.alive(|this| {
            this.insist("list snapshots", move || {
                let open = Rc::clone(&open);
                async move { open.snapshots().await }
            })
        });
        listed.iter().filter(|snap| !snap.hidden).map(|snap| snap.name.to_string()).collect()
    }

    /// Takes what a crash has left, where the promises allow it. `lost`: the power was gone.
    pub(super) fn recover(&mut self, lost: bool) {
        self.resolve_cut_off();
        // One snapshot of one volume a crash; all of them now and then.
        let count = self.vols.len().max(1);
        let (turn, looked_into) = (self.crashes as usize / count, self.crashes as usize % count);
        for vol in 0..self.vols.len() {
            let volume = self.vols[vol].name.clone();
            let found = self.read_volume(vol);
            let all = !lost && !self.vols[vol].ram;
            if let Err(text) = self.vols[vol].line.recover(found, all) {
                self.fail(&format!("volume {volume} after a crash: {text}"));
            }
            let last = self.node.volume(&volume).counts().last_change;
            self.vols[vol].line.forget_behind(last);
            self.vols[vol].size_changed();
            self.compare_list(vol);
            let alive = self.vols[vol].line.alive();
            if vol == looked_into && !alive.is_empty() {
                self.compare_snapshot(vol, &alive[turn % alive.len()].borrow());
            }
        }
        self.cover.add("proof: volumes compared after a crash", self.vols.len() as u64);
    }

    fn compare_list(&mut self, vol: usize) {
        let wanted: Vec<String> = self.vols[vol].line.alive().iter().map(|snap| snap.borrow().name.clone()).collect();
        let listed = self.listed(vol);
        if listed != wanted {
            self.fail(&format!("volume {} lists the snapshots {listed:?}, not {wanted:?}", self.vols[vol].name));
        }
    }

    fn compare_snapshot(&mut self, vol: usize, snap: &super::line::Snap) {
        let found = self.alive(|this| this.read_snapshot(vol, &snap.name));
        self.same(&format!("snapshot {} of {}", snap.name, self.vols[vol].name), &found, &snap.disk);
    }

    /// Compares everything that can be seen.
    pub(super) fn compare_all(&mut self) {
        for vol in 0..self.vols.len() {
            let volume = self.vols[vol].name.clone();
            let found = self.read_volume(vol);
            self.same(&format!("volume {volume}"), &found, &self.vols[vol].line.now);
            self.compare_list(vol);
            for snap in self.vols[vol].line.alive() {
                self.compare_snapshot(vol, &snap.borrow());
            }
        }
        let views = std::mem::take(&mut self.views);
        for view in &views {
            let vol = self.vols.iter().position(|vol| vol.name == view.volume);
            let regions = vol.map(|vol| self.regions_of(vol, view.disk.size)).unwrap_or_default();
            let found = self.alive(|this| this.contents(&view.device, &regions));
            self.same(&format!("the view of {}", view.snapshot), &found, &view.disk);
        }
        self.views = views;
        self.cover.count("proof: everything compared");
    }

    fn same(&self, what: &str, found: &Disk, wanted: &Disk) {
        if found.size != wanted.size {
            self.fail(&format!("{what}: it has {} bytes, not {}", found.size, wanted.size));
        }
        if let Some(number) = found.difference(wanted) {
            let (is, should) = (found.block(number), wanted.block(number));
            self.fail(&format!("{what}: block {number} is {is:x?}, should be {should:x?}"));
        }
    }

    /// The engine counts anew, and verifies every byte.
    pub(super) fn check_all(&mut self) {
        for vol in 0..self.vols.len() {
            let open = self.node.volume(&self.vols[vol].name);
            self.alive(|this| {
                this.insist("check", move || {
                    let open = Rc::clone(&open);
                    async move { check(&open).await }
                })
            });
        }
        self.cover.count("proof: everything recounted");
    }
}
