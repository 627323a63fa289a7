// SPDX-License-Identifier: Apache-2.0
//! The load: fio, its options and what it reports.
//!
//! Blocks of 4 KiB are filled anew for each write: fio otherwise repeats a few buffers, and a block that was written a moment ago
//! compresses the next one. Larger blocks are random in themselves and are not. The client costs the same for every target.
//!
//! A run in which fio met an error or did nothing is an error, never a figure of zero.

use super::targets::Running;
use crate::process::{command_line, output};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Order and direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Random reads.
    RandomRead,
    /// Random writes.
    RandomWrite,
    /// Random writes, most of them to few blocks: zipf with 0.99.
    ZipfWrite,
    /// Writes one after the other.
    Write,
    /// Reads one after the other.
    Read,
}

/// One load on one or more volumes.
#[derive(Clone, Debug)]
pub struct Load {
    /// Order and direction.
    pub access: Access,
    /// Bytes a request.
    pub block_bytes: u64,
    /// Requests under way at once, on each volume.
    pub depth: u32,
    /// Whether each write is followed by a flush (a server) or an fdatasync (the disk).
    pub flush: bool,
    /// The part of the volume that is used, from its beginning.
    pub range_bytes: u64,
    /// For how long; `None` is so many `times` as much as the range has.
    pub seconds: Option<u32>,
    /// See `seconds`.
    pub times: u64,
    /// Most requests a second, if there is a bound.
    pub rate: Option<u32>,
    /// Seconds before it counts.
    pub ramp_seconds: u32,
    /// What the random numbers begin with.
    pub seed: u32,
}

/// What fio measured, over all volumes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Requests a second, flushes not counted.
    pub iops: f64,
    /// MiB a second.
    pub mib_s: f64,
    /// Requests that counted.
    pub ios: f64,
    /// 99th percentile of the time of a request, microseconds; a flush behind a write is not in it.
    pub p99_us: f64,
    /// The longest time of a request, likewise.
    pub max_us: f64,
}

/// Options of fio that say which export of a socket to load.
pub fn export(socket: &Path, volume: &str) -> Vec<String> {
    vec!["--ioengine=nbd".to_owned(), format!("--uri=nbd+unix:///{volume}?socket={}", socket.display())]
}

/// Runs a load on a target.
pub fn run(load: &Load, target: &Running, volumes: &[String]) -> Result<Measured> {
    let places: Vec<_> = volumes.iter().map(|volume| target.fio_place(volume)).collect();
    run_on(load, target.is_served(), &places)
}

/// Runs a load on several places at once, each said by options of fio; a server or the bare disk is behind all of them.
pub fn run_on(load: &Load, served: bool, places: &[Vec<String>]) -> Result<Measured> {
    let mut command = Command::new("fio");
    command.args(arguments(load, served));
    for (number, place) in places.iter().enumerate() {
        command.arg(format!("--name=job{number}")).args(place);
    }
    let seconds = u64::from(load.seconds.unwrap_or(600) + load.ramp_seconds);
    let text = output(&mut command, Duration::from_secs(seconds + 120))?;
    parse(&text, load).with_context(|| format!("`{}`", command_line(&command)))
}

fn arguments(load: &Load, served: bool) -> Vec<String> {
    let access = match load.access {
        Access::RandomRead => "randread",
        Access::RandomWrite | Access::ZipfWrite => "randwrite",
        Access::Write => "write",
        Access::Read => "read",
    };
    let mut arguments = vec![
        "--output-format=json".to_owned(),
        "--group_reporting".to_owned(),
        "--norandommap".to_owned(),
        "--disable_slat=1".to_owned(),
        format!("--rw={access}"),
        format!("--bs={}", load.block_bytes),
        format!("--iodepth={}", load.depth),
        format!("--size={}", load.range_bytes),
        format!("--randseed={}", load.seed),
    ];
    if load.block_bytes < 1 << 16 && !matches!(load.access, Access::RandomRead | Access::Read) {
        arguments.push("--refill_buffers".to_owned());
    }
    if let Some(seconds) = load.seconds {
        arguments.push("--time_based".to_owned());
        arguments.push(format!("--runtime={seconds}"));
    }
    if load.times > 1 {
        arguments.push(format!("--io_size={}", load.range_bytes * load.times));
    }
    if let Some(rate) = load.rate {
        arguments.push(format!("--rate_iops={rate}"));
    }
    if load.access == Access::ZipfWrite {
        arguments.push("--random_distribution=zipf:0.99".to_owned());
    }
    if load.ramp_seconds > 0 {
        arguments.push(format!("--ramp_time={}", load.ramp_seconds));
    }
    if load.flush {
        arguments.push(if served { "--fsync=1" } else { "--fdatasync=1" }.to_owned());
    }
    if !served {
        // One request at a time is fastest without a ring.
        let engine = if load.depth == 1 { "psync" } else { "io_uring" };
        arguments.push(format!("--ioengine={engine}"));
    }
    arguments
}

#[derive(Deserialize)]
struct Report {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    error: i64,
    read: Direction,
    write: Direction,
}

#[derive(Deserialize)]
struct Direction {
    iops: f64,
    bw_bytes: f64,
    total_ios: f64,
    clat_ns: Latency,
}

#[derive(Deserialize)]
struct Latency {
    max: f64,
    #[serde(default)]
    percentile: std::collections::BTreeMap<String, f64>,
}

fn parse(text: &str, load: &Load) -> Result<Measured> {
    // The nbd engine greets on standard output before the report begins.
    let begin = text.find("\n{").map_or(0, |at| at + 1);
    let report: Report = serde_json::from_str(&text[begin..]).context("reading fio's report")?;
    let job = report.jobs.first().context("fio reported no job")?;
    ensure!(job.error == 0, "fio met error {}", job.error);
    let direction = if matches!(load.access, Access::RandomRead | Access::Read) { &job.read } else { &job.write };
    ensure!(direction.total_ios > 0.0, "fio did nothing");
    let p99 = direction.clat_ns.percentile.get("99.000000").copied().unwrap_or(f64::NAN);
    Ok(Measured {
        iops: direction.iops,
        mib_s: direction.bw_bytes / f64::from(1 << 20),
        ios: direction.total_ios,
        p99_us: p99 / 1000.0,
        max_us: direction.clat_ns.max / 1000.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Load = Load {
        access: Access::RandomWrite,
        block_bytes: 4096,
        depth: 1,
        flush: true,
        range_bytes: 1 << 30,
        seconds: Some(3),
        ramp_seconds: 0,
        seed: 1,
        times: 1,
        rate: None,
    };

    #[test]
    fn the_report_is_read_behind_the_greeting() {
        let direction = r#"{"iops": 10.5, "bw_bytes": 2097152, "total_ios": 30, "clat_ns": {"max": 7000, "percentile": {"99.000000": 5000}}}"#;
        let none = r#"{"iops": 0, "bw_bytes": 0, "total_ios": 0, "clat_ns": {"max": 0}}"#;
        let text = format!(
            "fio: connected to NBD server\n{{\"jobs\": [{{\"error\": 0, \"read\": {none}, \"write\": {direction}}}]}}"
        );
        let measured = parse(&text, &LOAD).unwrap();
        assert_eq!(measured, Measured { iops: 10.5, mib_s: 2.0, ios: 30.0, p99_us: 5.0, max_us: 7.0 });
        assert!(parse(&text, &Load { access: Access::Read, ..LOAD }).is_err());
        assert!(parse(&text.replace("\"error\": 0", "\"error\": 5"), &LOAD).is_err());
        assert!(parse("", &LOAD).is_err());
    }

    #[test]
    fn small_writes_are_filled_anew_and_flushed_as_the_target_needs() {
        let has = |load: &Load, served, option: &str| arguments(load, served).iter().any(|argument| argument == option);
        assert!(has(&LOAD, true, "--refill_buffers") && has(&LOAD, true, "--fsync=1"));
        assert!(has(&LOAD, false, "--fdatasync=1") && has(&LOAD, false, "--ioengine=psync"));
        let large = Load { access: Access::Write, block_bytes: 1 << 20, depth: 8, flush: false, ..LOAD };
        assert!(!has(&large, true, "--refill_buffers") && has(&large, false, "--ioengine=io_uring"));
    }
}
