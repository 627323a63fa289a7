// SPDX-License-Identifier: Apache-2.0
//! A client without a session: it is answered under the lease of its owner, keeps nothing and sends nothing again.
//!
//! It is on the host of its node, with no network between. What was not answered when its node died, stalled or had to let go of the volume has happened or not. It goes on elsewhere
//! once somebody gives it the volume, and does not go on at a node where something that it has begun is still under way.

use super::fault::{Pair, State};
use super::guest::{Answer, BLOCK, Outcome};
use super::serve::{Server, User};
use crate::network::Letter;
use bytes::Bytes;
use std::rc::Rc;
use std::time::Duration;
use varve_block::BlockError;
use varve_engine::Device;
use varve_env::Env;
use varve_types::{Epoch, ErrorKind, SessionId};
use varve_wire::attach::Refused;
use varve_wire::transmission::{Ask, Request, Told};

/// How long it waits for what it has asked a node for.
const PATIENCE: Duration = Duration::from_secs(3);
const STEP: Duration = Duration::from_millis(5);
const WHO: SessionId = SessionId::from_bytes([9; 16]);

struct Link {
    at: usize,
    server: Rc<Server>,
    user: Rc<User>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Plain {
    link: Option<Link>,
    /// What it has asked on the link.
    asked: Vec<Answer>,
    /// The epoch that it was served in last.
    last: Option<Epoch>,
    /// The node that it asks next.
    next: usize,
}

impl Plain {
    /// Asks for something.
    pub(super) fn ask(&mut self, ask: Ask, block: u64, data: Bytes, answer: Answer) {
        let Some(link) = &self.link else { return drop(answer.replace(Some(Outcome::Lost))) };
        let (offset, length) = if ask == Ask::Flush { (0, 0) } else { (block * BLOCK, BLOCK) };
        let request = Request { ask, flags: 0, id: 1, offset, length, payload_crc: 0 };
        let told = Rc::clone(&answer);
        link.server.request(&link.user, request, data, move |reply, bytes| {
            let outcome = match reply.told {
                Told::Done => Outcome::Done(bytes),
                Told::Failed(kind) => Outcome::Failed(BlockError::new(kind, String::from_utf8_lossy(&bytes))),
                Told::Size | Told::Leave => return,
            };
            told.replace_with(|now| now.take().or(Some(outcome)));
        });
        self.asked.push(answer);
    }

    /// Who serves it, and which node that is.
    pub(super) fn served_by(&self) -> Option<(usize, Rc<Device>)> {
        self.link.as_ref().and_then(|link| Some((link.at, link.user.device()?)))
    }

    /// Some time passes. Whether it is served.
    pub(super) fn step(&mut self, pair: &Pair) -> bool {
        let is_of_use = self.link.as_ref().is_some_and(|link| {
            let is_well = link.user.device().is_some_and(|device| device.volume().stopped().is_none());
            is_well && !link.server.env.is_dead() && pair.states[link.at] == State::Up
        });
        if !is_of_use {
            self.leave();
            self.attach(pair);
        }
        pair.pass(STEP);
        self.asked.retain(|answer| answer.borrow().is_none() && Rc::strong_count(answer) > 1);
        self.link.is_some()
    }

    /// Its connection breaks.
    fn leave(&mut self) {
        let Some(link) = self.link.take() else { return };
        link.user.end();
        for answer in self.asked.drain(..) {
            answer.replace_with(|now| now.take().or(Some(Outcome::Lost)));
        }
    }

    /// Asks the next node for the volume.
    fn attach(&mut self, pair: &Pair) {
        let at = self.next;
        self.next = 1 - at;
        let Some(server) = pair.members[at].port.server().filter(|_| pair.states[at] == State::Up) else { return };
        let letter: Letter<Result<Rc<User>, Refused>> = Letter::default();
        let (given, asked, id, last) = (letter.clone(), Rc::clone(&server), pair.volume, self.last);
        server.env.spawn(Box::pin(async move { given.give(asked.attach_plain(id, WHO, last).await) }));
        let mut left = PATIENCE;
        while left > Duration::ZERO {
            pair.pass(STEP);
            left -= STEP;
            match letter.take() {
                Some(Ok(user)) => {
                    self.last = user.device().map(|device| device.volume().record().epoch).or(self.last);
                    self.link = Some(Link { at, server, user });
                    return;
                }
                Some(Err(no)) => {
                    assert_ne!(no.kind, ErrorKind::Corrupt, "{}", no.message);
                    return;
                }
                None => {}
            }
        }
    }
}
