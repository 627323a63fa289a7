// SPDX-License-Identifier: Apache-2.0
//! A plain HTTP client and a server on a fresh directory, for tests of the API.

use super::fake::Fake;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::{HeaderMap, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use varve_server::api::{ApiConfig, ApiServer};

pub struct Server {
    pub fake: Arc<Fake>,
    pub dir: tempfile::TempDir,
    pub tcp: SocketAddr,
    pub token: String,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }
    /// The kind and the message of an error.
    pub fn error(&self) -> (String, String) {
        let body = self.json();
        (body["kind"].as_str().unwrap().to_owned(), body["message"].as_str().unwrap().to_owned())
    }
}

/// A request to be sent.
pub struct Ask {
    pub method: &'static str,
    pub path: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
}

pub fn ask(method: &'static str, path: impl Into<String>) -> Ask {
    Ask { method, path: path.into(), headers: vec![("host", "localhost".to_owned())], body: Bytes::new() }
}

impl Ask {
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.retain(|(old, _)| *old != name);
        self.headers.push((name, value.into()));
        self
    }
    pub fn json(mut self, body: &Value) -> Self {
        self.body = body.to_string().into();
        self.header("content-type", "application/json")
    }
    pub fn data(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self.header("content-type", "application/octet-stream")
    }

    async fn over<S>(self, stream: S) -> Answer
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder().method(self.method).uri(self.path);
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        let response = sender.send_request(request.body(Full::new(self.body)).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }
}

impl Server {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = ApiConfig {
            unix: dir.path().join("api.sock"),
            tcp: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            token_file: dir.path().join("token"),
        };
        let server = ApiServer::bind(&config).await.unwrap();
        let tcp = server.tcp_address().unwrap();
        let token = std::fs::read_to_string(dir.path().join("token")).unwrap().trim().to_owned();
        let fake = Arc::new(Fake::new());
        let (stop, stopped) = oneshot::channel::<()>();
        let control = Arc::clone(&fake);
        let task = tokio::spawn(server.run(control, async {
            let _ = stopped.await;
        }));
        Self { fake, dir, tcp, token, stop, task }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    /// Sends over the unix socket.
    pub async fn send(&self, ask: Ask) -> Answer {
        ask.over(UnixStream::connect(self.socket()).await.unwrap()).await
    }

    /// Sends over the port, just as it is.
    pub async fn send_tcp(&self, ask: Ask) -> Answer {
        ask.over(TcpStream::connect(self.tcp).await.unwrap()).await
    }

    /// Stops the server and waits until it has ended.
    pub async fn stop(self) -> tempfile::TempDir {
        self.stop.send(()).unwrap();
        self.task.await.unwrap();
        self.dir
    }
}
