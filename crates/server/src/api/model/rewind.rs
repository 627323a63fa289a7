// SPDX-License-Identifier: Apache-2.0
//! Documents of rewinding: which moments of a volume's recent past can be had, and one that is brought back as a volume.

use super::Volume;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use varve_types::Name;

/// What of a volume's past can be brought back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RewindPoints {
    /// The `rewind-window` in force, in milliseconds; 0: nothing of the past is kept.
    pub window_ms: u64,
    /// How many moments can be brought back.
    pub count: u64,
    /// The oldest of them, in milliseconds since 1970.
    pub oldest_ms: Option<u64>,
    /// The latest of them, oldest first, in milliseconds since 1970: as many as were asked for.
    pub latest_ms: Vec<u64>,
    /// Bytes of blocks that are kept for the past alone, as they were before compression.
    pub held_bytes: u64,
}

/// How many moments are listed.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RewindQuery {
    /// Most of them; the latest.
    #[param(default = 100, maximum = 100_000)]
    pub most: Option<u32>,
}

/// Makes a volume of what another one was at a moment: one of the two says which.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rewind {
    /// Name of the new volume.
    #[schema(value_type = String, pattern = "^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$")]
    pub name: Name,
    /// The last moment at or before this one, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_ms: Option<u64>,
    /// The last moment that is so long ago or longer, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ago_ms: Option<u64>,
}

/// A moment that was brought back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Rewound {
    /// The moment, in milliseconds since 1970.
    pub at_ms: u64,
    /// The new volume.
    pub volume: Volume,
}
