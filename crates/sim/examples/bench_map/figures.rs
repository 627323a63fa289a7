// SPDX-License-Identifier: Apache-2.0
//! The measurements: a volume full at random, one written in sequence, and one whose map is larger than the RAM that it may take.
//!
//! Each owns its rig, so that nothing of one is in the memory of the next. Progress goes to the error output, for
//! people; rows are what counts. Every
//! volume is verified by samples before its rows are given: a figure of a map that is wrong is no figure.

use crate::pattern::{Order, SEGMENT_BLOCKS};
use crate::rig::{Outcome, Rig};
use std::io::Write as _;
use std::time::Instant;
use varve_types::{BLOCK, format_size};

pub fn say(text: &str) {
    // Progress that nobody can be told of is no reason to stop.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Memory of this process, in bytes: of now, or the most so far.
pub fn resident(field: &str) -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).ok_or_else(|| format!("no {field}"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib << 10)
}

fn tell_ram(rig: &Rig, when: &str) -> Outcome<()> {
    let (rss, store) = (resident("VmRSS:")?, rig.store.bytes_in_ram());
    let (map, rss, store) = (format_size(rig.map_ram() as u64), format_size(rss & !0xfffff), format_size(store));
    say(&format!("{when}: map {map}, process {rss}, of which the store {store}"));
    Ok(())
}

/// Rows of the result.
pub type Rows = Vec<(&'static str, f64)>;

const MIB: f64 = 1048576.0;

/// A volume full at random, overwritten at random: its rows, or only the times of the small one.
pub async fn random(size: u64, rounds: u64, part: u64, full: bool) -> Outcome<Rows> {
    let mut rows = Rows::new();
    let mut rig = Rig::new(size, None).await?;
    let segments = rig.segments();
    let (title, start) = (format_size(size), Instant::now());
    rig.write(Order::Shuffle, 0..segments).await?;
    rig.merge().await?;
    tell_ram(&rig, &format!("{title} filled in {:.1} s", start.elapsed().as_secs_f64()))?;
    let (filled, start) = (rig.map_ram(), Instant::now());
    rig.store.take_put();
    rig.take_stall();
    let data = rig.write(Order::Uniform, 0..(segments / part).max(1)).await?;
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
    let opened = rig.reopen().await?;
    let start = Instant::now();
    rig.verify().await?;
    let first = start.elapsed().as_secs_f64();
    rig.write(Order::Uniform, segments + 2 * more..segments + 3 * more).await?;
    let cold = rig.merge().await?;
    say(&format!(
        "{title}: opened again in {opened:.2} s, samples read in {first:.2} s, a checkpoint without a node in RAM {cold:.2} s"
    ));
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
pub async fn sequence(size: u64) -> Outcome<Rows> {
    let mut rig = Rig::new(size, None).await?;
    let segments = rig.segments();
    rig.write(Order::Sequence, 0..segments).await?;
    rig.merge().await?;
    tell_ram(&rig, &format!("{} written in sequence", format_size(size)))?;
    rig.verify().await?;
    let ram = rig.map_ram();
    rig.end().await?;
    Ok(vec![("map_ram_sequential", ram as f64 / MIB)])
}

/// Reads at a time, and in all.
const READS: (usize, u64) = (32, 200_000);
/// Segments that are written at random beside them.
const WRITES: u64 = 64;

/// A volume of which `mapped` bytes are written, scattered block by block, in so much RAM for its map: the most RAM of the process.
pub async fn budget(size: u64, mapped: u64, map_ram: u64) -> Outcome<Rows> {
    let mut rig = Rig::new(size, Some(map_ram)).await?;
    let (segments, title) =
        (mapped / (SEGMENT_BLOCKS * BLOCK), format!("{} of {}", format_size(mapped), format_size(size)));
    let start = Instant::now();
    for part in 0..16 {
        rig.write(Order::Scatter(segments), part * segments / 16..(part + 1) * segments / 16).await?;
        tell_budget(&rig, &format!("{title}: {}/16 written in {:.0} s", part + 1, start.elapsed().as_secs_f64()))?;
    }
    rig.merge().await?;
    tell_budget(&rig, &format!("{title} filled in {:.0} s", start.elapsed().as_secs_f64()))?;
    let opened = rig.reopen().await?;
    tell_budget(&rig, &format!("{title} opened in {opened:.2} s"))?;
    let (at_a_time, reads) = READS;
    let start = Instant::now();
    rig.read(reads, 1, at_a_time).await?;
    let read = reads as f64 / start.elapsed().as_secs_f64();
    tell_budget(&rig, &format!("{reads} random reads, {read:.0} a second"))?;
    for round in 0..4 {
        rig.write(Order::Uniform, round * WRITES / 4..(round + 1) * WRITES / 4).await?;
        rig.read(reads / 4, 2 + round, at_a_time).await?;
    }
    let start = Instant::now();
    rig.merge().await?;
    let (merged, blocks) = (start.elapsed().as_secs_f64(), WRITES * SEGMENT_BLOCKS);
    tell_budget(&rig, &format!("{blocks} random writes beside reads; the last checkpoint took {merged:.1} s"))?;
    rig.verify().await?;
    let most = resident("VmHWM:")?;
    rig.end().await?;
    Ok(vec![("map_budget_rss", most as f64 / MIB)])
}

fn tell_budget(rig: &Rig, when: &str) -> Outcome<()> {
    let (now, most, counts) = (resident("VmRSS:")?, resident("VmHWM:")?, rig.map_counts());
    let (now, most, store) =
        (format_size(now & !0xfffff), format_size(most & !0xfffff), format_size(rig.store.bytes() & !0xfffff));
    say(&format!("{when}: process {now}, {most} at most; {counts:?}; {store} put"));
    Ok(())
}
