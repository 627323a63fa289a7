// SPDX-License-Identifier: Apache-2.0
//! Cleaning by other processes: `varve clean --worker` beside a node does what the node would do, survives the node's death, may itself die at any time, and
//! is believed in nothing that the store does not prove.

#![allow(clippy::unwrap_used)]

mod real;

use real::{Node, Run, varve};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;
use varve_lab::process::{Process, Signal, wait_until};
use varve_lab::seaweedfs::SeaweedFs;

/// Long enough for a volume to be taken for quiet, and for its checkpoints and deletes.
const DEADLINE: Duration = Duration::from_secs(120);

/// A node that forgets a worker soon.
fn node(args: &[&str]) -> Node {
    let mut node = Node::new(args);
    let mut file = std::fs::OpenOptions::new().append(true).open(node.path("varve.toml")).unwrap();
    writeln!(file, "clean-lease = '4s'").unwrap();
    node.up();
    node.varve(&["volume", "create", "disk", "--size", "64M", "--segment-size", "4M", "--compression", "none"]).ok();
    node.varve(&["volume", "set", "disk", "rewind-window=0s"]).ok();
    node
}

/// Starts a worker, and waits until the node knows it.
fn worker(node: &Node, name: &str, more: &[&str]) -> Process {
    let mut command = varve();
    command.env("VARVE_API", format!("unix:{}", node.data().join("api.sock").display()));
    command.args(["clean", "--worker", "--name", name, "--json"]).args(more);
    let worker = Process::start(name, command, node.dir.path()).unwrap();
    until(node, "the node knows the worker", |state| knows(state, name));
    worker
}

fn knows(state: &Value, name: &str) -> bool {
    state["workers"].as_array().unwrap().iter().any(|worker| worker["name"] == name)
}

/// Writes, and lets 23 of 32 MiB die again, in parts of each segment. The worker has to be there.
fn make_sparse(node: &Node) {
    node.qemu_io("disk", &["write -P 1 0 32M", "flush"]);
    let discards: Vec<String> = (0..16).map(|part| format!("discard {}M 1472K", part * 2)).collect();
    node.qemu_io("disk", &discards.iter().map(String::as_str).collect::<Vec<_>>());
}

/// What is read is what was written.
fn prove(node: &Node) {
    let reads: Vec<String> = (0..16)
        .flat_map(|part| [format!("read -P 0 {}M 1472K", part * 2), format!("read -P 1 {}K 576K", part * 2048 + 1472)])
        .collect();
    node.qemu_io("disk", &reads.iter().map(String::as_str).collect::<Vec<_>>());
}

/// The same, after a death too, and everything is whole.
fn prove_for_good(node: &mut Node) {
    prove(node);
    node.kill();
    node.up();
    prove(node);
    node.varve(&["check"]).ok();
}

/// Asks how cleaning goes until that holds.
fn until(node: &Node, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let mut state = Value::Null;
    let found = wait_until(DEADLINE, what, || {
        state = node.varve(&["clean", "--json"]).json();
        Ok(holds(&state))
    });
    found.unwrap_or_else(|error| panic!("{error}: {state}\n{}", node.log()));
    state
}

fn number(state: &Value, key: &str) -> u64 {
    state[key].as_u64().unwrap_or_else(|| panic!("{key}: {state}"))
}

/// Whether there is something that was dead, and it was cleaned.
fn is_clean(state: &Value) -> bool {
    let (live, dead) = (number(state, "live_bytes"), number(state, "dead_bytes"));
    number(state, "jobs") > 0 && live * 100 >= (live + dead) * 80 && state["running"] == false
}

/// Bytes of what holds data in the store.
fn stored(node: &Node) -> u64 {
    let mut directories = vec![node.data().join("store")];
    let mut bytes = 0;
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_data = ["/seg/", "/bun/"].iter().any(|kind| path.to_string_lossy().contains(kind));
            match entry.metadata() {
                Ok(about) if about.is_dir() => directories.push(path),
                Ok(about) if is_data => bytes += about.len(),
                // Not data, or deleted meanwhile.
                _ => {}
            }
        }
    }
    bytes
}

/// Posts a document; gives the status and what is answered.
fn post(node: &Node, path: &str, document: &Value) -> (u16, Value) {
    let body = document.to_string();
    let mut stream = UnixStream::connect(node.data().join("api.sock")).unwrap();
    let head = "host: localhost\r\nconnection: close\r\ncontent-type: application/json";
    write!(stream, "POST {path} HTTP/1.1\r\n{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap())
}

#[test]
fn a_worker_cleans_beside_a_node_that_dies_in_between() {
    let mut node = node(&[]);
    let mut worker = worker(&node, "helper", &[]);
    node.kill();
    node.up();
    until(&node, "the worker comes back", |state| knows(state, "helper"));
    make_sparse(&node);
    let state = until(&node, "it is cleaned", is_clean);
    assert_eq!(number(&state, "worker_jobs"), number(&state, "jobs"), "{state}");
    assert_eq!((number(&state, "failed_jobs"), number(&state, "refused_jobs")), (0, 0), "{state}");
    assert!(number(&state, "put_bytes") >= 8 << 20 && number(&state["workers"][0], "jobs") > 0, "{state}");
    let text = node.varve(&["clean"]).ok();
    assert!(text.contains("helper") && text.contains("of workers"), "{text}");
    assert!(node.metrics().contains("\nvarve_clean_workers 1\n"), "{}", node.metrics());
    wait_until(DEADLINE, "the objects of before go", || Ok(stored(&node) <= 16 << 20)).unwrap();
    worker.check_running().unwrap();
    worker.signal(Signal::TERM).unwrap();
    assert_eq!(worker.wait(DEADLINE).unwrap().code(), Some(0), "{}", worker.log_tail());
    let log = std::fs::read_to_string(worker.log_path()).unwrap();
    let report: Value = serde_json::from_str(&log[log.find("{\n").unwrap()..]).unwrap();
    assert_eq!((&report["jobs"], &report["failed_jobs"]), (&state["jobs"], &json!(0)), "{log}");
    prove_for_good(&mut node);
}

#[test]
fn a_worker_cleans_what_is_in_seaweedfs() {
    let server = SeaweedFs::start().unwrap();
    server.make_bucket("disks").unwrap();
    let secrets = tempfile::tempdir().unwrap();
    let file = secrets.path().join("credentials");
    let (key, secret) = (SeaweedFs::ACCESS_KEY, SeaweedFs::SECRET_KEY);
    std::fs::write(&file, format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")).unwrap();
    let url = format!("s3://disks/pool?endpoint={}&credentials={}", server.endpoint(), file.display());
    let mut node = node(&["--store", &url]);
    let mut worker = worker(&node, "far", &["--rate", "1G"]);
    make_sparse(&node);
    let state = until(&node, "it is cleaned", is_clean);
    assert_eq!(number(&state, "worker_jobs"), number(&state, "jobs"), "{state}");
    worker.check_running().unwrap();
    assert!(!node.log().contains(secret) && !worker.log_tail().contains(secret));
    prove_for_good(&mut node);
}

#[test]
fn a_worker_that_is_killed_is_waited_for_no_longer_and_another_goes_on() {
    let mut node = node(&[]);
    // Slow: it would be at its job for minutes.
    let mut slow = worker(&node, "slow", &["--rate", "64K"]);
    make_sparse(&node);
    until(&node, "it is at work", |state| number_of(state, "slow", "read_bytes") > 0);
    prove(&node);
    let _other = worker(&node, "other", &[]);
    assert_eq!(number(&node.varve(&["clean", "--json"]).json(), "jobs"), 0, "a volume has one job at a time");
    slow.kill().unwrap();
    let state = until(&node, "another has done it", is_clean);
    assert_eq!((number(&state, "expired_jobs"), number(&state, "failed_jobs")), (1, 1), "{state}");
    assert_eq!(number(&state, "worker_jobs"), number(&state, "jobs"), "{state}");
    wait_until(DEADLINE, "the objects of before go", || Ok(stored(&node) <= 16 << 20)).unwrap();
    prove_for_good(&mut node);
}

fn number_of(state: &Value, worker: &str, key: &str) -> u64 {
    let workers = state["workers"].as_array().unwrap();
    workers.iter().find(|found| found["name"] == worker).map_or(0, |found| number(found, key))
}

#[test]
fn a_worker_that_ends_gives_its_job_back_and_the_node_goes_on() {
    let mut node = node(&[]);
    let mut slow = worker(&node, "slow", &["--rate", "64K"]);
    make_sparse(&node);
    until(&node, "it is at work", |state| number_of(state, "slow", "read_bytes") > 0);
    slow.signal(Signal::TERM).unwrap();
    assert_eq!(slow.wait(DEADLINE).unwrap().code(), Some(0), "{}", slow.log_tail());
    let state = until(&node, "the node has done it", is_clean);
    assert_eq!((number(&state, "worker_jobs"), number(&state, "failed_jobs")), (0, 0), "{state}");
    prove_for_good(&mut node);
}

#[test]
fn a_worker_that_lies_is_refused_and_nothing_is_lost() {
    let mut node = node(&[]);
    let ask = json!({ "worker": "liar" });
    assert_eq!(post(&node, "/v1/cleaning/jobs", &ask), (200, json!({ "job": null })));
    make_sparse(&node);
    let mut job = Value::Null;
    wait_until(DEADLINE, "there is a job", || {
        job = post(&node, "/v1/cleaning/jobs", &ask).1["job"].take();
        Ok(!job.is_null())
    })
    .unwrap();
    let path = |what: &str| format!("/v1/cleaning/jobs/{}/{what}", job["id"].as_str().unwrap());
    assert!(job["store"].as_str().unwrap().starts_with("file:///"), "{job}");
    let done = |bundle: &str| json!({ "bundle": bundle, "shares": 1, "read_bytes": 1, "put_bytes": 4096 });
    let bundle = job["bundle"].as_str().unwrap();
    // What is no name at all says nothing of the job; what is not there ends it.
    assert_eq!(post(&node, &path("complete"), &done("../../../etc/passwd")).0, 400);
    assert_eq!(post(&node, &path("renew"), &json!({ "read_bytes": 7 })).0, 200);
    let (status, refused) = post(&node, &path("complete"), &done(bundle));
    assert_eq!((status, &refused["kind"]), (400, &json!("invalid")), "{refused}");
    assert!(refused["message"].as_str().unwrap().contains("not in the store"), "{refused}");
    for what in ["renew", "complete", "fail"] {
        let document = match what {
            "renew" => json!({ "read_bytes": 0 }),
            "complete" => done(bundle),
            _ => json!({ "message": "no" }),
        };
        assert_eq!(post(&node, &path(what), &document).0, 404, "{what}: it is over");
    }
    assert_eq!(post(&node, "/v1/cleaning/jobs", &ask).1["job"], Value::Null, "it gets nothing for a while");
    let state = until(&node, "the node has done it", is_clean);
    assert_eq!((number(&state, "refused_jobs"), number(&state, "worker_jobs")), (1, 0), "{state}");
    prove_for_good(&mut node);
}

#[test]
fn a_worker_that_is_called_wrongly_says_so() {
    let node = Node::start(&[]);
    for args in
        [&["--jobs", "1"][..], &["--worker", "--pause"], &["--worker", "--jobs", "0"], &["--worker", "--rate", "1K"]]
    {
        node.varve(&[&["clean"], args].concat()).fails(2);
    }
    let report = node.varve(&["clean", "--worker", "--once", "--json"]).json();
    assert_eq!((&report["jobs"], &report["failed_jobs"]), (&json!(0), &json!(0)));
    // Without a node it would wait for one for ever.
    let mut lone = varve();
    lone.env("VARVE_API", "unix:/nonexistent.sock").args(["clean", "--worker", "--jobs", "1"]).stderr(Stdio::piped());
    let mut lone = lone.spawn().unwrap();
    let mut said = [0; 400];
    let read = lone.stderr.take().unwrap().read(&mut said).unwrap();
    lone.kill().unwrap();
    lone.wait().unwrap();
    assert!(read > 0, "it says that it waits");
    let _: Run = node.varve(&["check"]);
}
