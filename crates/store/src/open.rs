// SPDX-License-Identifier: Apache-2.0
//! Opening a store by its address, with proof that it can be used.
//!
//! A wrong directory, bucket, server or credential is told when a pool is opened, in words, not by its first write an hour later. For S3
//! that takes a listing and a probe: an object of a random name under `probe/` is put twice and deleted. The second put must find the
//! name taken; a server that ignores the condition would let two owners of a pool both believe they are first. A probe that is cut
//! short leaves an empty object there, which nothing looks at.

use crate::ballast::Ballast;
use crate::credentials;
use crate::s3::S3Store;
use crate::{DirStore, Limited, S3Url, StoreLimits, StoreUrl, SystemPace, error, invalid};
use std::sync::Arc;
use tokio::runtime::Handle;
use varve_env::{ObjectStore, Payload, PutOutcome, StoreError, StoreErrorKind};

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
        StoreUrl::S3(url) => {
            let store = Arc::new(Ballast::new(open_s3(url, limits, handle.clone()).await?, is_bulk));
            let ballast = Arc::clone(&store);
            // Beside everything else: nobody waits for it.
            handle.spawn(async move {
                if let Err(failure) = ballast.fill().await {
                    tracing::warn!(%failure, "the store keeps no reserve yet: should it be full, nothing could be deleted");
                }
            });
            Ok(store)
        }
    }
}

async fn open_s3(url: &S3Url, limits: StoreLimits, handle: Handle) -> Result<Limited<S3Store>, StoreError> {
    let variable = |name: &str| std::env::var(name).ok();
    let found = credentials::find(url.credentials.as_deref(), &variable);
    let mut credentials = found.map_err(|message| invalid("open", url.to_string(), message))?;
    // The environment's region comes before the file's, as with Amazon's tools.
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    credentials.region = set("AWS_REGION").or_else(|| set("AWS_DEFAULT_REGION")).or(credentials.region);
    let store = S3Store::new(url, credentials, &limits, handle.clone())?;
    let store = Limited::new(store, limits, SystemPace(handle));
    prove(&store).await.map_err(|failure| StoreError { operation: "open", name: url.to_string(), ..failure })?;
    Ok(store)
}

/// Lists, puts, puts again, deletes.
async fn prove(store: &dyn ObjectStore) -> Result<(), StoreError> {
    store.list("probe/", None).await?;
    let number = getrandom::u64().map_err(|failure| error(StoreErrorKind::Unavailable, "open", "", failure))?;
    let name = format!("probe/{number:016x}");
    // The first one may meet itself, tried twice; that proves the condition as well.
    store.put(&name, Payload::default()).await?;
    let second = store.put(&name, Payload::default()).await;
    store.delete(&name).await?;
    match second? {
        PutOutcome::Exists => Ok(()),
        PutOutcome::Created => Err(invalid(
            "open",
            name,
            "this server overwrites objects in spite of `If-None-Match: *`, so it cannot keep a pool safely: use one that honours it",
        )),
    }
}
