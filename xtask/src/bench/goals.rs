// SPDX-License-Identifier: Apache-2.0
//! What the figures should be: ratios to a peer measured in the same rounds, and a few absolute ones.
//!
//! A goal compares the median of the ratios of the rounds with its bound. One that was not measured in this run, because a
//! group or a target was left out, is neither met nor missed. Rows that are ratios themselves, because both sides are of one server,
//! are compared as they are.

use super::stats::{Samples, Spread};
use serde::Serialize;

/// Which way a goal looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// The figure is at least the bound.
    AtLeast,
    /// The figure is at most the bound.
    AtMost,
}

/// A goal.
pub struct Goal {
    /// Its name in the JSON.
    pub key: &'static str,
    /// The row of ours.
    pub row: &'static str,
    /// The row and target it is divided by; `None` for an absolute figure.
    pub by: Option<(&'static str, &'static str)>,
    /// Which way.
    pub bound: Bound,
    /// The bound.
    pub limit: f64,
}

/// The target that the goals are for.
pub const OURS: &str = "varve";
const MEMORY: &str = "nbdkit-memory";

const fn ratio(
    key: &'static str,
    row: &'static str,
    by: (&'static str, &'static str),
    bound: Bound,
    limit: f64,
) -> Goal {
    Goal { key, row, by: Some(by), bound, limit }
}

const fn absolute(key: &'static str, row: &'static str, limit: f64) -> Goal {
    Goal { key, row, by: None, bound: Bound::AtMost, limit }
}

/// Every goal.
pub const GOALS: [Goal; 35] = [
    ratio("write_qd1_by_memory", "write_qd1", ("write_qd1", MEMORY), Bound::AtLeast, 1.0),
    ratio("read_hit_qd1_by_memory", "read_hit_qd1", ("read_hit_qd1", MEMORY), Bound::AtLeast, 1.0),
    ratio("write_qd32_by_memory", "write_qd32", ("write_qd32", MEMORY), Bound::AtLeast, 1.0),
    ratio("read_hit_qd32_by_memory", "read_hit_qd32", ("read_hit_qd32", MEMORY), Bound::AtLeast, 1.2),
    ratio("write_flush_by_file", "write_flush_qd1", ("write_flush_qd1", "nbdkit-file"), Bound::AtLeast, 1.5),
    ratio("write_flush_by_disk", "write_flush_qd1", ("write_flush_qd1", "disk"), Bound::AtLeast, 0.7),
    ratio("flush_16_by_1_volume", "flush_16_volumes", ("flush_1_volume", OURS), Bound::AtLeast, 3.0),
    ratio("cpu_write_by_memory", "cpu_write_qd32", ("cpu_write_qd32", MEMORY), Bound::AtMost, 1.5),
    ratio("read_ssd_by_disk", "read_ssd_qd32", ("read_ssd_qd32", "disk"), Bound::AtLeast, 0.5),
    ratio("sequential_by_disk", "write_sequential", ("write_sequential", "disk"), Bound::AtLeast, 0.4),
    absolute("restart_s", "restart_first_read", 2.0),
    absolute("clean_uniform", "clean_uniform", 2.97),
    absolute("clean_zipf", "clean_zipf", 1.6),
    absolute("clean_space", "clean_space", 1.25),
    absolute("clean_p99", "clean_p99", 2.0),
    absolute("snapshot_ms", "snapshot_full_map", 10.0),
    absolute("clone_ms", "clone_full_map", 20.0),
    absolute("map_bytes_by_data", "map_bytes_ratio", 0.15),
    absolute("map_ram_random_mib", "map_ram_random", 2150.4),
    absolute("map_ram_sequential_mib", "map_ram_sequential", 20.0),
    absolute("map_budget_rss_mib", "map_budget_rss", 1638.4),
    absolute("delete_snapshot_ms", "delete_snapshot", 50.0),
    absolute("discard_ms", "discard", 50.0),
    absolute("delete_volume_ms", "delete_volume", 50.0),
    ratio("path_write_qd1_by_chain", "path_write_qd1", ("path_write_qd1", "echo-chain"), Bound::AtLeast, 1.0 / 1.5),
    ratio("path_write_qd32_by_memory", "path_write_qd32", ("path_write_qd32", MEMORY), Bound::AtLeast, 0.5),
    ratio("path_read_qd32_by_memory", "path_read_qd32", ("path_read_qd32", MEMORY), Bound::AtLeast, 0.7),
    absolute("path_cpu_write_us", "path_cpu_write_qd32", 25.0),
    absolute("path_cpu_read_us", "path_cpu_read_qd32", 25.0),
    absolute("edge_rss_idle_mib", "edge_rss_idle", 20.0),
    absolute("edge_rss_loaded_mib", "edge_rss_loaded", 60.0),
    absolute("many_serve_ms", "many_serve", 5000.0),
    absolute("failover.kill.stall_max_ms", "failover.kill.stall_max_ms", 1000.0),
    absolute("failover.cut.stall_max_ms", "failover.cut.stall_max_ms", 3000.0),
    absolute("failover.stop.stall_max_ms", "failover.stop.stall_max_ms", 3000.0),
];

/// What came of a goal.
#[derive(Serialize)]
pub struct Verdict {
    /// The figure: a ratio, or the row's own unit.
    pub figure: Spread,
    /// Which way the goal looks.
    pub bound: Bound,
    /// What it should be.
    pub limit: f64,
    /// Whether the median is.
    pub met: bool,
}

impl Goal {
    /// Compares it with what was measured; `None` if it was not.
    pub fn verdict(&self, samples: &Samples) -> Option<Verdict> {
        let figure = match self.by {
            Some(by) => samples.ratio((self.row, OURS), by)?,
            None => samples.spread(self.row, OURS)?,
        };
        let met = match self.bound {
            Bound::AtLeast => figure.median >= self.limit,
            Bound::AtMost => figure.median <= self.limit,
        };
        Some(Verdict { figure, bound: self.bound, limit: self.limit, met })
    }

    /// As people read it.
    pub fn title(&self) -> String {
        let sign = match self.bound {
            Bound::AtLeast => "≥",
            Bound::AtMost => "≤",
        };
        match self.by {
            Some((row, target)) if row == self.row => format!("{} {sign} {} × {target}", self.row, self.limit),
            Some((row, _)) => format!("{} {sign} {} × {row}", self.row, self.limit),
            None => format!("{} {sign} {}", self.row, self.limit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::groups::ROWS;
    use super::super::targets::Kind;
    use super::*;

    #[test]
    fn goals_name_rows_and_targets_that_exist_and_are_documented() {
        let text = std::fs::read_to_string(crate::repo::root().join("docs/benchmarks.md")).unwrap();
        let is_row = |key: &str| ROWS.iter().any(|row| row.key == key);
        for goal in &GOALS {
            assert!(is_row(goal.row) && goal.by.is_none_or(|(row, _)| is_row(row)), "{}", goal.key);
            assert!(
                goal.by.is_none_or(|(_, target)| Kind::ALL.iter().any(|kind| kind.name() == target)),
                "{}",
                goal.key
            );
            assert!(text.contains(&format!("`{}`", goal.key)), "{} is not in docs/benchmarks.md", goal.key);
        }
    }

    #[test]
    fn a_goal_is_met_missed_or_not_measured() {
        let goal = &GOALS[0];
        let mut samples = Samples::default();
        assert!(goal.verdict(&samples).is_none());
        samples.add("write_qd1", OURS, 0, 9.0);
        assert!(goal.verdict(&samples).is_none());
        samples.add("write_qd1", MEMORY, 0, 10.0);
        assert!(!goal.verdict(&samples).unwrap().met);
        samples.add("write_qd1", OURS, 0, 10.0);
        assert!(goal.verdict(&samples).unwrap().met);
    }
}
