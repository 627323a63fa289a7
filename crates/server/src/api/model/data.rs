// SPDX-License-Identifier: Apache-2.0
//! Data of a volume or a snapshot through the API: what is meant, and which range of it.
//!
//! Data goes as plain bytes (`application/octet-stream`), not as JSON, in ranges of at most [`super::super::MAX_DATA`] bytes, so that a client
//! with several requests under way moves data at the speed of the socket while the node holds a bounded amount of it.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use utoipa::{IntoParams, ToSchema};
use varve_types::{Name, NameError};

/// A volume, or a snapshot of one. Text form: `VOLUME` or `VOLUME@SNAPSHOT`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Target {
    /// The volume.
    pub volume: Name,
    /// The snapshot; its present state when there is none.
    pub snapshot: Option<Name>,
}

impl FromStr for Target {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Ok(match text.split_once('@') {
            Some((volume, snapshot)) => Self { volume: volume.parse()?, snapshot: Some(snapshot.parse()?) },
            None => Self { volume: text.parse()?, snapshot: None },
        })
    }
}
impl TryFrom<String> for Target {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}
impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.snapshot {
            Some(snapshot) => write!(f, "{}@{snapshot}", self.volume),
            None => self.volume.fmt(f),
        }
    }
}

/// A range of bytes, both ends multiples of 512.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RangeQuery {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length, in bytes.
    pub len: u64,
}

/// Where the bytes of the body go.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WriteQuery {
    /// Where they begin, in bytes; a multiple of 512.
    pub offset: u64,
}

/// Which parts of a range hold data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExtentMap {
    /// The size of the whole volume or snapshot.
    pub size_bytes: u64,
    /// Where the first extent begins.
    pub offset_bytes: u64,
    /// Runs one behind the other, from the start of the range that was asked for; they may end before it does: then ask again from there.
    pub extents: Vec<Extent>,
}

/// A run of bytes in the same state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Extent {
    /// Its length.
    pub len_bytes: u64,
    /// Whether nothing is stored there; it reads as zeroes.
    pub hole: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_volume_or_one_of_its_snapshots() {
        for text in ["v", "v@s", "a.b@c-d"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        for bad in ["", "@", "v@", "@s", "v@s@t", "v/s"] {
            assert!(bad.parse::<Target>().is_err(), "{bad:?}");
        }
    }
}
