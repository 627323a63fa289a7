// SPDX-License-Identifier: Apache-2.0
//! Edges that speak TLS with a node: the real programs, certificates made by `openssl`.

#![allow(clippy::unwrap_used)]

mod fleet;
mod real;
mod rig;

use real::{DEADLINE, Node, Run, run};
use rig::varve_edge;
use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use varve_lab::certificates::Certificates;
use varve_lab::process::{Process, Signal, free_port, wait_until};

/// A node that edges over TCP speak TLS with, and its port.
struct Secured {
    node: Node,
    port: u16,
    files: Certificates,
    dir: tempfile::TempDir,
}

impl Secured {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("varve-tls-").tempdir().unwrap();
        let files = Certificates::make(dir.path()).unwrap();
        let port = free_port().unwrap();
        let mut node = Node::new(&["--volume", "disk:64M", "--edge-listen", &format!("127.0.0.1:{port}")]);
        let [certificate, key] = files.server();
        let mut config = std::fs::OpenOptions::new().append(true).open(node.path("varve.toml")).unwrap();
        for (name, path) in [("cert", certificate), ("key", key), ("client-ca", files.ca())] {
            writeln!(config, "edge-tls-{name} = '{}'", path.display()).unwrap();
        }
        node.up();
        Self { node, port, files, dir }
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.sock"))
    }

    /// An edge with the volume, with what it is told of TLS.
    fn edge(&self, name: &str, tls: &[(&str, &Path)]) -> Process {
        let mut command = varve_edge();
        command.args(["run", "disk", "--node", &format!("127.0.0.1:{}", self.port)]);
        command.arg("--socket").arg(self.socket(name));
        command.arg("--token-file").arg(self.node.data().join("edge-token"));
        for (flag, path) in tls {
            command.arg(format!("--tls-{flag}")).arg(path);
        }
        Process::start(name, command, self.dir.path()).unwrap()
    }

    /// What an edge says that does not get the volume.
    #[track_caller]
    fn refusal(mut edge: Process) -> String {
        let status = edge.wait(DEADLINE).unwrap();
        assert_ne!(status.code(), Some(0), "{}", edge.log_tail());
        edge.log_tail()
    }

    /// A volume is written over TLS, and what comes back is that.
    fn works(&self) {
        let (ca, [certificate, key]) = (self.files.ca(), self.files.client());
        let mut edge = self.edge("known", &[("ca", &ca), ("cert", &certificate), ("key", &key)]);
        wait_until(DEADLINE, "the edge to serve", || {
            edge.check_running()?;
            Ok(self.socket("known").exists())
        })
        .unwrap();
        let uri = format!("nbd+unix:///disk?socket={}", self.socket("known").display());
        // Large ones are several records of TLS, and small ones a part of one.
        let commands = ["write -P 7 0 32M", "write -P 9 5k 512", "flush", "read -P 7 1M 31M", "read -P 9 5k 512"];
        let commands: Vec<_> = commands.iter().flat_map(|command| ["-c", command]).collect();
        let told = run("qemu-io", "qemu-utils", &[&["-f", "raw", &uri], &commands[..]].concat()).ok();
        assert!(!told.contains("verification failed"), "{told}");
        let load = [
            "--name=load",
            "--ioengine=nbd",
            &format!("--uri={uri}"),
            "--rw=randrw",
            "--bssplit=4k/80:64k/15:1M/5",
            "--size=32M",
            "--iodepth=32",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--output-format=terse",
        ];
        run("fio", "fio", &load).ok();
        edge.signal(Signal::TERM).unwrap();
        assert_eq!(edge.wait(DEADLINE).unwrap().code(), Some(0), "{}", edge.log_tail());
    }
}

#[test]
fn an_edge_and_a_node_that_know_each_other_speak_tls() {
    let secured = Secured::start();
    secured.works();
}

#[test]
fn who_is_not_known_is_refused_and_nobody_else_notices() {
    let secured = Secured::start();
    let (ca, other, [certificate, key]) = (secured.files.ca(), secured.files.other_ca(), secured.files.client());
    let [unknown, unknown_key] = secured.files.stranger();
    // They try for half a minute each, all at once.
    let edges = [
        ("foreign-node", vec![("ca", &*other), ("cert", &*certificate), ("key", &*key)], "--tls-ca"),
        ("bare", vec![("ca", &*ca)], "--tls-cert"),
        (
            "stranger",
            vec![("ca", &*ca), ("cert", &*unknown), ("key", &*unknown_key)],
            "does not believe the certificate",
        ),
        ("plain", vec![], "does it want TLS?"),
    ];
    let edges = edges.map(|(name, tls, words)| (secured.edge(name, &tls), words));
    for (edge, words) in edges {
        let told = Secured::refusal(edge);
        assert!(told.contains(words), "{words:?} is told: {told}");
    }
    let mut garbage = TcpStream::connect(("127.0.0.1", secured.port)).unwrap();
    garbage.write_all(&[0x16; 4096]).unwrap();
    // Of each reason once, however often they came.
    let turned_away = || secured.node.log().matches("a client was turned away").count();
    wait_until(DEADLINE, "the node to tell of them", || Ok(turned_away() >= 4)).unwrap();
    secured.works();
    assert!(turned_away() <= 5, "{}", secured.node.log());
}

#[test]
fn a_node_whose_files_can_not_be_used_does_not_start_and_says_which() {
    let secured = Secured::start();
    let [certificate, _] = secured.files.server();
    let config = secured.dir.path().join("wrong.toml");
    for (key, named) in [("/no/such/key.pem", "/no/such/key.pem"), (certificate.to_str().unwrap(), "server.pem")] {
        let text = format!(
            "api-listen = 'none'\nedge-listen = '127.0.0.1:0'\nedge-tls-cert = '{}'\nedge-tls-key = '{key}'\n",
            certificate.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut command = real::varve();
        command.arg("up").arg("--data").arg(secured.dir.path().join("data")).arg("--config").arg(&config);
        let told = Run::from(command.output().unwrap()).fails(2);
        assert!(told.contains(named), "{told}");
    }
}
