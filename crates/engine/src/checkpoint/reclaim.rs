// SPDX-License-Identifier: Apache-2.0
//! The reclaim queue: subtrees that large holes cut out of the map, worked off into kills in the background.
//!
//! A merge that meets a hole over a whole subtree takes only the pointer to it out of the map, and puts an entry into the queue of the manifest
//! that it writes: the subtree's topmost node, the hole's ordinal and the first root that does not hold it. From then on reads see zeroes. What
//! is below is still to be told to the rule that frees: that is done here, a bounded number of nodes for one manifest, last entry first.
//!
//! Invariants, of every manifest that was accepted:
//! - a block of the timeline's own lineage is *either* in the tree of the head, *or* below exactly one entry of the queue, *or* was told as a
//!   kill, and each only once; the same holds for the nodes of its own map. So live counts of segments and map objects count what is below the
//!   entries, and neither a segment that they lead to nor a map object that holds their nodes is empty and deleted before they are worked off;
//! - entries of own nodes only: below an ancestor's node there is nothing of our own, and a root, once written, never changes;
//! - blocks and nodes that come from here carry the death of the hole, not of the moment. Snapshots taken since lie behind it, those that went
//!   meanwhile are not there any more: asking the rule late gives what asking it at once and again at every deletion would have given.
//!
//! Nodes are loaded without any turn, as nothing changes below an entry; only what was found is made durable in a checkpoint of its own, which
//! replaces the entries by what is left of them. Merges put new entries in front, and only this takes from the end: an entry that was begun is
//! ended first, so a queue grows by at most 511 children a level.
//!
//! A crash leaves the last accepted manifest: entries and counts are from before the step or from after it, never between.

use super::merge::Gathered;
use crate::Result;
use crate::context::damaged;
use crate::lineage::{load_node_records, map_object};
use crate::map::{Content, NodePath, look_into, span};
use crate::overlay::kill_of;
use crate::recover::missing_is_corrupt;
use crate::signal::breathe;
use crate::timeline::Timeline;
use bytes::Bytes;
use std::rc::Rc;
use varve_format::manifest::Reclaim;
use varve_format::table::NodeKill;
use varve_types::BLOCK;
use varve_types::branch::{Branch, reached_if};
use varve_types::mutant::{Mutant, planted};

/// Entries of a queue at which large holes are walked again, as if they were small.
pub(super) const MAX_QUEUE: usize = 65_536;
/// Leaves that are asked for together, and nodes between two looks at other tasks.
const BATCH: usize = 512;

/// How a checkpoint changes the queue.
#[derive(Default)]
pub(super) struct QueueChange {
    /// Cut out by its merge.
    pub detached: Vec<Reclaim>,
    /// The last entries, which were looked into.
    pub taken: Vec<Reclaim>,
    /// What is left of them.
    pub left: Vec<Reclaim>,
}

impl QueueChange {
    /// The queue after the change.
    pub fn apply(&self, queue: &[Reclaim]) -> Vec<Reclaim> {
        assert!(queue.ends_with(&self.taken), "merges put entries in front, and one task at a time takes from the end");
        let taken = if planted(Mutant::ReclaimTwice) { 0 } else { self.taken.len() };
        let stays = &queue[..queue.len() - taken];
        [&self.detached[..], stays, &self.left[..]].concat()
    }
}

/// Bytes of the volume under the entries: more than their blocks have, where those are few.
pub(crate) fn covered_bytes(queue: &[Reclaim]) -> u64 {
    queue.iter().map(|entry| span(entry.level) * BLOCK).sum()
}

impl Timeline {
    /// Works off a part of the queue, if there is one and nobody does so.
    pub fn reclaim_if_due(self: &Rc<Self>) {
        {
            let mut data = self.data.borrow_mut();
            let idle = data.manifest.reclaim.is_empty() || data.stopped.is_some() || data.no_checkpoints.is_some();
            if idle || std::mem::replace(&mut data.reclaiming, true) {
                return;
            }
        }
        let this = Rc::clone(self);
        self.context.env.spawn(Box::pin(async move {
            match this.reclaim().await {
                Ok(()) => this.data.borrow_mut().reclaiming = false,
                Err(_) if this.is_stopped() => {}
                // What may pass was waited for. Space is lost until somebody looks, and nothing else.
                Err(error) => tracing::error!(timeline = %this.id, %error, "discarded space is not freed until the volume is opened again"),
            }
        }));
    }

    async fn reclaim(self: &Rc<Self>) -> Result<()> {
        let gathered = self.work_off().await?;
        let turn = self.checkpoints.take().await;
        self.run_checkpoint(&turn, false, gathered).await
    }

    /// Looks into the last entries of the queue, as many nodes as one manifest takes.
    async fn work_off(&self) -> Result<Gathered> {
        let before = self.data.borrow().manifest.reclaim.clone();
        let mut gathered = Gathered::default();
        let mut queue = before.clone();
        // Entries in front of it were not touched.
        let mut untouched = queue.len();
        let mut nodes_left = self.context.limits.reclaim_nodes.max(1);
        while nodes_left > 0 {
            let batch = take_batch(&mut queue, nodes_left.min(BATCH));
            if batch.is_empty() {
                break;
            }
            nodes_left -= batch.len();
            untouched = untouched.min(queue.len());
            for (entry, bytes) in self.load_entries(batch).await? {
                self.look_into_entry(&entry, &bytes, &mut gathered, &mut queue)?;
            }
            breathe().await;
        }
        reached_if(!queue.is_empty(), Branch::ReclaimContinued);
        gathered.queue.taken = before[untouched..].to_vec();
        gathered.queue.left = queue.split_off(untouched);
        Ok(gathered)
    }

    /// The topmost nodes of entries, from the store.
    async fn load_entries(&self, mut entries: Vec<Reclaim>) -> Result<Vec<(Reclaim, Bytes)>> {
        entries.sort_unstable_by_key(|entry| entry.node);
        let mut loaded = Vec::with_capacity(entries.len());
        for group in entries.chunk_by(|a, b| (a.node.root(), a.node.part()) == (b.node.root(), b.node.part())) {
            let name = map_object(&self.data.borrow().manifest, group[0].node.root(), group[0].node.part())?;
            let indexes: Vec<u32> = group.iter().map(|entry| u32::from(entry.node.record())).collect();
            let load = async || load_node_records(&self.context, &self.pool.store, &name, &indexes).await;
            let records = self.persist("a get", load).await.map_err(missing_is_corrupt)?;
            loaded.extend(group.iter().copied().zip(records));
        }
        Ok(loaded)
    }

    /// Tells a node and what it holds; its children become entries.
    fn look_into_entry(
        &self,
        entry: &Reclaim,
        bytes: &Bytes,
        gathered: &mut Gathered,
        queue: &mut Vec<Reclaim>,
    ) -> Result<()> {
        let Reclaim { node, level, first_block, death, death_root } = *entry;
        gathered.node_kills.push(NodeKill { node, death: death_root });
        let path = NodePath { level, first_block, pointer: node };
        let content = look_into(&path, bytes).map_err(damaged(format!("timeline {}, {node:?}", self.id)))?;
        match content {
            Content::Runs(runs) => {
                let death = if planted(Mutant::ReclaimTooLate) { self.data.borrow().counted_end } else { death };
                for (first, blocks) in runs.into_iter().filter(|(first, _)| first.lineage() == self.own) {
                    gathered.kills.extend((0..u64::from(blocks)).map(|i| kill_of(first.advance(i), death)));
                }
            }
            Content::Children(children) => {
                let own = children.into_iter().rev().filter(|child| child.pointer.lineage() == self.own);
                queue.extend(own.map(|NodePath { level, first_block, pointer: node }| Reclaim {
                    node,
                    level,
                    first_block,
                    ..*entry
                }));
            }
        }
        Ok(())
    }
}

/// Takes the last entry, and if it is a leaf the leaves before it, at most so many.
fn take_batch(queue: &mut Vec<Reclaim>, most: usize) -> Vec<Reclaim> {
    let leaves = queue.iter().rev().take(most).take_while(|entry| entry.level == 0).count();
    queue.split_off(queue.len() - leaves.max(1).min(queue.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use varve_format::{Lineage, NodePointer};
    use varve_types::{Ordinal, RootNumber};

    fn entry(level: u8, index: u32) -> Reclaim {
        let node = NodePointer::new(Lineage(0), RootNumber(1), index);
        Reclaim { node, level, first_block: 0, death: Ordinal(1), death_root: RootNumber(2) }
    }

    #[test]
    fn what_a_merge_adds_meanwhile_does_not_disturb_what_was_taken() {
        let (old, new) = ([entry(2, 1), entry(1, 2), entry(1, 3)], entry(1, 9));
        let merged = QueueChange { detached: vec![new], ..QueueChange::default() }.apply(&old);
        let worked = QueueChange { taken: old[1..].to_vec(), left: vec![entry(0, 7)], ..QueueChange::default() };
        assert_eq!(worked.apply(&merged), [new, entry(2, 1), entry(0, 7)]);
        assert_eq!(worked.apply(&old), [entry(2, 1), entry(0, 7)]);
    }

    #[test]
    #[should_panic(expected = "one task at a time")]
    fn an_entry_is_not_taken_twice() {
        let worked = QueueChange { taken: vec![entry(1, 3)], ..QueueChange::default() };
        let after = worked.apply(&[entry(1, 2), entry(1, 3)]);
        let _ = worked.apply(&after);
    }

    #[test]
    fn leaves_are_taken_together_and_others_alone() {
        let mut queue = vec![entry(0, 1), entry(1, 2), entry(0, 3), entry(0, 4), entry(0, 5)];
        assert_eq!(take_batch(&mut queue, 2), [entry(0, 4), entry(0, 5)]);
        assert_eq!(take_batch(&mut queue, 2), [entry(0, 3)]);
        assert_eq!(take_batch(&mut queue, 2), [entry(1, 2)]);
        assert_eq!(covered_bytes(&queue), 2 << 20);
        assert_eq!(take_batch(&mut queue, 2), [entry(0, 1)]);
        assert_eq!(take_batch(&mut queue, 2), []);
    }
}
