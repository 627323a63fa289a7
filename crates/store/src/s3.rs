// SPDX-License-Identifier: Apache-2.0
//! S3: one request of the store is one request of the protocol (two where an answer would be ambiguous), through `object_store`.
//!
//! This is the raw form, without retries: [`Limited`](crate::Limited) goes around it, and `object_store`'s own are switched off, so that
//! the two do not multiply. Requests run on the tokio runtime whose handle is given, whichever executor asks; a caller that goes away
//! ends its request.
//!
//! A put carries `If-None-Match: *`, so a name that is taken stays as it is; 412 means `Exists`. Over plain HTTP the body is signed
//! (SHA-256, about 40 ms of the runtime's thread for 64 MiB); under TLS, which proves it already, it is not. Listings are asked for in
//! pages of at most 1,000, and one that does not come in the order of bytes is refused: paging through it would skip objects.

use crate::credentials::Credentials;
use crate::name::{LIST_MAX, check_name, check_prefix, is_name};
use crate::s3_error::{is_beyond_end, is_taken, translate};
use crate::url::S3Url;
use crate::{StoreLimits, error, invalid};
use bytes::Bytes;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{
    ClientOptions, GetOptions, GetRange, ObjectMeta, ObjectStore as Remote, ObjectStoreExt, PutMode, PutOptions,
    PutPayload, RetryConfig,
};
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use varve_env::{ObjectInfo, ObjectStore, Payload, PutOutcome, SendFuture, StoreError, StoreErrorKind};

/// Connections that wait for their next request are closed after this, before most servers and firewalls do it.
const IDLE: Duration = Duration::from_secs(30);
/// More than any object has. Servers differ in what they make of a range that ends beyond it.
const OBJECT_MAX_BYTES: u64 = 1 << 43;
/// Pages that one listing may take.
const PAGES_MAX: usize = 100;

/// A bucket, or the part of it behind a prefix.
pub(crate) struct S3Store {
    inner: Arc<Inner>,
    handle: Handle,
}

struct Inner {
    remote: AmazonS3,
    /// What all names begin with; empty, or ends with `/`.
    prefix: String,
    url: S3Url,
}

/// Ends its task when dropped.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl S3Store {
    /// A client for `url`. Asks nothing of the server yet.
    pub(crate) fn new(
        url: &S3Url,
        credentials: Credentials,
        limits: &StoreLimits,
        handle: Handle,
    ) -> Result<Self, StoreError> {
        use_ring();
        let http = url.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
        let client = ClientOptions::new()
            .with_timeout_disabled() // each try has a limit that grows with its size
            .with_connect_timeout(limits.connect_timeout)
            .with_pool_idle_timeout(IDLE)
            .with_pool_max_idle_per_host(limits.concurrency.saturating_add(limits.put_concurrency))
            .with_allow_http(http);
        let region = url.region.clone().or(credentials.region).unwrap_or_else(|| "us-east-1".to_owned());
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&url.bucket)
            .with_region(region)
            .with_access_key_id(credentials.key)
            .with_secret_access_key(credentials.secret)
            .with_virtual_hosted_style_request(!url.path_style)
            .with_unsigned_payload(!http)
            .with_disable_bulk_delete(true)
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .with_client_options(client);
        if let Some(token) = credentials.token {
            builder = builder.with_token(token);
        }
        if let Some(endpoint) = &url.endpoint {
            builder = builder.with_endpoint(if url.path_style {
                endpoint.clone()
            } else {
                virtual_host(endpoint, &url.bucket)
            });
        }
        let remote = builder.build().map_err(|error| invalid("open", url.to_string(), error))?;
        let prefix = if url.prefix.is_empty() { String::new() } else { format!("{}/", url.prefix) };
        Ok(Self { inner: Arc::new(Inner { remote, prefix, url: url.clone() }), handle })
    }

    /// Runs a request on the runtime.
    async fn run<T, F>(
        &self,
        operation: &'static str,
        name: &str,
        request: impl FnOnce(Arc<Inner>, String) -> F,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let mut task = Task(self.handle.spawn(request(Arc::clone(&self.inner), name.to_owned())));
        match (&mut task.0).await {
            Ok(result) => result,
            Err(ended) => {
                Err(error(StoreErrorKind::Unavailable, operation, name, format!("the request ended early: {ended}")))
            }
        }
    }
}

/// Makes `ring` what the process's TLS computes with, unless something else is by now: the HTTP client brings nothing of its own, and panics without.
fn use_ring() {
    if CryptoProvider::get_default().is_none() && ring::default_provider().install_default().is_err() {
        tracing::debug!("another thread chose what TLS computes with");
    }
}

/// The endpoint with the bucket before the host's name.
fn virtual_host(endpoint: &str, bucket: &str) -> String {
    let (scheme, host) = endpoint.split_once("://").unwrap_or(("https", endpoint));
    format!("{scheme}://{bucket}.{host}")
}

impl Inner {
    /// The key in the bucket of a name, which was checked and so needs no escaping.
    fn path(&self, operation: &'static str, name: &str) -> Result<Path, StoreError> {
        check_name(operation, name)?;
        Path::parse(format!("{}{name}", self.prefix)).map_err(|error| invalid(operation, name, error))
    }

    fn failed(&self, operation: &'static str, name: &str, failure: &object_store::Error) -> StoreError {
        translate(operation, name, &self.url, failure)
    }

    async fn put(&self, name: &str, payload: Payload) -> Result<PutOutcome, StoreError> {
        let path = self.path("put", name)?;
        let body: PutPayload = payload.parts().iter().cloned().collect();
        match self.remote.put_opts(&path, body, PutOptions::from(PutMode::Create)).await {
            Ok(_) => Ok(PutOutcome::Created),
            Err(failure) if is_taken(&failure) => Ok(PutOutcome::Exists),
            Err(failure) => Err(self.failed("put", name, &failure)),
        }
    }

    /// Reads what there is of a range that is not empty, and the object's size; nothing where the range begins at or beyond the end.
    async fn get(&self, name: &str, range: Range<u64>) -> Result<(Bytes, Option<u64>), StoreError> {
        let path = self.path("get", name)?;
        let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
        let result = match self.remote.get_opts(&path, options).await {
            Ok(result) => result,
            Err(failure) if is_beyond_end(&failure) => return Ok((Bytes::new(), None)),
            Err(failure) => return Err(self.failed("get", name, &failure)),
        };
        let (size, expected) = (result.meta.size, result.range.end.saturating_sub(result.range.start));
        if result.range.start != range.start || result.range.end > range.end {
            let message = format!("asked for bytes {range:?}, the server sent {:?}", result.range);
            return Err(error(StoreErrorKind::Unavailable, "get", name, message));
        }
        let bytes = result.bytes().await.map_err(|failure| self.failed("get", name, &failure))?;
        if bytes.len() as u64 != expected {
            let message = format!("{} bytes came of {expected}", bytes.len());
            return Err(error(StoreErrorKind::Unavailable, "get", name, message));
        }
        Ok((bytes, Some(size)))
    }

    async fn head(&self, name: &str) -> Result<u64, StoreError> {
        let path = self.path("head", name)?;
        match self.remote.head(&path).await {
            Ok(meta) => Ok(meta.size),
            Err(failure) => {
                let failure = self.failed("head", name, &failure);
                if failure.kind == StoreErrorKind::NotFound {
                    // The answer to HEAD has no body, so it cannot tell an object that is missing from a bucket that is. That of GET can.
                    let (_, size) = self.get(name, 0..1).await?;
                    return Ok(size.unwrap_or(0));
                }
                Err(failure)
            }
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectInfo>, StoreError> {
        let key_prefix = format!("{}{prefix}", self.prefix);
        let mut options = PaginatedListOptions {
            offset: after.map(|after| format!("{}{after}", self.prefix)),
            max_keys: Some(LIST_MAX),
            ..PaginatedListOptions::default()
        };
        let mut objects: Vec<ObjectInfo> = Vec::new();
        // A page may be short, or hold keys that are not ours, and yet not be the last.
        for _ in 0..PAGES_MAX {
            let page = self.remote.list_paginated(Some(&key_prefix), options).await;
            let page = page.map_err(|failure| self.failed("list", prefix, &failure))?;
            for meta in page.result.objects {
                self.take_listed(&mut objects, prefix, after, &meta)?;
            }
            if objects.len() >= LIST_MAX || page.page_token.is_none() {
                objects.truncate(LIST_MAX);
                return Ok(objects);
            }
            options = PaginatedListOptions {
                page_token: page.page_token,
                max_keys: Some(LIST_MAX),
                ..PaginatedListOptions::default()
            };
        }
        let message = format!(
            "{PAGES_MAX} pages of the listing hold too few objects of the pool: use a prefix of its own for it"
        );
        Err(invalid("list", prefix, message))
    }

    /// Adds a listed object, if its key is a name. Others were put by somebody else; they are nobody's business here.
    fn take_listed(
        &self,
        objects: &mut Vec<ObjectInfo>,
        prefix: &str,
        after: Option<&str>,
        meta: &ObjectMeta,
    ) -> Result<(), StoreError> {
        let name = meta.location.as_ref().strip_prefix(&self.prefix).filter(|name| is_name(name));
        let Some(name) = name else { return Ok(()) };
        let last = objects.last().map(|last| last.name.as_str()).or(after);
        if last.is_some_and(|last| last >= name) || !name.starts_with(prefix) {
            return Err(invalid("list", prefix, format!("the server lists out of order: {name} after {last:?}")));
        }
        objects.push(ObjectInfo { name: name.to_owned(), size: meta.size });
        Ok(())
    }

    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path("delete", name)?;
        match self.remote.delete(&path).await {
            Ok(()) => Ok(()),
            Err(failure) => match self.failed("delete", name, &failure) {
                failure if failure.kind == StoreErrorKind::NotFound => Ok(()),
                failure => Err(failure),
            },
        }
    }
}

impl ObjectStore for S3Store {
    fn put<'a>(&'a self, name: &'a str, payload: Payload) -> SendFuture<'a, Result<PutOutcome, StoreError>> {
        Box::pin(self.run("put", name, |inner, name| async move { inner.put(&name, payload).await }))
    }

    fn get<'a>(&'a self, name: &'a str, range: Range<u64>) -> SendFuture<'a, Result<Bytes, StoreError>> {
        Box::pin(self.run("get", name, |inner, name| async move {
            let beyond = |size: Option<u64>| {
                let size = size.map_or_else(|| "less".to_owned(), |size| format!("{size} bytes"));
                invalid("get", &name, format!("bytes {range:?} were asked for, the object has {size}"))
            };
            if range.start >= range.end {
                // The protocol has no empty range.
                let size = inner.head(&name).await.map_err(|failure| StoreError { operation: "get", ..failure })?;
                return if range.start == range.end && range.end <= size {
                    Ok(Bytes::new())
                } else {
                    Err(beyond(Some(size)))
                };
            }
            if range.end > OBJECT_MAX_BYTES {
                return Err(beyond(None));
            }
            let (bytes, size) = inner.get(&name, range.clone()).await?;
            if bytes.len() as u64 == range.end - range.start { Ok(bytes) } else { Err(beyond(size)) }
        }))
    }

    fn get_head<'a>(&'a self, name: &'a str, most: u64) -> SendFuture<'a, Result<Bytes, StoreError>> {
        Box::pin(self.run("get", name, move |inner, name| async move {
            // Of an object without bytes any range begins beyond the end.
            let (bytes, _) = inner.get(&name, 0..most.clamp(1, OBJECT_MAX_BYTES)).await?;
            Ok(if most == 0 { Bytes::new() } else { bytes })
        }))
    }

    fn head<'a>(&'a self, name: &'a str) -> SendFuture<'a, Result<ObjectInfo, StoreError>> {
        Box::pin(self.run("head", name, |inner, name| async move {
            let size = inner.head(&name).await.map_err(|failure| StoreError { operation: "head", ..failure })?;
            Ok(ObjectInfo { name, size })
        }))
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> SendFuture<'a, Result<Vec<ObjectInfo>, StoreError>> {
        let after = after.map(str::to_owned);
        Box::pin(async move {
            check_prefix("list", prefix)?;
            after.as_deref().map_or(Ok(()), |after| check_prefix("list", after))?;
            self.run("list", prefix, |inner, prefix| async move { inner.list(&prefix, after.as_deref()).await }).await
        })
    }

    fn delete<'a>(&'a self, name: &'a str) -> SendFuture<'a, Result<(), StoreError>> {
        Box::pin(self.run("delete", name, |inner, name| async move { inner.delete(&name).await }))
    }

    fn url(&self) -> String {
        self.inner.url.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_goes_before_the_host() {
        assert_eq!(virtual_host("https://store.example:1", "b"), "https://b.store.example:1");
    }
}
