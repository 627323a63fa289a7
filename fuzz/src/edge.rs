// SPDX-License-Identifier: Apache-2.0
//! What an edge hears from a node: the bytes, and what they do to a session.
//!
//! An input is one of two things: bytes as they come from a socket, or steps of eight bytes, each something that happens to a session.
//!
//! Any bytes come apart into messages, or are refused, with no more memory than a small multiple of them, and however they are cut. A session that is told anything, by nodes
//! that keep to the protocol or not, answers every request at most once, and every one when it ends; it never sends without a connection, or an id twice.

use crate::{bounded, choose};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::time::Duration;
use varve_block::BlockError;
use varve_edge::inbound::{Inbound, Said};
use varve_edge::session::{Action, Budget, Session, Terms, Wanted};
use varve_types::{ClusterId, Epoch, ErrorKind, Sequence, SessionId, TimelineId, VolumeId};
use varve_wire::attach::{Attached, Mode, Refused};
use varve_wire::transmission::{Ask, Reply, Told, payload_crc};

/// Size of the volume in bytes.
const SIZE: u64 = 64 << 10;
/// Bytes of a step of [`session`].
const STEP: usize = 8;

/// See the module.
pub fn check(data: &[u8]) {
    let Some((choice, rest)) = choose(data, 2) else { return };
    match choice {
        0 => stream(rest),
        _ => session(rest),
    }
}

fn stream(bytes: &[u8]) {
    let apart = |step: usize| {
        let (mut inbound, mut said) = (Inbound::default(), Vec::new());
        for piece in bytes.chunks(step.max(1)) {
            inbound.put(piece);
            loop {
                match inbound.next(|_| true) {
                    Ok(Some(one)) => said.push(one),
                    Ok(None) => break,
                    // Where it is cut may change which of two things is wrong first, but not what was right before.
                    Err(_) => return said,
                }
            }
        }
        said
    };
    let whole = bounded(bytes.len(), || apart(bytes.len()));
    let pieces = apart(7);
    assert_eq!(whole, pieces);
    let payload =
        |one: &Said| if let Said::Reply(reply, payload) = one { payload.len() == reply.length as usize } else { true };
    assert!(whole.iter().all(payload));
}

/// A session, and what is known of it.
struct Edge {
    session: Session,
    now: Duration,
    connection: u64,
    is_connected: bool,
    sent: BTreeSet<u64>,
    asked: Vec<u64>,
    out: BTreeSet<u64>,
}

impl Edge {
    fn new() -> Self {
        let wanted = Wanted {
            volume: "disk".into(),
            token: String::new(),
            edge: "fuzz".into(),
            session: SessionId::from_random([1; 16]),
            mode: Mode::Exclusive,
            steal: false,
        };
        let terms = Terms { io_timeout: Some(Duration::from_secs(3)), ..Terms::default() };
        let session = Session::new(wanted, terms, vec!["a".into()], Budget::new(16 << 10), Duration::ZERO);
        Self {
            session,
            now: Duration::ZERO,
            connection: 0,
            is_connected: false,
            sent: BTreeSet::new(),
            asked: Vec::new(),
            out: BTreeSet::new(),
        }
    }

    fn take(&mut self) {
        while let Some(action) = self.session.action() {
            match action {
                Action::Connect { connection, .. } => {
                    assert!(connection > self.connection);
                    (self.connection, self.is_connected) = (connection, true);
                    self.sent.clear();
                    self.session.connected(self.now, connection);
                }
                Action::Send { request, payload } => {
                    assert!(self.is_connected && self.sent.insert(request.id), "{request:?}");
                    assert_eq!(request.payload(), payload.len());
                }
                Action::HangUp => self.is_connected = false,
                Action::Done { id, .. } => assert!(self.out.remove(&id), "{id:x} is answered out of nothing, or twice"),
                Action::Event(_) => {}
            }
        }
    }

    fn submit(&mut self, kind: u8, place: u8) {
        let ask = [Ask::Read, Ask::Write, Ask::Flush, Ask::Discard, Ask::Status][usize::from(kind % 5)];
        let (offset, length) = (u64::from(place % 16) * 512, 512 * (1 + u64::from(place >> 6)));
        let data = if ask == Ask::Write { vec![kind; length as usize].into() } else { Bytes::new() };
        if self.out.len() < 64
            && let Ok(id) = self.session.submit(self.now, ask, kind >> 7, offset, length, data)
        {
            assert!(self.out.insert(id));
            self.asked.push(id);
        }
    }

    fn reply(&mut self, [told, which, sequence, safe, length]: [u8; 5]) {
        // One that is out or was, or none.
        let sent: Vec<u64> = self.sent.iter().copied().collect();
        let all = if which & 64 == 0 { &sent } else { &self.asked };
        let id = all.get(usize::from(which & 63) % all.len().max(1)).copied().unwrap_or(u64::from(which) + 1);
        let told = match told % 8 {
            0 => Told::Size,
            1 => Told::Leave,
            2 => Told::Failed(varve_types::ALL_KINDS[usize::from(which) % 9]),
            _ => Told::Done,
        };
        let payload = vec![told_byte(told); [0, 512, 1024, 8, 16, usize::from(length)][usize::from(length) % 6]];
        let reply = Reply {
            told,
            id: if matches!(told, Told::Size | Told::Leave) { 0 } else { id },
            sequence: Sequence(u64::from(sequence)),
            safe: Sequence(u64::from(safe)),
            length: payload.len() as u32,
            payload_crc: payload_crc(&payload) ^ u32::from(which == 255),
        };
        let connection = self.connection - u64::from(sequence == 255);
        self.session.heard(self.now, connection);
        self.session.reply(self.now, connection, &reply, payload.into());
    }

    fn attached(&mut self, [epoch, sequence, safe, cuts, odd]: [u8; 5]) {
        let attached = Attached {
            version: 1,
            cluster: ClusterId::from_random([1; 16]),
            volume: VolumeId::from_random([2; 16]),
            timeline: TimelineId::from_random([3 + u8::from(odd == 255); 16]),
            epoch: Epoch(u64::from(epoch)),
            size: SIZE,
            read_only: odd == 254,
            window: 1 + u32::from(odd % 32),
            sequence: Sequence(u64::from(sequence)),
            safe: Sequence(u64::from(safe.min(sequence))),
            cuts: vec![Sequence(u64::from(sequence)); usize::from(cuts % 4)],
        };
        self.session.attached(self.now, self.connection, &attached);
    }
}

const fn told_byte(told: Told) -> u8 {
    if matches!(told, Told::Done) { 1 } else { b'x' }
}

fn session(bytes: &[u8]) {
    let mut edge = Edge::new();
    edge.session.tick(edge.now);
    edge.take();
    let (steps, _) = bytes.as_chunks::<STEP>();
    for [what, time, kind, rest @ ..] in steps {
        match what % 8 {
            0 | 1 => edge.submit(*kind, rest[0]),
            2..=4 => edge.reply(*rest),
            5 => edge.attached(*rest),
            6 if kind % 4 == 0 => {
                let refused = Refused::new(varve_types::ALL_KINDS[usize::from(rest[0]) % 9], "because");
                edge.session.refused(edge.now, edge.connection, refused);
            }
            6 if *kind == 1 => edge.session.detach(edge.now),
            _ => edge.session.lost(edge.now, edge.connection, "it broke"),
        }
        edge.take();
        edge.now += Duration::from_millis(u64::from(*time) * 4);
        // A ping may be the last that was wanted for a loss.
        for _ in 0..4 {
            edge.session.tick(edge.now);
            edge.take();
        }
        assert!(edge.session.deadline().is_none_or(|deadline| deadline > edge.now), "what is due is done");
    }
    edge.session.fail(edge.now, BlockError::new(ErrorKind::Unavailable, "it is over"));
    edge.take();
    assert!(edge.out.is_empty() && edge.session.kept_bytes() == 0, "every request is answered when it ends");
}
