// SPDX-License-Identifier: Apache-2.0
//! Rewinding, against a recorded history of the volume: every moment of the window comes back as it was, across snapshots, cleaning, checkpoints and
//! restarts; what has left the window costs nothing; and the window takes no more room than it may.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

use varve_sim::node;

use node::{Node, name};
use std::time::Duration;
use varve_engine::RewindPoint;
use varve_env::Env;
use varve_sim::{CrashMode, InFlight, Rng, SimOptions};
use varve_types::{ErrorKind, Overrides, Sequence};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 600;
const WINDOW: Duration = Duration::from_secs(600);
/// Longer than it takes a quiet volume to make its checkpoints.
const QUIET: Duration = Duration::from_secs(60);

/// What each block of a volume is, and how many there are.
type Model = Vec<u64>;

/// What a volume was behind a change.
struct Moment {
    last: Sequence,
    at_ms: u64,
    model: Model,
}

/// A volume and its history.
struct Past {
    node: Node,
    model: Model,
    moments: Vec<Moment>,
    rng: Rng,
}

impl Past {
    fn new(seed: u64, edit: impl Fn(&mut Node)) -> Self {
        let mut node = Node::new(SimOptions::seed(seed), 16 << 20);
        node.pool.segment_size = Some(32 * BLOCK);
        node.pool.undelete_window_ms = Some(10_000);
        node.pool.rewind_window_ms = Some(WINDOW.as_millis() as u64);
        node.pool.rewind_space = Some(100);
        edit(&mut node);
        node.create().unwrap().unwrap();
        node.create_volume("v", BLOCKS * BLOCK);
        Self { node, model: vec![0; BLOCKS as usize], moments: Vec::new(), rng: Rng::new(seed) }
    }

    fn write(&mut self, count: u64) {
        let device = self.node.device("v");
        for _ in 0..count {
            let (block, stamp) = (self.rng.below(self.model.len() as u64), self.rng.below(u64::MAX - 1) + 1);
            let bytes = stamp.to_le_bytes().repeat(BLOCK as usize / 8);
            self.node.write(&device, block * BLOCK, bytes, false).unwrap().unwrap();
            self.model[block as usize] = stamp;
        }
    }

    fn discard(&mut self, from: u64, blocks: u64) {
        let device = self.node.device("v");
        self.node.discard(&device, from * BLOCK, blocks * BLOCK, false).unwrap().unwrap();
        self.model[from as usize..(from + blocks) as usize].fill(0);
    }

    fn resize(&mut self, blocks: u64) {
        let volume = self.node.volume("v");
        self.node.must("resize", async move { volume.resize(blocks * BLOCK, true).await });
        self.model.resize(blocks as usize, 0);
    }

    /// Ends a segment, and remembers what the volume is there.
    fn seal(&mut self) {
        let volume = self.node.volume("v");
        self.node.must("seal", async move { volume.seal().await });
        let last = self.node.volume("v").counts().last_change;
        self.moments.push(Moment { last, at_ms: self.node.env.wall_ms(), model: self.model.clone() });
    }

    fn checkpoint(&self) {
        let volume = self.node.volume("v");
        self.node.must("checkpoint", async move { volume.checkpoint().await });
    }

    fn pass(&self, time: Duration) {
        self.node.world.run_for(time).unwrap();
    }

    fn snapshot(&self, text: &str) {
        let (volume, text) = (self.node.volume("v"), name(text));
        self.node.must("snapshot", async move { volume.snapshot(text).await });
    }

    fn forget(&self, text: &str) {
        let (volume, text) = (self.node.volume("v"), name(text));
        self.node.must("delete a snapshot", async move { volume.delete_snapshot(&text).await });
    }

    fn set(&self, settings: Overrides) {
        let volume = self.node.volume("v");
        self.node.must("set", async move { volume.set(settings).await });
    }

    fn points(&self) -> Vec<RewindPoint> {
        self.node.volume("v").rewind_points(usize::MAX).latest
    }

    fn rewind(&self, point: RewindPoint, new: &str) -> Result<(), ErrorKind> {
        let (shard, new) = (self.node.shard(), name(new));
        let done = async move { shard.rewind_volume(&name("v"), &point, new, Overrides::default()).await };
        self.node.run(done).unwrap().map(drop).map_err(|error| error.kind())
    }

    fn delete(&self, text: &str) {
        let (shard, text) = (self.node.shard(), name(text));
        self.node.must("delete", async move { shard.delete_volume(&text).await });
    }

    fn restart(&mut self, mode: CrashMode) {
        self.node.crash(mode, InFlight::Landed);
        self.node.reopen();
    }

    fn check(&self, volume: &str, when: &str) {
        let volume = self.node.volume(volume);
        let report = self.node.must("check", async move { volume.check(&|_, _| {}).await });
        assert!(report.problems.is_empty(), "{when}: {:?}", report.problems);
    }

    /// Brings every remembered moment back whose point is there, compares it, and gives how many there were.
    fn prove(&self, when: &str) -> usize {
        let points = self.points();
        let found: Vec<_> = self
            .moments
            .iter()
            .enumerate()
            .filter_map(|(at, moment)| Some((at, moment, *points.iter().find(|point| point.last == moment.last)?)))
            .collect();
        for (at, moment, point) in &found {
            let new = format!("past-{at}");
            assert_eq!(self.rewind(*point, &new), Ok(()), "{when}: moment {at}");
            prove(&self.node, &new, &moment.model, &format!("{when}: moment {at}"));
            self.delete(&new);
        }
        found.len()
    }
}

fn prove(node: &Node, volume: &str, model: &Model, when: &str) {
    let device = node.device(volume);
    assert_eq!(node.volume(volume).counts().table.segments, 0, "{when}: nothing was written anew");
    let size = node.volume(volume).size();
    assert_eq!(size, model.len() as u64 * BLOCK, "{when}: its size");
    for (part, stamps) in model.chunks(64).enumerate() {
        let first = part as u64 * 64;
        let bytes = node.read(&device, first * BLOCK, (stamps.len() as u64 * BLOCK) as u32).unwrap().unwrap();
        for (at, (bytes, stamp)) in bytes.chunks(BLOCK as usize).zip(stamps).enumerate() {
            assert!(bytes == stamp.to_le_bytes().repeat(BLOCK as usize / 8), "{when}: block {}", first + at as u64);
        }
    }
}

#[test]
fn every_moment_of_the_window_comes_back_as_it_was() {
    for seed in 0..6 {
        let mut past = Past::new(seed, |_| {});
        for round in 0..24u64 {
            past.write(40);
            match round % 8 {
                1 => past.snapshot(&format!("s{round}")),
                2 => past.discard(17 * (round % 5), 90),
                3 => past.forget(&format!("s{}", round - 2)),
                4 => past.resize(BLOCKS - 20 * (round / 8)),
                5 => past.restart(if seed % 2 == 0 { CrashMode::Kill } else { CrashMode::Kept }),
                7 => past.pass(QUIET),
                _ => {}
            }
            past.seal();
            if round % 3 == 0 {
                past.checkpoint();
            }
            past.pass(Duration::from_secs(1));
        }
        assert!(past.prove("at the end") >= 22, "all but those of marks alone are there");
        past.check("v", "with its past");
        past.restart(CrashMode::Kill);
        assert!(past.prove("after a restart") >= 22);
        past.check("v", "after a restart");
    }
}

/// Whatever is in the window, cleaning goes on beside it, and moves nothing that is needed.
#[test]
fn the_past_survives_cleaning_and_comes_from_where_that_put_it() {
    let mut past = Past::new(7, |node| node.limits.occupancy = 90);
    past.set(Overrides { rewind_window_ms: Some(0), ..Overrides::default() });
    for _ in 0..6 {
        past.write(300);
        past.seal();
        past.checkpoint();
    }
    past.pass(QUIET);
    past.moments.clear();
    past.set(Overrides::default());
    for _ in 0..12 {
        past.write(40);
        past.seal();
        past.pass(Duration::from_secs(30));
    }
    let moved = past.node.shard().counts().clean.jobs;
    assert!(moved > 0, "something was cleaned");
    let there = past.prove("with cleaning");
    assert!(there >= 8, "{there}");
    past.check("v", "with cleaning");
}

#[test]
fn what_has_left_the_window_is_refused_and_costs_nothing() {
    let mut past = Past::new(3, |_| {});
    for _ in 0..10 {
        past.write(80);
        past.seal();
        past.checkpoint();
        past.pass(Duration::from_secs(5));
    }
    let first = past.points()[0];
    assert!(past.node.volume("v").counts().rewind_blocks > 150, "the past is kept");
    let early = past.node.volume("v").rewind_point_at(first.at_ms - 1).unwrap_err();
    assert!(early.kind() == ErrorKind::NotFound && early.to_string().contains("the oldest is of"), "{early}");
    let moment = &past.moments[4];
    assert_eq!(past.node.volume("v").rewind_point_at(moment.at_ms).unwrap().last, moment.last);
    past.pass(WINDOW + QUIET * 2);
    assert_eq!(past.rewind(first, "late"), Err(ErrorKind::NotFound));
    let counts = past.node.volume("v").counts();
    assert_eq!(counts.rewind_blocks, 0, "nothing is kept of it");
    let held = past.model.iter().filter(|stamp| **stamp != 0).count() as u64;
    assert_eq!(counts.table.live_blocks, held, "what it costs is what it holds");
    let last = past.points().last().copied().unwrap();
    assert_eq!(last.last, past.moments.last().unwrap().last, "the present is there all the same");
    past.check("v", "past the window");
}

#[test]
fn a_window_that_is_turned_off_gives_everything_back() {
    let mut past = Past::new(4, |_| {});
    for _ in 0..6 {
        past.write(120);
        past.seal();
        past.checkpoint();
    }
    assert!(past.node.volume("v").counts().rewind_blocks > 100);
    past.set(Overrides { rewind_window_ms: Some(0), ..Overrides::default() });
    past.pass(QUIET);
    assert!(past.points().is_empty());
    let error = past.node.volume("v").rewind_point_at(u64::MAX).unwrap_err();
    assert!(error.to_string().contains("rewind-window"), "{error}");
    let held = past.model.iter().filter(|stamp| **stamp != 0).count() as u64;
    assert_eq!(past.node.volume("v").counts().table.live_blocks, held);
    past.check("v", "turned off");
}

#[test]
fn the_window_takes_no_more_room_than_it_may() {
    let mut past = Past::new(5, |node| node.pool.rewind_space = Some(20));
    let most = BLOCKS / 5;
    for round in 0..30 {
        past.write(70);
        past.seal();
        past.checkpoint();
        let held = past.node.volume("v").counts().rewind_blocks;
        assert!(held <= most, "round {round}: {held} blocks of {most}");
        past.pass(Duration::from_secs(1));
    }
    assert!(past.node.volume("v").counts().rewind_blocks > most / 4, "and some of it is used");
    let there = past.prove("cut short by its room");
    assert!((1..29).contains(&there), "{there}");
    past.check("v", "cut short by its room");
}

/// A moment from before a rollback's blocks were overwritten is reached by the past alone.
#[test]
fn what_was_inherited_by_a_rollback_stays_for_the_past() {
    let mut past = Past::new(6, |_| {});
    past.write(400);
    past.snapshot("base");
    past.write(100);
    past.seal();
    past.checkpoint();
    past.pass(Duration::from_secs(20));
    let volume = past.node.volume("v");
    past.node.must("rollback", async move { volume.rollback(&name("base")).await });
    let size = past.node.volume("v").size();
    let device = past.node.device("v");
    for block in 0..size / BLOCK {
        let bytes = past.node.read(&device, block * BLOCK, BLOCK as u32).unwrap().unwrap();
        past.model[block as usize] = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    }
    drop(device);
    past.moments.clear();
    past.write(1);
    past.seal();
    past.checkpoint();
    past.write(1);
    past.seal();
    past.forget("base");
    for _ in 0..4 {
        past.write(180);
        past.seal();
        past.checkpoint();
        past.pass(QUIET);
    }
    assert!(past.prove("after the rollback") >= 5);
    past.check("v", "after the rollback");
    past.pass(WINDOW + QUIET * 2);
    past.check("v", "past the window");
}

/// Nothing that a clone of a moment needs goes with the window of its origin, nor with the origin.
#[test]
fn what_was_brought_back_outlives_the_window_and_the_volume() {
    let mut past = Past::new(8, |_| {});
    for _ in 0..6 {
        past.write(90);
        past.seal();
        past.checkpoint();
        past.pass(Duration::from_secs(2));
    }
    let moment = past.moments.remove(2);
    let point = past.points().into_iter().find(|point| point.last == moment.last).unwrap();
    past.rewind(point, "back").unwrap();
    past.write(500);
    past.seal();
    past.pass(WINDOW + QUIET * 2);
    prove(&past.node, "back", &moment.model, "past the window");
    past.check("v", "with a clone of its past");
    past.restart(CrashMode::Kept);
    prove(&past.node, "back", &moment.model, "after a restart");
    past.delete("v");
    past.pass(QUIET);
    prove(&past.node, "back", &moment.model, "its origin is gone");
    let shard = past.node.shard();
    past.node.must("flatten", async move { shard.flatten(&name("back"), |_, _| ()).await });
    past.pass(QUIET);
    past.check("back", "flattened");
}
