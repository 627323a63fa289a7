// SPDX-License-Identifier: Apache-2.0
//! What a decoder says of bytes that it does not take.

use varve_format::FormatError;
use varve_types::ErrorKind;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, WireError>;

/// Bytes from a network that are not what this version says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// They do not begin as anything of Varve does: somebody else speaks there.
    #[error("this is not Varve's protocol: a {what} begins with {found:02x?}")]
    NotVarve {
        /// What was expected.
        what: &'static str,
        /// The first bytes.
        found: [u8; 4],
    },
    /// A checksum does not match: they were damaged on the way.
    #[error("a {what} was damaged on the way: its checksum does not match")]
    Damaged {
        /// Which structure, or its payload.
        what: &'static str,
    },
    /// The other side speaks no version that this one does.
    #[error(
        "the other side speaks versions {oldest} to {newest} of the protocol, this one {ours_oldest} to {ours_newest}: upgrade the older one"
    )]
    Version {
        /// Its oldest.
        oldest: u16,
        /// Its newest.
        newest: u16,
        /// The oldest of this build.
        ours_oldest: u16,
        /// The newest of this build.
        ours_newest: u16,
    },
    /// A length is above the bound of its kind.
    #[error("a {what} of {length} bytes; at most {most} are allowed")]
    TooLong {
        /// Which structure.
        what: &'static str,
        /// What it says.
        length: u64,
        /// The bound.
        most: u64,
    },
    /// A field makes no sense.
    #[error("a {what} makes no sense: {reason}")]
    Senseless {
        /// Which structure.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

impl WireError {
    /// What the caller should do: all of these end the connection; a version is for people to mend.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Version { .. } | Self::NotVarve { .. } | Self::TooLong { .. } | Self::Senseless { .. } => {
                ErrorKind::Invalid
            }
            Self::Damaged { .. } => ErrorKind::Corrupt,
        }
    }

    pub(crate) fn senseless(what: &'static str, reason: impl Into<String>) -> Self {
        Self::Senseless { what, reason: reason.into() }
    }
}

impl From<FormatError> for WireError {
    fn from(error: FormatError) -> Self {
        match error {
            FormatError::Corrupt { what, reason } => Self::Senseless { what, reason },
            FormatError::Version { what, .. } | FormatError::Feature { what, .. } => {
                Self::senseless(what, error.to_string())
            }
        }
    }
}
