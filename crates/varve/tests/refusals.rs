// SPDX-License-Identifier: Apache-2.0
//! What a node refuses at its start: somebody else's directory or store, addresses that are wrong, forms that are not known. Nothing is harmed by it.

#![allow(clippy::unwrap_used)]

mod real;

use real::{Node, Run};
use std::path::Path;

/// A start that must fail.
#[track_caller]
fn fails(node: &Node, data: &Path, args: &[&str], code: i32) -> String {
    let run: Run = node.command(data).args(args).output().unwrap().into();
    assert_eq!(run.out, "", "{run:?}");
    run.fails(code)
}

#[test]
fn a_second_node_on_the_same_directory() {
    let mut node = Node::start(&["--volume", "disk:64M"]);
    let error = fails(&node, &node.data(), &[], 4);
    let pid = node.process().id();
    assert!(error.contains(&format!("in use by process {pid}")), "{error}");
    node.qemu_io("disk", &["write -P 1 0 1M", "read -P 1 0 1M"]);
}

#[test]
fn another_directory_on_the_same_store() {
    let mut node = Node::start(&["--volume", "disk:64M"]);
    node.qemu_io("disk", &["write -P 1 0 1M"]);
    let store = format!("file://{}", node.data().join("store").display());
    let other = node.path("other");
    for _ in 0..2 {
        let error = fails(&node, &other, &["--store", &store], 4);
        assert!(error.contains("belongs to cluster") && error.contains("varve pool import"), "{error}");
    }
    node.stop();
    let error = fails(&node, &other, &["--store", &store], 4);
    assert!(error.contains("belongs to cluster"), "{error}");
    node.up();
    node.qemu_io("disk", &["read -P 1 0 1M"]);
    // The pool of another name on the same store is refused as well.
    let error = node.varve(&["pool", "create", "again", "--store", &store]).fails(4);
    assert!(error.contains("pool default"), "{error}");
}

#[test]
fn another_store_for_the_same_directory() {
    let mut node = Node::start(&["--volume", "disk:64M"]);
    node.stop();
    let error = fails(&node, &node.data(), &["--store", &format!("file://{}", node.path("elsewhere").display())], 4);
    assert!(error.contains("data/store") && error.contains("elsewhere"), "{error}");
    assert!(!node.path("elsewhere").exists());
}

#[test]
fn stores_that_can_not_be() {
    let node = Node::new(&[]);
    let port = varve_lab::process::free_port().unwrap();
    let dead = format!("s3://bucket/p?endpoint=http://127.0.0.1:{port}");
    for (url, code, part) in [
        ("file://relative", 2, "absolute"),
        ("file:///nonexistent/deep/dir", 2, "/nonexistent/deep"),
        ("ftp://host/x", 2, "no kind of store"),
        ("s3://ab", 2, "bucket"),
        (dead.as_str(), 5, "127.0.0.1"),
    ] {
        let run: Run = node
            .command(&node.data())
            .args(["--store", url])
            .env("AWS_ACCESS_KEY_ID", "key")
            .env("AWS_SECRET_ACCESS_KEY", "secret")
            .output()
            .unwrap()
            .into();
        let error = run.fails(code);
        assert!(error.contains(part), "{url}: {error}");
    }
}

#[test]
fn a_volume_that_is_there_with_another_size() {
    let mut node = Node::start(&["--volume", "disk:64M"]);
    node.stop();
    let error = fails(&node, &node.data(), &["--volume", "disk:128M"], 4);
    assert!(error.contains("64 MiB") && error.contains("128 MiB"), "{error}");
    node.up();
    node.qemu_io("disk", &["read -P 0 0 1M"]);
}

#[test]
fn a_form_that_is_not_known_and_a_journal_that_is_gone() {
    let mut node = Node::start(&["--volume", "disk:64M"]);
    node.qemu_io("disk", &["write -P 1 0 1M"]);
    node.stop();
    let format = node.data().join("format");
    let known = std::fs::read(&format).unwrap();
    std::fs::write(&format, "varve 77\n").unwrap();
    let error = fails(&node, &node.data(), &[], 2);
    assert!(error.contains("format version 77"), "{error}");
    std::fs::write(&format, known).unwrap();

    let (journal, away) = (node.data().join("journal/0"), node.path("journal"));
    std::fs::rename(&journal, &away).unwrap();
    let error = fails(&node, &node.data(), &[], 3);
    assert!(error.contains("journal/0 is missing"), "{error}");
    std::fs::rename(&away, &journal).unwrap();
    node.up();
    node.qemu_io("disk", &["read -P 1 0 1M"]);
}

#[test]
fn addresses_that_are_taken() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let node = Node::new(&[]);
    let error = fails(&node, &node.data(), &["--nbd-listen", &address], 4);
    assert!(error.contains(&address), "{error}");
    let error = fails(&node, &node.data(), &["--api-listen", &address], 4);
    assert!(error.contains(&address) && error.contains("--api-listen"), "{error}");
    assert!(!node.data().join("nbd.sock").exists());
}

/// Starts a node on another data directory; it is ended with what is given back. Gives the address of its disk too.
fn serve_elsewhere(node: &Node, data: &Path) -> (varve_lab::process::Process, String) {
    let mut command = node.command(data);
    command.args(["--volume", "disk:64M"]);
    let mut process = varve_lab::process::Process::start("elsewhere", command, node.dir.path()).unwrap();
    varve_lab::process::wait_until(real::DEADLINE, "the node to serve", || {
        process.check_running()?;
        Ok(process.log_tail().contains("Ctrl-C stops it."))
    })
    .unwrap();
    (process, format!("nbd+unix:///disk?socket={}", data.join("nbd.sock").display()))
}

#[test]
fn a_data_directory_that_was_moved_takes_its_store_along() {
    let mut node = Node::start(&["--volume", "disk:64M"]);
    node.qemu_io("disk", &["write -P 1 0 1M"]);
    node.stop();
    let (moved, back) = (node.path("moved"), node.data());
    std::fs::rename(&back, &moved).unwrap();
    let (_process, uri) = serve_elsewhere(&node, &moved);
    assert_eq!(real::nbdsh(&uri, "print(h.pread(512, 0) == b'\\x01' * 512)").ok(), "True\n");
}

#[test]
fn a_data_directory_that_was_copied_has_a_store_of_its_own() {
    let mut node = Node::start(&["--volume", "disk:64M"]);
    node.qemu_io("disk", &["write -P 1 0 1M"]);
    node.stop();
    let copy = node.path("copy");
    real::run("cp", "coreutils", &["-a", node.data().to_str().unwrap(), copy.to_str().unwrap()]).ok();
    let (process, uri) = serve_elsewhere(&node, &copy);
    assert!(process.log_tail().contains("copy/store"), "{}", process.log_tail());
    let write = "h.pwrite(b'\\x02' * 1048576, 0); h.flush(); print(h.pread(512, 0) == b'\\x02' * 512)";
    assert_eq!(real::nbdsh(&uri, write).ok(), "True\n");
    node.up();
    node.qemu_io("disk", &["read -P 1 0 1M"]);
}
