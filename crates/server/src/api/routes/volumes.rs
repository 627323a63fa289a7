// SPDX-License-Identifier: Apache-2.0
//! Routes of volumes: make, show, change, delete and bring back, clone and flatten.
//!
//! Sizes, names and settings are checked here, so that the node is asked nothing that can not be.
//!
//! A change of a volume that another node of the cluster runs is refused by the node as `fenced`, with whom to ask; a take-over is refused as a conflict until
//! it is forced, with what may be lost by it.

use super::super::control::ControlError;
use super::super::extract::{ApiResult, JsonBody, Path};
use super::super::model::{
    CloneVolume, ErrorBody, Job, JobKind, JobResult, NewVolume, Rename, Resize, SetSettings, TakeVolume, Volume,
    VolumeState,
};
use super::{App, check_setting_values, check_settings, check_volume_size};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use std::sync::Arc;
use varve_types::Name;

/// All volumes, deleted ones that can be brought back among them.
#[utoipa::path(get, path = "/v1/volumes", tag = "volumes",
    responses((status = 200, body = [Volume]), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn list(State(app): State<App>) -> ApiResult<Json<Vec<Volume>>> {
    Ok(Json(app.control.volumes().await?))
}

/// One volume.
#[utoipa::path(get, path = "/v1/volumes/{volume}", tag = "volumes", params(("volume" = String, Path, description = "Its name")),
    responses((status = 200, body = Volume), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn show(State(app): State<App>, Path(volume): Path<Name>) -> ApiResult<Json<Volume>> {
    Ok(Json(app.control.volume(volume).await?))
}

/// Makes a volume.
#[utoipa::path(post, path = "/v1/volumes", tag = "volumes", request_body = NewVolume,
    responses((status = 201, body = Volume), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn create(
    State(app): State<App>,
    JsonBody(new): JsonBody<NewVolume>,
) -> ApiResult<(StatusCode, Json<Volume>)> {
    check_volume_size(new.size_bytes)?;
    check_setting_values(&new.settings)?;
    let volume = app.change(|control| async move { control.create_volume(new).await }).await?;
    Ok((StatusCode::CREATED, Json(volume)))
}

/// Deletes a volume; it can be brought back for a while.
#[utoipa::path(delete, path = "/v1/volumes/{volume}", tag = "volumes", params(("volume" = String, Path, description = "Its name")),
    responses((status = 200, body = Volume), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn delete(State(app): State<App>, Path(volume): Path<Name>) -> ApiResult<Json<Volume>> {
    Ok(Json(app.change(|control| async move { control.delete_volume(volume).await }).await?))
}

/// Changes settings of a volume.
#[utoipa::path(patch, path = "/v1/volumes/{volume}/settings", tag = "volumes", params(("volume" = String, Path, description = "Its name")),
    request_body = SetSettings, responses((status = 200, body = Volume), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn set(
    State(app): State<App>,
    Path(volume): Path<Name>,
    JsonBody(change): JsonBody<SetSettings>,
) -> ApiResult<Json<Volume>> {
    check_settings(&change.settings)?;
    Ok(Json(app.change(|control| async move { control.set_volume(volume, change.settings).await }).await?))
}

/// Changes the size of a volume.
#[utoipa::path(post, path = "/v1/volumes/{volume}/resize", tag = "volumes", params(("volume" = String, Path, description = "Its name")),
    request_body = Resize, responses((status = 200, body = Volume), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn resize(
    State(app): State<App>,
    Path(volume): Path<Name>,
    JsonBody(change): JsonBody<Resize>,
) -> ApiResult<Json<Volume>> {
    check_volume_size(change.size_bytes)?;
    let resize = |control: Arc<dyn super::Control>| async move {
        control.resize_volume(volume, change.size_bytes, change.force).await
    };
    Ok(Json(app.change(resize).await?))
}

/// Gives a volume another name.
#[utoipa::path(post, path = "/v1/volumes/{volume}/rename", tag = "volumes", params(("volume" = String, Path, description = "Its name")),
    request_body = Rename, responses((status = 200, body = Volume), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn rename(
    State(app): State<App>,
    Path(volume): Path<Name>,
    JsonBody(change): JsonBody<Rename>,
) -> ApiResult<Json<Volume>> {
    Ok(Json(app.change(|control| async move { control.rename_volume(volume, change.name).await }).await?))
}

/// Brings a deleted volume back.
#[utoipa::path(post, path = "/v1/volumes/{volume}/undelete", tag = "volumes", params(("volume" = String, Path, description = "Its name")),
    responses((status = 200, body = Volume), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn undelete(State(app): State<App>, Path(volume): Path<Name>) -> ApiResult<Json<Volume>> {
    Ok(Json(app.change(|control| async move { control.undelete_volume(volume).await }).await?))
}

/// Takes a volume from the edge that has it for itself. What that edge still holds, and nobody else has, is lost.
#[utoipa::path(post, path = "/v1/volumes/{volume}/detach", tag = "volumes", params(("volume" = String, Path, description = "Its name")),
    responses((status = 200, body = Volume), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn detach(State(app): State<App>, Path(volume): Path<Name>) -> ApiResult<Json<Volume>> {
    Ok(Json(app.change(|control| async move { control.detach_volume(volume).await }).await?))
}

/// Makes this node the owner of a volume that another one runs, though what only that one has is lost; without `force` it is a conflict that tells what that is.
#[utoipa::path(post, path = "/v1/volumes/{volume}/take", tag = "volumes", params(("volume" = String, Path, description = "Its name")),
    request_body = TakeVolume, responses((status = 200, body = Volume), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn take(
    State(app): State<App>,
    Path(volume): Path<Name>,
    JsonBody(take): JsonBody<TakeVolume>,
) -> ApiResult<Json<Volume>> {
    Ok(Json(app.change(|control| async move { control.take_volume(volume, take.force).await }).await?))
}

/// Makes a volume a template: read-only, to clone from.
#[utoipa::path(post, path = "/v1/volumes/{volume}/template", tag = "volumes", params(("volume" = String, Path, description = "Its name")),
    responses((status = 200, body = Volume), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn template(State(app): State<App>, Path(volume): Path<Name>) -> ApiResult<Json<Volume>> {
    Ok(Json(app.change(|control| async move { control.make_template(volume).await }).await?))
}

/// Makes a volume from a snapshot, or from the present state of a volume.
#[utoipa::path(post, path = "/v1/volumes/{volume}/clone", tag = "volumes", params(("volume" = String, Path, description = "Its name")),
    request_body = CloneVolume, responses((status = 201, body = Volume), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn clone(
    State(app): State<App>,
    Path(volume): Path<Name>,
    JsonBody(new): JsonBody<CloneVolume>,
) -> ApiResult<(StatusCode, Json<Volume>)> {
    let clone = app.change(|control| async move { control.clone_volume(volume, new).await }).await?;
    Ok((StatusCode::CREATED, Json(clone)))
}

/// Begins to copy what a clone shares with its origin; when the job is done, it needs its origin no more.
#[utoipa::path(post, path = "/v1/volumes/{volume}/flatten", tag = "volumes", params(("volume" = String, Path, description = "Its name")),
    responses((status = 202, body = Job), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn flatten(
    State(app): State<App>,
    Path(volume): Path<Name>,
) -> ApiResult<(StatusCode, Json<Job>)> {
    let found = app.control.volume(volume.clone()).await?;
    // Of a volume of another node it is not known here; the job says whom to ask.
    if found.origin.is_none() && found.state != VolumeState::Elsewhere {
        return Err(ControlError::conflict(format!("volume {volume} is no clone: it shares nothing")).into());
    }
    let control = Arc::clone(&app.control);
    let job = app.jobs.start(JobKind::Flatten, volume.to_string(), |progress| async move {
        Ok(JobResult::Flatten(Box::new(control.flatten(volume, progress).await?)))
    })?;
    Ok((StatusCode::ACCEPTED, Json(job)))
}
