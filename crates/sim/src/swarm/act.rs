// SPDX-License-Identifier: Apache-2.0
//! What an operation on volumes and snapshots does to the engine: the calls, and their names in the table of a run.
//!
//! Each call stands for a person's: where an earlier try was refused it looks first whether that was done all the same. What is refused for good, and
//! why that may be, is for the model to say; nothing is compared here.
//!
//! An operation that a death cuts off is dropped like any future: what is left of it is seen by the next process.

use super::admin::Kind;
use super::disk::Change;
use super::run::known;
use crate::Rng;
use std::cell::RefCell;
use std::rc::Rc;
use varve_engine::{Device, EngineError, NewVolume, Volume};
use varve_types::{Ack, CacheMode, Compression, ErrorKind, Overrides, Sequence};

/// Settings that change nothing that is compared.
pub(super) fn settings(ram: bool, rng: &mut Rng) -> Overrides {
    Overrides {
        ack: ram.then_some(Ack::Ram),
        compression: [None, Some(Compression::None), Some(Compression::Zstd), Some(Compression::Lz4)]
            [rng.below(4) as usize],
        iops_limit: rng.chance(200).then(|| 100 << rng.below(6)),
        bandwidth_limit: rng.chance(200).then(|| (256 << 10) << rng.below(6)),
        limit_burst_ms: rng.chance(300).then(|| rng.below(2000)),
        cache: [None, None, Some(CacheMode::Write), Some(CacheMode::None)][rng.below(4) as usize],
        cache_quota: rng.chance(200).then_some(1 << 20),
        rewind_window_ms: rng.chance(120).then(|| rng.below(3) * 20_000),
        rewind_space: rng.chance(300).then(|| 1 + rng.below(100)),
        ..Overrides::default()
    }
}

/// Makes a volume.
pub(super) async fn create(
    shard: Rc<varve_engine::Shard>,
    volume: String,
    size: u64,
    ram: bool,
) -> Result<(), EngineError> {
    let settings = Overrides { ack: ram.then_some(Ack::Ram), ..Overrides::default() };
    let new = NewVolume { name: known(&volume), pool: known("default"), size, settings };
    shard.create_volume(new).await.map(drop)
}

/// Does an operation. `again`: an earlier try was refused, and may have been done all the same.
pub(super) async fn act(
    shard: Rc<varve_engine::Shard>,
    volume: String,
    gone: String,
    kind: Kind,
    device: Rc<RefCell<Option<Rc<Device>>>>,
    again: bool,
) -> Result<(), EngineError> {
    let open = || shard.find(&known(&volume));
    let is_there = |name: &str| shard.find(&known(name)).is_ok();
    match kind {
        Kind::Snapshot { name } => {
            let open = open()?;
            if again && open.snapshots().await?.iter().any(|s| s.name.as_str() == name) {
                return Ok(());
            }
            open.snapshot(known(&name)).await.map(drop)
        }
        Kind::Forget { snap } => {
            let name = snap.borrow().name.clone();
            match open()?.delete_snapshot(&known(&name)).await {
                Err(error) if again && error.kind() == ErrorKind::NotFound => Ok(()),
                done => done,
            }
        }
        Kind::Clone { name, .. } | Kind::Rewind { name, .. } | Kind::Create { name, .. }
            if again && is_there(&name) =>
        {
            Ok(())
        }
        Kind::Clone { snap, name } => {
            let snap = snap.map(|snap| known(&snap.borrow().name));
            shard.clone_volume(&known(&volume), snap.as_ref(), known(&name), Overrides::default()).await.map(drop)
        }
        Kind::Rewind { last, name, .. } => rewind(&shard, &volume, last, &name).await,
        Kind::Create { name, size, ram } => create(Rc::clone(&shard), name, size, ram).await,
        Kind::Rollback { shown, .. } | Kind::Undo { shown } if again && open()?.record().shown != shown => Ok(()),
        Kind::Rollback { snap, .. } => {
            let name = snap.borrow().name.clone();
            open()?.rollback(&known(&name)).await
        }
        Kind::Undo { .. } => open()?.undo_rollback().await,
        Kind::Delete if again && !is_there(&volume) => Ok(()),
        Kind::Delete => shard.delete_volume(&known(&volume)).await,
        Kind::UndeleteTooLate { name } => match shard.undelete_volume(&known(&name)).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(_) => {
                Err(EngineError::new(ErrorKind::Corrupt, format!("{name} was brought back, and its window was over")))
            }
        },
        Kind::Undelete { .. } if again && is_there(&gone) => Ok(()),
        Kind::Undelete { .. } => shard.undelete_volume(&known(&gone)).await.map(drop),
        Kind::Resize { change: Change::Resize { to, .. } } => open()?.resize(to, true).await,
        Kind::Resize { .. } => Ok(()),
        Kind::Template => open()?.make_template().await,
        Kind::Rename { name } if again && is_there(&name) => Ok(()),
        Kind::Rename { name } => open()?.rename(known(&name)).await,
        Kind::Set { settings, times } => set(&*open()?, settings, times).await,
        Kind::View { snap } => {
            let snapshot = known(&snap.borrow().name);
            view(&open()?, &snapshot, &device).await
        }
        Kind::Flatten => shard.flatten(&known(&volume), |_, _| ()).await.map(drop),
        Kind::Seal => open()?.seal().await,
        Kind::Checkpoint => open()?.checkpoint().await,
        Kind::Show => show(&*open()?).await,
        Kind::Check => super::prove::check(&*open()?).await,
    }
}

/// Attaches a snapshot.
async fn view(
    volume: &Rc<Volume>,
    snapshot: &varve_types::Name,
    device: &RefCell<Option<Rc<Device>>>,
) -> Result<(), EngineError> {
    let attached = volume.snapshot_device(snapshot, "swarm".to_owned()).await?;
    *device.borrow_mut() = Some(Rc::new(attached));
    Ok(())
}

/// Brings back what a volume was behind the change `last`.
async fn rewind(shard: &Rc<varve_engine::Shard>, volume: &str, last: Sequence, new: &str) -> Result<(), EngineError> {
    let points = shard.find(&known(volume))?.rewind_points(usize::MAX).latest;
    let point = points.iter().rev().find(|point| point.last == last);
    let point = point.ok_or_else(|| EngineError::new(ErrorKind::NotFound, "the moment has left the window"))?;
    shard.rewind_volume(&known(volume), point, known(new), Overrides::default()).await.map(drop)
}

async fn set(volume: &Volume, settings: Overrides, times: u64) -> Result<(), EngineError> {
    for _ in 0..times {
        volume.set(settings).await?;
    }
    Ok(())
}

/// Asks what people ask of a volume.
async fn show(volume: &Volume) -> Result<(), EngineError> {
    volume.origin().await?;
    volume.hidden_snapshots().await.map(drop)
}

/// What it is called in the table.
pub(super) const fn name_of(kind: &Kind) -> &'static str {
    match kind {
        Kind::Snapshot { .. } => "op: snapshot",
        Kind::Forget { .. } => "op: delete a snapshot",
        Kind::Clone { snap: Some(_), .. } => "op: clone a snapshot",
        Kind::Clone { snap: None, .. } => "op: clone a volume",
        Kind::Rewind { .. } => "op: rewind",
        Kind::Rollback { .. } => "op: rollback",
        Kind::Undo { .. } => "op: undo a rollback",
        Kind::Create { .. } => "op: create",
        Kind::Delete => "op: delete",
        Kind::Undelete { .. } => "op: undelete",
        Kind::UndeleteTooLate { .. } => "op: undelete past the window, refused",
        Kind::Resize { .. } => "op: resize",
        Kind::Template => "op: template",
        Kind::Rename { .. } => "op: rename",
        Kind::Set { .. } => "op: change settings",
        Kind::Flatten => "op: flatten",
        Kind::Seal => "op: seal",
        Kind::Checkpoint => "op: checkpoint",
        Kind::View { .. } => "op: attach a snapshot",
        Kind::Show => "op: show",
        Kind::Check => "op: check",
    }
}
