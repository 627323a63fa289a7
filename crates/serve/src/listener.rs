// SPDX-License-Identifier: Apache-2.0
//! Accepts connections, negotiates each beside the others, and hands them over. Runs on the control runtime.
//!
//! At most as many connections as there are [`Slots`], over all listeners that share them, negotiating ones included; a client beyond that
//! is hung up on at once. Where the system has no descriptor left, accepting pauses: the client waits in the backlog, and nothing spins. A
//! negotiation is a task with a bounded time, so a client that connects and says nothing holds its slot no longer than that.
//!
//! Warnings about floods are bounded too: one a second, with the number of those it stands for. A client that comes again and again and is turned away
//! each time for the same reason is told of once in five minutes.

use crate::error::{Result, ServeError, socket};
use crate::peer::Peer;
use crate::socket::{Accepted, Endpoint, Listening, Socket};
use crate::tls::ServerTls;
use bytes::BytesMut;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

/// How long accepting pauses when the system can not give a connection.
const PAUSE: Duration = Duration::from_millis(100);
/// Least time between two warnings of one sort.
const WARN_EVERY: Duration = Duration::from_secs(1);
/// Least time between two warnings of one host and one reason.
const REPEAT_EVERY: Duration = Duration::from_secs(300);
/// Hosts and reasons that are remembered for that.
const MOST_REPEATED: usize = 256;

/// The connections that there may be at once.
#[derive(Clone, Debug)]
pub struct Slots(Arc<Semaphore>);

/// The place of one connection. Dropping it gives the place back.
#[derive(Debug)]
pub struct Slot(#[allow(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Default for Slots {
    fn default() -> Self {
        Self::new(4096)
    }
}

impl Slots {
    /// Places for `most` connections.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))))
    }

    /// A place, if there is one.
    #[must_use]
    pub fn take(&self) -> Option<Slot> {
        Arc::clone(&self.0).try_acquire_owned().ok().map(Slot)
    }

    /// How many places are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.0.available_permits()
    }
}

/// How a protocol begins: what is agreed with a client before it is served.
pub trait Greeter: Send + Sync + 'static {
    /// What was agreed.
    type Agreed: Send + 'static;

    /// What the protocol is called, in logs.
    fn protocol(&self) -> &'static str;

    /// Agrees with the client at the other end, within a bounded time. Gives what was agreed and what the client has sent behind it; nothing where it left in
    /// good order, or was turned away in words of the protocol.
    fn greet(
        &self,
        socket: &mut Socket,
        peer: &Peer,
    ) -> impl Future<Output = Result<Option<(Self::Agreed, BytesMut)>>> + Send;
}

/// A socket that listens for clients.
#[derive(Debug)]
pub struct Listener {
    listening: Listening,
    endpoint: Endpoint,
    tls: Option<Arc<ServerTls>>,
}

impl Listener {
    /// Opens the socket of `endpoint`, on the runtime that this is called on. From here on clients can connect, and wait.
    ///
    /// # Errors
    /// When somebody else has the address, or the system refuses it.
    pub async fn open(endpoint: &Endpoint) -> Result<Self> {
        let listening = Listening::open(endpoint).await?;
        let endpoint = listening.endpoint().map_err(socket("opening a listener"))?;
        Ok(Self { listening, endpoint, tls: None })
    }

    /// Has clients that come over TCP speak TLS.
    #[must_use]
    pub fn under(self, tls: Option<Arc<ServerTls>>) -> Self {
        Self { tls, ..self }
    }

    /// Where clients connect, with the port that was chosen.
    #[must_use]
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Accepts until `stop` completes; then closes the socket and ends the negotiations that are under way. Each connection that was agreed on goes to
    /// `deliver`, which is called in the connection's own task.
    ///
    /// # Errors
    /// When the file of a unix socket can not be removed at the end.
    pub async fn run<G, F, D>(
        self,
        greeter: Arc<G>,
        slots: Slots,
        deliver: F,
        stop: impl Future<Output = ()>,
    ) -> Result<()>
    where
        G: Greeter,
        F: Fn(Accepted<G::Agreed>) -> D + Clone + Send + 'static,
        D: Future<Output = ()> + Send,
    {
        let protocol = greeter.protocol();
        let mut negotiations = JoinSet::new();
        let (mut refused, mut failed) = (Muffled::default(), Muffled::default());
        let known = Arc::new(Repeated::default());
        let mut stop = std::pin::pin!(stop);
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut stop => break,
                Some(_) = negotiations.join_next() => continue,
                accepted = self.listening.accept() => accepted,
            };
            match accepted {
                Ok((connection, peer)) => match slots.take() {
                    Some(slot) => {
                        let (greeter, deliver, tls) = (Arc::clone(&greeter), deliver.clone(), self.tls.clone());
                        let known = Arc::clone(&known);
                        negotiations.spawn(async move {
                            let greeted = greet(connection, tls.as_deref(), &peer, slot, &*greeter, deliver).await;
                            if let Err(error) = greeted {
                                known.tell(protocol, &peer, &error);
                            }
                        });
                    }
                    None => refused.warn(|times| {
                        warn!(%peer, protocol, times, "a connection was refused: there are too many");
                    }),
                },
                Err(error) if is_of_one_connection(&error) => {
                    debug!(%error, "a connection ended before it was accepted")
                }
                Err(error) => {
                    failed.warn(
                        |times| warn!(%error, protocol, times, endpoint = %self.endpoint, "can not accept connections"),
                    );
                    tokio::select! {
                        () = &mut stop => break,
                        () = tokio::time::sleep(PAUSE) => {}
                    }
                }
            }
        }
        self.listening.close().map_err(socket("closing a listener"))
    }
}

/// Agrees with one client and hands the connection over.
async fn greet<G, F, D>(
    connection: Socket,
    tls: Option<&ServerTls>,
    peer: &Peer,
    slot: Slot,
    greeter: &G,
    deliver: F,
) -> Result<()>
where
    G: Greeter,
    F: Fn(Accepted<G::Agreed>) -> D,
    D: Future<Output = ()> + Send,
{
    let mut connection = match tls {
        Some(tls) => tls.accept(connection).await?,
        None => connection,
    };
    let Some((agreed, leftover)) = greeter.greet(&mut connection, peer).await? else { return Ok(()) };
    let accepted = Accepted::new(connection, peer.clone(), agreed, leftover, slot);
    deliver(accepted.map_err(socket("handing it over"))?).await;
    Ok(())
}

/// Who was turned away lately, and why.
#[derive(Debug, Default)]
struct Repeated(Mutex<BTreeMap<(String, String), Instant>>);

impl Repeated {
    /// Tells of a client that was turned away: loudly where it is news.
    fn tell(&self, protocol: &str, peer: &Peer, error: &ServeError) {
        match error {
            ServeError::Vanished { .. } | ServeError::Socket { .. } => {
                debug!(%peer, protocol, %error, "a client left in the handshake");
            }
            _ if self.is_news(peer, error) => warn!(%peer, protocol, %error, "a client was turned away"),
            _ => debug!(%peer, protocol, %error, "a client was turned away again"),
        }
    }

    fn is_news(&self, peer: &Peer, error: &ServeError) -> bool {
        let host = peer.address().map_or_else(|| peer.to_string(), |address| address.ip().to_string());
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, told| told.elapsed() < REPEAT_EVERY);
        if known.len() >= MOST_REPEATED {
            known.clear();
        }
        let what = (host, error.to_string());
        let is_news = !known.contains_key(&what);
        if is_news {
            known.insert(what, Instant::now());
        }
        is_news
    }
}

/// Whether a failed accept says something of one client only, so that the next can be accepted at once.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

/// A warning that is given once in a while, with the number of times it stands for.
#[derive(Debug, Default)]
struct Muffled {
    last: Option<Instant>,
    times: u64,
}

impl Muffled {
    fn warn(&mut self, say: impl FnOnce(u64)) {
        self.times += 1;
        if self.last.is_none_or(|last| last.elapsed() >= WARN_EVERY) {
            say(self.times);
            (self.last, self.times) = (Some(Instant::now()), 0);
        }
    }
}

/// Raises this process's limit of open descriptors to `wanted`, or as far as it may; gives the limit that holds then.
///
/// # Errors
/// When the system refuses what it said it allows.
pub fn raise_open_file_limit(wanted: u64) -> io::Result<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let current = now.current.unwrap_or(u64::MAX);
    let reachable = wanted.min(now.maximum.unwrap_or(u64::MAX));
    if current >= reachable {
        return Ok(current);
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(reachable), maximum: now.maximum })?;
    info!(from = current, to = reachable, "raised the limit of open descriptors");
    Ok(reachable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_gives_one_warning() {
        let (mut muffled, mut said) = (Muffled::default(), Vec::new());
        for _ in 0..1000 {
            muffled.warn(|times| said.push(times));
        }
        assert_eq!(said, [1]);
        muffled.last = muffled.last.and_then(|last| last.checked_sub(WARN_EVERY));
        muffled.warn(|times| said.push(times));
        assert_eq!(said, [1, 1000]);
    }

    #[test]
    fn who_comes_again_for_the_same_reason_is_no_news() {
        let known = Repeated::default();
        let peer = |text: &str| Peer::tcp(text.parse().unwrap());
        let token = ServeError::Protocol("the token is wrong".to_owned());
        assert!(known.is_news(&peer("10.0.0.1:1000"), &token));
        assert!(!known.is_news(&peer("10.0.0.1:1001"), &token), "another port is the same host");
        assert!(known.is_news(&peer("10.0.0.2:1000"), &token));
        assert!(known.is_news(&peer("10.0.0.1:1002"), &ServeError::TooSlow(WARN_EVERY)));
        for host in 0..1000 {
            known.is_news(&peer(&format!("10.1.{}.{}:1", host / 256, host % 256)), &token);
        }
        assert!(known.0.lock().unwrap().len() <= MOST_REPEATED);
    }

    #[test]
    fn slots_come_back() {
        let slots = Slots::new(2);
        let (a, b) = (slots.take(), slots.take());
        assert!(a.is_some() && b.is_some() && slots.take().is_none());
        drop(a);
        assert_eq!(slots.free(), 1);
        assert!(slots.take().is_some());
    }
}
