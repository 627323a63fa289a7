// SPDX-License-Identifier: Apache-2.0
//! Connecting: what is said, what an answer means, and what a loss does.
//!
//! Each attempt raises the generation, which is also the number of the connection: what comes with another number is not looked at. A refusal ends the device where
//! only a person can go on (stolen, lost, rolled back; at the first attach also whatever the person said wrongly); else it is tried on, at the next address.
//!
//! An owner of an older epoch than one that was seen is a node that does not know yet that it was fenced: it is left.

use super::table::{Stage, Whose};
use super::{Action, Event, Known, Link, Mutant, Session};
use std::collections::BTreeMap;
use std::time::Duration;
use varve_types::{Epoch, ErrorKind, Sequence};
use varve_wire::attach::{Attach, Attached, Mode, Promise, Refused};
use varve_wire::greeting;

/// Of the window so many requests are left for pings and flushes of the session's own.
const RESERVE: usize = 6;

impl Session {
    /// Begins an attempt.
    pub(super) fn connect(&mut self) {
        self.connection += 1;
        self.address = self.reach.address();
        let last = self.epoch.map(|epoch| Promise { epoch, safe: self.safe });
        let mut promises = self.kept.promises(last, &mut self.told);
        if self.wanted.mode == Mode::Shared {
            // It has changed nothing: there is nothing that could be lost.
            promises.clear();
        }
        let attach = Attach {
            token: self.wanted.token.clone(),
            edge: self.wanted.edge.clone(),
            volume: self.wanted.volume.clone(),
            session: self.wanted.session,
            generation: self.connection,
            mode: self.wanted.mode,
            steal: self.wanted.steal && self.known.is_none(),
            timeline: self.known.map(|known| known.timeline),
            promises,
        };
        match attach.encode() {
            Ok(greeting) => {
                self.link = Link::Connecting { until: self.now + self.terms.connect };
                let (connection, address) = (self.connection, self.address.clone());
                self.actions.push_back(Action::Connect { connection, address, greeting });
                // What was named, for the answer to be held against.
                self.named = attach.promises;
            }
            Err(error) => self.fail(self.now, self.error(ErrorKind::Invalid, error)),
        }
    }

    /// The connection came about, and the greeting was sent.
    pub fn connected(&mut self, now: Duration, connection: u64) {
        self.now = now;
        if connection == self.connection && matches!(self.link, Link::Connecting { .. }) {
            self.link = Link::Greeting { until: now + self.terms.greeting };
        }
    }

    /// The node has the volume for it.
    pub fn attached(&mut self, now: Duration, connection: u64, attached: &Attached) {
        self.now = now;
        if connection != self.connection || !matches!(self.link, Link::Greeting { .. }) {
            return;
        }
        let named = std::mem::take(&mut self.named);
        if let Some(why) = self.breach(attached, &named) {
            return self.missed(&why);
        }
        let known = Known { cluster: attached.cluster, volume: attached.volume, timeline: attached.timeline };
        if self.known.is_some_and(|before| before != known) {
            let why = "it shows another history than the one that was attached: attach it again";
            return self.fail(now, self.error(ErrorKind::Fenced, why));
        }
        let mut cuts = BTreeMap::new();
        for (promise, cut) in named.iter().zip(&attached.cuts) {
            if *cut < promise.safe {
                let (epoch, promised) = (promise.epoch, promise.safe);
                let why = format!(
                    "what was promised safe is lost: change {promised} of epoch {epoch} was, and the owner has no more than \
                     {cut}; look at what it holds, then attach it again"
                );
                return self.fail(now, self.error(ErrorKind::Corrupt, why));
            }
            cuts.insert(promise.epoch, *cut);
        }
        self.begin(attached, known, &cuts);
    }

    /// What is wrong with an answer that a node of sound mind does not give.
    fn breach(&self, attached: &Attached, named: &[Promise]) -> Option<String> {
        if !(greeting::OLDEST..=greeting::NEWEST).contains(&attached.version) {
            return Some(format!("it wants to speak version {} of the protocol", attached.version));
        }
        if attached.cuts.len() != named.len() {
            return Some("it answers for other epochs than it was asked for".to_owned());
        }
        if let Some(epoch) = self.epoch.filter(|epoch| attached.epoch < *epoch) {
            return Some(format!("it is of epoch {}, and there was an owner of epoch {epoch}", attached.epoch));
        }
        if self.epoch == Some(attached.epoch) && attached.safe < self.safe {
            return Some(format!("it has taken back that change {} is safe", self.safe));
        }
        None
    }

    fn begin(&mut self, attached: &Attached, known: Known, cuts: &BTreeMap<Epoch, Sequence>) {
        let is_first = self.known.replace(known).is_none();
        (self.epoch, self.safe) = (Some(attached.epoch), attached.safe);
        self.told.insert(attached.epoch, attached.safe);
        self.read_only = attached.read_only || self.wanted.mode == Mode::Shared;
        self.kept.attached(attached.epoch, attached.sequence, cuts);
        let safe = if self.is(Mutant::CountedForgotten) { attached.sequence } else { attached.safe };
        let freed = self.kept.forget(safe);
        self.share.give(freed);
        self.kept_from = if self.is(Mutant::ReplayOutOfOrder) { u64::MAX } else { 0 };
        let window = attached.window as usize;
        let usable = window - RESERVE.min(window / 2);
        self.link = Link::Up { ready: false, window: usable };
        self.pulse.begin(self.now);
        self.recheck = true;
        if is_first {
            self.size = attached.size;
            self.since = self.now;
            self.actions.push_back(Action::Event(Event::Attached));
        } else if self.size != attached.size {
            self.resized(attached.size);
        }
        self.pump();
    }

    pub(super) fn resized(&mut self, size: u64) {
        self.size = size;
        self.actions.push_back(Action::Event(Event::Resized(size)));
    }

    /// Everything kept was sent again and answered: the device is as it was.
    pub(super) fn ready(&mut self) {
        let Link::Up { ready, .. } = &mut self.link else { return };
        *ready = true;
        self.trouble.clear();
        if self.is_lost {
            let stall = self.now.saturating_sub(self.since);
            self.stats.reconnects += 1;
            self.stats.longest = self.stats.longest.max(stall);
            self.actions.push_back(Action::Event(Event::Back(stall)));
        }
        (self.is_lost, self.since) = (false, self.now);
    }

    /// The node refuses.
    pub fn refused(&mut self, now: Duration, connection: u64, refused: Refused) {
        self.now = now;
        if connection != self.connection || !matches!(self.link, Link::Greeting { .. }) {
            return;
        }
        let Refused { kind, message, elsewhere, holder } = refused;
        if self.is_gone() && matches!(kind, ErrorKind::Fenced | ErrorKind::Conflict | ErrorKind::NotFound) {
            self.actions.push_back(Action::HangUp);
            return self.detached();
        }
        let message = match holder {
            Some(holder) if !message.contains(&holder.edge) => format!("{message} (held by {})", holder.edge),
            _ => message,
        };
        let is_first = self.known.is_none();
        let error = match kind {
            ErrorKind::Unavailable | ErrorKind::Busy => None,
            _ if elsewhere.is_some() => None,
            ErrorKind::Conflict | ErrorKind::Fenced if !is_first => {
                let why = format!("it was taken away: {message}; attach it again");
                Some(self.error(ErrorKind::Fenced, why))
            }
            ErrorKind::Corrupt => Some(self.error(kind, message.clone())),
            _ if is_first => Some(self.error(kind, message.clone())),
            _ => None,
        };
        if let Some(error) = error {
            return self.fail(now, error);
        }
        let at_once = elsewhere.is_some_and(|address| self.reach.name(address));
        self.actions.push_back(Action::HangUp);
        self.note(&message);
        self.reach.turn();
        self.drop_link(at_once);
    }

    /// The connection broke, or never came about. Who drives the session has left it already.
    pub fn lost(&mut self, now: Duration, connection: u64, why: &str) {
        self.now = now;
        if connection != self.connection || matches!(self.link, Link::Over | Link::Pause { .. }) {
            return;
        }
        if !matches!(self.link, Link::Up { .. }) {
            self.reach.turn();
        }
        self.left(why);
    }

    /// The attempt has failed.
    pub(super) fn missed(&mut self, why: &str) {
        self.reach.turn();
        self.hang_up(why);
    }

    /// Leaves the connection, to make another one.
    pub(super) fn hang_up(&mut self, why: &str) {
        self.actions.push_back(Action::HangUp);
        self.left(why);
    }

    fn left(&mut self, why: &str) {
        let was_up = matches!(self.link, Link::Up { ready: true, .. });
        if was_up && self.now.saturating_sub(self.since) >= self.terms.pause_most {
            self.reach.settled();
        }
        let at_once = was_up && self.reach.take_fresh();
        self.note(why);
        self.drop_link(at_once);
    }

    /// Says what is wrong, the first time that the owner is lost by name.
    fn note(&mut self, why: &str) {
        self.trouble = format!("{}: {why}", self.address);
        let event = if matches!(self.link, Link::Up { ready: true, .. }) {
            (self.is_lost, self.since) = (true, self.now);
            Event::Lost(self.trouble.clone())
        } else {
            Event::Refused(self.trouble.clone())
        };
        self.actions.push_back(Action::Event(event));
    }

    /// The connection is gone: what was under way on it is to be sent again, or is forgotten where that is of no use.
    fn drop_link(&mut self, at_once: bool) {
        (self.under_way, self.carried, self.flushing, self.resent) = (0, 0, false, 0);
        let (mut others, forgets) = (Vec::new(), self.is(Mutant::OverdueForgotten));
        self.busy.clear();
        self.kept.lost();
        self.again.clear();
        self.closing_lost();
        for id in self.table.ids() {
            let Some(entry) = self.table.get_mut(id) else { continue };
            let is_of_use = match entry.whose {
                Whose::Guest => true,
                Whose::Nobody => entry.change.ask.is_change() && !forgets,
                Whose::Kept(_) | Whose::Flush | Whose::Ping | Whose::Detach => false,
            };
            match entry.stage {
                Stage::UnderWay if !is_of_use => drop(self.table.take(id)),
                Stage::UnderWay | Stage::Again if entry.change.ask.is_change() => {
                    (entry.stage, entry.resent) = (Stage::Again, true);
                    self.again.push_back(id);
                }
                Stage::UnderWay => {
                    entry.stage = Stage::Waiting;
                    others.push(id);
                }
                Stage::Waiting | Stage::Again => {}
            }
        }
        others.into_iter().rev().for_each(|id| self.queue.push_front(id));
        let pause = if at_once { Duration::ZERO } else { self.reach.pause(&self.terms) };
        self.link = Link::Pause { until: self.now + pause };
        if at_once {
            self.connect();
        }
    }
}
