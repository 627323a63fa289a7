// SPDX-License-Identifier: Apache-2.0
//! The long operations: checks, flattening, the import of a pool.
//!
//! Each runs on the shard's thread, in slices between which everybody else is
//! served, and tells how far it is. None holds anything that a crash would hurt: it
//! is begun again.

use super::control::Node;
use super::local::Local;
use super::{coord_error, describe, pool_control, store_error};
use crate::api::model::{CheckReport, PoolImport, ProgressUnit, Volume, VolumeCheck};
use crate::api::{ControlError, ProgressHandle};
use std::rc::Rc;
use std::time::Instant;
use varve_engine::{Flattened, Volume as Open, import_pool};
use varve_env::ObjectStore;
use varve_store::StoreUrl;
use varve_types::{Name, Overrides};

type Answer<T> = Result<T, ControlError>;

/// Most names that are tried for an imported pool.
const MOST_NAMES: u32 = 1000;

/// Tells a job the progress of one of its steps, which counts from zero.
struct Step<'a> {
    progress: &'a ProgressHandle,
    /// What the steps before have done.
    before: u64,
    last: std::cell::Cell<u64>,
}

impl<'a> Step<'a> {
    fn new(progress: &'a ProgressHandle, message: String) -> Self {
        progress.message(message);
        Self { progress, before: progress.snapshot().done, last: std::cell::Cell::new(0) }
    }

    fn tell(&self, done: u64, total: u64) {
        self.progress.total(self.before + total);
        self.progress.add(done.saturating_sub(self.last.replace(done.max(self.last.get()))));
    }
}

async fn check_volume(volume: &Rc<Open>, progress: &ProgressHandle) -> Answer<VolumeCheck> {
    let name = volume.name();
    let step = Step::new(progress, name.to_string());
    let snapshots = volume.snapshots().await?.len() as u64;
    let report = volume.check(&|done, total| step.tell(done, total)).await?;
    let mut check = VolumeCheck {
        snapshots,
        blocks_verified: report.blocks_verified,
        bytes_verified: report.bytes_verified,
        objects_read: report.objects,
        counts_compared: report.counts_compared,
        ..VolumeCheck::new(name)
    };
    for problem in report.problems {
        check.error(problem.object, problem.message);
    }
    Ok(check)
}

/// Verifies one volume or all. A volume that is not served for a reason that lies in its data is an error found.
pub(super) async fn check(local: &Local, name: Option<Name>, progress: &ProgressHandle) -> Answer<CheckReport> {
    let start = Instant::now();
    let mut report = CheckReport::default();
    for unopened in local.unopened().into_values() {
        if name.as_ref().is_some_and(|name| *name != unopened.name) {
            continue;
        }
        let mut check = VolumeCheck::new(unopened.name.clone());
        check.error(format!("volume {}", unopened.name), unopened.error.to_string());
        report.volumes.push(check);
    }
    let volumes = match &name {
        Some(_) if !report.volumes.is_empty() => Vec::new(),
        Some(name) => vec![local.find(name).await?],
        None => local.shard.volumes(),
    };
    for volume in volumes {
        report.volumes.push(check_volume(&volume, progress).await?);
    }
    report.volumes.sort_by(|a, b| a.volume.cmp(&b.volume));
    report.duration_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(report)
}

/// What still keeps a flattened volume from being independent, as a sentence.
async fn keeps(local: &Local, name: &Name, done: &Flattened) -> String {
    let mut why = Vec::new();
    if !done.snapshots.is_empty() {
        let names: Vec<_> = done.snapshots.iter().map(Name::as_str).collect();
        why.push(format!("its snapshots {} were taken before", names.join(", ")));
    }
    if !done.clones.is_empty() {
        let mut names = Vec::new();
        for id in &done.clones {
            let known = local.records().load_volume(*id).await;
            names.push(known.map_or_else(|_| id.to_string(), |(record, _)| record.name.to_string()));
        }
        why.push(format!("{} were cloned from it", names.join(", ")));
    }
    if done.rolled_back {
        why.push(
            "a rollback of it can still be undone (until its window ends), or clones were made of what it hid"
                .to_owned(),
        );
    }
    let why = why.join("; ");
    format!(
        "volume {name} has its own copy of all its data now, but its history still needs its origin: {why}. Delete these, and flatten again"
    )
}

pub(super) async fn flatten(local: &Local, name: &Name, progress: &ProgressHandle) -> Answer<Volume> {
    let volume = local.find(name).await?;
    let step = Step::new(progress, name.to_string());
    let done = local.shard.flatten(name, |done, total| step.tell(done, total)).await?;
    if !done.independent {
        return Err(ControlError::conflict(keeps(local, name, &done).await));
    }
    describe::volume(local, &volume).await
}

/// The name for a pool in this store: the one that it has here already, or the first that is free.
async fn pool_name(node: &Node, url: &str) -> Answer<Name> {
    let pools = node.pools.records().list_pools().await.map_err(coord_error)?;
    if let Some((pool, _)) = pools.iter().find(|(pool, _)| pool.store == url) {
        return Ok(pool.name.clone());
    }
    let names = (1..=MOST_NAMES).map(|n| if n == 1 { "imported".to_owned() } else { format!("imported-{n}") });
    let mut free = names.filter(|name| pools.iter().all(|(pool, _)| pool.name.as_str() != name));
    let name = free.next().and_then(|name| name.parse().ok());
    name.ok_or_else(|| ControlError::conflict(format!("there are {MOST_NAMES} imported pools: delete some")))
}

/// Makes this node of a cluster the owner of the volumes of a pool that have none.
async fn adopt(node: &Node, pool: &Name) -> Answer<()> {
    let Some(me) = node.member.as_ref().map(|member| member.id()) else { return Ok(()) };
    let records = node.pools.records();
    for (volume, _) in records.list_volumes().await.map_err(coord_error)? {
        if volume.pool != *pool || volume.owner.is_some() {
            continue;
        }
        let adopt = |record: &mut varve_coord::VolumeRecord| -> varve_coord::Result<()> {
            record.owner = record.owner.or(Some(me));
            Ok(())
        };
        records.modify_volume(volume.id, adopt).await.map_err(coord_error)?;
    }
    Ok(())
}

/// Takes over the pool that lies in a store, and serves its volumes.
pub(super) async fn import(node: &Node, store: String, progress: ProgressHandle) -> Answer<PoolImport> {
    let url = StoreUrl::parse(&store).map_err(store_error)?.to_string();
    let pool = pool_name(node, &url).await?;
    let open = super::pools::open_store(&url).await?;
    let cluster = node.pools.cluster();
    progress.unit(ProgressUnit::Items);
    let (name, address) = (pool.clone(), url.clone());
    let imported = node.on_shard(move |local| {
        Box::pin(async move {
            let store: std::sync::Arc<dyn ObjectStore> = open;
            // Nothing is made in the pool meanwhile: it would be taken for something that was found.
            let _alone = local.shard.begin_import(&name).await?;
            let step = Step::new(&progress, format!("volumes of {address}"));
            let import = varve_engine::PoolImport {
                env: &*local.env,
                coord: local.coord(),
                store,
                cluster,
                pool: name,
                url: address,
                settings: Overrides::default(),
            };
            Ok(import_pool(import, |done, total| step.tell(done, total)).await?)
        })
    });
    let imported = imported.await?;
    let (record, _) = node.pools.records().load_pool(&pool).await.map_err(coord_error)?;
    let opened = node.pools.open(&record).await?;
    adopt(node, &pool).await?;
    pool_control::hand_over(node, &record, opened).await?;
    let mut warnings = Vec::new();
    for volume in &imported.volumes {
        if let Some(was) = &volume.was {
            warnings.push(format!("volume {was} is called {} here, since the name was taken", volume.name));
        }
    }
    warnings
        .extend(imported.failures.iter().map(|failure| format!("{} was left out: {}", failure.what, failure.error)));
    Ok(PoolImport { pool: pool_control::show(node, pool).await?, warnings })
}
