// SPDX-License-Identifier: Apache-2.0
//! The mirror of a volume: another node that keeps a copy of its unsealed tail, so that a change outlives the node that took it.
//!
//! The owner sends every change, as the record that its journal has, to a [`MirrorPeer`], and tells it what the store has by now; the far end keeps them in RAM
//! ([`Copies`]). With `mirror = sync` a change is answered once both have it, with `async` a flush is.
//!
//! A mirror goes through these phases:
//! - *alone*: nobody has a copy that counts. Changes go on (or wait, where the volume is `mirror-strict`), and a mirror is looked for ([`join`]).
//! - *joining*: changes are sent from some change on; what is before it is sealed and put meanwhile, so that nothing old has to be sent.
//! - *in sync*: the record of the volume in coordination names the mirror, by the process that has the copy. Answers wait for it.
//! - *parting*: it did not answer, or refused. Answers wait until the record names it no more, and the journal has made stable what was promised.
//!
//! Always holds: while the record names a mirror, every change that was answered is in its copy, or in the store, or was answered before it was named and is in
//! the store; so whoever takes over with that copy has everything. The record ceases to name a mirror before a change is answered without it.
//!
//! A crash of the owner leaves the record: the next opening, here or at the mirror, asks the copy before it serves ([`adopt`]). A crash of the mirror's
//! process loses the copy; its incarnation is another then, and nobody takes that for a copy.

mod adopt;
mod copies;
mod join;
mod lease;

pub use copies::{Copies, CopyCounts};

use crate::context::Turn;
use crate::stages::Stage;
use crate::timeline::{Data, Timeline};
use crate::{EngineError, Later, Result};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;
use varve_env::{Env, LocalFuture};
use varve_format::journal::Body;
use varve_types::mutant::{Mutant, planted};
use varve_types::{Epoch, ErrorKind, IncarnationId, MirrorMode, NodeId, Sequence, TimelineId, VolumeId};

/// How long an answer of a mirror is waited for.
const ANSWER_TIME: Duration = Duration::from_secs(1);
/// Bytes that may wait until a mirror that was asked to begin has answered.
const MOST_WAITING: u64 = 16 << 20;
/// Bytes of one delivery; one change may go beyond.
const MOST_DELIVERED: u64 = 8 << 20;

/// A change of a timeline, as another node keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailRecord {
    /// The epoch that it was made in.
    pub epoch: Epoch,
    /// Its place in the stream.
    pub sequence: Sequence,
    /// Every change up to this one was on stable media when it was made.
    pub flushed_through: Sequence,
    /// What it is: a write, a hole or a mark.
    pub body: Body,
    /// The blocks of a write.
    pub data: Bytes,
}

impl TailRecord {
    /// Bytes that it is counted as.
    #[must_use]
    pub fn cost(&self) -> u64 {
        256 + self.data.len() as u64
    }
}

/// Asks for a copy to be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeginCopy {
    /// The volume.
    pub volume: VolumeId,
    /// Its timeline.
    pub timeline: TimelineId,
    /// The epoch of the owner.
    pub epoch: Epoch,
    /// Changes behind this one will follow.
    pub base: Sequence,
}

/// A copy was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// The process that keeps it.
    pub incarnation: IncarnationId,
    /// Bytes that may be there at once.
    pub credits: u64,
}

/// Changes for a copy, in order and without a gap.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The timeline.
    pub timeline: TimelineId,
    /// The epoch of the owner.
    pub epoch: Epoch,
    /// The change before the first of them.
    pub previous: Sequence,
    /// The changes.
    pub records: Vec<TailRecord>,
}

/// What a mirror has of a timeline, for who opens it anew.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The process that was asked.
    pub incarnation: IncarnationId,
    /// The changes of its copy, of which all may be in the store; `None` where it has no copy, which says nothing of what there was.
    pub records: Option<Vec<TailRecord>>,
}

/// Another node, as the keeper of copies. What is asked in one order comes there in that order, or not at all.
pub trait MirrorPeer {
    /// Which node it is.
    fn node(&self) -> NodeId;
    /// Whether it is known to answer nothing any more.
    fn is_broken(&self) -> bool;
    /// Begins a copy in the place of whatever it had of the timeline. `Fenced` where it knows a higher epoch.
    fn begin(&self, begin: BeginCopy) -> LocalFuture<Result<Begun>>;
    /// Completes once the copy has all of the changes. `Fenced` where it knows a higher epoch.
    fn deliver(&self, delivery: Delivery) -> LocalFuture<Result<()>>;
    /// Says that the store has all changes up to one.
    fn release(&self, timeline: TimelineId, epoch: Epoch, through: Sequence);
    /// Gives what there is of a timeline, and takes nothing of lower epochs from then on.
    fn fetch(&self, timeline: TimelineId, epoch: Epoch) -> LocalFuture<Result<Fetched>>;
    /// Promises not to serve a timeline itself for a while. `Fenced` where it knows a higher epoch.
    fn lease(&self, timeline: TimelineId, epoch: Epoch) -> LocalFuture<Result<()>>;
}

/// The nodes that may keep copies.
pub trait MirrorNodes {
    /// One for a volume, if there is one now.
    fn choose(&self, volume: VolumeId) -> Option<Rc<dyn MirrorPeer>>;
    /// One by its id, if it can be reached now.
    fn find(&self, node: NodeId) -> Option<Rc<dyn MirrorPeer>>;
}

/// How a volume's mirror is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MirrorPhase {
    /// Nobody has a copy that counts.
    #[default]
    Alone,
    /// A copy is being begun.
    Joining,
    /// A copy counts.
    InSync,
    /// The mirror was lost, and coordination is being told.
    Parting,
}

/// How a volume's mirror is, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MirrorState {
    /// The phase.
    pub phase: MirrorPhase,
    /// The node, where there is one.
    pub node: Option<NodeId>,
    /// Bytes that it has.
    pub bytes: u64,
    /// What it has come to.
    pub counts: MirrorCounts,
}

/// What a volume's mirrors have come to since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MirrorCounts {
    /// How often one came in sync.
    pub joined: u64,
    /// How often one that was in sync was parted with.
    pub lost: u64,
    /// Leases that it gave.
    pub leases: u64,
    /// Answers that had to wait for a lease.
    pub lease_waits: u64,
}

/// The way to the node that keeps the copy.
struct Link {
    /// Tells it from those before it.
    number: u64,
    peer: Rc<dyn MirrorPeer>,
    /// What it answered to the begin.
    begun: Option<Begun>,
    /// Changes that are to be sent.
    queued: Vec<TailRecord>,
    /// The last change that was sent, or that the copy begins behind.
    sent: Sequence,
    /// The last change that it has.
    acked: Sequence,
    /// The last change of each delivery that the store does not have yet, and the bytes of that.
    unreleased: VecDeque<(Sequence, u64)>,
    /// Bytes queued or there.
    bytes: u64,
    /// Of these, bytes that were sent: what the credits are for.
    there: u64,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Mirror {
    phase: Cell<MirrorPhase>,
    link: RefCell<Option<Link>>,
    links: Cell<u64>,
    /// Whether the record names it: only then does it count.
    is_recorded: Cell<bool>,
    /// Somebody looks for one.
    joining: Cell<bool>,
    /// Whose turn it is to have coordination name one, or none.
    telling: Turn,
    lease: lease::Lease,
    counts: Cell<MirrorCounts>,
}

impl Link {
    /// The next changes to be sent, as many as one delivery takes.
    fn next_delivery(&mut self, timeline: TimelineId, epoch: Epoch) -> Option<Delivery> {
        let credits = self.begun?.credits;
        let (mut bytes, mut count) = (0, 0);
        while bytes < MOST_DELIVERED && count < self.queued.len() {
            bytes += self.queued[count].cost();
            count += 1;
        }
        if self.there > 0 && self.there + bytes > credits {
            return None;
        }
        let later = self.queued.split_off(count);
        let records = std::mem::replace(&mut self.queued, later);
        let last = records.last()?.sequence;
        self.unreleased.push_back((last, bytes));
        self.there += bytes;
        let previous = std::mem::replace(&mut self.sent, last);
        Some(Delivery { timeline, epoch, previous, records })
    }
}

impl Mirror {
    /// Whether changes of so many bytes may be made now.
    pub fn has_room(&self, bytes: u64) -> bool {
        let link = self.link.borrow();
        let Some(link) = link.as_ref() else { return true };
        match link.begun {
            // A change that is larger than all credits is let through alone.
            Some(begun) => link.bytes == 0 || link.bytes + bytes <= begun.credits,
            None => true,
        }
    }

    /// Whether coordination names it, or may.
    fn may_be_named(&self) -> bool {
        matches!(self.phase.get(), MirrorPhase::InSync | MirrorPhase::Parting)
    }

    /// The last change that the next owner has, whoever that is, where this node's journal has all up to `here` on stable media: what the mirror has, while it is
    /// named; what both have, while it may be; what the journal has, without one.
    pub fn safe(&self, here: Sequence) -> Sequence {
        if !self.may_be_named() {
            return here;
        }
        // Of one that is being parted with nobody knows what it has.
        let there = self.link.borrow().as_ref().map_or(Sequence(0), |link| link.acked);
        if self.is_recorded.get() { there } else { there.min(here) }
    }

    fn state(&self) -> MirrorState {
        let link = self.link.borrow();
        let (node, bytes) = link.as_ref().map_or((None, 0), |link| (Some(link.peer.node()), link.bytes));
        MirrorState { phase: self.phase.get(), node, bytes, counts: self.counts.get() }
    }

    fn count(&self, change: impl FnOnce(&mut MirrorCounts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
    }
}

impl Timeline {
    /// How its mirror is.
    pub fn mirror_state(&self) -> MirrorState {
        self.mirror.state()
    }

    /// Takes in a change that was made, for the mirror. Nothing where there is none.
    pub fn mirror_note(&self, data: &Data, sequence: Sequence, body: impl FnOnce() -> (Body, Bytes)) {
        if let Some(link) = self.mirror.link.borrow_mut().as_mut() {
            let (body, bytes) = body();
            let (epoch, flushed_through) = (self.epoch, data.flushed);
            let record = TailRecord { epoch, sequence, flushed_through, body, data: bytes };
            link.bytes += record.cost();
            link.queued.push(record);
        }
    }

    /// Sends what was taken in.
    pub fn mirror_send(self: &Rc<Self>) {
        loop {
            let (number, last, sending) = {
                let mut link = self.mirror.link.borrow_mut();
                let Some(link) = link.as_mut() else { return };
                if link.begun.is_none() {
                    if link.bytes > MOST_WAITING {
                        let slow = EngineError::new(ErrorKind::Unavailable, "it does not begin in time");
                        self.mirror_part_later(link.number, slow);
                    }
                    return;
                }
                match link.next_delivery(self.id, self.epoch) {
                    Some(delivery) => (link.number, link.sent, link.peer.deliver(delivery)),
                    None if link.queued.is_empty() => return,
                    None => break,
                }
            };
            let this = Rc::clone(self);
            self.context.env.spawn(Box::pin(async move {
                let _timed = this.context.timed(Stage::Mirror);
                match this.delivered(number, sending).await {
                    Ok(()) => this.mirror_acked(number, last),
                    Err(error) => this.mirror_part(number, error),
                }
            }));
        }
        // It has as much as it may have: room comes with what the store has.
        self.seal_now();
    }

    /// Waits for the answer to a delivery: for so long since it has answered anything.
    async fn delivered(&self, number: u64, mut sending: LocalFuture<Result<()>>) -> Result<()> {
        let acked = || self.mirror.link.borrow().as_ref().filter(|link| link.number == number).map(|link| link.acked);
        loop {
            let before = acked();
            match futures_util::future::select(sending, self.context.env.sleep(ANSWER_TIME)).await {
                futures_util::future::Either::Left((answer, _)) => return answer,
                futures_util::future::Either::Right(_) if acked() == before => return Err(too_late()),
                futures_util::future::Either::Right((_, rest)) => sending = rest,
            }
        }
    }

    fn mirror_acked(&self, number: u64, last: Sequence) {
        if let Some(link) = self.mirror.link.borrow_mut().as_mut().filter(|link| link.number == number) {
            let last = if planted(Mutant::AckAhead) { link.sent } else { last };
            link.acked = link.acked.max(last);
        }
        self.changed.ring();
    }

    /// The store has more: the copy of that may go.
    pub fn mirror_release(self: &Rc<Self>, counted: Sequence) {
        if let Some(link) = self.mirror.link.borrow_mut().as_mut() {
            while let Some((_, bytes)) = link.unreleased.pop_front_if(|(last, _)| *last <= counted) {
                link.bytes -= bytes;
                link.there -= bytes;
            }
            if link.begun.is_some() {
                link.peer.release(self.id, self.epoch, counted);
            }
        }
        self.mirror_send();
    }

    /// What an answer has to wait for, if it has to: of a change where `flush` is not set, else of a flush.
    pub fn mirror_wait(self: &Rc<Self>, through: Sequence, flush: bool) -> Option<Later<()>> {
        let mode = self.data.borrow().settings.mirror;
        // One that is not wanted any more may take over as long as it is named.
        let is_left_out = match mode {
            MirrorMode::None => !self.mirror.may_be_named(),
            MirrorMode::Async => !flush,
            MirrorMode::Sync => false,
        };
        if is_left_out || planted(Mutant::AnswerBeforeCopy) {
            return None;
        }
        if let Some(done) = self.mirrored(through) {
            return done.is_err().then(|| Box::pin(std::future::ready(done)) as Later<()>);
        }
        let this = Rc::clone(self);
        Some(Box::pin(async move { this.changed.until(|| this.mirrored(through)).await }))
    }

    /// Whether the answer of a change may be given, as far as the mirror is concerned.
    fn mirrored(&self, through: Sequence) -> Option<Result<()>> {
        let data = self.data.borrow();
        if let Err(error) = data.check() {
            return Some(Err(error));
        }
        let link = self.mirror.link.borrow();
        let has_it = link.as_ref().is_some_and(|link| link.acked >= through);
        match self.mirror.phase.get() {
            MirrorPhase::InSync if has_it => Some(Ok(())),
            MirrorPhase::Parting if planted(Mutant::PartSilently) => Some(Ok(())),
            MirrorPhase::InSync | MirrorPhase::Parting => None,
            // In the store it is safer than in any copy.
            MirrorPhase::Alone | MirrorPhase::Joining => {
                let waits = data.settings.mirror_strict && data.settings.mirror != MirrorMode::None;
                (!waits || data.counted >= through).then_some(Ok(()))
            }
        }
    }
}

/// Waits for an answer of a mirror, for so long.
async fn in_time<T: 'static>(env: &dyn Env, answer: LocalFuture<Result<T>>) -> Result<T> {
    let late = env.sleep(ANSWER_TIME);
    match futures_util::future::select(answer, late).await {
        futures_util::future::Either::Left((answer, _)) => answer,
        futures_util::future::Either::Right(_) => Err(too_late()),
    }
}

fn too_late() -> EngineError {
    EngineError::new(ErrorKind::Unavailable, format!("it did not answer within {ANSWER_TIME:?}"))
}
