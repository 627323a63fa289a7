// SPDX-License-Identifier: Apache-2.0
//! The metrics of the node in the text form of Prometheus (OpenMetrics): gathered when they are asked for.
//!
//! | file | holds |
//! |---|---|
//! | `rows` | the tables: every metric, its help, and where its value is |
//! | `family` | how a table becomes text |
//!
//! What belongs to the shard is gathered in one call on its thread, so it is of one moment; what stores have come to is read from counters
//! that their threads add to, and is of the moment after.

mod family;
mod rows;

use super::control::Node;
use super::describe;
use super::local::Local;
use super::watched::StoreOperation;
use crate::api::ControlError;
use crate::api::model::{StoreState, VolumeState};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;
use rows::{CacheRow, JournalRow, NodeRow, PoolRow, RequestRow, StageRow, StoreRow, VolumeRow};
use std::fmt;
use varve_engine::{CacheCounts, Limits, ShardCounts, SsdCounts};
use varve_serve::Operation;

/// What there is to know of a metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricInfo {
    /// Its name, without what is put behind it for the samples of counters and histograms.
    pub name: String,
    /// `gauge`, `counter` or `histogram`.
    pub kind: &'static str,
    /// What its labels are called.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

impl MetricInfo {
    /// What its samples are called, as queries name them.
    #[must_use]
    pub fn samples(&self) -> Vec<String> {
        let endings: &[&str] = match self.kind {
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        endings.iter().map(|ending| format!("{}{ending}", self.name)).collect()
    }
}

/// Every metric of a node, in the order in which it tells them.
#[must_use]
pub fn metric_infos() -> Vec<MetricInfo> {
    family::infos::<NodeRow>()
        .chain(family::infos::<JournalRow>())
        .chain(family::infos::<CacheRow>())
        .chain(family::infos::<StageRow>())
        .chain(family::infos::<VolumeRow>())
        .chain(family::infos::<RequestRow>())
        .chain(family::infos::<PoolRow>())
        .chain(family::infos::<StoreRow>())
        .collect()
}

/// All numbers of a moment.
#[derive(Debug)]
struct Moment {
    node: NodeRow,
    journals: Vec<JournalRow>,
    caches: Vec<CacheRow>,
    stages: Vec<StageRow>,
    volumes: Vec<VolumeRow>,
    requests: Vec<RequestRow>,
    pools: Vec<PoolRow>,
    stores: Vec<StoreRow>,
}

impl Collector for Moment {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        family::write(&mut encoder, std::slice::from_ref(&self.node))?;
        family::write(&mut encoder, &self.journals)?;
        family::write(&mut encoder, &self.caches)?;
        family::write(&mut encoder, &self.stages)?;
        family::write(&mut encoder, &self.volumes)?;
        family::write(&mut encoder, &self.requests)?;
        family::write(&mut encoder, &self.pools)?;
        family::write(&mut encoder, &self.stores)
    }
}

fn text(moment: Moment) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix(family::PREFIX);
    registry.register_collector(Box::new(moment));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

/// What the shard's thread knows.
fn of_shard(local: &Local, limits: Limits, uptime_s: f64) -> Moment {
    let shard = local.shard.counts();
    let (mut volumes, mut requests) = (Vec::new(), Vec::new());
    for open in local.shard.volumes() {
        let (name, pool) = (open.name().to_string(), open.record().pool.to_string());
        let stats = local.connections.stats(open.id());
        requests.extend(Operation::ALL.map(|operation| RequestRow {
            volume: name.clone(),
            pool: pool.clone(),
            operation: operation.name(),
            took: stats.latency(operation),
        }));
        volumes.push(VolumeRow {
            name,
            pool,
            size: open.size(),
            ready: describe::state(local, &open).0 == VolumeState::Ready,
            attached: open.attachments().len() as u64,
            counts: open.counts(),
            mirror_wanted: describe::wants_mirror(&open),
            mirror: open.mirror(),
            io: stats.counts(),
        });
    }
    let unserved = local.unopened().len() as u64;
    let copies = local.mirroring.as_ref().map(|mirroring| mirroring.copies.counts()).unwrap_or_default();
    Moment {
        node: NodeRow { shard, limits, volumes: volumes.len() as u64, unserved, copies, uptime_s },
        journals: local
            .journals
            .counts(&local.shard)
            .into_iter()
            .map(|(path, counts)| JournalRow { path, counts })
            .collect(),
        caches: caches(&limits, &shard),
        stages: local.shard.stages().map(|(stage, times)| StageRow { stage: stage.name(), times }).collect(),
        volumes,
        requests,
        pools: Vec::new(),
        stores: Vec::new(),
    }
}

pub(super) async fn metrics(node: &Node) -> Result<String, ControlError> {
    let (limits, uptime_s) = (node.place.limits, node.place.started.elapsed().as_secs_f64());
    let gather = move |local: std::rc::Rc<Local>| -> varve_env::LocalFuture<Result<Moment, ControlError>> {
        Box::pin(async move { Ok(of_shard(&local, limits, uptime_s)) })
    };
    let mut moment = node.on_shard(gather).await?;
    for (name, store) in node.pools.stores() {
        let (ok, name) = (node.pools.state(&name).0 == StoreState::Ok, name.to_string());
        moment.stores.extend(StoreOperation::ALL.map(|operation| StoreRow {
            pool: name.clone(),
            operation: operation.name(),
            took: store.took(operation),
        }));
        moment.pools.push(PoolRow { name, ok, waiting: store.waiting(), counts: store.counts() });
    }
    let failed = |error| ControlError::new(varve_types::ErrorKind::Internal, format!("the metrics: {error}"));
    text(moment).map_err(failed)
}

/// The levels of the read cache.
fn caches(limits: &Limits, shard: &ShardCounts) -> Vec<CacheRow> {
    let SsdCounts { hits, misses, damaged, blocks, bytes, .. } = shard.ssd;
    let ram = CacheRow { level: "ram", limit_bytes: limits.cache_ram, counts: shard.cache };
    let counts = CacheCounts { hits, misses, damaged, blocks };
    vec![ram, CacheRow { level: "ssd", limit_bytes: bytes, counts }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::time::Duration;
    use varve_engine::CopyCounts;
    use varve_types::{BUCKETS, Histogram};

    fn request(operation: &'static str, took: &[u64]) -> RequestRow {
        let mut histogram = Histogram::default();
        took.iter().for_each(|micros| histogram.add(Duration::from_micros(*micros)));
        RequestRow { volume: "disk".to_owned(), pool: "p".to_owned(), operation, took: histogram }
    }

    fn moment() -> Moment {
        let (shard, limits) = (varve_engine::ShardCounts::default(), Limits::default());
        Moment {
            node: NodeRow { shard, limits, volumes: 1, unserved: 0, copies: CopyCounts::default(), uptime_s: 1.5 },
            journals: Vec::new(),
            caches: caches(&Limits { cache_ram: 7, ..Limits::default() }, &shard),
            stages: Vec::new(),
            volumes: Vec::new(),
            requests: vec![request("read", &[]), request("write", &[1, 3, 3, 20_000_000])],
            pools: Vec::new(),
            stores: Vec::new(),
        }
    }

    #[test]
    fn a_histogram_is_told_cumulatively_and_left_out_while_it_is_empty() {
        let text = text(moment()).unwrap();
        let labels = "volume=\"disk\",pool=\"p\",operation=\"write\"";
        let buckets: Vec<_> = text.lines().filter(|line| line.starts_with("varve_request_seconds_bucket")).collect();
        assert_eq!(buckets.len(), BUCKETS, "of the one that has something: {buckets:?}");
        for (bucket, bound, count) in
            [(0, "0.000001", 1), (1, "0.000002", 1), (2, "0.000003", 3), (BUCKETS - 1, "+Inf", 4)]
        {
            assert_eq!(buckets[bucket], format!("varve_request_seconds_bucket{{le=\"{bound}\",{labels}}} {count}"));
        }
        assert!(text.contains(&format!("varve_request_seconds_sum{{{labels}}} 20.000007\n")), "{text}");
        assert!(text.contains(&format!("varve_request_seconds_count{{{labels}}} 4\n")), "{text}");
    }

    #[test]
    fn every_metric_is_told_of_with_its_kind_also_where_there_is_no_row() {
        let text = text(moment()).unwrap();
        let told = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let told: Vec<_> = told.map(str::to_owned).collect();
        let infos = metric_infos();
        assert_eq!(told, infos.iter().map(|info| format!("{} {}", info.name, info.kind)).collect::<Vec<_>>());
        assert_eq!(told.iter().collect::<BTreeSet<_>>().len(), told.len(), "no name stands for two things");
        assert!(text.contains("varve_cache_limit_bytes{level=\"ram\"} 7\n") && text.contains("varve_volumes 1\n"));
    }
}
