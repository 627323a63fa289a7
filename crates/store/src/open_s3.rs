// SPDX-License-Identifier: Apache-2.0
//! Opening a bucket, with proof that it can be used.
//!
//! That takes a listing and a probe: an object of a random name under `probe/` is put twice and deleted. The second put must find the
//! name taken; a server that ignores the condition would let two owners of a pool both believe they are first. A probe that is cut
//! short leaves an empty object there, which nothing looks at.

use crate::ballast::Ballast;
use crate::credentials;
use crate::s3::S3Store;
use crate::{Limited, S3Url, StoreLimits, SystemPace, error, invalid};
use std::sync::Arc;
use tokio::runtime::Handle;
use varve_env::{ObjectStore, Payload, PutOutcome, StoreError, StoreErrorKind};

/// Opens it, and begins to keep a reserve in it.
pub(crate) async fn open_s3(
    url: &S3Url,
    limits: StoreLimits,
    is_bulk: fn(&str) -> bool,
    handle: Handle,
) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let store = Arc::new(Ballast::new(proved(url, limits, handle.clone()).await?, is_bulk));
    let ballast = Arc::clone(&store);
    // Beside everything else: nobody waits for it.
    handle.spawn(async move {
        if let Err(failure) = ballast.fill().await {
            tracing::warn!(%failure, "the store keeps no reserve yet: should it be full, nothing could be deleted");
        }
    });
    Ok(store)
}

async fn proved(url: &S3Url, limits: StoreLimits, handle: Handle) -> Result<Limited<S3Store>, StoreError> {
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
