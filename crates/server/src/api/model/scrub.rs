// SPDX-License-Identifier: Apache-2.0
//! Scrubbing, as people see it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use varve_types::{Name, VolumeId};

/// Scrubbing in a node: whatever its volumes have in stores is read in the background and proved against its checksums.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Scrub {
    /// Whether a pass over all objects is under way.
    pub running: bool,
    /// Bytes that it may read in a second; null: it is off.
    pub rate_bytes: Option<u64>,
    /// For so long it rests between two passes, in milliseconds.
    pub interval_ms: u64,
    /// The pass that has begun and not ended: it goes on over restarts. Null: it rests.
    #[serde(default)]
    pub pass: Option<ScrubPass>,
    /// Passes that came to their end since the node started.
    pub passes: u64,
    /// When the last of them did, in milliseconds since 1970.
    pub ended_ms: Option<u64>,
    /// Objects that were proved since the node started.
    pub objects: u64,
    /// Bytes of them.
    pub read_bytes: u64,
    /// Objects that are damaged or missing, and that something needs. A read of what they have lost is answered with an error.
    pub findings: Vec<Finding>,
}

/// A pass over all objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScrubPass {
    /// When it began, in milliseconds since 1970.
    pub begun_ms: u64,
    /// Objects that it has proved.
    pub objects: u64,
    /// Bytes of them.
    pub read_bytes: u64,
}

/// An object that is damaged or missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// Id of the volume whose history has it.
    #[schema(value_type = String)]
    pub volume_id: VolumeId,
    /// What the volume was called when it was found.
    #[schema(value_type = String)]
    pub volume: Name,
    /// Name of the object in the store of its pool.
    pub object: String,
    /// What is wrong with it.
    pub message: String,
    /// When it was found first, in milliseconds since 1970.
    pub found_ms: u64,
}

/// Changes how a node scrubs, until it stops; what is left out stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SetScrub {
    /// Bytes that may be read in a second, 65536 at least; 0: nothing is scrubbed any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_bytes: Option<u64>,
    /// Begin a pass now, if none is under way.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub now: bool,
}
