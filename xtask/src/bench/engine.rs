// SPDX-License-Identifier: Apache-2.0
//! Rows that no disk here is large enough for: they come from a program that drives the engine over a store whose
//! contents are computed.
//!
//! The program is an example target named `bench_map` of any package of the workspace. It runs once, built as a release: it
//! takes its own medians, and a tebibyte takes minutes. The last line that it prints is a JSON object of row keys and numbers.
//! Keys that are no rows are an error, so that a row which was renamed on one side alone does not vanish quietly.

use super::goals::OURS;
use super::groups::ROWS;
use super::stats::{Samples, short};
use crate::process::output;
use crate::repo::{self, Metadata};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// The program's name.
const PROGRAM: &str = "bench_map";
/// The groups whose rows come from it, each with what it is told.
pub const GROUPS: [(&str, [&str; 2]); 3] =
    [("map", ["--size", "1T"]), ("map-budget", ["--mapped", "4T"]), ("delete", ["--delete", "64T"])];
/// Building it, and one run of it.
const DEADLINE: Duration = Duration::from_secs(2 * 3600);

/// Runs the program for a group, if it has that; its files lie in `directory`.
pub fn measure(group: &str, metadata: &Metadata, directory: &Path, samples: &mut Samples) -> Result<()> {
    let Some((_, arguments)) = GROUPS.iter().find(|(name, _)| *name == group) else { return Ok(()) };
    let Some(package) = metadata.packages.iter().find(|package| package.targets_of("example").contains(&PROGRAM))
    else {
        println!("{group}: no package has an example {PROGRAM}; its rows are left out");
        return Ok(());
    };
    let mut command = repo::cargo();
    command.args(["run", "--quiet", "--release", "--package", &package.name, "--example", PROGRAM]);
    command.arg("--").args(arguments).env("TMPDIR", directory);
    let values = parse(&output(&mut command, DEADLINE)?)?;
    let shown: Vec<String> = values.iter().map(|(row, value)| format!("{row} {}", short(*value))).collect();
    println!("{group} {}", shown.join("  "));
    for (row, value) in values {
        samples.add(row, OURS, 0, value);
    }
    Ok(())
}

fn parse(text: &str) -> Result<Vec<(&'static str, f64)>> {
    let last = text.lines().rfind(|line| !line.trim().is_empty()).context("the program printed nothing")?;
    let values: BTreeMap<String, f64> =
        serde_json::from_str(last).with_context(|| format!("{last:?} is not a JSON object of numbers"))?;
    let known = |key: &str| ROWS.iter().find(|row| row.key == key).map(|row| row.key);
    values
        .into_iter()
        .map(|(key, value)| Ok((known(&key).with_context(|| format!("there is no row {key:?}"))?, value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_counts_and_unknown_rows_do_not_pass() {
        let text = "working\n{\"snapshot_full_map\": 1.5, \"map_bytes_ratio\": 0.1}\n\n";
        assert_eq!(parse(text).unwrap(), [("map_bytes_ratio", 0.1), ("snapshot_full_map", 1.5)]);
        assert!(parse("{\"nonsense\": 1}").is_err());
        assert!(parse("").is_err());
    }
}
