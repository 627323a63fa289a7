// SPDX-License-Identifier: Apache-2.0
//! An edge whose volume goes from node to node, as they die, lose power, stall and are cut off: what it was answered is what it reads, on whichever node, and
//! what it was not answered has happened once or not at all.
//!
//! The edge is a model of one that keeps to the protocol: one request at a time, what was acknowledged and is not safe is sent again, then what was not
//! answered. The oracle knows of each block what was acknowledged last.

mod pair;

use pair::{Member, pair};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use varve_engine::{BlockDevice, Device, EngineError, SessionRequest, SessionStart, Volume};
use varve_env::Env;
use varve_sim::node::finish;
use varve_sim::{CrashMode, Rng};
use varve_types::{Epoch, ErrorKind, Sequence, SessionId, TimelineId};

const BLOCKS: u64 = 24;
const ROUNDS: u32 = 25;

/// A change that was acknowledged and is not known to be safe.
#[derive(Clone, Copy)]
struct Kept {
    block: u64,
    byte: u8,
    epoch: Epoch,
    sequence: Sequence,
}

#[derive(Default)]
struct Edge {
    timeline: Option<TimelineId>,
    epoch: Epoch,
    safe: Sequence,
    kept: Vec<Kept>,
    unanswered: Option<(u64, u8)>,
    device: Option<Rc<Device>>,
    /// What each block was last acknowledged to be.
    blocks: Vec<u8>,
    replayed: u64,
}

impl Edge {
    fn request(&self) -> SessionRequest {
        let promises = if self.timeline.is_some() { vec![(self.epoch, self.safe)] } else { Vec::new() };
        SessionRequest {
            session: SessionId::from_bytes([7; 16]),
            edge: "edge".to_owned(),
            exclusive: true,
            steal: false,
            timeline: self.timeline,
            promises,
        }
    }

    /// Takes up the session, and does what the protocol says.
    fn attached(&mut self, member: &Member, start: SessionStart) {
        let device = Rc::new(start.device);
        if let Some(cut) = start.cuts.first().copied() {
            assert!(cut >= self.safe, "what was told to be safe is there");
            self.kept.retain(|kept| kept.epoch == self.epoch && kept.sequence > cut);
        }
        (self.timeline, self.epoch, self.safe) = (Some(start.timeline), start.epoch, Sequence(0));
        self.device = Some(device);
        for kept in std::mem::take(&mut self.kept) {
            self.replayed += 1;
            self.write(member, kept.block, kept.byte).expect("nothing dies meanwhile");
        }
        if let Some((block, byte)) = self.unanswered.take() {
            self.write(member, block, byte).expect("nothing dies meanwhile");
        }
    }

    /// A change that nobody disturbs.
    fn write(&mut self, member: &Member, block: u64, byte: u8) -> Result<(), EngineError> {
        let device = Rc::clone(self.device.as_ref().expect("it is attached"));
        member.write(&device, block, byte)?;
        self.answered(block, byte);
        Ok(())
    }

    fn answered(&mut self, block: u64, byte: u8) {
        let at = self.device.as_ref().expect("it is attached").position();
        assert!(at.safe >= self.safe);
        self.safe = at.safe;
        self.kept.push(Kept { block, byte, epoch: self.epoch, sequence: at.sequence });
        self.kept.retain(|kept| kept.sequence > at.safe);
        self.blocks[block as usize] = byte;
    }

    /// A change that may be cut off: the world goes on for so long, whatever comes of it.
    fn begin_write(&mut self, member: &Member, block: u64, byte: u8, time: Duration) -> bool {
        let device = Rc::clone(self.device.as_ref().expect("it is attached"));
        let done = Rc::new(Cell::new(None));
        let told = Rc::clone(&done);
        member.node.env.spawn(Box::pin(async move {
            let written = finish(&device, device.write(block * 4096, vec![byte; 4096].into(), false)).await;
            told.set(Some(written.is_ok()));
        }));
        member.node.world.run_for(time).expect("the world runs");
        if done.get() == Some(true) {
            self.answered(block, byte);
            return true;
        }
        self.unanswered = Some((block, byte));
        false
    }

    fn prove(&self, member: &Member, when: &str) {
        let device = self.device.as_ref().expect("it is attached");
        for block in 0..BLOCKS {
            assert_eq!(member.read(device, block), self.blocks[block as usize], "{when}: block {block}");
        }
    }
}

/// How a node is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Up,
    Down,
    /// It stalls: to others it is gone.
    Paused,
}

/// Two nodes, and how they are.
struct Pair {
    members: [Member; 2],
    states: [State; 2],
}

impl Pair {
    fn crash(&mut self, at: usize, mode: CrashMode) {
        self.members[at].crash(mode);
        self.states[at] = State::Down;
    }

    fn pause(&mut self, at: usize) {
        let node = &self.members[at].node;
        node.world.pause(&node.env);
        self.states[at] = State::Paused;
    }

    /// It comes back, from whatever it was.
    fn wake(&mut self, at: usize) {
        let member = &self.members[at];
        match self.states[at] {
            State::Up => {}
            State::Down => drop(member.start()),
            State::Paused => member.node.world.resume(&member.node.env),
        }
        self.states[at] = State::Up;
    }

    fn pass(&self, time: Duration) {
        self.members[0].node.world.run_for(time).expect("the world runs");
    }
}

/// Lets the volume be served by whoever can, and the edge go on there. Gives who that is.
fn go_on(pair: &mut Pair, volume: &Rc<Volume>, edge: &mut Edge, rng: &mut Rng) -> usize {
    edge.device = None;
    for round in 0..60 {
        for at in [0, 1] {
            if pair.states[at] != State::Up {
                continue;
            }
            let member = &pair.members[at];
            let id = volume.id();
            let open =
                member.node.shard().volumes().into_iter().find(|open| open.id() == id && open.stopped().is_none());
            let open = match open {
                Some(open) => Ok(open),
                None => {
                    member.node.shard().forget(id);
                    let (own, mirrored) = (member.node.shard(), member.node.shard());
                    member
                        .node
                        .run(async move {
                            match own.open_volume(id).await {
                                Err(error) if error.kind() == ErrorKind::Fenced => {
                                    mirrored.take_over_as_mirror(id).await
                                }
                                done => done,
                            }
                        })
                        .expect("the world runs")
                }
            };
            let Ok(open) = open else { continue };
            let request = edge.request();
            let begun = member.node.run(async move { open.begin_session(request).await }).expect("the world runs");
            match begun {
                Ok(start) => {
                    edge.attached(member, start);
                    return at;
                }
                Err(error) => assert!(!matches!(error.kind(), ErrorKind::Corrupt), "{error}"),
            }
        }
        // Nobody can: power comes back somewhere, or a cut is mended.
        let at = rng.below(2) as usize;
        pair.members[at].far.cut(false);
        pair.wake(at);
        pair.pass(Duration::from_millis(200 + 100 * round));
    }
    panic!("nobody serves the volume");
}

fn run(seed: u64) -> u64 {
    let (first, second) = pair(seed, seed % 4 == 3);
    let volume = first.node.volume("v");
    let mut pair = Pair { members: [first, second], states: [State::Up; 2] };
    let mut rng = Rng::new(seed);
    let mut edge = Edge { blocks: vec![0; BLOCKS as usize], ..Edge::default() };
    let mut owner = go_on(&mut pair, &volume, &mut edge, &mut rng);
    for round in 0..ROUNDS {
        edge.prove(&pair.members[owner], &format!("seed {seed}, round {round}"));
        work(&pair.members[owner], &mut edge, &mut rng);
        happen(&mut pair, owner, &mut rng);
        pair.pass(Duration::from_millis(rng.below(8000)));
        owner = go_on(&mut pair, &volume, &mut edge, &mut rng);
    }
    edge.prove(&pair.members[owner], &format!("seed {seed}, at the end"));
    edge.replayed
}

/// Some changes, the last of which may not be answered.
fn work(member: &Member, edge: &mut Edge, rng: &mut Rng) {
    for _ in 0..rng.below(12) {
        let (block, byte) = (rng.below(BLOCKS), rng.below(255) as u8 + 1);
        if !edge.begin_write(member, block, byte, Duration::from_secs(30)) {
            return;
        }
        if rng.below(8) == 0 {
            let device = Rc::clone(edge.device.as_ref().expect("it is attached"));
            drop(member.node.flush(&device));
        }
    }
    if rng.below(3) == 0
        && let Ok(open) = member.node.shard().find(&varve_sim::node::name("v"))
    {
        drop(member.node.run(async move { open.seal().await }));
    }
    let (block, byte) = (rng.below(BLOCKS), rng.below(255) as u8 + 1);
    edge.begin_write(member, block, byte, Duration::from_micros(rng.below(400)));
}

/// Something happens to the nodes, or to the network between them.
fn happen(pair: &mut Pair, owner: usize, rng: &mut Rng) {
    let other = 1 - owner;
    match rng.below(7) {
        0 | 1 => pair.crash(owner, CrashMode::ALL[rng.below(6) as usize]),
        2 => pair.pause(owner),
        3 if pair.states[other] == State::Up => pair.crash(other, CrashMode::Lost),
        4 => pair.members[other].far.cut(true),
        5 => pair.members.iter().for_each(|member| member.far.cut(false)),
        _ => {}
    }
    if rng.below(2) == 0 {
        pair.wake(other);
    }
}

#[test]
fn an_edge_reads_what_it_was_answered_wherever_its_volume_goes() {
    let seeds = std::env::var("VARVE_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(16);
    let first = std::env::var("VARVE_FIRST").ok().and_then(|first| first.parse().ok()).unwrap_or(0);
    let replayed: u64 = (first..first + seeds).map(run).sum();
    assert!(replayed > 0, "some of what was acknowledged had to be sent again");
}
