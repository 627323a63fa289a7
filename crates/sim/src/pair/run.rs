// SPDX-License-Identifier: Apache-2.0
//! A client whose volume goes from node to node, as they die, lose power, stall and are cut off: what it was answered is what it reads, on whichever node, and
//! what it was not answered has happened once or not at all; and whoever was taken over answers nothing any more.
//!
//! In half of the seeds it is an **edge**, with the session of `varve-edge`: what was acknowledged and is not safe it sends again, then what was not answered, and in the end everything that
//! was asked is answered. In the other half it is a **plain** client, which sends nothing again, and is answered under the leases of its owners: what it was answered is there all the same, for nodes
//! lose no power then, and a mirror that is in sync has all of it.
//!
//! Once everything is well again, the volume is in sync again: nothing that has happened may leave a pair of nodes that is none.

use super::edge::Edge;
use super::fault::Pair;
use super::guest::{BLOCKS, Guest};
use super::plain::Plain;
use crate::swarm::Cover;
use crate::{Rng, SimOptions};
use std::rc::Rc;
use std::time::Duration;
use varve_engine::Device;
use varve_env::Env;
use varve_types::MirrorMedium;
use varve_wire::attach::Mode;
use varve_wire::transmission::Ask;

const ROUNDS: u32 = 25;
/// How far the world goes before it is looked whether a request was answered.
const STEP: Duration = Duration::from_millis(5);
/// Looks without an answer after which something is mended.
const PATIENCE: u32 = 400;
/// Things that are mended before everything has to be well.
const MOST_MENDS: u32 = 120;
/// Long enough for a mirror to be found and to join.
const LONG: Duration = Duration::from_secs(30);

/// What a seed came to.
#[derive(Clone, Debug)]
pub struct PairReport {
    /// How often each fault and outcome was reached.
    pub cover: Cover,
    /// Changes that were acknowledged, and were sent again.
    pub replayed: u64,
    /// Hash of everything that happened.
    pub trace: u64,
}

pub(super) enum Client {
    Edge(Rc<Edge>),
    Plain(Plain),
}

impl Client {
    fn served_by(&self) -> Option<(usize, Rc<Device>)> {
        match self {
            Self::Edge(edge) => edge.served_by(),
            Self::Plain(plain) => plain.served_by(),
        }
    }

    /// Some time passes. Whether it is served.
    fn step(&mut self, pair: &Pair) -> bool {
        match self {
            Self::Edge(edge) => {
                pair.pass(STEP);
                assert!(edge.failure().is_none(), "the device has failed: {:?}", edge.failure());
                edge.is_served()
            }
            Self::Plain(plain) => plain.step(pair),
        }
    }
}

pub(super) struct Run {
    seed: u64,
    pub(super) rng: Rng,
    pub(super) pair: Pair,
    pub(super) guest: Guest,
    pub(super) client: Client,
    round: u32,
    /// Edges so far.
    pub(super) edges: u8,
    /// What those of them have sent again that are no more.
    pub(super) replayed: u64,
}

/// Runs a seed.
///
/// # Panics
/// When anything is not as it must be.
#[must_use]
pub fn run(seed: u64) -> PairReport {
    run_logged(seed, false)
}

/// The same; where `log` is set, what happened is kept as text for who catches the panic.
pub(crate) fn run_logged(seed: u64, log: bool) -> PairReport {
    let mut rng = Rng::new(seed);
    let (plain, strict) = (rng.below(2) == 0, rng.below(4) == 0);
    let medium = if rng.below(2) == 0 { MirrorMedium::Ram } else { MirrorMedium::Disk };
    let pair = Pair::new(SimOptions { log, ..SimOptions::seed(seed) }, plain, strict, medium);
    let client = Client::Plain(Plain::default());
    let mut run = Run { seed, rng, pair, guest: Guest::new(!plain), client, round: 0, edges: 0, replayed: 0 };
    if !plain {
        run.client = Client::Edge(run.edge(Mode::Exclusive, false));
    }
    run.settle("the first attach");
    for round in 0..ROUNDS {
        run.round = round;
        run.one_round();
    }
    run.end()
}

impl Drop for Run {
    fn drop(&mut self) {
        let world = &self.pair.members[0].node.world;
        if std::thread::panicking() && world.is_logged() {
            crate::swarm::keep_log(world.log());
        }
    }
}

impl Run {
    fn one_round(&mut self) {
        self.pair.members[0].node.world.note(&format!("pair: round {} at node {}", self.round, self.pair.owner()));
        self.read_all("before");
        self.pair.prove_fenced();
        if self.rng.below(2) == 0 {
            self.pair.pass(LONG);
        }
        match self.rng.below(24) {
            0 | 1 => self.another_edge(),
            2 => self.without_coordination(),
            _ => {}
        }
        self.work();
        let was = self.client.served_by();
        for _ in 0..1 + self.rng.below(3) / 2 {
            let owner = self.pair.owner();
            self.pair.happen(owner, &mut self.rng);
        }
        if self.rng.below(2) == 0 {
            self.burst();
        }
        let time = if self.rng.below(3) == 0 { self.rng.below(8000) } else { self.rng.below(3) };
        self.pair.pass(Duration::from_millis(time));
        self.settle("after what happened");
        let now = self.client.served_by();
        if let (Some((was, device)), Some((now, _))) = (was, now)
            && was != now
        {
            self.pair.moved_from(was, device);
        }
    }

    /// Coordination is away: what is served is served on, and nothing is taken over.
    fn without_coordination(&mut self) {
        self.pair.mend_all();
        self.settle("all is well for a moment");
        self.pair.pass(LONG);
        let Some((at, _)) = self.client.served_by().filter(|(at, _)| *at == self.pair.owner()) else { return };
        if !self.pair.is_in_sync() {
            return;
        }
        self.pair.lose_coordination();
        for _ in 0..4 {
            self.burst();
            self.pair.pass(Duration::from_millis(500));
            self.look("without coordination");
            assert_eq!(
                self.guest.waiting(),
                0,
                "seed {}, round {}: not answered without coordination",
                self.seed,
                self.round
            );
        }
        let taken = self.pair.take_over(1 - at).is_some_and(|taken| taken.is_ok());
        assert!(!taken, "seed {}, round {}: taken over without coordination", self.seed, self.round);
        self.pair.count("pair: served without coordination");
    }

    pub(super) fn ask(&mut self, ask: Ask, block: u64) {
        let Some((ask, block, data, answer)) = self.guest.ask(ask, block) else { return };
        match &mut self.client {
            Client::Edge(edge) => edge.ask(ask, block, data, answer),
            Client::Plain(plain) => plain.ask(ask, block, data, answer),
        }
    }

    /// Changes, several at once; some of them are not answered when this ends.
    fn work(&mut self) {
        for _ in 0..self.rng.below(6) {
            self.burst();
            for _ in 0..self.rng.below(40) {
                if self.guest.waiting() == 0 {
                    break;
                }
                self.client.step(&self.pair);
                self.look("at work");
            }
        }
        if self.rng.below(3) == 0
            && let Some((at, device)) = self.client.served_by()
        {
            let open = Rc::clone(device.volume());
            self.pair.members[at].node.env.spawn(Box::pin(async move { drop(open.seal().await) }));
        }
        self.burst();
        self.pair.pass(Duration::from_micros(self.rng.below(400)));
    }

    fn burst(&mut self) {
        for _ in 0..=self.rng.below(5) {
            let block = self.rng.below(BLOCKS);
            let ask = match self.rng.below(12) {
                0 => Ask::Flush,
                1 => Ask::Discard,
                2 => Ask::Read,
                _ => Ask::Write,
            };
            self.ask(ask, block);
        }
    }

    fn look(&mut self, when: &str) {
        self.guest.look(&format!("seed {}, round {}, {when}", self.seed, self.round));
    }

    /// Lets the volume be served by whoever can, until everything that was asked has come to an end.
    pub(super) fn settle(&mut self, when: &str) {
        self.until(when, |this| this.client.step(&this.pair) && this.guest.waiting() == 0);
        if let Some((at, _)) = self.client.served_by() {
            self.pair.is_served(at);
        }
    }

    /// Lets time pass until `is_so`, which has to come in the end: what stands in the way is mended bit by bit.
    pub(super) fn until(&mut self, when: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let (mut looks, mut mends) = (0, 0);
        while !is_so(self) {
            self.look(when);
            looks += 1;
            if looks % PATIENCE == 0 {
                mends += 1;
                assert!(mends < MOST_MENDS, "seed {}, round {}, {when}: it does not come", self.seed, self.round);
                self.pair.mend(mends, &mut self.rng);
            }
        }
        self.look(when);
    }

    /// Reads everything.
    pub(super) fn read_all(&mut self, when: &str) {
        (0..BLOCKS).for_each(|block| self.ask(Ask::Read, block));
        self.settle(when);
    }

    /// All is well again: everything is there, and the volume comes in sync.
    fn end(&mut self) -> PairReport {
        self.read_all("before the end");
        self.pair.mend_all();
        self.ask(Ask::Write, 0);
        self.read_all("at the end");
        self.pair.prove_fenced();
        for _ in 0..90 {
            if self.pair.is_in_sync() {
                break;
            }
            self.pair.pass(Duration::from_secs(1));
        }
        assert!(self.pair.is_in_sync(), "seed {}: all is well, and the volume has no mirror", self.seed);
        self.read_all("in sync again");
        self.read_shared();
        let mut cover = std::mem::take(&mut self.pair.cover);
        for member in &self.pair.members {
            let (unknown, late) = member.node.coord_line.unknown();
            cover.add("pair: what came of a transaction is not known", unknown);
            cover.add("pair: a transaction came late", late);
        }
        let replayed = self.replayed;
        cover.add("pair: what was acknowledged was sent again", replayed);
        PairReport { cover, replayed, trace: self.pair.members[0].node.world.trace() }
    }
}
