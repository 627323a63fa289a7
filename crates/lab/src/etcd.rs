// SPDX-License-Identifier: Apache-2.0
//! A real etcd for tests (programs `etcd` and `etcdctl`, Debian packages `etcd-server` and `etcd-client`): one member or three, on ports of their own on
//! 127.0.0.1, their data in a directory that goes with them.
//!
//! Members can be killed, frozen and started again one by one, with their ports and data. TLS, authentication and every flag of etcd can be asked for;
//! health, leaders and counters are read from a port of plain HTTP that each member has for that.
//!
//! What tests may rely on, as seen with 3.4.23: one member answers after 0.3 s, three after 1 to 2 s; a leader that is killed has a successor after 1 to
//! 2 s; a lease of less than 2 s lives for 2 s.

use crate::certificates::Certificates;
use crate::process::{Process, Signal, find_program, free_port, wait_until};
use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

const SERVER_PACKAGE: &str = "etcd-server";
const CLIENT_PACKAGE: &str = "etcd-client";
/// How long members may take to answer and to agree on a leader.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// A port can be taken between choosing and binding it; then others are tried.
const START_TRIES: usize = 3;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of an answer to a question about a member.
const ANSWER_MAX_BYTES: u64 = 4 << 20;

/// What kind of etcd.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many members.
    pub members: usize,
    /// Whether clients speak TLS.
    pub tls: bool,
    /// Whether clients have to show a certificate, too.
    pub client_certificates: bool,
    /// Whether tokens live for a second only, and are signed and not kept.
    pub short_tokens: bool,
    /// Further arguments of every member.
    pub arguments: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { members: 1, tls: false, client_certificates: false, short_tokens: false, arguments: Vec::new() }
    }
}

/// A running etcd. Stops and forgets everything when dropped.
#[derive(Debug)]
pub struct Etcd {
    options: Options,
    members: Vec<Member>,
    certificates: Option<Certificates>,
    // Dropped after the processes, which write into it.
    dir: TempDir,
}

#[derive(Debug)]
struct Member {
    process: Option<Process>,
    client: u16,
    peer: u16,
    metrics: u16,
}

impl Etcd {
    /// Starts one member without TLS and authentication.
    ///
    /// # Errors
    /// When a program is missing or does not come up.
    pub fn start() -> Result<Self> {
        Self::start_with(&Options::default())
    }

    /// Starts members and waits until each of them answers and knows of a leader.
    ///
    /// # Errors
    /// When a program is missing or does not come up.
    pub fn start_with(options: &Options) -> Result<Self> {
        let mut last = None;
        for _ in 0..START_TRIES {
            match Self::try_start(options) {
                Ok(etcd) => return Ok(etcd),
                Err(error) => last = Some(error),
            }
        }
        last.map_or_else(|| bail!("etcd was not tried"), Err)
    }

    fn try_start(options: &Options) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("varve-etcd-").tempdir().context("make a directory")?;
        let certificates = if options.tls { Some(Certificates::make(dir.path())?) } else { None };
        let mut options = options.clone();
        if options.short_tokens {
            let [private, public] = Certificates::token_keys(dir.path())?;
            let keys = format!("pub-key={},priv-key={}", public.display(), private.display());
            options.arguments.push(format!("--auth-token=jwt,{keys},sign-method=RS256,ttl=1s"));
        }
        let ports = || -> Result<Member> {
            Ok(Member { process: None, client: free_port()?, peer: free_port()?, metrics: free_port()? })
        };
        let members = (0..options.members).map(|_| ports()).collect::<Result<Vec<_>>>()?;
        let mut etcd = Self { options, members, certificates, dir };
        for member in 0..etcd.members.len() {
            etcd.start_process(member)?;
        }
        for member in 0..etcd.members.len() {
            etcd.wait_until_healthy(member)?;
        }
        Ok(etcd)
    }

    fn start_process(&mut self, member: usize) -> Result<()> {
        ensure!(self.members[member].process.is_none(), "member {member} runs already");
        let command = self.command(member)?;
        self.members[member].process = Some(Process::start(&format!("etcd-{member}"), command, self.dir.path())?);
        Ok(())
    }

    fn wait_until_healthy(&mut self, member: usize) -> Result<()> {
        let metrics = self.members[member].metrics;
        let process = self.members[member].process.as_mut().context("the member was not started")?;
        wait_until(START_DEADLINE, "etcd to be healthy", || {
            process.check_running()?;
            Ok(get(metrics, "/health").is_ok_and(|answer| answer.contains("\"health\":\"true\"")))
        })
    }

    fn command(&self, member: usize) -> Result<Command> {
        let mut command = Command::new(find_program("etcd", SERVER_PACKAGE)?);
        let Member { client, peer, metrics, .. } = &self.members[member];
        let url = |port: &u16| format!("http://127.0.0.1:{port}");
        let cluster = self.members.iter().enumerate().map(|(n, member)| format!("m{n}={}", url(&member.peer)));
        let cluster = cluster.collect::<Vec<_>>().join(",");
        let endpoint = self.endpoint(client.to_owned());
        for (flag, value) in [
            ("--name", format!("m{member}")),
            ("--data-dir", format!("data-{member}")),
            ("--listen-client-urls", endpoint.clone()),
            ("--advertise-client-urls", endpoint),
            ("--listen-peer-urls", url(peer)),
            ("--initial-advertise-peer-urls", url(peer)),
            ("--initial-cluster", cluster),
            ("--listen-metrics-urls", url(metrics)),
            ("--logger", "zap".to_owned()),
            // The cheapest there is: tests have nothing to hide.
            ("--bcrypt-cost", "4".to_owned()),
        ] {
            command.args([flag, &value]);
        }
        if let Some(certificates) = &self.certificates {
            let [certificate, key] = certificates.server();
            command.arg("--cert-file").arg(certificate).arg("--key-file").arg(key);
            if self.options.client_certificates {
                command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(certificates.ca());
            }
        }
        command.args(&self.options.arguments).current_dir(self.dir.path());
        // What the surroundings say to an etcd of the machine is not for this one.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCD")) {
            command.env_remove(name);
        }
        Ok(command)
    }

    fn endpoint(&self, port: u16) -> String {
        format!("{}://127.0.0.1:{port}", if self.options.tls { "https" } else { "http" })
    }

    /// Where clients find the members, `http://127.0.0.1:PORT` each.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| self.endpoint(member.client)).collect()
    }

    /// The port of a member's clients.
    #[must_use]
    pub fn port(&self, member: usize) -> u16 {
        self.members[member].client
    }

    /// Its certificates, with TLS.
    ///
    /// # Errors
    /// Without TLS.
    pub fn certificates(&self) -> Result<&Certificates> {
        self.certificates.as_ref().context("this etcd has no certificates")
    }

    /// Its directory, for files that go with it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.dir.path()
    }

    /// Kills a member (SIGKILL). Its ports and data are kept.
    ///
    /// # Errors
    /// When it cannot be reaped.
    pub fn kill(&mut self, member: usize) -> Result<()> {
        if let Some(mut process) = self.members[member].process.take() {
            process.kill()?;
        }
        Ok(())
    }

    /// Freezes a member (SIGSTOP): its connections stay, and it does nothing.
    ///
    /// # Errors
    /// When it does not run.
    pub fn freeze(&mut self, member: usize) -> Result<()> {
        self.members[member].process.as_mut().context("the member does not run")?.signal(Signal::STOP)
    }

    /// Lets a frozen member go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn thaw(&mut self, member: usize) -> Result<()> {
        self.members[member].process.as_mut().context("the member does not run")?.signal(Signal::CONT)
    }

    /// Starts a member that was killed, and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up, or runs already.
    pub fn start_again(&mut self, member: usize) -> Result<()> {
        self.start_process(member)?;
        self.wait_until_healthy(member)
    }

    /// Starts a member that was killed without any data, as one that somebody set up anew, and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up, or runs already.
    pub fn start_empty(&mut self, member: usize) -> Result<()> {
        ensure!(self.members[member].process.is_none(), "member {member} runs already");
        let data = self.dir.path().join(format!("data-{member}"));
        std::fs::remove_dir_all(&data).with_context(|| format!("remove {}", data.display()))?;
        self.start_again(member)
    }

    /// The member that leads.
    ///
    /// # Errors
    /// When none does for a long while.
    pub fn leader(&self) -> Result<usize> {
        let mut leader = None;
        wait_until(START_DEADLINE, "etcd to have a leader", || {
            leader = (0..self.members.len())
                .find(|member| self.metric(*member, "etcd_server_is_leader").is_ok_and(|is| is == 1.0));
            Ok(leader.is_some())
        })?;
        leader.context("there is a leader")
    }

    /// The value of a counter of a member: the sum over its lines that begin with `name`.
    ///
    /// # Errors
    /// When the member does not answer, or has no such counter.
    pub fn metric(&self, member: usize, name: &str) -> Result<f64> {
        let answer = get(self.members[member].metrics, "/metrics")?;
        let lines = answer.lines().filter(|line| line.starts_with(name));
        let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).collect::<Vec<_>>();
        ensure!(!values.is_empty(), "etcd has no counter {name}");
        Ok(values.into_iter().sum())
    }

    /// Runs `etcdctl` against all members, without a user unless the arguments name one; gives what it prints.
    ///
    /// # Errors
    /// When it fails.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(find_program("etcdctl", CLIENT_PACKAGE)?);
        command.env("ETCDCTL_API", "3").arg("--endpoints").arg(self.endpoints().join(","));
        if let Some(certificates) = &self.certificates {
            let [certificate, key] = certificates.client();
            command.arg("--cacert").arg(certificates.ca()).arg("--cert").arg(certificate).arg("--key").arg(key);
        }
        let output = command.args(arguments).output().context("run etcdctl")?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "etcdctl {arguments:?}: {error}");
        String::from_utf8(output.stdout).context("what etcdctl prints is text")
    }

    /// Enables authentication, with the user `root`, password `root`, who may do everything; and the user `varve`, with the password given, who may
    /// read and write below the prefix.
    ///
    /// # Errors
    /// When `etcdctl` fails.
    pub fn enable_auth(&self, password: &str, prefix: &str) -> Result<()> {
        let user = format!("varve:{password}");
        for words in [
            &["user", "add", "root:root"][..],
            &["user", "grant-role", "root", "root"],
            &["role", "add", "varve"],
            &["role", "grant-permission", "varve", "readwrite", prefix, "--prefix"],
            &["user", "add", &user],
            &["user", "grant-role", "varve", "varve"],
            &["auth", "enable"],
        ] {
            self.ctl(words)?;
        }
        Ok(())
    }
}

/// The answer to a GET from 127.0.0.1, head and body.
fn get(port: u16, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).with_context(|| format!("connect to {port}"))?;
    stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
    stream.set_write_timeout(Some(REQUEST_TIMEOUT))?;
    // The older version of the protocol: the answer comes in one piece and ends with the connection.
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.take(ANSWER_MAX_BYTES).read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etcd_keeps_its_data_over_a_kill() {
        let mut etcd = Etcd::start().unwrap();
        etcd.ctl(&["put", "k", "v"]).unwrap();
        assert_eq!(etcd.leader().unwrap(), 0);
        etcd.kill(0).unwrap();
        assert!(etcd.ctl(&["--command-timeout=200ms", "get", "k"]).is_err());
        etcd.start_again(0).unwrap();
        assert_eq!(etcd.ctl(&["get", "k"]).unwrap(), "k\nv\n");
        etcd.freeze(0).unwrap();
        assert!(etcd.ctl(&["--command-timeout=200ms", "get", "k"]).is_err());
        etcd.thaw(0).unwrap();
        assert_eq!(etcd.ctl(&["get", "k"]).unwrap(), "k\nv\n");
        let port = etcd.port(0);
        drop(etcd);
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
    }

    #[test]
    fn an_etcd_of_three_agrees_and_wants_what_it_was_told_to() {
        let options =
            Options { members: 3, tls: true, client_certificates: true, short_tokens: true, ..Options::default() };
        let etcd = Etcd::start_with(&options).unwrap();
        etcd.enable_auth("secret", "/varve/").unwrap();
        etcd.ctl(&["--user", "varve:secret", "put", "/varve/k", "v"]).unwrap();
        for refused in [
            &["get", "/varve/k"][..],
            &["--user", "varve:wrong", "get", "/varve/k"],
            &["--user", "varve:secret", "get", "k"],
        ] {
            assert!(etcd.ctl(refused).is_err(), "{refused:?}");
        }
        assert!(etcd.metric(0, "etcd_server_has_leader").unwrap() == 1.0);
    }
}
