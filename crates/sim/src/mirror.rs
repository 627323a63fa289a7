// SPDX-License-Identifier: Apache-2.0
//! Nodes that keep copies of each other's tails, at the ends of a network that can be cut.
//!
//! A [`SimFar`] is a node as the others see it: its copies are those of its process of now. A [`SimPeer`] is one connection to it: requests come there in the order
//! in which they were made, each half the latency later, and are answered half a latency later still. A connection to a process that has ended answers
//! errors; over a network that is cut nothing comes and nothing is answered.

use crate::core::{Core, Sleep};
use crate::{CrashMode, CrashPoints, SimEnv, SimWorld};
use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
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
    is_cut: Cell<bool>,
    is_stalled: Cell<bool>,
}

impl SimFar {
    /// A node on which nothing runs yet.
    #[must_use]
    pub fn new(node: NodeId) -> Rc<Self> {
        Rc::new(Self {
            node,
            copies: RefCell::new(None),
            process: Cell::new(0),
            on_disk: Rc::default(),
            is_cut: Cell::new(false),
            is_stalled: Cell::new(false),
        })
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
        self.is_stalled.set(false);
        if mode != CrashMode::Kill && !planted(Mutant::CopiesOutlivePower) {
            self.on_disk.set(None);
        }
    }

    /// Its process stalls: what it is asked waits until it goes on.
    pub fn stall(&self, is_stalled: bool) {
        self.is_stalled.set(is_stalled);
    }

    /// Cuts the network around it, or mends it.
    pub fn cut(&self, is_cut: bool) {
        self.is_cut.set(is_cut);
    }
}

/// Whose turn it is on a connection.
#[derive(Default)]
struct Turns {
    now: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl Turns {
    async fn wait(&self, turn: u64) {
        poll_fn(|cx| {
            if self.now.get() == turn {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn next(&self) {
        self.now.set(self.now.get() + 1);
        self.waiting.take().into_iter().for_each(Waker::wake);
    }
}

/// A connection of a process to a node.
pub struct SimPeer {
    far: Rc<SimFar>,
    /// The process that it was made to.
    process: u64,
    core: Arc<Core>,
    points: CrashPoints,
    env: Rc<SimEnv>,
    latency: Duration,
    asked: Cell<u64>,
    turns: Rc<Turns>,
}

impl SimPeer {
    /// Asks for something. What `ask` gives is waited for, by those behind it too.
    fn ask<T: 'static>(&self, ask: impl AsyncFnOnce(Rc<Copies>) -> Result<T> + 'static) -> LocalFuture<Result<T>> {
        let turn = self.asked.replace(self.asked.get() + 1);
        let (far, process, turns) = (Rc::clone(&self.far), self.process, Rc::clone(&self.turns));
        let (core, points, half) = (Arc::clone(&self.core), self.points.clone(), self.latency / 2);
        Box::pin(async move {
            let travel = async || {
                Sleep::new(&core, half).await;
                if far.is_cut.get() || points.dead() {
                    pending::<()>().await;
                }
            };
            travel().await;
            turns.wait(turn).await;
            while far.is_stalled.get() {
                Sleep::new(&core, Duration::from_millis(1)).await;
            }
            let copies = far.copies.borrow().clone().filter(|_| far.process.get() == process);
            let answer = match copies {
                Some(copies) => ask(copies).await,
                None => Err(EngineError::new(ErrorKind::Unavailable, "the connection is refused")),
            };
            turns.next();
            travel().await;
            answer
        })
    }
}

impl MirrorPeer for SimPeer {
    fn node(&self) -> NodeId {
        self.far.node
    }
    fn is_broken(&self) -> bool {
        // Over a network that is cut nobody hears of an end.
        !self.far.is_cut.get() && (self.far.process.get() != self.process || self.far.copies.borrow().is_none())
    }
    fn begin(&self, begin: BeginCopy) -> LocalFuture<Result<Begun>> {
        self.ask(async move |copies| copies.begin(begin))
    }
    fn deliver(&self, delivery: Delivery) -> LocalFuture<Result<u64>> {
        self.ask(async move |copies| copies.deliver(delivery).await)
    }
    fn sync(&self, timeline: TimelineId, epoch: Epoch, through: Sequence) -> LocalFuture<Result<()>> {
        // Those behind it do not wait.
        let begun = self.ask(async move |copies| Ok(async move { copies.sync(timeline, epoch, through).await }));
        Box::pin(async move { begun.await?.await })
    }
    fn release(&self, release: Release) {
        let told = self.ask(async move |copies| {
            copies.release(release);
            Ok(())
        });
        self.env.spawn(Box::pin(async move { drop(told.await) }));
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
    world: SimWorld,
    env: Rc<SimEnv>,
    others: Vec<Rc<SimFar>>,
    latency: Duration,
}

impl SimMirrors {
    /// Those of a process.
    #[must_use]
    pub fn new(world: &SimWorld, env: &Rc<SimEnv>, others: Vec<Rc<SimFar>>, latency: Duration) -> Rc<Self> {
        Rc::new(Self { world: world.clone(), env: Rc::clone(env), others, latency })
    }

    fn connect(&self, far: &Rc<SimFar>) -> Rc<dyn MirrorPeer> {
        Rc::new(SimPeer {
            far: Rc::clone(far),
            process: far.process.get(),
            core: Arc::clone(self.world.core()),
            points: self.env.points().clone(),
            env: Rc::clone(&self.env),
            latency: self.latency,
            asked: Cell::new(0),
            turns: Rc::default(),
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
