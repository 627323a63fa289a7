// SPDX-License-Identifier: Apache-2.0
//! The sockets of the API: made with the right mode, served with bounds, closed in good order.
//!
//! The unix socket is bound under another name, gets its mode, and is then renamed, so that it is never open to others, and a socket that a
//! dead process left is replaced; one that still answers is left alone (`Conflict`). The caller owns the data directory, so no two do this at once.
//!
//! A listener has room for [`MOST_CONNECTIONS`]; while it is full, the next wait in the kernel's queue. Each connection is a task; all of them
//! end with the server: idle ones at once, others after their request, and at the latest after [`STOP_TIME`].

use super::control::{Control, ControlError};
use super::guard::{Token, guard};
use super::routes::{App, router};
use super::{HEAD_TIME, MOST_CONNECTIONS, STOP_TIME};
use axum::{Router, middleware};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use varve_types::ErrorKind;

/// Bytes of a request's head, and of what is read of a body at once.
const CONNECTION_BUFFER: usize = 512 << 10;
/// Wait after a failed accept, which is when descriptors are used up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where the API listens.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// The unix socket.
    pub unix: PathBuf,
    /// The loopback address, if there is to be one. Port 0 takes a free one.
    pub tcp: Option<SocketAddr>,
    /// The file of the token, made when there is none. Not touched without `tcp`.
    pub token_file: PathBuf,
}

/// The API with its sockets open. Requests wait until [`ApiServer::run`].
#[derive(Debug)]
pub struct ApiServer {
    unix: UnixListener,
    unix_path: PathBuf,
    tcp: Option<(TcpListener, SocketAddr, Token)>,
}

impl ApiServer {
    /// Opens the sockets.
    ///
    /// # Errors
    /// `Invalid` when the address is not a loopback address or the socket's path is too long; `Conflict` when somebody listens there;
    /// `Unavailable` when the system refuses; and what [`Token::open`] says.
    pub async fn bind(config: &ApiConfig) -> Result<Self, ControlError> {
        let tcp = match config.tcp {
            None => None,
            Some(address) => {
                if !address.ip().is_loopback() {
                    let message = format!("the API listens on loopback addresses alone, not on {address}");
                    return Err(ControlError::invalid(message));
                }
                let token = Token::open(&config.token_file)?;
                let fail = |error| bind_error(&address.to_string(), &error);
                let listener = TcpListener::bind(address).await.map_err(fail)?;
                let address = listener.local_addr().map_err(fail)?;
                Some((listener, address, token))
            }
        };
        Ok(Self { unix: bind_unix(&config.unix).await?, unix_path: config.unix.clone(), tcp })
    }

    /// The address of the port, if there is one.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().map(|(_, address, _)| *address)
    }

    /// Serves until `shutdown` completes, then lets requests end and removes the socket.
    pub async fn run(self, control: Arc<dyn Control>, shutdown: impl Future<Output = ()>) {
        let routes = router(App::new(control));
        let (stop, stopping) = watch::channel(false);
        let mut tasks = JoinSet::new();
        if let Some((listener, _, token)) = self.tcp {
            let guarded = routes.clone().layer(middleware::from_fn_with_state(token, guard));
            let stopping = stopping.clone();
            tasks.spawn(async move {
                let accept = || async {
                    let (stream, _) = listener.accept().await?;
                    stream.set_nodelay(true)?;
                    Ok(stream)
                };
                accept_loop(accept, guarded, stopping).await;
            });
        }
        let unix = self.unix;
        tasks.spawn(async move {
            let accept = || async { unix.accept().await.map(|(stream, _)| stream) };
            accept_loop(accept, routes, stopping).await;
        });
        shutdown.await;
        // Nobody can be waiting for this value but the tasks, and they may be gone already.
        let _ = stop.send(true);
        if let Err(error) = std::fs::remove_file(&self.unix_path) {
            tracing::warn!(path = %self.unix_path.display(), %error, "the API socket could not be removed");
        }
        while tasks.join_next().await.is_some() {}
    }
}

/// Opens the sockets and serves until `shutdown` completes.
///
/// # Errors
/// Those of [`ApiServer::bind`].
pub async fn serve(
    control: Arc<dyn Control>,
    config: ApiConfig,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ControlError> {
    ApiServer::bind(&config).await?.run(control, shutdown).await;
    Ok(())
}

fn bind_error(at: &str, error: &io::Error) -> ControlError {
    let kind = match error.kind() {
        io::ErrorKind::AddrInUse => ErrorKind::Conflict,
        io::ErrorKind::InvalidInput => ErrorKind::Invalid,
        _ => ErrorKind::Unavailable,
    };
    ControlError::new(kind, format!("the API can not listen on {at}: {error}"))
}

async fn bind_unix(path: &Path) -> Result<UnixListener, ControlError> {
    let at = path.display().to_string();
    if tokio::net::UnixStream::connect(path).await.is_ok() {
        return Err(ControlError::conflict(format!("another server answers on {at}")));
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let bind = || -> io::Result<UnixListener> {
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&new)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&new, path)?;
        Ok(listener)
    };
    bind().map_err(|error| bind_error(&at, &error))
}

/// Accepts and serves connections until told to stop.
async fn accept_loop<S, A, F>(accept: A, routes: Router, mut stopping: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Fn() -> F,
    F: Future<Output = io::Result<S>>,
{
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let permit = Arc::clone(&room).acquire_owned().await.expect("this semaphore is never closed");
            (accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            next = next => next,
            _ = stopping.changed() => break,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok(stream) => {
                let (routes, stopping) = (routes.clone(), stopping.clone());
                connections.spawn(async move {
                    serve_connection(stream, routes, stopping).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the API could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP_TIME, all).await.is_err() {
        tracing::warn!(open = connections.len(), "requests of the API were cut off");
        connections.shutdown().await;
    }
}

async fn serve_connection<S>(stream: S, routes: Router, mut stopping: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .max_buf_size(CONNECTION_BUFFER)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes))
    );
    let ended = tokio::select! {
        result = connection.as_mut() => Some(result),
        _ = async { stopping.wait_for(|stop| *stop).await.is_ok() } => None,
    };
    let result = match ended {
        Some(result) => result,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        // A client that vanished or sent nonsense: its own affair.
        tracing::debug!(%error, "a connection of the API ended");
    }
}
