// SPDX-License-Identifier: Apache-2.0
//! The program under test, and a node in memory that it talks to.

// Each test program uses a part of it.
#![allow(dead_code)]

#[path = "../../../server/tests/fake/mod.rs"]
pub mod fake;

use fake::Fake;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::oneshot;
use varve_server::api::{ApiConfig, ApiServer};

/// A node in memory, served from a thread of its own.
pub struct Node {
    pub fake: Arc<Fake>,
    pub dir: tempfile::TempDir,
    pub tcp: SocketAddr,
    pub token: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What a run of the program gave.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Run {
    /// The output of a run that must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }
    #[track_caller]
    pub fn json(self) -> Value {
        let out = self.ok();
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }
    /// The complaint of a run that must have failed with `code`, and said nothing else.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert_eq!((self.code, self.out.as_str()), (code, ""), "{self:?}");
        self.err
    }
}

/// The program, with an environment that says nothing of a node.
pub fn varve() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_varve"));
    command.env_remove("VARVE_API").env_remove("VARVE_TOKEN").stdin(Stdio::null());
    command
}

/// Runs the program by itself.
pub fn run(args: &[&str]) -> Run {
    varve().args(args).output().unwrap().into()
}

impl Node {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = ApiConfig {
            unix: dir.path().join("api.sock"),
            tcp: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            token_file: dir.path().join("token"),
        };
        let fake = Arc::new(Fake::new());
        let control = Arc::clone(&fake);
        let (stop, stopped) = oneshot::channel::<()>();
        let (listening, listens) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let server = ApiServer::bind(&config).await.unwrap();
                listening.send(server.tcp_address().unwrap()).unwrap();
                let stopped = async {
                    let _ = stopped.await;
                };
                server.run(control, stopped).await;
            });
        });
        let tcp = listens.recv().unwrap();
        let token = std::fs::read_to_string(dir.path().join("token")).unwrap().trim().to_owned();
        Self { fake, dir, tcp, token, stop: Some(stop), thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("unix:{}", self.dir.path().join("api.sock").display())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The program, told where this node is.
    pub fn varve(&self) -> Command {
        let mut command = varve();
        command.env("VARVE_API", self.url()).current_dir(self.dir.path());
        command
    }

    pub fn run(&self, args: &[&str]) -> Run {
        self.varve().args(args).output().unwrap().into()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}
