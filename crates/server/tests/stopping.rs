// SPDX-License-Identifier: Apache-2.0
//! A node listens for its stop before it says that it serves: whoever reads that may tell it to stop at once.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;
use varve_config::UpConfig;

#[test]
fn it_listens_before_it_says_that_it_serves() {
    let dir = tempfile::tempdir().unwrap();
    let config = UpConfig {
        data: dir.path().join("data"),
        api_listen: None,
        journal_size_bytes: 64 << 20,
        ..UpConfig::default()
    };
    let (listens, in_time, told) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
    let stop = {
        let (listens, told) = (Arc::clone(&listens), Arc::clone(&told));
        Box::pin(async move {
            listens.store(true, Ordering::SeqCst);
            told.notified().await;
        })
    };
    let seen = Arc::clone(&in_time);
    let ready = Box::new(move |_: &varve_server::node::Serving| {
        seen.store(listens.load(Ordering::SeqCst), Ordering::SeqCst);
        told.notify_one();
    });
    varve_server::node::up(config, varve_server::node::Hooks { ready, stop, beat: None }).unwrap();
    assert!(in_time.load(Ordering::SeqCst));
}
