// SPDX-License-Identifier: Apache-2.0
//! The check: through a node that runs, or on a data directory without one.

use super::job;
use crate::client::{Body, Client};
use crate::failure::{Failure, Result};
use crate::out::{self, Table};
use crate::progress::Bar;
use clap::Args;
use hyper::Method;
use std::path::{Path, PathBuf};
use std::time::Duration;
use varve_server::api::ProgressHandle;
use varve_server::api::model::{CheckReport, Job, JobResult};
use varve_types::{Name, format_size};

/// How often the progress of a check without a node is looked at.
const PAUSE: Duration = Duration::from_millis(100);

/// What to check.
#[derive(Debug, Args)]
pub struct Check {
    /// The volume; all of them when it is left out
    pub volume: Option<Name>,
    /// Check this data directory, without a node
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// Has the node check itself.
pub async fn online(volume: Option<&Name>, client: &Client, json: bool) -> Result<()> {
    let body = serde_json::json!({ "volume": volume });
    let begun: Job = client.ask(Method::POST, "/v1/check", Body::json(&body)?).await?;
    match job::wait(client, "checking", begun).await? {
        JobResult::Check(report) => conclude(&report, json),
        _ => Err(job::unexpected()),
    }
}

/// Checks a data directory.
pub fn offline(data: &Path, volume: Option<&Name>, json: bool) -> Result<()> {
    let progress = ProgressHandle::default();
    let report = std::thread::scope(|scope| {
        let bar = Bar::open("checking");
        let task = scope.spawn(|| varve_server::node::check_offline(data, volume, &progress));
        while !task.is_finished() {
            bar.follow(&progress.snapshot());
            std::thread::sleep(PAUSE);
        }
        task.join()
    });
    let report = report.map_err(|_| Failure::failed("the check met a defect of Varve and was cut off"))??;
    conclude(&report, json)
}

/// Shows a report; one with errors is a failure.
fn conclude(report: &CheckReport, json: bool) -> Result<()> {
    out::show(json, report, show)?;
    match report.errors_total() {
        0 => Ok(()),
        errors => Err(Failure::failed(format!("the check found {}", out::count(errors, "error")))),
    }
}

fn show(report: &CheckReport) -> String {
    let mut table = Table::new(&["VOLUME", "BLOCKS", "DATA", "OBJECTS", "COUNTS", "ERRORS"]).right(&[1, 2, 3, 4, 5]);
    for volume in &report.volumes {
        table.row(vec![
            volume.volume.to_string(),
            volume.blocks_verified.to_string(),
            format_size(volume.bytes_verified),
            volume.objects_read.to_string(),
            volume.counts_compared.to_string(),
            volume.errors_total.to_string(),
        ]);
    }
    let mut text = table.render("");
    for volume in &report.volumes {
        for error in &volume.errors {
            text.push_str(&format!("{}: {}: {}\n", volume.volume, error.object, error.message));
        }
        let unlisted = volume.errors_total.saturating_sub(volume.errors.len() as u64);
        if unlisted > 0 {
            text.push_str(&format!("{}: and {}\n", volume.volume, out::count(unlisted, "more error")));
        }
    }
    let volumes = out::count(report.volumes.len() as u64, "volume");
    let verdict = if report.errors_total() == 0 { "no errors" } else { "ERRORS" };
    text.push_str(&format!("{volumes} checked in {}: {verdict}\n", out::duration(report.duration_ms)));
    text
}
