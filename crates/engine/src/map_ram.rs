// SPDX-License-Identifier: Apache-2.0
//! The RAM of a shard's maps: what they take, and who leaves when that is more than they may.
//!
//! One budget ([`crate::Limits::map_ram`]) is for all that finds a block: nodes of maps, segment tables with their bitmaps, heads of segments
//! with the places of their chunks, tables of map objects, tables of ancestors. Segment tables stay in RAM whole; heads have an eighth, tables of map
//! objects a sixteenth at most; nodes have the rest, a quarter at least. When nodes have more, the hand goes on over the trees of the shard, one tree after the other, round by
//! round ([`Tree::pass`](crate::map::Tree::pass)): so the whole shard is one clock, and a volume that nobody reads gives its nodes to one that is read. A volume may have a
//! bound of its own besides (`map-ram` of its settings): its hand goes on while it has more.
//!
//! Always holds: when nodes have more than they may, the hand goes on: a few steps at once, by who has let a node in, and the rest of a round beside
//! everything else. So nodes take no more than they may, what comes in during a round, and what can not leave: it is dirty, on its way to
//! the store, or was looked at since the hand came by. Nobody waits for more than those few steps. In what one node that came in sets going no
//! other is passed twice, so that it stays until who asked for it has looked.
//!
//! Nothing here is about what is right: a node that is not in RAM is loaded.

use crate::context::Context;
use crate::map::Pass;
use crate::signal::breathe;
use crate::timeline::Timeline;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::ops::Bound;
use std::rc::{Rc, Weak};
use varve_types::TimelineId;

/// Nodes of level 1 that the hand passes between two looks at other tasks.
const PASSES: u32 = 64;

/// What is counted of it, and where the hand stands.
#[derive(Default)]
pub(crate) struct MapRam {
    /// The timeline over whose tree the hand goes.
    hand: Cell<Option<TimelineId>>,
    /// Bytes that came in since somebody looked.
    grown: Cell<usize>,
    /// Whether the hand goes on beside everything else.
    is_going: Cell<bool>,
    loaded: Cell<u64>,
    evicted: Cell<u64>,
}

/// How far what a node that came in has set going has come: no further than once round.
#[derive(Default)]
struct Round {
    /// Trees that the hand has come to the end of.
    trees: usize,
    /// The same, of volumes that have more than their own settings give them.
    own: BTreeSet<TimelineId>,
}

/// RAM of the maps of a shard, in bytes; and nodes since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapCounts {
    /// Nodes of maps.
    pub node_bytes: usize,
    /// Segment tables: entries and bitmaps, of the volumes and of their ancestors.
    pub table_bytes: usize,
    /// Heads of segments, and tables of map objects.
    pub head_bytes: usize,
    /// Nodes that came into RAM.
    pub loaded: u64,
    /// Nodes that have left it again.
    pub evicted: u64,
}

impl MapCounts {
    /// All of it.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.node_bytes + self.table_bytes + self.head_bytes
    }
}

impl Context {
    /// What the maps take.
    pub fn map_counts(&self) -> MapCounts {
        self.count_maps(&self.open_timelines())
    }

    fn count_maps(&self, open: &[Rc<Timeline>]) -> MapCounts {
        let mut counts =
            MapCounts { loaded: self.map.loaded.get(), evicted: self.map.evicted.get(), ..MapCounts::default() };
        for timeline in open {
            let data = timeline.data.borrow();
            counts.node_bytes += data.tree.bytes_in_ram();
            counts.table_bytes += data.table.bytes_in_ram() + timeline.lineages.bytes_in_ram();
        }
        counts.head_bytes = self.heads.borrow().bytes() + self.tables.borrow().bytes();
        counts
    }

    /// Bytes that nodes may take beside all else of the maps.
    fn node_share(&self, counts: &MapCounts) -> usize {
        let all = self.limits.map_ram as usize;
        all.saturating_sub(counts.table_bytes + counts.head_bytes).max(all / 4)
    }

    /// So many bytes of a node came in: others leave where that is too much.
    pub fn map_grew(self: &Rc<Self>, bytes: usize) {
        let map = &self.map;
        map.loaded.set(map.loaded.get() + 1);
        map.grown.set(map.grown.get() + bytes);
        // Summing up costs by the number of volumes, so not for each of many small nodes.
        if map.grown.get() >= self.limits.map_ram as usize / 1024 {
            self.fit_maps();
        }
    }

    /// Lets nodes leave where they have more than they may.
    pub fn fit_maps(self: &Rc<Self>) {
        self.map.grown.set(0);
        let mut round = Round::default();
        if self.pass_some(&mut round) && !self.map.is_going.replace(true) {
            let this = Rc::clone(self);
            self.env.spawn(Box::pin(async move {
                loop {
                    breathe().await;
                    if !this.pass_some(&mut round) {
                        break;
                    }
                }
                this.map.is_going.set(false);
            }));
        }
    }

    /// The hand goes on by some steps; tells whether nodes have still more than they may, and it has not come round yet.
    fn pass_some(&self, round: &mut Round) -> bool {
        let (mut left, open) = (PASSES, self.open_timelines());
        for timeline in &open {
            let most = timeline.settings().map_ram as usize;
            while left > 0 && most > 0 && !round.own.contains(&timeline.id) && timeline.map_bytes() > most {
                left -= 1;
                if self.pass(timeline).is_round {
                    round.own.insert(timeline.id);
                }
            }
        }
        let counts = self.count_maps(&open);
        let (mut bytes, share) = (counts.node_bytes, self.node_share(&counts));
        while left > 0 {
            if bytes <= share || round.trees >= open.len() {
                return false;
            }
            let Some(timeline) = self.at_hand() else { return false };
            left -= 1;
            let is_done = round.own.contains(&timeline.id);
            let pass = if is_done { Pass { is_round: true, ..Pass::default() } } else { self.pass(&timeline) };
            bytes -= pass.freed_bytes;
            if pass.is_round {
                round.trees += 1;
                self.next_hand(timeline.id);
            }
        }
        true
    }

    /// The hand goes over a node of level 1 of a tree.
    fn pass(&self, timeline: &Timeline) -> Pass {
        let pass = timeline.data.borrow_mut().tree.pass(|first_block| timeline.loads.needs(first_block));
        self.map.evicted.set(self.map.evicted.get() + pass.nodes as u64);
        pass
    }

    /// The hand goes on with the tree behind that of `timeline`, or the first.
    fn next_hand(&self, timeline: TimelineId) {
        let behind = (Bound::Excluded(timeline), Bound::Unbounded);
        self.map.hand.set(self.timelines.borrow().range(behind).next().map(|(id, _)| *id));
    }

    /// The timeline over whose tree the hand goes.
    fn at_hand(&self) -> Option<Rc<Timeline>> {
        let timelines = self.timelines.borrow();
        let from = self.map.hand.get();
        let behind = timelines.iter().filter(|(id, _)| from.is_none_or(|from| **id >= from));
        let found = behind.chain(timelines.iter()).find_map(|(_, timeline)| Weak::upgrade(timeline));
        self.map.hand.set(found.as_ref().map(|timeline| timeline.id));
        found
    }
}

impl Timeline {
    fn map_bytes(&self) -> usize {
        self.data.borrow().tree.bytes_in_ram()
    }
}
