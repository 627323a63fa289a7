// SPDX-License-Identifier: Apache-2.0
//! Sealing layers and putting them: from the open layer to a segment that counts.
//!
//! - Sealing gives a layer its ordinal and fixes what it holds. It needs neither the store nor any room.
//! - Sealed layers are built (beside the shard) and put, a few at a time, in any order. A put is tried until it is
//!   answered: a store that is away means that layers wait in the journal, nothing else. A name that is taken is
//!   read back, and is ours if header and length are.
//! - A put layer *counts* when all before it do. Only then do its entries move to the overlay, and only then is its
//!   pin taken from the journal.

use crate::context::Head;
use crate::extent::At;
use crate::layer::{Layer, MAX_CHANGES, Piece};
use crate::signal::breathe;
use crate::stages::Stage;
use crate::timeline::{Data, PutState, Sealed, Timeline};
use crate::{EngineError, Result};
use bytes::Bytes;
use std::rc::Rc;
use std::time::Duration;
use varve_env::{Payload, PutOutcome, compute};
use varve_format::chunk::{Block, SealBlock, pack};
use varve_format::journal::MAX_RECORD_BLOCKS;
use varve_format::manifest::SnapshotEntry;
use varve_format::mark::Mark;
use varve_format::segment::{Codec, IndexExtent, SegmentFacts, SegmentHeader, SegmentIndex, encode_head};
use varve_format::table::{LiveBits, Place, TableEntry};
use varve_format::{ObjectKind, ObjectName};
use varve_types::branch::{Branch, reached, reached_if};
use varve_types::mutant::{Mutant, planted};
use varve_types::{BLOCK, MAX_SEGMENT_BLOCKS, Ordinal};

/// A layer that was overwritten again and again is sealed when so many times its size came in.
const MAX_OVERWRITE: u64 = 2;
/// With a rewind window a layer that has taken so much is sealed at this age: its end is a moment to go back to.
const POINT_BYTES: u64 = 4 << 20;
const POINT_AGE: Duration = Duration::from_secs(10);
/// Blocks gathered between two looks at other tasks.
const SLICE: usize = 1024;

/// A segment that was put: what the overlay, the table and reads need of it.
pub(crate) struct PutSegment {
    pub name: ObjectName,
    pub header: SegmentHeader,
    pub index: SegmentIndex,
}

/// Entry of the table for a segment all of whose blocks are live.
pub(crate) fn fresh_entry(name: &ObjectName, header: &SegmentHeader) -> TableEntry {
    TableEntry {
        place: Place::Own,
        epoch: name.epoch,
        writer: name.writer,
        bytes: header.object_len(),
        last: header.last,
        sealed_ms: header.sealed_ms,
        live: LiveBits::all(header.blocks),
    }
}

impl Timeline {
    /// Seals the open layer if it is as large as a segment may be.
    pub fn seal_if_full(self: &Rc<Self>) {
        let full = {
            let data = self.data.borrow();
            let size = data.settings.segment_size;
            let blocks = (size / BLOCK).min(u64::from(MAX_SEGMENT_BLOCKS) - u64::from(MAX_RECORD_BLOCKS));
            let is_large = data.open.blocks() >= blocks;
            let is_overwritten = data.open.taken() >= size * MAX_OVERWRITE;
            let is_scattered = data.open.runs() >= self.context.limits.layer_runs || data.open.changes() >= MAX_CHANGES;
            reached_if(is_overwritten && !is_large, Branch::SealByOverwrite);
            reached_if(is_scattered && !is_large, Branch::SealByRuns);
            is_large || is_overwritten || is_scattered
        };
        if full {
            self.seal_now();
        }
    }

    /// Seals the open layer if it is as old as the settings allow.
    pub fn seal_if_old(self: &Rc<Self>) {
        let old = {
            let data = self.data.borrow();
            let age = self.context.env.now().saturating_sub(data.open.opened);
            let is_point = data.settings.rewind_window_ms > 0 && data.open.taken() >= POINT_BYTES && age >= POINT_AGE;
            !data.open.is_empty() && (age >= data.settings.seal_age() || is_point)
        };
        if old {
            reached(Branch::SealByAge);
            self.seal_now();
        }
    }

    /// Seals the open layer, unless it is empty. Gives the ordinal behind the last sealed layer.
    pub fn seal_now(self: &Rc<Self>) -> Ordinal {
        let end = seal(&mut self.data.borrow_mut());
        self.start_puts();
        end
    }

    /// Begins puts of sealed layers, as many as may run at once.
    pub fn start_puts(self: &Rc<Self>) {
        loop {
            let next = {
                let mut data = self.data.borrow_mut();
                let running = data.sealed.iter().filter(|s| matches!(s.put, PutState::Running)).count();
                if running >= self.context.limits.puts || data.stopped.is_some() {
                    return;
                }
                let Some(next) = data.sealed.iter_mut().find(|s| matches!(s.put, PutState::Waiting)) else { return };
                next.put = PutState::Running;
                if planted(Mutant::TrimBeforePut)
                    && let Some(pin) = next.layer.pin.take()
                {
                    self.journal.unpin(pin);
                }
                next.ordinal
            };
            let this = Rc::clone(self);
            self.context.env.spawn(Box::pin(async move {
                match this.put_layer(next).await {
                    Ok(put) => this.put_done(next, put),
                    Err(error) => {
                        tracing::error!(timeline = %this.id, ordinal = %next, %error, "a segment can not be put");
                        this.stop(error);
                    }
                }
            }));
        }
    }

    /// Builds and puts a sealed layer. Errors that may pass are waited out; any other means that the layer can not be put at all.
    async fn put_layer(self: &Rc<Self>, ordinal: Ordinal) -> Result<PutSegment> {
        let timed = self.context.timed(Stage::Seal);
        let (blocks, extents, marks, facts, codec) = self.gather(ordinal).await?;
        let name = self.object(ObjectKind::Segment, ordinal.0, 0);
        let kept: Vec<Block> = if self.keeps_written() {
            blocks.iter().map(|block| (block.data.clone(), block.crc)).collect()
        } else {
            Vec::new()
        };
        let (head, parts) = compute(&*self.context.env, move || build(facts, codec, blocks, extents, marks))
            .await
            .map_err(crate::context::damaged(name))?;
        let header = SegmentHeader::decode(&head).map_err(crate::context::damaged(name))?;
        let index = header
            .decode_index(&head[varve_format::segment::SEGMENT_HEADER..][..header.index_len as usize])
            .map_err(crate::context::damaged(name))?;
        let mut all = vec![Bytes::from(head)];
        all.extend(parts);
        drop(timed);
        let _timed = self.context.timed(Stage::SegmentPut);
        self.put_until_answered(&name, Payload::new(all), &header).await?;
        self.context.note_put(name.kind, header.object_len());
        self.keep_written(ordinal, kept);
        Ok(PutSegment { name, header, index })
    }

    async fn put_until_answered(&self, name: &ObjectName, payload: Payload, header: &SegmentHeader) -> Result<()> {
        let text = name.to_string();
        self.persist("a put", async || {
            match self.pool.store.put(&text, payload.clone()).await.inspect_err(|_| self.throttle.refused())? {
                PutOutcome::Created => Ok(()),
                PutOutcome::Exists if planted(Mutant::TakeAnyObject) || self.is_ours(name, header).await? => Ok(()),
                PutOutcome::Exists => {
                    Err(EngineError::corrupt(format!("{text}: another object stands under its name")))
                }
            }
        })
        .await
    }

    /// Whether the object under this name is the one that was to be put: an earlier try whose answer was lost.
    async fn is_ours(&self, name: &ObjectName, header: &SegmentHeader) -> Result<bool> {
        let (found, _) = crate::read::load_segment_head(&*self.pool.store, name).await?;
        let size = self.pool.store.head(&name.to_string()).await?.size;
        let is_ours = found == *header && size == header.object_len();
        reached_if(is_ours, Branch::SegmentWasPut);
        Ok(is_ours)
    }

    /// The blocks of a sealed layer in LBA order, those in the journal read back.
    async fn gather(
        self: &Rc<Self>,
        ordinal: Ordinal,
    ) -> Result<(Vec<SealBlock>, Vec<IndexExtent>, Vec<Mark>, SegmentFacts, Codec)> {
        let (runs, marks, facts, codec) = {
            let data = self.data.borrow();
            let layer = &find_sealed(&data, ordinal).layer;
            let runs: Vec<_> = layer.map().iter().map(|(start, len, piece)| (start, len, piece.clone())).collect();
            let facts = SegmentFacts {
                timeline: self.id,
                ordinal,
                epoch: self.epoch,
                writer: self.writer,
                stream_epoch: layer.epoch,
                first: layer.first,
                last: layer.last,
                sealed_ms: self.context.now_ms(),
            };
            let codec = data.settings.compression.into();
            let mut marks = layer.marks.clone();
            if planted(Mutant::DropSizeMarks) {
                marks.retain(|mark| !matches!(mark, Mark::Size { .. }));
            }
            (runs, marks, facts, codec)
        };
        let mut blocks = Vec::new();
        let mut extents: Vec<IndexExtent> = Vec::new();
        for (start, len, piece) in runs {
            let hole = matches!(piece, Piece::Hole);
            if hole && planted(Mutant::DropHoles) {
                continue;
            }
            match extents.last_mut() {
                Some(last) if last.hole == hole && last.start + last.blocks == start => last.blocks += len,
                _ => extents.push(IndexExtent { start, blocks: len, hole }),
            }
            let (bytes, sums) = match piece {
                Piece::Hole => continue,
                Piece::Data { data, sums, .. } => (data, sums),
                // A damaged one is found by `pack`.
                Piece::Journal { place, sums } => (self.read_back(ordinal, start, len, place).await?, sums),
            };
            for i in 0..len {
                let at = (i * BLOCK) as usize;
                let data = bytes.slice(at..at + BLOCK as usize);
                blocks.push(SealBlock { lba: start + i, data, crc: sums.get(i) });
            }
            if blocks.len() % SLICE < len as usize {
                breathe().await;
            }
        }
        reached_if(extents.is_empty(), Branch::SegmentOfMarks);
        Ok((blocks, extents, marks, facts, codec))
    }

    /// The bytes of a run of a sealed layer, which was looked up at this place of the journal. The layer is not counted, so it is in the journal still,
    /// but it may have been carried meanwhile.
    async fn read_back(&self, ordinal: Ordinal, start: u64, len: u64, mut place: u64) -> Result<Bytes> {
        let mut tries = 0;
        loop {
            let bytes = self.journal.read(place, (len * BLOCK) as usize).await?;
            if self.journal.holds(place) {
                return Ok(bytes);
            }
            reached(Branch::PlaceMoved);
            self.again(
                &mut tries,
                EngineError::corrupt(format!("journal: data at {place} are elsewhere again and again")),
            )?;
            if let At::Run(Piece::Journal { place: now, .. }, _) =
                find_sealed(&self.data.borrow(), ordinal).layer.at(start, len)
            {
                place = now;
            }
        }
    }

    /// A layer is in the store: it counts, and all that waited for it, if none before it is missing.
    fn put_done(self: &Rc<Self>, ordinal: Ordinal, put: PutSegment) {
        if let Some(sealed) = self.data.borrow_mut().sealed.iter_mut().find(|s| s.ordinal == ordinal) {
            sealed.put = PutState::Done(Box::new(put));
        }
        let is_gap = self.data.borrow().sealed.front().is_some_and(|s| !matches!(s.put, PutState::Done(_)));
        reached_if(is_gap, Branch::PutBeforeEarlier);
        if planted(Mutant::TrimPastGap) {
            let mut data = self.data.borrow_mut();
            let before = data.sealed.iter_mut().filter(|s| s.ordinal <= ordinal);
            before.filter_map(|s| s.layer.pin.take()).for_each(|pin| self.journal.unpin(pin));
        }
        self.count_ready();
        self.start_puts();
        self.checkpoint_if_due();
    }

    /// Counts what is put at the front of the row, as far as the overlay takes it. A full overlay waits for the checkpoint that is due.
    pub fn count_ready(self: &Rc<Self>) {
        let mut pins = Vec::new();
        let mut freed = 0;
        {
            let mut data = self.data.borrow_mut();
            if planted(Mutant::CountOutOfOrder) {
                data.sealed.make_contiguous().sort_by_key(|s| !matches!(s.put, PutState::Done(_)));
            }
            while matches!(data.sealed.front(), Some(Sealed { put: PutState::Done(_), .. })) && !data.overlay.is_full()
            {
                let Some(Sealed { layer, put: PutState::Done(put), .. }) = data.sealed.pop_front() else { break };
                self.count(&mut data, &put);
                data.sealed_taken -= layer.taken();
                self.throttle.drained(layer.taken());
                pins.extend(layer.pin);
                freed += layer.ram();
            }
        }
        for pin in pins {
            self.journal.unpin(pin);
        }
        self.context.ram_changed(freed, 0);
        let counted = self.data.borrow().counted;
        self.mirror_release(counted);
        self.changed.ring();
    }

    /// A segment counts from now on: in recovery as well as after a put.
    pub fn count(&self, data: &mut Data, put: &PutSegment) {
        let ordinal = Ordinal(put.name.number);
        data.overlay.push(self.own, ordinal, &put.index.extents);
        data.table.insert(ordinal, fresh_entry(&put.name, &put.header));
        for mark in &put.index.marks {
            if let Mark::Size { size, .. } = mark {
                data.counted_size = *size;
            }
        }
        data.counted = put.header.last;
        data.counted_end = ordinal.next();
        data.counted_bytes += put.header.data_len;
        let head = Rc::new(Head::new(put.name, &put.header, &put.index.chunks));
        self.context.heads.borrow_mut().insert(head);
        for mark in &put.index.marks {
            if let Mark::Snapshot { id, .. } = mark {
                let boundary = ordinal.next();
                let known = data.snapshots.iter().any(|s| s.id == *id);
                data.pending.retain(|s| s.id != *id);
                let is_new = ordinal >= data.manifest.marks_through || planted(Mutant::ResurrectSnapshot);
                reached_if(!known && !is_new, Branch::DeletedMark);
                if !known && is_new {
                    data.snapshots.extend(snapshot_entry(mark, boundary));
                }
                // A snapshot that was deleted before this needs no root.
                let kept = data.snapshots.iter().any(|s| s.id == *id);
                data.overlay.freeze(boundary, kept.then_some(*id));
            }
        }
    }

    /// Does its part for room: seals a layer that holds up the journal or is in want of RAM.
    pub fn make_room(self: &Rc<Self>) {
        {
            let mut data = self.data.borrow_mut();
            if self.context.is_ram_full() || data.open.pin.is_some_and(|pin| self.journal.is_old(pin)) {
                reached_if(!data.open.is_empty(), Branch::SealForRoom);
                seal(&mut data);
            }
        }
        self.start_puts();
    }

    /// Gives up RAM of what is sealed and on stable media.
    pub fn spill(&self) {
        let synced = self.journal.synced();
        let (mut before, mut after) = (0, 0);
        for sealed in &mut self.data.borrow_mut().sealed {
            before += sealed.layer.ram();
            sealed.layer.spill(synced);
            after += sealed.layer.ram();
        }
        self.context.ram_changed(before, after);
    }
}

/// The snapshot that a mark makes, seen from `boundary`.
pub(crate) fn snapshot_entry(mark: &Mark, boundary: Ordinal) -> Option<SnapshotEntry> {
    let Mark::Snapshot { sequence, id, name, created_ms, size, hidden } = mark else { return None };
    Some(SnapshotEntry {
        id: *id,
        name: name.clone(),
        created_ms: *created_ms,
        boundary,
        sequence: *sequence,
        size: *size,
        root: None,
        hidden: *hidden,
    })
}

/// Moves the open layer to the row of sealed ones. Gives the ordinal behind the last sealed layer.
pub(crate) fn seal(data: &mut Data) -> Ordinal {
    if data.open.is_empty() {
        return data.next_ordinal;
    }
    let fresh = Layer::new(data.open_epoch);
    let layer = std::mem::replace(&mut data.open, fresh);
    let ordinal = data.next_ordinal;
    data.next_ordinal = ordinal.next();
    for mark in &layer.marks {
        // A snapshot can be listed as soon as its boundary is known; it counts when its segment does.
        if let Some(entry) = snapshot_entry(mark, ordinal.next()) {
            data.pending.push(entry);
        }
    }
    data.sealed_taken += layer.taken();
    data.sealed.push_back(Sealed { ordinal, layer, put: PutState::Waiting });
    data.next_ordinal
}

fn find_sealed(data: &Data, ordinal: Ordinal) -> &Sealed {
    data.sealed.iter().find(|s| s.ordinal == ordinal).expect("a layer leaves the row only when its put is done")
}

/// Builds a segment: its head and its data.
fn build(
    facts: SegmentFacts,
    codec: Codec,
    blocks: Vec<SealBlock>,
    extents: Vec<IndexExtent>,
    marks: Vec<Mark>,
) -> std::result::Result<(Vec<u8>, Vec<Bytes>), varve_format::FormatError> {
    let packed = pack(facts.timeline, facts.ordinal, blocks.into_iter(), codec)?;
    let index = SegmentIndex { extents, marks, chunks: packed.chunks };
    Ok((encode_head(&facts, packed.codec, &index, packed.len), packed.parts))
}
