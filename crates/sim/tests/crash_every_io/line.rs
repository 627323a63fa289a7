// SPDX-License-Identifier: Apache-2.0
//! What a volume should hold, and what a crash may have taken of it.
//!
//! `base` is what is certain to be there; `log` is what was answered since and, with the power, may be lost from its end on.

use super::disk::{Change, Disk};

/// A snapshot.
#[derive(Clone, Debug)]
pub struct Snap {
    pub name: String,
    pub disk: Disk,
}

/// What a volume shows, with the snapshots that it lists.
#[derive(Clone, Debug)]
pub struct Line {
    base: Disk,
    log: Vec<Change>,
    pub now: Disk,
    /// Oldest first.
    pub snaps: Vec<Snap>,
}

impl Line {
    pub fn new(disk: Disk) -> Self {
        Self { base: disk.clone(), log: Vec::new(), now: disk, snaps: Vec::new() }
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

    /// A snapshot that the volume lists.
    pub fn snap(&self, name: &str) -> Option<&Snap> {
        self.snaps.iter().find(|snap| snap.name == name)
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
                None => found == *state,
            };
            if fits {
                self.now = found;
                self.flushed();
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
