// SPDX-License-Identifier: Apache-2.0
//! An edge: the session of `varve-edge`, as it is, with the simulated network in the place of sockets.
//!
//! A [`Session`] decides what is sent, kept and sent again, and when somebody is taken for dead; here is only what carries it: connections, and a clock.
//!
//! An edge whose process has ended asks for nothing any more, whatever of it is still on its way. Whatever it is told by a node has come over a [`Way`](crate::Way), on which it may have been for long.

use super::guest::{Answer, BLOCK, Outcome};
use super::serve::{Port, Server, User};
use crate::core::Core;
use crate::network::Pipe;
use crate::{CrashPoints, SimEnv, SimWorld};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use varve_block::BlockError;
use varve_edge::session::{Action, Answer as Told, Budget, Event, Session, Standing, Terms, Wanted};
use varve_engine::Device;
use varve_env::Env;
use varve_types::{SessionId, VolumeId};
use varve_wire::attach::{Attach, Mode};
use varve_wire::greeting::{HEADER_BYTES, Header};
use varve_wire::transmission::{Ask, Reply, Request};

const LATENCY: Duration = Duration::from_micros(50);
/// How often it is looked whether anything is due, at least.
const LOOK: Duration = Duration::from_millis(20);

/// A connection to a node.
struct Line {
    number: u64,
    at: usize,
    asks: Pipe,
    answers: Pipe,
    /// Who is at the other end, once it came about and once the volume was given.
    server: RefCell<Option<Rc<Server>>>,
    user: RefCell<Option<Rc<User>>>,
    /// The node has heard that it was left.
    is_left: Cell<bool>,
}

/// See the module.
pub(super) struct Edge {
    env: Rc<SimEnv>,
    core: Arc<Core>,
    network: Rc<SimEnv>,
    ports: [Rc<Port>; 2],
    volume: VolumeId,
    session: RefCell<Session>,
    line: RefCell<Option<Rc<Line>>>,
    waiting: RefCell<BTreeMap<u64, Answer>>,
    failed: RefCell<Option<BlockError>>,
    replayed: Cell<u64>,
}

impl Edge {
    /// One that begins to ask for the volume.
    pub(super) fn start(
        world: &SimWorld,
        ports: [Rc<Port>; 2],
        volume: VolumeId,
        number: u8,
        mode: Mode,
        steal: bool,
    ) -> Rc<Self> {
        let (env, network) = (world.process("edge"), world.process("network"));
        let wanted = Wanted {
            volume: "v".to_owned(),
            token: String::new(),
            edge: format!("edge {number}"),
            session: SessionId::from_bytes([number; 16]),
            mode,
            steal,
        };
        let terms = Terms { attach_timeout: None, ..Terms::default() };
        // Little, so that it is reached.
        let budget = Budget::new(64 << 10);
        let session = Session::new(wanted, terms, vec!["0".to_owned(), "1".to_owned()], budget, env.now());
        let this = Rc::new(Self {
            env,
            core: Arc::clone(world.core()),
            network,
            ports,
            volume,
            session: RefCell::new(session),
            line: RefCell::new(None),
            waiting: RefCell::default(),
            failed: RefCell::new(None),
            replayed: Cell::new(0),
        });
        let ticking = Rc::clone(&this);
        this.env.spawn(Box::pin(async move { ticking.mind().await }));
        this
    }

    /// Asks for something.
    pub(super) fn ask(self: &Rc<Self>, ask: Ask, block: u64, data: Bytes, answer: Answer) {
        let (offset, length) = if ask == Ask::Flush { (0, 0) } else { (block * BLOCK, BLOCK) };
        let asked = self.session.borrow_mut().submit(self.env.now(), ask, 0, offset, length, data);
        match asked {
            Ok(id) => drop(self.waiting.borrow_mut().insert(id, answer)),
            Err(error) => drop(answer.replace(Some(Outcome::Failed(error)))),
        }
        self.act();
    }

    /// Whether it has an owner, as far as it knows.
    pub(super) fn is_served(&self) -> bool {
        matches!(self.session.borrow().standing(), Standing::Connected(..))
    }

    /// Who serves it, and which node that is.
    pub(super) fn served_by(&self) -> Option<(usize, Rc<Device>)> {
        let line = self.line.borrow().clone().filter(|_| self.is_served())?;
        let user = line.user.borrow().clone()?;
        Some((line.at, user.device()?))
    }

    /// Gives the volume up, once everything that was asked is done.
    pub(super) fn detach(self: &Rc<Self>) {
        self.session.borrow_mut().detach(self.env.now());
        self.act();
    }

    /// Whether it has given the volume up.
    pub(super) fn is_detached(&self) -> bool {
        matches!(self.session.borrow().standing(), Standing::Detached(_))
    }

    /// Its process ends.
    pub(super) fn end(&self, world: &SimWorld) {
        world.kill(&self.env);
    }

    /// Why it has failed for good, if it has.
    pub(super) fn failure(&self) -> Option<BlockError> {
        self.failed.borrow().clone()
    }

    /// How many changes that were acknowledged were sent again.
    pub(super) fn replayed(&self) -> u64 {
        self.replayed.get()
    }

    async fn mind(self: Rc<Self>) {
        loop {
            let now = self.env.now();
            let due = self.session.borrow().deadline();
            if due.is_some_and(|due| due <= now) {
                self.session.borrow_mut().tick(now);
                self.act();
            }
            let next = self.session.borrow().deadline().map_or(LOOK, |due| due.saturating_sub(now));
            self.env.sleep(next.clamp(Duration::from_micros(1), LOOK)).await;
        }
    }

    /// Does what the session says.
    fn act(self: &Rc<Self>) {
        loop {
            let Some(action) = self.session.borrow_mut().action() else { return };
            match action {
                Action::Connect { connection, address, greeting } => self.connect(connection, &address, greeting),
                Action::Send { request, payload } => self.send(request, payload),
                Action::HangUp => self.hang_up(),
                Action::Done { id, result } => {
                    let answer = self.waiting.borrow_mut().remove(&id);
                    let outcome = match result {
                        Ok(Told::Data(bytes)) => Outcome::Done(bytes),
                        Ok(_) => Outcome::Done(Bytes::new()),
                        Err(error) => Outcome::Failed(error),
                    };
                    if let Some(answer) = answer {
                        answer.replace(Some(outcome));
                    }
                }
                Action::Event(Event::Failed(error)) => drop(self.failed.replace(Some(error))),
                Action::Event(_) => {}
            }
        }
    }

    fn hang_up(&self) {
        let Some(line) = self.line.take() else { return };
        let left = Rc::clone(&line);
        line.asks.send(async move {
            left.is_left.set(true);
            left.user.take().into_iter().for_each(|user| user.end());
        });
    }

    fn connect(self: &Rc<Self>, number: u64, address: &str, greeting: Bytes) {
        self.hang_up();
        let at: usize = address.parse().expect("addresses are numbers of nodes");
        let port = Rc::clone(&self.ports[at]);
        let pipe = |way, sender| Pipe::new(way, LATENCY, &self.core, &self.network, sender);
        let line = Rc::new(Line {
            number,
            at,
            asks: pipe(&port.asks, self.env.points().clone()),
            answers: pipe(&port.answers, CrashPoints::default()),
            server: RefCell::new(None),
            user: RefCell::new(None),
            is_left: Cell::new(false),
        });
        self.line.replace(Some(Rc::clone(&line)));
        let this = Rc::clone(self);
        let there = Rc::clone(&line);
        line.asks.send(async move {
            if this.env.is_dead() {
                // It would get a volume that nobody is there to give up.
                return;
            }
            let Some(server) = port.server() else { return this.lost(&there, "the connection is refused") };
            there.server.replace(Some(Rc::clone(&server)));
            this.answer(&there, |session, now, number| session.connected(now, number));
            let (edge, line, attach) = (Rc::clone(&this), Rc::clone(&there), attach_of(&greeting));
            let env = Rc::clone(&server.env);
            env.spawn(Box::pin(async move {
                match server.attach(edge.volume, &attach).await {
                    Ok((_, user)) if line.is_left.get() => user.end(),
                    Ok((attached, user)) => {
                        line.user.replace(Some(user));
                        edge.answer(&line, move |session, now, number| session.attached(now, number, &attached));
                    }
                    Err(no) => edge.answer(&line, move |session, now, number| session.refused(now, number, no)),
                }
            }));
        });
    }

    fn send(self: &Rc<Self>, request: Request, payload: Bytes) {
        let Some(line) = self.line.borrow().clone() else { return };
        let is_of_guest = self.waiting.borrow().contains_key(&request.id);
        if request.ask.is_change() && !is_of_guest {
            self.replayed.set(self.replayed.get() + 1);
        }
        let (this, there) = (Rc::clone(self), Rc::clone(&line));
        line.asks.send(async move {
            let (server, user) = (there.server.borrow().clone(), there.user.borrow().clone());
            match (server, user) {
                (Some(server), Some(user)) if !server.env.is_dead() => {
                    let back = Rc::clone(&there);
                    server.request(&user, request, payload, move |reply, data| this.replied(&back, reply, data));
                }
                _ => this.lost(&there, "the connection is broken"),
            }
        });
    }

    fn replied(self: &Rc<Self>, line: &Rc<Line>, reply: Reply, data: Bytes) {
        self.answer(line, move |session, now, number| {
            session.heard(now, number);
            session.reply(now, number, &reply, data);
        });
    }

    fn lost(self: &Rc<Self>, line: &Rc<Line>, why: &'static str) {
        self.answer(line, move |session, now, number| session.lost(now, number, why));
    }

    /// Lets the session hear something, once it has come here.
    fn answer(self: &Rc<Self>, line: &Rc<Line>, hear: impl FnOnce(&mut Session, Duration, u64) + 'static) {
        let (this, number) = (Rc::clone(self), line.number);
        line.answers.send(async move {
            hear(&mut this.session.borrow_mut(), this.env.now(), number);
            this.act();
        });
    }
}

/// What an edge asks for, as the node reads it.
fn attach_of(greeting: &[u8]) -> Attach {
    let (head, body) = greeting.split_first_chunk::<HEADER_BYTES>().expect("a greeting has a header");
    Header::decode(head).expect("it is whole").verify(body).expect("so is what follows");
    Attach::decode(body).expect("an edge keeps to the protocol")
}
