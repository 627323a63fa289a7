// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask soak`: random load, faults of the store, kills and everything that volumes can do, all at once, for as long as one likes.
//!
//! It is the test `soak` of the node, which CI runs for half a minute, with the program as it is released.

use crate::{provision, repo};
use anyhow::{Context as _, Result};

#[derive(clap::Args)]
pub struct Options {
    /// For how long.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_080))]
    minutes: u64,
    /// The choices of an earlier run, which said `VARVE_SEED=…`.
    #[arg(long)]
    seed: Option<u64>,
}

/// Installs what it needs, builds and runs.
pub fn run(options: &Options) -> Result<bool> {
    if !provision::run()? {
        return Ok(false);
    }
    let mut command = repo::cargo();
    command.args(["test", "--release", "--package", "varve", "--test", "soak", "--", "--nocapture"]);
    command.env("PATH", provision::path_for_tests());
    command.env("VARVE_SOAK_SECONDS", (options.minutes * 60).to_string());
    if let Some(seed) = options.seed {
        command.env("VARVE_SEED", seed.to_string());
    }
    // Not through a pipe: who runs it wants to see how far it is.
    Ok(command.status().context("cargo does not start")?.success())
}
