// SPDX-License-Identifier: Apache-2.0
//! Routes of data: ranges of a volume or a snapshot, read and written as plain bytes.
//!
//! A client that wants speed has a few requests of a few MiB under way, each on a connection of its own. Ranges are checked here against
//! everything but the size of the volume, which the node knows. A write is durable after the flush that follows it.

use super::super::control::ControlError;
use super::super::extract::{ApiResult, DataBody, Path, Query};
use super::super::model::{ErrorBody, ExtentMap, RangeQuery, Target, WriteQuery};
use super::super::{MAX_DATA, MAX_EXTENTS};
use super::App;
use axum::Json;
use axum::extract::{FromRequest, Request, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use varve_types::{ErrorKind, MAX_VOLUME, Name, SECTOR};

fn check_range(offset: u64, len: u64, most: u64) -> ApiResult<()> {
    let reason = if !offset.is_multiple_of(SECTOR) || !len.is_multiple_of(SECTOR) {
        "both must be multiples of 512".to_owned()
    } else if len > most {
        format!("at most {most} bytes may be asked for at once")
    } else if offset.checked_add(len).is_none_or(|end| end > MAX_VOLUME) {
        "no volume is that large".to_owned()
    } else {
        return Ok(());
    };
    Err(ControlError::invalid(format!("offset {offset}, length {len}: {reason}")).into())
}

fn require_some(len: u64) -> ApiResult<()> {
    if len == 0 { Err(ControlError::invalid("the range is empty").into()) } else { Ok(()) }
}

/// Reads a range of a volume (`NAME`) or a snapshot (`NAME@SNAPSHOT`): at most 8 MiB.
#[utoipa::path(get, path = "/v1/volumes/{volume}/data", tag = "data",
    params(("volume" = String, Path, description = "A volume, or VOLUME@SNAPSHOT"), RangeQuery),
    responses((status = 200, content_type = "application/octet-stream", description = "The bytes of the range"),
        (status = "default", body = ErrorBody)))]
pub(in super::super) async fn read(
    State(app): State<App>,
    Path(target): Path<Target>,
    Query(range): Query<RangeQuery>,
) -> ApiResult<impl IntoResponse> {
    check_range(range.offset, range.len, MAX_DATA)?;
    require_some(range.len)?;
    let _room = app.data_room().await?;
    let len = u32::try_from(range.len).expect("a length within MAX_DATA fits 32 bits");
    let bytes = app.control.read(target, range.offset, len).await?;
    if bytes.len() as u64 != range.len {
        let message = format!("{} bytes were read instead of {}", bytes.len(), range.len);
        return Err(ControlError::new(ErrorKind::Internal, message).into());
    }
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes))
}

/// Writes the body, at most 8 MiB, to a volume; it is durable after the next flush.
#[utoipa::path(put, path = "/v1/volumes/{volume}/data", tag = "data",
    params(("volume" = String, Path, description = "The volume"), WriteQuery),
    request_body(content_type = "application/octet-stream", description = "The bytes, a multiple of 512"),
    responses((status = 204, description = "They are written"), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn write(
    State(app): State<App>,
    Path(volume): Path<Name>,
    Query(at): Query<WriteQuery>,
    request: Request,
) -> ApiResult<StatusCode> {
    // Room first, then the body: what waits holds no memory.
    let _room = app.data_room().await?;
    let DataBody(bytes) = DataBody::from_request(request, &()).await?;
    check_range(at.offset, bytes.len() as u64, MAX_DATA)?;
    require_some(bytes.len() as u64)?;
    app.control.write(volume, at.offset, bytes).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Frees a range of a volume, of any length; it reads as zeroes.
#[utoipa::path(post, path = "/v1/volumes/{volume}/data/zero", tag = "data",
    params(("volume" = String, Path, description = "The volume"), RangeQuery),
    responses((status = 204, description = "It is zero"), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn zero(
    State(app): State<App>,
    Path(volume): Path<Name>,
    Query(range): Query<RangeQuery>,
) -> ApiResult<StatusCode> {
    check_range(range.offset, range.len, MAX_VOLUME)?;
    require_some(range.len)?;
    app.control.zero(volume, range.offset, range.len).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes durable what was written to a volume before.
#[utoipa::path(post, path = "/v1/volumes/{volume}/flush", tag = "data", params(("volume" = String, Path, description = "The volume")),
    responses((status = 204, description = "It is durable"), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn flush(State(app): State<App>, Path(volume): Path<Name>) -> ApiResult<StatusCode> {
    app.change(|control| async move { control.flush(volume).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tells which parts of a range of a volume or a snapshot hold data; with the length 0, only its size.
#[utoipa::path(get, path = "/v1/volumes/{volume}/extents", tag = "data",
    params(("volume" = String, Path, description = "A volume, or VOLUME@SNAPSHOT"), RangeQuery),
    responses((status = 200, body = ExtentMap), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn extents(
    State(app): State<App>,
    Path(target): Path<Target>,
    Query(range): Query<RangeQuery>,
) -> ApiResult<Json<ExtentMap>> {
    check_range(range.offset, range.len, MAX_VOLUME)?;
    let map = app.control.extents(target, range.offset, range.len).await?;
    let advances = range.len == 0 || map.extents.iter().any(|extent| extent.len_bytes > 0);
    if map.extents.len() > MAX_EXTENTS || map.offset_bytes != range.offset || !advances {
        return Err(ControlError::new(ErrorKind::Internal, "the map of extents is not what was asked for").into());
    }
    Ok(Json(map))
}
