// SPDX-License-Identifier: Apache-2.0
//! How a volume gets a mirror, and how it parts with it.
//!
//! **Joining.** From one change on, all are sent. What came before it is sealed and put meanwhile: once the store has that, the copy and the store together have
//! everything, and nothing old had to be read or sent. From then on answers wait for the copy, and only then does coordination name the mirror.
//!
//! **Parting.** Answers wait. What was promised because the mirror had it is made stable here; then coordination is told, as often as it takes; then they go on.

use super::link::Link;
use super::{ANSWER_TIME, BeginCopy, MirrorPhase, in_time};
use crate::timeline::Timeline;
use crate::{EngineError, Result};
use std::rc::Rc;
use std::time::Duration;
use varve_coord::{MirrorRecord, Records, VolumeRecord};
use varve_types::branch::{Branch, reached};
use varve_types::mutant::{Mutant, planted};
use varve_types::{ErrorKind, MirrorMode};

/// Between two tries to tell coordination.
const TELL_PAUSE: Duration = Duration::from_millis(200);

fn lost() -> EngineError {
    EngineError::new(ErrorKind::Unavailable, "it was lost while it joined")
}

impl Timeline {
    /// Looks for a mirror where the volume wants one and has none, and parts with one that it does not want any more.
    pub fn mirror_if_due(self: &Rc<Self>) {
        let (wanted, medium, stopped) = {
            let data = self.data.borrow();
            (data.settings.mirror != MirrorMode::None, data.settings.mirror_medium, data.stopped.is_some())
        };
        let link = {
            let link = self.mirror.link.borrow();
            link.as_ref().map(|link| (link.number, link.peer.is_broken(), link.medium == medium))
        };
        if stopped {
            // Whoever goes on with the volume may need what the copy has.
            *self.mirror.link.borrow_mut() = None;
            return;
        }
        match link {
            Some((number, _, as_wanted)) if !wanted || !as_wanted => {
                return self.mirror_part(number, EngineError::new(ErrorKind::Conflict, "it is not wanted any more"));
            }
            Some((number, true, _)) => {
                return self.mirror_part(number, EngineError::new(ErrorKind::Unavailable, "its connection is broken"));
            }
            _ => {}
        }
        let is_alone = self.mirror.phase.get() == MirrorPhase::Alone;
        if !wanted || !is_alone || self.mirror.joining.replace(true) {
            return;
        }
        let this = Rc::clone(self);
        self.context.env.spawn(Box::pin(async move {
            if let Err(error) = this.join().await {
                tracing::debug!(timeline = %this.id, %error, "no mirror was found");
            }
            this.mirror.joining.set(false);
        }));
    }

    async fn join(self: &Rc<Self>) -> Result<()> {
        let peer = self.context.mirrors.borrow().as_ref().and_then(|nodes| nodes.choose(self.volume));
        let Some(peer) = peer else {
            return Err(EngineError::new(ErrorKind::Unavailable, "no other node can keep a copy now"));
        };
        let number = self.mirror.links.get() + 1;
        self.mirror.links.set(number);
        // In one step: every change behind `base` goes to the link.
        let (base, medium) = {
            let data = self.data.borrow();
            (data.last, data.settings.mirror_medium)
        };
        let begin = BeginCopy { volume: self.volume, timeline: self.id, epoch: self.epoch, base, medium };
        *self.mirror.link.borrow_mut() = Some(Link::new(number, Rc::clone(&peer), medium, base));
        self.mirror.phase.set(MirrorPhase::Joining);
        let joined = self.join_link(number, begin).await;
        if let Err(error) = &joined {
            self.mirror_part(number, error.clone());
        }
        joined
    }

    async fn join_link(self: &Rc<Self>, number: u64, begin: BeginCopy) -> Result<()> {
        let Some(peer) = self.linked(number) else { return Err(lost()) };
        let begun = in_time(&*self.context.env, peer.begin(begin), ANSWER_TIME).await;
        if begun.as_ref().is_err_and(|error| error.kind() == ErrorKind::NoSpace)
            && let Some(nodes) = &*self.context.mirrors.borrow()
        {
            nodes.is_full(peer.node());
        }
        let begun = begun?;
        {
            let mut link = self.mirror.link.borrow_mut();
            let link = link.as_mut().filter(|link| link.number == number).ok_or_else(lost)?;
            link.begin(begun);
        }
        self.mirror_send();
        self.seal_now();
        if !planted(Mutant::JoinUnput) {
            self.until_counted(begin.base).await?;
        }
        if !self.is_linked(number) {
            return Err(lost());
        }
        // From here on answers wait for it; and only when it has all that was answered before is it named.
        self.mirror.phase.set(MirrorPhase::InSync);
        let last = self.data.borrow().last;
        self.mirror_send();
        let has_all = || {
            let data = self.data.borrow();
            if let Err(error) = data.check() {
                return Some(Err(error));
            }
            if !self.is_linked(number) {
                return Some(Err(lost()));
            }
            // What was flushed meanwhile too.
            self.mirror_has(last, data.counted, true).then_some(Ok(()))
        };
        self.changed.until(has_all).await?;
        let record = MirrorRecord { node: peer.node(), incarnation: begun.incarnation, timeline: self.id };
        self.tell(Some((number, record))).await?;
        if !self.is_linked(number) {
            return Err(lost());
        }
        self.mirror.is_recorded.set(true);
        self.mirror.count(|counts| counts.joined += 1);
        reached(Branch::MirrorJoined);
        tracing::info!(volume = %self.volume, node = %peer.node(), "a mirror is in sync");
        Ok(())
    }

    pub(super) fn is_linked(&self, number: u64) -> bool {
        self.linked(number).is_some()
    }

    fn linked(&self, number: u64) -> Option<Rc<dyn super::MirrorPeer>> {
        let link = self.mirror.link.borrow();
        link.as_ref().filter(|link| link.number == number).map(|link| Rc::clone(&link.peer))
    }

    /// Has coordination name the mirror of a link, if that still stands; or none.
    ///
    /// One at a time; and that there is none is written also where the record says so already: a question for a mirror to be named of which nobody knows what came may
    /// still be on its way, and finds another revision then.
    async fn tell(&self, named: Option<(u64, MirrorRecord)>) -> Result<()> {
        let _turn = self.mirror.telling.take().await;
        let (epoch, writer, mirror) = (self.epoch, self.writer, named.map(|(_, mirror)| mirror));
        let change = |record: &mut VolumeRecord| -> Result<()> {
            if named.is_some_and(|(number, _)| !self.is_linked(number)) {
                return Err(lost());
            }
            if record.epoch != epoch || record.writer != writer {
                let text = format!("volume {}: it was opened elsewhere, in epoch {}", self.volume, record.epoch);
                return Err(EngineError::new(ErrorKind::Fenced, text));
            }
            let is_of_other = record.mirror.is_some_and(|known| known.timeline != self.id);
            if record.shown == self.id && (mirror.is_some() || !is_of_other) {
                record.mirror = mirror;
            }
            Ok(())
        };
        let records = Records::new(&*self.context.coord);
        match named {
            Some(_) => records.modify_volume(self.volume, change).await.map(drop),
            None => records.rewrite_volume(self.volume, change).await.map(drop),
        }
    }

    /// Begins to part with the mirror, from where it can not be done at once.
    pub(super) fn mirror_part_later(self: &Rc<Self>, number: u64, why: EngineError) {
        let this = Rc::clone(self);
        self.context.env.spawn(Box::pin(async move { this.mirror_part(number, why) }));
    }

    /// Parts with a mirror that failed.
    pub(super) fn mirror_part(self: &Rc<Self>, number: u64, why: EngineError) {
        let mirror = &self.mirror;
        let node = match self.linked(number) {
            Some(peer) => peer.node(),
            None => return,
        };
        *mirror.link.borrow_mut() = None;
        mirror.lease.end();
        let was = mirror.phase.get();
        mirror.is_recorded.set(false);
        if was != MirrorPhase::InSync {
            reached(Branch::MirrorJoinFailed);
            tracing::debug!(volume = %self.volume, %node, %why, "a mirror did not join");
            mirror.phase.set(MirrorPhase::Alone);
            return self.changed.ring();
        }
        tracing::warn!(volume = %self.volume, %node, %why, "the mirror is lost");
        mirror.count(|counts| counts.lost += 1);
        reached(Branch::MirrorParted);
        mirror.phase.set(MirrorPhase::Parting);
        self.changed.ring();
        let this = Rc::clone(self);
        self.context.env.spawn(Box::pin(async move { this.part().await }));
    }

    async fn part(self: &Rc<Self>) {
        // Whatever the mirror has vouched for: from now on nobody but this node does.
        let flushed = if planted(Mutant::PartUnflushed) { Ok(()) } else { self.flush_here().await };
        if let Err(error) = flushed {
            tracing::error!(volume = %self.volume, %error, "what its mirror had can not be made stable");
            return self.stop(error);
        }
        loop {
            match self.tell(None).await {
                Ok(()) => break,
                Err(error) if error.kind() == ErrorKind::Fenced || error.kind() == ErrorKind::NotFound => {
                    return self.stop(error);
                }
                Err(error) => tracing::debug!(volume = %self.volume, %error, "coordination can not be told yet"),
            }
            self.context.env.sleep(TELL_PAUSE).await;
            if self.is_stopped() {
                return;
            }
        }
        self.mirror.phase.set(MirrorPhase::Alone);
        self.changed.ring();
    }
}
