// SPDX-License-Identifier: Apache-2.0
//! A volume as a [`BlockDevice`]: every request is a future that completes when the owner has answered.
//!
//! This is where front ends and the session meet. What a request is, is checked by the session; what its answer is, was checked there too, so an answer of another kind than
//! was asked for is a defect of the edge.
//!
//! Nothing is done at once, so nothing is left for a commit; the first poll of a burst's requests sends all of them.

use crate::drive::Driven;
use crate::session::{Answer, Session};
use bytes::{Bytes, BytesMut};
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use varve_block::{BlockDevice, BlockError, Result, StatusExtent, Submit};
use varve_types::ErrorKind;
use varve_wire::transmission::{Ask, FLAG_ONE};

/// See the module.
pub(crate) struct Device {
    pub(crate) driven: Rc<RefCell<Driven>>,
}

impl Device {
    pub(crate) const fn new(driven: Rc<RefCell<Driven>>) -> Self {
        Self { driven }
    }

    fn submit<T: 'static>(
        &self,
        ask: Ask,
        flags: u8,
        (offset, length): (u64, u64),
        data: Bytes,
        then: impl Fn(Answer) -> Option<T> + Unpin + 'static,
    ) -> Submit<T> {
        match Pending::new(&self.driven, ask, flags, offset, length, data) {
            Ok(pending) => Submit::Later(Box::pin(Mapped { pending, then })),
            Err(error) => Submit::Done(Err(error)),
        }
    }
}

impl Drop for Device {
    /// Nobody can use it any more: its task ends, and the connection with it.
    fn drop(&mut self) {
        let error = BlockError::new(ErrorKind::Unavailable, "nobody uses it any more");
        self.driven.borrow_mut().abandon(error);
    }
}

/// A request that waits for its answer. Dropping it stops nothing.
pub(crate) struct Pending {
    driven: Rc<RefCell<Driven>>,
    id: u64,
}

impl Pending {
    pub(crate) fn new(
        driven: &Rc<RefCell<Driven>>,
        ask: Ask,
        flags: u8,
        offset: u64,
        length: u64,
        data: Bytes,
    ) -> Result<Self> {
        let id = driven.borrow_mut().submit(ask, flags, offset, length, data)?;
        Ok(Self { driven: Rc::clone(driven), id })
    }

    pub(crate) async fn done(self) -> Result<()> {
        self.await.and_then(|answer| done(answer).ok_or_else(wrong))
    }

    pub(crate) async fn data(self) -> Result<Bytes> {
        self.await.and_then(|answer| data(answer).ok_or_else(wrong))
    }

    pub(crate) async fn extents(self) -> Result<Vec<StatusExtent>> {
        self.await.and_then(|answer| extents(answer).ok_or_else(wrong))
    }
}

impl Future for Pending {
    type Output = Result<Answer>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(self.driven.borrow_mut().poll_answer(self.id, cx));
        Poll::Ready(answer.unwrap_or_else(|| Err(wrong())))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.driven.borrow_mut().leave(self.id);
    }
}

struct Mapped<F> {
    pending: Pending,
    then: F,
}

impl<T, F: Fn(Answer) -> Option<T> + Unpin> Future for Mapped<F> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        let answer = ready!(Pin::new(&mut self.pending).poll(cx));
        Poll::Ready(answer.and_then(|answer| (self.then)(answer).ok_or_else(wrong)))
    }
}

fn done(answer: Answer) -> Option<()> {
    matches!(answer, Answer::Done).then_some(())
}

fn data(answer: Answer) -> Option<Bytes> {
    if let Answer::Data(data) = answer { Some(data) } else { None }
}

fn extents(answer: Answer) -> Option<Vec<StatusExtent>> {
    if let Answer::Extents(extents) = answer { Some(extents) } else { None }
}

fn wrong() -> BlockError {
    BlockError::new(ErrorKind::Internal, "an answer of another kind than was asked for")
}

impl BlockDevice for Device {
    fn size(&self) -> u64 {
        self.driven.borrow().session.size()
    }

    fn read_only(&self) -> bool {
        self.driven.borrow().session.read_only()
    }

    fn read(&self, offset: u64, len: u32, _: &mut BytesMut) -> Submit<Bytes> {
        self.submit(Ask::Read, 0, (offset, len.into()), Bytes::new(), data)
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> Submit<()> {
        let length = data.len() as u64;
        self.submit(Ask::Write, Session::flags(fua), (offset, length), data, done)
    }

    fn flush(&self) -> Submit<()> {
        self.submit(Ask::Flush, 0, (0, 0), Bytes::new(), done)
    }

    fn discard(&self, offset: u64, len: u64, fua: bool) -> Submit<()> {
        self.submit(Ask::Discard, Session::flags(fua), (offset, len), Bytes::new(), done)
    }

    fn write_zeroes(&self, offset: u64, len: u64, fua: bool) -> Submit<()> {
        self.submit(Ask::WriteZeroes, Session::flags(fua), (offset, len), Bytes::new(), done)
    }

    fn block_status(&self, offset: u64, len: u64, most: usize) -> Submit<Vec<StatusExtent>> {
        let flags = if most == 1 { FLAG_ONE } else { 0 };
        let first = move |answer| {
            let mut all = extents(answer)?;
            all.truncate(most);
            Some(all)
        };
        self.submit(Ask::Status, flags, (offset, len), Bytes::new(), first)
    }

    fn prefetch(&self, offset: u64, len: u64) -> Submit<()> {
        self.submit(Ask::Prefetch, 0, (offset, len), Bytes::new(), done)
    }

    fn commit(&self) -> Submit<()> {
        Submit::Done(Ok(()))
    }
}
