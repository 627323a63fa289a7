// SPDX-License-Identifier: Apache-2.0
//! What goes wrong: the exit code for scripts, the sentence for people.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Node, Run, run, varve};
use std::os::unix::net::UnixListener;
use varve_types::ErrorKind;

#[test]
fn every_kind_of_error_has_its_exit_code() {
    let node = Node::start();
    for kind in ["invalid", "not-found", "conflict", "fenced", "unavailable", "busy", "corrupt", "no-space", "internal"]
    {
        let code = i32::from(ErrorKind::parse(kind).unwrap().exit_code());
        let complaint = node.run(&["volume", "show", &format!("fail-{kind}")]).fails(code);
        assert_eq!(complaint, format!("varve: volume fail-{kind} fails on purpose\n"));
    }
}

#[test]
fn wrong_usage_is_found_without_a_node() {
    for (args, part) in [
        (&["volume", "create", "v"][..], "--size"),
        (&["volume", "create", "v", "--size", "0"], "can not have the size zero"),
        (&["volume", "create", "v", "--size", "513"], "multiple of 512"),
        (&["volume", "create", "v", "--size", "65T"], "64 TiB"),
        (&["volume", "create", "v", "--size", "10X"], "K, M, G, T"),
        (&["volume", "create", "a b", "--size", "1G"], "is not a name"),
        (&["volume", "create", "-a", "--size", "1G"], "-a"),
        (&["volume", "create", "", "--size", "1G"], "empty"),
        (&["volume", "create", "v", "--size", "1G", "--segment-size", "1M"], "4M to 128M"),
        (&["volume", "create", "v", "--size", "1G", "--compression", "gzip"], "lz4, zstd or none"),
        (&["volume", "set", "v"], "KEY=VALUE"),
        (&["volume", "set", "v", "speed=high"], "there is no setting"),
        (&["volume", "set", "v", "ack"], "is not KEY=VALUE"),
        (&["volume", "set", "v", "ack=disk"], "process or ram"),
        (&["pool", "create", "p"], "--store"),
        (&["snapshot", "rollback", "v"], "<NAME>"),
        (&["snapshot", "rollback", "v", "a", "--undo"], "--undo"),
        (&["clone", "v@", "k"], "is not a name"),
        (&["export", "v", "f", "--format", "vmdk"], "raw or qcow2"),
        (&["up", "--volume", "v"], "NAME:SIZE"),
        (&["up", "--nbd-listen", "here"], "ADDRESS:PORT"),
        (&["--api", "ftp://x", "status"], "unix:PATH or http://HOST:PORT"),
        (&["frobnicate"], "frobnicate"),
        (&[], "Usage"),
        (&["volume"], "Usage"),
    ] {
        let complaint = run(args).fails(2);
        assert!(complaint.contains(part), "{args:?}: {complaint}");
    }
}

#[test]
fn without_a_node_the_program_says_how_to_start_or_find_one() {
    let dir = tempfile::tempdir().unwrap();
    let in_dir = |args: &[&str]| -> Run { varve().args(args).current_dir(dir.path()).output().unwrap().into() };
    let complaint = in_dir(&["volume", "list"]).fails(5);
    assert!(complaint.contains("no Varve node answers at unix:./varve-data/api.sock"), "{complaint}");
    assert!(
        complaint.contains("varve up") && complaint.contains("--api") && complaint.contains("VARVE_API"),
        "{complaint}"
    );
    // A socket that a dead node left, and a port where nobody listens.
    drop(UnixListener::bind(dir.path().join("dead.sock")).unwrap());
    in_dir(&["--api", "unix:dead.sock", "status"]).fails(5);
    let port = varve_lab::process::free_port().unwrap();
    in_dir(&["--api", &format!("http://127.0.0.1:{port}"), "status"]).fails(5);
    for args in [&["import", "image", "v"][..], &["export", "v", "image"], &["check"], &["flatten", "v"]] {
        std::fs::write(dir.path().join("image"), "x").unwrap();
        let args = if args[0] == "export" { &["export", "v", "other"][..] } else { args };
        in_dir(args).fails(5);
    }
}

#[test]
fn what_answers_must_be_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let answers = [
        (&b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"[..], 1, "not understood"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", 1, "not as Varve does"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi", 5, "ended early"),
        (b"SSH-2.0-OpenSSH\r\n", 5, "connection broke"),
    ];
    let thread = std::thread::spawn(move || {
        for (answer, _, _) in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            assert!(std::io::Read::read(&mut stream, &mut request).unwrap() > 0);
            std::io::Write::write_all(&mut stream, answer).unwrap();
        }
    });
    for (_, code, part) in answers {
        let complaint = run(&["--api", &format!("unix:{}", socket.display()), "volume", "list"]).fails(code);
        assert!(complaint.contains(part), "{complaint}");
    }
    thread.join().unwrap();
}

#[test]
fn the_port_wants_the_token() {
    let node = Node::start();
    let url = format!("http://{}", node.tcp);
    let ask = |token: Option<&str>| -> Run {
        let mut command = varve();
        command.args(["--api", &url, "volume", "list", "--json"]);
        token.map(|token| command.env("VARVE_TOKEN", token));
        command.output().unwrap().into()
    };
    assert_eq!(ask(Some(&node.token)).ok(), "[]\n");
    for token in [None, Some("wrong")] {
        let complaint = ask(token).fails(2);
        assert!(complaint.contains("token") && complaint.contains("VARVE_TOKEN"), "{complaint}");
    }
    assert!(ask(Some("a b")).fails(2).contains("VARVE_TOKEN"));
}

#[test]
fn a_wrong_configuration_is_refused_by_file_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("varve.toml");
    let up = |text: &str, more: &[&str]| {
        std::fs::write(&file, text).unwrap();
        run(&[&["up", "--config", file.to_str().unwrap()], more].concat())
    };
    for (text, parts) in [
        ("data = 'd'\nstorre = 'file:///x'\n", &["varve.toml, line 2, key storre"][..]),
        ("journal-size = '2 GB'\n", &["line 1, key journal-size", "not a valid size"]),
        ("layer-ram = '1K'\n", &["layer-ram is 1 KiB"]),
        ("api-listen = '0.0.0.0:80'\n", &["api-listen", "loopback"]),
        ("log-level = '=='\n", &["log-level"]),
        ("[volumes]\n", &["line 1", "expected a sequence"]),
        ("this is no TOML\n", &["line 1"]),
    ] {
        let complaint = up(text, &["--data", dir.path().join("d").to_str().unwrap()]).fails(2);
        assert!(parts.iter().all(|part| complaint.contains(part)), "{text}: {complaint}");
    }
    assert!(run(&["up", "--config", "/nonexistent/varve.toml"]).fails(2).contains("/nonexistent/varve.toml"));
    assert!(!dir.path().join("d").exists());
}
