// SPDX-License-Identifier: Apache-2.0
//! Limits of a volume: they hold for all who are attached together, let a burst through, and change while requests wait.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

use varve_sim::node;

use futures_util::future::{join, join_all};
use node::{Node, finish, read};
use std::rc::Rc;
use std::time::Duration;
use varve_engine::{BlockDevice, Device};
use varve_env::Env;
use varve_sim::SimOptions;
use varve_types::Overrides;

const BLOCK: u64 = 4096;

fn start(limits: &[(&str, &str)]) -> (Node, Rc<Device>) {
    let node = Node::new(SimOptions { most_steps: 20_000_000, ..SimOptions::seed(1) }, 16 << 20);
    node.create().unwrap().unwrap();
    node.create_volume("v", 64 << 20);
    set(&node, limits);
    let device = node.device("v");
    (node, device)
}

fn set(node: &Node, limits: &[(&str, &str)]) {
    let (volume, mut settings) = (node.volume("v"), Overrides::default());
    limits.iter().for_each(|(key, value)| settings.set(key, value).unwrap());
    node.must("set", async move { volume.set(settings).await });
}

/// Writes so many blocks at once; gives how long it took.
async fn writes(env: &dyn Env, device: Rc<Device>, count: u64) -> Duration {
    let from = env.now();
    let all = (0..count).map(|block| {
        let device = Rc::clone(&device);
        async move { finish(&device, device.write(block * BLOCK, vec![7; BLOCK as usize].into(), false)).await }
    });
    join_all(all).await.into_iter().for_each(|done| done.unwrap());
    env.now() - from
}

fn secs(time: Duration) -> f64 {
    time.as_secs_f64()
}

#[test]
fn requests_are_held_to_their_limit_and_a_burst_is_not() {
    let (node, device) = start(&[("iops-limit", "100"), ("limit-burst", "2s")]);
    let env = Rc::clone(&node.env);
    let took =
        node.run(async move { (writes(&*env, Rc::clone(&device), 200).await, writes(&*env, device, 300).await) });
    let (burst, held) = took.unwrap();
    assert!(secs(burst) < 0.1, "{burst:?}");
    assert!((2.9..3.1).contains(&secs(held)), "{held:?}");
    let counts = node.volume("v").counts().limits;
    assert!((298..=300).contains(&counts.requests) && counts.waiting == 0 && counts.waited_us > 0, "{counts:?}");
}

#[test]
fn two_who_are_attached_share_a_limit_of_bytes() {
    let (node, device) = start(&[("bandwidth-limit", "1M"), ("limit-burst", "0s")]);
    let (env, other) = (Rc::clone(&node.env), node.device("v"));
    let took = node.run(async move {
        let from = env.now();
        let reads = async {
            for _ in 0..4 {
                read(&other, 0, 1 << 18).await.unwrap();
            }
        };
        join(writes(&*env, device, 256), reads).await;
        env.now() - from
    });
    // A MiB is written, and another is read.
    let took = secs(took.unwrap());
    assert!((1.7..2.1).contains(&took), "{took} s");
}

#[test]
fn limits_change_for_those_who_wait() {
    let (node, device) = start(&[("iops-limit", "1"), ("limit-burst", "0s")]);
    let (env, volume) = (Rc::clone(&node.env), node.volume("v"));
    let took = node.run(async move {
        let lift = async {
            env.sleep(Duration::from_secs(5)).await;
            assert_eq!(volume.counts().limits.waiting, 94);
            volume.set(Overrides::default()).await.unwrap();
        };
        join(writes(&*env, device, 100), lift).await.0
    });
    let took = secs(took.unwrap());
    assert!((5.0..5.5).contains(&took), "{took} s");
}
