// SPDX-License-Identifier: Apache-2.0
//! How many bytes of changes a process may have that are not known to be safe.
//!
//! A change counts from when it is first sent until it is safe, or was answered with an error. All sessions of a process share one [`Budget`]. A session always
//! has its [`FLOOR`], so that one whose owner is away can not hold up the others for ever; and one change alone always may, however large it is.
//!
//! Bound: the budget's bytes, and for each session [`FLOOR`] or one change.

use std::cell::Cell;
use std::rc::Rc;

/// Bytes that a process may keep, unless told otherwise.
pub const DEFAULT_BUDGET: u64 = 32 << 20;
/// Bytes that a session may always have.
pub(crate) const FLOOR: u64 = 512 << 10;
/// What a change costs besides its data.
pub(crate) const EACH: u64 = 256;

/// The bytes of a process.
#[derive(Clone, Debug)]
pub struct Budget {
    limit: u64,
    used: Rc<Cell<u64>>,
}

impl Budget {
    /// Of so many bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { limit, used: Rc::default() }
    }

    /// What all sessions have of it.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.get()
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(DEFAULT_BUDGET)
    }
}

/// What one session has of it. What it has goes back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Budget,
    held: u64,
}

impl Share {
    pub(crate) fn new(budget: Budget) -> Self {
        Self { budget, held: 0 }
    }

    /// Takes bytes, if there are so many; whether there were.
    pub(crate) fn take(&mut self, bytes: u64) -> bool {
        let used = &self.budget.used;
        let fits = used.get() + bytes <= self.budget.limit;
        let may = fits || self.held == 0 || self.held + bytes <= FLOOR.min(self.budget.limit);
        if may {
            used.set(used.get() + bytes);
            self.held += bytes;
        }
        may
    }

    /// Gives bytes back.
    pub(crate) fn give(&mut self, bytes: u64) {
        debug_assert!(bytes <= self.held, "{bytes} of {}", self.held);
        let bytes = bytes.min(self.held);
        self.held -= bytes;
        self.budget.used.set(self.budget.used.get() - bytes);
    }

    /// Gives everything back.
    pub(crate) fn clear(&mut self) {
        self.give(self.held);
    }

    /// Whether it is time to ask for what is kept to be made safe, so that nothing has to wait for it later.
    pub(crate) fn is_half_full(&self) -> bool {
        self.held >= FLOOR.min(self.budget.limit) / 2 && self.budget.used() >= self.budget.limit / 2
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_share_it_and_each_has_its_floor() {
        let budget = Budget::new(4 << 20);
        let (mut a, mut b) = (Share::new(budget.clone()), Share::new(budget.clone()));
        assert!(a.take(3 << 20) && !a.take((1 << 20) + 1) && a.take(1 << 20));
        assert!(!a.take(1), "all is used");
        assert!(b.take(FLOOR), "the other one has its floor");
        assert!(!b.take(1));
        a.give(1 << 20);
        assert!(b.take(FLOOR));
        drop(a);
        drop(b);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn one_change_alone_always_may() {
        let mut share = Share::new(Budget::new(1 << 20));
        assert!(share.take(32 << 20) && !share.take(1));
        share.give(32 << 20);
        assert!(share.take(1));
    }
}
