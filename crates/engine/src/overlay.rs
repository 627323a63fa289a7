// SPDX-License-Identifier: Apache-2.0
//! The overlay: entries of the segments put since the last checkpoint, in RAM beside the tree.
//!
//! It is a row of *strata*, oldest first. A stratum ends at a boundary that somebody needs (a snapshot, a
//! checkpoint that began) and is frozen from then on; only the last takes entries. A read asks the newest first.
//! Within a stratum an entry replaces an older one, and a replaced pointer of the timeline's own lineage is a kill;
//! across strata nothing is replaced, because a root will be built at every boundary.

use crate::extent::{At, ExtentMap, Part};
use std::sync::Arc;
use varve_format::segment::IndexExtent;
use varve_format::table::Kill;
use varve_format::{Lineage, NODE_ENTRIES, Pointer};
use varve_types::mutant::{Mutant, planted};
use varve_types::{Ordinal, SnapshotId};

impl Part for Pointer {
    fn part(&self, skip: u64, _len: u64) -> Self {
        self.advance(skip)
    }
}

/// Entries of a stratum at which no further segment counts.
const MAX_STRATUM: usize = 2 << 20;
/// Leaves of a stratum at which no further segment counts: a root has less than 2^22 new nodes, of which 65,665 can be no leaves; and a segment
/// changes less than 2^17 leaves.
const MAX_LEAVES: usize = (1 << 22) - (1 << 18);
/// Strata, each of which becomes a root: half the root numbers that an owner has.
const MAX_STRATA: usize = crate::timeline::ROOT_GAP as usize / 2;

/// The entries that a segment makes: first block, blocks, and what stands there. Its blocks are numbered through those extents that are no holes.
pub(crate) fn entries(
    of: Lineage,
    ordinal: Ordinal,
    extents: &[IndexExtent],
) -> impl Iterator<Item = (u64, u64, Pointer)> + '_ {
    let mut block = 0u64;
    extents.iter().map(move |extent| {
        if extent.hole {
            return (extent.start, extent.blocks, Pointer::hole(of, ordinal));
        }
        let pointer = Pointer::data(of, ordinal, block as u16);
        block += extent.blocks;
        (extent.start, extent.blocks, pointer)
    })
}

/// Entries between two boundaries.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stratum {
    /// Pointers and holes. A clone shares them, but neither kills nor snapshot.
    pub map: Arc<ExtentMap<Pointer>>,
    /// Leaves of the map that its entries change, at most: one that several change is counted for each.
    pub leaves: usize,
    /// Replaced within it.
    pub kills: Vec<Kill>,
    /// The ordinal behind its last segment; of the last stratum, so far.
    pub end: Ordinal,
    /// The snapshot that ended it, if one did.
    pub snapshot: Option<SnapshotId>,
}

/// Leaves that an entry changes, at most. Of a hole, those in its midst go.
fn leaves(blocks: u64, pointer: Pointer) -> usize {
    if pointer.is_hole() { 2 } else { (blocks / NODE_ENTRIES as u64) as usize + 2 }
}

impl Stratum {
    /// What a clone takes over of it, which it has up to `end`.
    pub fn inherited(&self, end: Ordinal) -> Arc<Self> {
        Arc::new(Self { map: Arc::clone(&self.map), leaves: self.leaves, end, ..Self::default() })
    }

    /// Takes the entries of a segment whose kills are told elsewhere: of one that others have merged, or do not merge.
    pub fn replay(&mut self, of: Lineage, ordinal: Ordinal, extents: &[IndexExtent]) {
        let map = Arc::make_mut(&mut self.map);
        for (start, blocks, pointer) in entries(of, ordinal, extents) {
            map.insert(start, blocks, pointer, |_, _, _| {});
            self.leaves += leaves(blocks, pointer);
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    frozen: Vec<Arc<Stratum>>,
    /// How many of these, the oldest, a clone has taken over from its origin.
    inherited: usize,
    active: Stratum,
}

impl Overlay {
    /// The overlay of a clone: the strata that its origin had between base root and boundary.
    pub fn inherited(frozen: Vec<Arc<Stratum>>) -> Self {
        Self { inherited: frozen.len(), frozen, active: Stratum::default() }
    }

    /// What stands at a block.
    pub fn at(&self, block: u64, most: u64) -> At<Pointer> {
        let mut run = most;
        let frozen = self.frozen.iter().rev().map(|stratum| &stratum.map);
        for map in std::iter::once(&self.active.map).chain(frozen) {
            match map.at(block, run) {
                At::Run(pointer, len) => return At::Run(pointer, len),
                At::Gap(len) => run = len,
            }
        }
        At::Gap(run)
    }

    /// Takes the entries of a segment that counts.
    pub fn push(&mut self, own: Lineage, ordinal: Ordinal, extents: &[IndexExtent]) {
        let Stratum { map, kills, end, leaves: touched, .. } = &mut self.active;
        let map = Arc::make_mut(map);
        for (start, blocks, pointer) in entries(own, ordinal, extents) {
            *touched += leaves(blocks, pointer);
            map.insert(start, blocks, pointer, |_, len, old| {
                if old.is_data() && old.lineage() == own && !planted(Mutant::DropOverlayKills) {
                    kills.extend((0..len).map(|i| kill_of(old.advance(i), ordinal)));
                }
            });
        }
        *end = ordinal.next();
    }

    /// Ends the last stratum at `boundary`. Nothing is done where that adds nothing.
    pub fn freeze(&mut self, boundary: Ordinal, snapshot: Option<SnapshotId>) {
        if self.active.map.is_empty() && snapshot.is_none() {
            return;
        }
        let mut done = std::mem::take(&mut self.active);
        done.end = boundary;
        done.snapshot = snapshot;
        self.frozen.push(Arc::new(done));
    }

    /// The frozen strata, oldest first.
    pub fn frozen(&self) -> &[Arc<Stratum>] {
        &self.frozen
    }

    /// Drops the oldest `count` frozen strata: a checkpoint has made them roots.
    pub fn merged(&mut self, count: usize) {
        self.frozen.drain(..count);
        self.inherited = self.inherited.saturating_sub(count);
    }

    /// Entries in all.
    pub fn len(&self) -> usize {
        self.own_len() + self.frozen[..self.inherited].iter().map(|s| s.map.len()).sum::<usize>()
    }

    /// Entries without those that a clone has taken over: merged, each clone would have nodes of its own for what it can share.
    pub fn own_len(&self) -> usize {
        self.active.map.len() + self.frozen[self.inherited..].iter().map(|s| s.map.len()).sum::<usize>()
    }

    /// Whether the last stratum has as many entries as one root may have, or a checkpoint would need more root numbers than an owner has: no
    /// segment counts then until a checkpoint has made room.
    pub fn is_full(&self) -> bool {
        let Stratum { map, leaves, .. } = &self.active;
        map.len() >= MAX_STRATUM || *leaves >= MAX_LEAVES || self.frozen.len() >= MAX_STRATA
    }
}

/// The kill of a block whose overwriter is in segment `death`.
pub(crate) const fn kill_of(pointer: Pointer, death: Ordinal) -> Kill {
    Kill { ordinal: pointer.ordinal(), block: pointer.block(), death }
}
