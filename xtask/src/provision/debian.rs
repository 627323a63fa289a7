// SPDX-License-Identifier: Apache-2.0
//! Debian packages: the clients, peers and tools of the tests.
//!
//! QEMU needs care. A machine may come with a `qemu-utils` from backports that is newer than the release's QEMU and breaks it:
//! asking for `qemu-system-x86` alone then removes `qemu-utils`, and asking for both fails, for apt will not go back a version
//! by itself. So both are asked for at the one version that apt would install of `qemu-system-x86`, and going back is allowed.
//! On a machine without the newer one this is the same plain installation.

use crate::process::{Echo, output, run};
use anyhow::{Context, Result, bail};
use std::process::Command;
use std::time::Duration;

/// What is needed.
const PACKAGES: [&str; 16] = [
    "busybox-static",
    "cpio",
    "e2fsprogs",
    "etcd-client",
    "etcd-server",
    "fio",
    "iproute2",
    "libnbd-bin",
    "nbd-client",
    "nbdkit",
    "openssl",
    "procps",
    "python3-libnbd",
    "qemu-system-x86",
    "qemu-utils",
    "xz-utils",
];
/// These come from one source and must be of one version; the first decides which.
const SAME_VERSION: [&str; 2] = ["qemu-system-x86", "qemu-utils"];

/// Packages that start a service when they are installed, and its name. Tests start the programs themselves.
const SERVICES: [(&str, &str); 1] = [("etcd-server", "etcd")];

const QUICK: Duration = Duration::from_secs(60);
const INSTALLATION: Duration = Duration::from_secs(600);

/// Installs what is missing; `false` when a person has to do it, who was told how.
pub fn provide() -> Result<bool> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${Package} ${db:Status-Abbrev}\n"]).args(PACKAGES);
    // It fails when it does not know one of them, and still lists the others.
    let known = run(&mut query, QUICK, Echo::No).with_context(|| {
        format!("the tests need Debian, or by hand what is in its packages {}", PACKAGES.join(", "))
    })?;
    let missing = missing(&known.stdout);
    if missing.is_empty() {
        println!("   Debian packages: all there");
        return Ok(true);
    }
    let root = rustix::process::geteuid().is_root();
    if root {
        println!("   Debian packages: installing {}", missing.join(", "));
        apt(&["update".to_owned(), "-qq".to_owned()])?;
    }
    let arguments = install_arguments(&missing, candidate(SAME_VERSION[0]).as_deref());
    if !root {
        println!("The tests need programs that are not installed. Once, as root:\n");
        println!("    apt-get update && apt-get {}", arguments.join(" "));
        for service in services(&missing) {
            println!("    systemctl disable --now {service}    # which the package starts and the tests do not need");
        }
        println!();
        return Ok(false);
    }
    apt(&arguments)?;
    for service in services(&missing) {
        // A machine without systemd, such as a container, has started none.
        let stopped = output(Command::new("systemctl").args(["disable", "--now", service]), QUICK);
        println!("   service {service}: {}", if stopped.is_ok() { "stopped" } else { "not started" });
    }
    Ok(true)
}

/// Services that come with packages that were missing.
fn services<'a>(missing: &'a [&str]) -> impl Iterator<Item = &'static str> + 'a {
    SERVICES.iter().filter(|(package, _)| missing.contains(package)).map(|(_, service)| *service)
}

fn missing(known: &str) -> Vec<&'static str> {
    let installed: Vec<&str> = known
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(_, s)| s.starts_with("ii"))
        .map(|(p, _)| p)
        .collect();
    PACKAGES.into_iter().filter(|package| !installed.contains(package)).collect()
}

/// The version that apt would install.
fn candidate(package: &str) -> Option<String> {
    let policy = output(Command::new("apt-cache").env("LC_ALL", "C").args(["policy", package]), QUICK).ok()?;
    let line = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (line != "(none)").then(|| line.to_owned())
}

/// What follows `apt-get`. When one of the packages of one version is missing, the others are asked for as well.
fn install_arguments(missing: &[&str], version: Option<&str>) -> Vec<String> {
    let mut arguments: Vec<String> =
        ["install", "-y", "-qq", "--no-install-recommends", "--allow-downgrades"].map(str::to_owned).into();
    let together = missing.iter().any(|package| SAME_VERSION.contains(package));
    for package in PACKAGES {
        match version {
            Some(version) if together && SAME_VERSION.contains(&package) => {
                arguments.push(format!("{package}={version}"))
            }
            _ if missing.contains(&package) => arguments.push(package.to_owned()),
            _ => {}
        }
    }
    arguments
}

fn apt(arguments: &[String]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "DPkg::Lock::Timeout=120"]).args(arguments);
    let finished = run(&mut command, INSTALLATION, Echo::No)?;
    if !finished.ok() {
        bail!("`apt-get {}` failed:\n{}{}", arguments.join(" "), finished.stdout, finished.stderr);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_fully_installed_is_missing() {
        let all: String = PACKAGES.iter().map(|package| format!("{package} ii \n")).collect();
        assert!(missing(&all).is_empty());
        assert_eq!(missing(&all.replace("fio ii", "fio rc")), ["fio"]);
        assert_eq!(missing(&all.replace("cpio ii \n", "")), ["cpio"]);
        assert_eq!(missing("").len(), PACKAGES.len());
    }

    #[test]
    fn only_a_service_that_came_along_is_stopped() {
        assert_eq!(services(&["fio", "etcd-server"]).collect::<Vec<_>>(), ["etcd"]);
        assert_eq!(services(&["fio"]).count(), 0);
        assert!(SERVICES.iter().all(|(package, _)| PACKAGES.contains(package)));
    }

    #[test]
    fn both_halves_of_qemu_are_asked_for_at_one_version() {
        let words = install_arguments(&["fio", "qemu-system-x86"], Some("1:7.2"));
        assert!(words.contains(&"--allow-downgrades".to_owned()));
        assert_eq!(words[5..], ["fio", "qemu-system-x86=1:7.2", "qemu-utils=1:7.2"]);
        assert_eq!(install_arguments(&["fio"], Some("1:7.2"))[5..], ["fio"]);
        assert_eq!(install_arguments(&["qemu-utils"], None)[5..], ["qemu-utils"]);
    }
}
