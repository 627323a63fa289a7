// SPDX-License-Identifier: Apache-2.0
//! A bundle: what still lives of several segments of one timeline, in one object. Cleaning writes it.
//!
//! ```text
//! 0    header, 128 bytes        which bundle this is, and how long its other parts are
//! 128  index                    the shares: which blocks of which segment they have, lengths of their chunks
//! ...  data                     from `data_offset`, a multiple of 16: the chunks of the shares, one share behind the other
//! ```
//! A block keeps its address (timeline, ordinal, block) for ever; a *share* is what a bundle has of one segment, in the order of the blocks' numbers. Where
//! somebody may still need to know what the segment has changed, the share carries its index too.
//!
//! Like a segment's, the header carries the identity that a reader compares with the name it asked for.

use crate::FormatError;
use crate::chunk::RAW_BLOCK;
use crate::codec::{Decoder, Encoder};
use crate::crc::{crc, is_whole};
use crate::mark::Mark;
use crate::numbers::BlockSet;
use crate::segment::{Codec, IndexExtent, codec_from_raw, data_len, decode_extents, encode_extents};
use varve_types::{Epoch, Ordinal, Sequence, TimelineId, WriterId};

const MAGIC: &[u8; 8] = b"VARVEBUN";
const VERSION: u32 = 1;
/// Bytes of the header.
pub const BUNDLE_HEADER: usize = 128;
/// Most shares of a bundle.
pub const MAX_SHARES: usize = 1024;
/// Longest index.
const MAX_INDEX: u32 = 32 << 20;
/// Longest data area.
const MAX_DATA: u64 = 1 << 30;

/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleHeader {
    /// Whose bundle.
    pub timeline: TimelineId,
    /// Its number, among those of its opening.
    pub number: u64,
    /// Epoch of the opening that had it made.
    pub epoch: Epoch,
    /// The opening that had it made.
    pub writer: WriterId,
    /// Bytes of the index.
    pub index_len: u32,
    /// Shares.
    pub shares: u32,
    /// Bytes of the data area.
    pub data_len: u64,
    /// When it was made, in milliseconds since 1970.
    pub made_ms: u64,
    index_crc: u32,
}

/// The facts of a header that the builder is given.
#[derive(Clone, Copy, Debug)]
pub struct BundleFacts {
    /// See [`BundleHeader::timeline`].
    pub timeline: TimelineId,
    /// See [`BundleHeader::number`].
    pub number: u64,
    /// See [`BundleHeader::epoch`].
    pub epoch: Epoch,
    /// See [`BundleHeader::writer`].
    pub writer: WriterId,
    /// See [`BundleHeader::made_ms`].
    pub made_ms: u64,
}

/// What a bundle has of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which segment.
    pub ordinal: Ordinal,
    /// Which of its blocks.
    pub blocks: BlockSet,
    /// How the chunks are coded.
    pub codec: Codec,
    /// Bytes of each chunk; empty where every chunk is raw.
    pub chunks: Vec<u32>,
    /// What the segment's own object says of it, where somebody may need that.
    pub history: Option<History>,
}

/// What a segment has changed: of its header and its index, what is read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// Epoch in which its changes were made.
    pub stream_epoch: Epoch,
    /// First change in it.
    pub first: Sequence,
    /// Last change in it.
    pub last: Sequence,
    /// Disjoint, in LBA order; blocks of the segment are numbered through those that are no holes.
    pub extents: Vec<IndexExtent>,
    /// In the order of their sequence.
    pub marks: Vec<Mark>,
}

impl Share {
    /// Bytes of its chunks.
    #[must_use]
    pub fn data_len(&self) -> u64 {
        match self.codec {
            Codec::Raw => u64::from(self.blocks.len()) * RAW_BLOCK as u64,
            Codec::Lz4 | Codec::Zstd => self.chunks.iter().map(|len| u64::from(*len)).sum(),
        }
    }

    fn encode(&self, e: &mut Encoder) {
        e.varint(self.ordinal.0);
        self.blocks.encode(e);
        e.u8(self.codec as u8);
        e.list(&self.chunks, |e, len| e.varint(u64::from(*len)));
        e.option(self.history.as_ref(), |e, history| {
            e.varint(history.stream_epoch.0);
            e.varint(history.first.0);
            e.varint(history.last.0 - history.first.0);
            encode_extents(e, &history.extents);
            e.list(&history.marks, |e, mark| mark.encode(e));
        });
    }

    fn decode(d: &mut Decoder<'_>) -> Result<Self, FormatError> {
        let (ordinal, blocks) = (d.ordinal()?, BlockSet::decode(d)?);
        let codec = codec_from_raw(d.u8()?).ok_or_else(|| d.corrupt("its codec is not known"))?;
        let chunks = d.list(Decoder::varint32)?;
        data_len(codec, blocks.len(), &chunks).map_err(|reason| d.corrupt(reason))?;
        let history = d.option(|d| {
            let (stream_epoch, first) = (Epoch(d.varint()?), d.sequence()?);
            let last = first.0.checked_add(d.varint()?).ok_or_else(|| d.corrupt("a sequence"))?;
            let extents = decode_extents(d, blocks.end())?;
            let marks = d.list(Mark::decode)?;
            if marks.iter().any(|m| m.sequence() < first || m.sequence().0 > last) {
                return Err(d.corrupt("a mark lies outside its range"));
            }
            Ok(History { stream_epoch, first, last: Sequence(last), extents, marks })
        })?;
        Ok(Self { ordinal, blocks, codec, chunks, history })
    }
}

/// The index of a bundle that is being made. It never becomes longer than readers take.
#[derive(Clone, Debug, Default)]
pub struct BundleIndex {
    body: Vec<u8>,
    shares: u32,
    data_len: u64,
}

impl BundleIndex {
    /// Takes in a share; their data follow each other in the same order. Tells whether there was room: there is for the first, as what it says is in the index
    /// of a segment, which is a quarter as long.
    #[must_use]
    pub fn push(&mut self, share: &Share) -> bool {
        let mut e = Encoder::new();
        share.encode(&mut e);
        let (encoded, data_len) = (e.finish(), self.data_len + share.data_len());
        let is_full = self.shares as usize == MAX_SHARES || self.body.len() + encoded.len() > MAX_INDEX as usize;
        if is_full || data_len > MAX_DATA {
            return false;
        }
        self.body.extend_from_slice(&encoded);
        self.shares += 1;
        self.data_len = data_len;
        true
    }

    /// Encodes header and index, padded up to the data area.
    #[must_use]
    pub fn encode_head(&self, facts: &BundleFacts) -> Vec<u8> {
        let mut e = Encoder::new();
        e.raw(MAGIC);
        e.u32(VERSION);
        e.u32(0);
        e.timeline(facts.timeline);
        for number in [facts.number, facts.epoch.0, facts.writer.0] {
            e.u64(number);
        }
        e.u32(self.body.len() as u32);
        e.u32(crc(&self.body));
        e.u32(self.shares);
        e.u32(0);
        e.u64(self.data_len);
        e.u64(facts.made_ms);
        let mut bytes = e.finish();
        bytes.resize(BUNDLE_HEADER, 0);
        let sum = crc(&bytes);
        bytes[12..16].copy_from_slice(&sum.to_le_bytes());
        bytes.extend_from_slice(&self.body);
        bytes.resize(bytes.len().next_multiple_of(16), 0);
        bytes
    }
}

/// Header and index of a bundle with these shares: see [`BundleIndex`].
///
/// # Panics
/// When there is no room for all.
#[must_use]
pub fn encode_head(facts: &BundleFacts, shares: &[Share]) -> Vec<u8> {
    let mut index = BundleIndex::default();
    shares.iter().for_each(|share| assert!(index.push(share), "a bundle has no room for so much"));
    index.encode_head(facts)
}

impl BundleHeader {
    /// Reads a header; `bytes` begin with it and may be longer.
    ///
    /// # Errors
    /// When it is damaged or of a version that is not known.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut d = Decoder::new("bundle header", bytes);
        if &d.array::<8>()? != MAGIC {
            return Err(d.corrupt("it does not begin with VARVEBUN"));
        }
        let (found, sum) = (d.u32()?, d.u32()?);
        let is_whole = bytes.get(..BUNDLE_HEADER).map(|bytes| is_whole(bytes, VERSION, sum));
        if found != VERSION {
            return Err(FormatError::version("a bundle", found, VERSION, is_whole == Some(true)));
        }
        if !is_whole.ok_or_else(|| d.corrupt("it is too short"))? {
            return Err(d.corrupt("its checksum does not match"));
        }
        let timeline = d.timeline()?;
        let (number, epoch, writer) = (d.u64()?, Epoch(d.u64()?), WriterId(d.u64()?));
        let (index_len, index_crc, shares, zero) = (d.u32()?, d.u32()?, d.u32()?, d.u32()?);
        let (data_len, made_ms) = (d.u64()?, d.u64()?);
        if index_len > MAX_INDEX || shares as usize > MAX_SHARES || data_len > MAX_DATA || zero != 0 {
            return Err(d.corrupt("its numbers make no sense"));
        }
        Ok(Self { timeline, number, epoch, writer, index_len, shares, data_len, made_ms, index_crc })
    }

    /// Place of the data area in the object.
    #[must_use]
    pub const fn data_offset(&self) -> u64 {
        (BUNDLE_HEADER as u64 + self.index_len as u64).next_multiple_of(16)
    }

    /// Bytes of the whole object.
    #[must_use]
    pub const fn object_len(&self) -> u64 {
        self.data_offset() + self.data_len
    }

    /// Reads the index, of exactly `index_len` bytes.
    ///
    /// # Errors
    /// When it is damaged or does not fit the header.
    pub fn decode_index(&self, bytes: &[u8]) -> Result<Vec<Share>, FormatError> {
        let mut d = Decoder::new("bundle index", bytes);
        if bytes.len() != self.index_len as usize || crc(bytes) != self.index_crc {
            return Err(d.corrupt("its checksum does not match"));
        }
        let mut shares: Vec<Share> = Vec::new();
        for _ in 0..self.shares {
            let share = Share::decode(&mut d)?;
            if shares.last().is_some_and(|before| before.ordinal >= share.ordinal) {
                return Err(d.corrupt("its shares are out of order"));
            }
            shares.push(share);
        }
        if shares.iter().map(Share::data_len).sum::<u64>() != self.data_len {
            return Err(d.corrupt("its shares are not as long as the data"));
        }
        d.end()?;
        Ok(shares)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_ends_before_it_is_too_long_for_readers() {
        let extents = (0..700_000).map(|at| IndexExtent { start: at * 20_000, blocks: 1, hole: at != 0 }).collect();
        let history =
            History { stream_epoch: Epoch(1), first: Sequence(1), last: Sequence(2), extents, marks: Vec::new() };
        let mut share = Share {
            ordinal: Ordinal(0),
            blocks: BlockSet::all(1),
            codec: Codec::Raw,
            chunks: Vec::new(),
            history: Some(history),
        };
        let mut index = BundleIndex::default();
        let mut taken = 0;
        while index.push(&share) {
            taken += 1;
            share.ordinal = Ordinal(taken);
        }
        assert!((3..20).contains(&taken), "{taken}");
        let facts = BundleFacts {
            timeline: TimelineId::from_bytes([7; 16]),
            number: 1,
            epoch: Epoch(1),
            writer: WriterId(1),
            made_ms: 0,
        };
        let bytes = index.encode_head(&facts);
        let header = BundleHeader::decode(&bytes).unwrap();
        let shares = header.decode_index(&bytes[BUNDLE_HEADER..][..header.index_len as usize]).unwrap();
        assert_eq!(shares.len() as u64, taken);
        share.history = None;
        share.ordinal = Ordinal(MAX_SHARES as u64);
        let mut index = BundleIndex::default();
        assert_eq!((0..=MAX_SHARES).filter(|_| index.push(&share)).count(), MAX_SHARES);
    }

    fn shares() -> Vec<Share> {
        let history = History {
            stream_epoch: Epoch(2),
            first: Sequence(10),
            last: Sequence(19),
            extents: vec![
                IndexExtent { start: 7, blocks: 9, hole: false },
                IndexExtent { start: 20, blocks: 3, hole: true },
            ],
            marks: vec![Mark::Size { sequence: Sequence(12), size: 1 << 30 }],
        };
        let share = |ordinal, blocks, codec, chunks, history| Share {
            ordinal: Ordinal(ordinal),
            blocks,
            codec,
            chunks,
            history,
        };
        vec![
            share(3, BlockSet::new(9, &[0, 8]), Codec::Raw, Vec::new(), Some(history)),
            share(4, BlockSet::all(9), Codec::Lz4, vec![3000, 4112], None),
            share(9, BlockSet::new(100, &[]), Codec::Raw, Vec::new(), None),
        ]
    }

    fn head(shares: &[Share]) -> Vec<u8> {
        let facts = BundleFacts {
            timeline: TimelineId::from_bytes([7; 16]),
            number: 5,
            epoch: Epoch(3),
            writer: WriterId(0xabcd),
            made_ms: 99,
        };
        encode_head(&facts, shares)
    }

    fn read(bytes: &[u8]) -> Result<(BundleHeader, Vec<Share>), FormatError> {
        let header = BundleHeader::decode(bytes)?;
        let index = bytes.get(BUNDLE_HEADER..BUNDLE_HEADER + header.index_len as usize);
        let shares = header.decode_index(index.unwrap_or_default())?;
        Ok((header, shares))
    }

    #[test]
    fn a_head_comes_back() {
        let bytes = head(&shares());
        let (header, found) = read(&bytes).unwrap();
        assert_eq!(found, shares());
        assert_eq!((header.number, header.epoch, header.writer, header.made_ms), (5, Epoch(3), WriterId(0xabcd), 99));
        assert_eq!(header.data_offset(), bytes.len() as u64);
        assert_eq!(header.data_len, 2 * RAW_BLOCK as u64 + 3000 + 4112);
        assert_eq!(header.object_len(), header.data_offset() + header.data_len);
    }

    #[test]
    fn a_flipped_bit_or_a_cut_end_is_noticed() {
        let bytes = head(&shares());
        let end = BUNDLE_HEADER + BundleHeader::decode(&bytes).unwrap().index_len as usize;
        assert!((0..end).all(|cut| read(&bytes[..cut]).is_err()));
        for bit in 0..end * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn shares_out_of_order_are_refused() {
        let mut twice = shares();
        twice.swap(0, 1);
        assert!(read(&head(&twice)).is_err());
        twice[1].ordinal = twice[0].ordinal;
        assert!(read(&head(&twice)).is_err());
    }
}
