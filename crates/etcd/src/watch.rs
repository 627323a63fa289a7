// SPDX-License-Identifier: Apache-2.0
//! Watches: a task each, which keeps a stream from some member going and hands on what it tells.
//!
//! The task ends when its reader is dropped, when what it was to tell is no longer kept ([`Event::Behind`]), when etcd refuses it for good, and when the
//! client is closed. Anything else that happens to a stream (its member died, lost its leader, fell silent) only makes the task begin another one from its
//! [`Position`], on another endpoint, after a pause that grows while nothing succeeds. While etcd is away it waits.
//!
//! Nothing is queued: one batch of events is on its way to the reader at most, and while it is there the stream is not read, which holds the server back.
//! A stream that is silent for the time of a request is asked for a sign of life, because a member that vanished without closing its connection says nothing either. Such a sign
//! proves life and nothing else: old members send it ahead of events. What a member says of its own accord about how far a watch has come does count.

use crate::client::{Client, Failure, MAX_WATCHES};
use crate::fault::{Code, Fault, Nature, Status, Verdict};
use crate::grpc::{Answers, Wishes};
use crate::kv::{end_of, own_key};
use crate::member::Connection;
use crate::position::Position;
use crate::proto::{
    EventType, WATCH, WatchCreateRequest, WatchEvent, WatchProgressRequest, WatchRequest, WatchResponse, WatchWish,
};
use futures_util::stream;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use varve_coord::{CoordError, Entry, Event, Result, Watch};

/// Between two streams, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// A stream that lived for so long was a success.
const SUCCESS: Duration = Duration::from_secs(10);

/// Some events, or why there will be no more.
type Batch = Result<Vec<Event>>;

/// How a stream ended.
enum End {
    /// Nobody listens any more.
    Deaf,
    /// What it was to tell is no longer kept.
    Behind,
    /// It will never be served.
    Refused(CoordError),
    /// The member did not take the token, or the user may not watch: etcd 3.4 does not say which.
    Denied(String),
    /// It broke, and another one may do.
    Broken(String),
}

struct Supervisor {
    client: Arc<Client>,
    /// Of keys in etcd, with our own prefix.
    prefix: String,
    position: Position,
    events: mpsc::Sender<Batch>,
    closing: watch::Receiver<bool>,
    /// Told once the first stream stands.
    opened: Option<oneshot::Sender<Result<()>>>,
    /// Whether the last stream was denied.
    denied: bool,
    _room: OwnedSemaphorePermit,
}

impl Client {
    /// Begins a watch and waits until a member serves it.
    pub(crate) async fn watch(self: Arc<Self>, prefix: &str, from_revision: u64) -> Result<Watch> {
        let room = Arc::clone(&self.watch_room).try_acquire_owned();
        let room = room.map_err(|_| CoordError::Busy(format!("there are {} watches already", MAX_WATCHES)))?;
        // "From now on" is made a number here: a member that lags would begin earlier, and a stream that breaks could not be taken up again.
        let now = self.now().await?;
        let next = if from_revision == 0 { now + 1 } else { from_revision };
        let (events, queue) = mpsc::channel(1);
        let (opened, standing) = oneshot::channel();
        let supervisor = Supervisor {
            prefix: format!("{}{prefix}", self.settings().prefix),
            position: Position::new(i64::try_from(next).unwrap_or(i64::MAX)),
            events,
            closing: self.closing(),
            opened: Some(opened),
            denied: false,
            client: Arc::clone(&self),
            _room: room,
        };
        let limit = self.settings().give_up_after;
        tokio::spawn(supervisor.run());
        let late = |_| {
            Ok(Err(CoordError::Unavailable {
                reason: format!("etcd: no endpoint serves a watch within {limit:?}"),
                source: None,
            }))
        };
        let ended = |_| CoordError::Unavailable { reason: "etcd: it was closed".to_owned(), source: None };
        timeout(limit, standing).await.unwrap_or_else(late).map_err(ended)??;
        Ok(reader(queue))
    }
}

/// The watch that tells what comes through `queue`.
fn reader(queue: mpsc::Receiver<Batch>) -> Watch {
    Watch::new(stream::unfold((queue, Vec::new().into_iter()), |(mut queue, mut batch)| async move {
        loop {
            if let Some(event) = batch.next() {
                return Some((Ok(event), (queue, batch)));
            }
            match queue.recv().await? {
                Ok(events) => batch = events.into_iter(),
                Err(error) => return Some((Err(error), (queue, batch))),
            }
        }
    }))
}

impl Supervisor {
    async fn run(mut self) {
        let mut closing = self.closing.clone();
        tokio::select! {
            // An error means that the client is gone without having been closed.
            _ = closing.wait_for(|closed| *closed) => {}
            () = self.go_on() => {}
        }
    }

    /// Keeps a stream going until there is nothing more to tell or nobody to tell it to.
    async fn go_on(&mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let begun = Instant::now();
            let reason = match self.stream().await {
                End::Deaf => return,
                End::Behind => {
                    self.report(Ok(vec![Event::Behind])).await;
                    return;
                }
                End::Refused(error) => {
                    self.report(Err(error)).await;
                    return;
                }
                End::Denied(reason) if self.denied => {
                    let fault = Fault::Status(Status { code: Code::PermissionDenied, message: reason });
                    let error = self.client.error(Failure::Refused { endpoint: "a watch".to_owned(), fault });
                    self.report(Err(error)).await;
                    return;
                }
                // The read below renews a token that is over.
                End::Denied(reason) => {
                    self.denied = true;
                    reason
                }
                End::Broken(reason) => reason,
            };
            tracing::debug!(prefix = %self.prefix, reason, "a stream of a watch ended; another one is begun");
            if begun.elapsed() > SUCCESS {
                pause = FIRST_PAUSE;
            }
            tokio::select! {
                () = self.events.closed() => return,
                () = sleep(pause) => pause = (pause * 2).min(MAX_PAUSE),
            }
            // An etcd that was set back would be silent until it has the revision again that is waited for.
            let now = tokio::select! {
                () = self.events.closed() => return,
                now = self.client.now() => now,
            };
            if let Err(error @ CoordError::Corrupt { .. }) = now {
                self.report(Err(error)).await;
                return;
            }
        }
    }

    /// Hands on the last batch. Whoever waits for the watch to stand is told, if it is an error.
    async fn report(&mut self, batch: Batch) {
        match (self.opened.take(), batch) {
            (Some(opened), Err(error)) => drop(opened.send(Err(error))),
            (opened, batch) => {
                if let Some(opened) = opened {
                    drop(opened.send(Ok(())));
                }
                drop(self.events.send(batch).await);
            }
        }
    }

    /// One stream, from its beginning to its end.
    async fn stream(&mut self) -> End {
        let events = self.events.clone();
        tokio::select! {
            () = events.closed() => End::Deaf,
            end = self.stream_on_a_member() => end,
        }
    }

    async fn stream_on_a_member(&mut self) -> End {
        let client = Arc::clone(&self.client);
        let connection = match client.watches.connection().await {
            Ok(connection) => connection,
            Err(none) => {
                if none.misconfigured && self.opened.is_some() {
                    return End::Refused(CoordError::Unavailable {
                        reason: format!("etcd: {}", none.reason),
                        source: None,
                    });
                }
                return End::Broken(none.reason);
            }
        };
        let end = self.stream_on(&connection).await;
        if let End::Broken(_) = end {
            client.watches.leave(&connection).await;
        }
        end
    }

    async fn stream_on(&mut self, connection: &Connection) -> End {
        let create = WatchCreateRequest {
            key: self.prefix.clone().into_bytes(),
            range_end: end_of(&self.prefix),
            start_revision: self.position.begin(),
            progress_notify: true,
            fragment: true,
        };
        let create = WatchRequest { wish: Some(WatchWish::Create(create)) };
        let client = Arc::clone(&self.client);
        let (wishes, mut answers) = match client.members.stream(connection, WATCH, &create).await {
            Ok(halves) => halves,
            Err(fault) => return self.end_of(fault),
        };
        loop {
            let response = match next(&wishes, &mut answers, client.settings().request_timeout).await {
                Ok(Some(response)) => response,
                Ok(None) => return End::Broken("the member ended the stream".to_owned()),
                Err(fault) => return self.end_of(fault),
            };
            if let Some(end) = self.take(response, connection).await {
                return end;
            }
        }
    }

    fn end_of(&self, fault: Fault) -> End {
        match fault.verdict(Nature::Read) {
            Verdict::Final if !fault.wants_token() => {
                let failure = Failure::Refused { endpoint: "a watch".to_owned(), fault };
                End::Refused(self.client.error(failure))
            }
            _ => End::Broken(fault.to_string()),
        }
    }

    /// Hands on a response; gives the end of the stream, if it is that.
    async fn take(&mut self, response: WatchResponse, connection: &Connection) -> Option<End> {
        if response.canceled {
            return Some(if response.compact_revision > 0 {
                End::Behind
            } else if response.cancel_reason.contains("permission denied") || response.cancel_reason.contains("auth") {
                End::Denied(response.cancel_reason)
            } else {
                End::Broken(format!("the member ended the watch: {}", response.cancel_reason))
            });
        }
        if response.created {
            self.denied = false;
            self.client.watches.answered(connection);
            if let Some(opened) = self.opened.take() {
                drop(opened.send(Ok(())));
            }
        }
        let revision = response.header.unwrap_or_default().revision;
        if response.events.is_empty() {
            if !response.created && !response.fragment && response.watch_id >= 0 {
                self.position.skip_to(revision);
            }
            return None;
        }
        // The room comes first: what was taken off the position is handed on without a wait, and so is not lost when this is dropped.
        let Ok(room) = self.events.clone().reserve_owned().await else { return Some(End::Deaf) };
        let own = &self.client.settings().prefix;
        let new = self.position.take(response.events, !response.fragment);
        let new = new.into_iter().filter_map(|told| event(own, told)).collect::<Vec<_>>();
        if !new.is_empty() {
            drop(room.send(Ok(new)));
        }
        None
    }
}

/// The next response. After `silence` a sign of life is asked for, and after as much again the stream is given up.
async fn next(
    wishes: &Wishes<WatchRequest>,
    answers: &mut Answers<WatchResponse>,
    silence: Duration,
) -> std::result::Result<Option<WatchResponse>, Fault> {
    if let Ok(answer) = timeout(silence, answers.next()).await {
        return answer;
    }
    // Where there is no room for the question, the one before it was not even taken: that is silence as well.
    let _no_room = wishes.send(&WatchRequest { wish: Some(WatchWish::Progress(WatchProgressRequest {})) });
    let silent = |_| Err(Fault::Lost(format!("the member was silent for {:?}", 2 * silence)));
    timeout(silence, answers.next()).await.unwrap_or_else(silent)
}

/// An event in the words of `Coord`, if it is of a key of ours.
fn event(own: &str, told: WatchEvent) -> Option<Event> {
    let is_delete = told.r#type == i32::from(EventType::Delete);
    let kv = told.kv?;
    let (key, revision) = (own_key(own, &kv.key)?.to_owned(), u64::try_from(kv.mod_revision).ok()?);
    Some(if is_delete {
        Event::Deleted { key, revision }
    } else {
        Event::Put(Entry { key, value: kv.value, revision })
    })
}
