// SPDX-License-Identifier: Apache-2.0
//! Leases: etcd's own, which live on its leader's clock.
//!
//! A lease lives at least as long as was asked for: etcd counts whole seconds, has a least time of its own (one and a half times its election timeout),
//! and gives every lease its whole time anew when its leader changes. A grant whose answer was lost leaves a lease that nobody knows, which ends by
//! itself. To keep a lease alive twice is the same as once, so that is tried again like a read.

use crate::client::{Asked, Client, Failure};
use crate::fault::{Code, Fault, Nature};
use crate::kv::{lease_number, lease_over};
use crate::proto::{
    LEASE_GRANT, LEASE_KEEP_ALIVE, LEASE_REVOKE, LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveResponse,
    LeaseRequest, LeaseRevokeResponse,
};
use std::time::Duration;
use varve_coord::{CoordError, LeaseId, Result};

impl Client {
    pub(crate) async fn lease(&self, ttl: Duration) -> Result<LeaseId> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        // Within a day, as was checked.
        let request = LeaseGrantRequest { ttl: i64::try_from(seconds).unwrap_or(i64::MAX) };
        let answer: Asked<LeaseGrantResponse> = self.ask(LEASE_GRANT, &request, Nature::Change).await;
        let answer = answer.map_err(|failure| self.error(failure))?;
        match u64::try_from(answer.id) {
            Ok(id) if id > 0 && answer.error.is_empty() => Ok(LeaseId(id)),
            _ => Err(CoordError::Internal(format!("etcd granted the lease {} ({})", answer.id, answer.error))),
        }
    }

    pub(crate) async fn keep_alive(&self, lease: LeaseId) -> Result<()> {
        let id = lease_number(lease).ok_or_else(|| lease_over(lease))?;
        match self.ask(LEASE_KEEP_ALIVE, &LeaseRequest { id }, Nature::Read).await {
            Ok(LeaseKeepAliveResponse { ttl }) if ttl > 0 => Ok(()),
            Ok(_) => Err(lease_over(lease)),
            Err(failure) => Err(self.lease_error(lease, failure)),
        }
    }

    pub(crate) async fn revoke(&self, lease: LeaseId) -> Result<()> {
        let id = lease_number(lease).ok_or_else(|| lease_over(lease))?;
        let answer: Asked<LeaseRevokeResponse> = self.ask(LEASE_REVOKE, &LeaseRequest { id }, Nature::Change).await;
        answer.map(drop).map_err(|failure| self.lease_error(lease, failure))
    }

    fn lease_error(&self, lease: LeaseId, failure: Failure) -> CoordError {
        match failure {
            Failure::Refused { fault: Fault::Status(status), .. } if status.code == Code::NotFound => lease_over(lease),
            failure => self.error(failure),
        }
    }
}
