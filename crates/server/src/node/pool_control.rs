// SPDX-License-Identifier: Apache-2.0
//! The operations on pools.
//!
//! A pool is recorded in coordination first and made known to the shard then; a crash in between is mended by the
//! next start, which opens every pool that is recorded. Where a pool goes it is the other way round: the record
//! goes first, if the pool has no volumes, and the shard forgets it then.

use super::control::Node;
use super::coord_error;
use super::pools::Opened;
use super::volume_control::{apply, default_pool};
use crate::api::ControlError;
use crate::api::model::{NewPool, Pool, Setting};
use std::collections::BTreeMap;
use std::sync::Arc;
use varve_coord::PoolRecord;
use varve_engine::PoolStore;
use varve_env::ObjectStore;
use varve_types::{Name, Overrides, Settings};

type Answer<T> = Result<T, ControlError>;

async fn describe(node: &Node, record: PoolRecord) -> Answer<Pool> {
    let volumes = node.pools.records().list_volumes().await.map_err(coord_error)?;
    let inside = volumes.into_iter().map(|(volume, _)| volume);
    let inside = inside.filter(|volume| volume.pool == record.name && volume.deleted.is_none());
    let mut volumes: Vec<_> = inside.map(|volume| volume.name).collect();
    volumes.sort();
    let settings = Settings::describe(&Overrides::default(), &record.settings);
    Ok(Pool {
        name: record.name,
        store: record.store,
        settings: Setting::rows(settings),
        volumes,
        created_ms: record.created_ms,
    })
}

/// Makes an opened pool known to the shard, and opens its volumes.
pub(super) async fn hand_over(node: &Node, record: &PoolRecord, opened: Opened) -> Answer<()> {
    let (name, settings) = (record.name.clone(), record.settings);
    node.on_shard(move |local| {
        Box::pin(async move {
            let store: Arc<dyn ObjectStore> = opened.store;
            local.pool_came(&name, PoolStore::new(store, opened.owner), settings).await
        })
    })
    .await
}

pub(super) async fn list(node: &Node) -> Answer<Vec<Pool>> {
    let mut all = Vec::new();
    for (record, _) in node.pools.records().list_pools().await.map_err(coord_error)? {
        all.push(describe(node, record).await?);
    }
    Ok(all)
}

pub(super) async fn show(node: &Node, name: Name) -> Answer<Pool> {
    let (record, _) = node.pools.records().load_pool(&name).await.map_err(coord_error)?;
    describe(node, record).await
}

pub(super) async fn create(node: &Node, new: NewPool) -> Answer<Pool> {
    let (record, opened) = node.pools.create(&new.name, &new.store, Overrides::default()).await?;
    hand_over(node, &record, opened).await?;
    describe(node, record).await
}

pub(super) async fn set(node: &Node, name: Name, new: BTreeMap<String, String>) -> Answer<Pool> {
    let (mut record, revision) = node.pools.records().load_pool(&name).await.map_err(coord_error)?;
    apply(&mut record.settings, &new)?;
    node.pools.records().update_pool(revision, &record).await.map_err(coord_error)?;
    let settings = record.settings;
    node.on_shard(move |local| {
        Box::pin(async move {
            local.shard.set_pool(&name, settings);
            Ok(())
        })
    })
    .await?;
    describe(node, record).await
}

pub(super) async fn delete(node: &Node, name: Name) -> Answer<Pool> {
    if name == default_pool() {
        return Err(ControlError::conflict("the pool default is that of `varve up --store`, and stays"));
    }
    let (record, revision) = node.pools.records().load_pool(&name).await.map_err(coord_error)?;
    let shown = describe(node, record).await?;
    node.pools.records().remove_pool(&name, revision).await.map_err(coord_error)?;
    forget(node, name).await?;
    Ok(shown)
}

/// Forgets a pool that is recorded no more.
pub(super) async fn forget(node: &Node, name: Name) -> Answer<()> {
    node.pools.remove(&name);
    node.on_shard(move |local| {
        Box::pin(async move {
            local.shard.remove_pool(&name);
            Ok(())
        })
    })
    .await
}
