// SPDX-License-Identifier: Apache-2.0
//! Operations on volumes and snapshots: what is asked for, and what the model makes of the answer.
//!
//! An operation that was answered is done; what became of one that a death cut off is found out by `cut_off.rs`.
//! What store or coordination refuse for now is tried again, as a person would: a try that was refused may have been done all the same, so the next one
//! looks first. Nothing is asked for that must be refused by the rules (a rollback while attached): that is for tests of their own. But what is hidden may be
//! asked for right when its window ends: then it comes back whole, or is refused.

use super::act::{act, create, name_of, settings};
use super::batch::Batch;
use super::cut_off::CutOff;
use super::disk::{Change, Disk};
use super::line::{Line, Made, Snap};
use super::plan::Op;
use super::run::{Died, Gone, Run, View, patiently};
use super::stamp::{BLOCK, SECTOR};
use crate::Rng;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;
use varve_engine::{Device, EngineError};
use varve_env::{Env, LocalFuture};
use varve_types::{Ack, ErrorKind, Overrides, Sequence, TimelineId};

const MOST_VOLUMES: usize = 5;
const MOST_SNAPSHOTS: usize = 6;
/// Operations on volumes and snapshots that are under way together, at most.
const MOST_ADMINS: usize = 3;
/// How long before the end of a window nothing of it is brought back any more, in milliseconds.
const MARGIN_MS: u64 = 60_000;
/// How long before the end of a window it is waited for, so as to bring something back right then, in milliseconds.
const LAST_MOMENT_MS: Range<u64> = 400..150_000;

pub(super) type Shared = Rc<RefCell<Snap>>;

/// What is done.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    Snapshot { name: String },
    Forget { snap: Shared },
    Clone { snap: Option<Shared>, name: String },
    Rewind { last: Sequence, disk: Rc<Disk>, name: String },
    Rollback { snap: Shared, shown: TimelineId },
    Undo { shown: TimelineId },
    Create { name: String, size: u64, ram: bool },
    Delete,
    Undelete { gone: usize },
    UndeleteTooLate { name: String },
    Resize { change: Change },
    Template,
    Rename { name: String },
    Set { settings: Overrides, times: u64 },
    Flatten,
    Seal,
    Checkpoint,
    View { snap: Shared },
    Show,
    Check,
}

impl Kind {
    const fn undeletes(&self) -> bool {
        matches!(self, Self::Undelete { .. } | Self::UndeleteTooLate { .. })
    }
}

/// An operation of a batch.
pub(super) struct Admin {
    kind: Kind,
    vol: usize,
    /// Wall-clock time at its start, in milliseconds.
    at_ms: u64,
    /// How much later than the rest of the batch it begins.
    delay: Duration,
    answer: Rc<RefCell<Option<Result<(), EngineError>>>>,
    device: Rc<RefCell<Option<Rc<Device>>>>,
}

impl Admin {
    /// What it does, for the log.
    pub(super) const fn kind(&self) -> &Kind {
        &self.kind
    }

    /// The volume, the change, and whether it was answered, where it is a resize.
    pub(super) fn resize(&self) -> Option<(usize, Change, bool)> {
        let Kind::Resize { change } = self.kind else { return None };
        Some((self.vol, change, matches!(&*self.answer.borrow(), Some(Ok(())))))
    }

    /// Whether it takes a volume away.
    pub(super) const fn is_deletion(&self) -> bool {
        matches!(self.kind, Kind::Delete)
    }

    /// Whether it may be under way together with another one.
    fn goes_with(&self, kind: &Kind, vol: usize) -> bool {
        let is_chore =
            |kind: &Kind| matches!(kind, Kind::Flatten | Kind::Seal | Kind::Checkpoint | Kind::Check | Kind::Show);
        let bears = |kind: &Kind| matches!(kind, Kind::Snapshot { .. } | Kind::Forget { .. } | Kind::Set { .. });
        let (one, other) = (&self.kind, kind);
        if self.is_deletion() && matches!(other, Kind::Delete) {
            return false;
        }
        // On one volume: what only works it off, beside what adds to it.
        self.vol() != Some(vol)
            || (is_chore(one) && (is_chore(other) || bears(other)))
            || (bears(one) && is_chore(other))
    }

    /// The volume that it is about.
    pub(super) fn vol(&self) -> Option<usize> {
        (!matches!(self.kind, Kind::Create { .. } | Kind::Undelete { .. } | Kind::UndeleteTooLate { .. }))
            .then_some(self.vol)
    }
}

impl Run {
    /// The volume made at the beginning, before anything can fail for long.
    pub(super) fn make_first(&mut self, size: u64, regions: Vec<(u64, u64)>, rng: &mut Rng) {
        let (volume, ram) = (self.fresh_name("v"), rng.chance(250));
        let (shard, text) = (self.node.shard(), volume.clone());
        let made = self.insist("create", move || create(Rc::clone(&shard), text.clone(), size, ram));
        made.expect("no death is planned");
        self.adopt(volume, Disk::new(size), regions, ram);
    }

    /// Adds an operation to a batch, if it is possible now.
    pub(super) fn plan_admin(&mut self, op: Op, vol: usize, batch: &mut Batch, rng: &mut Rng) {
        // To choose what is brought back forgets what no longer can be, and one that was chosen before is known by its place.
        let is_second = op == Op::Undelete && batch.admins.iter().any(|admin| admin.kind.undeletes());
        if batch.admins.len() == MOST_ADMINS || is_second {
            return;
        }
        let Some(kind) = self.choose(op, vol, rng) else { return };
        let alone = matches!(
            kind,
            Kind::Clone { .. }
                | Kind::Rewind { .. }
                | Kind::Rollback { .. }
                | Kind::Undo { .. }
                | Kind::Delete
                | Kind::Template
        );
        if matches!(kind, Kind::Resize { change: Change::Resize { to, .. } } if !batch.takes_size(vol, to)) {
            return;
        }
        if (alone && batch.uses(vol)) || !batch.admins.iter().all(|admin| admin.goes_with(&kind, vol)) {
            return;
        }
        if matches!(kind, Kind::Rollback { .. } | Kind::Undo { .. } | Kind::Delete | Kind::Template) {
            self.detach(vol);
        }
        if alone {
            batch.alone.push(vol);
        }
        if let Kind::Resize { change: Change::Resize { from, to } } = kind {
            self.beside_resize(vol, from, to, batch, rng);
        }
        if matches!(kind, Kind::Flatten) && !self.vols[vol].template && rng.chance(500) {
            (0..6).for_each(|_| self.write_somewhere(vol, BLOCK, batch, rng));
        }
        // What a hidden history keeps changes under the hands of who looks at all of it.
        let is_looked_at = matches!(kind, Kind::Forget { .. })
            && batch.admins.len() + 1 < MOST_ADMINS
            && batch.admins.iter().all(|admin| admin.goes_with(&Kind::Check, vol))
            && self.node.volume(&self.vols[vol].name).record().timelines.len() > 1
            && rng.chance(150);
        let delay = Duration::from_millis(if is_looked_at || rng.chance(300) { rng.below(200) } else { 0 });
        self.add_admin(kind, vol, delay, batch);
        if is_looked_at {
            self.add_admin(Kind::Check, vol, Duration::ZERO, batch);
        }
    }

    pub(super) fn add_admin(&mut self, kind: Kind, vol: usize, delay: Duration, batch: &mut Batch) {
        self.cover.count(name_of(&kind));
        let at_ms = self.node.env.wall_ms();
        batch.admins.push(Admin { kind, vol, at_ms, delay, answer: Rc::default(), device: Rc::default() });
    }

    fn choose(&mut self, op: Op, vol: usize, rng: &mut Rng) -> Option<Kind> {
        let alive = self.vols[vol].line.alive();
        let any =
            |rng: &mut Rng| (!alive.is_empty()).then(|| Rc::clone(&alive[rng.below(alive.len() as u64) as usize]));
        let (template, frozen) = (self.vols[vol].template, self.vols[vol].line.frozen_base);
        let shown = self.node.volume(&self.vols[vol].name).record().shown;
        Some(match op {
            _ if frozen => return None,
            Op::Snapshot if alive.len() < MOST_SNAPSHOTS && !template => Kind::Snapshot { name: self.fresh_name("s") },
            // The newest often: nothing but its mark may be there of it yet.
            Op::Forget if rng.chance(500) => Kind::Forget { snap: Rc::clone(alive.last()?) },
            Op::Forget => Kind::Forget { snap: any(rng)? },
            Op::Clone if self.vols.len() < MOST_VOLUMES => {
                let snap = if rng.chance(700) { any(rng) } else { None };
                Kind::Clone { snap, name: self.fresh_name("v") }
            }
            Op::Rewind if self.vols.len() < MOST_VOLUMES => {
                let moments = &self.vols[vol].line.moments;
                let moment = moments.get(rng.below(moments.len().max(1) as u64) as usize)?;
                let (last, disk) = (moment.last, Rc::clone(&moment.disk));
                Kind::Rewind { last, disk, name: self.fresh_name("v") }
            }
            Op::Rollback if self.vols[vol].hidden.len() < 4 && !template => Kind::Rollback { snap: any(rng)?, shown },
            Op::Undo
                if !template
                    && self.vols[vol].hidden.last().is_some_and(|line| self.ends_soon(line.hidden_ms))
                    && rng.chance(150) =>
            {
                let from_ms = self.vols[vol].hidden.last().map_or(0, |line| line.hidden_ms);
                self.wait_for_the_end(from_ms, rng);
                Kind::Undo { shown }
            }
            Op::Undo if !template => {
                let end = self.peak_ms + MARGIN_MS;
                let window = self.window_ms();
                self.vols[vol].hidden.retain(|line| end < line.hidden_ms + window);
                // Where the clock jumps, which of several was hidden last is the clock's opinion.
                if self.vols[vol].hidden.is_empty() || (self.plan.jump > 0 && self.vols[vol].hidden.len() > 1) {
                    return None;
                }
                Kind::Undo { shown }
            }
            Op::Create if self.vols.len() < MOST_VOLUMES => {
                let size = (1 + rng.below(500)) * SECTOR;
                Kind::Create { name: self.fresh_name("v"), size, ram: rng.chance(250) }
            }
            Op::Delete if self.vols.len() > 2 => Kind::Delete,
            Op::Undelete if self.vols.len() <= MOST_VOLUMES => self.choose_deleted(rng)?,
            Op::Resize if self.vols[vol].regions.len() == 1 && !template => {
                // Over several leaves of the map now and then.
                let most = if rng.chance(100) { 12_000 } else { 1000 };
                let (from, to) = (self.vols[vol].line.now.size, (1 + rng.below(most)) * SECTOR);
                Kind::Resize { change: Change::Resize { from, to } }
            }
            Op::Template if self.vols.len() > 2 && !template => Kind::Template,
            Op::Rename => Kind::Rename { name: self.fresh_name("v") },
            Op::Set => {
                let times = if rng.chance(300) { 1 + rng.below(6) } else { 1 };
                Kind::Set { settings: settings(self.vols[vol].ram, rng), times }
            }
            Op::Flatten => Kind::Flatten,
            Op::Seal => Kind::Seal,
            Op::Checkpoint => Kind::Checkpoint,
            Op::View if self.views.len() < 3 => Kind::View { snap: any(rng)? },
            Op::Show => Kind::Show,
            Op::Check => Kind::Check,
            _ => return None,
        })
    }

    /// Which deleted volume is asked for: one that can be brought back, or one that nobody may.
    fn choose_deleted(&mut self, rng: &mut Rng) -> Option<Kind> {
        let at_its_end = self.gone.iter().position(|gone| self.ends_soon(gone.to_ms));
        if let Some(gone) = at_its_end.filter(|_| rng.chance(500)) {
            self.wait_for_the_end(self.gone[gone].to_ms, rng);
            return Some(Kind::Undelete { gone });
        }
        let (window, end) = (self.window_ms(), self.peak_ms + MARGIN_MS);
        let (kept, over) = std::mem::take(&mut self.gone).into_iter().partition(|gone| end < gone.from_ms + window);
        self.gone = kept;
        let over: Vec<Gone> = over;
        self.expired.extend(over.into_iter().map(|gone| (gone.vol.name, gone.to_ms + window)));
        // Where the clock jumps, whether a window is over is the clock's opinion.
        let now = self.node.env.wall_ms();
        let late = self.expired.iter().rev().find(|(_, over_ms)| self.plan.jump == 0 && *over_ms <= now);
        match late {
            Some((name, _)) if self.gone.is_empty() || rng.chance(300) => {
                Some(Kind::UndeleteTooLate { name: name.clone() })
            }
            _ if self.gone.is_empty() => None,
            _ => Some(Kind::Undelete { gone: rng.below(self.gone.len() as u64) as usize }),
        }
    }

    /// Whether the window of what was hidden then ends so soon that it can be waited for. Where the clock jumps nobody knows.
    fn ends_soon(&self, from_ms: u64) -> bool {
        let left = (from_ms + self.window_ms()).saturating_sub(self.node.env.wall_ms());
        self.plan.jump == 0 && LAST_MOMENT_MS.contains(&left)
    }

    /// Waits until that window ends in a moment.
    fn wait_for_the_end(&mut self, from_ms: u64, rng: &mut Rng) {
        self.wait_ms(from_ms + self.window_ms() - self.node.env.wall_ms() - rng.below(LAST_MOMENT_MS.start));
        if rng.chance(500) {
            // It is over long before all is found that is needed to bring something back.
            self.read_badly(rng);
        }
    }

    pub(super) fn window_ms(&self) -> u64 {
        self.plan.pool.undelete_window_ms.unwrap_or_default()
    }

    /// What is attached lets go of a volume.
    pub(super) fn detach(&mut self, vol: usize) {
        let volume = &self.vols[vol].name;
        self.devices.remove(volume);
        self.views.retain(|view| view.volume != *volume);
        self.node.world.run_for(Duration::from_millis(5)).expect("the world runs");
    }

    /// The future of an operation.
    pub(super) fn start_admin(&self, admin: &Admin) -> LocalFuture<()> {
        let shard = self.node.shard();
        let volume = self.vols[admin.vol.min(self.vols.len() - 1)].name.clone();
        let gone =
            if let Kind::Undelete { gone } = admin.kind { self.gone[gone].vol.name.clone() } else { String::new() };
        let (env, kind, delay) = (Rc::clone(&self.node.env), admin.kind.clone(), admin.delay);
        let (answer, device) = (Rc::clone(&admin.answer), Rc::clone(&admin.device));
        Box::pin(async move {
            if !delay.is_zero() {
                env.sleep(delay).await;
            }
            let refused = Cell::new(false);
            let done = patiently(&*env, || {
                let again = refused.replace(true);
                act(Rc::clone(&shard), volume.clone(), gone.clone(), kind.clone(), Rc::clone(&device), again)
            })
            .await;
            if !env.is_dead() {
                *answer.borrow_mut() = Some(done);
            }
        })
    }

    /// Takes the answer of an operation, or keeps it in mind until it is known what became of it.
    pub(super) fn take_admin(
        &mut self,
        admin: Admin,
        before: &BTreeMap<usize, Disk>,
        made: &BTreeMap<usize, Vec<Made>>,
        done: Result<(), Died>,
    ) -> Result<(), Died> {
        let empty = Disk::default();
        let (before, made) =
            (before.get(&admin.vol).unwrap_or(&empty), made.get(&admin.vol).map_or(&[][..], Vec::as_slice));
        let answer = admin.answer.take();
        match answer {
            Some(Ok(())) => {
                if let Kind::View { snap } = &admin.kind {
                    self.was_attached(&admin, snap);
                    return done;
                }
                let found = if done.is_ok() { self.snapshot_contents(&admin, made) } else { Err(Died) };
                let found_dead = found.is_err();
                match found {
                    Ok(found) => self.was_done(admin.kind, admin.vol, admin.at_ms, before, made, found),
                    Err(Died) => self.keep_in_mind(admin, true, before, made),
                }
                if found_dead { Err(Died) } else { done }
            }
            Some(Err(error)) if matches!(admin.kind, Kind::Flatten) && error.kind() == ErrorKind::Conflict => done,
            Some(Err(error))
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Conflict) && self.came_too_late(&admin) =>
            {
                self.cover.count("op: refused, as its window has ended meanwhile");
                done
            }
            // What the window keeps is the engine's to say; what it says that it has must be right.
            Some(Err(error)) if matches!(admin.kind, Kind::Rewind { .. }) && error.kind() == ErrorKind::NotFound => {
                self.cover.count("op: rewind, refused as the moment is gone or not stored yet");
                done
            }
            // It reads every byte, and begins anew at each refusal.
            Some(Err(error)) if matches!(admin.kind, Kind::Check) && error.kind() == ErrorKind::Unavailable => done,
            Some(Err(error)) => self.fail(&format!("{:?}: {error} ({:?})", admin.kind, error.kind())),
            None => {
                self.keep_in_mind(admin, false, before, made);
                done
            }
        }
    }

    /// Whether the window of what was to be brought back has ended while store or coordination were in the way.
    fn came_too_late(&self, admin: &Admin) -> bool {
        let over = |from_ms: u64| self.node.env.wall_ms() >= from_ms + self.window_ms();
        match admin.kind {
            Kind::Undelete { gone } => over(self.gone[gone].from_ms),
            Kind::Undo { .. } => self.vols[admin.vol].hidden.last().is_some_and(|line| over(line.hidden_ms)),
            _ => false,
        }
    }

    fn keep_in_mind(&mut self, admin: Admin, answered: bool, before: &Disk, made: &[Made]) {
        let Admin { kind, vol, at_ms, .. } = admin;
        self.cut_off.push(CutOff { kind, vol, at_ms, answered, before: before.clone(), made: made.to_vec() });
    }

    fn was_attached(&mut self, admin: &Admin, snap: &Shared) {
        let snap = snap.borrow();
        if let Some(device) = admin.device.take() {
            let (volume, snapshot, disk) = (self.vols[admin.vol].name.clone(), snap.name.clone(), snap.disk.clone());
            self.views.push(View { volume, snapshot, device, disk });
        }
    }

    /// What a snapshot that was just taken holds, where changes that were under way beside it may be in it or not. Else it is known, and not looked at: that would
    /// bring about a checkpoint, and it is to be seen what becomes of a snapshot that is a mark only.
    fn snapshot_contents(&mut self, admin: &Admin, made: &[Made]) -> Result<Option<Disk>, Died> {
        match &admin.kind {
            Kind::Snapshot { name } if !made.is_empty() => self.read_snapshot(admin.vol, name).map(Some),
            _ => Ok(None),
        }
    }

    /// The model does what the engine has done.
    pub(super) fn was_done(
        &mut self,
        kind: Kind,
        vol: usize,
        at_ms: u64,
        before: &Disk,
        made: &[Made],
        found: Option<Disk>,
    ) {
        match kind {
            Kind::Snapshot { name } => {
                let disk = found.unwrap_or_else(|| self.vols[vol].line.now.clone());
                let explained = self.vols[vol].line.explain_snapshot(before, made, &disk);
                if let Err(text) = explained {
                    self.fail(&format!("snapshot {name} of {}: {text}", self.vols[vol].name));
                }
                let line = &mut self.vols[vol].line;
                line.flushed(usize::from(!made.is_empty()));
                line.snaps.push(Rc::new(RefCell::new(Snap { name, disk, alive: true })));
            }
            Kind::Forget { snap } => {
                snap.borrow_mut().alive = false;
                let name = snap.borrow().name.clone();
                self.views.retain(|view| view.snapshot != name);
            }
            Kind::Clone { snap, name } => self.was_cloned(vol, snap, name),
            Kind::Rewind { disk, name, .. } => self.was_born(vol, Disk::clone(&disk), name),
            Kind::Rollback { snap, .. } => self.was_rolled_back(vol, &snap, at_ms),
            Kind::Undo { .. } => {
                let back = self.vols[vol].hidden.pop().expect("there is one");
                self.vols[vol].show(back, at_ms);
            }
            Kind::Create { name, size, ram } => self.adopt(name, Disk::new(size), vec![(0, size)], ram),
            Kind::Delete => {
                let mut vol = self.vols.remove(vol);
                vol.line.flushed(0);
                self.gone.push(Gone { vol, from_ms: at_ms, to_ms: self.node.env.wall_ms() });
            }
            Kind::Undelete { gone } => {
                let Gone { vol, .. } = self.gone.remove(gone);
                self.vols.push(vol);
            }
            // It is among the changes of its batch.
            Kind::Resize { .. } => {
                self.vols[vol].line.flushed(1);
                self.vols[vol].size_changed();
            }
            Kind::Template => {
                self.vols[vol].line.flushed(0);
                self.vols[vol].template = true;
            }
            Kind::Rename { name } => {
                let old = std::mem::replace(&mut self.vols[vol].name, name.clone());
                self.views.iter_mut().filter(|view| view.volume == old).for_each(|view| view.volume.clone_from(&name));
                if let Some(device) = self.devices.remove(&old) {
                    self.devices.insert(name, device);
                }
            }
            Kind::Set { settings, .. } => self.vols[vol].ram |= settings.ack == Some(Ack::Ram),
            Kind::Seal => self.vols[vol].line.flushed(usize::from(!made.is_empty())),
            Kind::Flatten
            | Kind::Checkpoint
            | Kind::View { .. }
            | Kind::Show
            | Kind::Check
            | Kind::UndeleteTooLate { .. } => {}
        }
    }

    fn was_rolled_back(&mut self, vol: usize, snap: &Shared, at_ms: u64) {
        let old = &self.vols[vol].line;
        let place = old.snaps.iter().position(|s| Rc::ptr_eq(s, snap)).expect("it is one of them");
        let mut line = Line::new(snap.borrow().disk.clone());
        line.snaps = old.snaps[..=place].to_vec();
        self.vols[vol].show(line, at_ms);
    }

    fn was_cloned(&mut self, vol: usize, snap: Option<Shared>, name: String) {
        let origin = &mut self.vols[vol];
        let disk = match snap {
            Some(snap) => snap.borrow().disk.clone(),
            None => {
                origin.line.flushed(0);
                origin.line.now.clone()
            }
        };
        self.was_born(vol, disk, name);
    }

    /// A volume was made of what another one was; it is used where that one is.
    fn was_born(&mut self, vol: usize, disk: Disk, name: String) {
        let origin = &self.vols[vol];
        let regions = if origin.regions.len() == 1 { vec![(0, disk.size)] } else { origin.regions.clone() };
        self.adopt(name, disk, regions, false);
    }
}
