// SPDX-License-Identifier: Apache-2.0
//! How often each operation, fault and outcome was reached: what a table of a run shows, and what a workload that has lost its teeth betrays.

use std::collections::BTreeMap;
use std::fmt;

/// Counts by name.
#[derive(Clone, Debug, Default)]
pub struct Cover(BTreeMap<&'static str, u64>);

impl Cover {
    /// Counts one more.
    pub fn count(&mut self, name: &'static str) {
        self.add(name, 1);
    }

    /// Counts so many more; zero makes the name known.
    pub fn add(&mut self, name: &'static str, count: u64) {
        *self.0.entry(name).or_default() += count;
    }

    /// Takes in the counts of another.
    pub fn merge(&mut self, other: &Self) {
        for (name, count) in &other.0 {
            self.add(name, *count);
        }
    }

    /// How often.
    #[must_use]
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// All names with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().map(|(name, count)| (*name, *count))
    }
}

impl fmt::Display for Cover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count) in &self.0 {
            writeln!(f, "{count:>12}  {name}")?;
        }
        Ok(())
    }
}
