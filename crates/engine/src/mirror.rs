// SPDX-License-Identifier: Apache-2.0
//! The mirror of a volume: another node that keeps a copy of its unsealed tail, so that a change outlives the node that took it.
//!
//! The owner sends every change, as the record that its journal has, to a [`MirrorPeer`], and tells it what the store has by now; the far end keeps them ([`Copies`]) in RAM,
//! or in its journal. With `mirror = sync` a change is answered once both have it, with `async` a flush is; and a flush, where the copy is on disk, once it is on stable media there.
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
//! A crash of the owner leaves the record: the next opening, here or at the mirror, asks the copy before it serves ([`adopt`]). A crash of the mirror's process loses a
//! copy in RAM, a loss of power may lose some of one on disk; its incarnation is another then, and nobody takes that for a copy.

mod adopt;
mod copies;
mod join;
mod lease;
mod link;
mod on_disk;
mod peer;

pub use copies::{Copies, CopyCounts};
pub use on_disk::DiskCopies;
pub use peer::{BeginCopy, Begun, Delivery, Fetched, MirrorNodes, MirrorPeer, Release, TailRecord};

use self::link::Link;
use crate::context::Turn;
use crate::stages::Stage;
use crate::timeline::{Data, Timeline};
use crate::{EngineError, Later, Result};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use varve_env::{Env, LocalFuture};
use varve_format::journal::Body;
use varve_types::branch::{Branch, reached};
use varve_types::mutant::{Mutant, planted};
use varve_types::{ErrorKind, MirrorMedium, MirrorMode, NodeId, Sequence};

/// How long an answer of a mirror is waited for.
const ANSWER_TIME: Duration = Duration::from_secs(1);
/// How long it may take until what a copy has is on stable media.
const SYNC_TIME: Duration = Duration::from_secs(2);
/// Bytes that may wait until a mirror that was asked to begin has answered.
const MOST_WAITING: u64 = 16 << 20;

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
    /// Where that keeps it.
    pub medium: MirrorMedium,
    /// Bytes that it has.
    pub bytes: u64,
    /// Bytes that it may have.
    pub credits: u64,
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

impl Mirror {
    /// Whether changes of so many bytes may be made now.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.link.borrow().as_ref().is_none_or(|link| link.has_room(bytes))
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
        let (phase, counts) = (self.phase.get(), self.counts.get());
        match &*link {
            None => MirrorState { phase, counts, ..MirrorState::default() },
            Some(link) => MirrorState {
                phase,
                node: Some(link.peer.node()),
                medium: link.medium,
                bytes: link.bytes(),
                credits: link.credits(),
                counts,
            },
        }
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
            link.queue(TailRecord { epoch, sequence, flushed_through, body, data: bytes });
        }
    }

    /// Sends what was taken in, as far as there are credits for it. Where they are used up, room comes with what the store has.
    pub fn mirror_send(self: &Rc<Self>) {
        loop {
            let (number, last, sending) = {
                let mut link = self.mirror.link.borrow_mut();
                let Some(link) = link.as_mut() else { return };
                if link.begun.is_none() {
                    if link.bytes() > MOST_WAITING {
                        let slow = EngineError::new(ErrorKind::Unavailable, "it does not begin in time");
                        self.mirror_part_later(link.number, slow);
                    }
                    return;
                }
                match link.next_delivery(self.id, self.epoch) {
                    Some(delivery) => (link.number, link.sent, link.peer.deliver(delivery)),
                    None if link.is_used_up() => break,
                    None => return,
                }
            };
            let this = Rc::clone(self);
            self.context.env.spawn(Box::pin(async move {
                let _timed = this.context.timed(Stage::Mirror);
                match this.delivered(number, sending).await {
                    Ok(more) => this.mirror_acked(number, last, more),
                    Err(error) => this.mirror_part(number, error),
                }
            }));
        }
        // What is on its way there makes some already.
        if self.data.borrow().sealed.is_empty() {
            reached(Branch::CreditsUsedUp);
            self.seal_now();
        }
    }

    /// Waits for the answer to a delivery: for so long since it has answered anything.
    async fn delivered(&self, number: u64, mut sending: LocalFuture<Result<u64>>) -> Result<u64> {
        let acked = || self.mirror.link.borrow().as_ref().filter(|link| link.number == number).map(|link| link.acked);
        loop {
            let before = acked();
            match futures_util::future::select(sending, self.context.env.sleep(ANSWER_TIME)).await {
                futures_util::future::Either::Left((answer, _)) => return answer,
                futures_util::future::Either::Right(_) if acked() == before => return Err(too_late(ANSWER_TIME)),
                futures_util::future::Either::Right((_, rest)) => sending = rest,
            }
        }
    }

    fn mirror_acked(self: &Rc<Self>, number: u64, last: Sequence, more: u64) {
        let counted = self.data.borrow().counted;
        let mut is_put = false;
        if let Some(link) = self.mirror.link.borrow_mut().as_mut().filter(|link| link.number == number) {
            let last = if planted(Mutant::AckAhead) { link.sent } else { last };
            link.acked(last, more);
            is_put = link.has_put(counted);
        }
        self.changed.ring();
        if is_put {
            // The store had it before it was sent.
            self.mirror_release(counted);
        } else {
            self.mirror_send();
        }
    }

    /// Has the mirror bring to stable media what somebody waits for: one request at a time, for all who wait.
    fn mirror_sync(self: &Rc<Self>) {
        let (number, through, syncing) = {
            let mut link = self.mirror.link.borrow_mut();
            let Some(link) = link.as_mut() else { return };
            let is_due = link.wanted_stable > link.stable && link.sent > link.stable;
            if link.is_syncing || !is_due || link.begun.is_none() {
                return;
            }
            link.is_syncing = true;
            (link.number, link.sent, link.peer.sync(self.id, self.epoch, link.sent))
        };
        let this = Rc::clone(self);
        self.context.env.spawn(Box::pin(async move {
            match in_time(&*this.context.env, syncing, SYNC_TIME).await {
                Ok(()) => {
                    if let Some(link) = this.mirror.link.borrow_mut().as_mut().filter(|link| link.number == number) {
                        (link.stable, link.is_syncing) = (through, false);
                    }
                    this.changed.ring();
                    this.mirror_sync();
                }
                Err(error) => this.mirror_part(number, error),
            }
        }));
    }

    /// The store has more: the copy of that may go.
    pub fn mirror_release(self: &Rc<Self>, counted: Sequence) {
        if let Some(link) = self.mirror.link.borrow_mut().as_mut() {
            let back = link.release(counted);
            if link.begun.is_some() {
                link.peer.release(Release { timeline: self.id, epoch: self.epoch, through: counted, back });
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
        if let Some(done) = self.mirrored(through, flush) {
            return done.is_err().then(|| Box::pin(std::future::ready(done)) as Later<()>);
        }
        let this = Rc::clone(self);
        Some(Box::pin(async move { this.changed.until(|| this.mirrored(through, flush)).await }))
    }

    /// Whether the mirror has all up to a change; where `stable` is set, as durably as the volume asks, or else is asked to. What counts it need not have.
    fn mirror_has(self: &Rc<Self>, through: Sequence, counted: Sequence, stable: bool) -> bool {
        {
            let mut link = self.mirror.link.borrow_mut();
            let Some(link) = link.as_mut().filter(|link| link.acked >= through || stable) else { return false };
            let waits = stable && link.medium == MirrorMedium::Disk && through > counted.max(link.stable);
            if !waits || planted(Mutant::FlushUnsyncedCopy) {
                return link.acked >= through;
            }
            link.wanted_stable = link.wanted_stable.max(through);
        }
        self.mirror_sync();
        false
    }

    /// Whether the answer of a change, or of a flush, may be given, as far as the mirror is concerned. Has it done where it may not.
    fn mirrored(self: &Rc<Self>, through: Sequence, flush: bool) -> Option<Result<()>> {
        let data = self.data.borrow();
        if let Err(error) = data.check() {
            return Some(Err(error));
        }
        let has_it = self.mirror_has(through, data.counted, flush);
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
async fn in_time<T: 'static>(env: &dyn Env, answer: LocalFuture<Result<T>>, time: Duration) -> Result<T> {
    let late = env.sleep(time);
    match futures_util::future::select(answer, late).await {
        futures_util::future::Either::Left((answer, _)) => answer,
        futures_util::future::Either::Right(_) => Err(too_late(time)),
    }
}

fn too_late(time: Duration) -> EngineError {
    EngineError::new(ErrorKind::Unavailable, format!("it did not answer within {time:?}"))
}
