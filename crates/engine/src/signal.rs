// SPDX-License-Identifier: Apache-2.0
//! Waiting within a shard, without a runtime: one thread, so a condition and the tasks that wait
//! for it.
//!
//! A [`Signal`] stands beside the state that it is about. Whoever changes the state rings it;
//! whoever waits looks at the state again. A ring while nobody waits is not kept: the state itself
//! is the memory.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// See the module.
#[derive(Default)]
pub(crate) struct Signal {
    waiting: RefCell<Vec<Waker>>,
}

impl Signal {
    /// Lets everyone who waits look again.
    pub fn ring(&self) {
        for waker in self.waiting.take() {
            waker.wake();
        }
    }

    /// Waits until `look` gives a value. It is asked at once, and after every ring.
    pub async fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        poll_fn(|context| match look() {
            Some(value) => Poll::Ready(value),
            None => {
                let mut waiting = self.waiting.borrow_mut();
                if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                    waiting.push(context.waker().clone());
                }
                Poll::Pending
            }
        })
        .await
    }
}

/// Lets other tasks of the shard run: long work is done in slices with this between them.
pub(crate) async fn breathe() {
    let mut polled = false;
    poll_fn(|context| {
        if polled {
            return Poll::Ready(());
        }
        polled = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
