// SPDX-License-Identifier: Apache-2.0
//! Sessions: what an edge has of a volume, across its connections, the volume's owners and their processes.
//!
//! An exclusive session is in the volume's record in coordination from its first attach to its end. While it is there nobody else gets the volume, and what the
//! volume shows is not changed for another timeline, whether the edge is connected or not: it may hold changes that were acknowledged and that only it still
//! has.
//!
//! Always holds: a session that was attached before and is not in the record has been ended, and never attaches again; what an edge was told to be safe of an
//! epoch is at or below the end of that epoch, or the session is refused as having lost it.
//!
//! A crash leaves the record. Who is connected, and with which generation, is the server's affair.

use crate::serve::Device;
use crate::timeline::Timeline;
use crate::volume::Volume;
use crate::{EngineError, Position, Result};
use std::rc::Rc;
use varve_coord::{HolderRecord, Records, VolumeRecord};
use varve_types::mutant::{Mutant, planted};
use varve_types::{Epoch, ErrorKind, Sequence, SessionId, TimelineId};

/// What an edge asks for.
#[derive(Clone, Debug)]
pub struct SessionRequest {
    /// Its session.
    pub session: SessionId,
    /// Who it is, for people.
    pub edge: String,
    /// Whether nobody else may have the volume; else it only reads.
    pub exclusive: bool,
    /// Whether the volume is to be taken from whoever has it.
    pub steal: bool,
    /// The timeline that it knows: none at its first attach.
    pub timeline: Option<TimelineId>,
    /// For each epoch that it keeps changes of, the last that was told to be safe.
    pub promises: Vec<(Epoch, Sequence)>,
}

/// What it gets.
pub struct SessionStart {
    /// The volume.
    pub device: Device,
    /// The timeline that it shows.
    pub timeline: TimelineId,
    /// The epoch of its owner.
    pub epoch: Epoch,
    /// Of each epoch that was named the last change that counts.
    pub cuts: Vec<Sequence>,
}

impl Timeline {
    /// How far it has come. What it says is safe grows with each sync of the journal, whoever asked for that.
    pub fn position(&self) -> Position {
        let mut data = self.data.borrow_mut();
        if self.journal.failure().is_none() {
            let synced = self.journal.synced();
            match data.awaited {
                Some((end, sequence)) if end <= synced => {
                    data.flushed = data.flushed.max(sequence);
                    data.awaited = None;
                }
                Some(_) => {}
                None if data.flushed < data.last => data.awaited = Some((data.last_end, data.last)),
                None => {}
            }
        }
        // While a mirror may have taken over, what this node puts into the store may lie behind the end of its epoch.
        let put = if planted(Mutant::PutIsSafe) { data.counted } else { Sequence(0) };
        let safe = self.mirror.safe(data.counted.max(data.flushed)).max(put);
        let safe = if planted(Mutant::SafeBeforeSync) { data.last } else { safe };
        // What was told holds, also while a mirror that has vouched for it is being parted with.
        data.told_safe = data.told_safe.max(safe);
        let safe = data.told_safe;
        Position { sequence: data.last, safe }
    }
}

impl Volume {
    /// The edge that has it for itself.
    pub fn holder(&self) -> Option<HolderRecord> {
        self.record.borrow().holder.clone()
    }

    /// Begins a session, or goes on with it. The caller has ended what the session, or those that it takes the volume from, have begun.
    ///
    /// # Errors
    /// `Conflict` where somebody else has the volume, or is attached to it without a session; `Fenced` where the session was ended, or knows another timeline than the one shown; `Unavailable` where
    /// another node runs the volume by now; `Corrupt` where a change that was told to be safe is lost.
    pub async fn begin_session(self: &Rc<Self>, request: SessionRequest) -> Result<SessionStart> {
        let _turn = self.changes.take().await;
        let timeline = self.shown();
        let stopped = timeline.data.borrow().check();
        stopped.map_err(not_here)?;
        self.check_newest(&request, &timeline)?;
        self.check_session(&request, &timeline)?;
        let cuts = self.cuts(&request, &timeline)?;
        let holder = self.holder();
        let has_it = holder.as_ref().is_some_and(|holder| holder.session == request.session);
        if request.exclusive
            && !has_it
            && let Some(other) = self.attachments().into_iter().next()
        {
            let text = format!("volume {} is in use by {}", self.name(), other.peer);
            return Err(EngineError::new(ErrorKind::Conflict, text));
        }
        if !has_it && (request.exclusive || holder.is_some()) {
            let (session, edge) = (request.session, request.edge.clone());
            let new = HolderRecord { session, edge, since_ms: self.context.now_ms() };
            // A reader that takes the volume from a writer leaves it to all readers.
            self.set_holder(request.exclusive.then_some(new)).await.map_err(not_here)?;
        }
        let (mut device, _) = self.attach_device(&timeline, request.edge);
        device.read_only |= !request.exclusive;
        device.needs_lease &= !request.exclusive;
        Ok(SessionStart { device, timeline: timeline.id, epoch: timeline.epoch, cuts })
    }

    /// Ends a session; one that is not there has ended already.
    ///
    /// # Errors
    /// Those of coordination; the session goes on then.
    pub async fn end_session(&self, session: SessionId) -> Result<()> {
        let _turn = self.changes.take().await;
        if self.holder().is_some_and(|holder| holder.session == session) {
            self.set_holder(None).await?;
        }
        Ok(())
    }

    /// Takes the volume from the edge that has it, and tells which that was. What that edge still holds, and nobody else has, is lost.
    ///
    /// # Errors
    /// Those of coordination; the session goes on then.
    pub async fn expel(&self) -> Result<Option<HolderRecord>> {
        let _turn = self.changes.take().await;
        let holder = self.holder();
        if holder.is_some() {
            self.set_holder(None).await?;
        }
        Ok(holder)
    }

    /// Refuses a session that was served in a later epoch: whoever has it now is known to the owner of that alone.
    fn check_newest(&self, request: &SessionRequest, timeline: &Timeline) -> Result<()> {
        let newer = request.promises.iter().find(|(epoch, _)| *epoch > timeline.epoch);
        let Some((epoch, _)) = newer else { return Ok(()) };
        let text = format!("volume {}: another node runs it by now, in epoch {epoch}", self.name());
        Err(EngineError::new(ErrorKind::Unavailable, text))
    }

    /// Refuses a session that may not have the volume.
    fn check_session(&self, request: &SessionRequest, timeline: &Timeline) -> Result<()> {
        let name = self.name();
        if request.timeline.is_some_and(|known| known != timeline.id) {
            let text = format!("volume {name} shows another history than the one that was attached: attach it again");
            return Err(EngineError::new(ErrorKind::Fenced, text));
        }
        let Some(holder) = self.holder().filter(|holder| holder.session != request.session) else {
            let was_ended = request.exclusive && request.timeline.is_some() && self.holder().is_none();
            if was_ended {
                let text = format!("volume {name} was taken from this session: attach it again");
                return Err(EngineError::new(ErrorKind::Fenced, text));
            }
            return Ok(());
        };
        if request.steal && request.timeline.is_none() {
            return Ok(());
        }
        if request.timeline.is_some() && request.exclusive {
            let text = format!("volume {name} was taken by {}", holder.edge);
            return Err(EngineError::new(ErrorKind::Fenced, text));
        }
        Err(EngineError::new(ErrorKind::Conflict, format!("volume {name} is held by {}", holder.edge)))
    }

    /// Where the epochs that a session names have ended.
    fn cuts(&self, request: &SessionRequest, timeline: &Timeline) -> Result<Vec<Sequence>> {
        let mut cuts = Vec::new();
        for (epoch, safe) in &request.promises {
            let last = if *epoch == timeline.epoch {
                Some(timeline.data.borrow().last)
            } else {
                timeline.ends.borrow().iter().find(|end| end.epoch == *epoch).map(|end| end.last)
            };
            let Some(last) = last else {
                let text = format!(
                    "volume {}: where epoch {epoch} ended is not remembered any more; attach it again",
                    self.name()
                );
                return Err(EngineError::new(ErrorKind::Fenced, text));
            };
            if last < *safe {
                let text = format!(
                    "volume {}: of epoch {epoch} changes up to {safe} were told to be safe, and only those up to {last} are there: what came behind is lost",
                    self.name()
                );
                return Err(EngineError::corrupt(text));
            }
            cuts.push(last);
        }
        Ok(cuts)
    }

    async fn set_holder(&self, holder: Option<HolderRecord>) -> Result<()> {
        let (epoch, writer) = (self.shown().epoch, self.shown().writer);
        let change = |record: &mut VolumeRecord| -> Result<()> {
            if record.epoch != epoch || record.writer != writer {
                let text = format!("volume {}: it was opened elsewhere, in epoch {}", self.id, record.epoch);
                return Err(EngineError::new(ErrorKind::Fenced, text));
            }
            record.holder.clone_from(&holder);
            Ok(())
        };
        Records::new(&*self.context.coord).modify_volume(self.id, change).await?;
        self.record.borrow_mut().holder = holder;
        Ok(())
    }
}

/// That another node runs the volume is no end of a session: it goes on there.
fn not_here(error: EngineError) -> EngineError {
    if error.kind() == ErrorKind::Fenced { EngineError::new(ErrorKind::Unavailable, error.to_string()) } else { error }
}
