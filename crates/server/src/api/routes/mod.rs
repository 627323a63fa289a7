// SPDX-License-Identifier: Apache-2.0
//! The routes: one table from (method, path) to handler, from which the router and the list of routes both come.
//!
//! Handlers are short: parse, check what needs no node, call [`Control`], answer. Changes run in a task of their own, so that a client that goes
//! away or a time that runs out never cuts one in half; how many run at once is bounded, as are data requests, which each hold up to
//! [`super::MAX_DATA`] bytes.

mod cleaning;
mod cluster;
mod data;
mod node;
mod pools;
mod snapshots;
mod volumes;

pub(super) mod openapi;

use super::control::{Control, ControlError};
use super::extract::{ApiError, ApiResult};
use super::jobs::Jobs;
use super::{MOST_CHANGES, MOST_DATA_REQUESTS, REQUEST_TIME};
use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use tokio::sync::{Semaphore, SemaphorePermit};
use varve_types::{ErrorKind, Overrides};

/// What every handler has.
#[derive(Clone)]
pub(super) struct App {
    control: Arc<dyn Control>,
    jobs: Jobs,
    /// Room for changes under way.
    changes: Arc<Semaphore>,
    /// Room for data requests under way, which bounds the memory that they hold.
    data: Arc<Semaphore>,
}

impl App {
    pub(super) fn new(control: Arc<dyn Control>) -> Self {
        Self {
            control,
            jobs: Jobs::default(),
            changes: Arc::new(Semaphore::new(MOST_CHANGES)),
            data: Arc::new(Semaphore::new(MOST_DATA_REQUESTS)),
        }
    }

    /// Runs a change to its end, whatever becomes of the request.
    async fn change<T, F>(&self, operation: impl FnOnce(Arc<dyn Control>) -> F) -> ApiResult<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ControlError>> + Send + 'static,
    {
        let Ok(permit) = Arc::clone(&self.changes).try_acquire_owned() else {
            let message = format!("{MOST_CHANGES} changes are under way, which is the most");
            return Err(ControlError::new(ErrorKind::Busy, message).into());
        };
        let future = operation(Arc::clone(&self.control));
        let task = tokio::spawn(async move {
            let result = future.await;
            drop(permit);
            result
        });
        match task.await {
            Ok(result) => Ok(result?),
            Err(error) => {
                Err(ControlError::new(ErrorKind::Internal, format!("the change was cut off: {error}")).into())
            }
        }
    }

    async fn data_room(&self) -> ApiResult<SemaphorePermit<'_>> {
        let closed = |_| ControlError::new(ErrorKind::Unavailable, "the server is stopping");
        Ok(self.data.acquire().await.map_err(closed)?)
    }
}

/// Keys and values that some setting takes; which of them make sense together is the node's to say.
fn check_settings(settings: &BTreeMap<String, String>) -> ApiResult<()> {
    if settings.is_empty() {
        return Err(ControlError::invalid("no setting is given").into());
    }
    check_setting_values(settings)
}

fn check_setting_values(settings: &BTreeMap<String, String>) -> ApiResult<()> {
    let mut scratch = Overrides::default();
    for (key, value) in settings {
        scratch.set(key, value).map_err(|error| ControlError::invalid(error.to_string()))?;
    }
    Ok(())
}

fn check_volume_size(bytes: u64) -> ApiResult<()> {
    varve_types::parse_volume_size(&bytes.to_string()).map_err(|error| ControlError::invalid(error.to_string()))?;
    Ok(())
}

macro_rules! routes {
    ($($method:ident $path:literal $handler:path;)*) => {
        /// Every route, as (method, path).
        pub const ROUTES: &[(&str, &str)] = &[$((stringify!($method), $path)),*];

        fn table() -> Router<App> {
            Router::new()$(.route($path, axum::routing::$method($handler)))*
        }
    };
}

routes! {
    get "/v1/volumes" volumes::list;
    post "/v1/volumes" volumes::create;
    get "/v1/volumes/{volume}" volumes::show;
    delete "/v1/volumes/{volume}" volumes::delete;
    patch "/v1/volumes/{volume}/settings" volumes::set;
    post "/v1/volumes/{volume}/resize" volumes::resize;
    post "/v1/volumes/{volume}/rename" volumes::rename;
    post "/v1/volumes/{volume}/undelete" volumes::undelete;
    post "/v1/volumes/{volume}/detach" volumes::detach;
    post "/v1/volumes/{volume}/take" volumes::take;
    post "/v1/volumes/{volume}/template" volumes::template;
    post "/v1/volumes/{volume}/clone" volumes::clone;
    post "/v1/volumes/{volume}/flatten" volumes::flatten;
    get "/v1/volumes/{volume}/snapshots" snapshots::list;
    post "/v1/volumes/{volume}/snapshots" snapshots::create;
    delete "/v1/volumes/{volume}/snapshots/{snapshot}" snapshots::delete;
    post "/v1/volumes/{volume}/rollback" snapshots::rollback;
    post "/v1/volumes/{volume}/rollback/undo" snapshots::undo;
    get "/v1/volumes/{volume}/rewind" snapshots::rewind_points;
    post "/v1/volumes/{volume}/rewind" snapshots::rewind;
    get "/v1/volumes/{volume}/data" data::read;
    put "/v1/volumes/{volume}/data" data::write;
    post "/v1/volumes/{volume}/data/zero" data::zero;
    post "/v1/volumes/{volume}/flush" data::flush;
    get "/v1/volumes/{volume}/extents" data::extents;
    get "/v1/pools" pools::list;
    post "/v1/pools" pools::create;
    get "/v1/pools/{pool}" pools::show;
    delete "/v1/pools/{pool}" pools::delete;
    patch "/v1/pools/{pool}/settings" pools::set;
    post "/v1/pool-import" pools::import;
    get "/v1/cluster" cluster::status;
    get "/v1/nodes" cluster::nodes;
    get "/v1/nodes/{node}" cluster::node;
    delete "/v1/nodes/{node}" cluster::remove;
    get "/v1/status" node::status;
    get "/v1/version" node::version;
    post "/v1/check" node::check;
    get "/v1/cleaning" cleaning::show;
    patch "/v1/cleaning" cleaning::set;
    post "/v1/cleaning/jobs" cleaning::ask;
    post "/v1/cleaning/jobs/{job}/renew" cleaning::renew;
    post "/v1/cleaning/jobs/{job}/complete" cleaning::complete;
    post "/v1/cleaning/jobs/{job}/fail" cleaning::fail;
    get "/v1/scrub" node::scrub;
    patch "/v1/scrub" node::set_scrub;
    get "/v1/jobs" node::jobs;
    get "/v1/jobs/{job}" node::job;
    get "/metrics" node::metrics;
    get "/openapi.json" openapi::document;
}

/// The router of every route.
pub(super) fn router(app: App) -> Router {
    table()
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn(limit_time))
        .with_state(app)
}

async fn no_such_path(request: Request) -> ApiError {
    ControlError::not_found("path", request.uri().path()).into()
}

async fn no_such_method(request: Request) -> ApiError {
    let message = format!("{} does not take {}", request.uri().path(), request.method());
    ApiError::with_status(StatusCode::METHOD_NOT_ALLOWED, ErrorKind::Invalid, message)
}

async fn limit_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIME, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let message = format!(
                "no answer within {} s; a change that was begun goes on, and may still happen",
                REQUEST_TIME.as_secs()
            );
            ApiError::from(ControlError::new(ErrorKind::Unavailable, message)).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;

    #[tokio::test(start_paused = true)]
    async fn a_request_that_takes_too_long_is_answered() {
        let stuck = axum::routing::get(std::future::pending::<()>);
        let router = Router::new().route("/", stuck).layer(middleware::from_fn(limit_time));
        let begun = tokio::time::Instant::now();
        let response = TowerToHyperService::new(router).call(Request::new(Body::empty())).await.unwrap();
        assert_eq!((response.status(), begun.elapsed()), (StatusCode::SERVICE_UNAVAILABLE, REQUEST_TIME));
    }
}
