// SPDX-License-Identifier: Apache-2.0
//! Requests that have to wait: the futures of the device, with what is needed to answer when they complete.
//!
//! The number of them and the bytes that they hold (payloads of writes, room for reads) are bounded; beyond that no further request is
//! acted on. The bound of the number holds for them together with those that wait for a commit.
//!
//! **Flushes.** A flush covers at least every write that was answered before it, which is all that the protocol asks. To be kind to clients that do not
//! wait for their answers, it is held until every write that was sent before it on this connection and still waits is through. A write with
//! FUA vouches for itself and holds nothing.

use crate::asked::Asked;
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::cell::Cell;
use std::collections::{BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use varve_block::{Later, Result, StatusExtent};

/// Most requests that wait at once.
const MOST_WAITING: usize = 1024;
/// Most bytes that waiting requests hold; one request may go beyond.
const MOST_BYTES: u64 = 64 << 20;

/// The pieces of a large read that have yet to be answered; the last one closes the reply.
#[derive(Clone, Debug)]
pub(crate) struct Pieces(Rc<Cell<u64>>);

impl Pieces {
    pub(crate) fn new(count: u64) -> Self {
        Self(Rc::new(Cell::new(count)))
    }
    /// Counts a piece as answered; whether it was the last.
    pub(crate) fn answered(&self) -> bool {
        self.0.set(self.0.get().saturating_sub(1));
        self.0.get() == 0
    }
    /// Whether the next piece that is answered is the last.
    pub(crate) fn is_last(&self) -> bool {
        self.0.get() == 1
    }
}

/// A future of the device and what it is for.
pub(crate) enum Work {
    /// A read, or a piece of one.
    Read {
        /// Gives the bytes.
        future: Later<Bytes>,
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        length: u32,
        /// The reply that this is a piece of.
        pieces: Option<Pieces>,
    },
    /// A request whose reply has no data.
    Plain {
        /// Completes when it is done.
        future: Later<()>,
        /// The number of a write that flushes wait for.
        serial: Option<u64>,
    },
    /// A block status request of so many bytes.
    Status {
        /// Gives the extents.
        future: Later<Vec<StatusExtent>>,
        /// How much was asked, in bytes.
        length: u64,
        /// Whether one extent was asked for.
        one: bool,
    },
}

/// What a request that waited came to.
pub(crate) enum Outcome {
    /// Of a read.
    Read(u64, u32, Option<Pieces>, Result<Bytes>),
    /// Of a request without data.
    Plain(Result<()>),
    /// Of a block status request.
    Status(u64, bool, Result<Vec<StatusExtent>>),
}

struct Waiting {
    asked: Asked,
    bytes: u64,
    work: Work,
}

struct Finished {
    asked: Asked,
    bytes: u64,
    serial: Option<u64>,
    outcome: Outcome,
}

impl Future for Waiting {
    type Output = Finished;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Finished> {
        let this = self.get_mut();
        let (serial, outcome) = match &mut this.work {
            Work::Read { future, offset, length, pieces } => {
                let result = std::task::ready!(future.as_mut().poll(cx));
                (None, Outcome::Read(*offset, *length, pieces.take(), result))
            }
            Work::Plain { future, serial } => (*serial, Outcome::Plain(std::task::ready!(future.as_mut().poll(cx)))),
            Work::Status { future, length, one } => {
                (None, Outcome::Status(*length, *one, std::task::ready!(future.as_mut().poll(cx))))
            }
        };
        Poll::Ready(Finished { asked: this.asked, bytes: this.bytes, serial, outcome })
    }
}

/// The requests of a connection that wait.
#[derive(Default)]
pub(crate) struct Waiters {
    set: FuturesUnordered<Waiting>,
    /// Bytes that they hold.
    bytes: u64,
    barrier: Barrier,
}

impl Waiters {
    /// Whether no request waits, held flushes included.
    pub(crate) fn is_empty(&self) -> bool {
        self.set.is_empty() && self.barrier.held.is_empty()
    }

    /// Whether no further request may wait, if `others` wait elsewhere.
    #[inline]
    pub(crate) fn full(&self, others: usize) -> bool {
        self.bytes >= MOST_BYTES || self.set.len() + self.barrier.held.len() + others >= MOST_WAITING
    }

    /// Waits for `work`, which holds `bytes`.
    pub(crate) fn push(&mut self, asked: Asked, bytes: u64, work: Work) {
        self.bytes += bytes;
        self.set.push(Waiting { asked, bytes, work });
    }

    /// Waits for a write. Later flushes wait for it too, unless it vouches for itself.
    pub(crate) fn push_write(&mut self, asked: Asked, bytes: u64, future: Later<()>, fua: bool) {
        let serial = (!fua).then(|| self.barrier.begin());
        self.push(asked, bytes, Work::Plain { future, serial });
    }

    /// Holds a flush if it has to wait for writes; whether it has to.
    pub(crate) fn hold_flush(&mut self, asked: Asked) -> bool {
        self.barrier.hold(asked)
    }

    /// A flush that waits for no write any more.
    pub(crate) fn released_flush(&mut self) -> Option<Asked> {
        self.barrier.release()
    }

    /// The next request that completed. Pending also when there is none; the task is woken when one completes.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<(Asked, Outcome)> {
        if self.set.is_empty() {
            return Poll::Pending;
        }
        match self.set.poll_next_unpin(cx) {
            Poll::Ready(Some(finished)) => {
                self.bytes -= finished.bytes;
                if let Some(serial) = finished.serial {
                    self.barrier.end(serial);
                }
                Poll::Ready((finished.asked, finished.outcome))
            }
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

/// Which writes a flush has to wait for: those that began before it.
#[derive(Default)]
struct Barrier {
    next: u64,
    /// Writes that wait.
    open: BTreeSet<u64>,
    /// Flushes that wait, each with the first write that it does not have to wait for; in order.
    held: VecDeque<(u64, Asked)>,
}

impl Barrier {
    fn begin(&mut self) -> u64 {
        self.next += 1;
        self.open.insert(self.next - 1);
        self.next - 1
    }
    fn end(&mut self, serial: u64) {
        self.open.remove(&serial);
    }
    fn hold(&mut self, asked: Asked) -> bool {
        let wait = !self.open.is_empty();
        if wait {
            self.held.push_back((self.next, asked));
        }
        wait
    }
    fn release(&mut self) -> Option<Asked> {
        let (before, asked) = *self.held.front()?;
        if self.open.first().is_some_and(|first| *first < before) {
            return None;
        }
        self.held.pop_front();
        Some(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(cookie: u64) -> Asked {
        Asked { cookie, operation: None, since: std::time::Instant::now() }
    }

    #[test]
    fn a_flush_waits_for_the_writes_before_it_and_no_others() {
        let mut barrier = Barrier::default();
        assert!(!barrier.hold(asked(1)), "nothing to wait for");
        let (a, b) = (barrier.begin(), barrier.begin());
        assert!(barrier.hold(asked(2)));
        let c = barrier.begin();
        assert!(barrier.hold(asked(3)));
        barrier.end(b);
        let released = |barrier: &mut Barrier| barrier.release().map(|asked| asked.cookie);
        assert_eq!(released(&mut barrier), None);
        barrier.end(a);
        assert_eq!((released(&mut barrier), released(&mut barrier)), (Some(2), None));
        barrier.end(c);
        assert_eq!((released(&mut barrier), released(&mut barrier)), (Some(3), None));
    }

    #[test]
    fn waiting_is_bounded_in_number_and_bytes() {
        let mut waiters = Waiters::default();
        let never = || -> Later<()> { Box::pin(std::future::pending()) };
        for cookie in 0..MOST_WAITING as u64 {
            assert!(!waiters.full(0));
            assert_eq!(waiters.full(MOST_WAITING - 1), cookie > 0, "those that wait elsewhere count");
            waiters.push_write(asked(cookie), 0, never(), false);
        }
        assert!(waiters.full(0));
        let mut waiters = Waiters::default();
        waiters.push_write(asked(0), MOST_BYTES, never(), true);
        assert!(waiters.full(0));
    }

    #[test]
    fn the_last_piece_is_known_before_and_after() {
        let pieces = Pieces::new(2);
        assert!(!pieces.is_last() && !pieces.answered());
        assert!(pieces.is_last() && pieces.answered());
    }
}
