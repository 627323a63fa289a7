// SPDX-License-Identifier: Apache-2.0
//! The plain array that a volume is compared with, kept by block so that a copy of it for each snapshot is small.
//!
//! A change is what a client asked for. A change that was not answered, or that a power cut may have cut through, may have come through for some of its
//! blocks and not for others; [`Disk::explains`] says whether what was found can be explained so.

use std::collections::BTreeMap;
use std::rc::Rc;

/// Bytes of a block.
pub const BLOCK: u64 = 4096;

/// Contents of a block; absent ones are zeroes.
type Block = Rc<[u8; BLOCK as usize]>;

/// What a client asked for.
#[derive(Clone, Debug)]
pub enum Change {
    Write { offset: u64, len: u64, stamp: u64 },
    Zero { offset: u64, len: u64 },
}

/// Bytes of a write: every word tells the write and its own place; of every second write they do not compress.
pub fn bytes_of(stamp: u64, len: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len as usize);
    let hard = stamp.is_multiple_of(2);
    for word in 0..len / 8 {
        let sector = word / 64 + 1;
        let mut value = stamp << 20 | sector;
        if hard {
            value ^= (value ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        }
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    pub size: u64,
    blocks: BTreeMap<u64, Block>,
}

impl Disk {
    pub fn new(size: u64) -> Self {
        Self { size, blocks: BTreeMap::new() }
    }

    /// Takes bytes in; blocks of zeroes are not kept.
    pub fn put(&mut self, offset: u64, bytes: &[u8]) {
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let (block, skip) = (at / BLOCK, (at % BLOCK) as usize);
            let take = rest.len().min(BLOCK as usize - skip);
            let mut whole = self.blocks.get(&block).map_or([0; BLOCK as usize], |old| **old);
            whole[skip..skip + take].copy_from_slice(&rest[..take]);
            if whole.iter().all(|byte| *byte == 0) {
                self.blocks.remove(&block);
            } else {
                self.blocks.insert(block, Rc::new(whole));
            }
            at += take as u64;
            rest = &rest[take..];
        }
    }

    fn zero(&mut self, offset: u64, len: u64) {
        let end = offset + len;
        let (first, last) = (offset.div_ceil(BLOCK), end / BLOCK);
        if first <= last {
            let inside: Vec<u64> = self.blocks.range(first..last).map(|(block, _)| *block).collect();
            for block in inside {
                self.blocks.remove(&block);
            }
        }
        let mut edge = |from: u64, to: u64| {
            if from < to && self.blocks.contains_key(&(from / BLOCK)) {
                self.put(from, &vec![0; (to - from) as usize]);
            }
        };
        edge(offset, end.min(first * BLOCK));
        if last >= first {
            edge(last * BLOCK, end);
        }
    }

    /// Makes a change.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { offset, len, stamp } => self.put(*offset, &bytes_of(*stamp, *len)),
            Change::Zero { offset, len } => self.zero(*offset, *len),
        }
    }

    /// The first block in which the two differ, if any.
    pub fn difference(&self, other: &Self) -> Option<u64> {
        let all = self.blocks.keys().chain(other.blocks.keys());
        all.filter(|block| self.blocks.get(block) != other.blocks.get(block)).min().copied()
    }

    /// Whether this is what `before` may be while `change` is made: each block of its range old or new, all else as before.
    pub fn explains(&self, before: &Self, change: &Change) -> bool {
        let mut after = before.clone();
        after.apply(change);
        let mut all = self.blocks.keys().chain(before.blocks.keys()).chain(after.blocks.keys());
        let fits = all.all(|block| {
            let found = self.blocks.get(block);
            found == before.blocks.get(block) || found == after.blocks.get(block)
        });
        self.size == before.size && fits
    }

    /// Words of a block that tell who wrote it: for people.
    pub fn describe(&self, block: u64) -> String {
        let Some(bytes) = self.blocks.get(&block) else { return "zeroes".to_owned() };
        let words = bytes.chunks(512).map(|sector| {
            let word = u64::from_le_bytes([
                sector[0], sector[1], sector[2], sector[3], sector[4], sector[5], sector[6], sector[7],
            ]);
            format!("{word:x}")
        });
        words.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn does_what_an_array_does() {
        let mut disk = Disk::new(8 * BLOCK);
        let mut array = vec![0u8; 8 * BLOCK as usize];
        for n in 1..200u64 {
            let offset = (n * 37 % 60) * 512;
            let len = ((n * 13 % 20) + 1) * 512;
            let len = len.min(8 * BLOCK - offset);
            if n % 3 == 0 {
                disk.apply(&Change::Zero { offset, len });
                array[offset as usize..(offset + len) as usize].fill(0);
            } else {
                disk.apply(&Change::Write { offset, len, stamp: n });
                array[offset as usize..(offset + len) as usize].copy_from_slice(&bytes_of(n, len));
            }
            let mut whole = Disk::new(8 * BLOCK);
            whole.put(0, &array);
            assert_eq!(disk.difference(&whole), None, "step {n}");
        }
    }
}
