// SPDX-License-Identifier: Apache-2.0
//! Child processes of tests: started in a process group of their own, logged to a file, and gone when the test is.
//!
//! What always holds: a [`Process`] that is dropped has been killed with its whole group and reaped, so a failed test leaves nothing
//! behind; what it wrote to standard output and error is in one file, whose end is shown when the test panics. Nothing here sleeps
//! for a time that somebody guessed: [`wait_until`] asks for a condition until a deadline, and says what it was waiting for.
//!
//! Only a test that is itself killed with SIGKILL leaves its children running.

use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use rustix::process::Signal;

/// How often a condition is asked for.
const POLL: Duration = Duration::from_millis(20);
/// How much of a log is shown.
const LOG_TAIL_BYTES: u64 = 8 << 10;
/// Ports are taken from below the range that the kernel gives to outgoing connections (32,768 and up by default).
const PORTS: std::ops::Range<u32> = 10_000..32_000;

/// A child process and its group.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log_path: PathBuf,
}

impl Process {
    /// Starts `command` with its output going to `NAME.log` in `dir` (added to what is there already) and no standard input.
    ///
    /// # Errors
    /// When the log cannot be opened or the program not be started.
    pub fn start(name: &str, mut command: Command, dir: &Path) -> Result<Self> {
        let log_path = dir.join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(&log_path);
        let log = log.with_context(|| format!("open {}", log_path.display()))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let child = command.spawn().with_context(|| format!("start {command:?}"))?;
        Ok(Self { name: name.to_owned(), child, log_path })
    }

    /// The process id, which is also the id of its group.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log_path
    }

    /// The end of its output, for messages.
    #[must_use]
    pub fn log_tail(&self) -> String {
        log_tail(&self.log_path).unwrap_or_else(|error| format!("(no log: {error})"))
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("ask for the state of {}", self.name))
    }

    /// Fails, with the end of the log, if the process has ended.
    ///
    /// # Errors
    /// When it has ended.
    pub fn check_running(&mut self) -> Result<()> {
        if let Some(status) = self.ended()? {
            bail!("{} ended ({status}); its log ends:\n{}", self.name, self.log_tail());
        }
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it has not ended within `deadline`.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        let mut status = None;
        wait_until(deadline, &what, || {
            status = self.ended()?;
            Ok(status.is_some())
        })?;
        status.context("a process that ended has a status")
    }

    /// Sends a signal to the process alone.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.check_running()?;
        let pid = pid(&self.child)?;
        rustix::process::kill_process(pid, signal).with_context(|| format!("send {signal:?} to {}", self.name))
    }

    /// Kills the whole group (SIGKILL) and reaps the process. Succeeds if it has ended already.
    ///
    /// # Errors
    /// When the process cannot be reaped.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        // The group outlives its leader where grandchildren do. Its number is not used again while any of them lives, and a group
        // that is gone is what is wanted; so the answer does not matter.
        let _gone = rustix::process::kill_process_group(pid(&self.child)?, Signal::KILL);
        self.child.wait().with_context(|| format!("reap {}", self.name))
    }
}

impl Drop for Process {
    #[allow(clippy::print_stderr, reason = "this is where a failed test's log belongs")]
    fn drop(&mut self) {
        let ended = self.ended();
        let killed = self.kill();
        if std::thread::panicking() {
            eprintln!("--- {} ({ended:?}), end of {}:\n{}", self.name, self.log_path.display(), self.log_tail());
        }
        if let Err(error) = killed {
            eprintln!("{error:#}");
        }
    }
}

fn pid(child: &Child) -> Result<rustix::process::Pid> {
    let raw = i32::try_from(child.id()).context("a process id fits an i32")?;
    rustix::process::Pid::from_raw(raw).context("a process id is not 0")
}

fn log_tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(LOG_TAIL_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Asks for a condition until it holds.
///
/// # Errors
/// When `deadline` passed first, saying `what` was waited for; or at once when the condition itself fails.
pub fn wait_until(deadline: Duration, what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    loop {
        if condition().with_context(|| format!("while waiting for {what}"))? {
            return Ok(());
        }
        ensure!(start.elapsed() < deadline, "waited {deadline:?} in vain for {what}");
        std::thread::sleep(POLL);
    }
}

/// A TCP port of 127.0.0.1 that is free now and was not given to anybody else in this process.
///
/// # Errors
/// When none is found.
pub fn free_port() -> Result<u16> {
    // Each process begins somewhere else, so that test programs that run side by side rarely meet.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let span = PORTS.end - PORTS.start;
    if NEXT.load(Ordering::Relaxed) == 0 {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
        let begin = 1 + (std::process::id().wrapping_mul(7919) ^ nanos) % span;
        let _other_thread_was_first = NEXT.compare_exchange(0, begin, Ordering::Relaxed, Ordering::Relaxed);
    }
    for _ in 0..span {
        let port = PORTS.start + NEXT.fetch_add(1, Ordering::Relaxed) % span;
        let port = u16::try_from(port).context("the range of ports fits 16 bits")?;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port in {PORTS:?}")
}

/// Where a program is: in `PATH`, or in one of the few places that a shell of root would look in as well.
///
/// # Errors
/// When it is not there, naming the `package` (Debian's or PyPI's) that has it.
pub fn find_program(name: &str, package: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let more = [home.join(".pyenv/shims"), home.join(".local/bin"), "/usr/sbin".into(), "/sbin".into()];
    for dir in std::env::split_paths(&path).chain(more) {
        let candidate = dir.join(name);
        let executable = |meta: std::fs::Metadata| meta.is_file() && meta.permissions().mode() & 0o111 != 0;
        if candidate.metadata().is_ok_and(executable) {
            return Ok(candidate);
        }
    }
    bail!("the program `{name}` is missing: install the package {package}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_process_takes_its_group_along() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 600 & echo child $!; wait"]);
        let process = Process::start("group", command, dir.path()).unwrap();
        let mut child = 0;
        wait_until(Duration::from_secs(10), "the grandchild's id", || {
            let log = process.log_tail();
            let line = log.lines().find_map(|line| line.strip_prefix("child "));
            child = line.and_then(|id| id.parse().ok()).unwrap_or(0);
            Ok(child != 0)
        })
        .unwrap();
        assert!(alive(child));
        drop(process);
        wait_until(Duration::from_secs(10), "the grandchild to die", || Ok(!alive(child))).unwrap();
    }

    /// Whether the process is there and no zombie (its new parent may take a while to reap it).
    fn alive(id: i32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    }

    #[test]
    fn an_early_end_is_told_with_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo the reason >&2; exit 3"]);
        let mut process = Process::start("early", command, dir.path()).unwrap();
        assert_eq!(process.wait(Duration::from_secs(10)).unwrap().code(), Some(3));
        let error = process.check_running().unwrap_err().to_string();
        assert!(error.contains("the reason"), "{error}");
        assert_eq!(process.kill().unwrap().code(), Some(3));
    }

    #[test]
    fn waiting_ends_at_the_deadline_and_says_for_what() {
        let error = wait_until(Duration::from_millis(30), "godot", || Ok(false)).unwrap_err();
        assert!(error.to_string().contains("godot"), "{error}");
    }

    #[test]
    fn ports_are_free_and_given_once() {
        let mut ports: Vec<u16> = (0..20).map(|_| free_port().unwrap()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 20);
    }

    #[test]
    fn a_missing_program_names_its_package() {
        assert!(find_program("sh", "dash").unwrap().is_absolute());
        let error = find_program("no-such-program", "some-package").unwrap_err().to_string();
        assert!(error.contains("some-package"), "{error}");
    }
}
