// SPDX-License-Identifier: Apache-2.0
//! The state machine that both forms share: entries, revision, recent events, leases. No I/O, no clock, no threads.
//!
//! A change has two halves. [`State::plan`] judges a transaction against the state and says what it would do, changing nothing; the embedded form
//! then makes the plan durable; [`State::apply`] carries it out in memory and can not fail. Between the two nobody else may apply, so there is one
//! writer; readers may look at any time and see what was durable before.
//!
//! Invariants: the revision grows by exactly one with each plan that has steps; every entry's revision is at most the store's; `bytes` is the sum
//! over the entries; the history holds whole revisions only, all from `history_from` on.

use crate::{Change, Check, CoordError, Entry, Event, LeaseId, Listing, Result};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

/// Most bytes of all keys and values, with [`ENTRY_BYTES`] for each. They are all in RAM.
const MAX_STORE_BYTES: u64 = 256 << 20;
/// What an entry counts beside its key and value.
const ENTRY_BYTES: u64 = 64;
/// Most events kept for watches that lag.
const MAX_HISTORY: usize = 4096;
/// Most bytes of keys and values in those events.
const MAX_HISTORY_BYTES: usize = 8 << 20;
/// Most leases at once.
const MAX_LEASES: usize = 10_000;

/// What is kept under a key.
pub(crate) struct Slot {
    pub(crate) value: Arc<[u8]>,
    pub(crate) revision: u64,
    pub(crate) lease: Option<LeaseId>,
}

/// One change of a plan.
pub(crate) enum Step {
    Put { key: String, value: Arc<[u8]>, lease: Option<LeaseId> },
    Delete { key: String },
}

/// What a transaction will do.
pub(crate) struct Plan {
    /// The store's revision afterwards.
    pub(crate) revision: u64,
    /// Empty: nothing changes, the revision neither.
    pub(crate) steps: Vec<Step>,
}

/// A kept event.
struct Past {
    key: String,
    /// `None`: it was deleted.
    value: Option<Arc<[u8]>>,
    revision: u64,
}

struct Lease {
    ttl: Duration,
    deadline: Duration,
}

pub(crate) struct State {
    entries: BTreeMap<String, Slot>,
    revision: u64,
    bytes: u64,
    history: VecDeque<Past>,
    history_bytes: usize,
    /// Number of the event at the front of the history; numbers grow by one an event.
    history_number: u64,
    /// First revision whose events are all there.
    history_from: u64,
    leases: BTreeMap<LeaseId, Lease>,
    next_lease: u64,
    /// Why nothing can be done any more, once that is so.
    ended: Option<String>,
}

/// Where a watch stands.
pub(crate) struct Cursor {
    pub(crate) prefix: String,
    from_revision: u64,
    /// Number of the next event to look at; `None` if it began behind the history.
    number: Option<u64>,
}

impl State {
    /// The state with these entries. `first_lease` begins the numbers of leases and is above all that were given before.
    pub(crate) fn new(entries: BTreeMap<String, Slot>, revision: u64, first_lease: u64) -> Self {
        let bytes = entries.iter().map(|(key, slot)| weight(key, &slot.value)).sum();
        Self {
            entries,
            revision,
            bytes,
            history: VecDeque::new(),
            history_bytes: 0,
            history_number: 0,
            history_from: revision + 1,
            leases: BTreeMap::new(),
            next_lease: first_lease,
            ended: None,
        }
    }

    /// Fails once the store has ended.
    pub(crate) fn check_alive(&self) -> Result<()> {
        match &self.ended {
            None => Ok(()),
            Some(reason) => Err(CoordError::unavailable(reason.clone())),
        }
    }

    /// Nothing goes any more from here on. The first reason stays.
    pub(crate) fn end(&mut self, reason: &str) {
        self.ended.get_or_insert_with(|| reason.to_owned());
    }

    pub(crate) fn get(&self, key: &str) -> Option<Entry> {
        self.entries.get(key).map(|slot| entry(key, slot))
    }

    pub(crate) fn list(&self, prefix: &str) -> Listing {
        let entries = self
            .entries
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, slot)| entry(key, slot))
            .collect();
        Listing { entries, revision: self.revision }
    }

    /// What the transaction would do; `None` if a check does not hold. The bounds were checked before.
    pub(crate) fn plan(&self, checks: &[Check], changes: Vec<Change>) -> Result<Option<Plan>> {
        let holds = |check: &Check| match check {
            Check::Absent(key) => !self.entries.contains_key(key),
            Check::Exists(key) => self.entries.contains_key(key),
            Check::Revision(key, revision) => self.entries.get(key).is_some_and(|slot| slot.revision == *revision),
        };
        if !checks.iter().all(holds) {
            return Ok(None);
        }
        let (mut steps, mut gain, mut loss) = (Vec::with_capacity(changes.len()), 0, 0);
        for change in changes {
            let old = self.entries.get(change.key());
            loss += old.map_or(0, |slot| weight(change.key(), &slot.value));
            match change {
                Change::Put { key, value, lease } => {
                    if let Some(lease) = lease.filter(|lease| !self.leases.contains_key(lease)) {
                        return Err(gone(lease));
                    }
                    gain += weight(&key, &value);
                    steps.push(Step::Put { key, value: value.into(), lease });
                }
                Change::Delete(key) if old.is_some() => steps.push(Step::Delete { key }),
                Change::Delete(_) => {}
            }
        }
        if gain > loss && self.bytes + gain - loss > MAX_STORE_BYTES {
            return Err(CoordError::NoSpace(format!("its bound of {} MiB is reached", MAX_STORE_BYTES >> 20)));
        }
        Ok(Some(self.numbered(steps)))
    }

    /// What the end of a lease would do to its keys.
    pub(crate) fn plan_end(&self, lease: LeaseId) -> Plan {
        let mine = self.entries.iter().filter(|(_, slot)| slot.lease == Some(lease));
        self.numbered(mine.map(|(key, _)| Step::Delete { key: key.clone() }).collect())
    }

    fn numbered(&self, steps: Vec<Step>) -> Plan {
        Plan { revision: self.revision + u64::from(!steps.is_empty()), steps }
    }

    /// Carries out a plan that was made of this very state.
    pub(crate) fn apply(&mut self, plan: Plan) {
        let Plan { revision, steps } = plan;
        assert_eq!(
            revision,
            self.revision + u64::from(!steps.is_empty()),
            "a plan is applied to the state it was made of"
        );
        self.revision = revision;
        for step in steps {
            let (key, value) = match step {
                Step::Put { key, value, lease } => {
                    self.bytes += weight(&key, &value);
                    let slot = Slot { value: Arc::clone(&value), revision, lease };
                    if let Some(old) = self.entries.insert(key.clone(), slot) {
                        self.bytes -= weight(&key, &old.value);
                    }
                    (key, Some(value))
                }
                Step::Delete { key } => {
                    if let Some(old) = self.entries.remove(&key) {
                        self.bytes -= weight(&key, &old.value);
                    }
                    (key, None)
                }
            };
            self.history_bytes += key.len() + value.as_ref().map_or(0, |value| value.len());
            self.history.push_back(Past { key, value, revision });
        }
        self.forget();
    }

    /// Drops the oldest revisions while the history is over its bounds.
    fn forget(&mut self) {
        while self.history.len() > MAX_HISTORY || self.history_bytes > MAX_HISTORY_BYTES {
            let Some(first) = self.history.front().map(|past| past.revision) else { return };
            while let Some(past) = self.history.pop_front_if(|past| past.revision == first) {
                self.history_bytes -= past.key.len() + past.value.map_or(0, |value| value.len());
                self.history_number += 1;
            }
            self.history_from = first + 1;
        }
    }

    /// A watch of `prefix` from the revision on (0: from now on).
    pub(crate) fn cursor(&self, prefix: &str, from_revision: u64) -> Cursor {
        let from_revision = if from_revision == 0 { self.revision + 1 } else { from_revision };
        let skipped = self.history.partition_point(|past| past.revision < from_revision) as u64;
        let number = (from_revision >= self.history_from).then_some(self.history_number + skipped);
        Cursor { prefix: prefix.to_owned(), from_revision, number }
    }

    /// The next event of a watch, if there is one already.
    pub(crate) fn next_event(&self, cursor: &mut Cursor) -> Option<Event> {
        let Some(number) = cursor.number.as_mut().filter(|number| **number >= self.history_number) else {
            return Some(Event::Behind);
        };
        loop {
            let index = usize::try_from(*number - self.history_number).ok()?;
            let past = self.history.get(index)?;
            *number += 1;
            if past.revision < cursor.from_revision || !past.key.starts_with(&cursor.prefix) {
                continue;
            }
            let (key, revision) = (past.key.clone(), past.revision);
            return Some(match &past.value {
                Some(value) => Event::Put(Entry { key, value: value.to_vec(), revision }),
                None => Event::Deleted { key, revision },
            });
        }
    }

    pub(crate) fn grant(&mut self, now: Duration, ttl: Duration) -> Result<LeaseId> {
        if self.leases.len() >= MAX_LEASES {
            return Err(CoordError::Busy(format!("there are {MAX_LEASES} leases already")));
        }
        let id = LeaseId(self.next_lease);
        self.next_lease += 1;
        self.leases.insert(id, Lease { ttl, deadline: now.saturating_add(ttl) });
        Ok(id)
    }

    pub(crate) fn keep_alive(&mut self, now: Duration, id: LeaseId) -> Result<()> {
        let lease = self.leases.get_mut(&id).ok_or_else(|| gone(id))?;
        lease.deadline = now.saturating_add(lease.ttl);
        Ok(())
    }

    /// Fails if the lease is over.
    pub(crate) fn check_lease(&self, id: LeaseId) -> Result<()> {
        if self.leases.contains_key(&id) { Ok(()) } else { Err(gone(id)) }
    }

    /// Forgets a lease whose keys are gone.
    pub(crate) fn drop_lease(&mut self, id: LeaseId) {
        debug_assert!(self.entries.values().all(|slot| slot.lease != Some(id)), "the keys of a lease go before it");
        self.leases.remove(&id);
    }

    /// The lease that ends next and when.
    pub(crate) fn next_deadline(&self) -> Option<(Duration, LeaseId)> {
        self.leases.iter().map(|(id, lease)| (lease.deadline, *id)).min()
    }
}

fn entry(key: &str, slot: &Slot) -> Entry {
    Entry { key: key.to_owned(), value: slot.value.to_vec(), revision: slot.revision }
}

fn weight(key: &str, value: &[u8]) -> u64 {
    (key.len() + value.len()) as u64 + ENTRY_BYTES
}

fn gone(lease: LeaseId) -> CoordError {
    CoordError::NotFound(format!("the lease {lease}"))
}
