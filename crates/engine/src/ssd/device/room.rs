// SPDX-License-Identifier: Apache-2.0
//! How a cache device makes room: regions are given up, the oldest first, and what was asked for since it came moves on.
//!
//! Always holds: of the blocks of regions that are given up only a part stays, so that giving up regions makes room; a region is given
//! up only when nothing is on its way to it any more. One task does it, beside everything else.

use super::{Ssd, State};
use crate::ssd::index::Frame;
use std::ops::Range;
use std::rc::Rc;
use varve_format::crc::crc;
use varve_types::BLOCK;
use varve_types::branch::{Branch, reached};

/// Free regions that are kept ready.
const KEEP_FREE: usize = 2;
/// Which part of the blocks of all regions that are given up may stay in the cache, so that giving up regions makes room; and which part of the regions may be
/// given up in a row and all their blocks stay.
const KEPT_PART: (usize, usize) = (3, 4);
const KEPT_ROW: usize = 4;
/// What part of the regions are probation's once none is free.
const PROBATION_PART: usize = 8;
impl Ssd {
    /// Blocks that may stay in a row of regions that are given up.
    pub(super) fn most_kept(&self) -> usize {
        self.frames * (1 + self.regions() as usize / KEPT_ROW)
    }

    /// Gives up regions until enough are free.
    pub(super) fn make_room(self: &Rc<Self>, state: &mut State) {
        if state.free.len() >= KEEP_FREE || std::mem::replace(&mut state.making_room, true) {
            return;
        }
        let this = Rc::clone(self);
        self.env.spawn(Box::pin(async move {
            while let Some(region) = this.next_to_give_up() {
                this.give_up(region).await;
            }
            this.state.borrow_mut().making_room = false;
        }));
    }

    /// The region that is given up next, while too few are free.
    fn next_to_give_up(&self) -> Option<u32> {
        let mut state = self.state.borrow_mut();
        if state.free.len() >= KEEP_FREE {
            return None;
        }
        let State { full: [probation, main], unwritten, .. } = &mut *state;
        let part = self.regions() as usize / PROBATION_PART;
        let row = if !probation.is_empty() && (main.is_empty() || probation.len() > part) { probation } else { main };
        let first = self.frame_of(*row.front()?, 0);
        // What is still on its way there must not land on what comes after it.
        let is_written = unwritten.range(first..first + self.frames as u32).next().is_none();
        if is_written { row.pop_front() } else { None }
    }

    /// Empties a region: what was asked for since it came goes to the end of main, the rest goes.
    async fn give_up(self: &Rc<Self>, region: u32) {
        reached(Branch::SsdRegionGivenUp);
        let kept = self.drop_unused(region);
        for run in runs(&kept) {
            let (first, count) = (run.start, (run.end - run.start) as usize);
            let Some(bytes) = self.bytes(first, count).await else { break };
            for (frame, block) in (first..).zip(bytes.chunks(BLOCK as usize)) {
                self.move_on(frame, block).await;
            }
        }
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        if let Some(index) = &mut state.index {
            (0..self.frames).for_each(|at| index.drop_frame(self.frame_of(region, at)));
        }
        state.free.push_back(region);
    }

    /// Empties the frames of a region that nobody has asked for, and gives the others, as many as may stay.
    fn drop_unused(&self, region: u32) -> Vec<Frame> {
        let mut state = self.state.borrow_mut();
        let State { index: Some(index), may_keep, .. } = &mut *state else { return Vec::new() };
        *may_keep = (*may_keep + self.frames * KEPT_PART.0 / KEPT_PART.1).min(self.most_kept());
        let mut kept = Vec::new();
        for frame in (0..self.frames).map(|at| self.frame_of(region, at)) {
            if index.is_used(frame) && kept.len() < *may_keep {
                kept.push(frame);
            } else {
                index.drop_frame(frame);
            }
        }
        *may_keep -= kept.len();
        kept
    }

    /// Moves a block to main, if it is whole.
    async fn move_on(self: &Rc<Self>, frame: Frame, block: &[u8]) {
        self.until_room().await;
        let taken = {
            let mut state = self.state.borrow_mut();
            let Some(index) = &mut state.index else { return };
            let taken = index.at(frame);
            index.drop_frame(frame);
            taken
        };
        let Some((key, sum)) = taken else { return };
        if crc(block) == sum {
            reached(Branch::SsdKept);
            self.insert(&key, block, sum, true);
        }
    }
}

/// Frames in a row as ranges, in order.
fn runs(frames: &[Frame]) -> Vec<Range<Frame>> {
    let mut runs: Vec<Range<Frame>> = Vec::new();
    for frame in frames {
        match runs.last_mut() {
            Some(run) if run.end == *frame => run.end += 1,
            _ => runs.push(*frame..*frame + 1),
        }
    }
    runs
}
