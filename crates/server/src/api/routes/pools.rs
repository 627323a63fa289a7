// SPDX-License-Identifier: Apache-2.0
//! Routes of pools: make, show, change, forget, and take over from a store.

use super::super::control::ControlError;
use super::super::extract::{ApiResult, JsonBody, Path};
use super::super::model::{ErrorBody, ImportPool, Job, JobKind, JobResult, NewPool, Pool, SetSettings};
use super::{App, check_settings};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use std::sync::Arc;
use varve_types::Name;

/// Only the scheme: what the rest must be is the store's to say.
fn check_store(url: &str) -> ApiResult<()> {
    if url.len() > 4096 || !["file://", "s3://"].iter().any(|scheme| url.starts_with(scheme)) {
        let shown: String = url.chars().take(80).collect();
        let message = format!("{shown:?} is not the URL of a store: file:///DIR or s3://BUCKET/PREFIX?endpoint=URL");
        return Err(ControlError::invalid(message).into());
    }
    Ok(())
}

/// All pools.
#[utoipa::path(get, path = "/v1/pools", tag = "pools",
    responses((status = 200, body = [Pool]), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn list(State(app): State<App>) -> ApiResult<Json<Vec<Pool>>> {
    Ok(Json(app.control.pools().await?))
}

/// One pool.
#[utoipa::path(get, path = "/v1/pools/{pool}", tag = "pools", params(("pool" = String, Path, description = "Its name")),
    responses((status = 200, body = Pool), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn show(State(app): State<App>, Path(pool): Path<Name>) -> ApiResult<Json<Pool>> {
    Ok(Json(app.control.pool(pool).await?))
}

/// Makes a pool on an empty store.
#[utoipa::path(post, path = "/v1/pools", tag = "pools", request_body = NewPool,
    responses((status = 201, body = Pool), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn create(
    State(app): State<App>,
    JsonBody(new): JsonBody<NewPool>,
) -> ApiResult<(StatusCode, Json<Pool>)> {
    check_store(&new.store)?;
    let pool = app.change(|control| async move { control.create_pool(new).await }).await?;
    Ok((StatusCode::CREATED, Json(pool)))
}

/// Forgets a pool that has no volumes; its store is left as it is.
#[utoipa::path(delete, path = "/v1/pools/{pool}", tag = "pools", params(("pool" = String, Path, description = "Its name")),
    responses((status = 200, body = Pool), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn delete(State(app): State<App>, Path(pool): Path<Name>) -> ApiResult<Json<Pool>> {
    Ok(Json(app.change(|control| async move { control.delete_pool(pool).await }).await?))
}

/// Changes settings of a pool.
#[utoipa::path(patch, path = "/v1/pools/{pool}/settings", tag = "pools", params(("pool" = String, Path, description = "Its name")),
    request_body = SetSettings, responses((status = 200, body = Pool), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn set(
    State(app): State<App>,
    Path(pool): Path<Name>,
    JsonBody(change): JsonBody<SetSettings>,
) -> ApiResult<Json<Pool>> {
    check_settings(&change.settings)?;
    Ok(Json(app.change(|control| async move { control.set_pool(pool, change.settings).await }).await?))
}

/// Begins to take over the pool that lies in a store.
#[utoipa::path(post, path = "/v1/pool-import", tag = "pools", request_body = ImportPool,
    responses((status = 202, body = Job), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn import(
    State(app): State<App>,
    JsonBody(import): JsonBody<ImportPool>,
) -> ApiResult<(StatusCode, Json<Job>)> {
    check_store(&import.store)?;
    let control = Arc::clone(&app.control);
    let store = import.store;
    // The store of the job is not shown: a URL that a person typed may hold what the node would not show.
    let job = app.jobs.start(JobKind::PoolImport, String::new(), |progress| async move {
        Ok(JobResult::PoolImport(control.import_pool(store, progress).await?))
    })?;
    Ok((StatusCode::ACCEPTED, Json(job)))
}
