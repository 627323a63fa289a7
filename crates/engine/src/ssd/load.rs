// SPDX-License-Identifier: Apache-2.0
//! What an earlier process has left on a cache device: the heads of its regions are read, several at a time. A region whose head does
//! not read or makes no sense is a free one.

use super::device::{PATIENCE, Ssd};
use super::within;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::rc::Rc;
use varve_format::region::{HEAD, REGION, RegionHead};
use varve_types::branch::{Branch, reached};

/// Heads that are asked for at a time.
const READS: usize = 16;

/// Reads the heads, and lets the device take part.
pub(super) async fn load(ssd: &Rc<Ssd>) {
    let (mut reads, mut next, mut heads) = (FuturesUnordered::new(), 0, Vec::new());
    let begun = ssd.env.now();
    loop {
        while reads.len() < READS && next < ssd.regions() {
            let (number, read) = (next, ssd.device.read_at(u64::from(next) * REGION, HEAD as usize));
            reads.push(async move { (number, within(&*ssd.env, read).await) });
            next += 1;
        }
        let Some((number, read)) = reads.next().await else { break };
        match read {
            Ok(bytes) => heads.extend(RegionHead::decode(&bytes, number)),
            Err(error) => {
                ssd.rest("the head of a region", &error);
                ssd.env.sleep(PATIENCE).await;
            }
        }
    }
    if !heads.is_empty() {
        reached(Branch::SsdFound);
    }
    let (regions, blocks) = (heads.len(), heads.iter().map(|head| head.entries.len()).sum::<usize>());
    let took_ms = (ssd.env.now() - begun).as_millis();
    tracing::info!(regions, blocks, took_ms, "a cache device was read: it takes part now");
    ssd.begin(heads);
}
