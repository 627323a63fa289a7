// SPDX-License-Identifier: Apache-2.0
//! Which node of a cluster runs which volume, and letting go of what another one runs.
//!
//! Coordination says who is the owner of a volume; this node watches it. When a volume that is open here has another owner, in a later epoch, its users are
//! hung up on at once and nobody is let in any more; the engine finds the same at its next acceptance, which is asked for then, and the volume is forgotten.
//! Coordination that does not answer changes nothing: what is open is served.
//!
//! Pools that other nodes make, change and forget are followed in the same way, so that any volume can be opened here.
//!
//! Always holds: a volume that another node has taken is found by nobody here from the moment on at which this node has heard of it.

use super::cluster::patiently;
use super::control::Node;
use super::local::Local;
use super::membership::Membership;
use super::{coord_error, pool_control};
use crate::api::ControlError;
use crate::api::model::Owner;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use varve_coord::{AliveRecord, CoordError, Event, NodeRecord, PoolRecord, Record, Records, VolumeRecord, Watch};
use varve_engine::EngineError;
use varve_types::{ErrorKind, Name, NodeId, Overrides, VolumeId};

/// Between two tries to follow what coordination does not tell.
const RETRY_TIME: Duration = Duration::from_secs(1);

/// The nodes of the cluster, and who of them lives.
#[derive(Debug, Default)]
pub(super) struct Roster {
    nodes: BTreeMap<NodeId, NodeRecord>,
    alive: BTreeMap<NodeId, AliveRecord>,
}

impl Roster {
    /// The nodes as they are now; none where the node is by itself.
    pub(super) async fn load(records: Records<'_>, member: Option<&Membership>) -> varve_coord::Result<Self> {
        if member.is_none() {
            return Ok(Self::default());
        }
        let nodes = records.list_nodes().await?.into_iter().map(|(node, _)| (node.id, node)).collect();
        let alive = records.list_alive().await?.into_iter().map(|alive| (alive.node, alive)).collect();
        Ok(Self { nodes, alive })
    }

    /// The owner of a volume.
    pub(super) fn owner(&self, volume: &VolumeRecord) -> Option<Owner> {
        let id = volume.owner?;
        let name = self.nodes.get(&id).map(|node| node.name.clone());
        Some(Owner { id, name, alive: self.alive.contains_key(&id) })
    }

    /// All nodes, by name.
    pub(super) fn nodes(&self) -> Vec<(&NodeRecord, Option<&AliveRecord>)> {
        let mut all: Vec<_> = self.nodes.values().map(|node| (node, self.alive.get(&node.id))).collect();
        all.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        all
    }
}

/// A volume that another node runs, or nobody.
#[derive(Clone, Debug)]
pub(super) struct Foreign {
    pub(super) volume: VolumeRecord,
    /// Its owner, if it has one that is still a node of the cluster.
    pub(super) node: Option<NodeRecord>,
    /// Whether that is alive, and since when.
    pub(super) alive: Option<AliveRecord>,
}

impl Foreign {
    /// The volume of this name, if this node is not its owner.
    pub(super) async fn find(records: Records<'_>, me: NodeId, name: &Name) -> varve_coord::Result<Option<Self>> {
        match records.find_by_name(name).await {
            Ok((volume, _)) if volume.owner != Some(me) => Self::of(records, volume).await.map(Some),
            Ok(_) | Err(CoordError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The same of its record.
    pub(super) async fn of(records: Records<'_>, volume: VolumeRecord) -> varve_coord::Result<Self> {
        let Some(id) = volume.owner else { return Ok(Self { volume, node: None, alive: None }) };
        let node = match records.load_node(id).await {
            Ok((node, _)) => Some(node),
            Err(CoordError::NotFound(_)) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { volume, node, alive: records.alive(id).await? })
    }

    /// Who its owner is, for people.
    pub(super) fn owner(&self) -> String {
        match (&self.node, self.volume.owner) {
            (Some(node), _) => format!("node {}", node.name),
            (None, Some(id)) => format!("node {id}, which is none of the cluster any more,"),
            (None, None) => "nobody".to_owned(),
        }
    }

    /// What is to be said to who asks this node for it.
    pub(super) fn error(&self) -> EngineError {
        let (name, owner) = (&self.volume.name, self.owner());
        let text = match (&self.node, &self.alive) {
            (Some(node), Some(_)) => {
                let api = node.api.as_ref().map_or(String::new(), |api| format!(" (its API: {api})"));
                format!("volume {name} is run by {owner}{api}: ask there")
            }
            (None, None) if self.volume.owner.is_none() => {
                format!("volume {name} is run by nobody: `varve volume take {name}` on a node has it run there")
            }
            _ => format!("volume {name} is run by {owner}, which is dead: `varve volume take {name}` has it run here"),
        };
        EngineError::new(ErrorKind::Fenced, text)
    }
}

/// Follows what other nodes do, for ever. A node by itself has none.
pub(super) async fn mind(node: &Node) {
    let Some(me) = node.member.as_ref().map(|member| member.id()) else { return std::future::pending().await };
    tokio::join!(mind_volumes(node, me), mind_pools(node));
}

async fn mind_volumes(node: &Node, me: NodeId) {
    loop {
        if let Err(error) = follow_volumes(node, me).await {
            tracing::debug!(%error, "the owners of volumes can not be followed");
        }
        tokio::time::sleep(RETRY_TIME).await;
    }
}

/// Looks at every volume, and at each that changes from then on.
async fn follow_volumes(node: &Node, me: NodeId) -> Result<(), ControlError> {
    // Watched before it is looked, so that nothing falls between.
    let mut watch = node.pools.coord().watch(VolumeRecord::PREFIX, 0).await.map_err(coord_error)?;
    let mut theirs = BTreeSet::new();
    for (record, _) in node.pools.records().list_volumes().await.map_err(coord_error)? {
        look_at(node, me, record, &mut theirs).await?;
    }
    loop {
        match watch.next().await.map_err(coord_error)? {
            Event::Put(entry) => match VolumeRecord::decode(&entry.key, &entry.value) {
                Ok(record) => look_at(node, me, record, &mut theirs).await?,
                Err(error) => tracing::warn!(%error, "a volume's record can not be read"),
            },
            Event::Deleted { .. } => {}
            Event::Behind => return Ok(()),
        }
    }
}

/// Looks at a volume that may have another owner by now.
async fn look_at(
    node: &Node,
    me: NodeId,
    record: VolumeRecord,
    theirs: &mut BTreeSet<VolumeId>,
) -> Result<(), ControlError> {
    if record.owner == Some(me) {
        theirs.remove(&record.id);
        return Ok(());
    }
    if !theirs.insert(record.id) {
        return Ok(());
    }
    node.on_shard(move |local| {
        Box::pin(async move {
            lost(&local, &record).await;
            Ok(())
        })
    })
    .await
}

/// Lets go of a volume that another node runs, if it is open here.
pub(super) async fn lost(local: &Rc<Local>, record: &VolumeRecord) {
    if local.unopened().contains_key(&record.id) {
        // What is told here may be old: it may be this node's again, and just can not be opened.
        match patiently(local.records().load_volume(record.id)).await {
            Ok((now, _)) if local.is_ours(&now) => {}
            _ => local.forget_unopened(record.id),
        }
    }
    let open = local.shard.volumes().into_iter().find(|volume| volume.id() == record.id);
    let Some(volume) = open.filter(|volume| volume.record().epoch < record.epoch) else { return };
    let name = volume.name();
    let owner = record.owner.map_or_else(|| "nobody".to_owned(), |owner| format!("node {owner}"));
    let text = format!("volume {name} was taken over by {owner}, in epoch {}", record.epoch);
    if !local.note_lost(record.id, EngineError::new(ErrorKind::Fenced, text.clone())) {
        return;
    }
    tracing::error!(volume = %name, epoch = %record.epoch, "{text}: this node lets go of it");
    local.connections.end(|user| user.volume == record.id).await;
    local.sessions.release(&name);
    let local = Rc::clone(local);
    drop(tokio::task::spawn_local(async move {
        // Nobody uses it any more. What it asks to be accepted now is refused, by which the engine stops it.
        while volume.stopped().is_none() {
            if let Err(error) = volume.set(volume.record().settings).await {
                tracing::debug!(volume = %name, %error, "what has another owner is stopped");
            }
            if volume.stopped().is_none() {
                tokio::time::sleep(RETRY_TIME).await;
            }
        }
        local.shard.forget(volume.id());
        local.forget_lost(volume.id());
    }));
}

async fn mind_pools(node: &Node) {
    let mut known = BTreeMap::new();
    loop {
        if let Err(error) = follow_pools(node, &mut known).await {
            tracing::debug!(%error, "the pools of the cluster can not be followed");
        }
        tokio::time::sleep(RETRY_TIME).await;
    }
}

async fn follow_pools(node: &Node, known: &mut BTreeMap<Name, Overrides>) -> Result<(), ControlError> {
    let mut watch: Watch = node.pools.coord().watch(PoolRecord::PREFIX, 0).await.map_err(coord_error)?;
    loop {
        take_pools(node, known).await?;
        if watch.next().await.map_err(coord_error)? == Event::Behind {
            return Ok(());
        }
    }
}

/// Makes the pools known here what they are in coordination.
pub(super) async fn take_pools(node: &Node, known: &mut BTreeMap<Name, Overrides>) -> Result<(), ControlError> {
    let records: Vec<_> = node.pools.records().list_pools().await.map_err(coord_error)?;
    let mut gone = node.pools.names();
    for (record, _) in records {
        let name = record.name.clone();
        if !gone.remove(&name) {
            tracing::info!(pool = %name, store = record.store, "another node has made a pool");
            // Why it can not be opened is in the state, and it is tried again.
            if let Ok(opened) = node.pools.open(&record).await {
                pool_control::hand_over(node, &record, opened).await?;
            }
        } else if known.get(&name) != Some(&record.settings) {
            let (pool, settings) = (name.clone(), record.settings);
            node.on_shard(move |local| {
                Box::pin(async move {
                    local.shard.set_pool(&pool, settings);
                    Ok(())
                })
            })
            .await?;
        }
        known.insert(name, record.settings);
    }
    for name in gone {
        // One that is being made here is recorded in a moment.
        if known.remove(&name).is_some() {
            tracing::info!(pool = %name, "another node has removed a pool");
            pool_control::forget(node, name).await?;
        }
    }
    Ok(())
}
