// SPDX-License-Identifier: Apache-2.0
//! The operations: each is chosen by chance, done by the engine, and then by the model. One that ends in [`Died`] leaves in `flight` what was under way.

use super::disk::{BLOCK, Change, Disk};
use super::node::{finish, name, wait};
use super::volume::{Line, Snap, Vol};
use super::{Died, Flight, Model, WINDOW};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use varve_engine::{BlockDevice, Device, EngineError, NewVolume};
use varve_sim::RunError;
use varve_types::{Ack, Overrides};

const SECTOR: u64 = 512;
const MOST_VOLUMES: usize = 5;
const MOST_SNAPSHOTS: usize = 8;

impl Model {
    /// Runs a future of the engine; an error of the engine ends the test.
    pub fn go<T: 'static>(
        &self,
        what: &str,
        future: impl Future<Output = Result<T, EngineError>> + 'static,
    ) -> Result<T, Died> {
        let done = self.node.run(future);
        self.tell(format!("  {what}"));
        match done {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => panic!("seed {}, step {}: {what}: {error} ({:?})", self.seed, self.step, error.kind()),
            Err(RunError::Dead { .. }) => Err(Died),
            Err(error) => panic!("seed {}, step {}: {what}: {error}", self.seed, self.step),
        }
    }

    /// The same for what needs the store: while it is in trouble an operation may be refused, and is tried again.
    pub fn insist<T: 'static, F: Future<Output = Result<T, EngineError>> + 'static>(
        &self,
        what: &str,
        make: impl Fn() -> F,
    ) -> Result<T, Died> {
        for _ in 0..200 {
            let done = self.node.run(make());
            self.tell(format!(
                "  {what}: {:?}",
                done.as_ref().map(|done| done.as_ref().map(|_| ()).map_err(ToString::to_string))
            ));
            match done {
                Ok(Err(error)) if error.kind() == varve_types::ErrorKind::Unavailable => {}
                Ok(done) => return self.go(what, std::future::ready(done)),
                Err(RunError::Dead { .. }) => return Err(Died),
                Err(error) => panic!("seed {}, step {}: {what}: {error}", self.seed, self.step),
            }
        }
        panic!("seed {}, step {}: {what} is refused again and again", self.seed, self.step)
    }

    fn fresh_name(&mut self, kind: &str) -> String {
        self.names += 1;
        format!("{kind}{}", self.names)
    }

    fn pick(&mut self, bound: usize) -> usize {
        self.rng.below(bound as u64) as usize
    }

    /// A device of a volume.
    pub fn device(&mut self, volume: &str) -> Result<Rc<Device>, Died> {
        if let Some(device) = self.devices.get(volume) {
            return Ok(Rc::clone(device));
        }
        let open = self.node.volume(volume);
        let device = self.go("attach", async move { Ok(Rc::new(open.device("model".to_owned()).await?.0)) })?;
        self.devices.insert(volume.to_owned(), Rc::clone(&device));
        Ok(device)
    }

    /// Makes a volume.
    pub fn create(&mut self, size: u64, regions: Vec<(u64, u64)>) {
        let vol = self.fresh_name("v");
        let ram = self.rng.chance(250);
        let settings = Overrides { ack: ram.then_some(Ack::Ram), ..Overrides::default() };
        let shard = self.node.shard();
        let new = NewVolume { name: name(&vol), pool: name("default"), size, settings };
        let made = self.insist("create", move || {
            let (shard, new) = (Rc::clone(&shard), new.clone());
            async move { shard.create_volume(new).await.map(drop) }
        });
        made.expect("no crash is planned");
        let line = Line::new(self.names, Disk::new(size));
        self.vols.push(Vol { name: vol, line, hidden: Vec::new(), regions, ram });
    }

    /// One operation, chosen by chance.
    pub fn operation(&mut self) -> Result<(), Died> {
        let vol = self.pick(self.vols.len());
        self.tell(format!("step {}: on {}, line {}", self.step, self.vols[vol].name, self.vols[vol].line.number));
        match self.rng.below(1000) {
            0..450 => self.write(vol),
            450..500 => self.burst(vol),
            500..560 => self.partials(vol),
            560..660 => self.zero(vol),
            660..710 => self.flush(vol),
            710..770 => self.snapshot(vol),
            770..800 => self.forget(vol),
            800..820 => self.clone(vol),
            820..840 => self.rollback(vol),
            840..860 => self.undo(vol),
            860..870 => self.delete(vol),
            870..880 => self.undelete(),
            880..900 => self.resize(vol),
            900..930 => self.seal(vol),
            930..960 => self.checkpoint(vol),
            960..975 => self.view(vol),
            _ => self.pass_time(),
        }
    }

    /// A range of sectors in one of the volume's regions.
    fn range(&mut self, vol: usize, most: u64) -> Option<(u64, u64)> {
        let regions = self.vols[vol].regions.clone();
        let (start, len) = regions[self.pick(regions.len())];
        let end = (start + len).min(self.vols[vol].line.now.size);
        if end <= start {
            return None;
        }
        let (mut from, mut count) = (start + self.rng.below((end - start) / SECTOR) * SECTOR, SECTOR);
        if self.rng.chance(600) {
            from -= from % BLOCK;
            count = BLOCK;
        }
        let most = if self.rng.chance(100) { most * 16 } else { most };
        let len = (1 + self.rng.below(most / count)) * count;
        Some((from, len.min(end - from)))
    }

    fn write(&mut self, vol: usize) -> Result<(), Died> {
        let Some((offset, len)) = self.range(vol, 32 << 10) else { return Ok(()) };
        self.names += 1;
        let (stamp, fua) = (self.names, self.rng.chance(50));
        let change = Change::Write { offset, len, stamp };
        let device = self.device(&self.vols[vol].name.clone())?;
        self.tell(format!("  {change:?}"));
        self.flight = Flight::Change { vol, change: change.clone() };
        self.insist("write", move || {
            let device = Rc::clone(&device);
            async move { finish(&device, device.write(offset, super::disk::bytes_of(stamp, len).into(), fua)).await }
        })?;
        self.vols[vol].line.made(change);
        if fua {
            self.vols[vol].line.flushed();
        }
        Ok(())
    }

    /// Many whole blocks at once, committed together.
    fn burst(&mut self, vol: usize) -> Result<(), Died> {
        self.flush(vol)?;
        for _ in 0..1 + self.rng.below(20) {
            self.write(vol)?;
        }
        Ok(())
    }

    /// Several parts of the same few blocks at the same time, each by a request of its own.
    fn partials(&mut self, vol: usize) -> Result<(), Died> {
        let Some((offset, _)) = self.range(vol, BLOCK) else { return Ok(()) };
        let start = offset / BLOCK * BLOCK;
        let regions = &self.vols[vol].regions;
        let region = regions.iter().find(|(at, len)| (*at..at + len).contains(&offset));
        let region_end = region.map_or(0, |(at, len)| at + len);
        let end = (start + 2 * BLOCK).min(region_end).min(self.vols[vol].line.now.size);
        let mut changes = Vec::new();
        let mut at = start;
        while at < end {
            let len = ((1 + self.rng.below(6)) * SECTOR).min(end - at);
            self.names += 1;
            match self.rng.below(4) {
                0 => {}
                1 => changes.push(Change::Zero { offset: at, len }),
                _ => changes.push(Change::Write { offset: at, len, stamp: self.names }),
            }
            at += len;
        }
        let device = self.device(&self.vols[vol].name.clone())?;
        // In one block parts may have come through and others not: what a crash leaves of it is not to be told, so it only counts once it is flushed.
        self.flush(vol)?;
        if self.node.env.points().death().is_some() {
            return Err(Died);
        }
        let all = changes.clone();
        self.quiet(|this| {
            this.insist("partials", || {
                let (device, all) = (Rc::clone(&device), all.clone());
                async move {
                    let requests = all.iter().map(|change| {
                        let device = Rc::clone(&device);
                        let submit = match change {
                            Change::Write { offset, len, stamp } => {
                                device.write(*offset, super::disk::bytes_of(*stamp, *len).into(), false)
                            }
                            Change::Zero { offset, len } => device.discard(*offset, *len, false),
                            Change::Resize { .. } => device.flush(),
                        };
                        async move { finish(&device, submit).await }
                    });
                    futures_util::future::try_join_all(requests.collect::<Vec<_>>()).await?;
                    wait(device.flush()).await
                }
            })
        })?;
        for change in changes {
            self.tell(format!("  part {change:?}"));
            self.vols[vol].line.made(change);
        }
        self.prove_range(vol, start, end);
        self.vols[vol].line.flushed();
        Ok(())
    }

    /// Without a death on the way.
    fn quiet<T>(&mut self, act: impl FnOnce(&mut Self) -> Result<T, Died>) -> Result<T, Died> {
        self.node.env.points().after_polls(u64::MAX);
        act(self)
    }

    fn zero(&mut self, vol: usize) -> Result<(), Died> {
        let size = self.vols[vol].line.now.size;
        let (offset, len) = if self.rng.chance(50) {
            let from = self.rng.below(size / SECTOR) * SECTOR;
            (from, (1 + self.rng.below((size - from) / SECTOR)) * SECTOR)
        } else {
            let Some(range) = self.range(vol, 64 << 10) else { return Ok(()) };
            range
        };
        let (fua, zeroes) = (self.rng.chance(50), self.rng.chance(300));
        let change = Change::Zero { offset, len };
        let device = self.device(&self.vols[vol].name.clone())?;
        self.tell(format!("  {change:?}"));
        self.flight = Flight::Change { vol, change: change.clone() };
        self.insist("discard", move || {
            let device = Rc::clone(&device);
            async move {
                let submit =
                    if zeroes { device.write_zeroes(offset, len, fua) } else { device.discard(offset, len, fua) };
                finish(&device, submit).await
            }
        })?;
        self.vols[vol].line.made(change);
        if fua {
            self.vols[vol].line.flushed();
        }
        Ok(())
    }

    fn flush(&mut self, vol: usize) -> Result<(), Died> {
        let device = self.device(&self.vols[vol].name.clone())?;
        self.go("flush", async move { wait(device.flush()).await })?;
        self.vols[vol].line.flushed();
        Ok(())
    }

    fn snapshot(&mut self, vol: usize) -> Result<(), Died> {
        if self.vols[vol].line.alive().len() >= MOST_SNAPSHOTS {
            return self.forget(vol);
        }
        let snap = self.fresh_name("s");
        self.flight = Flight::Snapshot { vol, name: snap.clone() };
        let open = self.node.volume(&self.vols[vol].name);
        let text = name(&snap);
        self.insist("snapshot", move || {
            let (open, text) = (Rc::clone(&open), text.clone());
            async move { open.snapshot(text).await.map(drop) }
        })?;
        self.snapshot_was_taken(vol, snap);
        Ok(())
    }

    pub fn snapshot_was_taken(&mut self, vol: usize, name: String) {
        let line = &mut self.vols[vol].line;
        line.flushed();
        line.snaps.push(Rc::new(RefCell::new(Snap { name, disk: line.now.clone(), alive: true })));
    }

    fn forget(&mut self, vol: usize) -> Result<(), Died> {
        let alive = self.vols[vol].line.alive();
        if alive.is_empty() {
            return Ok(());
        }
        let snap = self.pick(alive.len());
        let text = name(&alive[snap].borrow().name);
        self.views.retain(|(name, ..)| *name != text.as_str());
        self.flight = Flight::Forget { vol, snap };
        let open = self.node.volume(&self.vols[vol].name);
        self.insist("delete a snapshot", move || {
            let (open, text) = (Rc::clone(&open), text.clone());
            async move { open.delete_snapshot(&text).await }
        })?;
        alive[snap].borrow_mut().alive = false;
        Ok(())
    }

    fn clone(&mut self, vol: usize) -> Result<(), Died> {
        if self.vols.len() >= MOST_VOLUMES {
            return self.delete(vol);
        }
        let alive = self.vols[vol].line.alive();
        let snap = (!alive.is_empty() && self.rng.chance(700)).then(|| self.pick(alive.len()));
        let clone = self.fresh_name("v");
        self.flight = Flight::Clone { vol, snap, name: clone.clone() };
        let (shard, origin, new) = (self.node.shard(), name(&self.vols[vol].name), name(&clone));
        let from = snap.map(|snap| name(&alive[snap].borrow().name));
        self.insist("clone", move || {
            let (shard, origin, from, new) = (Rc::clone(&shard), origin.clone(), from.clone(), new.clone());
            async move { shard.clone_volume(&origin, from.as_ref(), new, Overrides::default()).await.map(drop) }
        })?;
        self.clone_was_made(vol, snap, clone);
        Ok(())
    }

    pub fn clone_was_made(&mut self, vol: usize, snap: Option<usize>, name: String) {
        let disk = match snap {
            Some(snap) => self.vols[vol].line.alive()[snap].borrow().disk.clone(),
            None => {
                self.vols[vol].line.flushed();
                self.vols[vol].line.now.clone()
            }
        };
        self.names += 1;
        let regions = self.vols[vol].regions.clone();
        let line = Line::new(self.names, disk);
        self.vols.push(Vol { name, line, hidden: Vec::new(), regions, ram: false });
    }

    /// What is attached lets go of a volume.
    fn detach(&mut self, vol: usize) {
        let volume = self.vols[vol].name.clone();
        self.devices.remove(&volume);
        let snaps: Vec<String> = self.vols[vol].line.snaps.iter().map(|snap| snap.borrow().name.clone()).collect();
        self.views.retain(|(name, ..)| !snaps.contains(name));
    }

    fn rollback(&mut self, vol: usize) -> Result<(), Died> {
        let alive = self.vols[vol].line.alive();
        if alive.is_empty() || self.vols[vol].hidden.len() > 3 {
            return Ok(());
        }
        self.detach(vol);
        let snap = self.pick(alive.len());
        let (open, text) = (self.node.volume(&self.vols[vol].name), name(&alive[snap].borrow().name));
        self.flight = Flight::Rollback { vol, snap, shown: open.record().shown };
        self.node.world.run_for(Duration::from_millis(5)).expect("the world runs");
        self.insist("rollback", move || {
            let (open, text) = (Rc::clone(&open), text.clone());
            async move { open.rollback(&text).await }
        })?;
        self.was_rolled_back(vol, snap);
        Ok(())
    }

    pub fn was_rolled_back(&mut self, vol: usize, snap: usize) {
        self.names += 1;
        let now = self.node.world.now();
        let vol = &mut self.vols[vol];
        let chosen = Rc::clone(&vol.line.alive()[snap]);
        let place = vol.line.snaps.iter().position(|s| Rc::ptr_eq(s, &chosen)).expect("it is one of them");
        let mut line = Line::new(self.names, chosen.borrow().disk.clone());
        line.snaps = vol.line.snaps[..=place].to_vec();
        vol.line.flushed();
        vol.line.hidden_at = now;
        let old = std::mem::replace(&mut vol.line, line);
        vol.hidden.push(old);
    }

    fn undo(&mut self, vol: usize) -> Result<(), Died> {
        let now = self.node.world.now();
        self.vols[vol].hidden.retain(|line| now < line.hidden_at + WINDOW - Duration::from_secs(60));
        if self.vols[vol].hidden.is_empty() {
            return Ok(());
        }
        self.detach(vol);
        let open = self.node.volume(&self.vols[vol].name);
        self.flight = Flight::Undo { vol, shown: open.record().shown };
        self.node.world.run_for(Duration::from_millis(5)).expect("the world runs");
        self.insist("undo a rollback", move || {
            let open = Rc::clone(&open);
            async move { open.undo_rollback().await }
        })?;
        self.was_undone(vol);
        Ok(())
    }

    pub fn was_undone(&mut self, vol: usize) {
        let now = self.node.world.now();
        let vol = &mut self.vols[vol];
        vol.line.flushed();
        vol.line.hidden_at = now;
        let back = vol.hidden.pop().expect("there is one");
        let now = std::mem::replace(&mut vol.line, back);
        vol.hidden.push(now);
    }

    fn delete(&mut self, vol: usize) -> Result<(), Died> {
        if self.vols.len() < 3 || vol < 2 {
            return Ok(());
        }
        self.detach(vol);
        self.flight = Flight::Delete { vol };
        let (shard, text) = (self.node.shard(), name(&self.vols[vol].name));
        self.insist("delete", move || {
            let (shard, text) = (Rc::clone(&shard), text.clone());
            async move { shard.delete_volume(&text).await }
        })?;
        self.was_deleted(vol);
        Ok(())
    }

    pub fn was_deleted(&mut self, vol: usize) {
        let mut vol = self.vols.remove(vol);
        vol.line.flushed();
        self.gone.push((vol, self.node.world.now()));
    }

    fn undelete(&mut self) -> Result<(), Died> {
        let now = self.node.world.now();
        self.gone.retain(|(_, at)| now < *at + WINDOW - Duration::from_secs(60));
        if self.gone.is_empty() || self.vols.len() > MOST_VOLUMES {
            return Ok(());
        }
        let gone = self.pick(self.gone.len());
        self.flight = Flight::Undelete { gone };
        let (shard, text) = (self.node.shard(), name(&self.gone[gone].0.name));
        self.insist("undelete", move || {
            let (shard, text) = (Rc::clone(&shard), text.clone());
            async move {
                // A try that failed half-way may have brought it back.
                match shard.find(&text) {
                    Ok(_) => Ok(()),
                    Err(_) => shard.undelete_volume(&text).await.map(drop),
                }
            }
        })?;
        let (vol, _) = self.gone.remove(gone);
        self.vols.push(vol);
        Ok(())
    }

    fn resize(&mut self, vol: usize) -> Result<(), Died> {
        if self.vols[vol].regions.len() > 1 {
            return Ok(());
        }
        let size = (1 + self.rng.below(16 << 11)) * SECTOR;
        let change = Change::Resize { size };
        self.tell(format!("  {change:?}"));
        self.flight = Flight::Change { vol, change: change.clone() };
        let open = self.node.volume(&self.vols[vol].name);
        self.insist("resize", move || {
            let open = Rc::clone(&open);
            async move { open.resize(size, true).await }
        })?;
        self.vols[vol].line.made(change);
        self.vols[vol].line.flushed();
        self.vols[vol].regions = vec![(0, size)];
        Ok(())
    }

    fn seal(&mut self, vol: usize) -> Result<(), Died> {
        let open = self.node.volume(&self.vols[vol].name);
        self.go("seal", async move { open.seal().await })?;
        self.vols[vol].line.flushed();
        Ok(())
    }

    fn checkpoint(&mut self, vol: usize) -> Result<(), Died> {
        let open = self.node.volume(&self.vols[vol].name);
        self.go("checkpoint", async move { open.checkpoint().await })
    }

    /// Attaches to a snapshot, and stays.
    fn view(&mut self, vol: usize) -> Result<(), Died> {
        let alive = self.vols[vol].line.alive();
        if alive.is_empty() || self.views.len() > 2 {
            self.views.clear();
            return Ok(());
        }
        let snap = self.pick(alive.len());
        let snap = alive[snap].borrow();
        let (open, text) = (self.node.volume(&self.vols[vol].name), name(&snap.name));
        let device = self.insist("attach a snapshot", move || {
            let (open, text) = (Rc::clone(&open), text.clone());
            async move { Ok(Rc::new(open.snapshot_device(&text, "model".to_owned()).await?)) }
        })?;
        self.views.push((snap.name.clone(), device, snap.disk.clone()));
        Ok(())
    }

    fn pass_time(&mut self) -> Result<(), Died> {
        // Now and then every window ends.
        let ms = match self.rng.below(100) {
            0..3 => 1_800_000,
            3..6 => WINDOW.as_millis() as u64 + 900_000,
            _ => self.rng.below(30_000),
        };
        self.node.world.run_for(Duration::from_millis(ms)).expect("the world runs");
        if self.node.env.is_dead() { Err(Died) } else { Ok(()) }
    }
}
