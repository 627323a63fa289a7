// SPDX-License-Identifier: Apache-2.0
//! Routes of snapshots: take, list, delete, roll back to one and undo that; and of moments of the recent past that nobody took one of.

use super::super::control::ControlError;
use super::super::extract::{ApiResult, JsonBody, Path, Query};
use super::super::model::{
    ErrorBody, NewSnapshot, Rewind, RewindPoints, RewindQuery, Rewound, Rollback, RollbackReport, Snapshot, Volume,
};
use super::App;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use varve_types::Name;

/// The snapshots of a volume, oldest first.
#[utoipa::path(get, path = "/v1/volumes/{volume}/snapshots", tag = "snapshots", params(("volume" = String, Path, description = "The volume")),
    responses((status = 200, body = [Snapshot]), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn list(State(app): State<App>, Path(volume): Path<Name>) -> ApiResult<Json<Vec<Snapshot>>> {
    Ok(Json(app.control.snapshots(volume).await?))
}

/// Takes a snapshot.
#[utoipa::path(post, path = "/v1/volumes/{volume}/snapshots", tag = "snapshots", params(("volume" = String, Path, description = "The volume")),
    request_body = NewSnapshot, responses((status = 201, body = Snapshot), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn create(
    State(app): State<App>,
    Path(volume): Path<Name>,
    JsonBody(new): JsonBody<NewSnapshot>,
) -> ApiResult<(StatusCode, Json<Snapshot>)> {
    let snapshot = app.change(|control| async move { control.create_snapshot(volume, new.name).await }).await?;
    Ok((StatusCode::CREATED, Json(snapshot)))
}

/// Deletes a snapshot.
#[utoipa::path(delete, path = "/v1/volumes/{volume}/snapshots/{snapshot}", tag = "snapshots",
    params(("volume" = String, Path, description = "The volume"), ("snapshot" = String, Path, description = "The snapshot")),
    responses((status = 200, body = Snapshot), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn delete(
    State(app): State<App>,
    Path((volume, snapshot)): Path<(Name, Name)>,
) -> ApiResult<Json<Snapshot>> {
    Ok(Json(app.change(|control| async move { control.delete_snapshot(volume, snapshot).await }).await?))
}

/// Makes a volume show a snapshot again, or only tells which later snapshots that would hide.
#[utoipa::path(post, path = "/v1/volumes/{volume}/rollback", tag = "snapshots", params(("volume" = String, Path, description = "The volume")),
    request_body = Rollback, responses((status = 200, body = RollbackReport), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn rollback(
    State(app): State<App>,
    Path(volume): Path<Name>,
    JsonBody(change): JsonBody<Rollback>,
) -> ApiResult<Json<RollbackReport>> {
    let Rollback { snapshot, dry_run } = change;
    Ok(Json(app.change(|control| async move { control.rollback(volume, snapshot, dry_run).await }).await?))
}

/// Undoes the last rollback, while its window is open.
#[utoipa::path(post, path = "/v1/volumes/{volume}/rollback/undo", tag = "snapshots", params(("volume" = String, Path, description = "The volume")),
    responses((status = 200, body = Volume), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn undo(State(app): State<App>, Path(volume): Path<Name>) -> ApiResult<Json<Volume>> {
    Ok(Json(app.change(|control| async move { control.undo_rollback(volume).await }).await?))
}

/// Moments that are listed where nobody says how many.
const POINTS: u32 = 100;
/// Most that are.
const MOST_POINTS: u32 = 100_000;

/// The moments of the recent past that can be brought back.
#[utoipa::path(get, path = "/v1/volumes/{volume}/rewind", tag = "snapshots",
    params(("volume" = String, Path, description = "The volume"), RewindQuery),
    responses((status = 200, body = RewindPoints), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn rewind_points(
    State(app): State<App>,
    Path(volume): Path<Name>,
    Query(query): Query<RewindQuery>,
) -> ApiResult<Json<RewindPoints>> {
    let most = query.most.unwrap_or(POINTS);
    if most > MOST_POINTS {
        return Err(ControlError::invalid(format!(
            "{most} moments are more than can be listed: at most {MOST_POINTS}"
        ))
        .into());
    }
    Ok(Json(app.control.rewind_points(volume, most).await?))
}

/// Makes a volume of what another one was at a moment of the recent past.
#[utoipa::path(post, path = "/v1/volumes/{volume}/rewind", tag = "snapshots", params(("volume" = String, Path, description = "The volume")),
    request_body = Rewind, responses((status = 201, body = Rewound), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn rewind(
    State(app): State<App>,
    Path(volume): Path<Name>,
    JsonBody(rewind): JsonBody<Rewind>,
) -> ApiResult<(StatusCode, Json<Rewound>)> {
    if rewind.to_ms.is_some() == rewind.ago_ms.is_some() {
        return Err(ControlError::invalid("say either to_ms or ago_ms: the moment to go back to").into());
    }
    let rewound = app.change(|control| async move { control.rewind(volume, rewind).await }).await?;
    Ok((StatusCode::CREATED, Json(rewound)))
}
