// SPDX-License-Identifier: Apache-2.0
//! One run of a seed: batches of requests, faults and deaths, one after the other, and what is known of the volumes.
//!
//! Each step draws from a stream of its own, made of the seed and the step's number, so a step does the same kind of thing whatever steps before it were left
//! out: that is what lets a failing run be shortened. A failure is a panic that names seed and step.
//!
//! A step is: faults that begin now, a batch (inside which the process may die at any I/O or any await), and perhaps a death behind it. Faults end
//! by themselves, and while a process starts there are none but deaths.

use super::cover::Cover;
use super::cut_off::CutOff;
use super::disk::Disk;
use super::line::{Line, Vol};
use super::plan::{Ending, Plan};
use super::worker::Workers;
use super::{RunOptions, RunReport};
use crate::node::{Node, finish, name};
use crate::{DiskMedium, Rng, RunError, SimOptions};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use varve_engine::{Device, EngineError};
use varve_env::{Env, LocalFuture};
use varve_format::owner::OwnerRecord;
use varve_format::region;
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

/// A volume that was deleted, and the wall-clock time in milliseconds when that began and was over.
pub(super) struct Gone {
    pub(super) vol: Vol,
    pub(super) from_ms: u64,
    pub(super) to_ms: u64,
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
    /// Deleted ones that can be brought back.
    pub(super) gone: Vec<Gone>,
    /// Names of deleted ones, and the wall-clock time in milliseconds from which nobody can bring them back.
    pub(super) expired: Vec<(String, u64)>,
    pub(super) devices: BTreeMap<String, Rc<Device>>,
    pub(super) views: Vec<View>,
    pub(super) names: u64,
    pub(super) stamps: u64,
    /// The latest that the wall clock has ever shown.
    pub(super) peak_ms: u64,
    /// Whether a sync of the journal was made to fail since the last death.
    pub(super) sync_failed: bool,
    pub(super) cover: Cover,
    pub(super) ops: u64,
    pub(super) crashes: u64,
    /// Nodes that have lost their volumes to others, and do not know it.
    pub(super) old_nodes: Vec<Node>,
    /// Volumes that damage has taken: they are refused at each start.
    pub(super) damaged: BTreeSet<String>,
    /// Operations that were under way when the process died.
    pub(super) cut_off: Vec<CutOff>,
    /// Who cleans beside the node.
    pub(super) workers: Workers,
}

/// Number of the first step that belongs to the ending: however long the run was before, so that a shorter one can end in the same way.
pub(super) const ENDING: u64 = 1_000_000;
/// Bytes of a region of the large volume that is used.
pub(super) const REGION: u64 = 48 << 10;
/// Bytes of the small one.
const SMALL: u64 = 256 << 10;
/// Most tries of an operation that the store or coordination refuses.
const TRIES: u32 = 400;

impl Run {
    pub(super) fn new(seed: u64, options: &RunOptions) -> Self {
        // What a run that failed has left in this thread.
        drop(take_counts());
        let plan = Plan::new(&mut Rng::stream(seed, 101));
        let world = SimOptions { most_steps: 20_000_000, log: options.log, ..SimOptions::seed(seed) };
        let mut node = Node::new(world, plan.journal);
        node.server.keep_no_log();
        node.limits = plan.limits;
        node.pool = plan.pool;
        node.coord_latency = plan.coord_latency;
        node.cache = (plan.cache > 0).then(|| DiskMedium::new(&node.world, "cache", plan.cache * region::REGION));
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
            expired: Vec::new(),
            devices: BTreeMap::new(),
            views: Vec::new(),
            names: 0,
            stamps: 0,
            peak_ms: 0,
            sync_failed: false,
            cover: Cover::default(),
            ops: 0,
            crashes: 0,
            old_nodes: Vec::new(),
            damaged: BTreeSet::new(),
            cut_off: Vec::new(),
            workers: Workers::default(),
        };
        this.set_faults(true);
        let mut rng = Rng::stream(seed, 102);
        let far = 1u64 << 40;
        // The one at the beginning, and over the edges of a leaf of the map, of two nodes of the level above, of two halves of the root, and the end.
        let edge = REGION / 2;
        let regions = [0, (4 << 20) - edge, (1 << 30) - edge, far / 2 - edge, far - REGION];
        this.make_first(far, regions.iter().map(|start| (*start, REGION)).collect(), &mut rng);
        this.make_first(SMALL, vec![(0, SMALL)], &mut rng);
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
        self.mind_worker();
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
            if rng.chance(150) {
                self.cover.count("death: soon after a recovery");
                for _ in 0..rng.below(4) {
                    let done = self.batch(rng);
                    self.alive(|_| done);
                }
                self.crash(rng);
            }
        } else if rng.chance(2) {
            self.compare_all();
        }
    }

    /// Ends the run with a failure.
    pub(super) fn fail(&self, what: &str) -> ! {
        panic!("step {}: {what}", self.step)
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
            Ending::Rot => "ending: the journal goes bad",
            Ending::TakeOver => "ending: a second node takes over",
            Ending::Import => "ending: another cluster imports",
        });
        self.immortal();
        self.end_workers();
        self.settle();
        let findings = self.node.shard().findings();
        if !findings.is_empty() {
            self.fail(&format!("nothing is damaged, and scrubbing has found {findings:?}"));
        }
        match self.plan.ending {
            Ending::Windows if rng.chance(60) => self.let_go_beside_checks(&mut rng),
            Ending::Windows if self.plan.limits.occupancy > 0 && rng.chance(300) => self.damage_what_is_dead(),
            Ending::Windows if rng.chance(60) => self.lose_manifests(),
            Ending::Windows => {}
            Ending::Empty => return self.end_empty(),
            Ending::Spoil => return self.end_spoilt(&mut rng),
            Ending::Rot => self.rot(&mut rng),
            Ending::TakeOver => self.take_over(&mut rng, options),
            Ending::Import => {
                if rng.chance(250) {
                    self.leave_a_manifest();
                }
                self.import(&mut rng, options);
            }
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
