// SPDX-License-Identifier: Apache-2.0
//! Deleting what is large: how soon it is answered, and what the work behind it takes.
//!
//! Volumes are written in sequence, segments of 64 MiB of adjacent blocks, which is what tens of TiB can be written as in minutes: tables of segments are as
//! large as those of any volume of that size, maps are small. A snapshot's volume is written once more in the same order,
//! so that every block of it is kept by the snapshot alone.
//!
//! The store answers at once: what is measured is the engine. Each wait for the work behind a deletion has an end.

use crate::figures::{Rows, resident, say};
use crate::pattern::Order;
use crate::rig::{Outcome, Rig};
use std::time::{Duration, Instant};
use varve_types::{Overrides, format_size};

/// Longest wait for the work behind a deletion.
const PATIENCE: Duration = Duration::from_secs(1800);
/// For how long the freeing of what was discarded is watched before the restart, and behind it.
const WATCHED: Duration = Duration::from_secs(60);
/// Segments of which a checkpoint tells what they have overwritten.
const UNMERGED: usize = 64;
const MIB: f64 = 1048576.0;

/// Figures of the work behind a deletion.
struct Behind {
    seconds: f64,
    stall_ms: f64,
    ram_mib: f64,
}

impl std::fmt::Display for Behind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { seconds, stall_ms, ram_mib } = self;
        write!(f, "{seconds:.0} s, longest stall {stall_ms:.1} ms, {ram_mib:.0} MiB more RAM at most")
    }
}

/// Waits until something is over, or for so long.
async fn watch(rig: &Rig, most: Duration, is_over: impl Fn(&Rig) -> bool) -> Outcome<Behind> {
    // The peak of RAM is counted anew from here on.
    std::fs::write("/proc/self/clear_refs", "5")?;
    let (start, before) = (Instant::now(), resident("VmRSS:")?);
    while !is_over(rig) && start.elapsed() < most {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let more = resident("VmHWM:")?.saturating_sub(before);
    Ok(Behind { seconds: start.elapsed().as_secs_f64(), stall_ms: rig.take_stall(), ram_mib: more as f64 / MIB })
}

fn settings() -> Overrides {
    Overrides { undelete_window_ms: Some(0), rewind_window_ms: Some(0), ..Overrides::default() }
}

/// Deletes the snapshot of a volume of so many bytes, all of which was overwritten since.
async fn snapshot(size: u64, map_ram: u64) -> Outcome<(Rows, f64, f64)> {
    let mut rig = Rig::with(size, Some(map_ram), settings()).await?;
    let (segments, title, start) = (rig.segments(), format_size(size), Instant::now());
    rig.write(Order::Sequence, 0..segments).await?;
    rig.merge().await?;
    rig.snapshot("s").await?;
    for first in (segments..2 * segments).step_by(UNMERGED) {
        // No guest writes faster than checkpoints are made.
        rig.write(Order::Sequence, first..(first + UNMERGED as u64).min(2 * segments)).await?;
        rig.merge().await?;
    }
    let kept = rig.volume().counts().kept_blocks;
    say(&format!("{title} written twice in {:.0} s; the snapshot keeps {kept} blocks", start.elapsed().as_secs_f64()));
    rig.take_stall();
    let answered = rig.delete_snapshot("s").await?;
    let is_over = |rig: &Rig| rig.volume().counts().kept_blocks == 0 && rig.store.objects().0 <= segments;
    let behind = watch(&rig, PATIENCE, is_over).await?;
    say(&format!(
        "snapshot of {title} deleted in {answered:.2} ms; freed in {behind}; {:?} objects",
        rig.store.objects()
    ));
    if !is_over(&rig) {
        return Err(format!("the snapshot is not freed: {:?}", rig.volume().counts()).into());
    }
    rig.verify().await?;
    rig.end().await?;
    let rows = vec![("delete_snapshot", answered), ("delete_snapshot_freed", behind.seconds)];
    Ok((rows, behind.stall_ms, behind.ram_mib))
}

/// Discards all of a volume of so many bytes, restarts while that is worked off, and deletes the volume.
async fn volume(size: u64, map_ram: u64) -> Outcome<(Rows, f64, f64)> {
    let mut rig = Rig::with(size, Some(map_ram), settings()).await?;
    let (segments, title, start) = (rig.segments(), format_size(size), Instant::now());
    for part in 0..16 {
        rig.write(Order::Sequence, part * segments / 16..(part + 1) * segments / 16).await?;
        say(&format!("{title}: {}/16 written in {:.0} s", part + 1, start.elapsed().as_secs_f64()));
    }
    rig.merge().await?;
    rig.verify().await?;
    rig.take_stall();
    let discard = rig.discard_all().await?;
    let merged = rig.merge().await?;
    let left = |rig: &Rig| rig.volume().counts().reclaim_bytes;
    let (first, is_over) = (left(&rig), |rig: &Rig| left(rig) == 0);
    let before = watch(&rig, WATCHED, is_over).await?;
    let (freed, stands) = ((first - left(&rig)) as f64, left(&rig));
    say(&format!(
        "{title} discarded in {discard:.2} ms, merged in {merged:.2} s; of {first} bytes {stands} left after {before}"
    ));
    let opened = rig.reopen().await?;
    let again = left(&rig);
    if again > stands || (stands > 0 && again == 0) {
        return Err(format!("{stands} bytes were to be freed before the restart, {again} behind it").into());
    }
    let behind = watch(&rig, WATCHED, is_over).await?;
    say(&format!("opened again in {opened:.2} s; of {again} bytes {} left after {behind}", left(&rig)));
    let objects = rig.store.objects();
    let delete = rig.delete_volume().await?;
    say(&format!("{title} deleted in {delete:.2} ms; {objects:?} objects are left"));
    let is_gone = |rig: &Rig| rig.store.objects().0 == 0 && rig.shard().endings().is_empty();
    let end = watch(&rig, PATIENCE, is_gone).await?;
    say(&format!("ended in {end}; {:?} objects, {:?}", rig.store.objects(), rig.shard().counts().ends));
    if !is_gone(&rig) {
        return Err(format!("the volume has not ended: {:?}", rig.shard().endings()).into());
    }
    rig.end().await?;
    let rows = vec![
        ("discard", discard),
        ("discard_rate", freed / before.seconds / (1_u64 << 30) as f64),
        ("delete_volume", delete),
        ("delete_volume_ended", end.seconds),
    ];
    let most = |of: fn(&Behind) -> f64| [&before, &behind, &end].map(of).into_iter().fold(0.0, f64::max);
    Ok((rows, most(|behind| behind.stall_ms), most(|behind| behind.ram_mib)))
}

/// All of it, of a volume of so many bytes.
pub async fn measure(size: u64, map_ram: u64) -> Outcome<Rows> {
    let (mut rows, stall, ram) = snapshot(size / 64, map_ram).await?;
    let (more, other_stall, other_ram) = volume(size, map_ram).await?;
    rows.extend(more);
    rows.extend([("delete_stall", stall.max(other_stall)), ("delete_ram", ram.max(other_ram))]);
    Ok(rows)
}
