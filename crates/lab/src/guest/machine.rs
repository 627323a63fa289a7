// SPDX-License-Identifier: Apache-2.0
//! A running guest: one QEMU process, its sockets and its logs.
//!
//! QEMU emulates the processor (`-accel tcg`): the development machine's KVM opens but guests hang in it. QEMU connects to
//! sockets on which we listen already, so nothing has to be waited for but the guest itself. Killing the process is a
//! power cut for the guest: its page cache is gone, and of its disks there is what its kernel had given to QEMU. What QEMU
//! had given to a raw file stays in the host's page cache, so a write that reached the virtual disk counts as on its
//! platter, flushed or not; only a disk with [`RawCache::Volatile`] loses what no flush followed, since it is served by a
//! process that keeps it till then and is killed along. A [`Guest`] that is dropped is killed; the logs stay in the
//! test's directory.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::channel::{Agent, LineLog, Monitor, Output};
use super::{Disk, GuestConfig, RawCache};
use crate::process::{Process, find_program, wait_until};

/// A guest is up in 2 s on a quiet machine; a busy one is given much more.
const BOOT_TIMEOUT: Duration = Duration::from_secs(75);

/// How often a wait looks whether QEMU is still there.
const LOOK: Duration = Duration::from_millis(100);

/// Lines of a log that a failure shows.
const TAIL_LINES: usize = 40;

/// A guest that is up. Dropping it kills it.
#[derive(Debug)]
pub struct Guest {
    qemu: Process,
    /// The servers of disks with a volatile cache.
    disk_servers: Vec<Process>,
    agent: Agent,
    monitor: Monitor,
    console: LineLog,
    reports: LineLog,
    /// Where a line to the console goes.
    console_input: UnixStream,
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
        let disk_servers = serve_volatile_disks(&config, sockets.path())?;
        let program = find_program("qemu-system-x86_64", "qemu-system-x86")?;
        let mut qemu = Process::start("qemu", command_line(&program, &config, sockets.path()), &config.directory)?;
        let deadline = Instant::now() + BOOT_TIMEOUT;
        let [console, agent, report, qmp] = listeners;
        let console = accept(&console, &mut qemu, deadline)?;
        let console_input = console.try_clone()?;
        let log = config.directory.join("console.log");
        let log = OpenOptions::new().create(true).append(true).open(&log);
        let mut log = log.with_context(|| format!("cannot open console.log in {}", config.directory.display()))?;
        writeln!(log, "--- boot ---")?;
        let console = LineLog::follow(console, Some(log))?;
        let agent = Agent::new(accept(&agent, &mut qemu, deadline)?);
        let reports = LineLog::follow(accept(&report, &mut qemu, deadline)?, None)?;
        let monitor = Monitor::open(accept(&qmp, &mut qemu, deadline)?)?;
        let mut guest = Self { qemu, disk_servers, agent, monitor, console, reports, console_input, _sockets: sockets };
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

    /// What was printed on the guest's console: the kernel's messages, the setup script's output.
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
        self.qemu.kill()?;
        for server in &mut self.disk_servers {
            server.kill()?;
        }
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
        let status = self.qemu.wait(deadline.saturating_duration_since(Instant::now()));
        let status = status.map_err(|error| self.explain(error.context("the guest does not power off")))?;
        self.kill()?;
        ensure!(status.success(), "QEMU ended with {status}: {}", self.qemu.log_tail());
        Ok(())
    }

    /// Whether QEMU has ended, and how.
    ///
    /// # Errors
    /// When the process cannot be asked.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.qemu.ended()
    }

    /// The error with the end of the console and of QEMU's log.
    fn explain(&self, error: Error) -> Error {
        let console = self.console.tail(TAIL_LINES);
        error.context(format!("its console ends:\n{console}\nQEMU's log ends:\n{}", self.qemu.log_tail()))
    }
}

impl Drop for Guest {
    #[allow(clippy::print_stderr, reason = "this is where a failed test's console belongs")]
    fn drop(&mut self) {
        let killed = self.kill();
        if std::thread::panicking() {
            eprintln!("--- the guest's console ends:\n{}", self.console.tail(TAIL_LINES));
        }
        if let Err(error) = killed {
            eprintln!("{error:#}");
        }
    }
}

/// Starts a server for each raw disk whose cache is volatile. It keeps what is written and writes it to the file when a
/// flush asks for it, so that killing it loses the rest.
fn serve_volatile_disks(config: &GuestConfig, sockets: &Path) -> Result<Vec<Process>> {
    let mut servers = Vec::new();
    for (number, disk) in config.disks.iter().enumerate() {
        let Disk::Raw { path, cache: RawCache::Volatile } = disk else { continue };
        let name = format!("disk{number}");
        let ready = sockets.join(format!("{name}.pid"));
        let mut command = Command::new(find_program("nbdkit", "nbdkit")?);
        command.arg("--foreground").arg("--unix").arg(volatile_socket(sockets, number)).arg("--pidfile").arg(&ready);
        command.args(["--filter=cache", "file"]).arg(path).args(["cache=writeback", "cache-min-block-size=4096"]);
        let mut server = Process::start(&name, command, &config.directory)?;
        wait_until(BOOT_TIMEOUT, "the server of a disk", || {
            server.check_running()?;
            Ok(ready.exists())
        })?;
        servers.push(server);
    }
    Ok(servers)
}

fn volatile_socket(sockets: &Path, number: usize) -> PathBuf {
    sockets.join(format!("disk{number}"))
}

/// Waits for QEMU to connect.
fn accept(listener: &UnixListener, qemu: &mut Process, deadline: Instant) -> Result<UnixStream> {
    let slice = Timespec::try_from(LOOK)?;
    loop {
        let mut ready = [PollFd::new(listener, PollFlags::IN)];
        match poll(&mut ready, Some(&slice)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(listener.accept()?.0),
            Err(error) => return Err(error.into()),
        }
        qemu.check_running()?;
        ensure!(Instant::now() < deadline, "QEMU did not connect to its sockets in time");
    }
}

fn command_line(program: &Path, config: &GuestConfig, sockets: &Path) -> Command {
    let mut command = Command::new(program);
    // "max" has the instructions (AVX2, RDRAND) for which programs and the kernel have fast ways; page tables of five
    // levels are only more to emulate, and more to go wrong at the start.
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-nodefaults", "-nographic", "-no-reboot"]);
    command.args(["-m", &config.memory_mb.to_string(), "-smp", &config.cpus.to_string()]);
    command.arg("-kernel").arg(&config.kernel.image).arg("-initrd").arg(&config.initramfs.path);
    // All messages from the first on, or a guest that hangs leaves nothing to look at; they cost no time. The kernel's test
    // of the timer counts on time that a busy host does not give it.
    let console = "console=ttyS0 earlyprintk=serial,ttyS0,115200 loglevel=7";
    let append = format!("{console} panic=-1 mitigations=off nokaslr no_timer_check {}", config.append);
    command.args(["-append", append.trim_end()]);
    for name in ["console", "agent", "report", "qmp"] {
        // A comma in an option's value is doubled.
        let path = sockets.join(name).to_string_lossy().replace(',', ",,");
        command.args(["-chardev", &format!("socket,id={name},path={path}")]);
    }
    command.args(["-serial", "chardev:console", "-mon", "chardev=qmp,mode=control", "-device", "virtio-serial-pci"]);
    command.args(["-device", "virtserialport,chardev=agent,nr=1", "-device", "virtserialport,chardev=report,nr=2"]);
    for (number, disk) in config.disks.iter().enumerate() {
        command.args(["-blockdev", &blockdev(disk, number, sockets).to_string()]);
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
fn blockdev(disk: &Disk, number: usize, sockets: &Path) -> Value {
    let node = format!("disk{number}");
    match disk {
        Disk::Raw { cache: RawCache::Volatile, .. } => json!({
            "driver": "nbd", "node-name": node, "server": { "type": "unix", "path": volatile_socket(sockets, number) },
        }),
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
