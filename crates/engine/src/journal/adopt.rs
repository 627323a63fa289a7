// SPDX-License-Identifier: Apache-2.0
//! Changes that another node has kept come into this journal, as they were made: their epochs and places in the stream are those that they had.

use super::{Journal, Replayed, Stamp};
use crate::mirror::TailRecord;
use crate::{EngineError, Result};
use std::rc::Rc;
use varve_format::journal::{Body, Record};
use varve_types::mutant::{Mutant, planted};
use varve_types::{BLOCK, ErrorKind, TimelineId};

impl Journal {
    /// Appends changes of a timeline that another node has kept, and makes them durable. `add` is told where they stand, and pins what it needs.
    ///
    /// # Errors
    /// `Busy` when there is no room for them now; those of the journal.
    pub async fn adopt(
        self: &Rc<Self>,
        timeline: TimelineId,
        records: Vec<TailRecord>,
        add: impl FnOnce(Vec<Replayed>),
    ) -> Result<()> {
        // Until it is told where they stand nothing else would keep them.
        let head = self.state.borrow().head;
        self.pin(head);
        let done = self.append_adopted(timeline, records).await;
        let added = done.map(add);
        self.unpin(head);
        added
    }

    async fn append_adopted(self: &Rc<Self>, timeline: TimelineId, records: Vec<TailRecord>) -> Result<Vec<Replayed>> {
        let (mut added, mut batch, mut end) = (Vec::with_capacity(records.len()), 0, 0);
        for TailRecord { epoch, sequence, flushed_through, body, data } in records {
            let len = data.len() as u64 + BLOCK;
            if !self.fits_ring(&self.state.borrow(), len) {
                // For another try.
                self.start_trim();
                self.start_carry();
                let what = format!("journal {} has no room for what the mirror has of timeline {timeline}", self.id);
                return Err(EngineError::new(ErrorKind::Busy, what));
            }
            self.room(len).await;
            let stamp = Stamp { timeline, epoch, sequence, flushed_through };
            let appended = match &body {
                Body::Write { start, crcs } => self.append_write(stamp, *start, data, crcs)?,
                _ => self.append(stamp, body.clone())?,
            };
            let position = appended.position;
            let record = Record { position, timeline, epoch, sequence, flushed_through, body };
            added.push(Replayed { record, place: appended.place });
            end = appended.end;
            self.commit_batch(&mut batch, len).await?;
        }
        if planted(Mutant::AdoptUnsynced) {
            self.commit()?;
            return Ok(added);
        }
        self.sync_to(end).await?;
        Ok(added)
    }
}
