// SPDX-License-Identifier: Apache-2.0
//! An owner in memory on real sockets: a thread a connection, and behaviour that a test chooses. What was not flushed dies with it.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use varve_types::{ClusterId, Epoch, ErrorKind, Sequence, TimelineId, VolumeId};
use varve_wire::attach::{Attach, Attached, Refused};
use varve_wire::greeting::{HEADER_BYTES, Header};
use varve_wire::transmission::{Ask, Extent, REQUEST_BYTES, Reply, Request, Told, payload_crc, put_extents};

pub const SIZE: usize = 16 << 20;

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Well,
    /// It takes everything and says nothing.
    Mute,
    /// It answers pings and nothing else.
    Stuck,
    /// It answers the greeting, and a request with bytes that are none of the protocol.
    Garbage,
    /// It answers reads with half of what was asked.
    Short,
    /// Its payloads do not match their checksums.
    Damaged,
    /// It does what is asked, and hangs up instead of saying so.
    Silent,
}

pub struct State {
    pub mood: Mood,
    /// Refusals for the next attaches; the last one stays.
    pub refusals: VecDeque<Refused>,
    pub token: String,
    pub data: Vec<u8>,
    pub safe_data: Vec<u8>,
    pub epoch: u64,
    pub sequence: u64,
    pub safe: u64,
    /// The cut of each epoch before.
    pub cuts: Vec<(u64, u64)>,
    pub timeline: u8,
    pub attaches: Vec<Attach>,
    pub asked: Vec<Ask>,
    connections: Vec<TcpStream>,
}

impl State {
    fn cut(&self, epoch: Epoch) -> Sequence {
        let cut = self.cuts.iter().find(|(of, _)| *of == epoch.0).map(|(_, cut)| *cut);
        Sequence(cut.unwrap_or(self.sequence))
    }

    pub fn count(&self, ask: Ask) -> usize {
        self.asked.iter().filter(|asked| **asked == ask).count()
    }

    /// Tells every connection of another size.
    pub fn resize(&mut self, size: usize) {
        self.data.resize(size, 0);
        let bytes = (size as u64).to_le_bytes();
        let reply = Reply {
            told: Told::Size,
            id: 0,
            sequence: Sequence(self.sequence),
            safe: Sequence(self.safe),
            length: 8,
            payload_crc: payload_crc(&bytes),
        };
        for connection in &mut self.connections {
            let _ = connection.write_all(&[&reply.to_bytes()[..], &bytes].concat());
        }
    }
}

type Wrap = Arc<dyn Fn(TcpStream) -> Box<dyn Both> + Send + Sync>;

pub trait Both: Read + Write {}
impl<T: Read + Write> Both for T {}

pub struct Owner {
    state: Arc<Mutex<State>>,
    pub address: SocketAddr,
    wrap: Wrap,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Owner {
    pub fn start() -> Self {
        Self::start_with(Arc::new(|stream| Box::new(stream)))
    }

    pub fn start_with(wrap: Wrap) -> Self {
        let state = State {
            mood: Mood::Well,
            refusals: VecDeque::new(),
            token: String::new(),
            data: vec![0; SIZE],
            safe_data: vec![0; SIZE],
            epoch: 1,
            sequence: 0,
            safe: 0,
            cuts: Vec::new(),
            timeline: 3,
            attaches: Vec::new(),
            asked: Vec::new(),
            connections: Vec::new(),
        };
        let mut owner = Self {
            state: Arc::new(Mutex::new(state)),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            wrap,
            stop: Arc::default(),
            thread: None,
        };
        owner.listen();
        owner
    }

    pub fn node(&self) -> String {
        self.address.to_string()
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn listen(&mut self) {
        let listener = TcpListener::bind(self.address).unwrap();
        self.address = listener.local_addr().unwrap();
        self.stop = Arc::default();
        let (state, stop, wrap) = (Arc::clone(&self.state), Arc::clone(&self.stop), Arc::clone(&self.wrap));
        self.thread = Some(std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                stream.set_nodelay(true).unwrap();
                state.lock().unwrap().connections.push(stream.try_clone().unwrap());
                let (state, wrap) = (Arc::clone(&state), Arc::clone(&wrap));
                std::thread::spawn(move || {
                    // It ends when either side hangs up.
                    let _ = serve(&mut *wrap(stream.try_clone().unwrap()), &state);
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        }));
    }

    /// Breaks all connections.
    pub fn hang_up(&self) {
        for connection in self.state().connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Dies: nothing listens any more, and what was not safe is gone.
    pub fn kill(&mut self) {
        self.end();
        let mut state = self.state();
        let (epoch, safe) = (state.epoch, state.safe);
        state.data = state.safe_data.clone();
        state.sequence = safe;
        state.cuts.push((epoch, safe));
        state.epoch += 1;
    }

    /// Lives again, at the same address.
    pub fn revive(&mut self) {
        self.listen();
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.hang_up();
        // Wakes the one that accepts.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        self.hang_up();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end();
        }
    }
}

fn serve(stream: &mut dyn Both, state: &Mutex<State>) -> std::io::Result<()> {
    let mut head = [0; HEADER_BYTES];
    stream.read_exact(&mut head)?;
    let header = Header::decode(&head).unwrap();
    let mut body = vec![0; header.length as usize];
    stream.read_exact(&mut body)?;
    header.verify(&body).unwrap();
    let attach = Attach::decode(&body).unwrap();
    if state.lock().unwrap().mood == Mood::Mute {
        state.lock().unwrap().attaches.push(attach);
        return swallow(stream);
    }
    let (answer, epoch) = greet(&mut state.lock().unwrap(), attach);
    stream.write_all(&answer)?;
    let Some(epoch) = epoch else { return Ok(()) };
    loop {
        let mut head = [0; REQUEST_BYTES];
        stream.read_exact(&mut head)?;
        let request = Request::decode(&head).unwrap().unwrap();
        let mut payload = vec![0; request.payload()];
        stream.read_exact(&mut payload)?;
        request.verify(&payload).unwrap();
        let answer = {
            let mut state = state.lock().unwrap();
            if state.epoch != epoch {
                return Ok(());
            }
            act(&mut state, &request, &payload)
        };
        match answer {
            Some(bytes) => stream.write_all(&bytes)?,
            None => return swallow(stream),
        }
        if request.ask == Ask::Detach {
            return Ok(());
        }
    }
}

fn swallow(stream: &mut dyn Both) -> std::io::Result<()> {
    let mut bytes = [0; 4096];
    while stream.read(&mut bytes)? > 0 {}
    Ok(())
}

fn greet(state: &mut State, attach: Attach) -> (bytes::Bytes, Option<u64>) {
    let refused = match state.refusals.len() {
        0 => None,
        1 => state.refusals.front().cloned(),
        _ => state.refusals.pop_front(),
    };
    if let Some(refused) = refused {
        state.attaches.push(attach);
        return (refused.encode(), None);
    }
    if attach.token != state.token {
        return (Refused::new(ErrorKind::Invalid, "the token is not one of this volume's").encode(), None);
    }
    let attached = Attached {
        version: 1,
        cluster: ClusterId::from_random([1; 16]),
        volume: VolumeId::from_random([2; 16]),
        timeline: TimelineId::from_random([state.timeline; 16]),
        epoch: Epoch(state.epoch),
        size: state.data.len() as u64,
        read_only: false,
        window: 64,
        sequence: Sequence(state.sequence),
        safe: Sequence(state.safe),
        cuts: attach.promises.iter().map(|promise| state.cut(promise.epoch)).collect(),
    };
    state.attaches.push(attach);
    (attached.encode(), Some(state.epoch))
}

/// Does what is asked; none is an owner that says nothing any more.
fn act(state: &mut State, request: &Request, payload: &[u8]) -> Option<Vec<u8>> {
    state.asked.push(request.ask);
    let (at, length) = (request.offset as usize, request.length as usize);
    match state.mood {
        Mood::Mute => return None,
        Mood::Stuck if request.ask != Ask::Ping => return Some(Vec::new()),
        Mood::Garbage if request.ask != Ask::Ping => {
            state.mood = Mood::Well;
            return Some(b"HTTP/1.1 500 This is not what you asked for, is it? Not at all, not at all".to_vec());
        }
        _ => {}
    }
    let mut data = Vec::new();
    match request.ask {
        Ask::Read => data = state.data[at..at + length].to_vec(),
        Ask::Write => state.data[at..at + length].copy_from_slice(payload),
        Ask::Discard | Ask::WriteZeroes => state.data[at..at + length].fill(0),
        Ask::Status => put_extents(&[Extent { length: request.length, hole: false }], &mut data),
        Ask::Flush | Ask::Prefetch | Ask::Ping | Ask::Detach => {}
    }
    state.sequence += u64::from(request.ask.is_change());
    if request.ask == Ask::Flush || request.flags & 1 != 0 {
        state.safe = state.sequence;
        state.safe_data = state.data.clone();
    }
    let mut sum = payload_crc(&data);
    match state.mood {
        Mood::Silent if request.ask != Ask::Ping => {
            state.mood = Mood::Well;
            return None.or_else(|| {
                state.connections.drain(..).for_each(|one| drop(one.shutdown(Shutdown::Both)));
                None
            });
        }
        Mood::Short if request.ask == Ask::Read => {
            state.mood = Mood::Well;
            data.truncate(length / 2);
            sum = payload_crc(&data);
        }
        Mood::Damaged if request.ask == Ask::Read => {
            state.mood = Mood::Well;
            sum ^= 1;
        }
        _ => {}
    }
    let reply = Reply {
        told: Told::Done,
        id: request.id,
        sequence: Sequence(state.sequence),
        safe: Sequence(state.safe),
        length: data.len() as u32,
        payload_crc: sum,
    };
    Some([&reply.to_bytes()[..], &data].concat())
}
