// SPDX-License-Identifier: Apache-2.0
//! The story, what was answered of it, and what must be true after a crash in the middle.

use super::disk::{Change, Disk, bytes_of};
use super::line::{Line, Snap};
use super::node::{Node, finish, name, wait};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use varve_engine::{BlockDevice, Device, NewVolume, Shard};
use varve_env::Env;
use varve_sim::{CrashMode, SimEnv};
use varve_types::{Overrides, TimelineId};

/// More than a leaf of the map covers.
const SIZE: u64 = (2 << 20) + (512 << 10);
const KIB: u64 = 1024;

/// A step of the story.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Create,
    Write(&'static str, u64, u64),
    Zero(&'static str, u64, u64),
    Flush(&'static str),
    Snapshot(&'static str, &'static str),
    Forget(&'static str, &'static str),
    Seal(&'static str),
    Checkpoint(&'static str),
    Clone(&'static str, &'static str, &'static str),
    Rollback(&'static str, &'static str),
    Undo(&'static str),
    Delete(&'static str),
    Wait(u64),
}

/// Everything once.
pub const STORY: &[Step] = &[
    Step::Create,
    Step::Write("v", 0, 40 * KIB),
    Step::Write("v", 6 * KIB + 512, 9 * KIB),
    Step::Flush("v"),
    Step::Write("v", 100 * KIB, 12 * KIB),
    Step::Snapshot("v", "a"),
    Step::Write("v", 8 * KIB, 16 * KIB),
    Step::Write("v", 200 * KIB, 100 * KIB),
    Step::Seal("v"),
    Step::Checkpoint("v"),
    Step::Write("v", 16 * KIB, 8 * KIB),
    Step::Zero("v", 102 * KIB, 7 * KIB),
    Step::Snapshot("v", "b"),
    Step::Write("v", 240 * KIB, 24 * KIB),
    Step::Clone("v", "b", "w"),
    Step::Write("w", 4 * KIB, 20 * KIB),
    Step::Flush("w"),
    Step::Clone("w", "", "x"),
    Step::Write("v", 0, 8 * KIB),
    Step::Seal("v"),
    Step::Checkpoint("v"),
    Step::Forget("v", "a"),
    Step::Write("v", 200 * KIB, 60 * KIB),
    Step::Seal("v"),
    Step::Checkpoint("v"),
    Step::Wait(50),
    Step::Rollback("v", "b"),
    Step::Write("v", 32 * KIB, 16 * KIB),
    Step::Flush("v"),
    Step::Undo("v"),
    Step::Write("v", 300 * KIB, 4 * KIB),
    Step::Seal("w"),
    Step::Checkpoint("w"),
    Step::Write("v", 2100 * KIB, 24 * KIB),
    Step::Seal("v"),
    Step::Checkpoint("v"),
    // A leaf is cut out whole; snapshot b keeps a part of it.
    Step::Zero("v", 0, 2048 * KIB),
    Step::Seal("v"),
    Step::Checkpoint("v"),
    Step::Wait(2_500),
    Step::Delete("x"),
    Step::Write("v", 0, 300 * KIB),
    Step::Flush("v"),
    Step::Wait(40_000),
    Step::Checkpoint("v"),
    Step::Wait(12_000),
];

/// A rollback past its window: what is behind the snapshot goes, then what no tree reaches; and a rollback that is undone ends.
pub const ROLLBACK: &[Step] = &[
    Step::Create,
    Step::Write("v", 0, 100 * KIB),
    Step::Snapshot("v", "a"),
    Step::Write("v", 40 * KIB, 100 * KIB),
    Step::Seal("v"),
    Step::Checkpoint("v"),
    Step::Snapshot("v", "b"),
    Step::Write("v", 0, 60 * KIB),
    Step::Rollback("v", "a"),
    Step::Write("v", 8 * KIB, 8 * KIB),
    Step::Wait(45_000),
    Step::Forget("v", "a"),
    Step::Write("v", 0, 70 * KIB),
    Step::Seal("v"),
    Step::Checkpoint("v"),
    Step::Wait(40_000),
    Step::Snapshot("v", "c"),
    Step::Write("v", 70 * KIB, 30 * KIB),
    Step::Rollback("v", "c"),
    Step::Undo("v"),
    Step::Wait(700_000),
];

/// What was answered.
pub struct Story {
    pub what: String,
    /// Whether the shard was ever there.
    pub started: bool,
    pub flight: Option<Step>,
    lines: BTreeMap<&'static str, Line>,
    hidden: Vec<Line>,
    shown: Option<TimelineId>,
    stamp: u64,
}

impl Story {
    pub fn shared(what: String) -> Rc<RefCell<Self>> {
        let (started, flight, shown) = (false, None, None);
        let (lines, hidden) = (BTreeMap::new(), Vec::new());
        Rc::new(RefCell::new(Self { what, started, flight, lines, hidden, shown, stamp: 0 }))
    }

    fn change(&self, step: &Step) -> Option<(&'static str, Change)> {
        match step {
            Step::Write(vol, offset, len) => {
                Some((vol, Change::Write { offset: *offset, len: *len, stamp: self.stamp + 1 }))
            }
            Step::Zero(vol, offset, len) => Some((vol, Change::Zero { offset: *offset, len: *len })),
            _ => None,
        }
    }

    fn line(&mut self, vol: &str) -> &mut Line {
        self.lines.get_mut(vol).expect("the story has it")
    }

    /// A step was answered.
    fn done(&mut self, step: &Step) {
        if let Some((vol, change)) = self.change(step) {
            self.stamp += 1;
            self.line(vol).made(change);
        }
        match step {
            Step::Create => {
                self.lines.insert("v", Line::new(Disk::new(SIZE)));
            }
            Step::Flush(vol) | Step::Seal(vol) => self.line(vol).flushed(),
            Step::Snapshot(vol, snap) => {
                let line = self.line(vol);
                line.flushed();
                line.snaps.push(Snap { name: (*snap).to_owned(), disk: line.now.clone() });
            }
            Step::Forget(vol, snap) => self.line(vol).snaps.retain(|s| s.name != *snap),
            Step::Clone(vol, snap, new) => {
                let line = self.line(vol);
                let found = line.snap(snap).map(|snap| snap.disk.clone());
                let disk = found.unwrap_or_else(|| {
                    line.flushed();
                    line.now.clone()
                });
                self.lines.insert(new, Line::new(disk));
            }
            Step::Rollback(vol, snap) => {
                let line = self.line(vol);
                let place = line.snaps.iter().position(|s| s.name == *snap).expect("it is there");
                let mut new = Line::new(line.snaps[place].disk.clone());
                new.snaps = line.snaps[..=place].to_vec();
                line.flushed();
                let old = std::mem::replace(line, new);
                self.hidden.push(old);
            }
            Step::Undo(vol) => {
                let back = self.hidden.pop().expect("there was a rollback");
                *self.line(vol) = back;
            }
            Step::Delete(vol) => {
                self.lines.remove(vol);
            }
            Step::Write(..) | Step::Zero(..) | Step::Checkpoint(_) | Step::Wait(_) => {}
        }
        self.flight = None;
    }

    /// Finds out what became of the step that was under way, and takes what was left of the changes where the promises allow it.
    pub fn resolve(&mut self, node: &Node, mode: CrashMode) {
        let flight = self.flight.take();
        let find = |vol: &str| node.shard().find(&name(vol)).ok();
        let happened = match &flight {
            Some(Step::Create) => find("v").is_some(),
            Some(Step::Snapshot(vol, snap)) => lists(node, vol, snap),
            Some(Step::Forget(vol, snap)) => !lists(node, vol, snap),
            Some(Step::Clone(_, _, new)) => find(new).is_some(),
            Some(Step::Rollback(vol, _) | Step::Undo(vol)) => {
                find(vol).is_some_and(|volume| Some(volume.record().shown) != self.shown)
            }
            Some(Step::Delete(vol)) => find(vol).is_none(),
            _ => false,
        };
        if let (Some(step), true) = (&flight, happened) {
            self.done(step);
        }
        let change = flight.as_ref().and_then(|step| self.change(step));
        if change.is_some() {
            self.stamp += 1;
        }
        let vols: Vec<_> = self.lines.keys().copied().collect();
        for vol in vols {
            let found = contents(node, &device(node, vol));
            let flight = change.as_ref().filter(|(of, _)| *of == vol).map(|(_, change)| change);
            let what = self.what.clone();
            let line = self.line(vol);
            if let Err(text) = line.recover(found, mode == CrashMode::Kill, flight) {
                panic!("{what}: volume {vol}: {text}");
            }
        }
    }

    /// Compares everything, and lets the engine count.
    pub fn prove(&self, node: &Node, when: &str) {
        let open: Vec<_> = node.shard().volumes().iter().map(|volume| volume.name().to_string()).collect();
        let mine: Vec<_> = self.lines.keys().map(|vol| (*vol).to_owned()).collect();
        assert_eq!(open, mine, "{}, {when}: the volumes", self.what);
        for (vol, line) in &self.lines {
            self.same(&format!("{when}: volume {vol}"), &contents(node, &device(node, vol)), &line.now);
            for snap in &line.snaps {
                let (volume, text) = (node.volume(vol), name(&snap.name));
                let view = node
                    .must("view", async move { volume.snapshot_device(&text, "story".to_owned()).await.map(Rc::new) });
                self.same(&format!("{when}: snapshot {} of {vol}", snap.name), &contents(node, &view), &snap.disk);
            }
        }
        for vol in self.lines.keys() {
            let volume = node.volume(vol);
            let report = node.must("check", async move { volume.check(&|_, _| {}).await });
            assert!(report.problems.is_empty(), "{}, {when}: check of {vol}: {:?}", self.what, report.problems);
        }
    }

    fn same(&self, what: &str, found: &Disk, wanted: &Disk) {
        if let Some(block) = found.difference(wanted) {
            let (found, wanted) = (found.describe(block), wanted.describe(block));
            panic!("{}, {what}: block {block} is {found}, should be {wanted}", self.what);
        }
        assert_eq!(found.size, wanted.size, "{}, {what}", self.what);
    }

    /// Every volume takes writes, and what is late lands.
    pub fn go_on(&mut self, node: &Node) {
        let vols: Vec<_> = self.lines.keys().copied().collect();
        for vol in vols {
            self.stamp += 1;
            let change = Change::Write { offset: 512, len: 80 * KIB, stamp: self.stamp };
            let device = device(node, vol);
            node.write(&device, 512, bytes_of(self.stamp, 80 * KIB), true).expect("alive").expect("a write");
            let line = self.line(vol);
            line.made(change);
            line.flushed();
        }
        node.world.run_for(Duration::from_secs(13)).expect("the world runs");
    }
}

fn device(node: &Node, vol: &str) -> Rc<Device> {
    node.device(vol)
}

fn contents(node: &Node, device: &Rc<Device>) -> Disk {
    let mut disk = Disk::new(device.size());
    let bytes = node.read(device, 0, device.size() as u32).expect("alive").expect("a read");
    disk.put(0, &bytes);
    disk
}

fn lists(node: &Node, vol: &str, snap: &str) -> bool {
    let volume = node.volume(vol);
    node.must("list", async move { volume.snapshots().await }).iter().any(|s| s.name.as_str() == snap)
}

/// Plays the story to its end, or to the death of the process. Nothing is noted as answered by the dead.
pub async fn play(shard: Rc<Shard>, env: Rc<SimEnv>, story: Rc<RefCell<Story>>, steps: &[Step]) {
    let mut devices = BTreeMap::new();
    for step in steps {
        let change = {
            let mut story = story.borrow_mut();
            story.flight = Some(step.clone());
            if let Step::Rollback(vol, _) | Step::Undo(vol) = step {
                story.shown = shard.find(&name(vol)).ok().map(|volume| volume.record().shown);
            }
            story.change(step)
        };
        let done = perform(&shard, &env, &mut devices, step, change).await;
        if env.points().dead() {
            std::future::pending::<()>().await;
        }
        if let Err(error) = done {
            panic!("{}: {step:?}: {error}", story.borrow().what);
        }
        story.borrow_mut().done(step);
    }
}

async fn perform(
    shard: &Rc<Shard>,
    env: &SimEnv,
    devices: &mut BTreeMap<&'static str, Device>,
    step: &Step,
    change: Option<(&'static str, Change)>,
) -> varve_engine::Result<()> {
    if let Some((vol, change)) = change {
        if !devices.contains_key(vol) {
            devices.insert(vol, shard.find(&name(vol))?.device("story".to_owned()).await?.0);
        }
        let device = &devices[vol];
        let submit = match change {
            Change::Write { offset, len, stamp } => device.write(offset, bytes_of(stamp, len).into(), false),
            Change::Zero { offset, len } => device.discard(offset, len, false),
        };
        return finish(device, submit).await;
    }
    if let Step::Rollback(vol, _) | Step::Undo(vol) | Step::Delete(vol) = step {
        devices.remove(vol);
    }
    match step {
        Step::Create => {
            let settings = Overrides::default();
            let new = NewVolume { name: name("v"), pool: name("default"), size: SIZE, settings };
            shard.create_volume(new).await.map(drop)
        }
        Step::Flush(vol) => wait(devices[vol].flush()).await,
        Step::Snapshot(vol, snap) => shard.find(&name(vol))?.snapshot(name(snap)).await.map(drop),
        Step::Forget(vol, snap) => shard.find(&name(vol))?.delete_snapshot(&name(snap)).await,
        Step::Seal(vol) => shard.find(&name(vol))?.seal().await,
        Step::Checkpoint(vol) => shard.find(&name(vol))?.checkpoint().await,
        Step::Clone(vol, snap, new) => {
            let snap = (!snap.is_empty()).then(|| name(snap));
            shard.clone_volume(&name(vol), snap.as_ref(), name(new), Overrides::default()).await.map(drop)
        }
        Step::Rollback(vol, snap) => shard.find(&name(vol))?.rollback(&name(snap)).await,
        Step::Undo(vol) => shard.find(&name(vol))?.undo_rollback().await,
        Step::Delete(vol) => shard.delete_volume(&name(vol)).await,
        Step::Wait(ms) => {
            env.sleep(Duration::from_millis(*ms)).await;
            Ok(())
        }
        Step::Write(..) | Step::Zero(..) => Ok(()),
    }
}
