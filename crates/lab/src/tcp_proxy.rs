// SPDX-License-Identifier: Apache-2.0
//! A proxy for any protocol over TCP: passes bytes on as they are, loses those of one direction, or closes everything.
//!
//! [`TcpProxy::set`] switches what it does while it runs, for connections that stand as well. Lost bytes are gone for the connection they were lost on:
//! whoever loses some and then goes on ends with [`TcpProxy::cut`], as a network would.
//!
//! Everything is bounded: connections, and what is held of their bytes. A proxy that is dropped has closed its connections and joined its threads.

use crate::accepting;
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Connections at once; further ones are closed.
const CONNECTIONS_MAX: usize = 256;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// What is read at once.
const CHUNK_BYTES: usize = 16 << 10;

/// What is done with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They are passed on.
    Pass,
    /// What the client sends is lost.
    LoseRequests,
    /// What the server sends is lost.
    LoseAnswers,
    /// Connections are closed, old and new ones.
    Down,
}

/// A running proxy.
#[derive(Debug)]
pub struct TcpProxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    server: SocketAddr,
    state: Mutex<State>,
    /// Bytes that were lost since the mode was set.
    lost: AtomicU64,
    /// Connections that were made, ever.
    connections: AtomicU64,
    ending: AtomicBool,
}

#[derive(Debug)]
struct State {
    mode: Mode,
    /// Both sides of every connection, to be closed from outside.
    open: HashMap<u64, [TcpStream; 2]>,
}

impl TcpProxy {
    /// Starts a proxy before a port of 127.0.0.1. It passes everything.
    ///
    /// # Errors
    /// When there is no port for it.
    pub fn start(server_port: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen")?;
        let address = listener.local_addr().context("the address of the proxy")?;
        let shared = Arc::new(Shared {
            server: SocketAddr::from((Ipv4Addr::LOCALHOST, server_port)),
            state: Mutex::new(State { mode: Mode::Pass, open: HashMap::new() }),
            lost: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            ending: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&shared);
        let accepting = std::thread::spawn(move || accept(&listener, &of_thread));
        Ok(Self { shared, address, accepting: Some(accepting) })
    }

    /// Its port of 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Switches what is done, from the next bytes on.
    pub fn set(&self, mode: Mode) {
        let mut state = self.shared.state();
        state.mode = mode;
        self.shared.lost.store(0, Ordering::SeqCst);
        if mode == Mode::Down {
            state.close_all();
        }
    }

    /// Closes the connections that stand.
    pub fn cut(&self) {
        self.shared.state().close_all();
    }

    /// Bytes that were lost since the mode was set.
    #[must_use]
    pub fn lost_bytes(&self) -> u64 {
        self.shared.lost.load(Ordering::SeqCst)
    }

    /// Connections that were made so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::SeqCst);
        self.cut();
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
        for stream in self.open.drain().flat_map(|(_, streams)| streams) {
            // It may have been closed already.
            drop(stream.shutdown(Shutdown::Both));
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that panicked with the lock left a state that is as good as any.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps handles of both sides, unless everything is to be closed. The mode and the list change under one lock, so none slips through.
    fn register(&self, client: &TcpStream, server: &TcpStream) -> Option<u64> {
        let handles = [client.try_clone().ok()?, server.try_clone().ok()?];
        let mut state = self.state();
        if self.ending.load(Ordering::SeqCst) || state.mode == Mode::Down || state.open.len() >= CONNECTIONS_MAX {
            return None;
        }
        let id = self.connections.fetch_add(1, Ordering::SeqCst);
        state.open.insert(id, handles);
        Some(id)
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let of_threads = Arc::clone(shared);
    // How one ended its client and its server saw.
    let serve = move |client: &TcpStream| drop(serve(client, &of_threads));
    accepting::accept(listener, || shared.ending.load(Ordering::SeqCst), serve);
}

fn serve(client: &TcpStream, shared: &Shared) -> Result<()> {
    let server = TcpStream::connect_timeout(&shared.server, CONNECT_TIMEOUT).context("connect to the server")?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let id = shared.register(client, &server).context("the proxy is down")?;
    std::thread::scope(|scope| {
        scope.spawn(|| pump(client, &server, shared, Mode::LoseRequests));
        pump(&server, client, shared, Mode::LoseAnswers);
    });
    shared.state().open.remove(&id);
    Ok(())
}

/// Passes on what comes from one side until either side is closed, and then closes both.
fn pump(mut from: &TcpStream, mut to: &TcpStream, shared: &Shared, losing: Mode) {
    let mut chunk = [0; CHUNK_BYTES];
    while let Ok(count) = from.read(&mut chunk) {
        if count == 0 {
            break;
        }
        if shared.state().mode == losing {
            shared.lost.fetch_add(count as u64, Ordering::SeqCst);
        } else if to.write_all(&chunk[..count]).is_err() {
            break;
        }
    }
    for stream in [from, to] {
        drop(stream.shutdown(Shutdown::Both));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::wait_until;

    const DEADLINE: Duration = Duration::from_secs(10);

    /// A server that sends back what it gets.
    fn echo() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
            }
        });
        port
    }

    fn say(mut stream: &TcpStream, text: &str) -> std::io::Result<String> {
        stream.write_all(text.as_bytes())?;
        let mut back = vec![0; text.len()];
        stream.read_exact(&mut back)?;
        Ok(String::from_utf8(back).unwrap())
    }

    #[test]
    fn bytes_pass_are_lost_or_find_nobody() {
        let proxy = TcpProxy::start(echo()).unwrap();
        let connect = || {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            stream
        };
        let stream = connect();
        assert_eq!(say(&stream, "one").unwrap(), "one");
        for mode in [Mode::LoseAnswers, Mode::LoseRequests] {
            proxy.set(mode);
            (&stream).write_all(b"lost").unwrap();
            wait_until(DEADLINE, "the bytes to be lost", || Ok(proxy.lost_bytes() == 4)).unwrap();
        }
        proxy.set(Mode::Pass);
        assert_eq!(say(&stream, "two").unwrap(), "two");
        proxy.cut();
        assert!(say(&stream, "three").is_err());
        assert_eq!(say(&connect(), "four").unwrap(), "four");
        proxy.set(Mode::Down);
        assert!(say(&connect(), "five").is_err());
        assert_eq!(proxy.connections(), 2);
    }
}
