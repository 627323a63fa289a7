// SPDX-License-Identifier: Apache-2.0
//! A disk that outlives its server: real nodes on a real etcd, a real `varve-edge`, and a load that proves what it reads, while the volume's owner is killed, stopped
//! and cut off from its mirror.

#![allow(clippy::unwrap_used)]

mod fleet;
mod real;

use fleet::{Fleet, Member};
use real::{DEADLINE, Run};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use varve_lab::process::{Process, Signal, find_program, free_port, wait_until};

/// The edge, as it was built beside the command.
fn varve_edge() -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_varve")).with_file_name("varve-edge");
    assert!(program.exists(), "{} is not there: `cargo build -p varve-edge` builds it", program.display());
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

/// Nodes that mirror each other, and an edge with the volume `disk`.
struct Rig {
    fleet: Fleet,
    nodes: Vec<Member>,
    edge: Process,
    dir: tempfile::TempDir,
}

impl Rig {
    fn start(nodes: usize) -> Self {
        let fleet = Fleet::new();
        let start = |number: usize| {
            let listen = format!("127.0.0.1:{}", free_port().unwrap());
            fleet.start(&format!("n{number}"), &["--mirror-listen", &listen])
        };
        let nodes: Vec<Member> = (0..nodes).map(start).collect();
        nodes[0].run(&["volume", "create", "disk", "--size", "256M"]).ok();
        nodes[0].run(&["volume", "set", "disk", "mirror=sync"]).ok();
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

    fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd.sock")
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///disk?socket={}", self.socket().display())
    }

    /// The volume as some node that lives tells it.
    fn volume(&self) -> Option<Value> {
        let shown = |node: &Member| {
            let run = node.run(&["--json", "volume", "show", "disk"]);
            (run.code == 0).then(|| serde_json::from_str::<Value>(&run.out).unwrap())
        };
        self.nodes.iter().filter_map(shown).find(|volume| volume["state"] == "ready")
    }

    fn owner(&self) -> usize {
        let volume = self.volume().expect("a node runs it");
        volume["owner"]["name"].as_str().unwrap()[1..].parse().unwrap()
    }

    fn until_in_sync(&self) {
        let in_sync = || Ok(self.volume().is_some_and(|volume| volume["mirror"]["state"] == "in-sync"));
        wait_until(DEADLINE, "a mirror to be in sync", in_sync).unwrap();
    }

    /// What the edge has done so far.
    fn stats(&self) -> Value {
        let mut command = varve_edge();
        command.args(["--json", "stats", "disk", "--control"]).arg(self.dir.path().join("control.sock"));
        let told = Run::from(command.output().unwrap()).json();
        told.get(0).cloned().unwrap_or(told)
    }

    /// A load of so long that writes, and reads back what it wrote.
    fn load(&self, seconds: u64) -> Process {
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

/// A load goes on while something is done to the owner of its volume, and what it reads is what it wrote. Gives who that was.
fn disturbed(rig: &mut Rig, what: impl FnOnce(&mut Rig, usize)) -> usize {
    let mut load = rig.load(12);
    let begun = Instant::now();
    let busy =
        |rig: &Rig| rig.stats()["operations"]["write"]["requests"].as_u64().is_some_and(|requests| requests > 1000);
    wait_until(DEADLINE, "the load to write", || Ok(busy(rig))).unwrap();
    let owner = rig.owner();
    what(rig, owner);
    let status = load.wait(DEADLINE * 2).unwrap();
    assert_eq!(status.code(), Some(0), "{}", load.log_tail());
    assert!(begun.elapsed() > Duration::from_secs(10));
    owner
}

#[test]
fn a_load_does_not_notice_more_than_a_pause_when_its_owner_is_killed() {
    let mut rig = Rig::start(3);
    for round in 0..2 {
        let dead = disturbed(&mut rig, |rig, owner| rig.nodes[owner].node.kill());
        assert_ne!(rig.owner(), dead, "round {round}");
        rig.nodes[dead].node.up();
        rig.until_in_sync();
    }
    println!("longest without an owner: {} ms", rig.stats()["longest_stall_ms"]);
    rig.edge.signal(Signal::TERM).unwrap();
    assert_eq!(rig.edge.wait(DEADLINE).unwrap().code(), Some(0), "{}", rig.edge.log_tail());
}

#[test]
fn an_owner_that_stalls_is_overtaken_and_lets_go() {
    let mut rig = Rig::start(2);
    let stalled = disturbed(&mut rig, |rig, owner| {
        rig.nodes[owner].node.process().signal(Signal::STOP).unwrap();
        let moved =
            || Ok(rig.nodes[1 - owner].volumes().iter().any(|(_, owner_is, _)| *owner_is == format!("n{}", 1 - owner)));
        wait_until(DEADLINE, "the volume to be taken over", moved).unwrap();
        rig.nodes[owner].node.process().signal(Signal::CONT).unwrap();
    });
    assert_eq!(rig.owner(), 1 - stalled);
    println!("longest without an owner: {} ms", rig.stats()["longest_stall_ms"]);
    let state = || Ok(rig.nodes[stalled].json(&["volume", "show", "disk"])["state"] == "elsewhere");
    wait_until(DEADLINE, "the old owner to let go", state).unwrap();
    rig.until_in_sync();
    drop(rig.fleet);
}

#[test]
fn an_owner_whose_mirror_is_gone_for_good_is_opened_when_a_person_says_so() {
    let mut rig = Rig::start(2);
    let owner = rig.owner();
    assert_eq!(disturbed(&mut rig, |_, _| {}), owner);
    let until_put = |rig: &Rig| rig.nodes[owner].until_put("disk");
    until_put(&rig);
    for node in [1 - owner, owner] {
        rig.nodes[node].node.kill();
    }
    rig.nodes[owner].node.up();
    let one = &rig.nodes[owner];
    assert!(one.json(&["volume", "show", "disk"])["state"] != "ready");
    let told = one.run(&["volume", "take", "disk"]).fails(2);
    assert!(told.contains("waits for its mirror") && told.contains("unless an edge still has it"), "{told}");
    one.run(&["volume", "take", "disk", "--yes"]).ok();
    assert_eq!(one.json(&["volume", "show", "disk"])["state"], "ready");
    // The edge comes back by itself, and all that it wrote is there.
    assert_eq!(disturbed(&mut rig, |_, _| {}), owner);
}
