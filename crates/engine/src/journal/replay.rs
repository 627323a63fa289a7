// SPDX-License-Identifier: Apache-2.0
//! Reading a journal after a start: every record that stands in it, in the order of positions. One that was being carried stands there twice.
//!
//! Reading begins at the superblock's trim. Where no record stands, the next page is tried (a sync jumps there),
//! and then every aligned position as far as unsynced writes can reach: a power cut may keep a later record and
//! lose an earlier one. What that means for a volume is for its recovery to say, from sequence numbers; here
//! nothing is guessed. Blocks whose bytes do not match make their record count as not there.

use super::{Journal, MAX_UNSYNCED, MIN_RING, PAGE, io_failed};
use crate::stages::Stages;
use crate::{EngineError, Result};
use bytes::Bytes;
use std::ops::Range;
use std::rc::Rc;
use varve_env::{Disk, Env};
use varve_format::FormatError;
use varve_format::crc::crc;
use varve_format::journal::{
    ALIGN, Body, MAX_HEADER, MAX_RECORD, RECORD_MAGIC, RING_START, Record, SUPERBLOCK, Superblock,
};
use varve_types::branch::{Branch, reached, reached_if};
use varve_types::mutant::{Mutant, planted};
use varve_types::{BLOCK, JournalId};

/// A record that was found, and where its data begin.
#[derive(Clone, Debug)]
pub(crate) struct Replayed {
    pub record: Record,
    pub place: u64,
}

/// Bytes read at a time.
const WINDOW: u64 = 1 << 20;

/// Opens a journal: itself, ready to append behind everything that was found, and what was found. Everything found is on stable media when this returns.
///
/// # Errors
/// `Corrupt` where neither superblock can be read; `Invalid` for an unknown version.
pub(crate) async fn replay(
    disk: Rc<dyn Disk>,
    env: Rc<dyn Env>,
    stages: Rc<Stages>,
) -> Result<(Rc<Journal>, Vec<Replayed>)> {
    let (superblock, damaged) = read_superblock(&*disk).await?;
    reached_if(damaged, Branch::SuperblockDamaged);
    let ring = superblock.ring;
    if ring < MIN_RING || ring + RING_START > disk.len() {
        let (least, most) = (MIN_RING, disk.len().saturating_sub(RING_START));
        return Err(EngineError::corrupt(format!(
            "journal: its superblock tells of a ring of {ring} bytes, which is not between {least} and the {most} that its file has room for"
        )));
    }
    let mut reader = Reader::new(&*disk, superblock.journal, superblock.ring, WINDOW);
    // Beside a superblock that can not be read this one may be the older, behind whose trim all may be overwritten already. The newer one's trim lies
    // less than a ring ahead, so everything is within two.
    let (laps, reach) =
        if damaged { (2, 2 * superblock.ring) } else { (1, MAX_UNSYNCED.min(superblock.ring / 4) + 4 * MAX_RECORD) };
    let limit = superblock.trim + laps * superblock.ring;
    let mut found: Vec<Replayed> = Vec::new();
    let (mut position, mut end) = (superblock.trim, superblock.trim);
    while position < limit && position <= end + reach {
        match reader.record_at(position, limit).await? {
            Some((replayed, next)) => {
                // A sync jumps to the next page, and a lap may end without a pad within its last one.
                reached_if(position > end.next_multiple_of(PAGE), Branch::JournalHole);
                reached_if(position >= superblock.trim + superblock.ring, Branch::JournalSecondLap);
                end = next;
                position = next;
                if replayed.record.body != Body::Pad {
                    found.push(replayed);
                }
            }
            None => position = reader.next_candidate(position, limit.min(end + reach)).await?,
        }
    }
    let head = end.next_multiple_of(PAGE);
    settle(&*disk, superblock.trim..end, ring).await?;
    let journal = Rc::new(Journal::with(Rc::clone(&disk), env, stages, superblock, head, head));
    Ok((journal, found))
}

/// Makes durable what was read, before anyone builds on it: the superblocks, and the ring between two positions. It may be in the kernel only; after a sync that
/// failed in an earlier process the kernel does not even know it any more.
async fn settle(disk: &dyn Disk, positions: Range<u64>, ring: u64) -> Result<()> {
    if planted(Mutant::RecoverWithoutSync) {
        return Ok(());
    }
    let (from, len) = (positions.start % ring, positions.end - positions.start);
    let pieces = if len >= ring {
        [0..ring, 0..0]
    } else {
        [from..(from + len).min(ring), 0..(from + len).saturating_sub(ring)]
    };
    let superblocks = 0..2 * SUPERBLOCK;
    let ranges: Vec<Range<u64>> =
        pieces.into_iter().map(|piece| RING_START + piece.start..RING_START + piece.end).collect();
    let all = [vec![superblocks], ranges].concat();
    let settled = if planted(Mutant::RecoverTrustsMemory) { disk.sync() } else { disk.settle(all) };
    settled.await.map_err(|error| io_failed("sync", &error))
}

/// The newer superblock, and whether the other can not be read.
async fn read_superblock(disk: &dyn Disk) -> Result<(Superblock, bool)> {
    let mut best: Option<Superblock> = None;
    let mut failure = None;
    for place in 0..2 {
        let read = disk.read_at(place * SUPERBLOCK, SUPERBLOCK as usize).await;
        match Superblock::decode(&read.map_err(|error| io_failed("read", &error))?) {
            Ok(block) if best.is_none_or(|best| best.generation < block.generation) => best = Some(block),
            Ok(_) => {}
            // A version that is not known is not to be taken for damage.
            Err(error @ FormatError::Version { .. }) => {
                return Err(EngineError::caused(error.kind(), "journal", error));
            }
            Err(error) => failure = Some(error),
        }
    }
    match (best, failure) {
        (Some(best), failure) => Ok((best, failure.is_some())),
        (None, Some(error)) => Err(EngineError::caused(error.kind(), "journal: no superblock can be read", error)),
        (None, None) => Err(EngineError::corrupt("journal: no superblock can be read")),
    }
}

/// Reads records one after the other.
pub(super) struct Reader<'a> {
    disk: &'a dyn Disk,
    id: JournalId,
    ring: u64,
    /// Bytes read at a time.
    ahead: u64,
    /// Bytes of the ring from position `start` on.
    window: Bytes,
    start: u64,
}

impl<'a> Reader<'a> {
    /// A reader of a ring, which reads so many bytes at a time.
    pub fn new(disk: &'a dyn Disk, id: JournalId, ring: u64, ahead: u64) -> Self {
        Self { disk, id, ring, ahead, window: Bytes::new(), start: 0 }
    }

    /// The bytes from `position` on: `want` of them, or as many as there are up to the end of the lap.
    pub async fn bytes(&mut self, position: u64, want: u64) -> Result<Bytes> {
        let lap_end = (position / self.ring + 1) * self.ring;
        let want = want.min(lap_end - position);
        let have = self.start..self.start + self.window.len() as u64;
        if position < have.start || position + want > have.end {
            let len = self.ahead.max(want).min(lap_end - position);
            let read = self.disk.read_at(RING_START + position % self.ring, len as usize);
            self.window = read.await.map_err(|error| io_failed("read", &error))?;
            self.start = position;
        }
        let from = (position - self.start) as usize;
        Ok(self.window.slice(from..from + want as usize))
    }

    /// The record at a position, whole and proved, and the position behind it.
    pub async fn record_at(&mut self, position: u64, limit: u64) -> Result<Option<(Replayed, u64)>> {
        let head = self.bytes(position, MAX_HEADER as u64).await?;
        let Ok((record, header)) = Record::decode(self.id, position, &head) else { return Ok(None) };
        let place = position + header as u64;
        let next = match record.body {
            Body::Pad => (position / self.ring + 1) * self.ring,
            _ => place + record.payload_len(),
        };
        if next > limit || (record.body != Body::Pad && next.saturating_sub(1) / self.ring != position / self.ring) {
            return Ok(None);
        }
        if let Body::Write { crcs, .. } = &record.body {
            let data = self.bytes(place, record.payload_len()).await?;
            let whole = planted(Mutant::TakeTornTail)
                || data.chunks(BLOCK as usize).zip(crcs).all(|(block, sum)| crc(block) == *sum);
            if !whole || data.len() as u64 != record.payload_len() {
                reached(Branch::TornRecord);
                return Ok(None);
            }
        }
        Ok(Some((Replayed { record, place }, next)))
    }

    /// The next position behind `position` where a record might begin, or `limit`.
    async fn next_candidate(&mut self, position: u64, limit: u64) -> Result<u64> {
        let mut at = position + ALIGN;
        while at < limit {
            // What is left of the window first: after every sync there is a jump, and it is short.
            let end = self.start + self.window.len() as u64;
            let want = if at >= self.start && at + ALIGN <= end { end - at } else { WINDOW };
            let bytes = self.bytes(at, want.min(limit - at)).await?;
            let hit = bytes.chunks(ALIGN as usize).position(|chunk| chunk.first_chunk() == Some(&RECORD_MAGIC));
            match hit {
                Some(n) => return Ok(at + n as u64 * ALIGN),
                None => at += (bytes.len() as u64).next_multiple_of(ALIGN),
            }
        }
        Ok(limit.max(position + ALIGN))
    }
}
