// SPDX-License-Identifier: Apache-2.0
//! What may be sent now: kept changes first, then what was sent before, then the rest in its order; within the window, the budget, and the rule of overlaps.
//!
//! This is the way of every request to the owner. Nothing is sent from anywhere else but what the session asks for itself: pings, flushes, the detach.
//!
//! A change that may not go yet steps aside into the row of the blocked, and what does not overlap it goes past. Only [`LOOKS`] of that row are looked at in a
//! turn; its first is never held back by another of them, so all come through.

use super::closing::Closing;
use super::overlap::Range;
use super::table::{Entry, Stage, Whose};
use super::{Action, Link, Mutant, Session, WINDOW_BYTES};
use varve_wire::transmission::{Ask, Request};

/// Most blocked changes that are looked at in a turn.
const LOOKS: usize = 64;

impl Session {
    /// Sends what may be sent.
    pub(super) fn pump(&mut self) {
        let Link::Up { ready, .. } = self.link else { return };
        if !ready {
            if self.is(Mutant::UnansweredBeforeKept) {
                self.pump_again();
                self.pump_queue();
            }
            self.pump_kept();
            if self.kept.outstanding() > 0 {
                if self.is(Mutant::ReadsBeforeKept) {
                    self.pump_reads();
                }
                return;
            }
            self.ready();
        }
        self.pump_again();
        let is_sure = self.resent == 0 || self.is(Mutant::ReadsBeforeUnanswered);
        if self.again.is_empty() && is_sure {
            self.pump_blocked();
            self.pump_queue();
        }
        if self.held || self.share.is_half_full() {
            self.flush_kept();
        }
        if self.closing.is_some() {
            self.advance_closing();
        }
    }

    /// Whether a request that carries so many bytes fits beside those under way.
    fn has_room(&self, carries: u64) -> bool {
        let Link::Up { window, .. } = self.link else { return false };
        self.under_way < window && (self.carried == 0 || self.carried + carries <= WINDOW_BYTES)
    }

    /// Sends kept changes again, strictly in order: one that has to wait for an earlier one holds back those behind it.
    fn pump_kept(&mut self) {
        loop {
            let backwards = self.is(Mutant::ReplayOutOfOrder);
            let next =
                if backwards { self.kept.last_again(self.kept_from) } else { self.kept.next_again(self.kept_from) };
            let Some((order, change)) = next else { return };
            let carries = if change.ask == Ask::Write { change.length } else { 0 };
            if !self.has_room(carries) || !self.may_overlap(change.range()) {
                return;
            }
            let change = change.clone();
            self.kept_from = if backwards { order } else { order + 1 };
            let id = self.table.put(Entry {
                whose: Whose::Kept(order),
                stage: Stage::Waiting,
                resent: false,
                order,
                since: self.now,
                change,
            });
            self.send(id);
        }
    }

    fn pump_again(&mut self) {
        while let Some(id) = self.again.front().copied() {
            match self.table.get(id) {
                // They overlap nothing: they were under way together.
                Some(entry) if self.has_room(entry.carries()) => {}
                Some(_) => return,
                None => {
                    self.again.pop_front();
                    continue;
                }
            }
            self.again.pop_front();
            self.resent += 1;
            self.send(id);
        }
    }

    fn pump_blocked(&mut self) {
        if self.blocked.is_empty() {
            self.held = false;
        }
        if !std::mem::take(&mut self.recheck) {
            return;
        }
        self.held = false;
        let (mut earlier, mut left): (Vec<Range>, Vec<u64>) = (Vec::new(), Vec::new());
        let mut looked = 0;
        while looked < LOOKS && !self.held {
            let Some(id) = self.blocked.front().copied() else { break };
            let Some((range, carries, cost)) = self.change_of(id) else {
                self.blocked.pop_front();
                continue;
            };
            if !self.has_room(carries) {
                self.recheck = true;
                break;
            }
            looked += 1;
            if !self.may_overlap(range) || earlier.iter().any(|before| before.meets(range)) {
                earlier.push(range);
                left.push(id);
            } else if self.share.take(cost) {
                self.send(id);
            } else {
                self.held = true;
                break;
            }
            self.blocked.pop_front();
        }
        left.into_iter().rev().for_each(|id| self.blocked.push_front(id));
    }

    fn change_of(&self, id: u64) -> Option<(Range, u64, u64)> {
        self.table.get(id).map(|entry| (entry.change.range(), entry.carries(), entry.change.cost()))
    }

    fn pump_queue(&mut self) {
        while let Some(id) = self.queue.front().copied() {
            let Some(entry) = self.table.get(id) else {
                self.queue.pop_front();
                continue;
            };
            let (carries, is_change) = (entry.carries(), entry.change.ask.is_change());
            let (range, cost) = (entry.change.range(), entry.change.cost());
            if !self.has_room(carries) {
                return;
            }
            self.queue.pop_front();
            if !is_change {
                self.send(id);
            } else if self.held || !self.may_overlap(range) || self.meets_blocked(range) {
                self.blocked.push_back(id);
            } else if self.share.take(cost) {
                self.send(id);
            } else {
                self.held = true;
                self.blocked.push_back(id);
            }
        }
    }

    /// A bug that tests plant.
    fn pump_reads(&mut self) {
        for row in [true, false] {
            let ids: Vec<u64> =
                if row { self.again.iter().copied().collect() } else { self.queue.iter().copied().collect() };
            for id in ids {
                let is_read = self.table.get(id).is_some_and(|entry| entry.change.ask == Ask::Read);
                if is_read && self.has_room(0) {
                    self.again.retain(|other| *other != id);
                    self.queue.retain(|other| *other != id);
                    self.send(id);
                }
            }
        }
    }

    fn may_overlap(&self, range: Range) -> bool {
        self.busy.is_free(range) || self.is(Mutant::OverlapAllowed)
    }

    fn meets_blocked(&self, range: Range) -> bool {
        if self.is(Mutant::OverlapAllowed) {
            return false;
        }
        self.blocked.iter().any(|id| self.table.get(*id).is_some_and(|entry| entry.change.range().meets(range)))
    }

    /// Sends a request that may be.
    fn send(&mut self, id: u64) {
        let Some(entry) = self.table.get_mut(id) else { return };
        entry.stage = Stage::UnderWay;
        let request: Request = entry.request(id);
        let payload = entry.change.data.clone();
        self.carried += entry.carries();
        self.under_way += 1;
        if request.ask.is_change() {
            self.busy.begin(entry.change.range());
        }
        self.pulse.sent(self.now);
        self.actions.push_back(Action::Send { request, payload });
    }

    /// Asks for what is kept to be made safe, if that was not asked already.
    pub(super) fn flush_kept(&mut self) {
        let is_ready = matches!(self.link, Link::Up { ready: true, .. });
        if is_ready && !self.flushing && !self.kept.is_empty() && self.now >= self.flush_after {
            self.send_flush();
        }
    }

    /// Sends a flush of the session's own.
    pub(super) fn send_flush(&mut self) {
        (self.flushing, self.flush_helped) = (true, false);
        self.send_own(Whose::Flush, Ask::Flush);
    }

    /// A flush of the session's own was answered.
    pub(super) fn flushed(&mut self, is_done: bool) {
        self.flushing = false;
        self.recheck = true;
        if !is_done || (!self.kept.is_empty() && !self.flush_helped) {
            self.flush_after = self.now + super::FLUSH_PAUSE;
        }
        if self.closing == Some(Closing::Flushing) {
            self.closing = Some(if is_done { Closing::Flushed } else { Closing::Draining });
        }
    }
}
