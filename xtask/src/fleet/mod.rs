// SPDX-License-Identifier: Apache-2.0
//! A cluster to be disturbed: an etcd, nodes that mirror each other's volumes, and an edge with one volume.
//!
//! Each node is on a host of its own ([`Network`]); etcd and the edge are on the router, out of reach of any fault, or on hosts of their own ([`Plan::apart`]). Data
//! directories, the store and etcd's data lie in one directory. Processes are killed when the fleet is dropped: what they have is thrown away.
//!
//! A node that is stopped answers nobody, so nobody asks it: it is told of ([`Fleet::stop`]) and left out until it goes on.

mod network;

pub use network::{Network, Way, host};

use crate::process::{Daemon, Signal, output, until};
use crate::provision;
use crate::usage::{cpu_seconds, resident_mib, settle};
use anyhow::{Context, Result, ensure};
use network::ROUTER;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The volume.
pub const VOLUME: &str = "disk0";
/// How many nodes: one that dies leaves two, which mirror each other.
pub const NODES: usize = 3;
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

/// What a fleet is to be.
pub struct Plan {
    /// Where its files lie: empty, and thrown away by whoever made it.
    pub directory: PathBuf,
    /// The program; that of the edge is beside it.
    pub varve: PathBuf,
    /// Bytes of the volume.
    pub size: u64,
    /// Whether etcd and the edge are on hosts of their own, and can be cut off too.
    pub apart: bool,
}

/// A program of a fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// A node, by its number.
    Node(usize),
    /// Coordination.
    Etcd,
    /// What shows the volume.
    Edge,
}

impl Who {
    const ALL: [Self; NODES + 2] = [Self::Node(0), Self::Node(1), Self::Node(2), Self::Etcd, Self::Edge];

    /// Its place among all, which is the number of its host where it has one.
    const fn number(self) -> usize {
        match self {
            Self::Node(number) => number,
            Self::Etcd => NODES,
            Self::Edge => NODES + 1,
        }
    }

    fn name(self) -> String {
        match self {
            Self::Node(number) => format!("n{number}"),
            Self::Etcd => "etcd".to_owned(),
            Self::Edge => "edge".to_owned(),
        }
    }
}

/// A program, and whether it answers: it was not stopped.
#[derive(Default)]
struct Place {
    daemon: Option<Daemon>,
    answers: bool,
}

/// The cluster, and an edge that has the volume attached.
pub struct Fleet {
    plan: Plan,
    places: [Place; NODES + 2],
    /// Goes last: the others are in it.
    network: Network,
}

impl Fleet {
    /// A new cluster, its volume mirrored.
    pub fn start(plan: Plan) -> Result<Self> {
        let hosts = if plan.apart { NODES + 2 } else { NODES };
        let network = Network::new(hosts, &plan.directory)?;
        let mut fleet = Self { plan, places: Default::default(), network };
        fleet.start_etcd()?;
        until(START, "etcd to answer", || {
            fleet.must_live(Who::Etcd)?;
            let mut init = fleet.on(Who::Etcd, &fleet.plan.varve);
            Ok(output(init.args(["cluster", "init", "--etcd", &fleet.etcd_url(2379)]), QUICK).is_ok())
        })?;
        for number in 0..NODES {
            fleet.write_config(number)?;
            fleet.start_node(number)?;
        }
        fleet.tell(0, &["volume", "create", VOLUME, "--size", &format!("{}M", fleet.plan.size >> 20)])?;
        // What is overwritten is freed at once, so that the disk has room for many runs.
        fleet.tell(0, &["volume", "set", VOLUME, "mirror=sync", "rewind-window=0s"])?;
        fleet.start_edge()?;
        fleet.settled()?;
        Ok(fleet)
    }

    /// A command where a program is.
    fn on(&self, who: Who, program: &Path) -> Command {
        match who {
            Who::Etcd | Who::Edge if !self.plan.apart => self.network.on_router(program),
            _ => self.network.on_host(who.number(), program),
        }
    }

    fn run(&mut self, who: Who, command: &mut Command) -> Result<()> {
        // One log over all of its lives.
        let daemon = Daemon::start_again(command, &self.log(who))?;
        self.places[who.number()] = Place { daemon: Some(daemon), answers: true };
        Ok(())
    }

    fn log(&self, who: Who) -> PathBuf {
        self.plan.directory.join(format!("{}.log", who.name()))
    }

    fn must_live(&mut self, who: Who) -> Result<()> {
        self.places[who.number()].daemon.as_mut().context("it does not run")?.must_live()
    }

    fn etcd_url(&self, port: u16) -> String {
        let address = if self.plan.apart { host(Who::Etcd.number()) } else { ROUTER.to_owned() };
        format!("http://{address}:{port}")
    }

    /// Starts etcd, new or killed.
    pub fn start_etcd(&mut self) -> Result<()> {
        let [client, peer] = [2379, 2380].map(|port| self.etcd_url(port));
        let mut command = self.on(Who::Etcd, Path::new("etcd"));
        command.env("PATH", provision::path_for_tests()).arg("--data-dir").arg(self.plan.directory.join("etcd"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}")]);
        self.run(Who::Etcd, &mut command)
    }

    fn data(&self, number: usize) -> PathBuf {
        self.plan.directory.join(format!("n{number}"))
    }

    fn config(&self, number: usize) -> PathBuf {
        self.plan.directory.join(format!("n{number}.toml"))
    }

    fn write_config(&self, number: usize) -> Result<()> {
        let (data, store, address) = (self.data(number), self.plan.directory.join("store"), host(number));
        let etcd = self.etcd_url(2379);
        let text = format!(
            "data = '{}'\nnode-name = 'n{number}'\netcd = ['{etcd}']\nstore = 'file://{}'\napi-listen = 'none'\n\
             edge-listen = '{address}:{EDGE_PORT}'\nmirror-listen = '{address}:{MIRROR_PORT}'\njournal-size = '512M'\n",
            data.display(),
            store.display()
        );
        let file = self.config(number);
        std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
    }

    /// Starts a node, new or killed, and waits until it serves.
    pub fn start_node(&mut self, number: usize) -> Result<()> {
        let who = Who::Node(number);
        let mut command = self.on(who, &self.plan.varve);
        command.arg("up").arg("--config").arg(self.config(number));
        self.run(who, &mut command)?;
        let serves = until(START, "a node to serve", || {
            self.must_live(who)?;
            Ok(self.tell(number, &["status"]).is_ok())
        });
        serves.with_context(|| tail(&self.log(who)))
    }

    fn edge_program(&self) -> PathBuf {
        self.plan.varve.with_file_name("varve-edge")
    }

    fn ask_edge(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(self.edge_program());
        output(command.args(arguments).arg("--control").arg(self.plan.directory.join("control.sock")), QUICK)
    }

    fn start_edge(&mut self) -> Result<()> {
        let (socket, control) = (self.socket(), self.plan.directory.join("control.sock"));
        let mut command = self.on(Who::Edge, &self.edge_program());
        command.arg("serve").arg("--socket").arg(&socket).arg("--control").arg(&control);
        self.run(Who::Edge, &mut command)?;
        until(START, "the edge to serve", || {
            self.must_live(Who::Edge)?;
            Ok(control.exists() && socket.exists())
        })?;
        self.attach(VOLUME)
    }

    fn attach(&self, volume: &str) -> Result<()> {
        let nodes: Vec<_> = (0..NODES).map(|number| format!("{}:{EDGE_PORT}", host(number))).collect();
        let token = self.data(0).join("edge-token").display().to_string();
        self.ask_edge(&["attach", volume, "--node", &nodes.join(","), "--token-file", &token]).map(drop)
    }

    /// The edge's socket for NBD clients.
    pub fn socket(&self) -> PathBuf {
        self.plan.directory.join("nbd.sock")
    }

    /// Writes that the edge has answered so far.
    pub fn writes(&self) -> Result<u64> {
        let text = self.ask_edge(&["--json", "stats", VOLUME])?;
        let told: Value = serde_json::from_str(&text).context("what the edge tells of itself")?;
        let of = told.get(0).unwrap_or(&told);
        of["operations"]["write"]["requests"].as_u64().with_context(|| format!("the edge tells no writes: {text}"))
    }

    /// Runs the command line against a node.
    fn tell(&self, number: usize, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.plan.varve);
        command.arg("--api").arg(format!("unix:{}", self.data(number).join("api.sock").display())).args(arguments);
        output(&mut command, QUICK)
    }

    /// The volume as a node tells it; nothing when it can not right now.
    fn shown(&self, number: usize) -> Option<Value> {
        let text = self.tell(number, &["--json", "volume", "show", VOLUME]).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Makes more volumes on a node, mirrored and attached, of 64 MiB each.
    pub fn add(&self, owner: usize, names: &[String]) -> Result<()> {
        for name in names {
            self.tell(owner, &["volume", "create", name, "--size", "64M"])?;
            self.tell(owner, &["volume", "set", name, "mirror=sync"])?;
            self.attach(name)?;
        }
        until(RECOVERY, "a mirror in sync of every volume", || {
            let in_sync = |name: &String| -> Result<bool> {
                let text = self.tell(owner, &["--json", "volume", "show", name])?;
                Ok(serde_json::from_str::<Value>(&text)?["mirror"]["state"] == "in-sync")
            };
            names.iter().try_fold(true, |all, name| Ok(all && in_sync(name)?))
        })
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

    /// The node that is the mirror of the volume, as its owner tells it.
    pub fn mirror(&self, owner: usize) -> Result<usize> {
        let volume = self.shown(owner).context("the owner does not answer")?;
        let nodes: Value = serde_json::from_str(&self.tell(owner, &["--json", "node", "list"])?)?;
        let mirror = &volume["mirror"]["node"];
        let node = nodes.as_array().and_then(|nodes| nodes.iter().find(|node| node["id"] == *mirror));
        let name = node.and_then(|node| node["name"].as_str()).with_context(|| format!("{mirror} is no node"))?;
        name.strip_prefix('n').and_then(|number| number.parse().ok()).with_context(|| format!("{name} is not ours"))
    }

    /// Waits until another node than this runs the volume.
    pub fn taken_over_from(&self, number: usize) -> Result<()> {
        let others: Vec<_> = (0..NODES).filter(|other| *other != number && self.places[*other].answers).collect();
        ensure!(!others.is_empty(), "there is nobody who could take over");
        until(TAKE_OVER, "the volume to be taken over", || {
            std::thread::sleep(LOOK);
            Ok(others.iter().any(|other| self.shown(*other).is_some_and(|volume| volume["state"] == "ready")))
        })
    }

    /// `kill -9`.
    pub fn kill(&mut self, who: Who) -> Result<()> {
        let place = std::mem::take(&mut self.places[who.number()]);
        place.daemon.context("there is nothing to kill")?.kill()
    }

    /// SIGSTOP: its connections stay, and it does nothing.
    pub fn stop(&mut self, who: Who) -> Result<()> {
        self.places[who.number()].answers = false;
        self.signal(who, Signal::STOP)
    }

    /// SIGCONT.
    pub fn go_on(&mut self, who: Who) -> Result<()> {
        self.signal(who, Signal::CONT)?;
        self.places[who.number()].answers = true;
        Ok(())
    }

    fn signal(&self, who: Who, signal: Signal) -> Result<()> {
        let daemon = self.places[who.number()].daemon.as_ref();
        daemon.with_context(|| format!("{} does not run", who.name()))?.signal(signal)
    }

    /// Its packets are dropped: those to it, those from it, or both.
    pub fn cut(&self, who: Who, way: Way) -> Result<()> {
        self.network.cut(who.number(), way)
    }

    /// They are not any more.
    pub fn heal(&self, who: Who, way: Way) -> Result<()> {
        self.network.heal(who.number(), way)
    }

    /// Those of the edge and of nodes.
    fn processes(&self) -> impl Iterator<Item = u32> {
        let ours = Who::ALL.into_iter().filter(|who| *who != Who::Etcd);
        ours.filter_map(|who| self.places[who.number()].daemon.as_ref()).map(Daemon::pid)
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
        resident_mib(self.places[Who::Edge.number()].daemon.as_ref().context("there is no edge")?.pid())
    }

    /// What the programs said last, for a run that failed.
    pub fn last_words(&self) -> String {
        Who::ALL.into_iter().filter(|who| *who != Who::Etcd).map(|who| tail(&self.log(who))).collect()
    }
}

fn tail(log: &Path) -> String {
    const LINES: usize = 15;
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    format!("--- {}:\n{}\n", log.display(), lines[lines.len().saturating_sub(LINES)..].join("\n"))
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // The edge first, etcd before the nodes that it would let live on: whatever they have is thrown away.
        for daemon in self.places.iter_mut().rev().filter_map(|place| place.daemon.take()) {
            if let Err(error) = daemon.kill() {
                eprintln!("{error:#}");
            }
        }
    }
}
