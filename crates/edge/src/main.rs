// SPDX-License-Identifier: Apache-2.0
//! The varve-edge command: volumes of a cluster as NBD exports of this host.
//!
//! `serve` is a daemon, to which volumes are attached through its control socket; `run` attaches some and serves them until it is stopped; everything else asks a
//! daemon. Facts go to standard output, as tables or with `--json` as documents; errors and logs go to standard error. The exit code says what to do: 0 done, 1 failed,
//! 2 wrong usage, 3 not found, 4 conflict, 5 unavailable.

mod cli;

use clap::Parser;
use cli::{Args, complain, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error.to_string());
            ExitCode::from(error.kind().exit_code())
        }
    }
}
