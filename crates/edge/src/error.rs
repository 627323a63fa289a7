// SPDX-License-Identifier: Apache-2.0
//! Making errors of things that are not the session's: addresses, files, certificates.

use std::fmt::Display;
use varve_block::BlockError;
use varve_types::ErrorKind;

/// A file can not be read or used.
pub(crate) fn file(path: &std::path::Path, error: impl Display) -> BlockError {
    BlockError::new(ErrorKind::Invalid, format!("{}: {error}", path.display()))
}

/// What a person said makes no sense.
pub(crate) fn invalid(why: impl Into<String>) -> BlockError {
    BlockError::invalid(why)
}
