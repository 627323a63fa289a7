// SPDX-License-Identifier: Apache-2.0
//! `varve clean --worker`: a process that cleans for a node.
//!
//! It logs to standard error, ends in good order on SIGTERM and Ctrl-C (it gives its job back), and says at the end what it has done. Everything else is the
//! library's.

use super::up::log;
use crate::args::Clean;
use crate::client::{Body, Client};
use crate::failure::{Failure, Result};
use crate::out::{self, Table};
use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use varve_config::LogFormat;
use varve_server::api::ControlError;
use varve_server::api::model::{
    AskCleaningJob, Cleaning, CleaningDone, CleaningFailure, CleaningOffer, CleaningProgress, CleaningTaken,
    CleaningTerms,
};
use varve_server::daemon::stopped;
use varve_server::worker::{Jobs, NodeAnswer, WorkerOptions, WorkerReport, work};
use varve_types::{ErrorKind, LeaseId, MIN_RATE, Name, format_size};

/// What is logged unless the environment asks for something else.
const LOG_LEVEL: &str = "info";

/// Cleans until stopped, or until there is no more to do.
pub async fn run(clean: Clean, client: &Client, json: bool) -> Result<()> {
    let rate_bytes = clean.rate.unwrap_or(0);
    if (1..MIN_RATE).contains(&rate_bytes) {
        return Err(Failure::usage(format!("--rate must be {} at least, or 0", format_size(MIN_RATE))));
    }
    log(LOG_LEVEL, LogFormat::Text)?;
    let name = clean.name.unwrap_or_else(own_name);
    tracing::info!(worker = %name, "cleans for the node; Ctrl-C stops it");
    let options = WorkerOptions { name, rate_bytes, most_jobs: clean.jobs, until_idle: clean.once };
    let left = "ended at once: the node gives the job to somebody else after a while";
    let report = work(client, &options, stopped(move || out::complain(left))).await?;
    out::show(json, &report, render)
}

fn render(report: &WorkerReport) -> String {
    let mut table = Table::default();
    table.pair("jobs", format!("{} done, {} given up", report.jobs, report.failed_jobs));
    table.pair("moved", format!("{} read, {} put", format_size(report.read_bytes), format_size(report.put_bytes)));
    table.pair("segments", report.segments.to_string());
    table.render("")
}

/// The host's name and the number of this process, as far as names are made of such letters.
fn own_name() -> Name {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-')).take(40).collect();
    let host = host.trim_start_matches(['.', '-']);
    let host = if host.is_empty() { "worker" } else { host };
    format!("{host}-{}", std::process::id()).parse().expect("letters, digits, dots and dashes behind a letter or digit")
}

impl Client {
    /// Sends a document about a job and reads the one that is answered.
    fn about_job<'a, T: DeserializeOwned + 'a>(
        &'a self,
        path: String,
        document: impl Serialize + 'a,
    ) -> NodeAnswer<'a, T> {
        Box::pin(async move {
            let asked = async { self.ask(Method::POST, &path, Body::json(&document)?).await };
            asked.await.map_err(|Failure { kind, message, .. }| {
                ControlError::new(kind.unwrap_or(ErrorKind::Internal), message)
            })
        })
    }
}

impl Jobs for Client {
    fn ask(&self, ask: AskCleaningJob) -> NodeAnswer<'_, CleaningOffer> {
        self.about_job("/v1/cleaning/jobs".to_owned(), ask)
    }
    fn renew(&self, job: LeaseId, progress: CleaningProgress) -> NodeAnswer<'_, CleaningTerms> {
        self.about_job(format!("/v1/cleaning/jobs/{job}/renew"), progress)
    }
    fn complete(&self, job: LeaseId, done: CleaningDone) -> NodeAnswer<'_, CleaningTaken> {
        self.about_job(format!("/v1/cleaning/jobs/{job}/complete"), done)
    }
    fn fail(&self, job: LeaseId, failure: CleaningFailure) -> NodeAnswer<'_, ()> {
        let told = self.about_job::<Cleaning>(format!("/v1/cleaning/jobs/{job}/fail"), failure);
        Box::pin(async move { told.await.map(drop) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_has_a_name_of_its_own() {
        assert!(own_name().as_str().ends_with(&format!("-{}", std::process::id())));
    }
}
