// SPDX-License-Identifier: Apache-2.0
//! The one error of this crate: bytes that are not what a writer of Varve leaves behind.
//!
//! Every decoder returns it instead of trusting what it reads; nothing of the bytes is used then. The caller adds where they came from.

use varve_types::ErrorKind;

/// Bytes that can not be read as what they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct FormatError {
    /// What the bytes should have been.
    pub what: &'static str,
    /// Why they are not.
    pub reason: String,
}

impl FormatError {
    /// The error that `what` could not be read because of `reason`.
    pub fn new(what: &'static str, reason: impl Into<String>) -> Self {
        Self { what, reason: reason.into() }
    }
    /// What the caller should do: it is always corruption.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        ErrorKind::Corrupt
    }
}
