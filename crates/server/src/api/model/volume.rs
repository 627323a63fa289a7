// SPDX-License-Identifier: Apache-2.0
//! Volumes, their snapshots and their settings, as the API shows and takes them.
//!
//! A [`Volume`] answers "what is it and what does it cost"; its settings are always all of them, each with the level that it comes from, so
//! that a person never has to know a default. Space is exact: `live_bytes` is what the volume itself would read, `dirty_bytes` what the store
//! does not have yet and only the journal keeps.

use super::Owner;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;
use varve_types::{MirrorMedium, Name, NodeId, SnapshotId, Source, TimelineId, VolumeId};

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// Its name, which is also the name of the NBD export.
    #[schema(value_type = String)]
    pub name: Name,
    /// Its id, which survives a rename.
    #[schema(value_type = String)]
    pub id: VolumeId,
    /// The pool that keeps it.
    #[schema(value_type = String)]
    pub pool: Name,
    /// Its size as clients see it; where another node runs it, as of its newest checkpoint, as are its numbers.
    pub size_bytes: u64,
    /// Whether it serves.
    pub state: VolumeState,
    /// Why it does not serve, or what is wrong though it does.
    pub state_message: Option<String>,
    /// Until when a deleted volume can be brought back.
    pub undelete_until_ms: Option<u64>,
    /// Whether it is a template: read-only, to clone from.
    pub template: bool,
    /// Where a client attaches it: an NBD URI.
    pub nbd_uri: Option<String>,
    /// Clients that have it open.
    pub attached: Vec<Client>,
    /// The edge that has it for itself, connected or not.
    pub holder: Option<Holder>,
    /// The node of the cluster that runs it; `null` where the node is by itself, and for a volume that nobody runs.
    #[serde(default)]
    pub owner: Option<Owner>,
    /// How its mirror is, where the volume is run by this node.
    pub mirror: Option<Mirror>,
    /// Every setting, with its value and where that comes from.
    pub settings: Vec<Setting>,
    /// Its histories: the one shown, and those hidden that can still be brought back or are needed by others.
    pub timelines: Vec<Timeline>,
    /// What it takes.
    pub space: Space,
    /// When it was made.
    pub created_ms: u64,
    /// How many snapshots it has.
    pub snapshots: u64,
    /// What it was cloned from.
    pub origin: Option<Origin>,
}

/// Whether a volume serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// It serves.
    Ready,
    /// It is being read back after a start, and will serve.
    Recovering,
    /// It serves, but something that it needs does not answer: writes may wait.
    Degraded,
    /// Another node runs it.
    Elsewhere,
    /// It does not serve, and a person is needed.
    Failed,
    /// It is deleted, and can be brought back for a while.
    Deleted,
}

/// How the mirror of a volume is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Mirror {
    /// Where it stands.
    pub state: MirrorState,
    /// The node that it is on, where there is one.
    #[schema(value_type = Option<String>)]
    pub node: Option<NodeId>,
    /// Where that keeps it, as far as this node knows.
    #[schema(value_type = Option<String>)]
    pub medium: Option<MirrorMedium>,
    /// Bytes that it has, and the store does not.
    pub bytes: u64,
}

/// Where the mirror of a volume stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MirrorState {
    /// The volume wants none.
    Off,
    /// There is none: what is written is on this node alone until it is in the store.
    Alone,
    /// One is being brought in sync.
    Joining,
    /// It has all that was answered.
    InSync,
    /// It was lost: answers wait until that is recorded.
    Parting,
}

/// An edge that has a volume for itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Holder {
    /// Who: what the edge calls itself, and where it came from.
    pub edge: String,
    /// Its session.
    pub session: String,
    /// Since when.
    pub since_ms: u64,
    /// Whether it is connected, as far as this node knows: not of volumes that another one runs.
    pub connected: bool,
}

/// A client that has a volume open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Client {
    /// Who: `unix:PID` or a network address.
    pub peer: String,
    /// Since when.
    pub since_ms: u64,
    /// Its open connections.
    pub connections: u32,
}

/// A setting in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Setting {
    /// Its key, as `set` takes it.
    pub key: String,
    /// Its value, as `set` takes it.
    pub value: String,
    /// Whether it was set for the volume, for its pool, or by nobody: `volume`, `pool` or `default`.
    #[schema(value_type = String)]
    pub source: Source,
}

impl Setting {
    /// The rows of [`varve_types::Settings::describe`].
    #[must_use]
    pub fn rows(described: Vec<(&'static str, String, Source)>) -> Vec<Self> {
        described.into_iter().map(|(key, value, source)| Self { key: key.to_owned(), value, source }).collect()
    }
}

/// One history of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Timeline {
    /// Its id.
    #[schema(value_type = String)]
    pub id: TimelineId,
    /// Whether the volume shows it.
    pub state: TimelineState,
    /// Until when a hidden one can be brought back.
    pub hidden_until_ms: Option<u64>,
}

/// What a volume does with one of its histories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TimelineState {
    /// It is what clients read and write.
    Shown,
    /// A rollback or a delete hid it; it can be brought back.
    Hidden,
    /// Nobody can bring it back, but others were born from it and need its data.
    Held,
}

/// What a volume takes. Data that it shares with its origin is counted there, once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Space {
    /// Bytes of blocks that hold data, of this volume's own histories.
    pub live_bytes: u64,
    /// Bytes of the objects that keep them in the store, compressed, with what is dead in them.
    pub stored_bytes: u64,
    /// Bytes written that the store does not have yet.
    pub dirty_bytes: u64,
    /// Bytes of the volume that were discarded in large pieces and are still being looked through: at most so many of `live_bytes` are of them.
    #[serde(default)]
    pub reclaim_bytes: u64,
    /// Those of `live_bytes` that nothing but the rewind window needs, as of the last checkpoint.
    #[serde(default)]
    pub rewind_bytes: u64,
    /// Segments in the store.
    pub segments: u64,
}

/// What a clone was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Origin {
    /// The volume, by its present name; `null` when it is gone for good.
    #[schema(value_type = Option<String>)]
    pub volume: Option<Name>,
    /// The snapshot; `null` when the clone was made of the volume's head, or the snapshot is gone.
    #[schema(value_type = Option<String>)]
    pub snapshot: Option<Name>,
}

/// A snapshot of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// Its name, one of its kind in the volume.
    #[schema(value_type = String)]
    pub name: Name,
    /// Its id.
    #[schema(value_type = String)]
    pub id: SnapshotId,
    /// When it was taken.
    pub created_ms: u64,
    /// The volume's size at that moment.
    pub size_bytes: u64,
    /// Whether a rollback hid it.
    pub hidden: bool,
}

/// Makes a volume.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewVolume {
    /// Its name.
    #[schema(value_type = String, pattern = "^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$")]
    pub name: Name,
    /// Its size: more than zero, a multiple of 512, at most 64 TiB.
    #[schema(minimum = 512, maximum = 70_368_744_177_664_u64, multiple_of = 512)]
    pub size_bytes: u64,
    /// The pool that is to keep it; `default` when it is left out.
    #[schema(value_type = Option<String>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Name>,
    /// Settings of its own, by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
}

/// Changes settings of a volume or a pool.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetSettings {
    /// New values by key; the value `default` gives a setting back to the level above. All are taken or none.
    pub settings: BTreeMap<String, String>,
}

/// Changes the size of a volume.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// The new size, by the rules of [`NewVolume::size_bytes`].
    #[schema(minimum = 512, maximum = 70_368_744_177_664_u64, multiple_of = 512)]
    pub size_bytes: u64,
    /// Whether data beyond the new end may be cut off.
    #[serde(default)]
    pub force: bool,
}

/// Renames a volume.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rename {
    /// The new name.
    #[schema(value_type = String, pattern = "^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$")]
    pub name: Name,
}

/// Takes a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSnapshot {
    /// Its name.
    #[schema(value_type = String, pattern = "^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$")]
    pub name: Name,
}

/// Rolls a volume back.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// The snapshot that the volume is to show again.
    #[schema(value_type = String, pattern = "^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$")]
    pub snapshot: Name,
    /// Only tell what would be hidden, and change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a rollback did, or would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RollbackReport {
    /// Whether it was done; `false` after a dry run.
    pub done: bool,
    /// The later snapshots that it hides, oldest first.
    pub hides: Vec<Snapshot>,
    /// Until when it can be undone.
    pub undo_until_ms: Option<u64>,
}

/// Makes a volume from a snapshot, or from the present state of a volume.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CloneVolume {
    /// Name of the new volume.
    #[schema(value_type = String, pattern = "^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$")]
    pub name: Name,
    /// The snapshot to clone; the present state when it is left out.
    #[schema(value_type = Option<String>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Name>,
}
