// SPDX-License-Identifier: Apache-2.0
//! How a process that serves is told to stop.

use tokio::signal::unix::{SignalKind, signal};

/// Completes on SIGTERM, SIGINT or SIGHUP. Another signal after the first one ends the process at once: `left` says what that leaves.
pub async fn stopped(left: impl FnOnce() + Send + 'static) {
    let catch = |kind| signal(kind).inspect_err(|error| tracing::error!(%error, "a signal can not be caught"));
    let all = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(catch);
    let [Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)] = all else { return std::future::pending().await };
    let mut any = async move || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    };
    any().await;
    tracing::info!("stopping; another signal ends it at once");
    tokio::spawn(async move {
        any().await;
        left();
        std::process::exit(1);
    });
}
