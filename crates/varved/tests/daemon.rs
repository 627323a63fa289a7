// SPDX-License-Identifier: Apache-2.0
//! The daemon as systemd sees it: it says that it serves, that it works, and that it stops; and refuses a configuration that is none.

#![allow(clippy::unwrap_used)]

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use varve_lab::process::{Process, Signal};

const DEADLINE: Duration = Duration::from_secs(60);

fn varved(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_varved"));
    command.arg("--config").arg(config).stdin(Stdio::null());
    command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC").env_remove("WATCHDOG_PID");
    command
}

fn configuration(dir: &Path, more: &str) -> PathBuf {
    let path = dir.join("varved.toml");
    let data = dir.join("data");
    let text =
        format!("data = '{}'\njournal-size = '64M'\nlayer-ram = '64M'\napi-listen = 'none'\n{more}", data.display());
    std::fs::write(&path, text).unwrap();
    path
}

fn heard(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 64];
    let len = socket.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..len].to_vec()).unwrap()
}

#[test]
fn systemd_is_told_that_it_serves_works_and_stops() {
    let dir = tempfile::tempdir().unwrap();
    let (config, notify) = (configuration(dir.path(), "volumes = ['disk:64M']\n"), dir.path().join("notify"));
    let socket = UnixDatagram::bind(&notify).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut command = varved(&config);
    command.env("NOTIFY_SOCKET", &notify).env("WATCHDOG_USEC", "200000");
    let mut process = Process::start("varved", command, dir.path()).unwrap();
    let mut said = vec![heard(&socket)];
    while said.iter().filter(|said| *said == "WATCHDOG=1").count() < 3 {
        said.push(heard(&socket));
    }
    assert_eq!(said.iter().filter(|said| *said == "READY=1").count(), 1, "{said:?}");
    assert!(dir.path().join("data/nbd.sock").exists() && dir.path().join("data/api.sock").exists());
    process.signal(Signal::TERM).unwrap();
    while heard(&socket) != "STOPPING=1" {}
    assert_eq!(process.wait(DEADLINE).unwrap().code(), Some(0), "{}", process.log_tail());
    let log = std::fs::read_to_string(process.log_path()).unwrap();
    assert!(log.contains("the node serves") && log.contains("everything that was acknowledged is durable"), "{log}");
}

#[test]
fn a_configuration_that_is_none_is_refused() {
    let run = |config: &Path, args: &[&str]| -> Output { varved(config).args(args).output().unwrap() };
    let dir = tempfile::tempdir().unwrap();
    let missing = run(&dir.path().join("none"), &[]);
    assert_eq!(missing.status.code(), Some(2), "{missing:?}");
    let wrong = run(&configuration(dir.path(), "no-such-key = 1\n"), &["--check"]);
    let told = String::from_utf8(wrong.stderr).unwrap();
    assert!(wrong.status.code() == Some(2) && told.contains("no-such-key"), "{told}");
    let right = run(&configuration(dir.path(), ""), &["--check"]);
    assert!(right.status.success() && !dir.path().join("data").exists(), "{right:?}");
}

/// What is shipped with it.
#[test]
fn the_example_is_a_configuration() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/varved.toml");
    let output = varved(&example).arg("--check").output().unwrap();
    assert!(output.status.success(), "{output:?}");
}
