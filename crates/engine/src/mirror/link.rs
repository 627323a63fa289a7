// SPDX-License-Identifier: Apache-2.0
//! The way to the node that keeps the copy: what is to be sent, what is there, and what it may have.
//!
//! Always holds: what was sent and not released is within the credits; changes are sent in their order, each once; `stable ≤ acked ≤ sent`.

use super::peer::{Begun, Delivery, MirrorPeer, TailRecord};
use std::collections::VecDeque;
use std::rc::Rc;
use varve_format::journal::MAX_RECORD;
use varve_types::{Epoch, MirrorMedium, Sequence, TimelineId};

/// Bytes of one delivery; one change may go beyond.
const MOST_DELIVERED: u64 = 8 << 20;
/// Credits that are kept whatever is there.
const KEPT_CREDITS: u64 = 8 << 20;

/// See the module.
pub(super) struct Link {
    /// Tells it from those before it.
    pub number: u64,
    pub peer: Rc<dyn MirrorPeer>,
    pub medium: MirrorMedium,
    /// What it answered to the begin.
    pub begun: Option<Begun>,
    /// Bytes that may be there at once.
    credits: u64,
    /// Changes that are to be sent.
    queued: Vec<TailRecord>,
    /// The last change that was sent, or that the copy begins behind.
    pub sent: Sequence,
    /// The last change that it has.
    pub acked: Sequence,
    /// The last change that it has on stable media.
    pub stable: Sequence,
    /// The last change that somebody waits for to be there.
    pub wanted_stable: Sequence,
    pub is_syncing: bool,
    /// The last change of each delivery that the store does not have yet, and the bytes of that.
    unreleased: VecDeque<(Sequence, u64)>,
    /// Bytes queued or there.
    bytes: u64,
    /// Of these, bytes that were sent: what the credits are for.
    there: u64,
}

impl Link {
    pub fn new(number: u64, peer: Rc<dyn MirrorPeer>, medium: MirrorMedium, base: Sequence) -> Self {
        Self {
            number,
            peer,
            medium,
            begun: None,
            credits: 0,
            queued: Vec::new(),
            sent: base,
            acked: base,
            stable: base,
            wanted_stable: base,
            is_syncing: false,
            unreleased: VecDeque::new(),
            bytes: 0,
            there: 0,
        }
    }

    pub fn begin(&mut self, begun: Begun) {
        self.begun = Some(begun);
        self.credits = begun.credits;
    }

    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub const fn credits(&self) -> u64 {
        self.credits
    }

    /// Whether it has as much as it may have, and no further credits are on their way.
    pub fn is_used_up(&self) -> bool {
        self.begun.is_some() && self.acked == self.sent && !self.has_room(MAX_RECORD)
    }

    pub fn queue(&mut self, record: TailRecord) {
        self.bytes += record.cost();
        self.queued.push(record);
    }

    /// Whether changes of so many bytes may be made now.
    pub const fn has_room(&self, bytes: u64) -> bool {
        self.begun.is_none() || self.bytes + bytes <= self.credits
    }

    /// The next changes to be sent, as many as one delivery takes and there are credits for.
    pub fn next_delivery(&mut self, timeline: TimelineId, epoch: Epoch) -> Option<Delivery> {
        let most = self.credits.saturating_sub(self.there);
        let (mut bytes, mut count) = (0, 0);
        while let Some(record) = self.queued.get(count).filter(|_| bytes < MOST_DELIVERED) {
            if bytes + record.cost() > most {
                break;
            }
            bytes += record.cost();
            count += 1;
        }
        let later = self.queued.split_off(count);
        let records = std::mem::replace(&mut self.queued, later);
        let last = records.last()?.sequence;
        self.unreleased.push_back((last, bytes));
        self.there += bytes;
        let previous = std::mem::replace(&mut self.sent, last);
        Some(Delivery { timeline, epoch, previous, records })
    }

    pub fn acked(&mut self, last: Sequence, more: u64) {
        self.acked = self.acked.max(last);
        self.credits += more;
    }

    /// Whether something is there that the store has, where that has all up to `counted`.
    pub fn has_put(&self, counted: Sequence) -> bool {
        self.unreleased.front().is_some_and(|(last, _)| *last <= counted)
    }

    /// The store has all up to `counted`. Gives the credits that are given back: of those that are not used, all but as many as are.
    pub fn release(&mut self, counted: Sequence) -> u64 {
        while let Some((_, bytes)) = self.unreleased.pop_front_if(|(last, _)| *last <= counted) {
            self.bytes -= bytes;
            self.there -= bytes;
        }
        let kept = (2 * self.bytes).max(KEPT_CREDITS);
        let back = self.credits.saturating_sub(kept);
        self.credits -= back;
        back
    }
}
