// SPDX-License-Identifier: Apache-2.0
//! Drives a session with a real clock and real connections, on one thread.
//!
//! **The way of a request.** A front end submits it: the session says what to send, which is put in a row. When the front end first polls one of the requests of its
//! burst, everything in the row goes with one system call; no task is in between. What the socket does not take goes when it can be written to. Where nobody polls, the
//! volume's own task sends it.
//!
//! **The way back.** The volume's task receives all that is there, takes it apart, hands it to the session, and wakes those who wait; they run when it is done with the
//! whole burst.
//!
//! A volume has one task. It ends when the session is over. Nothing is awaited while the state is borrowed.

use crate::inbound::{Inbound, Said};
use crate::outbound::Outbound;
use crate::session::{Action, Answer, Event, Session, Standing};
use crate::stats::{Operation, Stats};
use crate::tls::explain;
use crate::transport::{Stream, Transport};
use crate::waiters::{Asked, Waiters};
use bytes::Bytes;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::time::Sleep;
use tracing::{debug, error, info, warn};
use varve_block::Result;
use varve_env::LocalFuture;
use varve_types::ErrorKind;
use varve_wire::WireError;
use varve_wire::attach::Refused;
use varve_wire::transmission::Ask;

/// Bursts that are received before other tasks have their turn.
const TURNS: usize = 16;

/// A connection that comes about.
struct Dial {
    connection: u64,
    future: LocalFuture<io::Result<Box<dyn Stream>>>,
}

/// A connection.
struct Link {
    connection: u64,
    stream: Box<dyn Stream>,
    inbound: Inbound,
    outbound: Outbound,
    /// The socket took no more.
    is_blocked: bool,
}

/// A volume: its session, and what it needs of the world.
pub(crate) struct Driven {
    name: String,
    pub(crate) session: Session,
    pub(crate) stats: Stats,
    transport: Rc<dyn Transport>,
    base: Instant,
    dial: Option<Dial>,
    link: Option<Link>,
    waiters: Waiters,
    timer: Option<Pin<Box<Sleep>>>,
    /// When it goes off.
    armed: Option<Duration>,
    /// The volume's task.
    task: Option<Waker>,
    /// Nobody wants it any more.
    is_abandoned: bool,
    /// Those who wait for the device to change its state.
    watchers: Vec<Waker>,
}

impl Driven {
    pub(crate) fn new(name: String, session: Session, transport: Rc<dyn Transport>, base: Instant) -> Self {
        Self {
            name,
            session,
            stats: Stats::default(),
            transport,
            base,
            dial: None,
            link: None,
            waiters: Waiters::default(),
            timer: None,
            armed: None,
            task: None,
            is_abandoned: false,
            watchers: Vec::new(),
        }
    }

    #[allow(clippy::disallowed_methods, reason = "this is where the session's time comes from")]
    pub(crate) fn now(&self) -> Duration {
        self.base.elapsed()
    }

    /// Asks for something; the id is what [`poll_answer`](Self::poll_answer) takes.
    pub(crate) fn submit(&mut self, ask: Ask, flags: u8, offset: u64, length: u64, data: Bytes) -> Result<u64> {
        let now = self.now();
        let submitted = self.session.submit(now, ask, flags, offset, length, data);
        if let Ok(id) = submitted {
            self.waiters.put(id, Asked { operation: Operation::of(ask), bytes: length, since: now });
        }
        self.take_actions();
        self.wake_task();
        submitted
    }

    /// What a request came to. Sends whatever is to be sent first, so that a burst of requests goes together.
    pub(crate) fn poll_answer(&mut self, id: u64, cx: &mut Context<'_>) -> Poll<Option<Result<Answer>>> {
        if let Some(task) = self.task.clone()
            && self.link.as_ref().is_some_and(|link| !link.outbound.is_empty() && !link.is_blocked)
        {
            self.send(&mut Context::from_waker(&task));
        }
        self.waiters.poll(id, cx)
    }

    pub(crate) fn leave(&mut self, id: u64) {
        self.waiters.leave(id);
    }

    pub(crate) fn detach(&mut self) {
        let now = self.now();
        self.session.detach(now);
        self.take_actions();
        self.wake_task();
    }

    /// Ends the device because nobody here wants it any more.
    pub(crate) fn abandon(&mut self, error: varve_block::BlockError) {
        self.is_abandoned = true;
        let now = self.now();
        self.session.fail(now, error);
        self.take_actions();
        self.wake_task();
    }

    fn wake_task(&self) {
        if let Some(task) = &self.task {
            task.wake_by_ref();
        }
    }

    /// Wakes the caller when the device has changed its state.
    pub(crate) fn watch(&mut self, cx: &Context<'_>) {
        self.watchers.retain(|waker| !waker.will_wake(cx.waker()));
        self.watchers.push(cx.waker().clone());
    }

    fn is_over(&self) -> bool {
        matches!(self.session.standing(), Standing::Failed(_) | Standing::Detached(_))
    }

    /// A turn of the volume's task. Ready when it is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.task.as_ref().is_none_or(|task| !task.will_wake(cx.waker())) {
            self.task = Some(cx.waker().clone());
        }
        self.tick();
        for _ in 0..TURNS {
            self.send(cx);
            if self.poll_dial(cx).is_pending() && self.poll_receive(cx).is_pending() {
                if self.is_over() {
                    return Poll::Ready(());
                }
                if self.poll_timer(cx).is_pending() && self.is_sent_as_far_as_may_be() {
                    return Poll::Pending;
                }
                self.tick();
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_sent_as_far_as_may_be(&self) -> bool {
        self.link.as_ref().is_none_or(|link| link.outbound.is_empty() || link.is_blocked)
    }

    fn tick(&mut self) {
        let now = self.now();
        if self.session.deadline().is_some_and(|deadline| now >= deadline) {
            self.session.tick(now);
            self.take_actions();
        }
    }

    /// Ready when the time has come for something.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.session.deadline() else { return Poll::Pending };
        if self.armed.is_none_or(|armed| deadline < armed) {
            let at = tokio::time::Instant::from_std(self.base + deadline);
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(at),
                None => self.timer = Some(Box::pin(tokio::time::sleep_until(at))),
            }
            self.armed = Some(deadline);
        }
        let Some(timer) = &mut self.timer else { return Poll::Pending };
        ready!(timer.as_mut().poll(cx));
        // The deadline may have moved on since: then it is armed anew.
        self.armed = None;
        Poll::Ready(())
    }

    fn poll_dial(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(dial) = &mut self.dial else { return Poll::Pending };
        let result = ready!(dial.future.as_mut().poll(cx));
        let connection = dial.connection;
        self.dial = None;
        let now = self.now();
        match result {
            Ok(stream) => {
                let (inbound, outbound) = (Inbound::default(), Outbound::default());
                self.link = Some(Link { connection, stream, inbound, outbound, is_blocked: false });
                self.session.connected(now, connection);
            }
            Err(error) => self.session.lost(now, connection, &explain(&error)),
        }
        self.take_actions();
        Poll::Ready(())
    }

    /// Sends what is to be sent.
    fn send(&mut self, cx: &mut Context<'_>) {
        let Some(link) = &mut self.link else { return };
        if link.outbound.is_empty() {
            return;
        }
        let mut sent = 0;
        let polled = link.outbound.poll_send(&mut *link.stream, cx, &mut sent);
        let (connection, was_blocked) = (link.connection, link.is_blocked);
        link.is_blocked = polled.is_pending();
        let now = self.now();
        if was_blocked && sent > 0 {
            self.session.heard(now, connection);
        }
        if let Poll::Ready(Err(error)) = polled {
            self.lose(connection, &explain(&error));
        }
    }

    /// Receives once, and acts on all of it. Ready when something came.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(link) = &mut self.link else { return Poll::Pending };
        let connection = link.connection;
        match ready!(link.inbound.poll_receive(&mut *link.stream, cx)) {
            Ok(0) if self.session.is_attached() => self.lose(connection, "it hung up"),
            Ok(0) => self.lose(connection, "it hung up instead of answering: is it a node, and does it want TLS?"),
            Ok(_) => {
                let now = self.now();
                self.session.heard(now, connection);
                self.hear(now, connection);
                self.take_actions();
            }
            Err(error) => self.lose(connection, &explain(&error)),
        }
        Poll::Ready(())
    }

    fn lose(&mut self, connection: u64, why: &str) {
        self.link = None;
        let now = self.now();
        self.session.lost(now, connection, why);
        self.take_actions();
    }

    /// Acts on what was received.
    fn hear(&mut self, now: Duration, connection: u64) {
        // An action of the session may have ended the connection: the rest of what it said is of no interest then.
        while let Some(link) = self.link.as_mut().filter(|link| link.connection == connection) {
            let session = &self.session;
            match link.inbound.next(|reply| session.expects(connection, reply)) {
                Ok(None) => return,
                Ok(Some(Said::Attached(attached))) => self.session.attached(now, connection, &attached),
                Ok(Some(Said::Refused(refused))) => self.session.refused(now, connection, refused),
                Ok(Some(Said::Reply(reply, payload))) => self.session.reply(now, connection, &reply, payload),
                Err(error @ (WireError::Version { .. } | WireError::NotVarve { .. }))
                    if !self.session.is_attached() =>
                {
                    self.session.refused(now, connection, Refused::new(ErrorKind::Invalid, error.to_string()));
                }
                Err(error) => return self.lose(connection, &error.to_string()),
            }
            self.take_actions();
        }
    }

    fn take_actions(&mut self) {
        while let Some(action) = self.session.action() {
            match action {
                Action::Send { request, payload } => {
                    if let Some(link) = &mut self.link {
                        link.outbound.push(&request, payload);
                    }
                }
                Action::Done { id, result } => {
                    let is_done = result.is_ok();
                    if let Some(asked) = self.waiters.answer(id, result) {
                        let took = self.now().saturating_sub(asked.since);
                        self.stats.answered(asked.operation, asked.bytes, took, is_done);
                    }
                }
                Action::Connect { connection, address, greeting } => {
                    self.link = None;
                    let connect = self.transport.connect(&address);
                    let future = Box::pin(async move {
                        let mut stream = connect.await?;
                        stream.write_all(&greeting).await?;
                        stream.flush().await?;
                        Ok(stream)
                    });
                    self.dial = Some(Dial { connection, future });
                }
                Action::HangUp => (self.link, self.dial) = (None, None),
                Action::Event(event) => self.happened(&event),
            }
        }
    }

    fn happened(&mut self, event: &Event) {
        let volume = &self.name;
        match event {
            Event::Attached => info!(%volume, size = self.session.size(), "attached"),
            Event::Lost(why) => warn!(%volume, why, "the owner is lost: requests wait"),
            Event::Refused(why) => debug!(%volume, why, "an attempt to find the owner has failed"),
            Event::Back(after) => {
                info!(%volume, after_ms = after.as_millis() as u64, "the owner is back");
            }
            Event::Resized(size) => info!(%volume, size, "it has another size"),
            Event::Failed(error) if self.is_abandoned => debug!(%volume, %error, "the device is given up"),
            Event::Failed(error) => error!(%volume, %error, "the device has failed for good"),
            Event::Detached => info!(%volume, "detached"),
        }
        for waker in self.watchers.drain(..) {
            waker.wake();
        }
    }
}

/// The volume's task.
pub(crate) async fn run(driven: Rc<std::cell::RefCell<Driven>>) {
    poll_fn(|cx| driven.borrow_mut().poll(cx)).await;
}
