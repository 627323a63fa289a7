// SPDX-License-Identifier: Apache-2.0
//! The result as tables for people (Markdown) and as JSON for programs.
//!
//! Both hold the same: the goals with their ratios and verdicts, every row with median and spread for each target, and what
//! the machine was, without which no figure means anything.

use super::goals::{GOALS, Verdict};
use super::groups::ROWS;
use super::stats::{Samples, Spread, short};
use super::targets::Kind;
use crate::process::output;
use anyhow::{Context, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

/// A finished run.
#[derive(Serialize)]
pub struct Report {
    /// What it ran on, and which versions of the peers.
    machine: BTreeMap<&'static str, String>,
    rounds: u32,
    seconds: u32,
    volume_gib: u32,
    rows: BTreeMap<&'static str, RowReport>,
    goals: BTreeMap<&'static str, Verdict>,
}

#[derive(Serialize)]
struct RowReport {
    title: &'static str,
    unit: &'static str,
    targets: BTreeMap<&'static str, Spread>,
}

impl Report {
    /// Gathers everything that was measured.
    pub fn new(samples: &Samples, rounds: u32, seconds: u32, volume_gib: u32) -> Self {
        let mut rows = BTreeMap::new();
        for row in &ROWS {
            let targets: BTreeMap<_, _> = Kind::ALL
                .into_iter()
                .filter_map(|kind| Some((kind.name(), samples.spread(row.key, kind.name())?)))
                .collect();
            if !targets.is_empty() {
                rows.insert(row.key, RowReport { title: row.title, unit: row.unit, targets });
            }
        }
        let goals = GOALS.iter().filter_map(|goal| Some((goal.key, goal.verdict(samples)?))).collect();
        Self { machine: machine(), rounds, seconds, volume_gib, rows, goals }
    }

    /// Whether no goal was missed.
    pub fn every_measured_goal_is_met(&self) -> bool {
        self.goals.values().all(|verdict| verdict.met)
    }

    /// As JSON; `docs/benchmarks.md` documents the keys.
    pub fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self).context("writing JSON")? + "\n")
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::from("# Benchmark\n\n");
        let (rounds, seconds, gib) = (self.rounds, self.seconds, self.volume_gib);
        add(
            &mut text,
            &format!("{rounds} rounds, {seconds} s a measurement, volumes of {gib} GiB; median (min–max).\n"),
        );
        for (key, value) in &self.machine {
            add(&mut text, &format!("- {key}: {value}"));
        }
        if !self.goals.is_empty() {
            add(&mut text, "\n## Goals\n\n| goal | measured | verdict |\n|---|---|---|");
            for goal in &GOALS {
                if let Some(Verdict { figure, met, .. }) = self.goals.get(goal.key) {
                    let verdict = if *met { "pass" } else { "**miss**" };
                    add(&mut text, &format!("| {} | {} | {verdict} |", goal.title(), spread(figure)));
                }
            }
        }
        add(&mut text, "\n## Rows\n\n| row | unit | target | median (min–max) |\n|---|---|---|---|");
        for row in &ROWS {
            let Some(report) = self.rows.get(row.key) else { continue };
            for kind in Kind::ALL {
                if let Some(figure) = report.targets.get(kind.name()) {
                    add(&mut text, &format!("| {} | {} | {} | {} |", row.title, row.unit, kind.name(), spread(figure)));
                }
            }
        }
        text
    }
}

fn add(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

fn spread(figure: &Spread) -> String {
    format!("{} ({}–{})", short(figure.median), short(figure.min), short(figure.max))
}

fn machine() -> BTreeMap<&'static str, String> {
    let first_line = |program: &str, arguments: &[&str]| {
        let text = output(Command::new(program).args(arguments), Duration::from_secs(10)).unwrap_or_default();
        text.lines().next().unwrap_or("not there").to_owned()
    };
    let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let count = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    BTreeMap::from([
        ("processor", format!("{count} × {}", model.trim_start_matches([' ', '\t', ':']))),
        ("kernel", first_line("uname", &["-sr"])),
        ("fio", first_line("fio", &["--version"])),
        ("nbdkit", first_line("nbdkit", &["--version"])),
        ("qemu-storage-daemon", first_line("qemu-storage-daemon", &["--version"])),
        (
            "commit",
            first_line("git", &["-C", &crate::repo::root().to_string_lossy(), "describe", "--always", "--dirty"]),
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_json_hold_what_was_measured() {
        let mut samples = Samples::default();
        for round in 0..3 {
            samples.add("write_qd1", "varve", round, 30_000.0 + f64::from(round));
            samples.add("write_qd1", "nbdkit-memory", round, 60_000.0);
        }
        let report = Report::new(&samples, 3, 20, 10);
        assert!(!report.every_measured_goal_is_met());
        let text = report.markdown();
        assert!(text.contains("| write_qd1 ≥ 1 × nbdkit-memory | 0.50 (0.50–0.50) | **miss** |"), "{text}");
        assert!(text.contains("| 4 KiB random write, QD1 | IOPS | varve | 30.0k (30.0k–30.0k) |"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        assert_eq!(json["rows"]["write_qd1"]["targets"]["varve"]["median"], 30_001.0);
        assert_eq!(json["goals"]["write_qd1_by_memory"]["met"], false);
        assert_eq!(json["goals"]["write_qd1_by_memory"]["bound"], "at_least");
    }
}
