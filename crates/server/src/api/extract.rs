// SPDX-License-Identifier: Apache-2.0
//! From a request to values, and from results to answers: the edge at which foreign text is checked.
//!
//! Every refusal has the form of [`ErrorBody`], whoever refuses: the router, a parser or the node. Bodies must say what they are
//! (`application/json`, or `application/octet-stream` for data), so that no web page can send them without a preflight; they are bounded before
//! they are read.

use super::control::ControlError;
use super::model::ErrorBody;
use super::{MAX_DATA, MAX_JSON};
use axum::Json;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::{StatusCode, header, request::Parts};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use serde::de::DeserializeOwned;
use varve_types::ErrorKind;

/// A failed request: its status code, kind and message.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    error: ControlError,
}

impl ApiError {
    /// An error whose status code says more than its kind.
    pub(super) fn with_status(status: StatusCode, kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { status, error: ControlError::new(kind, message) }
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        let status = StatusCode::from_u16(error.kind.http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, error }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.error.kind == ErrorKind::Internal {
            tracing::error!(error = %self.error, "a request met a defect");
        }
        let body = ErrorBody { kind: self.error.kind.as_str().to_owned(), message: self.error.message };
        (self.status, Json(body)).into_response()
    }
}

/// Answer of a handler.
pub(super) type ApiResult<T> = Result<T, ApiError>;

fn require_content_type(parts: &Parts, wanted: &str) -> ApiResult<()> {
    let given = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = given.split(';').next().unwrap_or("").trim();
    if essence.eq_ignore_ascii_case(wanted) {
        return Ok(());
    }
    let message = format!("the body must have the content type {wanted}, not {given:?}");
    Err(ApiError::with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE, ErrorKind::Invalid, message))
}

async fn collect(parts: &Parts, body: axum::body::Body, most: usize) -> ApiResult<Bytes> {
    let too_large = || {
        let message = format!("the body is larger than {most} bytes");
        ApiError::with_status(StatusCode::PAYLOAD_TOO_LARGE, ErrorKind::Invalid, message)
    };
    let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > most as u64) {
        return Err(too_large());
    }
    match Limited::new(body, most).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
        Err(error) => Err(ControlError::invalid(format!("the body ended early: {error}")).into()),
    }
}

/// A JSON body.
pub(super) struct JsonBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, _state: &S) -> ApiResult<Self> {
        let (parts, body) = request.into_parts();
        require_content_type(&parts, "application/json")?;
        let bytes = collect(&parts, body, MAX_JSON).await?;
        let value = serde_json::from_slice(&bytes);
        value.map(Self).map_err(|error| ControlError::invalid(format!("the body is wrong: {error}")).into())
    }
}

/// A body of plain data.
pub(super) struct DataBody(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for DataBody {
    type Rejection = ApiError;
    async fn from_request(request: Request, _state: &S) -> ApiResult<Self> {
        let (parts, body) = request.into_parts();
        require_content_type(&parts, "application/octet-stream")?;
        Ok(Self(collect(&parts, body, MAX_DATA as usize).await?))
    }
}

/// The variable parts of the path.
pub(super) struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> ApiResult<Self> {
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(error) => Err(ControlError::invalid(format!("the path is wrong: {}", error.body_text())).into()),
        }
    }
}

/// The query.
pub(super) struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> ApiResult<Self> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(error) => Err(ControlError::invalid(format!("the query is wrong: {}", error.body_text())).into()),
        }
    }
}
