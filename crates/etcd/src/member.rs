// SPDX-License-Identifier: Apache-2.0
//! The members of the cluster: connections that were proved to lead to one, and single requests on them.
//!
//! A connection is handed out only after a first answer on it. That one proves that an etcd is there, that it takes our token and lets us read, that it
//! knows of a leader, and that it is of the same cluster as all members before it: one of another cluster would be a second truth. What the first answer
//! was not is told in words that say what to mend.

use crate::auth::Auth;
use crate::config::Settings;
use crate::dial::{Dialled, Windows, dial};
use crate::fault::{Code, Fault};
use crate::grpc::{Answers, Wishes};
use crate::proto::{RANGE, RangeRequest, RangeResponse};
use crate::tls;
use prost::Message;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Tokens that one request may use up.
const MAX_RENEWALS: usize = 2;

/// A connection to a member.
pub(crate) struct Connection {
    /// No other connection has it.
    pub(crate) id: u64,
    /// The endpoint's place in the settings.
    pub(crate) index: usize,
    dialled: Dialled,
    /// When it answered last, in milliseconds since the members were begun with.
    answered_ms: AtomicU64,
}

impl Connection {
    pub(crate) fn is_closed(&self) -> bool {
        self.dialled.caller.is_closed()
    }
}

pub(crate) struct Members {
    pub(crate) settings: Settings,
    auth: Auth,
    /// The cluster's id, and the endpoint that named it first.
    cluster: OnceLock<(u64, String)>,
    next_id: AtomicU64,
    begun: Instant,
}

impl Members {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            auth: Auth::new(settings.user.clone()),
            settings,
            cluster: OnceLock::new(),
            next_id: AtomicU64::new(0),
            begun: Instant::now(),
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.settings.endpoints.len()
    }

    /// The endpoint's name, for people.
    pub(crate) fn name(&self, index: usize) -> String {
        self.settings.endpoints.get(index).map(ToString::to_string).unwrap_or_default()
    }

    /// A read of the prefix itself: it costs nothing, and its answer has the store's revision.
    pub(crate) fn glance(&self, serializable: bool) -> RangeRequest {
        RangeRequest {
            key: self.settings.prefix.clone().into_bytes(),
            count_only: true,
            serializable,
            ..RangeRequest::default()
        }
    }

    /// A new connection to the member at `index`, proved.
    pub(crate) async fn connect(&self, index: usize, windows: Windows) -> Result<Connection, Fault> {
        let endpoint = self.settings.endpoints.get(index);
        let endpoint = endpoint.ok_or_else(|| Fault::Misconfigured("there is no such endpoint".to_owned()))?;
        let late = |_| Err(Fault::NotSent(format!("no connection within {:?}", self.settings.connect_timeout)));
        let dialling = dial(endpoint, &self.settings.tls, windows);
        let dialled = timeout(self.settings.connect_timeout, dialling).await.unwrap_or_else(late)?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let connection = Connection { id, index, dialled, answered_ms: AtomicU64::new(self.now_ms()) };
        match self.prove(&connection).await {
            Ok(()) => Ok(connection),
            Err(fault) if fault.is_about_the_user() => Err(Fault::Misconfigured(self.settings.explain_refusal(&fault))),
            Err(fault) => Err(explain(fault, &connection, endpoint.tls).await),
        }
    }

    /// Proves that the member at the other end answers and is one of ours.
    pub(crate) async fn prove(&self, connection: &Connection) -> Result<(), Fault> {
        let answer: RangeResponse =
            self.request(connection, RANGE, &self.glance(true), self.settings.connect_timeout).await?;
        let found = answer.header.unwrap_or_default().cluster_id;
        let (known, by) = self.cluster.get_or_init(|| (found, self.name(connection.index)));
        if *known == found {
            return Ok(());
        }
        Err(Fault::Misconfigured(format!(
            "it is a member of the cluster {found:016x}, and {by} one of {known:016x}: all `endpoints` of etcd belong to one cluster"
        )))
    }

    /// One request on a connection, with the token renewed where it is over.
    pub(crate) async fn request<Q: Message, A: Message + Default>(
        &self,
        connection: &Connection,
        path: &'static str,
        message: &Q,
        timeout: Duration,
    ) -> Result<A, Fault> {
        let caller = &connection.dialled.caller;
        let mut token = self.auth.token(caller, timeout).await.map_err(Fault::before)?;
        for _ in 0..MAX_RENEWALS {
            match caller.unary(path, token.as_ref(), message, timeout).await {
                Err(fault) if fault.wants_token() && self.auth.is_used() => {
                    token = self.auth.renew(caller, token.as_ref(), timeout).await.map_err(Fault::before)?;
                }
                answer => return self.note(connection, answer),
            }
        }
        let answer = caller.unary(path, token.as_ref(), message, timeout).await;
        self.note(connection, answer)
    }

    /// Begins a call of many messages.
    pub(crate) async fn stream<Q: Message, A: Message + Default>(
        &self,
        connection: &Connection,
        path: &'static str,
        first: &Q,
    ) -> Result<(Wishes<Q>, Answers<A>), Fault> {
        let (caller, limit) = (&connection.dialled.caller, self.settings.request_timeout);
        let token = self.auth.token(caller, limit).await?;
        let late = |_| Err(Fault::Lost(format!("no answer within {limit:?}")));
        timeout(limit, caller.stream(path, token.as_ref(), first)).await.unwrap_or_else(late)
    }

    fn note<A>(&self, connection: &Connection, answer: Result<A, Fault>) -> Result<A, Fault> {
        if matches!(answer, Ok(_) | Err(Fault::Status(_))) {
            connection.answered_ms.store(self.now_ms(), Ordering::Relaxed);
        }
        answer
    }

    /// How long ago a request was answered on the connection.
    pub(crate) fn idle(&self, connection: &Connection) -> Duration {
        Duration::from_millis(self.now_ms().saturating_sub(connection.answered_ms.load(Ordering::Relaxed)))
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// What the failure of the first request on a connection means.
async fn explain(fault: Fault, connection: &Connection, is_tls: bool) -> Fault {
    let (Fault::Lost(reason) | Fault::NotSent(reason)) = fault else {
        return match fault {
            Fault::Foreign(_) => Fault::Misconfigured(fault.to_string()),
            Fault::Status(status) if status.code == Code::Unimplemented => {
                Fault::Misconfigured(format!("it is no etcd of version 3.4 or later ({status})"))
            }
            other => other,
        };
    };
    let broken = connection.dialled.why_broken().await.filter(|broken| !reason.contains(broken));
    let reason = broken.map_or(reason.clone(), |broken| format!("{reason}: {broken}"));
    match tls::explain_later(&reason).filter(|_| is_tls) {
        Some(fault) => fault,
        None if is_tls => Fault::NotSent(reason),
        None => Fault::NotSent(format!("{reason} (is it an etcd, and does it want https://?)")),
    }
}
