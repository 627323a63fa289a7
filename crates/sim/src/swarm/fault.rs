// SPDX-License-Identifier: Apache-2.0
//! What goes wrong in a run: faults that begin and end by themselves, deaths, and the start of the next process.
//!
//! Chance faults of the store last as long as the work does. While a process starts there are none but deaths and, in some seeds, errors of the store;
//! a start that these refuse is tried again without. After each start the model looks at everything, and no death is planned meanwhile.
//!
//! What a fault was and when it began is drawn here and nowhere else, from the stream of its step.

use super::plan::Plan;
use super::run::{Run, known};
use super::stamp::BLOCK;
use crate::node::Node;
use crate::{Chaos, CrashMode, DiskTiming, InFlight, Rng, RunError, WriteFault};
use std::rc::Rc;
use std::time::Duration;
use varve_coord::Fault;
use varve_engine::EngineError;
use varve_env::Env;
use varve_format::journal::RING_START;
use varve_format::region::{HEAD, REGION};
use varve_types::ErrorKind;

impl Run {
    /// Faults that begin now and end by themselves.
    pub(super) fn faults(&mut self, rng: &mut Rng) {
        let Plan { away, fill, round, bad_reads, full, coordination, disk, jump, .. } = self.plan;
        self.peak_ms = self.peak_ms.max(self.node.env.wall_ms());
        if rng.chance(away) {
            self.cover.count("fault: the store is away");
            self.node.server.away_for(Duration::from_millis(100 + rng.below(90_000)));
        }
        if rng.chance(fill) {
            self.fill_journal(rng);
        }
        if rng.chance(round) {
            self.go_round_the_stuck(rng);
        }
        if rng.chance(bad_reads) {
            self.read_badly(rng);
        }
        if rng.chance(full) {
            self.cover.count("fault: the store is full");
            self.full_for_a_while(rng);
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
                self.sync_failed = true;
                if rng.chance(500) {
                    // Before all of it is in the store.
                    self.node.env.points().after_polls(rng.below(300));
                }
            } else {
                self.cover.count("fault: a write of the journal fails");
                let fault = [WriteFault::Error, WriteFault::NoSpace, WriteFault::Partial(5000)][rng.below(3) as usize];
                if rng.chance(300) {
                    self.node.disk.fail_write_below(RING_START, fault);
                } else {
                    self.node.disk.fail_write(nth, fault);
                }
            }
        }
        if rng.chance(4) && self.node.shard().spoil_cache(rng.next_u64()) {
            self.cover.count("fault: a bit of the read cache flips");
        }
        self.cache_faults(rng);
        if rng.chance(jump) {
            self.cover.count("fault: the wall clock jumps");
            let by = rng.below(1_200_000) as i64 - 600_000;
            self.node.world.jump_wall(by);
        }
        self.peak_ms = self.peak_ms.max(self.node.env.wall_ms());
    }

    /// A cache device rots, fails or hangs.
    fn cache_faults(&mut self, rng: &mut Rng) {
        let Some(cache) = self.node.cache.clone().filter(|_| rng.chance(20)) else { return };
        let (region, frame) = (rng.below(self.plan.cache), rng.below(self.plan.limits.ssd_frames as u64 + 1));
        let (begin, end) = (region * REGION, (region + 1) * REGION);
        match rng.below(4) {
            0 => {
                self.cover.count("fault: a bit of a cache device flips");
                let at = if frame == 0 { rng.below(HEAD) } else { HEAD + (frame - 1) * BLOCK + rng.below(BLOCK) };
                cache.flip_bit(begin + at, rng.below(8) as u8);
            }
            1 => {
                self.cover.count("fault: a cache device fails reads");
                cache.fail_reads(begin..end);
            }
            2 => {
                self.cover.count("fault: a cache device fails a write");
                let astray = WriteFault::Misdirected(begin + HEAD);
                let all = [WriteFault::Error, WriteFault::Partial(4096), WriteFault::Dropped, astray];
                let fault = all[rng.below(4) as usize];
                cache.fail_write(rng.below(6), fault);
            }
            _ => {
                self.cover.count("fault: a cache device hangs");
                cache.set_timing(DiskTiming { read: Duration::from_secs(60), ..DiskTiming::default() });
            }
        }
        self.later(rng.below(30_000), move || {
            cache.forget_faults();
            cache.set_timing(DiskTiming::default());
        });
    }

    pub(super) fn read_badly(&mut self, rng: &mut Rng) {
        self.cover.count("fault: reads of the store are slow and fail");
        let (slowest, error_per_mille) = (Duration::from_millis(rng.below(5000)), rng.below(500) as u32);
        self.node.server.read_badly_for(Duration::from_millis(rng.below(30_000)), slowest, error_per_mille);
    }

    /// Whoever reads next waits for nodes of the map that nobody has loaded yet, and for manifests, while checkpoints and changes replace them.
    fn read_badly_beside_changes(&mut self, rng: &mut Rng) {
        self.read_badly(rng);
        for vol in &self.vols {
            let Ok(open) = self.node.shard().find(&known(&vol.name)) else { continue };
            let (changed, asked) = (Rc::clone(&open), Rc::clone(&open));
            // All of it ends with the process, or is refused for a while; nobody waits for it.
            self.node.env.spawn(Box::pin(async move {
                for _ in 0..6 {
                    drop(open.checkpoint().await);
                }
            }));
            self.node.env.spawn(Box::pin(async move {
                for _ in 0..4 {
                    let settings = changed.record().settings;
                    drop(changed.set(settings).await);
                }
            }));
            self.node.env.spawn(Box::pin(async move {
                for _ in 0..4 {
                    drop(asked.origin().await);
                }
            }));
        }
    }

    fn full_for_a_while(&self, rng: &mut Rng) {
        self.node.server.set_capacity(Some(0));
        let server = self.node.server.clone();
        self.later(rng.below(30_000), move || server.set_capacity(None));
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
            server.read_badly_for(Duration::ZERO, Duration::ZERO, 0);
            server.set_capacity(None);
            server.forget_faults();
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
        // What a failed sync has lost the next process still finds, and promises; the one behind a power cut does not.
        let trap = std::mem::take(&mut self.sync_failed) && !self.plan.kills_only && rng.chance(500);
        for death in 0.. {
            self.crashes += 1;
            let mode = if self.plan.kills_only || (death == 0 && trap) || rng.chance(400) {
                CrashMode::Kill
            } else if death == 1 && trap {
                CrashMode::Kept
            } else {
                CrashMode::ALL[rng.below(CrashMode::ALL.len() as u64) as usize]
            };
            let fate = match rng.below(3) {
                _ if death == 1 && trap => InFlight::Lost,
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
            if self.begin_anew(death, rng) && (death > 0 || !trap) {
                break;
            }
        }
        self.immortal();
        if rng.chance(self.plan.full_at_start) {
            self.cover.count("fault: the store is full once a process has started");
            self.full_for_a_while(rng);
        }
        if rng.chance(self.plan.bad_reads * 90) {
            self.read_badly_beside_changes(rng);
        }
        self.recover(lost);
        self.set_faults(true);
    }

    /// Starts the next process, number `death` since the last that served. False where it has died over it, or where the store was in
    /// the way.
    fn begin_anew(&mut self, death: u32, rng: &mut Rng) -> bool {
        self.set_faults(false);
        if death < 3 && rng.chance(self.plan.dies_again) {
            self.cover.count("death: while starting");
            self.node.env.points().after_polls(rng.below(400));
        }
        let errs = death < 3 && rng.chance(self.plan.errs_at_start);
        if errs {
            self.cover.count("fault: the store errs while a process starts");
            let error_per_mille = 1 + rng.below(100) as u32;
            self.node.server.set_chaos(Chaos { error_per_mille, ..Chaos::default() });
        }
        let passes = |error: &EngineError| errs && error.kind() == ErrorKind::Unavailable;
        let mut opened = self.node.open();
        if let Ok(Ok(failed)) = &mut opened {
            failed
                .retain(|(name, error)| !(self.damaged.contains(name.as_str()) && error.kind() == ErrorKind::Corrupt));
        }
        let started = match opened {
            Err(RunError::Dead { .. }) => false,
            Ok(_) if self.node.env.is_dead() => false,
            Ok(Ok(failed)) if failed.iter().all(|(_, error)| passes(error)) => failed.is_empty(),
            Ok(Err(error)) if passes(&error) => false,
            other => self.fail(&format!("it does not open: {other:?}")),
        };
        self.set_faults(false);
        started
    }

    /// The process does not die by plan any more.
    pub(super) fn immortal(&self) {
        self.node.env.points().after_polls(u64::MAX);
        self.node.env.points().at(u64::MAX);
    }
}
