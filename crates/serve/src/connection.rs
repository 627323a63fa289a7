// SPDX-License-Identifier: Apache-2.0
//! The transmission phase of one connection, on the thread of the shard that owns the volume.
//!
//! One turn: receive all that is there, act on every whole request in it, commit once, answer what waited and is done, send everything with one
//! system call. At depth 1 that is one receive and one send a request; deeper, the calls and the commit are shared by all requests of the burst. No
//! task and no allocation a request.
//!
//! Bounds: the output, the number and bytes of requests that wait, and the turns before other tasks of the shard have theirs. When one of
//! the first two is reached, no further request is acted on and the socket is not read, so that the client feels it.
//!
//! Where the connection breaks, by error, hang-up or the fall of the server, requests that were not answered may have happened or not, and those that
//! were answered have. Dropping the future of [`serve`] hangs up; between two polls there is no write whose commit has not begun.

use crate::dialect::{Command, Dialect};
use crate::error::{Result, ServeError, socket};
use crate::input::{Input, Next};
use crate::session::Session;
use crate::spin::Spin;
use crate::stats::Stats;
use bytes::BytesMut;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use varve_block::BlockDevice;

/// Turns of one connection before the others have theirs.
const TURNS: usize = 16;

/// What can be set about how connections are served.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// How long to look for the next request of a quick client before sleeping until it comes; zero is not at all.
    pub spin: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { spin: Duration::from_micros(50) }
    }
}

/// How a connection ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The client said that it leaves, by the request of this cookie, which is not answered; everything that it asked before is done and answered.
    Left(u64),
    /// The client hung up between two requests.
    HungUp,
}

/// Serves the client at the other end of `stream` until one side ends it, and leaves closing it to the caller. `leftover` is what the client already sent
/// behind its handshake.
///
/// # Errors
/// When the client breaks the protocol or vanishes within a request, or the socket fails. Errors of the device are answered to the client.
pub async fn serve<S, D>(
    stream: &mut S,
    device: Rc<dyn BlockDevice>,
    dialect: D,
    leftover: BytesMut,
    stats: Arc<Stats>,
    tuning: Tuning,
) -> Result<Closed>
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: Dialect,
{
    let _connected = stats.connected();
    let mut connection = Connection {
        stream,
        input: Input::new(leftover),
        session: Session::new(device, dialect),
        spin: Spin::new(tuning.spin),
        stats: &stats,
        leaving: None,
    };
    loop {
        match poll_fn(|cx| connection.poll_turns(cx)).await? {
            Turn::LookAgain => {
                // The client may be waiting for this very core.
                std::thread::yield_now();
                tokio::task::yield_now().await;
            }
            Turn::Closed(how) => return Ok(how),
        }
    }
}

/// Why a poll of the connection ended.
enum Turn {
    /// Nothing is there; it is worth looking again once the other tasks had their turn.
    LookAgain,
    /// It is over.
    Closed(Closed),
}

struct Connection<'a, S, D: Dialect> {
    stream: &'a mut S,
    input: Input<D>,
    session: Session<D>,
    spin: Spin,
    stats: &'a Stats,
    /// The request by which the client said that it leaves.
    leaving: Option<u64>,
}

impl<S: AsyncRead + AsyncWrite + Unpin, D: Dialect> Connection<'_, S, D> {
    /// Takes turns until there is nothing to do.
    fn poll_turns(&mut self, cx: &mut Context<'_>) -> Poll<Result<Turn>> {
        for _ in 0..TURNS {
            let blocked = self.act()?;
            let cut_short = self.session.collect(cx);
            let sent = match self.session.output.poll_send(self.stream, cx) {
                Poll::Ready(result) => {
                    result.map_err(socket("sending replies"))?;
                    self.session.sent(self.stats);
                    true
                }
                Poll::Pending => false,
            };
            if (blocked && !self.session.full()) || (cut_short && sent) {
                continue;
            }
            if let Some(cookie) = self.leaving.filter(|_| sent && !self.session.is_waiting() && !blocked) {
                return Poll::Ready(Ok(Turn::Closed(Closed::Left(cookie))));
            }
            if blocked || self.leaving.is_some() {
                return Poll::Pending;
            }
            match self.input.poll_receive(self.stream, cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(self.hung_up().map(Turn::Closed)),
                Poll::Ready(result) => {
                    result.map_err(socket("receiving requests"))?;
                    self.spin.came();
                }
                Poll::Pending if self.spin.look_again() => return Poll::Ready(Ok(Turn::LookAgain)),
                Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Acts on what is received, as far as there is room, and commits. Whether something is left that there was no room for.
    fn act(&mut self) -> Result<bool> {
        let mut blocked = false;
        let mut acted = false;
        while self.leaving.is_none() {
            if self.session.full() {
                blocked = true;
                break;
            }
            if self.session.act_on_large() {
                continue;
            }
            match self.input.next(&self.session.dialect, |head| self.session.check(head)) {
                Ok(Next::More) => break,
                Ok(Next::Refused(head, refusal)) => self.session.refuse(&head, refusal),
                Ok(Next::Request(head, payload)) => match self.session.dialect.request(&head) {
                    request if request.command == Command::Leave => self.leaving = Some(request.cookie),
                    request => self.session.act(&request, payload),
                },
                Err(error) => {
                    // What came before it is done all the same.
                    self.session.commit();
                    return Err(error);
                }
            }
            acted = true;
        }
        self.session.end_turn(acted, self.stats);
        Ok(blocked)
    }

    fn hung_up(&self) -> Result<Closed> {
        if self.input.is_within_request() {
            return Err(ServeError::Vanished { at: "within a request" });
        }
        Ok(Closed::HungUp)
    }
}
