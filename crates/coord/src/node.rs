// SPDX-License-Identifier: Apache-2.0
//! The facts of nodes: who belongs to the cluster, and who of them lives.
//!
//! ```text
//! node/UUID       NodeRecord       a node of the cluster, and where it is reached; it stays while the node is away
//! node-name/NAME  NodeName         claims a name for a node
//! alive/UUID      AliveRecord      under a lease: a process runs as this node. Where it is gone, the node is dead, or cut off from coordination
//! edge-token      EdgeToken        what edges prove themselves by to every node
//! node-token      NodeToken        what nodes prove themselves by to each other
//! ```
//!
//! A node that is not alive may still serve: the lease only says that somebody should look. What a node may do follows from the records of its
//! volumes alone.
//!
//! Always holds: a node's record and its claim are changed in one transaction; a node is removed only while it does not live and owns no volume.

use crate::{Change, Check, CoordError, LeaseId, Outcome, Record, Records, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use varve_types::{IncarnationId, Name, NodeId};

/// Most addresses of a node that edges use.
pub const MAX_ADDRESSES: usize = 16;
/// Longest text of a node's record, in bytes.
const MAX_TEXT: usize = 256;
/// How often a change is tried that others keep forestalling.
const MAX_TRIES: usize = 32;

const NODE_PREFIX: &str = "node/";
const NODE_NAME_PREFIX: &str = "node-name/";
const ALIVE_PREFIX: &str = "alive/";

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// See [`Record::VERSION`].
    pub version: u32,
    /// Its id, for ever.
    pub id: NodeId,
    /// Its name, which no other node has.
    pub name: Name,
    /// Where edges connect, `HOST:PORT` each, in the order in which they are to be tried.
    pub edge: Vec<String>,
    /// Where its API is, if it has a port.
    pub api: Option<String>,
    /// Where other nodes send it copies of their volumes' tails, if it takes any.
    pub mirror: Option<String>,
    /// The rack that it is in.
    pub rack: Option<String>,
    /// The site that it is at.
    pub site: Option<String>,
    /// When it joined: wall clock, milliseconds since 1970.
    pub joined_ms: u64,
}

/// A claim to the name of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeName {
    /// See [`Record::VERSION`].
    pub version: u32,
    /// The name.
    pub name: Name,
    /// The node that has it.
    pub node: NodeId,
}

/// A process that runs as a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AliveRecord {
    /// See [`Record::VERSION`].
    pub version: u32,
    /// The node.
    pub node: NodeId,
    /// The process.
    pub incarnation: IncarnationId,
    /// Since when it runs: wall clock, milliseconds since 1970.
    pub since_ms: u64,
    /// The version of the program.
    pub program: String,
}

// A secret that all nodes know. It does not print itself.
macro_rules! token {
    ($(#[$doc:meta])* $name:ident, $what:literal, $key:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
        pub struct $name {
            /// See [`Record::VERSION`].
            pub version: u32,
            /// The secret.
            pub token: String,
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }

        impl $name {
            /// One of this build's version.
            #[must_use]
            pub const fn new(token: String) -> Self {
                Self { version: Self::VERSION, token }
            }
        }

        impl Record for $name {
            const WHAT: &'static str = $what;
            fn key(&self) -> String {
                $key.to_owned()
            }
            fn version(&self) -> u32 {
                self.version
            }
        }
    };
}

token!(
    /// What edges prove themselves by, the same on all nodes.
    EdgeToken, "token of edges", "edge-token"
);
token!(
    /// What nodes prove themselves by to each other.
    NodeToken, "token of nodes", "node-token"
);

impl NodeRecord {
    /// The key of the node.
    #[must_use]
    pub fn key_of(id: NodeId) -> String {
        format!("{NODE_PREFIX}{id}")
    }
}

impl NodeName {
    /// The key that claims the name.
    #[must_use]
    pub fn key_of(name: &Name) -> String {
        format!("{NODE_NAME_PREFIX}{name}")
    }
}

impl AliveRecord {
    /// The key of the node.
    #[must_use]
    pub fn key_of(id: NodeId) -> String {
        format!("{ALIVE_PREFIX}{id}")
    }
}

impl Record for NodeRecord {
    const WHAT: &'static str = "node record";
    fn key(&self) -> String {
        Self::key_of(self.id)
    }
    fn version(&self) -> u32 {
        self.version
    }
    fn check(&self) -> std::result::Result<(), String> {
        if self.edge.len() > MAX_ADDRESSES {
            return Err(format!("it has {} addresses for edges, more than {MAX_ADDRESSES}", self.edge.len()));
        }
        let others = [&self.api, &self.mirror, &self.rack, &self.site];
        let mut texts = self.edge.iter().chain(others.into_iter().flatten());
        match texts.find(|text| text.is_empty() || text.len() > MAX_TEXT) {
            Some(text) => Err(format!("a text of it has {} bytes, not 1 to {MAX_TEXT}", text.len())),
            None => Ok(()),
        }
    }
}

impl Record for NodeName {
    const WHAT: &'static str = "node name record";
    fn key(&self) -> String {
        Self::key_of(&self.name)
    }
    fn version(&self) -> u32 {
        self.version
    }
}

impl Record for AliveRecord {
    const WHAT: &'static str = "record of a live node";
    fn key(&self) -> String {
        Self::key_of(self.node)
    }
    fn version(&self) -> u32 {
        self.version
    }
}

fn claim(node: &NodeRecord) -> NodeName {
    NodeName { version: NodeName::VERSION, name: node.name.clone(), node: node.id }
}

impl Records<'_> {
    /// Makes a node one of the cluster, or puts its record in the place of an earlier one, whose `joined_ms` it keeps; gives what is recorded.
    ///
    /// # Errors
    /// `Conflict` where another node has the name.
    pub async fn join_node(&self, node: &NodeRecord) -> Result<NodeRecord> {
        for _ in 0..MAX_TRIES {
            let before: Option<(NodeRecord, u64)> = self.load(&node.key()).await?;
            let mut new = node.clone();
            let (mut checks, mut changes) = (Vec::new(), Vec::new());
            let old_name = before.as_ref().map(|(old, _)| old.name.clone());
            match &before {
                Some((old, revision)) => {
                    new.joined_ms = old.joined_ms;
                    checks.push(Check::Revision(old.key(), *revision));
                }
                None => checks.push(Check::Absent(node.key())),
            }
            if old_name.as_ref() != Some(&new.name) {
                let claim = claim(&new);
                checks.push(Check::Absent(claim.key()));
                changes.push(Change::put(claim.key(), claim.encode()?));
                changes.extend(old_name.map(|name| Change::Delete(NodeName::key_of(&name))));
            }
            changes.push(Change::put(new.key(), new.encode()?));
            match self.coord.transact(checks, changes).await? {
                Outcome::Applied { .. } => return Ok(new),
                Outcome::Refused => {}
            }
            let taken: Option<(NodeName, u64)> = self.load(&NodeName::key_of(&new.name)).await?;
            if let Some((taken, _)) = taken.filter(|(taken, _)| taken.node != node.id) {
                return Err(CoordError::Exists(format!("the node {} ({})", taken.name, taken.node)));
            }
        }
        Err(CoordError::Busy(format!("the record of the node {} is changed all the time", node.id)))
    }

    /// A node and the revision of its record.
    ///
    /// # Errors
    /// `NotFound` where there is none with this id.
    pub async fn load_node(&self, id: NodeId) -> Result<(NodeRecord, u64)> {
        self.load(&NodeRecord::key_of(id)).await?.ok_or_else(|| CoordError::NotFound(format!("the node {id}")))
    }

    /// All nodes, sorted by id.
    ///
    /// # Errors
    /// What coordination says.
    pub async fn list_nodes(&self) -> Result<Vec<(NodeRecord, u64)>> {
        self.list(NODE_PREFIX).await
    }

    /// Removes a node that does not live and owns nothing. Its record was last changed at `revision`.
    ///
    /// # Errors
    /// `Conflict` while it lives or owns volumes, deleted ones too, or where its record was changed; `NotFound` where it is gone.
    pub async fn remove_node(&self, node: &NodeRecord, revision: u64) -> Result<()> {
        let what = || format!("the node {}", node.name);
        if self.alive(node.id).await?.is_some() {
            return Err(CoordError::InUse { what: what(), reason: "it is alive: stop it first".to_owned() });
        }
        let owned = self.list_volumes().await?.into_iter().filter(|(volume, _)| volume.owner == Some(node.id));
        let mut names: Vec<_> = owned.map(|(volume, _)| volume.name.to_string()).collect();
        if !names.is_empty() {
            let count = names.len();
            names.sort();
            names.truncate(3);
            let more = if count > 3 { ", …" } else { "" };
            let reason =
                format!("it is the owner of {count} volumes ({}{more}), deleted ones counted", names.join(", "));
            return Err(CoordError::InUse { what: what(), reason });
        }
        let checks = vec![Check::Revision(node.key(), revision), Check::Absent(AliveRecord::key_of(node.id))];
        let changes = vec![Change::Delete(node.key()), Change::Delete(NodeName::key_of(&node.name))];
        match self.coord.transact(checks, changes).await? {
            Outcome::Applied { .. } => Ok(()),
            Outcome::Refused => match self.load_node(node.id).await {
                Ok(_) => Err(CoordError::Changed(what())),
                Err(error) => Err(error),
            },
        }
    }

    /// Tells that a process runs as a node, for as long as the lease lives.
    ///
    /// # Errors
    /// `NotFound` where the lease is over.
    pub async fn announce(&self, alive: &AliveRecord, lease: LeaseId) -> Result<()> {
        let put = Change::Put { key: alive.key(), value: alive.encode()?, lease: Some(lease) };
        self.coord.transact(Vec::new(), vec![put]).await.map(drop)
    }

    /// The process that runs as a node, if one does.
    ///
    /// # Errors
    /// What coordination says.
    pub async fn alive(&self, id: NodeId) -> Result<Option<AliveRecord>> {
        Ok(self.load(&AliveRecord::key_of(id)).await?.map(|(record, _)| record))
    }

    /// All processes that run as nodes, sorted by the id of the node.
    ///
    /// # Errors
    /// What coordination says.
    pub async fn list_alive(&self) -> Result<Vec<AliveRecord>> {
        Ok(self.list(ALIVE_PREFIX).await?.into_iter().map(|(record, _)| record).collect())
    }

    /// A token of the cluster; `fresh` becomes it where there is none.
    ///
    /// # Errors
    /// What coordination says.
    pub async fn token_or_create<T: Record>(&self, fresh: T) -> Result<T> {
        let key = fresh.key();
        if let Some((token, _)) = self.load::<T>(&key).await? {
            return Ok(token);
        }
        let changes = vec![Change::put(key.as_str(), fresh.encode()?)];
        match self.coord.transact(vec![Check::Absent(key.clone())], changes).await? {
            Outcome::Applied { .. } => Ok(fresh),
            Outcome::Refused => {
                let token = self.load(&key).await?.map(|(token, _)| token);
                token.ok_or_else(|| CoordError::Changed(T::WHAT.to_owned()))
            }
        }
    }
}
