// SPDX-License-Identifier: Apache-2.0
//! Batches of writes whose commit has to wait: they are applied and ordered, and may not be answered yet.
//!
//! One future a batch, however many requests it has: where another node has to have the records too, its word covers all of them. Several commits may
//! be under way, and they complete in no order. What a batch holds is the list of its requests; their payloads are with the device.
//!
//! The number of requests here counts as waiting, within the same bound as those that wait for themselves.

use crate::asked::Asked;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use varve_block::{Later, Result};

/// A commit and the requests that it answers.
struct Committing {
    batch: Vec<Asked>,
    future: Later<()>,
}

impl Future for Committing {
    type Output = (Vec<Asked>, Result<()>);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let result = ready!(this.future.as_mut().poll(cx));
        Poll::Ready((std::mem::take(&mut this.batch), result))
    }
}

/// The commits of a connection that are under way.
#[derive(Default)]
pub(crate) struct Commits {
    set: FuturesUnordered<Committing>,
    /// Requests of all their batches.
    requests: usize,
}

impl Commits {
    /// Requests that wait for a commit.
    #[inline]
    pub(crate) fn requests(&self) -> usize {
        self.requests
    }

    /// Waits for the commit of `batch`.
    pub(crate) fn push(&mut self, batch: Vec<Asked>, future: Later<()>) {
        self.requests += batch.len();
        self.set.push(Committing { batch, future });
    }

    /// The next commit that completed, and its batch. Pending also when there is none; the task is woken when one completes.
    #[inline]
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<(Vec<Asked>, Result<()>)> {
        if self.set.is_empty() {
            return Poll::Pending;
        }
        match self.set.poll_next_unpin(cx) {
            Poll::Ready(Some((batch, result))) => {
                self.requests -= batch.len();
                Poll::Ready((batch, result))
            }
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::task::noop_waker;

    #[test]
    fn requests_are_counted_until_their_commit_completed() {
        let asked = |cookie| Asked { cookie, operation: None, since: std::time::Instant::now() };
        let mut commits = Commits::default();
        commits.push(vec![asked(1), asked(2)], Box::pin(std::future::pending()));
        commits.push(vec![asked(3), asked(4), asked(5)], Box::pin(std::future::ready(Ok(()))));
        assert_eq!(commits.requests(), 5);
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        let Poll::Ready((batch, Ok(()))) = commits.poll_next(&mut cx) else { panic!("the second is done") };
        assert_eq!(batch.iter().map(|asked| asked.cookie).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(commits.requests(), 2);
        assert!(commits.poll_next(&mut cx).is_pending());
    }
}
