// SPDX-License-Identifier: Apache-2.0
//! The transmission phase of one connection, on the thread of the shard that owns the volume: [`varve_serve`] in the dialect that was negotiated.

use crate::dialect::Nbd;
use crate::handshake::Negotiated;
use bytes::BytesMut;
use std::rc::Rc;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use varve_block::BlockDevice;
use varve_serve::{Result, Stats, Tuning};

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
    mut stream: S,
    device: Rc<dyn BlockDevice>,
    negotiated: Negotiated,
    leftover: BytesMut,
    stats: Arc<Stats>,
    tuning: Tuning,
) -> Result<Closed>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let closed = varve_serve::serve(&mut stream, device, Nbd(negotiated), leftover, stats, tuning).await?;
    // The client is gone or about to go: that it can not be told is no error of the requests before.
    let _ = stream.shutdown().await;
    Ok(match closed {
        varve_serve::Closed::Left(_) => Closed::Disconnected,
        varve_serve::Closed::HungUp => Closed::HungUp,
    })
}
