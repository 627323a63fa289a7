// SPDX-License-Identifier: Apache-2.0
//! Child processes: each in a group of its own, with a deadline, known to the watcher.
//!
//! [`run`] runs a command to its end, shows and keeps what it prints, and ends its whole group at the deadline (SIGTERM first,
//! so that a test runner can end its tests). [`Daemon`] is a process that stays until it is dropped. Nothing started here
//! outlives this program: see [`crate::guard`].

use crate::guard;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, kill_process_group};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

pub use rustix::process::Signal;

/// How long a group may take to end after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(15);
/// Between two looks at whether a child has ended.
const POLL: Duration = Duration::from_millis(20);
/// What is kept of a command's output, at most; the rest is shown and dropped.
const KEPT_BYTES: usize = 16 << 20;

/// What a command did.
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Whether the deadline ended it.
    pub timed_out: bool,
    /// Its standard output, at most [`KEPT_BYTES`].
    pub stdout: String,
    /// Its standard error, at most [`KEPT_BYTES`].
    pub stderr: String,
}

impl Finished {
    /// Whether it ended by itself and with success.
    pub fn ok(&self) -> bool {
        self.status.success() && !self.timed_out
    }
}

/// Whether output is shown while it comes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Echo {
    /// Shown and kept.
    Yes,
    /// Kept only.
    No,
}

/// A command line as a person would type it: the program by its name, wherever it is.
pub fn command_line(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| quote(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn spawn(command: &mut Command) -> Result<(Child, Pid)> {
    let child = command.process_group(0).spawn().with_context(|| format!("starting `{}`", command_line(command)))?;
    let group = Pid::from_child(&child);
    if let Err(error) = guard::add(group) {
        _ = kill_process_group(group, Signal::KILL);
        return Err(error);
    }
    Ok((child, group))
}

/// Runs a command to its end or to the deadline, with no standard input.
pub fn run(command: &mut Command, deadline: Duration, echo: Echo) -> Result<Finished> {
    let end = Instant::now() + deadline;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (mut child, group) = spawn(command)?;
    let (sender, receiver) = channel();
    copy_lines(child.stdout.take().context("its output is piped")?, Stream::Out, echo, sender.clone());
    copy_lines(child.stderr.take().context("its errors are piped")?, Stream::Err, echo, sender);
    let (mut stdout, mut stderr) = (String::new(), String::new());
    let mut timed_out = false;
    let status = loop {
        take_lines(&receiver, &mut stdout, &mut stderr);
        if let Some(status) = child.try_wait().context("waiting for a child")? {
            break status;
        }
        if Instant::now() >= end {
            timed_out = true;
            end_child(&mut child, group)?;
            break child.wait().context("waiting for a child")?;
        }
    };
    // What it left in its group holds the pipes open, and has no business to live on.
    _ = kill_process_group(group, Signal::KILL);
    guard::remove(group);
    drain(&receiver, &mut stdout, &mut stderr);
    Ok(Finished { status, timed_out, stdout, stderr })
}

/// Runs a command quietly and gives its output; an error when it fails.
pub fn output(command: &mut Command, deadline: Duration) -> Result<String> {
    let finished = run(command, deadline, Echo::No)?;
    if finished.timed_out {
        bail!("`{}` did not end within {} s", command_line(command), deadline.as_secs());
    }
    if !finished.status.success() {
        bail!("`{}` failed ({}):\n{}", command_line(command), finished.status, finished.stderr.trim_end());
    }
    Ok(finished.stdout)
}

/// SIGTERM to the group, a bounded wait that also collects the child, SIGKILL.
fn end_child(child: &mut Child, group: Pid) -> Result<()> {
    _ = kill_process_group(group, Signal::TERM);
    let end = Instant::now() + GRACE;
    while Instant::now() < end {
        if child.try_wait().context("waiting for a child")?.is_some() {
            break;
        }
        std::thread::sleep(POLL);
    }
    _ = kill_process_group(group, Signal::KILL);
    Ok(())
}

#[derive(Clone, Copy)]
enum Stream {
    Out,
    Err,
}

fn copy_lines(source: impl Read + Send + 'static, stream: Stream, echo: Echo, sender: Sender<(Stream, String)>) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(source);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let text = String::from_utf8_lossy(&line).into_owned();
            line.clear();
            if echo == Echo::Yes {
                // Nobody may be looking any more; the test goes on all the same.
                drop(match stream {
                    Stream::Out => std::io::stdout().write_all(text.as_bytes()),
                    Stream::Err => std::io::stderr().write_all(text.as_bytes()),
                });
            }
            if sender.send((stream, text)).is_err() {
                return;
            }
        }
    });
}

fn keep(stdout: &mut String, stderr: &mut String, (stream, text): (Stream, String)) {
    let target = match stream {
        Stream::Out => stdout,
        Stream::Err => stderr,
    };
    if target.len() + text.len() <= KEPT_BYTES {
        target.push_str(&text);
    }
}

fn take_lines(receiver: &Receiver<(Stream, String)>, stdout: &mut String, stderr: &mut String) {
    match receiver.recv_timeout(POLL) {
        Ok(line) => keep(stdout, stderr, line),
        // Both pipes are closed and the child has yet to end.
        Err(RecvTimeoutError::Disconnected) => std::thread::sleep(POLL),
        Err(RecvTimeoutError::Timeout) => {}
    }
    while let Ok(line) = receiver.try_recv() {
        keep(stdout, stderr, line);
    }
}

/// Takes what is left after the end, for a bounded time: a process that left the group may hold the pipe open.
fn drain(receiver: &Receiver<(Stream, String)>, stdout: &mut String, stderr: &mut String) {
    let end = Instant::now() + Duration::from_secs(2);
    while let Ok(line) = receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
        keep(stdout, stderr, line);
    }
}

/// Asks for a condition until it holds; an error at the deadline, or when the condition itself fails.
pub fn until(deadline: Duration, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + deadline;
    while !holds().with_context(|| format!("while waiting for {what}"))? {
        if Instant::now() >= end {
            bail!("waited {} s for {what}", deadline.as_secs());
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// A process that runs until it is told to stop, or dropped.
pub struct Daemon {
    child: Child,
    group: Pid,
    name: String,
}

impl Daemon {
    /// Starts a command; what it prints goes to `log`, which is made anew.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        Self::start_with(command, std::fs::File::create(log), log)
    }

    /// Starts a command; what it prints is added to `log`, which may have what was printed before.
    pub fn start_again(command: &mut Command, log: &Path) -> Result<Self> {
        Self::start_with(command, std::fs::File::options().create(true).append(true).open(log), log)
    }

    fn start_with(command: &mut Command, file: std::io::Result<std::fs::File>, log: &Path) -> Result<Self> {
        let file = file.with_context(|| format!("opening {}", log.display()))?;
        let errors = file.try_clone().context("a second handle of the log")?;
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        let (child, group) = spawn(command)?;
        Ok(Self { child, group, name: command_line(command) })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error if it has ended.
    pub fn must_live(&mut self) -> Result<()> {
        match self.child.try_wait().context("looking at a daemon")? {
            None => Ok(()),
            Some(status) => bail!("`{}` ended by itself ({status})", self.name),
        }
    }

    /// Sends a signal to the process and what it has started.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process_group(self.group, signal).with_context(|| format!("sending {signal:?} to `{}`", self.name))
    }

    /// `kill -9`, and the end of it.
    pub fn kill(mut self) -> Result<()> {
        _ = kill_process_group(self.group, Signal::KILL);
        self.child.wait().context("waiting for a daemon")?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && end_child(&mut self.child, self.group).is_err() {
            eprintln!("could not end `{}`", self.name);
        }
        drop(self.child.wait());
        guard::remove(self.group);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_can_be_typed_again() {
        let mut command = Command::new("/usr/bin/cargo");
        command.args(["test", "--", "it's", "a b", ""]);
        assert_eq!(command_line(&command), r"cargo test -- 'it'\''s' 'a b' ''");
    }
}
