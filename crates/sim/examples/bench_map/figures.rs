// SPDX-License-Identifier: Apache-2.0
//! The figures: which volumes are written how, and what is read off them.
//!
//! Each figure is a row of a key and a number, in the unit that `docs/benchmarks.md` gives the key. A volume is filled, overwritten and
//! measured once for all the rows that it can give, since filling it is what takes the time. Nothing here is kept: a run that is cut off
//! leaves no file behind, and its rows are not told.

use crate::pattern::Order;
use crate::rig::{Outcome, Rig};
use std::io::Write as _;
use std::time::Instant;
use varve_types::{format_size, parse_size};

const SMALL: u64 = 1 << 30;

/// What the command line asks for.
pub(crate) struct Arguments {
    size: u64,
    rounds: u64,
}

impl Arguments {
    /// Reads the command line.
    pub(crate) fn parse(mut from: impl Iterator<Item = String>) -> Outcome<Self> {
        let mut this = Self { size: 64 << 30, rounds: 20 };
        while let Some(argument) = from.next() {
            let mut value = || from.next().ok_or_else(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--size" => this.size = parse_size(&value()?)?,
                "--rounds" => this.rounds = value()?.parse()?,
                _ => return Err(format!("what is {argument:?}? There are --size SIZE and --rounds N").into()),
            }
        }
        if !this.size.is_power_of_two() || this.size < SMALL || this.rounds == 0 {
            return Err("the size is a power of two, at least 1G, and there is a round".into());
        }
        Ok(this)
    }
}

fn say(text: &str) {
    // Progress that nobody can be told of is no reason to stop.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Memory of this process, in bytes.
fn resident() -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib << 10)
}

fn tell_ram(rig: &Rig, when: &str) -> Outcome<()> {
    let (rss, store) = (resident()?, rig.store.bytes_in_ram());
    let (map, rss, store) = (format_size(rig.map_ram() as u64), format_size(rss & !0xfffff), format_size(store));
    say(&format!("{when}: map {map}, process {rss}, of which the store {store}"));
    Ok(())
}

/// Rows of the result.
type Rows = Vec<(&'static str, f64)>;

const MIB: f64 = 1048576.0;

/// A volume full at random, overwritten at random: its rows, or only the times of the small one.
async fn random(size: u64, rounds: u64, full: bool) -> Outcome<Rows> {
    let mut rows = Rows::new();
    let mut rig = Rig::new(size).await?;
    let segments = rig.segments();
    let (title, start) = (format_size(size), Instant::now());
    rig.write(Order::Shuffle, 0..segments).await?;
    rig.merge().await?;
    tell_ram(&rig, &format!("{title} filled in {:.1} s", start.elapsed().as_secs_f64()))?;
    let (filled, start) = (rig.map_ram(), Instant::now());
    rig.store.take_put();
    rig.take_stall();
    let data = rig.write(Order::Uniform, 0..segments).await?;
    let last = rig.merge().await?;
    let (put, stall) = (rig.store.take_put(), rig.take_stall());
    tell_ram(&rig, &format!("{title} overwritten in {:.1} s", start.elapsed().as_secs_f64()))?;
    say(&format!("put for {data} bytes of data: {put:?}; longest stall {stall:.1} ms, last checkpoint {last:.2} s"));
    rig.verify().await?;
    // The overlay that a snapshot closes, and a clone takes over, is not empty.
    let more = (segments / 4).min(64);
    rig.write(Order::Uniform, segments..segments + more).await?;
    let (snapshot, clone) = rig.snapshots(rounds).await?;
    say(&format!("{title}: snapshot {snapshot}, clone {clone}"));
    let merged = rig.merge().await?;
    rig.write(Order::Uniform, segments + more..segments + 2 * more).await?;
    rig.merge().await?;
    let (again, kept) = rig.snapshots(rounds).await?;
    let manifests = rig.store.take_put().manifest;
    say(&format!("{title}: checkpoint of {rounds} snapshots {merged:.2} s; then snapshot {again}, clone {kept}"));
    say(&format!("{title}: {manifests} bytes of manifests for {} snapshots and clones", 2 * rounds));
    rig.verify().await?;
    if full {
        rows.push(("snapshot_full_map", snapshot.median_ms.max(again.median_ms)));
        rows.push(("clone_full_map", clone.median_ms.max(kept.median_ms)));
        rows.push(("map_bytes_ratio", (put.map + put.table) as f64 / data as f64));
        rows.push(("map_ram_random", filled.max(rig.map_ram()) as f64 / MIB));
        rows.push(("map_stall", stall));
    } else {
        rows.push(("snapshot_small_map", snapshot.median_ms.max(again.median_ms)));
        rows.push(("clone_small_map", clone.median_ms.max(kept.median_ms)));
    }
    rig.end().await?;
    Ok(rows)
}

/// A volume written in sequence.
async fn sequence(size: u64) -> Outcome<Rows> {
    let mut rig = Rig::new(size).await?;
    let segments = rig.segments();
    rig.write(Order::Sequence, 0..segments).await?;
    rig.merge().await?;
    tell_ram(&rig, &format!("{} written in sequence", format_size(size)))?;
    rig.verify().await?;
    let ram = rig.map_ram();
    rig.end().await?;
    Ok(vec![("map_ram_sequential", ram as f64 / MIB)])
}

/// Takes all figures.
pub(crate) async fn measure(arguments: &Arguments) -> Outcome<Rows> {
    let mut rows = random(SMALL, arguments.rounds, false).await?;
    rows.extend(sequence(arguments.size).await?);
    rows.extend(random(arguments.size, arguments.rounds, true).await?);
    Ok(rows)
}
