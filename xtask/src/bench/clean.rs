// SPDX-License-Identifier: Apache-2.0
//! The group of cleaning: what a volume costs that is overwritten again and again.
//!
//! A part of a volume is filled once, then overwritten with random blocks of 4 KiB, ten times as much as it has. Then the volume rests, and what
//! it takes is compared with what lives: it begins and ends at the occupancy that it should have, so what was put meanwhile is all that the overwrite
//! has cost, also what cleaning did later. What is divided by what is read from the node's own
//! metrics before and after; nothing is compressed, and nothing of the past is kept, so all that is put is what guests wrote, what cleaning moved,
//! and maps.
//!
//! Latency is compared in the same turn: a load at a steady rate with cleaning paused, then the same load while it works off what was left.

use super::fio::{Access, Load, run};
use super::ground::{Ground, quiet_disk};
use super::groups::Values;
use super::targets::{Kind, Running};
use crate::process::output;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

/// The part of the volume that is used.
const RANGE: u64 = 512 << 20;
/// How often all of it is overwritten.
const TIMES: u64 = 10;
/// Bytes of a segment: a hundred and more of them, as a volume of a hundred times the size has of its own.
const SEGMENT: &str = "4M";
/// How long a quiet volume may take until nothing waits any more.
const REST: Duration = Duration::from_secs(300);
/// From then on nothing may wait to be deleted.
const DELETED: Duration = Duration::from_secs(30);
/// Writes a second of the overwrites: cleaning keeps up, so that it has the occupancy that it should have to choose from. One that is behind has sparser
/// segments, and moves less.
const STEADY: u32 = 8000;
/// Writes a second of the load whose latency is compared.
const RATE: u32 = 2000;

/// Numbers of the node, by metric; those of volumes are added up.
struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    fn of(target: &Running) -> Result<Self> {
        let mut metrics = BTreeMap::new();
        for line in target.metrics()?.lines().filter(|line| line.starts_with("varve_")) {
            let (name, value) = line.rsplit_once(' ').context("a metric without a value")?;
            let name = name.split('{').next().unwrap_or(name);
            *metrics.entry(name.to_owned()).or_insert(0.0) += value.parse::<f64>()?;
        }
        Ok(Self(metrics))
    }

    fn get(&self, name: &str) -> Result<f64> {
        self.0.get(name).copied().with_context(|| format!("the node tells no {name}"))
    }

    /// Bytes of data that were put: segments, and what cleaning made of them.
    fn data(&self) -> Result<f64> {
        Ok(self.get("varve_segment_put_bytes_total")? + self.get("varve_clean_put_bytes_total")?)
    }

    fn written(&self) -> Result<f64> {
        self.get("varve_volume_written_bytes_total")
    }

    /// Bytes of objects by bytes that live.
    fn space(&self) -> Result<f64> {
        Ok(self.get("varve_volume_stored_bytes")? / (4096.0 * self.get("varve_volume_live_blocks")?))
    }

    fn map(&self) -> Result<f64> {
        Ok(self.get("varve_map_put_bytes_total")? + self.get("varve_table_put_bytes_total")?)
    }
}

fn tell(ground: &Ground, target: &Running, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(&ground.varve);
    command.arg("--api").arg(format!("unix:{}", target.api_socket().display())).args(arguments);
    output(&mut command, Duration::from_secs(60)).map(drop)
}

/// A turn: uniform overwrites, what rests of them, latency; then the same range with a zipf load.
pub fn measure(ground: &Ground, kind: Kind, round: u32) -> Result<Values> {
    let volumes = vec!["bench0".to_owned()];
    let target = kind.start(ground, &volumes)?;
    let segment = format!("segment-size={SEGMENT}");
    tell(ground, &target, &["volume", "set", "bench0", "rewind-window=0s", "compression=none", &segment])?;
    let fill = Load {
        access: Access::Write,
        block_bytes: 1 << 20,
        depth: 4,
        flush: false,
        range_bytes: RANGE,
        seconds: None,
        ramp_seconds: 0,
        seed: round,
        times: 1,
        rate: None,
    };
    run(&fill, &target, &volumes)?;
    let (access, rate) = (Access::RandomWrite, Some(STEADY));
    let overwrite = Load { access, block_bytes: 4096, depth: 16, times: TIMES, rate, ..fill.clone() };
    let uniform = overwritten(&overwrite, &target, &volumes)?;
    let slower = latency(ground, &target, &volumes, &overwrite)?;
    settle(&target)?;
    let zipf = overwritten(&Load { access: Access::ZipfWrite, ..overwrite }, &target, &volumes)?;
    Ok(vec![
        ("clean_uniform", uniform.data),
        ("clean_uniform_map", uniform.map),
        ("clean_uniform_behind", uniform.behind),
        ("clean_space", uniform.space),
        ("clean_zipf", zipf.data),
        ("clean_zipf_behind", zipf.behind),
        ("clean_p99", slower),
    ])
}

/// What came of an overwrite. Each by bytes.
struct Overwritten {
    /// Data put by data written, until the volume has settled again.
    data: f64,
    /// Maps put by data written.
    map: f64,
    /// Stored by what lives, when the last write was done: how far cleaning was behind.
    behind: f64,
    /// The same once the volume has settled.
    space: f64,
}

fn overwritten(load: &Load, target: &Running, volumes: &[String]) -> Result<Overwritten> {
    settle(target)?;
    let first = Metrics::of(target)?;
    run(load, target, volumes)?;
    let behind = Metrics::of(target)?.space()?;
    let end = settle(target)?;
    let written = end.written()? - first.written()?;
    let (data, map) = ((end.data()? - first.data()?) / written, (end.map()? - first.map()?) / written);
    Ok(Overwritten { data, map, behind, space: end.space()? })
}

/// Waits until nothing is left to do; gives the numbers of then.
fn settle(target: &Running) -> Result<Metrics> {
    let start = Instant::now();
    let mut quiet = start;
    loop {
        let now = Metrics::of(target)?;
        // What the overlay holds has replaced blocks that nobody has counted as dead yet.
        let wait = ["unsealed_bytes", "overlay_entries", "clean_debt_bytes"].map(|what| format!("varve_volume_{what}"));
        let waits = wait.iter().map(|what| now.get(what)).sum::<Result<f64>>()?;
        let dead = now.get("varve_volume_dead_objects")?;
        if waits > 0.0 {
            quiet = Instant::now();
        } else if dead == 0.0 {
            return Ok(now);
        }
        ensure!(quiet.elapsed() < DELETED, "{dead} objects wait to be deleted, of a volume that is quiet");
        ensure!(start.elapsed() < REST, "{} are not 0 yet, of a volume that is quiet", wait.join(", "));
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// The 99th percentile of a write while cleaning works, by that of the same load while it is paused.
fn latency(ground: &Ground, target: &Running, volumes: &[String], overwrite: &Load) -> Result<f64> {
    let load = Load { depth: 1, rate: Some(RATE), times: 1, seconds: Some(ground.seconds), ..overwrite.clone() };
    tell(ground, target, &["clean", "--pause"])?;
    // What is to be cleaned while it is measured.
    run(&Load { times: 4, rate: None, ..overwrite.clone() }, target, volumes)?;
    target.settle()?;
    quiet_disk();
    let without = run(&load, target, volumes)?;
    let before = Metrics::of(target)?;
    tell(ground, target, &["clean", "--resume"])?;
    let with = run(&load, target, volumes)?;
    let cleaned =
        Metrics::of(target)?.get("varve_clean_put_bytes_total")? - before.get("varve_clean_put_bytes_total")?;
    ensure!(cleaned > 0.0, "nothing was cleaned while it was measured");
    println!("clean: 99 % of writes within {:.0} us, {:.0} us without cleaning", with.p99_us, without.p99_us);
    Ok(with.p99_us / without.p99_us)
}
