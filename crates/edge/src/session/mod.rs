// SPDX-License-Identifier: Apache-2.0
//! The session of one volume: what is sent to its owner and when, what is kept, what is sent again; without a socket, a clock or a runtime.
//!
//! It is fed with what happens (requests of a guest, connections that came about or broke, what a node said, the time) and says what is to be done as a row of
//! [`Action`]s. `now` is the time since any moment that never changes; it must not go back. Whoever drives it calls [`Session::tick`] when [`Session::deadline`] is
//! reached.
//!
//! **What always holds.**
//! - *No two changes that overlap are under way at once*, by bytes. The later waits until the earlier was answered, and of those that wait the earlier goes first. So
//!   an unanswered change is the newest of its bytes, and can be sent again (`docs/adr/0015`). Reads and flushes wait for no change: a flush covers what was
//!   answered, and the owner puts it behind that.
//! - *Every acknowledged change above `safe` is kept*, with its epoch and sequence ([`keep`]). The bytes of what is kept and of what is under way are bounded for the
//!   process ([`budget`]): at the bound changes wait, and a flush of the session's own makes room. A change that
//!   the owner answered with an error is not kept: what it has left behind is anybody's guess, as on a disk.
//! - *After a connect nothing but kept changes is sent* until all that do not count were sent again, in order, and answered. Then go the changes that were sent before
//!   and not answered, and until they are, nothing else. So no read sees what is from before a change that was acknowledged, or from before one that was not and that
//!   an earlier read has seen.
//! - *What counts is forgotten only when it is safe too*: an owner may hold it in RAM alone.
//! - *What an older connection says is not looked at.* Whoever breaks the protocol (an unknown id, another length than was asked, `safe` going back, a checksum) is hung
//!   up on, and connected to again.
//! - *A lost promise, another timeline, a theft end the device*: every request fails, now and later, until a person attaches again.
//! - *A request that takes too long is answered with an error, once.* A change that was never sent is then gone. One that was sent may be applied, and a reader may have
//!   seen it; so it is treated as any other until its answer comes: it holds back what overlaps it, is sent again, and is kept. Only nobody is told. Requests that were
//!   sent are never more than the window, so those are bounded, however long the owner is away.
//!
//! **Bounds.** Requests: what the front ends let in. Under way: the owner's window, and [`WINDOW_BYTES`]. Epochs named: 64 ([`keep`]). Addresses: 64 ([`reach`]).

pub(crate) mod budget;
mod closing;
mod greet;
pub(crate) mod keep;
#[cfg(test)]
mod model;
mod mutant;
mod overlap;
mod pulse;
mod pump;
pub(crate) mod reach;
mod reply;
mod table;
mod terms;
#[cfg(test)]
mod tests;

pub use budget::{Budget, DEFAULT_BUDGET};
pub use terms::{Terms, Wanted};

use budget::Share;
use bytes::Bytes;
use closing::Closing;
use keep::{Change, Kept};
use mutant::Mutant;
use overlap::Busy;
use pulse::Pulse;
use reach::Reach;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use table::{Entry, Stage, Table, Whose};
use varve_block::{BlockError, Result, StatusExtent};
use varve_types::{ClusterId, Epoch, ErrorKind, Sequence, TimelineId, VolumeId};
use varve_wire::attach::Promise;
use varve_wire::transmission::{Ask, FLAG_FUA, MAX_DATA, Request, UNIT, payload_crc};

/// Most bytes that requests under way carry, but for one alone: far below what a node takes before it reads no further, so that a ping is always read.
pub(crate) const WINDOW_BYTES: u64 = 32 << 20;

/// How long a flush of the session's own is not repeated, where the last one was not enough.
pub(crate) const FLUSH_PAUSE: Duration = Duration::from_millis(100);

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// The bytes of a read.
    Data(Bytes),
    /// What a range holds.
    Extents(Vec<StatusExtent>),
}

/// What is to be done. In the order in which they are given.
#[derive(Debug)]
pub enum Action {
    /// Leave the connection that there is, and connect. Say `greeting`; hand on what is answered.
    Connect {
        /// What the connection is called from here on.
        connection: u64,
        /// Where.
        address: String,
        /// What to say first.
        greeting: Bytes,
    },
    /// Send a request on the connection.
    Send {
        /// Its header.
        request: Request,
        /// What follows.
        payload: Bytes,
    },
    /// Leave the connection.
    HangUp,
    /// Answer a request.
    Done {
        /// Which.
        id: u64,
        /// With what.
        result: Result<Answer>,
    },
    /// Something that a person or a program may want to know.
    Event(Event),
}

/// What has happened to a device.
#[derive(Clone, Debug)]
pub enum Event {
    /// It is attached, for the first time.
    Attached,
    /// It has lost its owner: requests wait.
    Lost(String),
    /// An attempt to find the owner has failed.
    Refused(String),
    /// It has its owner again, after so long.
    Back(Duration),
    /// It has another size.
    Resized(u64),
    /// It has failed for good.
    Failed(BlockError),
    /// It was given up, as was asked.
    Detached,
}

/// Whether there is an owner, and who.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is looked for, since then.
    Looking(Duration),
    /// There is one at this address, since then.
    Connected(String, Duration),
    /// The device has failed for good, then.
    Failed(Duration),
    /// It was given up, then.
    Detached(Duration),
}

#[derive(Debug)]
enum Link {
    /// Until the next attempt.
    Pause { until: Duration },
    /// An attempt, which fails then.
    Connecting { until: Duration },
    /// The node was asked.
    Greeting { until: Duration },
    /// There is an owner.
    Up {
        /// Whether everything kept was sent again and answered.
        ready: bool,
        window: usize,
    },
    /// There will be none any more.
    Over,
}

/// What a volume is, which must not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    cluster: ClusterId,
    volume: VolumeId,
    timeline: TimelineId,
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    terms: Terms,
    wanted: Wanted,
    reach: Reach,
    link: Link,
    /// Number of the last connection, which is the generation that it names.
    connection: u64,
    address: String,
    /// What was promised, as the last attach names it.
    named: Vec<Promise>,
    /// Set by the first [`Attached`](varve_wire::attach::Attached).
    known: Option<Known>,
    size: u64,
    read_only: bool,
    /// The last epoch that there was an owner of.
    epoch: Option<Epoch>,
    /// Of that and of each epoch of which something is kept: the highest that was told to be safe.
    told: BTreeMap<Epoch, Sequence>,
    /// Of the last epoch.
    safe: Sequence,
    table: Table,
    /// Changes that were sent on an older connection and not answered, in order.
    again: VecDeque<u64>,
    /// How many of those were sent on this connection and are not answered.
    resent: usize,
    /// Changes that something holds back, in order.
    blocked: VecDeque<u64>,
    /// Everything behind them, in order.
    queue: VecDeque<u64>,
    /// Something has ended that may have held back a blocked one.
    recheck: bool,
    /// A blocked change waits for the budget: so do all behind it.
    held: bool,
    busy: Busy,
    kept: Kept,
    /// The first kept change that was not sent again yet on this connection.
    kept_from: u64,
    share: Share,
    /// Number of the last request.
    order: u64,
    under_way: usize,
    carried: u64,
    pulse: Pulse,
    /// A flush of the session's own is under way.
    flushing: bool,
    /// Something has become safe since the last of them was sent.
    flush_helped: bool,
    /// No flush of the session's own before then: the last one made nothing safe.
    flush_after: Duration,
    /// When to look for requests that take too long.
    overdue_at: Option<Duration>,
    closing: Option<Closing>,
    /// The owner was told at least once that the volume is given up.
    is_told: bool,
    /// It was given up, as was asked.
    is_detached: bool,
    failed: Option<BlockError>,
    began: Duration,
    /// There was an owner, and there is none now.
    is_lost: bool,
    /// Since when there is an owner, or none.
    since: Duration,
    /// Why the last attempt has failed.
    trouble: String,
    stats: Stalls,
    now: Duration,
    actions: VecDeque<Action>,
    #[cfg(test)]
    planted: Option<Mutant>,
}

/// How often and how long there was no owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stalls {
    /// How often there was one again.
    pub reconnects: u64,
    /// The longest that there was none.
    pub longest: Duration,
}

impl Session {
    /// The session of a volume that is asked for at `addresses`. It begins to with the first [`tick`](Self::tick).
    #[must_use]
    pub fn new(wanted: Wanted, terms: Terms, addresses: Vec<String>, budget: Budget, now: Duration) -> Self {
        Self {
            terms,
            wanted,
            reach: Reach::new(addresses),
            link: Link::Pause { until: now },
            connection: 0,
            address: String::new(),
            named: Vec::new(),
            known: None,
            size: 0,
            read_only: false,
            epoch: None,
            told: BTreeMap::new(),
            safe: Sequence(0),
            table: Table::default(),
            again: VecDeque::new(),
            resent: 0,
            blocked: VecDeque::new(),
            queue: VecDeque::new(),
            recheck: false,
            held: false,
            busy: Busy::default(),
            kept: Kept::default(),
            kept_from: 0,
            share: Share::new(budget),
            order: 0,
            under_way: 0,
            carried: 0,
            pulse: Pulse::default(),
            flushing: false,
            flush_helped: false,
            flush_after: Duration::ZERO,
            overdue_at: None,
            closing: None,
            is_told: false,
            is_detached: false,
            failed: None,
            began: now,
            is_lost: false,
            since: now,
            trouble: String::new(),
            stats: Stalls::default(),
            now,
            actions: VecDeque::new(),
            #[cfg(test)]
            planted: None,
        }
    }

    /// Asks for something. The id is that of the [`Action::Done`] which answers it.
    ///
    /// # Errors
    /// At once, where the request is wrong, or the device has failed or is given up.
    pub fn submit(&mut self, now: Duration, ask: Ask, flags: u8, offset: u64, length: u64, data: Bytes) -> Result<u64> {
        self.now = now;
        self.check(ask, offset, length, &data)?;
        self.order += 1;
        let crc = if ask == Ask::Write { payload_crc(&data) } else { 0 };
        let change = Change { ask, flags, offset, length, data, crc };
        let stage = Stage::Waiting;
        let entry = Entry { whose: Whose::Guest, stage, resent: false, order: self.order, since: now, change };
        let id = self.table.put(entry);
        self.queue.push_back(id);
        if self.overdue_at.is_none() {
            self.overdue_at = self.terms.io_timeout.map(|timeout| now + timeout);
        }
        self.pump();
        Ok(id)
    }

    fn check(&self, ask: Ask, offset: u64, length: u64, data: &Bytes) -> Result<()> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.closing.is_some() {
            return Err(self.error(ErrorKind::Conflict, "it is being detached"));
        }
        if self.known.is_none() {
            return Err(self.error(ErrorKind::Unavailable, "it is not attached yet"));
        }
        if matches!(ask, Ask::Ping | Ask::Detach) {
            return Err(self.error(ErrorKind::Invalid, "that is not for its users to ask"));
        }
        if ask == Ask::Flush {
            return Ok(());
        }
        let carried = matches!(ask, Ask::Read | Ask::Write);
        let aligned = offset.is_multiple_of(UNIT) && length.is_multiple_of(UNIT);
        if length == 0 || !aligned || (carried && length > MAX_DATA) {
            return Err(self.error(ErrorKind::Invalid, "a range of no, of too many or of parts of sectors"));
        }
        if ask == Ask::Write && data.len() as u64 != length {
            return Err(self.error(ErrorKind::Invalid, "a write of another length than its data"));
        }
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            return Err(self.error(ErrorKind::Invalid, "a range beyond its end"));
        }
        if ask.is_change() && self.read_only {
            return Err(self.error(ErrorKind::Conflict, "it is read only"));
        }
        Ok(())
    }

    /// What is to be done next, until there is nothing more.
    pub fn action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Whether it was attached and has its size: from then on it can be used.
    #[must_use]
    pub const fn is_attached(&self) -> bool {
        self.known.is_some()
    }

    /// Size in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Whether changes are refused.
    #[must_use]
    pub const fn read_only(&self) -> bool {
        self.read_only
    }

    /// Whether there is an owner.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match &self.link {
            Link::Up { ready: true, .. } => Standing::Connected(self.address.clone(), self.since),
            Link::Over if self.is_detached => Standing::Detached(self.since),
            Link::Over => Standing::Failed(self.since),
            _ => Standing::Looking(self.since),
        }
    }

    /// The error that every request is answered with, once the device has failed for good.
    #[must_use]
    pub const fn failure(&self) -> Option<&BlockError> {
        self.failed.as_ref()
    }

    /// Why the last attempt to find the owner has failed; empty while there is one.
    #[must_use]
    pub fn trouble(&self) -> &str {
        &self.trouble
    }

    /// Bytes of changes that are kept.
    #[must_use]
    pub const fn kept_bytes(&self) -> u64 {
        self.kept.bytes()
    }

    /// How often and how long there was no owner.
    #[must_use]
    pub const fn stalls(&self) -> Stalls {
        self.stats
    }

    /// Ends the device: every request is answered with `error`, now and later.
    pub fn fail(&mut self, now: Duration, error: BlockError) {
        self.now = now;
        if matches!(self.link, Link::Over) {
            return;
        }
        self.actions.push_back(Action::HangUp);
        self.over();
        for id in self.table.ids() {
            if self.table.take(id).is_some_and(|entry| entry.whose == Whose::Guest) {
                self.actions.push_back(Action::Done { id, result: Err(error.clone()) });
            }
        }
        self.failed = Some(error.clone());
        self.actions.push_back(Action::Event(Event::Failed(error)));
    }

    /// Nothing is sent or kept any more.
    fn over(&mut self) {
        self.link = Link::Over;
        (self.under_way, self.carried, self.resent) = (0, 0, 0);
        (self.flushing, self.overdue_at) = (false, None);
        self.again.clear();
        self.blocked.clear();
        self.queue.clear();
        self.busy.clear();
        self.kept.clear();
        self.share.clear();
        self.since = self.now;
    }

    fn error(&self, kind: ErrorKind, why: impl std::fmt::Display) -> BlockError {
        BlockError::new(kind, format!("volume {}: {why}", self.wanted.volume))
    }

    /// Flags that a change of the guest's has.
    #[must_use]
    pub const fn flags(fua: bool) -> u8 {
        if fua { FLAG_FUA } else { 0 }
    }
}
