// SPDX-License-Identifier: Apache-2.0
//! The lease of an owner: what lets it answer a client that can not tell an owner from one that was taken over.
//!
//! An edge with the volume for itself drops the answers of an owner that is not its session's any more, and a change of a `sync` volume is answered by the mirror. All
//! others (plain clients, edges that share a volume, answers to changes of `async` volumes) have only the owner's word. While the record names a mirror, or may, the owner
//! gives it only under a lease: the mirror's promise not to serve the volume itself for [`LEASE`]. It is asked for when somebody needs it, in time for the next one to need it.
//!
//! Always holds: an answer that needs a lease was decided at a moment at which this node's lease held, and behind the request. The lease counts from when it was asked for;
//! the mirror counts it from when it gave it, and a tenth longer, and waits that out before it serves. So clocks need not agree, only go at about the same rate.
//!
//! A crash of the mirror's process loses its promise and its copy: it does not take over. A crash of the owner needs nothing: the promise ends.

use super::{ANSWER_TIME, in_time};
use crate::Result;
use crate::timeline::Timeline;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use varve_types::branch::{Branch, reached};
use varve_types::mutant::{Mutant, planted};

/// How long a lease holds.
pub(super) const LEASE: Duration = Duration::from_millis(500);
/// How long whoever gave one waits: clocks may differ in rate by a tenth.
pub(super) const LEASE_WAIT: Duration = Duration::from_millis(550);

/// What an owner has of it.
#[derive(Default)]
pub(crate) struct Lease {
    /// When it ends, by the clock of the environment.
    until: Cell<Duration>,
    is_asked: Cell<bool>,
}

impl Lease {
    /// Whoever gave it is the mirror no more; the next one has given none.
    pub(super) fn end(&self) {
        self.until.set(Duration::ZERO);
    }
}

impl Timeline {
    /// Whether an answer that was found just now may be given without further ado.
    pub fn lease_holds(self: &Rc<Self>) -> bool {
        if !self.mirror.may_be_named() || planted(Mutant::AnswerWithoutLease) {
            return true;
        }
        let (now, until) = (self.context.env.now(), self.mirror.lease.until.get());
        if until < now + LEASE / 2 {
            self.ask_lease();
        }
        now < until
    }

    fn ask_lease(self: &Rc<Self>) {
        let link = self.mirror.link.borrow().as_ref().map(|link| (link.number, Rc::clone(&link.peer)));
        let Some((number, peer)) = link.filter(|_| !self.mirror.lease.is_asked.replace(true)) else { return };
        let since = self.context.env.now();
        let this = Rc::clone(self);
        self.context.env.spawn(Box::pin(async move {
            let given = in_time(&*this.context.env, peer.lease(this.id, this.epoch), ANSWER_TIME).await;
            this.mirror.lease.is_asked.set(false);
            match given {
                Ok(()) if this.is_linked(number) => {
                    this.mirror.lease.until.set(since + LEASE);
                    this.mirror.count(|counts| counts.leases += 1);
                }
                // It is another's by now, who is asked when somebody needs it.
                Ok(()) => {}
                Err(error) => this.mirror_part(number, error),
            }
            this.changed.ring();
        }));
    }

    /// Waits until an answer that was found before may be given.
    ///
    /// # Errors
    /// When the volume has stopped: it may be another's.
    pub async fn lease(self: &Rc<Self>) -> Result<()> {
        reached(Branch::LeaseAwaited);
        self.mirror.count(|counts| counts.lease_waits += 1);
        let holds = || match self.data.borrow().check() {
            Err(error) => Some(Err(error)),
            Ok(()) => self.lease_holds().then_some(Ok(())),
        };
        self.changed.until(holds).await
    }
}
