// SPDX-License-Identifier: Apache-2.0
//! What happens to a pair of nodes: deaths and stalls, ways that are cut in one direction or both or take long, coordination and a store that are away.
//!
//! Who serves the volume is read from coordination, as it is, and not from what anybody believes.
//!
//! Every fault lasts until it is mended: by another draw, by its own end, or by [`Pair::mend`], when nobody can serve the volume. A pair bears one loss at a time: whose mirror has lost
//! its copy, and is still named, loses no power, and a mirror does not die while it alone has what its owner lost with the power. All else may come together.

use super::member::{Member, pair_in};
use crate::swarm::Cover;
use crate::{CrashMode, Rng, SimOptions, Way};
use futures_util::FutureExt;
use std::rc::Rc;
use std::time::Duration;
use varve_coord::{Records, VolumeRecord};
use varve_engine::{BlockDevice, Device, EngineError, MirrorPhase, Volume};
use varve_env::Env;
use varve_types::{MirrorMedium, VolumeId};

/// How a node is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Up,
    Down,
    /// It stalls: to others it is gone.
    Paused,
}

/// Two nodes, and how they are.
pub(super) struct Pair {
    pub(super) members: [Member; 2],
    pub(super) states: [State; 2],
    pub(super) volume: VolumeId,
    /// Who was served by it when the volume went from it to another: by a node that lives.
    former: Option<(usize, Rc<Device>)>,
    /// It lost power, and has not opened the volume since.
    has_lost: [bool; 2],
    /// The client keeps nothing: no power is lost.
    plain: bool,
    pub(super) cover: Cover,
}

/// What a table of a run shows, whether it was reached or not.
const KNOWN: [&str; 28] = [
    "pair fault: the owner dies",
    "pair fault: the owner loses power",
    "pair fault: the owner stalls",
    "pair fault: the mirror dies",
    "pair fault: the mirror dies while the owner is gone",
    "pair fault: the mirror is another process at once",
    "pair fault: both ways are cut",
    "pair fault: questions to the mirror are cut off",
    "pair fault: answers of the mirror are cut off",
    "pair fault: the ways between nodes are slow",
    "pair fault: the ways of clients are cut",
    "pair fault: the ways of clients are slow",
    "pair fault: coordination is away for the owner",
    "pair fault: coordination is away for the mirror",
    "pair fault: coordination is away",
    "pair fault: coordination is slow",
    "pair fault: answers of coordination are lost",
    "pair fault: the store is away",
    "pair fault: a take-over beside the owner",
    "pair: the volume moved",
    "pair: who was taken over was asked",
    "pair: what came of a transaction is not known",
    "pair: a transaction came late",
    "pair: what was acknowledged was sent again",
    "pair: a second edge was refused",
    "pair: an edge has taken the volume from another",
    "pair: two edges have read",
    "pair: served without coordination",
];

impl Pair {
    /// Two nodes, all of which is well.
    pub(super) fn new(options: SimOptions, plain: bool, strict: bool, medium: MirrorMedium) -> Self {
        let (first, second) = pair_in(options, strict, medium);
        let volume = first.node.volume("v").id();
        let mut cover = Cover::default();
        KNOWN.iter().for_each(|name| cover.add(*name, 0));
        let (members, states) = ([first, second], [State::Up; 2]);
        Self { members, states, volume, former: None, has_lost: [false; 2], plain, cover }
    }

    /// Counts what has come about, and notes it in the trace.
    pub(super) fn count(&mut self, what: &'static str) {
        self.cover.count(what);
        self.members[0].node.world.note(what);
    }

    pub(super) fn pass(&self, time: Duration) {
        self.members[0].node.world.run_for(time).expect("the world runs");
    }

    /// What coordination says of the volume.
    pub(super) fn record(&self) -> VolumeRecord {
        let memory = &*self.members[0].node.coord;
        let loaded = Records::new(memory).load_volume(self.volume).now_or_never();
        loaded.expect("memory answers at once").expect("the volume is there").0
    }

    /// The node that owns the volume.
    pub(super) fn owner(&self) -> usize {
        usize::from(self.record().owner == Some(self.members[1].id))
    }

    /// Whether the mirror that a node counts on has lost its copy, and is named all the same.
    fn is_exposed(&self, at: usize) -> bool {
        let record = self.record();
        let named = record.mirror.filter(|mirror| mirror.node != self.members[at].id);
        let copies = self.members[1 - at].far.copies();
        let is_there = |incarnation| copies.as_ref().is_some_and(|copies| copies.is_here(incarnation));
        record.owner == Some(self.members[at].id) && named.is_some_and(|mirror| !is_there(mirror.incarnation))
    }

    fn crash(&mut self, at: usize, rng: &mut Rng) {
        if self.states[at] == State::Down {
            return;
        }
        self.former = self.former.take().filter(|(former, _)| *former != at);
        let is_safe = self.plain || self.is_exposed(at) || self.has_lost[1 - at];
        let modes: &[CrashMode] = if is_safe { &[CrashMode::Kill] } else { &CrashMode::ALL };
        let mode = modes[rng.below(modes.len() as u64) as usize];
        if mode != CrashMode::Kill && at == self.owner() {
            self.count("pair fault: the owner loses power");
            self.has_lost[at] = true;
        }
        let note = format!("pair: node {at} ends: {mode:?}, exposed {}", self.is_exposed(at));
        self.members[0].node.world.note(&note);
        self.members[at].crash(mode);
        self.states[at] = State::Down;
    }

    /// The volume is served at a node: whatever it had lost it has again.
    pub(super) fn is_served(&mut self, at: usize) {
        if self.owner() == at {
            self.has_lost = [false; 2];
        }
    }

    fn pause(&mut self, at: usize) {
        if self.states[at] == State::Up {
            let node = &self.members[at].node;
            node.world.pause(&node.env);
            self.members[at].far.stall(true);
            self.states[at] = State::Paused;
        }
    }

    /// The owner stalls, for now.
    pub(super) fn stall_owner(&mut self) {
        self.pause(self.owner());
    }

    /// It comes back, from whatever it was.
    fn wake(&mut self, at: usize) {
        let member = &self.members[at];
        member.node.world.note(if at == 0 { "pair: node 0 wakes" } else { "pair: node 1 wakes" });
        match self.states[at] {
            State::Up => {}
            State::Down => {
                member.boot();
                let shard = member.node.shard();
                member.node.env.spawn(Box::pin(async move { drop(shard.open_all().await) }));
            }
            State::Paused => {
                member.far.stall(false);
                member.node.world.resume(&member.node.env);
            }
        }
        self.states[at] = State::Up;
    }

    /// The way on which a node is asked by the other one.
    fn way(&self, to: usize) -> &Rc<Way> {
        self.members[to].far.asks()
    }

    fn for_a_while(&self, most_ms: u64, rng: &mut Rng, end: impl FnOnce() + 'static) {
        let world = self.members[0].node.world.clone();
        let sleep = world.sleep(Duration::from_millis(rng.below(most_ms)));
        world.process("fate").spawn(Box::pin(async move {
            sleep.await;
            end();
        }));
    }

    /// Something is well again; later on, everything.
    pub(super) fn mend(&mut self, tries: u32, rng: &mut Rng) {
        let all = tries > 40;
        let at = rng.below(2) as usize;
        if all || rng.below(2) == 0 {
            self.wake(at);
        }
        if all || rng.below(3) == 0 {
            self.way(0).mend();
            self.way(1).mend();
        }
        if all || rng.below(3) == 0 {
            self.members[at].port.mend();
        }
        if all || rng.below(3) == 0 {
            self.members[at].node.coord_line.mend();
        }
        if all || rng.below(6) == 0 {
            self.members[0].node.server.away_for(Duration::ZERO);
        }
    }

    /// Everything is well again.
    pub(super) fn mend_all(&mut self) {
        for at in [0, 1] {
            self.wake(at);
            self.way(at).mend();
            self.members[at].port.mend();
            self.members[at].node.coord_line.mend();
        }
        self.members[0].node.server.away_for(Duration::ZERO);
    }

    /// Whether its owner has the volume open, and in sync.
    pub(super) fn is_in_sync(&self) -> bool {
        let at = self.owner();
        let is_open = |volume: &Rc<Volume>| volume.id() == self.volume && volume.mirror().phase == MirrorPhase::InSync;
        self.states[at] == State::Up && self.members[at].node.shard().volumes().iter().any(is_open)
    }

    /// Coordination is away for both.
    pub(super) fn lose_coordination(&self) {
        self.members.iter().for_each(|member| member.node.coord_line.set_away(true));
    }

    /// A node tries to take the volume over, unless it has not heard yet that it had to let go of it.
    pub(super) fn take_over(&self, at: usize) -> Option<Result<Rc<Volume>, EngineError>> {
        let (shard, id) = (self.members[at].node.shard(), self.volume);
        shard.forget(id);
        let is_open = shard.volumes().iter().any(|open| open.id() == id);
        let take = async move { shard.take_over_as_mirror(id).await };
        (!is_open).then(|| self.members[at].node.run(take).expect("the world runs"))
    }

    /// The volume was served by `device` of a node, and is served by another one now.
    pub(super) fn moved_from(&mut self, at: usize, device: Rc<Device>) {
        self.count("pair: the volume moved");
        if self.states[at] != State::Down {
            self.former = Some((at, device));
        }
    }

    /// Whoever was taken over, and is awake by now, answers nothing any more that its client would believe.
    pub(super) fn prove_fenced(&mut self) {
        let is_awake = |(at, _): &mut (usize, Rc<Device>)| self.states[*at] == State::Up;
        let Some((at, device)) = self.former.take_if(is_awake) else { return };
        if self.owner() == at {
            return;
        }
        let answered = crate::network::Letter::default();
        let (tell_written, tell_found, reader) = (answered.clone(), answered.clone(), Rc::clone(&device));
        let (env, plain) = (&self.members[at].node.env, self.plain);
        env.spawn(Box::pin(async move {
            // An edge drops what is not of its epoch.
            if crate::node::read(&reader, 0, 4096).await.is_ok() && plain {
                tell_found.give("two nodes have been read from");
            }
        }));
        env.spawn(Box::pin(async move {
            let done = crate::node::finish(&device, device.write(0, vec![251; 4096].into(), false)).await;
            if done.is_ok() {
                tell_written.give("two nodes have answered for the volume");
            }
        }));
        self.pass(Duration::from_secs(5));
        self.count("pair: who was taken over was asked");
        assert_eq!(answered.take(), None);
    }

    /// Something happens to the nodes, or to what is between them and around them.
    pub(super) fn happen(&mut self, owner: usize, rng: &mut Rng) {
        let other = 1 - owner;
        match rng.below(6) {
            0 | 1 => self.process_fault(owner, rng),
            2 => self.mirror_fault(other, rng),
            3 => self.way_fault(owner, rng),
            4 => self.coordination_fault(owner, rng),
            _ => self.other_fault(owner, rng),
        }
    }

    fn process_fault(&mut self, owner: usize, rng: &mut Rng) {
        let other = 1 - owner;
        if rng.below(2) == 0 {
            self.count("pair fault: the owner dies");
            self.crash(owner, rng);
        } else {
            self.count("pair fault: the owner stalls");
            self.pause(owner);
        }
        // It must not take along what the owner has lost.
        if rng.below(4) == 0 && self.states[other] == State::Up && !self.has_lost[owner] {
            self.count("pair fault: the mirror dies while the owner is gone");
            self.crash(other, rng);
            self.wake(other);
        }
    }

    fn mirror_fault(&mut self, other: usize, rng: &mut Rng) {
        if self.states[other] != State::Up || self.has_lost[1 - other] {
            return;
        }
        self.crash(other, rng);
        if rng.below(2) == 0 {
            self.count("pair fault: the mirror is another process at once");
            self.wake(other);
        } else {
            self.count("pair fault: the mirror dies");
        }
        self.pass(Duration::from_millis(rng.below(3000)));
    }

    fn way_fault(&mut self, owner: usize, rng: &mut Rng) {
        let other = 1 - owner;
        match rng.below(6) {
            0 => {
                self.count("pair fault: both ways are cut");
                [0, 1].into_iter().for_each(|to| self.way(to).cut(true));
            }
            1 => {
                self.count("pair fault: questions to the mirror are cut off");
                self.way(other).cut(true);
            }
            2 => {
                self.count("pair fault: answers of the mirror are cut off");
                self.way(owner).cut(true);
            }
            3 | 4 => {
                self.count("pair fault: the ways between nodes are slow");
                let by = Duration::from_millis(1 << rng.below(13));
                let one = rng.below(3);
                [0, 1].into_iter().filter(|to| *to as u64 != one).for_each(|to| self.way(to).slow(by));
            }
            _ => [0, 1].into_iter().for_each(|to| self.way(to).mend()),
        }
        if rng.below(2) == 0 {
            let ways = [0, 1].map(|to| Rc::clone(self.way(to)));
            self.for_a_while(6000, rng, move || ways.iter().for_each(|way| way.mend()));
        }
    }

    fn coordination_fault(&mut self, owner: usize, rng: &mut Rng) {
        let lines = [0, 1].map(|at| std::sync::Arc::clone(&self.members[at].node.coord_line));
        match rng.below(6) {
            0 => {
                self.count("pair fault: coordination is away for the owner");
                lines[owner].set_away(true);
            }
            1 => {
                self.count("pair fault: coordination is away for the mirror");
                lines[1 - owner].set_away(true);
            }
            2 => {
                self.count("pair fault: coordination is away");
                lines.iter().for_each(|line| line.set_away(true));
            }
            3 => {
                self.count("pair fault: coordination is slow");
                lines[rng.below(2) as usize].slow(Duration::from_millis(rng.below(3000)));
            }
            4 => {
                self.count("pair fault: answers of coordination are lost");
                lines.iter().for_each(|line| line.lose(400));
            }
            _ => lines.iter().for_each(|line| line.mend()),
        }
        if rng.below(3) > 0 {
            self.for_a_while(15_000, rng, move || lines.iter().for_each(|line| line.mend()));
        }
    }

    fn other_fault(&mut self, owner: usize, rng: &mut Rng) {
        match rng.below(6) {
            0 => {
                self.count("pair fault: the store is away");
                self.members[0].node.server.away_for(Duration::from_millis(rng.below(40_000)));
            }
            1 => {
                self.count("pair fault: the ways of clients are cut");
                let port = &self.members[owner].port;
                if rng.below(2) == 0 { port.asks.cut(true) } else { port.answers.cut(true) }
            }
            2 => {
                self.count("pair fault: the ways of clients are slow");
                self.members[owner].port.asks.slow(Duration::from_millis(rng.below(2000)));
            }
            3 | 4 if self.states[1 - owner] == State::Up => {
                self.count("pair fault: a take-over beside the owner");
                let (member, id) = (&self.members[1 - owner], self.volume);
                let shard = member.node.shard();
                shard.forget(id);
                member.node.env.spawn(Box::pin(async move { drop(shard.take_over_as_mirror(id).await) }));
            }
            _ => {}
        }
    }
}
