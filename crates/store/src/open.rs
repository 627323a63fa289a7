// SPDX-License-Identifier: Apache-2.0
//! Opening a store by its address, with proof that it can be used.
//!
//! A wrong directory, bucket, server or credential is told when a pool is opened, in words, not by its first write an hour later.

#[cfg(feature = "s3")]
use crate::open_s3::open_s3;
use crate::{DirStore, StoreLimits, StoreUrl, error};
use std::sync::Arc;
use tokio::runtime::Handle;
use varve_env::{ObjectStore, StoreError, StoreErrorKind};

/// Opens the store at `url` and proves that it can be read and written. A directory is made if its parent is there; a bucket is not.
/// The requests of S3 run on the runtime of `handle`, which must have time and I/O enabled; the futures of the store may be polled
/// anywhere. A part of the disk, or some objects of a bucket, are kept in reserve for what is no bulk by its name: guests' data may fill the rest, and it can still be emptied.
///
/// # Errors
/// `Invalid` with what to mend, `Unavailable` when the server does not answer, `NoSpace` when nothing can be put.
pub async fn open(
    url: &StoreUrl,
    limits: StoreLimits,
    is_bulk: fn(&str) -> bool,
    handle: Handle,
) -> Result<Arc<dyn ObjectStore>, StoreError> {
    match url {
        StoreUrl::File { path } => {
            let path = path.clone();
            let opened = handle.spawn_blocking(move || DirStore::open_with(&path, is_bulk)).await;
            let opened = opened.map_err(|ended| {
                error(StoreErrorKind::Unavailable, "open", url.to_string(), format!("cut short: {ended}"))
            })?;
            Ok(Arc::new(opened?))
        }
        StoreUrl::S3(url) => open_s3(url, limits, is_bulk, handle).await,
    }
}

#[cfg(not(feature = "s3"))]
async fn open_s3(
    url: &crate::S3Url,
    _: StoreLimits,
    _: fn(&str) -> bool,
    _: Handle,
) -> Result<Arc<dyn ObjectStore>, StoreError> {
    Err(crate::invalid("open", url.to_string(), "this program was built without S3"))
}
