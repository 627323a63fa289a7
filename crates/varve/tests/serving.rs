// SPDX-License-Identifier: Apache-2.0
//! A node from an empty directory: what real clients write is read again, now, after a stop and after a kill.

#![allow(clippy::unwrap_used)]

mod real;

use real::{DEADLINE, Node, nbdsh, nbdsh_command, noise, run};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use varve_lab::process::{Process, find_program, wait_until};

#[test]
fn an_empty_directory_becomes_a_node_with_disks() {
    let node = Node::start(&["--volume", "disk:10G", "--volume", "small:1M"]);
    let said = node.log();
    for part in ["disk    10 GiB", "small    1 MiB", &node.uri("disk"), "data/store"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(std::fs::metadata(node.data()).unwrap().permissions().mode() & 0o777, 0o700);

    let info = run("nbdinfo", "libnbd-bin", &["--json", &node.uri("disk")]).json();
    let export = &info["exports"][0];
    assert_eq!((export["export-size"].as_u64(), export["is_read_only"].as_bool()), (Some(10 << 30), Some(false)));
    let list = run("nbdinfo", "libnbd-bin", &["--list", "--json", &node.uri("")]).json();
    let names: Vec<_> =
        list["exports"].as_array().unwrap().iter().map(|e| e["export-name"].as_str().unwrap()).collect();
    assert_eq!(names, ["disk", "small"]);
    let none = run("nbdinfo", "libnbd-bin", &[&node.uri("none")]);
    assert!(none.code != 0 && none.err.contains("No such file or directory"), "{none:?}");

    node.qemu_io(
        "disk",
        &[
            "write -P 0xa5 1M 4M",
            "write -P 0x5a 512 512",
            "flush",
            "read -P 0xa5 1M 4M",
            "read -P 0x5a 512 512",
            "read -P 0 0 512",
        ],
    );
    node.qemu_io("disk", &["write -z 2M 1M", "discard 3M 1M", "read -P 0 2M 2M", "read -P 0xa5 4M 1M"]);
    let map = run("nbdinfo", "libnbd-bin", &["--map", "--json", &node.uri("disk")]).json();
    let data: u64 =
        map.as_array().unwrap().iter().filter(|e| e["type"] == 0).map(|e| e["length"].as_u64().unwrap()).sum();
    assert_eq!(data, 4096 + (2 << 20), "{map}");
}

#[test]
fn an_image_goes_in_and_comes_out_the_same_before_and_after_a_restart() {
    let mut node = Node::start(&["--volume", "disk:96M"]);
    // So small that most of the image is sealed into the store at once.
    node.varve(&["volume", "set", "disk", "segment-size=4M"]).ok();
    let mut image = vec![0; 96 << 20];
    for (at, len) in [(0, 5 << 20), (20 << 20, 17 << 20), ((96 << 20) - 4096, 4096)] {
        image[at..at + len].copy_from_slice(&noise(len, at as u64 + 1));
    }
    let (original, copy) = (node.path("image"), node.path("copy"));
    std::fs::write(&original, &image).unwrap();
    run("nbdcopy", "libnbd-bin", &["--flush", original.to_str().unwrap(), &node.uri("disk")]).ok();
    for round in ["before", "after"] {
        run("nbdcopy", "libnbd-bin", &[&node.uri("disk"), copy.to_str().unwrap()]).ok();
        assert!(std::fs::read(&copy).unwrap() == image, "the image differs {round} the restart");
        if round == "before" {
            node.stop();
            assert!(!node.data().join("nbd.sock").exists() && !node.data().join("api.sock").exists());
            node.up();
        }
    }
    let volume = node.varve(&["volume", "show", "disk", "--json"]).json();
    assert!(volume["space"]["segments"].as_u64().unwrap() > 0, "{volume}");
}

#[test]
fn what_was_acknowledged_survives_kill_9_flushed_or_not() {
    let mut node = Node::start(&["--volume", "disk:1G"]);
    node.varve(&["volume", "set", "disk", "segment-size=4M"]).ok();
    for round in 0..3u64 {
        // Writes 2,000 blocks at odd places, tells so, and keeps the connection open: nothing is flushed.
        let script = "import sys\n\
            for i in range(2000):\n    at = (i * 2654435761 % 262144) * 4096\n    h.pwrite(bytes([(i + ROUND) % 251 + 1]) * 4096, at)\n\
            print('written', flush=True)\n\
            import time\ntime.sleep(600)\n"
            .replace("ROUND", &round.to_string());
        let client = nbdsh_command(&node.uri("disk"), &script);
        let mut client = Process::start(&format!("writer-{round}"), client, node.dir.path()).unwrap();
        wait_until(DEADLINE, "the writes", || {
            client.check_running()?;
            Ok(client.log_tail().contains("written"))
        })
        .unwrap();
        node.kill();
        drop(client);
        node.up();
        let script = "bad = []\n\
            for i in range(2000):\n    at = (i * 2654435761 % 262144) * 4096\n    want = bytes([(i + ROUND) % 251 + 1]) * 4096\n\
            \x20   if h.pread(4096, at) != want: bad.append(i)\n\
            print('bad', bad)\n"
            .replace("ROUND", &round.to_string());
        assert_eq!(nbdsh(&node.uri("disk"), &script).ok(), "bad []\n", "round {round}");
    }
}

#[test]
fn images_go_through_the_command_line_and_back() {
    let node = Node::start(&[]);
    assert!(node.log().contains("There are no volumes yet"), "{}", node.log());
    let mut image = vec![0; 40 << 20];
    image[1 << 20..9 << 20].copy_from_slice(&noise(8 << 20, 7));
    let (original, copy) = (node.path("image"), node.path("copy"));
    std::fs::write(&original, &image).unwrap();
    node.varve(&["import", original.to_str().unwrap(), "vm"]).ok();
    node.varve(&["snapshot", "create", "vm", "s"]).ok();
    node.qemu_io("vm", &["write -P 1 0 16M"]);
    node.varve(&["export", "vm@s", copy.to_str().unwrap()]).ok();
    assert!(std::fs::read(&copy).unwrap() == image);
    // What the API kept open for the import stands in nobody's way.
    node.varve(&["snapshot", "rollback", "vm", "s", "--yes"]).ok();
    node.varve(&["export", "--force", "vm", copy.to_str().unwrap()]).ok();
    assert!(std::fs::read(&copy).unwrap() == image);
    node.varve(&["volume", "delete", "vm"]).ok();
}

#[test]
fn a_second_client_gets_in_with_a_warning_and_more_connections_of_one_without() {
    let node = Node::start(&["--volume", "disk:64M"]);
    let script = "other = nbd.NBD()\nother.connect_uri(h.get_uri())\nother.pwrite(b'x' * 512, 0)\nh.flush()\nassert h.pread(512, 0) == b'x' * 512\nprint('same')\n";
    assert_eq!(nbdsh(&node.uri("disk"), script).ok(), "same\n");
    assert!(!node.log().contains("a second client"), "{}", node.log());

    let first = nbdsh_command(&node.uri("disk"), "print('open', flush=True)\nimport time\ntime.sleep(600)");
    // A process group of its own: another client.
    let mut first = Process::start("first", first, node.dir.path()).unwrap();
    wait_until(DEADLINE, "the first client", || {
        first.check_running()?;
        Ok(first.log_tail().contains("open"))
    })
    .unwrap();
    node.until_status("it to be attached", |status| status["volumes"][0]["attached"] == 1);
    node.qemu_io("disk", &["read 0 512"]);
    assert!(node.log().contains("a second client"), "{}", node.log());
    let refused = node.varve(&["volume", "delete", "disk"]).fails(4);
    assert!(refused.contains("attached") && refused.contains("process group"), "{refused}");
    drop(first);
    node.until_status("it to be free", |status| status["volumes"][0]["attached"] == 0);
    node.varve(&["volume", "delete", "disk"]).ok();
}

#[test]
fn tcp_is_served_when_asked() {
    let port = varve_lab::process::free_port().unwrap();
    let address = format!("127.0.0.1:{port}");
    let node = Node::start(&["--volume", "disk:64M", "--nbd-listen", &address]);
    assert!(node.log().contains(&format!("nbd://{address}")), "{}", node.log());
    let uri = format!("nbd://{address}/disk");
    let script = "h.pwrite(b'tcp!' * 1024, 8192)\nprint(h.pread(512, 8192)[:8].decode())";
    assert_eq!(nbdsh(&uri, script).ok(), "tcp!tcp!\n");
    let mut reader = Command::new(find_program("qemu-io", "qemu-utils").unwrap());
    reader.args(["-f", "raw", "-c", "read -P 0 0 512", &uri]).stdout(Stdio::null());
    assert!(reader.status().unwrap().success());
}

#[test]
fn limits_hold_a_volume_back_and_are_lifted_while_it_runs() {
    let node = Node::start(&["--volume", "disk:16M"]);
    node.varve(&["volume", "set", "disk", "bandwidth-limit=4M", "limit-burst=0s"]).ok();
    let from = std::time::Instant::now();
    // The first MiB goes at once; the last begins when what came before it is paid for.
    node.qemu_io("disk", &["write -P 7 0 4M", "write -P 7 4M 4M", "write -P 7 8M 4M", "read -P 7 0 12M"]);
    assert!(from.elapsed().as_millis() >= 2900, "12 MiB were written and read again in {:?}", from.elapsed());
    let shown = node.varve(&["volume", "show", "disk"]).ok();
    assert!(shown.contains("bandwidth-limit  4 MiB/s") && shown.contains("iops-limit       none"), "{shown}");
    let held = |line: &&str| line.starts_with("varve_volume_limited_requests_total{") && !line.ends_with(" 0");
    assert!(node.metrics().lines().any(|line| held(&line)), "some request was held back");
    let mut long = Command::new(find_program("qemu-io", "qemu-utils").unwrap());
    long.args(["-f", "raw", "-c", "write -P 8 0 16M", "-c", "write -P 9 0 512"]).arg(node.uri("disk"));
    node.varve(&["volume", "set", "disk", "bandwidth-limit=64K"]).ok();
    let mut long = Process::start("long", long, node.path(".").as_path()).unwrap();
    let waiting = || -> bool {
        let metrics = node.varve(&["volume", "show", "disk", "--json"]).json();
        metrics["attached"].as_array().is_some_and(|clients| !clients.is_empty())
    };
    wait_until(DEADLINE, "it is attached", || Ok(waiting())).unwrap();
    node.varve(&["volume", "set", "disk", "bandwidth-limit=none"]).ok();
    // Under the limit of before it would take four minutes.
    assert!(long.wait(DEADLINE).unwrap().success());
    node.qemu_io("disk", &["read -P 9 0 512", "read -P 8 512 1M"]);
}
