// SPDX-License-Identifier: Apache-2.0
//! The tables of metrics: what is told of the node, of its caches and stages, of each volume and of each pool.
//!
//! Names begin with `varve_`, which is put before them when they are written; a unit stands last in a name; counters grow since the start of the node. Labels
//! are `volume` and `pool`, which people chose and which can be many, and `level`, `stage` and `operation`, which are few and fixed: there is one row a thing in
//! each family and no more.
//!
//! A metric tells what is known exactly and costs a look at a number: nothing here reads a store or walks a table.

use super::family::{Family, Row, counter, gauge, histogram, seconds};
use crate::node::watched::{StoreCounts, Waiting};
use varve_engine::{
    CacheCounts, CopyCounts, JournalCounts, Limits, MirrorPhase, MirrorState, ShardCounts, StageTimes, VolumeCounts,
};
use varve_serve::Counts;
use varve_types::{BLOCK, Histogram};

/// The node's numbers.
#[derive(Debug)]
pub(super) struct NodeRow {
    pub(super) shard: ShardCounts,
    pub(super) limits: Limits,
    pub(super) volumes: u64,
    pub(super) unserved: u64,
    /// What it keeps for other nodes; nothing outside a cluster.
    pub(super) copies: CopyCounts,
    pub(super) uptime_s: f64,
}

impl Row for NodeRow {
    const LABELS: &'static [&'static str] = &[];
    const FAMILIES: &'static [Family<Self>] = &[
        seconds("uptime_seconds", "Since the start", |n| n.uptime_s),
        gauge("volumes", "Volumes that are open", |n| n.volumes),
        gauge("volumes_unserved", "Volumes that could not be opened", |n| n.unserved),
        gauge("journal_bytes", "Size of the journals", |n| n.shard.journal_bytes),
        gauge("journal_used_bytes", "Bytes of the journals in use", |n| n.shard.journal_used),
        gauge("journal_failed", "Whether a journal has failed", |n| u64::from(n.shard.journal_failed)),
        gauge("layer_ram_bytes", "RAM for what the store does not have yet", |n| n.shard.layer_ram_bytes),
        gauge("layer_ram_limit_bytes", "RAM that it may take: then writes wait", |n| n.limits.layer_ram),
        gauge("map_node_ram_bytes", "RAM of nodes of maps", |n| n.shard.map.node_bytes as u64),
        gauge("map_table_ram_bytes", "RAM of segment tables", |n| n.shard.map.table_bytes as u64),
        gauge("map_head_ram_bytes", "RAM of heads of segments and of tables of map objects", |n| {
            n.shard.map.head_bytes as u64
        }),
        gauge("map_ram_limit_bytes", "RAM that all of these may take", |n| n.limits.map_ram),
        counter("map_nodes_loaded", "Nodes of maps that came into RAM", |n| n.shard.map.loaded),
        counter("map_nodes_evicted", "Nodes of maps that left it for others", |n| n.shard.map.evicted),
        counter("segment_put_bytes", "Bytes of segments that were put", |n| n.shard.put.segments),
        counter("map_put_bytes", "Bytes of maps that were put", |n| n.shard.put.maps),
        counter("table_put_bytes", "Bytes of segment tables, and of what waits to be freed, that were put", |n| {
            n.shard.put.tables
        }),
        gauge("cache_devices", "Devices of the read cache", |n| n.shard.ssd.devices),
        gauge("cache_devices_resting", "Those that failed or hung a moment ago and are let be", |n| {
            n.shard.ssd.resting
        }),
        counter("cache_device_errors", "Calls of cache devices that failed or took too long", |n| n.shard.ssd.errors),
        counter("cache_device_refused", "Blocks that cache devices did not take fast enough", |n| n.shard.ssd.refused),
        counter("cache_device_written_bytes", "Bytes written to cache devices", |n| n.shard.ssd.written),
        gauge("clean_paused", "Whether cleaning is paused", |n| u64::from(n.shard.clean.paused)),
        gauge("clean_rate_bytes", "Bytes that cleaning may read and put in a second; 0 for no bound", |n| {
            n.shard.clean.rate
        }),
        counter("clean_jobs", "Jobs of cleaning that were done", |n| n.shard.clean.jobs),
        counter("clean_failed_jobs", "Jobs of cleaning that were given up, to be tried again", |n| {
            n.shard.clean.failed
        }),
        counter("clean_worker_jobs", "Jobs of cleaning that other processes have run", |n| n.shard.clean.worker_jobs),
        counter(
            "clean_refused_jobs",
            "Jobs of cleaning of other processes that were refused: what they had put was wrong",
            |n| n.shard.clean.refused,
        ),
        counter("clean_expired_jobs", "Jobs of cleaning of other processes that nothing was heard of", |n| {
            n.shard.clean.expired
        }),
        gauge("clean_workers", "Other processes that clean for this node", |n| n.shard.clean.workers),
        gauge("clean_leased_jobs", "Jobs of cleaning that they are at", |n| n.shard.clean.leased),
        counter("clean_read_bytes", "Bytes of blocks that cleaning has read", |n| n.shard.clean.read_bytes),
        counter("clean_put_bytes", "Bytes that cleaning has put", |n| n.shard.clean.put_bytes),
        gauge("gone_volumes", "Deleted volumes that clones need though nothing brings them back", |n| {
            n.shard.gone.volumes
        }),
        gauge("gone_stored_bytes", "Bytes of data that are stored of these", |n| n.shard.gone.table.bytes),
        gauge("gone_live_bytes", "Bytes of these that clones see, before compression", |n| {
            n.shard.gone.table.live_blocks * BLOCK
        }),
        gauge("endings", "Volumes and hidden histories that are being deleted for ever", |n| n.shard.ends.endings),
        gauge("ending_objects", "Objects that these have left in their stores, at most", |n| n.shard.ends.objects_left),
        counter("ended_objects", "Objects that were deleted for these", |n| n.shard.ends.deleted),
        gauge("mirror_copies", "Volumes of other nodes whose mirror this node is", |n| n.copies.copies),
        gauge("mirror_copy_bytes", "Bytes that it keeps of these: what their store does not have yet", |n| {
            n.copies.bytes
        }),
        gauge("mirror_copies_on_disk", "How many of them are on disk", |n| n.copies.on_disk),
        gauge("mirror_disk_bytes", "Bytes of those", |n| n.copies.disk_bytes),
        gauge("mirror_credit_bytes", "Bytes that their owners may send it", |n| n.copies.credit_bytes),
        gauge("mirror_limit_bytes", "Bytes that it keeps at most", |n| n.copies.limit_bytes),
        gauge("mirror_ram_limit_bytes", "Bytes that it keeps in RAM at most", |n| n.copies.ram_limit_bytes),
        gauge("scrub_findings", "Stored objects that scrubbing has found damaged or missing", |n| {
            n.shard.scrub.findings
        }),
        gauge("scrub_rate_bytes", "Bytes that scrubbing may read in a second; 0 where it is off", |n| {
            n.shard.scrub.rate
        }),
        counter("scrub_passes", "Passes of scrubbing over all objects", |n| n.shard.scrub.passes),
        counter("scrub_objects", "Objects that scrubbing has proved", |n| n.shard.scrub.objects),
        counter("scrub_read_bytes", "Bytes of them", |n| n.shard.scrub.bytes),
    ];
    fn labels(&self) -> Vec<&str> {
        Vec::new()
    }
}

/// The numbers of one journal.
#[derive(Debug)]
pub(super) struct JournalRow {
    pub(super) path: String,
    pub(super) counts: JournalCounts,
}

impl Row for JournalRow {
    const LABELS: &'static [&'static str] = &["journal"];
    const FAMILIES: &'static [Family<Self>] = &[
        gauge("journal_device_bytes", "Size of a journal", |j| j.counts.bytes),
        gauge("journal_device_used_bytes", "Bytes of it in use", |j| j.counts.used),
        gauge("journal_device_failed", "Whether it has failed: flushes of its volumes wait for the store", |j| {
            u64::from(j.counts.failed)
        }),
    ];
    fn labels(&self) -> Vec<&str> {
        vec![&self.path]
    }
}

/// The numbers of one level of the read cache.
#[derive(Debug)]
pub(super) struct CacheRow {
    pub(super) level: &'static str,
    pub(super) limit_bytes: u64,
    pub(super) counts: CacheCounts,
}

impl Row for CacheRow {
    const LABELS: &'static [&'static str] = &["level"];
    const FAMILIES: &'static [Family<Self>] = &[
        gauge("cache_bytes", "Bytes of the read cache in use", |c| c.counts.blocks * BLOCK),
        gauge("cache_limit_bytes", "Bytes that the read cache may have", |c| c.limit_bytes),
        counter("cache_hits", "Look-ups of a block that the level had", |c| c.counts.hits),
        counter("cache_misses", "Look-ups of a block that the level did not have", |c| c.counts.misses),
        counter("cache_damaged", "Blocks of the cache that failed verification and were dropped", |c| c.counts.damaged),
    ];
    fn labels(&self) -> Vec<&str> {
        vec![self.level]
    }
}

/// The times of one stage.
#[derive(Debug)]
pub(super) struct StageRow {
    pub(super) stage: &'static str,
    pub(super) times: StageTimes,
}

impl Row for StageRow {
    const LABELS: &'static [&'static str] = &["stage"];
    const FAMILIES: &'static [Family<Self>] = &[
        histogram("stage_seconds", STAGES_HELP, |s| &s.times.took),
        gauge("stage_under_way", "How often the stage is under way at this moment", |s| s.times.under_way),
    ];
    fn labels(&self) -> Vec<&str> {
        vec![self.stage]
    }
}

const STAGES_HELP: &str = "How long a stage of the work took: journal_write, a batch handed to the kernel; journal_sync, made durable; room, a change that \
    waited for room in journal or RAM; seal, a layer gathered and compressed; segment_put, until the store had it; checkpoint; clean, a job of cleaning; mirror, changes on another node";

/// A volume's numbers.
#[derive(Debug)]
pub(super) struct VolumeRow {
    pub(super) name: String,
    pub(super) pool: String,
    pub(super) size: u64,
    pub(super) ready: bool,
    pub(super) attached: u64,
    pub(super) counts: VolumeCounts,
    pub(super) mirror_wanted: bool,
    pub(super) mirror: MirrorState,
    pub(super) io: Counts,
}

impl Row for VolumeRow {
    const LABELS: &'static [&'static str] = &["volume", "pool"];
    const FAMILIES: &'static [Family<Self>] = &[
        gauge("volume_size_bytes", "Size as clients see it", |v| v.size),
        gauge("volume_ready", "Whether it serves and all that it needs answers", |v| u64::from(v.ready)),
        gauge("volume_attachments", "Connections and other users", |v| v.attached),
        gauge("volume_live_blocks", "Blocks in the store that it, its snapshots or clones need", |v| {
            v.counts.table.live_blocks
        }),
        gauge(
            "volume_snapshot_blocks",
            "Those of them that only snapshots and clones need, as of the last checkpoint",
            |v| v.counts.kept_blocks,
        ),
        gauge(
            "volume_rewind_blocks",
            "Those of them that only the rewind window needs, as of the last checkpoint",
            |v| v.counts.rewind_blocks,
        ),
        gauge("volume_dead_blocks", "Blocks in the store that nobody needs", |v| {
            v.counts.table.blocks.saturating_sub(v.counts.table.live_blocks)
        }),
        gauge(
            "volume_clean_debt_bytes",
            "Bytes of dead blocks that cleaning has yet to give back, before compression",
            |v| v.counts.clean_debt_bytes,
        ),
        gauge(
            "volume_hidden_timelines",
            "Histories that a rollback or its undo has left behind and that are not gone yet",
            |v| v.counts.hidden_timelines,
        ),
        gauge("volume_segments", "Segments in the store", |v| v.counts.table.segments),
        gauge("volume_segments_partly_dead", "Segments some of whose blocks are dead", |v| v.counts.table.partly_dead),
        gauge("volume_stored_bytes", "Bytes of its objects in the store", |v| v.counts.table.bytes),
        gauge("volume_unsealed_bytes", "Bytes written that the store does not have yet", |v| v.counts.unsealed_bytes),
        gauge("volume_sealed_layers", "Layers that wait for the store", |v| v.counts.sealed_layers as u64),
        gauge("volume_overlay_entries", "Entries that wait for a checkpoint", |v| v.counts.overlay_entries as u64),
        gauge("volume_map_ram_bytes", "Bytes of its map in RAM", |v| v.counts.map_ram_bytes as u64),
        gauge("volume_dead_objects", "Objects that wait to be deleted", |v| v.counts.dead_objects as u64),
        gauge("volume_reclaim_bytes", "Bytes discarded in large pieces and not looked through yet, at most", |v| {
            v.counts.reclaim_bytes
        }),
        gauge(
            "volume_write_rate_bytes",
            "Bytes a second that it may write while its store takes less than is written; 0 while nothing is slowed",
            |v| v.counts.slowed.rate,
        ),
        gauge("volume_slowed_waiting", "Writes that are slowed for that at this moment", |v| {
            v.counts.slowed.waits.waiting
        }),
        counter("volume_slowed_requests", "Writes that were slowed for that", |v| v.counts.slowed.waits.requests),
        counter("volume_slowed_microseconds", "For how long, all together", |v| v.counts.slowed.waits.waited_us),
        gauge("volume_limit_waiting", "Requests that its limits hold back at this moment", |v| v.counts.limits.waiting),
        counter("volume_limited_requests", "Requests that its limits have held back", |v| v.counts.limits.requests),
        counter("volume_limited_microseconds", "For how long, all together", |v| v.counts.limits.waited_us),
        gauge("volume_mirror_wanted", "Whether it is to have a mirror", |v| u64::from(v.mirror_wanted)),
        gauge("volume_mirror_in_sync", "Whether another node has all that was answered", |v| {
            u64::from(v.mirror.phase == MirrorPhase::InSync)
        }),
        gauge("volume_mirror_bytes", "Bytes of its mirror, those on their way included", |v| v.mirror.bytes),
        gauge("volume_mirror_credit_bytes", "Bytes that it may have there", |v| v.mirror.credits),
        counter("volume_mirror_joined", "How often a mirror came in sync", |v| v.mirror.counts.joined),
        counter("volume_mirror_lost", "How often one that was in sync was parted with", |v| v.mirror.counts.lost),
        counter("volume_leases", "Leases that its mirror gave, for clients that can not tell owners apart", |v| {
            v.mirror.counts.leases
        }),
        counter("volume_lease_waits", "Answers that had to wait for one", |v| v.mirror.counts.lease_waits),
        counter("volume_reads", "Read requests over NBD", |v| v.io.reads),
        counter("volume_read_bytes", "Bytes read over NBD", |v| v.io.read_bytes),
        counter("volume_writes", "Write requests over NBD", |v| v.io.writes),
        counter("volume_written_bytes", "Bytes written over NBD", |v| v.io.write_bytes),
        counter("volume_flushes", "Flushes over NBD", |v| v.io.flushes),
        counter("volume_discards", "Discards and writes of zeroes over NBD", |v| v.io.discards),
        counter("volume_batches", "Batches of requests: one commit each", |v| v.io.batches),
        counter("volume_errors", "Requests over NBD answered with an error", |v| v.io.errors),
    ];
    fn labels(&self) -> Vec<&str> {
        vec![&self.name, &self.pool]
    }
}

/// The times of one operation on a volume.
#[derive(Debug)]
pub(super) struct RequestRow {
    pub(super) volume: String,
    pub(super) pool: String,
    pub(super) operation: &'static str,
    pub(super) took: Histogram,
}

impl Row for RequestRow {
    const LABELS: &'static [&'static str] = &["volume", "pool", "operation"];
    const FAMILIES: &'static [Family<Self>] = &[histogram(
        "request_seconds",
        "From taking a request over NBD to its answer handed to the socket: read, write, flush, discard",
        |r| &r.took,
    )];
    fn labels(&self) -> Vec<&str> {
        vec![&self.volume, &self.pool, self.operation]
    }
}

/// A pool's numbers.
#[derive(Debug)]
pub(super) struct PoolRow {
    pub(super) name: String,
    pub(super) ok: bool,
    pub(super) waiting: Waiting,
    pub(super) counts: StoreCounts,
}

impl Row for PoolRow {
    const LABELS: &'static [&'static str] = &["pool"];
    const FAMILIES: &'static [Family<Self>] = &[
        gauge("store_ok", "Whether the store answers and has room", |p| u64::from(p.ok)),
        gauge("store_requests", "Requests under way", |p| p.waiting.requests),
        seconds("store_oldest_request_seconds", "For how long the oldest of them is; 0 where there is none", |p| {
            p.waiting.oldest.as_secs_f64()
        }),
        counter("store_puts", "Objects put", |p| p.counts.puts),
        counter("store_put_bytes", "Bytes of the objects put", |p| p.counts.put_bytes),
        counter("store_gets", "Reads of objects", |p| p.counts.gets),
        counter("store_get_bytes", "Bytes read of objects", |p| p.counts.get_bytes),
        counter("store_deletes", "Objects deleted", |p| p.counts.deletes),
        counter("store_errors", "Operations that failed, tries included", |p| p.counts.errors),
    ];
    fn labels(&self) -> Vec<&str> {
        vec![&self.name]
    }
}

/// The times of one operation on a store.
#[derive(Debug)]
pub(super) struct StoreRow {
    pub(super) pool: String,
    pub(super) operation: &'static str,
    pub(super) took: Histogram,
}

impl Row for StoreRow {
    const LABELS: &'static [&'static str] = &["pool", "operation"];
    const FAMILIES: &'static [Family<Self>] = &[histogram(
        "store_seconds",
        "How long the store took for a try, successful or not: put, get, head, list, delete",
        |s| &s.took,
    )];
    fn labels(&self) -> Vec<&str> {
        vec![&self.pool, self.operation]
    }
}
