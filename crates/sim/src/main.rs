// SPDX-License-Identifier: Apache-2.0
//! `varve-sim`: runs seeds of the simulator on all cores, replays one, shortens one that fails.
//!
//! `cargo xtask sim` builds and starts it. The exit code is 0 when every seed passed, 1 when one failed, 2 for wrong usage.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command talks to the person who typed it")]
#![allow(clippy::disallowed_methods, reason = "threads and a clock around the worlds: none of it reaches into one")]

mod cli;
#[cfg(feature = "mutants")]
mod mutation;

use clap::Parser;
use std::process::ExitCode;

/// Worlds are made of small things that come and go.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let done = match cli::Arguments::parse() {
        arguments if arguments.seed.is_some() => cli::replay(&arguments),
        arguments if arguments.mutants => mutants(&arguments),
        arguments => cli::many(&arguments),
    };
    if done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(feature = "mutants")]
fn mutants(arguments: &cli::Arguments) -> bool {
    mutation::check(arguments)
}

#[cfg(not(feature = "mutants"))]
fn mutants(_: &cli::Arguments) -> bool {
    eprintln!(
        "error: this build can not be made to carry a bug: build it with the feature `mutants`, as `cargo xtask sim --mutants` does"
    );
    false
}
