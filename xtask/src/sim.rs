// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask sim`: builds the simulator for speed and runs it.
//!
//! Its arguments are those of `varve-sim` (`cargo xtask sim --help` shows them). The build has every assertion, counts rare branches, and can be made to carry
//! planted bugs, which only `--mutants` does.

use crate::repo;
use anyhow::{Context as _, Result};

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Options {
    /// What `varve-sim` is given: `--seeds N`, `--seed S --trace`, `--seconds N`, `--mutants`, `--help`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds and runs.
pub fn run(options: &Options) -> Result<bool> {
    let mut command = repo::cargo();
    command.args(["run", "--quiet", "--profile", "sim", "--package", "varve-sim", "--features", "mutants", "--"]);
    command.args(&options.arguments);
    // Memory that is free for a moment is kept, not given back: a seed uses all of it again.
    command.env("MIMALLOC_PURGE_DELAY", "1000");
    // Not through a pipe: its progress is for the person at the terminal, who also ends it.
    Ok(command.status().context("cargo does not start")?.success())
}
