// SPDX-License-Identifier: Apache-2.0
//! Two nodes of a cluster in one world, of which each may keep the copies of the other.

use crate::node::Node;
use crate::{CrashMode, InFlight, SimFar, SimMirrors, SimOptions};
use std::rc::Rc;
use std::time::Duration;
use varve_engine::{Device, EngineError, MirrorPhase, Volume};
use varve_types::{MirrorMedium, MirrorMode, NodeId};

/// Size of the volume, in bytes.
pub const SIZE: u64 = 1 << 20;
const LATENCY: Duration = Duration::from_micros(100);
/// Until a mirror that can join has.
pub const JOINED: Duration = Duration::from_secs(20);

/// A node with its end of the network.
pub struct Member {
    /// Its disk and processes.
    pub node: Node,
    /// How others see it.
    pub far: Rc<SimFar>,
    id: NodeId,
    others: Vec<Rc<SimFar>>,
}

impl Member {
    /// Tells the shard of now who it is.
    fn join(&self) {
        let (shard, env) = (self.node.shard(), &self.node.env);
        shard.serve_as(self.id);
        let copies = self.far.start(&**env, 64 << 20);
        shard.mirror_on(SimMirrors::new(&self.node.world, env, self.others.clone(), LATENCY), copies);
    }

    /// Its process ends.
    pub fn crash(&mut self, mode: CrashMode) {
        self.far.stop(mode);
        self.node.crash(mode, InFlight::Lost);
    }

    /// Starts anew after a crash: gives the volumes that do not open.
    pub fn start(&self) -> Vec<(varve_types::Name, EngineError)> {
        // The shard has to know who it is before it opens anything.
        self.node.start_only().expect("the world runs").expect("the shard starts");
        self.join();
        let shard = self.node.shard();
        self.node.must("open", async move { shard.open_all().await })
    }

    /// How the mirror of its volume is.
    pub fn phase(&self) -> MirrorPhase {
        self.node.volume("v").mirror().phase
    }

    /// Takes the volume over with the copy that it has.
    pub fn take_over(&self, volume: &Rc<Volume>) -> Result<Rc<Volume>, EngineError> {
        let (shard, id) = (self.node.shard(), volume.id());
        self.node.run(async move { shard.take_over_as_mirror(id).await }).expect("the world runs")
    }

    /// Writes a block.
    pub fn write(&self, device: &Rc<Device>, block: u64, byte: u8) -> Result<(), EngineError> {
        self.node.write(device, block * 4096, vec![byte; 4096], false).expect("alive")
    }

    /// Reads a block, all of whose bytes are one.
    pub fn read(&self, device: &Rc<Device>, block: u64) -> u8 {
        let found = self.node.read(device, block * 4096, 4096).expect("alive").expect("a read");
        assert!(found.iter().all(|byte| *byte == found[0]));
        found[0]
    }
}

/// Two nodes; the first runs the volume `v`, which wants a mirror.
pub fn pair(seed: u64, strict: bool, medium: MirrorMedium) -> (Member, Member) {
    let (ids, fars) =
        ([1, 2].map(|n| NodeId::from_bytes([n; 16])), [1, 2].map(|n| SimFar::new(NodeId::from_bytes([n; 16]))));
    let mut first = Node::new(SimOptions::seed(seed), 9 << 20);
    first.coord_latency = Duration::from_millis(3);
    first.pool.mirror = Some(MirrorMode::Sync);
    first.pool.mirror_strict = Some(strict);
    first.pool.mirror_medium = Some(medium);
    first.create().expect("the world runs").expect("the shard starts");
    let second = first.second("second");
    second.create().expect("the world runs").expect("the shard starts");
    let [one, two] = fars;
    let first = Member { node: first, far: Rc::clone(&one), id: ids[0], others: vec![Rc::clone(&two)] };
    let second = Member { node: second, far: two, id: ids[1], others: vec![one] };
    first.join();
    second.join();
    first.node.create_volume("v", SIZE);
    first.node.world.run_for(JOINED).expect("the world runs");
    assert_eq!(first.phase(), MirrorPhase::InSync);
    (first, second)
}
