// SPDX-License-Identifier: Apache-2.0
//! How a node begins to talk to another one. Runs on the control runtime.

use crate::edge::{read_greeting, refuse};
use bytes::BytesMut;
use std::time::Duration;
use varve_serve::{Greeter, Peer, Result, ServeError, Socket};
use varve_types::{ClusterId, ErrorKind};
use varve_wire::attach::Refused;
use varve_wire::greeting::Kind;
use varve_wire::mirror::MirrorHello;

/// Time for the greeting.
const TIME: Duration = Duration::from_secs(10);

/// A node that wants copies kept, on its way to the shard.
pub(crate) type Accepted = varve_serve::Accepted<MirrorHello>;

/// See the module.
pub(crate) struct MirrorGreeter {
    /// The cluster of this node: others are none of its business.
    pub cluster: ClusterId,
    /// What nodes of it prove themselves by.
    pub token: crate::api::Token,
}

impl Greeter for MirrorGreeter {
    type Agreed = MirrorHello;

    fn protocol(&self) -> &'static str {
        "mirror"
    }

    async fn greet(&self, socket: &mut Socket, _peer: &Peer) -> Result<Option<(MirrorHello, BytesMut)>> {
        let read = read_greeting(socket, Kind::MirrorHello, MirrorHello::decode);
        let told = match tokio::time::timeout(TIME, read).await {
            Ok(told) => told?,
            Err(_) => return Err(ServeError::TooSlow(TIME)),
        };
        let (kind, text) = match told {
            Ok((hello, _)) if hello.cluster != self.cluster => {
                (ErrorKind::Conflict, format!("node {} is of another cluster: {}", hello.node, hello.cluster))
            }
            Ok((hello, _)) if !self.token.is(&hello.token) => {
                (ErrorKind::Invalid, format!("the token of node {} is not that of this cluster", hello.node))
            }
            Ok((hello, _)) => return Ok(Some((hello, BytesMut::new()))),
            Err(error) => (error.kind(), error.to_string()),
        };
        refuse(socket, &Refused::new(kind, text.clone())).await;
        Err(ServeError::Protocol(text))
    }
}
