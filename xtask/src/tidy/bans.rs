// SPDX-License-Identifier: Apache-2.0
//! What the crates of a simulation must not ask of the machine: clocks, random numbers, threads, files, sockets, the order of a hash map.
//!
//! Clippy holds the ban (`disallowed-methods`, `disallowed-types`), with the list in a `clippy.toml` of each of these crates, since it takes the
//! nearest one alone. Here it is held that the lists are there, equal and whole, and that they still set what the file at the root sets: a ban that
//! somebody deletes would otherwise vanish without a word. Exceptions stand beside the code, and each has a reason.

use super::Finding;
use crate::repo::root;
use std::path::{Path, PathBuf};

/// The crates whose code runs in a simulation, and the simulator.
const CRATES: [&str; 6] = ["engine", "block", "format", "types", "coord", "sim"];
/// What their lists must have, at least.
const BANNED: [&str; 80] = [
    "std::time::SystemTime::now",
    "std::time::SystemTime::elapsed",
    "std::time::Instant::now",
    "std::time::Instant::elapsed",
    "tokio::time::Instant::now",
    "std::thread::sleep",
    "std::thread::park_timeout",
    "tokio::time::sleep",
    "tokio::time::sleep_until",
    "tokio::time::timeout",
    "tokio::time::timeout_at",
    "tokio::time::interval",
    "tokio::time::interval_at",
    "std::thread::spawn",
    "std::thread::scope",
    "std::thread::Builder::spawn",
    "tokio::spawn",
    "tokio::task::spawn",
    "tokio::task::spawn_local",
    "tokio::task::spawn_blocking",
    "tokio::task::block_in_place",
    "getrandom::fill",
    "getrandom::u32",
    "getrandom::u64",
    "uuid::Uuid::new_v4",
    "uuid::Uuid::now_v7",
    "std::env::var",
    "std::env::var_os",
    "std::env::vars",
    "std::env::vars_os",
    "std::env::args",
    "std::env::args_os",
    "std::env::temp_dir",
    "std::env::current_dir",
    "std::thread::available_parallelism",
    "std::process::id",
    "std::fs::read",
    "std::fs::read_to_string",
    "std::fs::write",
    "std::fs::copy",
    "std::fs::rename",
    "std::fs::remove_file",
    "std::fs::remove_dir",
    "std::fs::remove_dir_all",
    "std::fs::create_dir",
    "std::fs::create_dir_all",
    "std::fs::read_dir",
    "std::fs::metadata",
    "std::fs::symlink_metadata",
    "std::fs::hard_link",
    "std::fs::canonicalize",
    "std::fs::set_permissions",
    "std::fs::exists",
    "std::path::Path::exists",
    "std::path::Path::try_exists",
    "std::path::Path::is_file",
    "std::path::Path::is_dir",
    "std::path::Path::metadata",
    "std::path::Path::read_dir",
    "std::path::Path::canonicalize",
    "std::collections::HashMap",
    "std::collections::HashSet",
    "std::hash::RandomState",
    "std::fs::File",
    "std::fs::OpenOptions",
    "std::fs::DirBuilder",
    "tokio::fs::File",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::net::UdpSocket",
    "std::os::unix::net::UnixStream",
    "std::os::unix::net::UnixListener",
    "std::os::unix::net::UnixDatagram",
    "tokio::net::TcpStream",
    "tokio::net::TcpListener",
    "tokio::net::UdpSocket",
    "tokio::net::UnixStream",
    "tokio::net::UnixListener",
    "std::process::Command",
    "tokio::process::Command",
];

/// Lines behind an `allow` in which its reason must stand.
const REASON_WITHIN: usize = 5;

/// The list of a crate.
fn list_of(name: &str) -> PathBuf {
    Path::new("crates").join(name).join("clippy.toml")
}

/// Checks the lists of all crates.
pub fn check(findings: &mut Vec<Finding>) {
    let read = |path: &Path| std::fs::read_to_string(root().join(path)).unwrap_or_default();
    let common = read(Path::new("clippy.toml"));
    let first = read(&list_of(CRATES[0]));
    for name in CRATES {
        check_list(&list_of(name), &read(&list_of(name)), &first, &common, findings);
    }
}

fn check_list(path: &Path, text: &str, first: &str, common: &str, findings: &mut Vec<Finding>) {
    for banned in BANNED {
        let held = text.lines().map(str::trim_start).any(|line| {
            line.starts_with(&format!("{{ path = \"{banned}\", reason = \"")) && !line.contains("reason = \"\"")
        });
        if !held {
            findings.push(Finding::error(
                path,
                1,
                format!("does not ban `{banned}` with a reason (xtask/src/tidy/bans.rs)"),
            ));
        }
    }
    for setting in common.lines().filter(|line| line.contains(" = ")) {
        if !text.lines().any(|line| line == setting) {
            findings.push(Finding::error(path, 1, format!("lacks `{setting}` of the clippy.toml at the root")));
        }
    }
    if text != first {
        let message = format!("differs from {}: the lists are copies of each other", list_of(CRATES[0]).display());
        findings.push(Finding::error(path, 1, message));
    }
}

/// Checks the exceptions in a file of these crates.
pub fn check_exceptions(path: &Path, text: &str, findings: &mut Vec<Finding>) {
    if !CRATES.iter().any(|name| path.starts_with(Path::new("crates").join(name))) {
        return;
    }
    let lines = text.lines().collect::<Vec<_>>();
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.contains("clippy::disallowed_")) {
        if !lines[at..].iter().take(REASON_WITHIN).any(|line| line.contains("reason = \"")) {
            let message = format!("`{}` needs a reason", line.trim());
            findings.push(Finding::error(path, at + 1, message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, first: &str) -> Vec<String> {
        let mut findings = Vec::new();
        check_list(Path::new("clippy.toml"), text, first, "allow = true\n", &mut findings);
        findings.into_iter().map(|finding| finding.message).collect()
    }

    #[test]
    fn a_list_is_whole_equal_and_has_what_the_root_sets() {
        let whole = BANNED.map(|path| format!("    {{ path = \"{path}\", reason = \"because\" }},\n")).concat();
        let whole = format!("allow = true\ndisallowed-methods = [\n{whole}]\n");
        assert_eq!(found(&whole, &whole), Vec::<String>::new());
        let less = whole.replace("std::thread::sleep", "std::thread::sheep");
        assert!(matches!(&found(&less, &less)[..], [one] if one.contains("`std::thread::sleep`")));
        let silent = whole.replacen("\"because\"", "\"\"", 1);
        assert_eq!(found(&silent, &silent).len(), 1);
        let commented = whole.replacen("    {", "    # {", 1);
        assert_eq!(found(&commented, &commented).len(), 1);
        let unset = whole.replace("allow = true", "allow = false");
        assert!(matches!(&found(&unset, &unset)[..], [one] if one.contains("allow = true")));
        assert!(matches!(&found(&format!("{whole} "), &whole)[..], [one] if one.contains("copies")));
        assert_eq!(found("", "").len(), BANNED.len() + 1);
    }

    #[test]
    fn an_exception_has_a_reason() {
        let found = |path: &str, text: &str| {
            let mut findings = Vec::new();
            check_exceptions(Path::new(path), text, &mut findings);
            findings.len()
        };
        let bare = "#[allow(clippy::disallowed_methods)]\nfn f() {}\n";
        assert_eq!(found("crates/engine/src/lib.rs", bare), 1);
        assert_eq!(found("crates/server/src/lib.rs", bare), 0);
        let told = "#[allow(\n    clippy::disallowed_types,\n    reason = \"looked up only\"\n)]\n";
        assert_eq!(found("crates/sim/tests/x.rs", told), 0);
    }
}
