// SPDX-License-Identifier: Apache-2.0
//! The operations on the cluster and its nodes: list, show, remove.
//!
//! What is told is what coordination knows at that moment. A node whose coordination does not answer says that, and no more; it is asked for a short
//! while only, since a person waits.
//!
//! Always holds: a node that is removed owns nothing any more; what it had deleted goes to the node that removes it, in a new epoch.

use super::control::Node;
use super::coord_error;
use super::membership::Membership;
use super::ownership::Roster;
use crate::api::ControlError;
use crate::api::model::{Cluster, ClusterNode, Coordination, CoordinationKind, VolumeCounts};
use std::time::Duration;
use varve_coord::{AliveRecord, CoordError, NodeRecord, VolumeRecord};
use varve_types::{Name, NodeId};

/// How long coordination is waited for where an answer without it is of use, too.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

type Answer<T> = Result<T, ControlError>;

/// Waits for coordination, and not for long.
pub(super) async fn patiently<T>(question: impl Future<Output = varve_coord::Result<T>>) -> varve_coord::Result<T> {
    let late = |_| {
        let reason = format!("no answer within {} s", PATIENCE.as_secs());
        Err(CoordError::Unavailable { reason, source: None })
    };
    tokio::time::timeout(PATIENCE, question).await.unwrap_or_else(late)
}

fn membership(node: &Node) -> Answer<&Membership> {
    node.member.as_deref().ok_or_else(|| ControlError::conflict("this node is a cluster by itself: it has no etcd"))
}

fn describe(
    member: &Membership,
    node: &NodeRecord,
    alive: Option<&AliveRecord>,
    volumes: &[(VolumeRecord, u64)],
) -> ClusterNode {
    let owned = volumes.iter().filter(|(volume, _)| volume.owner == Some(node.id) && volume.deleted.is_none());
    ClusterNode {
        name: node.name.clone(),
        id: node.id,
        this: node.id == member.id(),
        alive: alive.is_some(),
        alive_since_ms: alive.map(|alive| alive.since_ms),
        version: alive.map(|alive| alive.program.clone()),
        edge: node.edge.clone(),
        api: node.api.clone(),
        mirror: node.mirror.clone(),
        rack: node.rack.clone(),
        site: node.site.clone(),
        joined_ms: node.joined_ms,
        volumes: owned.count() as u64,
    }
}

async fn look(node: &Node) -> varve_coord::Result<(Roster, Vec<(VolumeRecord, u64)>)> {
    let records = node.pools.records();
    Ok((Roster::load(records, node.member.as_deref()).await?, records.list_volumes().await?))
}

fn all(member: &Membership, roster: &Roster, volumes: &[(VolumeRecord, u64)]) -> Vec<ClusterNode> {
    roster.nodes().into_iter().map(|(node, alive)| describe(member, node, alive, volumes)).collect()
}

pub(super) async fn nodes(node: &Node) -> Answer<Vec<ClusterNode>> {
    let Some(member) = node.member.as_deref() else { return Ok(Vec::new()) };
    let (roster, volumes) = look(node).await.map_err(coord_error)?;
    Ok(all(member, &roster, &volumes))
}

/// Whether a node is meant: by its name, or by its id.
fn is_meant(node: &ClusterNode, asked: &Name) -> bool {
    node.name == *asked || node.id.to_string() == asked.as_str()
}

pub(super) async fn node(node: &Node, asked: Name) -> Answer<ClusterNode> {
    membership(node)?;
    let found = nodes(node).await?.into_iter().find(|node| is_meant(node, &asked));
    found.ok_or_else(|| ControlError::not_found("node", asked))
}

/// Makes a node the owner of what a dead one has deleted, so that it can be brought back, and goes when its time is over. The epoch is raised: whatever the
/// dead one may still be at comes to nothing.
async fn adopt_deleted(node: &Node, me: NodeId, dead: NodeId) -> Answer<()> {
    let records = node.pools.records();
    for (volume, _) in records.list_volumes().await.map_err(coord_error)? {
        if volume.owner != Some(dead) || volume.deleted.is_none() {
            continue;
        }
        let adopt = |record: &mut VolumeRecord| -> varve_coord::Result<()> {
            if record.owner == Some(dead) && record.deleted.is_some() {
                (record.owner, record.epoch) = (Some(me), record.epoch.next());
            }
            Ok(())
        };
        records.modify_volume(volume.id, adopt).await.map_err(coord_error)?;
    }
    Ok(())
}

pub(super) async fn remove(node: &Node, asked: Name) -> Answer<ClusterNode> {
    let member = membership(node)?;
    let shown = self::node(node, asked).await?;
    if shown.id == member.id() {
        return Err(ControlError::conflict(format!(
            "the node {} is this one: ask another one to remove it",
            shown.name
        )));
    }
    let records = node.pools.records();
    let (record, revision) = records.load_node(shown.id).await.map_err(coord_error)?;
    if !shown.alive && shown.volumes == 0 {
        adopt_deleted(node, member.id(), shown.id).await?;
    }
    records.remove_node(&record, revision).await.map_err(|error| {
        let mut error = coord_error(error);
        if shown.volumes > 0 {
            error.message.push_str("; `varve volume take` makes another node the owner of a volume");
        }
        error
    })?;
    tracing::info!(node = %shown.name, id = %shown.id, "a node was removed from the cluster");
    Ok(shown)
}

fn count(roster: &Roster, volumes: &[(VolumeRecord, u64)]) -> VolumeCounts {
    let mut counts = VolumeCounts::default();
    for (volume, _) in volumes {
        match roster.owner(volume) {
            _ if volume.deleted.is_some_and(|deleted| deleted.is_for_good()) => {}
            _ if volume.deleted.is_some() => counts.deleted += 1,
            Some(owner) if owner.alive => counts.owned += 1,
            Some(_) => counts.orphaned += 1,
            None => counts.unowned += 1,
        }
    }
    counts
}

pub(super) async fn status(node: &Node) -> Answer<Cluster> {
    let looked = patiently(look(node)).await;
    let message = looked.as_ref().err().map(ToString::to_string);
    let (roster, volumes) = looked.unwrap_or_default();
    let etcd = node.member.as_ref().map(|member| &member.etcd);
    let coordination = Coordination {
        kind: if etcd.is_some() { CoordinationKind::Etcd } else { CoordinationKind::Embedded },
        endpoints: etcd.map(|etcd| etcd.endpoints.clone()).unwrap_or_default(),
        prefix: etcd.map(|etcd| etcd.prefix.clone()),
        reachable: message.is_none(),
        message,
    };
    let mut counts = count(&roster, &volumes);
    let nodes = match node.member.as_deref() {
        Some(member) => all(member, &roster, &volumes),
        None => {
            // Whatever there is, is this node's.
            (counts.owned, counts.unowned) = (counts.unowned, 0);
            Vec::new()
        }
    };
    Ok(Cluster { id: node.pools.cluster(), coordination, nodes, volumes: counts })
}
