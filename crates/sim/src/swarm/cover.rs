// SPDX-License-Identifier: Apache-2.0
//! How often each operation, fault, rare branch and outcome was reached: what a table of a run shows, and what a workload that has lost its teeth betrays.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use varve_types::branch::take_counts;

/// Counts by name.
#[derive(Clone, Debug, Default)]
pub struct Cover(BTreeMap<Cow<'static, str>, u64>);

impl Cover {
    /// Counts one more.
    pub fn count(&mut self, name: &'static str) {
        self.add(name, 1);
    }

    /// Counts so many more; zero makes the name known.
    pub fn add(&mut self, name: impl Into<Cow<'static, str>>, count: u64) {
        *self.0.entry(name.into()).or_default() += count;
    }

    /// Takes in the counts of another.
    pub fn merge(&mut self, other: &Self) {
        for (name, count) in &other.0 {
            self.add(name.clone(), *count);
        }
    }

    /// Takes in how often each rare branch was reached in this thread, also those that never were. None are known to a build that does not count them.
    pub fn take_branches(&mut self) {
        for (branch, count) in take_counts() {
            self.add(format!("branch: {branch}"), count);
        }
    }

    /// How often.
    #[must_use]
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// All names with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, count)| (&**name, *count))
    }

    /// The table of many runs: with a `!` at what was reached fewer than `enough` times, and a last line that says how many those are.
    pub fn judged(&self, enough: u64) -> impl fmt::Display {
        fmt::from_fn(move |f| {
            for (name, count) in self.iter() {
                let mark = if count < enough { '!' } else { ' ' };
                writeln!(f, "{count:>12} {mark} {name}")?;
            }
            let few = self.iter().filter(|(_, count)| *count < enough).count();
            let all = self.0.len();
            writeln!(f, "{few} of {all} operations, faults and branches were reached fewer than {enough} times")
        })
    }
}

impl fmt::Display for Cover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count) in self.iter() {
            writeln!(f, "{count:>12}  {name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_reached_too_seldom_is_marked_and_counted() {
        let (mut all, mut one) = (Cover::default(), Cover::default());
        one.add("op: read", 60);
        one.add("fault: none", 0);
        all.count("op: flush");
        all.merge(&one);
        all.merge(&one);
        let table = all.judged(100).to_string();
        let lines: Vec<&str> = table.lines().collect();
        let counts = ["           0 ! fault: none", "           1 ! op: flush", "         120   op: read"];
        assert_eq!(lines[..3], counts);
        assert_eq!(lines[3], "2 of 3 operations, faults and branches were reached fewer than 100 times");
    }

    #[test]
    fn every_branch_has_a_row_in_a_build_that_counts() {
        use varve_types::branch::{Branch, reached};
        let mut cover = Cover::default();
        cover.take_branches();
        reached(Branch::JournalPad);
        cover.take_branches();
        let counts = cfg!(feature = "mutants");
        assert_eq!(cover.iter().count(), if counts { Branch::ALL.len() } else { 0 });
        assert_eq!(cover.get("branch: journal-pad"), u64::from(counts));
    }
}
