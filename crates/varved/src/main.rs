// SPDX-License-Identifier: Apache-2.0
//! The daemon of a node: what `varve up` is in the foreground, for systemd.
//!
//! All that it does is in a configuration file of the same keys (`docs/config.md`). It tells systemd when it serves, that it works, and when it stops; it logs
//! to standard error, which the journal takes. It stops in good order on SIGTERM.
//!
//! The exit code says what to do, as that of `varve` does: 2 means that the configuration is to be mended.

use clap::Parser;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use varve_config::{FileConfig, UpConfig};
use varve_server::api::ControlError;
use varve_server::daemon::{self, Systemd};
use varve_server::node::{Beat, Hooks, Serving, up};

const _: () = assert!(
    !varve_types::mutant::PLANTABLE,
    "what ships carries no planted bugs: build it without the feature `mutants`"
);

/// Buffers of whole segments come and go at the speed of the disk; the C library gives each back to the kernel and faults it in again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The daemon of a Varve node.
#[derive(Debug, Parser)]
#[command(name = "varved", version)]
struct Args {
    /// The configuration file (TOML)
    #[arg(long, value_name = "FILE", default_value = "/etc/varve/varved.toml")]
    config: PathBuf,
    /// Only look whether the configuration is one
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be closed: then nobody reads it.
            let _ = writeln!(std::io::stderr(), "varved: {error}");
            ExitCode::from(error.kind.exit_code())
        }
    }
}

fn run(args: &Args) -> Result<(), ControlError> {
    let file = FileConfig::read(&args.config).map_err(|error| ControlError::invalid(error.to_string()))?;
    let config = FileConfig::default().resolve(file).map_err(|error| ControlError::invalid(error.to_string()))?;
    if args.check {
        return Ok(());
    }
    daemon::log(&config.log_level, config.log_format).map_err(ControlError::invalid)?;
    let systemd = Systemd::from_env();
    let systemd = systemd.map_err(|error| ControlError::invalid(format!("NOTIFY_SOCKET: {error}")))?.map(Arc::new);
    let served = serve(config, systemd.clone());
    if let Err(error) = &served {
        tracing::error!(%error, "the node has ended");
    }
    served
}

fn serve(config: UpConfig, systemd: Option<Arc<Systemd>>) -> Result<(), ControlError> {
    let tell = |systemd: &Option<Arc<Systemd>>, state: &str| {
        if let Some(systemd) = systemd {
            systemd.tell(state);
        }
    };
    let watchdog = systemd.as_ref().and_then(|systemd| Some((Arc::clone(systemd), systemd.watchdog()?)));
    // Twice as often as it has to: one that comes late is not yet a failure.
    let beat =
        watchdog.map(|(systemd, most)| Beat { every: most / 2, tell: Box::new(move || systemd.tell("WATCHDOG=1")) });
    let (at_start, at_stop) = (systemd.clone(), systemd);
    let ready = move |serving: &Serving| {
        let (node, data) = (&serving.node, serving.data.display());
        tracing::info!(%node, %data, volumes = serving.volumes.len(), "the node serves");
        tell(&at_start, "READY=1");
    };
    let stop = async move {
        daemon::stopped(|| tracing::warn!("ended before everything was stopped")).await;
        tell(&at_stop, "STOPPING=1");
    };
    up(config, Hooks { ready: Box::new(ready), stop: Box::pin(stop), beat })
}
