// SPDX-License-Identifier: Apache-2.0
//! What is measured: our server, its peers, and the bare disk.
//!
//! Each is started anew for a turn and is gone when [`Running`] is dropped. A server counts as started when it has answered
//! a read. All serve over a unix socket, and the raw file is the same one for all that use one.
//!
//! What a server prints goes to a log in its directory, which is shown when it does not start.

use super::ground::Ground;
use super::{fio, nbd};
use crate::process::Daemon;
use crate::usage::settle;
use anyhow::{Context, Result, bail};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Our server: directory store and journal on the measured disk, `ack = process`.
    Varve,
    /// `nbdkit memory`: no disk at all.
    NbdkitMemory,
    /// `nbdkit file`: a raw file through the page cache.
    NbdkitFile,
    /// `qemu-storage-daemon`: a raw file, direct, io_uring.
    QemuStorageDaemon,
    /// The raw file itself, direct, without a server.
    Disk,
    /// Three processes that pass requests on: see [`super::echo`].
    EchoChain,
}

const START: Duration = Duration::from_secs(60);
/// The configuration of our server, in its directory, where it has one.
const CONFIG: &str = "bench.toml";
const SETTLE: Duration = Duration::from_secs(120);

impl Kind {
    /// Every target, in the order of the reports.
    pub const ALL: [Self; 6] =
        [Self::Varve, Self::NbdkitMemory, Self::NbdkitFile, Self::QemuStorageDaemon, Self::Disk, Self::EchoChain];

    /// The name in options and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Varve => "varve",
            Self::NbdkitMemory => "nbdkit-memory",
            Self::NbdkitFile => "nbdkit-file",
            Self::QemuStorageDaemon => "qemu-storage-daemon",
            Self::Disk => "disk",
            Self::EchoChain => "echo-chain",
        }
    }

    /// Starts it with empty volumes of these names; only our server has more than one.
    pub fn start(self, ground: &Ground, volumes: &[String]) -> Result<Running> {
        self.start_with(ground, volumes, "")
    }

    /// The same, our server with lines of configuration.
    pub fn start_with(self, ground: &Ground, volumes: &[String], config: &str) -> Result<Running> {
        let directory = ground.scratch(self)?;
        if !config.is_empty() {
            let file = directory.join(CONFIG);
            std::fs::write(&file, config).with_context(|| format!("writing {}", file.display()))?;
        }
        let socket = directory.join("nbd.sock");
        let command = match self {
            Self::Varve => varve(ground, &directory, volumes),
            Self::NbdkitMemory => nbdkit(&socket, &["memory".to_owned(), ground.size.to_string()]),
            Self::NbdkitFile => nbdkit(&socket, &["file".to_owned(), ground.raw_file()?.display().to_string()]),
            Self::EchoChain => bail!("its group starts the chain itself"),
            Self::QemuStorageDaemon => qemu_storage_daemon(&socket, &ground.raw_file()?, &volumes[0]),
            Self::Disk => {
                return Ok(Running {
                    daemon: None,
                    place: Place::File(ground.raw_file()?),
                    directory,
                    start_time: START,
                });
            }
        };
        let mut running = Running { daemon: None, place: Place::Socket(socket), directory, start_time: Duration::ZERO };
        running.launch(command, volumes)?;
        Ok(running)
    }
}

/// Our server on a data directory, new or not.
fn varve(ground: &Ground, directory: &Path, volumes: &[String]) -> Command {
    let mut command = Command::new(&ground.varve);
    // The API's port is another than a person's own server would have.
    command.args(["up", "--api-listen", "127.0.0.1:0", "--data"]).arg(directory);
    let config = directory.join(CONFIG);
    if config.exists() {
        command.arg("--config").arg(config);
    }
    for volume in volumes {
        command.arg("--volume").arg(format!("{volume}:{}G", ground.size >> 30));
    }
    command
}

fn nbdkit(socket: &Path, plugin: &[String]) -> Command {
    let mut command = Command::new("nbdkit");
    command.arg("--foreground").arg("--unix").arg(socket).args(plugin);
    command
}

fn qemu_storage_daemon(socket: &Path, raw: &Path, export: &str) -> Command {
    let mut command = Command::new("qemu-storage-daemon");
    let file = format!("driver=file,node-name=file,filename={},cache.direct=on,aio=io_uring", raw.display());
    command.args(["--blockdev", &file, "--blockdev", "driver=raw,node-name=raw,file=file"]);
    command.args(["--nbd-server", &format!("addr.type=unix,addr.path={}", socket.display())]);
    command.args(["--export", &format!("type=nbd,id=export,node-name=raw,name={export},writable=on")]);
    command
}

enum Place {
    Socket(PathBuf),
    File(PathBuf),
}

/// A target that serves.
pub struct Running {
    daemon: Option<Daemon>,
    place: Place,
    directory: PathBuf,
    /// From the start of the program to the first read that was answered.
    pub start_time: Duration,
}

impl Running {
    fn launch(&mut self, mut command: Command, volumes: &[String]) -> Result<()> {
        let Place::Socket(socket) = &self.place else { return Ok(()) };
        let log = self.directory.join("bench.log");
        let start = Instant::now();
        let daemon = self.daemon.insert(Daemon::start(&mut command, &log)?);
        let answered =
            nbd::first_read(socket, &volumes[0], start + START, || daemon.must_live()).with_context(|| {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                format!("what the server said: {}", said.trim_end())
            })?;
        self.start_time = answered - start;
        Ok(())
    }

    /// Kills our server as `kill -9` does, and starts it again on what it left. Gives the times from the start of the program to the
    /// first read of the first volume and to the first read of the last.
    pub fn kill_and_start_again(&mut self, ground: &Ground, volumes: &[String]) -> Result<(Duration, Duration)> {
        self.daemon.take().context("there is no server to kill")?.kill()?;
        let start = Instant::now();
        self.launch(varve(ground, &self.directory, &[]), volumes)?;
        let Place::Socket(socket) = &self.place else { return Ok((self.start_time, self.start_time)) };
        for volume in volumes {
            nbd::first_read(socket, volume, start + START, || Ok(()))?;
        }
        Ok((self.start_time, start.elapsed()))
    }

    /// Options of fio that say where to load it.
    pub fn fio_place(&self, volume: &str) -> Vec<String> {
        match &self.place {
            Place::Socket(socket) => fio::export(socket, volume),
            Place::File(file) => vec!["--direct=1".to_owned(), format!("--filename={}", file.display())],
        }
    }

    /// Whether there is a server, or the bare disk.
    pub fn is_served(&self) -> bool {
        matches!(self.place, Place::Socket(_))
    }

    /// The server's process.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Daemon::pid)
    }

    /// The socket of our server's API.
    pub fn api_socket(&self) -> PathBuf {
        self.directory.join("api.sock")
    }

    /// What our server tells of itself, in the format of Prometheus.
    pub fn metrics(&self) -> Result<String> {
        let socket = self.api_socket();
        let ask = || -> std::io::Result<String> {
            let (mut stream, mut text) = (UnixStream::connect(&socket)?, String::new());
            stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        ask().with_context(|| format!("asking {} for metrics", socket.display()))
    }

    /// Waits until the server has nothing left to do.
    pub fn settle(&self) -> Result<()> {
        self.pid().map_or(Ok(()), |pid| settle(pid, SETTLE))
    }
}
