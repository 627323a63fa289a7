// SPDX-License-Identifier: Apache-2.0
//! Routes of cleaning: how it goes, and the jobs of it that other processes run.

use super::super::control::ControlError;
use super::super::extract::{ApiResult, JsonBody, Path};
use super::super::model::{
    AskCleaningJob, Cleaning, CleaningDone, CleaningFailure, CleaningOffer, CleaningProgress, CleaningTaken,
    CleaningTerms, ErrorBody, SetCleaning,
};
use super::App;
use super::node::check_rate;
use axum::Json;
use axum::extract::State;
use varve_types::LeaseId;

/// Longest message of a process that has failed, in bytes.
const MAX_MESSAGE: usize = 1024;

/// How cleaning goes.
#[utoipa::path(get, path = "/v1/cleaning", tag = "node",
    responses((status = 200, body = Cleaning), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn show(State(app): State<App>) -> ApiResult<Json<Cleaning>> {
    Ok(Json(app.control.cleaning().await?))
}

/// Pauses cleaning, lets it go on, or bounds it, until the node stops.
#[utoipa::path(patch, path = "/v1/cleaning", tag = "node", request_body = SetCleaning,
    responses((status = 200, body = Cleaning), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn set(
    State(app): State<App>,
    JsonBody(set): JsonBody<SetCleaning>,
) -> ApiResult<Json<Cleaning>> {
    check_rate(set.rate_bytes)?;
    Ok(Json(app.change(|control| async move { control.set_cleaning(set).await }).await?))
}

/// Gives a process a job of cleaning, which is its own until nothing was heard of it for some time.
#[utoipa::path(post, path = "/v1/cleaning/jobs", tag = "node", request_body = AskCleaningJob,
    responses((status = 200, body = CleaningOffer), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn ask(
    State(app): State<App>,
    JsonBody(ask): JsonBody<AskCleaningJob>,
) -> ApiResult<Json<CleaningOffer>> {
    Ok(Json(app.change(|control| async move { control.cleaning_job(ask.worker).await }).await?))
}

/// Tells that a process is still at its job, and how fast it may go on.
#[utoipa::path(post, path = "/v1/cleaning/jobs/{job}/renew", tag = "node", request_body = CleaningProgress,
    params(("job" = String, Path, description = "Its id")),
    responses((status = 200, body = CleaningTerms), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn renew(
    State(app): State<App>,
    Path(job): Path<LeaseId>,
    JsonBody(progress): JsonBody<CleaningProgress>,
) -> ApiResult<Json<CleaningTerms>> {
    Ok(Json(app.change(move |control| async move { control.renew_cleaning_job(job, progress).await }).await?))
}

/// Looks at what a process has put for its job, and takes it into use.
#[utoipa::path(post, path = "/v1/cleaning/jobs/{job}/complete", tag = "node", request_body = CleaningDone,
    params(("job" = String, Path, description = "Its id")),
    responses((status = 200, body = CleaningTaken), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn complete(
    State(app): State<App>,
    Path(job): Path<LeaseId>,
    JsonBody(done): JsonBody<CleaningDone>,
) -> ApiResult<Json<CleaningTaken>> {
    Ok(Json(app.change(move |control| async move { control.complete_cleaning_job(job, done).await }).await?))
}

/// Ends a job that a process will not do.
#[utoipa::path(post, path = "/v1/cleaning/jobs/{job}/fail", tag = "node", request_body = CleaningFailure,
    params(("job" = String, Path, description = "Its id")),
    responses((status = 200, body = Cleaning), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn fail(
    State(app): State<App>,
    Path(job): Path<LeaseId>,
    JsonBody(failure): JsonBody<CleaningFailure>,
) -> ApiResult<Json<Cleaning>> {
    if failure.message.len() > MAX_MESSAGE {
        return Err(ControlError::invalid(format!("the message is longer than {MAX_MESSAGE} bytes")).into());
    }
    Ok(Json(app.change(move |control| async move { control.fail_cleaning_job(job, failure).await }).await?))
}
