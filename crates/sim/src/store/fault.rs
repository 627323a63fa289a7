// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with a request to an object store: planned, by chance, or because the store is away.
//!
//! A planned fault waits for the nth request that fits and is then used up. Chance is asked where no plan fits. Both are
//! decided when the request is sent, so the same seed and the same requests meet the same faults. What a fault does to the
//! answer, or to the object, is the business of client and server.

use crate::rng::Rng;
use std::time::Duration;
use varve_env::StoreErrorKind;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StoreOp {
    /// Creation of an object.
    Put,
    /// Reading, by range or from the start.
    Get,
    /// Asking for the size.
    Head,
    /// Listing.
    List,
    /// Deletion.
    Delete,
}

impl StoreOp {
    /// The word for it in errors.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Head => "head",
            Self::List => "list",
            Self::Delete => "delete",
        }
    }
}

/// A fault of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreFault {
    /// It fails with this kind and has no effect.
    Error(StoreErrorKind),
    /// It takes effect, and the caller is told `Unavailable`.
    LostAnswer,
    /// A put: the caller is told `Unavailable` now, and it lands so much later if the name is still free. Else as `LostAnswer`.
    Late(Duration),
    /// A put: the caller is told `Unavailable` now, and it lands at [`release_held`](super::StoreServer::release_held) if the name is
    /// still free. Else as `LostAnswer`.
    Held,
    /// A get of a range: it is answered with the bytes that the last get of the same length was answered with, if there was one. Anything else
    /// is let through.
    Crossed,
    /// A get: a bit of the answer is another one. Anything else is let through.
    Wrong,
}

/// Faults by chance, each so many times in a thousand requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chaos {
    /// Any request is refused as `Unavailable`, without effect.
    pub error_per_mille: u32,
    /// A put or a delete takes effect and its answer is lost.
    pub lost_answer_per_mille: u32,
    /// A put lands late.
    pub late_put_per_mille: u32,
    /// The most that a late put waits.
    pub late_by: Duration,
    /// A get is answered with the bytes of another one.
    pub crossed_per_mille: u32,
    /// A bit of the answer to a get is another one; never twice in a row for one object, records of owners aside.
    pub wrong_per_mille: u32,
}

/// What becomes of the puts that a dead process had sent, whose effect had not yet come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InFlight {
    /// They never arrive.
    Lost,
    /// They land at once.
    Landed,
    /// They land so much later, where the name is still free.
    Late(Duration),
}

/// A planned fault.
pub(super) struct Plan {
    op: StoreOp,
    /// Part of the name that must be in it; empty fits all.
    part: String,
    /// Requests that fit and are let through first.
    skip: u64,
    fault: StoreFault,
}

/// All faults to come.
#[derive(Default)]
pub(super) struct Faults {
    plans: Vec<Plan>,
    /// The object whose last get was answered wrongly by chance.
    wronged: Option<String>,
    pub(super) chaos: Chaos,
}

impl Faults {
    /// Lets no fault that was planned come any more.
    pub(super) fn forget(&mut self) {
        self.plans.clear();
    }

    pub(super) fn plan(&mut self, op: StoreOp, part: &str, nth: u64, fault: StoreFault) {
        self.plans.push(Plan { op, part: part.to_owned(), skip: nth, fault });
    }

    /// The fault of a request, if it meets one. Every plan that fits counts it.
    pub(super) fn meet(&mut self, op: StoreOp, name: &str, rng: &mut Rng) -> Option<StoreFault> {
        let mut due = None;
        for (place, plan) in self.plans.iter_mut().enumerate() {
            if plan.op == op && name.contains(&plan.part) {
                if plan.skip == 0 && due.is_none() {
                    due = Some(place);
                } else {
                    plan.skip = plan.skip.saturating_sub(1);
                }
            }
        }
        if let Some(place) = due {
            return Some(self.plans.remove(place).fault);
        }
        let chaos = self.chaos;
        if rng.chance(chaos.error_per_mille) {
            return Some(StoreFault::Error(StoreErrorKind::Unavailable));
        }
        if matches!(op, StoreOp::Put | StoreOp::Delete) && rng.chance(chaos.lost_answer_per_mille) {
            return Some(StoreFault::LostAnswer);
        }
        if op == StoreOp::Put && rng.chance(chaos.late_put_per_mille) {
            let most = u64::try_from(chaos.late_by.as_nanos()).unwrap_or(u64::MAX);
            return Some(StoreFault::Late(Duration::from_nanos(rng.below(most))));
        }
        if op == StoreOp::Get && rng.chance(chaos.crossed_per_mille) {
            return Some(StoreFault::Crossed);
        }
        if op == StoreOp::Get && chaos.wrong_per_mille > 0 && !name.starts_with("owner/") {
            let again = self.wronged.as_deref() == Some(name);
            if !again && rng.chance(chaos.wrong_per_mille) {
                self.wronged = Some(name.to_owned());
                return Some(StoreFault::Wrong);
            }
            if again {
                self.wronged = None;
            }
        }
        None
    }
}
