// SPDX-License-Identifier: Apache-2.0
//! The end that keeps copies: does what a node asks, in the order in which it asks.
//!
//! It reads no further while its answers are not taken. The end of the connection ends nothing else: the copies stay, for whoever takes over.

use super::frames::{Frames, change, record};
use super::greeter::Accepted;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use varve_engine::{BeginCopy, Copies, Delivery, EngineError, Fetched};
use varve_serve::Socket;
use varve_types::{ErrorKind, NodeId};
use varve_wire::greeting::NEWEST;
use varve_wire::mirror::{Message, MirrorWelcome};

/// Changes, and bytes of data, of one answer to a fetch.
const FETCH_CHANGES: usize = 1000;
const FETCH_BYTES: usize = 16 << 20;
/// What is answered to a fetch where there is none: that is not the same as a copy of which the store has everything.
const NO_COPY: &str = "there is no copy of this timeline";

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
    let welcome = MirrorWelcome { version: NEWEST, node: own, incarnation: copies.incarnation() };
    links.begin(node);
    let ended = async {
        connection.socket.write_all(&welcome.encode()).await.map_err(|error| error.to_string())?;
        answer(&mut connection.socket, &copies, now).await
    };
    let ended = ended.await;
    links.end(node);
    match ended {
        Ok(()) => tracing::debug!(%node, "a node needs no copies any more"),
        Err(error) => tracing::warn!(%node, %error, "the connection of a node broke"),
    }
}

async fn answer(socket: &mut Socket, copies: &Copies, now: impl Fn() -> Duration) -> Result<(), String> {
    let mut frames = Frames::default();
    let mut out = Vec::new();
    loop {
        while let Some((id, message)) = frames.next().map_err(|error| error.to_string())? {
            for answer in act(copies, message, &now) {
                let (head, data) = answer.encode(id);
                out.extend_from_slice(&head);
                data.iter().for_each(|bytes| out.extend_from_slice(bytes));
            }
        }
        if !out.is_empty() {
            socket.write_all(&out).await.map_err(|error| error.to_string())?;
            out.clear();
            out.shrink_to(1 << 20);
        }
        if !frames.receive(socket).await.map_err(|error| error.to_string())? {
            return Ok(());
        }
    }
}

/// Does what is asked. Gives the answers, which are several for what a copy has.
fn act(copies: &Copies, message: Message, now: impl Fn() -> Duration) -> Vec<Message> {
    let answer = |done: Result<Message, EngineError>| match done {
        Ok(message) => vec![message],
        Err(error) => vec![Message::Failed { kind: error.kind(), reason: error.to_string() }],
    };
    match message {
        Message::Begin { volume, timeline, epoch, base } => {
            let begun = copies.begin(BeginCopy { volume, timeline, epoch, base });
            answer(begun.map(|begun| Message::Begun { credits: begun.credits }))
        }
        Message::Deliver { timeline, epoch, previous, changes } => {
            let records = changes.into_iter().map(record).collect();
            answer(copies.deliver(Delivery { timeline, epoch, previous, records }).map(|()| Message::Taken))
        }
        Message::Release { timeline, epoch, through } => {
            copies.release(timeline, epoch, through);
            Vec::new()
        }
        Message::Fetch { timeline, epoch } => match copies.fetch(timeline, epoch) {
            Ok(Fetched { records: Some(records), .. }) => in_parts(records.into_iter().map(change).collect()),
            Ok(Fetched { records: None, .. }) => answer(Err(EngineError::new(ErrorKind::NotFound, NO_COPY))),
            Err(error) => answer(Err(error)),
        },
        Message::Lease { timeline, epoch } => answer(copies.lease(timeline, epoch, now()).map(|()| Message::Taken)),
        other => answer(Err(EngineError::invalid(format!("{other:?} is no request")))),
    }
}

/// What a copy has, in frames that are not too long.
fn in_parts(changes: Vec<varve_wire::mirror::Change>) -> Vec<Message> {
    let (mut parts, mut part, mut bytes) = (Vec::new(), Vec::new(), 0);
    for change in changes {
        if part.len() == FETCH_CHANGES || bytes + change.data.len() > FETCH_BYTES {
            parts.push(Message::Fetched { changes: std::mem::take(&mut part), more: true });
            bytes = 0;
        }
        bytes += change.data.len();
        part.push(change);
    }
    parts.push(Message::Fetched { changes: part, more: false });
    parts
}
