// SPDX-License-Identifier: Apache-2.0
//! The owner's end: one connection to a node that keeps copies, for all volumes whose mirror it is.
//!
//! Requests are queued and sent by a task of the connection, several with one system call; answers have the ids of their requests. The queue is bounded by
//! what the engine may send: the credits of each copy. Once the connection is broken everything that was asked, and whatever is asked later, is answered with
//! an error: the engine parts with the mirror, and a new connection is made for the next try.

use super::dial::Dialer;
use super::frames::{Frames, change, record};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::IoSlice;
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncWrite, AsyncWriteExt, WriteHalf};
use tokio::sync::{Notify, oneshot};
use varve_engine::{BeginCopy, Begun, Delivery, EngineError, Fetched, MirrorPeer, Release, Result, TailRecord};
use varve_env::LocalFuture;
use varve_serve::Socket;
use varve_types::{Epoch, ErrorKind, IncarnationId, NodeId, Sequence, TimelineId};
use varve_wire::mirror::Message;

/// For connecting and the greeting.
const CONNECT_TIME: Duration = Duration::from_secs(1);
/// How long an answer may take, since the one before it: a node that hangs and does not hang up is not asked any more.
const MOST_WAIT: Duration = Duration::from_secs(5);
/// Parts of one sending.
const MOST_PARTS: usize = 64;

/// What an answer goes to.
struct Waiting {
    id: u64,
    /// When it was asked.
    since: Instant,
    /// The parts of a fetch that have come.
    records: Vec<TailRecord>,
    answer: oneshot::Sender<Result<(Message, Vec<TailRecord>)>>,
}

struct State {
    out: RefCell<VecDeque<Bytes>>,
    /// Whether the socket may have kept some of what it was given.
    is_unflushed: Cell<bool>,
    /// Rings when something is to be sent, or nobody needs the connection any more.
    wake: Notify,
    waiting: RefCell<VecDeque<Waiting>>,
    next: Cell<u64>,
    /// Why it is of no more use.
    broken: RefCell<Option<String>>,
    is_dropped: Cell<bool>,
}

/// See the module.
pub(super) struct TcpPeer {
    node: NodeId,
    state: Rc<State>,
}

impl Drop for TcpPeer {
    fn drop(&mut self) {
        self.state.is_dropped.set(true);
        self.state.wake.notify_one();
    }
}

impl TcpPeer {
    /// Begins to connect to a node. What is asked meanwhile waits.
    pub(super) fn connect(node: NodeId, address: String, dialer: &Rc<Dialer>) -> Rc<Self> {
        let state = Rc::new(State {
            out: RefCell::default(),
            is_unflushed: Cell::default(),
            wake: Notify::new(),
            waiting: RefCell::default(),
            next: Cell::new(1),
            broken: RefCell::new(None),
            is_dropped: Cell::new(false),
        });
        let (task, dialer) = (Rc::clone(&state), Rc::clone(dialer));
        drop(tokio::task::spawn_local(async move {
            let why = match tokio::time::timeout(CONNECT_TIME, dialer.greet(node, &address)).await {
                Ok(Ok(socket)) => {
                    run(socket, &task).await.err().unwrap_or_else(|| "it is not needed any more".to_owned())
                }
                Ok(Err(error)) => {
                    dialer.tell(node, &error);
                    format!("node {node} at {address}: {error}")
                }
                Err(_) => format!("node {node} at {address} did not answer within {CONNECT_TIME:?}"),
            };
            task.broken.replace(Some(why.clone()));
            task.out.borrow_mut().clear();
            for waiting in task.waiting.take() {
                // Who asked may be gone.
                let _ = waiting.answer.send(Err(unavailable(&why)));
            }
        }));
        Rc::new(Self { node, state })
    }

    fn push(&self, message: &Message) -> u64 {
        let state = &self.state;
        let id = state.next.replace(state.next.get() + 1);
        let (head, data) = message.encode(id);
        let mut out = state.out.borrow_mut();
        out.push_back(head);
        out.extend(data);
        state.wake.notify_one();
        id
    }

    fn ask(&self, message: &Message) -> LocalFuture<Result<(Message, Vec<TailRecord>)>> {
        if let Some(why) = &*self.state.broken.borrow() {
            let error = unavailable(why);
            return Box::pin(std::future::ready(Err(error)));
        }
        let (answer, answered) = oneshot::channel();
        let id = self.push(message);
        self.state.waiting.borrow_mut().push_back(Waiting { id, since: Instant::now(), records: Vec::new(), answer });
        Box::pin(async move { answered.await.unwrap_or_else(|_| Err(unavailable("it is broken"))) })
    }

    /// Asks for what is answered by that it was done.
    fn ask_done(&self, message: &Message) -> LocalFuture<Result<()>> {
        let asked = self.ask(message);
        Box::pin(async move {
            match asked.await?.0 {
                Message::Done => Ok(()),
                other => Err(strange(&other)),
            }
        })
    }
}

impl MirrorPeer for TcpPeer {
    fn node(&self) -> NodeId {
        self.node
    }

    fn is_broken(&self) -> bool {
        self.state.broken.borrow().is_some()
    }

    fn begin(&self, begin: BeginCopy) -> LocalFuture<Result<Begun>> {
        let BeginCopy { volume, timeline, epoch, base, medium } = begin;
        let asked = self.ask(&Message::Begin { volume, timeline, epoch, base, medium });
        Box::pin(async move {
            match asked.await?.0 {
                Message::Begun { credits, incarnation } => Ok(Begun { incarnation, credits }),
                other => Err(strange(&other)),
            }
        })
    }

    fn deliver(&self, delivery: Delivery) -> LocalFuture<Result<u64>> {
        let Delivery { timeline, epoch, previous, records } = delivery;
        let changes = records.into_iter().map(change).collect();
        let asked = self.ask(&Message::Deliver { timeline, epoch, previous, changes });
        Box::pin(async move {
            match asked.await?.0 {
                Message::Taken { more } => Ok(more),
                other => Err(strange(&other)),
            }
        })
    }

    fn sync(&self, timeline: TimelineId, epoch: Epoch, through: Sequence) -> LocalFuture<Result<()>> {
        self.ask_done(&Message::Sync { timeline, epoch, through })
    }

    fn lease(&self, timeline: TimelineId, epoch: Epoch) -> LocalFuture<Result<()>> {
        self.ask_done(&Message::Lease { timeline, epoch })
    }

    fn release(&self, release: Release) {
        let Release { timeline, epoch, through, back } = release;
        if !self.is_broken() {
            self.push(&Message::Release { timeline, epoch, through, back });
        }
    }

    fn fetch(&self, timeline: TimelineId, epoch: Epoch, named: IncarnationId) -> LocalFuture<Result<Fetched>> {
        let asked = self.ask(&Message::Fetch { timeline, epoch, named });
        Box::pin(async move {
            match asked.await? {
                (Message::Fetched { whole, .. }, records) => Ok(Fetched { is_whole: whole, records }),
                (other, _) => Err(strange(&other)),
            }
        })
    }
}

fn unavailable(why: &str) -> EngineError {
    EngineError::new(ErrorKind::Unavailable, why)
}

fn strange(message: &Message) -> EngineError {
    EngineError::new(ErrorKind::Internal, format!("{message:?} is no answer to what was asked"))
}

/// Sends what is queued and takes answers, until something is wrong, or nobody needs it.
async fn run(socket: Socket, state: &State) -> std::result::Result<(), String> {
    let (mut reading, mut writing) = tokio::io::split(socket);
    let mut frames = Frames::default();
    let mut look = tokio::time::interval(CONNECT_TIME);
    let mut heard = Instant::now();
    loop {
        while let Some((id, message)) = frames.next().map_err(|error| error.to_string())? {
            answered(state, id, message)?;
            heard = Instant::now();
        }
        if state.is_dropped.get() && state.waiting.borrow().is_empty() {
            return Ok(());
        }
        tokio::select! {
            biased;
            there = frames.receive(&mut reading) => {
                if !there.map_err(|error| error.to_string())? {
                    return Err("it hung up".to_owned());
                }
            }
            sent = send(&mut writing, state) => sent.map_err(|error| error.to_string())?,
            () = woken(state) => {}
            _ = look.tick() => {
                let oldest = state.waiting.borrow().front().map(|first| first.since.max(heard));
                if oldest.is_some_and(|since| since.elapsed() > MOST_WAIT) {
                    return Err(format!("it did not answer within {MOST_WAIT:?}"));
                }
            }
        }
    }
}

/// Waits until something is to be sent, or nobody needs the connection any more.
async fn woken(state: &State) {
    if state.out.borrow().is_empty() {
        state.wake.notified().await;
    } else {
        std::future::pending::<()>().await;
    }
}

/// Sends a part of what is queued; waits for ever where there is nothing. Dropping the future loses nothing: what was sent was taken from the queue.
async fn send(writing: &mut WriteHalf<Socket>, state: &State) -> std::io::Result<()> {
    if state.out.borrow().is_empty() {
        if !state.is_unflushed.get() {
            return std::future::pending().await;
        }
        // TLS may have kept some of it.
        writing.flush().await?;
        state.is_unflushed.set(false);
        return Ok(());
    }
    let some = poll_fn(|context| {
        let out = state.out.borrow();
        let parts: Vec<IoSlice<'_>> = out.iter().take(MOST_PARTS).map(|part| IoSlice::new(part)).collect();
        Pin::new(&mut *writing).poll_write_vectored(context, &parts)
    });
    let mut sent = some.await?;
    if sent == 0 {
        return Err(std::io::ErrorKind::WriteZero.into());
    }
    state.is_unflushed.set(true);
    let mut out = state.out.borrow_mut();
    while let Some(part) = out.front_mut() {
        if part.len() > sent {
            drop(part.split_to(sent));
            break;
        }
        sent -= part.len();
        out.pop_front();
    }
    Ok(())
}

/// Gives an answer to who waits for it.
fn answered(state: &State, id: u64, message: Message) -> std::result::Result<(), String> {
    let mut waiting = state.waiting.borrow_mut();
    // Nearly always the first.
    let Some(at) = waiting.iter().position(|waiting| waiting.id == id) else {
        return Err(format!("it answered request {id}, which nobody has asked, or which it has answered before"));
    };
    let message = match message {
        Message::Fetched { changes, more, whole } => {
            waiting[at].records.extend(changes.into_iter().map(record));
            if more {
                return Ok(());
            }
            Message::Fetched { changes: Vec::new(), more, whole }
        }
        other => other,
    };
    let Some(Waiting { records, answer, .. }) = waiting.remove(at) else { return Ok(()) };
    let told = match message {
        Message::Failed { kind, reason } => Err(EngineError::new(kind, reason)),
        message => Ok((message, records)),
    };
    // Who asked may have given up.
    let _ = answer.send(told);
    Ok(())
}

#[cfg(test)]
#[path = "peer_tests.rs"]
mod tests;
