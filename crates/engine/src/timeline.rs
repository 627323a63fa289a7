// SPDX-License-Identifier: Apache-2.0
//! A timeline: one append-only history, and what it reads as now.
//!
//! It owns its layers (one open, a row of sealed ones), its overlay, its map and its segment table, and the numbers
//! that go with them. What a block reads as is asked in this order: open layer, sealed layers from the newest,
//! overlay from the newest stratum, tree. Each of them says the same or something newer than the next, at every
//! moment, so a step that moves entries down the row changes nothing that can be read.
//!
//! Always holds: `merged ≤ counted ≤ last of the sealed layers ≤ last` of sequences, and `boundary ≤ counted end ≤
//! next` of ordinals. A layer leaves the row, and its pin leaves the journal, only as the front of an unbroken row
//! of puts.
//!
//! A crash leaves the manifest, the segments and the journal; [`crate::recover`] builds the rest again.

use crate::ahead::Streams;
use crate::clean::Victims;
use crate::context::{Context, Turn};
use crate::error::MayPass;
use crate::extent::At;
use crate::journal::Journal;
use crate::layer::{Layer, Piece};
use crate::lineage::Lineages;
use crate::manifests::PoolStore;
use crate::map::{Lookup, NodePath, Tree};
use crate::mirror::Mirror;
use crate::nodes::NodeLoads;
use crate::overlay::Overlay;
use crate::pressure::Throttle;
use crate::signal::Signal;
use crate::table::SegmentTable;
use crate::{EngineError, Result};
use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;
use varve_coord::EpochEnd;
use varve_format::manifest::{Manifest, MapObject, SnapshotEntry};
use varve_format::table::{Kill, NodeKill};
use varve_format::{Lineage, ObjectKind, ObjectName, Pointer};
use varve_types::branch::{Branch, reached};
use varve_types::mutant::{Mutant, planted};
use varve_types::{BLOCK, Epoch, ErrorKind, Ordinal, RootNumber, Sequence, Settings, TimelineId, VolumeId, WriterId};

/// Ordinals and root numbers that an owner leaves to the one before: see `engine.md`, Identity.
pub(crate) const NUMBER_GAP: u64 = 65_536;
/// Root numbers left between owners: fewer are used, and a root number has fewer bits than an ordinal.
pub(crate) const ROOT_GAP: u32 = 1_024;

/// A layer that is sealed and not yet counted.
pub(crate) struct Sealed {
    pub ordinal: Ordinal,
    pub layer: Layer,
    pub put: PutState,
}

/// How far a sealed layer has come.
pub(crate) enum PutState {
    /// Nobody works on it.
    Waiting,
    /// It is being built and put.
    Running,
    /// It is in the store.
    Done(Box<crate::seal::PutSegment>),
}

/// What changes in a timeline.
pub(crate) struct Data {
    pub settings: Settings,
    /// Size in bytes.
    pub size: u64,
    /// The last change that was made.
    pub last: Sequence,
    /// Journal position behind its record.
    pub last_end: u64,
    /// Every change up to this one is on stable media.
    pub flushed: Sequence,
    /// The last change that somebody was told to be safe.
    pub told_safe: Sequence,
    /// A position of the journal, and the change before it: once that much is synced, so is the change.
    pub awaited: Option<(u64, Sequence)>,
    pub open: Layer,
    /// Epoch of the changes that come in.
    pub open_epoch: Epoch,
    pub sealed: VecDeque<Sealed>,
    /// Bytes that came into them, overwritten ones too.
    pub sealed_taken: u64,
    /// Ordinal of the next layer to be sealed.
    pub next_ordinal: Ordinal,
    /// The last change in a segment that counts.
    pub counted: Sequence,
    /// The ordinal behind the last that counts.
    pub counted_end: Ordinal,
    /// Size of the volume there, in bytes.
    pub counted_size: u64,
    pub overlay: Overlay,
    pub tree: Tree,
    pub table: SegmentTable,
    /// Snapshots whose segments count, by boundary; with their roots as far as checkpoints have written them.
    pub snapshots: Vec<SnapshotEntry>,
    /// Snapshots that are only marks yet: their layers are not in the store.
    pub pending: Vec<SnapshotEntry>,
    /// The last manifest that was accepted: the pattern of the next.
    pub manifest: Manifest,
    /// The highest number that a manifest was put with.
    pub manifest_number: u64,
    /// The highest root number that was used.
    pub last_root: RootNumber,
    /// Map objects that the checkpoint under way has put: no manifest names them yet, and the tree may lead there.
    pub fresh_maps: Vec<MapObject>,
    /// Kills in kept runs are to be asked again at the next checkpoint: a snapshot or a hold has gone.
    pub reconsider: bool,
    /// Runs that are left to be asked again for snapshots or holds that went earlier: table object and index there.
    pub to_ask: BTreeSet<(u64, u32)>,
    /// The next checkpoint ends the rewind window: what it keeps leads where nothing may lead any more.
    pub rewind_ends: bool,
    /// When the last write came.
    pub touched: Duration,
    /// Bytes counted since the last checkpoint.
    pub counted_bytes: u64,
    /// Why nothing is served any more.
    pub stopped: Option<EngineError>,
    /// Why no checkpoint can be made until it is opened again.
    pub no_checkpoints: Option<EngineError>,
    /// The manifest before the last: it goes once the next is accepted.
    pub previous_manifest: Option<ObjectName>,
    /// Objects that were deleted and that the last manifest still lists.
    pub deleted: BTreeSet<ObjectName>,
    pub deleting: bool,
    /// Objects of which something that lives is damaged: they are cleaned no more.
    pub unclean: BTreeSet<ObjectName>,
    /// The manifest at which nothing was found to clean: blocks die only with the next one.
    pub clean_at: Option<u64>,
    /// What is to be cleaned next.
    pub victims: Victims,
    /// Roots that somebody walks: their nodes stay meanwhile.
    pub pins: Vec<RootNumber>,
    /// Whether the reclaim queue is being worked off, or can not be.
    pub reclaiming: bool,
    /// Blocks that are being read, modified and written.
    pub busy: Vec<Range<u64>>,
}

/// See the module.
pub(crate) struct Timeline {
    pub id: TimelineId,
    pub volume: VolumeId,
    pub context: Rc<Context>,
    pub pool: Rc<PoolStore>,
    /// The journal that has its changes.
    pub journal: Rc<Journal>,
    pub epoch: Epoch,
    pub writer: WriterId,
    pub own: Lineage,
    pub lineages: Lineages,
    /// Its mirror.
    pub mirror: Mirror,
    /// Where epochs before this one have ended.
    pub ends: RefCell<Vec<EpochEnd>>,
    /// How its writes are slowed while the store does not keep up.
    pub throttle: Throttle,
    /// Who reads it from front to back.
    pub streams: Streams,
    pub data: RefCell<Data>,
    /// The nodes of its map that are being loaded.
    pub loads: NodeLoads,
    /// Rings whenever something in `data` changes that somebody may wait for.
    pub changed: Signal,
    /// One manifest at a time.
    pub manifests: Turn,
    /// One checkpoint at a time.
    pub checkpoints: Turn,
    /// Blocks move from object to object in this turn, and a check looks where they are.
    pub cleans: Turn,
}

/// Waits between tries of what has to succeed: they double from the first to the last.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LAST_WAIT: Duration = Duration::from_secs(10);

/// What stands at a run of blocks.
pub(crate) enum Found {
    Layer(Piece),
    Stored(Pointer),
    Nothing,
    /// A node of the map has to be loaded first.
    Cold(NodePath),
}

impl Data {
    /// What stands at `block`, and for how many blocks, at most `most`.
    pub fn find(&self, block: u64, most: u64) -> (Found, u64) {
        let mut run = most;
        let layers = std::iter::once(&self.open).chain(self.sealed.iter().rev().map(|sealed| &sealed.layer));
        for layer in layers {
            match layer.at(block, run) {
                At::Run(piece, len) => return (Found::Layer(piece), len),
                At::Gap(len) => run = len,
            }
        }
        match self.overlay.at(block, run) {
            At::Run(pointer, len) if pointer.is_data() => return (Found::Stored(pointer), len),
            At::Run(_, len) => return (Found::Nothing, len),
            At::Gap(len) => run = len,
        }
        match self.tree.lookup_run(block, run) {
            (Lookup::Found(pointer), len) => (Found::Stored(pointer), len),
            (Lookup::Absent { .. }, len) => (Found::Nothing, len.max(1)),
            (Lookup::Cold(path), _) => (Found::Cold(path), 1),
        }
    }

    /// Whether it may serve.
    pub fn check(&self) -> Result<()> {
        self.stopped.clone().map_or(Ok(()), Err)
    }

    /// Boundaries at which something is kept: of snapshots and of holds.
    pub fn kept_boundaries(&self) -> Vec<Ordinal> {
        let snapshots = self.snapshots.iter().map(|s| s.boundary);
        let mut all: Vec<_> = snapshots.chain(self.manifest.holds.iter().map(|h| h.boundary)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Whether some kept root `r` has birth ≤ r < death. `kept` is sorted.
pub(crate) fn node_is_kept(kept: &[RootNumber], kill: &NodeKill) -> bool {
    let birth = kill.node.root();
    let at = kept.partition_point(|r| *r < birth || (*r == birth && planted(Mutant::NodeBirthBeforeRoot)));
    kept.get(at).is_some_and(|r| *r < kill.death)
}

/// Whether some kept boundary `b` has birth < b ≤ death. `kept` is sorted.
pub(crate) fn is_kept(kept: &[Ordinal], kill: &Kill) -> bool {
    let next = kept.get(kept.partition_point(|b| *b <= kill.ordinal));
    next.is_some_and(|b| *b < kill.death || (*b == kill.death && !planted(Mutant::FreeAtDeath)))
}

impl Timeline {
    /// The name of an object that this opening puts.
    pub fn object(&self, kind: ObjectKind, number: u64, part: u8) -> ObjectName {
        ObjectName { timeline: self.id, kind, number, part, epoch: self.epoch, writer: self.writer }
    }

    /// Stops serving: from now on everything answers with this error.
    pub fn stop(&self, why: EngineError) {
        let mut data = self.data.borrow_mut();
        if data.stopped.is_none() {
            data.stopped = Some(why);
        }
        drop(data);
        self.changed.ring();
    }

    /// Whether it has been stopped.
    pub fn is_stopped(&self) -> bool {
        self.data.borrow().stopped.is_some()
    }

    /// Waits until every change up to `sequence` is in segments that count.
    pub async fn until_counted(&self, sequence: Sequence) -> Result<()> {
        self.changed
            .until(|| {
                let data = self.data.borrow();
                if data.counted >= sequence {
                    return Some(Ok(()));
                }
                data.stopped.clone().map(Err)
            })
            .await
    }

    /// The settings in force.
    pub fn settings(&self) -> Settings {
        self.data.borrow().settings
    }

    /// Does `step` until it ends otherwise than with an error that may pass. What cannot be left half done is done so.
    pub async fn persist<T>(&self, what: &str, mut step: impl AsyncFnMut() -> Result<T>) -> Result<T> {
        let mut wait = FIRST_WAIT;
        loop {
            self.data.borrow().check()?;
            match step().await {
                Err(error) if error.may_pass() => {
                    reached(Branch::TriedAgain);
                    tracing::warn!(timeline = %self.id, %error, "{what} failed and is tried again");
                }
                done => return done,
            }
            self.context.env.sleep(wait).await;
            wait = (wait * 2).min(LAST_WAIT);
        }
    }

    /// Checks that bytes lie in the volume and are sectors.
    pub fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        let data = self.data.borrow();
        data.check()?;
        if !offset.is_multiple_of(varve_types::SECTOR) || !len.is_multiple_of(varve_types::SECTOR) {
            return Err(EngineError::invalid(format!("offset {offset} and length {len} must be multiples of 512")));
        }
        match offset.checked_add(len) {
            Some(end) if end <= data.size => Ok(()),
            _ => Err(EngineError::invalid(format!(
                "offset {offset} and length {len} reach beyond the end of the volume at {}",
                data.size
            ))),
        }
    }
}

/// The error of a volume that another node or process has taken over.
pub(crate) fn fenced(what: impl Into<String>) -> EngineError {
    EngineError::new(ErrorKind::Fenced, what)
}

/// Number of blocks that cover so many bytes.
pub(crate) const fn blocks_of(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_kept_by_a_boundary_between_birth_and_death() {
        // The example of the design: snapshots at 5 and 8; LBA 7 written in segments 3, 6 and 9.
        let kill = |birth, death| Kill { ordinal: Ordinal(birth), block: 0, death: Ordinal(death) };
        let (both, only_b) = ([Ordinal(5), Ordinal(8)], [Ordinal(8)]);
        assert!(is_kept(&both, &kill(3, 6)) && is_kept(&both, &kill(6, 9)));
        assert!(!is_kept(&only_b, &kill(3, 6)) && is_kept(&only_b, &kill(6, 9)));
        assert!(!is_kept(&[], &kill(6, 9)));
        assert!(is_kept(&[Ordinal(7)], &kill(6, 7)) && !is_kept(&[Ordinal(6)], &kill(6, 7)));
    }
}
