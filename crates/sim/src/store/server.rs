// SPDX-License-Identifier: Apache-2.0
//! The server of an object store: its objects, the requests on their way, what it counted, and the handles to trouble it.
//!
//! State sits behind a mutex, because an [`ObjectStore`](varve_env::ObjectStore) is shared between threads by its trait; here
//! only one thread ever takes it. Names are kept in order, so a listing is the same in every run.
//!
//! No death of a process touches it. A put that was sent waits here until its time comes, and takes effect at most once, whoever asks for it
//! first: the event that was scheduled, its sender, or [`StoreServer::settle`].

use super::client::SimStore;
use super::fault::{Chaos, Faults, InFlight, StoreFault, StoreOp};
use super::record::{KindCounts, LogEntry, LogOutcome, StoreCounts};
use crate::core::{Core, Event, Stream};
use crate::{SimEnv, SimWorld};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use varve_env::{ObjectInfo, PutOutcome, StoreErrorKind};

/// Entries that the log keeps at most; the oldest go first.
const LOG_ENTRIES: usize = 65_536;
/// Names that one listing gives at most.
const LIST_NAMES: usize = 1000;

struct Object {
    bytes: Bytes,
    created: Duration,
}

struct Sent {
    process: u32,
    name: String,
    /// Absent once it has landed or is lost.
    bytes: Option<Bytes>,
    outcome: Option<Result<PutOutcome, StoreErrorKind>>,
    not_before: Duration,
    /// Whether the caller has been told already that it failed.
    answered: bool,
    held: bool,
}

pub(super) struct State {
    objects: BTreeMap<String, Object>,
    /// Deleted objects that a lagging list may still show: size, time of deletion.
    gone: BTreeMap<String, (u64, Duration)>,
    sent: BTreeMap<u64, Sent>,
    /// Names of puts that were to land after their callers were told that they had failed.
    late: BTreeSet<String>,
    next_sent: u64,
    pub(super) faults: Faults,
    away_until: Duration,
    /// Until when reads are bad, how slow they are at most, and how many in a thousand fail.
    bad_reads: (Duration, Duration, u32),
    latency: (Duration, Duration),
    list_lag: Duration,
    capacity: Option<u64>,
    used: u64,
    /// What the last get of each length was answered with, while answers cross.
    answered: BTreeMap<usize, Bytes>,
    counts: StoreCounts,
    /// Absent where nobody wants it.
    log: Option<VecDeque<LogEntry>>,
}

pub(super) struct Shared {
    pub(super) core: Arc<Core>,
    pub(super) name: String,
    state: Mutex<State>,
}

/// An object store as such. Clones are the same store.
#[derive(Clone)]
pub struct StoreServer {
    shared: Arc<Shared>,
}

impl StoreServer {
    /// An empty store, whose requests take 1 to 5 ms.
    #[must_use]
    pub fn new(world: &SimWorld, name: &str) -> Self {
        let state = State {
            objects: BTreeMap::new(),
            gone: BTreeMap::new(),
            sent: BTreeMap::new(),
            late: BTreeSet::new(),
            next_sent: 0,
            faults: Faults::default(),
            away_until: Duration::ZERO,
            bad_reads: (Duration::ZERO, Duration::ZERO, 0),
            latency: (Duration::from_millis(1), Duration::from_millis(5)),
            list_lag: Duration::ZERO,
            capacity: None,
            used: 0,
            answered: BTreeMap::new(),
            counts: StoreCounts::default(),
            log: Some(VecDeque::new()),
        };
        let core = Arc::clone(world.core());
        Self { shared: Arc::new(Shared { core, name: name.to_owned(), state: Mutex::new(state) }) }
    }

    /// The store as a process sees it.
    #[must_use]
    pub fn client(&self, process: &SimEnv) -> Arc<SimStore> {
        Arc::new(SimStore::new(Arc::clone(&self.shared), process))
    }

    /// Decides what becomes of the puts that a dead process had sent and not heard of.
    pub fn settle(&self, process: &SimEnv, fate: InFlight) {
        let mut due = Vec::new();
        {
            let now = self.shared.core.now();
            let mut state = self.shared.lock();
            let State { sent, late, .. } = &mut *state;
            for (number, sent) in sent {
                if sent.process != process.number() || sent.answered || sent.bytes.is_none() {
                    continue;
                }
                match fate {
                    InFlight::Lost => sent.bytes = None,
                    InFlight::Landed => sent.not_before = now,
                    InFlight::Late(by) => {
                        sent.not_before = now.saturating_add(by);
                        late.insert(sent.name.clone());
                    }
                }
                due.push(*number);
            }
        }
        for number in due {
            match fate {
                InFlight::Lost => {}
                InFlight::Landed => self.shared.arrive(number),
                InFlight::Late(by) => self.shared.land_after(number, by),
            }
        }
    }

    /// Lets the `nth` request from now of this kind whose name contains `part` meet a fault, the next one being 0.
    pub fn fail(&self, op: StoreOp, part: &str, nth: u64, fault: StoreFault) {
        self.shared.lock().faults.plan(op, part, nth, fault);
    }

    /// Lets no fault that was planned come any more.
    pub fn forget_faults(&self) {
        self.shared.lock().faults.forget();
    }

    /// Lets requests meet faults by chance.
    pub fn set_chaos(&self, chaos: Chaos) {
        let mut state = self.shared.lock();
        state.faults.chaos = chaos;
        state.answered.clear();
    }

    /// Lets every request sent in the next `duration` fail as `Unavailable`; zero ends it.
    pub fn away_for(&self, duration: Duration) {
        let until = self.shared.core.now().saturating_add(duration);
        self.shared.lock().away_until = until;
    }

    /// Lets gets that are sent in the next `duration` take up to `slowest`, and so many in a thousand fail as `Unavailable`; zero ends it.
    pub fn read_badly_for(&self, duration: Duration, slowest: Duration, error_per_mille: u32) {
        let until = self.shared.core.now().saturating_add(duration);
        self.shared.lock().bad_reads = (until, slowest, error_per_mille);
    }

    /// Sets the least and the most that a request takes, there and back.
    pub fn set_latency(&self, least: Duration, most: Duration) {
        self.shared.lock().latency = (least, most.max(least));
    }

    /// Lets listings show the state of so long ago, while reads by name show the present.
    pub fn set_list_lag(&self, lag: Duration) {
        self.shared.lock().list_lag = lag;
    }

    /// Bytes beyond which puts fail for want of space.
    pub fn set_capacity(&self, capacity: Option<u64>) {
        self.shared.lock().capacity = capacity;
    }

    /// Lets the puts that [`StoreFault::Held`] keeps back land now.
    pub fn release_held(&self) {
        let held: Vec<u64> = {
            let mut state = self.shared.lock();
            let held = state.sent.iter_mut().filter(|(_, sent)| sent.held);
            held.map(|(number, sent)| {
                sent.held = false;
                *number
            })
            .collect()
        };
        for number in held {
            self.shared.arrive(number);
        }
    }

    /// Whether a put of this name was told to have failed, and was to land later.
    #[must_use]
    pub fn was_late(&self, name: &str) -> bool {
        self.shared.lock().late.contains(name)
    }

    /// Names of all objects.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.shared.lock().objects.keys().cloned().collect()
    }

    /// Bytes of an object.
    #[must_use]
    pub fn object(&self, name: &str) -> Option<Bytes> {
        self.shared.lock().objects.get(name).map(|object| object.bytes.clone())
    }

    /// Puts an object there, or other bytes in its place, behind everyone's back.
    pub fn plant(&self, name: &str, bytes: impl Into<Bytes>) {
        let now = self.shared.core.now();
        let mut state = self.shared.lock();
        state.remove(name);
        state.insert(name, bytes.into(), now);
    }

    /// Removes an object behind everyone's back. True where it was there.
    pub fn remove(&self, name: &str) -> bool {
        self.shared.lock().remove(name).is_some()
    }

    /// Turns one bit of an object over. True where it has that byte.
    pub fn flip_bit(&self, name: &str, offset: u64, bit: u8) -> bool {
        self.change(name, |bytes| match bytes.get_mut(offset as usize) {
            Some(byte) => {
                *byte ^= 1 << (bit % 8);
                true
            }
            None => false,
        })
    }

    /// Cuts an object short. True where it was longer.
    pub fn truncate(&self, name: &str, len: u64) -> bool {
        self.change(name, |bytes| {
            let longer = bytes.len() as u64 > len;
            bytes.truncate(len as usize);
            longer
        })
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>) -> bool) -> bool {
        let Some(old) = self.object(name) else { return false };
        let mut bytes = old.to_vec();
        let changed = change(&mut bytes);
        self.plant(name, bytes);
        changed
    }

    /// What was done so far.
    #[must_use]
    pub fn counts(&self) -> StoreCounts {
        self.shared.lock().counts.clone()
    }

    /// Keeps no log of requests any more: a long run needs none.
    pub fn keep_no_log(&self) {
        self.shared.lock().log = None;
    }

    /// The last 65,536 requests, oldest first.
    #[must_use]
    pub fn log(&self) -> Vec<LogEntry> {
        self.shared.lock().log.iter().flatten().cloned().collect()
    }
}

fn kind_of(name: &str) -> &str {
    name.rsplit('/').nth(1).unwrap_or("")
}

impl State {
    fn kind(&mut self, name: &str) -> &mut KindCounts {
        self.counts.kinds.entry(kind_of(name).to_owned()).or_default()
    }

    fn insert(&mut self, name: &str, bytes: Bytes, now: Duration) {
        self.used += bytes.len() as u64;
        self.gone.remove(name);
        self.objects.insert(name.to_owned(), Object { bytes, created: now });
    }

    fn remove(&mut self, name: &str) -> Option<Object> {
        let object = self.objects.remove(name)?;
        self.used -= object.bytes.len() as u64;
        Some(object)
    }

    fn put(&mut self, name: &str, bytes: Bytes, now: Duration) -> Result<PutOutcome, StoreErrorKind> {
        if self.objects.contains_key(name) {
            return Ok(PutOutcome::Exists);
        }
        let len = bytes.len() as u64;
        if self.capacity.is_some_and(|capacity| self.used + len > capacity) {
            return Err(StoreErrorKind::NoSpace);
        }
        let kind = self.kind(name);
        kind.created += 1;
        kind.created_bytes += len;
        self.insert(name, bytes, now);
        Ok(PutOutcome::Created)
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a request as it is sent: its fault if it meets one, and how long it takes there and back.
    pub(super) fn meet(&self, op: StoreOp, name: &str) -> (Option<StoreFault>, Duration) {
        let now = self.core.now();
        let mut state = self.lock();
        *state.counts.requests.entry(op).or_default() += 1;
        let (least, most) = state.latency;
        let span = u64::try_from((most - least).as_nanos()).unwrap_or(u64::MAX);
        self.core.draw(Stream::Faults, |rng| {
            let mut takes = least + Duration::from_nanos(rng.below(span));
            let (bad_until, slowest, error_per_mille) = state.bad_reads;
            let is_bad = op == StoreOp::Get && now < bad_until;
            if is_bad {
                takes += Duration::from_nanos(rng.below(u64::try_from(slowest.as_nanos()).unwrap_or(u64::MAX).max(1)));
            }
            if now < state.away_until || (is_bad && rng.chance(error_per_mille)) {
                return (Some(StoreFault::Error(StoreErrorKind::Unavailable)), takes);
            }
            (state.faults.meet(op, name, rng), takes)
        })
    }

    /// Puts a request on its way. It lands by [`land`](Self::land) or [`land_after`](Self::land_after), and never by itself.
    pub(super) fn send(&self, process: u32, name: &str, bytes: Bytes, answered: bool, held: bool) -> u64 {
        let mut state = self.lock();
        let number = state.next_sent;
        state.next_sent += 1;
        let name = name.to_owned();
        if answered {
            state.late.insert(name.clone());
        }
        let not_before = Duration::ZERO;
        state
            .sent
            .insert(number, Sent { process, name, bytes: Some(bytes), outcome: None, not_before, answered, held });
        number
    }

    /// Lets a request land after `by`, whatever becomes of its sender.
    pub(super) fn land_after(self: &Arc<Self>, number: u64, by: Duration) {
        let shared = Arc::clone(self);
        self.core.schedule(by, Event::Run(Box::new(move || shared.arrive(number))));
    }

    /// Lets a request land whose outcome waits for its sender, or interests nobody.
    fn arrive(&self, number: u64) {
        self.land(number);
    }

    /// Lets a request land, if its time has come and it has not landed before.
    fn land(&self, number: u64) -> Option<Result<PutOutcome, StoreErrorKind>> {
        let now = self.core.now();
        let mut state = self.lock();
        let state = &mut *state;
        let sent = state.sent.get_mut(&number)?;
        if now < sent.not_before || sent.held {
            return None;
        }
        let Some(bytes) = sent.bytes.take() else { return sent.outcome };
        let (name, process, answered) = (sent.name.clone(), sent.process, sent.answered);
        let len = bytes.len() as u64;
        let outcome = state.put(&name, bytes, now);
        if answered {
            state.sent.remove(&number);
        } else if let Some(sent) = state.sent.get_mut(&number) {
            sent.outcome = Some(outcome);
        }
        let logged = match outcome {
            Ok(PutOutcome::Created) => LogOutcome::Created,
            Ok(PutOutcome::Exists) => LogOutcome::Exists,
            Err(kind) => LogOutcome::Failed(kind),
        };
        self.record(state, process, StoreOp::Put, &name, len, logged);
        Some(outcome)
    }

    /// The outcome of a request whose sender is there to hear it; it lands now if it has not before.
    pub(super) fn collect(&self, number: u64) -> Result<PutOutcome, StoreErrorKind> {
        let outcome = self.land(number);
        self.lock().sent.remove(&number);
        outcome.unwrap_or(Err(StoreErrorKind::Unavailable))
    }

    pub(super) fn read(&self, process: u32, name: &str) -> Option<Bytes> {
        let mut state = self.lock();
        let bytes = state.objects.get(name).map(|object| object.bytes.clone());
        if bytes.is_none() {
            self.record(&mut state, process, StoreOp::Get, name, 0, LogOutcome::Failed(StoreErrorKind::NotFound));
        }
        bytes
    }

    /// The answer of a get: its own bytes, or those of the last one of the same length where they are crossed.
    pub(super) fn answer(&self, own: Bytes, crossed: bool) -> Bytes {
        let mut state = self.lock();
        if state.faults.chaos.crossed_per_mille == 0 {
            return own;
        }
        match state.answered.insert(own.len(), own.clone()) {
            Some(other) if crossed => other,
            _ => own,
        }
    }

    /// Counts a read that gave so many bytes.
    pub(super) fn count_read(&self, process: u32, name: &str, len: u64) {
        let mut state = self.lock();
        let kind = state.kind(name);
        kind.gets += 1;
        kind.got_bytes += len;
        self.record(&mut state, process, StoreOp::Get, name, len, LogOutcome::Done);
    }

    pub(super) fn size(&self, process: u32, name: &str) -> Option<u64> {
        let mut state = self.lock();
        let size = state.objects.get(name).map(|object| object.bytes.len() as u64);
        let outcome = size.map_or(LogOutcome::Failed(StoreErrorKind::NotFound), |_| LogOutcome::Done);
        self.record(&mut state, process, StoreOp::Head, name, 0, outcome);
        size
    }

    pub(super) fn delete(&self, process: u32, name: &str) {
        let now = self.core.now();
        let mut state = self.lock();
        if let Some(object) = state.remove(name) {
            state.kind(name).deleted += 1;
            state.gone.insert(name.to_owned(), (object.bytes.len() as u64, now));
        }
        self.record(&mut state, process, StoreOp::Delete, name, 0, LogOutcome::Done);
    }

    pub(super) fn list(&self, process: u32, prefix: &str, after: Option<&str>) -> Vec<ObjectInfo> {
        let now = self.core.now();
        let mut state = self.lock();
        let lag = state.list_lag;
        let from = || after.filter(|after| *after > prefix).unwrap_or(prefix).to_owned();
        let fits = |name: &str| name.starts_with(prefix) && after.is_none_or(|after| name > after);
        let mut names = BTreeMap::new();
        for (name, object) in state.objects.range(from()..).take_while(|(name, _)| name.starts_with(prefix)) {
            if fits(name) && object.created + lag <= now {
                names.insert(name.clone(), object.bytes.len() as u64);
            }
            if names.len() == LIST_NAMES {
                break;
            }
        }
        for (name, (size, gone)) in state.gone.range(from()..).take_while(|(name, _)| name.starts_with(prefix)) {
            if fits(name) && *gone + lag > now {
                names.insert(name.clone(), *size);
            }
        }
        let names = names.into_iter().take(LIST_NAMES);
        let names: Vec<_> = names.map(|(name, size)| ObjectInfo { name, size }).collect();
        self.record(&mut state, process, StoreOp::List, prefix, names.len() as u64, LogOutcome::Done);
        names
    }

    pub(super) fn record_failure(&self, process: u32, op: StoreOp, name: &str, kind: StoreErrorKind) {
        let mut state = self.lock();
        self.record(&mut state, process, op, name, 0, LogOutcome::Failed(kind));
    }

    fn record(&self, state: &mut State, process: u32, op: StoreOp, name: &str, amount: u64, outcome: LogOutcome) {
        self.core.note(&[30, u64::from(process), op as u64, amount], name, || {
            format!("{}: process {process}: {} {name}: {outcome:?}, {amount}", self.name, op.as_str())
        });
        let Some(log) = &mut state.log else { return };
        if log.len() == LOG_ENTRIES {
            log.pop_front();
        }
        let at = self.core.now();
        log.push_back(LogEntry { at, process, op, name: name.to_owned(), amount, outcome });
    }
}
