// SPDX-License-Identifier: Apache-2.0
//! The journal file: two superblocks, then a ring of records.
//!
//! A record stands at a *position*: bytes since the journal was made, which only grows; its place in the file is
//! the position modulo the ring's length, behind the superblocks, and the quotient is the lap. Header and block
//! checksums are bound to (journal, position), so a record of an older lap, or of another journal that used the
//! same disk, is never taken for one of now. No record crosses the end of the ring: a pad record fills what is
//! left. Positions are multiples of [`ALIGN`].
//!
//! A superblock tells from where a reader has to read (`trim`). What lies before it may be overwritten, so it is
//! made durable first.

use crate::FormatError;
use crate::codec::{Decoder, Encoder};
use crate::crc::{Domain, Identity, crc, is_whole};
use crate::mark::Mark;
use varve_types::mutant::{Mutant, planted};
use varve_types::{BLOCK, Epoch, JournalId, MAX_VOLUME, Sequence, TimelineId};

/// Positions and header lengths are multiples of this.
pub const ALIGN: u64 = 32;
/// Bytes of one superblock.
pub const SUPERBLOCK: u64 = 4096;
/// Place of the ring in the file: behind the two superblocks.
pub const RING_START: u64 = 2 * SUPERBLOCK;
/// Most blocks of a write record.
pub const MAX_RECORD_BLOCKS: u32 = 256;
/// Bytes of a record's header without what depends on its kind.
pub const FIXED_HEADER: usize = 80;
/// Bytes of a record that is nothing but its fixed header.
pub const SHORT_HEADER: u64 = (FIXED_HEADER as u64).next_multiple_of(ALIGN);
/// Longest header: a full crc table, or a mark.
pub const MAX_HEADER: usize = write_header_len(MAX_RECORD_BLOCKS) as usize;
/// Longest record.
pub const MAX_RECORD: u64 = MAX_HEADER as u64 + MAX_RECORD_BLOCKS as u64 * BLOCK;

/// Longest ring, and the highest position that a journal can come to: what a reader adds to either fits 64 bits.
const MAX_RING: u64 = 1 << 48;
const MAX_POSITION: u64 = 1 << 62;
/// Blocks of the largest volume.
const MAX_BLOCK: u64 = MAX_VOLUME / BLOCK;
const SUPER_MAGIC: &[u8; 8] = b"VARVEJNL";
const VERSION: u32 = 1;
/// First bytes of every record.
pub const RECORD_MAGIC: [u8; 4] = *b"VREC";

/// What a superblock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The journal's id.
    pub journal: JournalId,
    /// Length of the ring in bytes, a multiple of 4 KiB.
    pub ring: u64,
    /// Grows with each write of a superblock; the two places are used in turn.
    pub generation: u64,
    /// Position from which to read: every record that is still needed is at or behind it.
    pub trim: u64,
}

impl Superblock {
    /// The 4 KiB to write, at `(generation % 2) × 4 KiB`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new();
        e.raw(SUPER_MAGIC);
        e.u32(VERSION);
        e.u32(0);
        e.raw(&self.journal.to_bytes());
        e.u64(self.ring);
        e.u64(self.generation);
        e.u64(self.trim);
        let mut bytes = e.finish();
        bytes.resize(SUPERBLOCK as usize, 0);
        let sum = crc(&bytes);
        bytes[12..16].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads one.
    ///
    /// # Errors
    /// When it is damaged, or of a version that is not known.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut d = Decoder::new("journal superblock", bytes);
        if &d.array::<8>()? != SUPER_MAGIC {
            return Err(d.corrupt("it does not begin with VARVEJNL"));
        }
        let found = d.u32()?;
        let sum = d.u32()?;
        let is_whole = bytes.get(..SUPERBLOCK as usize).map(|bytes| is_whole(bytes, VERSION, sum));
        if found != VERSION {
            return Err(FormatError::version("the journal", found, VERSION, is_whole == Some(true)));
        }
        if !is_whole.ok_or_else(|| d.corrupt("it is too short"))? {
            return Err(d.corrupt("its checksum does not match"));
        }
        let this =
            Self { journal: JournalId::from_bytes(d.array()?), ring: d.u64()?, generation: d.u64()?, trim: d.u64()? };
        let sizes = (4096..=MAX_RING).contains(&this.ring) && this.trim <= MAX_POSITION;
        if !sizes || !this.ring.is_multiple_of(4096) || !this.trim.is_multiple_of(ALIGN) {
            return Err(d.corrupt("its numbers make no sense"));
        }
        Ok(this)
    }
}

/// What a record is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Blocks are written: first block, and the plain checksum of each. The data follow the header.
    Write {
        /// First block.
        start: u64,
        /// Plain CRC-32C of each block, in order.
        crcs: Vec<u32>,
    },
    /// Blocks read as zeroes from here on.
    Hole {
        /// First block.
        start: u64,
        /// Number of blocks.
        blocks: u64,
    },
    /// A mark; its sequence is the record's.
    Mark(Mark),
    /// Nothing up to the end of the ring.
    Pad,
    /// Every change up to the record's sequence is in segments, or was on stable media in records that were carried: told before a trim passes the changes
    /// themselves, so that a store which loses a segment, or a disk which loses a copy, gives itself away.
    Counted,
}

const KIND_WRITE: u8 = 1;
const KIND_HOLE: u8 = 2;
const KIND_MARK: u8 = 3;
const KIND_PAD: u8 = 4;
const KIND_COUNTED: u8 = 5;

/// A record's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it stands.
    pub position: u64,
    /// Whose change it is. All zero for a pad.
    pub timeline: TimelineId,
    /// In which epoch it was made.
    pub epoch: Epoch,
    /// Its place among the timeline's changes; where it is none, the last change that it tells of.
    pub sequence: Sequence,
    /// Every change of the timeline up to this one was on stable media when this record was made.
    pub flushed_through: Sequence,
    /// What it says.
    pub body: Body,
}

/// Bytes of the header of a write record of so many blocks.
#[must_use]
pub const fn write_header_len(blocks: u32) -> u64 {
    (FIXED_HEADER as u64 + 4 * blocks as u64).next_multiple_of(ALIGN)
}

/// The parts of a write record that the hot path knows; see [`encode_write_header`].
#[derive(Clone, Copy, Debug)]
pub struct WriteHeader<'a> {
    /// See [`Record::position`].
    pub position: u64,
    /// See [`Record::timeline`].
    pub timeline: TimelineId,
    /// See [`Record::epoch`].
    pub epoch: Epoch,
    /// See [`Record::sequence`].
    pub sequence: Sequence,
    /// See [`Record::flushed_through`].
    pub flushed_through: Sequence,
    /// First block.
    pub start: u64,
    /// Plain CRC-32C of each block.
    pub crcs: &'a [u32],
}

/// Appends the header of a write record to `out` without any allocation of its own.
pub fn encode_write_header(journal: JournalId, header: &WriteHeader<'_>, out: &mut Vec<u8>) {
    let blocks = header.crcs.len() as u32;
    let begin = out.len();
    fixed(
        out,
        KIND_WRITE,
        write_header_len(blocks) as u32,
        header.position,
        (header.timeline, header.epoch, header.sequence, header.flushed_through),
        (header.start, u64::from(blocks)),
    );
    for sum in header.crcs {
        out.extend_from_slice(&sum.to_le_bytes());
    }
    seal_header(journal, header.position, write_header_len(blocks), begin, out);
}

fn fixed(
    out: &mut Vec<u8>,
    kind: u8,
    header_len: u32,
    position: u64,
    (timeline, epoch, sequence, flushed): (TimelineId, Epoch, Sequence, Sequence),
    (start, blocks): (u64, u64),
) {
    out.extend_from_slice(&RECORD_MAGIC);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&header_len.to_le_bytes());
    out.extend_from_slice(&[kind, 0, 0, 0]);
    out.extend_from_slice(&position.to_le_bytes());
    out.extend_from_slice(&timeline.to_bytes());
    for number in [epoch.0, sequence.0, flushed.0, start, blocks] {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

/// Pads the header to its length and fills in the checksum.
fn seal_header(journal: JournalId, position: u64, len: u64, begin: usize, out: &mut Vec<u8>) {
    out.resize(begin + len as usize, 0);
    let sum = header_identity(journal, position).bind(crc(&out[begin + 8..]));
    out[begin + 4..begin + 8].copy_from_slice(&sum.to_le_bytes());
}

fn header_identity(journal: JournalId, position: u64) -> Identity {
    Identity::new(Domain::Journal, journal.to_bytes(), position, 0)
}

impl Record {
    /// Appends the header to `out`.
    pub fn encode(&self, journal: JournalId, out: &mut Vec<u8>) {
        let numbers = (self.timeline, self.epoch, self.sequence, self.flushed_through);
        let begin = out.len();
        match &self.body {
            Body::Write { start, crcs } => {
                let header = WriteHeader {
                    position: self.position,
                    timeline: self.timeline,
                    epoch: self.epoch,
                    sequence: self.sequence,
                    flushed_through: self.flushed_through,
                    start: *start,
                    crcs,
                };
                encode_write_header(journal, &header, out);
            }
            Body::Hole { start, blocks } => {
                fixed(out, KIND_HOLE, SHORT_HEADER as u32, self.position, numbers, (*start, *blocks));
                seal_header(journal, self.position, SHORT_HEADER, begin, out);
            }
            Body::Mark(mark) => {
                let mut body = Encoder::new();
                mark.encode(&mut body);
                let body = body.finish();
                let len = ((FIXED_HEADER + body.len()) as u64).next_multiple_of(ALIGN);
                fixed(out, KIND_MARK, len as u32, self.position, numbers, (0, body.len() as u64));
                out.extend_from_slice(&body);
                seal_header(journal, self.position, len, begin, out);
            }
            Body::Pad | Body::Counted => {
                let kind = if self.body == Body::Pad { KIND_PAD } else { KIND_COUNTED };
                fixed(out, kind, SHORT_HEADER as u32, self.position, numbers, (0, 0));
                seal_header(journal, self.position, SHORT_HEADER, begin, out);
            }
        }
    }

    /// Reads the header that should stand at `position`; `bytes` begin there and may be longer than the header.
    ///
    /// # Errors
    /// When no such record stands there: the usual end of a journal, so the caller decides what it means.
    pub fn decode(journal: JournalId, position: u64, bytes: &[u8]) -> Result<(Self, usize), FormatError> {
        let mut d = Decoder::new("journal record", bytes);
        if d.array()? != RECORD_MAGIC {
            return Err(d.corrupt("it does not begin with VREC"));
        }
        let (sum, len) = (d.u32()?, d.u32()? as usize);
        if !(FIXED_HEADER..=MAX_HEADER).contains(&len) || !(len as u64).is_multiple_of(ALIGN) || len > bytes.len() {
            return Err(d.corrupt(format!("a header of {len} bytes")));
        }
        let is_whole = header_identity(journal, position).bind(crc(&bytes[8..len])) == sum;
        if !is_whole && !planted(Mutant::IgnoreRecordChecksum) {
            return Err(d.corrupt("its checksum does not match"));
        }
        let mut d = Decoder::new("journal record", &bytes[12..len]);
        let kind = d.array::<4>()?[0];
        let record_position = d.u64()?;
        let timeline = d.timeline()?;
        let (epoch, sequence, flushed) = (Epoch(d.u64()?), Sequence(d.u64()?), Sequence(d.u64()?));
        let (start, count) = (d.u64()?, d.u64()?);
        let body = match kind {
            KIND_WRITE | KIND_HOLE if start > MAX_BLOCK => return Err(d.corrupt("it lies outside any volume")),
            KIND_WRITE if (1..=u64::from(MAX_RECORD_BLOCKS)).contains(&count) => {
                Body::Write { start, crcs: (0..count).map(|_| d.u32()).collect::<Result<_, _>>()? }
            }
            KIND_HOLE if (1..=MAX_BLOCK).contains(&count) => Body::Hole { start, blocks: count },
            KIND_MARK => {
                let body = usize::try_from(count).ok().and_then(|count| d.raw(count).ok());
                let mut body = Decoder::new("journal mark", body.ok_or_else(|| d.corrupt("a mark too long"))?);
                let mark = Mark::decode(&mut body)?;
                if mark.sequence() != sequence {
                    return Err(body.corrupt("its sequence is not the record's"));
                }
                body.end()?;
                Body::Mark(mark)
            }
            KIND_PAD => Body::Pad,
            KIND_COUNTED => Body::Counted,
            other => return Err(d.corrupt(format!("kind {other} with {count} blocks"))),
        };
        if record_position != position {
            return Err(d.corrupt("it belongs elsewhere"));
        }
        Ok((Self { position, timeline, epoch, sequence, flushed_through: flushed, body }, len))
    }

    /// Bytes of data behind the header.
    #[must_use]
    pub fn payload_len(&self) -> u64 {
        match &self.body {
            Body::Write { crcs, .. } => crcs.len() as u64 * BLOCK,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Record> {
        let mark = Mark::Snapshot {
            sequence: Sequence(9),
            id: varve_types::SnapshotId::from_bytes([3; 16]),
            name: "before-upgrade".parse().unwrap(),
            created_ms: 1_700_000_000_000,
            size: 1 << 30,
            hidden: false,
        };
        let body = [
            Body::Write { start: 77, crcs: vec![1, 2, 3] },
            Body::Write { start: 0, crcs: (0..MAX_RECORD_BLOCKS).collect() },
            Body::Hole { start: 5, blocks: 1 << 34 },
            Body::Mark(mark),
            Body::Pad,
            Body::Counted,
        ];
        body.into_iter()
            .map(|body| Record {
                position: 4096,
                timeline: TimelineId::from_bytes([1; 16]),
                epoch: Epoch(3),
                sequence: Sequence(9),
                flushed_through: Sequence(4),
                body,
            })
            .collect()
    }

    #[test]
    fn records_come_back_and_any_flipped_bit_is_seen() {
        let journal = JournalId::from_bytes([8; 16]);
        for record in samples() {
            let mut bytes = Vec::new();
            record.encode(journal, &mut bytes);
            assert_eq!(bytes.len() as u64 % ALIGN, 0);
            assert!(bytes.len() <= MAX_HEADER);
            let (back, len) = Record::decode(journal, 4096, &bytes).unwrap();
            assert_eq!((&back, len), (&record, bytes.len()));
            assert!(Record::decode(journal, 8192, &bytes).is_err());
            assert!(Record::decode(JournalId::from_bytes([9; 16]), 4096, &bytes).is_err());
            for cut in 0..bytes.len() {
                assert!(Record::decode(journal, 4096, &bytes[..cut]).is_err());
            }
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(Record::decode(journal, 4096, &bytes).is_err(), "bit {bit}");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    #[test]
    fn superblock_comes_back() {
        let block = Superblock { journal: JournalId::from_bytes([8; 16]), ring: 1 << 20, generation: 3, trim: 64 };
        let mut bytes = block.encode();
        assert_eq!(Superblock::decode(&bytes).unwrap(), block);
        bytes[8] = 2;
        assert!(matches!(Superblock::decode(&bytes), Err(FormatError::Corrupt { .. })), "a flipped bit of the version");
        bytes[40] = 9;
        assert!(matches!(Superblock::decode(&bytes), Err(FormatError::Version { found: 2, .. })));
        bytes[8] = 1;
        bytes[40] = 0;
        bytes[4000] = 1;
        assert!(Superblock::decode(&bytes).is_err());
    }
}
