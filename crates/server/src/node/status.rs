// SPDX-License-Identifier: Apache-2.0
//! The state of the node at one moment, for people.
//!
//! What a person should do something about is a sentence
//! among the warnings, beside standing in the table where
//! it belongs.

use super::cluster::patiently;
use super::control::Node;
use super::describe;
use super::local::Local;
use crate::api::ControlError;
use crate::api::model::{Ending, Fill, Journal, PoolStatus, Status, StoreState, VolumeState, VolumeStatus};
use varve_coord::VolumeRecord;
use varve_engine::{JournalCounts, ShardCounts};
use varve_types::{BLOCK, Name};

/// Share of the journal, in percent, from which on people are warned.
const JOURNAL_FULL: u64 = 90;

/// What the shard's thread knows.
struct Facts {
    counts: ShardCounts,
    /// With their places.
    journals: Vec<(String, JournalCounts)>,
    volumes: Vec<VolumeStatus>,
    endings: Vec<Ending>,
    warnings: Vec<String>,
}

async fn facts(local: &Local) -> Result<Facts, ControlError> {
    let mut warnings = Vec::new();
    let mut volumes = Vec::new();
    for open in local.shard.volumes() {
        let status = describe::at_work(local, &open);
        if let (VolumeState::Failed | VolumeState::Degraded, Some(why)) = describe::state(local, &open) {
            warnings.push(format!("Volume {}: {why}.", status.name));
        }
        volumes.push(status);
    }
    for (id, unopened) in local.unopened() {
        let state = if unopened.may_pass() { VolumeState::Recovering } else { VolumeState::Failed };
        let looked = match patiently(local.records().load_volume(id)).await {
            Ok((record, _)) => local.shard.look_at(&record).await.ok(),
            Err(_) => None,
        };
        warnings.push(format!("Volume {} is not served: {}.", unopened.name, unopened.error));
        volumes.push(VolumeStatus {
            name: unopened.name,
            pool: unopened.pool,
            state,
            size_bytes: looked.map_or(0, |looked| looked.size),
            live_bytes: 0,
            dirty_bytes: 0,
            reclaim_bytes: 0,
            write_rate_bytes: None,
            attached: 0,
            io: crate::api::model::IoCounters::default(),
        });
    }
    volumes.sort_by(|a, b| a.name.cmp(&b.name));
    let endings = local.shard.endings().into_iter().map(ending).collect();
    let journals = local.journals.counts(&local.shard);
    Ok(Facts { counts: local.shard.counts(), journals, volumes, endings, warnings })
}

fn ending(ending: varve_engine::Ending) -> Ending {
    Ending {
        volume: ending.name,
        volume_id: ending.volume,
        timeline: ending.timeline,
        whole: ending.whole,
        since_ms: ending.since_ms,
        deleted_objects: ending.deleted,
        left_objects: ending.left,
        message: ending.waits,
    }
}

/// What coordination has of pools and volumes.
async fn recorded(node: &Node) -> varve_coord::Result<(Vec<VolumeRecord>, Vec<(Name, String)>)> {
    let records = node.pools.records();
    let volumes = records.list_volumes().await?.into_iter().map(|(volume, _)| volume).collect();
    Ok((volumes, records.list_pools().await?.into_iter().map(|(pool, _)| (pool.name, pool.store)).collect()))
}

/// The pools and how their stores are; where coordination does not answer, those that are open here.
async fn pools(node: &Node, here: &[VolumeStatus], warnings: &mut Vec<String>) -> Vec<PoolStatus> {
    let (inside, all) = match patiently(recorded(node)).await {
        Ok((volumes, pools)) => {
            let kept = volumes.into_iter().filter(|volume| volume.deleted.is_none());
            (kept.map(|volume| volume.pool).collect::<Vec<_>>(), pools)
        }
        Err(error) => {
            warnings.push(format!("Coordination does not answer: {error}."));
            let known = node.pools.names().into_iter();
            let pools = known.map(|name| (name.clone(), node.pools.url(&name).unwrap_or_default())).collect();
            (here.iter().map(|volume| volume.pool.clone()).collect(), pools)
        }
    };
    let mut pools = Vec::new();
    for (name, store) in all {
        let (state, message) = node.pools.state(&name);
        if state != StoreState::Ok {
            let why = message.clone().unwrap_or_else(|| "its store was not asked yet".to_owned());
            warnings.push(format!("Pool {name}: {why}."));
        }
        let volumes = inside.iter().filter(|pool| **pool == name).count() as u64;
        let waiting = node.pools.waiting(&name);
        let oldest_ms = u64::try_from(waiting.oldest.as_millis()).unwrap_or(u64::MAX);
        pools.push(PoolStatus {
            name,
            store,
            state,
            message,
            volumes,
            requests: waiting.requests,
            oldest_request_ms: (waiting.requests > 0).then_some(oldest_ms),
        });
    }
    pools
}

/// What is to be said of the node's part in its cluster.
fn cluster_warning(node: &Node, warnings: &mut Vec<String>) {
    if let Some(why) = node.member.as_ref().and_then(|member| member.trouble()) {
        warnings.push(format!("The cluster may take this node for dead, since etcd does not answer it: {why}."));
    }
}

pub(super) async fn status(node: &Node) -> Result<Status, ControlError> {
    let Facts { counts, journals, volumes, endings, mut warnings } =
        node.on_shard(|local| Box::pin(async move { facts(&local).await })).await?;
    let pools = pools(node, &volumes, &mut warnings).await;
    cluster_warning(node, &mut warnings);
    journal_warnings(&journals, &mut warnings);
    slow_warnings(&volumes, &mut warnings);
    cache_warnings(node.place.caches, &counts, &mut warnings);
    let (place, limits) = (&node.place, node.place.limits);
    map_warning(&counts.map, limits.map_ram, &mut warnings);
    Ok(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: place.name.clone(),
        node_id: node.member.as_ref().map(|member| member.id()),
        cluster: Some(node.pools.cluster()),
        started_ms: place.started_ms,
        uptime_ms: u64::try_from(place.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        data: place.data.display().to_string(),
        nbd_socket: place.nbd_socket.display().to_string(),
        nbd_listen: place.nbd_listen.map(|address| address.to_string()),
        edge_socket: place.edge_socket.display().to_string(),
        edge_listen: place.edge_listen.map(|address| address.to_string()),
        api_listen: place.api_listen.map(|address| address.to_string()),
        pools,
        volumes,
        journals: journals.into_iter().map(journal).collect(),
        layers: Fill { used_bytes: counts.layer_ram_bytes, limit_bytes: limits.layer_ram },
        map: Fill { used_bytes: counts.map.bytes() as u64, limit_bytes: limits.map_ram },
        cache: Fill { used_bytes: counts.cache.blocks * BLOCK, limit_bytes: limits.cache_ram },
        ssd_cache: Fill { used_bytes: counts.ssd.blocks * BLOCK, limit_bytes: counts.ssd.bytes },
        ssd_cache_hits: counts.ssd.hits,
        ssd_cache_misses: counts.ssd.misses,
        cache_hits: counts.cache.hits,
        cache_misses: counts.cache.misses,
        endings,
        gone_volumes: counts.gone.volumes,
        gone_bytes: counts.gone.table.bytes,
        warnings,
    })
}

/// A journal, as it is told.
fn journal((path, counts): (String, JournalCounts)) -> Journal {
    Journal {
        shard: 0,
        path,
        fill: Fill { used_bytes: counts.used, limit_bytes: counts.bytes },
        failed: counts.failed,
        leaving: counts.leaving,
    }
}

/// What is to be said of journals.
fn journal_warnings(journals: &[(String, JournalCounts)], warnings: &mut Vec<String>) {
    for (path, counts) in journals {
        if counts.failed {
            warnings.push(format!(
                "The journal {path} has failed: flushes of its volumes wait for the store now. Look at its disk, then start the node anew."
            ));
        } else if counts.used * 100 >= counts.bytes * JOURNAL_FULL {
            warnings.push(format!("The journal {path} is nearly full: writers wait for the store."));
        }
        if counts.leaving {
            warnings.push(format!(
                "The journal {path} is no longer configured, and still needed: volumes that are not served have changes there."
            ));
        }
    }
}

/// What is to be said of volumes whose store does not keep up.
fn slow_warnings(volumes: &[VolumeStatus], warnings: &mut Vec<String>) {
    for volume in volumes {
        if let Some(rate) = volume.write_rate_bytes {
            warnings.push(format!(
                "Writes to {} are slowed to {} a second: its store takes less than is written. It passes by itself once the store keeps up.",
                volume.name,
                varve_types::format_size(rate)
            ));
        }
    }
}

/// What is to be said of maps that have too little RAM.
fn map_warning(map: &varve_engine::MapCounts, limit: u64, warnings: &mut Vec<String>) {
    if (map.table_bytes + map.head_bytes) as u64 > limit / 4 * 3 {
        warnings.push(format!(
            "Segment tables take {} of the {} that there are for maps, so that most look-ups read the store: raise map-ram.",
            varve_types::format_size(map.table_bytes as u64),
            varve_types::format_size(limit)
        ));
    }
}

/// What is to be said of cache devices that take no part.
fn cache_warnings(wanted: u64, counts: &varve_engine::ShardCounts, warnings: &mut Vec<String>) {
    let missing = wanted.saturating_sub(counts.ssd.devices);
    if missing > 0 {
        warnings.push(format!(
            "{missing} of {wanted} cache devices could not be opened, and reads go to the stores: the log says why. Mend that, then start the node anew."
        ));
    }
    if counts.ssd.resting > 0 {
        warnings.push("A cache device fails or hangs, and reads go to the stores: look at its disk.".to_owned());
    }
}
