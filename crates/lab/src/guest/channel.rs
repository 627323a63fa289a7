// SPDX-License-Identifier: Apache-2.0
//! What host and guest say to each other: lines that are watched, commands that are answered, and QEMU's monitor.
//!
//! Each is a unix socket of its own that QEMU connects to before the guest starts. [`LineLog`] is read by a thread to the
//! end, so that a guest never waits for a test that does not look, and what arrived before a power cut is there after
//! it. [`Agent`] and [`Monitor`] ask and wait with a deadline; one that missed its deadline is not asked again, since its
//! late answer would be taken for the next one. All amounts are bounded: a log that is full says so when it is read.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// Lines of one boot that are kept in RAM.
const LINES_BYTES: usize = 64 << 20;

/// The longest output of a command, and the longest line of an answer.
const OUTPUT_BYTES: usize = 4 << 20;

/// The longest that QEMU's monitor takes for an answer; it is busy while it waits for a disk.
const MONITOR_TIMEOUT: Duration = Duration::from_secs(60);

/// The lines that came from a guest on one port, and those that are to come.
#[derive(Debug)]
pub struct LineLog {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<String>,
    bytes: usize,
    /// Why no more lines come: the guest ended, or an error.
    ended: Option<String>,
}

impl LineLog {
    /// Reads `stream` to its end in a thread, and copies it to `copy`.
    pub(super) fn follow(stream: UnixStream, copy: Option<File>) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let read = move || {
            let ended = read_lines(stream, copy, &theirs).err().map_or("the guest ended".to_owned(), |e| e.to_string());
            theirs.lock().ended = Some(ended);
            theirs.changed.notify_all();
        };
        let reader = std::thread::Builder::new().name("guest-lines".to_owned()).spawn(read)?;
        Ok(Self { shared, reader: Some(reader) })
    }

    /// All lines since the guest was started, without their ends.
    pub fn lines(&self) -> Vec<String> {
        self.shared.lock().lines.clone()
    }

    /// The last `count` lines.
    pub fn tail(&self, count: usize) -> String {
        let state = self.shared.lock();
        state.lines[state.lines.len().saturating_sub(count)..].join("\n")
    }

    /// The first line since the guest was started that contains `pattern`; waits until it is there.
    ///
    /// # Errors
    /// When it did not come in time, or cannot come any more since the guest ended.
    pub fn wait_for_line(&self, pattern: &str, timeout: Duration) -> Result<String> {
        let mut seen = 0;
        let found = self.wait(timeout, |lines| {
            let found = lines[seen..].iter().find(|line| line.contains(pattern)).cloned();
            seen = lines.len();
            found
        });
        found.with_context(|| format!("waiting for a line with {pattern:?}"))
    }

    /// Waits until at least `count` lines came since the guest was started, and gives them all.
    ///
    /// # Errors
    /// When they did not come in time, or cannot come any more since the guest ended.
    pub fn wait_for_count(&self, count: usize, timeout: Duration) -> Result<Vec<String>> {
        let found = self.wait(timeout, |lines| (lines.len() >= count).then(|| lines.to_vec()));
        found.with_context(|| format!("waiting for {count} lines"))
    }

    fn wait<T>(&self, timeout: Duration, mut find: impl FnMut(&[String]) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + timeout;
        let mut state = self.shared.lock();
        loop {
            if let Some(found) = find(&state.lines) {
                return Ok(found);
            }
            if let Some(ended) = &state.ended {
                bail!("{ended}");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "not within {timeout:?}; {} lines came", state.lines.len());
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the other side is closed and every line is here; to be called when QEMU has ended.
    pub(super) fn drain(&mut self) {
        if let Some(reader) = self.reader.take() {
            // A panic of the reader shows as a log that does not end; there is nothing to add here.
            let _ = reader.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_lines(stream: UnixStream, mut copy: Option<File>, shared: &Shared) -> Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let size = (&mut stream).take(OUTPUT_BYTES as u64).read_until(b'\n', &mut line)?;
        if size == 0 {
            return Ok(());
        }
        if let Some(copy) = &mut copy {
            copy.write_all(&line)?;
        }
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end_matches(['\r', '\n']).to_owned();
        let mut state = shared.lock();
        state.bytes += size;
        ensure!(state.bytes <= LINES_BYTES, "the guest wrote more than {LINES_BYTES} bytes of lines");
        state.lines.push(line);
        drop(state);
        shared.changed.notify_all();
    }
}

/// What a command in the guest gave back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The exit status as a shell has it: above 128 for a signal.
    pub status: i32,
    /// Standard output and standard error, as they came.
    pub bytes: Vec<u8>,
}

impl Output {
    /// The output as text, without white space at its ends.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).trim().to_owned()
    }
}

/// The socket of a port, read no longer than until the deadline.
#[derive(Debug)]
struct Timed {
    stream: UnixStream,
    deadline: Instant,
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
        }
        self.stream.set_read_timeout(Some(left))?;
        match self.stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))
            }
            other => other,
        }
    }
}

/// One who answers questions in order.
#[derive(Debug)]
struct Peer {
    input: BufReader<Timed>,
    /// Set when an answer is outstanding that nobody waits for.
    lost: bool,
}

impl Peer {
    fn new(stream: UnixStream) -> Self {
        Self { input: BufReader::new(Timed { stream, deadline: Instant::now() }), lost: false }
    }

    /// Runs one exchange with a deadline; after a failure there is no further one.
    fn exchange<T>(&mut self, timeout: Duration, talk: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        ensure!(!self.lost, "not asked, since an earlier question was not answered");
        self.input.get_mut().deadline = Instant::now() + timeout;
        let result = talk(self);
        self.lost = result.is_err();
        result
    }

    fn send(&mut self, line: &str) -> Result<()> {
        let timed = self.input.get_mut();
        let left = timed.deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        timed.stream.set_write_timeout(Some(left))?;
        timed.stream.write_all(line.as_bytes()).context("cannot send")
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let size = (&mut self.input).take(OUTPUT_BYTES as u64).read_line(&mut line)?;
        ensure!(size > 0, "the guest ended");
        Ok(line)
    }
}

/// The shell in the guest that runs the host's commands.
#[derive(Debug)]
pub(super) struct Agent {
    peer: Peer,
    last_id: u64,
}

impl Agent {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { peer: Peer::new(stream), last_id: 0 }
    }

    /// Waits for the guest to be up; gives the status of the setup script.
    pub(super) fn wait_ready(&mut self, timeout: Duration) -> Result<i32> {
        self.peer.exchange(timeout, |peer| {
            let line = peer.line()?;
            let mut words = line.split_whitespace();
            ensure!(words.next() == Some("ready"), "the guest began with {line:?}");
            words.next().and_then(|status| status.parse().ok()).context("no status of the setup script")
        })
    }

    /// Runs a shell script in the guest.
    pub(super) fn run(&mut self, script: &str, timeout: Duration) -> Result<Output> {
        self.last_id += 1;
        let id = self.last_id;
        let hex: String = script.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.peer.exchange(timeout, |peer| {
            peer.send(&format!("run {id} {OUTPUT_BYTES} {hex}\n"))?;
            let line = peer.line()?;
            let words: Vec<i64> = line.split_whitespace().skip(1).map_while(|word| word.parse().ok()).collect();
            let [answered, status, sent, total] = words[..] else { bail!("the guest answered {line:?}") };
            let sent = usize::try_from(sent)?;
            ensure!(answered == i64::try_from(id)? && sent <= OUTPUT_BYTES, "the guest answered {line:?}");
            let mut bytes = vec![0; sent];
            peer.input.read_exact(&mut bytes)?;
            ensure!(total == i64::try_from(sent)?, "{total} bytes of output are too many; write them to a file");
            Ok(Output { status: i32::try_from(status)?, bytes })
        })
    }
}

/// QEMU's own control socket (QMP).
#[derive(Debug)]
pub(super) struct Monitor {
    peer: Peer,
}

impl Monitor {
    /// Reads the greeting and asks for the command mode.
    pub(super) fn open(stream: UnixStream) -> Result<Self> {
        let mut monitor = Self { peer: Peer::new(stream) };
        monitor.peer.exchange(MONITOR_TIMEOUT, |peer| peer.line()).context("no greeting of QEMU's monitor")?;
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Runs one command and gives what it returned; events that come between are dropped.
    pub(super) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        let answer = self.peer.exchange(MONITOR_TIMEOUT, |peer| {
            peer.send(&format!("{request}\n"))?;
            // The deadline bounds the events.
            loop {
                let answer: Value = serde_json::from_str(&peer.line()?)?;
                if answer.get("event").is_none() {
                    return Ok(answer);
                }
            }
        });
        let mut answer = answer.with_context(|| format!("QEMU's monitor, {command}"))?;
        if let Some(error) = answer.get("error") {
            bail!("QEMU's monitor refused {command}: {error}");
        }
        Ok(answer.get_mut("return").map(Value::take).unwrap_or_default())
    }
}
