// SPDX-License-Identifier: Apache-2.0
//! The watcher: ends every process group that this program has started, when this program is gone.
//!
//! It is a second process of the same executable, in a process group of its own so that Ctrl-C does not reach it, reading
//! lines from a pipe: `add PGID`, `del PGID`, `dir PATH` (to be removed at the end), `undir PATH`. The end of the pipe means
//! that the program has ended: by itself, by a panic, by Ctrl-C or by `kill -9`. What is still listed then gets SIGTERM, a few
//! seconds to go, and SIGKILL.
//!
//! Nothing here needs a signal handler, so nothing here is unsafe. Only groups that this program made are ever listed.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use std::collections::BTreeSet;
use std::io::{BufRead, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// The hidden subcommand that runs [`watch`].
pub const SUBCOMMAND: &str = "guard-of-children";

/// How long a group may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(8);

static WATCHER: OnceLock<Mutex<Child>> = OnceLock::new();

/// Sends one line to the watcher, which is started by the first.
fn tell(line: &str) -> Result<()> {
    if cfg!(test) {
        // The executable is the test runner's then, and knows no subcommand.
        return Ok(());
    }
    if WATCHER.get().is_none() {
        let executable = std::env::current_exe().context("where is this program?")?;
        let child = Command::new(executable)
            .arg(SUBCOMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .context("starting the watcher of children")?;
        // Two threads may race to be the first; the loser's watcher sees the end of its pipe and ends, for it knows no groups.
        drop(WATCHER.set(Mutex::new(child)));
    }
    let watcher = WATCHER.get().context("the watcher of children was not started")?;
    let mut child = watcher.lock().map_err(|_| anyhow::anyhow!("a thread died while it spoke to the watcher"))?;
    let pipe = child.stdin.as_mut().context("the watcher's pipe is closed")?;
    writeln!(pipe, "{line}").context("telling the watcher of children")
}

/// Has the group ended when this program is gone.
pub fn add(group: Pid) -> Result<()> {
    tell(&format!("add {}", group.as_raw_nonzero()))
}

/// Forgets a group that has ended.
pub fn remove(group: Pid) {
    // When the watcher is gone there is nobody left who could remember the group.
    drop(tell(&format!("del {}", group.as_raw_nonzero())));
}

/// Has the directory removed when this program is gone.
pub fn add_directory(path: &Path) -> Result<()> {
    tell(&format!("dir {}", path.display()))
}

/// Forgets a directory.
pub fn remove_directory(path: &Path) {
    drop(tell(&format!("undir {}", path.display())));
}

/// The life of the watcher process.
pub fn watch() -> Result<()> {
    let mut groups = BTreeSet::new();
    let mut directories = BTreeSet::new();
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        apply(&line, &mut groups, &mut directories);
    }
    end_groups(&groups, GRACE);
    for directory in directories {
        if directory.exists() {
            std::fs::remove_dir_all(&directory).with_context(|| format!("removing {}", directory.display()))?;
        }
    }
    Ok(())
}

fn apply(line: &str, groups: &mut BTreeSet<i32>, directories: &mut BTreeSet<PathBuf>) {
    let Some((verb, rest)) = line.split_once(' ') else { return };
    let group = rest.parse::<i32>().ok().filter(|group| *group > 1);
    match (verb, group) {
        ("add", Some(group)) => drop(groups.insert(group)),
        ("del", Some(group)) => drop(groups.remove(&group)),
        ("dir", _) => drop(directories.insert(PathBuf::from(rest))),
        ("undir", _) => drop(directories.remove(Path::new(rest))),
        _ => {}
    }
}

fn end_groups(groups: &BTreeSet<i32>, grace: Duration) {
    for group in groups {
        if let Some(group) = Pid::from_raw(*group) {
            end_group(group, grace);
        }
    }
}

/// SIGTERM, a bounded wait for the group to be empty, SIGKILL.
pub fn end_group(group: Pid, grace: Duration) {
    let deadline = Instant::now() + grace;
    if kill_process_group(group, Signal::TERM).is_err() {
        return;
    }
    while Instant::now() < deadline {
        if test_kill_process_group(group).is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // It may have ended between the last look and now: then there is nothing left to kill.
    _ = kill_process_group(group, Signal::KILL);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_are_understood_and_dangerous_groups_refused() {
        let (mut groups, mut directories) = (BTreeSet::new(), BTreeSet::new());
        for line in [
            "add 12", "add 13", "del 12", "add 0", "add 1", "add -5", "add x", "nonsense", "dir /a b", "dir /c",
            "undir /c",
        ] {
            apply(line, &mut groups, &mut directories);
        }
        assert_eq!(groups.into_iter().collect::<Vec<_>>(), [13]);
        assert_eq!(directories.into_iter().collect::<Vec<_>>(), [PathBuf::from("/a b")]);
    }

    #[test]
    fn a_group_that_ignores_sigterm_is_killed() {
        let mut child = Command::new("sh")
            .args(["-c", "trap '' TERM; echo ready; while :; do sleep 1; done"])
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut ready = String::new();
        std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let group = Pid::from_child(&child);
        end_group(group, Duration::from_millis(100));
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }
}
