// SPDX-License-Identifier: Apache-2.0
//! What can go wrong between a client and this server. Each ends one connection, or keeps one socket from opening; never more.
//!
//! Errors of the device are not here: they are answered to the client, request by request, and the connection goes on.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use varve_types::ErrorKind;

/// Result of serving clients.
pub type Result<T, E = ServeError> = std::result::Result<T, E>;

/// Why a connection ended before its time, or a socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket failed.
    #[error("the connection failed while {doing}: {source}")]
    Socket {
        /// What was tried.
        doing: &'static str,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The client hung up where the protocol has no end.
    #[error("the client hung up {at}")]
    Vanished {
        /// Where in the protocol.
        at: &'static str,
    },
    /// The client sent what the protocol does not allow, so that what follows can not be understood.
    #[error("the client broke the protocol: {0}")]
    Protocol(String),
    /// The client chose, where it can not be told so, what it can not have.
    #[error("{name:?} was refused: {reason}")]
    Refused {
        /// The name that the client gave.
        name: String,
        /// Why.
        reason: String,
        /// What the client should do.
        kind: ErrorKind,
    },
    /// The handshake took too long.
    #[error("the handshake was not done within {0:?}")]
    TooSlow(Duration),
    /// A unix socket could not be opened.
    #[error("can not listen on {}: {reason}", path.display())]
    Unix {
        /// Where it was to be.
        path: PathBuf,
        /// Why not.
        reason: String,
        /// Whether somebody else has it, or the system refused.
        kind: ErrorKind,
    },
    /// A file for TLS can not be used.
    #[error("TLS: {}: {reason}", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// What a server is to be called can be nobody's name.
    #[error("TLS: {0:?} is no name that a certificate can be for")]
    TlsName(String),
    /// A TCP socket could not be opened.
    #[error("can not listen on {address}: {source}")]
    Tcp {
        /// Where it was to be.
        address: SocketAddr,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

impl ServeError {
    /// What the one who reads the error should do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Socket { .. } | Self::Vanished { .. } | Self::TooSlow(_) => ErrorKind::Unavailable,
            Self::Protocol(_) | Self::Tls { .. } | Self::TlsName(_) => ErrorKind::Invalid,
            Self::Refused { kind, .. } | Self::Unix { kind, .. } => *kind,
            Self::Tcp { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => ErrorKind::Conflict,
            Self::Tcp { .. } => ErrorKind::Unavailable,
        }
    }
}

/// Gives an error of the system its place.
pub fn socket(doing: &'static str) -> impl Fn(std::io::Error) -> ServeError {
    move |source| ServeError::Socket { doing, source }
}
