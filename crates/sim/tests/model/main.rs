// SPDX-License-Identifier: Apache-2.0
//! The model test: thousands of random operations on volumes of the real engine in a simulated world, compared with plain arrays.
//!
//! Writes of any multiple of 512 bytes, discards, flushes, snapshots, clones of clones, rollbacks and their undo, deletions and their undo, resizes, seals,
//! checkpoints; kills and power cuts between operations and inside them; a store that loses answers. Everything is compared after every crash and every
//! so many steps, snapshots and clones too, and every count is recounted by `check`.
//!
//! One seed fixes a run. `VARVE_SEED=n` runs that seed alone, `VARVE_SEEDS=n` that many after the fixed ones, `VARVE_STEPS=n` so many steps each.

use varve_sim::node;

mod disk;
mod ops;
mod prove;
mod volume;

use node::Node;
use std::time::Duration;
use varve_sim::{Chaos, CrashMode, InFlight, Rng, SimOptions};
use varve_types::{Overrides, TimelineId};
use volume::Vol;

/// The process died before the operation was answered.
#[derive(Debug)]
pub(crate) struct Died;

/// What was under way when the process died.
#[derive(Clone, Debug)]
pub(crate) enum Flight {
    Nothing,
    Change { vol: usize, change: disk::Change },
    Snapshot { vol: usize, name: String },
    Forget { vol: usize, snap: usize },
    Clone { vol: usize, snap: Option<usize>, name: String },
    Rollback { vol: usize, snap: usize, shown: TimelineId },
    Undo { vol: usize, shown: TimelineId },
    Delete { vol: usize },
    Undelete { gone: usize },
}

/// A run of the model.
pub(crate) struct Model {
    pub(crate) seed: u64,
    pub(crate) rng: Rng,
    pub(crate) node: Node,
    pub(crate) vols: Vec<Vol>,
    /// Deleted ones, and when.
    pub(crate) gone: Vec<(Vol, Duration)>,
    pub(crate) flight: Flight,
    pub(crate) names: u64,
    pub(crate) step: u64,
    pub(crate) chaos: Chaos,
    /// Devices of the process of now.
    pub(crate) devices: std::collections::BTreeMap<String, std::rc::Rc<varve_engine::Device>>,
    /// What was done, for whoever looks for a fault: printed when a run fails and `VARVE_LOG` is set.
    pub(crate) story: std::cell::RefCell<Vec<String>>,
    /// A snapshot that somebody has attached, and what it shows.
    pub(crate) views: Vec<(String, std::rc::Rc<varve_engine::Device>, disk::Disk)>,
}

/// How long deleted volumes and hidden timelines can be brought back.
pub(crate) const WINDOW: Duration = Duration::from_secs(3600);

impl Drop for Model {
    #[allow(clippy::disallowed_methods, reason = "what is printed of a run that is over")]
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("VARVE_LOG").is_some() {
            #[expect(clippy::print_stderr, reason = "for whoever looks for a fault")]
            for line in self.story.borrow().iter() {
                eprintln!("{line}");
            }
        }
    }
}

impl Model {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let options = SimOptions { most_steps: 20_000_000, ..SimOptions::seed(seed) };
        let mut node = Node::new(options, (9 << 20) + rng.below(4) * (4 << 20));
        node.limits.overlay_entries = 16 + rng.below(400) as usize;
        node.limits.layer_ram = (64 << 10) << rng.below(6);
        node.limits.puts = 1 + rng.below(4) as usize;
        node.limits.reclaim_level = (seed % 3) as u8;
        node.limits.reclaim_nodes = 1 + (seed % 7) as usize;
        node.limits.cache_ram = (256 << 10) << rng.below(4);
        node.pool = Overrides {
            segment_size: Some((16 << 10) << rng.below(5)),
            undelete_window_ms: Some(WINDOW.as_millis() as u64),
            ..Overrides::default()
        };
        let rate = if rng.chance(500) { 0 } else { 20 };
        let chaos = Chaos {
            error_per_mille: rate,
            lost_answer_per_mille: rate,
            late_put_per_mille: rate,
            late_by: Duration::from_secs(20),
        };
        node.create().expect("the world runs").expect("the shard starts");
        node.server.set_chaos(chaos);
        let mut this = Self {
            seed,
            rng,
            node,
            vols: Vec::new(),
            gone: Vec::new(),
            flight: Flight::Nothing,
            names: 0,
            step: 0,
            chaos,
            devices: Default::default(),
            views: Vec::new(),
            story: Default::default(),
        };
        this.create(4 << 20, vec![(0, 4 << 20)]);
        let far = 1u64 << 40;
        let regions = [0, 3 << 20, 1 << 30, far / 2 + (1 << 20), far - (1 << 20)];
        this.create(far, regions.iter().map(|start| (*start, 1 << 20)).collect());
        this
    }

    fn run(&mut self, steps: u64) {
        for step in 0..steps {
            self.step = step;
            let dies_inside = self.rng.chance(15);
            if dies_inside {
                let polls = self.rng.below(200);
                self.node.env.points().after_polls(polls);
            }
            let done = self.operation();
            self.tell(format!("step {step}: {done:?}"));
            if done.is_ok() {
                self.flight = Flight::Nothing;
            }
            if done.is_err() || dies_inside || self.rng.chance(8) {
                self.crash();
            } else if self.rng.chance(15) {
                self.compare_all();
            }
            self.flight = Flight::Nothing;
            if self.rng.chance(12) {
                self.check_all();
            }
        }
        self.compare_all();
        self.check_all();
        self.crash();
        self.check_all();
        // Every window ends, and what was hidden is given back.
        self.node.world.run_for(WINDOW * 2).expect("the world runs");
        self.compare_all();
        self.check_all();
        self.crash();
        self.check_all();
    }

    pub(crate) fn tell(&self, text: String) {
        self.story.borrow_mut().push(text);
    }

    fn crash(&mut self) {
        let mode = if self.rng.chance(500) {
            CrashMode::Kill
        } else {
            CrashMode::ALL[self.rng.below(CrashMode::ALL.len() as u64) as usize]
        };
        let fate = match self.rng.below(3) {
            0 => InFlight::Lost,
            1 => InFlight::Landed,
            _ => InFlight::Late(Duration::from_millis(self.rng.below(3000))),
        };
        self.node.world.note(&format!("step {}: crash {mode:?} {fate:?} in {:?}", self.step, self.flight));
        self.tell(format!("step {}: crash {mode:?} {fate:?} in {:?}", self.step, self.flight));
        self.views.clear();
        self.devices.clear();
        self.node.crash(mode, fate);
        // A store in trouble delays an opening and cannot change it; the model waits for none.
        self.node.server.set_chaos(Chaos::default());
        self.node.reopen();
        self.node.server.set_chaos(self.chaos);
        self.resolve(mode);
        self.compare_all();
    }
}

#[allow(clippy::disallowed_methods, reason = "seeds are asked for before any world begins")]
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

fn run_seed(seed: u64, steps: u64) {
    struct Hint(u64, u64);
    impl Drop for Hint {
        fn drop(&mut self) {
            if std::thread::panicking() {
                let Self(seed, steps) = *self;
                #[expect(clippy::print_stderr, reason = "how to run it again")]
                {
                    eprintln!(
                        "run it again: VARVE_SEED={seed} VARVE_STEPS={steps} cargo test -p varve-sim --test model"
                    );
                }
            }
        }
    }
    let hint = Hint(seed, steps);
    Model::new(seed).run(steps);
    drop(hint);
}

/// Seeds that run every time.
const SEEDS: u64 = 3;
const STEPS: u64 = 400;

#[test]
fn volumes_are_what_plain_arrays_are() {
    let steps = number("VARVE_STEPS").unwrap_or(STEPS);
    if let Some(seed) = number("VARVE_SEED") {
        return run_seed(seed, steps);
    }
    for seed in 0..SEEDS + number("VARVE_SEEDS").unwrap_or(0) {
        run_seed(seed, steps);
    }
}
