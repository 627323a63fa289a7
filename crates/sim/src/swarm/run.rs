// SPDX-License-Identifier: Apache-2.0
//! One run of a seed: batches of requests, faults and deaths, one after the other, and what is known of the volumes.
//!
//! Each step draws from a stream of its own, made of the seed and the step's number, so a step does the same kind of thing whatever steps before it were left
//! out: that is what lets a failing run be shortened. A failure is a panic that names seed and step.
//!
//! A step is: faults that begin now, a batch (inside which the process may die at any I/O or any await), and perhaps a death behind it. Faults end
//! by themselves, and while a process starts there are none but deaths.

use super::admin::CutOff;
use super::cover::Cover;
use super::disk::Disk;
use super::line::{Line, Vol};
use super::plan::{Ending, Plan};
use super::{RunOptions, RunReport};
use crate::node::{Node, finish, name};
use crate::{Chaos, CrashMode, InFlight, Rng, RunError, SimOptions, WriteFault};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use varve_coord::Fault;
use varve_engine::{Device, EngineError};
use varve_env::{Env, LocalFuture};
use varve_format::owner::OwnerRecord;
use varve_types::branch::take_counts;
use varve_types::{ClusterId, ErrorKind};

/// The process died before everything of a batch was answered.
#[derive(Debug)]
pub(super) struct Died;

/// A snapshot that somebody has attached, and what it shows.
pub(super) struct View {
    pub(super) volume: String,
    pub(super) snapshot: String,
    pub(super) device: Rc<Device>,
    pub(super) disk: Disk,
}

/// See the module.
pub(super) struct Run {
    pub(super) seed: u64,
    pub(super) step: u64,
    /// The number of the next step of the ending.
    pub(super) ending_steps: u64,
    pub(super) plan: Plan,
    pub(super) node: Node,
    pub(super) vols: Vec<Vol>,
    /// Deleted ones, and the wall-clock time of it in milliseconds.
    pub(super) gone: Vec<(Vol, u64)>,
    pub(super) devices: BTreeMap<String, Rc<Device>>,
    pub(super) views: Vec<View>,
    pub(super) names: u64,
    pub(super) stamps: u64,
    /// The latest that the wall clock has ever shown.
    pub(super) peak_ms: u64,
    pub(super) cover: Cover,
    pub(super) ops: u64,
    pub(super) crashes: u64,
    /// Nodes that have lost their volumes to others, and do not know it.
    pub(super) old_nodes: Vec<Node>,
    /// What was under way when the process died.
    pub(super) cut_off: Option<CutOff>,
}

/// Number of the first step that belongs to the ending: however long the run was before, so that a shorter one can end in the same way.
pub(super) const ENDING: u64 = 1_000_000;
/// Most tries of an operation that the store or coordination refuses.
const TRIES: u32 = 400;

impl Run {
    pub(super) fn new(seed: u64, options: &RunOptions) -> Self {
        // What a run that failed has left in this thread.
        drop(take_counts());
        let plan = Plan::new(&mut Rng::stream(seed, 101));
        let world = SimOptions { most_steps: 20_000_000, log: options.log, ..SimOptions::seed(seed) };
        let mut node = Node::new(world, plan.journal);
        node.limits = plan.limits;
        node.pool = plan.pool;
        let owner = OwnerRecord { number: 1, cluster: cluster(1), created_ms: 0 };
        node.server.plant(&OwnerRecord::name(1), owner.encode());
        node.create().expect("the world runs").expect("the shard starts");
        let mut this = Self {
            seed,
            step: 0,
            ending_steps: ENDING,
            plan,
            node,
            vols: Vec::new(),
            gone: Vec::new(),
            devices: BTreeMap::new(),
            views: Vec::new(),
            names: 0,
            stamps: 0,
            peak_ms: 0,
            cover: Cover::default(),
            ops: 0,
            crashes: 0,
            old_nodes: Vec::new(),
            cut_off: None,
        };
        this.set_faults(true);
        let mut rng = Rng::stream(seed, 102);
        let far = 1u64 << 40;
        let regions = [0, 3 << 20, 1 << 30, far / 2 + (1 << 20), far - (64 << 10)];
        this.make_first(far, regions.iter().map(|start| (*start, 64 << 10)).collect(), &mut rng);
        this.make_first(512 << 10, vec![(0, 512 << 10)], &mut rng);
        this
    }

    /// The whole run.
    pub(super) fn go(mut self, options: &RunOptions) -> RunReport {
        let mut steps = 0;
        while steps < options.most_steps && (self.ops < options.ops || options.keep.is_some()) {
            self.step = steps;
            steps += 1;
            super::shrink::STEPS.set(steps);
            if options.keep.as_ref().is_some_and(|keep| !keep.contains(&self.step)) {
                continue;
            }
            let mut rng = Rng::stream(self.seed, 1000 + self.step);
            self.one_step(&mut rng);
        }
        self.step = steps;
        super::shrink::STEPS.set(steps);
        self.end(options);
        let trace = self.node.world.trace();
        let log = self.node.world.log();
        let seconds = self.node.world.now().as_secs_f64();
        let mut cover = std::mem::take(&mut self.cover);
        cover.take_branches();
        RunReport { ops: self.ops, crashes: self.crashes, steps, trace, seconds, cover, log }
    }

    fn one_step(&mut self, rng: &mut Rng) {
        self.faults(rng);
        let plan = &self.plan;
        let (inside, behind) = (rng.chance(plan.dies_inside), rng.chance(plan.dies));
        if inside {
            let points = self.node.env.points();
            if rng.chance(500) {
                points.after_polls(rng.below(300));
            } else {
                points.at(points.passed() + rng.below(60));
            }
        }
        let done = self.batch(rng);
        if done.is_err() || inside || behind {
            self.cover.count(if done.is_err() { "death: inside a batch" } else { "death: between batches" });
            self.crash(rng);
        } else if rng.chance(4) {
            self.compare_all();
        }
    }

    /// Faults that begin now and end by themselves.
    fn faults(&mut self, rng: &mut Rng) {
        let Plan { away, full, coordination, disk, jump, .. } = self.plan;
        self.peak_ms = self.peak_ms.max(self.node.env.wall_ms());
        if rng.chance(away) {
            self.cover.count("fault: the store is away");
            self.node.server.away_for(Duration::from_millis(100 + rng.below(90_000)));
        }
        if rng.chance(full) {
            self.cover.count("fault: the store is full");
            self.node.server.set_capacity(Some(0));
            let server = self.node.server.clone();
            self.later(rng.below(30_000), move || server.set_capacity(None));
        }
        if rng.chance(coordination) {
            self.cover.count("fault: coordination");
            let fault = [Fault::Unavailable, Fault::AnswerLost, Fault::RequestLost][rng.below(3) as usize];
            self.node.coord.inject(&[fault]).expect("few faults wait");
            if rng.chance(300) {
                self.cover.count("fault: coordination is away");
                self.node.coord.set_away(true);
                let coord = std::sync::Arc::clone(&self.node.coord);
                self.later(rng.below(30_000), move || coord.set_away(false));
            }
        }
        if rng.chance(disk) {
            let nth = rng.below(6);
            if rng.chance(500) {
                self.cover.count("fault: a sync of the journal fails");
                self.node.disk.fail_sync(nth);
            } else {
                self.cover.count("fault: a write of the journal fails");
                let fault = [WriteFault::Error, WriteFault::NoSpace, WriteFault::Partial(5000)][rng.below(3) as usize];
                self.node.disk.fail_write(nth, fault);
            }
        }
        if rng.chance(4) && self.node.shard().spoil_cache(rng.next_u64()) {
            self.cover.count("fault: a bit of the read cache flips");
        }
        if rng.chance(jump) {
            self.cover.count("fault: the wall clock jumps");
            let by = rng.below(2_400_000) as i64 - 1_200_000;
            self.node.world.jump_wall(by);
        }
        self.peak_ms = self.peak_ms.max(self.node.env.wall_ms());
    }

    /// Lets something happen after so many milliseconds, whoever lives then.
    pub(super) fn later(&self, after_ms: u64, act: impl FnOnce() + 'static) {
        let world = self.node.world.clone();
        let sleep = world.sleep(Duration::from_millis(after_ms));
        world.process("fate").spawn(Box::pin(async move {
            sleep.await;
            act();
        }));
    }

    /// Lets the store's chance faults come, or ends every fault.
    pub(super) fn set_faults(&self, on: bool) {
        let Node { server, coord, disk, .. } = &self.node;
        if on {
            server.set_chaos(self.plan.chaos);
            server.set_latency(self.plan.latency.0, self.plan.latency.1);
            server.set_list_lag(self.plan.list_lag);
        } else {
            server.set_chaos(Chaos::default());
            server.away_for(Duration::ZERO);
            server.set_capacity(None);
            coord.set_away(false);
            coord.forget_faults();
            disk.forget_faults();
        }
    }

    /// The process ends, and the next one starts: perhaps after more deaths.
    pub(super) fn crash(&mut self, rng: &mut Rng) {
        self.views.clear();
        self.devices.clear();
        let mut lost = false;
        for death in 0.. {
            self.crashes += 1;
            let mode = if self.plan.kills_only || rng.chance(400) {
                CrashMode::Kill
            } else {
                CrashMode::ALL[rng.below(CrashMode::ALL.len() as u64) as usize]
            };
            let fate = match rng.below(3) {
                0 => InFlight::Lost,
                1 => InFlight::Landed,
                _ => InFlight::Late(Duration::from_millis(rng.below(3000))),
            };
            lost |= mode != CrashMode::Kill;
            self.cover.count(match mode {
                CrashMode::Kill => "crash: the process is killed",
                CrashMode::Kept => "crash: power cut, all written back",
                CrashMode::Lost => "crash: power cut, nothing written back",
                CrashMode::Newest => "crash: power cut, the newest written back",
                CrashMode::Writes => "crash: power cut, some writes written back",
                CrashMode::Torn => "crash: power cut, torn writes",
            });
            self.node.world.note(&format!("step {}: crash {mode:?}, {fate:?}", self.step));
            self.node.crash(mode, fate);
            // A store in trouble only delays an opening; the run waits for none.
            self.set_faults(false);
            if death < 3 && rng.chance(self.plan.dies_again) {
                self.cover.count("death: while starting");
                self.node.env.points().after_polls(rng.below(400));
            }
            match self.node.open() {
                Err(RunError::Dead { .. }) => {}
                Ok(Ok(failed)) if failed.is_empty() && !self.node.env.is_dead() => break,
                Ok(Ok(_)) if self.node.env.is_dead() => {}
                other => self.fail(&format!("it does not open: {other:?}")),
            }
        }
        self.immortal();
        self.recover(lost);
        self.set_faults(true);
    }

    /// The process does not die by plan any more.
    pub(super) fn immortal(&self) {
        self.node.env.points().after_polls(u64::MAX);
        self.node.env.points().at(u64::MAX);
    }

    /// Ends the run with a failure.
    pub(super) fn fail(&self, what: &str) -> ! {
        panic!("seed {}, step {}: {what}", self.seed, self.step)
    }

    /// Runs futures together, until all have ended or the process has died.
    pub(super) fn together(&mut self, futures: Vec<LocalFuture<()>>) -> Result<(), Died> {
        match self.node.run(async move { futures_util::future::join_all(futures).await }) {
            Ok(_) => Ok(()),
            Err(RunError::Dead { .. }) => Err(Died),
            Err(error) => self.fail(&error.to_string()),
        }
    }

    /// Runs something that may be refused for a while; any other error is a failure.
    pub(super) fn insist<T: 'static, F: Future<Output = Result<T, EngineError>> + 'static>(
        &self,
        what: &str,
        make: impl Fn() -> F + 'static,
    ) -> Result<T, Died> {
        let env: Rc<dyn Env> = Rc::<crate::SimEnv>::clone(&self.node.env);
        match self.node.run(async move { patiently(&*env, make).await }) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => self.fail(&format!("{what}: {error} ({:?})", error.kind())),
            Err(RunError::Dead { .. }) => Err(Died),
            Err(error) => self.fail(&format!("{what}: {error}")),
        }
    }

    pub(super) fn fresh_name(&mut self, kind: &str) -> String {
        self.names += 1;
        format!("{kind}{}", self.names)
    }

    /// Adds a volume that is there.
    pub(super) fn adopt(&mut self, volume: String, disk: Disk, regions: Vec<(u64, u64)>, ram: bool) {
        let line = Line::new(disk);
        self.vols.push(Vol { name: volume, line, hidden: Vec::new(), regions, ram, template: false });
    }

    /// A device of a volume.
    pub(super) fn device(&mut self, volume: &str) -> Result<Rc<Device>, Died> {
        if let Some(device) = self.devices.get(volume) {
            return Ok(Rc::clone(device));
        }
        let open = self.node.volume(volume);
        let device = self.insist("attach", move || {
            let open = Rc::clone(&open);
            async move { Ok(Rc::new(open.device("swarm".to_owned()).await?.0)) }
        })?;
        self.devices.insert(volume.to_owned(), Rc::clone(&device));
        Ok(device)
    }

    /// How the run ends.
    fn end(&mut self, options: &RunOptions) {
        let mut rng = Rng::stream(self.seed, 103);
        self.cover.count(match self.plan.ending {
            Ending::Windows => "ending: every window ends",
            Ending::Empty => "ending: everything is deleted",
            Ending::Spoil => "ending: bytes go bad",
            Ending::TakeOver => "ending: a second node takes over",
            Ending::Import => "ending: another cluster imports",
        });
        self.immortal();
        self.settle();
        match self.plan.ending {
            Ending::Windows => {}
            Ending::Empty => return self.end_empty(),
            Ending::Spoil => return self.end_spoilt(&mut rng),
            Ending::TakeOver => self.take_over(&mut rng, options),
            Ending::Import => self.import(&mut rng, options),
        }
        self.end_windows(&mut rng);
    }

    /// Further steps behind the last one.
    pub(super) fn more_steps(&mut self, count: u64, options: &RunOptions) {
        for step in self.ending_steps..self.ending_steps + count {
            self.step = step;
            if options.keep.as_ref().is_some_and(|keep| !keep.contains(&self.step)) {
                continue;
            }
            let mut rng = Rng::stream(self.seed, 1000 + self.step);
            self.one_step(&mut rng);
        }
        self.ending_steps += count;
        self.immortal();
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() && self.node.world.is_logged() {
            let log = self.node.world.log();
            super::shrink::LOG.with(|kept| *kept.borrow_mut() = log);
        }
    }
}

/// The id of a cluster.
pub(super) fn cluster(number: u8) -> ClusterId {
    ClusterId::from_bytes([number; 16])
}

/// Tries again what store, coordination or disk refuse for now.
pub(super) async fn patiently<T, F: Future<Output = Result<T, EngineError>>>(
    env: &dyn Env,
    make: impl Fn() -> F,
) -> Result<T, EngineError> {
    let mut tries = 0;
    loop {
        match make().await {
            Err(error)
                if tries < TRIES
                    && matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::NoSpace | ErrorKind::Busy) =>
            {
                tries += 1;
                env.sleep(Duration::from_millis(500)).await;
            }
            done => return done,
        }
    }
}

/// A write, as a front end does it.
pub(super) async fn write(device: Rc<Device>, offset: u64, bytes: bytes::Bytes, fua: bool) -> Result<(), EngineError> {
    use varve_engine::BlockDevice;
    finish(&device, device.write(offset, bytes, fua)).await
}

/// A good name.
pub(super) fn known(text: &str) -> varve_types::Name {
    name(text)
}
