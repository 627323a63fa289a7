// SPDX-License-Identifier: Apache-2.0
//! The cluster and its nodes, as the API shows them.
//!
//! Whether a node is alive is what coordination knows: a process of it has been heard of within its `alive-ttl`. One that is cut off from coordination counts
//! as dead, and may still serve.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use varve_types::{ClusterId, Name, NodeId};

/// The node that runs a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Owner {
    /// Its id.
    #[schema(value_type = String)]
    pub id: NodeId,
    /// Its name; `null` when it is no node of the cluster any more.
    #[schema(value_type = Option<String>)]
    pub name: Option<Name>,
    /// Whether it is alive.
    pub alive: bool,
}

/// A node of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterNode {
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
    /// Its id.
    #[schema(value_type = String)]
    pub id: NodeId,
    /// Whether it is the node that answers.
    pub this: bool,
    /// Whether it is alive.
    pub alive: bool,
    /// Since when it is.
    pub alive_since_ms: Option<u64>,
    /// The version of its program.
    pub version: Option<String>,
    /// Where edges reach it.
    pub edge: Vec<String>,
    /// Its API, if it has a port.
    pub api: Option<String>,
    /// Where it takes copies of other nodes' tails.
    pub mirror: Option<String>,
    /// Its rack.
    pub rack: Option<String>,
    /// Its site.
    pub site: Option<String>,
    /// When it joined.
    pub joined_ms: u64,
    /// Volumes that it is the owner of; deleted ones are not counted.
    pub volumes: u64,
}

/// What keeps a cluster's facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CoordinationKind {
    /// A file in the data directory: the node is a cluster by itself.
    Embedded,
    /// etcd.
    Etcd,
}

/// Coordination, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Coordination {
    /// What it is.
    pub kind: CoordinationKind,
    /// The members of etcd.
    pub endpoints: Vec<String>,
    /// What the cluster's keys begin with.
    pub prefix: Option<String>,
    /// Whether it answers.
    pub reachable: bool,
    /// What it said when it did not.
    pub message: Option<String>,
}

/// Volumes of a cluster, counted by who runs them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeCounts {
    /// Their owner is alive.
    pub owned: u64,
    /// Their owner is not alive: they are served again when it is back, or when another node takes them.
    pub orphaned: u64,
    /// Nobody is their owner: `varve volume take` makes a node that.
    pub unowned: u64,
    /// Deleted ones that can be brought back.
    pub deleted: u64,
}

/// A cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cluster {
    /// Its id.
    #[schema(value_type = String)]
    pub id: ClusterId,
    /// Where its facts are.
    pub coordination: Coordination,
    /// Its nodes, by name; none where coordination does not answer, or the node is by itself.
    pub nodes: Vec<ClusterNode>,
    /// Its volumes; zeroes where coordination does not answer.
    pub volumes: VolumeCounts,
}

/// Makes the node that is asked the owner of a volume.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TakeVolume {
    /// Whether it is to be done though something may be lost; else it is only told what.
    #[serde(default)]
    pub force: bool,
}
