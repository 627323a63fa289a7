// SPDX-License-Identifier: Apache-2.0
//! What an owner says: replies and notices.
//!
//! This is the way back of every request. The order is: is the reply one at all; what does it say of all others (`safe`); what does it say of its own.
//!
//! A reply is believed only as a whole: it is of this connection, to a request that is under way on it, as long as that has to be, with a payload that matches its
//! checksum, and does not take back what was told to be safe. Else the connection is left, and the request is sent again on the next.

use super::table::{Entry, Stage, Whose};
use super::{Action, Answer, Link, Mutant, Session};
use bytes::Bytes;
use std::time::Duration;
use varve_block::{Result, StatusExtent};
use varve_types::{ErrorKind, Sequence};
use varve_wire::transmission::{Ask, EXTENT_BYTES, MAX_EXTENTS, Reply, Told, get_extents};

impl Session {
    /// A reply or a notice came on a connection, with its payload.
    pub fn reply(&mut self, now: Duration, connection: u64, reply: &Reply, payload: Bytes) {
        self.now = now;
        let is_of_this = connection == self.connection || self.is(Mutant::OldConnectionBelieved);
        if !is_of_this || !matches!(self.link, Link::Up { .. }) {
            return;
        }
        if let Err(error) = reply.verify(&payload) {
            return self.hang_up(&error.to_string());
        }
        match reply.told {
            Told::Size => match payload.first_chunk::<8>().filter(|_| payload.len() == 8) {
                Some(bytes) => self.resized(u64::from_le_bytes(*bytes)),
                None => self.hang_up("it tells a size that is none"),
            },
            Told::Leave => self.leave(&payload),
            Told::Done | Told::Failed(_) => self.answered(reply, payload),
        }
        self.pump();
        self.rest();
    }

    /// Whether a reply, of which only the header is there yet, can be one: before there is made room for what it says will follow.
    #[must_use]
    pub fn expects(&self, connection: u64, reply: &Reply) -> bool {
        if connection != self.connection || reply.told != Told::Done {
            return true;
        }
        let known = self.table.get(reply.id).filter(|entry| entry.stage == Stage::UnderWay);
        let length = u64::from(reply.length);
        known.is_some_and(|entry| match entry.change.ask {
            Ask::Read => length == entry.change.length,
            Ask::Status => length <= (MAX_EXTENTS * EXTENT_BYTES) as u64,
            _ => length == 0,
        })
    }

    /// The node will have the volume no longer.
    fn leave(&mut self, payload: &[u8]) {
        if let Ok(address) = std::str::from_utf8(payload) {
            self.reach.name(address.to_owned());
        }
        self.hang_up("it has handed the volume on");
    }

    fn answered(&mut self, reply: &Reply, payload: Bytes) {
        let known = self.table.get(reply.id).filter(|entry| entry.stage == Stage::UnderWay);
        let Some(entry) = known else {
            if !self.is(Mutant::OldConnectionBelieved) {
                self.hang_up("it answers what was not asked");
            }
            return;
        };
        if reply.safe < self.safe && !self.is(Mutant::OldConnectionBelieved) {
            let why = format!("it takes back that change {} is safe", self.safe);
            return self.hang_up(&why);
        }
        let answer = match reply.told {
            Told::Failed(kind) => Err((kind, String::from_utf8_lossy(&payload).into_owned())),
            _ => match answer_of(entry, payload) {
                Ok(answer) => Ok(answer),
                Err(why) => return self.hang_up(&why),
            },
        };
        if let Err((kind, why)) = &answer
            && (*kind == ErrorKind::Fenced || matches!(entry.whose, Whose::Kept(_) | Whose::Detach))
        {
            // The first has another owner by now. The second was acknowledged: it is not given up for what an owner says. The third is still owed.
            let why = format!("it does not take a request: {why}");
            self.reach.turn();
            return self.hang_up(&why);
        }
        self.raise_safe(reply.safe);
        let Some(entry) = self.table.take(reply.id) else { return };
        self.finish(reply.id, entry, reply.sequence, answer);
    }

    fn raise_safe(&mut self, safe: Sequence) {
        if safe <= self.safe {
            return;
        }
        self.safe = safe;
        if let Some(epoch) = self.epoch {
            self.told.insert(epoch, safe);
        }
        let freed = self.kept.forget(safe);
        if freed > 0 {
            self.share.give(freed);
            (self.recheck, self.flush_helped) = (true, true);
        }
    }

    fn finish(
        &mut self,
        id: u64,
        entry: Entry,
        sequence: Sequence,
        answer: std::result::Result<Answer, (ErrorKind, String)>,
    ) {
        match entry.whose {
            Whose::Ping => return self.pulse.ponged(),
            Whose::Flush => return self.flushed(answer.is_ok()),
            Whose::Detach => {
                self.actions.push_back(Action::HangUp);
                return self.detached();
            }
            Whose::Guest | Whose::Nobody | Whose::Kept(_) => {}
        }
        self.under_way -= 1;
        self.carried -= entry.carries();
        if entry.resent {
            self.resent -= 1;
        }
        if entry.change.ask.is_change() {
            self.busy.end(entry.change.range());
            self.recheck |= !self.blocked.is_empty();
        }
        if let Whose::Kept(order) = entry.whose {
            let freed = self.kept.answered(order, sequence, self.safe);
            return self.share.give(freed);
        }
        let (whose, ask) = (entry.whose, entry.change.ask);
        if ask.is_change() {
            self.keep(entry, sequence, answer.is_ok());
        }
        if whose == Whose::Guest {
            let result: Result<Answer> = answer.map_err(|(kind, why)| self.error(kind, why));
            self.actions.push_back(Action::Done { id, result });
        }
    }

    /// Keeps a change that was done, unless it is safe.
    fn keep(&mut self, entry: Entry, sequence: Sequence, is_done: bool) {
        let is_to_be_kept = is_done && sequence > self.safe && !self.is(Mutant::KeptDroppedTooEarly);
        if is_to_be_kept {
            self.kept.put(entry.order, entry.change, sequence);
        } else {
            self.share.give(entry.change.cost());
        }
    }
}

/// The answer that a payload is, if it can be one.
fn answer_of(entry: &Entry, payload: Bytes) -> std::result::Result<Answer, String> {
    match entry.change.ask {
        Ask::Read if payload.len() as u64 == entry.change.length => Ok(Answer::Data(payload)),
        Ask::Status => {
            let extents = get_extents(&payload).map_err(|error| error.to_string())?;
            let mut left = entry.change.length;
            for extent in &extents {
                left = left
                    .checked_sub(extent.length)
                    .filter(|_| extent.length > 0)
                    .ok_or("it tells of more, or of less, than a range has")?;
            }
            Ok(Answer::Extents(
                extents.iter().map(|extent| StatusExtent { len: extent.length, hole: extent.hole }).collect(),
            ))
        }
        Ask::Read => Err(format!("it answers a read of {} bytes with {}", entry.change.length, payload.len())),
        _ if payload.is_empty() => Ok(Answer::Done),
        _ => Err("it answers with data where there are none".to_owned()),
    }
}
