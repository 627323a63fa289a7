// SPDX-License-Identifier: Apache-2.0
//! A map from runs of blocks to values: what layers and the overlay are made of.
//!
//! Runs are disjoint. Inserting a run cuts away what it covers of older ones; a value therefore knows how to give
//! the value of a later part of its run ([`Part::part`]). Nothing is ever merged: the number of entries is at most
//! twice the number of inserts.

use std::collections::BTreeMap;

/// A value of a run that can give the value of a part of it.
pub(crate) trait Part: Clone {
    /// The value of `len` blocks from `skip` on, within the run.
    fn part(&self, skip: u64, len: u64) -> Self;
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct ExtentMap<V> {
    runs: BTreeMap<u64, (u64, V)>,
}

impl<V> Default for ExtentMap<V> {
    fn default() -> Self {
        Self { runs: BTreeMap::new() }
    }
}

/// What stands at a block.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum At<V> {
    /// A value, for so many blocks from here on.
    Run(V, u64),
    /// Nothing, for so many blocks from here on.
    Gap(u64),
}

impl<V: Part> ExtentMap<V> {
    /// Number of runs.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// What stands at `block`, looking at most `most` blocks ahead.
    pub fn at(&self, block: u64, most: u64) -> At<V> {
        if let Some((start, (len, value))) = self.runs.range(..=block).next_back() {
            let skip = block - start;
            if skip < *len {
                let rest = (len - skip).min(most);
                return At::Run(value.part(skip, rest), rest);
            }
        }
        match self.runs.range(block..block.saturating_add(most)).next() {
            Some((next, _)) => At::Gap(next - block),
            None => At::Gap(most),
        }
    }

    /// Puts a run in; `replaced` is told of every older part that it covers.
    pub fn insert(&mut self, start: u64, len: u64, value: V, mut replaced: impl FnMut(u64, u64, V)) {
        debug_assert!(len > 0);
        // The usual case of a random write: the same block again.
        if let Some((old_len, old)) = self.runs.get_mut(&start)
            && *old_len == len
        {
            let old = std::mem::replace(old, value);
            replaced(start, len, old);
            return;
        }
        self.carve(start, len, &mut replaced);
        self.runs.insert(start, (len, value));
    }

    /// Takes out what stands in the range, telling of every part.
    pub fn carve(&mut self, start: u64, len: u64, replaced: &mut impl FnMut(u64, u64, V)) {
        let end = start + len;
        if let Some((before, (before_len, value))) = self.runs.range_mut(..start).next_back() {
            let (before, old_len) = (*before, *before_len);
            if before + old_len > start {
                let head = start - before;
                let covered = (old_len - head).min(len);
                replaced(start, covered, value.part(head, covered));
                let tail = (before + old_len > end).then(|| value.part(end - before, before + old_len - end));
                *value = value.part(0, head);
                *before_len = head;
                if let Some(tail) = tail {
                    self.runs.insert(end, (before + old_len - end, tail));
                    return;
                }
            }
        }
        while let Some((&at, _)) = self.runs.range(start..end).next() {
            let (old_len, value) = self.runs.remove(&at).expect("it was just seen");
            if at + old_len > end {
                let covered = end - at;
                replaced(at, covered, value.part(0, covered));
                self.runs.insert(end, (at + old_len - end, value.part(covered, old_len - covered)));
            } else {
                replaced(at, old_len, value);
            }
        }
    }

    /// All runs, in order: start, length, value.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64, &V)> {
        self.runs.iter().map(|(start, (len, value))| (*start, *len, value))
    }

    /// The runs that end behind `block`, in order: start, length, value.
    pub fn from(&self, block: u64) -> impl Iterator<Item = (u64, u64, &V)> {
        let before = self.runs.range(..block).next_back().filter(|(start, (len, _))| **start + len > block);
        before.into_iter().chain(self.runs.range(block..)).map(|(start, (len, value))| (*start, *len, value))
    }

    /// All values, to change them in place.
    pub fn values_mut(&mut self) -> impl Iterator<Item = (u64, &mut V)> {
        self.runs.values_mut().map(|(len, value)| (*len, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A value that knows which block it is of: (insert, offset in it).
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Tag(u32, u64);
    impl Part for Tag {
        fn part(&self, skip: u64, _len: u64) -> Self {
            Self(self.0, self.1 + skip)
        }
    }

    proptest! {
        #[test]
        fn does_what_an_array_does(ops in prop::collection::vec((0u64..200, 1u64..60, any::<bool>()), 1..80)) {
            let mut map = ExtentMap::default();
            let mut model: Vec<Option<Tag>> = vec![None; 300];
            for (n, (start, len, carve)) in ops.into_iter().enumerate() {
                let mut told = vec![None; 300];
                let mut note = |at: u64, n: u64, tag: Tag| {
                    for i in 0..n {
                        assert!(told[(at + i) as usize].replace(tag.part(i, 1)).is_none());
                    }
                };
                if carve {
                    map.carve(start, len, &mut note);
                } else {
                    map.insert(start, len, Tag(n as u32, 0), note);
                }
                for i in 0..300u64 {
                    let inside = i >= start && i < start + len;
                    prop_assert_eq!(&told[i as usize], if inside { &model[i as usize] } else { &None });
                    if inside {
                        model[i as usize] = (!carve).then(|| Tag(n as u32, i - start));
                    }
                }
                let from = (start + len) % 300;
                prop_assert!(map.from(from).eq(map.iter().filter(|(start, len, _)| start + len > from)));
                for i in 0..300u64 {
                    match map.at(i, 300 - i) {
                        At::Run(tag, run) => (0..run).for_each(|k| {
                            assert_eq!(model[(i + k) as usize], Some(tag.part(k, 1)));
                        }),
                        At::Gap(run) => (0..run).for_each(|k| assert_eq!(model[(i + k) as usize], None)),
                    }
                }
            }
        }
    }
}
