// SPDX-License-Identifier: Apache-2.0
//! The varve command: one node, and the tool that manages it.
//!
//! `varve up` is a node; everything else asks a node through its HTTP API and nothing else, so what the command line can do, a script with
//! `curl` can. Only `check --data` works on a data directory by itself.
//!
//! Facts go to standard output, as tables or with `--json` as the documents of the API; progress, questions and errors go to standard error.
//! The exit code says what to do: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 conflict, 5 unavailable.

mod args;
mod client;
mod commands;
mod confirm;
mod copy;
mod failure;
mod out;
mod progress;
mod reference;

use args::{Args, Command};
use clap::Parser;
use client::Client;
use failure::{Failure, Result};
use std::process::ExitCode;

const _: () = assert!(
    !varve_types::mutant::PLANTABLE,
    "what ships carries no planted bugs: build it without the feature `mutants`"
);

/// Buffers of whole segments come and go at the speed of the disk; the C library gives each back to the kernel and faults it in again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = Args::parse();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            out::complain(&failure.message);
            ExitCode::from(failure.exit_code)
        }
    }
}

fn run(args: Args) -> Result<()> {
    let json = args.json;
    match args.command {
        Command::Up(up) => commands::up::run(up, json),
        Command::Cluster(commands::cluster::ClusterCommand::Init(init)) => commands::cluster::init(init, json),
        Command::Check(commands::check::Check { volume, data: Some(data) }) => {
            commands::check::offline(&data, volume.as_ref(), json)
        }
        Command::Version => commands::version(json),
        Command::Completions { shell } => reference::completions(shell),
        Command::Man { dir } => reference::man(&dir),
        Command::Reference { what } => reference::print(what),
        command => {
            let client = Client::new(args.api.as_deref())?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| Failure::failed(format!("no runtime: {error}")))?;
            runtime.block_on(ask(command, &client, json))
        }
    }
}

/// The commands that ask a node.
async fn ask(command: Command, client: &Client, json: bool) -> Result<()> {
    match command {
        Command::Volume(command) => commands::volume::run(command, client, json).await,
        Command::Pool(command) => commands::pool::run(command, client, json).await,
        Command::Cluster(command) => commands::cluster::run(command, client, json).await,
        Command::Node(command) => commands::node::run(command, client, json).await,
        Command::Snapshot(command) => commands::snapshot::run(command, client, json).await,
        Command::Clone { origin, new } => commands::volume::clone(origin, new, client, json).await,
        Command::Rewind(rewind) => commands::rewind::run(rewind, client, json).await,
        Command::Flatten { volume } => commands::volume::flatten(&volume, client, json).await,
        Command::Import(import) => copy::import::run(import, client, json).await,
        Command::Export(export) => copy::export::run(export, client, json).await,
        Command::Status { watch } => commands::status::run(watch, client, json).await,
        Command::Check(check) => commands::check::online(check.volume.as_ref(), client, json).await,
        Command::Clean(clean) if clean.worker => commands::worker::run(clean, client, json).await,
        Command::Clean(clean) => commands::clean::run(&clean, client, json).await,
        Command::Scrub(scrub) => commands::scrub::run(&scrub, client, json).await,
        Command::Up(_)
        | Command::Version
        | Command::Completions { .. }
        | Command::Man { .. }
        | Command::Reference { .. } => Err(Failure::failed("this command asks no node")),
    }
}
