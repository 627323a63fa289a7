// SPDX-License-Identifier: Apache-2.0
//! The metrics of the node in the text form of Prometheus (OpenMetrics): gathered when they are asked for.
//!
//! Names begin with `varve_`; a unit stands last in a name; counters grow since the start of the node. Labels are
//! `volume` and `pool`, which people chose and which can be many: there is one row a volume in each family and no
//! more.

use super::control::Node;
use super::describe;
use super::local::Local;
use super::watched::StoreCounts;
use crate::api::ControlError;
use crate::api::model::{StoreState, VolumeState};
use crate::nbd::Counts;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;
use std::fmt;
use varve_engine::{ShardCounts, VolumeCounts};
use varve_types::BLOCK;

/// A volume's numbers.
#[derive(Debug)]
struct VolumeRow {
    name: String,
    pool: String,
    size: u64,
    ready: bool,
    attached: u64,
    counts: VolumeCounts,
    io: Counts,
}

/// A pool's numbers.
#[derive(Debug)]
struct PoolRow {
    name: String,
    ok: bool,
    counts: StoreCounts,
}

/// All numbers of a moment.
#[derive(Debug)]
struct Moment {
    shard: ShardCounts,
    volumes: Vec<VolumeRow>,
    unserved: u64,
    pools: Vec<PoolRow>,
    uptime_s: f64,
}

/// A family with a row a thing: its name, its help, the number of a row.
type Family<R> = (&'static str, &'static str, fn(&R) -> u64);

const VOLUME_GAUGES: &[Family<VolumeRow>] = &[
    ("volume_size_bytes", "Size as clients see it", |v| v.size),
    ("volume_ready", "Whether it serves and all that it needs answers", |v| u64::from(v.ready)),
    ("volume_attachments", "Connections and other users", |v| v.attached),
    ("volume_live_blocks", "Blocks in the store that are live", |v| v.counts.table.live_blocks),
    ("volume_dead_blocks", "Blocks in the store that nobody needs", |v| {
        v.counts.table.blocks.saturating_sub(v.counts.table.live_blocks)
    }),
    ("volume_segments", "Segments in the store", |v| v.counts.table.segments),
    ("volume_segments_partly_dead", "Segments some of whose blocks are dead", |v| v.counts.table.partly_dead),
    ("volume_stored_bytes", "Bytes of its objects in the store", |v| v.counts.table.bytes),
    ("volume_unsealed_bytes", "Bytes written that the store does not have yet", |v| v.counts.unsealed_bytes),
    ("volume_sealed_layers", "Layers that wait for the store", |v| v.counts.sealed_layers as u64),
    ("volume_overlay_entries", "Entries that wait for a checkpoint", |v| v.counts.overlay_entries as u64),
    ("volume_map_ram_bytes", "Bytes of its map in RAM", |v| v.counts.map_ram_bytes as u64),
    ("volume_dead_objects", "Objects that wait to be deleted", |v| v.counts.dead_objects as u64),
    ("volume_reclaim_bytes", "Bytes discarded in large pieces and not looked through yet, at most", |v| {
        v.counts.reclaim_bytes
    }),
    ("volume_limit_waiting", "Requests that its limits hold back at this moment", |v| v.counts.limits.waiting),
];

const VOLUME_COUNTERS: &[Family<VolumeRow>] = &[
    ("volume_reads", "Read requests over NBD", |v| v.io.reads),
    ("volume_read_bytes", "Bytes read over NBD", |v| v.io.read_bytes),
    ("volume_writes", "Write requests over NBD", |v| v.io.writes),
    ("volume_written_bytes", "Bytes written over NBD", |v| v.io.write_bytes),
    ("volume_flushes", "Flushes over NBD", |v| v.io.flushes),
    ("volume_discards", "Discards and writes of zeroes over NBD", |v| v.io.discards),
    ("volume_batches", "Batches of requests: one commit each", |v| v.io.batches),
    ("volume_errors", "Requests over NBD answered with an error", |v| v.io.errors),
    ("volume_limited_requests", "Requests that its limits have held back", |v| v.counts.limits.requests),
    ("volume_limited_microseconds", "For how long, all together", |v| v.counts.limits.waited_us),
];

const POOL_COUNTERS: &[Family<PoolRow>] = &[
    ("store_puts", "Objects put", |p| p.counts.puts),
    ("store_put_bytes", "Bytes of the objects put", |p| p.counts.put_bytes),
    ("store_gets", "Reads of objects", |p| p.counts.gets),
    ("store_get_bytes", "Bytes read of objects", |p| p.counts.get_bytes),
    ("store_deletes", "Objects deleted", |p| p.counts.deletes),
    ("store_errors", "Operations that failed, tries included", |p| p.counts.errors),
];

const SHARD_GAUGES: &[Family<ShardCounts>] = &[
    ("journal_bytes", "Size of the journal", |s| s.journal_bytes),
    ("journal_used_bytes", "Bytes of the journal in use", |s| s.journal_used),
    ("journal_failed", "Whether the journal has failed", |s| u64::from(s.journal_failed)),
    ("layer_ram_bytes", "RAM for what the store does not have yet", |s| s.layer_ram_bytes),
    ("cache_bytes", "RAM of the read cache in use", |s| s.cache.blocks * BLOCK),
    ("clean_paused", "Whether cleaning is paused", |s| u64::from(s.clean.paused)),
    ("scrub_findings", "Stored objects that scrubbing has found damaged or missing", |s| s.scrub.findings),
    ("scrub_rate_bytes", "Bytes that scrubbing may read in a second; 0 where it is off", |s| s.scrub.rate),
    ("clean_rate_bytes", "Bytes that cleaning may read and put in a second; 0 for no bound", |s| s.clean.rate),
];

const SHARD_COUNTERS: &[Family<ShardCounts>] = &[
    ("cache_hits", "Blocks that the cache had", |s| s.cache.hits),
    ("cache_misses", "Blocks that the cache did not have", |s| s.cache.misses),
    ("clean_jobs", "Jobs of cleaning that were done", |s| s.clean.jobs),
    ("clean_failed_jobs", "Jobs of cleaning that were given up, to be tried again", |s| s.clean.failed),
    ("clean_read_bytes", "Bytes of blocks that cleaning has read", |s| s.clean.read_bytes),
    ("scrub_passes", "Passes of scrubbing over all objects", |s| s.scrub.passes),
    ("scrub_objects", "Objects that scrubbing has proved", |s| s.scrub.objects),
    ("scrub_read_bytes", "Bytes of them", |s| s.scrub.bytes),
    ("clean_put_bytes", "Bytes that cleaning has put", |s| s.clean.put_bytes),
    ("cache_damaged", "Blocks of the cache that failed verification and were dropped", |s| s.cache.damaged),
];

fn metric(value: u64, kind: MetricType, encoder: prometheus_client::encoding::MetricEncoder<'_>) -> fmt::Result {
    match kind {
        MetricType::Counter => ConstCounter::new(value).encode(encoder),
        _ => ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder),
    }
}

/// Writes families that have a row a thing.
fn families<R, const L: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    families: &[Family<R>],
    kind: MetricType,
    rows: &[R],
    labels: impl for<'r> Fn(&'r R) -> [(&'static str, &'r str); L],
) -> fmt::Result {
    for (name, help, number) in families {
        let mut family = encoder.encode_descriptor(name, help, None, kind)?;
        for row in rows {
            let labels = labels(row);
            metric(number(row), kind, family.encode_family(&labels.as_slice())?)?;
        }
    }
    Ok(())
}

impl Collector for Moment {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (gauge, counter) = (<ConstGauge as TypedMetric>::TYPE, <ConstCounter as TypedMetric>::TYPE);
        ConstGauge::new(self.uptime_s).encode(encoder.encode_descriptor(
            "uptime_seconds",
            "Since the start",
            None,
            gauge,
        )?)?;
        for (name, help, value) in [
            ("volumes", "Volumes that are open", self.volumes.len() as u64),
            ("volumes_unserved", "Volumes that could not be opened", self.unserved),
        ] {
            metric(value, gauge, encoder.encode_descriptor(name, help, None, gauge)?)?;
        }
        for (list, kind) in [(SHARD_GAUGES, gauge), (SHARD_COUNTERS, counter)] {
            for (name, help, number) in list {
                metric(number(&self.shard), kind, encoder.encode_descriptor(name, help, None, kind)?)?;
            }
        }
        families(&mut encoder, VOLUME_GAUGES, gauge, &self.volumes, volume_labels)?;
        families(&mut encoder, VOLUME_COUNTERS, counter, &self.volumes, volume_labels)?;
        let ok: &[Family<PoolRow>] = &[("store_ok", "Whether the store answers and has room", |p| u64::from(p.ok))];
        families(&mut encoder, ok, gauge, &self.pools, pool_labels)?;
        families(&mut encoder, POOL_COUNTERS, counter, &self.pools, pool_labels)
    }
}

fn volume_labels(row: &VolumeRow) -> [(&'static str, &str); 2] {
    [("volume", &row.name), ("pool", &row.pool)]
}

fn pool_labels(row: &PoolRow) -> [(&'static str, &str); 1] {
    [("pool", &row.name)]
}

fn volume_rows(local: &Local) -> Vec<VolumeRow> {
    let row = |open: std::rc::Rc<varve_engine::Volume>| VolumeRow {
        name: open.name().to_string(),
        pool: open.record().pool.to_string(),
        size: open.size(),
        ready: describe::state(local, &open).0 == VolumeState::Ready,
        attached: open.attachments().len() as u64,
        counts: open.counts(),
        io: local.connections.stats(open.id()).counts(),
    };
    local.shard.volumes().into_iter().map(row).collect()
}

pub(super) async fn metrics(node: &Node) -> Result<String, ControlError> {
    let (shard, volumes, unserved) = node
        .on_shard(|local| {
            Box::pin(async move { Ok((local.shard.counts(), volume_rows(&local), local.unopened().len() as u64)) })
        })
        .await?;
    let pools = node.pools.stores().into_iter().map(|(name, store)| PoolRow {
        ok: node.pools.state(&name).0 == StoreState::Ok,
        name: name.to_string(),
        counts: store.counts(),
    });
    let pools = pools.collect();
    let moment = Moment { shard, volumes, unserved, pools, uptime_s: node.place.started.elapsed().as_secs_f64() };
    let mut registry = Registry::with_prefix("varve");
    registry.register_collector(Box::new(moment));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)
        .map_err(|error| ControlError::new(varve_types::ErrorKind::Internal, format!("the metrics: {error}")))?;
    Ok(text)
}
