// SPDX-License-Identifier: Apache-2.0
//! How far a watch has come, exactly enough to go on elsewhere with nothing missed and nothing told twice.
//!
//! A stream may break between two parts of a large response, in the middle of a revision. So a position is a revision and how many of its events were
//! told. The events of a revision come in the same order from every member, for they are the row of changes that one transaction made.
//!
//! A stream is asked for from one revision before the one that is wanted, and what belongs to that is dropped: an etcd before 3.5.18 that was compacted
//! at the very revision that is asked for leaves out the deletions of that revision without a word. Asked for the one before, it says that it was
//! compacted.

use crate::proto::WatchEvent;

/// How far a watch has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    /// The first revision that was not told whole.
    next: i64,
    /// How many of its events were told.
    told: usize,
    /// How many of its events came in this stream.
    came: usize,
}

impl Position {
    /// Everything from `next` on is still to be told.
    pub(crate) fn new(next: i64) -> Self {
        Self { next, told: 0, came: 0 }
    }

    /// A stream begins. Gives the revision to ask for.
    pub(crate) fn begin(&mut self) -> i64 {
        self.came = 0;
        (self.next - 1).max(1)
    }

    /// Takes a response, or a part of one that is not the last. Gives its events that were not told yet.
    pub(crate) fn take(&mut self, events: Vec<WatchEvent>, is_last_part: bool) -> Vec<WatchEvent> {
        let mut new = Vec::with_capacity(events.len());
        for event in events {
            let revision = event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
            if revision < self.next {
                continue;
            }
            if revision > self.next {
                *self = Self::new(revision);
            }
            self.came += 1;
            if self.came > self.told {
                self.told = self.came;
                new.push(event);
            }
        }
        // A response has whole revisions.
        if is_last_part && self.came > 0 {
            *self = Self::new(self.next + 1);
        }
        new
    }

    /// The server says that everything up to this revision was told.
    pub(crate) fn skip_to(&mut self, revision: i64) {
        if revision >= self.next && self.came == 0 {
            *self = Self::new(revision + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::KeyValue;
    use proptest::prelude::*;

    fn event(revision: i64, number: usize) -> WatchEvent {
        let kv = KeyValue { key: number.to_string().into_bytes(), mod_revision: revision, value: Vec::new() };
        WatchEvent { r#type: 0, kv: Some(kv) }
    }

    /// What a server would send from `from` on: parts of responses, each with whether it is the last of its response.
    fn served(history: &[WatchEvent], from: i64, split: usize) -> Vec<(Vec<WatchEvent>, bool)> {
        let wanted: Vec<_> =
            history.iter().filter(|event| event.kv.as_ref().unwrap().mod_revision >= from).cloned().collect();
        let mut parts = Vec::new();
        // Two revisions a response, cut into parts.
        for response in
            wanted.chunk_by(|a, b| a.kv.as_ref().unwrap().mod_revision / 2 == b.kv.as_ref().unwrap().mod_revision / 2)
        {
            let cut: Vec<_> = response.chunks(split).collect();
            parts.extend(cut.iter().enumerate().map(|(n, part)| (part.to_vec(), n + 1 == cut.len())));
        }
        parts
    }

    proptest! {
        /// Streams that break after any number of parts, with parts of any size: everything is told once, in order.
        #[test]
        fn breaks_anywhere_lose_and_repeat_nothing(
            sizes in prop::collection::vec(0_usize..5, 1..12),
            breaks in prop::collection::vec((0_usize..6, 1_usize..4), 0..12),
            first in 1_i64..4,
        ) {
            let history: Vec<WatchEvent> = sizes
                .iter()
                .enumerate()
                .flat_map(|(n, size)| (0..*size).map(move |number| event(n as i64 + 1, number)))
                .collect();
            let mut position = Position::new(first);
            let mut told = Vec::new();
            for (parts, split) in breaks.into_iter().chain([(usize::MAX, 2)]) {
                let from = position.begin();
                for (part, is_last) in served(&history, from, split).into_iter().take(parts) {
                    told.extend(position.take(part, is_last));
                }
            }
            let expected: Vec<_> = history.into_iter().filter(|event| event.kv.as_ref().unwrap().mod_revision >= first).collect();
            prop_assert_eq!(told, expected);
        }
    }

    #[test]
    fn one_revision_more_than_is_wanted_is_asked_for() {
        assert_eq!(Position::new(7).begin(), 6);
        assert_eq!(Position::new(1).begin(), 1);
        let mut position = Position::new(7);
        assert_eq!(position.take(vec![event(6, 0), event(7, 0)], true), [event(7, 0)]);
        assert_eq!(position.begin(), 7);
    }

    #[test]
    fn progress_moves_a_watch_on_and_never_back() {
        let mut position = Position::new(7);
        position.skip_to(3);
        assert_eq!(position.begin(), 6);
        position.skip_to(100);
        assert_eq!(position.begin(), 100);
        // In the middle of a revision nothing is skipped.
        position.take(vec![event(101, 0)], false);
        position.skip_to(101);
        assert_eq!(position.begin(), 100);
        assert_eq!(position.take(vec![event(101, 0), event(101, 1)], true), [event(101, 1)]);
    }
}
