// SPDX-License-Identifier: Apache-2.0
//! What a load has asked and was answered, and whether a disk could have answered so.
//!
//! A block is a register: it is written and read as a whole, and no value is written twice. A history of it is **linearizable** if every operation can be given a moment between
//! its invocation and its answer so that each read finds what was written last. Disks promise that of each sector, and guests count on it.
//!
//! For registers whose values are written once there is a test that needs no search (P. B. Gibbons, E. Korach: Testing Shared Memories, SIAM J. Comput. 26(4), 1997, section 4).
//! The operations of one value are a cluster; its zone reaches from the first answer to the last invocation of any of them. Where that is a stretch of time (a forward zone) the
//! register had the value throughout; else (a backward zone) at some moment of it at least. The history is linearizable if and only if no value is read before its write was
//! invoked, no two forward zones overlap, and no backward zone lies in a forward one.

use std::collections::BTreeMap;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// The value was written.
    Write,
    /// It was found.
    Read,
}

/// An operation that was answered. Times are in nanoseconds, of one clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The block.
    pub block: u64,
    /// What was done.
    pub deed: Deed,
    /// The value.
    pub value: u64,
    /// When it was asked for.
    pub invoked: u64,
    /// When it was answered.
    pub answered: u64,
}

/// The operations of one value.
#[derive(Clone, Copy, Debug)]
struct Cluster {
    value: u64,
    /// When its write was invoked; of what was there before the history, at 0.
    written: Option<u64>,
    first_read_answered: u64,
    first_answered: u64,
    last_invoked: u64,
}

impl Cluster {
    const fn is_forward(&self) -> bool {
        self.first_answered < self.last_invoked
    }

    fn start(&self) -> u64 {
        self.first_answered.min(self.last_invoked)
    }

    fn end(&self) -> u64 {
        self.first_answered.max(self.last_invoked)
    }
}

/// Whether a disk could have answered so, of which each block had the value that `before` has for it.
///
/// # Errors
/// What it could not have answered, for people.
pub fn check(before: &[u64], operations: &[Operation]) -> Result<(), String> {
    let mut blocks: BTreeMap<u64, BTreeMap<u64, Cluster>> = BTreeMap::new();
    for (block, value) in (0..).zip(before) {
        let there = Cluster {
            value: *value,
            written: Some(0),
            first_read_answered: u64::MAX,
            first_answered: 0,
            last_invoked: 0,
        };
        blocks.entry(block).or_default().insert(*value, there);
    }
    for operation in operations {
        let Operation { block, deed, value, invoked, answered } = *operation;
        let none =
            Cluster { value, written: None, first_read_answered: u64::MAX, first_answered: u64::MAX, last_invoked: 0 };
        let cluster = blocks.entry(block).or_default().entry(value).or_insert(none);
        cluster.first_answered = cluster.first_answered.min(answered);
        cluster.last_invoked = cluster.last_invoked.max(invoked);
        match deed {
            Deed::Read => cluster.first_read_answered = cluster.first_read_answered.min(answered),
            Deed::Write if cluster.written.is_some() => {
                return Err(format!("value {value:#x} was written to block {block} twice"));
            }
            Deed::Write => cluster.written = Some(invoked),
        }
    }
    blocks.iter().try_for_each(|(block, clusters)| {
        let clusters: Vec<Cluster> = clusters.values().copied().collect();
        check_block(&clusters).map_err(|why| format!("block {block}: {why}"))
    })
}

fn check_block(clusters: &[Cluster]) -> Result<(), String> {
    for cluster in clusters {
        let value = cluster.value;
        let written = cluster.written.ok_or_else(|| format!("{value:#x} was read, and nobody has written it there"))?;
        if cluster.first_read_answered < written {
            return Err(format!("{value:#x} was read before it was written"));
        }
    }
    let (mut forward, backward): (Vec<Cluster>, Vec<Cluster>) =
        clusters.iter().partition(|cluster| cluster.is_forward());
    forward.sort_by_key(Cluster::start);
    for pair in forward.windows(2) {
        if pair[1].start() < pair[0].end() {
            let (one, other, at) = (pair[0].value, pair[1].value, pair[1].start());
            return Err(format!("{one:#x} and {other:#x} were both there at {at} ns"));
        }
    }
    for inner in &backward {
        let before = forward.partition_point(|zone| zone.start() < inner.start());
        let around = before.checked_sub(1).map(|at| &forward[at]).filter(|zone| inner.end() < zone.end());
        if let Some(zone) = around {
            let (value, there, from, to) = (inner.value, zone.value, zone.start(), zone.end());
            return Err(format!("{value:#x} was there while {there:#x} was, from {from} to {to} ns"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(value: u64, invoked: u64, answered: u64) -> Operation {
        Operation { block: 0, deed: Deed::Write, value, invoked, answered }
    }

    fn read(value: u64, invoked: u64, answered: u64) -> Operation {
        Operation { block: 0, deed: Deed::Read, value, invoked, answered }
    }

    #[test]
    fn what_a_disk_may_answer_passes() {
        let histories: [&[Operation]; 6] = [
            &[],
            &[read(7, 10, 20), write(1, 30, 40), read(1, 50, 60), write(2, 70, 80), read(2, 90, 100)],
            // While a write is under way either value is right, first the old one.
            &[write(1, 10, 100), read(7, 20, 30), read(1, 40, 50), read(1, 110, 120)],
            // Two writes at once, in either order.
            &[write(1, 10, 100), write(2, 20, 90), read(1, 110, 120)],
            &[write(1, 10, 100), write(2, 20, 90), read(2, 110, 120)],
            // Overwritten before anybody looks.
            &[write(1, 10, 20), write(2, 30, 40), read(2, 50, 60)],
        ];
        for (at, history) in histories.iter().enumerate() {
            assert_eq!(check(&[7], history), Ok(()), "{at}");
        }
    }

    #[test]
    fn what_no_disk_answers_is_found() {
        let histories: [(&str, &[Operation]); 8] = [
            ("lost", &[write(1, 10, 20), read(7, 30, 40)]),
            ("stale", &[write(1, 10, 20), write(2, 30, 40), read(1, 50, 60)]),
            ("back and forth", &[write(1, 10, 100), read(1, 20, 30), read(7, 40, 50)]),
            ("done twice", &[write(1, 10, 20), read(1, 21, 22), write(2, 30, 40), read(2, 41, 42), read(1, 50, 60)]),
            (
                "done again over a newer one",
                &[write(1, 10, 20), write(2, 30, 40), read(2, 50, 60), read(1, 70, 80), read(2, 90, 95)],
            ),
            ("from the future", &[read(1, 10, 20), write(1, 30, 40)]),
            ("from nowhere", &[read(9, 10, 20)]),
            (
                "two orders",
                &[write(1, 10, 100), write(2, 20, 90), read(1, 110, 120), read(2, 130, 140), read(1, 150, 160)],
            ),
        ];
        for (what, history) in histories {
            assert!(check(&[7], history).is_err(), "{what}");
        }
    }

    #[test]
    fn blocks_are_each_for_themselves() {
        let other = |operation: Operation| Operation { block: 1, ..operation };
        let history = [write(1, 10, 20), other(write(2, 30, 40)), read(1, 50, 60), other(read(2, 50, 60))];
        assert_eq!(check(&[7, 8], &history), Ok(()));
        let wrong = [write(1, 10, 20), other(read(1, 30, 40))];
        assert!(check(&[7, 8], &wrong).unwrap_err().starts_with("block 1"));
    }

    /// Whether some order explains the history, by trying all.
    fn by_search(value: u64, left: &[Operation]) -> bool {
        let first_answer = left.iter().map(|operation| operation.answered).min();
        left.is_empty()
            || left.iter().enumerate().any(|(at, next)| {
                let may_be_next = first_answer.is_some_and(|answered| next.invoked <= answered);
                let fits = next.deed == Deed::Write || next.value == value;
                let mut rest = left.to_vec();
                rest.remove(at);
                may_be_next && fits && by_search(next.value, &rest)
            })
    }

    #[test]
    fn it_says_what_a_search_says() {
        let mut state = 1_u64;
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let (mut good, mut bad) = (0, 0);
        for _ in 0..20_000 {
            let writes = 1 + random(3);
            let mut history = Vec::new();
            // No two moments are the same.
            let mut moments: Vec<u64> = (1..=14).collect();
            let mut span = |random: &mut dyn FnMut(u64) -> u64| {
                let mut take = || {
                    let at = random(moments.len() as u64) as usize;
                    moments.swap_remove(at)
                };
                let (one, other) = (take(), take());
                (one.min(other), one.max(other))
            };
            for value in 1..=writes {
                let (invoked, answered) = span(&mut random);
                history.push(write(value, invoked, answered));
            }
            for _ in 0..1 + random(3) {
                let value = random(writes + 1);
                let (invoked, answered) = span(&mut random);
                history.push(read(value, invoked, answered));
            }
            let expected = by_search(0, &history);
            assert_eq!(check(&[0], &history).is_ok(), expected, "{history:?}");
            if expected { good += 1 } else { bad += 1 }
        }
        assert!(good > 1000 && bad > 1000, "{good} and {bad}");
    }
}
