// SPDX-License-Identifier: Apache-2.0
//! How a node is reached: TCP or a unix socket, with TLS or without. Another way is another [`Transport`].
//!
//! An address is `HOST:PORT`, or `unix:PATH`. TCP connections do not wait to fill their packets.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use varve_env::LocalFuture;
use varve_serve::ClientTls;

/// Names that are looked up at once.
static LOOK_UPS: Semaphore = Semaphore::const_new(8);

/// A connection to a node: bytes in order, both ways.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// A way to reach a node.
pub trait Transport {
    /// Connects to an address. Dropping the future gives up.
    fn connect(&self, address: &str) -> LocalFuture<io::Result<Box<dyn Stream>>>;

    /// Whether an address can be one, so that a person is told at once.
    ///
    /// # Errors
    /// Why it can not.
    fn check(&self, address: &str) -> Result<(), String>;
}

/// Sockets of the system.
#[derive(Clone, Debug, Default)]
pub struct Sockets {
    tls: Option<Arc<ClientTls>>,
}

impl Sockets {
    /// With TLS on TCP connections if there is any; unix sockets need none.
    #[must_use]
    pub const fn new(tls: Option<Arc<ClientTls>>) -> Self {
        Self { tls }
    }
}

impl Transport for Sockets {
    fn connect(&self, address: &str) -> LocalFuture<io::Result<Box<dyn Stream>>> {
        let (address, tls) = (address.to_owned(), self.tls.clone());
        Box::pin(async move {
            if let Some(path) = address.strip_prefix("unix:") {
                return Ok(Box::new(UnixStream::connect(path).await?) as Box<dyn Stream>);
            }
            let stream = TcpStream::connect(&look_up(address.clone()).await?[..]).await?;
            stream.set_nodelay(true)?;
            Ok(match tls {
                Some(tls) => Box::new(tls.connect(&address, stream).await?),
                None => Box::new(stream),
            })
        })
    }

    fn check(&self, address: &str) -> Result<(), String> {
        let wrong = || format!("{address:?} is not the address of a node: HOST:PORT or unix:PATH");
        if let Some(path) = address.strip_prefix("unix:") {
            return if path.is_empty() { Err(wrong()) } else { Ok(()) };
        }
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
        if host.is_empty() || !is_port || host.contains(['/', '@', ' ']) { Err(wrong()) } else { Ok(()) }
    }
}

/// What an address stands for. The system's look-up can not be given up, and may take long: of those there are few at a time, however many volumes ask.
async fn look_up(address: String) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = address.parse() {
        return Ok(vec![address]);
    }
    let place = LOOK_UPS.acquire().await.map_err(io::Error::other)?;
    let found = tokio::task::spawn_blocking(move || {
        let _place = place;
        address.to_socket_addrs().map(Iterator::collect)
    });
    found.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_before_they_are_tried() {
        let sockets = Sockets::default();
        for good in ["node-1:7700", "127.0.0.1:1", "[::1]:7700", "unix:/run/x", "unix:x"] {
            assert!(sockets.check(good).is_ok(), "{good}");
        }
        for bad in
            ["", "node-1", ":7700", "node-1:", "node-1:x", "node-1:0", "http://node-1:80", "unix:", "node-1:70000"]
        {
            assert!(sockets.check(bad).is_err(), "{bad}");
        }
    }
}
