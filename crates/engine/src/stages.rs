// SPDX-License-Identifier: Apache-2.0
//! How long the stages take that all requests of a shard share, for people.
//!
//! It only counts: nothing is decided by it, and a crash forgets it. A stage that is begun counts as under way until its [`Timed`] is dropped, also where
//! the task is given up, and then with the time that it took until then. One thread, so nothing is locked.

use std::cell::RefCell;
use std::time::Duration;
use varve_env::Env;
use varve_types::Histogram;

/// A part of the work that is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A batch is handed to the kernel for the journal.
    JournalWrite,
    /// The journal's disk makes durable what it was handed.
    JournalSync,
    /// A change waits for room in the journal, in RAM or among ordinals.
    Room,
    /// A layer is gathered, checksummed and compressed.
    Seal,
    /// A segment is put, until the store has answered.
    SegmentPut,
    /// A checkpoint, from the merge to the acceptance of its manifest.
    Checkpoint,
    /// A job of cleaning.
    Clean,
    /// Changes are sent to a volume's mirror, until it has them.
    Mirror,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::JournalWrite,
        Self::JournalSync,
        Self::Room,
        Self::Seal,
        Self::SegmentPut,
        Self::Checkpoint,
        Self::Clean,
        Self::Mirror,
    ];

    /// What metrics call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::JournalWrite => "journal_write",
            Self::JournalSync => "journal_sync",
            Self::Room => "room",
            Self::Seal => "seal",
            Self::SegmentPut => "segment_put",
            Self::Checkpoint => "checkpoint",
            Self::Clean => "clean",
            Self::Mirror => "mirror",
        }
    }
}

/// What a stage has come to since the shard began.
#[derive(Clone, Copy, Debug, Default)]
pub struct StageTimes {
    /// How long it took, each time.
    pub took: Histogram,
    /// How often it is under way at this moment.
    pub under_way: u64,
}

/// The stages of a shard. See the module.
#[derive(Default)]
pub(crate) struct Stages(RefCell<[StageTimes; Stage::ALL.len()]>);

impl Stages {
    /// Begins a stage: it ends when what this gives is dropped.
    pub fn begin<'a>(&'a self, env: &'a dyn Env, stage: Stage) -> Timed<'a> {
        self.0.borrow_mut()[stage as usize].under_way += 1;
        Timed { stages: self, env, stage, since: env.now() }
    }

    pub fn times(&self) -> [StageTimes; Stage::ALL.len()] {
        *self.0.borrow()
    }
}

/// A stage that is under way.
pub(crate) struct Timed<'a> {
    stages: &'a Stages,
    env: &'a dyn Env,
    stage: Stage,
    since: Duration,
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        let took = self.env.now().saturating_sub(self.since);
        let times = &mut self.stages.0.borrow_mut()[self.stage as usize];
        times.under_way -= 1;
        times.took.add(took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_has_a_place_and_a_name_of_its_own() {
        for (at, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage as usize, at);
            assert_eq!(Stage::ALL.iter().filter(|other| other.name() == stage.name()).count(), 1);
        }
    }
}
