// SPDX-License-Identifier: Apache-2.0
//! Nodes of a cluster: they find each other in etcd, know whose volume is whose, and send on whoever asks the wrong one.

#![allow(clippy::unwrap_used)]

mod fleet;
mod raw_edge;
mod real;

use fleet::Fleet;
use raw_edge::{RawEdge, attach};
use real::{DEADLINE, Node, Run};
use std::io::Write;
use varve_lab::etcd::{Etcd, Options};
use varve_lab::process::wait_until;
use varve_types::ErrorKind;
use varve_wire::attach::Attach;

fn row(name: &str, owner: &str, state: &str) -> (String, String, String) {
    (name.to_owned(), owner.to_owned(), state.to_owned())
}

/// Runs a node that is to refuse.
fn refuses(node: &Node, args: &[&str], code: i32) -> String {
    let mut command = node.command(&node.data());
    Run::from(command.args(args).output().unwrap()).fails(code)
}

#[test]
fn a_cluster_is_made_once_and_nodes_keep_to_it() {
    let fleet = Fleet::bare();
    let member = fleet.node("n1", &[]);
    let complaint = refuses(&member.node, &[], 3);
    assert!(complaint.contains(&format!("varve cluster init --etcd {}", fleet.endpoint())), "{complaint}");
    fleet.init().ok();
    assert!(fleet.init().fails(4).contains("already"));
    // Its pool is to be where all reach it.
    let complaint = refuses(&member.node, &[], 2);
    assert!(complaint.contains("--store"), "{complaint}");
    let one = fleet.start("n1", &[]);
    // A name is one node's.
    let complaint = refuses(&member.node, &["--node-name", "n1"], 4);
    assert!(complaint.contains("--node-name"), "{complaint}");
    // A directory of one kind is not taken for the other.
    let mut alone = Node::start(&[]);
    alone.stop();
    let complaint = refuses(&alone, &["--etcd", &fleet.endpoint(), "--store", &fleet.store()], 4);
    assert!(complaint.contains("by itself"), "{complaint}");
    let data = one.node.data();
    let mut one = one;
    one.node.stop();
    let complaint: Run = alone.command(&data).output().unwrap().into();
    assert!(complaint.fails(4).contains("--etcd"));
    let check: Run = real::varve().args(["check", "--data"]).arg(&data).output().unwrap().into();
    assert!(check.fails(4).contains("n1"));
    assert!(!data.join("meta.redb").exists(), "nothing was made there");
}

#[test]
fn nodes_know_whose_volume_is_whose() {
    let fleet = Fleet::new();
    let one = fleet.start("n1", &["--volume", "a:64M"]);
    let two = fleet.start("n2", &["--volume", "b:64M"]);
    assert_eq!(one.nodes(), [("n1".to_owned(), true), ("n2".to_owned(), true)]);
    assert_eq!(one.volumes(), [row("a", "n1", "ready"), row("b", "n2", "elsewhere")]);
    assert_eq!(two.volumes(), [row("a", "n1", "elsewhere"), row("b", "n2", "ready")]);
    assert!(two.run(&["volume", "show", "a"]).ok().contains("elsewhere: node n1 runs it"));
    let status = two.run(&["status"]).ok();
    assert!(status.contains("n2, Varve") && status.contains("cluster"), "{status}");
    let cluster = two.json(&["cluster", "status"]);
    assert_eq!((&cluster["coordination"]["reachable"], &cluster["volumes"]["owned"]), (&true.into(), &2.into()));
    // What is another's is not changed here.
    for change in
        [&["volume", "resize", "a", "128M"][..], &["volume", "delete", "a"], &["snapshot", "create", "a", "s"]]
    {
        let complaint = two.run(change).fails(4);
        assert!(complaint.contains("volume a is run by node n1"), "{complaint}");
    }
    assert!(two.run(&["volume", "create", "a", "--size", "1G"]).fails(4).contains("already"));
    two.run(&["volume", "show", "none"]).fails(3);
    two.run(&["volume", "resize", "none", "1G"]).fails(3);
    // An edge is sent on, and proves itself to any of them by the same token.
    let asks = |port, volume| RawEdge::tcp(port).attach(&Attach { token: one.token(), ..attach(volume, 1) });
    let refused = asks(two.edge, "a").unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unavailable, "{}", refused.message);
    assert_eq!(refused.elsewhere, Some(format!("127.0.0.1:{}", one.edge)));
    asks(one.edge, "a").unwrap();
    assert_eq!(asks(two.edge, "none").unwrap_err().kind, ErrorKind::NotFound);
    // A pool that one makes is known to the other, and so are its settings.
    let store = format!("{}-2", fleet.store());
    one.run(&["pool", "create", "fast", "--store", &store]).ok();
    let knows = |what: &str, args: &[&str]| {
        wait_until(DEADLINE, what, || Ok(two.run(args).code == 0)).unwrap();
    };
    knows("the pool to be known", &["volume", "create", "c", "--size", "64M", "--pool", "fast"]);
    one.run(&["pool", "set", "fast", "segment-size=8M"]).ok();
    wait_until(DEADLINE, "the setting to be known", || Ok(two.run(&["volume", "show", "c"]).ok().contains("8 MiB")))
        .unwrap();
    // A node is removed when it is gone.
    two.run(&["volume", "create", "d", "--size", "64M"]).ok();
    two.run(&["volume", "delete", "d"]).ok();
    assert!(one.run(&["node", "remove", "n1"]).fails(4).contains("this one"));
    assert!(one.run(&["node", "remove", "n2"]).fails(4).contains("alive"));
    let mut two = two;
    two.node.stop();
    assert_eq!(one.nodes(), [("n1".to_owned(), true), ("n2".to_owned(), false)], "at once, since it said so");
    let complaint = one.run(&["node", "remove", "n2"]).fails(4);
    assert!(complaint.contains("3 volumes (b, c, d)"), "{complaint}");
    for volume in ["b", "c"] {
        one.run(&["volume", "take", volume, "--yes"]).ok();
    }
    // What it has deleted can be brought back by who removed it.
    one.run(&["volume", "undelete", "d"]).fails(4);
    one.run(&["node", "remove", "n2"]).ok();
    one.run(&["node", "show", "n2"]).fails(3);
    one.run(&["volume", "undelete", "d"]).ok();
    let ready = |name| row(name, "n1", "ready");
    assert_eq!(one.volumes(), [ready("a"), ready("b"), ready("c"), ready("d")]);
}

#[test]
fn etcd_may_ask_for_certificates_and_a_password() {
    let options = Options { tls: true, client_certificates: true, ..Options::default() };
    let etcd = Etcd::start_with(&options).unwrap();
    etcd.enable_auth("secret", "/disks/").unwrap();
    let files = etcd.certificates().unwrap();
    let ([certificate, key], password) = (files.client(), etcd.directory().join("password"));
    std::fs::write(&password, "secret\n").unwrap();
    let mut node = Node::new(&["--node-name", "n1", "--volume", "a:64M"]);
    let store = format!("file://{}", node.path("store").display());
    let mut file = std::fs::OpenOptions::new().append(true).open(node.path("varve.toml")).unwrap();
    let keys = [
        ("etcd-ca", files.ca()),
        ("etcd-cert", certificate),
        ("etcd-key", key),
        ("etcd-password-file", password.clone()),
    ];
    writeln!(file, "etcd = ['{}']\netcd-prefix = '/disks/'\netcd-user = 'varve'", etcd.endpoints()[0]).unwrap();
    writeln!(file, "store = '{store}'").unwrap();
    for (key, path) in keys {
        writeln!(file, "{key} = '{}'", path.display()).unwrap();
    }
    let init = || -> Run {
        real::varve().args(["cluster", "init", "--config"]).arg(node.path("varve.toml")).output().unwrap().into()
    };
    init().ok();
    init().fails(4);
    std::fs::write(&password, "wrong\n").unwrap();
    let complaint = init().fails(2);
    assert!(complaint.contains("password") && !complaint.contains("wrong"), "{complaint}");
    std::fs::write(&password, "secret\n").unwrap();
    node.up();
    let nodes = node.varve(&["--json", "node", "list"]).json();
    assert_eq!((&nodes[0]["name"], &nodes[0]["alive"]), (&"n1".into(), &true.into()));
    node.qemu_io("a", &["write -P 3 0 1M", "read -P 3 0 1M"]);
    node.stop();
}
