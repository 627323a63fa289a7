// SPDX-License-Identifier: Apache-2.0
//! The end that keeps copies: does what a node asks, in the order in which it asks. Only what is to come to stable media is waited for beside the rest.
//!
//! Always holds: what was asked behind a delivery is done behind it; it reads no further while its answers are not taken, nor while a journal has no room for what it has
//! read.
//!
//! The end of the connection ends nothing else: the copies stay, for whoever takes over.

use super::frames::{Frames, change, record};
use super::greeter::Accepted;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use varve_engine::{BeginCopy, Copies, Delivery, EngineError, Fetched, Release};
use varve_serve::Socket;
use varve_types::NodeId;
use varve_wire::greeting::NEWEST;
use varve_wire::mirror::{Message, MirrorWelcome};

/// Changes, and bytes of data, of one answer to a fetch.
const FETCH_CHANGES: usize = 1000;
const FETCH_BYTES: usize = 16 << 20;
/// Syncs of one node that are waited for: it asks for one a volume at a time.
const MOST_SYNCS: usize = 1 << 16;

/// Who is connected: a node that is not may be dead.
#[derive(Default)]
pub(crate) struct Links(RefCell<BTreeMap<NodeId, u32>>);

impl Links {
    /// Whether a node is connected.
    pub(crate) fn has(&self, node: NodeId) -> bool {
        self.0.borrow().contains_key(&node)
    }

    fn begin(&self, node: NodeId) {
        *self.0.borrow_mut().entry(node).or_default() += 1;
    }

    fn end(&self, node: NodeId) {
        let mut links = self.0.borrow_mut();
        if let Some(count) = links.get_mut(&node) {
            *count -= 1;
            if *count == 0 {
                links.remove(&node);
            }
        }
    }
}

/// Serves a node until it hangs up. `now` is the clock by which the shard of this node waits out the leases that are given here.
pub(crate) async fn serve(
    own: NodeId,
    copies: Rc<Copies>,
    links: Rc<Links>,
    now: impl Fn() -> Duration,
    accepted: Accepted,
) {
    let mut connection = match accepted.into_local() {
        Ok(connection) => connection,
        Err(error) => return tracing::warn!(%error, "the connection of a node could not be taken over"),
    };
    let node = connection.negotiated.node;
    let welcome = MirrorWelcome { version: NEWEST, node: own };
    links.begin(node);
    let ended = async {
        send(&mut connection.socket, &welcome.encode()).await?;
        answer(&mut connection.socket, &copies, now).await
    };
    let ended = ended.await;
    links.end(node);
    match ended {
        Ok(()) => tracing::debug!(%node, "a node needs no copies any more"),
        Err(error) => tracing::warn!(%node, %error, "the connection of a node broke"),
    }
}

async fn answer(socket: &mut Socket, copies: &Rc<Copies>, now: impl Fn() -> Duration) -> Result<(), String> {
    let mut frames = Frames::default();
    let mut out = Vec::new();
    let mut syncs: JoinSet<(u64, Message)> = JoinSet::new();
    loop {
        while let Some((id, message)) = frames.next().map_err(|error| error.to_string())? {
            if let Message::Sync { timeline, epoch, through } = message {
                if syncs.len() == MOST_SYNCS {
                    return Err(format!("it waits for {MOST_SYNCS} syncs, and asks for another one"));
                }
                let copies = Rc::clone(copies);
                syncs.spawn_local(async move {
                    (id, told(copies.sync(timeline, epoch, through).await.map(|()| Message::Done)))
                });
                continue;
            }
            act(copies, message, &now).await.iter().for_each(|answer| push(&mut out, id, answer));
        }
        if !out.is_empty() {
            send(socket, &out).await?;
            out.clear();
            out.shrink_to(1 << 20);
        }
        tokio::select! {
            biased;
            Some(done) = syncs.join_next() => {
                let (id, answer) = done.map_err(|error| error.to_string())?;
                push(&mut out, id, &answer);
            }
            there = frames.receive(socket) => {
                if !there.map_err(|error| error.to_string())? {
                    return Ok(());
                }
            }
        }
    }
}

async fn send(socket: &mut Socket, bytes: &[u8]) -> Result<(), String> {
    socket.write_all(bytes).await.map_err(|error| error.to_string())?;
    // TLS may have kept some of it.
    socket.flush().await.map_err(|error| error.to_string())
}

fn push(out: &mut Vec<u8>, id: u64, answer: &Message) {
    let (head, data) = answer.encode(id);
    out.extend_from_slice(&head);
    data.iter().for_each(|bytes| out.extend_from_slice(bytes));
}

/// What is answered to what was done.
fn told(done: Result<Message, EngineError>) -> Message {
    done.unwrap_or_else(|error| Message::Failed { kind: error.kind(), reason: error.to_string() })
}

/// Does what is asked. Gives the answers, which are several for what a copy has.
async fn act(copies: &Copies, message: Message, now: impl Fn() -> Duration) -> Vec<Message> {
    let done = match message {
        Message::Begin { volume, timeline, epoch, base, medium } => {
            let begun = copies.begin(BeginCopy { volume, timeline, epoch, base, medium });
            begun.map(|begun| Message::Begun { credits: begun.credits, incarnation: begun.incarnation })
        }
        Message::Deliver { timeline, epoch, previous, changes } => {
            let records = changes.into_iter().map(record).collect();
            let taken = copies.deliver(Delivery { timeline, epoch, previous, records }).await;
            taken.map(|more| Message::Taken { more })
        }
        Message::Release { timeline, epoch, through, back } => {
            copies.release(Release { timeline, epoch, through, back });
            return Vec::new();
        }
        Message::Fetch { timeline, epoch, named } => match copies.fetch(timeline, epoch, named).await {
            Ok(fetched) => return in_parts(fetched),
            Err(error) => Err(error),
        },
        Message::Lease { timeline, epoch } => copies.lease(timeline, epoch, now()).map(|()| Message::Done),
        other => Err(EngineError::invalid(format!("{other:?} is no request"))),
    };
    vec![told(done)]
}

/// What a copy has, in frames that are not too long.
fn in_parts(fetched: Fetched) -> Vec<Message> {
    let Fetched { is_whole: whole, records } = fetched;
    let (mut parts, mut part, mut bytes) = (Vec::new(), Vec::new(), 0);
    for change in records.into_iter().map(change) {
        if part.len() == FETCH_CHANGES || bytes + change.data.len() > FETCH_BYTES {
            parts.push(Message::Fetched { changes: std::mem::take(&mut part), more: true, whole });
            bytes = 0;
        }
        bytes += change.data.len();
        part.push(change);
    }
    parts.push(Message::Fetched { changes: part, more: false, whole });
    parts
}
