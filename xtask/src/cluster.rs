// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask cluster`: an etcd, some nodes and an edge on loopback, for trying things, until Ctrl-C.
//!
//! Everything is in one temporary directory: etcd's data, a directory for each node, and the store that they share. Each node is the daemon `varved` with a
//! configuration file of its own, so that one that was killed can be started again by hand with the command that is shown.
//!
//! Nothing is left behind: the watcher ([`crate::guard`]) ends the processes and removes the directory however this program ends.

use crate::process::{Daemon, output, until};
use crate::{guard, provision, repo};
use anyhow::{Context as _, Result};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long etcd or a node may take until it serves.
const START_TIME: Duration = Duration::from_secs(60);
/// How long one command may take.
const COMMAND_TIME: Duration = Duration::from_secs(30);
/// Between two looks.
const LOOK_TIME: Duration = Duration::from_millis(200);

#[derive(clap::Args)]
pub struct Options {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    /// The programs as they are released.
    #[arg(long)]
    release: bool,
}

/// A node that runs, or has run.
struct Node {
    name: String,
    config: PathBuf,
    api: String,
    edge: u16,
    daemon: Option<Daemon>,
}

/// Builds, starts, says how to use it, and stays.
pub fn run(options: &Options) -> Result<bool> {
    let programs = repo::build(&["varve", "varved", "varve-edge"], options.release)?;
    let dir = std::env::temp_dir().join(format!("varve-cluster-{}", std::process::id()));
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    guard::add_directory(&dir)?;
    let (endpoint, mut etcd) = start_etcd(&dir)?;
    let init = ["cluster", "init", "--etcd", &endpoint];
    until(START_TIME, "etcd to answer", || {
        etcd.must_live()?;
        Ok(output(Command::new(programs.join("varve")).args(init), COMMAND_TIME).is_ok())
    })?;
    let mut nodes = Vec::new();
    for number in 1..=options.nodes {
        nodes.push(start_node(&programs, &dir, &endpoint, number)?);
    }
    let mut edge = start_edge(&programs, &dir)?;
    print!("{}", guide(&programs, &dir, &endpoint, &nodes));
    loop {
        std::thread::sleep(LOOK_TIME);
        etcd.must_live()?;
        edge.must_live()?;
        for node in &mut nodes {
            if node.daemon.as_mut().is_some_and(|daemon| daemon.must_live().is_err()) {
                let start = format!("{} --config {}", programs.join("varved").display(), node.config.display());
                println!("{} has ended; to start it again: {start}", node.name);
                node.daemon = None;
            }
        }
    }
}

/// A port that nothing listens on at this moment.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).context("a free port")?.port())
}

fn start_etcd(dir: &Path) -> Result<(String, Daemon)> {
    let [client, peer] = [free_port()?, free_port()?].map(|port| format!("http://127.0.0.1:{port}"));
    let mut command = Command::new("etcd");
    command.env("PATH", provision::path_for_tests()).arg("--data-dir").arg(dir.join("etcd"));
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("default={peer}")]);
    let daemon = Daemon::start(&mut command, &dir.join("etcd.log"));
    Ok((client, daemon.context("etcd (Debian package etcd-server; `cargo xtask provision` installs it)")?))
}

fn start_node(programs: &Path, dir: &Path, endpoint: &str, number: u8) -> Result<Node> {
    let (name, edge, mirror) = (format!("node-{number}"), free_port()?, free_port()?);
    let data = dir.join(&name);
    let config = dir.join(format!("{name}.toml"));
    let (data_text, store) = (data.display(), dir.join("store"));
    let text = format!(
        "data = '{data_text}'\nnode-name = '{name}'\netcd = ['{endpoint}']\nstore = 'file://{}'\napi-listen = 'none'\n\
         edge-listen = '127.0.0.1:{edge}'\nmirror-listen = '127.0.0.1:{mirror}'\njournal-size = '256M'\nlayer-ram = '128M'\n",
        store.display()
    );
    std::fs::write(&config, text).with_context(|| format!("writing {}", config.display()))?;
    let mut command = Command::new(programs.join("varved"));
    command.arg("--config").arg(&config);
    let mut daemon = Daemon::start(&mut command, &dir.join(format!("{name}.log")))?;
    let api = format!("unix:{}", data.join("api.sock").display());
    until(START_TIME, &format!("{name} to serve"), || {
        daemon.must_live()?;
        let mut status = Command::new(programs.join("varve"));
        Ok(output(status.args(["--api", &api, "status"]), COMMAND_TIME).is_ok())
    })?;
    Ok(Node { name, config, api, edge, daemon: Some(daemon) })
}

/// The daemon that shows volumes as NBD exports; it has none at first.
fn start_edge(programs: &Path, dir: &Path) -> Result<Daemon> {
    let control = dir.join("edge.sock");
    let mut command = Command::new(programs.join("varve-edge"));
    command.arg("serve").arg("--socket").arg(dir.join("nbd.sock")).arg("--control").arg(&control);
    let mut daemon = Daemon::start(&mut command, &dir.join("edge.log"))?;
    until(START_TIME, "the edge to serve", || {
        daemon.must_live()?;
        Ok(control.exists())
    })?;
    Ok(daemon)
}

/// How to use it, for the person at the terminal.
fn guide(programs: &Path, dir: &Path, endpoint: &str, nodes: &[Node]) -> String {
    let mut text = format!("A cluster in {}, with etcd at {endpoint}:\n", dir.display());
    for node in nodes {
        let pid = node.daemon.as_ref().map_or(0, Daemon::pid);
        text.push_str(&format!(
            "  {}  process {pid}, edges at 127.0.0.1:{}, --api {}\n",
            node.name, node.edge, node.api
        ));
    }
    let Some((first, last)) = nodes.first().zip(nodes.last()) else { return text };
    let edges: Vec<_> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.edge)).collect();
    let (at, dir) = (programs.display(), dir.display());
    text.push_str(&format!("\n  export PATH={at}:$PATH VARVE_API={} VARVE_EDGE_CONTROL={dir}/edge.sock\n", first.api));
    text.push_str(
        "  varve cluster status\n  varve volume create disk1 --size 1G\n  varve volume set disk1 mirror=sync\n",
    );
    let token = format!("{dir}/{}/edge-token", first.name);
    text.push_str(&format!("  varve-edge attach disk1 --node {} --token-file {token}\n", edges.join(",")));
    text.push_str(&format!("  qemu-io -f raw 'nbd+unix:///disk1?socket={dir}/nbd.sock' -c 'write -P 7 0 1M'\n"));
    if nodes.len() > 1 {
        let pid = first.daemon.as_ref().map_or(0, Daemon::pid);
        text.push_str(&format!("  kill -9 {pid}\n"));
        text.push_str(&format!("  qemu-io -f raw 'nbd+unix:///disk1?socket={dir}/nbd.sock' -c 'read -P 7 0 1M'\n"));
        text.push_str(&format!("  varve --api {} volume list\n", last.api));
    }
    text.push_str("\nCtrl-C ends all of it and removes the directory.\n");
    text
}
