// SPDX-License-Identifier: Apache-2.0
//! A node as its clients see it: whom it gives the volume, and what it does of what they ask. What `server` does with sockets, as far as it decides who is served.
//!
//! A node that hears in an attach that another one owns its volume lets go of it; what coordination does not tell changes nothing.
//!
//! One attach is looked at after the other; what older connections of the same client have begun has ended before a newer one is served. A volume of another node is taken over
//! if this one may have a copy, and the owner does not seem to be there, or the client insists: to be wrong in that costs a move and nothing else. Whether the copy counts is for the engine to know.

use crate::network::Gate;
use crate::node::{finish, read};
use crate::{SimEnv, SimFar, Way};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use varve_coord::{Coord, Records, VolumeRecord};
use varve_engine::{BlockDevice, Device, EngineError, SessionRequest, Shard, Volume};
use varve_env::Env;
use varve_types::{ClusterId, Epoch, ErrorKind, NodeId, SessionId, VolumeId};
use varve_wire::attach::{Attach, Attached, Mode, Refused};
use varve_wire::greeting::NEWEST;
use varve_wire::transmission::{Ask, FLAG_FUA, Reply, Request, Told, payload_crc};

/// An edge that asks again within this time has not got what it was sent to.
const INSISTS_WITHIN: Duration = Duration::from_secs(10);
/// Requests that a client may have under way.
const WINDOW: u32 = 32;

/// Where clients find a node, whichever process of it runs.
#[derive(Default)]
pub(super) struct Port {
    /// The way of clients to it.
    pub(super) asks: Rc<Way>,
    /// The way back.
    pub(super) answers: Rc<Way>,
    server: RefCell<Option<Rc<Server>>>,
}

impl Port {
    pub(super) fn serve(&self, server: Rc<Server>) {
        self.server.replace(Some(server));
    }

    /// Whatever is wrong with its ways is over.
    pub(super) fn mend(&self) {
        self.asks.mend();
        self.answers.mend();
    }

    pub(super) fn close(&self) {
        self.server.replace(None);
    }

    pub(super) fn server(&self) -> Option<Rc<Server>> {
        self.server.borrow().clone()
    }
}

/// A connection of a client that has the volume.
pub(super) struct User {
    session: SessionId,
    generation: u64,
    /// Until it ends: who is attached stands in the way of others.
    device: RefCell<Option<Rc<Device>>>,
    is_over: Cell<bool>,
    under_way: Cell<u32>,
}

impl User {
    /// The client is not there any more, or another one has its place.
    pub(super) fn end(&self) {
        self.is_over.set(true);
        drop(self.device.take());
    }

    /// What it uses, until it ends.
    pub(super) fn device(&self) -> Option<Rc<Device>> {
        self.device.borrow().clone()
    }
}

/// See the module.
pub(super) struct Server {
    id: NodeId,
    pub(super) env: Rc<SimEnv>,
    shard: Rc<Shard>,
    coord: Arc<dyn Coord>,
    others: Vec<Rc<SimFar>>,
    users: RefCell<Vec<Rc<User>>>,
    /// Somebody is being attached.
    attaching: Gate,
    /// Rings when a request has ended.
    ended: Gate,
    /// Who was sent to the owner last, and when.
    asked: Cell<Option<(SessionId, Duration)>>,
}

/// Ends a turn.
struct Turn<'a>(&'a Gate);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

fn refused(error: &EngineError) -> Refused {
    Refused::new(error.kind(), error.to_string())
}

/// That the volume can not be had from here now is no word about the session; that it is damaged is.
fn not_now(error: &EngineError) -> Refused {
    let kind = if error.kind() == ErrorKind::Corrupt { ErrorKind::Corrupt } else { ErrorKind::Unavailable };
    Refused::new(kind, error.to_string())
}

/// The address of a node, which is its number.
fn address(node: NodeId) -> String {
    (node.to_bytes()[0] - 1).to_string()
}

impl Server {
    pub(super) fn new(
        id: NodeId,
        env: &Rc<SimEnv>,
        shard: Rc<Shard>,
        coord: Arc<dyn Coord>,
        others: Vec<Rc<SimFar>>,
    ) -> Rc<Self> {
        Rc::new(Self {
            id,
            env: Rc::clone(env),
            shard,
            coord,
            others,
            users: RefCell::default(),
            attaching: Gate::default(),
            ended: Gate::default(),
            asked: Cell::new(None),
        })
    }

    /// Gives an edge the volume.
    pub(super) async fn attach(&self, id: VolumeId, attach: &Attach) -> Result<(Attached, Rc<User>), Refused> {
        let last = attach.promises.last().map(|promise| promise.epoch);
        let volume = self.find(id, attach.session, last).await?;
        let _turn = self.turn().await;
        let is_newer = |user: &Rc<User>| user.session == attach.session && user.generation >= attach.generation;
        if self.users.borrow().iter().any(is_newer) {
            return Err(Refused::new(ErrorKind::Unavailable, "a newer connection of this session has the volume"));
        }
        let steals = attach.steal && attach.timeline.is_none();
        self.end(|user| user.session == attach.session || steals).await;
        let request = SessionRequest {
            session: attach.session,
            edge: attach.edge.clone(),
            exclusive: attach.mode == Mode::Exclusive,
            steal: attach.steal,
            timeline: attach.timeline,
            promises: attach.promises.iter().map(|promise| (promise.epoch, promise.safe)).collect(),
        };
        let start = volume.begin_session(request).await.map_err(|error| refused(&error))?;
        let at = start.device.position();
        let attached = Attached {
            version: NEWEST,
            cluster: ClusterId::from_bytes([1; 16]),
            volume: id,
            timeline: start.timeline,
            epoch: start.epoch,
            size: start.device.size(),
            read_only: start.device.read_only(),
            window: WINDOW,
            sequence: at.sequence,
            safe: at.safe,
            cuts: start.cuts,
        };
        Ok((attached, self.user(attach.session, attach.generation, start.device)))
    }

    /// Gives a client without a session the volume; it has been served in `last`, if it was.
    pub(super) async fn attach_plain(
        &self,
        id: VolumeId,
        client: SessionId,
        last: Option<Epoch>,
    ) -> Result<Rc<User>, Refused> {
        let volume = self.find(id, client, last).await?;
        let _turn = self.turn().await;
        self.end(|_| true).await;
        let (device, _) = volume.device("plain".to_owned()).await.map_err(|error| refused(&error))?;
        Ok(self.user(client, 0, device))
    }

    fn user(&self, session: SessionId, generation: u64, device: Device) -> Rc<User> {
        let (is_over, under_way) = (Cell::new(false), Cell::new(0));
        let user =
            Rc::new(User { session, generation, device: RefCell::new(Some(Rc::new(device))), is_over, under_way });
        self.users.borrow_mut().push(Rc::clone(&user));
        user
    }

    async fn turn(&self) -> Turn<'_> {
        while self.attaching.is_shut() {
            self.attaching.pass().await;
        }
        self.attaching.set(true);
        Turn(&self.attaching)
    }

    /// Ends connections, and waits for what they have begun: nothing of theirs comes behind what is served next.
    async fn end(&self, which: impl Fn(&User) -> bool) {
        let ends: Vec<_> = self.users.borrow().iter().filter(|user| which(user)).cloned().collect();
        for user in ends {
            user.end();
            while user.under_way.get() > 0 {
                self.ended.set(true);
                self.ended.pass().await;
            }
        }
        self.users.borrow_mut().retain(|user| !user.is_over.get() || user.under_way.get() > 0);
    }

    /// The volume, if this node has it, or may have it. `last` is the epoch in which the client was served last.
    async fn find(&self, id: VolumeId, client: SessionId, last: Option<Epoch>) -> Result<Rc<Volume>, Refused> {
        let record = Records::new(&*self.coord).load_volume(id).await;
        let open = self.shard.volumes().into_iter().find(|open| open.id() == id && open.stopped().is_none());
        if let Some(open) = open {
            // What coordination does not tell changes nothing.
            if record.as_ref().is_ok_and(|(record, _)| open.record().epoch < record.epoch) {
                return Err(self.let_go(&open).await);
            }
            return Ok(open);
        }
        self.shard.forget(id);
        let unknown = |error: varve_coord::CoordError| Refused::new(ErrorKind::Unavailable, error.to_string());
        let record = record.map_err(unknown)?.0;
        // Now and then without a look at whose it is: that may have changed since, and it is the engine that must not open what is another's.
        let mut chance = [0];
        self.env.random(&mut chance);
        if record.owner == Some(self.id) || chance[0] < 32 {
            match self.shard.open_volume(id).await {
                Err(error) if error.kind() == ErrorKind::Fenced => {}
                done => return done.map_err(|error| not_now(&error)),
            }
        }
        let may_have_copy = record.counting_mirror().is_some_and(|mirror| mirror.node == self.id);
        let was_served = last == Some(record.epoch);
        if !may_have_copy || !self.is_owner_gone(&record, was_served, client) {
            return Err(self.sent_on(&record, was_served));
        }
        self.shard.take_over_as_mirror(id).await.map_err(|error| not_now(&error))
    }

    /// Lets go of a volume that another node runs: what it asks to be accepted is refused, by which the engine stops it.
    async fn let_go(&self, open: &Rc<Volume>) -> Refused {
        let refused = open.set(open.record().settings).await.err();
        self.end(|_| true).await;
        Refused::new(ErrorKind::Unavailable, format!("another node runs the volume: {refused:?}"))
    }

    fn is_owner_gone(&self, record: &VolumeRecord, was_served: bool, client: SessionId) -> bool {
        let owner = self.others.iter().find(|far| Some(far.node()) == record.owner);
        let is_there = owner.is_some_and(|far| far.is_there());
        let now = self.env.now();
        let before = self.asked.replace(Some((client, now)));
        let insists = before.is_some_and(|(who, since)| who == client && now - since < INSISTS_WITHIN);
        !is_there || (was_served && insists)
    }

    fn sent_on(&self, record: &VolumeRecord, was_served: bool) -> Refused {
        let owner = record.owner.filter(|_| !was_served);
        let is_alive = |node: &NodeId| self.others.iter().any(|far| far.node() == *node && far.copies().is_some());
        let message = "another node runs the volume";
        Refused { elsewhere: owner.filter(is_alive).map(address), ..Refused::new(ErrorKind::Unavailable, message) }
    }

    /// An edge gives the volume up: nothing is left of its session.
    async fn detach(&self, user: &User, device: &Device) -> Result<Bytes, EngineError> {
        device.volume().end_session(user.session).await.map(|()| Bytes::new())
    }

    /// Does what a client asks. There is no answer where that has gone meanwhile.
    pub(super) fn request(
        self: &Rc<Self>,
        user: &Rc<User>,
        request: Request,
        payload: Bytes,
        answer: impl FnOnce(Reply, Bytes) + 'static,
    ) {
        let Some(device) = user.device() else { return };
        user.under_way.set(user.under_way.get() + 1);
        let (this, user) = (Rc::clone(self), Rc::clone(user));
        self.env.spawn(Box::pin(async move {
            let done = match request.ask {
                Ask::Detach => this.detach(&user, &device).await,
                _ => perform(&device, request, payload).await,
            };
            user.under_way.set(user.under_way.get() - 1);
            this.ended.set(false);
            if user.is_over.get() {
                return;
            }
            let at = device.position();
            let (told, data) = match done {
                Ok(data) => (Told::Done, data),
                Err(error) => (Told::Failed(error.kind()), Bytes::from(error.to_string())),
            };
            let (length, payload_crc) = (data.len() as u32, payload_crc(&data));
            let (sequence, safe) = (at.sequence, at.safe);
            answer(Reply { told, id: request.id, sequence, safe, length, payload_crc }, data);
        }));
    }
}

/// What a request comes to.
async fn perform(device: &Rc<Device>, request: Request, payload: Bytes) -> Result<Bytes, EngineError> {
    let Request { ask, offset, length, .. } = request;
    let fua = request.flags & FLAG_FUA != 0;
    let done = match ask {
        Ask::Read => return read(device, offset, length as u32).await,
        Ask::Write => finish(device, device.write(offset, payload, fua)).await,
        Ask::Discard | Ask::WriteZeroes => finish(device, device.discard(offset, length, fua)).await,
        Ask::Flush => device.flush().wait().await,
        Ask::Status | Ask::Prefetch | Ask::Ping | Ask::Detach => Ok(()),
    };
    done.map(|()| Bytes::new())
}
