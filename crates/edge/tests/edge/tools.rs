// SPDX-License-Identifier: Apache-2.0
//! The command under test, and the programs that use its NBD socket.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use varve_lab::process::{Process, Signal, find_program, wait_until};

pub const DEADLINE: Duration = Duration::from_secs(60);

/// The command.
pub fn edge() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_varve-edge"));
    command.env_remove("VARVE_EDGE_CONTROL").env_remove("VARVE_EDGE_LOG").stdin(Stdio::null());
    command
}

/// A run that ends by itself: its exit code, and what it said on both streams.
pub fn finished(args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = edge().args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

/// An edge that runs until it is dropped.
pub struct Running {
    pub process: Process,
    pub dir: tempfile::TempDir,
}

impl Running {
    /// Starts it with `args`, behind which the socket is given, and waits for `line` in its output.
    pub fn start(args: &[&str], line: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = edge();
        command
            .args(args)
            .arg("--socket")
            .arg(dir.path().join("nbd.sock"))
            .env("VARVE_EDGE_CONTROL", dir.path().join("control"));
        let mut process = Process::start("varve-edge", command, dir.path()).unwrap();
        wait_until(DEADLINE, line, || {
            process.check_running()?;
            Ok(std::fs::read_to_string(process.log_path())?.contains(line))
        })
        .unwrap();
        Self { process, dir }
    }

    pub fn control(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    pub fn uri(&self, volume: &str) -> String {
        format!("nbd+unix:///{volume}?socket={}", self.dir.path().join("nbd.sock").display())
    }

    /// Asks it, over its control socket.
    pub fn ask(&self, args: &[&str]) -> (i32, String, String) {
        let control = self.control();
        finished(&[&["--control", control.to_str().unwrap()], args].concat())
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.process.log_path()).unwrap()
    }

    /// Stops it, as an operator does; its exit code.
    pub fn stop(&mut self) -> i32 {
        self.process.signal(Signal::TERM).unwrap();
        self.process.wait(DEADLINE).unwrap().code().unwrap_or(-1)
    }
}

/// Runs a program to its end; whether it succeeded, and its output.
pub fn try_run(dir: &Path, program: &str, package: &str, args: &[&str]) -> (bool, String) {
    let mut process = start(dir, program, package, args);
    let status = process.wait(DEADLINE).unwrap();
    (status.success(), std::fs::read_to_string(process.log_path()).unwrap())
}

/// Begins a program.
pub fn start(dir: &Path, program: &str, package: &str, args: &[&str]) -> Process {
    let mut command = Command::new(find_program(program, package).unwrap());
    command.args(args).current_dir(dir);
    let logs = tempfile::Builder::new().prefix(program).tempdir_in(dir).unwrap().keep();
    Process::start(program, command, &logs).unwrap()
}
