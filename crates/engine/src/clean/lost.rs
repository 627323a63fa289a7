// SPDX-License-Identifier: Apache-2.0
//! Bundles of jobs that were handed out and given up: whoever was at one may put it yet, and nobody would ever ask for it.
//!
//! Such a name was never in a manifest, and never will be, since its job's answer is refused: so it is deleted without the rule of two manifests, whatever has
//! become of its timeline. It is looked for at once, when somebody answers for it after all, and then less and less often, for about a day and a half.
//!
//! What is known of them is in RAM, [`MAX_LOST`] at most. What is forgotten so, or by a crash, the next opening of the volume finds as an orphan.

use crate::Result;
use crate::context::Context;
use crate::manifests::PoolStore;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;
use varve_format::ObjectName;
use varve_types::branch::{Branch, reached};
use varve_types::{ErrorKind, LeaseId};

/// Most that are remembered.
const MAX_LOST: usize = 64;
/// How often one is looked for, the first time included.
const LOOKS: u32 = 6;
/// The time between two looks is that of a lease, so many times longer with each.
const LONGER: u32 = 4;

/// A bundle that may be put, or may be there.
#[derive(Clone)]
struct Missing {
    id: LeaseId,
    bundle: ObjectName,
    pool: Rc<PoolStore>,
    /// How often it was looked for.
    looks: u32,
    /// When it is looked for next, in the time of the shard.
    at: Duration,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Lost {
    missing: RefCell<VecDeque<Missing>>,
    looking: Cell<bool>,
}

impl Lost {
    /// Remembers one.
    pub fn enter(&self, id: LeaseId, bundle: ObjectName, pool: Rc<PoolStore>, now: Duration) {
        let mut missing = self.missing.borrow_mut();
        if missing.len() == MAX_LOST {
            missing.pop_front();
        }
        missing.push_back(Missing { id, bundle, pool, looks: 0, at: now });
    }

    /// Somebody answers for it: it may have come now. Tells whether it is one of them.
    pub fn answered(&self, id: LeaseId, now: Duration) -> bool {
        let mut missing = self.missing.borrow_mut();
        let found = missing.iter_mut().find(|missing| missing.id == id);
        found.map(|missing| missing.at = now).is_some()
    }

    fn due(&self, now: Duration) -> Vec<Missing> {
        self.missing.borrow().iter().filter(|missing| missing.at <= now).cloned().collect()
    }

    /// It was looked for: tells when it will be again.
    fn looked(&self, id: LeaseId, now: Duration, lease: Duration) {
        let mut missing = self.missing.borrow_mut();
        if let Some(one) = missing.iter_mut().find(|missing| missing.id == id) {
            one.looks += 1;
            one.at = now + lease * LONGER.pow(one.looks);
        }
        missing.retain(|missing| missing.looks < LOOKS);
    }
}

impl Context {
    /// Looks for bundles that nobody waits for any more, where some are due.
    pub(super) fn look_for_lost(self: &Rc<Self>) {
        let lost = &self.cleaning.lost;
        if lost.due(self.env.now()).is_empty() || lost.looking.replace(true) {
            return;
        }
        let this = Rc::clone(self);
        self.env.spawn(Box::pin(async move {
            let lost = &this.cleaning.lost;
            for missing in lost.due(this.env.now()) {
                if let Err(error) = delete_missing(&missing).await {
                    tracing::debug!(bundle = %missing.bundle, %error, "a bundle that came to nothing could not be looked for");
                }
                lost.looked(missing.id, this.env.now(), Duration::from_millis(this.limits.lease_ms));
            }
            lost.looking.set(false);
        }));
    }
}

async fn delete_missing(missing: &Missing) -> Result<()> {
    let (pool, name) = (&missing.pool, missing.bundle.to_string());
    match pool.store.head(&name).await {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        asked => drop(asked?),
    }
    pool.check().await?;
    pool.store.delete(&name).await?;
    reached(Branch::CleanLostDeleted);
    Ok(())
}
