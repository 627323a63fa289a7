// SPDX-License-Identifier: Apache-2.0
//! A layer: the writes of a timeline between two seal points.
//!
//! It maps blocks to what was last written there: bytes in RAM, bytes in the journal, or a hole. Every change in it
//! is in the journal too, at or behind the layer's pin, so a layer can always be built again by replay; and it
//! covers its sequence range without gaps. A piece gives up its bytes for a place in the journal only when a flush
//! behind its record has succeeded.
//!
//! A layer knows where each of its records stands, because the journal moves them ([`crate::journal`]): pin and places follow in
//! the step in which the journal says so, and not before the new ones are on stable media.

use crate::extent::{At, ExtentMap, Part};
use crate::journal::Moved;
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use varve_format::journal::{ALIGN, SHORT_HEADER};
use varve_format::mark::Mark;
use varve_types::branch::{Branch, reached};
use varve_types::mutant::{Mutant, planted};
use varve_types::{BLOCK, Epoch, Sequence};

/// Most changes of a layer: 2 MiB for the places of their records.
pub(crate) const MAX_CHANGES: usize = 1 << 18;

/// Plain checksums of the blocks of a piece, computed when they came in.
#[derive(Clone, Debug)]
pub(crate) enum Sums {
    One(u32),
    Many(Arc<[u32]>, u32),
}

impl Sums {
    pub fn new(sums: &[u32]) -> Self {
        if let [one] = sums { Self::One(*one) } else { Self::Many(sums.into(), 0) }
    }
    pub fn get(&self, block: u64) -> u32 {
        match self {
            Self::One(sum) => *sum,
            Self::Many(sums, first) => sums[*first as usize + block as usize],
        }
    }
}

/// What stands at a run of blocks of a layer.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    /// Bytes in RAM; `place` is where the same bytes begin in the journal; beyond all that is ever flushed if they are in none.
    Data { data: Bytes, sums: Sums, place: u64 },
    /// Bytes in the journal only, from this position on.
    Journal { place: u64, sums: Sums },
    /// Nothing: it reads as zeroes.
    Hole,
}

impl Piece {
    /// Its place in the journal, if it has one.
    const fn place_mut(&mut self) -> Option<&mut u64> {
        match self {
            Self::Data { place, .. } | Self::Journal { place, .. } => Some(place),
            Self::Hole => None,
        }
    }
}

impl Part for Piece {
    fn part(&self, skip: u64, len: u64) -> Self {
        let sums = |sums: &Sums| match sums {
            Sums::One(sum) => Sums::One(*sum),
            Sums::Many(all, first) if len == 1 => Sums::One(all[*first as usize + skip as usize]),
            Sums::Many(all, first) => Sums::Many(Arc::clone(all), first + skip as u32),
        };
        match self {
            Self::Data { data, sums: s, place } => Self::Data {
                data: data.slice((skip * BLOCK) as usize..((skip + len) * BLOCK) as usize),
                sums: sums(s),
                place: place + skip * BLOCK,
            },
            Self::Journal { place, sums: s } => Self::Journal { place: place + skip * BLOCK, sums: sums(s) },
            Self::Hole => Self::Hole,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Layer {
    /// What stands where.
    map: ExtentMap<Piece>,
    /// Marks, in order.
    pub marks: Vec<Mark>,
    /// Epoch in which its changes were made.
    pub epoch: Epoch,
    /// First change in it; 0 while it is empty.
    pub first: Sequence,
    /// Last change in it.
    pub last: Sequence,
    /// The lowest position of its records in the journal.
    pub pin: Option<u64>,
    /// Positions of its records, from `first` on; those of changes that came in with a failed journal are missing, at the end.
    records: Vec<u64>,
    /// Whether some of them are not where they were written first.
    pub carried: bool,
    /// When its first change came in.
    pub opened: Duration,
    /// Blocks of data in it, without those overwritten within it.
    blocks: u64,
    /// Bytes of data that came in, overwritten ones too.
    taken: u64,
    /// Bytes of `Data` pieces, an upper bound.
    ram: u64,
}

impl Layer {
    /// An empty layer.
    pub fn new(epoch: Epoch) -> Self {
        Self {
            map: ExtentMap::default(),
            marks: Vec::new(),
            epoch,
            first: Sequence(0),
            last: Sequence(0),
            pin: None,
            records: Vec::new(),
            carried: false,
            opened: Duration::ZERO,
            blocks: 0,
            taken: 0,
            ram: 0,
        }
    }

    /// Whether no change is in it.
    pub const fn is_empty(&self) -> bool {
        self.first.0 == 0
    }
    /// Blocks of data.
    pub const fn blocks(&self) -> u64 {
        self.blocks
    }
    /// Bytes of data that came in.
    pub const fn taken(&self) -> u64 {
        self.taken
    }
    /// Bytes held in RAM, at most.
    pub const fn ram(&self) -> u64 {
        self.ram
    }
    /// Runs in its map.
    pub fn runs(&self) -> usize {
        self.map.len()
    }
    /// Its map.
    pub const fn map(&self) -> &ExtentMap<Piece> {
        &self.map
    }
    /// What stands at a block.
    pub fn at(&self, block: u64, most: u64) -> At<Piece> {
        self.map.at(block, most)
    }

    fn note(&mut self, sequence: Sequence, pin: Option<u64>, now: Duration) {
        if self.is_empty() {
            self.first = sequence;
            self.pin = pin;
            self.opened = now;
        } else {
            debug_assert_eq!(sequence.0, self.last.0 + 1, "changes come in without gaps");
        }
        if let Some(position) = pin {
            // Behind an opening a later change may stand before an earlier one, which was carried.
            self.pin = self.pin.map(|pin| pin.min(position));
            self.records.push(position);
        }
        self.last = sequence;
    }

    /// Changes in it.
    pub fn changes(&self) -> usize {
        if self.is_empty() { 0 } else { (self.last.0 - self.first.0 + 1) as usize }
    }

    /// Bytes of its records in the journal, at most, but for the names of marks.
    pub fn recorded(&self) -> u64 {
        let headers = self.records.len() as u64 * (SHORT_HEADER + ALIGN);
        if self.pin.is_none() { 0 } else { self.taken + self.taken / BLOCK * 4 + headers }
    }

    /// Its records that stand in a part of the journal: position and change, in the order of changes.
    pub fn records_in(&self, part: Range<u64>) -> impl Iterator<Item = (u64, Sequence)> {
        let is_near = self.pin.is_some_and(|pin| pin < part.end);
        let records = if is_near { &self.records[..] } else { &[] };
        let all = records.iter().zip(self.first.0..).map(|(position, sequence)| (*position, Sequence(sequence)));
        all.filter(move |(position, _)| part.contains(position))
    }

    /// Follows its records that were carried; `moved` is in the order of the old positions. Whether any of them is one of its own.
    pub fn follow(&mut self, moved: &[Moved]) -> bool {
        let mut any = false;
        if self.pin.is_none() {
            return false;
        }
        for it in moved.iter().filter(|it| it.epoch == self.epoch && it.sequence >= self.first) {
            let at = (it.sequence.0 - self.first.0) as usize;
            if let Some(position) = self.records.get_mut(at).filter(|position| **position == it.from) {
                *position = it.to;
                any = true;
            }
        }
        if !any {
            return false;
        }
        self.carried = true;
        self.pin = self.records.iter().min().copied();
        if planted(Mutant::CarryPinsFirst) {
            self.pin = self.records.first().copied();
        }
        if planted(Mutant::CarryKeepsPlaces) {
            return true;
        }
        for (_, piece) in self.map.values_mut() {
            let Some(place) = piece.place_mut() else { continue };
            let before = moved.partition_point(|it| it.from <= *place);
            if let Some(it) = moved[..before].last().filter(|it| *place < it.from + it.len) {
                *place = it.to + (*place - it.from);
            }
        }
        true
    }

    /// Takes a write or a hole whose record stands at `pin`; `None` with a failed journal.
    pub fn insert(
        &mut self,
        sequence: Sequence,
        pin: Option<u64>,
        now: Duration,
        start: u64,
        blocks: u64,
        piece: Piece,
    ) {
        self.note(sequence, pin, now);
        let is_data = !matches!(piece, Piece::Hole);
        let mut gone = 0;
        if let Piece::Data { data, .. } = &piece {
            self.ram += data.len() as u64;
        }
        self.map.insert(start, blocks, piece, |_, len, old| {
            if !matches!(old, Piece::Hole) {
                gone += len;
            }
        });
        self.blocks -= gone;
        if is_data {
            self.blocks += blocks;
            self.taken += blocks * BLOCK;
        }
    }

    /// Takes a mark whose record stands at `pin`.
    pub fn mark(&mut self, mark: Mark, pin: Option<u64>, now: Duration) {
        self.note(mark.sequence(), pin, now);
        self.marks.push(mark);
    }

    /// Gives up the bytes in RAM of everything whose record lies before `flushed`.
    pub fn spill(&mut self, flushed: u64) {
        let mut kept = 0;
        for (blocks, piece) in self.map.values_mut() {
            if let Piece::Data { sums, place, .. } = piece {
                if *place + blocks * BLOCK <= flushed {
                    reached(Branch::GivenUpToJournal);
                    *piece = Piece::Journal { place: *place, sums: sums.clone() };
                } else {
                    kept += blocks * BLOCK;
                }
            }
        }
        self.ram = kept;
    }
}
