// SPDX-License-Identifier: Apache-2.0
//! What can go wrong between a client and this server once requests flow. Each ends one connection; never more.
//!
//! Errors of the device are not here: they are answered to the client, request by request, and the connection goes on.

use varve_types::ErrorKind;

/// Result of serving a connection.
pub type Result<T, E = ServeError> = std::result::Result<T, E>;

/// Why a connection ended before its time.
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
}

impl ServeError {
    /// What the one who reads the error should do.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Socket { .. } | Self::Vanished { .. } => ErrorKind::Unavailable,
            Self::Protocol(_) => ErrorKind::Invalid,
        }
    }
}

/// Gives an error of the system its place.
pub(crate) fn socket(doing: &'static str) -> impl Fn(std::io::Error) -> ServeError {
    move |source| ServeError::Socket { doing, source }
}
