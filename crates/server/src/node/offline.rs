// SPDX-License-Identifier: Apache-2.0
//! A check of a data directory that no node runs on.
//!
//! It is a start without anybody being served, the check, and a stop: the lock keeps nodes away
//! meanwhile. Volumes are opened as a start opens them, in a new epoch; nothing that a person wrote
//! is changed.

use super::directory::Directory;
use super::start;
use crate::api::model::CheckReport;
use crate::api::{ControlError, ProgressHandle};
use std::path::Path;
use varve_config::UpConfig;
use varve_types::Name;

pub(super) async fn check(
    data: &Path,
    volume: Option<Name>,
    progress: ProgressHandle,
) -> Result<CheckReport, ControlError> {
    let directory = Directory::open(data)?;
    let config = UpConfig { data: data.to_owned(), ..UpConfig::default() };
    let (shard, thread) = start::without_serving(&config, &directory).await?;
    let report =
        shard.call(move |local| Box::pin(async move { super::job_control::check(&local, volume, &progress).await }));
    let report = report.await;
    start::end_shard(&shard, thread).await?;
    report
}
