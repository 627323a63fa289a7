// SPDX-License-Identifier: Apache-2.0
//! The bytes that changes under way touch.
//!
//! Always holds: no two of its ranges overlap, because a change is put in only where [`Busy::is_free`] said yes. So the one whose start is the last at or
//! before a byte is the only one that can hold it, and a question costs one look into a tree, whatever the depth of the queue.

use std::collections::BTreeMap;

/// A range of bytes, its end not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Range {
    /// Of `length` bytes from `offset`, which do not end beyond what 64 bits count.
    pub(crate) const fn new(offset: u64, length: u64) -> Self {
        Self { start: offset, end: offset.saturating_add(length) }
    }

    /// Whether the two have a byte in common.
    pub(crate) const fn meets(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// The ranges of the changes under way.
#[derive(Debug, Default)]
pub(crate) struct Busy(BTreeMap<u64, u64>);

impl Busy {
    /// Whether no change under way touches the range.
    pub(crate) fn is_free(&self, range: Range) -> bool {
        self.0.range(..range.end).next_back().is_none_or(|(_, end)| *end <= range.start)
    }

    /// A change of the range begins.
    pub(crate) fn begin(&mut self, range: Range) {
        self.0.insert(range.start, range.end);
    }

    /// It has ended.
    pub(crate) fn end(&mut self, range: Range) {
        self.0.remove(&range.start);
    }

    /// Nothing is under way.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_not_blocks_decide() {
        let mut busy = Busy::default();
        busy.begin(Range::new(4096, 512));
        busy.begin(Range::new(8192, 4096));
        for (offset, length, free) in [
            (0, 4096, true),
            (0, 4097, false),
            (4608, 512, true),
            (4607, 1, false),
            (4096, 512, false),
            (4608, 3584, true),
            (4608, 3585, false),
            (0, 1 << 40, false),
            (12_288, 1 << 40, true),
        ] {
            assert_eq!(busy.is_free(Range::new(offset, length)), free, "{offset} {length}");
        }
        busy.end(Range::new(4096, 512));
        assert!(busy.is_free(Range::new(0, 8192)));
    }
}
