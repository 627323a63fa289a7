// SPDX-License-Identifier: Apache-2.0
//! Waiting for a job of the node, with its progress on the screen.
//!
//! Stopping the command does not stop the job: the node goes on with it.

use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::progress::Bar;
use std::time::Duration;
use varve_server::api::model::{Job, JobResult, JobState};

/// The first wait between two questions, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Waits for the end of a job and gives its result.
pub async fn wait(client: &Client, what: &str, mut job: Job) -> Result<JobResult> {
    let bar = Bar::open(what);
    let mut pause = FIRST_PAUSE;
    while job.state == JobState::Running {
        bar.follow(&job.progress);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        job = client.get(&format!("/v1/jobs/{}", job.id)).await?;
    }
    match (job.result, job.error) {
        (Some(result), _) => Ok(result),
        (None, Some(error)) => Err(Failure::from(error)),
        (None, None) => Err(unexpected()),
    }
}

/// The node gave the result of another kind of job.
pub fn unexpected() -> Failure {
    Failure::failed("the node gave an answer that is not understood: the job has no result of its kind")
}
