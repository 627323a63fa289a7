// SPDX-License-Identifier: Apache-2.0
//! Leases on etcd's own clock: one that is not kept alive takes its keys with it, one that is lives on.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

mod common;

use common::{Runtime, client, next, value};
use std::time::{Duration, Instant};
use varve_coord::{Change, Coord, Event};
use varve_lab::etcd::Etcd as Lab;
use varve_types::ErrorKind;

#[tokio::test]
async fn a_lease_that_is_lost_takes_its_keys_and_one_that_is_kept_does_not() {
    let (lab, runtime) = (Lab::start().unwrap(), Runtime::start());
    let etcd = client(&lab, runtime.handle()).await;
    let ttl = Duration::from_millis(1_500);
    let (lost, kept) = (etcd.lease(ttl).await.unwrap(), etcd.lease(ttl).await.unwrap());
    let begun = Instant::now();
    let leased = |key: &str, lease| Change::Put { key: key.into(), value: b"x".into(), lease: Some(lease) };
    etcd.transact(Vec::new(), vec![leased("lost", lost), leased("kept", kept)]).await.unwrap();
    let mut watch = etcd.watch("", 0).await.unwrap();
    let keep = async {
        loop {
            etcd.keep_alive(kept).await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let event = tokio::select! {
        event = next(&mut watch) => event,
        () = keep => unreachable!("it goes on for ever"),
    };
    assert!(matches!(event, Event::Deleted { key, .. } if key == "lost"));
    assert!(begun.elapsed() >= ttl, "it ended after {:?}", begun.elapsed());
    assert_eq!(etcd.keep_alive(lost).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(etcd.revoke(lost).await.unwrap_err().kind(), ErrorKind::NotFound);
    let error = etcd.transact(Vec::new(), vec![leased("again", lost)]).await.unwrap_err();
    assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains(&lost.to_string()), "{error}");
    assert_eq!(value(&etcd, "kept").await.as_deref(), Some("x"));
    etcd.keep_alive(kept).await.unwrap();
}
