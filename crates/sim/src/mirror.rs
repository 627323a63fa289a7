// SPDX-License-Identifier: Apache-2.0
//! Nodes that keep copies of each other's tails, at the ends of a network that can be cut.
//!
//! A [`SimFar`] is a node as the others see it: its copies are those of its process of now. A [`SimPeer`] is one connection to it: requests come there in the order
//! in which they were made, each half the latency later, and are answered half a latency later still, on another [`Way`]. A connection to a process that has ended answers
//! errors; over a network that is cut nothing comes until it is mended, and by then nobody may wait for it any more.

use crate::core::Core;
use crate::network::{Gate, Letter, Pipe, Way};
use crate::{CrashMode, CrashPoints, SimEnv, SimWorld};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use varve_engine::{
    BeginCopy, Begun, Copies, Delivery, DiskCopies, EngineError, Fetched, MirrorNodes, MirrorPeer, Release, Result,
};
use varve_env::{Env, LocalFuture};
use varve_types::mutant::{Mutant, planted};
use varve_types::{Epoch, ErrorKind, IncarnationId, NodeId, Sequence, TimelineId, VolumeId};

/// A node as others see it.
pub struct SimFar {
    node: NodeId,
    /// The copies of its process, and the number of that; none while no process runs.
    copies: RefCell<Option<Rc<Copies>>>,
    process: Cell<u64>,
    /// What its copies on disk live and die with, as long as power and journals hold.
    on_disk: Rc<Cell<Option<IncarnationId>>>,
    asks: Rc<Way>,
    answers: Rc<Way>,
    stall: Gate,
}

impl SimFar {
    /// A node on which nothing runs yet, and the ways to it and from it.
    #[must_use]
    pub fn new(node: NodeId, asks: Rc<Way>, answers: Rc<Way>) -> Rc<Self> {
        let (copies, process) = (RefCell::new(None), Cell::new(0));
        Rc::new(Self { node, copies, process, on_disk: Rc::default(), asks, answers, stall: Gate::default() })
    }

    /// Which node it is.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The way on which it is asked.
    #[must_use]
    pub fn asks(&self) -> &Rc<Way> {
        &self.asks
    }

    /// The way on which it answers.
    #[must_use]
    pub fn answers(&self) -> &Rc<Way> {
        &self.answers
    }

    /// Whether it would answer whoever asks it now.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.copies.borrow().is_some() && !self.stall.is_shut() && !self.asks.is_cut() && !self.answers.is_cut()
    }

    /// A process of it begins, with a quota for copies: gives these.
    pub fn start(&self, env: &dyn Env, quota: u64) -> Rc<Copies> {
        let random = || {
            let mut bytes = [0; 16];
            env.random(&mut bytes);
            IncarnationId::from_random(bytes)
        };
        let copies = Rc::new(Copies::new(random(), quota));
        let (known, on_disk) = (self.on_disk.get(), Rc::clone(&self.on_disk));
        let incarnation = known.unwrap_or_else(random);
        on_disk.set(Some(incarnation));
        let spoil = Box::new(move || on_disk.set(None));
        copies.allow_disk(DiskCopies { incarnation, is_inherited: known.is_some(), spoil });
        self.copies.replace(Some(Rc::clone(&copies)));
        self.process.set(self.process.get() + 1);
        copies
    }

    /// The copies of its process of now.
    #[must_use]
    pub fn copies(&self) -> Option<Rc<Copies>> {
        self.copies.borrow().clone()
    }

    /// Its process has ended, and what the kernel had is there or not.
    pub fn stop(&self, mode: CrashMode) {
        self.copies.replace(None);
        self.stall.set(false);
        if mode != CrashMode::Kill && !planted(Mutant::CopiesOutlivePower) {
            self.on_disk.set(None);
        }
    }

    /// Its process stalls: what it is asked waits until it goes on.
    pub fn stall(&self, is_stalled: bool) {
        self.stall.set(is_stalled);
    }

    /// Cuts the network around it, or mends it.
    pub fn cut(&self, is_cut: bool) {
        self.asks.cut(is_cut);
        self.answers.cut(is_cut);
    }
}

/// A connection of a process to a node.
pub struct SimPeer {
    far: Rc<SimFar>,
    /// The process that it was made to.
    process: u64,
    env: Rc<SimEnv>,
    asks: Pipe,
    answers: Rc<Pipe>,
}

impl SimPeer {
    /// Asks for something. What `ask` gives is waited for, by those behind it too.
    fn ask<T: 'static>(&self, ask: impl AsyncFnOnce(Rc<Copies>) -> Result<T> + 'static) -> LocalFuture<Result<T>> {
        let (far, process, answers) = (Rc::clone(&self.far), self.process, Rc::clone(&self.answers));
        let letter = Letter::default();
        let told = letter.clone();
        self.asks.send(async move {
            far.stall.pass().await;
            let copies = far.copies.borrow().clone().filter(|_| far.process.get() == process);
            let answer = match copies {
                Some(copies) => ask(copies).await,
                None => Err(EngineError::new(ErrorKind::Unavailable, "the connection is refused")),
            };
            answers.send(async move { told.give(answer) });
        });
        letter.wait()
    }
}

impl MirrorPeer for SimPeer {
    fn node(&self) -> NodeId {
        self.far.node
    }
    fn is_broken(&self) -> bool {
        // Over a network that is cut nobody hears of an end.
        !self.far.answers.is_cut() && (self.far.process.get() != self.process || self.far.copies.borrow().is_none())
    }
    fn begin(&self, begin: BeginCopy) -> LocalFuture<Result<Begun>> {
        self.ask(async move |copies| copies.begin(begin))
    }
    fn deliver(&self, delivery: Delivery) -> LocalFuture<Result<u64>> {
        self.ask(async move |copies| copies.deliver(delivery).await)
    }
    fn sync(&self, timeline: TimelineId, epoch: Epoch, through: Sequence) -> LocalFuture<Result<()>> {
        // Those behind it do not wait: it is only begun in its turn.
        let (env, answers, letter) = (Rc::clone(&self.env), Rc::clone(&self.answers), Letter::default());
        let told = letter.clone();
        drop(self.ask(async move |copies| {
            env.spawn(Box::pin(async move {
                let done = copies.sync(timeline, epoch, through).await;
                answers.send(async move { told.give(done) });
            }));
            Ok(())
        }));
        letter.wait()
    }
    fn release(&self, release: Release) {
        drop(self.ask(async move |copies| {
            copies.release(release);
            Ok(())
        }));
    }
    fn fetch(&self, timeline: TimelineId, epoch: Epoch, named: IncarnationId) -> LocalFuture<Result<Fetched>> {
        self.ask(async move |copies| copies.fetch(timeline, epoch, named).await)
    }
    fn lease(&self, timeline: TimelineId, epoch: Epoch) -> LocalFuture<Result<()>> {
        // The clock of a simulated world is that of all its nodes.
        let env = Rc::clone(&self.env);
        self.ask(async move |copies| copies.lease(timeline, epoch, env.now()))
    }
}

/// The other nodes, as a process sees them.
pub struct SimMirrors {
    core: Arc<Core>,
    env: Rc<SimEnv>,
    network: Rc<SimEnv>,
    others: Vec<Rc<SimFar>>,
    latency: Duration,
}

impl SimMirrors {
    /// Those of a process.
    #[must_use]
    pub fn new(world: &SimWorld, env: &Rc<SimEnv>, others: Vec<Rc<SimFar>>, latency: Duration) -> Rc<Self> {
        // The world itself would keep itself alive: a task of it has what is here.
        let (core, env, network) = (Arc::clone(world.core()), Rc::clone(env), world.process("network"));
        Rc::new(Self { core, env, network, others, latency })
    }

    fn connect(&self, far: &Rc<SimFar>) -> Rc<dyn MirrorPeer> {
        let pipe = |way, sender| Pipe::new(way, self.latency / 2, &self.core, &self.network, sender);
        Rc::new(SimPeer {
            far: Rc::clone(far),
            process: far.process.get(),
            env: Rc::clone(&self.env),
            asks: pipe(&far.asks, self.env.points().clone()),
            // Whoever answers has ended by then or not: its kernel sends again what it has said.
            answers: Rc::new(pipe(&far.answers, CrashPoints::default())),
        })
    }
}

impl MirrorNodes for SimMirrors {
    fn choose(&self, _volume: VolumeId) -> Option<Rc<dyn MirrorPeer>> {
        self.others.iter().find(|far| far.copies.borrow().is_some()).map(|far| self.connect(far))
    }
    fn is_full(&self, _node: NodeId) {}
    fn find(&self, node: NodeId) -> Option<Rc<dyn MirrorPeer>> {
        self.others.iter().find(|far| far.node == node && far.copies.borrow().is_some()).map(|far| self.connect(far))
    }
}
