// SPDX-License-Identifier: Apache-2.0
//! An edge that says just what a test wants it to say, over a blocking socket.

// Each test program uses a part of it.
#![allow(dead_code)]

use super::real::{DEADLINE, Node};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use varve_types::{Epoch, Sequence, SessionId};
use varve_wire::attach::{Attach, Attached, Mode, Promise, Refused};
use varve_wire::greeting::{HEADER_BYTES, Header, Kind};
use varve_wire::transmission::{Ask, REPLY_BYTES, Reply, Request, payload_crc};

pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// What an edge asks for at its first attach.
pub fn attach(volume: &str, session: u8) -> Attach {
    Attach {
        token: String::new(),
        edge: format!("host-{session}"),
        volume: volume.to_owned(),
        session: SessionId::from_bytes([session; 16]),
        generation: 1,
        mode: Mode::Exclusive,
        steal: false,
        timeline: None,
        promises: Vec::new(),
    }
}

/// The same session again, of what it has seen so far.
pub fn again(volume: &str, session: u8, generation: u64, seen: &Attached, safe: Sequence) -> Attach {
    let promises = vec![Promise { epoch: Epoch(seen.epoch.0), safe }];
    Attach { generation, timeline: Some(seen.timeline), promises, ..attach(volume, session) }
}

/// A connection of an edge.
pub struct RawEdge {
    pub stream: Box<dyn Stream>,
    next: u64,
}

impl RawEdge {
    /// Connects to the node's socket.
    pub fn unix(node: &Node) -> Self {
        let stream = UnixStream::connect(node.data().join("edge.sock")).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { stream: Box::new(stream), next: 1 }
    }

    /// Connects to a port.
    pub fn tcp(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { stream: Box::new(stream), next: 1 }
    }

    /// Asks for a volume.
    pub fn attach(&mut self, attach: &Attach) -> Result<Attached, Refused> {
        self.stream.write_all(&attach.encode().unwrap()).unwrap();
        self.greeting().unwrap()
    }

    /// Takes the answer to a greeting.
    pub fn greeting(&mut self) -> io::Result<Result<Attached, Refused>> {
        let mut head = [0; HEADER_BYTES];
        self.stream.read_exact(&mut head)?;
        let header = Header::decode(&head).unwrap();
        let mut body = vec![0; header.length as usize];
        self.stream.read_exact(&mut body)?;
        header.verify(&body).unwrap();
        Ok(match header.kind().unwrap() {
            Kind::Attached => Ok(Attached::decode(&body).unwrap()),
            Kind::Refused => Err(Refused::decode(&body).unwrap()),
            other => panic!("{other:?} is no answer"),
        })
    }

    /// Sends a request; gives its id.
    pub fn send(&mut self, ask: Ask, offset: u64, length: u64, payload: &[u8]) -> io::Result<u64> {
        let (id, mut bytes) = (self.next, Vec::new());
        self.next += 1;
        Request { ask, flags: 0, id, offset, length, payload_crc: payload_crc(payload) }.encode(&mut bytes);
        bytes.extend_from_slice(payload);
        self.stream.write_all(&bytes).map(|()| id)
    }

    /// Takes the next reply.
    pub fn reply(&mut self) -> io::Result<(Reply, Vec<u8>)> {
        let mut head = [0; REPLY_BYTES];
        self.stream.read_exact(&mut head)?;
        let reply = Reply::decode(&head).unwrap().unwrap();
        let mut payload = vec![0; reply.length as usize];
        self.stream.read_exact(&mut payload)?;
        reply.verify(&payload).unwrap();
        Ok((reply, payload))
    }

    /// Asks for one thing and takes its reply.
    pub fn ask(&mut self, ask: Ask, offset: u64, length: u64, payload: &[u8]) -> (Reply, Vec<u8>) {
        let id = self.send(ask, offset, length, payload).unwrap();
        let (reply, payload) = self.reply().unwrap();
        assert_eq!(reply.id, id);
        (reply, payload)
    }
}
