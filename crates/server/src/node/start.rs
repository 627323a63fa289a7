// SPDX-License-Identifier: Apache-2.0
//! The start and the stop of a node.
//!
//! The start, in this order: the lock of the data directory; the sockets, so that an address in use is told at once
//! (who connects from here on waits); coordination and the cluster's id; the pool `default`; the shard on its
//! journals; the other pools; the volumes; and only then anybody is answered.
//!
//! The stop: no new connections; those that there are end; the shard makes its journal durable; coordination
//! closes; the sockets go; at last the lock. Whoever is cut off on the way loses nothing that was acknowledged: a
//! start after a crash is a start like any other.

use super::control::{Node, Place};
use super::default_pool;
use super::directory::Directory;
use super::exports::ShardExports;
use super::journal::JournalPlan;
use super::local::Local;
use super::membership::{self, Joined, Membership, Reached, Telling};
use super::mirroring::{self, Mirroring};
use super::pools::{Opened, Pools, now_ms};
use super::thread::{self, ShardHandle, ShardThread};
use super::volume_control::default_pool as default_pool_name;
use super::{Beat, Hooks, Serving, coord_error, ownership, pool_control};
use crate::api::{ApiConfig, ApiServer, ControlError, Token};
use crate::edge::EdgeGreeter;
use crate::mirror::MirrorGreeter;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;
use varve_config::{CacheSpec, ClusterConfig, UpConfig, VolumeSpec};
use varve_coord::{Coord, CoordError, PoolRecord};
use varve_engine::{EngineError, Limits, MirrorNodes, PoolStore};
use varve_env::real::{CacheFile, ComputePool, PoolOptions, RealEnv};
use varve_env::{Env, LocalFuture, ObjectStore, SendFuture};
use varve_format::region::RegionHead;
use varve_nbd::{HandshakeLimits, NbdGreeter};
use varve_serve::{Accepted, Endpoint, Listener, ServerTls, Slots, TlsFiles};
use varve_types::{ErrorKind, Overrides, format_size};

/// How often what could not be opened is tried again.
const RETRY_TIME: Duration = Duration::from_secs(5);
/// How often the stores are looked at.
const LOOK_TIME: Duration = Duration::from_secs(10);
/// Between two looks which stores answer nothing.
const SILENCE_TIME: Duration = Duration::from_secs(1);
/// Jobs that wait for a thread of the pool.
const JOBS: usize = 256;

type Answer<T> = Result<T, ControlError>;

/// The files of the sockets, removed when the node ends in whatever way that runs destructors.
struct SocketFiles([PathBuf; 3]);

impl Drop for SocketFiles {
    fn drop(&mut self) {
        for file in &self.0 {
            match std::fs::remove_file(file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(%error, file = %file.display(), "a socket could not be removed");
                }
                _ => {}
            }
        }
    }
}

/// The sockets, open and not yet served.
struct Sockets {
    nbd: Vec<Listener>,
    nbd_listen: Option<SocketAddr>,
    edge: Vec<Listener>,
    edge_listen: Option<SocketAddr>,
    edge_token: Option<Token>,
    mirror: Option<Listener>,
    mirror_token: Option<Token>,
    api: ApiServer,
}

fn listen_error(error: varve_serve::ServeError) -> ControlError {
    ControlError::new(error.kind(), error.to_string())
}

/// Listens at a socket file and, where that is wanted, on a port; gives the address of that.
async fn listen(file: PathBuf, port: Option<SocketAddr>) -> Answer<(Vec<Listener>, Option<SocketAddr>)> {
    let mut listeners = vec![Listener::open(&Endpoint::Unix(file)).await.map_err(listen_error)?];
    if let Some(address) = port {
        listeners.push(Listener::open(&Endpoint::Tcp(address)).await.map_err(listen_error)?);
    }
    let address = listeners.iter().find_map(tcp_address);
    Ok((listeners, address))
}

fn open_tls(certificate: &Path, key: &Path, client_ca: Option<&Path>) -> Answer<Arc<ServerTls>> {
    let files =
        TlsFiles { certificate: certificate.to_owned(), key: key.to_owned(), client_ca: client_ca.map(Path::to_owned) };
    ServerTls::open(files).map(Arc::new).map_err(listen_error)
}

/// The address of a listener that has one.
fn tcp_address(listener: &Listener) -> Option<SocketAddr> {
    match listener.endpoint() {
        Endpoint::Tcp(address) => Some(*address),
        Endpoint::Unix(_) => None,
    }
}

async fn bind(config: &UpConfig, directory: &Directory) -> Answer<Sockets> {
    let (nbd, nbd_listen) = listen(directory.nbd_socket(), config.nbd_listen).await?;
    let (edge, edge_listen) = listen(directory.edge_socket(), config.edge_listen).await?;
    let edge_tls = config.edge_tls.as_ref();
    let edge_tls = edge_tls.map(|tls| open_tls(&tls.certificate, &tls.key, tls.client_ca.as_deref())).transpose()?;
    let edge = edge.into_iter().map(|listener| listener.under(edge_tls.clone())).collect();
    let edge_token = edge_listen.map(|_| Token::open(&directory.edge_token())).transpose()?;
    let token_file = directory.path().join("token");
    let api = ApiConfig { unix: directory.api_socket(), tcp: config.api_listen, token_file };
    let api = ApiServer::bind(&api).await.map_err(|mut error| {
        if error.kind == ErrorKind::Conflict {
            error.message.push_str("; --api-listen chooses another address, or `none`");
        }
        error
    })?;
    let mirror = match &config.cluster {
        Some(ClusterConfig { mirror_listen: Some(address), tls, .. }) => {
            let tls = tls.as_ref().map(|tls| open_tls(&tls.certificate, &tls.key, Some(&tls.ca))).transpose()?;
            Some(Listener::open(&Endpoint::Tcp(*address)).await.map_err(listen_error)?.under(tls))
        }
        _ => None,
    };
    Ok(Sockets { nbd, nbd_listen, edge, edge_listen, edge_token, mirror, mirror_token: None, api })
}

/// Starts the thread of the shard, on its journals.
async fn start_shard(
    journals: JournalPlan,
    coord: &Arc<dyn Coord>,
    pools: &Arc<Pools>,
    limits: Limits,
    caches: Vec<CacheSpec>,
    nbd_socket: PathBuf,
    part: Option<(Arc<Membership>, mirroring::Plan)>,
) -> Answer<(ShardHandle, ShardThread)> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(16);
    let options = PoolOptions { name: "varve-job".to_owned(), threads, queue: JOBS, nice: true };
    let jobs = ComputePool::new(&options).map_err(|error| super::directory::io_error("the job threads", &error))?;
    let jobs = Arc::new(jobs);
    let (coord, pools) = (Arc::clone(coord), Arc::clone(pools));
    let open = move || -> LocalFuture<Answer<Rc<Local>>> {
        Box::pin(async move {
            let env: Rc<dyn Env> = Rc::new(RealEnv::new(jobs));
            let (shard, journals) = journals.start(Rc::clone(&env), Arc::clone(&coord), limits).await?;
            let part = match part {
                Some((member, plan)) => Some((member, Mirroring::new(plan)?)),
                None => None,
            };
            if let Some((member, mirroring)) = &part {
                shard.serve_as(member.id());
                let members: Rc<dyn MirrorNodes> = Rc::<crate::mirror::Members>::clone(&mirroring.members);
                shard.mirror_on(members, Rc::clone(&mirroring.copies));
            }
            caches.iter().for_each(|cache| add_cache(&shard, cache));
            let local = Local::new(shard, journals, env, coord, pools, nbd_socket, part);
            local.start_chores(RETRY_TIME);
            Ok(local)
        })
    };
    thread::start(open).await
}

/// Gives a shard a device for its read cache. Without it the node serves all the same.
fn add_cache(shard: &varve_engine::Shard, cache: &CacheSpec) {
    match CacheFile::open(&cache.path, cache.size_bytes, RegionHead::may_be_ours) {
        Ok(file) => shard.add_cache(Rc::new(file)),
        Err(error) => tracing::error!(%error, "a cache device is not used until the node is started again"),
    }
}

/// Opens the pools that are recorded, beside each other, and hands them to the shard.
async fn open_pools(shard: &ShardHandle, pools: &Arc<Pools>, default: (PoolRecord, Answer<Opened>)) -> Answer<()> {
    let mut opening = JoinSet::new();
    let recorded = pools.records().list_pools().await.map_err(coord_error)?;
    for (record, _) in recorded.into_iter().filter(|(record, _)| record.name != default.0.name) {
        let pools = Arc::clone(pools);
        opening.spawn(async move {
            let opened = pools.open(&record).await;
            (record, opened)
        });
    }
    let mut all = vec![default];
    while let Some(opened) = opening.join_next().await {
        all.push(opened.map_err(|error| ControlError::new(ErrorKind::Internal, error.to_string()))?);
    }
    for (record, opened) in all {
        match opened {
            Ok(Opened { store, owner }) => {
                shard
                    .call(move |local| {
                        Box::pin(async move {
                            let store: Arc<dyn ObjectStore> = store;
                            local.shard.add_pool(record.name, PoolStore::new(store, owner), record.settings);
                            Ok(())
                        })
                    })
                    .await?;
            }
            Err(error) => {
                tracing::error!(pool = %record.name, %error, "a pool could not be opened: its volumes are not served until it can be");
            }
        }
    }
    Ok(())
}

/// Makes the volumes that the configuration wants and that are not there.
async fn ensure_volumes(shard: &ShardHandle, wanted: Vec<VolumeSpec>) -> Answer<()> {
    let ensure = move |local: Rc<Local>| -> LocalFuture<Answer<()>> {
        Box::pin(async move {
            for VolumeSpec { name, size_bytes } in wanted {
                match local.records().find_by_name(&name).await {
                    Ok(_) => match local.find(&name).await {
                        Ok(volume) if volume.size() != size_bytes => {
                            let (has, wanted) = (format_size(volume.size()), format_size(size_bytes));
                            let message = format!(
                                "volume {name} is there with {has}, and --volume says {wanted}: `varve volume resize` changes it"
                            );
                            return Err(ControlError::conflict(message));
                        }
                        Ok(_) => {}
                        // It was logged; the others serve.
                        Err(error) => tracing::warn!(volume = %name, %error, "a volume that is wanted is not served"),
                    },
                    Err(CoordError::NotFound(_)) => {
                        let pool = default_pool_name();
                        local.check_pool(&pool)?;
                        let new = varve_engine::NewVolume {
                            name: name.clone(),
                            pool,
                            size: size_bytes,
                            settings: Overrides::default(),
                        };
                        local.shard.create_volume(new).await?;
                        tracing::info!(volume = %name, size = %format_size(size_bytes), "made a volume");
                    }
                    Err(error) => return Err(coord_error(error)),
                }
            }
            Ok(())
        })
    };
    shard.call(ensure).await
}

/// What there is before volumes are opened.
struct Core {
    member: Option<Arc<Membership>>,
    /// Tells the cluster that the node lives.
    telling: Option<Telling>,
    /// What nodes that want copies kept prove themselves by.
    mirror_token: Option<Token>,
    pools: Arc<Pools>,
    default: (PoolRecord, Answer<Opened>),
    shard: ShardHandle,
    thread: ShardThread,
    limits: Limits,
}

async fn core(config: &UpConfig, directory: &Directory, journals: JournalPlan, reached: Reached) -> Answer<Core> {
    let Joined { coord, cluster, member } = membership::join(config, directory, reached).await?;
    let telling = member.as_ref().map(Membership::begin);
    let pools = Arc::new(Pools::new(Arc::clone(&coord), cluster));
    let default = default_pool::ready(config, directory, &pools).await?;
    let limits = Limits {
        layer_ram: config.layer_ram_bytes,
        cache_ram: config.ram_cache_bytes,
        map_ram: config.map_ram_bytes,
        occupancy: config.clean_occupancy_percent,
        clean_rate: config.clean_rate_bytes,
        lease_ms: config.clean_lease_ms,
        scrub_rate: config.scrub_rate_bytes,
        scrub_interval_ms: config.scrub_interval_ms,
        ..Limits::default()
    };
    let (caches, nbd_socket) = (config.caches.clone(), directory.nbd_socket());
    let part = match (&member, &config.cluster) {
        (Some(member), Some(cluster)) => {
            Some((Arc::clone(member), mirroring::Plan::new(member, cluster, pools.cluster(), directory).await?))
        }
        _ => None,
    };
    let mirror_token = part.as_ref().map(|(_, plan)| Token::of(&plan.hello.token));
    let (shard, thread) = start_shard(journals, &coord, &pools, limits, caches, nbd_socket, part).await?;
    Ok(Core { member, telling, mirror_token, pools, default, shard, thread, limits })
}

/// A node that nobody is served by: its shard, with all volumes open.
pub(super) async fn without_serving(config: &UpConfig, directory: &Directory) -> Answer<(ShardHandle, ShardThread)> {
    let Core { member, pools, default, shard, thread, .. } =
        core(config, directory, JournalPlan::as_it_is(directory)?, Reached::default()).await?;
    match open(&shard, &pools, member.as_deref(), default, Vec::new()).await {
        Ok(()) => Ok((shard, thread)),
        Err(error) => {
            end_shard(&shard, thread).await?;
            Err(error)
        }
    }
}

/// Runs a node from its start to its stop.
pub(super) async fn run(config: UpConfig, mut directory: Directory, hooks: Hooks) -> Answer<()> {
    let Hooks { ready, mut stop, beat } = hooks;
    let _files = SocketFiles([directory.nbd_socket(), directory.edge_socket(), directory.api_socket()]);
    let mut sockets = bind(&config, &directory).await?;
    let plan = JournalPlan::new(&directory, &config)?;
    let mirror_listen = sockets.mirror.as_ref().and_then(tcp_address);
    let reached = Reached { edge_listen: sockets.edge_listen, api_listen: sockets.api.tcp_address(), mirror_listen };
    let Core { member, telling, mirror_token, pools, default, shard, mut thread, limits } =
        core(&config, &directory, plan, reached).await?;
    let opened = async {
        if let (Some(member), Some(_)) = (&member, sockets.edge_listen) {
            sockets.edge_token = Some(member.edge_token(directory.edge_token()).await?);
        }
        open(&shard, &pools, member.as_deref(), default, config.volumes.clone()).await?;
        directory.complete()
    };
    let opened = opened.await;
    if let Err(error) = opened {
        end_shard(&shard, thread).await?;
        return Err(error);
    }
    let place = Place {
        name: membership::name_of(&config, member.as_deref()),
        data: directory.path().to_owned(),
        nbd_socket: directory.nbd_socket(),
        nbd_listen: sockets.nbd_listen,
        edge_socket: directory.edge_socket(),
        edge_listen: sockets.edge_listen,
        api_listen: sockets.api.tcp_address(),
        limits,
        caches: config.caches.len() as u64,
        started_ms: now_ms(),
        started: Instant::now(),
    };
    let node = Arc::new(Node { shard: shard.clone(), pools, place, member: member.clone() });
    let serving = serving(&node, &directory).await?;
    sockets.mirror_token = mirror_token;
    let (stopping, servers) = serve(&node, sockets, beat);
    // Begun before: whoever reads that it serves may tell it to stop at once, and is heard.
    let told = poll_fn(|context| Poll::Ready(stop.as_mut().poll(context).is_ready())).await;
    ready(&serving);
    let fallen = tokio::select! {
        () = async { if !told { stop.await } } => false,
        _ = &mut thread.ended => true,
    };
    // The servers may have ended already, which is what is wanted.
    let _ = stopping.send(true);
    if fallen {
        servers.join_all().await;
        return thread
            .join()
            .and(Err(ControlError::new(ErrorKind::Internal, "the thread of the shard ended by itself")));
    }
    let ended = end_shard(&shard, thread).await;
    servers.join_all().await;
    if let (Some(member), Some(telling)) = (member, telling) {
        member.leave(telling).await;
    }
    ended?;
    tracing::info!("stopped: everything that was acknowledged is durable");
    Ok(())
}

async fn open(
    shard: &ShardHandle,
    pools: &Arc<Pools>,
    member: Option<&Membership>,
    default: (PoolRecord, Answer<Opened>),
    volumes: Vec<VolumeSpec>,
) -> Answer<()> {
    open_pools(shard, pools, default).await?;
    if let Some(member) = member {
        // Volumes ask their mirrors before they are open.
        mirroring::look(shard, pools.records(), member).await;
    }
    let away = pools.away();
    shard.call(move |local| Box::pin(async move { local.open_all(&away).await })).await?;
    ensure_volumes(shard, volumes).await
}

pub(super) async fn end_shard(shard: &ShardHandle, thread: ShardThread) -> Answer<()> {
    let stopped = shard.stop().await;
    thread.join()?;
    stopped
}

/// What is served, for the one who started the node.
async fn serving(node: &Node, directory: &Directory) -> Answer<Serving> {
    let volumes = node.on_shard(|local| {
        Box::pin(async move { Ok(local.shard.volumes().iter().map(|volume| (volume.name(), volume.size())).collect()) })
    });
    Ok(Serving {
        node: node.place.name.clone(),
        cluster: node.member.as_ref().map(|_| node.pools.cluster()),
        data: node.place.data.clone(),
        store: node.pools.url(&default_pool_name()).unwrap_or_default(),
        nbd_socket: directory.nbd_socket(),
        nbd_listen: node.place.nbd_listen,
        edge_socket: node.place.edge_socket.clone(),
        edge_listen: node.place.edge_listen,
        api_socket: directory.api_socket(),
        api_listen: node.place.api_listen,
        volumes: volumes.await?,
    })
}

/// Hands connections over to the shard, which serves them as tasks of its thread: how long one takes to be let in is nothing to the calls of the others.
fn to_shard<N: Send + 'static>(
    shard: &ShardHandle,
    serve: fn(Rc<Local>, Accepted<N>) -> LocalFuture<()>,
) -> impl Fn(Accepted<N>) -> SendFuture<'static, ()> + Clone + Send + 'static {
    let shard = shard.clone();
    move |accepted| {
        let call = shard.call(move |local| {
            Box::pin(async move {
                drop(tokio::task::spawn_local(serve(local, accepted)));
                Ok(())
            })
        });
        Box::pin(async move {
            if let Err(error) = call.await {
                tracing::debug!(%error, "a connection could not be handed over");
            }
        })
    }
}

/// Tells how a listener ended, where that was not well.
fn ended(result: varve_serve::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, "a listener");
    }
}

/// Starts to answer. The servers end once the sender says so.
fn serve(node: &Arc<Node>, sockets: Sockets, beat: Option<Beat>) -> (watch::Sender<bool>, JoinSet<()>) {
    let (stopping, stops) = watch::channel(false);
    let until_stop = || {
        let mut stops = stops.clone();
        async move {
            // A sender that is gone is a stop as well.
            let _ = stops.wait_for(|stop| *stop).await;
        }
    };
    let mut servers = JoinSet::new();
    let exports = ShardExports { shard: node.shard.clone() };
    let nbd = Arc::new(NbdGreeter::new(exports, HandshakeLimits::default()));
    let slots = Slots::default();
    let edge = Arc::new(EdgeGreeter { token: sockets.edge_token });
    for listener in sockets.nbd {
        let deliver = to_shard(&node.shard, |local, accepted| Box::pin(super::connections::serve(local, accepted)));
        let (nbd, slots, stop) = (Arc::clone(&nbd), slots.clone(), until_stop());
        servers.spawn(async move { ended(listener.run(nbd, slots, deliver, stop).await) });
    }
    for listener in sockets.edge {
        let deliver = to_shard(&node.shard, |local, accepted| Box::pin(super::attach::serve(local, accepted)));
        let (edge, slots, stop) = (Arc::clone(&edge), slots.clone(), until_stop());
        servers.spawn(async move { ended(listener.run(edge, slots, deliver, stop).await) });
    }
    if let (Some(listener), Some(token)) = (sockets.mirror, sockets.mirror_token) {
        let greeter = Arc::new(MirrorGreeter { cluster: node.pools.cluster(), token });
        let deliver = to_shard(&node.shard, |local, accepted| Box::pin(mirroring::serve(local, accepted)));
        let (slots, stop) = (slots.clone(), until_stop());
        servers.spawn(async move { ended(listener.run(greeter, slots, deliver, stop).await) });
    }
    let control: Arc<dyn crate::api::Control> = Arc::clone(node) as _;
    servers.spawn(sockets.api.run(control, until_stop()));
    let (node, stop) = (Arc::clone(node), until_stop());
    servers.spawn(async move {
        tokio::select! {
            () = stop => {}
            () = chores(&node) => {}
            () = look_for_silence(&node) => {}
            () = ownership::mind(&node) => {}
            () = mirroring::mind(&node) => {}
            () = tell_beats(&node, beat) => {}
        }
    });
    (stopping, servers)
}

/// Tells that the shard's thread answers, as long as it does.
async fn tell_beats(node: &Node, beat: Option<Beat>) {
    let Some(Beat { every, tell }) = beat else { return std::future::pending().await };
    loop {
        if node.on_shard(|_| Box::pin(async { Ok(()) })).await.is_ok() {
            tell();
        }
        tokio::time::sleep(every).await;
    }
}

/// Looks which stores answer nothing: a store is asked for something at least as often as the chores look at it.
async fn look_for_silence(node: &Node) {
    loop {
        tokio::time::sleep(SILENCE_TIME).await;
        node.pools.look_for_silence();
    }
}

/// Looks at the stores from time to time, and opens those that could not be before.
async fn chores(node: &Node) {
    loop {
        let away = node.pools.away();
        tokio::time::sleep(if away.is_empty() { LOOK_TIME } else { RETRY_TIME }).await;
        for (name, why) in node.pools.look().await {
            let stop = node.on_shard(move |local| {
                Box::pin(async move {
                    let error = EngineError::new(ErrorKind::Fenced, format!("{why}: this node serves it no more"));
                    local.shard.lose_pool(&name, &error);
                    Ok(())
                })
            });
            if let Err(error) = stop.await {
                tracing::debug!(%error, "the node stops");
            }
        }
        for name in away.keys() {
            let Ok((record, _)) = node.pools.records().load_pool(name).await else { continue };
            // Why it could not be opened is in the state.
            let Ok(opened) = node.pools.open(&record).await else { continue };
            tracing::info!(pool = %name, "a pool could be opened after all");
            if let Err(error) = pool_control::hand_over(node, &record, opened).await {
                tracing::warn!(pool = %name, %error, "the volumes of a pool could not be opened");
            }
        }
    }
}
