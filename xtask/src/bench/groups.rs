// SPDX-License-Identifier: Apache-2.0
//! What is measured: groups of rows that share a turn of a target.
//!
//! A group's function gets one target, starts it, loads it, and gives a value for each row. Keys of rows are documented in
//! `docs/benchmarks.md` and never change their meaning. In a turn, reads come before writes, so that they find the cache as
//! the prefill left it, and a load begins when the server has nothing left to do.

use super::fio::{Access, Load, Measured, run};
use super::ground::{Ground, quiet_disk};
use super::targets::{Kind, Running};
use crate::usage::cpu_seconds;
use anyhow::Result;

/// A row: one figure, measured for several targets.
pub struct Row {
    /// Its name in the JSON.
    pub key: &'static str,
    /// What people read.
    pub title: &'static str,
    /// Of the value.
    pub unit: &'static str,
    /// Whether more is better.
    pub more_is_better: bool,
}

const fn row(key: &'static str, title: &'static str, unit: &'static str, more_is_better: bool) -> Row {
    Row { key, title, unit, more_is_better }
}

/// Every row.
pub const ROWS: [Row; 61] = [
    row("write_qd1", "4 KiB random write, QD1", "IOPS", true),
    row("write_qd1_p99", "4 KiB random write, QD1, 99th percentile", "µs", false),
    row("read_hit_qd1", "4 KiB random read from RAM, QD1", "IOPS", true),
    row("read_hit_qd1_p99", "4 KiB random read from RAM, QD1, 99th percentile", "µs", false),
    row("write_qd32", "4 KiB random write, QD32", "IOPS", true),
    row("read_hit_qd32", "4 KiB random read from RAM, QD32", "IOPS", true),
    row("read_ssd_qd32", "4 KiB random read from the cache on SSD, QD32", "IOPS", true),
    row("cpu_write_qd32", "server CPU a write, QD32, background work included", "µs", false),
    row("cpu_read_hit_qd32", "server CPU a read from RAM, QD32", "µs", false),
    row("write_flush_qd1", "4 KiB random write + flush, QD1", "IOPS", true),
    row("flush_1_volume", "4 KiB write + flush, one volume", "IOPS", true),
    row("flush_16_volumes", "4 KiB write + flush, 16 volumes at once, their sum", "IOPS", true),
    row("write_sequential", "1 MiB sequential write, sustained", "MiB/s", true),
    row("write_sequential_bytes", "written while it was measured", "GiB", true),
    row("restart_first_read", "start after kill -9 to the first read", "s", false),
    row("restart_all_volumes", "start after kill -9 until every volume has read", "s", false),
    row("restart_unsealed", "acknowledged before the kill and not sealed", "MiB", true),
    row("clean_uniform", "data put by data written, uniform random overwrite of ten times the range", "ratio", false),
    row("clean_uniform_map", "map and table bytes put by data written, beside it", "ratio", false),
    row("clean_uniform_behind", "bytes stored by bytes that live, at the last write", "ratio", false),
    row("clean_space", "bytes stored by bytes that live, settled", "ratio", false),
    row("clean_zipf", "data put by data written, zipf(0.99)", "ratio", false),
    row("clean_zipf_behind", "bytes stored by bytes that live, at the last write of it", "ratio", false),
    row("clean_p99", "99th percentile of a write while cleaning works, by that without", "ratio", false),
    row("snapshot_full_map", "snapshot of a 1 TiB volume, map full and random", "ms", false),
    row("clone_full_map", "clone of a 1 TiB volume, map full and random", "ms", false),
    row("snapshot_small_map", "snapshot of a 1 GiB volume", "ms", false),
    row("clone_small_map", "clone of a 1 GiB volume", "ms", false),
    row("map_bytes_ratio", "map bytes put, of data bytes, random overwrite of 1 TiB", "ratio", false),
    row("map_ram_random", "RAM of the map, 1 TiB written at random", "MiB", false),
    row("map_ram_sequential", "RAM of the map, 1 TiB written in sequence", "MiB", false),
    row("map_budget_rss", "RAM of the process: 64 TiB, 4 TiB of it mapped, 1 GiB for maps", "MiB", false),
    row("delete_snapshot", "deletion of a snapshot of 1 TiB, all of which was overwritten since", "ms", false),
    row("delete_snapshot_freed", "until all of it is freed", "s", false),
    row("discard", "discard of 64 TiB, flushed", "ms", false),
    row("discard_rate", "freed behind it a second", "GiB/s", true),
    row("delete_volume", "deletion of a volume of 64 TiB", "ms", false),
    row("delete_volume_ended", "until its objects are gone, once its window is over", "s", false),
    row("delete_stall", "longest time without a look at requests beside all that", "ms", false),
    row("delete_ram", "RAM that the work behind these took more, at most", "MiB", false),
    row("map_stall", "longest time without a look at requests, random overwrite of 1 TiB", "ms", false),
    row("path_write_qd1", "4 KiB random write through edge, node and mirror, QD1", "IOPS", true),
    row("path_write_qd32", "4 KiB random write through edge, node and mirror, QD32", "IOPS", true),
    row("path_read_qd32", "4 KiB random read from RAM through edge and node, QD32", "IOPS", true),
    row("path_cpu_write_qd32", "CPU of edge and nodes a write, QD32, background work included", "µs", false),
    row("path_cpu_read_qd32", "CPU of edge and nodes a read from RAM, QD32", "µs", false),
    row("edge_rss_idle", "RAM of varve-edge, a volume attached, no load yet", "MiB", false),
    row("edge_rss_loaded", "RAM of varve-edge, the most under these loads", "MiB", false),
    row("many_serve", "200 volumes of a node that is killed, until all serve", "ms", false),
    row("failover.kill.stall_max_ms", "longest write of a guest, owner killed", "ms", false),
    row("failover.kill.runs", "runs of it", "runs", true),
    row("failover.kill.stall_qd1_ms", "longest write of a run, owner killed, QD1", "ms", false),
    row("failover.kill.stall_qd32_ms", "longest write of a run, owner killed, QD32", "ms", false),
    row("failover.cut.stall_max_ms", "longest write of a guest, owner cut off", "ms", false),
    row("failover.cut.runs", "runs of it", "runs", true),
    row("failover.cut.stall_qd1_ms", "longest write of a run, owner cut off, QD1", "ms", false),
    row("failover.cut.stall_qd32_ms", "longest write of a run, owner cut off, QD32", "ms", false),
    row("failover.stop.stall_max_ms", "longest write of a guest, owner stopped", "ms", false),
    row("failover.stop.runs", "runs of it", "runs", true),
    row("failover.stop.stall_qd1_ms", "longest write of a run, owner stopped, QD1", "ms", false),
    row("failover.stop.stall_qd32_ms", "longest write of a run, owner stopped, QD32", "ms", false),
];

/// Values of one turn: key of the row, value.
pub type Values = Vec<(&'static str, f64)>;

/// Rows that share a turn.
pub struct Group {
    /// The name for `--only`.
    pub name: &'static str,
    /// Who has turns.
    pub targets: &'static [Kind],
    /// How many rounds, unless a person says another number.
    pub rounds: u32,
    /// One turn.
    pub measure: fn(&Ground, Kind, u32) -> Result<Values>,
}

/// Rounds of most groups.
const ROUNDS: u32 = 5;
const SERVERS: &[Kind] = &[Kind::Varve, Kind::NbdkitMemory, Kind::NbdkitFile, Kind::QemuStorageDaemon];

/// Every group.
pub const GROUPS: [Group; 14] = [
    Group { name: "qd1", targets: SERVERS, rounds: ROUNDS, measure: qd1 },
    Group { name: "qd32", targets: SERVERS, rounds: ROUNDS, measure: qd32 },
    Group {
        name: "flush",
        targets: &[Kind::Varve, Kind::NbdkitFile, Kind::QemuStorageDaemon, Kind::Disk],
        rounds: ROUNDS,
        measure: flush,
    },
    Group { name: "volumes", targets: &[Kind::Varve], rounds: ROUNDS, measure: volumes },
    Group { name: "ssd", targets: &[Kind::Varve, Kind::Disk], rounds: ROUNDS, measure: ssd },
    Group { name: "sequential", targets: &[Kind::Varve, Kind::Disk], rounds: ROUNDS, measure: sequential },
    Group { name: "restart", targets: &[Kind::Varve], rounds: ROUNDS, measure: restart },
    Group { name: "clean", targets: &[Kind::Varve], rounds: ROUNDS, measure: super::clean::measure },
    Group { name: "many", targets: &[Kind::Varve], rounds: ROUNDS, measure: super::many::measure },
    Group { name: "failover", targets: &[Kind::Varve], rounds: 20, measure: super::failover::measure },
    Group {
        name: "path",
        targets: &[Kind::Varve, Kind::NbdkitMemory, Kind::EchoChain],
        rounds: ROUNDS,
        measure: super::path::measure,
    },
    // Their rows come from a program of the engine's; see [`super::engine`].
    Group { name: "map", targets: &[], rounds: ROUNDS, measure: |_, _, _| Ok(Vec::new()) },
    Group { name: "map-budget", targets: &[], rounds: ROUNDS, measure: |_, _, _| Ok(Vec::new()) },
    Group { name: "delete", targets: &[], rounds: ROUNDS, measure: |_, _, _| Ok(Vec::new()) },
];

/// What the reads that hit RAM read: smaller than any cache here.
pub const HIT_BYTES: u64 = 128 << 20;
/// What the reads that hit the cache on SSD read: far more than the cache in RAM has then. And what is written behind it, so that all of it is in the store.
const SSD_BYTES: u64 = 2 << 30;
const BEHIND_BYTES: u64 = 256 << 20;
/// The restart's volumes, and what is written to each: less than a segment, so that nothing is sealed by its size.
const RESTART_VOLUMES: u32 = 20;
const RESTART_BYTES: u64 = 52 << 20;

fn names(count: u32) -> Vec<String> {
    (0..count).map(|number| format!("bench{number}")).collect()
}

/// A load of 4 KiB blocks all over a volume.
pub fn load(ground: &Ground, access: Access, depth: u32, round: u32) -> Load {
    Load {
        access,
        block_bytes: 4096,
        depth,
        flush: false,
        range_bytes: ground.size,
        seconds: Some(ground.seconds),
        ramp_seconds: 0,
        seed: 1000 + round,
        times: 1,
        rate: None,
    }
}

/// A quiet disk, a quiet server, the load, and the server's CPU time until it is quiet again, in microseconds a request.
fn load_and_cpu(load: &Load, target: &Running, volumes: &[String]) -> Result<(Measured, f64)> {
    target.settle()?;
    quiet_disk();
    let cpu = || target.pid().map_or(Ok(0.0), cpu_seconds);
    let before = cpu()?;
    let measured = run(load, target, volumes)?;
    target.settle()?;
    Ok((measured, (cpu()? - before) * 1e6 / measured.ios))
}

/// Writes the range that the reads hit, and reads it once, so that it is in RAM however the target fills its cache.
fn prefill(target: &Running, volumes: &[String], round: u32) -> Result<()> {
    let write = Load {
        access: Access::Write,
        block_bytes: 1 << 20,
        depth: 4,
        flush: false,
        range_bytes: HIT_BYTES,
        seconds: None,
        ramp_seconds: 0,
        seed: round,
        times: 1,
        rate: None,
    };
    run(&write, target, volumes)?;
    target.settle()?;
    run(&Load { access: Access::Read, ..write }, target, volumes)?;
    Ok(())
}

fn qd1(ground: &Ground, kind: Kind, round: u32) -> Result<Values> {
    let volumes = names(1);
    let target = kind.start(ground, &volumes)?;
    prefill(&target, &volumes, round)?;
    let read = Load { range_bytes: HIT_BYTES, ..load(ground, Access::RandomRead, 1, round) };
    let (read, _) = load_and_cpu(&read, &target, &volumes)?;
    let (write, _) = load_and_cpu(&load(ground, Access::RandomWrite, 1, round), &target, &volumes)?;
    Ok(vec![
        ("write_qd1", write.iops),
        ("write_qd1_p99", write.p99_us),
        ("read_hit_qd1", read.iops),
        ("read_hit_qd1_p99", read.p99_us),
    ])
}

fn qd32(ground: &Ground, kind: Kind, round: u32) -> Result<Values> {
    let volumes = names(1);
    let target = kind.start(ground, &volumes)?;
    prefill(&target, &volumes, round)?;
    let read = Load { range_bytes: HIT_BYTES, ..load(ground, Access::RandomRead, 32, round) };
    let (read, read_cpu_us) = load_and_cpu(&read, &target, &volumes)?;
    let (write, write_cpu_us) = load_and_cpu(&load(ground, Access::RandomWrite, 32, round), &target, &volumes)?;
    Ok(vec![
        ("write_qd32", write.iops),
        ("read_hit_qd32", read.iops),
        ("cpu_write_qd32", write_cpu_us),
        ("cpu_read_hit_qd32", read_cpu_us),
    ])
}

fn ssd(ground: &Ground, kind: Kind, round: u32) -> Result<Values> {
    let volumes = names(1);
    let config = format!("ram-cache = '1M'\ncache = ['{}:4G']\n", ground.fresh_file("ssd")?.display());
    let target = kind.start_with(ground, &volumes, &config)?;
    let write = Load {
        access: Access::Write,
        block_bytes: 1 << 20,
        depth: 4,
        range_bytes: SSD_BYTES + BEHIND_BYTES,
        seconds: None,
        ..load(ground, Access::Write, 4, round)
    };
    if target.is_served() {
        run(&write, &target, &volumes)?;
        target.settle()?;
        run(&Load { access: Access::Read, range_bytes: SSD_BYTES, ..write }, &target, &volumes)?;
    }
    let read = Load { range_bytes: SSD_BYTES, ..load(ground, Access::RandomRead, 32, round) };
    let (read, _) = load_and_cpu(&read, &target, &volumes)?;
    Ok(vec![("read_ssd_qd32", read.iops)])
}

fn flush(ground: &Ground, kind: Kind, round: u32) -> Result<Values> {
    let volumes = names(1);
    let target = kind.start(ground, &volumes)?;
    let write = Load { flush: true, ..load(ground, Access::RandomWrite, 1, round) };
    let (write, _) = load_and_cpu(&write, &target, &volumes)?;
    Ok(vec![("write_flush_qd1", write.iops)])
}

fn volumes(ground: &Ground, kind: Kind, round: u32) -> Result<Values> {
    let volumes = names(16);
    let target = kind.start(ground, &volumes)?;
    let write = Load { flush: true, ..load(ground, Access::RandomWrite, 1, round) };
    let (one, _) = load_and_cpu(&write, &target, &volumes[..1])?;
    let (all, _) = load_and_cpu(&write, &target, &volumes)?;
    Ok(vec![("flush_1_volume", one.iops), ("flush_16_volumes", all.iops)])
}

fn sequential(ground: &Ground, kind: Kind, round: u32) -> Result<Values> {
    let volumes = names(1);
    let target = kind.start(ground, &volumes)?;
    // What fits in a journal and in RAM is written before it counts.
    let write = Load {
        block_bytes: 1 << 20,
        ramp_seconds: ground.seconds.div_ceil(2),
        ..load(ground, Access::Write, 8, round)
    };
    target.settle()?;
    quiet_disk();
    let write = run(&write, &target, &volumes)?;
    Ok(vec![("write_sequential", write.mib_s), ("write_sequential_bytes", write.ios / 1024.0)])
}

fn restart(ground: &Ground, kind: Kind, round: u32) -> Result<Values> {
    let volumes = names(RESTART_VOLUMES);
    let mut target = kind.start(ground, &volumes)?;
    let write = Load {
        block_bytes: 64 << 10,
        range_bytes: RESTART_BYTES,
        seconds: None,
        ..load(ground, Access::Write, 4, round)
    };
    let written = run(&write, &target, &volumes)?;
    let (first, all) = target.kill_and_start_again(ground, &volumes)?;
    Ok(vec![
        ("restart_first_read", first.as_secs_f64()),
        ("restart_all_volumes", all.as_secs_f64()),
        ("restart_unsealed", written.ios / 16.0),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_documented_and_their_keys_differ() {
        let text = std::fs::read_to_string(crate::repo::root().join("docs/benchmarks.md")).unwrap();
        for (number, row) in ROWS.iter().enumerate() {
            assert!(text.contains(&format!("`{}`", row.key)), "{} is not in docs/benchmarks.md", row.key);
            assert!(ROWS[..number].iter().all(|other| other.key != row.key), "{} is there twice", row.key);
        }
        for group in &GROUPS {
            assert!(text.contains(&format!("`{}`", group.name)), "{} is not in docs/benchmarks.md", group.name);
        }
    }

    #[test]
    fn the_restart_has_a_gibibyte_to_replay() {
        const { assert!(RESTART_VOLUMES as u64 * RESTART_BYTES >= 1 << 30) };
    }
}
