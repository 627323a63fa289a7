// SPDX-License-Identifier: Apache-2.0
//! The command line of the edge: its arguments, what they do, what is printed.

mod args;
mod out;
mod serve;

pub use args::Args;
pub use out::complain;

use args::{Attach, Command};
use std::future::Future;
use std::path::PathBuf;
use varve_block::{BlockError, Result};
use varve_edge::daemon::document::{StatsDocument, VolumeDocument};
use varve_edge::daemon::{Command as Asked, ask};
use varve_types::ErrorKind;

/// Where the control socket is, if nothing is said.
const CONTROL: &str = "/run/varve-edge/control.sock";

/// Does what the arguments say.
///
/// # Errors
/// What went wrong; its kind is the exit code.
pub fn run(args: Args) -> Result<()> {
    let json = args.json;
    let control = args.control.unwrap_or_else(|| PathBuf::from(CONTROL));
    let command = match args.command {
        Command::Serve(arguments) => return on_thread(serve::serve(arguments, control, args.log)),
        Command::Run(arguments) => return on_thread(serve::run(arguments, args.log, json)),
        Command::Attach(Attach { volume, how }) => Asked::Attach { spec: how.spec(volume) },
        Command::Detach { volume, force } => Asked::Detach { volume, force },
        Command::List => Asked::List {},
        Command::Stats { volume } => Asked::Stats { volume },
    };
    let value = on_thread(async { ask(&control, &command).await })?;
    let understood = |error: serde_json::Error| {
        BlockError::new(ErrorKind::Internal, format!("the daemon gave an answer that is not understood: {error}"))
    };
    match command {
        Asked::Attach { .. } => {
            let document: VolumeDocument = serde_json::from_value(value).map_err(understood)?;
            out::show(json, &document, |one| format!("{} is attached at {}\n", one.volume, one.nbd_uri))
        }
        Asked::Detach { volume, .. } => out::show(json, &value, |_| format!("{volume} is detached\n")),
        Asked::List {} => {
            let all: Vec<VolumeDocument> = serde_json::from_value(value).map_err(understood)?;
            out::show(json, &all, |all| out::volumes(all))
        }
        Asked::Stats { .. } => {
            let all: Vec<StatsDocument> = serde_json::from_value(value).map_err(understood)?;
            out::show(json, &all, |all| out::stats(all))
        }
    }
}

/// Runs on this thread, which is the only one for volumes.
fn on_thread<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build();
    let runtime = runtime.map_err(|why| BlockError::new(ErrorKind::Internal, format!("no runtime: {why}")))?;
    let result = tokio::task::LocalSet::new().block_on(&runtime, future);
    // A name that is being looked up holds up nothing.
    runtime.shutdown_background();
    result
}
