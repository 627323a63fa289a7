// SPDX-License-Identifier: Apache-2.0
//! The connections of the shard, of NBD clients and of edges: each a task of its thread that holds the device of its volume.
//!
//! A connection that was negotiated elsewhere comes here, opens its export and is served until one side ends it. As
//! long as it is, its volume is attached. Several connections of one client are one client; a second client gets
//! in, with a warning, because nothing here can know whether the two have agreed.
//!
//! Ending the connections drops their futures between two polls, when every write that was applied is committed:
//! what was not answered may have happened or not, and a client that comes back finds everything that was answered.

use super::local::Local;
use crate::api::model::Target;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use varve_engine::{BlockDevice, Device, EngineError, Volume};
use varve_nbd::Accepted;
use varve_serve::{Client, Peer, Stats, Tuning};
use varve_types::{ErrorKind, SessionId, VolumeId};

/// A connection that is served.
struct Served {
    user: User,
    task: AbortHandle,
}

/// Who uses what by a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct User {
    pub(super) volume: VolumeId,
    pub(super) client: Client,
    /// Of an edge: its session and which of the session's generations this is.
    pub(super) session: Option<(SessionId, u64)>,
}

/// The connections that are served.
#[derive(Default)]
pub(super) struct Connections {
    next: Cell<u64>,
    served: RefCell<BTreeMap<u64, Served>>,
    /// What was done, by volume, since the start.
    stats: RefCell<BTreeMap<VolumeId, Arc<Stats>>>,
    ended: Notify,
}

/// Takes the connection out when its task ends, however it does.
struct Place {
    local: Rc<Local>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let connections = &self.local.connections;
        connections.served.borrow_mut().remove(&self.number);
        connections.ended.notify_waiters();
    }
}

impl Connections {
    /// What was done with a volume since the start.
    pub(super) fn stats(&self, volume: VolumeId) -> Arc<Stats> {
        Arc::clone(self.stats.borrow_mut().entry(volume).or_default())
    }

    /// Forgets the numbers of volumes that are no more.
    pub(super) fn keep_stats(&self, keep: impl Fn(VolumeId) -> bool) {
        self.stats.borrow_mut().retain(|volume, _| keep(*volume));
    }

    /// Ends those of the users that `ends` names, and waits until they have ended: nothing that they asked for is done behind that.
    pub(super) async fn end(&self, ends: impl Fn(&User) -> bool) {
        loop {
            let ended = self.ended.notified();
            let is_meant = |served: &&Served| ends(&served.user);
            let tasks: Vec<_> =
                self.served.borrow().values().filter(is_meant).map(|served| served.task.clone()).collect();
            if tasks.is_empty() {
                return;
            }
            for task in tasks {
                task.abort();
            }
            ended.await;
        }
    }

    /// Another client that has the volume open, if there is one.
    fn other(&self, volume: VolumeId, client: Client) -> Option<Client> {
        self.users().find(|user| user.volume == volume && user.client != client).map(|user| user.client)
    }

    /// Everybody who is served.
    pub(super) fn users(&self) -> impl Iterator<Item = User> + use<> {
        let users: Vec<User> = self.served.borrow().values().map(|served| served.user).collect();
        users.into_iter()
    }
}

/// Serves a user, as a task of this thread that is known until it ends; of a volume that another node runs by now, nobody.
pub(super) fn begin(local: &Rc<Local>, user: User, serving: impl Future<Output = ()> + 'static) {
    // Another node has taken it while it was opened: it is hung up.
    if local.is_lost(user.volume) {
        return;
    }
    let connections = &local.connections;
    let number = connections.next.replace(connections.next.get() + 1);
    let place = Place { local: Rc::clone(local), number };
    let task = tokio::task::spawn_local(async move {
        let _place = place;
        serving.await;
    });
    // The task has not run yet: it is on this very thread.
    connections.served.borrow_mut().insert(number, Served { user, task: task.abort_handle() });
}

/// Who a client is, in lists of who is attached: the same for all its connections.
pub(super) fn shown(peer: &Peer) -> String {
    peer.address().map_or_else(|| peer.to_string(), |address| address.ip().to_string())
}

/// Refuses a client beside an edge that has the volume for itself.
pub(super) fn check_free(volume: &Volume) -> Result<(), EngineError> {
    let Some(holder) = volume.holder() else { return Ok(()) };
    let text = format!("volume {} is held by the edge {}", volume.name(), holder.edge);
    Err(EngineError::new(ErrorKind::Conflict, text))
}

/// Opens what an export name stands for.
async fn open(local: &Local, name: &str, peer: &Peer) -> Result<(Rc<Volume>, Device), EngineError> {
    let target: Target =
        name.parse().map_err(|_| EngineError::new(ErrorKind::NotFound, format!("no export {name:?}")))?;
    let volume = local.find(&target.volume).await?;
    let device = match &target.snapshot {
        Some(snapshot) => volume.snapshot_device(snapshot, shown(peer)).await?,
        None => {
            let device = volume.device(shown(peer)).await?.0;
            // Only now: an edge may have got it while this waited.
            check_free(&volume)?;
            device
        }
    };
    Ok((volume, device))
}

/// Serves a connection, as a task of this thread.
pub(super) async fn serve(local: Rc<Local>, accepted: Accepted) {
    let connection = match accepted.into_local() {
        Ok(connection) => connection,
        Err(error) => return tracing::warn!(%error, "an NBD connection could not be taken over"),
    };
    let (peer, export) = (connection.peer.clone(), connection.negotiated.export.name.clone());
    let (volume, device) = match open(&local, &export, &peer).await {
        Ok(opened) => opened,
        // The client was told yes a moment ago; all that is left is to hang up.
        Err(error) => return tracing::warn!(%peer, %export, %error, "an export could not be opened"),
    };
    let connections = &local.connections;
    if let Some(other) = connections.other(volume.id(), peer.client()) {
        tracing::warn!(%peer, %export, %other, "a second client opens a volume: without care between the two its data will be damaged");
    }
    let stats = connections.stats(volume.id());
    let user = User { volume: volume.id(), client: peer.client(), session: None };
    begin(&local, user, async move {
        let _slot = connection.slot;
        let device: Rc<dyn BlockDevice> = Rc::new(device);
        let (socket, negotiated, leftover) = (connection.socket, connection.negotiated, connection.leftover);
        tracing::info!(%peer, %export, "attached");
        match varve_nbd::serve(socket, device, negotiated, leftover, stats, Tuning::default()).await {
            Ok(_) => tracing::info!(%peer, %export, "detached"),
            Err(error) => tracing::warn!(%peer, %export, %error, "an NBD connection broke"),
        }
    });
}
