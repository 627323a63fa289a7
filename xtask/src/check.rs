// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask check`: what to run before a commit. Format, tidy, lints, unit tests; stops at the first failure.
//!
//! The stages are those of `cargo xtask test` too, so that there is one definition of "formatted" and "linted".

use crate::provision;
use crate::repo;
use crate::stage::{Outcome, Stage, Work, minutes, run_stage};
use crate::tidy;
use anyhow::Result;
use std::process::Command;
use std::time::{Duration, Instant};

/// `cargo fmt --check`.
pub fn fmt() -> Stage {
    let mut command = repo::cargo();
    command.args(["fmt", "--all", "--check"]);
    stage("fmt", command, 60)
}

/// The rules of the tree.
pub fn tidy_stage(deadline_s: u64) -> Stage {
    let work = Work::Function(Box::new(tidy::run));
    Stage { name: "tidy".to_owned(), work, deadline: Duration::from_secs(deadline_s), needed: false }
}

/// Lints, as errors.
pub fn clippy(deadline_s: u64) -> Stage {
    let mut command = repo::cargo();
    command.args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    stage("clippy", command, deadline_s)
}

/// Tests inside the crates: fast.
pub fn unit(nextest: bool, profile: &str, deadline_s: u64) -> Stage {
    let mut command = repo::cargo();
    if nextest {
        command.args(["nextest", "run", "--workspace", "--lib", "--bins", "--profile", profile]);
    } else {
        command.args(["test", "--workspace", "--lib", "--bins", "--no-fail-fast"]);
    }
    // One of them starts a store.
    command.env("PATH", provision::path_for_tests());
    stage("unit", command, deadline_s)
}

/// A stage that runs a command and that later stages can do without.
pub fn stage(name: &str, command: Command, deadline_s: u64) -> Stage {
    Stage {
        name: name.to_owned(),
        work: Work::Command(Box::new(command)),
        deadline: Duration::from_secs(deadline_s),
        needed: false,
    }
}

/// Runs the stages up to the first failure.
pub fn run() -> Result<bool> {
    let start = Instant::now();
    let stages = [fmt(), tidy_stage(900), clippy(1800), unit(repo::has_nextest(), "default", 1800)];
    for stage in stages {
        let outcome: Outcome = run_stage(stage, Duration::MAX);
        if !outcome.ok() {
            println!("{} failed; run it again with: {}", outcome.name, outcome.rerun);
            return Ok(false);
        }
    }
    println!("all well in {}", minutes(start.elapsed()));
    Ok(true)
}
