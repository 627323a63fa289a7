// SPDX-License-Identifier: Apache-2.0
//! Time: whether anybody is there, attempts that take too long, requests that take too long.
//!
//! While anything is under way, and while a ping is, a ping is sent whenever nothing was heard or asked for [`Terms::ping_busy`](super::Terms::ping_busy); else whenever it was
//! so for [`Terms::ping_idle`](super::Terms::ping_idle). The connection is lost when nothing was heard for [`Terms::silence`](super::Terms::silence) since something was
//! sent, and enough pings went without an answer. Any bytes that come count as heard, and so do bytes that go after the connection had taken none: a large transfer is
//! no silence.

use super::table::{Stage, Whose};
use super::{Action, Link, Session, Terms};
use std::time::Duration;
use varve_types::ErrorKind;
use varve_wire::transmission::Ask;

/// Most pings without an answer.
const MOST_PINGS: u32 = 4;

/// What was heard and said.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pulse {
    heard: Duration,
    /// When the last ping was sent.
    pinged: Duration,
    /// The first thing that was sent since something was heard, if there is anything to be heard.
    expected: Option<Duration>,
    /// Pings since something was heard.
    pings: u32,
    /// Pings without an answer.
    unanswered: u32,
}

impl Pulse {
    pub(super) fn begin(&mut self, now: Duration) {
        *self = Self { heard: now, pinged: now, ..Self::default() };
    }

    pub(super) fn sent(&mut self, now: Duration) {
        self.expected.get_or_insert(now);
    }

    fn heard(&mut self, now: Duration, is_busy: bool) {
        (self.heard, self.pings) = (now, 0);
        self.expected = is_busy.then_some(now);
    }

    pub(super) fn ponged(&mut self) {
        self.unanswered = self.unanswered.saturating_sub(1);
    }

    fn next_ping(&self, terms: &Terms) -> Duration {
        let last = self.heard.max(self.pinged);
        match self.expected {
            Some(since) => last.max(since) + terms.ping_busy,
            None => last + terms.ping_idle,
        }
    }

    /// When the connection is lost, if enough pings are out by then.
    fn lost_at(&self, terms: &Terms) -> Option<Duration> {
        let since = self.expected?;
        // Where so many are without an answer that no further one is sent, those have to do.
        let is_enough = self.pings >= terms.pings.min(MOST_PINGS) || self.unanswered >= MOST_PINGS;
        is_enough.then_some(since + terms.silence)
    }
}

impl Session {
    /// Bytes came on a connection, or went where none had gone for a while.
    pub fn heard(&mut self, now: Duration, connection: u64) {
        self.now = now;
        if connection == self.connection && matches!(self.link, Link::Up { .. }) {
            self.pulse.heard(now, self.is_waiting());
        }
    }

    /// Whether there is anything to be heard.
    fn is_waiting(&self) -> bool {
        self.under_way > 0 || self.flushing || self.pulse.unanswered > 0
    }

    /// Something was answered, perhaps the last that there was.
    pub(super) fn rest(&mut self) {
        if !self.is_waiting() {
            self.pulse.expected = None;
        }
    }

    /// The time is `now`: does what is due.
    pub fn tick(&mut self, now: Duration) {
        self.now = now;
        self.overdue();
        match &self.link {
            Link::Over => return,
            Link::Up { .. } => self.tick_up(),
            Link::Pause { until } if now >= *until => self.connect(),
            Link::Connecting { until } if now >= *until => self.missed("it can not be reached: it takes too long"),
            Link::Greeting { until } if now >= *until => self.missed("it does not answer"),
            Link::Pause { .. } | Link::Connecting { .. } | Link::Greeting { .. } => {}
        }
        if self.first_attach_ends().is_some_and(|end| now >= end) {
            let why = format!("no node has it to give: {}", self.trouble);
            self.fail(now, self.error(ErrorKind::Unavailable, why));
        }
    }

    fn tick_up(&mut self) {
        if self.pulse.lost_at(&self.terms).is_some_and(|at| self.now >= at) {
            let silence = self.now.saturating_sub(self.pulse.heard);
            self.reach.turn();
            return self.hang_up(&format!("nothing was heard for {} ms", silence.as_millis()));
        }
        if self.now >= self.pulse.next_ping(&self.terms) && self.pulse.unanswered < MOST_PINGS {
            if self.pulse.expected.is_none() {
                // Nobody else asks for it, and what is kept takes room from others.
                self.flush_kept();
            }
            self.send_own(Whose::Ping, Ask::Ping);
            self.pulse.pinged = self.now;
            self.pulse.pings += 1;
            self.pulse.unanswered += 1;
        }
        self.pump();
    }

    /// When [`tick`](Self::tick) has to be called next.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let link = match &self.link {
            Link::Over => return None,
            Link::Pause { until } | Link::Connecting { until } | Link::Greeting { until } => Some(*until),
            Link::Up { .. } => self.up_deadline(),
        };
        [link, self.overdue_at, self.first_attach_ends()].into_iter().flatten().min()
    }

    fn up_deadline(&self) -> Option<Duration> {
        let ping = (self.pulse.unanswered < MOST_PINGS).then(|| self.pulse.next_ping(&self.terms));
        let flush = (self.held && self.flush_after > self.now).then_some(self.flush_after);
        [ping, self.pulse.lost_at(&self.terms), flush, self.closing_deadline()].into_iter().flatten().min()
    }

    fn first_attach_ends(&self) -> Option<Duration> {
        if self.known.is_some() {
            return None;
        }
        self.terms.attach_timeout.map(|timeout| self.began + timeout)
    }

    /// Answers requests that took too long.
    fn overdue(&mut self) {
        let (Some(timeout), Some(at)) = (self.terms.io_timeout, self.overdue_at) else { return };
        if self.now < at {
            return;
        }
        let mut next: Option<Duration> = None;
        let mut is_any = false;
        for id in self.table.ids() {
            let Some(entry) = self.table.get(id) else { continue };
            if entry.whose != Whose::Guest {
                continue;
            }
            if entry.since + timeout <= self.now {
                self.give_up(id);
                is_any = true;
            } else {
                next = Some(next.map_or(entry.since, |next| next.min(entry.since)));
            }
        }
        self.overdue_at = next.map(|since| since + timeout);
        if is_any {
            self.forget_gone();
            self.pump();
        }
    }

    /// Answers a request with an error, and forgets it unless it was sent and may still happen or be answered.
    fn give_up(&mut self, id: u64) {
        let Some(entry) = self.table.get_mut(id) else { return };
        let is_out = entry.stage != Stage::Waiting;
        if is_out {
            entry.whose = Whose::Nobody;
        }
        let ask = entry.change.ask;
        if !is_out {
            self.table.take(id);
        }
        let why = format!("no answer to a {} within its I/O timeout", name(ask));
        self.actions.push_back(Action::Done { id, result: Err(self.error(ErrorKind::Unavailable, why)) });
    }

    /// Takes requests that are gone out of the rows, so that these stay as short as what is asked.
    fn forget_gone(&mut self) {
        for row in [&mut self.again, &mut self.blocked, &mut self.queue] {
            row.retain(|id| self.table.get(*id).is_some());
        }
        self.recheck = true;
    }
}

const fn name(ask: Ask) -> &'static str {
    match ask {
        Ask::Read => "read",
        Ask::Write => "write",
        Ask::Flush => "flush",
        Ask::Discard => "discard",
        Ask::WriteZeroes => "write of zeroes",
        Ask::Status => "question for a status",
        Ask::Prefetch => "prefetch",
        Ask::Ping => "ping",
        Ask::Detach => "detach",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_was_slow_and_then_is_silent_is_lost() {
        let terms = Terms::default();
        let mut pulse = Pulse::default();
        pulse.begin(Duration::ZERO);
        pulse.sent(Duration::ZERO);
        (pulse.pings, pulse.unanswered) = (2, 2);
        assert_eq!(pulse.lost_at(&terms), None);
        // Something else is heard, and none of the pings is answered; then nothing is any more.
        let heard = Duration::from_secs(1);
        pulse.heard(heard, true);
        (pulse.pings, pulse.unanswered) = (2, MOST_PINGS);
        assert_eq!(pulse.lost_at(&terms), Some(heard + terms.silence), "no further ping is sent");
    }
}
