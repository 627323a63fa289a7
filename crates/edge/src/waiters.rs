// SPDX-License-Identifier: Apache-2.0
//! Who waits for which request. By the place in the session's table that the id of a request names, so there are as many as requests.

use std::task::{Context, Poll, Waker};
use std::time::Duration;
use varve_block::Result;

use crate::session::Answer;
use crate::stats::Operation;

#[derive(Debug)]
enum State {
    Waiting(Option<Waker>),
    Answered(Result<Answer>),
    /// Nobody waits any more.
    Left,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    operation: Operation,
    bytes: u64,
    since: Duration,
    state: State,
}

/// What a request was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) operation: Operation,
    pub(crate) bytes: u64,
    pub(crate) since: Duration,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Waiters(Vec<Vec<Waiter>>);

impl Waiters {
    /// The place of an id. An answer that was not fetched yet may be at the place of a request that has begun since.
    fn row(&mut self, id: u64) -> &mut Vec<Waiter> {
        let at = (id as u32).saturating_sub(1) as usize;
        if at >= self.0.len() {
            self.0.resize_with(at + 1, Vec::new);
        }
        &mut self.0[at]
    }

    pub(crate) fn put(&mut self, id: u64, asked: Asked) {
        let Asked { operation, bytes, since } = asked;
        self.row(id).push(Waiter { id, operation, bytes, since, state: State::Waiting(None) });
    }

    /// A request is answered. What it was, if somebody asked it.
    pub(crate) fn answer(&mut self, id: u64, result: Result<Answer>) -> Option<Asked> {
        let row = self.row(id);
        let at = row.iter().position(|waiter| waiter.id == id)?;
        let waiter = &mut row[at];
        let asked = Asked { operation: waiter.operation, bytes: waiter.bytes, since: waiter.since };
        match std::mem::replace(&mut waiter.state, State::Answered(result)) {
            State::Waiting(waker) => {
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            State::Left | State::Answered(_) => drop(row.swap_remove(at)),
        }
        Some(asked)
    }

    pub(crate) fn poll(&mut self, id: u64, cx: &mut Context<'_>) -> Poll<Option<Result<Answer>>> {
        let row = self.row(id);
        let Some(at) = row.iter().position(|waiter| waiter.id == id) else { return Poll::Ready(None) };
        match &mut row[at].state {
            State::Waiting(waker) => {
                if waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                    *waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
            State::Left => Poll::Ready(None),
            State::Answered(_) => match row.swap_remove(at).state {
                State::Answered(result) => Poll::Ready(Some(result)),
                State::Waiting(_) | State::Left => Poll::Ready(None),
            },
        }
    }

    /// Whoever waited does so no more.
    pub(crate) fn leave(&mut self, id: u64) {
        let row = self.row(id);
        let Some(at) = row.iter().position(|waiter| waiter.id == id) else { return };
        match row[at].state {
            State::Waiting(_) => row[at].state = State::Left,
            State::Answered(_) => drop(row.swap_remove(at)),
            State::Left => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_waits_for_whoever_asked_and_for_nobody_else() {
        let mut waiters = Waiters::default();
        let asked = Asked { operation: Operation::Read, bytes: 1, since: Duration::ZERO };
        let mut cx = Context::from_waker(Waker::noop());
        let (old, new) = (1 << 32 | 1, 2 << 32 | 1);
        waiters.put(old, asked);
        assert!(waiters.poll(old, &mut cx).is_pending());
        assert!(waiters.answer(old, Ok(Answer::Done)).is_some());
        waiters.put(new, asked);
        assert!(waiters.poll(new, &mut cx).is_pending());
        assert!(matches!(waiters.poll(old, &mut cx), Poll::Ready(Some(Ok(Answer::Done)))));
        assert!(matches!(waiters.poll(old, &mut cx), Poll::Ready(None)));
        waiters.leave(new);
        assert!(waiters.answer(new, Ok(Answer::Done)).is_some(), "it counts all the same");
        assert!(waiters.answer(new, Ok(Answer::Done)).is_none());
        assert!(waiters.0.iter().all(Vec::is_empty));
    }
}
