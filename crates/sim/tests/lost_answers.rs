// SPDX-License-Identifier: Apache-2.0
//! Coordination loses the answer to the step that makes a volume, or the request, or refuses it: what was refused can be asked for again, and there is
//! one volume then.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

use varve_sim::node;

use node::{Node, name};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use varve_coord::{Change, Coord, Fault, Records};
use varve_engine::{EngineError, NewVolume, Shard};
use varve_format::ObjectName;
use varve_sim::{CrashMode, InFlight, Rng, SimOptions};
use varve_types::{ErrorKind, Overrides, TimelineId};

const SIZE: usize = 1 << 20;

/// How the volume `w` is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Make {
    New,
    /// A clone of the snapshot `s` of `v`.
    OfSnapshot,
    /// A clone of what `v` is now.
    OfPresent,
}

async fn make(shard: Rc<Shard>, how: Make) -> Result<(), EngineError> {
    let settings = Overrides::default();
    let snapshot = name("s");
    let made = match how {
        Make::New => {
            let new = NewVolume { name: name("w"), pool: name("default"), size: SIZE as u64, settings };
            shard.create_volume(new).await
        }
        Make::OfSnapshot => shard.clone_volume(&name("v"), Some(&snapshot), name("w"), settings).await,
        Make::OfPresent => shard.clone_volume(&name("v"), None, name("w"), settings).await,
    };
    made.map(drop)
}

/// Timelines that the store has something of.
fn in_store(names: &[String]) -> BTreeSet<TimelineId> {
    names.iter().filter_map(|text| ObjectName::parse(text)).map(|object| object.timeline).collect()
}

/// Makes the volume; as soon as its first manifest is put, coordination's next transaction meets `fault`, and that is the one that records it.
fn make_in_trouble(node: &Node, how: Make, fault: Fault) -> Result<(), EngineError> {
    let (server, coord, before) = (node.server.clone(), Arc::clone(&node.coord), in_store(&node.server.names()).len());
    let mut step = Box::pin(make(node.shard(), how));
    let mut injected = false;
    let done = node.run(futures_util::future::poll_fn(move |context| {
        if !injected && in_store(&server.names()).len() > before {
            coord.inject(&[fault]).unwrap();
            injected = true;
        }
        step.as_mut().poll(context)
    }));
    let coord = Arc::clone(&node.coord);
    let probe = vec![Change::put("probe", "there")];
    let passes = node.run(async move { coord.transact(Vec::new(), probe).await }).unwrap();
    assert!(passes.is_ok(), "{how:?}: nobody met the fault");
    done.unwrap()
}

/// A volume `v` with a snapshot `s`. Gives what the two hold.
fn start(rng: &mut Rng) -> (Node, Vec<u8>, Vec<u8>) {
    let node = Node::new(SimOptions::seed(1), 16 << 20);
    node.create().unwrap().unwrap();
    node.create_volume("v", SIZE as u64);
    let mut model = vec![0; SIZE];
    write(&node, "v", &mut model, rng);
    let volume = node.volume("v");
    node.must("snapshot", async move { volume.snapshot(name("s")).await });
    let snapshot = model.clone();
    write(&node, "v", &mut model, rng);
    (node, model, snapshot)
}

fn write(node: &Node, volume: &str, model: &mut [u8], rng: &mut Rng) {
    let device = node.device(volume);
    for _ in 0..4 {
        let at = rng.below(SIZE as u64 / 4096 - 8) as usize * 4096;
        rng.fill(&mut model[at..at + 8 * 4096]);
        node.write(&device, at as u64, model[at..at + 8 * 4096].to_vec(), false).unwrap().unwrap();
    }
    node.flush(&device).unwrap().unwrap();
}

/// What volumes hold, and that they are the only ones; and the engine counts anew.
fn prove(node: &Node, volumes: [(&str, &[u8]); 2], when: &str) {
    let coord = Arc::clone(&node.coord);
    let listed = node.run(async move { Records::new(&*coord).list_volumes().await }).unwrap().unwrap();
    let mut listed: Vec<_> = listed.into_iter().map(|(record, _)| record.name.to_string()).collect();
    listed.sort();
    assert_eq!(listed, volumes.map(|(volume, _)| volume), "{when}: recorded");
    let open: Vec<_> = node.shard().volumes().iter().map(|volume| volume.name().to_string()).collect();
    assert_eq!(open, listed, "{when}: open");
    for (volume, model) in volumes {
        let found = node.read(&node.device(volume), 0, SIZE as u32).unwrap().unwrap();
        assert!(found == model, "{when}: {volume}");
        let open = node.volume(volume);
        let report = node.must("check", async move { open.check(&|_, _| {}).await });
        assert_eq!(report.problems, [], "{when}: {volume}");
    }
}

#[test]
fn what_was_made_while_coordination_failed_is_there_once() {
    for how in [Make::New, Make::OfSnapshot, Make::OfPresent] {
        for fault in [Fault::AnswerLost, Fault::RequestLost, Fault::Unavailable] {
            let when = |then: &str| format!("{how:?}, {fault:?}: {then}");
            let mut rng = Rng::new(1);
            let (mut node, v, snapshot) = start(&mut rng);
            let mut w = match how {
                Make::New => vec![0; SIZE],
                Make::OfSnapshot => snapshot,
                Make::OfPresent => v.clone(),
            };
            if let Err(error) = make_in_trouble(&node, how, fault) {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{}: {error}", when("refused"));
                let shard = node.shard();
                node.must(&when("the same call again"), async move { make(shard, how).await });
            }
            if (how, fault) == (Make::New, Fault::Unavailable) {
                // It is certain that the first try was not recorded.
                assert_eq!(in_store(&node.server.names()).len(), 2, "{}", when("the first manifest of the first try"));
            }
            prove(&node, [("v", &v), ("w", &w)], &when("made"));
            write(&node, "w", &mut w, &mut rng);
            node.crash(CrashMode::Lost, InFlight::Lost);
            node.reopen();
            prove(&node, [("v", &v), ("w", &w)], &when("found again"));
            // What a first try has left of holds goes meanwhile.
            node.world.run_for(Duration::from_secs(60)).unwrap();
            write(&node, "w", &mut w, &mut rng);
            node.crash(CrashMode::Kill, InFlight::Lost);
            node.reopen();
            prove(&node, [("v", &v), ("w", &w)], &when("at last"));
        }
    }
}
