// SPDX-License-Identifier: Apache-2.0
//! The requests that are not answered, by their id on the wire.
//!
//! Requests are in it from when they are asked until they are answered, or given up; those of the session's own too. The rows of the session hold ids alone.
//!
//! An id is the place of a request in the table and the number of its turn in it, so that an answer is matched by one look, and the answer to a request that is
//! gone is told from that to the one that has its place now. A request keeps its id when it is sent again.

use super::keep::Change;
use std::time::Duration;
use varve_wire::transmission::{Ask, Request};

/// Whose a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// Of who uses the device.
    Guest,
    /// Of a guest that was told of an error because it took too long. Nobody waits for it, but it may still happen.
    Nobody,
    /// A kept change, by its order, that is sent again.
    Kept(u64),
    /// The session's: it needs what it keeps to become safe.
    Flush,
    /// The session's: is anybody there?
    Ping,
    /// The session's: its last.
    Detach,
}

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It was never sent.
    Waiting,
    /// It was sent, and has to be sent again.
    Again,
    /// It was sent on this connection.
    UnderWay,
}

/// A request.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) whose: Whose,
    pub(crate) stage: Stage,
    /// It is a change that was sent on an older connection.
    pub(crate) resent: bool,
    /// Its place among all that was asked.
    pub(crate) order: u64,
    pub(crate) since: Duration,
    pub(crate) change: Change,
}

impl Entry {
    /// Bytes that it carries to the owner or back.
    pub(crate) const fn carries(&self) -> u64 {
        match self.change.ask {
            Ask::Read | Ask::Write => self.change.length,
            _ => 0,
        }
    }

    /// What is sent.
    pub(crate) const fn request(&self, id: u64) -> Request {
        let Change { ask, flags, offset, length, crc, .. } = self.change;
        Request { ask, flags, id, offset, length, payload_crc: crc }
    }
}

#[derive(Debug, Default)]
struct Slot {
    turn: u32,
    entry: Option<Entry>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Table {
    /// Puts a request in and gives its id.
    pub(crate) fn put(&mut self, entry: Entry) -> u64 {
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[at as usize];
        slot.turn = slot.turn.wrapping_add(1);
        slot.entry = Some(entry);
        u64::from(slot.turn) << 32 | u64::from(at + 1)
    }

    fn at(&self, id: u64) -> Option<usize> {
        let at = (id as u32).checked_sub(1)? as usize;
        self.slots.get(at).is_some_and(|slot| slot.turn == (id >> 32) as u32 && slot.entry.is_some()).then_some(at)
    }

    pub(crate) fn get(&self, id: u64) -> Option<&Entry> {
        self.at(id).and_then(|at| self.slots[at].entry.as_ref())
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut Entry> {
        self.at(id).and_then(|at| self.slots[at].entry.as_mut())
    }

    /// Takes a request out.
    pub(crate) fn take(&mut self, id: u64) -> Option<Entry> {
        let at = self.at(id)?;
        self.free.push(at as u32);
        self.slots[at].entry.take()
    }

    /// Every request, in the order in which it was asked.
    pub(crate) fn ids(&self) -> Vec<u64> {
        let id = |(at, slot): (usize, &Slot)| {
            let order = slot.entry.as_ref()?.order;
            Some((order, u64::from(slot.turn) << 32 | (at as u64 + 1)))
        };
        let mut ids: Vec<(u64, u64)> = self.slots.iter().enumerate().filter_map(id).collect();
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| id).collect()
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.len() == self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(order: u64) -> Entry {
        let change = Change { ask: Ask::Flush, flags: 0, offset: 0, length: 0, data: bytes::Bytes::new(), crc: 0 };
        Entry { whose: Whose::Guest, stage: Stage::Waiting, resent: false, order, since: Duration::ZERO, change }
    }

    #[test]
    fn an_id_is_of_one_request_only() {
        let mut table = Table::default();
        let first = table.put(entry(1));
        let second = table.put(entry(2));
        assert!(table.take(first).is_some() && table.take(first).is_none());
        let third = table.put(entry(0));
        assert_eq!((first as u32, table.get(first).is_none()), (third as u32, true), "the place is used again");
        assert_eq!(table.ids(), [third, second]);
        for strange in [0, u64::MAX, 1 << 32, first ^ 7 << 32] {
            assert!(table.get(strange).is_none());
        }
        table.take(second);
        table.take(third);
        assert!(table.is_empty());
    }
}
