// SPDX-License-Identifier: Apache-2.0
//! What a decoder says of bytes that it does not take.

use varve_types::ErrorKind;

/// Bytes that are not what this version writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// They were damaged, or are something else.
    #[error("{what} is corrupt: {reason}")]
    Corrupt {
        /// The structure that was expected.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// They were written by a version that this one does not know.
    #[error("{what} has format version {found}; this build knows none above {known}: use a newer one")]
    Version {
        /// The structure.
        what: &'static str,
        /// The version found.
        found: u32,
        /// The newest version that this build reads and writes.
        known: u32,
    },
    /// They lead to something that this version does not know.
    #[error("{what} needs features that this build does not know ({unknown:#x}): use a newer one")]
    Feature {
        /// The structure.
        what: &'static str,
        /// A bit each.
        unknown: u64,
    },
}

impl FormatError {
    /// Damaged bytes.
    pub fn new(what: &'static str, reason: impl Into<String>) -> Self {
        Self::Corrupt { what, reason: reason.into() }
    }
    /// A version that is not known; or damage, where nothing else is wrong with the bytes: a bit that flips must not turn what is ours into what only
    /// a newer build can read.
    pub(crate) fn version(what: &'static str, found: u32, known: u32, is_ours_but_for_it: bool) -> Self {
        if is_ours_but_for_it {
            return Self::new(
                what,
                format!("its version is damaged: it says {found}, and all the rest fits version {known}"),
            );
        }
        Self::Version { what, found, known }
    }
    /// What the caller should do.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Corrupt { .. } => ErrorKind::Corrupt,
            Self::Version { .. } | Self::Feature { .. } => ErrorKind::Invalid,
        }
    }
}
