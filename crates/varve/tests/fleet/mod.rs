// SPDX-License-Identifier: Apache-2.0
//! A cluster of real nodes on a real etcd: each a process with a data directory of its own, their pool in one directory.

// Each test program uses a part of it.
#![allow(dead_code)]

use crate::real::{DEADLINE, Node, Run, varve};
use serde_json::Value;
use std::io::Write;
use varve_lab::etcd::Etcd;
use varve_lab::process::{free_port, wait_until};

pub struct Fleet {
    pub etcd: Etcd,
    store: tempfile::TempDir,
}

/// A node of a fleet, and where its edges connect.
pub struct Member {
    pub node: Node,
    pub edge: u16,
}

impl Fleet {
    /// An etcd without a cluster.
    pub fn bare() -> Self {
        let store = tempfile::Builder::new().prefix("varve-store-").tempdir().unwrap();
        Self { etcd: Etcd::start().unwrap(), store }
    }

    /// A cluster without nodes.
    pub fn new() -> Self {
        let fleet = Self::bare();
        fleet.init().ok();
        fleet
    }

    pub fn endpoint(&self) -> String {
        self.etcd.endpoints().remove(0)
    }

    pub fn init(&self) -> Run {
        varve().args(["cluster", "init", "--etcd", &self.endpoint()]).output().unwrap().into()
    }

    pub fn store(&self) -> String {
        format!("file://{}", self.store.path().join("store").display())
    }

    /// A node that was not started. It is told of the store, and of nothing else but `args`.
    pub fn node(&self, name: &str, args: &[&str]) -> Member {
        let edge = free_port().unwrap();
        let (store, listen) = (self.store(), format!("127.0.0.1:{edge}"));
        let node = Node::new(&[&["--node-name", name, "--store", &store, "--edge-listen", &listen], args].concat());
        let member = Member { node, edge };
        member.configure(&format!("etcd = ['{}']", self.endpoint()));
        member
    }

    /// A node that serves.
    pub fn start(&self, name: &str, args: &[&str]) -> Member {
        let mut member = self.node(name, args);
        member.node.up();
        member
    }
}

impl Member {
    /// Adds lines to its configuration, for its next start.
    pub fn configure(&self, lines: &str) {
        let mut file = std::fs::OpenOptions::new().append(true).open(self.node.path("varve.toml")).unwrap();
        writeln!(file, "{lines}").unwrap();
    }

    pub fn run(&self, args: &[&str]) -> Run {
        self.node.varve(args)
    }

    pub fn json(&self, args: &[&str]) -> Value {
        self.run(&[&["--json"], args].concat()).json()
    }

    /// The nodes, with whether each is alive.
    pub fn nodes(&self) -> Vec<(String, bool)> {
        let nodes = self.json(&["node", "list"]);
        let nodes = nodes.as_array().unwrap().iter();
        nodes.map(|node| (node["name"].as_str().unwrap().to_owned(), node["alive"].as_bool().unwrap())).collect()
    }

    /// The volumes, each with its owner and its state.
    pub fn volumes(&self) -> Vec<(String, String, String)> {
        let volumes = self.json(&["volume", "list"]);
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let volumes = volumes.as_array().unwrap().iter();
        volumes.map(|v| (text(&v["name"]), text(&v["owner"]["name"]), text(&v["state"]))).collect()
    }

    /// Waits until a node counts as alive, or as dead.
    #[track_caller]
    pub fn until_alive(&self, name: &str, alive: bool) {
        wait_until(DEADLINE, "the node's life to be known", || Ok(self.nodes().contains(&(name.to_owned(), alive))))
            .unwrap();
    }

    /// Waits until all that was written is in the store. A snapshot seals it, which takes up to a minute else.
    #[track_caller]
    pub fn until_put(&self, volume: &str) {
        self.run(&["snapshot", "create", volume, "until-put"]).ok();
        self.run(&["snapshot", "delete", volume, "until-put"]).ok();
        self.node.until_status("all of it to be put", |status| {
            let volumes = status["volumes"].as_array().unwrap();
            volumes.iter().any(|v| v["name"] == volume && v["dirty_bytes"] == 0)
        });
    }

    /// The token that edges need.
    pub fn token(&self) -> String {
        std::fs::read_to_string(self.node.data().join("edge-token")).unwrap().trim().to_owned()
    }
}
