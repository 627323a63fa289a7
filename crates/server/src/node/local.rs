// SPDX-License-Identifier: Apache-2.0
//! What lives on the shard's thread: the shard, the volumes that could not be opened, and everybody who uses a
//! volume.
//!
//! A volume that can not be opened keeps no other from being served. It is remembered with the reason, and where
//! that may pass (its store is away, say) its opening is tried again; where it will not (it is damaged), a person
//! is needed, and the state of the node says so.

use super::attach::Attaching;
use super::cluster::patiently;
use super::connections::Connections;
use super::journal::NodeJournals;
use super::membership::Membership;
use super::mirroring::Mirroring;
use super::ownership::Foreign;
use super::pools::Pools;
use super::sessions::{self, Sessions};
use crate::api::ControlError;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use varve_coord::{Coord, Records, VolumeRecord};
use varve_engine::{EngineError, PoolStore, Shard, Volume};
use varve_env::Env;
use varve_types::{ErrorKind, Name, Overrides, VolumeId};

/// A volume that should be open and is not.
#[derive(Clone, Debug)]
pub(super) struct Unopened {
    pub(super) name: Name,
    pub(super) pool: Name,
    pub(super) error: EngineError,
}

impl Unopened {
    /// Whether it may yet open by itself.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self.error.kind(), ErrorKind::Unavailable | ErrorKind::Busy | ErrorKind::NoSpace)
    }
}

/// See the module.
pub(super) struct Local {
    pub(super) shard: Rc<Shard>,
    pub(super) journals: NodeJournals,
    pub(super) env: Rc<dyn Env>,
    coord: Arc<dyn Coord>,
    pub(super) pools: Arc<Pools>,
    pub(super) nbd_socket: PathBuf,
    pub(super) connections: Connections,
    pub(super) sessions: Sessions,
    pub(super) attaching: Attaching,
    /// Its part in a cluster; none where the node is by itself.
    pub(super) member: Option<Arc<Membership>>,
    /// Its part in mirrors, in a cluster.
    pub(super) mirroring: Option<Rc<Mirroring>>,
    unopened: RefCell<BTreeMap<VolumeId, Unopened>>,
    /// Volumes that are open and that other nodes run by now: nobody is let in.
    lost: RefCell<BTreeMap<VolumeId, EngineError>>,
}

impl Local {
    pub(super) fn new(
        shard: Rc<Shard>,
        journals: NodeJournals,
        env: Rc<dyn Env>,
        coord: Arc<dyn Coord>,
        pools: Arc<Pools>,
        nbd_socket: PathBuf,
        part: Option<(Arc<Membership>, Mirroring)>,
    ) -> Rc<Self> {
        let (member, mirroring) = part.unzip();
        Rc::new(Self {
            shard,
            journals,
            env,
            coord,
            pools,
            nbd_socket,
            connections: Connections::default(),
            sessions: Sessions::default(),
            attaching: Attaching::default(),
            member,
            mirroring: mirroring.map(Rc::new),
            unopened: RefCell::default(),
            lost: RefCell::default(),
        })
    }

    /// Begins what is done from time to time. It ends with the thread.
    pub(super) fn start_chores(self: &Rc<Self>, retry: Duration) {
        drop(tokio::task::spawn_local(Rc::clone(self).keep_trying(retry)));
        let this = Rc::clone(self);
        drop(tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(sessions::LOOK_TIME).await;
                this.sessions.release_idle();
                varve_serve::trim_buffers();
            }
        }));
    }

    /// Refuses what needs a pool that is not served now.
    ///
    /// # Errors
    /// `Unavailable`, with the reason.
    pub(super) fn check_pool(&self, name: &Name) -> Result<(), ControlError> {
        match self.pools.away().get(name) {
            Some(why) => Err(ControlError::new(ErrorKind::Unavailable, format!("the pool {name} is not there: {why}"))),
            None => Ok(()),
        }
    }

    /// Coordination.
    pub(super) fn coord(&self) -> &dyn Coord {
        &*self.coord
    }

    /// The facts in coordination.
    pub(super) fn records(&self) -> Records<'_> {
        Records::new(&*self.coord)
    }

    /// Whether this node is the owner of a volume.
    pub(super) fn is_ours(&self, record: &VolumeRecord) -> bool {
        self.member.as_ref().is_none_or(|member| record.owner == Some(member.id()))
    }

    /// An open volume.
    ///
    /// # Errors
    /// `Fenced` when another node runs it, `NotFound` when there is none of this name; why it is not open, where it is not.
    pub(super) async fn find(&self, name: &Name) -> Result<Rc<Volume>, EngineError> {
        match self.find_here(name) {
            Err(error) if error.kind() == ErrorKind::NotFound => Err(match self.find_foreign(name).await? {
                Some(foreign) => foreign.error(),
                None => error,
            }),
            found => found,
        }
    }

    /// A volume of this name that another node runs.
    ///
    /// # Errors
    /// When coordination does not answer.
    pub(super) async fn find_foreign(&self, name: &Name) -> Result<Option<Foreign>, EngineError> {
        let Some(member) = &self.member else { return Ok(None) };
        let found = patiently(Foreign::find(self.records(), member.id(), name)).await;
        let unknown = |error: varve_coord::CoordError| {
            let text = format!("volume {name} is not open here, and which node has it can not be asked: {error}");
            EngineError::new(error.kind(), text)
        };
        found.map_err(unknown)
    }

    /// The same, of what is open on this node alone.
    ///
    /// # Errors
    /// `NotFound` when there is none of this name here; why it is not open, where it is not.
    pub(super) fn find_here(&self, name: &Name) -> Result<Rc<Volume>, EngineError> {
        let found = self.shard.find(name);
        if let Ok(volume) = &found
            && let Some(error) = self.lost.borrow().get(&volume.id())
        {
            return Err(error.clone());
        }
        let unopened = self.unopened.borrow();
        match unopened.values().find(|unopened| unopened.name == *name) {
            Some(unopened) if found.is_err() => {
                let kind = if unopened.error.kind() == ErrorKind::NotFound {
                    ErrorKind::Unavailable
                } else {
                    unopened.error.kind()
                };
                Err(EngineError::new(kind, format!("volume {name} is not served: {}", unopened.error)))
            }
            _ => found,
        }
    }

    /// Notes that another node runs a volume that is open here; whether that is news.
    pub(super) fn note_lost(&self, id: VolumeId, why: EngineError) -> bool {
        self.lost.borrow_mut().insert(id, why).is_none()
    }

    /// Whether a volume is open here that another node runs.
    pub(super) fn is_lost(&self, id: VolumeId) -> bool {
        self.lost.borrow().contains_key(&id)
    }

    /// Forgets that: it is not open any more.
    pub(super) fn forget_lost(&self, id: VolumeId) {
        self.lost.borrow_mut().remove(&id);
    }

    /// Forgets a volume that should be open and that another node runs.
    pub(super) fn forget_unopened(&self, id: VolumeId) {
        self.unopened.borrow_mut().remove(&id);
    }

    /// Opens a volume if it is this node's, and tries again if it can not be opened now.
    pub(super) async fn look_after(&self, id: VolumeId) {
        match self.records().load_volume(id).await {
            Ok((record, _)) if self.is_ours(&record) && record.deleted.is_none() => self.try_open(&record).await,
            Ok(_) => {}
            Err(error) => tracing::warn!(volume = %id, %error, "a volume could not be looked up"),
        }
    }

    /// The volumes that should be open and are not.
    pub(super) fn unopened(&self) -> BTreeMap<VolumeId, Unopened> {
        self.unopened.borrow().clone()
    }

    /// Opens all volumes, and remembers those that can not be.
    ///
    /// # Errors
    /// When coordination does not answer.
    pub(super) async fn open_all(&self, pools_away: &BTreeMap<Name, String>) -> Result<(), ControlError> {
        let failed = self.shard.open_all().await?;
        let records = self.records().list_volumes().await.map_err(super::coord_error)?;
        for (name, error) in failed {
            if let Some((record, _)) =
                records.iter().find(|(record, _)| record.name == name && record.deleted.is_none())
            {
                let error = match pools_away.get(&record.pool) {
                    Some(why) => EngineError::new(
                        ErrorKind::Unavailable,
                        format!("its pool {} is not there: {why}", record.pool),
                    ),
                    None => error,
                };
                tracing::error!(volume = %name, %error, "a volume could not be opened");
                self.unopened.borrow_mut().insert(record.id, Unopened { name, pool: record.pool.clone(), error });
            }
        }
        self.journals.forget_empty(&self.shard);
        Ok(())
    }

    /// Takes a pool that can be used now, and opens its volumes.
    ///
    /// # Errors
    /// When coordination does not answer.
    pub(super) async fn pool_came(
        &self,
        name: &Name,
        store: PoolStore,
        settings: Overrides,
    ) -> Result<(), ControlError> {
        self.shard.add_pool(name.clone(), store, settings);
        let records = self.records().list_volumes().await.map_err(super::coord_error)?;
        let is_due = |record: &VolumeRecord| record.pool == *name && record.deleted.is_none() && self.is_ours(record);
        for (record, _) in records.into_iter().filter(|(record, _)| is_due(record)) {
            self.try_open(&record).await;
        }
        Ok(())
    }

    /// Tries again to open what may have come within reach; for ever, in steps of `period`.
    async fn keep_trying(self: Rc<Self>, period: Duration) {
        loop {
            tokio::time::sleep(period).await;
            let open: BTreeSet<_> = self.shard.volumes().iter().map(|volume| volume.id()).collect();
            self.connections.keep_stats(|volume| open.contains(&volume));
            let again: Vec<_> = self.unopened().into_iter().filter(|(_, unopened)| unopened.may_pass()).collect();
            for (id, _) in again {
                match self.records().load_volume(id).await {
                    Ok((record, _)) if record.deleted.is_none() && self.is_ours(&record) => {
                        self.try_open(&record).await
                    }
                    Ok(_) => drop(self.unopened.borrow_mut().remove(&id)),
                    Err(error) if error.kind() == ErrorKind::NotFound => drop(self.unopened.borrow_mut().remove(&id)),
                    Err(error) => tracing::warn!(volume = %id, %error, "a volume could not be looked up"),
                }
            }
            self.journals.forget_empty(&self.shard);
        }
    }

    async fn try_open(&self, record: &VolumeRecord) {
        match self.shard.open_volume(record.id).await {
            Ok(_) => {
                if self.unopened.borrow_mut().remove(&record.id).is_some() {
                    tracing::info!(volume = %record.name, "a volume could be opened after all");
                }
            }
            // The pool is still away: what is remembered says why.
            Err(error) if error.kind() == ErrorKind::NotFound && self.unopened.borrow().contains_key(&record.id) => {}
            Err(error) => {
                let unopened = Unopened { name: record.name.clone(), pool: record.pool.clone(), error };
                let before = self.unopened.borrow_mut().insert(record.id, unopened.clone());
                if before.is_none_or(|before| before.error.to_string() != unopened.error.to_string()) {
                    tracing::error!(volume = %record.name, error = %unopened.error, "a volume could not be opened");
                }
            }
        }
    }

    /// Ends all connections and devices, within a time.
    pub(super) async fn end_clients(&self, most: Duration) {
        self.sessions.end();
        if tokio::time::timeout(most, self.connections.end(|_| true)).await.is_err() {
            tracing::warn!("not all connections have ended in time");
        }
    }
}
