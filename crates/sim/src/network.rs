// SPDX-License-Identifier: Apache-2.0
//! A network between processes: ways, on each of which something goes in one direction, and which are cut, mended, slow and quick again each for itself.
//!
//! A message is on its way by itself: it outlives the patience of who sent it, and may outlive the sender. What meets a cut is sent again, less and less often, and so comes a while
//! after the cut was mended: behind what was sent on newer connections meanwhile. On one connection the order stays what it was. Where the sender is dead by then it may never come:
//! with the power the kernel has gone that would have sent it again.

use crate::core::{Core, Sleep, Stream};
use crate::{CrashPoints, SimEnv};
use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;
use varve_env::{Env, LocalFuture};

/// How long after its end what has met a cut comes, at most.
const MOST_LATE: Duration = Duration::from_secs(3);

/// What may be shut, and those who wait before it.
#[derive(Default)]
pub(crate) struct Gate {
    is_shut: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

impl Gate {
    pub(crate) fn set(&self, is_shut: bool) {
        self.is_shut.set(is_shut);
        if !is_shut {
            self.waiting.take().into_iter().for_each(Waker::wake);
        }
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.is_shut.get()
    }

    pub(crate) async fn pass(&self) {
        poll_fn(|cx| {
            if !self.is_shut.get() {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// One direction between two hosts.
#[derive(Default)]
pub struct Way {
    cut: Gate,
    slower: Cell<Duration>,
}

impl Way {
    /// Lets nothing come any more, or everything again.
    pub fn cut(&self, is_cut: bool) {
        self.cut.set(is_cut);
    }

    /// Whether nothing comes.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.cut.is_shut()
    }

    /// Lets what is sent from now on take so much longer.
    pub fn slow(&self, by: Duration) {
        self.slower.set(by);
    }

    /// Whatever is wrong with it is over.
    pub fn mend(&self) {
        self.slow(Duration::ZERO);
        self.cut(false);
    }

    /// The way of a message of `sender`; it does not end where that never comes.
    pub(crate) async fn travel(&self, core: &Arc<Core>, sender: &CrashPoints, latency: Duration) {
        Sleep::new(core, latency + self.slower.get()).await;
        while self.cut.is_shut() {
            self.cut.pass().await;
            let (late, is_lost) =
                core.draw(Stream::Faults, |rng| (rng.below(MOST_LATE.as_millis() as u64), rng.chance(500)));
            if is_lost && sender.dead() {
                pending::<()>().await;
            }
            Sleep::new(core, Duration::from_millis(late)).await;
        }
    }
}

/// What has come on one direction of a connection.
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

/// One direction of a connection: what is sent comes in its order, or it and everything behind it does not.
pub(crate) struct Pipe {
    way: Rc<Way>,
    latency: Duration,
    core: Arc<Core>,
    /// Nobody's process: it has what is on its way.
    network: Rc<SimEnv>,
    sender: CrashPoints,
    sent: Cell<u64>,
    turns: Rc<Turns>,
}

impl Pipe {
    /// One on which `sender` sends.
    pub(crate) fn new(
        way: &Rc<Way>,
        latency: Duration,
        core: &Arc<Core>,
        network: &Rc<SimEnv>,
        sender: CrashPoints,
    ) -> Self {
        Self {
            way: Rc::clone(way),
            latency,
            core: Arc::clone(core),
            network: Rc::clone(network),
            sender,
            sent: Cell::new(0),
            turns: Rc::default(),
        }
    }

    /// Sends something; when it has come, `taken` happens. What comes behind it waits for the end of that.
    pub(crate) fn send(&self, taken: impl Future<Output = ()> + 'static) {
        let turn = self.sent.replace(self.sent.get() + 1);
        let (way, core, sender, latency) =
            (Rc::clone(&self.way), Arc::clone(&self.core), self.sender.clone(), self.latency);
        let turns = Rc::clone(&self.turns);
        self.network.spawn(Box::pin(async move {
            way.travel(&core, &sender, latency).await;
            turns.wait(turn).await;
            taken.await;
            turns.next();
        }));
    }
}

/// What comes once, for whoever waits for it.
pub(crate) struct Letter<T>(Rc<RefCell<(Option<T>, Option<Waker>)>>);

impl<T> Default for Letter<T> {
    fn default() -> Self {
        Self(Rc::new(RefCell::new((None, None))))
    }
}

impl<T> Clone for Letter<T> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<T: 'static> Letter<T> {
    pub(crate) fn give(&self, value: T) {
        let waker = {
            let mut inside = self.0.borrow_mut();
            inside.0 = Some(value);
            inside.1.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    /// What has come, if it has.
    pub(crate) fn take(&self) -> Option<T> {
        self.0.borrow_mut().0.take()
    }

    pub(crate) fn wait(self) -> LocalFuture<T> {
        Box::pin(poll_fn(move |cx| {
            let mut inside = self.0.borrow_mut();
            match inside.0.take() {
                Some(value) => Poll::Ready(value),
                None => {
                    inside.1 = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        }))
    }
}
