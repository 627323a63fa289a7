// SPDX-License-Identifier: Apache-2.0
//! Sets of block numbers of a segment: which blocks a bundle has of it.
//!
//! A number is looked up by its *rank*, how many of the set stand before it: that is its place in the share.
//! In the store the set has whichever form is the shortest: all of them, a list, or a bitmap; a reader takes no form that leads beyond the segment.
//!
//! Always holds: numbers are below the segment's count of blocks, each is there once, and ranks follow their order.

use crate::FormatError;
use crate::codec::{Decoder, Encoder};
use crate::table::LiveBits;
use varve_types::MAX_SEGMENT_BLOCKS;

const ALL: u8 = 0;
const LIST: u8 = 1;
const BITMAP: u8 = 2;

/// Numbers below 65,536, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSet {
    /// Numbers are below.
    end: u32,
    form: Form,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    All,
    /// Few of many.
    List(Box<[u16]>),
    /// With the number of those in all words before, for each word.
    Bitmap(Box<[(u64, u32)]>),
}

impl BlockSet {
    /// Every number below `end`.
    #[must_use]
    pub const fn all(end: u32) -> Self {
        Self { end, form: Form::All }
    }

    /// These numbers, in order, of those below `end`; in the form that takes less room.
    #[must_use]
    pub fn new(end: u32, numbers: &[u16]) -> Self {
        debug_assert!(numbers.windows(2).all(|w| w[0] < w[1]) && numbers.last().is_none_or(|n| u32::from(*n) < end));
        let form = if numbers.len() == end as usize {
            Form::All
        } else if numbers.len() * 8 <= end as usize {
            Form::List(numbers.into())
        } else {
            let mut words = vec![(0u64, 0u32); end.div_ceil(64) as usize].into_boxed_slice();
            for number in numbers {
                words[usize::from(*number) / 64].0 |= 1 << (number % 64);
            }
            Form::Bitmap(count(words))
        };
        Self { end, form }
    }

    /// Bytes of RAM that the set takes beside itself.
    #[must_use]
    pub fn heap_len(&self) -> usize {
        match &self.form {
            Form::All => 0,
            Form::List(numbers) => size_of_val(&**numbers),
            Form::Bitmap(words) => size_of_val(&**words),
        }
    }

    /// The blocks that live.
    #[must_use]
    pub fn live(live: &LiveBits) -> Self {
        let numbers: Vec<u16> = (0..live.blocks()).filter(|block| live.is_live(*block)).map(|b| b as u16).collect();
        Self::new(live.blocks(), &numbers)
    }

    /// How many blocks the segment had: every number is below.
    #[must_use]
    pub const fn end(&self) -> u32 {
        self.end
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> u32 {
        match &self.form {
            Form::All => self.end,
            Form::List(numbers) => numbers.len() as u32,
            Form::Bitmap(words) => words.last().map_or(0, |(word, before)| before + word.count_ones()),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many stand before a number; `None` where the set does not have it.
    #[must_use]
    pub fn rank(&self, number: u32) -> Option<u32> {
        match &self.form {
            Form::All => (number < self.end).then_some(number),
            Form::List(numbers) => numbers.binary_search(&u16::try_from(number).ok()?).ok().map(|at| at as u32),
            Form::Bitmap(words) => {
                let (word, before) = words.get(number as usize / 64)?;
                let bit = 1u64 << (number % 64);
                (word & bit != 0).then(|| before + (word & (bit - 1)).count_ones())
            }
        }
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        self.from_rank(0)
    }

    /// Those from the one with this rank on, in order.
    pub fn from_rank(&self, rank: u32) -> impl Iterator<Item = u16> {
        let (first, skip) = match &self.form {
            Form::All | Form::List(_) => (rank, 0),
            Form::Bitmap(words) => {
                let word = words.partition_point(|(_, before)| *before <= rank).saturating_sub(1);
                (word as u32 * 64, rank - words.get(word).map_or(0, |(_, before)| *before))
            }
        };
        let numbers = (first..self.end).map_while(move |at| match &self.form {
            Form::All => Some(Some(at as u16)),
            Form::List(numbers) => numbers.get(at as usize).map(|number| Some(*number)),
            Form::Bitmap(words) => Some((words[at as usize / 64].0 >> (at % 64) & 1 == 1).then_some(at as u16)),
        });
        numbers.flatten().skip(skip as usize)
    }

    pub(crate) fn encode(&self, e: &mut Encoder) {
        e.varint(u64::from(self.end));
        match &self.form {
            Form::All => e.u8(ALL),
            Form::List(numbers) => {
                e.u8(LIST);
                let mut next = 0;
                e.list(numbers, |e, number| {
                    e.varint(u64::from(u32::from(*number) - next));
                    next = u32::from(*number) + 1;
                });
            }
            Form::Bitmap(words) => {
                e.u8(BITMAP);
                words.iter().for_each(|(word, _)| e.u64(*word));
            }
        }
    }

    pub(crate) fn decode(d: &mut Decoder<'_>) -> Result<Self, FormatError> {
        let end = d.varint32()?;
        if end > MAX_SEGMENT_BLOCKS {
            return Err(d.corrupt(format!("a segment of {end} blocks")));
        }
        let form = match d.u8()? {
            ALL => Form::All,
            LIST => {
                let mut next = 0u64;
                let numbers = d.list(|d| {
                    let number = next.saturating_add(d.varint()?);
                    if number >= u64::from(end) {
                        return Err(d.corrupt("a block beyond the end of its segment"));
                    }
                    next = number + 1;
                    Ok(number as u16)
                })?;
                Form::List(numbers.into())
            }
            BITMAP => {
                let words = (0..end.div_ceil(64)).map(|_| Ok((d.u64()?, 0))).collect::<Result<Box<[_]>, _>>()?;
                if !end.is_multiple_of(64) && words.last().is_some_and(|(word, _)| word >> (end % 64) != 0) {
                    return Err(d.corrupt("a block beyond the end of its segment"));
                }
                Form::Bitmap(count(words))
            }
            other => return Err(d.corrupt(format!("{other} is no form of a set of blocks"))),
        };
        Ok(Self { end, form })
    }
}

/// Fills in how many stand before each word.
fn count(mut words: Box<[(u64, u32)]>) -> Box<[(u64, u32)]> {
    let mut before = 0;
    for word in &mut words {
        word.1 = before;
        before += word.0.count_ones();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_places_in_every_form() {
        let sets: [(u32, Vec<u16>); 6] = [
            (0, Vec::new()),
            (5, (0..5).collect()),
            (1000, vec![0, 63, 64, 999]),
            (200, Vec::new()),
            (130, (0..130).filter(|n| n % 3 != 1).collect()),
            (65_536, (0..=65_535).filter(|n| n % 5 == 4).collect()),
        ];
        for (end, numbers) in sets {
            let set = BlockSet::new(end, &numbers);
            assert_eq!((set.len() as usize, set.is_empty()), (numbers.len(), numbers.is_empty()));
            assert!(set.iter().eq(numbers.iter().copied()));
            for (rank, number) in numbers.iter().enumerate() {
                assert_eq!(set.rank(u32::from(*number)), Some(rank as u32));
            }
            let absent = (0..=end).filter(|n| !numbers.iter().any(|number| u32::from(*number) == *n));
            assert!(absent.take(300).all(|number| set.rank(number).is_none()));
            for rank in [0, 1, numbers.len() / 2, numbers.len()] {
                let rest = numbers.get(rank..).unwrap_or_default();
                assert!(set.from_rank(rank as u32).eq(rest.iter().copied()), "{end} from {rank}");
            }
            let mut e = Encoder::new();
            set.encode(&mut e);
            let bytes = e.finish();
            let mut d = Decoder::new("set", &bytes);
            assert_eq!(BlockSet::decode(&mut d).unwrap(), set);
            d.end().unwrap();
            assert!((0..bytes.len()).all(|cut| BlockSet::decode(&mut Decoder::new("set", &bytes[..cut])).is_err()));
        }
    }

    #[test]
    fn numbers_beyond_the_end_are_refused() {
        for bytes in [&[2, LIST, 1, 2][..], &[2, LIST, 2, 1, 0], &[2, BITMAP, 4, 0, 0, 0, 0, 0, 0, 0], &[2, 3]] {
            assert!(BlockSet::decode(&mut Decoder::new("set", bytes)).is_err(), "{bytes:?}");
        }
    }
}
