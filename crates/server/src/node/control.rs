// SPDX-License-Identifier: Apache-2.0
//! The node as the API sees it: [`Control`], each operation handed to where it belongs.
//!
//! Volumes and their data belong to the shard's thread; pools to the control runtime; what both
//! need is in coordination. A change is a call on the shard that runs to its end there, whoever
//! waits for it.

use super::local::Local;
use super::membership::Membership;
use super::pools::Pools;
use super::thread::ShardHandle;
use super::{cleaning, cluster, job_control, metrics, pool_control, scrub, sessions, status, takeover, volume_control};
use crate::api::model::{
    CheckReport, Cleaning, CleaningDone, CleaningFailure, CleaningOffer, CleaningProgress, CleaningTaken,
    CleaningTerms, CloneVolume, Cluster, ClusterNode, ExtentMap, NewPool, NewVolume, Pool, PoolImport, Rewind,
    RewindPoints, Rewound, RollbackReport, Scrub, SetCleaning, SetScrub, Snapshot, Status, Target, Volume,
};
use crate::api::{Answer, Control, ControlError, ProgressHandle};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use varve_engine::Limits;
use varve_env::LocalFuture;
use varve_types::{LeaseId, Name};

/// What does not change while the node runs.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// What the node is called.
    pub(super) name: String,
    pub(super) data: PathBuf,
    pub(super) nbd_socket: PathBuf,
    pub(super) nbd_listen: Option<SocketAddr>,
    pub(super) edge_socket: PathBuf,
    pub(super) edge_listen: Option<SocketAddr>,
    pub(super) api_listen: Option<SocketAddr>,
    pub(super) limits: Limits,
    /// Cache devices that it is to have.
    pub(super) caches: u64,
    pub(super) started_ms: u64,
    pub(super) started: Instant,
}

/// See the module.
pub(super) struct Node {
    pub(super) shard: ShardHandle,
    pub(super) pools: Arc<Pools>,
    pub(super) place: Place,
    /// Its part in a cluster; none where it is by itself.
    pub(super) member: Option<Arc<Membership>>,
}

impl Node {
    /// Has something done on the shard's thread.
    pub(super) fn on_shard<T, F>(&self, work: F) -> Answer<'_, T>
    where
        T: Send + 'static,
        F: FnOnce(Rc<Local>) -> LocalFuture<Result<T, ControlError>> + Send + 'static,
    {
        Box::pin(self.shard.call(work))
    }
}

impl Control for Node {
    fn volumes(&self) -> Answer<'_, Vec<Volume>> {
        self.on_shard(|local| Box::pin(async move { volume_control::list(&local).await }))
    }
    fn volume(&self, name: Name) -> Answer<'_, Volume> {
        self.on_shard(move |local| Box::pin(async move { volume_control::show(&local, &name).await }))
    }
    fn create_volume(&self, new: NewVolume) -> Answer<'_, Volume> {
        self.on_shard(move |local| Box::pin(async move { volume_control::create(&local, new).await }))
    }
    fn resize_volume(&self, name: Name, size_bytes: u64, force: bool) -> Answer<'_, Volume> {
        self.on_shard(move |local| {
            Box::pin(async move { volume_control::resize(&local, &name, size_bytes, force).await })
        })
    }
    fn rename_volume(&self, name: Name, new: Name) -> Answer<'_, Volume> {
        self.on_shard(move |local| Box::pin(async move { volume_control::rename(&local, &name, new).await }))
    }
    fn delete_volume(&self, name: Name) -> Answer<'_, Volume> {
        self.on_shard(move |local| Box::pin(async move { volume_control::delete(&local, &name).await }))
    }
    fn undelete_volume(&self, name: Name) -> Answer<'_, Volume> {
        self.on_shard(move |local| Box::pin(async move { volume_control::undelete(&local, &name).await }))
    }
    fn detach_volume(&self, name: Name) -> Answer<'_, Volume> {
        self.on_shard(move |local| Box::pin(async move { volume_control::detach(&local, &name).await }))
    }
    fn take_volume(&self, name: Name, force: bool) -> Answer<'_, Volume> {
        Box::pin(takeover::take(self, name, force))
    }
    fn make_template(&self, name: Name) -> Answer<'_, Volume> {
        self.on_shard(move |local| Box::pin(async move { volume_control::make_template(&local, &name).await }))
    }
    fn set_volume(&self, name: Name, settings: BTreeMap<String, String>) -> Answer<'_, Volume> {
        self.on_shard(move |local| Box::pin(async move { volume_control::set(&local, &name, &settings).await }))
    }

    fn pools(&self) -> Answer<'_, Vec<Pool>> {
        Box::pin(pool_control::list(self))
    }
    fn pool(&self, name: Name) -> Answer<'_, Pool> {
        Box::pin(pool_control::show(self, name))
    }
    fn create_pool(&self, new: NewPool) -> Answer<'_, Pool> {
        Box::pin(pool_control::create(self, new))
    }
    fn set_pool(&self, name: Name, settings: BTreeMap<String, String>) -> Answer<'_, Pool> {
        Box::pin(pool_control::set(self, name, settings))
    }
    fn delete_pool(&self, name: Name) -> Answer<'_, Pool> {
        Box::pin(pool_control::delete(self, name))
    }
    fn import_pool(&self, store: String, progress: ProgressHandle) -> Answer<'_, PoolImport> {
        Box::pin(job_control::import(self, store, progress))
    }

    fn snapshots(&self, volume: Name) -> Answer<'_, Vec<Snapshot>> {
        self.on_shard(move |local| Box::pin(async move { volume_control::snapshots(&local, &volume).await }))
    }
    fn create_snapshot(&self, volume: Name, name: Name) -> Answer<'_, Snapshot> {
        self.on_shard(move |local| Box::pin(async move { volume_control::snapshot(&local, &volume, name).await }))
    }
    fn delete_snapshot(&self, volume: Name, name: Name) -> Answer<'_, Snapshot> {
        self.on_shard(move |local| {
            Box::pin(async move { volume_control::delete_snapshot(&local, &volume, &name).await })
        })
    }
    fn rollback(&self, volume: Name, snapshot: Name, dry_run: bool) -> Answer<'_, RollbackReport> {
        self.on_shard(move |local| {
            Box::pin(async move { volume_control::rollback(&local, &volume, &snapshot, dry_run).await })
        })
    }
    fn undo_rollback(&self, volume: Name) -> Answer<'_, Volume> {
        self.on_shard(move |local| Box::pin(async move { volume_control::undo_rollback(&local, &volume).await }))
    }
    fn clone_volume(&self, volume: Name, clone: CloneVolume) -> Answer<'_, Volume> {
        self.on_shard(move |local| Box::pin(async move { volume_control::clone(&local, &volume, clone).await }))
    }
    fn rewind_points(&self, volume: Name, most: u32) -> Answer<'_, RewindPoints> {
        self.on_shard(move |local| Box::pin(async move { volume_control::rewind_points(&local, &volume, most).await }))
    }
    fn rewind(&self, volume: Name, rewind: Rewind) -> Answer<'_, Rewound> {
        self.on_shard(move |local| Box::pin(async move { volume_control::rewind(&local, &volume, rewind).await }))
    }
    fn flatten(&self, volume: Name, progress: ProgressHandle) -> Answer<'_, Volume> {
        self.on_shard(move |local| Box::pin(async move { job_control::flatten(&local, &volume, &progress).await }))
    }

    fn nodes(&self) -> Answer<'_, Vec<ClusterNode>> {
        Box::pin(cluster::nodes(self))
    }
    fn node(&self, node: Name) -> Answer<'_, ClusterNode> {
        Box::pin(cluster::node(self, node))
    }
    fn remove_node(&self, node: Name) -> Answer<'_, ClusterNode> {
        Box::pin(cluster::remove(self, node))
    }
    fn cluster(&self) -> Answer<'_, Cluster> {
        Box::pin(cluster::status(self))
    }
    fn status(&self) -> Answer<'_, Status> {
        Box::pin(status::status(self))
    }
    fn check(&self, volume: Option<Name>, progress: ProgressHandle) -> Answer<'_, CheckReport> {
        self.on_shard(move |local| Box::pin(async move { job_control::check(&local, volume, &progress).await }))
    }
    fn cleaning(&self) -> Answer<'_, Cleaning> {
        let limits = self.place.limits;
        self.on_shard(move |local| Box::pin(async move { Ok(cleaning::state(&local, &limits)) }))
    }
    fn set_cleaning(&self, set: SetCleaning) -> Answer<'_, Cleaning> {
        let limits = self.place.limits;
        self.on_shard(move |local| Box::pin(async move { Ok(cleaning::set(&local, &limits, set)) }))
    }
    fn cleaning_job(&self, worker: Name) -> Answer<'_, CleaningOffer> {
        self.on_shard(move |local| Box::pin(async move { cleaning::offer(&local, &worker).await }))
    }
    fn renew_cleaning_job(&self, job: LeaseId, progress: CleaningProgress) -> Answer<'_, CleaningTerms> {
        self.on_shard(move |local| Box::pin(async move { cleaning::renew(&local, job, progress) }))
    }
    fn complete_cleaning_job(&self, job: LeaseId, done: CleaningDone) -> Answer<'_, CleaningTaken> {
        self.on_shard(move |local| Box::pin(async move { cleaning::complete(&local, job, &done).await }))
    }
    fn fail_cleaning_job(&self, job: LeaseId, failure: CleaningFailure) -> Answer<'_, Cleaning> {
        let limits = self.place.limits;
        self.on_shard(move |local| Box::pin(async move { cleaning::fail(&local, &limits, job, &failure) }))
    }
    fn scrub(&self) -> Answer<'_, Scrub> {
        let limits = self.place.limits;
        self.on_shard(move |local| Box::pin(async move { Ok(scrub::state(&local, &limits)) }))
    }
    fn set_scrub(&self, set: SetScrub) -> Answer<'_, Scrub> {
        let limits = self.place.limits;
        self.on_shard(move |local| Box::pin(async move { Ok(scrub::set(&local, &limits, set)) }))
    }
    fn metrics(&self) -> Answer<'_, String> {
        Box::pin(metrics::metrics(self))
    }

    fn read(&self, target: Target, offset: u64, len: u32) -> Answer<'_, Bytes> {
        self.on_shard(move |local| Box::pin(async move { sessions::read(&local, &target, offset, len).await }))
    }
    fn write(&self, volume: Name, offset: u64, data: Bytes) -> Answer<'_, ()> {
        self.on_shard(move |local| Box::pin(async move { sessions::write(&local, volume, offset, data).await }))
    }
    fn zero(&self, volume: Name, offset: u64, len: u64) -> Answer<'_, ()> {
        self.on_shard(move |local| Box::pin(async move { sessions::zero(&local, volume, offset, len).await }))
    }
    fn flush(&self, volume: Name) -> Answer<'_, ()> {
        self.on_shard(move |local| Box::pin(async move { sessions::flush(&local, volume).await }))
    }
    fn extents(&self, target: Target, offset: u64, len: u64) -> Answer<'_, ExtentMap> {
        self.on_shard(move |local| Box::pin(async move { sessions::extents(&local, &target, offset, len).await }))
    }
}
