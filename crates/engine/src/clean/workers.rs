// SPDX-License-Identifier: Apache-2.0
//! The processes that clean for a shard, as it knows them: by the names that they give.
//!
//! While one of them is *awaited*, because it was heard of within the time of a lease, the shard cleans nothing itself. Who has failed at a job rests for that
//! time: it gets nothing, and is not awaited, so what it can not do is done by others, or by the shard.
//!
//! They are kept in RAM alone, [`MAX_WORKERS`] of them at most; after a start they make themselves known again.

use crate::{EngineError, Result};
use std::cell::RefCell;
use std::time::Duration;
use varve_types::{ErrorKind, Name};

/// Most processes that are known at a time.
pub(super) const MAX_WORKERS: usize = 32;

/// A process that cleans for a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CleanWorker {
    /// As it calls itself.
    pub name: Name,
    /// When it was heard of, in the time of the shard.
    pub heard: Duration,
    /// Jobs of it that were done.
    pub jobs: u64,
    /// Jobs of it that came to nothing, but for those that it gave back.
    pub failed: u64,
    /// Bytes of blocks that it has read for the job that it is at, as far as it has told; `None`: it is at none.
    pub read_bytes: Option<u64>,
    /// Until when the shard waits for it, and cleans nothing itself.
    awaited: Duration,
    /// Until when it gets no job.
    rests: Duration,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Workers(RefCell<Vec<CleanWorker>>);

impl Workers {
    /// Takes in that one was heard of that asks for a job. Tells whether it may have one.
    ///
    /// # Errors
    /// `Busy` where too many others are known of which something was heard of late.
    pub fn asked(&self, name: &Name, now: Duration, lease: Duration) -> Result<bool> {
        let mut all = self.0.borrow_mut();
        if !all.iter().any(|worker| worker.name == *name) {
            if all.len() == MAX_WORKERS {
                let oldest = all.iter().enumerate().filter(|(_, worker)| worker.awaited <= now);
                let Some((at, _)) = oldest.min_by_key(|(_, worker)| worker.heard) else {
                    let what = format!("{MAX_WORKERS} processes clean already, which is the most");
                    return Err(EngineError::new(ErrorKind::Busy, what));
                };
                all.remove(at);
            }
            let (heard, awaited, rests) = (now, Duration::ZERO, Duration::ZERO);
            all.push(CleanWorker { name: name.clone(), heard, jobs: 0, failed: 0, read_bytes: None, awaited, rests });
        }
        let worker = all.iter_mut().find(|worker| worker.name == *name).expect("it was entered if it was not there");
        worker.heard = now;
        if worker.rests > now {
            return Ok(false);
        }
        worker.awaited = now + lease;
        Ok(true)
    }

    /// Changes what is known of one.
    fn note(&self, name: &Name, change: impl FnOnce(&mut CleanWorker)) {
        if let Some(worker) = self.0.borrow_mut().iter_mut().find(|worker| worker.name == *name) {
            change(worker);
        }
    }

    /// It is at a job, and has read so much.
    pub fn works(&self, name: &Name, now: Duration, lease: Duration, read_bytes: u64) {
        self.note(name, |worker| {
            worker.heard = now;
            worker.awaited = now + lease;
            worker.read_bytes = Some(read_bytes);
        });
    }

    /// Its job was done.
    pub fn done(&self, name: &Name) {
        self.note(name, |worker| {
            worker.jobs += 1;
            worker.read_bytes = None;
        });
    }

    /// Its job came to nothing: it rests until then.
    pub fn failed(&self, name: &Name, until: Duration) {
        self.note(name, |worker| {
            worker.failed += 1;
            worker.read_bytes = None;
            worker.awaited = Duration::ZERO;
            worker.rests = until;
        });
    }

    /// It gave its job back, and ends.
    pub fn left(&self, name: &Name) {
        self.note(name, |worker| {
            worker.read_bytes = None;
            worker.awaited = Duration::ZERO;
        });
    }

    /// Whether any of them is awaited.
    pub fn is_any_awaited(&self, now: Duration) -> bool {
        self.0.borrow().iter().any(|worker| worker.awaited > now)
    }

    /// Those that are awaited, by name.
    pub fn awaited(&self, now: Duration) -> Vec<CleanWorker> {
        let mut all: Vec<_> = self.0.borrow().iter().filter(|worker| worker.awaited > now).cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(60);

    fn name(number: usize) -> Name {
        format!("w{number}").parse().unwrap()
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn who_has_failed_rests_and_is_not_waited_for() {
        let workers = Workers::default();
        assert!(workers.asked(&name(0), at(10), LEASE).unwrap() && workers.is_any_awaited(at(69)));
        assert!(!workers.is_any_awaited(at(70)), "nothing was heard of it");
        workers.works(&name(0), at(70), LEASE, 5);
        assert_eq!(workers.awaited(at(71))[0].read_bytes, Some(5));
        workers.failed(&name(0), at(140));
        assert!(!workers.is_any_awaited(at(80)));
        assert!(!workers.asked(&name(0), at(139), LEASE).unwrap() && !workers.is_any_awaited(at(139)));
        assert!(workers.asked(&name(0), at(140), LEASE).unwrap() && workers.is_any_awaited(at(140)));
        workers.left(&name(0));
        assert!(!workers.is_any_awaited(at(141)));
    }

    #[test]
    fn as_many_are_known_as_may_be() {
        let workers = Workers::default();
        (0..MAX_WORKERS).for_each(|n| assert!(workers.asked(&name(n), at(n as u64), LEASE).unwrap()));
        assert_eq!(workers.asked(&name(99), at(59), LEASE).unwrap_err().kind(), ErrorKind::Busy);
        assert!(workers.asked(&name(99), at(60), LEASE).unwrap(), "the first has not been heard of for long");
        assert!(workers.0.borrow().iter().all(|worker| worker.name != name(0)));
    }
}
