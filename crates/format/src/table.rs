// SPDX-License-Identifier: Apache-2.0
//! Pages of the segment table and runs of kills: the records of table objects.
//!
//! A table page describes the segments of 64 ordinals: where each is, how many blocks it has, which of them are
//! live. A kill run lists blocks that the head no longer needs but some kept boundary may: (where, born with its
//! segment's ordinal; died at an ordinal), sorted by birth.

use crate::codec::{Decoder, Encoder};
use crate::{FormatError, NodePointer, ObjectKind, ObjectName, Pointer};
use varve_types::{Epoch, MAX_SEGMENT_BLOCKS, Ordinal, RootNumber, Sequence, TimelineId, WriterId};

/// Ordinals described by one page.
pub const PAGE_ORDINALS: u64 = 64;

/// Which blocks of a segment are live: one bit each, lowest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveBits {
    blocks: u32,
    live: u32,
    /// `None` while every block is live, and once none is.
    words: Option<Box<[u64]>>,
}

impl LiveBits {
    /// All of `blocks` live.
    #[must_use]
    pub const fn all(blocks: u32) -> Self {
        Self { blocks, live: blocks, words: None }
    }
    /// Number of blocks.
    #[must_use]
    pub const fn blocks(&self) -> u32 {
        self.blocks
    }
    /// Number of live ones.
    #[must_use]
    pub const fn live(&self) -> u32 {
        self.live
    }
    /// Whether a block is live.
    #[must_use]
    pub fn is_live(&self, block: u32) -> bool {
        let is_set = |words: &[u64]| words[block as usize / 64] >> (block % 64) & 1 == 1;
        block < self.blocks && self.words.as_deref().map_or(self.live > 0, is_set)
    }
    /// Bytes of RAM that the bits take.
    #[must_use]
    pub fn heap_len(&self) -> usize {
        self.words.as_ref().map_or(0, |words| size_of_val(&**words))
    }
    /// Marks a block dead; tells whether it was live. A block beyond the segment never was.
    pub fn clear(&mut self, block: u32) -> bool {
        if !self.is_live(block) {
            return false;
        }
        let blocks = self.blocks;
        let words = self.words.get_or_insert_with(|| {
            let mut words = vec![u64::MAX; blocks.div_ceil(64) as usize].into_boxed_slice();
            if !blocks.is_multiple_of(64) {
                words[blocks as usize / 64] = (1 << (blocks % 64)) - 1;
            }
            words
        });
        words[block as usize / 64] &= !(1 << (block % 64));
        self.live -= 1;
        if self.live == 0 {
            self.words = None;
        }
        true
    }
}

/// Where the blocks of a segment are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In an object of its own.
    Own,
    /// In a share of a bundle.
    Bundle {
        /// Number of the bundle.
        number: u64,
        /// Blocks of the share.
        blocks: u32,
    },
}

/// A segment, as the table knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableEntry {
    /// Where its blocks are.
    pub place: Place,
    /// Epoch in the name of the object that has them.
    pub epoch: Epoch,
    /// Writer in that name.
    pub writer: WriterId,
    /// Bytes of its object; in a bundle: bytes of its chunks.
    pub bytes: u64,
    /// Last change in it.
    pub last: Sequence,
    /// When it was sealed, in milliseconds since 1970.
    pub sealed_ms: u64,
    /// Which of its blocks are live.
    pub live: LiveBits,
}

impl TableEntry {
    /// Blocks that are stored of it, dead ones too.
    #[must_use]
    pub const fn stored(&self) -> u32 {
        match self.place {
            Place::Own => self.live.blocks(),
            Place::Bundle { blocks, .. } => blocks,
        }
    }

    /// The object that has the blocks of the segment with this ordinal.
    #[must_use]
    pub const fn object(&self, timeline: TimelineId, ordinal: Ordinal) -> ObjectName {
        let (kind, number) = match self.place {
            Place::Own => (ObjectKind::Segment, ordinal.0),
            Place::Bundle { number, .. } => (ObjectKind::Bundle, number),
        };
        ObjectName { timeline, kind, number, part: 0, epoch: self.epoch, writer: self.writer }
    }
}

/// The segments of 64 ordinals, beginning at a multiple of 64, in order.
pub type TablePage = Vec<(Ordinal, TableEntry)>;

const ALL_LIVE: u8 = 0;
const NONE_LIVE: u8 = 1;
const BITMAP: u8 = 2;
/// Added to the form of the live bits, where the number of a bundle follows them.
const BUNDLED: u8 = 3;

/// Encodes a page; the entries are of the page `page` and in order.
#[must_use]
pub fn encode_page(page: u64, entries: &[(Ordinal, &TableEntry)]) -> Vec<u8> {
    let mut e = Encoder::new();
    e.list(entries, |e, (ordinal, entry)| {
        debug_assert_eq!(ordinal.0 / PAGE_ORDINALS, page);
        e.u8((ordinal.0 % PAGE_ORDINALS) as u8);
        e.owner(entry.epoch, entry.writer);
        e.varint(entry.bytes);
        e.varint(entry.last.0);
        e.varint(entry.sealed_ms);
        e.varint(u64::from(entry.live.blocks));
        let bundled = if entry.place == Place::Own { 0 } else { BUNDLED };
        match &entry.live {
            live if live.live == live.blocks => e.u8(ALL_LIVE + bundled),
            live if live.live == 0 => e.u8(NONE_LIVE + bundled),
            live => {
                e.u8(BITMAP + bundled);
                for word in live.words.as_deref().unwrap_or_default() {
                    e.u64(*word);
                }
            }
        }
        if let Place::Bundle { number, blocks } = entry.place {
            e.varint(number);
            e.varint(u64::from(blocks));
        }
    });
    e.finish()
}

/// Reads page `page`.
///
/// # Errors
/// When it is damaged.
pub fn decode_page(page: u64, bytes: &[u8]) -> Result<TablePage, FormatError> {
    let mut d = Decoder::new("segment table page", bytes);
    if page >= Pointer::ORDINAL_END / PAGE_ORDINALS {
        return Err(d.corrupt(format!("there is no page {page}")));
    }
    let mut before = None;
    let entries = d.list(|d| {
        let slot = d.u8()?;
        if u64::from(slot) >= PAGE_ORDINALS || before.is_some_and(|before| slot <= before) {
            return Err(d.corrupt("its entries are out of order"));
        }
        before = Some(slot);
        let (epoch, writer) = d.owner()?;
        let (bytes, last, sealed_ms, blocks) = (d.varint()?, d.sequence()?, d.varint()?, d.varint32()?);
        if blocks > MAX_SEGMENT_BLOCKS {
            return Err(d.corrupt(format!("a segment of {blocks} blocks")));
        }
        let form = d.u8()?;
        let live = decode_live(d, blocks, if form >= BUNDLED { form - BUNDLED } else { form })?;
        let place = if form >= BUNDLED {
            let (number, kept) = (d.varint()?, d.varint32()?);
            if kept > blocks || live.live() > kept {
                return Err(d.corrupt("a share has fewer blocks than live of it, or more than its segment"));
            }
            Place::Bundle { number, blocks: kept }
        } else {
            Place::Own
        };
        Ok((
            Ordinal(page * PAGE_ORDINALS + u64::from(slot)),
            TableEntry { place, epoch, writer, bytes, last, sealed_ms, live },
        ))
    })?;
    d.end()?;
    Ok(entries)
}

fn decode_live(d: &mut Decoder<'_>, blocks: u32, form: u8) -> Result<LiveBits, FormatError> {
    let count = blocks.div_ceil(64) as usize;
    match form {
        ALL_LIVE => Ok(LiveBits::all(blocks)),
        NONE_LIVE => Ok(LiveBits { blocks, live: 0, words: None }),
        BITMAP => {
            let words = (0..count).map(|_| d.u64()).collect::<Result<Box<[u64]>, _>>()?;
            if !blocks.is_multiple_of(64) && words[count - 1] >> (blocks % 64) != 0 {
                return Err(d.corrupt("a block is live beyond the end of its segment"));
            }
            let live: u32 = words.iter().map(|word| word.count_ones()).sum();
            Ok(LiveBits { blocks, live, words: (live > 0 && live < blocks).then_some(words) })
        }
        other => Err(d.corrupt(format!("{other} is no form of bitmap"))),
    }
}

/// A block that the head no longer needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kill {
    /// Its segment: its birth.
    pub ordinal: Ordinal,
    /// Its place there.
    pub block: u16,
    /// The segment that overwrote it.
    pub death: Ordinal,
}

/// Encodes kills, which are sorted.
#[must_use]
pub fn encode_kills(kills: &[Kill]) -> Vec<u8> {
    let mut e = Encoder::new();
    e.varint(kills.len() as u64);
    let mut before = Kill { ordinal: Ordinal(0), block: 0, death: Ordinal(0) };
    for kill in kills {
        debug_assert!(*kill >= before);
        e.varint(kill.ordinal.0 - before.ordinal.0);
        e.varint(u64::from(kill.block));
        e.varint(kill.death.0 - kill.ordinal.0);
        before = *kill;
    }
    e.finish()
}

/// Reads kills.
///
/// # Errors
/// When they are damaged.
pub fn decode_kills(bytes: &[u8]) -> Result<Vec<Kill>, FormatError> {
    let mut d = Decoder::new("kill run", bytes);
    let mut birth = 0u64;
    let kills = d.list(|d| {
        birth = birth.checked_add(d.ordinal()?.0).filter(|b| b >> 36 == 0).ok_or_else(|| d.corrupt("a birth"))?;
        let block = u16::try_from(d.varint()?).map_err(|_| d.corrupt("a block number"))?;
        let death = birth + d.ordinal()?.0;
        if death >= Pointer::ORDINAL_END {
            return Err(d.corrupt("a death"));
        }
        Ok(Kill { ordinal: Ordinal(birth), block, death: Ordinal(death) })
    })?;
    d.end()?;
    Ok(kills)
}

/// A map node that the newest root no longer holds: it was born with the root in its pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeKill {
    /// The node.
    pub node: NodePointer,
    /// The first root that does not hold it.
    pub death: RootNumber,
}

/// Encodes node kills.
#[must_use]
pub fn encode_node_kills(kills: &[NodeKill]) -> Vec<u8> {
    let mut e = Encoder::new();
    e.list(kills, |e, kill| {
        e.u64(kill.node.raw());
        e.varint(u64::from(kill.death.0));
    });
    e.finish()
}

/// Reads node kills.
///
/// # Errors
/// When they are damaged.
pub fn decode_node_kills(bytes: &[u8]) -> Result<Vec<NodeKill>, FormatError> {
    let mut d = Decoder::new("node kill run", bytes);
    let kills = d.list(|d| Ok(NodeKill { node: NodePointer::from_raw(d.u64()?)?, death: d.root_number()? }))?;
    d.end()?;
    Ok(kills)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(place: Place, live: LiveBits) -> TableEntry {
        TableEntry { place, epoch: Epoch(1), writer: WriterId(2), bytes: 3, last: Sequence(4), sealed_ms: 5, live }
    }

    #[test]
    fn pages_come_back() {
        let mut some = LiveBits::all(100);
        assert!(some.clear(99) && some.clear(0) && !some.clear(0) && !some.clear(100));
        assert_eq!(some.live(), 98);
        let mut none = LiveBits::all(2);
        assert!(none.clear(0) && none.clear(1));
        let entries = [
            (Ordinal(128), entry(Place::Own, LiveBits::all(65_536))),
            (Ordinal(129), entry(Place::Bundle { number: 0, blocks: 9 }, LiveBits::all(9))),
            (Ordinal(130), entry(Place::Bundle { number: 300, blocks: 99 }, some.clone())),
            (Ordinal(131), entry(Place::Own, some)),
            (Ordinal(190), entry(Place::Bundle { number: u64::MAX, blocks: 1 }, none.clone())),
            (Ordinal(191), entry(Place::Own, none)),
        ];
        let refs: Vec<_> = entries.iter().map(|(o, e)| (*o, e)).collect();
        let bytes = encode_page(2, &refs);
        assert_eq!(decode_page(2, &bytes).unwrap(), entries);
        for cut in 0..bytes.len() {
            assert!(decode_page(2, &bytes[..cut]).is_err());
        }
    }

    #[test]
    fn kills_come_back() {
        let kill = |ordinal, block, death| Kill { ordinal: Ordinal(ordinal), block, death: Ordinal(death) };
        let kills = [kill(3, 7, 6), kill(3, 9, 4), kill(6, 0, 70_000)];
        assert_eq!(decode_kills(&encode_kills(&kills)).unwrap(), kills);
        assert!(decode_kills(&encode_kills(&kills)[..4]).is_err());
    }
}
