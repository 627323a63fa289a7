// SPDX-License-Identifier: Apache-2.0
//! Sockets: how they are opened, and how a connection goes from one runtime to another.
//!
//! A connection is negotiated on the control runtime and served on the thread of a shard. In between it is an [`Accepted`]: a plain socket of
//! the standard library, registered nowhere, with all that was agreed. [`Accepted::into_local`] registers it with the runtime it is called on.
//!
//! A unix socket is a file, and the file of a server that died stays. It is removed only if it is a socket at which nobody answers; whether
//! two servers may use one directory at all is decided by the lock of the data directory, not here. The file has the mode 0660 from before the first
//! client can connect.

use crate::error::{Result, ServeError};
use crate::{listener::Slot, peer::Peer, tls::Carrier};
use bytes::BytesMut;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsStream;
use varve_types::ErrorKind;

/// Connections that the kernel keeps for us until we accept them.
const BACKLOG: i32 = 4096;
/// When a host that says nothing is asked whether it is there, how often then, and how many times before it is taken for gone.
const KEEPALIVE_TIME: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;

/// A place where clients connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP address; port 0 lets the system choose.
    Tcp(SocketAddr),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

/// A connection on some runtime.
#[derive(Debug)]
pub enum Socket {
    /// Over a unix socket.
    Unix(UnixStream),
    /// Over TCP.
    Tcp(TcpStream),
    /// Over TCP, under TLS.
    Tls(Box<TlsStream<Carrier>>),
}

impl Socket {
    /// Takes the connection off its runtime.
    fn into_std(self) -> io::Result<StdSocket> {
        Ok(match self {
            Self::Unix(stream) => StdSocket::Unix(stream.into_std()?),
            Self::Tcp(stream) => StdSocket::Tcp(stream.into_std()?),
            Self::Tls(mut stream) => {
                stream.get_mut().0.leave()?;
                StdSocket::Tls(stream)
            }
        })
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
        }
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A connection on no runtime.
#[derive(Debug)]
enum StdSocket {
    Unix(std::os::unix::net::UnixStream),
    Tcp(std::net::TcpStream),
    Tls(Box<TlsStream<Carrier>>),
}

/// A negotiated connection on its way to the shard that will serve it. Dropping it hangs up.
#[derive(Debug)]
pub struct Accepted<N> {
    socket: StdSocket,
    /// Who the client is.
    pub peer: Peer,
    /// What was agreed.
    pub negotiated: N,
    leftover: BytesMut,
    slot: Slot,
}

/// A negotiated connection on the runtime that will serve it. Dropping it hangs up.
#[derive(Debug)]
pub struct Local<N> {
    /// The connection.
    pub socket: Socket,
    /// Who the client is.
    pub peer: Peer,
    /// What was agreed.
    pub negotiated: N,
    /// What the client sent already.
    pub leftover: BytesMut,
    /// The connection's place among those allowed: to be kept as long as it is served.
    pub slot: Slot,
}

impl<N> Accepted<N> {
    pub(crate) fn new(socket: Socket, peer: Peer, negotiated: N, leftover: BytesMut, slot: Slot) -> io::Result<Self> {
        Ok(Self { socket: socket.into_std()?, peer, negotiated, leftover, slot })
    }

    /// Registers the connection with the runtime that this is called on.
    ///
    /// # Errors
    /// When the runtime can not take it; the connection is closed then.
    pub fn into_local(self) -> io::Result<Local<N>> {
        let Self { socket, peer, negotiated, leftover, slot } = self;
        let socket = match socket {
            StdSocket::Unix(stream) => Socket::Unix(UnixStream::from_std(stream)?),
            StdSocket::Tcp(stream) => Socket::Tcp(TcpStream::from_std(stream)?),
            StdSocket::Tls(mut stream) => {
                stream.get_mut().0.arrive()?;
                Socket::Tls(stream)
            }
        };
        Ok(Local { socket, peer, negotiated, leftover, slot })
    }
}

/// A socket that listens.
#[derive(Debug)]
pub(crate) enum Listening {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

impl Listening {
    pub(crate) async fn open(endpoint: &Endpoint) -> Result<Self> {
        match endpoint {
            Endpoint::Unix(path) => open_unix(path).await,
            Endpoint::Tcp(address) => match TcpListener::bind(address).await {
                Ok(listener) => Ok(Self::Tcp(listener)),
                Err(source) => Err(ServeError::Tcp { address: *address, source }),
            },
        }
    }

    /// The next connection and who it is from.
    pub(crate) async fn accept(&self) -> io::Result<(Socket, Peer)> {
        match self {
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let pid = stream.peer_cred().ok().and_then(|credentials| credentials.pid());
                Ok((Socket::Unix(stream), Peer::unix(pid)))
            }
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let keepalive = socket2::TcpKeepalive::new()
                    .with_time(KEEPALIVE_TIME)
                    .with_interval(KEEPALIVE_INTERVAL)
                    .with_retries(KEEPALIVE_RETRIES);
                socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
                Ok((Socket::Tcp(stream), Peer::tcp(address)))
            }
        }
    }

    pub(crate) fn endpoint(&self) -> io::Result<Endpoint> {
        Ok(match self {
            Self::Unix(_, path) => Endpoint::Unix(path.clone()),
            Self::Tcp(listener) => Endpoint::Tcp(listener.local_addr()?),
        })
    }

    /// Stops listening, and removes the file of a unix socket.
    pub(crate) fn close(self) -> io::Result<()> {
        match self {
            Self::Unix(listener, path) => {
                drop(listener);
                std::fs::remove_file(path)
            }
            Self::Tcp(_) => Ok(()),
        }
    }
}

/// Makes room for a unix socket: removes the one of a server that is gone, and nothing else.
///
/// # Errors
/// `Conflict` where something else is there, or a server that may live; `Unavailable` where the system refuses.
pub async fn remove_stale(path: &Path) -> Result<()> {
    let fail = |kind, reason: String| ServeError::Unix { path: path.to_owned(), reason, kind };
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(fail(ErrorKind::Conflict, "there is a file of that name which is no socket".to_owned()));
        }
        Ok(_) => match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                tracing::info!(path = %path.display(), "removing the socket of a server that is gone");
                std::fs::remove_file(path)
                    .map_err(|e| fail(ErrorKind::Unavailable, format!("the stale socket: {e}")))?;
            }
            Ok(_) => return Err(fail(ErrorKind::Conflict, "another server answers there".to_owned())),
            Err(error) => {
                let reason = format!("a socket is there, and whether a server has it is not known: {error}");
                return Err(fail(ErrorKind::Conflict, reason));
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fail(ErrorKind::Unavailable, error.to_string())),
    }
    Ok(())
}

async fn open_unix(path: &Path) -> Result<Listening> {
    remove_stale(path).await?;
    listen_unix(path).map_err(|error| {
        let taken = error.kind() == io::ErrorKind::AddrInUse;
        let kind = if taken { ErrorKind::Conflict } else { ErrorKind::Unavailable };
        ServeError::Unix { path: path.to_owned(), reason: error.to_string(), kind }
    })
}

/// Between bind and listen nobody can connect, so the mode holds for every client.
fn listen_unix(path: &Path) -> io::Result<Listening> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(Listening::Unix(UnixListener::from_std(socket.into())?, path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(result: Result<Listening>) -> Option<ErrorKind> {
        result.err().map(|error| error.kind())
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_nothing_else_is() {
        let directory = tempfile::tempdir().unwrap();
        let endpoint = Endpoint::Unix(directory.path().join("nbd.sock"));
        let path = directory.path().join("nbd.sock");

        let first = Listening::open(&endpoint).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert_eq!(kind(Listening::open(&endpoint).await), Some(ErrorKind::Conflict), "somebody answers");
        drop(first);
        assert!(path.exists(), "a server that dies leaves its socket");
        let second = Listening::open(&endpoint).await.unwrap();
        second.close().unwrap();
        assert!(!path.exists());

        std::fs::write(&path, "precious").unwrap();
        assert_eq!(kind(Listening::open(&endpoint).await), Some(ErrorKind::Conflict), "not a socket");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        let nowhere = Endpoint::Unix(directory.path().join("none/nbd.sock"));
        assert_eq!(kind(Listening::open(&nowhere).await), Some(ErrorKind::Unavailable));
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_a_conflict() {
        let first = Listening::open(&Endpoint::Tcp("127.0.0.1:0".parse().unwrap())).await.unwrap();
        let taken = first.endpoint().unwrap();
        assert_eq!(kind(Listening::open(&taken).await), Some(ErrorKind::Conflict));
    }
}
