// SPDX-License-Identifier: Apache-2.0
//! What all kept trees of a volume reach of one of its closed timelines.
//!
//! Pointers to an ancestor are never killed: what a later timeline overwrites of what it has inherited dies without
//! a word. Only a walk of every kept tree that may lead there tells what still lives: the heads that are shown or
//! can be shown again, and the roots of snapshots and holds of all timelines that have the ancestor in their tables.
//!
//! What is reached only ever gets less. New trees are made of trees that are kept, and no pointer to an ancestor is
//! ever written anew; so what a walk did not reach at its beginning nothing reaches at its end.
//!
//! Nodes of older ancestors lead to nothing newer and are passed over. A node that was entered is not entered again:
//! its place in all trees is the same, and so is all below it. RAM: a bit for each block and node of the timeline,
//! and the interior nodes that were entered. Nothing here outlives the walk.

use crate::EngineError;
use crate::Result;
use crate::context::damaged;
use crate::lineage::{load_node_record, map_object};
use crate::map::{NodePath, Step, Tree, Walk};
use crate::recover::missing_is_corrupt;
use crate::signal::breathe;
use crate::volume::Volume;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use varve_format::manifest::Manifest;
use varve_format::{Lineage, NodePointer, ObjectName, Pointer};
use varve_types::{Ordinal, RootNumber, TimelineId};

/// Steps of a walk between two looks at other tasks.
const SLICE: u32 = 128;

/// A timeline whose trees may lead to the one that is looked at, and the roots of it that are kept; or one that such trees lead through, without roots.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub manifest: Rc<Manifest>,
    pub roots: Vec<NodePointer>,
}

/// A bit for each of a few.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bits(Vec<u64>);

impl Bits {
    /// Sets a bit; tells whether it was clear.
    fn set(&mut self, bit: usize) -> bool {
        if self.0.len() <= bit / 64 {
            self.0.resize(bit / 64 + 1, 0);
        }
        let clear = !self.get(bit);
        self.0[bit / 64] |= 1 << (bit % 64);
        clear
    }
    /// Whether a bit is set.
    pub fn get(&self, bit: usize) -> bool {
        self.0.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }
    /// How many are set.
    pub fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Reached {
    /// By segment.
    pub blocks: BTreeMap<Ordinal, Bits>,
    /// By root and part.
    pub nodes: BTreeMap<(RootNumber, u8), Bits>,
}

impl Reached {
    /// Whether a block is reached.
    pub fn has(&self, ordinal: Ordinal, block: u32) -> bool {
        self.blocks.get(&ordinal).is_some_and(|bits| bits.get(block as usize))
    }
    /// How many nodes of a map object are reached.
    pub fn nodes_of(&self, root: RootNumber, part: u8) -> u32 {
        self.nodes.get(&(root, part)).map_or(0, Bits::count)
    }
    fn take(&mut self, first: Pointer, blocks: u64) {
        let bits = self.blocks.entry(first.ordinal()).or_default();
        for i in 0..blocks {
            bits.set(usize::from(first.advance(i).block()));
        }
    }
}

/// What a node is to the timeline that is looked at.
enum Kin {
    /// Its own.
    Own,
    /// Of a timeline that is born from it: a member, by its place.
    Younger(usize),
    /// Of one that it was born from: nothing of it is below.
    Older,
}

/// Walks the members' trees.
struct Walker<'a> {
    volume: &'a Volume,
    of: &'a Manifest,
    members: &'a [Member],
    found: Reached,
    /// Interior nodes that were entered.
    entered: BTreeSet<(TimelineId, NodePointer)>,
}

impl Walker<'_> {
    fn kin(&self, within: &Manifest, lineage: Lineage) -> Result<Kin> {
        let of = within.ancestors.iter().find(|ancestor| ancestor.lineage == lineage).map(|ancestor| ancestor.timeline);
        let unknown =
            || EngineError::corrupt(format!("timeline {}: its map leads to lineage {lineage}", within.timeline));
        let of = of.ok_or_else(unknown)?;
        if of == self.of.timeline {
            return Ok(Kin::Own);
        }
        if self.of.ancestors.iter().any(|older| older.timeline == of) {
            return Ok(Kin::Older);
        }
        self.members.iter().position(|member| member.manifest.timeline == of).map(Kin::Younger).ok_or_else(unknown)
    }

    async fn walk(&mut self, within: &Manifest, root: NodePointer) -> Result<()> {
        let (tree, mut walk, mut steps) = (Tree::cold(root), Walk::from(0), 0u32);
        loop {
            match walk.step(&tree) {
                Step::End => return Ok(()),
                Step::Node(path) => {
                    if self.is_done(within, &path)? {
                        walk.skip(&path);
                    }
                }
                Step::Run { blocks, pointer, .. } => {
                    if pointer.is_data() && matches!(self.kin(within, pointer.lineage())?, Kin::Own) {
                        self.found.take(pointer, blocks);
                    }
                }
                Step::Cold(path) => {
                    let (name, bytes) = self.load(within, path.pointer).await?;
                    walk.supply(path, &bytes).map_err(damaged(name))?;
                }
            }
            steps += 1;
            if steps.is_multiple_of(SLICE) {
                breathe().await;
                self.volume.shown().data.borrow().check()?;
            }
        }
    }

    /// Notes a node; tells whether nothing new is below it.
    fn is_done(&mut self, within: &Manifest, path: &NodePath) -> Result<bool> {
        let node = path.pointer;
        Ok(match self.kin(within, node.lineage())? {
            Kin::Older => true,
            Kin::Own => {
                let bits = self.found.nodes.entry((node.root(), node.part())).or_default();
                !bits.set(usize::from(node.record()))
            }
            // Leaves are too many to be remembered; those of a known node are passed over with it.
            Kin::Younger(member) => {
                path.level > 0 && !self.entered.insert((self.members[member].manifest.timeline, node))
            }
        })
    }

    async fn load(&self, within: &Manifest, node: NodePointer) -> Result<(ObjectName, Bytes)> {
        let manifest = match self.kin(within, node.lineage())? {
            Kin::Younger(member) => &*self.members[member].manifest,
            Kin::Own | Kin::Older => self.of,
        };
        let name = map_object(manifest, node.root(), node.part())?;
        let (context, store) = (&self.volume.context, &self.volume.pool.store);
        let bytes = load_node_record(context, store, &name, u32::from(node.record())).await;
        Ok((name, bytes.map_err(missing_is_corrupt)?))
    }
}

impl Volume {
    /// Walks the trees of `members`, and tells what they reach of the timeline of `of`, which is one of them.
    pub(crate) async fn reach(&self, of: &Manifest, members: &[Member]) -> Result<Reached> {
        let mut walker = Walker { volume: self, of, members, found: Reached::default(), entered: BTreeSet::new() };
        for member in members {
            for root in member.roots.iter().filter(|root| !root.is_absent()) {
                walker.walk(&member.manifest, *root).await?;
            }
        }
        Ok(walker.found)
    }
}
