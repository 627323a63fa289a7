// SPDX-License-Identifier: Apache-2.0
//! Whether what a guest has seen is what one register a sector may give.
//!
//! Every write writes a value of its own, so each value has a cluster: its write and the reads that saw it. A cluster's zone reaches from its first end to its last
//! begin; it is a forward zone if that is not backwards. A history of a register can be put in one order if and only if no two forward zones overlap, no backward
//! zone lies within a forward one, and nothing is read before it is written (P. B. Gibbons and E. Korach, "Testing Shared Memories", 1997).

use std::collections::BTreeMap;

/// Never.
pub(super) const NEVER: u64 = u64::MAX;

/// The operations of one sector.
#[derive(Debug, Default)]
pub(super) struct Sector {
    /// Value, begin and end of each write.
    writes: BTreeMap<u64, (u64, u64)>,
    /// The same of each read.
    reads: Vec<(u64, u64, u64)>,
}

impl Sector {
    /// A value may be written from here on; without an end, unless [`ended`](Self::ended) says so.
    pub(super) fn begun(&mut self, value: u64, begin: u64) {
        self.writes.insert(value, (begin, NEVER));
    }

    /// The write of a value was acknowledged.
    pub(super) fn ended(&mut self, value: u64, end: u64) {
        if let Some(write) = self.writes.get_mut(&value) {
            write.1 = end;
        }
    }

    /// A value was read.
    pub(super) fn read(&mut self, value: u64, begin: u64, end: u64) {
        self.reads.push((value, begin, end));
    }

    /// What is wrong, if anything is. Value 0 was there before everything.
    pub(super) fn judge(&self) -> Result<(), String> {
        let mut zones: BTreeMap<u64, (u64, u64)> =
            self.writes.iter().map(|(value, (begin, end))| (*value, (*end, *begin))).collect();
        zones.insert(0, (0, 0));
        for (value, begin, end) in &self.reads {
            let written = self.writes.get(value).map_or(0, |(begin, _)| *begin);
            let Some((first_end, last_begin)) = zones.get_mut(value) else {
                return Err(format!("{value:x} was read and never written"));
            };
            if written > *end {
                return Err(format!("{value:x} was read at {end} and written from {written} on"));
            }
            (*first_end, *last_begin) = ((*first_end).min(*end), (*last_begin).max(*begin));
        }
        let forward: Vec<_> = zones.iter().filter(|(_, (end, begin))| end < begin).collect();
        for (value, (end, begin)) in &zones {
            for (other, (other_end, other_begin)) in &forward {
                if *other == value {
                    continue;
                }
                let (from, to) = if end < begin { (*end, *begin) } else { (*begin, *end) };
                let is_wrong = if end < begin {
                    from < *other_begin && *other_end < to
                } else {
                    *other_end < from && to < *other_begin
                };
                if is_wrong {
                    return Err(format!(
                        "{value:x} ({from}..{to}) has no place beside {other:x}, which was there {other_end}..{other_begin}"
                    ));
                }
            }
        }
        Ok(())
    }
}

#[test]
fn a_register_is_told_from_what_is_none() {
    let history = |reads: &[(u64, u64, u64)]| {
        let mut sector = Sector::default();
        sector.begun(1, 10);
        sector.ended(1, 20);
        sector.begun(2, 30);
        reads.iter().for_each(|(value, begin, end)| sector.read(*value, *begin, *end));
        sector.judge()
    };
    assert!(history(&[(0, 1, 12), (1, 13, 14), (1, 25, 26), (2, 40, 41)]).is_ok());
    assert!(history(&[(1, 40, 41), (2, 50, 51)]).is_ok(), "it may come late");
    assert!(history(&[(0, 25, 26)]).is_err(), "an acknowledged write is not seen");
    assert!(history(&[(2, 40, 41), (1, 50, 51)]).is_err(), "it appeared and has vanished");
    assert!(history(&[(1, 12, 13), (0, 14, 15)]).is_err(), "the same while it is not answered");
    assert!(history(&[(2, 21, 29)]).is_err(), "from the future");
    assert!(history(&[(3, 21, 29)]).is_err());
}
