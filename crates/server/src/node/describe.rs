// SPDX-License-Identifier: Apache-2.0
//! Volumes and snapshots as the documents of the API.
//!
//! Runs on the shard's thread and changes nothing. What is open is described from RAM as far as possible; a deleted
//! volume, or one that could not be opened, from its record and its manifest, and where even that can not be read,
//! from its record alone: a list never fails for one bad volume.

use super::connections::User;
use super::local::Local;
use super::ownership::Roster;
use crate::api::ControlError;
use crate::api::model::{
    Client, Holder, IoCounters, Mirror, MirrorState, Origin, Owner, Setting, Snapshot, Space, StoreState, Timeline,
    TimelineState, Volume, VolumeState, VolumeStatus,
};
use std::rc::Rc;
use varve_coord::{CoordError, Deleted, TimelineState as Kept, VolumeRecord};
use varve_engine::{Attachment, MirrorPhase, SnapshotInfo, Volume as Open};
use varve_types::{BLOCK, MirrorMode, Name, Overrides, Settings};

/// A snapshot; `hidden` says whether a rollback hid it.
pub(super) fn snapshot(info: SnapshotInfo, hidden: bool) -> Snapshot {
    Snapshot { name: info.name, id: info.id, created_ms: info.created_ms, size_bytes: info.size, hidden }
}

/// The snapshots that people see, oldest first.
pub(super) async fn visible(volume: &Open) -> Result<Vec<SnapshotInfo>, ControlError> {
    let mut all = volume.snapshots().await?;
    all.retain(|snapshot| !snapshot.hidden);
    Ok(all)
}

/// The NBD address of a volume.
fn nbd_uri(local: &Local, name: &Name) -> String {
    format!("nbd+unix:///{name}?socket={}", local.nbd_socket.display())
}

/// Whether an open volume serves, and what is wrong.
pub(super) fn state(local: &Local, volume: &Open) -> (VolumeState, Option<String>) {
    if let Some(error) = volume.stopped() {
        return (VolumeState::Failed, Some(error.to_string()));
    }
    if let Some(error) = volume.degraded() {
        return (VolumeState::Degraded, Some(format!("no checkpoints can be made: {error}")));
    }
    match local.pools.state(&volume.record().pool) {
        (StoreState::Ok, _) => (VolumeState::Ready, None),
        (StoreState::Full, why) => {
            (VolumeState::Degraded, Some(format!("the store is full: {}", why.unwrap_or_default())))
        }
        (_, why) => (VolumeState::Degraded, Some(format!("the store does not answer: {}", why.unwrap_or_default()))),
    }
}

/// Who is attached: a line a client, with the number of its connections.
fn clients(attachments: Vec<Attachment>) -> Vec<Client> {
    let mut clients: Vec<Client> = Vec::new();
    for attachment in attachments {
        match clients.iter_mut().find(|client| client.peer == attachment.peer) {
            Some(client) => {
                client.connections += 1;
                client.since_ms = client.since_ms.min(attachment.since_ms);
            }
            None => clients.push(Client { peer: attachment.peer, since_ms: attachment.since_ms, connections: 1 }),
        }
    }
    clients
}

fn timelines(record: &VolumeRecord) -> Vec<Timeline> {
    let timeline = |timeline: &varve_coord::TimelineRecord| {
        let (state, hidden_until_ms) = match timeline.state {
            Kept::Shown => (TimelineState::Shown, None),
            Kept::Hidden { until_ms } => (TimelineState::Hidden, Some(until_ms)),
            Kept::Held => (TimelineState::Held, None),
        };
        Timeline { id: timeline.id, state, hidden_until_ms }
    };
    record.timelines.iter().map(timeline).collect()
}

/// What a clone was made from, by its present name.
async fn origin(local: &Local, volume: &Open) -> Result<Option<Origin>, ControlError> {
    let Some(origin) = volume.origin().await? else { return Ok(None) };
    let name = match origin.volume {
        None => None,
        Some(id) => match local.records().load_volume(id).await {
            Ok((record, _)) => Some(record.name),
            Err(CoordError::NotFound(_)) => None,
            Err(error) => return Err(super::coord_error(error)),
        },
    };
    Ok(Some(Origin { volume: name, snapshot: origin.snapshot }))
}

/// The edge that has it for itself.
fn holder(local: &Local, open: &Open) -> Option<Holder> {
    let holder = open.holder()?;
    let is_its = |user: &User| user.volume == open.id() && user.session.is_some_and(|(id, _)| id == holder.session);
    let connected = local.connections.users().any(|user| is_its(&user));
    Some(Holder { edge: holder.edge, session: holder.session.to_string(), since_ms: holder.since_ms, connected })
}

/// Whether it is to have a mirror.
pub(super) fn wants_mirror(open: &Open) -> bool {
    Settings::resolve(&open.record().settings, &open.pool_settings()).mirror != MirrorMode::None
}

/// How its mirror is.
fn mirror(open: &Open) -> Mirror {
    let now = open.mirror();
    let state = match now.phase {
        MirrorPhase::Alone if !wants_mirror(open) => MirrorState::Off,
        MirrorPhase::Alone => MirrorState::Alone,
        MirrorPhase::Joining => MirrorState::Joining,
        MirrorPhase::InSync => MirrorState::InSync,
        MirrorPhase::Parting => MirrorState::Parting,
    };
    Mirror { state, node: now.node, medium: now.node.map(|_| now.medium), bytes: now.bytes }
}

/// An open volume.
pub(super) async fn volume(local: &Local, open: &Rc<Open>) -> Result<Volume, ControlError> {
    let record = open.record();
    let (state, state_message) = state(local, open);
    let counts = open.counts();
    let settings = Settings::describe(&record.settings, &open.pool_settings());
    Ok(Volume {
        nbd_uri: Some(nbd_uri(local, &record.name)),
        id: record.id,
        size_bytes: open.size(),
        state,
        state_message,
        undelete_until_ms: None,
        template: record.template,
        attached: clients(open.attachments()),
        holder: holder(local, open),
        mirror: Some(mirror(open)),
        owner: this_node(local),
        settings: Setting::rows(settings),
        timelines: timelines(&record),
        space: Space {
            live_bytes: counts.table.live_blocks * BLOCK,
            stored_bytes: counts.table.bytes,
            dirty_bytes: counts.unsealed_bytes,
            reclaim_bytes: counts.reclaim_bytes,
            rewind_bytes: counts.rewind_blocks * BLOCK,
            segments: counts.table.segments,
        },
        created_ms: open.created_ms(),
        snapshots: visible(open).await?.len() as u64,
        origin: origin(local, open).await?,
        name: record.name,
        pool: record.pool,
    })
}

/// The owner of a volume that this node runs.
fn this_node(local: &Local) -> Option<Owner> {
    let member = local.member.as_ref()?;
    Some(Owner { id: member.id(), name: Some(member.name().clone()), alive: true })
}

/// How a volume is that another node runs.
fn elsewhere(owner: Option<&Owner>, name: &Name) -> (VolumeState, Option<String>) {
    let who = |owner: &Owner| owner.name.as_ref().map_or_else(|| owner.id.to_string(), Name::to_string);
    match owner {
        Some(owner) if owner.alive => (VolumeState::Elsewhere, Some(format!("node {} runs it", who(owner)))),
        Some(owner) => {
            let why =
                format!("node {}, which runs it, is dead: `varve volume take {name}` has it run here", who(owner));
            (VolumeState::Failed, Some(why))
        }
        None => (VolumeState::Failed, Some(format!("no node runs it: `varve volume take {name}` has it run here"))),
    }
}

/// A volume that is not open: deleted, of another node, or not to be opened.
pub(super) async fn closed(local: &Local, record: VolumeRecord, roster: &Roster) -> Volume {
    let pool = local.records().load_pool(&record.pool).await;
    let pool_settings = pool.map_or_else(|_| Overrides::default(), |(pool, _)| pool.settings);
    let looked = local.shard.look_at(&record).await;
    let owner = roster.owner(&record);
    let (state, message) = match (record.deleted, local.unopened().remove(&record.id)) {
        (Some(deleted), _) if deleted.until_ms == Deleted::OVER && looked.is_ok() => {
            (VolumeState::Deleted, Some("for good; what its clones see of it stays".to_owned()))
        }
        (Some(_), _) => (VolumeState::Deleted, looked.as_ref().err().map(ToString::to_string)),
        (None, _) if !local.is_ours(&record) => elsewhere(owner.as_ref(), &record.name),
        (None, Some(unopened)) if unopened.may_pass() => (VolumeState::Recovering, Some(unopened.error.to_string())),
        (None, Some(unopened)) => (VolumeState::Failed, Some(unopened.error.to_string())),
        (None, None) => (VolumeState::Recovering, None),
    };
    let looked = looked.ok();
    Volume {
        nbd_uri: None,
        id: record.id,
        size_bytes: looked.map_or(0, |looked| looked.size),
        state,
        state_message: message,
        undelete_until_ms: record.deleted.filter(|deleted| !deleted.is_for_good()).map(|deleted| deleted.until_ms),
        template: record.template,
        attached: Vec::new(),
        mirror: record.mirror.map(|mirror| Mirror {
            state: MirrorState::InSync,
            node: Some(mirror.node),
            medium: None,
            bytes: 0,
        }),
        holder: record.holder.as_ref().map(|holder| Holder {
            edge: holder.edge.clone(),
            session: holder.session.to_string(),
            since_ms: holder.since_ms,
            connected: false,
        }),
        owner,
        settings: Setting::rows(Settings::describe(&record.settings, &pool_settings)),
        timelines: timelines(&record),
        space: Space::default(),
        created_ms: looked.map_or(0, |looked| looked.created_ms),
        snapshots: looked.map_or(0, |looked| looked.snapshots),
        origin: None,
        name: record.name,
        pool: record.pool,
    }
}

/// A volume at work.
pub(super) fn at_work(local: &Local, open: &Open) -> VolumeStatus {
    let counts = open.counts();
    let io = local.connections.stats(open.id()).counts();
    let record = open.record();
    VolumeStatus {
        name: record.name,
        pool: record.pool,
        state: state(local, open).0,
        size_bytes: open.size(),
        live_bytes: counts.table.live_blocks * BLOCK,
        dirty_bytes: counts.unsealed_bytes,
        reclaim_bytes: counts.reclaim_bytes,
        write_rate_bytes: Some(counts.slowed.rate).filter(|rate| *rate > 0),
        attached: u32::try_from(clients(open.attachments()).len()).unwrap_or(u32::MAX),
        io: IoCounters {
            reads: io.reads,
            read_bytes: io.read_bytes,
            writes: io.writes,
            written_bytes: io.write_bytes,
            flushes: io.flushes,
        },
    }
}
