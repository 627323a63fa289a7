// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask test`: everything, in the order in which a failure is cheapest to learn of.
//!
//! The stages before the integration tests are fixed; the integration tests are one stage for each crate that has any, so
//! that a table shows where the time goes. Each has a share of the half hour in [`SHARES`]; at three times its share it is ended and
//! fails by name, instead of eating the time of all that follow. `--ci` sets the profile of the runner and the deadline of the
//! whole; without it a stage may take six times its share, for a machine that does other things too.

use crate::check::{clippy, fmt, stage, tidy_stage, unit};
use crate::provision;
use crate::repo::{self, Metadata};
use crate::stage::{Outcome, Stage, Work, run_stage, summarize};
use anyhow::Result;
use std::process::Command;
use std::time::{Duration, Instant};

/// What the shares may add up to: a run from a clean checkout on two cores.
#[cfg(test)]
const HALF_HOUR_S: u64 = 30 * 60;
/// The end of a run with `--ci`: half as much again as the shares, for a machine that is slower than most.
const CI_TOTAL_S: u64 = 44 * 60;

/// Shares of the half hour, in seconds. A crate whose tests are not named here has [`OTHER_S`].
const SHARES: [(&str, u64); 20] = [
    ("provision", 100),
    ("fmt", 10),
    ("tidy", 50),
    ("clippy", 190),
    ("build", 270),
    ("unit", 30),
    ("docs", 45),
    ("tests of types", 10),
    ("tests of format", 20),
    ("tests of coord", 20),
    ("tests of store", 50),
    ("tests of etcd", 30),
    ("tests of lab", 60),
    ("tests of sim", 170),
    ("tests of nbd", 25),
    ("tests of server", 15),
    ("tests of varve", 230),
    ("random seeds", 140),
    ("planted bugs", 90),
    ("fuzz", 240),
];
/// The share of any other crate's integration tests.
const OTHER_S: u64 = 15;
/// For how long each fuzz target runs, two at a time, behind a build of its own.
const FUZZ_S: &str = "10";

/// For how long seeds of the simulator run that were never run before, behind a build of its own.
const SEEDS_S: &str = "30";
/// Planted bugs that are looked for, others each day, and the seeds after which one counts as missed.
const MUTANTS: &str = "4";
const MUTANT_SEEDS: &str = "2000";

#[derive(clap::Args)]
pub struct Options {
    /// The limits of CI: a profile that forgives nothing, and under thirty minutes in all.
    #[arg(long)]
    ci: bool,
}

/// Runs everything; a stage that fails does not keep the others from running, unless they need what it makes.
pub fn run(options: &Options) -> Result<bool> {
    let end = Instant::now() + if options.ci { Duration::from_secs(CI_TOTAL_S) } else { Duration::from_hours(24) };
    let mut stages = stages(options.ci, &repo::metadata()?, repo::has_nextest()).into_iter();
    let mut outcomes: Vec<Outcome> = Vec::new();
    for stage in stages.by_ref() {
        let needed = stage.needed;
        let outcome = run_stage(stage, end.saturating_duration_since(Instant::now()));
        let stop = needed && !outcome.ok();
        outcomes.push(outcome);
        if stop {
            break;
        }
    }
    let not_run: Vec<String> = stages.map(|stage| stage.name).collect();
    Ok(summarize(&outcomes, &not_run))
}

/// When a stage is ended, in seconds.
fn deadline(name: &str, ci: bool) -> u64 {
    let share = SHARES.iter().find(|(stage, _)| *stage == name).map_or(OTHER_S, |(_, seconds)| *seconds);
    if ci { 3 * share } else { 6 * share }
}

/// Every stage of a run.
fn stages(ci: bool, metadata: &Metadata, nextest: bool) -> Vec<Stage> {
    let profile = if ci { "ci" } else { "default" };
    let provision = Work::Function(Box::new(provision::run));
    let mut stages = vec![
        Stage {
            name: "provision".to_owned(),
            work: provision,
            deadline: Duration::from_secs(deadline("provision", ci)),
            needed: true,
        },
        fmt(),
        clippy(deadline("clippy", ci)),
        build(nextest, deadline("build", ci)),
        // Behind the build: it asks the program for its references.
        tidy_stage(deadline("tidy", ci)),
        unit(nextest, profile, deadline("unit", ci)),
    ];
    let mut packages: Vec<_> = metadata.packages.iter().filter(|p| !p.targets_of("test").is_empty()).collect();
    packages.sort_by_key(|package| order(&package.name));
    for package in packages {
        let name = format!("tests of {}", package.name.trim_start_matches("varve-"));
        let mut command = integration(nextest, profile, &package.name, &package.targets_of("test"));
        command.env("PATH", provision::path_for_tests());
        stages.push(stage(&name, command, deadline(&name, ci)));
    }
    stages.push(stage("random seeds", sim(&["--seconds", SEEDS_S]), deadline("random seeds", ci)));
    let some = ["--mutants", "--rotate", MUTANTS, "--seeds", MUTANT_SEEDS];
    stages.push(stage("planted bugs", sim(&some), deadline("planted bugs", ci)));
    stages.push(docs(deadline("docs", ci)));
    stages.push(fuzz(deadline("fuzz", ci)));
    stages
}

/// The place in the table of shares, so that crates run from the bottom of the arrows upwards.
fn order(package: &str) -> usize {
    let name = format!("tests of {}", package.trim_start_matches("varve-"));
    SHARES.iter().position(|(stage, _)| *stage == name).unwrap_or(SHARES.len())
}

/// Builds every test and every program once, with the profile that the later stages use.
fn build(nextest: bool, deadline_s: u64) -> Stage {
    let mut command = repo::cargo();
    if nextest {
        command.args(["nextest", "run", "--workspace", "--all-targets", "--no-run"]);
    } else {
        command.args(["test", "--workspace", "--all-targets", "--no-run"]);
    }
    Stage { needed: true, ..stage("build", command, deadline_s) }
}

/// The integration tests of one crate.
fn integration(nextest: bool, profile: &str, package: &str, targets: &[&str]) -> Command {
    let mut command = repo::cargo();
    if nextest {
        let filter = format!("package(={package}) & kind(test)");
        command.args(["nextest", "run", "--workspace", "--all-targets", "--profile", profile, "-E", &filter]);
        command.arg("--no-tests=warn");
    } else {
        command.args(["test", "--package", package, "--no-fail-fast"]);
        command.args(targets.iter().flat_map(|target| ["--test", target]));
        // Without the runner's groups, the only way not to start five guests at once.
        command.args(["--", "--test-threads=1"]);
    }
    command
}

/// Examples in the documentation, and links in it.
fn docs(deadline_s: u64) -> Stage {
    let mut command = Command::new("sh");
    repo::forget_package(&mut command);
    command.current_dir(repo::root()).env("RUSTDOCFLAGS", "-D warnings");
    command.args(["-ec", "cargo test --workspace --doc; cargo doc --workspace --no-deps --document-private-items"]);
    stage("docs", command, deadline_s)
}

/// The simulator, which prints the command that replays what it finds. A process of its own, like the fuzzer.
fn sim(arguments: &[&str]) -> Command {
    let mut command = repo::cargo();
    command.args(["xtask", "sim", "--whole"]).args(arguments);
    // Here the build takes longer than the runs.
    command.envs([("CARGO_PROFILE_SIM_LTO", "off"), ("CARGO_PROFILE_SIM_CODEGEN_UNITS", "16")]);
    command
}

/// Every decoder, fed by a fuzzer. A process of its own, so that its build and its runs end with the stage.
fn fuzz(deadline_s: u64) -> Stage {
    let mut command = repo::cargo();
    command.args(["xtask", "fuzz", "--seconds", FUZZ_S]);
    stage("fuzz", command, deadline_s)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::{Package, Target};

    #[test]
    fn the_shares_fit_in_the_half_hour() {
        let sum: u64 = SHARES.iter().map(|(_, seconds)| seconds).sum();
        assert!(sum < HALF_HOUR_S, "the shares add up to {sum} s, and there are {HALF_HOUR_S}");
        const { assert!(HALF_HOUR_S <= CI_TOTAL_S) };
    }

    #[test]
    fn crates_with_integration_tests_have_a_stage_each() {
        let package = |name: &str, kind: &str| Package {
            name: name.to_owned(),
            manifest_path: "Cargo.toml".into(),
            dependencies: Vec::new(),
            targets: vec![Target { name: "t".to_owned(), kind: vec![kind.to_owned()] }],
        };
        let packages = vec![package("varve", "test"), package("varve-etcd", "test"), package("varve-types", "lib")];
        let metadata = Metadata { packages, target_directory: "target".into() };
        for nextest in [false, true] {
            let names: Vec<String> = stages(true, &metadata, nextest).into_iter().map(|stage| stage.name).collect();
            let expected = [
                "provision",
                "fmt",
                "clippy",
                "build",
                "tidy",
                "unit",
                "tests of etcd",
                "tests of varve",
                "random seeds",
                "planted bugs",
                "docs",
                "fuzz",
            ];
            assert_eq!(names, expected);
        }
    }
}
