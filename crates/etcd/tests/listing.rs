// SPDX-License-Identifier: Apache-2.0
//! Listings that need many pages, or whose pages are too large, while others write and compact; and the prefix that keeps clusters apart.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

mod common;

use common::{Runtime, client, config, put};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use varve_coord::{Change, Coord, MAX_OPERATIONS};
use varve_etcd::Etcd;
use varve_lab::etcd::Etcd as Lab;

#[tokio::test]
async fn a_listing_of_many_pages_is_of_one_moment() {
    let (lab, runtime) = (Lab::start().unwrap(), Runtime::start());
    let etcd = Arc::new(client(&lab, runtime.handle()).await);
    for block in 0..24 {
        let changes = (0..MAX_OPERATIONS).map(|n| Change::put(format!("k/{:05}", block * MAX_OPERATIONS + n), "x"));
        etcd.transact(Vec::new(), changes.collect()).await.unwrap();
    }
    // The first and the last key always change together.
    let stop = Arc::new(AtomicBool::new(false));
    let (writer, stopped) = (Arc::clone(&etcd), Arc::clone(&stop));
    let writing = runtime.handle().spawn(async move {
        let mut n = 0;
        while !stopped.load(Ordering::SeqCst) {
            n += 1;
            let changes = ["k/", "k/~"].map(|key| Change::put(key, n.to_string()));
            writer.transact(Vec::new(), changes.into()).await.unwrap();
        }
        n
    });
    for round in 0..20 {
        let listing = etcd.list("k/").await.unwrap();
        if let (Some(first), Some(last)) = (listing.entries.first(), listing.entries.last()) {
            if listing.entries.len() == 24 * MAX_OPERATIONS + 2 {
                assert_eq!((&first.value, first.revision), (&last.value, last.revision));
            } else {
                assert_eq!(listing.entries.len(), 24 * MAX_OPERATIONS, "neither of the two was there yet");
            }
        }
        assert!(listing.entries.windows(2).all(|pair| pair[0].key < pair[1].key));
        assert!(listing.entries.iter().all(|entry| entry.revision <= listing.revision));
        if round % 4 == 0 {
            lab.ctl(&["compaction", &listing.revision.to_string()]).unwrap();
        }
    }
    stop.store(true, Ordering::SeqCst);
    assert!(writing.await.unwrap() > 0);
}

/// Sixteen MiB are the most that a message may have; the first page of these would have more.
#[tokio::test]
async fn a_page_that_is_too_large_is_asked_for_in_smaller_ones() {
    let (lab, runtime) = (Lab::start().unwrap(), Runtime::start());
    let etcd = client(&lab, runtime.handle()).await;
    let value = vec![7; varve_coord::MAX_VALUE_BYTES];
    for n in 0..24 {
        etcd.transact(Vec::new(), vec![Change::put(format!("k/{n:02}"), value.clone())]).await.unwrap();
    }
    let listing = etcd.list("k/").await.unwrap();
    assert_eq!(listing.entries.len(), 24);
    for (n, entry) in listing.entries.iter().enumerate() {
        assert!(entry.key == format!("k/{n:02}") && entry.value == value);
    }
}

#[tokio::test]
async fn prefixes_keep_clusters_apart() {
    let (lab, runtime) = (Lab::start().unwrap(), Runtime::start());
    let with_prefix = async |prefix: &str| {
        let mut config = config(&lab.endpoints());
        config.prefix = prefix.to_owned();
        Etcd::open(&config, runtime.handle().clone()).await.unwrap()
    };
    // One name is the beginning of the other.
    let (one, other) = (with_prefix("/varve").await, with_prefix("/varve2/").await);
    let mut watch = one.watch("", 0).await.unwrap();
    put(&other, "k", "other").await.unwrap();
    put(&one, "k", "one").await.unwrap();
    for (etcd, value) in [(&one, "one"), (&other, "other")] {
        let entries = etcd.list("").await.unwrap().entries;
        assert_eq!((entries.len(), entries[0].key.as_str(), entries[0].value.as_slice()), (1, "k", value.as_bytes()));
    }
    assert!(matches!(common::next(&mut watch).await, varve_coord::Event::Put(entry) if entry.value == b"one"));
    assert_eq!(lab.ctl(&["get", "/varve/k", "--print-value-only"]).unwrap(), "one\n");
    // What others put there that can be no key of ours is passed over.
    lab.ctl(&["put", "/varve/not a key", "x"]).unwrap();
    lab.ctl(&["put", "/varve/", "x"]).unwrap();
    put(&one, "l", "last").await.unwrap();
    assert!(matches!(common::next(&mut watch).await, varve_coord::Event::Put(entry) if entry.value == b"last"));
    assert_eq!(one.list("").await.unwrap().entries.len(), 2);
}
