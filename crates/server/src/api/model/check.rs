// SPDX-License-Identifier: Apache-2.0
//! What a check found: every block read and proved, every count taken again and compared.
//!
//! A check changes nothing. Its errors name the object that is wrong, so that a person can find it in the store; there are at most
//! [`CheckReport::MOST_ERRORS`] of them a volume, and `errors_total` says how many there were.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use varve_types::Name;

/// The result of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckReport {
    /// What was found, by volume.
    pub volumes: Vec<VolumeCheck>,
    /// How long it took.
    pub duration_ms: u64,
}

/// What was found of one volume, with all its histories and snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeCheck {
    /// The volume.
    #[schema(value_type = String)]
    pub volume: Name,
    /// Snapshots whose trees were walked.
    pub snapshots: u64,
    /// Blocks read and proved.
    pub blocks_verified: u64,
    /// Their bytes.
    pub bytes_verified: u64,
    /// Objects of the store that were read.
    pub objects_read: u64,
    /// Counts (live blocks, kills, sizes) that were taken again and compared.
    pub counts_compared: u64,
    /// The errors, at most [`CheckReport::MOST_ERRORS`].
    pub errors: Vec<CheckError>,
    /// How many errors there were.
    pub errors_total: u64,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckError {
    /// The object: its name in the store, or what else it is.
    pub object: String,
    /// What is wrong with it.
    pub message: String,
}

impl CheckReport {
    /// The most errors that are listed for a volume.
    pub const MOST_ERRORS: usize = 1000;

    /// Errors of all volumes.
    #[must_use]
    pub fn errors_total(&self) -> u64 {
        self.volumes.iter().map(|volume| volume.errors_total).fold(0, u64::saturating_add)
    }
}

impl VolumeCheck {
    /// The check of a volume of which nothing was looked at yet.
    #[must_use]
    pub const fn new(volume: Name) -> Self {
        Self {
            volume,
            snapshots: 0,
            blocks_verified: 0,
            bytes_verified: 0,
            objects_read: 0,
            counts_compared: 0,
            errors: Vec::new(),
            errors_total: 0,
        }
    }

    /// Notes an error; beyond the bound it is only counted.
    pub fn error(&mut self, object: impl Into<String>, message: impl Into<String>) {
        self.errors_total = self.errors_total.saturating_add(1);
        if self.errors.len() < CheckReport::MOST_ERRORS {
            self.errors.push(CheckError { object: object.into(), message: message.into() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_listed_up_to_a_bound_and_all_counted() {
        let mut check = VolumeCheck::new("v".parse().unwrap());
        for n in 0..1500 {
            check.error(format!("object {n}"), "is wrong");
        }
        assert_eq!((check.errors.len(), check.errors_total), (CheckReport::MOST_ERRORS, 1500));
        let report = CheckReport { volumes: vec![check.clone(), check], duration_ms: 1 };
        assert_eq!(report.errors_total(), 3000);
    }
}
