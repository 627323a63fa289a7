// SPDX-License-Identifier: Apache-2.0
//! Merging a stratum into the tree, leaf by leaf, and writing the root that results.
//!
//! A hole that covers a large subtree whole does not walk it: the subtree is cut out and queued (see [`super::reclaim`]). So what a hole costs here,
//! and what is gathered for it, has a bound that does not grow with the hole.
//!
//! Between two leaves other tasks of the shard run, and reads see the same as before: the stratum stays in the overlay,
//! above the tree. What is replaced is gathered as kills; nothing is freed here. Leaves that are not in RAM are loaded many at a time, ahead of
//! the merge; nodes that are done are written behind it (see [`super::root`]). A crash leaves objects that no manifest
//! names, and that the next opening removes.

use super::compact::Compaction;
use super::reclaim::{MAX_QUEUE, QueueChange};
use super::root::RootWriter;
use crate::map::{Change, Kills, NodePath, ROOT_LEVEL, first_of, span};
use crate::overlay::Stratum;
use crate::signal::breathe;
use crate::timeline::{ROOT_GAP, Timeline};
use crate::{EngineError, Result};
use std::rc::Rc;
use varve_format::manifest::{MapObject, Reclaim};
use varve_format::table::{Kill, NodeKill};
use varve_format::{Lineage, NodePointer, Pointer};
use varve_types::branch::{Branch, reached, reached_if};
use varve_types::mutant::{Mutant, planted};
use varve_types::{ErrorKind, Ordinal, RootNumber, SnapshotId};

/// Leaves merged, or nodes written, between two looks at other tasks.
pub(super) const SLICE: usize = 8;

/// A root that was built.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewRoot {
    pub number: RootNumber,
    pub root: NodePointer,
    /// The snapshot that it is the root of.
    pub snapshot: Option<SnapshotId>,
}

/// What merging has brought up so far.
#[derive(Default)]
pub(super) struct Gathered {
    pub roots: Vec<NewRoot>,
    pub kills: Vec<Kill>,
    pub node_kills: Vec<NodeKill>,
    pub maps: Vec<MapObject>,
    pub queue: QueueChange,
}

/// Takes what the tree tells; drops what belongs to ancestors.
pub(super) struct Sink<'a> {
    pub own: Lineage,
    pub death_root: RootNumber,
    pub into: &'a mut Gathered,
}

impl Kills for Sink<'_> {
    fn blocks(&mut self, first: Pointer, blocks: u32, death: Ordinal) {
        if first.lineage() == self.own || planted(Mutant::KillAncestors) {
            let kills = (0..u64::from(blocks)).map(|i| crate::overlay::kill_of(first.advance(i), death));
            self.into.kills.extend(kills);
        }
    }
    fn node(&mut self, node: NodePointer) {
        if node.lineage() == self.own {
            self.into.node_kills.push(NodeKill { node, death: self.death_root });
        }
    }
    fn subtree(&mut self, top: NodePath, death: Ordinal) {
        // Below an ancestor's node there is nothing of our own.
        reached_if(top.pointer.lineage() != self.own, Branch::InheritedDetached);
        if top.pointer.lineage() == self.own {
            reached(Branch::SubtreeDetached);
            let NodePath { level, first_block, pointer: node } = top;
            let death_root = self.death_root;
            self.into.queue.detached.push(Reclaim { node, level, first_block, death, death_root });
        }
    }
}

/// Whether both are holes of one timeline.
fn is_same_hole(one: Pointer, other: Pointer) -> bool {
    one.is_hole() && other.is_hole() && one.lineage() == other.lineage()
}

impl Timeline {
    /// Merges a stratum into the tree and writes its root.
    pub(super) async fn merge(self: &Rc<Self>, stratum: &Stratum, gathered: &mut Gathered) -> Result<NewRoot> {
        let number = {
            let mut data = self.data.borrow_mut();
            data.last_root = data.last_root.next();
            if data.last_root.0 >= data.manifest.last_root.0 + ROOT_GAP {
                let what = "a checkpoint has more snapshots than root numbers are left";
                return Err(EngineError::new(ErrorKind::Busy, what));
            }
            if planted(Mutant::BuildRootIntoPast) { RootNumber(data.last_root.0 ^ 1) } else { data.last_root }
        };
        let mut changes: Vec<Change> = Vec::new();
        let mut writer = RootWriter::new(self, number, stratum);
        let mut compaction = Compaction::new(self.own, &self.data.borrow().manifest.maps, stratum);
        let (mut leaf, mut ahead) = (u64::MAX, 0);
        let mut done = 0usize;
        let mut runs = stratum.map.iter().map(|(start, len, pointer)| (start, len, *pointer)).peekable();
        while let Some((start, mut len, mut pointer)) = runs.next() {
            // A large discard comes in pieces. No boundary lies within a stratum but those of moments that may be brought back, so it is all one which of its
            // segments a block died by: with the last of them such a moment keeps a little more than it sees.
            let is_next = |at, end| at == end || planted(Mutant::JoinHolesAcrossGap);
            while let Some((_, more, next)) =
                runs.next_if(|(at, _, next)| is_next(*at, start + len) && is_same_hole(pointer, *next))
            {
                reached(Branch::HolesJoined);
                len += more;
                pointer = pointer.max(next);
            }
            let (mut at, end) = (start, start + len);
            while at < end {
                if pointer.is_hole() && at == first_of(0, at) && end - at >= span(0) {
                    // Whole leaves: in one walk over what exists.
                    self.apply(&mut changes, number, gathered).await?;
                    let whole = (end - at) / span(0) * span(0);
                    self.remove(at, whole, pointer.ordinal(), number, gathered).await?;
                    at += whole;
                    continue;
                }
                if first_of(0, at) != leaf {
                    self.apply(&mut changes, number, gathered).await?;
                    leaf = first_of(0, at);
                    self.compact(&mut compaction, first_of(1, at), number, gathered).await?;
                    self.write_behind_if_due(&mut writer, leaf, gathered).await?;
                    if leaf >= ahead {
                        ahead = self.load_ahead(&stratum.map, leaf).await;
                    }
                    done += 1;
                    if done.is_multiple_of(SLICE) {
                        breathe().await;
                    }
                }
                let here = (leaf + span(0)).min(end) - at;
                changes.push(Change { start_block: at, blocks: here as u32, pointer: pointer.advance(at - start) });
                at += here;
            }
        }
        self.apply(&mut changes, number, gathered).await?;
        gathered.kills.extend_from_slice(&stratum.kills);
        let root = self.write_rest(writer, gathered).await?;
        Ok(NewRoot { number, root, snapshot: stratum.snapshot })
    }

    /// Applies the changes of one leaf, loading what of the map is not in RAM.
    async fn apply(&self, changes: &mut Vec<Change>, number: RootNumber, gathered: &mut Gathered) -> Result<()> {
        while !changes.is_empty() {
            let cold = {
                let mut sink = Sink { own: self.own, death_root: number, into: gathered };
                self.data.borrow_mut().tree.apply(changes, &mut sink).err()
            };
            match cold {
                Some(path) => self.persist("a get", async || self.load_node(path).await).await?,
                None => changes.clear(),
            }
        }
        Ok(())
    }

    async fn remove(
        &self,
        start: u64,
        blocks: u64,
        death: Ordinal,
        number: RootNumber,
        gathered: &mut Gathered,
    ) -> Result<()> {
        let (mut at, end) = (start, start + blocks);
        while at < end {
            let removed = {
                let mut data = self.data.borrow_mut();
                let waiting = data.manifest.reclaim.len() + gathered.queue.detached.len();
                let whole_level = if waiting < MAX_QUEUE { self.context.limits.reclaim_level } else { ROOT_LEVEL + 1 };
                let mut sink = Sink { own: self.own, death_root: number, into: gathered };
                data.tree.remove_range(at..end, death, whole_level, SLICE, &mut sink)
            };
            at = removed.next_block;
            match removed.cold {
                Some(path) => self.persist("a get", async || self.load_node(path).await).await?,
                None => breathe().await,
            }
        }
        Ok(())
    }
}
