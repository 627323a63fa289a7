// SPDX-License-Identifier: Apache-2.0
//! `varve-edge serve` and `varve-edge run`: volumes in this process until it is stopped.
//!
//! On SIGTERM, SIGINT or SIGHUP the NBD socket is closed first, then every volume is flushed and given up. An owner that can not be found is waited for, but not for ever:
//! then what is kept is lost, the exit code says so, and so does a line. A second signal ends it at once.

use super::args::{Run, Serve};
use super::out::{complain, show};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{error, info};
use tracing_subscriber::EnvFilter;
use varve_block::{BlockError, Result};
use varve_edge::Edge;
use varve_edge::daemon::spec::{FileConfig, Spec};
use varve_edge::daemon::{Front, Registry, serve_control};
use varve_types::ErrorKind;

/// How long `run` tries to attach its volumes.
const ATTACH_TIME: Duration = Duration::from_secs(30);

/// Runs a daemon until it is stopped.
pub async fn serve(arguments: Serve, control: PathBuf, filter: String) -> Result<()> {
    log(&filter)?;
    let config = arguments.config.as_deref().map(FileConfig::read).transpose()?.unwrap_or_default();
    let registry = Registry::new(Edge::default(), arguments.socket.clone());
    let front = Front::open(arguments.socket.clone(), Rc::clone(&registry)).await.map_err(of_nbd)?;
    for spec in &config.volumes {
        // What is wrong with it is told before it is tried.
        spec.options(None)?;
    }
    for spec in config.volumes {
        #[allow(clippy::disallowed_methods, reason = "volumes that can not be had yet hold up no others")]
        tokio::task::spawn_local(attach(spec, Rc::clone(&registry)));
    }
    let (stop, stopped) = watch::channel(false);
    let listening = serve_control(&control, Rc::clone(&registry), until(stopped.clone()));
    let mut listening = std::pin::pin!(listening);
    let mut serving = std::pin::pin!(front.run(until(stopped)));
    info!(socket = %arguments.socket.display(), control = %control.display(), "serving");
    tokio::select! {
        () = varve_serve::stopped(|| complain(LEFT)) => {}
        ended = &mut listening => {
            return ended.map_err(|why| {
                BlockError::new(ErrorKind::Unavailable, format!("control socket {}: {why}", control.display()))
            });
        }
        ended = &mut serving => return ended.map_err(of_nbd),
    }
    stop.send_replace(true);
    serving.await.map_err(of_nbd)?;
    let detached = registry.detach_all().await;
    // Its file is gone when it ends.
    let _ = listening.await;
    detached
}

/// What is said to who does not wait.
const LEFT: &str = "ended before all volumes were given up: what was not safe at their owners may be lost";

async fn attach(spec: Spec, registry: Rc<Registry>) {
    if let Err(why) = registry.attach(&spec, None).await {
        error!(volume = spec.volume, error = %why, "a volume of the configuration is not attached");
    }
}

/// Attaches volumes and serves them until it is stopped.
pub async fn run(arguments: Run, filter: String, json: bool) -> Result<()> {
    log(&filter)?;
    let registry = Registry::new(Edge::default(), arguments.socket.clone());
    let front = Front::open(arguments.socket, Rc::clone(&registry)).await.map_err(of_nbd)?;
    let (stop, stopped) = watch::channel(false);
    let attach = async {
        let mut documents = Vec::new();
        for volume in &arguments.volumes {
            documents.push(registry.attach(&arguments.how.spec(volume.clone()), Some(ATTACH_TIME)).await?);
        }
        Result::Ok(documents)
    };
    let mut serving = std::pin::pin!(front.run(until(stopped)));
    let mut stopping = std::pin::pin!(varve_serve::stopped(|| complain(LEFT)));
    let attached = tokio::select! {
        () = &mut stopping => None,
        attached = attach => Some(attached),
    };
    let result = match attached {
        Some(Ok(documents)) => {
            show(json, &documents, |all| {
                all.iter().map(|one| format!("{} is attached at {}\n", one.volume, one.nbd_uri)).collect()
            })?;
            tokio::select! {
                () = &mut stopping => Ok(()),
                ended = &mut serving => return ended.map_err(of_nbd),
            }
        }
        Some(Err(error)) => Err(error),
        None => Ok(()),
    };
    stop.send_replace(true);
    let served = serving.await.map_err(of_nbd);
    let detached = registry.detach_all().await;
    result.and(served).and(detached)
}

fn of_nbd(error: varve_serve::ServeError) -> BlockError {
    BlockError::new(ErrorKind::Unavailable, format!("NBD socket: {error}"))
}

async fn until(mut stopped: watch::Receiver<bool>) {
    // Whoever says so may be gone: then it is over as well.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

fn log(filter: &str) -> Result<()> {
    let filter = EnvFilter::try_new(filter).map_err(|why| BlockError::invalid(format!("--log {filter:?}: {why}")))?;
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    builder.try_init().map_err(|why| BlockError::new(ErrorKind::Internal, format!("no logging: {why}")))
}
