// SPDX-License-Identifier: Apache-2.0
//! Changes of another node's volume come into this journal as they were made, with the epochs and the places in the stream that they had; and are given to whoever
//! needs them.

use super::carry::Needed;
use super::replay::Reader;
use super::{Journal, Replayed, Stamp};
use crate::mirror::TailRecord;
use crate::{EngineError, Result};
use std::rc::Rc;
use varve_format::journal::{Body, Record};
use varve_types::mutant::{Mutant, planted};
use varve_types::{BLOCK, ErrorKind, TimelineId};

/// Bytes read at a time.
const AHEAD: u64 = 1 << 20;

/// Keeps the trim from passing a position, as long as it lives.
struct Pinned<'a> {
    journal: &'a Rc<Journal>,
    position: u64,
}

impl<'a> Pinned<'a> {
    fn new(journal: &'a Rc<Journal>, position: u64) -> Self {
        journal.pin(position);
        Self { journal, position }
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        self.journal.unpin(self.position);
    }
}

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
        let _pin = Pinned::new(self, head);
        self.append_adopted(timeline, records).await.map(add)
    }

    /// Bytes that a change needs here, at most.
    pub fn need(record: &TailRecord) -> u64 {
        record.data.len() as u64 + BLOCK
    }

    /// Appends a change of a timeline of another node; the caller made sure of room. It is handed to the kernel by the next commit.
    ///
    /// # Errors
    /// When the journal has failed.
    pub fn append_foreign(&self, timeline: TimelineId, record: TailRecord) -> Result<Replayed> {
        let TailRecord { epoch, sequence, flushed_through, body, data } = record;
        let stamp = Stamp { timeline, epoch, sequence, flushed_through };
        let appended = match &body {
            Body::Write { start, crcs } => self.append_write(stamp, *start, data, crcs)?,
            _ => self.append(stamp, body.clone())?,
        };
        let record = Record { position: appended.position, timeline, epoch, sequence, flushed_through, body };
        Ok(Replayed { record, place: appended.place })
    }

    /// Reads changes of a timeline, which the kernel has, as another node is to have them.
    ///
    /// # Errors
    /// `Corrupt` where one can not be read any more; those of the disk.
    pub async fn read_tail(self: &Rc<Self>, records: Vec<Replayed>) -> Result<Vec<TailRecord>> {
        let Some(low) = records.iter().map(|it| it.record.position).min() else { return Ok(Vec::new()) };
        // While they are read they may be carried; their old places stay.
        let _pin = Pinned::new(self, low);
        let mut reader = Reader::new(&*self.disk, self.id, self.ring, AHEAD);
        let mut read = Vec::with_capacity(records.len());
        for Replayed { record, .. } in records {
            let Record { position, timeline, epoch, sequence, .. } = record;
            let needed = Needed { position, timeline, epoch, sequence };
            let Some((record, data, _)) = self.read_needed(&mut reader, &needed).await? else {
                let text = format!("journal {}: change {sequence} at {position} can not be read any more", self.id);
                return Err(EngineError::corrupt(text));
            };
            let flushed_through = record.flushed_through;
            read.push(TailRecord { epoch, sequence, flushed_through, body: record.body, data });
        }
        Ok(read)
    }

    async fn append_adopted(self: &Rc<Self>, timeline: TimelineId, records: Vec<TailRecord>) -> Result<Vec<Replayed>> {
        let (mut added, mut batch, mut end) = (Vec::with_capacity(records.len()), 0, 0);
        for record in records {
            let len = Self::need(&record);
            if !self.fits_ring(&self.state.borrow(), len) {
                // For another try.
                self.start_trim();
                self.start_carry();
                let what = format!("journal {} has no room for what the mirror has of timeline {timeline}", self.id);
                return Err(EngineError::new(ErrorKind::Busy, what));
            }
            self.room(len).await;
            added.push(self.append_foreign(timeline, record)?);
            end = self.state.borrow().head;
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
