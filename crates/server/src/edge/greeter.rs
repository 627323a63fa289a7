// SPDX-License-Identifier: Apache-2.0
//! How the connection of an edge begins. Runs on the control runtime, where a slow or hostile client costs a bounded buffer and a bounded time.
//!
//! Nothing is looked up for a client that has not proved itself: over TCP by the token of edges; over the unix socket by being able to open it.

use crate::api::Token;
use bytes::{Bytes, BytesMut};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use varve_serve::{Greeter, Peer, Result, ServeError, Socket, socket};
use varve_types::ErrorKind;
use varve_wire::WireError;
use varve_wire::attach::{Attach, Refused};
use varve_wire::greeting::{HEADER_BYTES, Header, Kind};

/// Time for the whole greeting, and for telling a refusal.
const TIME: Duration = Duration::from_secs(10);

/// An edge that asks for a volume, on its way to the shard that will serve it.
pub(crate) type Accepted = varve_serve::Accepted<Asked>;

/// What an edge asks, and how.
#[derive(Debug)]
pub(crate) struct Asked {
    /// What it asks.
    pub attach: Attach,
    /// The version of the protocol that both speak.
    pub version: u16,
}

/// See the module.
pub(crate) struct EdgeGreeter {
    /// What edges prove themselves by, over TCP.
    pub token: Option<Token>,
}

impl Greeter for EdgeGreeter {
    type Agreed = Asked;

    fn protocol(&self) -> &'static str {
        "edge"
    }

    async fn greet(&self, socket: &mut Socket, peer: &Peer) -> Result<Option<(Asked, BytesMut)>> {
        let read = read_greeting(socket, Kind::Attach, Attach::decode);
        let asked = match tokio::time::timeout(TIME, read).await {
            Ok(asked) => asked?,
            Err(_) => return Err(ServeError::TooSlow(TIME)),
        };
        let (kind, text) = match asked {
            Ok((attach, version)) if self.may(peer, &attach) => {
                return Ok(Some((Asked { attach, version }, BytesMut::new())));
            }
            Ok(_) => (ErrorKind::Invalid, "the token is not that of this node's edges".to_owned()),
            Err(error) => (error.kind(), error.to_string()),
        };
        refuse(socket, &Refused::new(kind, text.clone())).await;
        Err(ServeError::Protocol(text))
    }
}

impl EdgeGreeter {
    /// Whether the edge may ask for volumes.
    fn may(&self, peer: &Peer, attach: &Attach) -> bool {
        peer.address().is_none() || self.token.as_ref().is_some_and(|token| token.is(&attach.token))
    }
}

/// Reads a greeting of one kind, and the version that both speak: the outer result is about the connection, the inner one about what was sent.
pub(crate) async fn read_greeting<T>(
    socket: &mut Socket,
    wanted: Kind,
    decode: impl Fn(&[u8]) -> varve_wire::Result<T>,
) -> Result<varve_wire::Result<(T, u16)>> {
    let mut head = [0; HEADER_BYTES];
    exactly(socket, &mut head).await?;
    let known = Header::decode(&head).and_then(|header| Ok((header, header.version()?, header.kind()?)));
    let (header, version) = match known {
        Ok((header, version, kind)) if kind == wanted => (header, version),
        Ok((_, _, kind)) => {
            let reason = format!("{kind:?} is nothing that is begun with here");
            return Ok(Err(WireError::Senseless { what: "greeting", reason }));
        }
        Err(error) => return Ok(Err(error)),
    };
    // The length was bounded with the header.
    let mut body = vec![0; header.length as usize];
    exactly(socket, &mut body).await?;
    let read = header.verify(&body).and_then(|()| decode(&body));
    Ok(read.map(|read| (read, version)))
}

async fn exactly(stream: &mut Socket, bytes: &mut [u8]) -> Result<()> {
    match stream.read_exact(bytes).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Err(ServeError::Vanished { at: "within its greeting" })
        }
        Err(error) => Err(socket("reading a greeting")(error)),
    }
}

/// Tells a client why it does not get what it asked for. That it can not be told is nobody's concern.
pub(crate) async fn refuse(socket: &mut Socket, refused: &Refused) {
    let bytes: Bytes = refused.encode();
    let told = async {
        socket.write_all(&bytes).await?;
        socket.shutdown().await
    };
    let _ = tokio::time::timeout(TIME, told).await;
}
