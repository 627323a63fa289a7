// SPDX-License-Identifier: Apache-2.0
//! Routes of the cluster: how it is, and its nodes.

use super::super::extract::{ApiResult, Path};
use super::super::model::{Cluster, ClusterNode, ErrorBody};
use super::App;
use axum::Json;
use axum::extract::State;
use varve_types::Name;

/// The cluster, as this node sees it.
#[utoipa::path(get, path = "/v1/cluster", tag = "cluster",
    responses((status = 200, body = Cluster), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn status(State(app): State<App>) -> ApiResult<Json<Cluster>> {
    Ok(Json(app.control.cluster().await?))
}

/// The nodes of the cluster; none where this one is by itself.
#[utoipa::path(get, path = "/v1/nodes", tag = "cluster",
    responses((status = 200, body = [ClusterNode]), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn nodes(State(app): State<App>) -> ApiResult<Json<Vec<ClusterNode>>> {
    Ok(Json(app.control.nodes().await?))
}

/// A node of the cluster.
#[utoipa::path(get, path = "/v1/nodes/{node}", tag = "cluster", params(("node" = String, Path, description = "Its name or its id")),
    responses((status = 200, body = ClusterNode), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn node(State(app): State<App>, Path(node): Path<Name>) -> ApiResult<Json<ClusterNode>> {
    Ok(Json(app.control.node(node).await?))
}

/// Takes a node out of the cluster that is not alive and owns no volumes.
#[utoipa::path(delete, path = "/v1/nodes/{node}", tag = "cluster", params(("node" = String, Path, description = "Its name or its id")),
    responses((status = 200, body = ClusterNode), (status = "default", body = ErrorBody)))]
pub(in super::super) async fn remove(State(app): State<App>, Path(node): Path<Name>) -> ApiResult<Json<ClusterNode>> {
    Ok(Json(app.change(|control| async move { control.remove_node(node).await }).await?))
}
