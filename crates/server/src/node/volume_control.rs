// SPDX-License-Identifier: Apache-2.0
//! The operations on volumes and snapshots, on the shard's thread.
//!
//! Each finds its volume by name, has the engine do it, and gives the volume as it then is. What the engine refuses
//! is refused here with its words. An operation that wants the volume detached first gives up the devices that the
//! API itself keeps between two requests.

use super::local::Local;
use super::ownership::Roster;
use super::{attach, coord_error, describe, engine_error};
use crate::api::ControlError;
use crate::api::model::{CloneVolume, NewVolume, Rewind, RewindPoints, Rewound, RollbackReport, Snapshot, Volume};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::BTreeMap;
use std::rc::Rc;
use varve_coord::{TimelineState, VolumeRecord};
use varve_engine::NewVolume as New;
use varve_types::{Name, Overrides};

type Answer<T> = Result<T, ControlError>;

/// Puts settings, given as text, over those that there are.
pub(super) fn apply(settings: &mut Overrides, new: &BTreeMap<String, String>) -> Answer<()> {
    for (key, value) in new {
        settings.set(key, value).map_err(|error| ControlError::invalid(error.to_string()))?;
    }
    Ok(())
}

/// The name of the pool that `up --store` makes.
pub(super) fn default_pool() -> Name {
    "default".parse().expect("it keeps the rules of names")
}

/// Volumes of other nodes, and deleted ones, that are looked at in their stores at once.
const LOOKS: usize = 16;

/// All volumes, deleted ones too.
pub(super) async fn list(local: &Local) -> Answer<Vec<Volume>> {
    let open = local.shard.volumes();
    let records = local.records().list_volumes().await.map_err(coord_error)?;
    let roster = Roster::load(local.records(), local.member.as_deref()).await.map_err(coord_error)?;
    let now = super::pools::now_ms();
    let is_shown = |record: &VolumeRecord| {
        let over = record.deleted.is_some_and(|deleted| deleted.until_ms <= now);
        !over || open.iter().any(|open| open.id() == record.id)
    };
    let (open, roster) = (&open, &roster);
    let described = records.into_iter().map(|(record, _)| record).filter(is_shown).map(|record| async move {
        match open.iter().find(|open| open.id() == record.id && local.is_ours(&record)) {
            Some(open) => describe::volume(local, open).await,
            None => Ok(describe::closed(local, record, roster).await),
        }
    });
    let mut all: Vec<_> = stream::iter(described).buffered(LOOKS).try_collect().await?;
    all.sort_by(|a, b| a.name.cmp(&b.name).then(b.undelete_until_ms.cmp(&a.undelete_until_ms)));
    Ok(all)
}

/// One volume: the open one of this name, else the one deleted last.
pub(super) async fn show(local: &Local, name: &Name) -> Answer<Volume> {
    if let Ok(open) = local.shard.find(name)
        && !local.is_lost(open.id())
    {
        return describe::volume(local, &open).await;
    }
    let records = local.records().list_volumes().await.map_err(coord_error)?;
    let records = records.into_iter().map(|(record, _)| record).filter(|record| record.name == *name);
    let found = records.max_by_key(|record| record.deleted.map_or(u64::MAX, |deleted| deleted.at_ms));
    match found {
        Some(record) => closed(local, record).await,
        None => Err(ControlError::not_found("volume", name)),
    }
}

/// A volume that is not open here.
async fn closed(local: &Local, record: VolumeRecord) -> Answer<Volume> {
    let roster = Roster::load(local.records(), local.member.as_deref()).await.map_err(coord_error)?;
    Ok(describe::closed(local, record, &roster).await)
}

pub(super) async fn create(local: &Rc<Local>, new: NewVolume) -> Answer<Volume> {
    let mut settings = Overrides::default();
    apply(&mut settings, &new.settings)?;
    let pool = new.pool.unwrap_or_else(default_pool);
    local.check_pool(&pool)?;
    let new = New { name: new.name, pool, size: new.size_bytes, settings };
    let volume = local.shard.create_volume(new).await?;
    describe::volume(local, &volume).await
}

pub(super) async fn resize(local: &Local, name: &Name, size: u64, force: bool) -> Answer<Volume> {
    let volume = local.find(name).await?;
    volume.resize(size, force).await?;
    describe::volume(local, &volume).await
}

pub(super) async fn rename(local: &Local, name: &Name, new: Name) -> Answer<Volume> {
    let volume = local.find(name).await?;
    volume.rename(new).await?;
    describe::volume(local, &volume).await
}

pub(super) async fn delete(local: &Rc<Local>, name: &Name) -> Answer<Volume> {
    let volume = local.find(name).await?;
    local.sessions.release(name);
    local.shard.delete_volume(name).await?;
    let (record, _) = local.records().load_volume(volume.id()).await.map_err(coord_error)?;
    closed(local, record).await
}

pub(super) async fn undelete(local: &Rc<Local>, name: &Name) -> Answer<Volume> {
    let volume = local.shard.undelete_volume(name).await?;
    describe::volume(local, &volume).await
}

/// Takes a volume from its edge: the record first, so that the edge is not let in again.
pub(super) async fn detach(local: &Rc<Local>, name: &Name) -> Answer<Volume> {
    let volume = local.find(name).await?;
    attach::expel(local, &volume).await?;
    describe::volume(local, &volume).await
}

pub(super) async fn make_template(local: &Local, name: &Name) -> Answer<Volume> {
    let volume = local.find(name).await?;
    local.sessions.release(name);
    volume.make_template().await?;
    describe::volume(local, &volume).await
}

pub(super) async fn set(local: &Local, name: &Name, new: &BTreeMap<String, String>) -> Answer<Volume> {
    let volume = local.find(name).await?;
    let mut settings = volume.record().settings;
    apply(&mut settings, new)?;
    volume.set(settings).await?;
    describe::volume(local, &volume).await
}

/// The snapshots of a volume: those that can be seen, and marked those that a rollback hid.
pub(super) async fn snapshots(local: &Local, name: &Name) -> Answer<Vec<Snapshot>> {
    let volume = local.find(name).await?;
    let visible = describe::visible(&volume).await?;
    let mut all: Vec<_> = visible.into_iter().map(|info| describe::snapshot(info, false)).collect();
    let hidden = volume.hidden_snapshots().await?;
    all.extend(hidden.into_iter().filter(|info| !info.hidden).map(|info| describe::snapshot(info, true)));
    all.sort_by_key(|snapshot| snapshot.created_ms);
    Ok(all)
}

pub(super) async fn snapshot(local: &Local, volume: &Name, name: Name) -> Answer<Snapshot> {
    let volume = local.find(volume).await?;
    Ok(describe::snapshot(volume.snapshot(name).await?, false))
}

pub(super) async fn delete_snapshot(local: &Local, volume: &Name, name: &Name) -> Answer<Snapshot> {
    let found = local.find(volume).await?;
    // A device of an export may show this very snapshot.
    local.sessions.release(volume);
    let info = found.find_snapshot(name).await?;
    found.delete_snapshot(name).await?;
    Ok(describe::snapshot(info, false))
}

pub(super) async fn rollback(local: &Local, name: &Name, snapshot: &Name, dry_run: bool) -> Answer<RollbackReport> {
    let volume = local.find(name).await?;
    let all = describe::visible(&volume).await?;
    let Some(at) = all.iter().position(|info| info.name == *snapshot) else {
        return Err(engine_error(volume.find_snapshot(snapshot).await.err(), &format!("snapshot {snapshot}")));
    };
    let hides = all.into_iter().skip(at + 1).map(|info| describe::snapshot(info, true)).collect();
    if dry_run {
        return Ok(RollbackReport { done: false, hides, undo_until_ms: None });
    }
    local.sessions.release(name);
    volume.rollback(snapshot).await?;
    let ends = volume.record().timelines.into_iter().filter_map(|timeline| match timeline.state {
        TimelineState::Hidden { until_ms } => Some(until_ms),
        _ => None,
    });
    Ok(RollbackReport { done: true, hides, undo_until_ms: ends.max() })
}

pub(super) async fn undo_rollback(local: &Local, name: &Name) -> Answer<Volume> {
    let volume = local.find(name).await?;
    local.sessions.release(name);
    volume.undo_rollback().await?;
    describe::volume(local, &volume).await
}

pub(super) async fn clone(local: &Rc<Local>, origin: &Name, clone: CloneVolume) -> Answer<Volume> {
    local.find(origin).await?;
    let new = local.shard.clone_volume(origin, clone.snapshot.as_ref(), clone.name, Overrides::default()).await?;
    describe::volume(local, &new).await
}

pub(super) async fn rewind_points(local: &Local, name: &Name, most: u32) -> Answer<RewindPoints> {
    let volume = local.find(name).await?;
    let points = volume.rewind_points(most as usize);
    Ok(RewindPoints {
        window_ms: points.window_ms,
        count: points.count,
        oldest_ms: points.oldest.map(|point| point.at_ms),
        latest_ms: points.latest.iter().map(|point| point.at_ms).collect(),
        held_bytes: points.held_bytes,
    })
}

pub(super) async fn rewind(local: &Rc<Local>, name: &Name, rewind: Rewind) -> Answer<Rewound> {
    let volume = local.find(name).await?;
    let ago = |ms| super::pools::now_ms().saturating_sub(ms);
    let point = volume.rewind_point_at(rewind.to_ms.unwrap_or_else(|| ago(rewind.ago_ms.unwrap_or_default())))?;
    let new = local.shard.rewind_volume(name, &point, rewind.name, Overrides::default()).await?;
    Ok(Rewound { at_ms: point.at_ms, volume: describe::volume(local, &new).await? })
}
