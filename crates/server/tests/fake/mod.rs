// SPDX-License-Identifier: Apache-2.0
//! A node in memory, for tests of the API and of the command line.
//!
//! It keeps volumes as maps of blocks and does what a node promises, with the least of rules. Names steer it: a volume called `fail-KIND` fails
//! with that kind whatever is asked of it, writes to `full` fail with `NoSpace` after 1 MiB, and a check finds an error in `rotten`.
//! A check of `held` goes on until [`Fake::release`]; reads and writes of `stuck` never end, and all of it is data.

// Two test programs include this module, and neither uses all of it.
#![allow(dead_code)]

mod control;
mod data;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use tokio::sync::Notify;
use varve_server::api::ControlError;
use varve_server::api::model::{
    Client, ClusterNode, Fill, IoCounters, Journal, Origin, Owner, Pool, PoolStatus, Setting, Snapshot, Space, Status,
    StoreState, Timeline, TimelineState, Volume, VolumeState, VolumeStatus,
};
use varve_types::{BLOCK, ErrorKind, Name, NodeId, Overrides, Settings, SnapshotId, TimelineId, VolumeId};

/// A moment that is the same in every test: 2026-01-02 03:04:05 UTC.
pub const CREATED_MS: u64 = 1_767_323_045_000;

pub type Blocks = BTreeMap<u64, Vec<u8>>;

pub struct FakeVolume {
    id: VolumeId,
    pool: Name,
    pub size: u64,
    deleted: bool,
    template: bool,
    origin: Option<Origin>,
    own: Overrides,
    pub blocks: Blocks,
    snapshots: Vec<(Snapshot, Blocks)>,
    /// What the last rollback replaced.
    undo: Option<(u64, Blocks)>,
    pub flushes: u64,
    pub writes: u64,
    /// Only of `stuck`.
    pub reads: u64,
    written: u64,
}

pub struct FakePool {
    store: String,
    own: Overrides,
}

#[derive(Default)]
pub struct State {
    pub volumes: BTreeMap<Name, FakeVolume>,
    pub pools: BTreeMap<Name, FakePool>,
    pub cleaning: varve_server::api::model::Cleaning,
    pub cleaning_job: Option<varve_server::api::model::CleaningJob>,
    pub scrub: varve_server::api::model::Scrub,
    pub nodes: Vec<ClusterNode>,
    next_id: u8,
}

pub struct Fake {
    state: Mutex<State>,
    held: Notify,
}

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

impl Fake {
    pub fn new() -> Self {
        let mut state = State::default();
        state
            .pools
            .insert(name("default"), FakePool { store: "file:///data/store".to_owned(), own: Overrides::default() });
        Self { state: Mutex::new(state), held: Notify::new() }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Lets one check of `held` end.
    pub fn release(&self) {
        self.held.notify_one();
    }

    /// Makes it one of a cluster with two nodes, of which the second is dead and runs the volume `theirs`.
    pub fn add_nodes(&self) {
        let node = |number: u8, alive: bool| ClusterNode {
            name: name(&format!("node-{number}")),
            id: NodeId::from_bytes([number; 16]),
            this: number == 1,
            alive,
            alive_since_ms: alive.then_some(CREATED_MS),
            version: alive.then(|| "0.1.0".to_owned()),
            edge: vec![format!("10.0.0.{number}:7421")],
            api: None,
            mirror: None,
            rack: (number == 1).then(|| "r1".to_owned()),
            site: None,
            joined_ms: CREATED_MS,
            volumes: u64::from(number),
        };
        self.state().nodes = vec![node(1, true), node(2, false)];
    }

    /// Makes a volume with `data` at its beginning.
    pub fn add(&self, volume: &str, size: u64, data: &[u8]) {
        let mut state = self.state();
        state.make(&name(volume), &name("default"), size).unwrap();
        let volume = state.volumes.get_mut(&name(volume)).unwrap();
        for (index, chunk) in data.chunks(BLOCK as usize).enumerate() {
            let mut block = chunk.to_vec();
            block.resize(BLOCK as usize, 0);
            volume.blocks.insert(index as u64, block);
        }
    }
}

impl State {
    fn make(&mut self, volume: &Name, pool: &Name, size: u64) -> Result<(), ControlError> {
        if self.volumes.contains_key(volume) {
            return Err(ControlError::conflict(format!("there is a volume {volume} already")));
        }
        if !self.pools.contains_key(pool) {
            return Err(ControlError::not_found("pool", pool));
        }
        self.next_id += 1;
        let made = FakeVolume {
            id: VolumeId::from_random([self.next_id; 16]),
            pool: pool.clone(),
            size,
            deleted: false,
            template: false,
            origin: None,
            own: Overrides::default(),
            blocks: Blocks::new(),
            snapshots: Vec::new(),
            undo: None,
            flushes: 0,
            writes: 0,
            reads: 0,
            written: 0,
        };
        self.volumes.insert(volume.clone(), made);
        Ok(())
    }

    fn node(&self, asked: &Name) -> Result<ClusterNode, ControlError> {
        let found = self.nodes.iter().find(|node| node.name == *asked || node.id.to_string() == asked.as_str());
        found.cloned().ok_or_else(|| ControlError::not_found("node", asked))
    }

    /// The volume, deleted or not.
    fn any(&mut self, volume: &Name) -> Result<&mut FakeVolume, ControlError> {
        if let Some(kind) = volume.as_str().strip_prefix("fail-").and_then(ErrorKind::parse) {
            return Err(ControlError::new(kind, format!("volume {volume} fails on purpose")));
        }
        self.volumes.get_mut(volume).ok_or_else(|| ControlError::not_found("volume", volume))
    }

    fn live(&mut self, volume: &Name) -> Result<&mut FakeVolume, ControlError> {
        let found = self.any(volume)?;
        if found.deleted { Err(ControlError::not_found("volume", volume)) } else { Ok(found) }
    }

    fn view(&self, volume: &Name) -> Volume {
        let v = &self.volumes[volume];
        let live_bytes = v.blocks.len() as u64 * BLOCK;
        Volume {
            name: volume.clone(),
            id: v.id,
            pool: v.pool.clone(),
            size_bytes: v.size,
            state: if v.deleted { VolumeState::Deleted } else { VolumeState::Ready },
            state_message: None,
            undelete_until_ms: v.deleted.then_some(CREATED_MS + 3_600_000),
            template: v.template,
            nbd_uri: (!v.deleted).then(|| format!("nbd+unix:///{volume}?socket=/data/nbd.sock")),
            attached: attached(volume),
            holder: None,
            mirror: None,
            owner: self.nodes.get(usize::from(volume.as_str() == "theirs")).map(|node| Owner {
                id: node.id,
                name: Some(node.name.clone()),
                alive: node.alive,
            }),
            settings: Setting::rows(Settings::describe(&v.own, &self.pools[&v.pool].own)),
            timelines: vec![Timeline {
                id: TimelineId::from_random([7; 16]),
                state: TimelineState::Shown,
                hidden_until_ms: None,
            }],
            space: Space {
                live_bytes,
                stored_bytes: live_bytes / 2,
                dirty_bytes: 0,
                reclaim_bytes: 0,
                rewind_bytes: 0,
                segments: 1,
            },
            created_ms: CREATED_MS,
            snapshots: v.snapshots.iter().filter(|(snapshot, _)| !snapshot.hidden).count() as u64,
            origin: v.origin.clone(),
        }
    }

    fn pool_view(&self, pool: &Name) -> Result<Pool, ControlError> {
        let found = self.pools.get(pool).ok_or_else(|| ControlError::not_found("pool", pool))?;
        let volumes = self.volumes.iter().filter(|(_, volume)| volume.pool == *pool);
        Ok(Pool {
            name: pool.clone(),
            store: found.store.clone(),
            settings: Setting::rows(Settings::describe(&Overrides::default(), &found.own)),
            volumes: volumes.map(|(name, _)| name.clone()).collect(),
            created_ms: CREATED_MS,
        })
    }

    fn status(&self) -> Status {
        let pool = |(name, pool): (&Name, &FakePool)| PoolStatus {
            name: name.clone(),
            store: pool.store.clone(),
            state: StoreState::Ok,
            message: None,
            volumes: self.volumes.values().filter(|volume| volume.pool == *name).count() as u64,
            requests: 1,
            oldest_request_ms: Some(12),
        };
        let volume = |(name, volume): (&Name, &FakeVolume)| VolumeStatus {
            name: name.clone(),
            pool: volume.pool.clone(),
            state: VolumeState::Ready,
            size_bytes: volume.size,
            live_bytes: volume.blocks.len() as u64 * BLOCK,
            dirty_bytes: 0,
            reclaim_bytes: 0,
            write_rate_bytes: None,
            attached: attached(name).len() as u32,
            io: IoCounters { writes: volume.writes, written_bytes: volume.written, ..IoCounters::default() },
        };
        Status {
            version: "0.1.0".to_owned(),
            node: "node-1".to_owned(),
            node_id: None,
            cluster: None,
            started_ms: CREATED_MS,
            uptime_ms: 3_723_000,
            data: "/data".to_owned(),
            nbd_socket: "/data/nbd.sock".to_owned(),
            nbd_listen: None,
            edge_socket: "/data/edge.sock".to_owned(),
            edge_listen: None,
            api_listen: Some("127.0.0.1:7420".to_owned()),
            pools: self.pools.iter().map(pool).collect(),
            volumes: self.volumes.iter().filter(|(_, volume)| !volume.deleted).map(volume).collect(),
            journals: vec![Journal {
                shard: 0,
                path: "/data/journal/0".to_owned(),
                fill: Fill { used_bytes: 1 << 20, limit_bytes: 2 << 30 },
                failed: false,
                leaving: false,
            }],
            layers: Fill { used_bytes: 1 << 20, limit_bytes: 512 << 20 },
            map: Fill { used_bytes: 3 << 20, limit_bytes: 1 << 30 },
            cache: Fill { used_bytes: 128 << 20, limit_bytes: 256 << 20 },
            ssd_cache: Fill::default(),
            ssd_cache_hits: 0,
            ssd_cache_misses: 0,
            cache_hits: 99,
            cache_misses: 1,
            endings: Vec::new(),
            gone_volumes: 0,
            gone_bytes: 0,
            warnings: vec!["The store of pool default was slow.".to_owned()],
        }
    }
}

fn attached(volume: &Name) -> Vec<Client> {
    let client = Client { peer: "unix:4242".to_owned(), since_ms: CREATED_MS, connections: 2 };
    if volume.as_str() == "busy" { vec![client] } else { Vec::new() }
}

fn snapshot_id(bytes: u8) -> SnapshotId {
    SnapshotId::from_random([bytes; 16])
}
