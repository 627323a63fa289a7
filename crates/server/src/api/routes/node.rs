// SPDX-License-Identifier: Apache-2.0
//! Routes of the node itself: its state, version and metrics, checks, and the jobs that go on in it.

use super::super::control::ControlError;
use super::super::extract::{ApiResult, JsonBody, Path};
use super::super::model::{ErrorBody, Job, JobKind, JobResult, Scrub, SetScrub, Status, Version};
use super::App;
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Deserialize;
use std::sync::Arc;
use utoipa::ToSchema;
use varve_types::{MIN_RATE, Name};

/// Begins a check.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Check {
    /// The volume to check; all of them when it is left out.
    #[schema(value_type = Option<String>)]
    #[serde(default)]
    volume: Option<Name>,
}

/// The state of the node.
#[utoipa::path(get, path = "/v1/status", tag = "node",
    responses((status = 200, body = Status), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn status(State(app): State<App>) -> ApiResult<Json<Status>> {
    Ok(Json(app.control.status().await?))
}

/// The version of the server.
#[utoipa::path(get, path = "/v1/version", tag = "node",
    responses((status = 200, body = Version), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn version() -> Json<Version> {
    Json(Version { name: "varve".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() })
}

/// Begins to verify every block and every count of one volume or of all.
#[utoipa::path(post, path = "/v1/check", tag = "node", request_body = Check,
    responses((status = 202, body = Job), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn check(
    State(app): State<App>,
    JsonBody(Check { volume }): JsonBody<Check>,
) -> ApiResult<(StatusCode, Json<Job>)> {
    if let Some(name) = &volume {
        app.control.volume(name.clone()).await?;
    }
    let control = Arc::clone(&app.control);
    let target = volume.as_ref().map(Name::to_string).unwrap_or_default();
    let job = app.jobs.start(JobKind::Check, target, |progress| async move {
        Ok(JobResult::Check(control.check(volume, progress).await?))
    })?;
    Ok((StatusCode::ACCEPTED, Json(job)))
}

/// What scrubbing has found, and how it goes.
#[utoipa::path(get, path = "/v1/scrub", tag = "node",
    responses((status = 200, body = Scrub), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn scrub(State(app): State<App>) -> ApiResult<Json<Scrub>> {
    Ok(Json(app.control.scrub().await?))
}

/// Begins a pass of scrubbing, bounds it, or turns it off, until the node stops.
#[utoipa::path(patch, path = "/v1/scrub", tag = "node", request_body = SetScrub,
    responses((status = 200, body = Scrub), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn set_scrub(
    State(app): State<App>,
    JsonBody(set): JsonBody<SetScrub>,
) -> ApiResult<Json<Scrub>> {
    check_rate(set.rate_bytes)?;
    Ok(Json(app.change(|control| async move { control.set_scrub(set).await }).await?))
}

/// Refuses what is so slow that nothing would come of it.
pub(super) fn check_rate(rate: Option<u64>) -> Result<(), ControlError> {
    match rate {
        Some(rate @ 1..MIN_RATE) => {
            let message = format!("rate_bytes is {rate}; it must be {MIN_RATE} at least, or 0");
            Err(ControlError::invalid(message))
        }
        _ => Ok(()),
    }
}

/// The jobs that are remembered, oldest first.
#[utoipa::path(get, path = "/v1/jobs", tag = "node",
    responses((status = 200, body = [Job]), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn jobs(State(app): State<App>) -> Json<Vec<Job>> {
    Json(app.jobs.list())
}

/// One job, with its progress, and its result once it has ended.
#[utoipa::path(get, path = "/v1/jobs/{job}", tag = "node", params(("job" = u64, Path, description = "Its number")),
    responses((status = 200, body = Job), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn job(State(app): State<App>, Path(job): Path<u64>) -> ApiResult<Json<Job>> {
    Ok(Json(app.jobs.get(job)?))
}

/// The metrics of the node, for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "node",
    responses((status = 200, content_type = "application/openmetrics-text", body = String), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn metrics(State(app): State<App>) -> ApiResult<impl IntoResponse> {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], app.control.metrics().await?))
}
