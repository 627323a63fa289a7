// SPDX-License-Identifier: Apache-2.0
//! A node's part in its cluster: how it gets at coordination, and how the others know that it lives.
//!
//! At its start a node of a cluster finds the cluster in etcd, records itself, and from then on keeps a lease alive under which `alive/ID` says that it
//! runs. A lease that is lost is replaced by a new one. Nothing else follows from it: a node whose lease is gone goes on serving, and one that has a lease
//! may serve nothing by that.
//!
//! A node by itself has no membership, and its coordination is in its data directory. Always holds: a data directory is of one kind or the other for ever.

use super::directory::Directory;
use super::identity::{Identity, host_name};
use super::pools::now_ms;
use super::{coord_error, store_error};
use crate::api::{ControlError, Token};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;
use varve_config::{ClusterConfig, EtcdKeys, UpConfig};
use varve_coord::{
    AliveRecord, ClusterRecord, Coord, DEFAULT_PREFIX, EdgeToken, Embedded, LeaseId, NodeRecord, NodeToken, Record,
    Records,
};
use varve_etcd::{Etcd, EtcdConfig, EtcdTls};
use varve_store::StoreUrl;
use varve_types::{ClusterId, ErrorKind, IncarnationId, Name, NodeId};

/// How long a node that stops waits for etcd to hear of it.
const LEAVE_TIME: Duration = Duration::from_secs(2);

type Answer<T> = Result<T, ControlError>;

/// Coordination, and the node's part in the cluster where it has one.
pub(super) struct Joined {
    pub(super) coord: Arc<dyn Coord>,
    pub(super) cluster: ClusterId,
    pub(super) member: Option<Arc<Membership>>,
}

/// Where a node can be reached.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reached {
    pub(super) edge_listen: Option<SocketAddr>,
    pub(super) api_listen: Option<SocketAddr>,
    pub(super) mirror_listen: Option<SocketAddr>,
}

/// See the module.
pub(super) struct Membership {
    coord: Arc<dyn Coord>,
    /// Where etcd is.
    pub(super) etcd: EtcdConfig,
    /// What is recorded of the node.
    pub(super) node: NodeRecord,
    alive: AliveRecord,
    ttl: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The lease under which it is told that the node lives.
    lease: Option<LeaseId>,
    /// Why that can not be told.
    trouble: Option<String>,
}

/// Opens the coordination of a data directory, and makes the node one of its cluster.
pub(super) async fn join(config: &UpConfig, directory: &Directory, reached: Reached) -> Answer<Joined> {
    match &config.cluster {
        None => alone(directory).await,
        Some(cluster) => Membership::join(config, cluster, directory, reached).await,
    }
}

fn random<const N: usize>() -> Answer<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| ControlError::new(ErrorKind::Internal, error.to_string()))?;
    Ok(bytes)
}

fn fresh_cluster() -> Answer<ClusterRecord> {
    Ok(ClusterRecord::new(ClusterId::from_random(random()?), now_ms()))
}

/// A node by itself is a cluster by itself.
async fn alone(directory: &Directory) -> Answer<Joined> {
    if let Some(identity) = Identity::read(directory)? {
        let (data, name, cluster) = (directory.path().display(), identity.name, identity.cluster);
        return Err(ControlError::conflict(format!(
            "the data directory {data} is that of the node {name} of cluster {cluster}: say with --etcd where its coordination is"
        )));
    }
    let coord: Arc<dyn Coord> = Arc::new(Embedded::open(directory.coordination()).map_err(coord_error)?);
    let record = Records::new(&*coord).cluster_or_create(fresh_cluster()?).await.map_err(coord_error)?;
    Ok(Joined { coord, cluster: record.cluster, member: None })
}

/// The form that the client of etcd takes.
fn etcd_config(keys: &EtcdKeys) -> EtcdConfig {
    let EtcdKeys { endpoints, prefix, ca, certificate, key, user, password_file } = keys.clone();
    let is_tls = ca.is_some() || certificate.is_some() || key.is_some();
    let tls = is_tls.then_some(EtcdTls { ca, certificate, key });
    EtcdConfig { prefix, user, password_file, tls, ..EtcdConfig::new(endpoints) }
}

/// The arguments by which a command finds the same cluster.
fn arguments(etcd: &EtcdConfig) -> String {
    let endpoints: Vec<_> = etcd.endpoints.iter().map(|endpoint| format!("--etcd {endpoint}")).collect();
    let prefix = if etcd.prefix == DEFAULT_PREFIX { String::new() } else { format!(" --etcd-prefix {}", etcd.prefix) };
    format!("{}{prefix}", endpoints.join(" "))
}

/// Makes a cluster in etcd.
///
/// # Errors
/// `Conflict` where there is one under the prefix; what etcd says.
pub(super) async fn init(keys: &EtcdKeys) -> Answer<ClusterId> {
    let etcd = &etcd_config(keys);
    let coord = Etcd::open(etcd, tokio::runtime::Handle::current()).await.map_err(coord_error)?;
    let fresh = fresh_cluster()?;
    let record = Records::new(&coord).cluster_or_create(fresh.clone()).await.map_err(coord_error)?;
    if record.cluster != fresh.cluster {
        let (prefix, cluster) = (&etcd.prefix, record.cluster);
        return Err(ControlError::conflict(format!("etcd has the cluster {cluster} under {prefix} already")));
    }
    Ok(record.cluster)
}

impl Membership {
    async fn join(
        config: &UpConfig,
        cluster: &ClusterConfig,
        directory: &Directory,
        reached: Reached,
    ) -> Answer<Joined> {
        if directory.coordination().exists() {
            return Err(ControlError::conflict(format!(
                "the data directory {} is that of a node by itself: a node of a cluster needs another one",
                directory.path().display()
            )));
        }
        let etcd = &etcd_config(&cluster.etcd);
        let coord: Arc<dyn Coord> =
            Arc::new(Etcd::open(etcd, tokio::runtime::Handle::current()).await.map_err(coord_error)?);
        let records = Records::new(&*coord);
        let Some(record) = records.cluster().await.map_err(coord_error)? else {
            let (prefix, arguments) = (&etcd.prefix, arguments(etcd));
            let message = format!("etcd has no cluster under {prefix}: `varve cluster init {arguments}` makes one");
            return Err(ControlError::new(ErrorKind::NotFound, message));
        };
        let identity = Identity::open(directory, record.cluster, config.node_name.as_ref())?;
        let listened = reached.edge_listen.map(|address| address.to_string());
        let edge = if cluster.edge_advertise.is_empty() {
            listened.into_iter().collect()
        } else {
            cluster.edge_advertise.clone()
        };
        let node = NodeRecord {
            version: NodeRecord::VERSION,
            id: identity.id,
            name: identity.name,
            edge,
            api: reached.api_listen.map(|address| address.to_string()),
            mirror: reached
                .mirror_listen
                .map(|address| cluster.mirror_advertise.clone().unwrap_or_else(|| address.to_string())),
            rack: cluster.rack.clone(),
            site: cluster.site.clone(),
            joined_ms: now_ms(),
        };
        let node = records.join_node(&node).await.map_err(|error| {
            let mut error = coord_error(error);
            if error.kind == ErrorKind::Conflict {
                error.message.push_str("; --node-name gives this one another name");
            }
            error
        })?;
        let alive = AliveRecord {
            version: AliveRecord::VERSION,
            node: node.id,
            incarnation: IncarnationId::from_random(random()?),
            since_ms: now_ms(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
        };
        tracing::info!(node = %node.name, id = %node.id, cluster = %record.cluster, "this is a node of a cluster");
        let (ttl, state) = (Duration::from_millis(cluster.alive_ttl_ms), Mutex::default());
        let member = Self { coord: Arc::clone(&coord), etcd: etcd.clone(), node, alive, ttl, state };
        Ok(Joined { coord, cluster: record.cluster, member: Some(Arc::new(member)) })
    }

    /// The node.
    pub(super) const fn id(&self) -> NodeId {
        self.node.id
    }

    /// What it is called.
    pub(super) const fn name(&self) -> &Name {
        &self.node.name
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the cluster can not be told that this node lives, if it can not.
    pub(super) fn trouble(&self) -> Option<String> {
        self.state().trouble.clone()
    }

    /// The token of the cluster's edges; that of the file becomes it where there is none, else the file gets it.
    pub(super) async fn edge_token(&self, file: PathBuf) -> Answer<Token> {
        let own = Token::open(&file)?;
        let fresh = EdgeToken::new(own.text().to_owned());
        let kept = Records::new(&*self.coord).token_or_create(fresh).await.map_err(coord_error)?;
        if own.is(&kept.token) { Ok(own) } else { Token::replace(&file, &kept.token) }
    }

    /// What nodes of the cluster prove themselves by to each other.
    pub(super) async fn node_token(&self) -> Answer<Token> {
        let fresh = NodeToken::new(Token::fresh().map_err(|error| super::directory::io_error("a token", &error))?);
        let kept = Records::new(&*self.coord).token_or_create(fresh).await.map_err(coord_error)?;
        Ok(Token::of(&kept.token))
    }

    /// The process that this is.
    pub(super) const fn incarnation(&self) -> IncarnationId {
        self.alive.incarnation
    }

    /// Begins to tell the cluster that this node lives; that ends with what this gives.
    pub(super) fn begin(self: &Arc<Self>) -> Telling {
        let this = Arc::clone(self);
        Telling(tokio::spawn(async move { this.tell().await }))
    }

    /// Tells that the node lives, for ever.
    async fn tell(&self) {
        let step = self.ttl / 3;
        loop {
            match self.within(self.announce()).await {
                Ok(lease) => {
                    self.note(None);
                    self.renew(lease, step).await;
                }
                Err(error) => self.note(Some(error.to_string())),
            }
            tokio::time::sleep(step).await;
        }
    }

    /// Bounds a request: what comes later is of no use.
    async fn within<T>(&self, request: impl Future<Output = varve_coord::Result<T>>) -> varve_coord::Result<T> {
        let late = |_| {
            let reason = format!("no answer within {:?}", self.ttl);
            Err(varve_coord::CoordError::Unavailable { reason, source: None })
        };
        tokio::time::timeout(self.ttl, request).await.unwrap_or_else(late)
    }

    async fn announce(&self) -> varve_coord::Result<LeaseId> {
        let lease = self.coord.lease(self.ttl).await?;
        Records::new(&*self.coord).announce(&self.alive, lease).await?;
        self.state().lease = Some(lease);
        Ok(lease)
    }

    /// Keeps a lease alive until it is over.
    async fn renew(&self, lease: LeaseId, step: Duration) {
        loop {
            tokio::time::sleep(step).await;
            match self.within(self.coord.keep_alive(lease)).await {
                Ok(()) => self.note(None),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    tracing::warn!("the cluster took this node for dead; it is told that it lives");
                    return;
                }
                Err(error) => self.note(Some(error.to_string())),
            }
        }
    }

    /// Notes whether it can be told; a change is logged.
    fn note(&self, trouble: Option<String>) {
        let mut state = self.state();
        match (&state.trouble, &trouble) {
            (None, Some(error)) => {
                tracing::warn!(%error, "etcd does not answer: this node serves on, and the cluster may take it for dead");
            }
            (Some(_), None) => tracing::info!("etcd answers again"),
            _ => {}
        }
        state.trouble = trouble;
    }

    /// Tells the cluster that the node stops.
    pub(super) async fn leave(&self, telling: Telling) {
        drop(telling);
        let lease = self.state().lease.take();
        let Some(lease) = lease else { return };
        match tokio::time::timeout(LEAVE_TIME, self.coord.revoke(lease)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the cluster could not be told that this node has stopped"),
            Err(_) => tracing::warn!("the cluster could not be told that this node has stopped: etcd does not answer"),
        }
    }
}

/// The task that tells that a node lives; ends when this is dropped.
pub(super) struct Telling(JoinHandle<()>);

impl Drop for Telling {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the node is called.
pub(super) fn name_of(config: &UpConfig, member: Option<&Membership>) -> String {
    let given = || config.node_name.as_ref().map(Name::to_string);
    member.map(|member| member.name().to_string()).or_else(given).unwrap_or_else(host_name)
}

/// The store that the pool `default` of a cluster is to have, which all nodes reach.
///
/// # Errors
/// `Invalid` where none is given.
pub(super) fn shared_store(given: Option<&StoreUrl>, own: &StoreUrl) -> Answer<StoreUrl> {
    match given {
        Some(given) if given != own => Ok(given.clone()),
        _ => Err(ControlError::invalid(
            "the pool default of a cluster needs a store that all of its nodes reach, and not one in a node's data directory: say --store",
        )),
    }
}

/// The address of a store, as it is written.
pub(super) fn parse_store(text: &str) -> Answer<StoreUrl> {
    StoreUrl::parse(text).map_err(store_error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use varve_coord::Memory;

    const TTL: Duration = Duration::from_secs(3);

    fn member(coord: &Arc<Memory>) -> Arc<Membership> {
        let id = NodeId::from_bytes([1; 16]);
        let node = NodeRecord {
            version: NodeRecord::VERSION,
            id,
            name: "n1".parse().unwrap(),
            edge: Vec::new(),
            api: None,
            mirror: None,
            rack: None,
            site: None,
            joined_ms: 1,
        };
        let alive = AliveRecord {
            version: AliveRecord::VERSION,
            node: id,
            incarnation: IncarnationId::from_bytes([7; 16]),
            since_ms: 2,
            program: "0".to_owned(),
        };
        let coord = Arc::clone(coord) as Arc<dyn Coord>;
        let etcd = EtcdConfig::new(["http://127.0.0.1:1"]);
        Arc::new(Membership { coord, etcd, node, alive, ttl: TTL, state: Mutex::default() })
    }

    async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
        for _ in 0..100 {
            if holds().await {
                return;
            }
            tokio::time::sleep(TTL / 10).await;
        }
        panic!("{what}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_tells_that_it_lives_until_it_leaves() {
        let coord = Arc::new(Memory::new());
        let member = member(&coord);
        let records = Records::new(&*coord);
        let lives = async || records.alive(member.id()).await.is_ok_and(|alive| alive.is_some());
        let telling = member.begin();
        until("it lives", lives).await;
        let first = member.state().lease;
        // Its lease is over, as it is behind a stop of the process.
        coord.advance_to(Duration::from_secs(100)).unwrap();
        assert!(!lives().await);
        until("it lives again", lives).await;
        assert_ne!(member.state().lease, first);
        assert_eq!(records.list_alive().await.unwrap()[0].incarnation, member.incarnation(), "it is the same process");
        coord.set_away(true);
        until("it is told", async || member.trouble().is_some()).await;
        coord.set_away(false);
        until("all is well", async || member.trouble().is_none()).await;
        member.leave(telling).await;
        assert!(!lives().await, "at once");
    }

    #[test]
    fn the_store_of_a_cluster_is_not_in_a_data_directory() {
        let [own, shared] = ["file:///data/store", "file:///srv/store"].map(|url| parse_store(url).unwrap());
        assert_eq!(shared_store(Some(&shared), &own).unwrap(), shared);
        for given in [None, Some(&own)] {
            let error = shared_store(given, &own).unwrap_err();
            assert!(error.kind == ErrorKind::Invalid && error.message.contains("--store"), "{error}");
        }
    }

    #[test]
    fn a_command_is_told_as_it_is_typed() {
        let mut etcd = EtcdConfig::new(["http://a:1", "http://b:2"]);
        assert_eq!(arguments(&etcd), "--etcd http://a:1 --etcd http://b:2");
        etcd.prefix = "/v/".to_owned();
        assert_eq!(arguments(&etcd), "--etcd http://a:1 --etcd http://b:2 --etcd-prefix /v/");
    }
}
