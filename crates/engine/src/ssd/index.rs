// SPDX-License-Identifier: Apache-2.0
//! Which block each frame of a cache device holds, and where a block is.
//!
//! Exact and in RAM, so a miss costs the device nothing: 16 bytes a frame, and 5 to 10 in the table that leads to it. Timelines are
//! numbered for that, for as long as a frame names them.
//!
//! Always holds: the table has exactly the frames whose slot is taken, each key once; a timeline has a number exactly while a slot
//! names it.

use crate::cache::CacheKey;
use hashbrown::HashTable;
use std::collections::BTreeMap;
use varve_types::{Ordinal, TimelineId};

/// Number of a frame on its device.
pub(super) type Frame = u32;

/// Bit of a slot's timeline that says that its block was asked for since it came.
const USED: u32 = 1 << 31;
/// The place of a slot that nothing is in.
const EMPTY: u64 = u64::MAX;

#[derive(Clone, Copy)]
struct Slot {
    /// Ordinal and block, or [`EMPTY`].
    place: u64,
    /// The timeline's number, and [`USED`].
    timeline: u32,
    sum: u32,
}

/// See the module.
pub(super) struct Index {
    slots: Vec<Slot>,
    table: HashTable<Frame>,
    numbers: BTreeMap<TimelineId, u32>,
    /// By number: the timeline, and how many frames name it.
    timelines: Vec<(TimelineId, u32)>,
    /// Numbers that no timeline has.
    unused: Vec<u32>,
}

/// Spreads a key over 64 bits (the finalizer of SplitMix64).
fn hash(place: u64, timeline: u32) -> u64 {
    let mut z = place ^ (u64::from(timeline & !USED) << 52).wrapping_add(u64::from(timeline & !USED));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn place(key: &CacheKey) -> u64 {
    key.ordinal.0 << 16 | u64::from(key.block)
}

impl Index {
    /// One for so many frames, all empty.
    pub fn new(frames: usize) -> Self {
        let slot = Slot { place: EMPTY, timeline: 0, sum: 0 };
        Self {
            slots: vec![slot; frames],
            table: HashTable::new(),
            numbers: BTreeMap::new(),
            timelines: Vec::new(),
            unused: Vec::new(),
        }
    }

    /// The frame of a block.
    pub fn find(&self, key: &CacheKey) -> Option<Frame> {
        let timeline = *self.numbers.get(&key.timeline)?;
        let place = place(key);
        let is_it = |frame: &Frame| {
            let slot = &self.slots[*frame as usize];
            slot.place == place && slot.timeline & !USED == timeline
        };
        self.table.find(hash(place, timeline), is_it).copied()
    }

    /// What a frame holds, with its checksum.
    pub fn at(&self, frame: Frame) -> Option<(CacheKey, u32)> {
        let slot = self.slots[frame as usize];
        if slot.place == EMPTY {
            return None;
        }
        let (timeline, _) = self.timelines[(slot.timeline & !USED) as usize];
        let (ordinal, block) = (Ordinal(slot.place >> 16), slot.place as u16);
        Some((CacheKey { timeline, ordinal, block }, slot.sum))
    }

    /// Notes that the block in a frame was asked for.
    pub fn mark_used(&mut self, frame: Frame) {
        self.slots[frame as usize].timeline |= USED;
    }

    /// Whether the block in a frame was asked for since it came.
    pub fn is_used(&self, frame: Frame) -> bool {
        let slot = self.slots[frame as usize];
        slot.place != EMPTY && slot.timeline & USED != 0
    }

    /// Says what an empty frame holds from now on. The block must be in no other.
    pub fn put(&mut self, frame: Frame, key: &CacheKey, sum: u32) {
        debug_assert!(self.at(frame).is_none() && self.find(key).is_none());
        let timeline = match self.numbers.get(&key.timeline) {
            Some(number) => *number,
            None => {
                let number = self.unused.pop().unwrap_or(self.timelines.len() as u32);
                if number as usize == self.timelines.len() {
                    self.timelines.push((key.timeline, 0));
                }
                self.timelines[number as usize] = (key.timeline, 0);
                self.numbers.insert(key.timeline, number);
                number
            }
        };
        self.timelines[timeline as usize].1 += 1;
        let place = place(key);
        self.slots[frame as usize] = Slot { place, timeline, sum };
        let slots = &self.slots;
        let hasher = |frame: &Frame| {
            let slot = &slots[*frame as usize];
            hash(slot.place, slot.timeline)
        };
        self.table.insert_unique(hash(place, timeline), frame, hasher);
    }

    /// Empties a frame.
    pub fn drop_frame(&mut self, frame: Frame) {
        let slot = self.slots[frame as usize];
        if slot.place == EMPTY {
            return;
        }
        if let Ok(found) = self.table.find_entry(hash(slot.place, slot.timeline), |other| *other == frame) {
            found.remove();
        }
        self.slots[frame as usize].place = EMPTY;
        let number = slot.timeline & !USED;
        let (timeline, frames) = &mut self.timelines[number as usize];
        *frames -= 1;
        if *frames == 0 {
            self.numbers.remove(timeline);
            self.unused.push(number);
        }
    }

    /// Frames that hold something.
    pub fn len(&self) -> usize {
        self.table.len()
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
