// SPDX-License-Identifier: Apache-2.0
//! Changes that were acknowledged and are not known to be safe: what a dying owner may take along, and the edge then has to bring back.
//!
//! Each has the number of its place among all that was asked (its **order**), and the epoch and sequence that its answer told. It leaves when `safe` of that epoch
//! has reached its sequence, and never before.
//!
//! Always holds: of two that overlap, the one that was asked later has the greater order, and was answered later; so if the earlier is here, the later is too.
//! Sending everything again in the order of `order` gives each byte the value that it had.

use std::collections::{BTreeMap, BTreeSet};

use super::budget::EACH;
use super::overlap::Range;
use bytes::Bytes;
use varve_types::{Epoch, Sequence};
use varve_wire::attach::{MAX_EPOCHS, Promise};
use varve_wire::transmission::Ask;

/// A change, as it is sent.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) ask: Ask,
    pub(crate) flags: u8,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) data: Bytes,
    pub(crate) crc: u32,
}

impl Change {
    pub(crate) const fn range(&self) -> Range {
        Range::new(self.offset, self.length)
    }

    /// Bytes of the budget that it takes.
    pub(crate) const fn cost(&self) -> u64 {
        self.data.len() as u64 + EACH
    }
}

/// Where a change stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stand {
    /// None is for what has to be sent again, whatever the owner says.
    pub(crate) epoch: Option<Epoch>,
    pub(crate) sequence: Sequence,
}

#[derive(Debug)]
struct One {
    change: Change,
    stand: Stand,
}

/// Everything that is kept.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    all: BTreeMap<u64, One>,
    /// Those of the newest epoch, by sequence.
    newest: BTreeSet<(Sequence, u64)>,
    epoch: Epoch,
    /// Those that are still to be sent in this connection, or to be answered.
    again: BTreeSet<u64>,
    /// What all of them take of the budget.
    bytes: u64,
}

impl Kept {
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Keeps a change that was acknowledged in the newest epoch.
    pub(crate) fn put(&mut self, order: u64, change: Change, sequence: Sequence) {
        self.bytes += change.cost();
        self.newest.insert((sequence, order));
        self.all.insert(order, One { change, stand: Stand { epoch: Some(self.epoch), sequence } });
    }

    /// Of the newest epoch everything up to `safe` is safe. Gives back how many bytes of the budget fell free.
    pub(crate) fn forget(&mut self, safe: Sequence) -> u64 {
        let mut freed = 0;
        while let Some((sequence, order)) = self.newest.first().copied() {
            if sequence > safe {
                break;
            }
            self.newest.pop_first();
            freed += self.remove(order);
        }
        freed
    }

    fn remove(&mut self, order: u64) -> u64 {
        let cost = self.all.remove(&order).map_or(0, |one| one.change.cost());
        self.bytes -= cost;
        cost
    }

    /// What is to be named at a connect, `last` with it, and growing: of each epoch of which something is kept the highest that was told to be safe.
    ///
    /// Of more than [`MAX_EPOCHS`] the oldest are left out, and what is kept of them is taken for lost: it is sent again whatever counts. That does no harm, because
    /// everything later that overlaps it is here too, and is sent behind it.
    pub(crate) fn promises(&mut self, last: Option<Promise>, told: &mut BTreeMap<Epoch, Sequence>) -> Vec<Promise> {
        let mut epochs: BTreeSet<Epoch> = self.all.values().filter_map(|one| one.stand.epoch).collect();
        epochs.extend(last.map(|last| last.epoch));
        while epochs.len() > MAX_EPOCHS {
            let oldest = epochs.pop_first();
            self.all.values_mut().filter(|one| one.stand.epoch == oldest).for_each(|one| one.stand.epoch = None);
        }
        told.retain(|epoch, _| epochs.contains(epoch));
        let safe = |epoch: &Epoch| told.get(epoch).copied().unwrap_or_default();
        epochs.iter().map(|epoch| Promise { epoch: *epoch, safe: safe(epoch) }).collect()
    }

    /// An owner of `epoch` has told what counts, by epoch; its own last change is `last`. Every change that does not count is to be sent again.
    ///
    /// What counts was taken over; it may be no safer than the owner's other changes. So it is kept until the owner's `safe` has reached it: in the epoch that it
    /// is of by its own sequence, in a newer one at the latest by the last that was taken over.
    pub(crate) fn attached(&mut self, epoch: Epoch, last: Sequence, cuts: &BTreeMap<Epoch, Sequence>) {
        self.epoch = epoch;
        self.newest.clear();
        self.again.clear();
        for (order, one) in &mut self.all {
            let counts = one.stand.epoch.and_then(|of| cuts.get(&of)).is_some_and(|cut| one.stand.sequence <= *cut);
            if !counts {
                self.again.insert(*order);
                continue;
            }
            if one.stand.epoch != Some(epoch) {
                one.stand = Stand { epoch: Some(epoch), sequence: last };
            }
            self.newest.insert((one.stand.sequence, *order));
        }
    }

    /// The connection is lost: what was sent again on it and not answered is to be sent again on the next one.
    pub(crate) fn lost(&mut self) {
        self.again.clear();
    }

    /// How many have to be sent again, or be answered, before anything else is sent.
    pub(crate) fn outstanding(&self) -> usize {
        self.again.len()
    }

    /// The first that is to be sent again, at or behind `from` in order; or, where it is turned round, the last before it.
    pub(crate) fn next_again(&self, from: u64) -> Option<(u64, &Change)> {
        let order = self.again.range(from..).next()?;
        self.all.get(order).map(|one| (*order, &one.change))
    }

    /// The same from behind.
    pub(crate) fn last_again(&self, before: u64) -> Option<(u64, &Change)> {
        let order = self.again.range(..before).next_back()?;
        self.all.get(order).map(|one| (*order, &one.change))
    }

    /// One that was sent again was acknowledged. Gives back how many bytes fell free because it is safe.
    pub(crate) fn answered(&mut self, order: u64, sequence: Sequence, safe: Sequence) -> u64 {
        self.again.remove(&order);
        if sequence <= safe {
            return self.remove(order);
        }
        if let Some(one) = self.all.get_mut(&order) {
            one.stand = Stand { epoch: Some(self.epoch), sequence };
            self.newest.insert((sequence, order));
        }
        0
    }

    /// Gives everything up.
    pub(crate) fn clear(&mut self) {
        *self = Self { epoch: self.epoch, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change() -> Change {
        Change { ask: Ask::Write, flags: 0, offset: 0, length: 512, data: Bytes::from_static(&[1; 512]), crc: 0 }
    }

    #[test]
    fn what_is_safe_goes_and_the_rest_stays() {
        let mut kept = Kept::default();
        kept.attached(Epoch(1), Sequence(0), &BTreeMap::new());
        for order in 1..=4 {
            kept.put(order, change(), Sequence(10 * order));
        }
        assert_eq!(kept.forget(Sequence(25)), 2 * change().cost());
        kept.attached(Epoch(2), Sequence(30), &BTreeMap::from([(Epoch(1), Sequence(30))]));
        assert_eq!((kept.outstanding(), kept.next_again(0).map(|(order, _)| order)), (1, Some(4)));
        assert_eq!(kept.forget(Sequence(29)), 0, "what counts is safe only where the new owner says so");
        assert_eq!(kept.forget(Sequence(30)), change().cost());
        assert_eq!(kept.answered(4, Sequence(31), Sequence(30)), 0);
        assert_eq!((kept.outstanding(), kept.forget(Sequence(31)), kept.is_empty()), (0, change().cost(), true));
        assert_eq!(kept.bytes(), 0);
    }

    #[test]
    fn of_too_many_epochs_the_oldest_are_sent_again_whatever_counts() {
        let (mut kept, mut told) = (Kept::default(), BTreeMap::new());
        let epochs = MAX_EPOCHS as u64 + 3;
        for epoch in 1..=epochs {
            kept.attached(Epoch(epoch), Sequence(epoch), &BTreeMap::new());
            kept.put(epoch, change(), Sequence(epoch));
            told.insert(Epoch(epoch), Sequence(epoch - 1));
        }
        let last = Promise { epoch: Epoch(epochs), safe: Sequence(epochs - 1) };
        let promises = kept.promises(Some(last), &mut told);
        assert_eq!((promises.len(), promises[0].epoch, told.len()), (MAX_EPOCHS, Epoch(4), MAX_EPOCHS));
        assert!(promises.windows(2).all(|two| two[0].epoch < two[1].epoch));
        let cuts = (1..=epochs).map(|epoch| (Epoch(epoch), Sequence(u64::MAX))).collect();
        kept.attached(Epoch(epochs + 1), Sequence(epochs), &cuts);
        assert_eq!(kept.outstanding(), 3, "the three oldest");
    }
}
