// SPDX-License-Identifier: Apache-2.0
//! Map objects of which little is left: their leaves move into the root that is being written.
//!
//! A map object goes when the last of its nodes does. A leaf that is written once and never changed would keep its object for ever, and each checkpoint of a volume that is
//! written here and there leaves such a one: in a year the manifest would name millions. So where a merge comes to a node of level 1, which is written anew
//! anyway, leaves below it move that are in objects which are *sparse* (less than a quarter of their nodes lives), and those in *small* ones (few of their nodes live)
//! where they come from many: so a leaf moves into an object that is some times as large as the one before, and not often.
//!
//! Always holds:
//! - A leaf that moves is, for everything else, one that was changed: the place that it had is told as a kill, and roots that hold it keep it there.
//! - What moves says the same, so reads see the same in RAM and in the store, at every moment.
//! - So many leaves move into a root at most, beside those that it changes ([`budget`]); of the volume's own timeline only, and none that can not be loaded.
//!
//! What only older roots hold stays where it is, for as long as they do.

use super::merge::{Gathered, SLICE, Sink};
use super::root::MOST_INTERIOR;
use crate::Result;
use crate::map::span;
use crate::overlay::Stratum;
use crate::signal::breathe;
use crate::timeline::Timeline;
use std::collections::{BTreeMap, BTreeSet};
use varve_format::manifest::MapObject;
use varve_format::page::MAX_RECORDS;
use varve_format::{Lineage, NodePointer};
use varve_types::RootNumber;
use varve_types::branch::{Branch, reached};
use varve_types::mutant::{Mutant, planted};

/// Leaves that may move into a root whatever it changes, and at most.
const LEAST_MOVED: usize = 256;
const MOST_MOVED: usize = 8192;
/// An object of which no more nodes live is small.
const SMALL: u32 = 128;
/// From so many small objects below one node of level 1 leaves move.
const MANY: usize = 8;

/// How many leaves may move into the root of a stratum: a part of those that it changes, and such that all of its nodes can be numbered.
pub(super) fn budget(stratum: &Stratum) -> usize {
    let numbers = (NodePointer::INDEX_END as usize).saturating_sub(stratum.leaves + MOST_INTERIOR + 2 * MAX_RECORDS);
    (stratum.leaves / 4).clamp(LEAST_MOVED, MOST_MOVED).min(numbers)
}

/// An object that leaves may move from: its root and part.
type Key = (RootNumber, u8);

/// What moves into one root.
pub(super) struct Compaction {
    own: Lineage,
    /// Objects that are to go; those that are sparse, and not only small, are marked.
    objects: BTreeMap<Key, bool>,
    /// Leaves that may still move.
    left: usize,
    /// The first block of the node of level 1 that was looked at last.
    looked_at: Option<u64>,
}

impl Compaction {
    /// Of a timeline whose manifest names these objects; nothing moves into the root of a snapshot.
    pub fn new(own: Lineage, maps: &[MapObject], stratum: &Stratum) -> Self {
        let left = if stratum.snapshot.is_some() { 0 } else { budget(stratum) };
        let class = |map: &MapObject| {
            let is_sparse = u64::from(map.live) * 4 < u64::from(map.records);
            (is_sparse || map.live <= SMALL).then_some(((map.root, map.part), is_sparse))
        };
        let objects = if left == 0 { BTreeMap::new() } else { maps.iter().filter_map(class).collect() };
        Self { own, objects, left, looked_at: None }
    }

    /// Whether the leaves below a node of level 1 are to be looked at.
    fn comes_to(&mut self, first_block: u64) -> bool {
        let is_new = self.looked_at.replace(first_block) != Some(first_block);
        is_new && self.left > 0 && !self.objects.is_empty()
    }

    /// Which of the leaves below a node of level 1 move: first blocks and places.
    fn choose(&self, leaves: &[(u64, NodePointer)]) -> Vec<u64> {
        let found = |(block, place): &(u64, NodePointer)| {
            let key = (place.root(), place.part());
            let is_sparse = self.objects.get(&key).filter(|_| place.lineage() == self.own)?;
            Some((*block, key, *is_sparse))
        };
        let found: Vec<_> = leaves.iter().filter_map(found).collect();
        let small: BTreeSet<Key> = found.iter().filter(|(_, _, sparse)| !sparse).map(|(_, key, _)| *key).collect();
        let moves = found.iter().filter(|(_, _, is_sparse)| *is_sparse || small.len() >= MANY);
        moves.map(|(block, _, _)| *block).take(self.left).collect()
    }
}

impl Timeline {
    /// Lets leaves move that lie below the node of level 1 which begins at `first_block`; nothing of what is below it is written yet.
    pub(super) async fn compact(
        &self,
        compaction: &mut Compaction,
        first_block: u64,
        number: RootNumber,
        gathered: &mut Gathered,
    ) -> Result<()> {
        if !compaction.comes_to(first_block) {
            return Ok(());
        }
        let leaves = loop {
            let found = self.data.borrow().tree.leaves_below(first_block);
            match found {
                Ok(leaves) => break leaves,
                Err(path) => self.persist("a get", async || self.load_node(path).await).await?,
            }
        };
        let chosen = compaction.choose(&leaves);
        if chosen.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.load_leaves(&chosen).await {
            // Whoever reads them tells of damage.
            tracing::debug!(timeline = %self.id, %error, "leaves of a sparse map object could not be loaded, and stay there");
            return Ok(());
        }
        reached(Branch::MapCompacted);
        for (done, block) in chosen.into_iter().enumerate() {
            debug_assert!((first_block..first_block + span(1)).contains(&block), "it is below that node");
            {
                let mut sink = Sink { own: self.own, death_root: number, into: gathered };
                let mut unheard = Sink { own: self.own, death_root: number, into: &mut Gathered::default() };
                let sink = if planted(Mutant::MoveNodeUnkilled) { &mut unheard } else { &mut sink };
                // One that has left RAM meanwhile moves another time.
                compaction.left -= usize::from(self.data.borrow_mut().tree.rewrite_leaf(block, sink));
            }
            if done % SLICE == SLICE - 1 {
                breathe().await;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use varve_types::{Epoch, WriterId};

    const OWN: Lineage = Lineage(1);

    fn map(root: u32, records: u32, live: u32) -> MapObject {
        MapObject { root: RootNumber(root), part: 0, epoch: Epoch(1), writer: WriterId(1), records, live, bytes: 1 }
    }

    fn leaf(number: u64, lineage: Lineage, root: u32) -> (u64, NodePointer) {
        (number * span(0), NodePointer::new(lineage, RootNumber(root), number as u32))
    }

    #[test]
    fn leaves_move_from_what_is_sparse_and_from_many_that_are_small() {
        let maps = [map(1, 1000, 249), map(2, 1000, 250), map(3, 200, 128), map(4, 4, 4)];
        let compaction = Compaction::new(OWN, &maps, &Stratum::default());
        let leaves: Vec<_> = (1..=4).map(|root| leaf(u64::from(root), OWN, root)).collect();
        assert_eq!(compaction.choose(&leaves), [span(0)], "one is sparse, two are small");
        assert!(compaction.choose(&[leaf(1, Lineage(0), 1)]).is_empty(), "it is an ancestor's");
        let small: Vec<_> = (0..8).map(|root| map(10 + root, 4, 2)).collect();
        let compaction = Compaction::new(OWN, &small, &Stratum::default());
        let leaves: Vec<_> = (0..8).map(|root| leaf(u64::from(root), OWN, 10 + root)).collect();
        assert_eq!(compaction.choose(&leaves).len(), 8);
        assert!(compaction.choose(&leaves[..7]).is_empty());
    }

    #[test]
    fn no_more_moves_than_may() {
        let stratum = Stratum::default();
        let compaction = Compaction::new(OWN, &[map(1, 5000, 1000)], &stratum);
        let leaves: Vec<_> = (0..500).map(|number| leaf(number, OWN, 1)).collect();
        assert_eq!(compaction.choose(&leaves).len(), budget(&stratum));
    }
}
