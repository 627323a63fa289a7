// SPDX-License-Identifier: Apache-2.0
//! What a volume should be: its timelines with their snapshots, and what a crash may have taken of them.
//!
//! Requests come in *batches*: those of one batch are under way together, in no order that anyone could rely on; a batch begins when every request of
//! the one before was answered. A timeline keeps `base`, which is sure to be there, and the batches since, which a power cut may have cut off.
//!
//! **What a crash may leave.** There is a batch such that everything before it is there, nothing behind it, and of itself any of its changes, block by
//! block; what was answered with FUA is there in any case. Where nothing of the answered may be lost it is the last batch, with all that was answered. This
//! is stronger than what a disk promises (it may reorder between two flushes); it is what a log does, and what holds off replay in a wrong order.

use super::disk::{Change, Disk};
use super::stamp::Block;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use varve_types::Sequence;

/// A snapshot.
pub(super) struct Snap {
    pub(super) name: String,
    pub(super) disk: Disk,
    pub(super) alive: bool,
}

impl std::fmt::Debug for Snap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// What a timeline held at a moment at which everything that was asked for was answered and sealed.
#[derive(Clone, Debug)]
pub(super) struct Moment {
    /// The last change before it.
    pub(super) last: Sequence,
    pub(super) disk: Rc<Disk>,
}

/// Moments that are remembered, at most.
const MOST_MOMENTS: usize = 12;

/// A change of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made {
    pub(super) change: Change,
    /// Whether it was answered.
    pub(super) answered: bool,
    /// Whether the answer said that it is on stable media.
    pub(super) stable: bool,
}

/// A timeline. See the module.
#[derive(Clone, Debug)]
pub(super) struct Line {
    base: Disk,
    log: Vec<Vec<Made>>,
    /// Everything that was answered.
    pub(super) now: Disk,
    /// Oldest first, shared by the timelines that list them.
    pub(super) snaps: Vec<Rc<RefCell<Snap>>>,
    /// Wall-clock time at which it was hidden, in milliseconds.
    pub(super) hidden_ms: u64,
    /// Moments that may be brought back, oldest first.
    pub(super) moments: Vec<Moment>,
    /// Whether everything of it was answered since it was last compared: else nobody knows what it holds.
    pub(super) exact: bool,
    /// Whether flushes count for nothing: only what the store has will be there.
    pub(super) frozen_base: bool,
}

/// A volume.
#[derive(Debug)]
pub(super) struct Vol {
    pub(super) name: String,
    pub(super) line: Line,
    /// Timelines that a rollback or an undo has hidden: the last comes back first.
    pub(super) hidden: Vec<Line>,
    /// Bytes where it is used: start and length.
    pub(super) regions: Vec<(u64, u64)>,
    /// Whether a write is answered before the kernel has it.
    pub(super) ram: bool,
    pub(super) template: bool,
}

impl Vol {
    /// Shows another timeline; the one that was shown is hidden.
    pub(super) fn show(&mut self, line: Line, at_ms: u64) {
        self.line.flushed(0);
        self.line.hidden_ms = at_ms;
        self.hidden.push(std::mem::replace(&mut self.line, line));
        self.size_changed();
    }

    /// A volume that is used everywhere is used up to its size.
    pub(super) fn size_changed(&mut self) {
        if let [region] = &mut self.regions[..] {
            *region = (0, self.line.now.size);
        }
    }
}

impl Line {
    pub(super) fn new(disk: Disk) -> Self {
        let (base, log, snaps) = (disk.clone(), Vec::new(), Vec::new());
        Self { base, log, now: disk, snaps, hidden_ms: 0, moments: Vec::new(), exact: true, frozen_base: false }
    }

    /// Remembers what it holds now, behind the change `last`.
    pub(super) fn remember(&mut self, last: Sequence) {
        if !self.exact || last == Sequence(0) || self.moments.last().is_some_and(|moment| moment.last >= last) {
            return;
        }
        if self.moments.len() == MOST_MOMENTS {
            // The old ones thin out.
            self.moments.remove(1);
        }
        self.moments.push(Moment { last, disk: Rc::new(self.now.clone()) });
    }

    /// Nothing behind the change `last` has ever happened.
    pub(super) fn forget_behind(&mut self, last: Sequence) {
        self.moments.retain(|moment| moment.last <= last);
    }

    /// Adds a batch: its answered changes are made.
    pub(super) fn add(&mut self, batch: Vec<Made>) {
        for made in batch.iter().filter(|made| made.answered) {
            self.now.apply(&made.change);
        }
        self.exact &= batch.iter().all(|made| made.answered);
        if !batch.is_empty() {
            self.log.push(batch);
        }
    }

    /// Everything is on stable media but the last `keep` batches.
    pub(super) fn flushed(&mut self, keep: usize) {
        if !self.frozen_base {
            self.make_sure(self.log.len().saturating_sub(keep));
        }
    }

    /// Batches that a loss may cut off.
    pub(super) const fn batches(&self) -> usize {
        self.log.len()
    }

    /// The first `count` batches are sure to be there.
    pub(super) fn make_sure(&mut self, count: usize) {
        for made in self.log.drain(..count).flatten().filter(|made| made.answered) {
            self.base.apply(&made.change);
        }
    }

    /// Snapshots that are there.
    pub(super) fn alive(&self) -> Vec<Rc<RefCell<Snap>>> {
        self.snaps.iter().filter(|snap| snap.borrow().alive).map(Rc::clone).collect()
    }

    /// A snapshot that was taken during the last batch, as it was found; `batch` are the changes of that batch.
    pub(super) fn explain_snapshot(&self, before: &Disk, batch: &[Made], found: &Disk) -> Result<(), String> {
        // A write that was under way beside it may be in it or not, however it was answered.
        let batch = batch.iter().map(|made| Made { stable: false, ..*made }).collect();
        let line = Self { base: before.clone(), log: vec![batch], ..Self::new(before.clone()) };
        line.cut_of(found, false).map(drop)
    }

    /// Takes what was found after a crash, if the promises allow it. `all`: every answered change must be there.
    pub(super) fn recover(&mut self, found: Disk, all: bool) -> Result<(), String> {
        self.cut_of(&found, all && !self.frozen_base)?;
        self.exact = true;
        self.base = found.clone();
        self.now = found;
        self.log.clear();
        Ok(())
    }

    /// The batch of the cut, the highest if several explain what was found.
    fn cut_of(&self, found: &Disk, all: bool) -> Result<usize, String> {
        let cuts = self.log.len().max(1);
        let least = if all { cuts - 1 } else { 0 };
        let mut votes = vec![0usize; cuts];
        let mut touched: BTreeMap<u64, Vec<(usize, Made)>> = BTreeMap::new();
        let mut known = self.base.clone();
        for (at, batch) in self.log.iter().enumerate() {
            for made in batch {
                for number in known.touched(&made.change) {
                    touched.entry(number).or_default().push((at, *made));
                }
                // Changes are looked for where anything may stand.
                known.apply(&made.change);
            }
        }
        for (number, changes) in &touched {
            let fits = self.cuts_of_block(*number, changes, found.block(*number), all, cuts);
            if !fits[least..].contains(&true) {
                return Err(format!(
                    "block {number} is {:x?}; it was {:x?}, and {changes:x?} came since (all must be there: {all})",
                    found.block(*number),
                    self.base.block(*number),
                ));
            }
            fits.iter().zip(&mut votes).for_each(|(fits, votes)| *votes += usize::from(*fits));
        }
        let others: BTreeSet<u64> = found.numbers().chain(self.base.numbers()).collect();
        if let Some(number) =
            others.iter().find(|n| !touched.contains_key(n) && found.block(**n) != self.base.block(**n))
        {
            let (is, was) = (found.block(*number), self.base.block(*number));
            return Err(format!("block {number}, which nobody has changed, is {is:x?} and was {was:x?}"));
        }
        let cut = (least..cuts).rev().find(|cut| votes[*cut] == touched.len() && self.size_fits(*cut, found.size));
        cut.ok_or_else(|| {
            let log: Vec<_> = self.log.iter().map(Vec::len).collect();
            format!(
                "each block could be, but not together: batches of {log:?}, {votes:?} of {} blocks fit",
                touched.len()
            )
        })
    }

    /// Whether the disk may have this size when the cut is in batch `cut`.
    fn size_fits(&self, cut: usize, size: u64) -> bool {
        let before = self.log[..cut.min(self.log.len())].iter().flatten();
        let resized = |made: &Made| if let Change::Resize { to, .. } = made.change { Some(to) } else { None };
        let whole = before.filter_map(resized).next_back().unwrap_or(self.base.size);
        let within = self.log.get(cut).map_or(&[][..], Vec::as_slice);
        let is_sure = within.iter().any(|made| made.stable && resized(made).is_some());
        (size == whole && !is_sure) || within.iter().filter_map(resized).any(|to| to == size)
    }

    /// For each batch whether the cut may be there, as far as one block tells.
    fn cuts_of_block(&self, number: u64, changes: &[(usize, Made)], found: Block, all: bool, cuts: usize) -> Vec<bool> {
        let mut fits = vec![false; cuts];
        let mut state = self.base.block(number);
        let mut next = 0;
        for batch in changes.chunk_by(|a, b| a.0 == b.0) {
            let at = batch[0].0;
            fits[next..at].fill(found == state);
            let sure = |made: &Made| made.stable || (all && at + 1 == cuts && made.answered);
            fits[at] = subsets(number, state, batch, sure).contains(&found);
            for (_, made) in batch {
                made.change.apply_to(number, &mut state);
            }
            next = at + 1;
        }
        fits[next..].fill(found == state);
        // Nothing that was answered as stable lies behind the cut.
        let stable = changes.iter().filter(|(_, made)| made.stable).map(|(at, _)| *at).max().unwrap_or(0);
        fits[..stable].fill(false);
        fits
    }
}

/// What a block may be when some of the changes of a batch are there, those that are sure in any case.
fn subsets(number: u64, state: Block, batch: &[(usize, Made)], sure: impl Fn(&Made) -> bool) -> Vec<Block> {
    let mut all = vec![state];
    for (_, made) in batch {
        let mut changed = all.clone();
        changed.iter_mut().for_each(|block| made.change.apply_to(number, block));
        if sure(made) {
            all = changed;
        } else {
            all.extend(changed);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::stamp::BLOCK;

    fn write(block: u64, stamp: u64, answered: bool, stable: bool) -> Made {
        Made { change: Change::Write { offset: block * BLOCK, len: BLOCK, stamp }, answered, stable }
    }

    fn line(batches: &[Vec<Made>]) -> Line {
        let mut line = Line::new(Disk::new(8 * BLOCK));
        batches.iter().for_each(|batch| line.add(batch.clone()));
        line
    }

    fn found(blocks: &[(u64, u64)]) -> Disk {
        let mut disk = Disk::new(8 * BLOCK);
        blocks.iter().for_each(|(number, stamp)| disk.set(*number, [*stamp; 8]));
        disk
    }

    #[test]
    fn a_power_cut_leaves_a_beginning_and_nothing_else() {
        let all = line(&[
            vec![write(0, 1, true, false), write(1, 2, true, false)],
            vec![write(0, 3, true, false)],
            vec![write(2, 4, true, false)],
        ]);
        let fits = |blocks: &[(u64, u64)]| all.clone().recover(found(blocks), false).is_ok();
        assert!(fits(&[]) && fits(&[(0, 1)]) && fits(&[(1, 2)]) && fits(&[(0, 3), (1, 2)]));
        assert!(fits(&[(0, 3), (1, 2), (2, 4)]));
        assert!(!fits(&[(0, 3)]), "a later one without an earlier one");
        assert!(!fits(&[(0, 1), (1, 2), (2, 4)]) && !fits(&[(0, 9)]) && !fits(&[(5, 1)]));
        assert!(all.clone().recover(found(&[(0, 3), (1, 2), (2, 4)]), true).is_ok());
        assert!(all.clone().recover(found(&[(0, 3), (1, 2)]), true).is_err(), "answered, and the kernel had it");
    }

    #[test]
    fn what_was_flushed_or_forced_is_there() {
        let mut flushed = line(&[vec![write(0, 1, true, false)], vec![write(1, 2, true, false)]]);
        flushed.flushed(1);
        assert!(flushed.clone().recover(found(&[]), false).is_err());
        assert!(flushed.recover(found(&[(0, 1)]), false).is_ok());
        let forced = line(&[vec![write(0, 1, true, false)], vec![write(1, 2, true, true), write(2, 3, false, false)]]);
        let fits = |blocks: &[(u64, u64)]| forced.clone().recover(found(blocks), false).is_ok();
        assert!(!fits(&[(0, 1)]) && !fits(&[(1, 2)]) && fits(&[(0, 1), (1, 2)]) && fits(&[(0, 1), (1, 2), (2, 3)]));
    }

    #[test]
    fn a_block_is_old_or_new_and_never_a_mixture() {
        let all = line(&[vec![write(0, 1, false, false)]]);
        let mut torn = Disk::new(8 * BLOCK);
        torn.set(0, [1, 1, 1, 1, 0, 0, 0, 0]);
        assert!(all.clone().recover(torn, false).is_err());
        assert!(all.clone().recover(found(&[(0, 1)]), true).is_ok());
    }
}
