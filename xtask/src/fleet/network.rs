// SPDX-License-Identifier: Apache-2.0
//! Hosts on one machine: network namespaces, in which nodes can be cut off as a broken network would.
//!
//! One namespace is the router, with the address [`ROUTER`], and each host has one of its own with a wire (veth) to it and the address [`host`]. Nothing of
//! the machine's own network is touched or needed, so addresses and ports collide with nobody's. A namespace has no name: it lives as long as the process
//! that sleeps in it, and as what runs in it, all of which the watcher ends ([`crate::guard`]). So nothing is left behind, however this program ends.
//!
//! A host that is cut off ([`Network::cut`]) has a neighbour with an address that is nobody's, at one end of its wire or both: what is sent is dropped by who gets
//! it, and no one is told. A link that is down would make the kernel refuse, which a broken switch does not. Sockets of Unix pass through
//! namespaces, so a host that is cut off can still be asked how it is.
//!
//! Needs root.

use crate::process::{Daemon, output, until};
use anyhow::{Context, Result, ensure};
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The address of the router, where what is not of one host runs.
pub const ROUTER: &str = "10.77.0.1";
/// How long one command may take.
const QUICK: Duration = Duration::from_secs(10);
/// An address that no wire's end has.
const NOBODY: &str = "02:00:00:00:00:01";

/// The address of a host.
pub fn host(number: usize) -> String {
    format!("10.77.{}.2", number + 1)
}

/// The address of the router on a host's wire.
fn gateway(number: usize) -> String {
    format!("10.77.{}.1", number + 1)
}

/// The router's end of a host's wire.
fn wire(number: usize) -> String {
    format!("host{number}")
}

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the host.
    In,
    /// From it.
    Out,
    /// To it and from it.
    Both,
}

/// The router, and hosts at wires to it.
pub struct Network {
    router: Namespace,
    hosts: Vec<Namespace>,
}

/// A namespace: the process that keeps it.
struct Namespace(Daemon);

impl Namespace {
    fn new(log: &Path) -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--net", "sleep", "infinity"]);
        let mut daemon = Daemon::start(&mut command, log)?;
        let here = std::fs::read_link("/proc/self/ns/net").context("the network namespace of this program")?;
        let there = format!("/proc/{}/ns/net", daemon.pid());
        // Until then it is in the machine's own, which is none of our business.
        until(QUICK, "a network namespace, which only root can make", || {
            daemon.must_live()?;
            Ok(std::fs::read_link(&there).is_ok_and(|there| there != here))
        })?;
        Ok(Self(daemon))
    }

    /// A program to be started in it; its process is the program's.
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.0.pid())).arg("--").arg(program);
        command
    }

    fn ip(&self, arguments: &str) -> Result<()> {
        output(self.command("ip").args(arguments.split(' ')), QUICK).map(drop)
    }
}

impl Network {
    /// A router and so many hosts, all of which reach each other. Logs go to the directory.
    pub fn new(hosts: usize, directory: &Path) -> Result<Self> {
        ensure!(hosts < 200, "{hosts} hosts are more than there are addresses for");
        let router = Namespace::new(&directory.join("router.log"))?;
        router.ip("link set lo up")?;
        router.ip(&format!("addr add {ROUTER}/32 dev lo"))?;
        output(router.command("sh").args(["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]), QUICK)?;
        let hosts = (0..hosts).map(|number| connect(&router, number, directory)).collect::<Result<_>>()?;
        Ok(Self { router, hosts })
    }

    /// A program to be started on the router.
    pub fn on_router(&self, program: impl AsRef<OsStr>) -> Command {
        self.router.command(program)
    }

    /// A program to be started on a host.
    pub fn on_host(&self, number: usize, program: impl AsRef<OsStr>) -> Command {
        self.hosts[number].command(program)
    }

    /// Drops what goes one way or both between a host and all others, from now on.
    pub fn cut(&self, number: usize, way: Way) -> Result<()> {
        let lost = |who: &Namespace, to: &str, device: &str| {
            who.ip(&format!("neigh replace {to} lladdr {NOBODY} nud permanent dev {device}"))
        };
        if way != Way::Out {
            lost(&self.router, &host(number), &wire(number))?;
        }
        if way != Way::In {
            lost(&self.hosts[number], &gateway(number), "eth0")?;
        }
        Ok(())
    }

    /// Mends what was cut that way.
    pub fn heal(&self, number: usize, way: Way) -> Result<()> {
        if way != Way::Out {
            self.router.ip(&format!("neigh del {} dev {}", host(number), wire(number)))?;
        }
        if way != Way::In {
            self.hosts[number].ip(&format!("neigh del {} dev eth0", gateway(number)))?;
        }
        Ok(())
    }
}

fn connect(router: &Namespace, number: usize, directory: &Path) -> Result<Namespace> {
    let namespace = Namespace::new(&directory.join(format!("host-{number}.log")))?;
    let (wire, gateway, pid) = (wire(number), gateway(number), namespace.0.pid());
    router.ip(&format!("link add {wire} type veth peer name eth0 netns {pid}"))?;
    router.ip(&format!("addr add {gateway}/24 dev {wire}"))?;
    router.ip(&format!("link set {wire} up"))?;
    namespace.ip("link set lo up")?;
    namespace.ip(&format!("addr add {}/24 dev eth0", host(number)))?;
    namespace.ip("link set eth0 up")?;
    namespace.ip(&format!("route add default via {gateway}"))?;
    Ok(namespace)
}
