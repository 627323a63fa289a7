// SPDX-License-Identifier: Apache-2.0
//! Real nodes that mirror each other on a real etcd, and a real `varve-edge` that shows a volume of theirs over NBD.

// Each test program uses a part of it.
#![allow(dead_code)]

use crate::fleet::{Fleet, Member};
use crate::real::{DEADLINE, Run};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use varve_lab::process::{Process, find_program, free_port, wait_until};

/// The edge, as it was built beside the command.
pub fn varve_edge() -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_varve")).with_file_name("varve-edge");
    assert!(program.exists(), "{} is not there: `cargo build -p varve-edge` builds it", program.display());
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

/// Nodes that mirror each other, and an edge with the volume `disk`.
pub struct Rig {
    pub fleet: Fleet,
    pub nodes: Vec<Member>,
    pub edge: Process,
    pub dir: tempfile::TempDir,
}

impl Rig {
    pub fn start(nodes: usize) -> Self {
        Self::with(nodes, &["mirror=sync"], "")
    }

    /// The volume has these settings, and the nodes' configurations these lines.
    pub fn with(nodes: usize, settings: &[&str], config: &str) -> Self {
        let fleet = Fleet::new();
        let start = |number: usize| {
            let listen = format!("127.0.0.1:{}", free_port().unwrap());
            let mut member = fleet.node(&format!("n{number}"), &["--mirror-listen", &listen]);
            member.configure(config);
            member.node.up();
            member
        };
        let nodes: Vec<Member> = (0..nodes).map(start).collect();
        nodes[0].run(&["volume", "create", "disk", "--size", "256M"]).ok();
        nodes[0].run(&[&["volume", "set", "disk"], settings].concat()).ok();
        let dir = tempfile::Builder::new().prefix("varve-edge-").tempdir().unwrap();
        let addresses: Vec<_> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.edge)).collect();
        let (socket, control) = (dir.path().join("nbd.sock"), dir.path().join("control.sock"));
        let mut command = varve_edge();
        command.arg("serve").arg("--socket").arg(&socket).arg("--control").arg(&control);
        let edge = Process::start("edge", command, dir.path()).unwrap();
        wait_until(DEADLINE, "the edge to serve", || Ok(control.exists() && socket.exists())).unwrap();
        let mut command = varve_edge();
        command.args(["attach", "disk", "--node", &addresses.join(","), "--token-file"]);
        command.arg(nodes[0].node.data().join("edge-token")).arg("--control").arg(&control);
        Run::from(command.output().unwrap()).ok();
        let rig = Self { fleet, nodes, edge, dir };
        rig.until_in_sync();
        rig
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd.sock")
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///disk?socket={}", self.socket().display())
    }

    /// The volume as some node that lives tells it.
    pub fn volume(&self) -> Option<Value> {
        let shown = |node: &Member| {
            let run = node.run(&["--json", "volume", "show", "disk"]);
            (run.code == 0).then(|| serde_json::from_str::<Value>(&run.out).unwrap())
        };
        self.nodes.iter().filter_map(shown).find(|volume| volume["state"] == "ready")
    }

    pub fn owner(&self) -> usize {
        let volume = self.volume().expect("a node runs it");
        volume["owner"]["name"].as_str().unwrap()[1..].parse().unwrap()
    }

    pub fn until_in_sync(&self) {
        let in_sync = || Ok(self.volume().is_some_and(|volume| volume["mirror"]["state"] == "in-sync"));
        wait_until(DEADLINE, "a mirror to be in sync", in_sync).unwrap();
    }

    /// What the edge has done so far.
    pub fn stats(&self) -> Value {
        let mut command = varve_edge();
        command.args(["--json", "stats", "disk", "--control"]).arg(self.dir.path().join("control.sock"));
        let told = Run::from(command.output().unwrap()).json();
        told.get(0).cloned().unwrap_or(told)
    }

    /// A load of so long that writes, and reads back what it wrote.
    pub fn load(&self, seconds: u64) -> Process {
        let mut fio = Command::new(find_program("fio", "fio").unwrap());
        fio.current_dir(self.dir.path()).args([
            "--name=load",
            "--ioengine=nbd",
            &format!("--uri={}", self.uri()),
            "--rw=randwrite",
            "--bs=4k",
            "--size=64M",
            "--iodepth=8",
            "--verify=crc32c",
            "--verify_backlog=256",
            "--verify_fatal=1",
            "--time_based",
            &format!("--runtime={seconds}"),
            "--max_latency=30s",
        ]);
        Process::start("fio", fio, self.dir.path()).unwrap()
    }
}
