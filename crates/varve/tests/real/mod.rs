// SPDX-License-Identifier: Apache-2.0
//! A real node: the program, as a process of its own on a data directory of its own, and the clients that drive it.

// Each test program uses a part of it.
#![allow(dead_code)]

use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use varve_lab::process::{Process, Signal, find_program, wait_until};

/// How long anything may take that a person would wait for; the machine may be busy with other tests.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// What a run of a program gave.
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
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
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
    /// The same as JSON.
    #[track_caller]
    pub fn json(self) -> Value {
        let out = self.ok();
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }
    /// The complaint of a run that must have failed with `code`.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        self.err
    }
}

/// The program, with an environment that says nothing of a node.
pub fn varve() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_varve"));
    command.env_remove("VARVE_API").env_remove("VARVE_TOKEN").stdin(Stdio::null());
    command
}

/// Runs a program that must be installed.
pub fn run(program: &str, package: &str, args: &[&str]) -> Run {
    let program = find_program(program, package).unwrap();
    Command::new(program).args(args).stdin(Stdio::null()).output().unwrap().into()
}

/// libnbd's shell with a script in Python, in which `h` is the handle.
pub fn nbdsh_command(uri: &str, script: &str) -> Command {
    let mut command = Command::new(find_program("nbdsh", "python3-libnbd").unwrap());
    // It runs `python3`, and the one of the system is the one that has the module.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("/usr/bin:/bin:{path}")).args(["-u", uri, "-c", script]).stdin(Stdio::null());
    command
}

/// Runs a script in libnbd's shell.
pub fn nbdsh(uri: &str, script: &str) -> Run {
    nbdsh_command(uri, script).output().unwrap().into()
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A node, running or not.
pub struct Node {
    /// Goes before the directory with its log.
    process: Option<Process>,
    args: Vec<String>,
    starts: u32,
    pub dir: tempfile::TempDir,
}

impl Node {
    /// A data directory that no node has run on. Its journal will be small and nothing listens on TCP.
    pub fn new(args: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("varve-node-").tempdir().unwrap();
        let mut file = std::fs::File::create(dir.path().join("varve.toml")).unwrap();
        writeln!(file, "journal-size = '64M'\nlayer-ram = '64M'\napi-listen = 'none'").unwrap();
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Self { dir, args, starts: 0, process: None }
    }

    /// The same, started.
    pub fn start(args: &[&str]) -> Self {
        let mut node = Self::new(args);
        node.up();
        node
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command that starts a node on a data directory.
    pub fn command(&self, data: &Path) -> Command {
        let mut command = varve();
        command.arg("up").arg("--config").arg(self.dir.path().join("varve.toml")).arg("--data").arg(data);
        command
    }

    /// Starts it and waits until it serves.
    pub fn up(&mut self) {
        self.starts += 1;
        let mut command = self.command(&self.data());
        command.args(&self.args);
        let mut process = Process::start(&format!("up-{}", self.starts), command, self.dir.path()).unwrap();
        wait_until(DEADLINE, "the node to serve", || {
            process.check_running()?;
            Ok(std::fs::read_to_string(process.log_path())?.contains("Ctrl-C stops it."))
        })
        .unwrap();
        self.process = Some(process);
    }

    /// What it said since its last start.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("up-{}.log", self.starts))).unwrap()
    }

    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().unwrap()
    }

    /// Stops it in good order.
    pub fn stop(&mut self) {
        let mut process = self.process.take().unwrap();
        process.signal(Signal::TERM).unwrap();
        let status = process.wait(DEADLINE).unwrap();
        assert_eq!(status.code(), Some(0), "{}", process.log_tail());
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(&mut self) {
        self.process.take().unwrap().kill().unwrap();
    }

    /// Where an export is.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.data().join("nbd.sock").display())
    }

    /// Runs the command line against it.
    pub fn varve(&self, args: &[&str]) -> Run {
        let api = format!("unix:{}", self.data().join("api.sock").display());
        varve().env("VARVE_API", api).args(args).output().unwrap().into()
    }

    /// What the node says of itself to Prometheus.
    pub fn metrics(&self) -> String {
        let mut stream = UnixStream::connect(self.data().join("api.sock")).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// Runs commands of qemu-io on an export, all of which must succeed.
    #[track_caller]
    pub fn qemu_io(&self, export: &str, commands: &[&str]) {
        let uri = self.uri(export);
        let mut args = vec!["-f", "raw"];
        if export.contains('@') {
            args.push("-r");
        }
        for command in commands {
            args.extend(["-c", command]);
        }
        args.push(&uri);
        let run = run("qemu-io", "qemu-utils", &args);
        let bad = run.out.contains("verification failed") || run.out.contains("failed") || run.err.contains("failed");
        assert!(run.code == 0 && !bad, "{commands:?}: {run:?}");
    }

    /// Waits until the status is as `holds` wants it.
    #[track_caller]
    pub fn until_status(&self, what: &str, holds: impl Fn(&Value) -> bool) {
        wait_until(DEADLINE, what, || Ok(holds(&self.varve(&["status", "--json"]).json()))).unwrap();
    }
}
