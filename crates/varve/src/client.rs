// SPDX-License-Identifier: Apache-2.0
//! The HTTP client: requests to one node, over its unix socket or its port.
//!
//! Connections are kept and used again; as many requests may be under way as the caller likes, each on a connection of its own. A connection
//! that the node closed while it was idle is replaced without a word, since nothing was sent on it yet; a request that was sent is never
//! repeated. Every wait is bounded.

use crate::failure::{Failure, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use varve_server::api::model::ErrorBody;
use varve_types::ErrorKind;

const DEFAULT_API: &str = "unix:./varve-data/api.sock";
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// Longer than the node takes before it answers that it takes too long.
const REQUEST_TIME: Duration = Duration::from_secs(90);
/// Most bytes of an answer.
const MOST_ANSWER: usize = 64 << 20;
/// Connections that are kept for later.
const MOST_IDLE: usize = 16;

/// Body of a request.
pub enum Body {
    /// None.
    Empty,
    /// A document.
    Json(String),
    /// Data of a volume.
    Data(Bytes),
}

impl Body {
    /// A document.
    pub fn json<T: Serialize>(document: &T) -> Result<Self> {
        let text = serde_json::to_string(document);
        text.map(Self::Json).map_err(|error| Failure::failed(format!("the request can not be written: {error}")))
    }
}

#[derive(Clone, Debug)]
enum Address {
    Unix(PathBuf),
    /// Host and port, as they stand in the URL.
    Tcp(String),
}

/// A client of one node.
pub struct Client {
    address: Address,
    /// As the person gave it, for messages.
    url: String,
    token: Option<String>,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Client {
    /// The client of the node at `url`, or at the default place. Connects when first asked.
    pub fn new(url: Option<&str>) -> Result<Self> {
        let url = url.filter(|url| !url.is_empty()).unwrap_or(DEFAULT_API);
        let address = parse(url).ok_or_else(|| {
            Failure::usage(format!("{url:?} is not the URL of an API: unix:PATH or http://HOST:PORT"))
        })?;
        let token = std::env::var("VARVE_TOKEN").ok().filter(|token| !token.is_empty());
        if token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(Failure::usage("VARVE_TOKEN holds something that is no token"));
        }
        Ok(Self { address, url: url.to_owned(), token, idle: Mutex::default() })
    }

    /// Asks for a document.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(Method::GET, path, Body::Empty).await
    }

    /// Sends a document, or nothing, and reads the one that is answered.
    pub async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Body) -> Result<T> {
        let bytes = self.send(method, path, body).await?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Failure::failed(format!("the node at {} gave an answer that is not understood: {error}", self.url))
        })
    }

    /// Sends a request and gives the body of a successful answer.
    pub async fn send(&self, method: Method, path: &str, body: Body) -> Result<Bytes> {
        let what = format!("{method} {path}");
        match timeout(REQUEST_TIME, self.exchange(method, path, body)).await {
            Ok(result) => result,
            Err(_) => {
                let message = format!("{}: no answer to {what} within {} s", self.url, REQUEST_TIME.as_secs());
                Err(Failure::new(ErrorKind::Unavailable, message))
            }
        }
    }

    async fn exchange(&self, method: Method, path: &str, body: Body) -> Result<Bytes> {
        let request = self.request(method, path, body)?;
        let mut sender = self.connection().await?;
        let broken =
            |error| Failure::new(ErrorKind::Unavailable, format!("{}: the connection broke: {error}", self.url));
        let response = sender.send_request(request).await.map_err(broken)?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MOST_ANSWER).collect().await;
        let body = body.map_err(|error| {
            Failure::new(ErrorKind::Unavailable, format!("{}: the answer ended early: {error}", self.url))
        })?;
        let body = body.to_bytes();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MOST_IDLE {
            idle.push(sender);
        }
        drop(idle);
        if parts.status.is_success() { Ok(body) } else { Err(self.refusal(parts.status, &body)) }
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> Failure {
        let failure = match serde_json::from_slice::<ErrorBody>(body) {
            Ok(body) => Failure::from(body),
            Err(_) => Failure::failed(format!("{} answers {status}, and not as Varve does", self.url)),
        };
        if status == StatusCode::UNAUTHORIZED { failure.and("give it in VARVE_TOKEN") } else { failure }
    }

    fn request(&self, method: Method, path: &str, body: Body) -> Result<Request<Full<Bytes>>> {
        let host = match &self.address {
            Address::Unix(_) => "localhost",
            Address::Tcp(authority) => authority,
        };
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, host);
        if let (Address::Tcp(_), Some(token)) = (&self.address, &self.token) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let (kind, bytes) = match body {
            Body::Empty => (None, Bytes::new()),
            Body::Json(text) => (Some("application/json"), Bytes::from(text)),
            Body::Data(bytes) => (Some("application/octet-stream"), bytes),
        };
        if let Some(kind) = kind {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        request.body(Full::new(bytes)).map_err(|error| Failure::failed(format!("the request can not be made: {error}")))
    }

    async fn connection(&self) -> Result<SendRequest<Full<Bytes>>> {
        loop {
            let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut sender) = kept else { break };
            if sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        let connect = async {
            match &self.address {
                Address::Unix(path) => handshake(UnixStream::connect(path).await?).await,
                Address::Tcp(authority) => {
                    let stream = TcpStream::connect(authority).await?;
                    stream.set_nodelay(true)?;
                    handshake(stream).await
                }
            }
        };
        let unanswered = |why: String| {
            let message = format!(
                "no Varve node answers at {}: {why}. Start one with `varve up`, or say where it is with --api or VARVE_API",
                self.url
            );
            Failure::new(ErrorKind::Unavailable, message)
        };
        match timeout(CONNECT_TIME, connect).await {
            Ok(Ok(sender)) => Ok(sender),
            Ok(Err(error)) => Err(unanswered(error.to_string())),
            Err(_) => Err(unanswered("it takes too long".to_owned())),
        }
    }
}

async fn handshake<S>(stream: S) -> std::io::Result<SendRequest<Full<Bytes>>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
    // Its end is seen by the sender.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}

fn parse(url: &str) -> Option<Address> {
    if let Some(path) = url.strip_prefix("unix:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        return (!path.is_empty()).then(|| Address::Unix(PathBuf::from(path)));
    }
    let rest = url.strip_prefix("http://")?;
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let plain = authority.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".:-[]_".contains(&byte));
    if authority.is_empty() || !plain {
        return None;
    }
    let port = match authority.rsplit_once(']') {
        Some((_, port)) => port.strip_prefix(':'),
        None => authority.rsplit_once(':').map(|(_, port)| port),
    };
    match port {
        Some(port) => port.parse::<u16>().ok().map(|_| Address::Tcp(authority.to_owned())),
        None => Some(Address::Tcp(format!("{authority}:80"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_sockets_and_ports() {
        for (url, want) in [
            ("unix:./a/b.sock", Some("./a/b.sock")),
            ("unix:///a", Some("/a")),
            ("unix:", None),
            ("http://127.0.0.1:7420", Some("127.0.0.1:7420")),
            ("http://localhost/", Some("localhost:80")),
            ("http://[::1]:1", Some("[::1]:1")),
            ("http://", None),
            ("http://h:x", None),
            ("http://h/path", None),
            ("http://user@h", None),
            ("https://h", None),
            ("/a/b.sock", None),
        ] {
            let got = parse(url).map(|address| match address {
                Address::Unix(path) => path.display().to_string(),
                Address::Tcp(authority) => authority,
            });
            assert_eq!(got.as_deref(), want, "{url}");
        }
    }
}
