// SPDX-License-Identifier: Apache-2.0
//! One request to whichever member does it, and the rule when to try another.
//!
//! What only reads is tried on one endpoint after the other until the time that is set for it is over. What changes something is tried again only
//! where it certainly was not done ([`Fault::verdict`]); anything else is [`Failure::Doubt`], at once. So that a connection which died unnoticed
//! is not found out by a change, one that was silent for the time of a request has to answer a read first.
//!
//! Requests at once are bounded; whoever finds no room waits within its time. Revisions are watched over: an answer that is older than one before it
//! can only come from an etcd that was set back, and nothing that was decided by such an answer would hold.

use crate::config::Settings;
use crate::dial::Windows;
use crate::fault::{Code, Fault, Nature, Verdict};
use crate::link::Link;
use crate::member::{Connection, Members};
use crate::proto::ResponseHeader;
use prost::Message;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout_at};
use varve_coord::CoordError;

/// Most requests at once.
const MAX_REQUESTS: usize = 64;
/// Most watches at once. With TLS etcd allows 250 calls on a connection.
pub(crate) const MAX_WATCHES: usize = 200;
/// Between two tries, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_millis(500);

const REQUEST_WINDOWS: Windows = Windows { stream_bytes: 2 << 20, connection_bytes: 8 << 20 };
/// Bytes of a watch that may wait for its reader on the way.
const WATCH_BYTES: u32 = 64 << 10;
/// There is room for all watches that stand still and one that does not.
const WATCH_WINDOWS: Windows =
    Windows { stream_bytes: WATCH_BYTES, connection_bytes: (MAX_WATCHES as u32 + 1) * WATCH_BYTES };

/// How a request failed.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// It was not done, and will not be.
    Refused { endpoint: String, fault: Fault },
    /// It was not done: nobody did it in time.
    Away { reason: String, misconfigured: bool },
    /// It may have been done.
    Doubt { endpoint: String, fault: Fault },
    /// It was not done: others left it no room.
    Busy,
}

/// What a request comes to.
pub(crate) type Asked<A> = Result<A, Failure>;

pub(crate) struct Client {
    pub(crate) members: Arc<Members>,
    requests: Link,
    pub(crate) watches: Link,
    room: Semaphore,
    /// Room for watches.
    pub(crate) watch_room: Arc<Semaphore>,
    /// The highest revision that was seen.
    seen: AtomicI64,
    /// Set when nothing is to go on any more.
    closed: watch::Sender<bool>,
}

impl Client {
    pub(crate) fn new(settings: Settings) -> Self {
        let members = Arc::new(Members::new(settings));
        Self {
            requests: Link::new("requests", Arc::clone(&members), REQUEST_WINDOWS),
            watches: Link::new("watches", Arc::clone(&members), WATCH_WINDOWS),
            members,
            room: Semaphore::new(MAX_REQUESTS),
            watch_room: Arc::new(Semaphore::new(MAX_WATCHES)),
            seen: AtomicI64::new(0),
            closed: watch::Sender::new(false),
        }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.members.settings
    }

    /// Ends the watches.
    pub(crate) fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Completes when the watches are to end.
    pub(crate) fn closing(&self) -> watch::Receiver<bool> {
        self.closed.subscribe()
    }

    /// Does a request.
    pub(crate) async fn ask<Q: Message, A: Message + Default>(
        &self,
        path: &'static str,
        message: &Q,
        nature: Nature,
    ) -> Asked<A> {
        let deadline = Instant::now() + self.settings().give_up_after;
        let room = timeout_at(deadline, self.room.acquire()).await;
        let _room = room.ok().and_then(Result::ok).ok_or(Failure::Busy)?;
        let mut pause = FIRST_PAUSE;
        let mut last = None;
        while Instant::now() < deadline {
            let connection = match timeout_at(deadline, self.requests.connection()).await {
                Ok(Ok(connection)) => connection,
                Ok(Err(none)) => {
                    if none.misconfigured {
                        return Err(Failure::Away { reason: none.reason, misconfigured: true });
                    }
                    last = Some(none.reason);
                    sleep_until(none.until.min(deadline)).await;
                    continue;
                }
                Err(_) => break,
            };
            let fault = match self.try_on(&connection, path, message, nature, deadline).await {
                Ok(answer) => {
                    self.requests.answered(&connection);
                    return Ok(answer);
                }
                Err(fault) => fault,
            };
            let endpoint = self.members.name(connection.index);
            match fault.verdict(nature) {
                Verdict::Final => return Err(Failure::Refused { endpoint, fault }),
                Verdict::Doubt => {
                    self.requests.leave(&connection).await;
                    return Err(Failure::Doubt { endpoint, fault });
                }
                Verdict::Elsewhere => {
                    self.requests.leave(&connection).await;
                    last = Some(format!("{endpoint}: {fault}"));
                    sleep_until((Instant::now() + pause).min(deadline)).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
            }
        }
        let reason = format!(
            "{} (tried for {:?})",
            last.unwrap_or_else(|| "no endpoint answers".to_owned()),
            self.settings().give_up_after
        );
        self.requests.lost(&reason);
        Err(Failure::Away { reason, misconfigured: false })
    }

    async fn try_on<Q: Message, A: Message + Default>(
        &self,
        connection: &Connection,
        path: &'static str,
        message: &Q,
        nature: Nature,
        deadline: Instant,
    ) -> Result<A, Fault> {
        if nature == Nature::Change && self.members.idle(connection) > self.settings().request_timeout {
            self.members.prove(connection).await.map_err(Fault::before)?;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        self.members.request(connection, path, message, self.settings().request_timeout.min(left)).await
    }

    /// The highest revision that an answer had so far. One that is asked for from now on is not older.
    pub(crate) fn floor(&self) -> i64 {
        self.seen.load(Ordering::SeqCst)
    }

    /// The revision of an answer that was asked for when `floor` was.
    pub(crate) fn revision(&self, header: Option<ResponseHeader>, floor: i64) -> Result<u64, CoordError> {
        let revision = header.unwrap_or_default().revision;
        if revision < floor {
            let reason = format!(
                "it went back from revision {floor} to {revision}: was it restored from a backup? Nothing goes on until Varve is started again"
            );
            return Err(CoordError::Corrupt { what: "etcd".to_owned(), reason, source: None });
        }
        self.saw(revision);
        Ok(u64::try_from(revision).unwrap_or(0))
    }

    /// Notes a revision that the cluster has.
    pub(crate) fn saw(&self, revision: i64) {
        self.seen.fetch_max(revision, Ordering::SeqCst);
    }

    /// The error of a failure, in words that say what to do.
    pub(crate) fn error(&self, failure: Failure) -> CoordError {
        let unavailable = |reason: String| CoordError::Unavailable { reason: format!("etcd: {reason}"), source: None };
        match failure {
            Failure::Busy => CoordError::Busy(format!("{MAX_REQUESTS} requests to etcd wait for its answers")),
            Failure::Away { reason, .. } => unavailable(reason),
            Failure::Doubt { endpoint, fault } => {
                let full = matches!(&fault, Fault::Status(status) if status.is_full());
                let advice = if full { FULL_ADVICE } else { "" };
                CoordError::Unknown { reason: format!("etcd: {endpoint}: {fault}{advice}"), source: None }
            }
            Failure::Refused { endpoint, fault } => match &fault {
                Fault::Status(status) => match status.code {
                    _ if fault.is_about_the_user() => {
                        unavailable(format!("{endpoint}: {}", self.settings().explain_refusal(&fault)))
                    }
                    Code::InvalidArgument if status.message.contains("too large") => CoordError::Invalid(format!(
                        "etcd: {endpoint}: {status}: start it with --max-request-bytes=1572864, its default, or more"
                    )),
                    Code::InvalidArgument if status.message.contains("too many operations") => CoordError::Invalid(
                        format!("etcd: {endpoint}: {status}: start it with --max-txn-ops=128, its default, or more"),
                    ),
                    Code::ResourceExhausted if status.is_full() => {
                        CoordError::NoSpace(format!("etcd: {endpoint}: {status}{FULL_ADVICE}"))
                    }
                    Code::ResourceExhausted => CoordError::Busy(format!("etcd: {endpoint}: {status}")),
                    _ => CoordError::Internal(format!("etcd: {endpoint}: {status}")),
                },
                _ => unavailable(format!("{endpoint}: {fault}")),
            },
        }
    }
}

const FULL_ADVICE: &str = ": compact and defragment it or raise its --quota-backend-bytes, then `etcdctl alarm disarm`";

impl Failure {
    /// Whether a person has to mend the configuration.
    pub(crate) fn is_misconfigured(&self) -> bool {
        match self {
            Self::Away { misconfigured, .. } => *misconfigured,
            Self::Refused { fault, .. } => matches!(fault, Fault::Misconfigured(_)) || fault.is_about_the_user(),
            Self::Doubt { .. } | Self::Busy => false,
        }
    }
}
