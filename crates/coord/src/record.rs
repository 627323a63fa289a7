// SPDX-License-Identifier: Apache-2.0
//! The facts that coordination keeps, as JSON under keys.
//!
//! ```text
//! cluster        ClusterRecord     who we are; made once
//! pool/NAME      PoolRecord        where a pool's objects are, and its settings
//! volume/UUID    VolumeRecord      owner, timelines, accepted manifests: the one record that every switch of a volume goes through
//! name/NAME      NameRecord        claims a name for a volume; a deleted volume gives it up
//! timeline/UUID  TimelineOwner     the volume that a timeline belongs to, so that a clone finds the one of its origin
//! scrub/UUID     ScrubRecord       how far the shard with this journal has come with scrubbing; without it a pass is begun anew
//! ```
//!
//! Those of nodes stand in `node.rs`.
//!
//! Every record carries its version. An older or equal one is read; fields that are not known are passed over; a newer version is refused by name,
//! because to write such a record back would drop what it means. A record that breaks its own rules is not written (a defect of ours) and, when
//! read, is `Corrupt` under the name of its key.

use crate::{CoordError, MAX_VALUE_BYTES, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use varve_types::{
    ClusterId, Epoch, IncarnationId, JournalId, Name, NodeId, Overrides, Sequence, SessionId, TimelineId, VolumeId,
    WriterId,
};

/// A fact under a key.
pub trait Record: Serialize + DeserializeOwned {
    /// The version that this build writes, and the newest that it reads.
    const VERSION: u32 = 1;
    /// What it is, for people.
    const WHAT: &'static str;

    /// The key that it belongs under.
    fn key(&self) -> String;

    /// The version that it carries.
    fn version(&self) -> u32;

    /// Whether it keeps its own rules, else which one it breaks.
    ///
    /// # Errors
    /// The rule, for people.
    fn check(&self) -> std::result::Result<(), String> {
        Ok(())
    }

    /// The stored form.
    ///
    /// # Errors
    /// `Internal` where it breaks its own rules, `Invalid` where it is too large to be stored.
    fn encode(&self) -> Result<Vec<u8>> {
        let defect = |reason: String| CoordError::Internal(format!("the record {}: {reason}", self.key()));
        self.check().map_err(defect)?;
        if self.version() != Self::VERSION {
            return Err(defect(format!("its version is {} instead of {}", self.version(), Self::VERSION)));
        }
        let bytes = serde_json::to_vec(self).map_err(|error| defect(error.to_string()))?;
        if bytes.len() > MAX_VALUE_BYTES {
            let (len, key) = (bytes.len(), self.key());
            return Err(CoordError::Invalid(format!(
                "the record {key} would have {len} bytes, more than {MAX_VALUE_BYTES}"
            )));
        }
        Ok(bytes)
    }

    /// The record stored under `key`.
    ///
    /// # Errors
    /// `Invalid` (as [`CoordError::Version`]) where its version is newer, `Corrupt` where it is damaged or belongs elsewhere.
    fn decode(key: &str, bytes: &[u8]) -> Result<Self> {
        let what = || format!("the {} {key}", Self::WHAT);
        let corrupt = |error: serde_json::Error| CoordError::Corrupt {
            what: what(),
            reason: error.to_string(),
            source: Some(Box::new(error)),
        };
        // The version is looked at first, so that a newer record is told by its number and not by what has changed in it.
        let Head { version } = serde_json::from_slice(bytes).map_err(corrupt)?;
        if version == 0 || version > u64::from(Self::VERSION) {
            return Err(CoordError::Version { what: what(), found: version, known: Self::VERSION.into() });
        }
        let record: Self = serde_json::from_slice(bytes).map_err(corrupt)?;
        record.check().map_err(|reason| CoordError::corrupt(what(), reason))?;
        if record.key() != key {
            return Err(CoordError::corrupt(what(), format!("it is that of {}", record.key())));
        }
        Ok(record)
    }
}

#[derive(Deserialize)]
struct Head {
    version: u64,
}

/// The cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// See [`Record::VERSION`].
    pub version: u32,
    /// Who owns the pools.
    pub cluster: ClusterId,
    /// When it was made: wall clock, milliseconds since 1970.
    pub created_ms: u64,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRecord {
    /// See [`Record::VERSION`].
    pub version: u32,
    /// Its name.
    pub name: Name,
    /// The address of its store, without secrets.
    pub store: String,
    /// Number of the owner record in the store by which the pool is this cluster's.
    pub owner_number: u64,
    /// What is set for all its volumes.
    pub settings: Overrides,
    /// When it was made: wall clock, milliseconds since 1970.
    pub created_ms: u64,
}

/// A volume. `shown` is among `timelines`, each of which is there once, and no other is in the state `Shown`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// See [`Record::VERSION`].
    pub version: u32,
    /// Its id.
    pub id: VolumeId,
    /// Its name; kept, but not claimed, while it is deleted.
    pub name: Name,
    /// Its pool, for ever.
    pub pool: Name,
    /// Fencing number of its ownership. Never goes back.
    pub epoch: Epoch,
    /// The opening that owns it at this epoch.
    pub writer: WriterId,
    /// The timeline that it shows (or showed when it was deleted).
    pub shown: TimelineId,
    /// Raised by every attempt to show another timeline. Never goes back.
    pub show_number: u64,
    /// Whether it is a template: read-only, to be cloned.
    pub template: bool,
    /// What is set for it.
    pub settings: Overrides,
    /// Since when it is deleted, if it is.
    pub deleted: Option<Deleted>,
    /// Its timelines.
    pub timelines: Vec<TimelineRecord>,
    /// The node that runs it. Of a cluster of one node nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<NodeId>,
    /// Whether it was taken from another node by force, and not opened since: what was promised there may be lost.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forced: bool,
    /// Who has a copy of its unsealed tail that counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<MirrorRecord>,
    /// The edge that has it for itself, if one has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<HolderRecord>,
    /// Where the latest epochs of the timeline that it shows ended, by epoch: [`MAX_ENDS`] at most. An edge that was away asks for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ends: Vec<EpochEnd>,
}

/// A node that has all of a volume's unsealed tail: it may take the volume over. While it is named, nothing is answered that it does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorRecord {
    /// The node.
    pub node: NodeId,
    /// What the copy lives and dies with, the node's process or what that has on disk: a copy of another one has lost something.
    pub incarnation: IncarnationId,
    /// The timeline that it is a copy of: counts for nothing but that.
    pub timeline: TimelineId,
}

/// Ends of epochs that a record keeps.
pub const MAX_ENDS: usize = 32;

/// An edge that has a volume for itself, whether it is connected or not: until it detaches, or somebody takes the volume from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderRecord {
    /// Its session.
    pub session: SessionId,
    /// Who it is, for people.
    pub edge: String,
    /// Since when: wall clock, milliseconds since 1970.
    pub since_ms: u64,
}

/// Where an epoch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochEnd {
    /// The timeline.
    pub timeline: TimelineId,
    /// The epoch.
    pub epoch: Epoch,
    /// The last change of it that counts.
    pub last: Sequence,
}

/// A deletion that can still be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// When it was deleted: wall clock, milliseconds since 1970.
    pub at_ms: u64,
    /// Until when it can be brought back, likewise.
    pub until_ms: u64,
}

impl Deleted {
    /// Until when, for a volume whose end has begun: its objects are being deleted.
    pub const ENDING: u64 = 0;
    /// Until when, for a volume that clones need: what they do not see of it is freed.
    pub const OVER: u64 = 1;

    /// Whether nothing brings the volume back any more, whatever the clock shows.
    #[must_use]
    pub const fn is_for_good(&self) -> bool {
        self.until_ms <= Self::OVER
    }
}

/// A timeline of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineRecord {
    /// Its id.
    pub id: TimelineId,
    /// Whether it can be seen.
    #[serde(flatten)]
    pub state: TimelineState,
    /// The manifest that counts, once there is one.
    pub manifest: Option<ManifestRef>,
    /// The timeline that it was born from.
    pub parent: Option<TimelineId>,
}

/// Whether a timeline can be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum TimelineState {
    /// It is what the volume shows.
    Shown,
    /// It can be brought back.
    Hidden {
        /// Until when: wall clock, milliseconds since 1970.
        until_ms: u64,
    },
    /// It is only there because others are born from it.
    Held,
}

/// Names a manifest of a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestRef {
    /// Its number.
    pub number: u64,
    /// The epoch at which it was written.
    pub epoch: Epoch,
    /// The opening that wrote it.
    pub writer: WriterId,
}

/// A claim to a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRecord {
    /// See [`Record::VERSION`].
    pub version: u32,
    /// The name.
    pub name: Name,
    /// The volume that has it.
    pub volume: VolumeId,
}

/// Where a timeline belongs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineOwner {
    /// See [`Record::VERSION`].
    pub version: u32,
    /// The timeline.
    pub timeline: TimelineId,
    /// The volume whose record lists it.
    pub volume: VolumeId,
}

/// How far scrubbing has come. Only the shard itself writes it, and nothing is lost with it but the way that it has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubRecord {
    /// See [`Record::VERSION`].
    pub version: u32,
    /// The journal of the shard.
    pub journal: JournalId,
    /// Passes that came to their end.
    pub passes: u64,
    /// When the last of them did: wall clock, milliseconds since 1970; 0: none has.
    pub ended_ms: u64,
    /// The pass that is under way.
    pub pass: Option<ScrubPass>,
    /// Objects that were damaged or missing; of many the first.
    pub findings: Vec<ScrubFinding>,
}

/// A pass of scrubbing that is under way: timelines in the order of their ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubPass {
    /// When it began: wall clock, milliseconds since 1970.
    pub begun_ms: u64,
    /// The timeline that it is at; those before it are done. None: it has not come to any.
    pub timeline: Option<TimelineId>,
    /// The page of that timeline's segment table that it is at; those below are done. None: all are, and it is at map and table objects.
    pub page: Option<u64>,
    /// Of the objects there those are done whose names stand up to this one.
    pub object: Option<String>,
    /// Objects that it has proved.
    pub objects: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// An object that is damaged or missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubFinding {
    /// Volume whose timeline it is.
    pub volume: VolumeId,
    /// What that was called then.
    pub name: Name,
    /// The name of the object.
    pub object: String,
    /// What is wrong with it.
    pub message: String,
    /// When it was found first: wall clock, milliseconds since 1970.
    pub found_ms: u64,
}

pub(crate) const CLUSTER_KEY: &str = "cluster";
pub(crate) const POOL_PREFIX: &str = "pool/";
pub(crate) const VOLUME_PREFIX: &str = "volume/";
pub(crate) const NAME_PREFIX: &str = "name/";
pub(crate) const TIMELINE_PREFIX: &str = "timeline/";
const SCRUB_PREFIX: &str = "scrub/";

impl ClusterRecord {
    /// A new record of this build's version.
    #[must_use]
    pub const fn new(cluster: ClusterId, created_ms: u64) -> Self {
        Self { version: Self::VERSION, cluster, created_ms }
    }
}

impl PoolRecord {
    /// What the keys of all pools begin with.
    pub const PREFIX: &'static str = POOL_PREFIX;
    /// The key of the pool of this name.
    #[must_use]
    pub fn key_of(name: &Name) -> String {
        format!("{POOL_PREFIX}{name}")
    }
}

impl VolumeRecord {
    /// What the keys of all volumes begin with.
    pub const PREFIX: &'static str = VOLUME_PREFIX;
    /// The key of the volume.
    #[must_use]
    pub fn key_of(id: VolumeId) -> String {
        format!("{VOLUME_PREFIX}{id}")
    }
    /// Notes where an epoch of what it shows ended.
    pub fn note_end(&mut self, end: EpochEnd) {
        if end.timeline != self.shown {
            return;
        }
        self.ends.retain(|known| known.timeline == end.timeline && known.epoch != end.epoch);
        self.ends.push(end);
        self.ends.drain(..self.ends.len().saturating_sub(MAX_ENDS));
    }
    /// The record of one of its timelines.
    #[must_use]
    pub fn timeline(&self, id: TimelineId) -> Option<&TimelineRecord> {
        self.timelines.iter().find(|timeline| timeline.id == id)
    }
    /// The same, to change it.
    pub fn timeline_mut(&mut self, id: TimelineId) -> Option<&mut TimelineRecord> {
        self.timelines.iter_mut().find(|timeline| timeline.id == id)
    }
    /// The mirror that has a copy of what the volume shows now.
    #[must_use]
    pub fn counting_mirror(&self) -> Option<MirrorRecord> {
        self.mirror.filter(|mirror| mirror.timeline == self.shown)
    }
}

impl NameRecord {
    /// The key that claims the name.
    #[must_use]
    pub fn key_of(name: &Name) -> String {
        format!("{NAME_PREFIX}{name}")
    }
}

impl TimelineOwner {
    /// The key of the timeline.
    #[must_use]
    pub fn key_of(timeline: TimelineId) -> String {
        format!("{TIMELINE_PREFIX}{timeline}")
    }
}

impl Record for ClusterRecord {
    const WHAT: &'static str = "cluster record";
    fn key(&self) -> String {
        CLUSTER_KEY.to_owned()
    }
    fn version(&self) -> u32 {
        self.version
    }
}

impl Record for PoolRecord {
    const WHAT: &'static str = "pool record";
    fn key(&self) -> String {
        Self::key_of(&self.name)
    }
    fn version(&self) -> u32 {
        self.version
    }
}

impl Record for NameRecord {
    const WHAT: &'static str = "name record";
    fn key(&self) -> String {
        Self::key_of(&self.name)
    }
    fn version(&self) -> u32 {
        self.version
    }
}

impl Record for TimelineOwner {
    const WHAT: &'static str = "timeline record";
    fn key(&self) -> String {
        Self::key_of(self.timeline)
    }
    fn version(&self) -> u32 {
        self.version
    }
}

impl ScrubRecord {
    /// The key of the shard with this journal.
    #[must_use]
    pub fn key_of(journal: JournalId) -> String {
        format!("{SCRUB_PREFIX}{journal}")
    }
}

impl Record for ScrubRecord {
    const WHAT: &'static str = "scrub record";
    fn key(&self) -> String {
        Self::key_of(self.journal)
    }
    fn version(&self) -> u32 {
        self.version
    }
}

impl Record for VolumeRecord {
    const WHAT: &'static str = "volume record";
    fn key(&self) -> String {
        Self::key_of(self.id)
    }
    fn version(&self) -> u32 {
        self.version
    }
    fn check(&self) -> std::result::Result<(), String> {
        let mut ids = BTreeSet::new();
        for timeline in &self.timelines {
            if !ids.insert(timeline.id) {
                return Err(format!("it lists the timeline {} twice", timeline.id));
            }
            if timeline.state == TimelineState::Shown && timeline.id != self.shown {
                return Err(format!("the timeline {} is shown, but the volume shows {}", timeline.id, self.shown));
            }
        }
        let shown =
            self.timeline(self.shown).ok_or_else(|| format!("it does not list {}, which it shows", self.shown))?;
        if self.deleted.is_none() && shown.state != TimelineState::Shown {
            return Err(format!("it shows {}, which is not in the state shown", self.shown));
        }
        if self.ends.len() > MAX_ENDS {
            return Err(format!("it has {} ends of epochs, more than {MAX_ENDS}", self.ends.len()));
        }
        Ok(())
    }
}
