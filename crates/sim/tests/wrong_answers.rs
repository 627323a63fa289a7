// SPDX-License-Identifier: Apache-2.0
//! A store that is whole and answers wrongly now and then: it is asked again, and nobody notices. What is damaged in the store is found all the same: see `corruption.rs`.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

use varve_sim::node;

use node::{Node, name};
use varve_sim::{CrashMode, InFlight, SimOptions, StoreFault, StoreOp};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 256;

fn block_of(at: u64, round: u64) -> Vec<u8> {
    (at << 8 | round).to_le_bytes().repeat(BLOCK as usize / 8)
}

#[test]
fn whatever_is_answered_wrongly_once_is_asked_for_again() {
    let mut node = Node::new(SimOptions::seed(3), 16 << 20);
    node.create().unwrap().unwrap();
    node.create_volume("v", BLOCKS * BLOCK);
    let device = node.device("v");
    for round in 0..2 {
        for at in (0..BLOCKS).step_by(1 + round as usize) {
            node.write(&device, at * BLOCK, block_of(at, round), false).unwrap().unwrap();
        }
        let volume = node.volume("v");
        node.must("checkpoint", async move {
            volume.seal().await?;
            volume.checkpoint().await
        });
    }
    // What follows is in segments that no checkpoint knows.
    node.write(&device, 0, block_of(0, 7), false).unwrap().unwrap();
    let volume = node.volume("v");
    node.must("seal", async move { volume.seal().await });
    drop(device);
    for kind in ["/man/", "/tab/", "/map/", "/seg/"] {
        node.crash(CrashMode::Kill, InFlight::Landed);
        (0..4).for_each(|nth| node.server.fail(StoreOp::Get, kind, nth * 4, StoreFault::Wrong));
        node.reopen();
        let device = node.device("v");
        for at in 0..BLOCKS {
            let round = if at == 0 { 7 } else { u64::from(at % 2 == 0) };
            let read = node.read(&device, at * BLOCK, BLOCK as u32).unwrap();
            let read = read.unwrap_or_else(|error| panic!("{kind}, block {at}: {error}"));
            assert!(read == block_of(at, round), "{kind}, block {at}");
        }
        drop(device);
        node.server.forget_faults();
    }
    let (volume, shard) = (node.volume("v"), node.shard());
    let report = node.must("check", async move { volume.check(&|_, _| {}).await });
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    node.must(
        "clone",
        async move { shard.clone_volume(&name("v"), None, name("w"), Default::default()).await.map(drop) },
    );
}
