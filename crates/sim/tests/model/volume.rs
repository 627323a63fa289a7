// SPDX-License-Identifier: Apache-2.0
//! What a volume should be: its timelines with their snapshots, and what a crash may have taken.
//!
//! `base` is what is certain to be there; `log` is what was answered since and, with the power, may be lost from its end on. Snapshots are shared by the timelines
//! that list them, so one that is deleted in one of them is gone from all.

use super::disk::{Change, Disk};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// A snapshot.
#[derive(Debug)]
pub struct Snap {
    pub name: String,
    pub disk: Disk,
    pub alive: bool,
}

/// A timeline.
#[derive(Clone, Debug)]
pub struct Line {
    /// Unique among the volume's.
    pub number: u64,
    pub base: Disk,
    pub log: Vec<Change>,
    pub now: Disk,
    /// Oldest first.
    pub snaps: Vec<Rc<RefCell<Snap>>>,
    /// When it was hidden.
    pub hidden_at: Duration,
}

/// A volume.
#[derive(Debug)]
pub struct Vol {
    pub name: String,
    pub line: Line,
    /// Timelines that a rollback or an undo has hidden: the newest comes back first.
    pub hidden: Vec<Line>,
    /// Places where it is used: start and length. A small volume has one.
    pub regions: Vec<(u64, u64)>,
    /// Whether a write is answered before the kernel has it.
    pub ram: bool,
}

impl Line {
    pub fn new(number: u64, disk: Disk) -> Self {
        Self { number, base: disk.clone(), log: Vec::new(), now: disk, snaps: Vec::new(), hidden_at: Duration::ZERO }
    }

    /// A change was answered.
    pub fn made(&mut self, change: Change) {
        self.now.apply(&change);
        self.log.push(change);
    }

    /// Everything so far is on stable media.
    pub fn flushed(&mut self) {
        self.base = self.now.clone();
        self.log.clear();
    }

    /// Snapshots that are there.
    pub fn alive(&self) -> Vec<Rc<RefCell<Snap>>> {
        self.snaps.iter().filter(|snap| snap.borrow().alive).map(Rc::clone).collect()
    }

    /// Takes what was found after a crash, if the promises allow it. `all`: every answered change must be there. `flight` is a change that
    /// was not answered.
    pub fn recover(&mut self, found: Disk, all: bool, flight: Option<&Change>) -> Result<(), String> {
        let mut states = vec![self.base.clone()];
        for change in &self.log {
            let mut next = states.last().expect("it begins with the base").clone();
            next.apply(change);
            states.push(next);
        }
        let last = states.len() - 1;
        let least = if all { last } else { 0 };
        for (count, state) in states.iter().enumerate().skip(least).rev() {
            let next = self.log.get(count).or(if count == last { flight } else { None });
            let fits = match next {
                Some(change) => found.explains(state, change),
                None => found.size == state.size && found.difference(state).is_none(),
            };
            if fits {
                *self = Self { base: found.clone(), log: Vec::new(), now: found, ..self.clone() };
                return Ok(());
            }
        }
        let block = found.difference(&self.now);
        let text = block.map_or_else(String::new, |block| {
            format!("block {block} is {}, should be {}", found.describe(block), self.now.describe(block))
        });
        Err(format!(
            "no state explains what was found ({} changes since the last flush, all must be there: {all}, in flight: \
             {flight:?}, sizes {} and {}): {text}",
            self.log.len(),
            found.size,
            self.now.size
        ))
    }
}
