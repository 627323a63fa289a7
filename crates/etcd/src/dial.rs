// SPDX-License-Identifier: Apache-2.0
//! One connection to one member: TCP, TLS where it is `https`, HTTP/2.
//!
//! All of it happens within the caller's time. That what answers is an etcd, and the right one, is not known here yet: a first request tells.

use crate::config::{Endpoint, EtcdTls};
use crate::fault::{Fault, chain};
use crate::grpc::{Caller, Outgoing};
use crate::tls;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

/// Bytes that a member may send ahead of what was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Windows {
    /// In one call.
    pub(crate) stream_bytes: u32,
    /// In all calls of a connection.
    pub(crate) connection_bytes: u32,
}

/// How long the reason of a broken connection may come behind the failure of a call on it.
const REASON_WAIT: Duration = Duration::from_millis(200);

/// A connection that stands, and why it broke, once it has.
pub(crate) struct Dialled {
    pub(crate) caller: Caller,
    broken: watch::Receiver<Option<String>>,
}

impl Dialled {
    /// Why the connection broke, if it did.
    pub(crate) async fn why_broken(&self) -> Option<String> {
        let mut broken = self.broken.clone();
        let reason = timeout(REASON_WAIT, broken.wait_for(Option::is_some)).await;
        reason.ok()?.ok()?.clone()
    }
}

/// Connects to a member. Runs on the runtime that it is called on; what keeps the connection going does, too, and ends with the connection.
pub(crate) async fn dial(endpoint: &Endpoint, certificates: &EtcdTls, windows: Windows) -> Result<Dialled, Fault> {
    let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await;
    let stream = stream.map_err(|error| Fault::NotSent(error.to_string()))?;
    // Without it a small request waits for the acknowledgement of the one before.
    stream.set_nodelay(true).map_err(|error| Fault::NotSent(error.to_string()))?;
    if !endpoint.tls {
        return begin(stream, endpoint, windows).await;
    }
    let files = certificates.clone();
    let connector = tokio::task::spawn_blocking(move || tls::connector(&files)).await;
    let connector =
        connector.map_err(|ended| Fault::NotSent(format!("reading certificates ended early: {ended}")))??;
    let stream = connector.connect(tls::server_name(endpoint)?, stream).await;
    let stream = stream.map_err(|error| tls::explain(&error, certificates, endpoint))?;
    begin(stream, endpoint, windows).await
}

async fn begin<S>(stream: S, endpoint: &Endpoint, windows: Windows) -> Result<Dialled, Fault>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(windows.stream_bytes)
        .initial_connection_window_size(windows.connection_bytes)
        .handshake::<_, Outgoing>(TokioIo::new(stream))
        .await
        .map_err(|error| Fault::NotSent(chain(&error)))?;
    let (reason, broken) = watch::channel(None);
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            reason.send_replace(Some(chain(&error)));
        }
    });
    Ok(Dialled { caller: Caller::new(sender, endpoint.to_string()), broken })
}
