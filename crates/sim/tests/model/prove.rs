// SPDX-License-Identifier: Apache-2.0
//! Comparing the engine with the model: contents of volumes, snapshots and views; what a crash may have left; and the engine's own recount.

use super::disk::{BLOCK, Disk};
use super::node::{name, read};
use super::{Flight, Model};
use std::rc::Rc;
use varve_engine::{BlockDevice, Device};
use varve_sim::{CrashMode, RunError};

/// Bytes read at a time.
const STEP: u64 = 256 << 10;

impl Model {
    fn fail(&self, what: &str) -> ! {
        panic!("seed {}, step {}, after {:?}: {what}", self.seed, self.step, self.flight)
    }

    /// Reads what a device shows in the regions that are used.
    fn contents(&self, device: &Rc<Device>, regions: &[(u64, u64)]) -> Disk {
        let mut disk = Disk::new(device.size());
        for (start, len) in regions {
            let (mut at, end) = (*start, (start + len).min(disk.size));
            while at < end {
                let part = STEP.min(end - at);
                let device = Rc::clone(device);
                let bytes = self.patient(move || {
                    let device = Rc::clone(&device);
                    async move { read(&device, at, part as u32).await }
                });
                disk.put(at, &bytes);
                at += part;
            }
        }
        disk
    }

    /// A read in a store that is in trouble is tried again.
    fn patient<T: 'static, F: Future<Output = Result<T, varve_engine::EngineError>> + 'static>(
        &self,
        make: impl Fn() -> F,
    ) -> T {
        self.insist("read", make).unwrap_or_else(|_| self.fail("no crash was planned"))
    }

    fn must<T>(&self, what: &str, done: Result<T, super::Died>) -> T {
        done.unwrap_or_else(|_| self.fail(what))
    }

    /// Compares everything that can be seen.
    pub fn compare_all(&mut self) {
        self.node.env.points().after_polls(u64::MAX);
        for vol in 0..self.vols.len() {
            let (volume, regions) = (self.vols[vol].name.clone(), self.whole(vol));
            let device = self.device(&volume);
            let device = self.must("attach", device);
            let found = self.contents(&device, &regions);
            self.same(&format!("volume {volume}"), &found, &self.vols[vol].line.now);
            self.compare_snapshots(vol, &regions);
        }
        for (text, device, disk) in &self.views {
            let regions = self.regions_of(disk);
            let found = self.contents(device, &regions);
            self.same(&format!("the view of {text}"), &found, disk);
        }
    }

    fn regions_of(&self, disk: &Disk) -> Vec<(u64, u64)> {
        let sparse = &self.vols[1].regions;
        if disk.size > 1 << 30 { sparse.clone() } else { vec![(0, disk.size)] }
    }

    fn whole(&self, vol: usize) -> Vec<(u64, u64)> {
        let vol = &self.vols[vol];
        if vol.regions.len() > 1 { vol.regions.clone() } else { vec![(0, vol.line.now.size)] }
    }

    fn compare_snapshots(&self, vol: usize, _regions: &[(u64, u64)]) {
        let alive = self.vols[vol].line.alive();
        let open = self.node.volume(&self.vols[vol].name);
        let copy = Rc::clone(&open);
        let listed = self.patient(move || {
            let copy = Rc::clone(&copy);
            async move { copy.snapshots().await }
        });
        let listed: Vec<String> = listed.iter().filter(|s| !s.hidden).map(|s| s.name.to_string()).collect();
        let wanted: Vec<String> = alive.iter().map(|snap| snap.borrow().name.clone()).collect();
        if listed != wanted {
            self.fail(&format!("volume {} lists the snapshots {listed:?}, not {wanted:?}", self.vols[vol].name));
        }
        for snap in alive {
            let snap = snap.borrow();
            let (open, text) = (Rc::clone(&open), name(&snap.name));
            let device = self.patient(move || {
                let (open, text) = (Rc::clone(&open), text.clone());
                async move { Ok(Rc::new(open.snapshot_device(&text, "model".to_owned()).await?)) }
            });
            let found = self.contents(&device, &self.regions_of(&snap.disk));
            self.same(&format!("snapshot {} of {}", snap.name, self.vols[vol].name), &found, &snap.disk);
        }
    }

    /// Compares a part of a volume.
    pub fn prove_range(&mut self, vol: usize, start: u64, end: u64) {
        let volume = self.vols[vol].name.clone();
        let device = self.device(&volume);
        let device = self.must("attach", device);
        let found = self.contents(&device, &[(start, end - start)]);
        if let Some(block) =
            (start / BLOCK..end.div_ceil(BLOCK)).find(|b| found.block(*b) != self.vols[vol].line.now.block(*b))
        {
            let text = format!(
                "block {block} of {volume} is {}, should be {}",
                found.describe(block),
                self.vols[vol].line.now.describe(block)
            );
            self.fail(&text);
        }
    }

    fn same(&self, what: &str, found: &Disk, wanted: &Disk) {
        if found.size != wanted.size {
            self.fail(&format!("{what}: it has {} bytes, not {}", found.size, wanted.size));
        }
        if let Some(block) = found.difference(wanted) {
            let text = format!(
                "{what}: block {block} (at {}) is {}, should be {}",
                block * BLOCK,
                found.describe(block),
                wanted.describe(block)
            );
            self.fail(&text);
        }
    }

    /// The engine counts anew, and verifies every byte.
    pub fn check_all(&mut self) {
        self.node.env.points().after_polls(u64::MAX);
        self.node.server.set_chaos(varve_sim::Chaos::default());
        for vol in &self.vols {
            let open = self.node.volume(&vol.name);
            let report = match self.node.run(async move { open.check(&|_, _| {}).await }) {
                Ok(Ok(report)) => report,
                Ok(Err(error)) => self.fail(&format!("check of {}: {error}", vol.name)),
                Err(error) => self.fail(&format!("check of {}: {error}", vol.name)),
            };
            if let Some(problem) = report.problems.first() {
                let count = report.problems.len();
                self.fail(&format!("check of {}: {count} problems: {}: {}", vol.name, problem.object, problem.message));
            }
        }
        self.node.server.set_chaos(self.chaos);
    }

    /// Takes what a crash has left, where the promises allow it.
    pub fn resolve(&mut self, mode: CrashMode) {
        self.resolve_flight();
        for vol in 0..self.vols.len() {
            let flight = match &self.flight {
                Flight::Change { vol: of, change } if *of == vol => Some(change.clone()),
                _ => None,
            };
            let volume = self.vols[vol].name.clone();
            let device = self.device(&volume);
            let device = self.must("attach", device);
            let regions = if self.vols[vol].regions.len() > 1 {
                self.vols[vol].regions.clone()
            } else {
                vec![(0, device.size())]
            };
            let found = self.contents(&device, &regions);
            if regions.len() == 1 {
                self.vols[vol].regions = regions;
            }
            let all = mode == CrashMode::Kill && !self.vols[vol].ram;
            if let Err(text) = self.vols[vol].line.recover(found, all, flight.as_ref()) {
                self.fail(&format!("volume {volume} after {mode:?}: {text}"));
            }
        }
    }

    /// Finds out what became of the operation that was under way.
    fn resolve_flight(&mut self) {
        let is_open = |this: &Self, volume: &str| this.node.shard().find(&name(volume)).is_ok();
        match self.flight.clone() {
            Flight::Nothing | Flight::Change { .. } => {}
            Flight::Snapshot { vol, name } => {
                if self.lists(vol, &name) {
                    // A snapshot that is there has everything before it.
                    self.snapshot_was_taken(vol, name);
                }
            }
            Flight::Forget { vol, snap } => {
                let snap = Rc::clone(&self.vols[vol].line.alive()[snap]);
                let there = self.lists(vol, &snap.borrow().name);
                snap.borrow_mut().alive = there;
            }
            Flight::Clone { vol, snap, name } => {
                if is_open(self, &name) {
                    self.clone_was_made(vol, snap, name);
                }
            }
            Flight::Rollback { vol, snap, shown } => {
                if self.node.volume(&self.vols[vol].name).record().shown != shown {
                    self.was_rolled_back(vol, snap);
                }
            }
            Flight::Undo { vol, shown } => {
                if self.node.volume(&self.vols[vol].name).record().shown != shown {
                    self.was_undone(vol);
                }
            }
            Flight::Delete { vol } => {
                if !is_open(self, &self.vols[vol].name) {
                    self.was_deleted(vol);
                }
            }
            Flight::Undelete { gone } => {
                if is_open(self, &self.gone[gone].0.name) {
                    let (vol, _) = self.gone.remove(gone);
                    self.vols.push(vol);
                }
            }
        }
    }

    fn lists(&self, vol: usize, snap: &str) -> bool {
        let open = self.node.volume(&self.vols[vol].name);
        let listed = match self.node.run(async move { open.snapshots().await }) {
            Ok(Ok(listed)) => listed,
            Ok(Err(error)) => self.fail(&format!("list snapshots: {error}")),
            Err(error @ (RunError::Dead { .. } | RunError::Stuck { .. } | RunError::TooLong { .. })) => {
                self.fail(&format!("list snapshots: {error}"))
            }
        };
        listed.iter().any(|listed| listed.name.as_str() == snap)
    }
}
