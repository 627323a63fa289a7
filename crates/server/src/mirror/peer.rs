// SPDX-License-Identifier: Apache-2.0
//! The owner's end: one connection to a node that keeps copies, for all volumes whose mirror it is.
//!
//! Requests are queued and sent by a task of the connection, several with one system call; answers come in the order of the requests. The queue is bounded by
//! what the engine may send: the credits of each copy. Once the connection is broken everything that was asked, and whatever is asked later, is answered with
//! an error: the engine parts with the mirror, and a new connection is made for the next try.

use super::frames::{Frames, change, record};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use varve_engine::{BeginCopy, Begun, Delivery, EngineError, Fetched, MirrorPeer, Result, TailRecord};
use varve_env::LocalFuture;
use varve_types::{Epoch, ErrorKind, IncarnationId, NodeId, Sequence, TimelineId};
use varve_wire::attach::Refused;
use varve_wire::greeting::{self, HEADER_BYTES, Header};
use varve_wire::mirror::{Message, MirrorHello, MirrorWelcome};

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
    /// Rings when something is to be sent, or nobody needs the connection any more.
    wake: Notify,
    waiting: RefCell<VecDeque<Waiting>>,
    next: Cell<u64>,
    /// The process at the other end, once it has answered.
    incarnation: Cell<Option<IncarnationId>>,
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
    pub(super) fn connect(node: NodeId, address: String, hello: &MirrorHello) -> Rc<Self> {
        let state = Rc::new(State {
            out: RefCell::default(),
            wake: Notify::new(),
            waiting: RefCell::default(),
            next: Cell::new(1),
            incarnation: Cell::new(None),
            broken: RefCell::new(None),
            is_dropped: Cell::new(false),
        });
        let (task, hello) = (Rc::clone(&state), hello.encode());
        drop(tokio::task::spawn_local(async move {
            let why = match tokio::time::timeout(CONNECT_TIME, greet(node, &address, &hello)).await {
                Ok(Ok((stream, welcome))) => {
                    task.incarnation.set(Some(welcome.incarnation));
                    run(stream, &task).await.err().unwrap_or_else(|| "it is not needed any more".to_owned())
                }
                Ok(Err(error)) => format!("node {node} at {address}: {error}"),
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
    fn ask_taken(&self, message: &Message) -> LocalFuture<Result<()>> {
        let asked = self.ask(message);
        Box::pin(async move {
            match asked.await?.0 {
                Message::Taken => Ok(()),
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
        let BeginCopy { volume, timeline, epoch, base } = begin;
        let (asked, state) = (self.ask(&Message::Begin { volume, timeline, epoch, base }), Rc::clone(&self.state));
        Box::pin(async move {
            match (asked.await?.0, state.incarnation.get()) {
                (Message::Begun { credits }, Some(incarnation)) => Ok(Begun { incarnation, credits }),
                (other, _) => Err(strange(&other)),
            }
        })
    }

    fn deliver(&self, delivery: Delivery) -> LocalFuture<Result<()>> {
        let Delivery { timeline, epoch, previous, records } = delivery;
        let changes = records.into_iter().map(change).collect();
        self.ask_taken(&Message::Deliver { timeline, epoch, previous, changes })
    }

    fn lease(&self, timeline: TimelineId, epoch: Epoch) -> LocalFuture<Result<()>> {
        self.ask_taken(&Message::Lease { timeline, epoch })
    }

    fn release(&self, timeline: TimelineId, epoch: Epoch, through: Sequence) {
        if !self.is_broken() {
            self.push(&Message::Release { timeline, epoch, through });
        }
    }

    fn fetch(&self, timeline: TimelineId, epoch: Epoch) -> LocalFuture<Result<Fetched>> {
        let (asked, state) = (self.ask(&Message::Fetch { timeline, epoch }), Rc::clone(&self.state));
        Box::pin(async move {
            let records = match asked.await {
                Ok((Message::Fetched { .. }, records)) => Some(records),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Ok((other, _)) => return Err(strange(&other)),
                Err(error) => return Err(error),
            };
            let incarnation = state.incarnation.get().ok_or_else(|| unavailable("it has not said who it is"))?;
            Ok(Fetched { incarnation, records })
        })
    }
}

fn unavailable(why: &str) -> EngineError {
    EngineError::new(ErrorKind::Unavailable, why)
}

fn strange(message: &Message) -> EngineError {
    EngineError::new(ErrorKind::Internal, format!("{message:?} is no answer to what was asked"))
}

/// Whether a node answers at its address.
pub(crate) async fn probe(node: NodeId, address: &str, hello: &MirrorHello) -> std::result::Result<(), String> {
    greet(node, address, &hello.encode()).await.map(drop)
}

/// Connects and greets.
async fn greet(node: NodeId, address: &str, hello: &Bytes) -> std::result::Result<(TcpStream, MirrorWelcome), String> {
    let told = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect(address).await.map_err(told)?;
    stream.set_nodelay(true).map_err(told)?;
    stream.write_all(hello).await.map_err(told)?;
    let mut head = [0; HEADER_BYTES];
    stream.read_exact(&mut head).await.map_err(told)?;
    let header = Header::decode(&head).map_err(|error| error.to_string())?;
    let mut body = vec![0; header.length as usize];
    stream.read_exact(&mut body).await.map_err(told)?;
    let read = || {
        header.verify(&body)?;
        header.version()?;
        header.kind()
    };
    match read().map_err(|error| error.to_string())? {
        greeting::Kind::MirrorWelcome => {}
        greeting::Kind::Refused => {
            let refused = Refused::decode(&body).map_err(|error| error.to_string())?;
            return Err(refused.message);
        }
        other => return Err(format!("{other:?} is no answer to a greeting")),
    }
    let welcome = MirrorWelcome::decode(&body).map_err(|error| error.to_string())?;
    if welcome.node != node {
        return Err(format!("node {} answers there", welcome.node));
    }
    Ok((stream, welcome))
}

/// Sends what is queued and takes answers, until something is wrong, or nobody needs it.
async fn run(mut stream: TcpStream, state: &State) -> std::result::Result<(), String> {
    let (mut reading, mut writing) = stream.split();
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
async fn send(writing: &mut tokio::net::tcp::WriteHalf<'_>, state: &State) -> std::io::Result<()> {
    if state.out.borrow().is_empty() {
        return std::future::pending().await;
    }
    writing.writable().await?;
    let mut sent = {
        let out = state.out.borrow();
        let parts: Vec<IoSlice<'_>> = out.iter().take(MOST_PARTS).map(|part| IoSlice::new(part)).collect();
        match writing.try_write_vectored(&parts) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
            done => done?,
        }
    };
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
    let Some(first) = waiting.front_mut().filter(|first| first.id == id) else {
        return Err(format!("it answered request {id}, which is not the one that it has to answer"));
    };
    let message = match message {
        Message::Fetched { changes, more } => {
            first.records.extend(changes.into_iter().map(record));
            if more {
                return Ok(());
            }
            Message::Fetched { changes: Vec::new(), more: false }
        }
        other => other,
    };
    let Some(Waiting { records, answer, .. }) = waiting.pop_front() else { return Ok(()) };
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
