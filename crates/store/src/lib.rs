// SPDX-License-Identifier: Apache-2.0
//! Object stores: a directory, S3.
//!
//! [`StoreUrl`] is the address of a store as people write it; [`open()`] turns it into a `varve_env::ObjectStore`, after it has seen that
//! the store is there, that it may be written, and that it keeps the promise of a conditional put. Behind it stand
//!
//! - [`DirStore`], `file:///dir`: a file an object, made durable by fsync, on threads of its own;
//! - `s3`, `s3://bucket/prefix`: any server of that protocol, through the crate `object_store`, unless it is built without the feature `s3`;
//! - [`Limited`], around what is reached over a network: bounded concurrency, a time limit for each try, retries with backoff and jitter.
//!
//! No store overwrites an object, and none trusts a name: names are checked before they reach a file system or a URL.

#[cfg(feature = "s3")]
mod ballast;
#[cfg(feature = "s3")]
mod credentials;
mod dir;
mod limit;
mod name;
mod open;
#[cfg(feature = "s3")]
mod open_s3;
mod pool;
#[cfg(feature = "s3")]
mod s3;
#[cfg(feature = "s3")]
mod s3_error;
mod url;

pub use dir::DirStore;
pub use limit::{Limited, Pace, StoreLimits, SystemPace};
pub use name::{LIST_MAX, NAME_MAX_BYTES, check_name, check_prefix};
pub use open::open;
pub use url::{S3Url, StoreUrl};

use varve_env::{StoreError, StoreErrorKind};

/// An error of this crate.
pub(crate) fn error(
    kind: StoreErrorKind,
    operation: &'static str,
    name: impl Into<String>,
    message: impl std::fmt::Display,
) -> StoreError {
    StoreError { kind, operation, name: name.into(), message: message.to_string() }
}

/// An error that says that the request is wrong.
pub(crate) fn invalid(operation: &'static str, name: impl Into<String>, message: impl std::fmt::Display) -> StoreError {
    error(StoreErrorKind::Invalid, operation, name, message)
}
