// SPDX-License-Identifier: Apache-2.0
//! A cluster to be disturbed: an etcd, nodes that mirror each other's volumes, and an edge with one volume.
//!
//! Each node is on a host of its own ([`Network`]); etcd and the edge are on the router. Data directories, the store and etcd's data lie in one scratch
//! directory on the measured disk. Processes are killed when the fleet is dropped: what they have is thrown away.
//!
//! A node that is stopped answers nobody, so nobody asks it: it is told of ([`Fleet::stop`]) and left out until it goes on.

use super::ground::{Ground, cpu_seconds, settle};
use super::network::{Network, ROUTER, host};
use super::targets::Kind;
use crate::process::{Daemon, Signal, output, until};
use crate::provision;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The volume.
pub const VOLUME: &str = "bench0";
/// How many nodes: one that dies leaves two, which mirror each other.
const NODES: usize = 3;
/// How long a program may take until it serves, or one command.
const START: Duration = Duration::from_secs(60);
const QUICK: Duration = Duration::from_secs(30);
/// How long a take-over may take before it counts as one that does not come, and how long until all is as before.
const TAKE_OVER: Duration = Duration::from_secs(120);
const RECOVERY: Duration = Duration::from_secs(180);
/// Between two looks while a load is measured: they cost the machine something.
const LOOK: Duration = Duration::from_millis(200);
/// Ports of every node.
const EDGE_PORT: u16 = 7421;
const MIRROR_PORT: u16 = 7422;

struct Node {
    daemon: Option<Daemon>,
    /// Whether it answers: it was not stopped.
    answers: bool,
}

/// The cluster, and an edge that has the volume attached.
pub struct Fleet {
    directory: PathBuf,
    varve: PathBuf,
    edge: Option<Daemon>,
    nodes: Vec<Node>,
    etcd: Option<Daemon>,
    /// Goes last: the others are in it.
    network: Network,
}

impl Fleet {
    /// A new cluster, its volume mirrored.
    pub fn start(ground: &Ground) -> Result<Self> {
        let directory = ground.scratch(Kind::Varve)?;
        let network = Network::new(NODES, &directory)?;
        let nodes = (0..NODES).map(|_| Node { daemon: None, answers: false }).collect();
        let mut fleet = Self { directory, varve: ground.varve.clone(), edge: None, nodes, etcd: None, network };
        fleet.start_etcd()?;
        for number in 0..NODES {
            fleet.write_config(number)?;
            fleet.start_node(number)?;
        }
        fleet.tell(0, &["volume", "create", VOLUME, "--size", &format!("{}G", ground.size >> 30)])?;
        // What is overwritten is freed at once, so that the disk has room for many runs.
        fleet.tell(0, &["volume", "set", VOLUME, "mirror=sync", "rewind-window=0s"])?;
        fleet.start_edge()?;
        fleet.settled()?;
        Ok(fleet)
    }

    fn start_etcd(&mut self) -> Result<()> {
        let [client, peer] = [2379, 2380].map(|port| format!("http://{ROUTER}:{port}"));
        let mut command = self.network.on_router("etcd");
        command.env("PATH", provision::path_for_tests()).arg("--data-dir").arg(self.directory.join("etcd"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}")]);
        let etcd = self.etcd.insert(Daemon::start(&mut command, &self.directory.join("etcd.log"))?);
        until(START, "etcd to answer", || {
            etcd.must_live()?;
            let mut init = self.network.on_router(&self.varve);
            Ok(output(init.args(["cluster", "init", "--etcd", &client]), QUICK).is_ok())
        })
    }

    fn data(&self, number: usize) -> PathBuf {
        self.directory.join(format!("n{number}"))
    }

    fn config(&self, number: usize) -> PathBuf {
        self.directory.join(format!("n{number}.toml"))
    }

    fn write_config(&self, number: usize) -> Result<()> {
        let (data, store, address) = (self.data(number), self.directory.join("store"), host(number));
        let text = format!(
            "data = '{}'\nnode-name = 'n{number}'\netcd = ['http://{ROUTER}:2379']\nstore = 'file://{}'\napi-listen = 'none'\n\
             edge-listen = '{address}:{EDGE_PORT}'\nmirror-listen = '{address}:{MIRROR_PORT}'\njournal-size = '512M'\n",
            data.display(),
            store.display()
        );
        let file = self.config(number);
        std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
    }

    /// Starts a node, new or killed, and waits until it serves.
    pub fn start_node(&mut self, number: usize) -> Result<()> {
        let mut command = self.network.on_host(number, &self.varve);
        command.arg("up").arg("--config").arg(self.config(number));
        let log = self.directory.join(format!("n{number}.log"));
        let mut daemon = Daemon::start(&mut command, &log)?;
        let serves = until(START, "a node to serve", || {
            daemon.must_live()?;
            Ok(self.tell(number, &["status"]).is_ok())
        });
        serves.with_context(|| {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            format!("what the node said: {}", said.trim_end())
        })?;
        self.nodes[number] = Node { daemon: Some(daemon), answers: true };
        Ok(())
    }

    fn edge_command(&self, command: &mut Command, arguments: &[&str]) -> Result<String> {
        output(command.args(arguments).arg("--control").arg(self.directory.join("control.sock")), QUICK)
    }

    fn start_edge(&mut self) -> Result<()> {
        let program = self.varve.with_file_name("varve-edge");
        let (socket, control) = (self.socket(), self.directory.join("control.sock"));
        let mut command = self.network.on_router(&program);
        command.arg("serve").arg("--socket").arg(&socket).arg("--control").arg(&control);
        let edge = self.edge.insert(Daemon::start(&mut command, &self.directory.join("edge.log"))?);
        until(START, "the edge to serve", || {
            edge.must_live()?;
            Ok(control.exists() && socket.exists())
        })?;
        let nodes: Vec<_> = (0..NODES).map(|number| format!("{}:{EDGE_PORT}", host(number))).collect();
        let token = self.data(0).join("edge-token").display().to_string();
        let arguments = ["attach", VOLUME, "--node", &nodes.join(","), "--token-file", &token];
        self.edge_command(&mut self.network.on_router(&program), &arguments).map(drop)
    }

    /// The edge's socket for NBD clients.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("nbd.sock")
    }

    /// Writes that the edge has answered so far.
    pub fn writes(&self) -> Result<u64> {
        let mut command = Command::new(self.varve.with_file_name("varve-edge"));
        let text = self.edge_command(&mut command, &["--json", "stats", VOLUME])?;
        let told: Value = serde_json::from_str(&text).context("what the edge tells of itself")?;
        let of = told.get(0).unwrap_or(&told);
        of["operations"]["write"]["requests"].as_u64().with_context(|| format!("the edge tells no writes: {text}"))
    }

    /// Runs the command line against a node.
    fn tell(&self, number: usize, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.varve);
        command.arg("--api").arg(format!("unix:{}", self.data(number).join("api.sock").display())).args(arguments);
        output(&mut command, QUICK)
    }

    /// The volume as a node tells it; nothing when it can not right now.
    fn shown(&self, number: usize) -> Option<Value> {
        let text = self.tell(number, &["--json", "volume", "show", VOLUME]).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Waits until one node runs the volume with a mirror in sync, and the others know that it is not them; gives which.
    pub fn settled(&self) -> Result<usize> {
        let mut owner = None;
        until(RECOVERY, "one owner, with a mirror in sync", || {
            let told: Vec<_> = (0..NODES).map(|number| self.shown(number)).collect();
            let state = |volume: &Option<Value>, state| volume.as_ref().is_some_and(|volume| volume["state"] == state);
            owner = told.iter().position(|volume| {
                state(volume, "ready") && volume.as_ref().is_some_and(|volume| volume["mirror"]["state"] == "in-sync")
            });
            let others = told.iter().filter(|volume| state(volume, "elsewhere")).count();
            Ok(owner.is_some() && others == NODES - 1)
        })?;
        owner.context("there is an owner")
    }

    /// Waits until another node than this runs the volume.
    pub fn taken_over_from(&self, number: usize) -> Result<()> {
        let others: Vec<_> = (0..NODES).filter(|other| *other != number && self.nodes[*other].answers).collect();
        ensure!(!others.is_empty(), "there is nobody who could take over");
        until(TAKE_OVER, "the volume to be taken over", || {
            std::thread::sleep(LOOK);
            Ok(others.iter().any(|other| self.shown(*other).is_some_and(|volume| volume["state"] == "ready")))
        })
    }

    /// `kill -9`.
    pub fn kill(&mut self, number: usize) -> Result<()> {
        self.nodes[number].answers = false;
        self.nodes[number].daemon.take().context("there is no node to kill")?.kill()
    }

    /// SIGSTOP: its connections stay, and it does nothing.
    pub fn stop(&mut self, number: usize) -> Result<()> {
        self.nodes[number].answers = false;
        self.signal(number, Signal::STOP)
    }

    /// SIGCONT.
    pub fn go_on(&mut self, number: usize) -> Result<()> {
        self.signal(number, Signal::CONT)?;
        self.nodes[number].answers = true;
        Ok(())
    }

    fn signal(&self, number: usize, signal: Signal) -> Result<()> {
        match &self.nodes[number].daemon {
            Some(daemon) => daemon.signal(signal),
            None => bail!("node {number} does not run"),
        }
    }

    /// Its packets are dropped, those to it as well.
    pub fn cut(&self, number: usize) -> Result<()> {
        self.network.cut(number)
    }

    /// They are not any more.
    pub fn heal(&self, number: usize) -> Result<()> {
        self.network.heal(number)
    }

    fn processes(&self) -> impl Iterator<Item = u32> {
        self.edge.iter().chain(self.nodes.iter().filter_map(|node| node.daemon.as_ref())).map(Daemon::pid)
    }

    /// Waits until edge and nodes have nothing left to do.
    pub fn settle(&self) -> Result<()> {
        self.processes().try_for_each(|pid| settle(pid, RECOVERY))
    }

    /// CPU time of edge and nodes.
    pub fn cpu_seconds(&self) -> Result<f64> {
        self.processes().map(cpu_seconds).sum()
    }

    /// RAM of the edge, now and the most so far, in MiB.
    pub fn edge_mib(&self) -> Result<(f64, f64)> {
        let pid = self.edge.as_ref().context("there is no edge")?.pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the edge's /proc/PID/status")?;
        let mib = |name: &str| -> Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).with_context(|| format!("no {name}"))?;
            Ok(kib.parse::<f64>()? / 1024.0)
        };
        Ok((mib("VmRSS:")?, mib("VmHWM:")?))
    }

    /// What the programs said last, for a run that failed.
    pub fn last_words(&self) -> String {
        let logs = (0..NODES).map(|number| format!("n{number}.log")).chain(["edge.log".to_owned()]);
        logs.map(|name| tail(&self.directory, &name)).collect()
    }
}

fn tail(directory: &Path, name: &str) -> String {
    const LINES: usize = 15;
    let text = std::fs::read_to_string(directory.join(name)).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    format!("--- {name}:\n{}\n", lines[lines.len().saturating_sub(LINES)..].join("\n"))
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let nodes = self.nodes.iter_mut().map(|node| node.daemon.take());
        for daemon in std::iter::once(self.edge.take()).chain(nodes).chain([self.etcd.take()]).flatten() {
            if let Err(error) = daemon.kill() {
                eprintln!("{error:#}");
            }
        }
    }
}
