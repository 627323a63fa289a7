// SPDX-License-Identifier: Apache-2.0
//! Which block each frame of a cache device holds, and where a block is.
//!
//! Exact and in RAM, so a miss costs the device nothing: 16 bytes a frame, and 5 to 10 in the table that leads to it. That is an open
//! table with linear probing that never grows and has no graves: a device has millions of frames, and a shard must not stand still
//! while they are all put in order. Memory that was never used is never touched either. Timelines are numbered, for as long as a frame
//! names them.
//!
//! Always holds: the table has exactly the frames whose slot is taken, each key once, none behind an empty place of its way; a
//! timeline has a number exactly while a slot names it.

use crate::cache::CacheKey;
use std::collections::BTreeMap;
use varve_types::{Ordinal, TimelineId};

/// Number of a frame on its device.
pub(super) type Frame = u32;

/// What a frame holds: ordinal and block, one added, or 0 for nothing; and the timeline's number, [`USED`] and the checksum. (Plain
/// numbers, so that those of a large device come as untouched zeroes.)
type Slot = [u64; 2];

/// Bit of a timeline's number that says that the block was asked for since it came.
const USED: u32 = 1 << 31;
const EMPTY: Slot = [0; 2];

const fn slot(place: u64, timeline: u32, sum: u32) -> Slot {
    [place + 1, (timeline as u64) << 32 | sum as u64]
}

/// Ordinal and block, the timeline's number, the checksum.
const fn parts(slot: Slot) -> Option<(u64, u32, u32)> {
    match slot[0].checked_sub(1) {
        Some(place) => Some((place, (slot[1] >> 32) as u32 & !USED, slot[1] as u32)),
        None => None,
    }
}

/// See the module.
pub(super) struct Index {
    slots: Vec<Slot>,
    /// Frames, one added; 0 where there is none. As many places as a power of two.
    table: Vec<u32>,
    taken: usize,
    numbers: BTreeMap<TimelineId, u32>,
    /// By number: the timeline, and how many frames name it.
    timelines: Vec<(TimelineId, u32)>,
    /// Numbers that no timeline has.
    unused: Vec<u32>,
}

/// Spreads a key over 64 bits (the finalizer of SplitMix64).
fn hash(place: u64, timeline: u32) -> u64 {
    let mut z = place ^ (u64::from(timeline) << 52).wrapping_add(u64::from(timeline));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn place_of(key: &CacheKey) -> u64 {
    key.ordinal.0 << 16 | u64::from(key.block)
}

impl Index {
    /// One for so many frames, all empty.
    pub fn new(frames: usize) -> Self {
        Self {
            slots: vec![EMPTY; frames],
            table: vec![0; (frames + frames / 4 + 1).next_power_of_two()],
            taken: 0,
            numbers: BTreeMap::new(),
            timelines: Vec::new(),
            unused: Vec::new(),
        }
    }

    /// Where the way of a key begins.
    fn home(&self, place: u64, timeline: u32) -> usize {
        hash(place, timeline) as usize & (self.table.len() - 1)
    }

    /// The place in the table that leads to a slot with these parts, or the empty one at the end of its way.
    fn way(&self, place: u64, timeline: u32) -> usize {
        let mut at = self.home(place, timeline);
        while let Some(frame) = self.table[at].checked_sub(1) {
            if matches!(parts(self.slots[frame as usize]), Some((p, t, _)) if (p, t) == (place, timeline)) {
                break;
            }
            at = (at + 1) & (self.table.len() - 1);
        }
        at
    }

    /// The frame of a block.
    pub fn find(&self, key: &CacheKey) -> Option<Frame> {
        let timeline = *self.numbers.get(&key.timeline)?;
        self.table[self.way(place_of(key), timeline)].checked_sub(1)
    }

    /// What a frame holds, with its checksum.
    pub fn at(&self, frame: Frame) -> Option<(CacheKey, u32)> {
        let (place, number, sum) = parts(self.slots[frame as usize])?;
        let (timeline, _) = self.timelines[number as usize];
        Some((CacheKey { timeline, ordinal: Ordinal(place >> 16), block: place as u16 }, sum))
    }

    /// Notes that the block in a frame was asked for.
    pub fn mark_used(&mut self, frame: Frame) {
        self.slots[frame as usize][1] |= u64::from(USED) << 32;
    }

    /// Whether the block in a frame was asked for since it came.
    pub fn is_used(&self, frame: Frame) -> bool {
        let slot = self.slots[frame as usize];
        slot != EMPTY && slot[1] >> 32 & u64::from(USED) != 0
    }

    /// Says what an empty frame holds from now on. The block must be in no other.
    pub fn put(&mut self, frame: Frame, key: &CacheKey, sum: u32) {
        debug_assert!(self.at(frame).is_none() && self.find(key).is_none());
        let number = self.number(key.timeline);
        self.timelines[number as usize].1 += 1;
        let at = self.way(place_of(key), number);
        self.table[at] = frame + 1;
        self.slots[frame as usize] = slot(place_of(key), number, sum);
        self.taken += 1;
    }

    /// The number of a timeline, which gets one if it has none.
    fn number(&mut self, timeline: TimelineId) -> u32 {
        if let Some(number) = self.numbers.get(&timeline) {
            return *number;
        }
        let number = self.unused.pop().unwrap_or(self.timelines.len() as u32);
        if number as usize == self.timelines.len() {
            self.timelines.push((timeline, 0));
        }
        self.timelines[number as usize] = (timeline, 0);
        self.numbers.insert(timeline, number);
        number
    }

    /// Empties a frame.
    pub fn drop_frame(&mut self, frame: Frame) {
        let Some((place, number, _)) = parts(self.slots[frame as usize]) else { return };
        self.close(self.way(place, number));
        self.slots[frame as usize] = EMPTY;
        self.taken -= 1;
        let (timeline, frames) = &mut self.timelines[number as usize];
        *frames -= 1;
        if *frames == 0 {
            self.numbers.remove(timeline);
            self.unused.push(number);
        }
    }

    /// Takes a frame out of the table, and lets those behind it move up whose way leads over its place (Knuth, volume 3, 6.4, algorithm R).
    fn close(&mut self, mut hole: usize) {
        let mask = self.table.len() - 1;
        let mut at = hole;
        loop {
            self.table[hole] = 0;
            loop {
                at = (at + 1) & mask;
                let Some(frame) = self.table[at].checked_sub(1) else { return };
                let home = parts(self.slots[frame as usize]).map_or(at, |(place, number, _)| self.home(place, number));
                // Whether its way begins at or before the hole.
                if at.wrapping_sub(home) & mask >= at.wrapping_sub(hole) & mask {
                    break;
                }
            }
            self.table[hole] = self.table[at];
            hole = at;
        }
    }

    /// Frames that hold something.
    pub fn len(&self) -> usize {
        self.taken
    }

    /// Frames that hold blocks of a timeline.
    pub fn len_of(&self, timeline: TimelineId) -> u64 {
        self.numbers.get(&timeline).map_or(0, |number| u64::from(self.timelines[*number as usize].1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a map: whatever is put and dropped.
        #[test]
        fn it_says_what_a_map_says(steps in proptest::collection::vec((0u32..24, 0u8..3, 0u64..4, 0u16..3), 0..300)) {
            let (mut index, mut model) = (Index::new(24), BTreeMap::<Frame, (CacheKey, u32)>::new());
            for (frame, timeline, ordinal, block) in steps {
                let key = CacheKey { timeline: TimelineId::from_bytes([timeline; 16]), ordinal: Ordinal(ordinal), block };
                let there = model.iter().find(|(_, (other, _))| *other == key).map(|(frame, _)| *frame);
                prop_assert_eq!(index.find(&key), there);
                if model.remove(&frame).is_some() {
                    index.drop_frame(frame);
                    prop_assert!(!index.is_used(frame));
                } else if there.is_none() {
                    index.put(frame, &key, frame + 7);
                    model.insert(frame, (key, frame + 7));
                    prop_assert!(!index.is_used(frame));
                    index.mark_used(frame);
                    prop_assert!(index.is_used(frame));
                }
                prop_assert_eq!(index.len(), model.len());
                for frame in 0..24 {
                    prop_assert_eq!(index.at(frame), model.get(&frame).copied());
                }
                let of = model.values().filter(|(other, _)| other.timeline == key.timeline).count();
                prop_assert_eq!(index.len_of(key.timeline), of as u64);
            }
        }
    }
}
