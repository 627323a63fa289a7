// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask bench`: the server beside its peers, on one machine, in one run.
//!
//! Absolute figures drift with the machine by a third and more, so the figures that count are ratios between targets that
//! were measured within minutes of each other: every group runs in rounds, in a round every target has its turn, and who
//! begins rotates. A target is started anew for each turn, alone on the machine, after the disk is quiet, and what it left is
//! removed. `docs/benchmarks.md` documents every row and goal by its key.
//!
//! [`targets`] starts things, and [`crate::fleet`] a cluster of them, [`fio`] loads them, [`groups`] says what is measured, [`goals`] what it should be, [`report`] and
//! [`svg`] show it.

mod clean;
pub mod echo;
mod engine;
mod failover;
mod fio;
mod goals;
mod ground;
mod groups;
mod many;
mod nbd;
mod path;
mod report;
mod stats;
mod svg;
mod targets;

use crate::repo;
use crate::stage::minutes;
use anyhow::{Context, Result, bail};
use ground::Ground;
use groups::{GROUPS, Group};
use stats::Samples;
use std::path::PathBuf;
use std::time::Instant;
use targets::Kind;

#[derive(clap::Args)]
pub struct Options {
    /// Measure one group only; may be given several times. `docs/benchmarks.md` lists them.
    #[arg(long)]
    only: Vec<String>,
    /// Measure these targets only, with commas between them; ratios to the others are left out.
    #[arg(long, value_delimiter = ',')]
    targets: Vec<String>,
    /// Rounds; each target has one turn a round [default: 5, of `failover` 20]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Seconds a measurement.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// GiB of a volume.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1024))]
    gib: u32,
    /// Where the result goes as JSON too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where volumes and raw files lie while it runs; its disk is what is measured.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Measures, writes the reports; `false` when a goal was measured and missed.
pub fn run(options: &Options) -> Result<bool> {
    let groups = chosen_groups(&options.only)?;
    let kinds = chosen_kinds(&options.targets)?;
    let metadata = repo::metadata()?;
    if kinds.contains(&Kind::Varve) {
        println!("building the release");
        repo::build(&["varve", "varve-edge"], true)?;
    }
    let reports = metadata.target_directory.join("bench");
    std::fs::create_dir_all(&reports).with_context(|| format!("making {}", reports.display()))?;
    let directory = options.dir.clone().unwrap_or_else(|| reports.join("data"));
    let varve = metadata.target_directory.join("release/varve");
    let ground = Ground::new(&directory, u64::from(options.gib) << 30, options.seconds, varve)?;

    let start = Instant::now();
    let mut samples = Samples::default();
    for group in &groups {
        let rounds = options.rounds.unwrap_or(group.rounds);
        for round in 0..rounds {
            run_round(group, &kinds, round, rounds, &ground, &mut samples)?;
        }
    }
    failover::conclude(&mut samples);
    for group in &groups {
        engine::measure(group.name, &metadata, ground.directory(), &mut samples)?;
    }
    drop(ground);

    let fewest = groups.iter().map(|group| group.rounds).min().unwrap_or_default();
    let report = report::Report::new(&samples, options.rounds.unwrap_or(fewest), options.seconds, options.gib);
    let text = report.markdown();
    println!("\n{text}");
    println!("measured in {}", minutes(start.elapsed()));
    write(&reports.join("bench.md"), &text)?;
    write(&reports.join("bench.svg"), &svg::draw(&samples))?;
    write(&reports.join("bench.json"), &report.json()?)?;
    if let Some(path) = &options.json {
        write(path, &report.json()?)?;
    }
    Ok(report.every_measured_goal_is_met())
}

/// Every target of the group has a turn; who begins rotates by round.
fn run_round(
    group: &Group,
    kinds: &[Kind],
    round: u32,
    rounds: u32,
    ground: &Ground,
    samples: &mut Samples,
) -> Result<()> {
    let mut turns: Vec<Kind> = group.targets.iter().copied().filter(|kind| kinds.contains(kind)).collect();
    if turns.is_empty() {
        return Ok(());
    }
    let first = round as usize % turns.len();
    turns.rotate_left(first);
    for kind in turns {
        let start = Instant::now();
        let measured = (group.measure)(ground, kind, round)
            .with_context(|| format!("group {}, target {}, round {}", group.name, kind.name(), round + 1))?;
        let shown: Vec<String> =
            measured.iter().map(|(row, value)| format!("{row} {}", stats::short(*value))).collect();
        let (name, time) = (group.name, minutes(start.elapsed()));
        println!("{name} {}/{rounds} {:<20} {} ({time})", round + 1, kind.name(), shown.join("  "));
        for (row, value) in measured {
            samples.add(row, kind.name(), round, value);
        }
    }
    Ok(())
}

fn chosen_groups(names: &[String]) -> Result<Vec<&'static Group>> {
    if let Some(name) = names.iter().find(|name| GROUPS.iter().all(|group| group.name != **name)) {
        let known: Vec<_> = GROUPS.iter().map(|group| group.name).collect();
        bail!("there is no group {name:?}; the groups are: {}", known.join(", "));
    }
    Ok(GROUPS.iter().filter(|group| names.is_empty() || names.iter().any(|name| name == group.name)).collect())
}

fn chosen_kinds(names: &[String]) -> Result<Vec<Kind>> {
    if let Some(name) = names.iter().find(|name| Kind::ALL.iter().all(|kind| kind.name() != **name)) {
        bail!("there is no target {name:?}; the targets are: {}", Kind::ALL.map(Kind::name).join(", "));
    }
    Ok(Kind::ALL.into_iter().filter(|kind| names.is_empty() || names.iter().any(|name| name == kind.name())).collect())
}

fn write(path: &std::path::Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    println!("wrote {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_targets_are_chosen_by_name() {
        assert_eq!(chosen_groups(&[]).unwrap().len(), GROUPS.len());
        assert_eq!(chosen_groups(&["qd1".to_owned()]).unwrap()[0].name, "qd1");
        assert!(chosen_groups(&["nonsense".to_owned()]).is_err());
        assert_eq!(chosen_kinds(&["disk".to_owned()]).unwrap(), [Kind::Disk]);
        assert!(chosen_kinds(&["nonsense".to_owned()]).is_err());
    }
}
