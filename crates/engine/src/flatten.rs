// SPDX-License-Identifier: Apache-2.0
//! Flattening: a clone becomes independent of its origin, in the background, while it is served.
//!
//! Every block that the head sees through an ancestor is read and written anew as an ordinary change: journal,
//! layer, segment. A block is only written if, in the very step that makes the change, the volume still reads it
//! from where it was read. Addresses are logical for ever, so an equal pointer means equal bytes: the change alters
//! nothing that anybody can read, whatever guests write meanwhile, and no guest ever waits for it.
//!
//! When the head is clean, a checkpoint gives a root without inherited pointers; every later root is made from it
//! and has none either. What is left are the older roots: of snapshots, and those that clones of this volume began
//! with. They are walked, and only if none of them leads to an ancestor are the ancestors' indexes given back: a
//! manifest without ancestors and birth is accepted, and then the hold in the origin is dropped.
//!
//! A volume that was rolled back was born, as it is shown, from its own earlier history. It becomes independent of
//! that in the same way, unless it lists snapshots from before: those lie there. What is left then are histories
//! that can still be shown again; they go with their windows, and until then need what they were born from.
//!
//! A crash loses nothing but time: what is the volume's own already is passed over. A hold that was not dropped any
//! more is dropped by the sweep, because the record in coordination names no parent.

use crate::fetch::Taken;
use crate::map::{NodePath, Step, Tree, Walk};
use crate::signal::breathe;
use crate::timeline::{Data, Found, Timeline, blocks_of};
use crate::volume::Volume;
use crate::write::Op;
use crate::{EngineError, Result, Shard};
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use varve_coord::VolumeRecord;
use varve_format::manifest::{Birth, Manifest};
use varve_format::{NodePointer, Pointer};
use varve_types::branch::{Branch, reached, reached_if};
use varve_types::mutant::{Mutant, planted};
use varve_types::{BLOCK, ErrorKind, Name, RootNumber, Sequence, TimelineId, VolumeId};

/// Most blocks read and written in one piece.
const PIECE: u64 = 256;
/// Steps of a scan or a walk between two looks at other tasks.
const SLICE: u32 = 256;
/// How often a read is tried again because an object was gone.
const MAX_TRIES: u32 = 4;

/// How a flatten ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flattened {
    /// Blocks that were written anew.
    pub blocks: u64,
    /// Whether the volume needs no other one any more. If not, the rest says what keeps its origin.
    pub independent: bool,
    /// Snapshots of the volume that still lead to its origin.
    pub snapshots: Vec<Name>,
    /// Volumes that were cloned from this one, and began with what it had from its origin.
    pub clones: Vec<VolumeId>,
    /// Whether a rollback of the volume can still be undone, or what it hid is still needed, and that needs another volume.
    pub rolled_back: bool,
}

/// A root that is kept, and for whom.
struct Kept {
    root: NodePointer,
    keeper: Keeper,
}

#[derive(Clone)]
enum Keeper {
    Head,
    Snapshot(Name),
    Clone(VolumeId),
    Past,
}

impl Timeline {
    /// Writes every inherited block that the head sees anew. Gives how many there were.
    async fn write_inherited(self: &Rc<Self>, progress: &impl Fn(u64, u64)) -> Result<u64> {
        let (mut block, mut written, mut steps) = (0, 0, 0u32);
        let mut pace = Pace::default();
        loop {
            let (size, found, run) = {
                let data = self.data.borrow();
                data.check()?;
                let end = blocks_of(data.size);
                if block >= end {
                    progress(data.size, data.size);
                    return Ok(written);
                }
                let (found, run) = data.find(block, end - block);
                (data.size, found, run)
            };
            match found {
                Found::Cold(path) => {
                    self.persist("a get", async || self.load_node(path).await).await?;
                    continue;
                }
                Found::Stored(pointer) if pointer.lineage() != self.own => {
                    let run = run.min(PIECE);
                    written += self.write_piece(block, pointer, run).await?;
                    block += run;
                    pace.wait(self, run).await?;
                }
                _ => block += run,
            }
            steps += 1;
            if steps.is_multiple_of(SLICE) {
                breathe().await;
            }
            progress((block * BLOCK).min(size), size);
        }
    }

    /// Reads blocks that an ancestor keeps, and writes those of them that are still read from there.
    async fn write_piece(self: &Rc<Self>, block: u64, pointer: Pointer, run: u64) -> Result<u64> {
        let bytes = self.inherited_bytes(pointer, run).await?;
        let (mut at, mut written) = (0, 0);
        while at < run {
            let rest = bytes.slice((at * BLOCK) as usize..);
            self.room(&Op::Write(rest.clone())).await?;
            // From here to the change nothing is waited for: nobody can write between the look and the change.
            let (found, len) = self.data.borrow().find(block + at, run - at);
            let is_same = matches!(found, Found::Stored(now) if now == pointer.advance(at));
            if let Found::Cold(path) = found {
                self.persist("a get", async || self.load_node(path).await).await?;
                continue;
            }
            reached_if(!is_same, Branch::FlattenMeetsGuest);
            if is_same || planted(Mutant::FlattenOverwritesGuest) {
                self.make(block + at, len, Op::Write(rest.slice(..(len * BLOCK) as usize)))?;
                written += len;
            }
            at += len;
        }
        self.finish(false).await?;
        Ok(written)
    }

    async fn inherited_bytes(self: &Rc<Self>, pointer: Pointer, run: u64) -> Result<Bytes> {
        let mut tries = 0;
        let blocks = self
            .persist("a get", async || {
                loop {
                    match self.fetch(pointer, run, Taken::Once).await {
                        Err(error) if error.kind() == ErrorKind::NotFound && tries < MAX_TRIES => {
                            self.forget_place(pointer)?;
                            tries += 1;
                        }
                        done => break done,
                    }
                }
            })
            .await?;
        let mut bytes = BytesMut::with_capacity((run * BLOCK) as usize);
        for (block, _) in blocks {
            bytes.extend_from_slice(&block);
        }
        Ok(bytes.freeze())
    }

    /// The roots that something keeps, and the head's. Those of snapshots that have none yet are made from the head's.
    fn kept_roots(&self) -> Vec<Kept> {
        let data = self.data.borrow();
        let head = Kept { root: data.manifest.root, keeper: Keeper::Head };
        let holds = &data.manifest.holds;
        let snapshots = data.snapshots.iter().filter_map(|s| {
            let (_, root) = s.root?;
            // A snapshot that was only taken for a clone is told as that clone.
            let clone = holds.iter().find(|hold| s.hidden && hold.boundary == s.boundary);
            let keeper = clone.map_or_else(|| Keeper::Snapshot(s.name.clone()), |hold| Keeper::Clone(hold.volume));
            Some(Kept { root, keeper })
        });
        let holds = holds.iter().map(|hold| Kept { root: hold.base_root, keeper: Keeper::Clone(hold.volume) });
        let past = data.manifest.rewind.roots.iter().map(|root| Kept { root: root.root, keeper: Keeper::Past });
        std::iter::once(head).chain(snapshots).chain(holds).chain(past).filter(|kept| !kept.root.is_absent()).collect()
    }

    /// Whether a root leads to an ancestor. Nodes in `seen` do not, and are not looked into again.
    async fn leads_to_ancestor(self: &Rc<Self>, root: NodePointer, seen: &mut BTreeSet<NodePointer>) -> Result<bool> {
        let tree = Tree::cold(root);
        let mut walk = Walk::from(0);
        let (mut steps, mut entered) = (0u32, Vec::new());
        loop {
            match walk.step(&tree) {
                Step::End => break,
                Step::Node(path) if path.pointer.lineage() != self.own => return Ok(true),
                Step::Node(path) if seen.contains(&path.pointer) => walk.skip(&path),
                // Leaves are too many to be remembered one by one; those of a known node above them are passed over with it.
                Step::Node(path) if path.level > 0 => entered.push(path.pointer),
                Step::Node(_) => {}
                Step::Run { pointer, .. } if pointer.lineage() != self.own => return Ok(true),
                Step::Run { .. } => {}
                Step::Cold(path) => self.supply(&mut walk, path).await?,
            }
            steps += 1;
            if steps.is_multiple_of(SLICE) {
                self.data.borrow().check()?;
                breathe().await;
            }
        }
        // Only now is it known of all of them.
        seen.extend(entered);
        Ok(false)
    }

    async fn supply(self: &Rc<Self>, walk: &mut Walk, path: NodePath) -> Result<()> {
        let (name, bytes) = self.persist("a get", async || self.node_bytes(path.pointer).await).await?;
        walk.supply(path, &bytes).map_err(crate::context::damaged(name))
    }
}

/// Keeps a flatten from filling journal and RAM for others: no more than two segments of it wait for the store.
#[derive(Default)]
struct Pace {
    since: u64,
    marks: VecDeque<Sequence>,
}

impl Pace {
    async fn wait(&mut self, timeline: &Rc<Timeline>, blocks: u64) -> Result<()> {
        self.since += blocks * BLOCK;
        if self.since < timeline.settings().segment_size {
            return Ok(());
        }
        self.since = 0;
        timeline.seal_now();
        self.marks.push_back(timeline.data.borrow().last);
        if self.marks.len() > 1
            && let Some(mark) = self.marks.pop_front()
        {
            timeline.until_counted(mark).await?;
        }
        Ok(())
    }
}

impl Volume {
    /// Makes the volume independent of what it was cloned from: see the module. `progress` is told bytes of the volume: looked at, and in all.
    ///
    /// The hold in the origin is the caller's to drop: [`Shard::flatten`] does.
    ///
    /// # Errors
    /// `Conflict` when the volume was rolled back meanwhile; those of store and coordination that do not pass. It may be called again.
    pub(crate) async fn flatten(&self, progress: impl Fn(u64, u64)) -> Result<(Flattened, Option<Birth>)> {
        let timeline = self.shown();
        let birth = timeline.data.borrow().manifest.birth;
        let Some(birth) = birth else {
            let size = self.size();
            progress(size, size);
            let rolled_back = self.leans();
            return Ok((Flattened { independent: !rolled_back, rolled_back, ..Flattened::default() }, None));
        };
        let blocks = timeline.write_inherited(&progress).await?;
        timeline.drain().await?;
        {
            let turn = timeline.checkpoints.take().await;
            // Roots of the past lead to ancestors for as long as they are kept. In the turn: a checkpoint that began before would make one more.
            timeline.data.borrow_mut().rewind_ends = true;
            timeline.checkpoint_in_turn(&turn, true).await?;
        }
        let clean_from = timeline.data.borrow().manifest.root_number;
        let mut clean = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut done = Flattened { blocks, snapshots: self.snapshots_before(&timeline).await?, ..Flattened::default() };
        self.walk_kept(&timeline, &mut clean, &mut seen, &mut done).await?;
        let is_seen = !done.snapshots.is_empty() && !planted(Mutant::FlattenForgetsSnapshots);
        if is_seen || !done.clones.is_empty() {
            reached(Branch::FlattenKept);
            return Ok((done, None));
        }
        if !self.give_back(&timeline, clean_from, &clean).await? {
            // Roots that came to be kept meanwhile were walked or made behind `clean_from`; whatever else may keep one, it costs a second try.
            let what =
                format!("volume {}: a root came to be kept while it was flattened: flatten it again", self.name());
            return Err(EngineError::new(ErrorKind::Busy, what));
        }
        done.rolled_back = self.leans();
        done.independent = !done.rolled_back;
        Ok((done, Some(birth)))
    }

    /// Snapshots that the volume lists of histories before a rollback.
    async fn snapshots_before(&self, timeline: &Timeline) -> Result<Vec<Name>> {
        let all = self.snapshots().await?.into_iter();
        Ok(all.filter(|s| s.timeline != timeline.id && !s.hidden).map(|s| s.name).collect())
    }

    /// Whether a history of the volume, hidden or not, was born from another volume.
    fn leans(&self) -> bool {
        let record = self.record.borrow();
        let outside = |parent: TimelineId| record.timeline(parent).is_none();
        record.timelines.iter().any(|timeline| timeline.parent.is_some_and(outside))
    }

    /// Walks what is kept; puts clean roots into `clean`, and tells in `done` of those that are not.
    async fn walk_kept(
        &self,
        timeline: &Rc<Timeline>,
        clean: &mut BTreeSet<NodePointer>,
        seen: &mut BTreeSet<NodePointer>,
        done: &mut Flattened,
    ) -> Result<()> {
        for Kept { root, keeper } in timeline.kept_roots() {
            if clean.contains(&root) {
                continue;
            }
            match timeline.leads_to_ancestor(root, seen).await {
                Ok(false) => {
                    clean.insert(root);
                }
                Ok(true) => match keeper {
                    Keeper::Head => {
                        let what = format!("volume {}: its map leads to an ancestor still", self.name());
                        return Err(EngineError::new(ErrorKind::Internal, what));
                    }
                    Keeper::Past => {
                        let what = format!("volume {}: its past leads to an ancestor still", self.name());
                        return Err(EngineError::new(ErrorKind::Busy, what));
                    }
                    Keeper::Snapshot(name) => done.snapshots.push(name),
                    Keeper::Clone(volume) if done.clones.contains(&volume) => {}
                    Keeper::Clone(volume) => done.clones.push(volume),
                },
                // It may have been let go while it was walked; if not, something is wrong.
                Err(error) if timeline.kept_roots().iter().any(|kept| kept.root == root) => return Err(error),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Gives the ancestors' indexes back, unless a root is kept that is neither in `clean` nor made after the one numbered `clean_from`.
    async fn give_back(
        &self,
        timeline: &Rc<Timeline>,
        clean_from: RootNumber,
        clean: &BTreeSet<NodePointer>,
    ) -> Result<bool> {
        let _change = self.changes.take().await;
        if self.shown().id != timeline.id {
            let what = format!("volume {} was rolled back while it was flattened", self.name());
            return Err(EngineError::new(ErrorKind::Conflict, what));
        }
        if !self.snapshots_before(timeline).await?.is_empty() {
            return Ok(false);
        }
        let turn = timeline.manifests.take().await;
        let later = |root: NodePointer| root.lineage() == timeline.own && root.root() > clean_from;
        let leads = |kept: &Kept| !clean.contains(&kept.root) && !later(kept.root);
        if timeline.kept_roots().iter().any(leads) && !planted(Mutant::FlattenForgetsSnapshots) {
            return Ok(false);
        }
        let (id, own) = (timeline.id, timeline.own);
        let edit = |manifest: &mut Manifest, _: &mut Data| {
            manifest.ancestors.retain(|ancestor| ancestor.lineage == own);
            manifest.birth = None;
            manifest.inherited.clear();
        };
        let also = |record: &mut VolumeRecord| {
            if let Some(entry) = record.timeline_mut(id) {
                entry.parent = None;
            }
            Ok(())
        };
        let record = timeline.write_manifest_in_turn(&turn, edit, also).await?;
        *self.record.borrow_mut() = record;
        Ok(true)
    }
}

impl Shard {
    /// Makes a volume independent of what it was cloned from, while it is served. `progress` is told bytes of the volume: looked at, and in all.
    /// Afterwards the origin can be deleted for good. It may be given up (by dropping it) and called again at any time.
    ///
    /// # Errors
    /// `NotFound` when there is no such volume; `Conflict` when it was rolled back meanwhile; those of store and coordination that do not pass.
    pub async fn flatten(self: &Rc<Self>, name: &Name, progress: impl Fn(u64, u64)) -> Result<Flattened> {
        let volume = self.find(name)?;
        let timeline = volume.shown().id;
        let (done, birth) = volume.flatten(progress).await?;
        if let Some(birth) = birth
            && let Err(error) = self.drop_hold(birth.origin, timeline).await
        {
            // The volume is independent by now. Its origin's next owner, or the next look at windows, lets go of it.
            tracing::warn!(volume = %name, origin = %birth.origin, %error, "the origin of a flattened volume keeps what it held for it, for now");
        }
        Ok(done)
    }
}
