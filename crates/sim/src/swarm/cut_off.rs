// SPDX-License-Identifier: Apache-2.0
//! Operations that a death cut off: the next process shows what became of them.
//!
//! One that was answered is done. One that was not may be done or not, and what is found decides; both ends of it are whole.

use super::admin::Kind;
use super::disk::Disk;
use super::line::Made;
use super::run::{Run, known};

/// An operation that a death cut off, or that was answered just before.
pub(super) struct CutOff {
    pub(super) kind: Kind,
    pub(super) vol: usize,
    pub(super) at_ms: u64,
    /// Whether it was answered before the process died.
    pub(super) answered: bool,
    /// What its volume held before the batch, and the changes of the batch.
    pub(super) before: Disk,
    pub(super) made: Vec<Made>,
}

impl Run {
    /// Finds out what became of the operations that a death cut off.
    pub(super) fn resolve_cut_off(&mut self) {
        for cut_off in std::mem::take(&mut self.cut_off) {
            self.resolve(cut_off);
        }
    }

    fn resolve(&mut self, cut_off: CutOff) {
        let CutOff { kind, vol, at_ms, answered, before, made } = cut_off;
        let is_open = |this: &Self, volume: &str| this.node.shard().find(&known(volume)).is_ok();
        let done = match &kind {
            Kind::Snapshot { name } => self.lists(vol, name),
            Kind::Forget { snap } => !self.lists(vol, &snap.borrow().name.clone()),
            Kind::Clone { name, .. }
            | Kind::Rewind { name, .. }
            | Kind::Create { name, .. }
            | Kind::Rename { name } => is_open(self, name),
            Kind::Rollback { shown, .. } | Kind::Undo { shown } => {
                self.node.volume(&self.vols[vol].name).record().shown != *shown
            }
            Kind::Delete => !is_open(self, &self.vols[vol].name),
            Kind::Undelete { gone } => is_open(self, &self.gone[*gone].vol.name),
            Kind::Template => self.node.volume(&self.vols[vol].name).record().template,
            // What was set in vain is told from what was set by nothing that matters here.
            Kind::Set { .. } => true,
            Kind::Resize { .. } | Kind::Seal => answered,
            Kind::Flatten
            | Kind::Checkpoint
            | Kind::View { .. }
            | Kind::Show
            | Kind::Check
            | Kind::UndeleteTooLate { .. } => return,
        };
        if !done {
            if answered {
                self.fail(&format!("{kind:?} was answered, and is not done after a crash"));
            }
            return;
        }
        self.cover.count("death: an operation that was not answered is done");
        let found = match &kind {
            Kind::Snapshot { name } => Some(self.alive(|this| this.read_snapshot(vol, name))),
            _ => None,
        };
        self.was_done(kind, vol, at_ms, &before, &made, found);
    }
}
