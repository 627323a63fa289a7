// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with coordination, and what the caller may conclude from it.
//!
//! The one distinction that matters most is between an error after which nothing was changed and [`CoordError::Unknown`], after which the
//! transaction may or may not have been applied, now or a little later. Whoever gets `Unknown` counts on the worse of the two: a claim may have
//! been made (so it must be taken back or adopted), and a right may not have been gained (so it must not be used). Reading again tells.

use std::path::PathBuf;
use varve_types::{ErrorKind, Kinded};

/// Result of coordination.
pub type Result<T> = std::result::Result<T, CoordError>;

/// The error underneath, kept for whoever wants the chain.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// An error of coordination. But for [`Unknown`](CoordError::Unknown), an error means that nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum CoordError {
    /// The request breaks a bound or a rule, and always will.
    #[error("{0}")]
    Invalid(String),
    /// What was asked for is not there.
    #[error("{0} does not exist")]
    NotFound(String),
    /// What was to be made exists already.
    #[error("{0} exists already")]
    Exists(String),
    /// It was changed by somebody else since the caller read it.
    #[error("{0} was changed by somebody else meanwhile")]
    Changed(String),
    /// It can not be done while something else depends on the thing.
    #[error("{what}: {reason}")]
    InUse {
        /// The thing, for people: `pool default`.
        what: String,
        /// What stands in the way.
        reason: String,
    },
    /// Another opener has the file.
    #[error("the coordination file {} is in use by {}", path.display(), holder(*pid))]
    Locked {
        /// The file.
        path: PathBuf,
        /// The process that has it, where the system tells.
        pid: Option<u32>,
    },
    /// The transaction may or may not have been applied: see the module.
    #[error("coordination: it is not known whether the transaction was applied: {reason}")]
    Unknown {
        /// What happened.
        reason: String,
        /// The error underneath.
        #[source]
        source: Option<Cause>,
    },
    /// It does not answer, or has failed and wants to be opened again.
    #[error("coordination is not available: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
        /// The error underneath.
        #[source]
        source: Option<Cause>,
    },
    /// A bound on what goes on at once is reached.
    #[error("coordination is busy: {0}")]
    Busy(String),
    /// The disk or the store's own bound is full.
    #[error("coordination: no space: {0}")]
    NoSpace(String),
    /// Bytes that are not what was written.
    #[error("{what} is corrupt: {reason}")]
    Corrupt {
        /// The file or the key.
        what: String,
        /// What is wrong with it.
        reason: String,
        /// The error underneath.
        #[source]
        source: Option<Cause>,
    },
    /// Written by a version that this one does not know.
    #[error("{what} has format version {found}; this build knows only {known}: use a newer one")]
    Version {
        /// The file or the key.
        what: String,
        /// The version found.
        found: u64,
        /// The newest version that this build knows.
        known: u64,
    },
    /// A defect of Varve itself.
    #[error("coordination: internal error: {0}")]
    Internal(String),
}

impl CoordError {
    /// What the caller should do.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid(_) | Self::Version { .. } => ErrorKind::Invalid,
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::Exists(_) | Self::Changed(_) | Self::InUse { .. } | Self::Locked { .. } => ErrorKind::Conflict,
            Self::Unknown { .. } | Self::Unavailable { .. } => ErrorKind::Unavailable,
            Self::Busy(_) => ErrorKind::Busy,
            Self::NoSpace(_) => ErrorKind::NoSpace,
            Self::Corrupt { .. } => ErrorKind::Corrupt,
            Self::Internal(_) => ErrorKind::Internal,
        }
    }

    /// Whether the transaction may have been applied all the same.
    #[must_use]
    pub const fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }

    pub(crate) fn corrupt(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Corrupt { what: what.into(), reason: reason.into(), source: None }
    }

    pub(crate) fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable { reason: reason.into(), source: None }
    }

    pub(crate) fn unknown(reason: impl Into<String>) -> Self {
        Self::Unknown { reason: reason.into(), source: None }
    }
}

impl Kinded for CoordError {
    fn kind(&self) -> ErrorKind {
        Self::kind(self)
    }
    fn passed_on(&self) -> String {
        format!("coordination: {self}")
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "only the text of an error that no simulation meets: nobody else locks its files"
)]
fn holder(pid: Option<u32>) -> String {
    match pid {
        Some(pid) if pid == std::process::id() => format!("this same process ({pid})"),
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    }
}
