// SPDX-License-Identifier: Apache-2.0
//! The description of the API that the API gives of itself, made from the handlers and the documents.

use super::{cleaning, cluster, data, node, pools, snapshots, volumes};
use axum::Json;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

#[derive(OpenApi)]
#[openapi(
    info(title = "Varve", description = "Volumes, snapshots, clones and pools of a Varve node."),
    tags(
        (name = "volumes", description = "Virtual disks"),
        (name = "snapshots", description = "Frozen points of volumes"),
        (name = "data", description = "What is in a volume or a snapshot"),
        (name = "pools", description = "Volumes that share a store and settings"),
        (name = "cluster", description = "The nodes that make one system"),
        (name = "node", description = "The server itself")
    ),
    paths(
        volumes::list, volumes::create, volumes::show, volumes::delete, volumes::set, volumes::resize, volumes::rename,
        volumes::undelete, volumes::detach, volumes::take, volumes::template, volumes::clone, volumes::flatten,
        snapshots::list, snapshots::create, snapshots::delete, snapshots::rollback, snapshots::undo,
        snapshots::rewind_points, snapshots::rewind,
        data::read, data::write, data::zero, data::flush, data::extents,
        pools::list, pools::create, pools::show, pools::delete, pools::set, pools::import,
        cluster::status, cluster::nodes, cluster::node, cluster::remove,
        node::status, node::version, node::check, node::scrub, node::set_scrub, node::jobs, node::job, node::metrics,
        cleaning::show, cleaning::set, cleaning::ask, cleaning::renew, cleaning::complete, cleaning::fail,
        document
    ),
    modifiers(&Bearer),
    security(("token" = []))
)]
struct Description;

/// The token, which the port asks for and the unix socket does not.
struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    }
}

/// This description.
#[utoipa::path(get, path = "/openapi.json", tag = "node", responses((status = 200, description = "OpenAPI 3.1")))]
pub(in super::super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Description::openapi())
}
