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

use crate::error::{NbdError, Result, socket};
use crate::handshake::Negotiated;
use crate::input::{Input, Next};
use crate::session::Session;
use crate::spin::Spin;
use crate::stats::Stats;
use crate::wire::Command;
use bytes::BytesMut;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
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
    /// The client said that it leaves; everything that it asked before is done and answered.
    Disconnected,
    /// The client hung up between two requests.
    HungUp,
}

/// Serves the client at the other end of `stream` until one side ends it. `leftover` is what the client already sent behind its handshake.
///
/// # Errors
/// When the client breaks the protocol or vanishes within a request, or the socket fails. Errors of the device are answered to the client.
pub async fn serve<S>(
    stream: S,
    device: Rc<dyn BlockDevice>,
    negotiated: Negotiated,
    leftover: BytesMut,
    stats: Arc<Stats>,
    tuning: Tuning,
) -> Result<Closed>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let _connected = stats.connected();
    let mut connection = Connection {
        stream,
        input: Input::new(leftover),
        session: Session::new(device, negotiated),
        spin: Spin::new(tuning.spin),
        stats: &stats,
        disconnecting: false,
    };
    loop {
        match poll_fn(|cx| connection.poll_turns(cx)).await? {
            Turn::LookAgain => {
                // The client may be waiting for this very core.
                std::thread::yield_now();
                tokio::task::yield_now().await;
            }
            Turn::Closed(how) => {
                // The client is gone or about to go: that it can not be told is no error of the requests before.
                let _ = connection.stream.shutdown().await;
                return Ok(how);
            }
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

struct Connection<'a, S> {
    stream: S,
    input: Input,
    session: Session,
    spin: Spin,
    stats: &'a Stats,
    /// The client said that it leaves.
    disconnecting: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<'_, S> {
    /// Takes turns until there is nothing to do.
    fn poll_turns(&mut self, cx: &mut Context<'_>) -> Poll<Result<Turn>> {
        for _ in 0..TURNS {
            let blocked = self.act()?;
            let cut_short = self.session.collect(cx);
            let sent = match self.session.output.poll_send(&mut self.stream, cx) {
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
            if self.disconnecting && sent && !self.session.is_waiting() && !blocked {
                return Poll::Ready(Ok(Turn::Closed(Closed::Disconnected)));
            }
            if blocked || self.disconnecting {
                return Poll::Pending;
            }
            match self.input.poll_receive(&mut self.stream, cx) {
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
        while !self.disconnecting {
            if self.session.full() {
                blocked = true;
                break;
            }
            if self.session.act_on_large() {
                continue;
            }
            match self.input.next(|request| self.session.check(request)) {
                Ok(Next::More) => break,
                Ok(Next::Refused(request, refusal)) => self.session.refuse(&request, refusal),
                Ok(Next::Request(request, _)) if request.command == Command::Disconnect => self.disconnecting = true,
                Ok(Next::Request(request, payload)) => self.session.act(&request, payload),
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
            return Err(NbdError::Vanished { at: "within a request" });
        }
        Ok(Closed::HungUp)
    }
}
