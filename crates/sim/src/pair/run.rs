// SPDX-License-Identifier: Apache-2.0
//! A client whose volume goes from node to node, as they die, lose power, stall and are cut off: what it was answered is what it reads, on whichever node, and
//! what it was not answered has happened once or not at all; and whoever was taken over answers nothing any more.
//!
//! In half of the seeds it is an **edge** that keeps to the protocol: what was acknowledged and is not safe it sends again, then what was not answered. In the
//! other half it is a **plain** client, which sends nothing again, and is answered under the leases of its owners: what it was answered is there all the same, for nodes
//! lose no power then, and a mirror that is in sync has all of it. One request at a time; the oracle knows of each block what was acknowledged last.

use super::member::{Member, pair};
use crate::node::{finish, name, read};
use crate::{CrashMode, Rng};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use varve_engine::{BlockDevice, Device, EngineError, SessionRequest, SessionStart, Volume};
use varve_env::Env;
use varve_types::{Epoch, ErrorKind, MirrorMedium, Sequence, SessionId, TimelineId};

const BLOCKS: u64 = 24;
const ROUNDS: u32 = 25;
/// How far the world goes before it is looked whether a change was answered.
const STEP: Duration = Duration::from_millis(5);
/// Long enough for a mirror to be found and to join.
const LONG: Duration = Duration::from_secs(30);

/// A change that was acknowledged and is not known to be safe.
#[derive(Clone, Copy)]
struct Kept {
    block: u64,
    byte: u8,
    sequence: Sequence,
}

#[derive(Default)]
struct Edge {
    /// It sends nothing again.
    plain: bool,
    timeline: Option<TimelineId>,
    epoch: Epoch,
    safe: Sequence,
    kept: Vec<Kept>,
    unanswered: Option<(u64, u8)>,
    /// How that ends, where its node lives to tell.
    in_flight: Rc<Cell<Option<bool>>>,
    /// The node that it is attached to.
    at: usize,
    device: Option<Rc<Device>>,
    /// What each block was last acknowledged to be.
    blocks: Vec<u8>,
    replayed: u64,
}

impl Edge {
    fn request(&self) -> SessionRequest {
        // What a plain client was told to be safe nobody remembers.
        let safe = if self.plain { Sequence(0) } else { self.safe };
        let promises = self.timeline.map(|_| (self.epoch, safe)).into_iter().collect();
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
    fn attached(&mut self, member: &Member, volume: &Rc<Volume>, start: SessionStart) {
        let device = if self.plain {
            // The session only keeps the volume's place.
            let volume = Rc::clone(volume);
            member.node.must("attach", async move { volume.device("plain".to_owned()).await }).0
        } else {
            start.device
        };
        let device = Rc::new(device);
        // What counts is not sent again, and is not forgotten either before it is safe.
        let cut = start.cuts.first().copied().unwrap_or_default();
        assert!(self.plain || cut >= self.safe, "what was told to be safe is there");
        let (counts, lost): (Vec<_>, Vec<_>) = self.kept.drain(..).partition(|kept| kept.sequence <= cut);
        self.kept = counts;
        (self.timeline, self.epoch, self.safe) = (Some(start.timeline), start.epoch, device.position().safe);
        self.device = Some(device);
        let unanswered = self.unanswered.take();
        if self.plain {
            if let Some((block, byte)) = unanswered {
                let found = member.read(self.device.as_ref().expect("it is attached"), block);
                let before = self.blocks[block as usize];
                assert!(found == byte || found == before, "block {block}: {found}, not {before} or {byte}");
                self.blocks[block as usize] = found;
            }
            return;
        }
        for kept in lost {
            self.replayed += 1;
            self.write(member, kept.block, kept.byte).expect("nothing dies meanwhile");
        }
        if let Some((block, byte)) = unanswered {
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
        self.kept.push(Kept { block, byte, sequence: at.sequence });
        self.kept.retain(|kept| kept.sequence > at.safe);
        self.blocks[block as usize] = byte;
    }

    /// A change that may be cut off: the world goes on until it is answered, and for so long at most.
    fn begin_write(&mut self, member: &Member, block: u64, byte: u8, time: Duration) -> bool {
        let device = Rc::clone(self.device.as_ref().expect("it is attached"));
        let done = Rc::new(Cell::new(None));
        let told = Rc::clone(&done);
        member.node.env.spawn(Box::pin(async move {
            let written = finish(&device, device.write(block * 4096, vec![byte; 4096].into(), false)).await;
            told.set(Some(written.is_ok()));
        }));
        let mut left = time;
        while done.get().is_none() && !left.is_zero() {
            let step = left.min(STEP);
            member.node.world.run_for(step).expect("the world runs");
            left -= step;
        }
        if done.get() == Some(true) {
            self.answered(block, byte);
            return true;
        }
        (self.unanswered, self.in_flight) = (Some((block, byte)), done);
        false
    }

    /// Waits until its node has ended what was not answered, as it does before it lets the session go on; whether it has.
    fn ended(&self, member: &Member) -> bool {
        let is_over = || self.in_flight.get().is_some() || Rc::strong_count(&self.in_flight) == 1;
        for _ in 0..20 {
            if is_over() {
                return true;
            }
            member.node.world.run_for(Duration::from_millis(50)).expect("the world runs");
        }
        is_over()
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
    /// What was written by when it stalled: by then it may be another's.
    stalled: Option<(usize, Rc<Device>)>,
    /// How a process may end.
    modes: &'static [CrashMode],
}

impl Pair {
    fn crash(&mut self, at: usize, rng: &mut Rng) {
        self.stalled = self.stalled.take().filter(|(stalled, _)| *stalled != at);
        self.members[at].crash(self.modes[rng.below(self.modes.len() as u64) as usize]);
        self.states[at] = State::Down;
    }

    fn pause(&mut self, at: usize, device: Option<Rc<Device>>) {
        let node = &self.members[at].node;
        node.world.pause(&node.env);
        self.members[at].far.stall(true);
        self.states[at] = State::Paused;
        self.stalled = device.map(|device| (at, device));
    }

    /// It comes back, from whatever it was.
    fn wake(&mut self, at: usize) {
        let member = &self.members[at];
        match self.states[at] {
            State::Up => {}
            State::Down => drop(member.start()),
            State::Paused => {
                member.far.stall(false);
                member.node.world.resume(&member.node.env);
            }
        }
        self.states[at] = State::Up;
    }

    fn pass(&self, time: Duration) {
        self.members[0].node.world.run_for(time).expect("the world runs");
    }

    /// Whoever was taken over while it stalled, and is awake by now, answers nothing any more that its client would believe.
    fn prove_fenced(&mut self, owner: usize, plain: bool) {
        let is_awake = |(at, _): &(usize, Rc<Device>)| *at != owner && self.states[*at] == State::Up;
        let Some((at, device)) = self.stalled.take_if(|stalled| is_awake(stalled)) else { return };
        let (written, found) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
        let (tell_written, tell_found, reader) = (Rc::clone(&written), Rc::clone(&found), Rc::clone(&device));
        let env = &self.members[at].node.env;
        env.spawn(Box::pin(async move { tell_found.set(read(&reader, 0, 4096).await.is_ok()) }));
        env.spawn(Box::pin(async move {
            let done = finish(&device, device.write(0, vec![251; 4096].into(), false)).await;
            tell_written.set(done.is_ok());
        }));
        self.pass(Duration::from_secs(5));
        assert!(!written.get(), "two nodes have answered for the volume");
        // An edge drops what is not of its epoch.
        assert!(!(plain && found.get()), "two nodes have been read from");
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
            if at == edge.at && !edge.ended(member) {
                continue;
            }
            let request = edge.request();
            let begin = Rc::clone(&open);
            let begun = member.node.run(async move { begin.begin_session(request).await }).expect("the world runs");
            match begun {
                Ok(start) => {
                    edge.at = at;
                    edge.attached(member, &open, start);
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

/// Runs a seed. Gives how many changes had to be sent again.
///
/// # Panics
/// When anything is not as it must be.
#[must_use]
pub fn run(seed: u64) -> u64 {
    let mut rng = Rng::new(seed);
    let (plain, strict) = (rng.below(2) == 0, rng.below(4) == 0);
    let medium = if rng.below(2) == 0 { MirrorMedium::Ram } else { MirrorMedium::Disk };
    let (first, second) = pair(seed, strict, medium);
    let volume = first.node.volume("v");
    let modes: &[CrashMode] = if plain { &[CrashMode::Kill] } else { &CrashMode::ALL };
    let mut pair = Pair { members: [first, second], states: [State::Up; 2], stalled: None, modes };
    let mut edge = Edge { plain, blocks: vec![0; BLOCKS as usize], ..Edge::default() };
    let mut owner = go_on(&mut pair, &volume, &mut edge, &mut rng);
    for round in 0..ROUNDS {
        edge.prove(&pair.members[owner], &format!("seed {seed}, round {round}"));
        pair.prove_fenced(owner, plain);
        if rng.below(2) == 0 {
            pair.pass(LONG);
        }
        work(&pair.members[owner], &mut edge, &mut rng);
        happen(&mut pair, owner, &edge, &mut rng);
        let time = if rng.below(3) == 0 { rng.below(8000) } else { rng.below(3) };
        pair.pass(Duration::from_millis(time));
        owner = go_on(&mut pair, &volume, &mut edge, &mut rng);
        if rng.below(6) == 0 {
            // What it has just taken in is not in the store yet.
            pair.crash(owner, &mut rng);
            owner = go_on(&mut pair, &volume, &mut edge, &mut rng);
        }
    }
    edge.prove(&pair.members[owner], &format!("seed {seed}, at the end"));
    edge.replayed
}

/// Some changes, the last of which may not be answered.
fn work(member: &Member, edge: &mut Edge, rng: &mut Rng) {
    for _ in 0..rng.below(12) {
        let (block, byte) = (rng.below(BLOCKS), rng.below(255) as u8 + 1);
        if !edge.begin_write(member, block, byte, LONG) {
            return;
        }
        if rng.below(8) == 0 {
            let device = Rc::clone(edge.device.as_ref().expect("it is attached"));
            drop(member.node.flush(&device));
        }
    }
    if rng.below(3) == 0
        && let Ok(open) = member.node.shard().find(&name("v"))
    {
        drop(member.node.run(async move { open.seal().await }));
    }
    let (block, byte) = (rng.below(BLOCKS), rng.below(255) as u8 + 1);
    edge.begin_write(member, block, byte, Duration::from_micros(rng.below(400)));
}

/// Something happens to the nodes, or to the network between them.
fn happen(pair: &mut Pair, owner: usize, edge: &Edge, rng: &mut Rng) {
    let other = 1 - owner;
    match rng.below(8) {
        0 | 1 => pair.crash(owner, rng),
        2 | 3 => pair.pause(owner, edge.device.clone()),
        4 if pair.states[other] == State::Up => {
            pair.crash(other, rng);
            // Both at once would be more than a pair can bear.
            pair.pass(Duration::from_secs(2));
        }
        5 => pair.members[other].far.cut(true),
        6 => pair.members.iter().for_each(|member| member.far.cut(false)),
        _ => {}
    }
    if rng.below(2) == 0 {
        pair.wake(other);
    }
}
