// SPDX-License-Identifier: Apache-2.0
//! Chores of the repository, behind `cargo xtask`.
//!
//! `check` is what one runs before a commit, `test` is everything that CI runs, `tidy` holds the rules of the tree that a
//! machine can check, `sim` runs the engine in a simulated world, `fuzz` feeds the decoders with what a fuzzer makes up, `cluster` starts one to try, `storm` disturbs one, `bench` measures the server beside its peers.
//! `docs/testing.md` and `docs/benchmarks.md` explain them.
//!
//! Every process that is started here is known to a watcher ([`guard`]) that ends it when this one ends, however that happens.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command talks to the person who typed it")]

mod bench;
mod check;
mod cluster;
mod count;
mod fleet;
mod fuzz;
mod guard;
mod process;
mod provision;
mod repo;
mod sim;
mod soak;
mod stage;
mod storm;
mod test;
mod tidy;
mod usage;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of the repository", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Format, tidy, lints and unit tests: what to run before a commit.
    Check,
    /// The rules of the tree that a machine can check.
    Tidy,
    /// Everything: installs what the tests need, then runs every kind of test.
    Test(test::Options),
    /// Runs the engine in the simulator, seed after seed.
    Sim(sim::Options),
    /// Runs a node on an S3 server with everything at once: load, snapshots, kills, faults of the store; for as long as one likes.
    Soak(soak::Options),
    /// Disturbs a cluster under a load, two faults at a time, and proves what the load saw, block by block.
    Storm(storm::Options),
    /// Starts an etcd, some nodes and an edge on loopback, for trying things, until Ctrl-C.
    Cluster(cluster::Options),
    /// Feeds every decoder with what a fuzzer makes up, for a set time.
    Fuzz(fuzz::Options),
    /// Measures the server beside its peers.
    Bench(bench::Options),
    /// Installs the programs that tests and benchmarks run, and nothing else.
    Provision,
    /// One of the processes that the bench compares the way of a write with.
    #[command(name = bench::echo::SUBCOMMAND, hide = true)]
    Echo(bench::echo::Options),
    /// Ends what the parent has started once the parent is gone.
    #[command(name = guard::SUBCOMMAND, hide = true)]
    Guard,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.chore {
        Chore::Check => check::run(),
        Chore::Tidy => tidy::run(),
        Chore::Test(options) => test::run(&options),
        Chore::Fuzz(options) => fuzz::run(&options),
        Chore::Sim(options) => sim::run(&options),
        Chore::Soak(options) => soak::run(&options),
        Chore::Storm(options) => storm::run(&options),
        Chore::Cluster(options) => cluster::run(&options),
        Chore::Bench(options) => bench::run(&options),
        Chore::Provision => provision::run(),
        Chore::Echo(options) => bench::echo::serve(&options),
        Chore::Guard => guard::watch().map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
