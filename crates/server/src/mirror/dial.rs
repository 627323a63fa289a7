// SPDX-License-Identifier: Apache-2.0
//! How this node begins to talk to another one: it connects, speaks TLS where nodes do, says who it is, and hears who answers. Why it can not is logged once in five
//! minutes for each node and reason.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Error;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use varve_serve::{ClientTls, Socket, TlsFault};
use varve_types::NodeId;
use varve_wire::attach::Refused;
use varve_wire::greeting::{HEADER_BYTES, Header, Kind};
use varve_wire::mirror::{MirrorHello, MirrorWelcome};

/// For how long what was told of a node is not told again.
const TOLD_FOR: Duration = Duration::from_secs(300);

/// See the module.
pub(crate) struct Dialer {
    /// Who this node is.
    pub hello: MirrorHello,
    /// What nodes speak TLS with.
    tls: Option<ClientTls>,
    /// Of nodes that could not be talked to: why, and when that was told.
    told: RefCell<BTreeMap<NodeId, (String, Instant)>>,
}

impl Dialer {
    /// For a node that says of itself who it is.
    pub(crate) fn new(hello: MirrorHello, tls: Option<ClientTls>) -> Self {
        Self { hello, tls, told: RefCell::default() }
    }

    /// Tells why a node can not be talked to.
    pub(super) fn tell(&self, node: NodeId, why: &str) {
        let mut told = self.told.borrow_mut();
        told.retain(|_, (_, since)| since.elapsed() < TOLD_FOR);
        if told.get(&node).is_none_or(|(known, _)| known != why) {
            told.insert(node, (why.to_owned(), Instant::now()));
            tracing::warn!(%node, why, "a node that could keep copies can not be talked to");
        }
    }

    /// Whether a node answers at its address.
    pub(crate) async fn probe(&self, node: NodeId, address: &str) -> Result<(), String> {
        self.greet(node, address).await.map(drop)
    }

    /// Connects to a node and greets it.
    pub(super) async fn greet(&self, node: NodeId, address: &str) -> Result<Socket, String> {
        let told = |error: Error| explain(&error, self.tls.is_some());
        let stream = TcpStream::connect(address).await.map_err(told)?;
        stream.set_nodelay(true).map_err(told)?;
        let mut socket = match &self.tls {
            Some(tls) => tls.connect(address, stream).await.map_err(told)?,
            None => Socket::Tcp(stream),
        };
        socket.write_all(&self.hello.encode()).await.map_err(told)?;
        socket.flush().await.map_err(told)?;
        let mut head = [0; HEADER_BYTES];
        socket.read_exact(&mut head).await.map_err(told)?;
        let header = Header::decode(&head).map_err(|error| error.to_string())?;
        let mut body = vec![0; header.length as usize];
        socket.read_exact(&mut body).await.map_err(told)?;
        let read = || {
            header.verify(&body)?;
            header.version()?;
            header.kind()
        };
        match read().map_err(|error| error.to_string())? {
            Kind::MirrorWelcome => {}
            Kind::Refused => {
                let refused = Refused::decode(&body).map_err(|error| error.to_string())?;
                return Err(refused.message);
            }
            other => return Err(format!("{other:?} is no answer to a greeting")),
        }
        let welcome = MirrorWelcome::decode(&body).map_err(|error| error.to_string())?;
        if welcome.node != node {
            return Err(format!("node {} answers there", welcome.node));
        }
        Ok(socket)
    }
}

/// What a failed connection says, and what a person can do about it where that is known.
fn explain(error: &Error, tls: bool) -> String {
    let Some((fault, cause)) = TlsFault::of(error) else {
        let hangs_up = matches!(error.kind(), std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset);
        return if hangs_up && !tls {
            format!("it hung up instead of answering: does it want TLS (node-tls-cert)? ({error})")
        } else {
            error.to_string()
        };
    };
    let advice = match fault {
        TlsFault::UnknownIssuer => {
            "nobody whom this node believes vouches for its certificate: node-tls-ca names who does"
        }
        TlsFault::OtherName => "its certificate is not for the host of its mirror-advertise",
        TlsFault::BadCertificate => "its certificate can not be believed",
        TlsFault::NoTls => "it does not speak TLS: it needs node-tls-cert, node-tls-key and node-tls-ca too",
        TlsFault::AsksForCertificate | TlsFault::Disbelieves => "it does not believe the certificate of this node",
        TlsFault::Other => "TLS failed",
    };
    format!("{advice} ({cause})")
}
