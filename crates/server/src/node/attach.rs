// SPDX-License-Identifier: Apache-2.0
//! Edges that attach to volumes of this node.
//!
//! An edge's connection comes here with what it asks. One attach of a volume is looked at after the other: what the session's older connections, or those
//! whom it takes the volume from, have begun is ended first; then the engine says whether the session may have the volume, and coordination remembers it; then
//! the edge is told, and served.
//!
//! Always holds: of a session only connections of its highest generation are served; beside an exclusive session nobody else is.
//!
//! A crash ends the connections. The sessions are in the record of their volume, and their edges come back.

use super::connections::{User, begin, shown};
use super::local::Local;
use super::takeover;
use crate::api::model::Target;
use crate::edge::{Accepted, Asked, EdgeDialect, WINDOW, refuse};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use varve_block::BlockDevice;
use varve_engine::{Device, EngineError, SessionRequest, SessionStart, Volume};
use varve_serve::{Closed, Peer, Socket, Tuning};
use varve_types::{ErrorKind, SessionId, VolumeId};
use varve_wire::attach::{Attach, Attached, Holder, Mode, Refused};
use varve_wire::transmission::{Reply, Told, payload_crc};

/// How long an edge may take to take what it is told.
const TELL_TIME: Duration = Duration::from_secs(10);

/// Whose turn it is to attach to a volume.
#[derive(Default)]
pub(super) struct Attaching {
    turns: RefCell<BTreeMap<VolumeId, Arc<tokio::sync::Mutex<()>>>>,
}

impl Attaching {
    pub(super) fn turn(&self, volume: VolumeId) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.borrow_mut();
        turns.retain(|id, turn| *id == volume || Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(volume).or_default())
    }
}

/// What an edge has got.
struct Session {
    volume: Rc<Volume>,
    start: SessionStart,
    user: User,
    /// As it is told: it may change before the edge is served.
    size: u64,
}

fn refused(error: &EngineError) -> Refused {
    Refused::new(error.kind(), error.to_string())
}

/// Who has a volume, for who does not get it.
fn holder(volume: &Volume) -> Option<Holder> {
    let first = || volume.attachments().into_iter().next();
    let held = volume.holder().map(|holder| Holder { edge: holder.edge, since_ms: holder.since_ms });
    held.or_else(|| first().map(|other| Holder { edge: other.peer, since_ms: other.since_ms }))
}

/// Serves an edge, or tells it why not.
pub(super) async fn serve(local: Rc<Local>, accepted: Accepted) {
    let connection = match accepted.into_local() {
        Ok(connection) => connection,
        Err(error) => return tracing::warn!(%error, "the connection of an edge could not be taken over"),
    };
    let (peer, mut socket, slot) = (connection.peer, connection.socket, connection.slot);
    let Asked { attach, version } = &connection.negotiated;
    let (edge, name) = (attach.edge.clone(), attach.volume.clone());
    let answered: Result<_, Refused> = async {
        let (target, volume) = find(&local, attach).await?;
        let turn = local.attaching.turn(volume.id()).lock_owned().await;
        let session = open(&local, &volume, &target, &connection.negotiated, &peer).await;
        let session = session.map_err(|error| Refused { holder: holder(&volume), ..refused(&error) })?;
        let told = tell(&mut socket, &local, &session, *version).await;
        told.map_err(|error| Refused::new(ErrorKind::Unavailable, error.to_string()))?;
        Ok((session, turn))
    }
    .await;
    let (session, turn) = match answered {
        Ok((session, turn)) => (session, turn),
        Err(no) => {
            tracing::info!(%peer, %edge, volume = %name, reason = %no.message, "an edge was refused");
            return refuse(&mut socket, &no).await;
        }
    };
    let (user, for_task) = (session.user, Rc::clone(&local));
    begin(&local, user, async move {
        let _slot = slot;
        tracing::info!(%peer, %edge, volume = %name, "attached");
        if let Err(error) = serve_session(&for_task, socket, session).await {
            tracing::warn!(%peer, %edge, volume = %name, %error, "the connection of an edge broke");
        }
    });
    drop(turn);
}

/// The volume of this node that an edge asks for; of those of other nodes it is told whom to ask.
async fn find(local: &Rc<Local>, attach: &Attach) -> Result<(Target, Rc<Volume>), Refused> {
    let none = |_| Refused::new(ErrorKind::NotFound, format!("there is no volume {:?}", attach.volume));
    let target: Target = attach.volume.parse().map_err(none)?;
    let error = match local.find_here(&target.volume) {
        Ok(volume) => return Ok((target, volume)),
        Err(error) => error,
    };
    if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Fenced) {
        return Err(refused(&error));
    }
    match local.find_foreign(&target.volume).await {
        Ok(Some(foreign)) => takeover::answer(local, &foreign, attach).await.map(|volume| (target, volume)),
        Ok(None) => Err(refused(&error)),
        Err(unknown) => Err(refused(&unknown)),
    }
}

/// Gives an edge the volume, or the snapshot of it, that it asks for. The caller has the volume's turn.
async fn open(
    local: &Rc<Local>,
    volume: &Rc<Volume>,
    target: &Target,
    asked: &Asked,
    peer: &Peer,
) -> Result<Session, EngineError> {
    let attach = &asked.attach;
    let (id, session, generation) = (volume.id(), attach.session, attach.generation);
    let of = |user: &User| user.volume == id && user.session.is_some_and(|(of, _)| of == session);
    if local.connections.users().any(|user| of(&user) && user.session.is_some_and(|(_, newer)| newer >= generation)) {
        let text = format!("a newer connection of this session has the volume {}", volume.name());
        return Err(EngineError::new(ErrorKind::Unavailable, text));
    }
    // What they have begun has ended when this comes back: a change of theirs can not come behind one of this connection.
    local.connections.end(of).await;
    local.sessions.release(&target.volume);
    let exclusive = attach.mode == Mode::Exclusive;
    if attach.steal && attach.timeline.is_none() {
        let is_held_by = |user: &User| volume.holder().is_some_and(|holder| Some(holder.session) == session_of(user));
        let ends = |user: &User| user.volume == id && (exclusive || is_held_by(user));
        local.connections.end(ends).await;
    }
    let user = User { volume: id, client: peer.client(), session: Some((session, generation)) };
    let device = match &target.snapshot {
        Some(snapshot) if !exclusive => Some(volume.snapshot_device(snapshot, attach.edge.clone()).await?),
        Some(_) => {
            let text = format!("{target} is a snapshot, which is only read: attach it shared");
            return Err(EngineError::new(ErrorKind::Conflict, text));
        }
        None => None,
    };
    let start = match device {
        Some(device) => snapshot_start(device, volume),
        None => {
            let promises = attach.promises.iter().map(|promise| (promise.epoch, promise.safe)).collect();
            let request = SessionRequest {
                session,
                edge: format!("{} ({})", attach.edge, shown(peer)),
                exclusive,
                steal: attach.steal,
                timeline: attach.timeline,
                promises,
            };
            volume.begin_session(request).await?
        }
    };
    let size = start.device.size();
    Ok(Session { volume: Rc::clone(volume), start, user, size })
}

/// Takes a volume from the edge that has it for itself.
pub(super) async fn expel(local: &Rc<Local>, volume: &Volume) -> Result<(), EngineError> {
    let _turn = local.attaching.turn(volume.id()).lock_owned().await;
    if let Some(holder) = volume.expel().await? {
        tracing::info!(volume = %volume.name(), edge = %holder.edge, "a volume was taken from its edge");
        local.connections.end(|user| user.volume == volume.id() && session_of(user) == Some(holder.session)).await;
    }
    Ok(())
}

fn session_of(user: &User) -> Option<SessionId> {
    user.session.map(|(session, _)| session)
}

/// A snapshot never changes: no epoch and no promise is of concern.
fn snapshot_start(device: Device, volume: &Volume) -> SessionStart {
    let record = volume.record();
    SessionStart { device, timeline: record.shown, epoch: record.epoch, cuts: Vec::new() }
}

/// Tells the edge what it has got.
async fn tell(socket: &mut Socket, local: &Local, session: &Session, version: u16) -> std::io::Result<()> {
    let start = &session.start;
    let at = start.device.position();
    let attached = Attached {
        version,
        cluster: local.pools.cluster(),
        volume: session.volume.id(),
        timeline: start.timeline,
        epoch: start.epoch,
        size: session.size,
        read_only: start.device.read_only(),
        window: WINDOW,
        sequence: at.sequence,
        safe: at.safe,
        cuts: start.cuts.clone(),
    };
    let told = tokio::time::timeout(TELL_TIME, socket.write_all(&attached.encode())).await;
    told.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

/// Serves an edge until its connection ends; ends the session where it says so.
async fn serve_session(local: &Rc<Local>, mut socket: Socket, session: Session) -> Result<(), String> {
    let Session { volume, start, user, size } = session;
    let stats = local.connections.stats(volume.id());
    let device: Rc<dyn BlockDevice> = Rc::new(start.device);
    let dialect = EdgeDialect { name: volume.name().to_string(), size };
    let served =
        varve_serve::serve(&mut socket, Rc::clone(&device), dialect, bytes::BytesMut::new(), stats, Tuning::default());
    let cookie = match served.await.map_err(|error| error.to_string())? {
        Closed::HungUp => return Ok(()),
        Closed::Left(cookie) => cookie,
    };
    let at = device.position();
    drop(device);
    let ended = match user.session {
        Some((session, _)) => volume.end_session(session).await,
        None => Ok(()),
    };
    let (told, text) = match &ended {
        Ok(()) => (Told::Done, String::new()),
        Err(error) => (Told::Failed(error.kind()), error.to_string()),
    };
    let (length, payload_crc) = (text.len() as u32, payload_crc(text.as_bytes()));
    let reply = Reply { told, id: cookie, sequence: at.sequence, safe: at.safe, length, payload_crc };
    let bytes = [&reply.to_bytes()[..], text.as_bytes()].concat();
    // It has left: whether it hears that the session has ended is its own affair.
    let _ = tokio::time::timeout(TELL_TIME, socket.write_all(&bytes)).await;
    ended.map_err(|error| error.to_string())
}
