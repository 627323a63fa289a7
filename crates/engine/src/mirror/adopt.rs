// SPDX-License-Identifier: Apache-2.0
//! What a mirror has of a timeline comes into the own journal, before the timeline is opened from it.
//!
//! Always holds when it ends well: the own journal has, on stable media, every change that the copy has and it did not.
//!
//! A take-over that does not come about gives the copy back: its owner may go on to use it once coordination says that it is the owner still.

use super::copies::Held;
use super::{ANSWER_TIME, Copies, Fetched, TailRecord, in_time};
use crate::context::Context;
use crate::journal::Replayed;
use crate::{EngineError, Result};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;
use varve_coord::{CoordError, MirrorRecord, Records, VolumeRecord};
use varve_format::crc::crc;
use varve_format::journal::Body;
use varve_types::branch::{Branch, reached, reached_if};
use varve_types::mutant::{Mutant, planted};
use varve_types::{BLOCK, Epoch, ErrorKind, TimelineId};

/// Between two tries to find out whether a take-over came about.
const GIVE_BACK_PAUSE: Duration = Duration::from_secs(1);

impl Context {
    /// Takes what this node's own copy has of a volume, which it is about to take over, and lets nothing more come of its owner.
    ///
    /// # Errors
    /// `Conflict` where it has no copy that counts.
    pub async fn adopt_own(&self, record: &VolumeRecord, epoch: Epoch) -> Result<()> {
        let none = || {
            let text = format!("volume {}: this node has no copy of it that is in sync", record.name);
            EngineError::new(ErrorKind::Conflict, text)
        };
        let mirror = record.counting_mirror().ok_or_else(none)?;
        let copies = self.copies_of(&mirror).ok_or_else(none)?;
        let held = copies.take(record.shown, epoch, mirror.incarnation).map_err(|error| match error.kind() {
            ErrorKind::NotFound => none(),
            _ => error,
        })?;
        if planted(Mutant::TakeWithoutCopy) {
            return Ok(());
        }
        // Nothing is promised to the owner any more; what was is kept.
        let leased = copies.leased_for(record.shown, self.env.now());
        if !leased.is_zero() && !planted(Mutant::ServeBesideLease) {
            reached(Branch::LeaseWaitedOut);
            self.env.sleep(leased).await;
        }
        match held {
            Held::Ram(records) => self.adopt(record.shown, records).await,
            Held::Disk => {
                reached(Branch::TakenFromDisk);
                self.settle_tail(record.shown).await
            }
        }
    }

    /// A take-over of a volume, which was read as `known`, did not come about, as far as is known: its owner is to get the use of the copy back. Until coordination is asked that is
    /// put off: the take-over may have come about all the same. What is asked is to write the record as it is: a question of which nobody knows what came finds another revision then.
    pub fn give_back(self: &Rc<Self>, known: &VolumeRecord) {
        let copies = self.copies.borrow().clone();
        let Some((copies, fence)) = copies.and_then(|copies| copies.fence(known.shown).map(|fence| (copies, fence)))
        else {
            return;
        };
        let (this, id, timeline, epoch) = (Rc::clone(self), known.id, known.shown, known.epoch);
        self.env.spawn(Box::pin(async move {
            while copies.fence(timeline) == Some(fence) {
                let records = Records::new(&*this.coord);
                let found = records.rewrite_volume(id, |record| Ok::<_, CoordError>(record.epoch)).await;
                match found {
                    Ok((_, _, now)) if now == epoch => return copies.unfence(timeline, fence, epoch),
                    Ok(_) | Err(CoordError::NotFound(_)) => return,
                    Err(_) => this.env.sleep(GIVE_BACK_PAUSE).await,
                }
            }
        }));
    }

    /// The copies of this node, if one that a record names is among them.
    fn copies_of(&self, mirror: &MirrorRecord) -> Option<Rc<Copies>> {
        let copies = self.copies.borrow().clone().filter(|_| Some(mirror.node) == self.node.get())?;
        (copies.is_here(mirror.incarnation) || planted(Mutant::TakeWithAnyCopy)).then_some(copies)
    }

    /// Takes what the mirror of a volume, which this node opens anew, has of it. A mirror whose process is another by now has lost it.
    ///
    /// # Errors
    /// `Unavailable` while the mirror does not answer: it may have what this node has lost.
    pub async fn adopt_from_mirror(&self, record: &VolumeRecord, epoch: Epoch) -> Result<()> {
        let Some(mirror) = record.counting_mirror().filter(|_| !planted(Mutant::ReopenAlone)) else { return Ok(()) };
        if Some(mirror.node) == self.node.get() {
            // It has taken the volume over itself, and may not have heard that it was done: it took the copy in before it asked, and let go of that when it heard nothing.
            return match self.copies_of(&mirror) {
                Some(_) => self.adopt_own(record, epoch).await,
                // A process before this one did: its journal has it.
                None => Ok(()),
            };
        }
        let peer = self.mirrors.borrow().as_ref().and_then(|nodes| nodes.find(mirror.node));
        let waits = |why: &str| {
            reached(Branch::MirrorAwaited);
            let text = format!(
                "volume {} waits for its mirror, node {}, which may have more of it: {why}",
                record.name, mirror.node
            );
            EngineError::new(ErrorKind::Unavailable, text)
        };
        let Some(peer) = peer else { return Err(waits("it is not there")) };
        let asked = peer.fetch(record.shown, epoch, mirror.incarnation);
        let fetched = in_time(&*self.env, asked, ANSWER_TIME).await.map_err(|error| match error.kind() {
            ErrorKind::Fenced => error,
            _ => waits(&error.to_string()),
        })?;
        let Fetched { is_whole, records } = fetched;
        if !is_whole {
            reached(Branch::MirrorForgot);
            reached_if(!records.is_empty(), Branch::MirrorKnewSome);
            tracing::warn!(
                volume = %record.name, node = %mirror.node, left = records.len(),
                "the mirror has lost its copy, or may have lost some of it: the journal, and what it has left, are all that there is"
            );
        }
        reached_if(is_whole && !records.is_empty(), Branch::MirrorKnewMore);
        self.adopt(record.shown, records).await
    }

    async fn adopt(&self, timeline: TimelineId, records: Vec<TailRecord>) -> Result<()> {
        let journal = self.journals.choose(timeline);
        let tails = self.journals.tails(&journal);
        let has: BTreeSet<_> = tails.of(timeline).iter().map(|it| (it.record.epoch, it.record.sequence)).collect();
        let mut lacking = Vec::new();
        for record in records {
            check(timeline, &record)?;
            if !has.contains(&(record.epoch, record.sequence)) {
                lacking.push(record);
            }
        }
        if planted(Mutant::AdoptLosesLast) {
            lacking.pop();
        }
        if lacking.is_empty() {
            return Ok(());
        }
        let add = |added: Vec<Replayed>| tails.add(&journal, timeline, added);
        journal.adopt(timeline, lacking, add).await
    }
}

/// Proves a change that another node has kept.
fn check(timeline: TimelineId, record: &TailRecord) -> Result<()> {
    let is_whole = match &record.body {
        Body::Write { crcs, .. } => {
            let (blocks, rest) = record.data.as_chunks::<{ BLOCK as usize }>();
            rest.is_empty()
                && blocks.len() == crcs.len()
                && blocks.iter().zip(crcs).all(|(block, sum)| crc(block) == *sum)
        }
        Body::Hole { .. } | Body::Mark(_) => record.data.is_empty(),
        Body::Pad | Body::Counted => false,
    };
    if is_whole {
        return Ok(());
    }
    let text = format!("timeline {timeline}: the mirror's copy of change {} is damaged", record.sequence);
    Err(EngineError::corrupt(text))
}
