// SPDX-License-Identifier: Apache-2.0
//! What an earlier process has left on a cache device: the heads of its regions are read, several at a time, and each is taken over by
//! itself, so that a large device does not hold up the shard. A region whose head does not read or makes no sense is a free one.

use super::device::{PATIENCE, Ssd};
use super::within;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::rc::Rc;
use varve_format::region::{HEAD, REGION, RegionHead};
use varve_types::branch::{Branch, reached_if};

/// Heads that are asked for at a time.
const READS: usize = 16;

/// Reads the heads, and lets the device take part.
pub(super) async fn load(ssd: &Rc<Ssd>) {
    let (mut reads, mut next, mut found, mut blocks) = (FuturesUnordered::new(), 0, 0, 0);
    ssd.begin();
    let begun = ssd.env.now();
    loop {
        while reads.len() < READS && next < ssd.regions() {
            let (number, read) = (next, ssd.device.read_at(u64::from(next) * REGION, HEAD as usize));
            reads.push(async move { (number, within(&*ssd.env, read).await) });
            next += 1;
        }
        let Some((number, read)) = reads.next().await else { break };
        match read {
            Ok(bytes) => {
                if let Ok(head) = RegionHead::decode(&bytes, number)
                    && !head.entries.is_empty()
                {
                    (found, blocks) = (found + 1, blocks + head.entries.len());
                    ssd.found(&head);
                }
            }
            Err(error) => {
                ssd.rest("the head of a region", &error);
                ssd.env.sleep(PATIENCE).await;
            }
        }
    }
    reached_if(found > 0, Branch::SsdFound);
    let took_ms = (ssd.env.now() - begun).as_millis();
    tracing::info!(regions = found, blocks, took_ms, "a cache device was read: it takes part now");
    ssd.ready();
}
