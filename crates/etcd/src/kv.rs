// SPDX-License-Identifier: Apache-2.0
//! Reads and transactions: the words of `Coord` in those of etcd.
//!
//! Every read is linearizable. A listing comes in pages, all of the revision of the first; where that is compacted between two pages it begins anew.
//! A page is bounded in keys, and by [`MAX_MESSAGE_BYTES`](crate::grpc::MAX_MESSAGE_BYTES) in bytes: one that is larger is asked for again with fewer keys.
//!
//! A transaction becomes one `Txn`. One without changes is given a read in both branches, for etcd answers a `Txn` without operations from
//! the member's own state, which may be old; it changes nothing and is tried again like a read.

use crate::client::{Asked, Client, Failure};
use crate::fault::{Code, Fault, Nature};
use crate::proto::{
    Compare, Comparison, DeleteRangeRequest, KeyValue, Op, PutRequest, RANGE, RangeRequest, RangeResponse, RequestOp,
    TXN, Target, TxnRequest, TxnResponse, With,
};
use varve_coord::{Change, Check, CoordError, Entry, LeaseId, Listing, Outcome, Result, check_key};

/// Keys of the first page of a listing, and of the largest one.
const FIRST_PAGE: i64 = 64;
const MAX_PAGE: i64 = 1024;
/// A page with fewer bytes is followed by one of twice as many keys.
const SMALL_PAGE_BYTES: usize = 1 << 20;
/// Most bytes of keys and values of a listing. They are all in RAM.
const MAX_LISTING_BYTES: usize = 512 << 20;
/// How often a listing is begun anew that compactions keep overtaking.
const MAX_LISTINGS: usize = 8;
/// The id of a lease that etcd never gives, since it gives positive ones.
const NO_SUCH_LEASE: i64 = i64::MIN;

/// The key behind the last one that begins with `prefix`, which is printable ASCII and not empty.
pub(crate) fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// A lease as etcd counts it; `None` for one that it can not have given.
pub(crate) fn lease_number(lease: LeaseId) -> Option<i64> {
    i64::try_from(lease.0).ok().filter(|number| *number > 0)
}

/// The error of a lease that is over.
pub(crate) fn lease_over(lease: LeaseId) -> CoordError {
    CoordError::NotFound(format!("the lease {lease}"))
}

/// The key below our prefix, if it is one of ours.
pub(crate) fn own_key<'a>(prefix: &str, key: &'a [u8]) -> Option<&'a str> {
    let key = std::str::from_utf8(key).ok()?.strip_prefix(prefix)?;
    check_key(key).ok().map(|()| key)
}

fn entry(prefix: &str, kv: KeyValue) -> Option<Entry> {
    let key = own_key(prefix, &kv.key)?.to_owned();
    Some(Entry { key, value: kv.value, revision: u64::try_from(kv.mod_revision).ok()? })
}

impl Client {
    /// A read that costs nothing.
    pub(crate) async fn glance(&self) -> Asked<RangeResponse> {
        self.ask(RANGE, &self.members.glance(false), Nature::Read).await
    }

    /// The store's revision now.
    pub(crate) async fn now(&self) -> Result<u64> {
        let floor = self.floor();
        let answer = self.glance().await.map_err(|failure| self.error(failure))?;
        self.revision(answer.header, floor)
    }

    pub(crate) async fn get(&self, key: &str) -> Result<Option<Entry>> {
        let prefix = &self.settings().prefix;
        let request = RangeRequest { key: format!("{prefix}{key}").into_bytes(), ..RangeRequest::default() };
        let floor = self.floor();
        let answer: Asked<RangeResponse> = self.ask(RANGE, &request, Nature::Read).await;
        let answer = answer.map_err(|failure| self.error(failure))?;
        self.revision(answer.header, floor)?;
        Ok(answer.kvs.into_iter().next().and_then(|kv| entry(prefix, kv)))
    }

    pub(crate) async fn list(&self, prefix: &str) -> Result<Listing> {
        for _ in 0..MAX_LISTINGS {
            if let Some(listing) = self.list_once(prefix).await? {
                return Ok(listing);
            }
        }
        Err(CoordError::Busy("etcd is compacted faster than it can be listed".to_owned()))
    }

    /// A listing; `None` where its revision was compacted before the last page.
    async fn list_once(&self, prefix: &str) -> Result<Option<Listing>> {
        let own = &self.settings().prefix;
        let whole = format!("{own}{prefix}");
        let mut request = RangeRequest {
            key: whole.clone().into_bytes(),
            range_end: end_of(&whole),
            limit: FIRST_PAGE,
            ..RangeRequest::default()
        };
        let (mut listing, mut bytes) = (Listing { entries: Vec::new(), revision: 0 }, 0);
        // Ends: each round takes at least one key off what is left at one revision, or halves the page.
        loop {
            let floor = self.floor();
            let page: RangeResponse = match self.ask(RANGE, &request, Nature::Read).await {
                Ok(page) => page,
                Err(Failure::Refused { fault: Fault::TooLarge(_), .. }) if request.limit > 1 => {
                    request.limit = (request.limit / 4).max(1);
                    continue;
                }
                Err(Failure::Refused { fault: Fault::Status(status), .. }) if status.code == Code::OutOfRange => {
                    return Ok(None);
                }
                Err(failure) => return Err(self.error(failure)),
            };
            let revision = self.revision(page.header, floor)?;
            if request.revision == 0 {
                listing.revision = revision;
                request.revision = page.header.unwrap_or_default().revision;
            }
            let page_bytes: usize = page.kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
            bytes += page_bytes;
            if bytes > MAX_LISTING_BYTES {
                return Err(CoordError::Invalid(format!(
                    "{whole} of etcd has more than {} MiB: it can not be listed",
                    MAX_LISTING_BYTES >> 20
                )));
            }
            if let Some(last) = page.kvs.last() {
                request.key = [last.key.as_slice(), &[0]].concat();
            }
            let is_last = !page.more || page.kvs.is_empty();
            listing.entries.extend(page.kvs.into_iter().filter_map(|kv| entry(own, kv)));
            if is_last {
                return Ok(Some(listing));
            }
            if page_bytes < SMALL_PAGE_BYTES {
                request.limit = (request.limit * 2).min(MAX_PAGE);
            }
        }
    }

    pub(crate) async fn transact(&self, checks: &[Check], changes: Vec<Change>) -> Result<Outcome> {
        let leases = changes.iter().filter_map(|change| match change {
            Change::Put { lease, .. } => *lease,
            Change::Delete(_) => None,
        });
        let leases = leases.collect::<Vec<_>>();
        let nature = if changes.is_empty() { Nature::Read } else { Nature::Change };
        let request = self.txn(checks, changes);
        let floor = self.floor();
        let answer: TxnResponse = match self.ask(TXN, &request, nature).await {
            Ok(answer) => answer,
            Err(Failure::Refused { fault: Fault::Status(status), .. }) if status.code == Code::NotFound => {
                return Err(match leases.as_slice() {
                    [lease] => lease_over(*lease),
                    _ => CoordError::NotFound("one of the leases of the transaction".to_owned()),
                });
            }
            Err(failure) => return Err(self.error(failure)),
        };
        match self.revision(answer.header, floor) {
            Ok(revision) if answer.succeeded => Ok(Outcome::Applied { revision }),
            Ok(_) => Ok(Outcome::Refused),
            // It may have been applied, to an etcd that was set back.
            Err(error) if nature == Nature::Change => {
                Err(CoordError::Unknown { reason: error.to_string(), source: None })
            }
            Err(error) => Err(error),
        }
    }

    fn txn(&self, checks: &[Check], changes: Vec<Change>) -> TxnRequest {
        let own = |key: &str| format!("{}{key}", self.settings().prefix).into_bytes();
        let compare = checks.iter().map(|check| compare(check, &own)).collect();
        if changes.is_empty() {
            let read = vec![RequestOp { op: Some(Op::Range(self.members.glance(false))) }];
            return TxnRequest { compare, success: read.clone(), failure: read };
        }
        let operation = |change: Change| match change {
            Change::Put { key, value, lease } => {
                let lease = lease.map_or(0, |lease| lease_number(lease).unwrap_or(NO_SUCH_LEASE));
                Op::Put(PutRequest { key: own(&key), value, lease })
            }
            Change::Delete(key) => Op::DeleteRange(DeleteRangeRequest { key: own(&key) }),
        };
        let success = changes.into_iter().map(|change| RequestOp { op: Some(operation(change)) }).collect();
        TxnRequest { compare, success, failure: Vec::new() }
    }
}

fn compare(check: &Check, own: &dyn Fn(&str) -> Vec<u8>) -> Compare {
    let (key, result, target, with) = match check {
        Check::Absent(key) => (key, Comparison::Equal, Target::Version, With::Version(0)),
        Check::Exists(key) => (key, Comparison::Greater, Target::Version, With::Version(0)),
        Check::Revision(key, revision) => {
            // No key has a revision that etcd can not count to.
            let revision = i64::try_from(*revision).unwrap_or(i64::MAX);
            (key, Comparison::Equal, Target::ModRevision, With::ModRevision(revision))
        }
    };
    Compare { result: result.into(), target: target.into(), key: own(key), with: Some(with) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_key() {
        for (prefix, inside, outside) in
            [("/v/", "/v/~", "/v0"), ("/v/a", "/v/a~~", "/v/b"), ("/v/~", "/v/~~", "/v/\u{7f}")]
        {
            let end = end_of(prefix);
            assert!(
                prefix.as_bytes() < end.as_slice()
                    && inside.as_bytes() < end.as_slice()
                    && end.as_slice() <= outside.as_bytes()
            );
        }
    }

    #[test]
    fn only_keys_of_ours_are_told() {
        assert_eq!(own_key("/v/", b"/v/a/b"), Some("a/b"));
        for other in [&b"/v/"[..], b"/v", b"/w/a", b"/v/a b", b"/v/\xff", b"/v/\xc3\xa4"] {
            assert_eq!(own_key("/v/", other), None, "{other:?}");
        }
    }

    #[test]
    fn leases_that_etcd_never_gives_have_no_number() {
        assert_eq!(lease_number(LeaseId(1)), Some(1));
        for lease in [0, 1 << 63, u64::MAX] {
            assert_eq!(lease_number(LeaseId(lease)), None);
        }
    }
}
