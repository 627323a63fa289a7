// SPDX-License-Identifier: Apache-2.0
//! The command: volumes over NBD to real clients, the daemon and those who ask it.

use super::owner::Owner;
use super::tools::{DEADLINE, Running, finished, start, try_run};
use std::os::unix::fs::PermissionsExt;
use varve_lab::process::wait_until;
use varve_types::ErrorKind;
use varve_wire::attach::Refused;
use varve_wire::transmission::Ask;

#[test]
fn qemu_reads_what_it_wrote_and_a_stop_gives_the_volume_up() {
    let owner = Owner::start();
    let mut running = Running::start(&["run", "disk", "--node", &owner.node()], "disk is attached at");
    let dir = running.dir.path().to_owned();
    let (ok, told) = try_run(&dir, "nbdinfo", "libnbd-bin", &["--json", &running.uri("disk")]);
    assert!(ok && told.contains("\"export-size\": 16777216") && told.contains("\"can_multi_conn\": true"), "{told}");
    let commands =
        ["write -P 7 0 1M", "write -z 64k 64k", "discard 128k 64k", "write -f -P 9 1M 512", "read -P 7 0 64k"];
    let more = ["read -P 0 64k 128k", "read -P 9 1M 512", "flush", "write -P 3 8M 4k"];
    let mut args = vec!["-f", "raw", "-t", "writeback"];
    commands.iter().chain(&more).for_each(|command| args.extend(["-c", command]));
    let uri = running.uri("disk");
    args.push(&uri);
    let (ok, text) = try_run(&dir, "qemu-io", "qemu-utils", &args);
    assert!(ok && !text.contains("failed") && !text.contains("rror"), "{text}");
    assert_eq!(running.stop(), 0);
    let state = owner.state();
    assert_eq!(state.asked.last(), Some(&Ask::Detach));
    assert_eq!((state.safe_data[8 << 20], state.safe_data[65 << 10]), (3, 0));
    assert!(!dir.join("nbd.sock").exists());
}

#[test]
fn fio_verifies_what_it_wrote_while_owners_die() {
    let mut owner = Owner::start();
    let mut running = Running::start(&["run", "disk", "--node", &owner.node()], "disk is attached at");
    let dir = running.dir.path().to_owned();
    let uri = format!("--uri={}", running.uri("disk"));
    let common = ["--name=verify", "--ioengine=nbd", &uri, "--size=12m", "--verify=crc32c", "--verify_fatal=1"];
    let load = ["--rw=randwrite", "--bsrange=512-64k", "--iodepth=16", "--randseed=7", "--loops=40"];
    let mut fio = start(&dir, "fio", "fio", &[&common[..], &load[..]].concat());
    for round in 1..=4 {
        let asked = owner.state().asked.len();
        wait_until(DEADLINE, "some load", || Ok(owner.state().asked.len() > asked + 100)).unwrap();
        owner.kill();
        owner.revive();
        let back = || Ok(running.log().matches("the owner is back").count() == round);
        wait_until(DEADLINE, "the edge to come back", back).unwrap();
    }
    assert!(fio.wait(DEADLINE).unwrap().success(), "{}", fio.log_tail());
    let log = running.log();
    let count = |text: &str| log.matches(text).count();
    assert_eq!((count("the owner is lost"), count("the owner is back")), (4, 4), "{log}");
    assert_eq!(running.stop(), 0);
}

#[test]
fn a_refusal_is_told_with_its_exit_code() {
    let owner = Owner::start();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let run = |more: &[&str]| {
        let node = owner.node();
        finished(
            &[&["--log", "error", "run", "disk", "--node", &node, "--socket", socket.to_str().unwrap()], more].concat(),
        )
    };
    owner.state().token = "right".into();
    let token = dir.path().join("token");
    std::fs::write(&token, "wrong\n").unwrap();
    let (code, out, err) = run(&["--token-file", token.to_str().unwrap()]);
    assert!(code == 2 && out.is_empty() && err.contains("volume disk: the token is not one of this volume's"), "{err}");
    for (kind, code) in [(ErrorKind::NotFound, 3), (ErrorKind::Conflict, 4)] {
        owner.state().refusals = [Refused::new(kind, "because of this")].into();
        let (exit, _, err) = run(&[]);
        assert!(exit == code && err.contains("volume disk: because of this"), "{err}");
    }
    let (code, _, err) = finished(&["run", "disk", "--node", "nonsense", "--socket", socket.to_str().unwrap()]);
    assert!(code == 2 && err.contains("HOST:PORT"), "{err}");
    assert_eq!(finished(&["attach", "disk", "--node", "a:1", "--io-timeout", "soon"]).0, 2);
}

#[test]
fn a_daemon_attaches_lists_tells_and_detaches() {
    let owner = Owner::start();
    let mut running = Running::start(&["serve"], "serving");
    let mode = std::fs::metadata(running.control()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(running.ask(&["list"]).1.contains("There are no volumes here"));
    let (code, out, err) = running.ask(&["attach", "disk", "--node", &owner.node(), "--json"]);
    assert_eq!(code, 0, "{err}");
    let document: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((document["size_bytes"].as_u64(), document["state"].as_str()), (Some(16 << 20), Some("connected")));
    assert_eq!(document["nbd_uri"].as_str(), Some(running.uri("disk").as_str()));
    let (code, _, err) = running.ask(&["attach", "disk", "--node", &owner.node()]);
    assert!(code == 4 && err.contains("attached here already"), "{err}");
    let dir = running.dir.path().to_owned();
    let (ok, text) = try_run(&dir, "qemu-io", "qemu-utils", &["-f", "raw", "-c", "write 0 64k", &running.uri("disk")]);
    assert!(ok, "{text}");
    let (code, out, _) = running.ask(&["list"]);
    assert!(code == 0 && out.contains(&format!("connected to {}", owner.node())), "{out}");
    let (_, out, _) = running.ask(&["stats", "disk", "--json"]);
    let stats: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(stats[0]["operations"]["write"]["bytes"].as_u64(), Some(64 << 10), "{out}");
    assert!(running.ask(&["stats"]).1.contains("0 reconnects"));
    assert_eq!(running.ask(&["stats", "none"]).0, 3);
    assert_eq!(running.ask(&["detach", "disk"]).0, 0);
    assert_eq!(running.ask(&["detach", "disk"]).0, 3);
    assert_eq!(owner.state().asked.last(), Some(&Ask::Detach));
    assert_eq!(running.stop(), 0);
    assert!(!running.control().exists());
    let (code, _, err) = running.ask(&["list"]);
    assert!(code == 5 && err.contains("no varve-edge answers"), "{err}");
}

#[test]
fn volumes_of_a_configuration_are_attached_once_they_can_be_had() {
    let owner = Owner::start();
    // Whatever the reason: an edge that died may have it still, it may have been made by now.
    let refusals = [ErrorKind::Unavailable, ErrorKind::NotFound, ErrorKind::Conflict];
    owner.state().refusals = refusals.map(|kind| Refused::new(kind, "not yet")).into();
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("edge.toml");
    std::fs::write(&config, format!("[[volume]]\nvolume = \"disk\"\nnodes = [\"{}\"]\n", owner.node())).unwrap();
    let mut running = Running::start(&["serve", "--config", config.to_str().unwrap()], "serving");
    let refused = || Ok(running.log().contains("it is asked for again"));
    wait_until(DEADLINE, "a refusal", refused).unwrap();
    assert!(running.ask(&["list"]).1.contains("attaching"));
    owner.state().refusals.clear();
    wait_until(DEADLINE, "the volume", || Ok(running.ask(&["list"]).1.contains("connected to"))).unwrap();
    assert_eq!(running.stop(), 0);
    std::fs::write(&config, "[[volume]]\nvolume = \"disk\"\n").unwrap();
    let socket = dir.path().join("s");
    let (code, _, err) =
        finished(&["serve", "--config", config.to_str().unwrap(), "--socket", socket.to_str().unwrap()]);
    assert!(code == 2 && err.contains("edge.toml") && err.contains("nodes"), "{err}");
}
