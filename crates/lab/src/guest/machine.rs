// SPDX-License-Identifier: Apache-2.0
//! A running guest: one QEMU process, its sockets and its logs.
//!
//! QEMU emulates the processor (`-accel tcg`): the development machine's KVM opens but guests hang in it. QEMU connects to
//! sockets on which we listen already, so nothing has to be waited for but the guest itself. Killing the process is a
//! power cut for the guest: its page cache is gone, and of its disks there is what its kernel had given to QEMU. What QEMU
//! had given to a raw file stays in the host's page cache, so a write that reached the virtual disk counts as on its
//! platter, flushed or not. A [`Guest`] that is dropped is killed; the logs stay in the test's directory.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::channel::{Agent, LineLog, Monitor, Output};
use super::{Disk, GuestConfig, RawCache};

/// A guest is up in 2 s on a quiet machine; a busy one is given much more.
const BOOT_TIMEOUT: Duration = Duration::from_secs(180);

/// How often a wait looks whether QEMU is still there.
const LOOK: Duration = Duration::from_millis(100);

/// Lines of a log that a failure shows.
const TAIL_LINES: usize = 40;

/// A guest that is up. Dropping it kills it.
#[derive(Debug)]
pub struct Guest {
    qemu: Child,
    agent: Agent,
    monitor: Monitor,
    console: LineLog,
    reports: LineLog,
    /// Where a line to the console goes.
    console_input: UnixStream,
    /// What QEMU said on its standard error, for failures.
    qemu_log: std::path::PathBuf,
    /// The sockets.
    _sockets: TempDir,
}

impl Guest {
    /// Starts QEMU and waits until the guest answers and its setup script ended well.
    ///
    /// # Errors
    /// When QEMU or the guest does not come up; the message has the end of the console and of QEMU's own log.
    pub fn boot(config: GuestConfig) -> Result<Self> {
        let sockets = tempfile::Builder::new().prefix("guest-").tempdir()?;
        let listen = |name: &str| UnixListener::bind(sockets.path().join(name)).context("cannot bind a socket");
        let listeners = [listen("console")?, listen("agent")?, listen("report")?, listen("qmp")?];
        let qemu_log = config.directory.join("qemu.log");
        let mut command = command_line(&config, sockets.path());
        command.stdin(Stdio::null()).stdout(append(&qemu_log)?).stderr(append(&qemu_log)?);
        let child = command.spawn().context("cannot run qemu-system-x86_64; apt-get install qemu-system-x86")?;
        let mut qemu = Killed(Some(child));
        let deadline = Instant::now() + BOOT_TIMEOUT;
        let accept = |listener: &UnixListener, qemu: &mut Killed| {
            accept(listener, qemu.child()?, deadline).with_context(|| log_tail(&qemu_log))
        };
        let [console, agent, report, qmp] = listeners;
        let console = accept(&console, &mut qemu)?;
        let console_input = console.try_clone()?;
        let mut copy = append(&config.directory.join("console.log"))?;
        writeln!(copy, "--- boot ---")?;
        let console = LineLog::follow(console, Some(copy))?;
        let agent = Agent::new(accept(&agent, &mut qemu)?);
        let reports = LineLog::follow(accept(&report, &mut qemu)?, None)?;
        let monitor = Monitor::open(accept(&qmp, &mut qemu)?)?;
        let qemu = qemu.0.take().context("QEMU was taken")?;
        let mut guest = Self { qemu, agent, monitor, console, reports, console_input, qemu_log, _sockets: sockets };
        match guest.agent.wait_ready(deadline.saturating_duration_since(Instant::now())) {
            Ok(0) => Ok(guest),
            Ok(status) => Err(guest.explain(anyhow!("the setup script ended with {status}"))),
            Err(error) => Err(guest.explain(error.context("the guest does not come up"))),
        }
    }

    /// Runs a shell script in the guest as root and waits for its end. It has no input; a program that it starts in the
    /// background goes on after it. The directory and the variables are not kept between scripts.
    ///
    /// # Errors
    /// When it did not end in time or the guest ended. The guest cannot run anything after that.
    pub fn run(&mut self, script: &str, timeout: Duration) -> Result<Output> {
        let output = self.agent.run(script, timeout);
        output.map_err(|error| self.explain(error.context(format!("in the guest: {script}"))))
    }

    /// Runs a shell script as [`Guest::run`] does, and gives its output as text.
    ///
    /// # Errors
    /// Also when its exit status is not 0.
    pub fn check(&mut self, script: &str, timeout: Duration) -> Result<String> {
        let output = self.run(script, timeout)?;
        match output.status {
            0 => Ok(output.text()),
            status => Err(self.explain(anyhow!("in the guest: {script}: status {status}: {}", output.text()))),
        }
    }

    /// What was printed on the guest's console: the kernel's messages from `loglevel` on, the setup script's output.
    pub fn console(&self) -> &LineLog {
        &self.console
    }

    /// The lines that programs in the guest wrote to `/dev/report`. This is how a load tells what it knows to be done:
    /// after [`Guest::kill`] every line that left the guest is here. A few of the last may be lost, so a line that is here
    /// was written and one that is missing proves nothing. A line below 4 KiB is never mixed with another.
    pub fn reports(&self) -> &LineLog {
        &self.reports
    }

    /// Waits for a line on the console that contains `pattern`; see [`LineLog::wait_for_line`].
    ///
    /// # Errors
    /// When it does not come in time.
    pub fn wait_for_line(&self, pattern: &str, timeout: Duration) -> Result<String> {
        self.console.wait_for_line(pattern, timeout).map_err(|error| self.explain(error))
    }

    /// Types a line on the guest's console, for a program that reads `/dev/ttyS0`.
    ///
    /// # Errors
    /// When the guest ended.
    pub fn send_line(&mut self, line: &str) -> Result<()> {
        self.console_input.write_all(format!("{line}\n").as_bytes()).context("cannot write to the guest's console")
    }

    /// Runs a command of QEMU's monitor (QMP) and gives what it returned.
    ///
    /// # Errors
    /// When QEMU refused it or does not answer.
    pub fn qmp(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let returned = self.monitor.execute(command, &arguments);
        returned.map_err(|error| self.explain(error))
    }

    /// Stops the guest's processors; to its clients it is a machine that hangs.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub fn pause(&mut self) -> Result<()> {
        self.qmp("stop", json!({})).map(drop)
    }

    /// Lets a paused guest go on.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub fn resume(&mut self) -> Result<()> {
        self.qmp("cont", json!({})).map(drop)
    }

    /// The address on the host that leads to a port of [`GuestConfig::forward_ports`].
    ///
    /// # Errors
    /// When the port is not forwarded.
    pub fn forwarded(&mut self, guest_port: u16) -> Result<SocketAddr> {
        let listing = self.qmp("human-monitor-command", json!({ "command-line": "info usernet" }))?;
        let listing = listing.as_str().unwrap_or_default();
        // "TCP[HOST_FORWARD]  3  127.0.0.1 42939  10.0.2.15  7420  0  0"
        let host_port = listing.lines().find_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["TCP[HOST_FORWARD]", _, _, host, _, guest, ..] if guest.parse() == Ok(guest_port) => host.parse().ok(),
                _ => None,
            }
        });
        let host_port: u16 = host_port.with_context(|| format!("port {guest_port} is not forwarded: {listing}"))?;
        Ok(SocketAddr::from(([127, 0, 0, 1], host_port)))
    }

    /// Makes the guest's kernel keep what is written to files in its page cache until it is told to write it: no write-back
    /// by age or amount. So a power cut loses for certain what no `fsync` asked for, and not only what is younger than
    /// 30 s. A file system's own journal is still committed every few seconds (ext4: mount with `commit=600`).
    ///
    /// # Errors
    /// When the guest does not answer.
    pub fn keep_writes_in_memory(&mut self) -> Result<()> {
        let script = "cd /proc/sys/vm && echo 0 >dirty_writeback_centisecs && echo 3600000 >dirty_expire_centisecs \
                      && echo 90 >dirty_ratio && echo 90 >dirty_background_ratio";
        self.check(script, Duration::from_secs(30)).map(drop)
    }

    /// Kills QEMU: the power cut. All that the guest had reported is in the logs when this returns.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        // It may have ended by itself; the wait tells.
        let _ = self.qemu.kill();
        self.qemu.wait().context("cannot wait for QEMU")?;
        self.console.drain();
        self.reports.drain();
        Ok(())
    }

    /// Unmounts what is mounted, powers the guest off and waits until QEMU ended.
    ///
    /// # Errors
    /// When a file system cannot be unmounted or QEMU does not end in time.
    pub fn shutdown(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        // Only what lies on a disk; the file systems in RAM are in use to the end.
        self.check(
            "sync; for at in $(grep ^/dev/ /proc/mounts | cut -d ' ' -f 2 | tac); do umount $at || exit 1; done",
            timeout,
        )?;
        // The answer may be lost with the guest, so the power goes off after it was sent.
        self.check(
            "(usleep 100000; poweroff -f) >/dev/null 2>&1 &",
            deadline.saturating_duration_since(Instant::now()),
        )?;
        // The console is closed when QEMU is about to end.
        let closed = self.console.wait_for_end(deadline.saturating_duration_since(Instant::now()));
        while closed && Instant::now() < deadline {
            if let Some(status) = self.qemu.try_wait()? {
                self.kill()?;
                ensure!(status.success(), "QEMU ended with {status}: {}", log_tail(&self.qemu_log));
                return Ok(());
            }
            std::thread::sleep(LOOK / 10);
        }
        Err(self.explain(anyhow!("the guest did not power off within {timeout:?}")))
    }

    /// Whether QEMU has ended, and how.
    ///
    /// # Errors
    /// When the process cannot be asked.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.qemu.try_wait()?)
    }

    /// The error with the end of the console and of QEMU's log.
    fn explain(&self, error: Error) -> Error {
        let console = self.console.tail(TAIL_LINES);
        error.context(format!("guest failed; its console ends:\n{console}\n{}", log_tail(&self.qemu_log)))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Nobody is left to hear of a failure.
        let _ = self.kill();
    }
}

/// A child that is killed unless it is taken out.
struct Killed(Option<Child>);

impl Killed {
    fn child(&mut self) -> Result<&mut Child> {
        self.0.as_mut().context("QEMU was taken")
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn append(path: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.with_context(|| format!("cannot open {}", path.display()))
}

fn log_tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    format!("QEMU's log ends:\n{}", lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n"))
}

/// Waits for QEMU to connect.
fn accept(listener: &UnixListener, qemu: &mut Child, deadline: Instant) -> Result<UnixStream> {
    let slice = Timespec::try_from(LOOK)?;
    loop {
        let mut ready = [PollFd::new(listener, PollFlags::IN)];
        match poll(&mut ready, Some(&slice)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(listener.accept()?.0),
            Err(error) => return Err(error.into()),
        }
        if let Some(status) = qemu.try_wait()? {
            bail!("QEMU ended with {status} before the guest was started");
        }
        ensure!(Instant::now() < deadline, "QEMU did not connect to its sockets in time");
    }
}

fn command_line(config: &GuestConfig, sockets: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    // "max" has the instructions (AVX2, RDRAND) for which programs and the kernel have fast ways.
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-nodefaults", "-nographic", "-no-reboot"]);
    command.args(["-m", &config.memory_mb.to_string(), "-smp", &config.cpus.to_string()]);
    command.arg("-kernel").arg(&config.kernel.image).arg("-initrd").arg(&config.initramfs.path);
    let append = format!("console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off {}", config.append);
    command.args(["-append", append.trim_end()]);
    for name in ["console", "agent", "report", "qmp"] {
        // A comma in an option's value is doubled.
        let path = sockets.join(name).to_string_lossy().replace(',', ",,");
        command.args(["-chardev", &format!("socket,id={name},path={path}")]);
    }
    command.args(["-serial", "chardev:console", "-mon", "chardev=qmp,mode=control", "-device", "virtio-serial-pci"]);
    command.args(["-device", "virtserialport,chardev=agent,nr=1", "-device", "virtserialport,chardev=report,nr=2"]);
    for (number, disk) in config.disks.iter().enumerate() {
        command.args(["-blockdev", &blockdev(disk, number).to_string()]);
        command.args(["-device", &format!("virtio-blk-pci,drive=disk{number},serial=disk{number}")]);
    }
    if !config.forward_ports.is_empty() {
        let mut network = "user,id=net,restrict=on".to_owned();
        for port in &config.forward_ports {
            // Port 0 is a free port of the host, which `forwarded` asks for.
            network.push_str(&format!(",hostfwd=tcp:127.0.0.1:0-:{port}"));
        }
        command.args(["-netdev", &network, "-device", "virtio-net-pci,netdev=net,romfile="]);
    }
    command
}

/// The description of a disk's back end, as QEMU takes it.
fn blockdev(disk: &Disk, number: usize) -> Value {
    let node = format!("disk{number}");
    match disk {
        Disk::Raw { path, cache } => {
            let direct = *cache == RawCache::Direct;
            let cache = json!({ "direct": direct, "no-flush": false });
            let file = json!({ "driver": "file", "filename": path, "cache": cache, "discard": "unmap" });
            json!({ "driver": "raw", "node-name": node, "file": file, "cache": cache, "discard": "unmap" })
        }
        Disk::Nbd { socket, export, reconnect_delay_s } => json!({
            "driver": "nbd", "node-name": node, "server": { "type": "unix", "path": socket }, "export": export,
            "reconnect-delay": reconnect_delay_s, "discard": "unmap",
        }),
    }
}
