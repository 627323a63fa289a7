// SPDX-License-Identifier: Apache-2.0
//! The object store as one process sees it.
//!
//! Every request passes the crash points of its process before it is sent, and where it changes something also while it is on its way and
//! once it was done. A dead process's requests never complete.
//!
//! It keeps no state of its own: dropping a request forgets only the answer, and what was sent is the server's. Names are checked here
//! against the rules of [`ObjectStore`], so that code which makes a name that a real store would refuse fails in the simulator too.

use super::fault::{StoreFault, StoreOp};
use super::server::Shared;
use crate::core::Sleep;
use crate::points::IoPoint;
use crate::{CrashPoints, SimEnv};
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use varve_env::{ObjectInfo, ObjectStore, Payload, PutOutcome, SendFuture, StoreError, StoreErrorKind};

/// A store, opened by one process.
pub struct SimStore {
    shared: Arc<Shared>,
    points: CrashPoints,
    process: u32,
}

/// A request that has been let through, or that fails only on its way back.
struct Request {
    lost_answer: bool,
    crossed: bool,
    /// Whether a bit of what a get gives is another one.
    wrong: bool,
    half: Duration,
}

impl SimStore {
    pub(super) fn new(shared: Arc<Shared>, process: &SimEnv) -> Self {
        Self { shared, points: process.points().clone(), process: process.number() }
    }

    async fn sleep(&self, duration: Duration) {
        Sleep::new(&self.shared.core, duration).await;
        if self.points.dead() {
            std::future::pending::<()>().await;
        }
    }

    fn error(&self, op: StoreOp, name: &str, kind: StoreErrorKind, message: &str) -> StoreError {
        StoreError { kind, operation: op.as_str(), name: name.to_owned(), message: message.to_owned() }
    }

    fn unavailable(&self, op: StoreOp, name: &str) -> StoreError {
        self.error(op, name, StoreErrorKind::Unavailable, "no answer")
    }

    fn check(&self, op: StoreOp, name: &str) -> Result<(), StoreError> {
        let fits = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'.' | b'/');
        let whole = op == StoreOp::List || !name.split('/').any(str::is_empty);
        if name.bytes().all(fits) && whole {
            return Ok(());
        }
        Err(self.error(op, name, StoreErrorKind::Invalid, "this is no name of an object"))
    }

    async fn refuse<T>(&self, op: StoreOp, name: &str, takes: Duration, kind: StoreErrorKind) -> Result<T, StoreError> {
        self.shared.record_failure(self.process, op, name, kind);
        self.sleep(takes).await;
        Err(self.error(op, name, kind, "refused, as it was told to"))
    }

    /// The way of a request, of any kind but a put, to the server.
    async fn go(&self, op: StoreOp, point: IoPoint, name: &str) -> Result<Request, StoreError> {
        self.check(op, name)?;
        self.points.survive(point, name).await;
        let (fault, takes) = self.shared.meet(op, name);
        if let Some(StoreFault::Error(kind)) = fault {
            return self.refuse(op, name, takes, kind).await;
        }
        self.sleep(takes / 2).await;
        let (crossed, wrong) = (fault == Some(StoreFault::Crossed), fault == Some(StoreFault::Wrong));
        Ok(Request { lost_answer: fault.is_some() && !crossed && !wrong, crossed, wrong, half: takes - takes / 2 })
    }

    /// The way of its answer back.
    async fn back<T>(&self, op: StoreOp, name: &str, request: Request, answer: T) -> Result<T, StoreError> {
        self.sleep(request.half).await;
        if request.lost_answer { Err(self.unavailable(op, name)) } else { Ok(answer) }
    }

    async fn put_bytes(&self, name: &str, bytes: Bytes) -> Result<PutOutcome, StoreError> {
        let op = StoreOp::Put;
        self.check(op, name)?;
        self.points.survive(IoPoint::PutStart, name).await;
        let (fault, takes) = self.shared.meet(op, name);
        let (late, held) = match fault {
            Some(StoreFault::Error(kind)) => return self.refuse(op, name, takes, kind).await,
            Some(StoreFault::Late(by)) => (Some(by), false),
            Some(StoreFault::Held) => (None, true),
            Some(StoreFault::LostAnswer | StoreFault::Crossed | StoreFault::Wrong) | None => (None, false),
        };
        if late.is_some() || held {
            let number = self.shared.send(self.process, name, bytes, true, held);
            if let Some(by) = late {
                self.shared.land_after(number, by);
            }
            self.points.survive(IoPoint::PutSent, name).await;
            self.sleep(takes).await;
            return Err(self.unavailable(op, name));
        }
        let number = self.shared.send(self.process, name, bytes, false, false);
        self.shared.land_after(number, takes / 2);
        self.points.survive(IoPoint::PutSent, name).await;
        self.sleep(takes / 2).await;
        let outcome = self.shared.collect(number);
        self.points.survive(IoPoint::PutEnd, name).await;
        self.sleep(takes - takes / 2).await;
        if fault.is_some() {
            return Err(self.unavailable(op, name));
        }
        outcome.map_err(|kind| self.error(op, name, kind, "the store has no room for it"))
    }

    async fn get_bytes(&self, name: &str, range: Option<Range<u64>>, most: u64) -> Result<Bytes, StoreError> {
        let request = self.go(StoreOp::Get, IoPoint::Get, name).await?;
        let object = self.shared.read(self.process, name);
        let slice = object.map(|bytes| {
            let len = bytes.len() as u64;
            let range = range.unwrap_or(0..most.min(len));
            if range.start > range.end || range.end > len {
                return Err(format!("range {range:?} of an object of {len} bytes"));
            }
            let own = bytes.slice(range.start as usize..range.end as usize);
            let answer = self.shared.answer(own, request.crossed);
            Ok(if request.wrong { flipped(&answer) } else { answer })
        });
        if let Some(Ok(bytes)) = &slice {
            self.shared.count_read(self.process, name, bytes.len() as u64);
        }
        match self.back(StoreOp::Get, name, request, slice).await? {
            Some(Ok(bytes)) => Ok(bytes),
            Some(Err(message)) => Err(self.error(StoreOp::Get, name, StoreErrorKind::Invalid, &message)),
            None => Err(self.error(StoreOp::Get, name, StoreErrorKind::NotFound, "there is no such object")),
        }
    }
}

/// The same bytes, but for a bit in the middle.
fn flipped(bytes: &Bytes) -> Bytes {
    let mut copy = bytes.to_vec();
    let middle = copy.len() / 2;
    if let Some(byte) = copy.get_mut(middle) {
        *byte ^= 0x10;
    }
    Bytes::from(copy)
}

impl ObjectStore for SimStore {
    fn put<'a>(&'a self, name: &'a str, payload: Payload) -> SendFuture<'a, Result<PutOutcome, StoreError>> {
        let bytes = match payload.parts() {
            [one] => one.clone(),
            parts => Bytes::from(parts.concat()),
        };
        Box::pin(self.put_bytes(name, bytes))
    }

    fn get<'a>(&'a self, name: &'a str, range: Range<u64>) -> SendFuture<'a, Result<Bytes, StoreError>> {
        Box::pin(self.get_bytes(name, Some(range), 0))
    }

    fn get_head<'a>(&'a self, name: &'a str, most: u64) -> SendFuture<'a, Result<Bytes, StoreError>> {
        Box::pin(self.get_bytes(name, None, most))
    }

    fn head<'a>(&'a self, name: &'a str) -> SendFuture<'a, Result<ObjectInfo, StoreError>> {
        Box::pin(async move {
            let request = self.go(StoreOp::Head, IoPoint::Head, name).await?;
            let size = self.shared.size(self.process, name);
            let size = self.back(StoreOp::Head, name, request, size).await?;
            let missing = || self.error(StoreOp::Head, name, StoreErrorKind::NotFound, "there is no such object");
            Ok(ObjectInfo { name: name.to_owned(), size: size.ok_or_else(missing)? })
        })
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> SendFuture<'a, Result<Vec<ObjectInfo>, StoreError>> {
        Box::pin(async move {
            let request = self.go(StoreOp::List, IoPoint::List, prefix).await?;
            let names = self.shared.list(self.process, prefix, after);
            self.back(StoreOp::List, prefix, request, names).await
        })
    }

    fn delete<'a>(&'a self, name: &'a str) -> SendFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let request = self.go(StoreOp::Delete, IoPoint::DeleteStart, name).await?;
            self.shared.delete(self.process, name);
            self.points.survive(IoPoint::DeleteEnd, name).await;
            self.back(StoreOp::Delete, name, request, ()).await
        })
    }

    fn url(&self) -> String {
        format!("sim:///{}", self.shared.name)
    }
}
