// SPDX-License-Identifier: Apache-2.0
//! Two nodes of a cluster in one world, of which each may keep the copies of the other.

use super::serve::{Port, Server};
use crate::node::Node;
use crate::{CrashMode, InFlight, SimCoord, SimFar, SimMirrors, SimOptions, Way};
use std::rc::Rc;
use std::sync::Arc;
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
    /// How clients see it.
    pub(super) port: Rc<Port>,
    pub(super) id: NodeId,
    others: Vec<Rc<SimFar>>,
}

impl Member {
    /// Tells the shard of now who it is.
    fn join(&self) {
        let (shard, env) = (self.node.shard(), &self.node.env);
        shard.serve_as(self.id);
        let copies = self.far.start(&**env, 64 << 20);
        shard.mirror_on(SimMirrors::new(&self.node.world, env, self.others.clone(), LATENCY), copies);
        let (memory, line) = (Arc::clone(&self.node.coord), Arc::clone(&self.node.coord_line));
        let coord = SimCoord::new(&self.node.world, env, memory, self.node.coord_latency, line);
        self.port.serve(Server::new(self.id, env, shard, Arc::new(coord), self.others.clone()));
    }

    /// Its process ends.
    pub fn crash(&mut self, mode: CrashMode) {
        self.far.stop(mode);
        self.port.close();
        self.node.crash(mode, InFlight::Lost);
    }

    /// Its next process begins after a crash, and has opened nothing yet.
    pub fn boot(&self) {
        // The shard has to know who it is before it opens anything.
        self.node.start_only().expect("the world runs").expect("the shard starts");
        self.join();
    }

    /// Starts anew after a crash: gives the volumes that do not open.
    pub fn start(&self) -> Vec<(varve_types::Name, EngineError)> {
        self.boot();
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
    pair_in(SimOptions::seed(seed), strict, medium)
}

/// The same in a world of its own kind.
pub(super) fn pair_in(options: SimOptions, strict: bool, medium: MirrorMedium) -> (Member, Member) {
    let ids = [1, 2].map(|n| NodeId::from_bytes([n; 16]));
    // One way from the first to the second, and one back, for what is asked and for what is answered.
    let (there, back): (Rc<Way>, Rc<Way>) = Default::default();
    let one = SimFar::new(ids[0], Rc::clone(&back), Rc::clone(&there));
    let two = SimFar::new(ids[1], there, back);
    let mut first = Node::new(options, 9 << 20);
    first.coord_latency = Duration::from_millis(3);
    first.pool.mirror = Some(MirrorMode::Sync);
    first.pool.mirror_strict = Some(strict);
    first.pool.mirror_medium = Some(medium);
    first.create().expect("the world runs").expect("the shard starts");
    let second = first.second("second");
    second.create().expect("the world runs").expect("the shard starts");
    let member = |node, id, far: &Rc<SimFar>, other: &Rc<SimFar>| Member {
        node,
        far: Rc::clone(far),
        port: Rc::default(),
        id,
        others: vec![Rc::clone(other)],
    };
    let (first, second) = (member(first, ids[0], &one, &two), member(second, ids[1], &two, &one));
    first.join();
    second.join();
    first.node.create_volume("v", SIZE);
    first.node.world.run_for(JOINED).expect("the world runs");
    assert_eq!(first.phase(), MirrorPhase::InSync);
    (first, second)
}
