// SPDX-License-Identifier: Apache-2.0
//! The journals of a shard: one or more, each on a device of its own.
//!
//! Always holds: an open timeline uses one journal, and all that it needs of any journal is in that one; it is where the timeline's tail was, so as long as a
//! journal holds anything of a timeline nobody moves it. A journal that is to be given up takes no timeline: what it holds of one is copied, and synced, before
//! the timeline serves. A journal that fails, or is full, concerns its own timelines.

use crate::Result;
use crate::context::Context;
use crate::journal::{Journal, Replayed, replay};
use crate::keeper::ShardKeeper;
use crate::stages::Stages;
use crate::tails::Tails;
use std::rc::Rc;
use varve_env::{Disk, Env};
use varve_types::{JournalId, MAX_JOURNALS, TimelineId};

/// A disk that a shard is started with for a journal.
pub struct JournalDisk {
    /// The disk.
    pub disk: Rc<dyn Disk>,
    /// What is to become of it.
    pub role: JournalRole,
}

/// What a disk is for a shard that starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JournalRole {
    /// A journal is made on it.
    New,
    /// It has one that an earlier process has left.
    Used,
    /// The same, and it is to be given up: its records go to others.
    Leaving,
}

/// Numbers of a journal, for people.
#[derive(Clone, Copy, Debug)]
pub struct JournalCounts {
    /// Its id.
    pub id: JournalId,
    /// Its bytes.
    pub bytes: u64,
    /// Bytes of it in use.
    pub used: u64,
    /// Whether it has failed: flushes of its volumes are answered by the store then.
    pub failed: bool,
    /// Whether it is to be given up.
    pub leaving: bool,
    /// Whether nothing needs it.
    pub empty: bool,
}

/// A journal, and what it has of timelines that are not open.
pub(crate) struct Home {
    pub journal: Rc<Journal>,
    pub tails: Tails,
    /// Whether it is to be given up.
    leaving: bool,
}

/// See the module.
pub(crate) struct Journals(Vec<Home>);

impl Journals {
    /// Makes or reads them, in the order of the disks.
    ///
    /// # Errors
    /// When a disk is too small or fails, or has no journal where there should be one.
    pub async fn start(env: &Rc<dyn Env>, disks: Vec<JournalDisk>, stages: &Rc<Stages>) -> Result<Self> {
        assert!(disks.len() <= 2 * MAX_JOURNALS, "the caller keeps to it");
        assert!(disks.iter().any(|disk| disk.role != JournalRole::Leaving), "one is there to stay");
        let mut homes = Vec::with_capacity(disks.len());
        for JournalDisk { disk, role } in disks {
            let (env, stages) = (Rc::clone(env), Rc::clone(stages));
            let (journal, found): (_, Vec<Replayed>) = match role {
                JournalRole::New => (Journal::create(disk, env, stages).await?, Vec::new()),
                JournalRole::Used | JournalRole::Leaving => replay(disk, env, stages).await?,
            };
            let tails = Tails::new(&journal, found);
            homes.push(Home { journal, tails, leaving: role == JournalRole::Leaving });
        }
        Ok(Self(homes))
    }

    /// Tells each of them whose its records are. Once.
    pub fn keep(&self, context: &Rc<Context>) {
        for (number, home) in self.0.iter().enumerate() {
            home.journal.set_keeper(Box::new(ShardKeeper { context: Rc::downgrade(context), number }));
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Home> {
        self.0.iter()
    }

    /// Id of the first that is to stay: by it a shard is known where it keeps small facts.
    pub fn first(&self) -> JournalId {
        self.0.iter().find(|home| !home.leaving).expect("one is there to stay").journal.id()
    }

    /// One by its number.
    pub fn home(&self, number: usize) -> Option<&Home> {
        self.0.get(number)
    }

    /// The journal for a timeline that is made or opened: where most of its tail is; else, of those that work, the one with the fewest timelines.
    pub fn choose(&self, timeline: TimelineId) -> Rc<Journal> {
        let stays = || self.0.iter().filter(|home| !home.leaving);
        let held = stays().map(|home| (home.tails.count(timeline), home)).filter(|(count, _)| *count > 0);
        if let Some((_, home)) = held.max_by_key(|(count, _)| *count) {
            return Rc::clone(&home.journal);
        }
        // Each timeline that is open, or about to be, has it.
        let timelines = |home: &Home| Rc::strong_count(&home.journal);
        let load = |home: &&Home| (home.journal.failure().is_some(), timelines(home), home.journal.usage().1);
        Rc::clone(&stays().min_by_key(load).expect("one is there to stay").journal)
    }

    /// What journals but this one have of a timeline, and which of them.
    pub fn strays(&self, timeline: TimelineId, own: &Rc<Journal>) -> Vec<(Rc<Journal>, Vec<Replayed>)> {
        let others = self.0.iter().filter(|home| !Rc::ptr_eq(&home.journal, own));
        let found = others.map(|home| (Rc::clone(&home.journal), home.tails.of(timeline)));
        found.filter(|(_, records)| !records.is_empty()).collect()
    }

    /// The tails in a journal.
    pub fn tails(&self, journal: &Rc<Journal>) -> &Tails {
        let home = self.0.iter().find(|home| Rc::ptr_eq(&home.journal, journal));
        &home.expect("a timeline's journal is one of the shard's").tails
    }

    /// Gives up the tails that `is_needed` does not name.
    pub fn retain_tails(&self, is_needed: impl Fn(TimelineId) -> bool) {
        for home in &self.0 {
            home.tails.retain(&home.journal, &is_needed);
        }
    }

    /// Numbers of them, in the order of the disks.
    pub fn counts(&self) -> Vec<JournalCounts> {
        let counts = |home: &Home| {
            let (bytes, used) = home.journal.usage();
            JournalCounts {
                id: home.journal.id(),
                bytes,
                used,
                failed: home.journal.failure().is_some(),
                leaving: home.leaving,
                empty: home.journal.is_empty(),
            }
        };
        self.0.iter().map(counts).collect()
    }
}
