// SPDX-License-Identifier: Apache-2.0
//! The NBD front end: a listener on a unix socket, and the connections of its clients, on the thread of the volumes.

use super::registry::Registry;
use std::future::Future;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::debug;
use varve_nbd::{Accepted, HandshakeLimits, NbdGreeter, Negotiated, serve};
use varve_serve::{Endpoint, Listener, Local, Slots, Stats, Tuning, trim_buffers};

/// Negotiated connections that wait to be served.
const WAITING: usize = 64;
/// How often buffers that nobody wants are given back.
const TRIM_EVERY: Duration = Duration::from_secs(5);

/// The NBD socket.
pub struct Front {
    listener: Listener,
    registry: Rc<Registry>,
}

impl Front {
    /// Opens the socket: from here on clients can connect, and wait.
    ///
    /// # Errors
    /// When somebody else has it, or the system refuses it.
    pub async fn open(socket: PathBuf, registry: Rc<Registry>) -> varve_serve::Result<Self> {
        Ok(Self { listener: Listener::open(&Endpoint::Unix(socket)).await?, registry })
    }

    /// Serves until `stop` completes; then ends all connections.
    ///
    /// # Errors
    /// When the file of the socket can not be removed.
    pub async fn run(self, stop: impl Future<Output = ()>) -> varve_serve::Result<()> {
        let (sender, mut receiver) = mpsc::channel::<Accepted>(WAITING);
        let deliver = move |accepted| {
            let sender = sender.clone();
            async move { drop(sender.send(accepted).await) }
        };
        let greeter = NbdGreeter::new(self.registry.shown(), HandshakeLimits::default());
        let listening = self.listener.run(Arc::new(greeter), Slots::default(), deliver, stop);
        let mut listening = std::pin::pin!(listening);
        let mut connections = JoinSet::new();
        #[allow(clippy::disallowed_methods, reason = "memory that nobody uses is given back by the clock")]
        let mut trim = tokio::time::interval(TRIM_EVERY);
        loop {
            tokio::select! {
                ended = &mut listening => return ended,
                Some(accepted) = receiver.recv() => match accepted.into_local() {
                    Ok(local) => {
                        #[allow(clippy::disallowed_methods, reason = "a connection is one task")]
                        connections.spawn_local(connection(local, Rc::clone(&self.registry)));
                    }
                    Err(error) => debug!(%error, "an NBD connection could not be taken over"),
                },
                Some(_) = connections.join_next() => {}
                _ = trim.tick() => trim_buffers(),
            }
        }
    }
}

async fn connection(local: Local<Negotiated>, registry: Rc<Registry>) {
    let name = local.negotiated.export.name.clone();
    let peer = local.peer;
    let _slot = local.slot;
    let (volume, _client) = match registry.join(&name) {
        Ok(joined) => joined,
        Err(error) => return debug!(%peer, %error, "an NBD client came too late"),
    };
    let stats = Arc::new(Stats::default());
    let served = serve(local.socket, volume.device(), local.negotiated, local.leftover, stats, Tuning::default()).await;
    match served {
        Ok(closed) => debug!(%peer, volume = name, ?closed, "an NBD client has left"),
        Err(error) => debug!(%peer, volume = name, %error, "an NBD client was lost"),
    }
}
