// SPDX-License-Identifier: Apache-2.0
//! Nodes of the map on their way into RAM: from another volume that has them there, or from the store.
//!
//! A lookup names the node that it lacks; who asked loads it here and looks again. Whether it found the node is not told: meanwhile a
//! checkpoint may have replaced it, or the hand may have passed it ([`crate::map_ram`]).
//!
//! Always holds: a node that somebody loads is loaded by nobody else of the same volume meanwhile; and a node in the tree is found where it was
//! put, also while a checkpoint is under way that no manifest tells of yet.

use crate::Result;
use crate::context::damaged;
use crate::error::MayPass;
use crate::extent::ExtentMap;
use crate::lineage::{load_node_record, load_node_records, map_name, map_object};
use crate::map::{Lookup, NodePath, ROOT_LEVEL, first_of, span};
use crate::signal::Signal;
use crate::timeline::Timeline;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use varve_format::{NodePointer, ObjectName, Pointer};
use varve_types::ErrorKind;
use varve_types::branch::{Branch, reached};
use varve_types::mutant::{Mutant, planted};

/// Timelines that are asked for a node that they may share.
const MAX_ASKED: usize = 64;
/// Leaves that a merge asks for together.
const AHEAD_LEAVES: usize = 256;
/// Nodes of an object that are asked for one after the other, of which so many rows are under way at a time.
const ROW_NODES: usize = 32;
const ROWS: usize = 8;

/// The nodes of a volume that are being loaded.
#[derive(Default)]
pub(crate) struct NodeLoads {
    under_way: RefCell<BTreeMap<NodePointer, NodePath>>,
    ended: Signal,
}

/// Ends when dropped.
struct Loading<'a>(&'a NodeLoads, NodePointer);

impl NodeLoads {
    fn begin(&self, path: &NodePath) -> Option<Loading<'_>> {
        let before = self.under_way.borrow_mut().insert(path.pointer, *path);
        before.is_none().then(|| Loading(self, path.pointer))
    }

    /// Whether a leaf below the node of level 1 that begins at this block is being loaded.
    pub fn needs(&self, first_block: u64) -> bool {
        let is_below = |path: &NodePath| path.level == 0 && first_of(1, path.first_block) == first_block;
        self.under_way.borrow().values().any(is_below)
    }

    async fn until_ended(&self, node: NodePointer) {
        reached(Branch::NodeLoadShared);
        self.ended.until(|| (!self.under_way.borrow().contains_key(&node)).then_some(())).await;
    }
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        self.0.under_way.borrow_mut().remove(&self.1);
        self.0.ended.ring();
    }
}

impl Timeline {
    /// Loads a node of the map into the tree, if it is still wanted there: whoever waits for the store may wait so long that a checkpoint has replaced the
    /// node, and its object is gone. Where another one loads it already, waits for that.
    pub async fn load_node(&self, path: NodePath) -> Result<()> {
        let Some(_loading) = self.loads.begin(&path) else {
            self.loads.until_ended(path.pointer).await;
            return Ok(());
        };
        match self.load_wanted_node(path).await {
            Err(error) if !error.may_pass() && !self.data.borrow_mut().tree.wants(&path) => {
                reached(Branch::NodeReplaced);
                Ok(())
            }
            done => done,
        }
    }

    async fn load_wanted_node(&self, path: NodePath) -> Result<()> {
        if let Some(bytes) = self.node_of_another(&path)? {
            reached(Branch::NodeOfAnother);
            return self.install(path, &bytes, self.id);
        }
        let mut tries = 0;
        let (name, bytes) = loop {
            match self.node_bytes(path.pointer).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    self.lineages.forget(self.lineages.timeline(path.pointer.lineage())?);
                    self.again(&mut tries, crate::recover::missing_is_corrupt(error))?;
                }
                done => break done?,
            }
        };
        self.install(path, &bytes, name)
    }

    /// Takes a node in that came from `origin`, and sees to the RAM that it takes.
    fn install(&self, path: NodePath, bytes: &[u8], origin: impl std::fmt::Display) -> Result<()> {
        let grown = {
            let tree = &mut self.data.borrow_mut().tree;
            let before = tree.bytes_in_ram();
            tree.install(path, bytes).map_err(damaged(origin))?;
            tree.bytes_in_ram() - before
        };
        self.context.map_grew(grown);
        Ok(())
    }

    /// The bytes of a node that was inherited, if it is in the RAM of one that inherited it too, or that it is from.
    fn node_of_another(&self, path: &NodePath) -> Result<Option<Vec<u8>>> {
        let owner = self.lineages.timeline(path.pointer.lineage())?;
        if owner == self.id {
            return Ok(None);
        }
        let timelines = self.context.timelines.borrow();
        let is_other = |timeline: &Rc<Self>| timeline.id != self.id;
        let first = timelines.get(&owner).and_then(std::rc::Weak::upgrade);
        let others = timelines.values().filter_map(std::rc::Weak::upgrade).filter(is_other).take(MAX_ASKED);
        for other in first.into_iter().chain(others) {
            if other.lineages.timeline(path.pointer.lineage()).is_ok_and(|its| its == owner)
                && let Some(bytes) = other.data.borrow().tree.node_bytes(path)
            {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// The bytes of a node of the map, and the object that holds it.
    pub async fn node_bytes(&self, node: NodePointer) -> Result<(ObjectName, Bytes)> {
        let name = self.node_object(node).await?;
        let bytes = load_node_record(&self.context, &self.pool.store, &name, u32::from(node.record())).await?;
        Ok((name, bytes))
    }

    /// The object that holds a node of the map.
    async fn node_object(&self, node: NodePointer) -> Result<ObjectName> {
        let timeline = self.lineages.timeline(node.lineage())?;
        if timeline != self.id {
            return self.lineages.map_object(&self.context, &self.pool.store, timeline, node).await;
        }
        let data = self.data.borrow();
        let is_it = |map: &&varve_format::manifest::MapObject| (map.root, map.part) == (node.root(), node.part());
        match data.fresh_maps.iter().find(is_it).filter(|_| !planted(Mutant::ForgetFreshMaps)) {
            Some(map) => {
                reached(Branch::NodeOfFreshMap);
                Ok(map_name(self.id, map))
            }
            None => map_object(&data.manifest, node.root(), node.part()),
        }
    }

    /// Loads the leaves that a merge of these runs comes to from block `from` on, so many as are asked for together, with few requests. Gives the
    /// block behind them. What can not be loaded is left to who needs it.
    pub async fn load_ahead(&self, runs: &ExtentMap<Pointer>, from: u64) -> u64 {
        let (mut leaves, mut end) = (Vec::new(), u64::MAX);
        for (start, len, pointer) in runs.from(from) {
            let whole = pointer.is_hole() && len > 2 * span(0);
            // Of a hole only the leaves at its ends are looked into, if any.
            let parts =
                if whole { [start..start + 1, start + len - 1..start + len] } else { [start..start + len, 0..0] };
            for leaf in parts.into_iter().flat_map(|part| (first_of(0, part.start)..part.end).step_by(span(0) as usize))
            {
                if leaves.last() != Some(&leaf) && leaf + span(0) > from {
                    leaves.push(leaf);
                }
            }
            if leaves.len() >= AHEAD_LEAVES {
                end = leaves.last().map_or(u64::MAX, |leaf| leaf + span(0));
                break;
            }
        }
        if let Err(error) = self.load_leaves(&leaves).await {
            tracing::debug!(timeline = %self.id, %error, "leaves of the map could not be loaded ahead");
        }
        end
    }

    /// Loads leaves, and what is above them, level by level.
    pub async fn load_leaves(&self, leaves: &[u64]) -> Result<()> {
        for _ in 0..=ROOT_LEVEL {
            let cold: BTreeMap<NodePointer, NodePath> = {
                let data = self.data.borrow();
                let is_cold = |leaf: &u64| match data.tree.lookup(*leaf) {
                    Lookup::Cold(path) => Some((path.pointer, path)),
                    Lookup::Found(_) | Lookup::Absent { .. } => None,
                };
                leaves.iter().filter_map(is_cold).collect()
            };
            if cold.len() < 2 {
                return Ok(());
            }
            let mut objects: BTreeMap<ObjectName, Vec<NodePath>> = BTreeMap::new();
            for (node, path) in cold {
                objects.entry(self.node_object(node).await?).or_default().push(path);
            }
            let rows = objects.iter().flat_map(|(name, paths)| paths.chunks(ROW_NODES).map(move |row| (name, row)));
            stream::iter(rows.map(|(name, row)| self.load_row(name, row)))
                .buffer_unordered(ROWS)
                .try_collect::<()>()
                .await?;
        }
        Ok(())
    }

    /// Loads some nodes of an object, but for those that others load already.
    async fn load_row(&self, name: &ObjectName, row: &[NodePath]) -> Result<()> {
        let (row, _loading): (Vec<&NodePath>, Vec<_>) =
            row.iter().filter_map(|path| Some((path, self.loads.begin(path)?))).unzip();
        let records: Vec<u32> = row.iter().map(|path| u32::from(path.pointer.record())).collect();
        let nodes = load_node_records(&self.context, &self.pool.store, name, &records).await?;
        row.into_iter().zip(nodes).try_for_each(|(path, bytes)| self.install(*path, &bytes, name))
    }
}
