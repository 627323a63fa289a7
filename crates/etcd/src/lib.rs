// SPDX-License-Identifier: Apache-2.0
//! Coordination of a cluster, in etcd 3.4 or later.
//!
//! [`Etcd`] is a [`Coord`] like the embedded one: the same calls, bounds and answers. All of its keys are below a prefix of its own, so that several
//! clusters of Varve and others share an etcd. What is special about it is only what is special about a network:
//!
//! - A request goes to one endpoint after the other within a bounded time. What may have been done although its answer was lost is never tried again:
//!   it is [`CoordError::Unknown`].
//! - Every read is linearizable. Every watch goes on over dead members and lost leaders, with nothing missed and nothing told twice.
//! - It runs on the runtime whose handle it is given; its futures may be awaited on any executor. A caller that goes away ends its request, which leaves
//!   open whether a change happens.
//!
//! The protocol is spoken here, with nothing generated: see `docs/adr/0014-etcd-client.md`.

mod auth;
mod client;
mod config;
mod dial;
mod fault;
mod grpc;
mod kv;
mod lease;
mod link;
mod member;
mod position;
mod proto;
mod tls;
mod watch;

pub use config::{EtcdConfig, EtcdTls};

use client::Client;
use config::Settings;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use varve_coord::{
    Change, Check, Coord, CoordError, Entry, LeaseId, Listing, Outcome, Result, Watch, check_key, check_prefix,
    check_transaction, check_ttl,
};
use varve_env::SendFuture;

/// Coordination in etcd. Dropping it ends its watches.
pub struct Etcd {
    client: Arc<Client>,
    handle: Handle,
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd").field("settings", self.client.settings()).finish_non_exhaustive()
    }
}

/// Ends its task when dropped.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Etcd {
    /// Checks the configuration and asks etcd nothing yet: for a node that goes on while etcd is away. Its requests run on the runtime of `handle`,
    /// which must have time and I/O enabled.
    ///
    /// # Errors
    /// `Invalid`, with what to mend.
    pub fn new(config: &EtcdConfig, handle: Handle) -> Result<Self> {
        Ok(Self { client: Arc::new(Client::new(Settings::check(config)?)), handle })
    }

    /// As [`new`](Self::new), and proves by a read that etcd is there and can be used.
    ///
    /// # Errors
    /// `Invalid` where a person has to mend something (a wrong endpoint, certificate, password or role), with each endpoint and what to do;
    /// `Unavailable` where no endpoint answers.
    pub async fn open(config: &EtcdConfig, handle: Handle) -> Result<Self> {
        let etcd = Self::new(config, handle)?;
        let proof = etcd.run(Ended::Unavailable, |client| async move {
            client.glance().await.map_err(|failure| {
                let is_misconfigured = failure.is_misconfigured();
                match client.error(failure) {
                    CoordError::Unavailable { reason, .. } if is_misconfigured => CoordError::Invalid(reason),
                    error => error,
                }
            })
        });
        proof.await?;
        Ok(etcd)
    }

    /// Runs a request on the runtime.
    async fn run<T, F>(&self, ended: Ended, request: impl FnOnce(Arc<Client>) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let mut task = Task(self.handle.spawn(request(Arc::clone(&self.client))));
        (&mut task.0).await.unwrap_or_else(|error| {
            let reason = format!("etcd: the request ended early: {error}");
            Err(match ended {
                Ended::Unavailable => CoordError::Unavailable { reason, source: None },
                Ended::Unknown => CoordError::Unknown { reason, source: None },
            })
        })
    }
}

/// What a request has come to that ended with its runtime.
#[derive(Clone, Copy)]
enum Ended {
    Unavailable,
    Unknown,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.client.close();
    }
}

impl Coord for Etcd {
    fn get<'a>(&'a self, key: &'a str) -> SendFuture<'a, Result<Option<Entry>>> {
        let key = check_key(key).map(|()| key.to_owned());
        Box::pin(async move {
            let key = key?;
            self.run(Ended::Unavailable, |client| async move { client.get(&key).await }).await
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> SendFuture<'a, Result<Listing>> {
        let prefix = check_prefix(prefix).map(|()| prefix.to_owned());
        Box::pin(async move {
            let prefix = prefix?;
            self.run(Ended::Unavailable, |client| async move { client.list(&prefix).await }).await
        })
    }

    fn transact<'a>(&'a self, checks: Vec<Check>, changes: Vec<Change>) -> SendFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            check_transaction(&checks, &changes)?;
            let ended = if changes.is_empty() { Ended::Unavailable } else { Ended::Unknown };
            self.run(ended, |client| async move { client.transact(&checks, changes).await }).await
        })
    }

    fn watch<'a>(&'a self, prefix: &'a str, from_revision: u64) -> SendFuture<'a, Result<Watch>> {
        let prefix = check_prefix(prefix).map(|()| prefix.to_owned());
        Box::pin(async move {
            let prefix = prefix?;
            self.run(Ended::Unavailable, |client| async move { client.watch(&prefix, from_revision).await }).await
        })
    }

    fn lease<'a>(&'a self, ttl: Duration) -> SendFuture<'a, Result<LeaseId>> {
        Box::pin(async move {
            check_ttl(ttl)?;
            self.run(Ended::Unknown, |client| async move { client.lease(ttl).await }).await
        })
    }

    fn keep_alive<'a>(&'a self, lease: LeaseId) -> SendFuture<'a, Result<()>> {
        Box::pin(self.run(Ended::Unavailable, move |client| async move { client.keep_alive(lease).await }))
    }

    fn revoke<'a>(&'a self, lease: LeaseId) -> SendFuture<'a, Result<()>> {
        Box::pin(self.run(Ended::Unknown, move |client| async move { client.revoke(lease).await }))
    }
}
