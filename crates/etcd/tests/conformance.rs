// SPDX-License-Identifier: Apache-2.0
//! What every form of coordination does alike, tried on a real etcd: one process, and a prefix for each case.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

mod common;

#[path = "../../coord/tests/cases/mod.rs"]
mod cases;

use cases::with_every_case;
use common::{Runtime, config};
use tokio::runtime::Handle;
use varve_etcd::Etcd;
use varve_lab::etcd::Etcd as Lab;

/// A client with a prefix of its own.
async fn fresh(lab: &Lab, handle: &Handle, name: &str) -> Etcd {
    let mut config = config(&lab.endpoints());
    config.prefix = format!("/varve/{name}");
    Etcd::open(&config, handle.clone()).await.unwrap()
}

macro_rules! on_one_etcd {
    ($($case:ident),* $(,)?) => {
        async fn every_case(lab: &Lab, handle: &Handle) {
            $(
                println!("{}", stringify!($case));
                cases::$case(&fresh(lab, handle, stringify!($case)).await).await;
            )*
        }
    };
}

with_every_case!(on_one_etcd);

#[tokio::test]
async fn etcd_does_what_every_form_does() {
    let (lab, runtime) = (Lab::start().unwrap(), Runtime::start());
    let handle = runtime.handle();
    every_case(&lab, handle).await;
    cases::a_watch_ends_with_its_store(Box::new(fresh(&lab, handle, "end").await)).await;
    let coord = fresh(&lab, handle, "behind").await;
    let forget = async || {
        let revision = varve_coord::Coord::list(&coord, "").await.unwrap().revision;
        lab.ctl(&["compaction", &revision.to_string()]).unwrap();
    };
    cases::a_watch_that_fell_behind_says_so(&coord, forget).await;
}

/// Eight threads with runtimes of their own, which have neither clock nor I/O.
#[test]
fn eight_threads_count_to_the_exact_sum() {
    let (lab, runtime) = (Lab::start().unwrap(), Runtime::start());
    let etcd = runtime.handle().block_on(fresh(&lab, runtime.handle(), "count"));
    cases::count_up(&etcd, 8, 20);
}
