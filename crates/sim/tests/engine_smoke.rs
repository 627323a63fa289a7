// SPDX-License-Identifier: Apache-2.0
//! The engine lives: a volume is made, written, sealed, merged, and found again by the next process.

use varve_sim::node;

use node::{Node, name};
use std::rc::Rc;
use std::time::Duration;
use varve_engine::Device;
use varve_sim::{CrashMode, InFlight, SimOptions};
use varve_types::Overrides;

const MIB: u64 = 1 << 20;

fn node() -> Node {
    let node = Node::new(SimOptions::seed(1), 16 * MIB);
    node.create().expect("the world runs").expect("the shard starts");
    node
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (((i / 7 + 1) * (seed + 3)) >> 3) as u8 | 1).collect()
}

#[test]
fn what_was_written_is_read_back_in_every_state() {
    let mut node = node();
    node.create_volume("v", 8 * MIB);
    let device = node.device("v");
    let mut model = vec![0u8; 8 << 20];
    let put = |node: &Node, device: &Rc<Device>, model: &mut Vec<u8>, offset: usize, len: usize, seed| {
        let data = pattern(seed, len);
        model[offset..offset + len].copy_from_slice(&data);
        node.write(device, offset as u64, data, false).unwrap().unwrap();
    };
    let check = |node: &Node, device: &Rc<Device>, model: &Vec<u8>, when: &str| {
        for at in (0..model.len()).step_by(1 << 20) {
            let bytes = node.read(device, at as u64, 1 << 20).unwrap().unwrap();
            assert!(bytes == model[at..at + (1 << 20)], "{when}: MiB {}", at >> 20);
        }
    };
    put(&node, &device, &mut model, 4096, 8192, 1);
    put(&node, &device, &mut model, 512, 1024, 2);
    put(&node, &device, &mut model, 100 * 4096 + 512, 300 * 4096, 3);
    check(&node, &device, &model, "in the layer");
    node.discard(&device, 150 * 4096 + 512, 20 * 4096, false).unwrap().unwrap();
    model[150 * 4096 + 512..170 * 4096 + 512].fill(0);
    node.flush(&device).unwrap().unwrap();
    check(&node, &device, &model, "discarded");
    node.world.run_for(Duration::from_secs(120)).unwrap();
    check(&node, &device, &model, "sealed and merged");
    let counts = node.volume("v").counts();
    assert_eq!((counts.sealed_layers, counts.unsealed_bytes, counts.overlay_entries), (0, 0, 0), "{counts:?}");
    put(&node, &device, &mut model, 7 * MIB as usize, 4096, 4);
    drop(device);
    node.crash(CrashMode::Kill, InFlight::Lost);
    node.reopen();
    let device = node.device("v");
    check(&node, &device, &model, "after a kill");
    put(&node, &device, &mut model, 6 * MIB as usize, 70 * 4096, 5);
    node.flush(&device).unwrap().unwrap();
    drop(device);
    node.crash(CrashMode::Lost, InFlight::Landed);
    node.reopen();
    let device = node.device("v");
    check(&node, &device, &model, "after a power cut");
}

#[test]
fn snapshots_clones_rollbacks_show_what_they_should() {
    let mut node = node();
    node.create_volume("v", 2 * MIB);
    let device = node.device("v");
    for (round, snap) in ["a", "b", "c"].into_iter().enumerate() {
        node.write(&device, round as u64 * 8192, pattern(round as u64, 16384), false).unwrap().unwrap();
        let volume = node.volume("v");
        node.must("snapshot", async move { volume.snapshot(name(snap)).await });
    }
    drop(device);
    let expect = |rounds: usize| {
        let mut bytes = vec![0; 2 << 20];
        for round in 0..rounds {
            bytes[round * 8192..round * 8192 + 16384].copy_from_slice(&pattern(round as u64, 16384));
        }
        bytes
    };
    let check_all = |node: &Node, when: &str| {
        for (rounds, snap) in [(1, "a"), (2, "b"), (3, "c")] {
            let volume = node.volume("v");
            let device =
                node.must("view", async move { volume.snapshot_device(&name(snap), "t".into()).await.map(Rc::new) });
            let bytes = node.read(&device, 0, 2 << 20).unwrap().unwrap();
            assert!(bytes == expect(rounds), "{when}: snapshot {snap}");
        }
    };
    check_all(&node, "fresh");
    let shard = node.shard();
    node.must("clone", async move {
        let origin = name("v");
        shard.clone_volume(&origin, Some(&name("b")), name("w"), Default::default()).await.map(drop)
    });
    let check_clone = |node: &Node| {
        let device = node.device("w");
        assert!(node.read(&device, 0, 2 << 20).unwrap().unwrap() == expect(2), "the clone");
    };
    check_clone(&node);
    node.world.run_for(Duration::from_secs(100)).unwrap();
    check_all(&node, "merged");
    check_clone(&node);
    let volume = node.volume("v");
    node.must("rollback", async move { volume.rollback(&name("a")).await });
    let device = node.device("v");
    assert!(node.read(&device, 0, 2 << 20).unwrap().unwrap() == expect(1), "rolled back");
    drop(device);
    node.crash(CrashMode::Kill, InFlight::Lost);
    node.reopen();
    check_clone(&node);
    let volume = node.volume("v");
    node.must("undo", async move { volume.undo_rollback().await });
    check_all(&node, "after the undo");
    let device = node.device("v");
    assert!(node.read(&device, 0, 2 << 20).unwrap().unwrap() == expect(3), "undone");
}

#[test]
fn an_idle_clone_writes_no_map_of_what_it_was_born_with() {
    let node = node();
    node.create_volume("v", 8 * MIB);
    let device = node.device("v");
    let data = pattern(1, 1 << 20);
    node.write(&device, 0, data.clone(), false).unwrap().unwrap();
    let volume = node.volume("v");
    node.must("snapshot", async move { volume.snapshot(name("s")).await });
    let shard = node.shard();
    let clone = async move { shard.clone_volume(&name("v"), Some(&name("s")), name("c"), Overrides::default()).await };
    node.must("clone", async move { clone.await.map(drop) });
    node.world.run_for(Duration::from_secs(120)).unwrap();
    let entries = |volume: &str| node.volume(volume).counts().overlay_entries;
    assert_eq!((entries("v"), entries("c") > 0), (0, true), "the origin's are merged, the clone's are shared");
    let cloned = node.device("c");
    assert!(node.read(&cloned, 0, 1 << 20).unwrap().unwrap() == data);
    node.write(&cloned, 2 * MIB, data.clone(), false).unwrap().unwrap();
    node.world.run_for(Duration::from_secs(180)).unwrap();
    assert_eq!(entries("c"), 0, "what it wrote itself is merged once it is quiet, and all else with it");
    assert!(node.read(&cloned, 0, 1 << 20).unwrap().unwrap() == data);
}
