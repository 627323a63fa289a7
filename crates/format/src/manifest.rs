// SPDX-License-Identifier: Apache-2.0
//! The manifest of a timeline: the small record that names everything that a checkpoint made durable.
//!
//! A manifest counts once coordination accepted it. It says: what volume this is (so that a pool can be imported
//! from the store alone); where the map's root and the pages of the segment table are, and up to which ordinal (the
//! *boundary*) they speak; which segments above the boundary earlier writers put (the *cuts*); which snapshots and
//! holds keep what; which kills wait for a snapshot to go; and which objects may be deleted once the manifest after
//! this one is accepted too. Segments of its own writer above the boundary are found by probing.

use crate::codec::{Decoder, Encoder};
use crate::crc::{crc, is_whole};
use crate::name::{ObjectKind, ObjectName};
use crate::node::MAX_LEVEL;
use crate::{FormatError, Lineage, NODE_ENTRIES, NodePointer};
use varve_types::{
    Epoch, MAX_VOLUME, Name, Ordinal, Overrides, RootNumber, Sequence, SnapshotId, TimelineId, VolumeId, WriterId,
};

mod parts;
#[cfg(test)]
mod tests;

const MAGIC: &[u8; 8] = b"VARVEMAN";
/// One that any build can read.
const PLAIN: u32 = 1;
/// One that says what its reader has to know.
const VERSION: u32 = 2;
/// Pages of its table, and what it names as dead, may lead to bundles.
const NEEDS_BUNDLES: u64 = 1;
/// Moments of the past are kept: who does not know of them would free what they need.
const NEEDS_REWIND: u64 = 2;
/// Longest manifest.
pub const MAX_MANIFEST: u64 = 256 << 20;

/// What a timeline is to its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimelineState {
    /// The volume shows it.
    Shown,
    /// It is hidden, and can be brought back until then (milliseconds since 1970).
    Hidden {
        /// End of the window.
        until_ms: u64,
    },
    /// Its window is over, and its head is not kept: it is only there for its snapshots and for what was born from it.
    Held {
        /// Whether a walk of all trees of its volume has freed what none of them reaches: then what lives is what that walk reached, and no kill
        /// waits.
        swept: bool,
    },
    /// It was deleted: what is left of it is garbage.
    Tombstone,
}

/// An ancestor, under the index that pointers use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ancestor {
    /// Index in pointers.
    pub lineage: Lineage,
    /// The timeline.
    pub timeline: TimelineId,
}

/// Where a timeline began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Birth {
    /// The timeline that it is a clone of.
    pub origin: TimelineId,
    /// It sees the origin's segments below this ordinal.
    pub boundary: Ordinal,
    /// Root number of the base root in the origin; 0 where the origin had none yet.
    pub base_number: RootNumber,
    /// The base root.
    pub base_root: NodePointer,
    /// Segments of the origin below this ordinal are in the base root.
    pub base_boundary: Ordinal,
}

/// A row of segments with the same name but for the ordinal: what one opening put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The epoch that is closed.
    pub epoch: Epoch,
    /// Its writer.
    pub writer: WriterId,
    /// First ordinal of the writer.
    pub first: Ordinal,
    /// The ordinal behind the last that counts.
    pub end: Ordinal,
    /// The last change of the epoch that counts.
    pub last: Sequence,
}

/// A snapshot all of whose segments count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotEntry {
    /// Its id.
    pub id: SnapshotId,
    /// Its name.
    pub name: Name,
    /// When it was taken, in milliseconds since 1970.
    pub created_ms: u64,
    /// It sees the segments below this ordinal.
    pub boundary: Ordinal,
    /// Its last change.
    pub sequence: Sequence,
    /// Size of the volume, in bytes.
    pub size: u64,
    /// Its root, once a checkpoint wrote one. The pointer is absent for an empty map.
    pub root: Option<(RootNumber, NodePointer)>,
    /// Whether it is left out of listings.
    pub hidden: bool,
}

/// Keeps what a clone was born with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The clone.
    pub clone: TimelineId,
    /// The clone's volume.
    pub volume: VolumeId,
    /// What the clone sees: segments below this ordinal.
    pub boundary: Ordinal,
    /// Number of its base root; 0 for none.
    pub base_number: RootNumber,
    /// Its base root.
    pub base_root: NodePointer,
    /// Boundary of its base root.
    pub base_boundary: Ordinal,
    /// Epoch of the origin in which the hold was made.
    pub epoch: Epoch,
}

impl Hold {
    /// Whether its boundary may lie inside what one checkpoint has merged, as that of a moment of the past can: what died in there is told to have died with
    /// the last segment that wrote its place, so the hold may keep what it does not see.
    #[must_use]
    pub fn may_be_inside(&self) -> bool {
        self.base_boundary < self.boundary
    }
}

/// Where a page of the segment table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRef {
    /// The page: its ordinals divided by 64.
    pub page: u64,
    /// Number of the table object.
    pub object: u64,
    /// Index of the record there.
    pub index: u32,
}

/// Where a run of kills is, and whom it may concern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunRef {
    /// Number of the table object.
    pub object: u64,
    /// Index of the record there.
    pub index: u32,
    /// Earliest birth in it.
    pub first_birth: Ordinal,
    /// Latest death in it.
    pub last_death: Ordinal,
    /// Number of kills.
    pub count: u64,
    /// Whether nothing but the rewind window keeps them: they are asked again once its last death has left it.
    pub window: bool,
}

/// Where a run of node kills is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRunRef {
    /// Number of the table object.
    pub object: u64,
    /// Index of the record there.
    pub index: u32,
    /// Number of kills.
    pub count: u64,
    /// Until when they wait.
    pub waits: NodeWait,
}

/// What the kills of a run of nodes wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeWait {
    /// For a snapshot or a hold to go.
    Kept,
    /// For the next checkpoint: nothing but the root of the manifest before keeps them.
    Passing,
    /// For the rewind window: nothing else keeps them.
    Window {
        /// The latest death in the run.
        last_death: RootNumber,
    },
}

/// A root that the rewind window keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RewindRoot {
    /// Segments below are in it.
    pub boundary: Ordinal,
    /// Its number; 0 where the timeline has merged nothing of its own yet.
    pub number: RootNumber,
    /// The root; absent for an empty map.
    pub root: NodePointer,
    /// Size of the volume there, in bytes.
    pub size: u64,
    /// When its manifest was written, in milliseconds since 1970.
    pub written_ms: u64,
}

/// What of the past is kept though no snapshot sees it. A block is kept for it iff it died in or behind segment `from`, a node iff a root in the list holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewind {
    /// Every boundary from here on can be brought back.
    pub from: Ordinal,
    /// Roots to begin at, by boundary: the first at or before `from`. None: nothing is kept.
    pub roots: Vec<RewindRoot>,
}

impl Rewind {
    /// The first segment whose index is kept for it.
    #[must_use]
    pub fn first_index(&self) -> Option<Ordinal> {
        self.roots.first().map(|root| root.boundary)
    }
}

/// A map object: the nodes of one root, or a part of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapObject {
    /// The root.
    pub root: RootNumber,
    /// The part.
    pub part: u8,
    /// Epoch in its name.
    pub epoch: Epoch,
    /// Writer in its name.
    pub writer: WriterId,
    /// Its records.
    pub records: u32,
    /// Those that some kept root still holds.
    pub live: u32,
    /// Bytes of the object.
    pub bytes: u64,
}

/// A table object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableObject {
    /// Its number: that of the manifest that it was written for.
    pub number: u64,
    /// Epoch in its name.
    pub epoch: Epoch,
    /// Writer in its name.
    pub writer: WriterId,
    /// Bytes of the object.
    pub bytes: u64,
}

/// An object that no manifest from `since` on needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadObject {
    /// The object.
    pub name: ObjectName,
    /// Number of the first manifest that does not need it.
    pub since: u64,
}

/// A subtree that was cut from the map whole, and whose blocks are yet to be made kills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reclaim {
    /// Its topmost node.
    pub node: NodePointer,
    /// That node's level.
    pub level: u8,
    /// First block under it.
    pub first_block: u64,
    /// The segment that made it a hole.
    pub death: Ordinal,
    /// The first root that does not hold it.
    pub death_root: RootNumber,
}

impl Reclaim {
    /// Whether a map can have a node of that level there.
    fn is_aligned(&self) -> bool {
        let span = (NODE_ENTRIES as u64) << (9 * u32::from(self.level.min(MAX_LEVEL)));
        self.level <= MAX_LEVEL && self.first_block.is_multiple_of(span)
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The volume.
    pub volume: VolumeId,
    /// The timeline.
    pub timeline: TimelineId,
    /// Number of this manifest: grows by one.
    pub number: u64,
    /// Epoch of the opening that put it.
    pub epoch: Epoch,
    /// The opening that put it.
    pub writer: WriterId,
    /// When, in milliseconds since 1970.
    pub written_ms: u64,

    /// Name of the volume.
    pub name: Name,
    /// When the volume was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// Settings given for the volume.
    pub settings: Overrides,
    /// Whether it is a template.
    pub template: bool,
    /// State of the timeline.
    pub state: TimelineState,
    /// Grows with every attempt to show another timeline; of a volume's timelines the one with the highest is shown.
    pub show_number: u64,

    /// Ancestors, by index, and the timeline itself.
    pub ancestors: Vec<Ancestor>,
    /// Index of the timeline itself.
    pub own: Lineage,
    /// Where it began, for a clone or a rollback.
    pub birth: Option<Birth>,
    /// Segments of the origin between the birth's base boundary and its boundary; empty once a checkpoint merged them.
    pub inherited: Vec<Cut>,

    /// Segments below are in root and table.
    pub boundary: Ordinal,
    /// The last change that the root knows.
    pub merged: Sequence,
    /// Size of the volume at the boundary, in bytes.
    pub size: u64,
    /// Root of the map; absent for an empty one.
    pub root: NodePointer,
    /// Its number; 0 before the first checkpoint.
    pub root_number: RootNumber,
    /// Highest root number that was used.
    pub last_root: RootNumber,
    /// First ordinal of this writer.
    pub first_ordinal: Ordinal,
    /// Marks in segments below are reflected in `snapshots`.
    pub marks_through: Ordinal,
    /// Rows of segments that earlier writers put, so far as they reach beyond the boundary; and of each closed epoch the last change that counts.
    pub cuts: Vec<Cut>,

    /// Snapshots, by boundary.
    pub snapshots: Vec<SnapshotEntry>,
    /// Holds of clones.
    pub holds: Vec<Hold>,
    /// Pages of the segment table, in order.
    pub table: Vec<PageRef>,
    /// Kills that wait for a snapshot or a hold to go.
    pub kills: Vec<RunRef>,
    /// Node kills that wait: for a snapshot or a hold to go, or for the next checkpoint.
    pub node_kills: Vec<NodeRunRef>,
    /// Map objects that still hold live nodes.
    pub maps: Vec<MapObject>,
    /// Table objects that pages or kill runs refer to.
    pub tables: Vec<TableObject>,
    /// Objects that may be deleted once the manifest after `since` is accepted.
    pub dead: Vec<DeadObject>,
    /// Subtrees to be worked off.
    pub reclaim: Vec<Reclaim>,
    /// Whether its table has ever led to bundles.
    pub bundles: bool,
    /// What of the past can be brought back.
    pub rewind: Rewind,
}

impl Manifest {
    /// The name of its object.
    #[must_use]
    pub const fn object_name(&self) -> ObjectName {
        ObjectName {
            timeline: self.timeline,
            kind: ObjectKind::Manifest,
            number: self.number,
            part: 0,
            epoch: self.epoch,
            writer: self.writer,
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let needs = if self.bundles { NEEDS_BUNDLES } else { 0 } | if self.needs_rewind() { NEEDS_REWIND } else { 0 };
        let version = if needs == 0 { PLAIN } else { VERSION };
        let mut e = Encoder::new();
        e.raw(MAGIC);
        e.u32(version);
        e.u32(0);
        if version > PLAIN {
            e.varint(needs);
        }
        self.encode_identity(&mut e);
        self.encode_map(&mut e);
        self.encode_lists(&mut e);
        if needs & NEEDS_REWIND != 0 {
            self.encode_rewind(&mut e);
        }
        let mut bytes = e.finish();
        let sum = if version > PLAIN { crc(&bytes) } else { crc(&bytes[16..]) };
        bytes[12..16].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads one.
    ///
    /// # Errors
    /// When it is damaged or of a version that is not known.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut d = Decoder::new("manifest", bytes);
        if &d.array::<8>()? != MAGIC {
            return Err(d.corrupt("it does not begin with VARVEMAN"));
        }
        let found = d.u32()?;
        let sum = d.u32()?;
        let fits = |version| if version > PLAIN { is_whole(bytes, version, sum) } else { crc(&bytes[16..]) == sum };
        if !(PLAIN..=VERSION).contains(&found) {
            return Err(FormatError::version("a manifest", found, VERSION, (PLAIN..=VERSION).any(fits)));
        }
        if !fits(found) {
            return Err(d.corrupt("its checksum does not match"));
        }
        let needs = if found > PLAIN { d.varint()? } else { 0 };
        let unknown = needs & !(NEEDS_BUNDLES | NEEDS_REWIND);
        if unknown != 0 {
            return Err(FormatError::Feature { what: "a manifest", unknown });
        }
        let mut this = Self::decode_identity(&mut d)?;
        this.bundles = needs & NEEDS_BUNDLES != 0;
        this.decode_map(&mut d)?;
        this.decode_lists(&mut d)?;
        if needs & NEEDS_REWIND != 0 {
            this.decode_rewind(&mut d)?;
        }
        d.end()?;
        this.validate()?;
        Ok(this)
    }

    /// Whether anything is kept for the rewind window, or waits for its end.
    fn needs_rewind(&self) -> bool {
        !self.rewind.roots.is_empty()
            || self.kills.iter().any(|run| run.window)
            || self.node_kills.iter().any(|run| matches!(run.waits, NodeWait::Window { .. }))
    }

    /// Whether a clone needs the index of a segment, whatever lives of its blocks: it reads what lies between its base root and its boundary.
    #[must_use]
    pub fn is_index_held(&self, ordinal: Ordinal) -> bool {
        self.holds.iter().any(|hold| hold.base_boundary <= ordinal && ordinal < hold.boundary)
    }

    /// The same, or whether it is needed to bring back a moment of the past.
    #[must_use]
    pub fn needs_index(&self, ordinal: Ordinal) -> bool {
        self.is_index_held(ordinal) || self.rewind.first_index().is_some_and(|first| first <= ordinal)
    }

    fn validate(&self) -> Result<(), FormatError> {
        let corrupt = |reason: &str| Err(FormatError::new("manifest", reason));
        if self.size > MAX_VOLUME {
            return corrupt("its volume is larger than any can be");
        }
        if !self.ancestors.iter().any(|a| a.lineage == self.own && a.timeline == self.timeline) {
            return corrupt("its timeline is not among its ancestors");
        }
        if self.ancestors.windows(2).any(|w| w[0].lineage >= w[1].lineage) {
            return corrupt("its ancestors are out of order");
        }
        if self.table.windows(2).any(|w| w[0].page >= w[1].page) {
            return corrupt("its table is out of order");
        }
        if self.snapshots.windows(2).any(|w| w[0].boundary > w[1].boundary) {
            return corrupt("its snapshots are out of order");
        }
        if self.table.iter().any(|page| !self.tables.iter().any(|t| t.number == page.object)) {
            return corrupt("a page of its table is in an object that it does not name");
        }
        let runs = self.kills.iter().map(|run| run.object).chain(self.node_kills.iter().map(|run| run.object));
        if runs.into_iter().any(|object| !self.tables.iter().any(|t| t.number == object)) {
            return corrupt("a run of kills is in an object that it does not name");
        }
        let roots = &self.rewind.roots;
        if roots.windows(2).any(|w| w[0].boundary >= w[1].boundary || w[0].number > w[1].number) {
            return corrupt("its roots for rewinding are out of order");
        }
        if roots.first().is_some_and(|first| first.boundary > self.rewind.from) || self.rewind.from > self.boundary {
            return corrupt("its rewind window begins before its first root, or behind its boundary");
        }
        if self.reclaim.iter().any(|r| r.node.is_absent() || r.node.lineage() != self.own || !r.is_aligned()) {
            return corrupt("a subtree to be worked off is none of its own map");
        }
        Ok(())
    }
}
