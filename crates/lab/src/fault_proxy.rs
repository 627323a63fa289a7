// SPDX-License-Identifier: Apache-2.0
//! A proxy for HTTP with faults: stands on a port of its own between a client and a real server, and does to requests and answers
//! what networks, load balancers and servers in trouble do to them.
//!
//! [`FaultProxy::set`] switches the fault while it runs. A request is forwarded byte for byte, so a signature that covers its headers stays
//! right; an answer is read whole before anything of it is passed on, so what is done to it is exact: cut short, lost, or wrong.
//! Which request a fault meets is decided by a count, not by chance: the same requests in the same order meet the same.
//!
//! Everything is bounded: connections, heads, bodies, and what is remembered of answers. A proxy that is dropped has closed its
//! connections and joined its threads. It knows no TLS.

mod message;

use crate::accepting;
use anyhow::{Context, Result};
use message::{Message, read_answer, read_request};
use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Connections at once; further ones are closed.
const CONNECTIONS_MAX: usize = 512;
/// How long the server may be silent.
const SERVER_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks at whether a client that gets no answer has left, or the proxy is to end.
const POLL: Duration = Duration::from_millis(50);
/// What is remembered of answers, to be given to other questions.
const REMEMBERED_BYTES: usize = 32 << 20;

/// What is done. In those with `one_in`, that many requests pass for each that is met; 1 meets all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    Pass,
    /// Connections are closed, old and new ones.
    Down,
    /// Each answer comes so much later.
    Slow(Duration),
    /// Requests are taken and never answered, also not when the fault has ended.
    HalfOpen,
    /// In turn: 503 without a word to the server; and done by the server, but the answer is lost.
    Erring {
        /// Of how many requests one is met.
        one_in: u64,
    },
    /// Of the body of an answer to GET half is sent, then the connection is closed.
    Truncating {
        /// Of how many such answers one is met.
        one_in: u64,
    },
    /// GET of an object is answered with an earlier answer of that length to another question, or else with a flipped bit. Where it does not
    /// meet all, it never meets one question twice in a row.
    Wrong {
        /// Of how many such answers one is met.
        one_in: u64,
    },
}

/// A running proxy.
#[derive(Debug)]
pub struct FaultProxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    server: SocketAddr,
    state: Mutex<State>,
    /// Requests that the present fault met.
    hits: AtomicU64,
    ending: AtomicBool,
}

#[derive(Debug)]
struct State {
    fault: Fault,
    /// Requests that the present fault could have met.
    seen: u64,
    /// Both sides of every connection, to be closed from outside.
    open: HashMap<u64, TcpStream>,
    next: u64,
    /// Questions whose last answer was wrong.
    wronged: HashSet<String>,
    /// What was asked for, and the body of the answer; the oldest first.
    remembered: VecDeque<(String, Vec<u8>)>,
    remembered_bytes: usize,
}

impl FaultProxy {
    /// Starts a proxy before `endpoint`, `http://ADDRESS:PORT`. It passes everything.
    ///
    /// # Errors
    /// When the endpoint is no address, or there is no port.
    pub fn start(endpoint: &str) -> Result<Self> {
        let server = endpoint.strip_prefix("http://").unwrap_or(endpoint);
        let server = server.parse().with_context(|| format!("{endpoint} is not http://ADDRESS:PORT"))?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen")?;
        let address = listener.local_addr().context("the address of the proxy")?;
        let state = State {
            fault: Fault::Pass,
            seen: 0,
            open: HashMap::new(),
            next: 0,
            wronged: HashSet::new(),
            remembered: VecDeque::new(),
            remembered_bytes: 0,
        };
        let shared =
            Shared { server, state: Mutex::new(state), hits: AtomicU64::new(0), ending: AtomicBool::new(false) };
        let shared = Arc::new(shared);
        let accepting = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || accept(&listener, &shared))
        };
        Ok(Self { shared, address, accepting: Some(accepting) })
    }

    /// Where clients find it, `http://ADDRESS:PORT`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Switches the fault; requests that are under way may still meet the old one.
    pub fn set(&self, fault: Fault) {
        let mut state = self.shared.state();
        (state.fault, state.seen) = (fault, 0);
        state.wronged.clear();
        self.shared.hits.store(0, Ordering::SeqCst);
        if fault == Fault::Down {
            state.close_all();
        }
    }

    /// Requests, or with [`Fault::Down`] connections, that the fault met since it was set.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.shared.hits.load(Ordering::SeqCst)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::SeqCst);
        self.shared.state().close_all();
        // Wakes the thread that accepts.
        drop(TcpStream::connect(self.address));
        if let Some(accepting) = self.accepting.take() {
            // A panic of it was shown when it happened.
            drop(accepting.join());
        }
    }
}

impl State {
    fn close_all(&mut self) {
        for (_, stream) in self.open.drain() {
            // It may have been closed already.
            drop(stream.shutdown(Shutdown::Both));
        }
    }

    /// Whether the next request is one of those that a fault meets.
    fn turn(&mut self, one_in: u64) -> bool {
        self.seen += 1;
        self.seen.is_multiple_of(one_in.max(1))
    }

    /// Whether this question is one whose answer is made wrong now.
    fn may_be_wrong(&mut self, question: &str, one_in: u64) -> bool {
        let is_turn = self.turn(one_in);
        if self.wronged.remove(question) && one_in > 1 {
            return false;
        }
        is_turn && (one_in <= 1 || self.wronged.insert(question.to_owned()))
    }

    fn remember(&mut self, question: &str, body: &[u8]) {
        if body.is_empty() || body.len() > REMEMBERED_BYTES / 4 {
            return;
        }
        self.remembered.push_back((question.to_owned(), body.to_vec()));
        self.remembered_bytes += body.len();
        while self.remembered_bytes > REMEMBERED_BYTES {
            let Some((_, oldest)) = self.remembered.pop_front() else { return };
            self.remembered_bytes -= oldest.len();
        }
    }

    /// What makes `body` wrong: another one of that length, or a flipped bit.
    fn spoil(&self, question: &str, body: &mut [u8]) {
        let other = self
            .remembered
            .iter()
            .find(|(asked, other)| asked != question && other.len() == body.len() && other != body);
        match other {
            Some((_, other)) => body.copy_from_slice(other),
            None => {
                let middle = body.len() / 2;
                if let Some(byte) = body.get_mut(middle) {
                    *byte ^= 0x10;
                }
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that panicked with the lock left a state that is as good as any: each field stands alone.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hit(&self) {
        self.hits.fetch_add(1, Ordering::SeqCst);
    }

    /// Keeps a handle of `stream`, by which it is closed from outside. The fault and the list change under one lock, so none slips through.
    fn register(&self, stream: &TcpStream) -> Option<u64> {
        let handle = stream.try_clone().ok()?;
        let mut state = self.state();
        if self.ending.load(Ordering::SeqCst) || state.open.len() >= 2 * CONNECTIONS_MAX {
            return None;
        }
        if state.fault == Fault::Down {
            self.hit();
            return None;
        }
        let id = state.next;
        state.next += 1;
        state.open.insert(id, handle);
        Some(id)
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let of_threads = Arc::clone(shared);
    let serve = move |client: &TcpStream| {
        let Some(id) = of_threads.register(client) else { return };
        // However it ends, the client sees a closed connection, which is what there is to say.
        drop(serve(client, &of_threads));
        of_threads.state().open.remove(&id);
    };
    accepting::accept(listener, || shared.ending.load(Ordering::SeqCst), serve);
}

/// Serves the requests of a connection until one side closes it or a fault does.
fn serve(client: &TcpStream, shared: &Shared) -> Result<()> {
    client.set_nodelay(true)?;
    let mut requests = BufReader::new(client);
    let server = TcpStream::connect_timeout(&shared.server, SERVER_TIMEOUT).context("connect to the server")?;
    server.set_nodelay(true)?;
    server.set_read_timeout(Some(SERVER_TIMEOUT))?;
    let id = shared.register(&server).context("the proxy is down")?;
    let mut answers = BufReader::new(&server);
    let mut outcome = Ok(true);
    while matches!(outcome, Ok(true)) {
        outcome = match read_request(&mut requests) {
            Ok(Some(request)) => exchange(&request, client, &server, &mut answers, shared),
            Ok(None) => Ok(false),
            Err(error) => Err(error),
        };
    }
    drop(server.shutdown(Shutdown::Both));
    shared.state().open.remove(&id);
    outcome.map(drop)
}

/// What comes of one request.
enum Verdict {
    Answer,
    /// Nothing reaches the server, and the client waits.
    Silence,
    Refuse,
    /// The server does it, and nobody learns of it.
    Lose,
}

/// One request and its answer. Says whether the connection goes on.
fn exchange(
    request: &Message,
    mut client: &TcpStream,
    mut server: &TcpStream,
    answers: &mut BufReader<&TcpStream>,
    shared: &Shared,
) -> Result<bool> {
    match before(shared) {
        Verdict::Silence => {
            until_gone(client, shared);
            Ok(false)
        }
        Verdict::Refuse => {
            client.write_all(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")?;
            Ok(true)
        }
        Verdict::Answer => {
            server.write_all(&request.head)?;
            server.write_all(&request.body)?;
            let mut answer = read_answer(answers, request.is("HEAD"))?;
            let sent = after(request, &mut answer, shared);
            client.write_all(&answer.head)?;
            client.write_all(&answer.body[..sent])?;
            Ok(sent == answer.body.len() && !answer.closes())
        }
        Verdict::Lose => {
            server.write_all(&request.head)?;
            server.write_all(&request.body)?;
            read_answer(answers, request.is("HEAD"))?;
            Ok(false)
        }
    }
}

/// What the fault does before the server is asked.
fn before(shared: &Shared) -> Verdict {
    let mut state = shared.state();
    let fault = state.fault;
    match fault {
        Fault::HalfOpen => {
            shared.hit();
            Verdict::Silence
        }
        Fault::Erring { one_in } if state.turn(one_in) => {
            shared.hit();
            if (state.seen / one_in.max(1)).is_multiple_of(2) { Verdict::Refuse } else { Verdict::Lose }
        }
        _ => Verdict::Answer,
    }
}

/// What the fault does to an answer. Gives how much of its body is sent.
fn after(request: &Message, answer: &mut Message, shared: &Shared) -> usize {
    let whole = answer.body.len();
    let object = request.is("GET") && answer.succeeded() && whole > 1;
    // A listing has no checksum: who is lied to there cannot know.
    let proven = object && !request.first_line().contains("list-type") && !answer.chunked;
    let mut state = shared.state();
    let fault = state.fault;
    match fault {
        Fault::Slow(delay) => {
            shared.hit();
            drop(state);
            std::thread::sleep(delay);
        }
        Fault::Truncating { one_in } if object && state.turn(one_in) => {
            shared.hit();
            return whole / 2;
        }
        Fault::Wrong { one_in } if proven && state.may_be_wrong(&request.question(), one_in) => {
            shared.hit();
            state.spoil(&request.question(), &mut answer.body);
        }
        Fault::Pass | Fault::Wrong { .. } if proven => state.remember(&request.question(), &answer.body),
        _ => {}
    }
    whole
}

/// Waits until the client gives up, or the proxy ends.
fn until_gone(mut client: &TcpStream, shared: &Shared) {
    if client.set_read_timeout(Some(POLL)).is_err() {
        return;
    }
    let mut scrap = [0; 4096];
    while !shared.ending.load(Ordering::SeqCst) {
        match client.read(&mut scrap) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests;
