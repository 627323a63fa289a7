// SPDX-License-Identifier: Apache-2.0
//! Pools: volumes that share a store and settings.
//!
//! A pool is a name here and an address there: what it keeps lies whole in its store, so a pool can be forgotten by one node and imported
//! by another. The store's URL is shown without secrets; credentials never pass through the API.

use super::Setting;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use varve_types::Name;

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pool {
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
    /// Its store: `file:///DIR` or `s3://BUCKET/PREFIX?endpoint=URL`.
    pub store: String,
    /// Every setting that its volumes get unless they have their own.
    pub settings: Vec<Setting>,
    /// The names of its volumes, sorted.
    #[schema(value_type = Vec<String>)]
    pub volumes: Vec<Name>,
    /// When this node made or imported it.
    pub created_ms: u64,
}

/// Makes a pool on an empty store.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPool {
    /// Its name.
    #[schema(value_type = String, pattern = "^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$")]
    pub name: Name,
    /// Its store.
    pub store: String,
}

/// Takes over a pool that lies in a store, with nothing but the store.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportPool {
    /// The store.
    pub store: String,
}

/// What an import of a pool found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolImport {
    /// The pool, as it now is.
    pub pool: Pool,
    /// What a person should know: volumes that were renamed or left out, and why.
    pub warnings: Vec<String>,
}
