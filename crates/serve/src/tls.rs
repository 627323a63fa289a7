// SPDX-License-Identifier: Apache-2.0
//! TLS over TCP: for those who connect here, and for whom this process connects to ([`client`]).
//!
//! [`ServerTls`] owns what the server shows and whom it believes. The files are read anew once a minute at most, when somebody connects ([`renewed`]), so a certificate that was
//! renewed is in use without a restart; files that can not be used any more are warned of, and the last good ones stay in use.
//!
//! The handshake is made on the control runtime, within a bounded time; the shard then serves the same session of TLS: its [`Carrier`] takes the socket off one
//! runtime and puts it on the other. Always holds: a carrier is on a runtime whenever it is read or written.

mod client;
mod pem;
mod renewed;

pub use client::{ClientTls, ClientTlsFiles, TlsFault};

use self::renewed::Renewed;
use crate::error::{Result, ServeError};
use crate::socket::Socket;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::WebPkiClientVerifier;

/// For how long a handshake may take.
const TIME: Duration = Duration::from_secs(10);

/// The files of a server that speaks TLS, all in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Its certificate, and those between that and an authority.
    pub certificate: PathBuf,
    /// The key of the certificate.
    pub key: PathBuf,
    /// The authorities that clients have to have a certificate of; where there is none, clients show none.
    pub client_ca: Option<PathBuf>,
}

/// See the module.
#[derive(Debug)]
pub struct ServerTls {
    files: TlsFiles,
    known: Renewed<ServerConfig>,
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// When one can not be read, or does not hold what it should.
    pub fn open(files: TlsFiles) -> Result<Self> {
        let known = Renewed::new(read(&files)?);
        Ok(Self { files, known })
    }

    fn config(&self) -> Arc<ServerConfig> {
        self.known.get(|| read(&self.files))
    }

    /// Shakes hands with who has connected. A unix socket stays what it is.
    pub(crate) async fn accept(&self, socket: Socket) -> Result<Socket> {
        let stream = match socket {
            Socket::Tcp(stream) => stream,
            other => return Ok(other),
        };
        let handshake = TlsAcceptor::from(self.config()).accept(Carrier::Here(stream));
        match tokio::time::timeout(TIME, handshake).await {
            Ok(Ok(stream)) => Ok(Socket::Tls(Box::new(stream.into()))),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                Err(ServeError::Protocol(format!("TLS: {error}")))
            }
            Ok(Err(source)) => Err(ServeError::Socket { doing: "the TLS handshake", source }),
            Err(_) => Err(ServeError::TooSlow(TIME)),
        }
    }
}

fn read(files: &TlsFiles) -> Result<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let wrong = |path: &Path, reason: String| ServeError::Tls { path: path.to_owned(), reason };
    let (chain, key) = (pem::certificates(&files.certificate)?, pem::key(&files.key)?);
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&files.certificate, error.to_string()))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(pem::roots(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| wrong(path, error.to_string()))?)
        }
    };
    builder.with_single_cert(chain, key).map_err(|error| wrong(&files.certificate, error.to_string()))
}

/// The socket below a session of TLS.
#[derive(Debug)]
pub enum Carrier {
    /// On the runtime that serves it.
    Here(TcpStream),
    /// On no runtime.
    OnItsWay(std::net::TcpStream),
    /// A change between the two failed.
    Gone,
}

impl Carrier {
    /// Takes the socket off its runtime.
    pub(crate) fn leave(&mut self) -> io::Result<()> {
        let stream = std::mem::replace(self, Self::Gone);
        *self = match stream {
            Self::Here(stream) => Self::OnItsWay(stream.into_std()?),
            other => other,
        };
        Ok(())
    }

    /// Puts the socket on the runtime that this is called on.
    pub(crate) fn arrive(&mut self) -> io::Result<()> {
        let stream = std::mem::replace(self, Self::Gone);
        *self = match stream {
            Self::OnItsWay(stream) => Self::Here(TcpStream::from_std(stream)?),
            other => other,
        };
        Ok(())
    }

    fn here(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        match self {
            Self::Here(stream) => Ok(Pin::new(stream)),
            Self::OnItsWay(_) | Self::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl AsyncRead for Carrier {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.get_mut().here()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Carrier {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().here()?.poll_write(cx, bytes)
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().here()?.poll_write_vectored(cx, parts)
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().here()?.poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().here()?.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use varve_lab::certificates::Certificates;

    #[test]
    fn files_that_were_renewed_are_used_and_those_that_are_broken_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let made = Certificates::make(directory.path()).unwrap();
        let [certificate, key] = made.server();
        let files = TlsFiles { certificate, key, client_ca: Some(made.ca()) };
        let tls = ServerTls::open(files.clone()).unwrap();
        let first = tls.config();
        let grow_old = || tls.known.grow_old();
        assert!(Arc::ptr_eq(&first, &tls.config()), "they are not read for everyone who connects");
        std::fs::write(&files.key, "not a key").unwrap();
        grow_old();
        assert!(Arc::ptr_eq(&first, &tls.config()), "what was good stays");
        let error = ServerTls::open(files.clone()).unwrap_err();
        assert!(error.to_string().contains("server.key") && error.kind() == varve_types::ErrorKind::Invalid, "{error}");
        let [certificate, key] = made.client();
        std::fs::copy(certificate, &files.certificate).unwrap();
        std::fs::copy(key, &files.key).unwrap();
        grow_old();
        assert!(!Arc::ptr_eq(&first, &tls.config()));
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let made = Certificates::make(directory.path()).unwrap();
        let ([certificate, _], [_, key]) = (made.server(), made.client());
        assert!(ServerTls::open(TlsFiles { certificate, key, client_ca: None }).is_err());
        let no_pem = TlsFiles { certificate: made.client()[1].clone(), key: made.client()[1].clone(), client_ca: None };
        let error = ServerTls::open(no_pem).unwrap_err().to_string();
        assert!(error.contains("client.key") && error.contains("no certificate"), "{error}");
    }
}
