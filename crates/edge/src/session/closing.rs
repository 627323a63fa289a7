// SPDX-License-Identifier: Apache-2.0
//! Giving a volume up: first everything that was asked is answered, then a flush makes it stable, then the owner is told.
//!
//! A connection that breaks in between is made anew, and the step that was not answered is taken again. Where the owner has ended the session already and its
//! answer was lost, it says that it does not know it any more: then it is done as well, for nothing is kept by then.

use super::table::{Entry, Stage, Whose};
use super::{Action, Event, Link, Session};
use crate::session::keep::Change;
use bytes::Bytes;
use std::time::Duration;
use varve_wire::transmission::{Ask, Request};

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closing {
    /// Requests are still to be answered.
    Draining,
    /// All of them were, and a flush was sent after them.
    Flushing,
    /// It was answered.
    Flushed,
    /// The owner was told.
    Told,
}

impl Session {
    /// Gives the volume up. No more requests are taken; [`Event::Detached`] comes when it is done.
    pub fn detach(&mut self, now: Duration) {
        self.now = now;
        if matches!(self.link, Link::Over) || self.closing.is_some() {
            return;
        }
        if self.known.is_none() {
            self.actions.push_back(Action::HangUp);
            return self.detached();
        }
        self.closing = Some(Closing::Draining);
        self.pump();
    }

    /// Takes the next step, if its time has come.
    pub(super) fn advance_closing(&mut self) {
        let (Some(step), Link::Up { ready: true, .. }) = (self.closing, &self.link) else { return };
        let is_idle = self.under_way == 0 && self.again.is_empty() && self.blocked.is_empty() && self.queue.is_empty();
        if !is_idle || self.flushing {
            return;
        }
        match step {
            Closing::Draining if self.now >= self.flush_after => {
                self.closing = Some(Closing::Flushing);
                self.send_flush();
            }
            Closing::Flushed => {
                self.closing = Some(Closing::Told);
                self.is_told = true;
                self.send_own(Whose::Detach, Ask::Detach);
            }
            Closing::Draining | Closing::Flushing | Closing::Told => {}
        }
    }

    /// Sends a request of the session's own, which no window holds back.
    pub(super) fn send_own(&mut self, whose: Whose, ask: Ask) {
        self.order += 1;
        let change = Change { ask, flags: 0, offset: 0, length: 0, data: Bytes::new(), crc: 0 };
        let entry = Entry { whose, stage: Stage::UnderWay, resent: false, order: self.order, since: self.now, change };
        let request = entry.request(0);
        let id = self.table.put(entry);
        self.actions.push_back(Action::Send { request: Request { id, ..request }, payload: Bytes::new() });
        self.pulse.sent(self.now);
    }

    /// The connection is lost: what the owner was told is told again, behind a flush.
    pub(super) fn closing_lost(&mut self) {
        self.closing = self.closing.map(|_| Closing::Draining);
    }

    /// Whether a refusal means that the owner has done what it was asked.
    pub(super) fn is_gone(&self) -> bool {
        self.is_told && self.kept.is_empty()
    }

    /// It is done.
    pub(super) fn detached(&mut self) {
        self.over();
        for id in self.table.ids() {
            self.table.take(id);
        }
        (self.closing, self.is_detached) = (Some(Closing::Told), true);
        self.failed = Some(self.error(varve_types::ErrorKind::Conflict, "it was detached"));
        self.actions.push_back(Action::Event(Event::Detached));
    }

    /// When a flush that may not be sent yet may be.
    pub(super) fn closing_deadline(&self) -> Option<Duration> {
        (self.closing == Some(Closing::Draining) && self.flush_after > self.now).then_some(self.flush_after)
    }
}
