// SPDX-License-Identifier: Apache-2.0
//! The control socket: a unix socket of mode 0600, on which a line is a JSON object. A client sends a [`Command`], and is answered with a [`Reply`].
//!
//! Whoever may open the socket may attach and detach; there is nobody else to ask for. A line that is no command is answered with an error, and the next one is read.
//!
//! Bounds: [`CLIENTS`] at once, a line of [`MOST_LINE`] bytes, [`IDLE`] for a line to come. The socket is made where no other can be: in a directory of its own first,
//! with its mode, and then moved to its place, so that nobody ever sees it with another.

use super::registry::Registry;
use super::spec::Spec;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use varve_block::{BlockError, Result};
use varve_types::ErrorKind;

/// Clients at once.
const CLIENTS: usize = 64;
/// Longest line.
const MOST_LINE: u64 = 64 << 10;
/// Longest answer that a client takes.
const MOST_ANSWER: u64 = 16 << 20;
/// How long a client may say nothing.
const IDLE: Duration = Duration::from_secs(60);
/// How long an attach is tried.
const ATTACH_TIME: Duration = Duration::from_secs(30);
/// How long a client waits for an answer: longer than any command takes.
const ANSWER_TIME: Duration = Duration::from_secs(90);

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// Attach a volume.
    Attach {
        /// How.
        spec: Spec,
    },
    /// Give one up.
    Detach {
        /// Which.
        volume: String,
        /// Though clients use it.
        #[serde(default)]
        force: bool,
    },
    /// Tell all volumes.
    List {},
    /// Tell what one has done, or all of them.
    Stats {
        /// Which.
        #[serde(default)]
        volume: Option<String>,
    },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// It was done; what there is to say.
    Ok(Value),
    /// It was not.
    Error {
        /// The word of its kind.
        kind: String,
        /// Why, for people.
        message: String,
    },
}

impl Reply {
    fn of<T: Serialize>(result: Result<T>) -> Self {
        let error = match result {
            Ok(document) => match serde_json::to_value(document) {
                Ok(value) => return Self::Ok(value),
                Err(error) => BlockError::new(ErrorKind::Internal, error.to_string()),
            },
            Err(error) => error,
        };
        Self::Error { kind: error.kind().as_str().to_owned(), message: error.to_string() }
    }

    /// As a result.
    ///
    /// # Errors
    /// What it says.
    pub fn into_result(self) -> Result<Value> {
        match self {
            Self::Ok(value) => Ok(value),
            Self::Error { kind, message } => {
                Err(BlockError::new(ErrorKind::parse(&kind).unwrap_or(ErrorKind::Internal), message))
            }
        }
    }
}

/// Serves the control socket until `stop` completes.
///
/// # Errors
/// When the socket can not be made.
pub async fn serve_control(path: &Path, registry: Rc<Registry>, stop: impl Future<Output = ()>) -> io::Result<()> {
    let listener = listen(path).await?;
    let _file = File(path);
    let mut clients = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => return Ok(()),
            Some(_) = clients.join_next() => {}
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else {
                    #[allow(clippy::disallowed_methods, reason = "where the system has no descriptor left, nothing spins")]
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                // One beyond the bound is hung up on.
                if clients.len() < CLIENTS {
                    #[allow(clippy::disallowed_methods, reason = "a client is one task")]
                    clients.spawn_local(client(stream, Rc::clone(&registry)));
                }
            }
        }
    }
}

/// Removes the file of a socket that is closed.
struct File<'a>(&'a Path);

impl Drop for File<'_> {
    fn drop(&mut self) {
        // It may have been removed by others; then there is nothing to do.
        let _ = std::fs::remove_file(self.0);
    }
}

async fn listen(path: &Path) -> io::Result<UnixListener> {
    varve_serve::remove_stale(path).await.map_err(io::Error::other)?;
    let mut hidden = path.as_os_str().to_owned();
    hidden.push(format!(".{}", std::process::id()));
    let hidden = Path::new(&hidden);
    std::fs::create_dir(hidden)?;
    let made = bind(hidden, path);
    // Empty again, or never used.
    let removed = std::fs::remove_dir_all(hidden);
    made.and_then(|listener| removed.map(|()| listener))
}

fn bind(hidden: &Path, path: &Path) -> io::Result<UnixListener> {
    std::fs::set_permissions(hidden, std::fs::Permissions::from_mode(0o700))?;
    let inner = hidden.join("s");
    let listener = UnixListener::bind(&inner)?;
    std::fs::set_permissions(&inner, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&inner, path)?;
    Ok(listener)
}

async fn client(stream: UnixStream, registry: Rc<Registry>) {
    let (input, mut output) = stream.into_split();
    let mut input = BufReader::new(input);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut input).take(MOST_LINE);
        #[allow(clippy::disallowed_methods, reason = "a client that says nothing holds its place no longer than this")]
        let read = tokio::time::timeout(IDLE, bounded.read_until(b'\n', &mut line)).await;
        if !matches!(read, Ok(Ok(1..))) {
            return;
        }
        let reply = if line.last() == Some(&b'\n') {
            act(&line, &registry).await
        } else {
            Reply::of::<()>(Err(BlockError::invalid("a line that does not end, or is too long")))
        };
        let is_over = line.last() != Some(&b'\n');
        let Ok(mut text) = serde_json::to_vec(&reply) else { return };
        text.push(b'\n');
        if output.write_all(&text).await.is_err() || is_over {
            return;
        }
    }
}

async fn act(line: &[u8], registry: &Rc<Registry>) -> Reply {
    match serde_json::from_slice(line) {
        Ok(Command::Attach { spec }) => Reply::of(registry.attach(&spec, Some(ATTACH_TIME)).await),
        Ok(Command::Detach { volume, force }) => {
            Reply::of(registry.detach(&volume, force).await.map(|()| json!({ "volume": volume })))
        }
        Ok(Command::List {}) => Reply::of(Ok(registry.list())),
        Ok(Command::Stats { volume }) => Reply::of(registry.stats(volume.as_deref())),
        Err(error) => Reply::of::<()>(Err(BlockError::invalid(format!("not a command: {error}")))),
    }
}

/// Asks whoever serves the control socket at `path`.
///
/// # Errors
/// What is answered, or that nobody answers.
pub async fn ask(path: &Path, command: &Command) -> Result<Value> {
    let unanswered = |error: io::Error| {
        let message =
            format!("no varve-edge answers at {}: {error}. Start one with `varve-edge serve`", path.display());
        BlockError::new(ErrorKind::Unavailable, message)
    };
    let exchange = async {
        let mut stream = UnixStream::connect(path).await?;
        let mut line = serde_json::to_vec(command)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = Vec::new();
        BufReader::new(stream.take(MOST_ANSWER)).read_until(b'\n', &mut answer).await?;
        io::Result::Ok(serde_json::from_slice::<Reply>(&answer)?)
    };
    #[allow(clippy::disallowed_methods, reason = "a person waits for it")]
    let reply = tokio::time::timeout(ANSWER_TIME, exchange).await;
    reply.map_err(|_| unanswered(io::ErrorKind::TimedOut.into()))?.map_err(unanswered)?.into_result()
}
