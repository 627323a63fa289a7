// SPDX-License-Identifier: Apache-2.0
//! A crash at every single I/O of a life of a volume: made, written, flushed, snapshotted, sealed, merged, cloned, rolled back and forward, deleted, swept.
//!
//! At each I/O the process dies; the disk is left as each kind of crash leaves it, and the puts under way are lost, have landed, or land while the
//! next process runs already. That one must open everything, keep every promise, count right, go on working, and survive one more death.
//!
//! In the usual run each I/O meets one of the 18 kinds of crash, in turn, and every fourth has the second death; with `VARVE_ALL=1` each meets them all.

use varve_sim::node;

mod disk;
mod line;
mod story;

use node::Node;
use std::time::Duration;
use story::{ROLLBACK, STORY, Step, Story, play};
use varve_sim::{CrashMode, InFlight, RunError, SimOptions, at_every_io};
use varve_types::Overrides;

const FATES: [InFlight; 3] = [InFlight::Lost, InFlight::Landed, InFlight::Late(Duration::from_millis(700))];
/// I/Os of the whole story, at most.
const MOST: u64 = 2000;

#[allow(clippy::disallowed_methods, reason = "how much is tried is asked before any world begins")]
fn all() -> bool {
    std::env::var_os("VARVE_ALL").is_some()
}

fn new_node(seed: u64) -> Node {
    let mut node = Node::new(SimOptions::seed(seed), 9 << 20);
    node.limits.overlay_entries = 24;
    node.limits.reclaim_nodes = 1;
    node.pool = Overrides { segment_size: Some(64 << 10), undelete_window_ms: Some(20_000), ..Overrides::default() };
    node
}

/// One story that ends at I/O `number`. False where it ended by itself.
fn life(steps: &'static [Step], number: u64, mode: CrashMode, fate: InFlight) -> bool {
    let mut node = new_node(7);
    let story = Story::shared(format!("I/O {number}, {mode:?}, {fate:?}"));
    node.env.points().at(number);
    let died = match node.create() {
        Err(RunError::Dead { .. }) => true,
        Err(error) => panic!("{error}"),
        Ok(made) => {
            made.expect("the shard starts");
            story.borrow_mut().started = true;
            let (env, told) = (std::rc::Rc::clone(&node.env), std::rc::Rc::clone(&story));
            match node.run(play(node.shard(), env, told, steps)) {
                Err(RunError::Dead { .. }) => true,
                Err(error) => panic!("{}: {error}", story.borrow().what),
                Ok(()) => false,
            }
        }
    };
    let place = node.env.points().death().unwrap_or_default();
    let place = format!(" ({place}, in {:?})", story.borrow().flight);
    story.borrow_mut().what.push_str(&place);
    node.crash(mode, fate);
    if !story.borrow().started {
        // The journal was never finished, so nothing was promised: it is made anew.
        node.create().expect("the world runs").expect("the shard starts");
        return died;
    }
    node.reopen();
    story.borrow_mut().resolve(&node, mode);
    story.borrow().prove(&node, "after the crash");
    if !number.is_multiple_of(4) && !all() {
        return died;
    }
    story.borrow_mut().go_on(&node);
    story.borrow().prove(&node, "gone on");
    node.crash(CrashMode::Lost, InFlight::Landed);
    node.reopen();
    story.borrow().prove(&node, "after the second crash");
    died
}

/// Every I/O of a story; gives their number.
fn everywhere(steps: &'static [Step]) -> u64 {
    let kinds: Vec<_> = CrashMode::ALL.into_iter().flat_map(|mode| FATES.map(|fate| (mode, fate))).collect();
    at_every_io(MOST, |number| {
        let mut died = false;
        for (place, (mode, fate)) in kinds.iter().enumerate() {
            if all() || place as u64 == number * 7 % kinds.len() as u64 {
                died = life(steps, number, *mode, *fate);
            }
        }
        died
    })
}

#[test]
fn a_volume_survives_a_crash_at_every_io() {
    let deaths = everywhere(STORY);
    assert!(deaths > 200, "only {deaths} deaths: the story is shorter than it was meant to be");
}

#[test]
fn a_rollback_past_its_window_survives_a_crash_at_every_io() {
    let deaths = everywhere(ROLLBACK);
    assert!(deaths > 150, "only {deaths} deaths: the story is shorter than it was meant to be");
}
