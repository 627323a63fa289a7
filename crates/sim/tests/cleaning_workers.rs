// SPDX-License-Identifier: Apache-2.0
//! Cleaning by other processes: what they do is taken only as far as the store proves it, whatever they say, whenever they say it, and wherever they die; what
//! they leave behind goes, and what they do not do is done by others.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

use varve_sim::node;

use node::{Node, name};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use varve_engine::{CleanAnswer, CleanJob, CleanWorker, EngineError, LeaseEnd, Leased, run_clean_job};
use varve_env::StoreErrorKind;
use varve_format::table::LiveBits;
use varve_format::{ObjectKind, ObjectName};
use varve_sim::{CrashMode, InFlight, Rng, SimEnv, SimOptions, StoreFault, StoreOp};
use varve_types::{Compression, ErrorKind, LeaseId, Overrides};

const BLOCK: u64 = 4096;
/// Blocks of the volume.
const BLOCKS: u64 = 512;
/// Time that a job counts without news.
const LEASE: Duration = Duration::from_secs(20);
/// Long enough for a quiet volume to make its checkpoints, and to delete.
const SETTLED: Duration = Duration::from_secs(120);

/// What each block of a volume is.
type Model = Vec<u64>;

/// A volume most of whose segments are sparse, and a worker that the shard waits for, so that it cleans nothing itself.
struct Scene {
    node: Node,
    model: Model,
    rng: Rng,
}

impl Scene {
    fn new(seed: u64, compression: Compression) -> Self {
        let mut node = Node::new(SimOptions::seed(seed), 16 << 20);
        node.pool.segment_size = Some(32 * BLOCK);
        node.pool.compression = Some(compression);
        node.limits.lease_ms = LEASE.as_millis() as u64;
        node.create().unwrap().unwrap();
        node.create_volume("v", BLOCKS * BLOCK);
        let mut this = Self { node, model: vec![0; BLOCKS as usize], rng: Rng::new(seed) };
        this.write(0..BLOCKS);
        this.overwrite();
        this
    }

    fn write(&mut self, blocks: impl Iterator<Item = u64>) {
        let device = self.node.device("v");
        for block in blocks {
            let stamp = self.rng.below(u64::MAX - 1) + 1;
            let data = stamp.to_le_bytes().repeat(BLOCK as usize / 8);
            self.node.write(&device, block * BLOCK, data, false).unwrap().unwrap();
            self.model[block as usize] = stamp;
        }
        self.node.flush(&device).unwrap().unwrap();
    }

    /// Half of what lives dies, all over the volume, while the shard waits for a worker.
    fn overwrite(&mut self) {
        assert!(self.ask("w").is_none());
        let blocks: Vec<u64> = (0..BLOCKS / 2).map(|_| self.rng.below(BLOCKS)).collect();
        self.write(blocks.into_iter());
        let volume = self.node.volume("v");
        self.node.must("checkpoint", async move {
            volume.seal().await?;
            volume.checkpoint().await
        });
    }

    fn ask(&self, worker: &str) -> Option<Leased> {
        let (shard, worker) = (self.node.shard(), name(worker));
        self.node.must("ask for a job", async move { shard.lease_cleaning(&worker).await })
    }

    /// A job that there must be.
    fn lease(&self, worker: &str) -> Leased {
        self.ask(worker).expect("there is a job")
    }

    /// Runs a job as another process does.
    fn run(&self, job: &CleanJob) -> Result<CleanAnswer, EngineError> {
        let process: Rc<SimEnv> = self.node.world.process("worker");
        let (store, env, job) = (self.node.server.client(&process), Rc::clone(&process), job.clone());
        let done = self
            .node
            .world
            .block_on(&process, async move { run_clean_job(&*env, &*store, &Cell::new(0), &Cell::new(0), &job).await });
        self.node.world.kill(&process);
        done.unwrap()
    }

    fn answer(&self, id: LeaseId, answer: CleanAnswer) -> Result<u32, EngineError> {
        let shard = self.node.shard();
        self.node.run(async move { shard.answer_cleaning(id, &answer).await }).unwrap()
    }

    /// Gets a job, does it, and has it taken.
    fn clean(&self, worker: &str) -> bool {
        let Some(leased) = self.ask(worker) else { return false };
        let answer = self.run(&leased.job).unwrap();
        assert!(self.answer(leased.id, answer).unwrap() > 0);
        true
    }

    fn pass(&self, time: Duration) {
        self.node.world.run_for(time).unwrap();
    }

    fn crash(&mut self) {
        self.node.crash(CrashMode::Lost, InFlight::Lost);
        self.node.reopen();
    }

    /// What is read is what was written.
    fn prove(&self, when: &str) {
        let device = self.node.device("v");
        for (at, stamp) in self.model.iter().enumerate() {
            let bytes = self.node.read(&device, at as u64 * BLOCK, BLOCK as u32).unwrap().unwrap();
            assert!(bytes == stamp.to_le_bytes().repeat(BLOCK as usize / 8), "{when}: block {at}");
        }
    }

    /// Everything is as it should be, before and after the process dies: data, counts, and nothing that nobody needs.
    fn settle(&mut self, when: &str) {
        self.pass(SETTLED);
        for when in [format!("{when}, settled"), format!("{when}, after a crash")] {
            self.prove(&when);
            let volume = self.node.volume("v");
            let report = self.node.must("check", async move { volume.check(&|_, _| {}).await });
            assert!(report.problems.is_empty(), "{when}: {:?}", report.problems);
            assert_eq!(report.unreferenced, 0, "{when}");
            assert!(self.occupancy() >= 80, "{when}: {} % lives", self.occupancy());
            self.crash();
        }
    }

    /// Of a hundred stored blocks, those that live.
    fn occupancy(&self) -> u64 {
        let table = self.node.volume("v").counts().table;
        (table.live_blocks * 100).checked_div(table.blocks).unwrap_or(100)
    }

    fn has(&self, bundle: &ObjectName) -> bool {
        self.node.server.object(&bundle.to_string()).is_some()
    }

    fn bundles(&self) -> usize {
        let names = self.node.server.names();
        names.iter().filter_map(|name| ObjectName::parse(name)).filter(|name| name.kind == ObjectKind::Bundle).count()
    }

    fn worker(&self, worker: &str) -> Option<CleanWorker> {
        self.node.shard().clean_workers().into_iter().find(|found| found.name.as_str() == worker)
    }
}

fn kind(done: Result<u32, EngineError>) -> ErrorKind {
    done.expect_err("it must be refused").kind()
}

#[test]
fn a_worker_cleans_and_the_shard_does_not() {
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let mut scene = Scene::new(1, compression);
        for round in 0..6 {
            let mut jobs = 0;
            while scene.clean("w") {
                jobs += 1;
                scene.pass(Duration::from_secs(5));
            }
            assert!(jobs > 0 && scene.occupancy() >= 80, "{jobs} jobs, {} %", scene.occupancy());
            scene.prove(&format!("{compression:?}, round {round}"));
            scene.overwrite();
        }
        let counts = scene.node.shard().counts().clean;
        assert_eq!((counts.jobs, counts.failed, counts.leased, counts.workers), (counts.worker_jobs, 0, 0, 1));
        assert!(counts.put_bytes > 0 && counts.read_bytes >= counts.put_bytes / 2);
        assert_eq!(scene.worker("w").unwrap().jobs, counts.jobs);
        scene.settle(&format!("{compression:?}"));
    }
}

#[test]
fn who_is_not_heard_of_is_waited_for_no_longer() {
    let mut scene = Scene::new(2, Compression::None);
    let leased = scene.lease("w");
    scene.pass(LEASE - Duration::from_secs(2));
    let counts = scene.node.shard().counts().clean;
    assert_eq!((counts.jobs, counts.leased, counts.running), (0, 1, true));
    // It tells that it is at work, and counts as long again.
    scene.node.shard().renew_cleaning(leased.id, 5).unwrap();
    assert_eq!(scene.worker("w").unwrap().read_bytes, Some(5));
    scene.pass(LEASE - Duration::from_secs(2));
    assert_eq!(scene.node.shard().counts().clean.jobs, 0);
    // Now it dies.
    scene.pass(LEASE);
    let counts = scene.node.shard().counts().clean;
    assert!(counts.jobs > 0, "the shard cleans again");
    assert_eq!((counts.worker_jobs, counts.expired, counts.failed, counts.leased), (0, 1, 1, 0));
    assert_eq!(scene.node.shard().renew_cleaning(leased.id, 6).unwrap_err().kind(), ErrorKind::NotFound);
    scene.settle("died before it put");
}

#[test]
fn another_goes_on_where_one_has_died() {
    let mut scene = Scene::new(3, Compression::Lz4);
    let lost = scene.lease("dies");
    scene.run(&lost.job).unwrap();
    assert!(scene.has(&lost.job.bundle) && scene.ask("w").is_none(), "a timeline has one job at a time");
    for _ in 0..3 {
        scene.pass(LEASE / 2);
        scene.ask("w");
    }
    assert!(scene.node.shard().counts().clean.expired == 1 && !scene.has(&lost.job.bundle), "what it has put is gone");
    while scene.clean("w") {
        scene.pass(Duration::from_secs(2));
    }
    let counts = scene.node.shard().counts().clean;
    assert!(counts.worker_jobs > 0 && counts.jobs == counts.worker_jobs);
    scene.settle("died after it has put");
}

#[test]
fn what_is_put_late_goes_and_what_is_answered_late_counts_for_nothing() {
    let mut scene = Scene::new(4, Compression::None);
    let late = scene.lease("w");
    scene.pass(LEASE * 2);
    // By now the shard itself has cleaned what the job is about, in part: what still is there is read all the same.
    let answer =
        CleanAnswer { bundle: late.job.bundle, shares: late.job.sources.len() as u32, read_bytes: 1, put_bytes: 1 };
    let answer = scene.run(&late.job).unwrap_or(answer);
    if !scene.has(&late.job.bundle) {
        scene.node.server.plant(&late.job.bundle.to_string(), vec![7; 5000]);
    }
    assert_eq!(kind(scene.answer(late.id, answer)), ErrorKind::NotFound);
    scene.pass(Duration::from_secs(2));
    assert!(!scene.has(&late.job.bundle), "its answer says that it may be there");
    // Once more, and this time nobody tells.
    scene.node.server.plant(&late.job.bundle.to_string(), vec![7; 5000]);
    scene.pass(LEASE * 4 * 4 * 2);
    assert!(!scene.has(&late.job.bundle), "it is looked for from time to time");
    scene.prove("late");
    scene.settle("late");
}

#[test]
fn what_lands_behind_the_sweep_of_the_next_opening_goes_when_it_is_told_of() {
    let mut scene = Scene::new(20, Compression::None);
    let leased = scene.lease("w");
    let answer = scene.run(&leased.job).unwrap();
    let bytes = scene.node.server.object(&leased.job.bundle.to_string()).unwrap().to_vec();
    scene.crash();
    scene.pass(SETTLED);
    assert!(!scene.has(&leased.job.bundle), "the sweep has found it");
    scene.node.server.plant(&leased.job.bundle.to_string(), bytes);
    assert_eq!(kind(scene.answer(leased.id, answer)), ErrorKind::NotFound);
    scene.pass(Duration::from_secs(1));
    assert!(!scene.has(&leased.job.bundle));
    // What is in use stays, whoever speaks of it.
    assert!(scene.bundles() > 0);
    for bundle in scene.node.server.names().iter().filter_map(|name| ObjectName::parse(name)) {
        assert!(scene.answer(leased.id, CleanAnswer { bundle, ..answer }).is_err());
    }
    scene.pass(Duration::from_secs(1));
    scene.settle("spoken of");
}

#[test]
fn an_answer_is_given_again_where_the_store_could_not_tell() {
    let mut scene = Scene::new(21, Compression::Lz4);
    let leased = scene.lease("w");
    let answer = scene.run(&leased.job).unwrap();
    // As often as it is patient.
    (0..4).for_each(|nth| {
        scene.node.server.fail(StoreOp::Head, "/bun/", nth, StoreFault::Error(StoreErrorKind::Unavailable))
    });
    assert_eq!(kind(scene.answer(leased.id, answer)), ErrorKind::Unavailable);
    let counts = scene.node.shard().counts().clean;
    assert_eq!((counts.failed, counts.leased), (0, 1), "it is out still");
    assert!(scene.answer(leased.id, answer).unwrap() > 0);
    scene.settle("given again");
}

#[test]
fn what_is_damaged_in_the_source_is_nobodys_lie() {
    let scene = Scene::new(22, Compression::None);
    let leased = scene.lease("w");
    let source = &leased.job.sources[0];
    let name = source.object.to_string();
    // Every block of it: whatever lives is damaged.
    for at in (6000..scene.node.server.object(&name).unwrap().len() as u64).step_by(BLOCK as usize / 2) {
        scene.node.server.flip_bit(&name, at, 1);
    }
    let error = scene.run(&leased.job).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    scene.node.shard().end_cleaning(leased.id, LeaseEnd::Failed).unwrap();
    scene.pass(Duration::from_secs(10));
    // The shard has seen for itself, lets that one be, and cleans the others; the worker is not believed in it, and rests.
    let counts = scene.node.shard().counts().clean;
    assert!(counts.failed >= 2 && counts.jobs > 0 && counts.refused == 0, "{counts:?}");
    scene.pass(LEASE);
    while let Some(again) = scene.ask("w") {
        assert!(again.job.sources.iter().all(|source| source.object.to_string() != name), "it is not handed out again");
        let answer = scene.run(&again.job).unwrap();
        scene.answer(again.id, answer).unwrap();
    }
}

#[test]
fn an_answer_counts_once() {
    let mut scene = Scene::new(5, Compression::Lz4);
    let leased = scene.lease("w");
    let answer = scene.run(&leased.job).unwrap();
    assert!(scene.answer(leased.id, answer).unwrap() > 0);
    assert_eq!(kind(scene.answer(leased.id, answer)), ErrorKind::NotFound);
    scene.pass(Duration::from_secs(10));
    assert!(scene.has(&leased.job.bundle), "an answer that comes twice takes nothing away");
    assert_eq!(scene.node.shard().counts().clean.worker_jobs, 1);
    scene.settle("answered twice");
}

#[test]
fn what_is_not_as_it_should_be_is_refused_and_nothing_is_lost() {
    type Lie = fn(&Scene, &Leased) -> CleanAnswer;
    let lies: [(&str, Lie); 8] = [
        ("nothing is there", |_, leased| CleanAnswer {
            bundle: leased.job.bundle,
            shares: leased.job.sources.len() as u32,
            read_bytes: 0,
            put_bytes: 5000,
        }),
        ("more shares", |scene, leased| {
            let answer = scene.run(&leased.job).unwrap();
            CleanAnswer { shares: answer.shares + 1, ..answer }
        }),
        ("another length", |scene, leased| {
            let answer = scene.run(&leased.job).unwrap();
            CleanAnswer { put_bytes: answer.put_bytes - 1, ..answer }
        }),
        ("another bundle", |scene, leased| {
            let bundle = ObjectName { number: leased.job.bundle.number + 77, ..leased.job.bundle };
            scene.run(&CleanJob { bundle, ..leased.job.clone() }).unwrap()
        }),
        ("a block is missing", |scene, leased| {
            let mut job = leased.job.clone();
            let source = job.sources.iter_mut().max_by_key(|source| source.live.live()).unwrap();
            let first = (0..source.live.blocks()).find(|block| source.live.is_live(*block)).unwrap();
            assert!(source.live.clear(first));
            scene.run(&job).unwrap()
        }),
        ("a segment is left out", |scene, leased| {
            let mut job = leased.job.clone();
            job.sources.remove(0);
            scene.run(&job).unwrap()
        }),
        ("dead blocks too", |scene, leased| {
            let mut job = leased.job.clone();
            let source = job.sources.iter_mut().find(|s| s.object.kind == ObjectKind::Segment).unwrap();
            source.live = LiveBits::all(source.live.blocks());
            scene.run(&job).unwrap()
        }),
        ("cut short", |scene, leased| {
            let answer = scene.run(&leased.job).unwrap();
            scene.node.server.truncate(&leased.job.bundle.to_string(), answer.put_bytes - 4096);
            CleanAnswer { put_bytes: answer.put_bytes - 4096, ..answer }
        }),
    ];
    for (at, (what, lie)) in lies.into_iter().enumerate() {
        let mut scene = Scene::new(10 + at as u64, Compression::None);
        let leased = scene.lease("liar");
        let answer = lie(&scene, &leased);
        assert_eq!(kind(scene.answer(leased.id, answer)), ErrorKind::Invalid, "{what}");
        let counts = scene.node.shard().counts().clean;
        assert_eq!((counts.refused, counts.worker_jobs, counts.failed), (1, 0, 1), "{what}");
        assert!(scene.ask("liar").is_none() && scene.worker("liar").is_none(), "{what}: it gets nothing for a while");
        scene.prove(what);
        if what == "another bundle" {
            // Nobody has ever spoken of it; such a thing is found by the next opening.
            scene.crash();
        }
        assert!(scene.clean("w"), "{what}: another does it");
        scene.settle(what);
        assert!(!scene.has(&answer.bundle), "{what}: what was refused is gone");
    }
}

#[test]
fn damage_in_what_was_put_is_found_before_anything_depends_on_it() {
    let mut found = 0;
    for seed in 30..36 {
        let scene = Scene::new(seed, Compression::None);
        let leased = scene.lease("w");
        let answer = scene.run(&leased.job).unwrap();
        // A bit of each block behind the first quarter, and nothing of its head.
        for at in (answer.put_bytes / 4..answer.put_bytes).step_by(BLOCK as usize / 2) {
            scene.node.server.flip_bit(&leased.job.bundle.to_string(), at, 1);
        }
        found += u32::from(scene.answer(leased.id, answer).is_err());
    }
    assert!(found >= 5, "only a few of its blocks are looked at: {found} of 6");
}

#[test]
fn a_job_that_is_given_back_is_nobodys_fault() {
    let mut scene = Scene::new(6, Compression::None);
    let leased = scene.lease("w");
    scene.node.shard().end_cleaning(leased.id, LeaseEnd::GivenBack).unwrap();
    assert_eq!(scene.node.shard().end_cleaning(leased.id, LeaseEnd::Failed).unwrap_err().kind(), ErrorKind::NotFound);
    let counts = scene.node.shard().counts().clean;
    assert_eq!((counts.failed, counts.leased, counts.workers), (0, 0, 0));
    scene.pass(Duration::from_secs(5));
    assert!(scene.node.shard().counts().clean.jobs > 0, "the shard cleans at once");
    scene.settle("given back");
    // One that fails rests, and the shard does it.
    scene.overwrite();
    let leased = scene.lease("w");
    scene.node.shard().end_cleaning(leased.id, LeaseEnd::Failed).unwrap();
    assert!(scene.ask("w").is_none());
    scene.pass(Duration::from_secs(5));
    let counts = scene.node.shard().counts().clean;
    assert!(counts.jobs > 0 && counts.failed == 1, "{counts:?}");
    scene.settle("failed");
}

#[test]
fn nothing_is_handed_out_while_cleaning_is_paused() {
    let mut scene = Scene::new(7, Compression::None);
    scene.node.shard().pause_cleaning(true);
    assert!(scene.ask("w").is_none());
    scene.node.shard().pause_cleaning(false);
    scene.node.shard().set_clean_rate(1 << 20);
    let leased = scene.lease("w");
    assert_eq!((leased.terms.rate, leased.terms.time), (1 << 20, LEASE));
    scene.node.shard().set_clean_rate(0);
    assert_eq!(scene.node.shard().renew_cleaning(leased.id, 0).unwrap().rate, 0);
    // Asked anew under the same name: the job from before is over.
    let again = scene.lease("w");
    assert!(again.id != leased.id && again.job.bundle != leased.job.bundle);
    assert_eq!(scene.node.shard().counts().clean.leased, 1);
    let answer = scene.run(&leased.job).unwrap();
    assert_eq!(kind(scene.answer(leased.id, answer)), ErrorKind::NotFound);
    scene.settle("paused");
}

#[test]
fn what_has_died_or_gone_meanwhile_is_left_out() {
    let mut scene = Scene::new(8, Compression::None);
    let leased = scene.lease("w");
    let answer = scene.run(&leased.job).unwrap();
    // Most blocks of the job are overwritten before the answer comes.
    scene.write(0..BLOCKS / 2);
    scene.node.shard().renew_cleaning(leased.id, 0).unwrap();
    let volume = scene.node.volume("v");
    scene.node.must("checkpoint", async move {
        volume.seal().await?;
        volume.checkpoint().await
    });
    scene.answer(leased.id, answer).unwrap();
    scene.prove("overtaken");
    scene.settle("overtaken");
}

#[test]
fn a_volume_that_is_gone_takes_no_answer() {
    let mut scene = Scene::new(9, Compression::None);
    let leased = scene.lease("w");
    let answer = scene.run(&leased.job).unwrap();
    let volume = scene.node.volume("v");
    scene.node.must("snapshot", async move { volume.snapshot(name("s")).await.map(drop) });
    let before = scene.model.clone();
    scene.write([1, 2, 3].into_iter());
    let volume = scene.node.volume("v");
    scene.node.must("rollback", async move { volume.rollback(&name("s")).await.map(drop) });
    scene.model = before;
    assert!(scene.answer(leased.id, answer).is_err());
    assert_eq!(scene.node.shard().renew_cleaning(leased.id, 0).unwrap_err().kind(), ErrorKind::NotFound);
    scene.prove("rolled back");
    scene.pass(SETTLED);
    assert_eq!(scene.bundles(), 0, "what it has put is gone");
    scene.crash();
    scene.prove("rolled back, after a crash");
}

#[test]
fn a_clone_that_comes_meanwhile_sees_what_it_should() {
    for seed in 40..44 {
        let mut scene = Scene::new(seed, Compression::Lz4);
        let leased = scene.lease("w");
        let answer = scene.run(&leased.job).unwrap();
        let (shard, none) = (scene.node.shard(), Overrides::default());
        scene.node.must("clone", async move { shard.clone_volume(&name("v"), None, name("c"), none).await.map(drop) });
        let _ = scene.answer(leased.id, answer);
        scene.write(0..BLOCKS);
        scene.settle("cloned");
        let (volume, model) = (scene.node.volume("c"), scene.model.clone());
        let report = scene.node.must("check", async move { volume.check(&|_, _| {}).await });
        assert!(report.problems.is_empty() && model.len() == BLOCKS as usize, "{:?}", report.problems);
    }
}

#[test]
fn the_node_may_die_anywhere_while_it_takes_an_answer() {
    let mut rng = Rng::new(50);
    for seed in 50..74 {
        let mut scene = Scene::new(seed, Compression::Lz4);
        let leased = scene.lease("w");
        let answer = scene.run(&leased.job).unwrap();
        scene.node.env.points().after_polls(rng.below(40));
        let (shard, id, volume) = (scene.node.shard(), leased.id, scene.node.volume("v"));
        let ended = scene.node.run(async move {
            let taken = shard.answer_cleaning(id, &answer).await;
            volume.checkpoint().await?;
            taken
        });
        if ended.is_ok() {
            let _ = scene.node.world.run_for(Duration::from_secs(1));
        }
        let fate = if rng.chance(500) { InFlight::Lost } else { InFlight::Landed };
        scene.node.crash(CrashMode::Kill, fate);
        scene.node.reopen();
        scene.prove("after a death");
        // It does not know what became of its answer, and gives it again.
        assert_eq!(kind(scene.answer(leased.id, answer)), ErrorKind::NotFound);
        scene.settle("after a death");
        assert!(scene.bundles() > 0);
    }
}
